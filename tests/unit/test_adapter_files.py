"""PEFT's files: fused maps taken apart and put together for any shape, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import daybreak
from daybreak import LanguageModel, families
from daybreak.architecture import Architecture
from daybreak.checkpoint.peft_config import PeftConfig, ends
from daybreak.checkpoint.peft_places import Place, modules, places
from daybreak.checkpoint.peft_read import read_lora
from daybreak.checkpoint.peft_write import written_lora
from daybreak.errors import DaybreakError
from daybreak.families.trials import alone, trials
from daybreak.model.adapters import attach, of, prepared
from daybreak.model.lora import Lora
from daybreak.model.lora_settings import LoraSettings, maps
from daybreak.rules import HALVES, PER_HEAD, THIRDS, TRANSPOSED_THIRDS, Layout, along_outputs
from tests.unit.test_adapters import difference, drawn, model_of, tokens_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
QKV = tuple(f"blocks.0.attention.{part}" for part in ("query", "key", "value"))
GATED = ("blocks.0.mlp.gate", "blocks.0.mlp.up")


@st.composite
def fused(draw: st.DrawFn) -> tuple[Architecture, Place]:
    """A fused module of any shape."""
    heads, head_width = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    shape = Architecture(
        vocabulary=7,
        context=9,
        layers=1,
        width=heads * head_width,
        heads=heads,
        inner=draw(st.integers(1, 11)),
        gated=True,
    )
    layout = draw(st.sampled_from([THIRDS, TRANSPOSED_THIRDS, PER_HEAD, HALVES]))
    return shape, Place("module", (), GATED if layout is HALVES else QKV, layout)


def whole(draw: st.DrawFn, rows: int, columns: int) -> Tensor:
    """Small whole numbers, whose products are exact."""
    numbers = st.lists(st.integers(-3, 3), min_size=rows * columns, max_size=rows * columns)
    return torch.tensor(draw(numbers), dtype=torch.float32).view(rows, columns)


def turned(layout: Layout, weight: Tensor) -> Tensor:
    """[outputs, inputs] as the file holds it, and back."""
    return weight if along_outputs(layout) is layout else weight.t()


def change(part: Any) -> Tensor:
    return part.scale * (part.b.detach() @ part.a.detach())


@given(st.data())
def test_fused_adapters_come_apart_as_the_weights_do(data: st.DataObject) -> None:
    """B A of the fused map, taken apart like the map's weights, is each part's own B A; and put together it
    is the file's A and B again.
    """
    shape, place = data.draw(fused())
    rank = data.draw(st.integers(1, 4))
    outputs = [maps(shape)[name][1] for name in place.ours]
    a, b = whole(data.draw, rank, shape.width), whole(data.draw, sum(outputs), rank)
    tensors = {"module.lora_A.weight": a, "module.lora_B.weight": b}
    parts = read_lora(place, "module", PeftConfig(rank, 2 * rank), dict(tensors), shape)
    expected = place.layout.split(turned(place.layout, 2 * (b @ a)), shape)
    for name, own in zip(place.ours, expected, strict=True):
        assert torch.equal(change(parts[name]), own)
    placed, again = written_lora(place, list(parts.values()), shape, rslora=False)
    assert (placed.rank, placed.alpha) == (rank, 2 * rank)
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in again)


@given(st.data())
def test_separate_adapters_become_a_fused_one(data: st.DataObject) -> None:
    """Whichever parts have one, of whatever ranks: the fused B A is the parts', joined like the weights."""
    shape, place = data.draw(fused())
    rslora = data.draw(st.booleans())
    own: list[nn.Module | None] = []
    some: list[Lora] = []
    for name in place.ours:
        rank = data.draw(st.integers(0, 3))
        if not rank:
            own.append(None)
            continue
        alpha = 2.0 * (rank**0.5 if rslora else rank)  # one scale for all
        lora = Lora(shape.width, maps(shape)[name][1], rank, alpha, rslora)
        lora.scale = 2.0
        lora.a, lora.b = (
            nn.Parameter(whole(data.draw, rank, shape.width)),
            nn.Parameter(whole(data.draw, maps(shape)[name][1], rank)),
        )
        same = [one for one in some if one.rank == rank]
        if same and data.draw(st.booleans()):
            lora.a = same[0].a
        own.append(lora)
        some.append(lora)
    if not some:
        return
    placed, tensors = written_lora(place, own, shape, rslora)
    a, b = tensors["module.lora_A.weight"], tensors["module.lora_B.weight"]
    assert len(a) == placed.rank <= sum(one.rank for one in some)
    zeros = [torch.zeros(maps(shape)[name][1], shape.width) for name in place.ours]
    parts = [zero if one is None else change(one) for zero, one in zip(zeros, own, strict=True)]
    assert torch.equal(turned(place.layout, 2.0 * (b @ a)), place.layout.join(parts, shape))
    scale = placed.alpha / (placed.rank**0.5 if rslora else placed.rank)
    assert scale == pytest.approx(2.0, rel=1e-15)


@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), unique=True), st.data()
)
def test_ends_name_some_and_no_others(every: list[str], data: st.DataObject) -> None:
    if not every:
        return
    some = data.draw(st.lists(st.sampled_from(every), unique=True, min_size=1))
    found = ends(some, every)
    meant = [name for name in every if any(name == end or name.endswith(f".{end}") for end in found)]
    # A name that is the end of a longer one which is not meant cannot be said: PEFT has no sign for it.
    if not any(other.endswith(f".{name}") for name in some for other in every if other not in some):
        assert set(meant) == set(some)


@pytest.mark.parametrize(
    "family", [name for name in families.NAMES if hasattr(families.by_name(name), "rules")]
)
def test_a_round_trip_of_every_family(family: str, tmp_path: Path) -> None:
    """Also of those that PEFT's side does not know."""
    page = families.by_name(family)
    shape = next(iter((trials(family) or alone(family)).values()))
    fields = {name: getattr(shape, name) for name in shape.__dataclass_fields__}
    model = daybreak.create(family, **fields)
    targets = (
        ("attention", "mlp", "tokens") if family.startswith("glm") else ("attention", "mlp", "head", "tokens")
    )
    model.add_adapter("a", rank=3, targets=targets, shared=True)
    drawn(model.decoder)
    tokens = tokens_of(model.architecture)
    model.save_adapter(tmp_path, "a")
    again = daybreak.create(family, **fields)
    again.load_adapter(tmp_path, "b")
    first, second = of(model.decoder, "a"), of(again.decoder, "b")
    assert first.keys() == second.keys()
    for name, part in first.items():
        assert torch.equal(change(part), change(second[name])), name
    assert model.decoder.switch is not None and again.decoder.switch is not None
    told, read = model.decoder.switch.settings["a"], again.decoder.switch.settings["b"]
    fuses = any(len(place.ours) > 1 for place in places(page, shape))
    assert read == LoraSettings(**{**vars(told), "targets": read.targets, "shared": fuses})
    assert set(read.targets) == set(targets)
    del tokens


@pytest.fixture
def saved(tmp_path: Path) -> tuple[LanguageModel, Path]:
    model = model_of()
    model.add_adapter("a", rank=2, targets=("attention", "mlp"), shared=True)
    drawn(model.decoder)
    model.save_adapter(tmp_path / "a", "a")
    return model, tmp_path / "a"


def changed(folder: Path, **options: Any) -> None:
    told = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**told, **options}))


def retensored(folder: Path, **tensors: Tensor | None) -> None:
    found = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        name = "base_model.model." + name
        found.pop(name, None)
        if tensor is not None:
            found[name] = tensor
    save_file(found, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"peft_type": "IA3"}, "of peft_type 'IA3'; only LORA"),
        ({"use_dora": True}, "sets use_dora = True, which is not supported"),
        ({"lora_bias": True}, "sets lora_bias = True, which is not supported"),
        ({"bias": "all"}, "sets bias = 'all'"),
        ({"layer_replication": [[0, 2]]}, r"sets layer_replication = \[\[0, 2\]\]"),
        ({"something_new": 3}, "sets something_new = 3, which is not supported"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights = 'pissa', with which the model's own weights were",
        ),
        ({"r": "two"}, "sets r = 'two', where it must be a whole number"),
        ({"r": 0}, r"sets r or its pattern to \[0\]; these must be above 0"),
        ({"lora_alpha": -1}, "sets lora_alpha or its pattern"),
        ({"lora_dropout": 2.0}, "dropout is 2.0"),
        (
            {"r": 3},
            r"c_attn.lora_A.weight of the adapter has shape \[2, 24\]; rank 3 and this model make it",
        ),
        ({"rank_pattern": {"c_attn": 5}}, r"rank 5 and this model make it \[5, 24\]"),
        ({"rank_pattern": {"(": 5}}, r"the pattern '\(', which is no regular expression"),
        ({"modules_to_save": "head"}, "sets modules_to_save = 'head', where it must be a list"),
    ],
)
def test_options_that_compute_something_else(
    saved: tuple[LanguageModel, Path], options: dict[str, Any], told: str
) -> None:
    model, folder = saved
    changed(folder, **options)
    with pytest.raises(DaybreakError, match=told):
        model.load_adapter(folder, "b")
    assert model.adapters == ["a"], "what was refused left nothing behind"


ATTENTION = "transformer.h.0.attn.c_attn"


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({f"{ATTENTION}.lora_A.weight": None}, "c_attn.lora_A.weight of the adapter is missing"),
        (
            {f"{ATTENTION}.lora_B.weight": torch.ones(71, 2)},
            r"has shape \[71, 2\]; rank 2 .* make it \[72, 2\]",
        ),
        (
            {"transformer.h.7.attn.c_attn.lora_A.weight": torch.ones(2, 24)},
            "h.7.attn.* belongs to no map of this",
        ),
        ({"transformer.wpe.lora_embedding_A": torch.ones(2, 24)}, "wpe.* belongs to no map"),
        ({f"{ATTENTION}.lora_magnitude_vector": torch.ones(72)}, "lora_magnitude_vector.* belongs to no map"),
        ({"score.weight": torch.ones(2, 24)}, "'score.weight', which belongs to no map"),
        (
            {f"{ATTENTION}.lora_A.weight": torch.ones(2, 24, dtype=torch.int64)},
            "as torch.int64, which is no floating",
        ),
        ({"transformer.wte.base_layer.weight": torch.ones(61, 24)}, "its own transformer.wte along"),
        ({"lm_head.weight": torch.ones(61, 24)}, "neither can be trained alone"),
        (
            {
                "h.0.attn.c_attn.lora_A.weight": torch.ones(2, 24),
                "h.0.attn.c_attn.lora_B.weight": torch.ones(72, 2),
            },
            "twice",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    saved: tuple[LanguageModel, Path], tensors: dict[str, Tensor | None], told: str
) -> None:
    model, folder = saved
    retensored(folder, **tensors)
    with pytest.raises(DaybreakError, match=told):
        model.load_adapter(folder, "b")
    assert model.adapters == ["a"]


def test_adapters_of_other_models(saved: tuple[LanguageModel, Path]) -> None:
    _, folder = saved
    with pytest.raises(
        DaybreakError, match=r"has shape \[2, 24\]; rank 2 and this model make it \[2, 36\].* trained on"
    ):
        model_of(width=36).load_adapter(folder, "a")
    with pytest.raises(DaybreakError, match=r"'transformer.h.1.*belongs to no map of this GPT-2"):
        model_of(layers=1).load_adapter(folder, "a")
    other = daybreak.create("gpt_neox", vocabulary=61, context=32, layers=2, width=24, heads=1, inner=40)
    with pytest.raises(DaybreakError, match="belongs to no map of this GPT-NeoX"):
        other.load_adapter(folder, "a")


def test_folders_that_hold_none(saved: tuple[LanguageModel, Path], tmp_path: Path) -> None:
    model, folder = saved
    with pytest.raises(DaybreakError, match=r"is no folder of an adapter: adapter_config.json cannot"):
        model.load_adapter(tmp_path / "nowhere", "b")
    (folder / WEIGHTS).rename(folder / "aside")
    with pytest.raises(DaybreakError, match=r"adapter_model.safetensors cannot be read"):
        model.load_adapter(folder, "b")
    save_file({"lora_A.weight": torch.ones(2, 2)}, folder / WEIGHTS)
    with pytest.raises(DaybreakError, match=r"names begin with base_model.model"):
        model.load_adapter(folder, "b")
    save_file({}, folder / WEIGHTS)
    with pytest.raises(DaybreakError, match="holds no tensors"):
        model.load_adapter(folder, "b")
    (folder / CONFIG).write_text("{")
    with pytest.raises(DaybreakError, match="is no JSON"):
        model.load_adapter(folder, "b")
    (folder / CONFIG).write_text("[]")
    with pytest.raises(DaybreakError, match="must hold an object"):
        model.load_adapter(folder, "b")
    with pytest.raises(DaybreakError, match="cannot be written"):
        model.save_adapter(folder / CONFIG, "a")


def test_files_of_older_versions(saved: tuple[LanguageModel, Path]) -> None:
    """torch's format, read without running anything; names of a model without its head; options left out."""
    model, folder = saved
    found = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(
        {name.replace("transformer.", ""): one for name, one in found.items()}, folder / "adapter_model.bin"
    )
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 16}))
    tokens = tokens_of(model.architecture)
    expected = model.logits(tokens)
    model.load_adapter(folder, "b")
    assert torch.equal(model.logits(tokens), expected)


def test_a_table_of_its_own_may_be_the_models(saved: tuple[LanguageModel, Path]) -> None:
    model, folder = saved
    own = model.decoder.tokens.weight.detach().clone()
    retensored(folder, **{"transformer.wte.base_layer.weight": own, "lm_head.base_layer.weight": own.clone()})
    model.load_adapter(folder, "b")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_table_may_have_been_read_in_another_dtype(
    saved: tuple[LanguageModel, Path], dtype: torch.dtype
) -> None:
    """As by those who train in it: then the copy is the model's, rounded."""
    model, folder = saved
    with torch.no_grad():
        drawn(model.decoder)
        model.decoder.tokens.weight.normal_(generator=torch.Generator().manual_seed(1))
    own = model.decoder.tokens.weight.detach()
    retensored(folder, **{"lm_head.base_layer.weight": own.to(dtype)})
    model.load_adapter(folder, "b")
    other = own.to(dtype).clone()
    other[3, 1] *= 1.1
    retensored(folder, **{"lm_head.base_layer.weight": other})
    with pytest.raises(DaybreakError, match="its own lm_head along, which is not this model's"):
        model.load_adapter(folder, "c")


def test_a_table_of_few_bits_is_not_compared(tmp_path: Path) -> None:
    model = model_of(width=48, inner=80)
    model.save(tmp_path / "model")
    model.add_adapter("a", rank=2, targets=("attention", "head"))
    drawn(model.decoder)
    model.save_adapter(tmp_path / "a", "a")
    retensored(tmp_path / "a", **{"lm_head.base_layer.weight": model.decoder.tokens.weight.detach().clone()})
    for embeddings in (False, True):
        few = daybreak.load(tmp_path / "model", bits=8, embeddings=embeddings)
        few.load_adapter(tmp_path / "a", "a")
        assert few.adapters == ["a"]


def test_scales_that_differ_in_one_module(tmp_path: Path) -> None:
    model = model_of()
    made: dict[str, nn.Module] = {
        name: Lora(24, 24, 2, alpha, False) for name, alpha in zip(QKV, (2.0, 3.0, 2.0), strict=True)
    }
    for lora in made.values():
        nn.init.ones_(lora.a)
    attach(model.decoder, prepared(model.decoder, "a"), "a", LoraSettings(rank=2), made)
    with pytest.raises(
        DaybreakError, match=r"are one module, transformer.h.0.attn.c_attn.* multiplied by 1.0, 1.5, 1.0"
    ):
        model.save_adapter(tmp_path, "a")


def test_whole_maps_of_a_fused_module(tmp_path: Path) -> None:
    """All of them or none."""
    model = model_of()
    model.add_adapter("all", targets="mlp", whole=("query", "key", "value"))
    drawn(model.decoder)
    tokens = tokens_of(model.architecture)
    expected = model.logits(tokens)
    model.save_adapter(tmp_path, "all")
    model.load_adapter(tmp_path, "again")
    assert torch.equal(model.logits(tokens), expected)
    model.add_adapter("one", targets="mlp", whole=("query",))
    with pytest.raises(DaybreakError, match=r"are one module, transformer.h.0.attn.c_attn, .* whole or none"):
        model.save_adapter(tmp_path, "one")


def test_a_map_without_a_name(tmp_path: Path) -> None:
    """GLM's files have no head of their own."""
    shape = next(iter(trials("glm").values()))
    model = daybreak.create("glm", **{name: getattr(shape, name) for name in shape.__dataclass_fields__})
    model.add_adapter("a", targets=("mlp", "head"))
    with pytest.raises(DaybreakError, match="PEFT's files have no name for tied_head of GLM"):
        model.save_adapter(tmp_path, "a")


def test_a_save_that_fails_leaves_the_old_files(saved: tuple[LanguageModel, Path]) -> None:
    model, folder = saved
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model.add_adapter("b", targets="mlp", whole=("query",))
    with pytest.raises(DaybreakError):
        model.save_adapter(folder, "b")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    # Another one of the same name replaces them.
    model.remove_adapter("b")
    model.add_adapter("b", rank=5, targets="mlp")
    model.save_adapter(folder, "b")
    assert json.loads((folder / CONFIG).read_text())["r"] == 5
    assert sorted(file.name for file in folder.iterdir()) == sorted(before)


def test_few_bits_have_the_same_files(tmp_path: Path) -> None:
    """An adapter that was trained on weights of few bits is an ordinary one."""
    model = model_of(width=48, inner=80, tied=False)
    model.save(tmp_path / "model")
    few = daybreak.load(tmp_path / "model", bits=8, embeddings=True)
    few.add_adapter("a", rank=2, targets=("attention", "mlp", "head", "tokens"))
    drawn(few.decoder)
    few.save_adapter(tmp_path / "a", "a")
    tokens = tokens_of(few.architecture)
    again = daybreak.load(tmp_path / "model", bits=8, embeddings=True)
    again.load_adapter(tmp_path / "a", "a")
    assert difference(few.logits(tokens), again.logits(tokens)) < 1e-5
    dense = daybreak.load(tmp_path / "model")
    dense.load_adapter(tmp_path / "a", "a")
    apart = (dense.logits(tokens) - few.logits(tokens)).abs().mean() / few.logits(tokens).abs().mean()
    assert 0 < apart < 0.1


def test_modules_are_listed_once() -> None:
    shape = next(iter(trials("gpt2").values()))
    found = list(modules(families.by_name("gpt2"), shape))
    assert "lm_head" in found and "transformer.h.2.mlp.c_fc" in found
