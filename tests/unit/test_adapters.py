"""Low-rank adapters: what is trained and what stays, in and out of the weights, several beside each other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import daybreak
from daybreak import LanguageModel, families
from daybreak.architecture import Architecture
from daybreak.compare.redraw import redraw
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_linear import QuantisedLinear
from daybreak.errors import DaybreakError
from daybreak.families.trials import alone, trials
from daybreak.model.adapters import (
    add_lora,
    base,
    disabled,
    of,
    remove,
    selected,
    settings_of,
    trainable,
    use,
)
from daybreak.model.decoder import Decoder
from daybreak.model.lora import Lora
from daybreak.model.lora_settings import LoraSettings, chosen, described, maps
from daybreak.model.merging import merge, unmerge
from daybreak.settings import build, to_tree
from tests.unit.architectures import any_architecture

BOUND = 1e-5
TRANSFORMERS = [name for name in families.NAMES if hasattr(families.by_name(name), "rules")]


def decoder_of(family: str) -> Decoder:
    shapes = trials(family) or alone(family)
    decoder = Decoder(next(iter(shapes.values())))
    redraw(decoder, 4)
    return decoder


def model_of(**changes: Any) -> LanguageModel:
    shape = {"vocabulary": 61, "context": 32, "layers": 2, "width": 24, "heads": 3, "inner": 40}
    model = daybreak.create("gpt2", **{**shape, **changes})
    redraw(model.decoder, 4)
    return model


def drawn(decoder: Decoder, seed: int = 1, scale: float = 0.2) -> None:
    """The adapter in use gets weights as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(decoder).values():
            parameter.normal_(0.0, scale, generator=generator)


def tokens_of(architecture: Architecture, rows: int = 3, length: int = 9) -> Tensor:
    """No marks of blanks are among them."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(1, min(80, architecture.vocabulary), (rows, length), generator=generator)


def logits_of(decoder: Decoder, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.logits(tokens)


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


@pytest.fixture(params=TRANSFORMERS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return decoder_of(request.param)


def readable(decoder: Decoder) -> Tensor:
    """Tokens that the decoder reads; with blanks a context, its mark and a piece."""
    tokens, blanks = tokens_of(decoder.architecture), decoder.architecture.blanks
    if blanks is not None:
        tokens[:, 3], tokens[:, 6] = blanks.mask, blanks.start
    return tokens


def test_only_adapters_are_trained(decoder: Decoder) -> None:
    """Nothing changes at first; then only A and B do, and the rest stays to the bit."""
    tokens = readable(decoder)
    plain, before = logits_of(decoder, tokens), copy.deepcopy(decoder.state_dict())
    add_lora(decoder, LoraSettings(rank=2, targets=("attention", "mlp", "head", "tokens")))
    assert torch.equal(logits_of(decoder, tokens), plain)
    for _ in range(2):  # at first A has no gradient, for B is zero
        decoder.zero_grad()
        decoder.logits(tokens).logsumexp(-1).sum().backward()
        with torch.no_grad():
            for one in trainable(decoder).values():
                assert one.grad is not None
                one -= 0.01 * one.grad.clamp(-9, 9)
    learned = {name for name, one in decoder.named_parameters() if one.grad is not None}
    assert learned == set(trainable(decoder)) and all(".adapters.default." in name for name in learned)
    assert all(float(one.grad.abs().max()) > 0 for one in trainable(decoder).values())  # type: ignore[union-attr]
    after = decoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(base(decoder)) == {name for name, _ in Decoder(decoder.architecture).named_parameters()}
    assert difference(plain, logits_of(decoder, tokens)) > 1e-3
    with disabled(decoder):
        assert torch.equal(logits_of(decoder, tokens), plain)
    use(decoder, None)
    assert torch.equal(logits_of(decoder, tokens), plain)


def test_merged_is_the_same_and_undone_to_the_bit(decoder: Decoder) -> None:
    tokens = readable(decoder)
    plain, before = logits_of(decoder, tokens), copy.deepcopy(decoder.state_dict())
    targets = ("attention", "mlp") if decoder.architecture.tied else ("attention", "mlp", "head", "tokens")
    add_lora(decoder, LoraSettings(rank=3, alpha=5.0, targets=targets))
    drawn(decoder)
    beside = logits_of(decoder, tokens)
    assert difference(beside, plain) > 0.05
    merge(decoder, "default")
    assert difference(beside, logits_of(decoder, tokens)) < BOUND
    for name, part in of(decoder, "default").items():
        assert isinstance(part, Lora)
        change = part.scale * (part.b.double() @ part.a.double())
        own = before[f"{name}.weight"].double() + (change.t() if name == "tokens" else change)
        assert torch.equal(decoder.get_submodule(name).weight, own.float()), "rounded once"
    unmerge(decoder, "default")
    assert torch.equal(logits_of(decoder, tokens), beside), "it is used beside the weights again"
    after = decoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_dtypes_come_back_too(dtype: str) -> None:
    model = model_of(dtype=dtype)
    before = copy.deepcopy(model.decoder.state_dict())
    model.add_adapter("a", rank=2)
    drawn(model.decoder)
    assert {one.dtype for one in trainable(model.decoder).values()} == {torch.float32}
    tokens = tokens_of(model.architecture)
    beside = model.logits(tokens)
    model.merge("a")
    assert model.dtype == getattr(torch, dtype)
    assert difference(beside, model.logits(tokens)) < 0.15
    model.unmerge("a")
    assert all(torch.equal(before[name], model.decoder.state_dict()[name]) for name in before)


def test_a_decoder_that_lies_turned_in_its_file(tmp_path: Any) -> None:
    """Views of a mapped file are merged into, and come back."""
    model = model_of()
    model.save(tmp_path)
    loaded = daybreak.load(tmp_path)
    loaded.add_adapter("a", rank=2)
    drawn(loaded.decoder)
    tokens = tokens_of(loaded.architecture)
    beside = loaded.logits(tokens)
    loaded.merge("a")
    loaded.save(tmp_path / "merged")
    assert difference(beside, daybreak.load(tmp_path / "merged").logits(tokens)) < BOUND
    loaded.unmerge("a")
    with pytest.raises(DaybreakError, match="'a' is used beside the weights; save_adapter saves it"):
        loaded.save(tmp_path / "not")
    loaded.use(None)
    loaded.save(tmp_path / "plain")
    again = daybreak.load(tmp_path / "plain").logits(tokens)
    assert torch.equal(again, daybreak.load(tmp_path).logits(tokens))


def test_several_adapters() -> None:
    """Each text of a batch has its own, and each gets what it gets alone."""
    model = model_of()
    tokens = tokens_of(model.architecture, rows=4)
    alone: dict[str | None, Tensor] = {None: model.logits(tokens)}
    for seed, name in enumerate(("one", "two")):
        model.add_adapter(
            name, rank=2 + seed, targets=("query", "mlp", "tokens", "head") if seed else "value"
        )
        drawn(model.decoder, seed)
        alone[name] = model.logits(tokens)
    assert model.adapters == ["one", "two"] and model.adapter == "two"
    assert all(".two." in name for name in trainable(model.decoder))
    names = ["two", None, "one", "two"]
    with selected(model.decoder, names):
        found = model.logits(tokens)
    for row, name in enumerate(names):
        assert difference(alone[name][row], found[row]) < 1e-6
    for name in (None, "one", "two", "one"):
        model.use(name)
        assert torch.equal(model.logits(tokens), alone[name])
        assert bool(trainable(model.decoder)) == (name is not None)
    model.remove_adapter("one")
    model.remove_adapter("two")
    assert model.adapter is None and torch.equal(model.logits(tokens), alone[None])
    assert len(trainable(model.decoder)) == len(list(model.decoder.parameters())), "as it was before them"


def test_merged_stands_alone() -> None:
    model = model_of()
    for name in ("one", "two"):
        model.add_adapter(name, targets="value")
    model.merge("one")
    assert model.adapter == "one"
    for refused in (
        lambda: model.merge("two"),
        lambda: model.use("two"),
        lambda: model.use(None),
        lambda: model.add_adapter("three"),
        lambda: model.remove_adapter("one"),
        lambda: disabled(model.decoder).__enter__(),
    ):
        with pytest.raises(DaybreakError, match=r"'one' is merged.*unmerge"):
            refused()
    with pytest.raises(DaybreakError, match="'two' is not merged"):
        model.unmerge("two")
    model.unmerge("one")
    model.use("two")


def test_dropout_acts_while_training_alone() -> None:
    model = model_of()
    model.add_adapter("a", dropout=0.5, targets="mlp")
    drawn(model.decoder)
    tokens = tokens_of(model.architecture)
    plain = model.logits(tokens)
    assert torch.equal(model.decoder.logits(tokens), plain), "not before somebody asks for training mode"
    model.decoder.train()
    assert torch.equal(model.logits(tokens), plain), "nor where there are no gradients"
    assert difference(plain, model.decoder.logits(tokens).detach()) > 0.01
    model.decoder.eval()
    assert torch.equal(model.decoder.logits(tokens), plain)


def test_dropout_is_right_on_average() -> None:
    lora = Lora(6, 4, 3, 3.0, False, dropout=0.25)
    lora.draw(torch.Generator().manual_seed(1))
    nn.init.ones_(lora.b)
    read, nothing = torch.arange(1.0, 7.0).expand(40_000, 6), torch.zeros(40_000, 4)
    exact = lora.eval()(nothing[:1], read[:1]).detach()
    torch.manual_seed(3)
    found = lora.train()(nothing, read).detach()
    assert found.std(0).min() > 0.1
    assert (found.mean(0) - exact).abs().max() < 5 * found.std(0).max() / 200


def test_adapters_of_a_seed_are_the_same() -> None:
    drawn_of = []
    for seed in (0, 0, 1):
        decoder = decoder_of("gpt2")
        torch.manual_seed(seed + 5)
        add_lora(decoder, LoraSettings(), seed=seed)
        drawn_of.append(torch.cat([one.flatten() for one in trainable(decoder).values()]))
    assert torch.equal(drawn_of[0], drawn_of[1]) and not torch.equal(drawn_of[0], drawn_of[2])


def test_fresh_ones_are_drawn_as_in_peft() -> None:
    """A as a linear map's weights, from -1 / sqrt(inputs) to 1 / sqrt(inputs); B zero. A table's: A zero."""
    decoder = decoder_of("gpt2")
    add_lora(decoder, LoraSettings(rank=64, targets=("up", "tokens")))
    parts = of(decoder, "default")
    lora, table = parts["blocks.0.mlp.up"], parts["tokens"]
    assert isinstance(lora, Lora) and isinstance(table, Lora)
    bound = decoder.architecture.width**-0.5
    assert 0.98 * bound < float(lora.a.detach().abs().max()) <= bound and not lora.b.any()
    assert not table.a.any() and 0.9 < float(table.b.detach().std()) < 1.1


def test_a_shared_a_is_one_parameter() -> None:
    decoder = decoder_of("bloom")
    add_lora(decoder, LoraSettings(rank=2, targets=("attention",), shared=True))
    names = [name for name in trainable(decoder) if name.endswith(".a")]
    assert len(names) == 2 * decoder.architecture.layers, "one for queries, keys and values, one for out"
    twin = copy.deepcopy(decoder)
    parts = of(twin, "default")
    assert parts["blocks.0.attention.query"].a is parts["blocks.0.attention.value"].a
    assert twin.switch is not decoder.switch
    drawn(twin)
    tokens = tokens_of(decoder.architecture)
    use(decoder, None)
    assert difference(logits_of(decoder, tokens), logits_of(twin, tokens)) > 1e-3, "copies are independent"


def test_a_whole_head() -> None:
    model = model_of(tied=False)
    tokens = tokens_of(model.architecture)
    plain, before = model.logits(tokens), model.decoder.head.weight.clone()
    model.add_adapter("a", targets="mlp", whole=("head",))
    assert torch.equal(model.logits(tokens), plain)
    assert "head.adapters.a.weight" in trainable(model.decoder)
    drawn(model.decoder)
    beside = model.logits(tokens)
    assert torch.equal(model.decoder.head.weight, before)
    model.merge("a")
    assert difference(beside, model.logits(tokens)) < BOUND
    model.unmerge("a")
    assert torch.equal(model.decoder.head.weight, before)


@pytest.fixture(params=[8, 4])
def quantised(request: pytest.FixtureRequest, tmp_path: Any) -> tuple[LanguageModel, LanguageModel]:
    """A model of few bits, and one in float32 with the same rounded weights."""
    model = model_of(width=48, inner=80, tied=False)
    model.save(tmp_path)
    few, dense = daybreak.load(tmp_path, bits=request.param), daybreak.load(tmp_path)
    for name, module in few.decoder.named_modules():
        if isinstance(module, QuantisedLinear):
            dense.decoder.get_submodule(name).weight.data = module.whole()
    return few, dense


def test_gradients_through_few_bits(quantised: tuple[LanguageModel, LanguageModel]) -> None:
    """Those of the dense model with the rounded weights, which stay, and are not kept unpacked."""
    few, dense = quantised
    tokens = tokens_of(few.architecture)
    before = {name: one.clone() for name, one in few.decoder.state_dict().items()}
    found, kept = [], []
    for model in (few, dense):
        model.add_adapter("a", rank=3, targets=("attention", "mlp", "head"))
        drawn(model.decoder)
        model.decoder.train()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: kept.append(one.shape) or one, lambda one: one
        ):
            logits = model.decoder.logits(tokens)
        if model is few:
            assert not {(80, 48), (48, 80), (48, 48), (61, 48)} & set(kept)
        logits.logsumexp(-1).sum().backward()
        found.append({name: one.grad for name, one in trainable(model.decoder).items()})
        found[-1]["logits"] = logits.detach()
    for name, gradient in found[0].items():
        assert difference(found[1][name], gradient) < 1e-5, name
    assert all(torch.equal(before[name], few.decoder.state_dict()[name]) for name in before)


@given(st.integers(1, 90), st.integers(1, 70), st.sampled_from([(8, None), (4, 32), (4, 64)]), st.booleans())
def test_pieces_of_few_bits(outputs: int, width: int, kind: tuple[Any, Any], bias: bool) -> None:
    """A map that is unpacked some rows at a time computes what the whole one does, its gradient too."""
    generator = torch.Generator().manual_seed(outputs * 100 + width)
    layer = QuantisedLinear(width, outputs, bias, Scheme(*kind))
    layer.take(torch.randn(outputs, width, generator=generator), "a map")
    if bias:
        layer.bias = torch.randn(outputs, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("daybreak.engine.quantised_linear.AT_ONCE", 40 * width)
        pieces = list(layer.pieces())
        assert torch.equal(torch.cat([piece for _, piece in pieces]), layer.whole())
        assert [rows.start for rows, _ in pieces] == list(range(0, outputs, 32))
        read = torch.randn(2, 3, width, generator=generator).requires_grad_()
        found = layer.train()(read)
        found.square().sum().backward()
    twin = read.detach().requires_grad_()
    exact = nn.functional.linear(twin, layer.whole(), layer.bias)
    exact.square().sum().backward()
    assert twin.grad is not None and read.grad is not None
    assert torch.allclose(found, exact, 1e-5, 1e-5) and torch.allclose(read.grad, twin.grad, 1e-4, 1e-4)


def test_few_bits_under_bfloat16_products(quantised: tuple[LanguageModel, LanguageModel]) -> None:
    few, _ = quantised
    few.add_adapter("a", rank=3)
    drawn(few.decoder)
    few.decoder.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = few.decoder.logits(tokens_of(few.architecture)).logsumexp(-1).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(one.grad is not None and one.grad.isfinite().all() for one in trainable(few.decoder).values())


def test_few_bits_are_not_merged_into(quantised: tuple[LanguageModel, LanguageModel]) -> None:
    few, _ = quantised
    few.add_adapter("a", targets="mlp")
    with pytest.raises(
        DaybreakError, match=r"weights of blocks.0.mlp.up are of few bits.*load the model without"
    ):
        few.merge("a")
    with pytest.raises(DaybreakError, match="head has weights of few bits, which are not trained"):
        few.add_adapter("b", targets="mlp", whole=("head",))
    few.use("a")
    assert few.adapters == ["a"], "what was refused left nothing behind"


def test_tied_matrices_are_not_merged_into() -> None:
    model = model_of()
    for target in ("head", "tokens"):
        model.add_adapter(target, targets=target)
        with pytest.raises(DaybreakError, match="one matrix, and the adapter changes one of them"):
            model.merge(target)
        with pytest.raises(DaybreakError, match="neither can be trained alone"):
            model.add_adapter("whole", targets="mlp", whole=(target,))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"targets": ("qery",)},
            r"no map 'qery' \(did you mean 'query'\?\); targets are attention, mlp, query",
        ),
        ({"targets": ("gate",)}, "no map 'gate'"),
        ({"targets": ("blocks.7.mlp.up",)}, "no map 'blocks.7.mlp.up'"),
        ({"targets": ()}, "needs targets"),
        ({"rank": 0}, "rank is 0; it must be a whole number of at least 1"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be a positive number"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be from 0 to below 1"),
        ({"targets": ("up",), "whole": ("up",)}, "blocks.0.mlp.up is a target and whole"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], told: str) -> None:
    decoder = decoder_of("gpt2")
    with pytest.raises(DaybreakError, match=told):
        add_lora(decoder, LoraSettings(**settings))
    assert decoder.switch is None and len(trainable(decoder)) == len(list(decoder.parameters()))


def test_names() -> None:
    model = model_of()
    for name in ("", "v1.2", "train", "keys"):
        with pytest.raises(DaybreakError, match=f"cannot be called {name!r}"):
            model.add_adapter(name)
    with pytest.raises(DaybreakError, match="no adapter 'a'; it has none; add_adapter or load_adapter"):
        model.use("a")
    model.add_adapter("alpha")
    with pytest.raises(DaybreakError, match="an adapter 'alpha' already"):
        model.add_adapter("alpha")
    for call in (model.use, model.merge, model.unmerge, model.remove_adapter):
        with pytest.raises(
            DaybreakError, match=r"no adapter 'alhpa' \(did you mean 'alpha'\?\); it has alpha"
        ):
            call("alhpa")


def test_settings_are_read_and_written() -> None:
    settings = build(LoraSettings, {"rank": 4, "targets": ["query", "value"], "alpha": 8})
    assert settings == LoraSettings(rank=4, targets=("query", "value"), alpha=8.0)
    assert build(LoraSettings, to_tree(settings)) == settings
    model = model_of()
    model.add_adapter("a", rank=4, targets=["query", "value"], alpha=8)
    assert settings_of(model.decoder, "a") == settings


def test_hooks_of_others_come_after() -> None:
    """What is done behind a map, dropout for one, is done to the corrected output."""
    model = model_of()
    seen: list[Tensor] = []
    model.decoder.blocks[0].mlp.up.register_forward_hook(lambda module, read, out: seen.append(out))
    model.add_adapter("a", targets="up")
    drawn(model.decoder)
    tokens = tokens_of(model.architecture)
    model.logits(tokens)
    with disabled(model.decoder):
        model.logits(tokens)
    assert not torch.equal(seen[0], seen[1])


@given(any_architecture(), st.data())
def test_targets_name_what_there_is(architecture: Architecture, data: st.DataObject) -> None:
    """Every map is one of a decoder's; the shortest description of some of them means them and no others."""
    known = maps(architecture)
    with torch.device("meta"):
        decoder = Decoder(architecture)
    for name, (inputs, outputs) in known.items():
        module = decoder.get_submodule(name)
        if isinstance(module, nn.Linear):
            assert (module.in_features, module.out_features) == (inputs, outputs)
        if isinstance(module, nn.Embedding):
            assert (module.num_embeddings, module.embedding_dim) == (inputs, outputs)
    linears = {name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    assert linears <= known.keys()
    some = data.draw(st.lists(st.sampled_from(list(known)), unique=True, min_size=1))
    assert chosen(architecture, described(architecture, some)) == [name for name in known if name in some]
    groups = data.draw(
        st.lists(st.sampled_from(["attention", "mlp", "head", "tokens"]), unique=True, min_size=1)
    )
    assert set(described(architecture, chosen(architecture, groups))) == set(groups)


def test_removed_from_a_decoder() -> None:
    decoder = decoder_of("llama")
    names = list(decoder.state_dict())
    add_lora(decoder, LoraSettings())
    remove(decoder, "default")
    assert list(decoder.state_dict()) == names
