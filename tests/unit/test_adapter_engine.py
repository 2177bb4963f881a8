"""Texts with different adapters beside each other in one engine, each as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import daybreak
from daybreak import LanguageModel
from daybreak.cli.main import run
from daybreak.engine.continuation import Result
from daybreak.engine.pages import PAGE
from daybreak.errors import DaybreakError
from tests.unit import blank_models
from tests.unit.test_adapters import drawn
from tests.unit.test_engine import COMPILED, model_of, tokens_of

FAMILIES = ["gpt2", "gpt_neo", "gpt_neox", "bloom", "opt", "llama"]
TARGETS = {"one": ("attention", "mlp"), "two": ("query", "value", "head")}


def adapted(family: str = "gpt2", **changes: Any) -> LanguageModel:
    model = model_of(family, **changes)
    give(model)
    return model


def give(model: LanguageModel) -> None:
    for seed, (name, targets) in enumerate(TARGETS.items()):
        model.add_adapter(name, rank=3, targets=targets)
        drawn(model.decoder, seed, 0.3)
    model.use(None)


def write(model: LanguageModel, prompts: Sequence[Sequence[int]], **options: Any) -> list[Result]:
    given: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True, "temperature": 0, "logprobs": 0}
    return model.generate(prompts, **{**given, **options})


def same(one: Result, other: Result, bound: float = 1e-4) -> None:
    assert one.tokens == other.tokens
    for first, second in ((one.logprobs, other.logprobs), (one.prompt_logprobs, other.prompt_logprobs)):
        for a, b in zip(first or (), second or (), strict=True):
            assert (a is None and b is None) or abs(a.logprob - b.logprob) < bound  # type: ignore[union-attr]


def by_hand(model: LanguageModel, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy, by whole passes of the decoder."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model.logits(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.fixture(params=[pytest.param("compiled", marks=COMPILED), "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr("daybreak.engine.step.why_not", lambda decoder: "a test")
    return str(request.param)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_all_of_them(family: str, way: str) -> None:
    """Long and short prompts, three of them alike: each text is the one that its adapter writes alone."""
    model = adapted(family)
    alike = tokens_of(7, 40)
    prompts = [alike, alike, alike, tokens_of(8, 3), tokens_of(9, 21)]
    names = ["one", None, "two", "two", "one"]
    together = write(model, prompts, adapters=names, prompt_logprobs=0)
    texts = set()
    for prompt, name, found in zip(prompts, names, together, strict=True):
        alone = write(model, [prompt], adapters=name, prompt_logprobs=0)[0]
        same(found, alone)
        model.use(name)
        assert found.tokens == by_hand(model, prompt, 12)
        same(found, write(model, [prompt], prompt_logprobs=0)[0])  # the one in use, where nothing is said
        model.use(None)
        texts.add(tuple(found.tokens))
    assert len(texts) == 5


def test_what_was_read_is_not_shared(way: str) -> None:
    """A prompt that was read with one adapter is read anew with another, and not again with the same."""
    model, prompt = adapted(), tokens_of(3, 4 * PAGE + 1)
    engine = model.engine()
    for name in (None, "one", "two"):
        before = engine.tokens_read
        found = write(model, [prompt], adapters=name, engine=engine)[0]
        assert engine.tokens_read - before >= len(prompt)
        same(found, write(model, [prompt], adapters=name)[0])
    for name in ("two", None, "one"):
        before = engine.tokens_read
        found = write(model, [prompt], adapters=name, engine=engine)[0]
        assert engine.tokens_read - before < PAGE + 60
        assert engine.tokens_read - before < len(prompt)
        same(found, write(model, [prompt], adapters=name)[0])


def test_another_adapter_of_the_same_name(way: str) -> None:
    model, prompt = adapted(), tokens_of(3, 4 * PAGE + 1)
    engine = model.engine()
    first = write(model, [prompt], adapters="one", engine=engine)[0]
    model.remove_adapter("one")
    model.add_adapter("one", rank=2, targets="mlp")
    drawn(model.decoder, 9, 0.3)
    second = write(model, [prompt], adapters="one", engine=engine)[0]
    same(second, write(model, [prompt], adapters="one")[0])
    assert first.tokens != second.tokens


def test_many_texts_with_little_memory(way: str) -> None:
    """Texts that stand back are read again with their own adapter."""
    model = adapted()
    prompts = [tokens_of(number, 5 + 9 * number) for number in range(8)]
    names = [("one", None, "two")[number % 3] for number in range(8)]
    tight = model.engine(cache_memory=model.engine().pages.layout.bytes_for(100, 16), chunk=16, batch_size=8)
    for found, prompt, name in zip(
        write(model, prompts, adapters=names, engine=tight, max_new_tokens=20), prompts, names, strict=True
    ):
        same(found, write(model, [prompt], adapters=name, max_new_tokens=20)[0])
    assert tight.stood_back


@pytest.mark.parametrize("changes", [{"cache_dtype": "bfloat16"}, {"cache_dtype": "int8"}, {"guesses": 0}])
def test_settings_of_the_engine(changes: dict[str, Any]) -> None:
    model, prompts = adapted("llama"), [tokens_of(4, 30), tokens_of(4, 30), tokens_of(5, 17)]
    names = ["two", "one", None]
    engine = model.engine(**changes)
    together = write(model, prompts, adapters=names, engine=engine)
    for found, prompt, name in zip(together, prompts, names, strict=True):
        alone = write(model, [prompt], adapters=name, engine=model.engine(**changes))[0]
        assert found.tokens == alone.tokens


def test_samples_and_seeds() -> None:
    model, prompts = adapted(), [tokens_of(4, 30), tokens_of(5, 17)]
    drawn_ = {"temperature": 1.0, "seed": 5, "n": 3}
    together = write(model, prompts, adapters=["one", None], **drawn_)
    assert [found.tokens for found in together[:3]] == [
        found.tokens for found in write(model, prompts[:1], adapters="one", **drawn_)
    ]
    assert len({tuple(found.tokens) for found in together}) == 6


def test_weights_of_few_bits_and_bfloat16(tmp_path: Path) -> None:
    model = model_of("gpt2", width=64)
    model.save(tmp_path)
    for options in ({"bits": 8}, {"bits": 4, "embeddings": True}, {"dtype": "bfloat16"}):
        loaded = daybreak.load(tmp_path, **options)  # type: ignore[arg-type]
        give(loaded)
        prompts, names = [tokens_of(4, 30), tokens_of(6, 3), tokens_of(5, 17)], ["two", "one", None]
        together = write(loaded, prompts, adapters=names)
        texts = {tuple(found.tokens) for found in together}
        assert len(texts) == 3
        for found, prompt, name in zip(together, prompts, names, strict=True):
            alone = write(loaded, [prompt], adapters=name)[0]
            # The rounding of activations and bfloat16 may tell a batch from a single text at a later token.
            assert found.tokens[:3] == alone.tokens[:3]


@COMPILED
def test_merged_runs_compiled() -> None:
    """It writes what it wrote beside the weights; texts without adapters keep the compiled step's bits."""
    model, prompt = adapted(), tokens_of(4, 30)
    plain = write(model_of("gpt2"), [prompt])[0]
    assert write(model, [prompt, prompt], adapters=[None, "one"])[0].logprobs == plain.logprobs
    beside = write(model, [prompt], adapters="one")[0]
    model.merge("one")
    same(beside, write(model, [prompt])[0])
    same(beside, write(model, [prompt], adapters="one")[0])
    for other in ("two", None):
        with pytest.raises(DaybreakError, match="'one' is merged into the weights, so there is no"):
            write(model, [prompt], adapters=other)
    model.unmerge("one")
    model.use(None)
    assert write(model, [prompt])[0].logprobs == plain.logprobs


def test_engines_do_not_outlive_their_weights() -> None:
    model, prompt = adapted(), tokens_of(4, 30)
    engine = model.engine()
    before = write(model, [prompt], engine=engine)[0]
    model.merge("one")
    merged = model.engine()
    write(model, [prompt], engine=merged)
    with pytest.raises(DaybreakError, match="merged or unmerged since the engine was made"):
        write(model, [prompt], engine=engine)
    model.unmerge("one")
    with pytest.raises(DaybreakError, match=r"make a new one: model.engine\(\)"):
        write(model, [prompt], engine=merged)
    assert write(model, [prompt], engine=engine, adapters=None)[0].logprobs == before.logprobs
    model.merge("one")
    with pytest.raises(DaybreakError, match="since the engine was made"):
        write(model, [prompt], engine=merged)


def test_a_draft_guesses_for_texts_without_adapters() -> None:
    model, draft = adapted(layers=3), model_of("gpt2", layers=1)
    prompts = [tokens_of(4, 30), tokens_of(5, 17), tokens_of(6, 9)]
    engine = model.engine(draft, guesses=3)
    found = write(model, prompts, adapters=["one", None, "two"], engine=engine, max_new_tokens=30)
    for text, prompt, name in zip(found, prompts, ["one", None, "two"], strict=True):
        same(text, write(model, [prompt], adapters=name, max_new_tokens=30)[0])


def test_blanks_are_filled_with_the_adapter_in_use() -> None:
    """A context is read at once, and its keys are not those of another adapter."""
    model = blank_models.model_of("glm", seed=21)  # not one that other tests share
    engine, texts = model.engine(), []
    model.add_adapter("a", rank=3)
    drawn(model.decoder, 3, 0.5)
    for name in ("a", None, "a"):
        model.use(name)
        texts.append(model.infill("The [MASK] fox", engine=engine, temperature=0, max_new_tokens=6)[0].text)
        fresh = model.infill("The [MASK] fox", temperature=0, max_new_tokens=6)[0].text
        assert texts[-1] == fresh
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize(
    ("adapters", "told"),
    [
        ("thre", r"no adapter 'thre'.*it has one, two"),
        (["one"], "there are 1 adapters for 2 prompts; give one for each, or one name"),
        (["one", "none"], "no adapter 'none'"),
    ],
)
def test_names_that_there_are_not(adapters: Any, told: str) -> None:
    with pytest.raises(DaybreakError, match=told):
        write(adapted(), [[1, 2], [3]], adapters=adapters)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """generate and chat answer with the adapter in a folder, in the weights or beside them."""
    model = blank_models.model_of("glm", seed=22)
    model.add_adapter("a", rank=3)
    drawn(model.decoder, 3, 0.5)
    model.save_adapter(tmp_path / "a", "a")
    model.use(None)
    model.save(tmp_path / "model")
    told = []
    for options in (
        [],
        ["--adapter", str(tmp_path / "a")],
        ["--adapter", str(tmp_path / "a"), "--dtype", "bfloat16"],
        ["--adapter", str(tmp_path / "a"), "--bits", "8"],
    ):
        assert run(["generate", str(tmp_path / "model"), "the fox", "-m", "9", "-t", "0", *options]) == 0
        told.append(capsys.readouterr().out)
        assert run(["chat", str(tmp_path / "model"), "-m", "the fox", "--max-new-tokens", "9", *options]) == 0
        capsys.readouterr()
    model.use("a")
    assert told[1].rstrip("\n") == model.generate("the fox", max_new_tokens=9, temperature=0)[0].text
    assert told[0] != told[1] and told[3] != told[0]
    assert run(["generate", str(tmp_path / "model"), "the fox", "--adapter", str(tmp_path / "model")]) != 0
    assert "is no folder of an adapter" in capsys.readouterr().err
