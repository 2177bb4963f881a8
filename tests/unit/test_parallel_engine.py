"""The engine of a model that is cut over two processes says what one process says."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from daybreak import LanguageModel
from daybreak.architecture import Blanks, Rotary
from daybreak.compare.redraw import redraw
from daybreak.engine.engine import Engine, EngineSettings
from daybreak.engine.generate import generate
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_linear import Quantiser
from daybreak.errors import DaybreakError
from daybreak.train.parallel import parallelise
from daybreak.train.settings import ParallelSettings
from daybreak.train.world import World
from tests.unit.processes import together
from tests.unit.tiny_models import speaking
from tests.unit.tiny_training import model_of

CPU = torch.device("cpu")
MARKS = Blanks(start=57, end=58, mask=59, rest=60, sentence=56)
SHAPE: dict[str, Any] = {"context": 64, "width": 48, "heads": 6}
"""Six heads: ALiBi's slopes are then no simple sequence, of which each process has its half."""
DESIGNS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neo": {"windows": (None, 9)},
    "gpt_j": {"positions": Rotary(4, "neighbours")},
    "gpt_neox": {"positions": Rotary(6, "halves")},
    "llama": {"positions": Rotary(8, "halves"), "heads": 6, "key_heads": 2},
    "opt": {"embedding_width": 20},
    "bloom": {},
    "glm": {"blanks": MARKS},
    "glm_130b": {"blanks": dataclasses.replace(MARKS, runs_on=True), "positions": Rotary(8, "halves")},
    "chatglm": {"blanks": MARKS, "positions": Rotary(4, "halves", blocks=True)},
}


def prompts_of(blanks: Blanks | None) -> list[list[int]]:
    """Several texts: one longer than what a pass reads, two that start alike, one of a single token."""
    draw = torch.Generator().manual_seed(3)
    long, short = (torch.randint(0, 55, (length,), generator=draw).tolist() for length in (41, 7))
    if blanks is None:
        return [long, [*long[:34], *short], short, [5]]
    return [[*long[:20], blanks.mask, *long[20:30], blanks.start], [*short, blanks.rest, blanks.start]]


def written(world: World) -> dict[str, Any]:
    """By design what comes of a batch, sampled; once also of the likeliest tokens."""
    found = {}
    for name, changes in DESIGNS.items():
        model = model_of(name, **{**SHAPE, **changes})
        redraw(model.decoder, 1)
        parallelise(model.decoder, world)
        found[name] = [
            batch(model, temperature) for temperature in ((0.0, 1.0) if name == "gpt2" else (1.0,))
        ]
    return found


def batch(model: LanguageModel, temperature: float) -> dict[str, Any]:
    engine = Engine(model, EngineSettings(batch_size=3, chunk=16, guesses=0))
    logits: list[Tensor] = []
    unembed = engine._step.unembed

    def noted(*given: Any) -> Tensor:
        logits.append(unembed(*given))
        return logits[-1]

    engine._step.unembed = noted  # type: ignore[method-assign]
    blanks = model.architecture.blanks
    texts = generate(
        model,
        prompts_of(blanks),
        engine=engine,
        temperature=temperature,
        seed=4,
        max_new_tokens=7,
        ignore_eos=True,
        logprobs=2,
        prompt_logprobs=1 if blanks is None else None,
    )
    scores = [one for text in texts for one in (*(text.logprobs or ()), *(text.prompt_logprobs or ())) if one]
    return {
        "tokens": [text.tokens for text in texts],
        "logits": [rows.numpy() for rows in logits],
        "scored": [(one.token, [token for token, _ in one.top]) for one in scores],
        "scores": [number for one in scores for number in (one.logprob, *(number for _, number in one.top))],
    }


def two() -> dict[str, Any]:
    world = World.arranged(ParallelSettings(tensor=2), CPU)
    return {**written(world), "agreed": agreements(world)}


def agreements(world: World) -> dict[str, Any]:
    """Where processes that are left to themselves would differ: chance, memory, the clock."""
    model, draft = model_of("gpt2"), model_of("gpt2", layers=1)
    parallelise(model.decoder, world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("daybreak.engine.engine.available", lambda device: (world.rank + 3) << 20)
        limit = model.engine().pages.limit
    texts = model.generate([[3, 1, 4], [1, 5]], temperature=1.0, max_new_tokens=20, ignore_eos=True)
    found: dict[str, Any] = {"limit": limit, "tokens": [text.tokens for text in texts]}
    try:
        model.engine(draft)
    except DaybreakError as error:
        found["draft"] = str(error)
    quantised = model_of("gpt2")
    Quantiser(quantised.decoder, Scheme.usual(8))
    try:
        parallelise(quantised.decoder, world)
    except DaybreakError as error:
        found["quantised"] = str(error)
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return written(World.alone(CPU))


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return together(2, two, timeout=900)


@pytest.mark.parametrize("name", DESIGNS)
def test_two_processes_say_what_one_says(
    name: str, ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for own in ranks:
        for got, expected in zip(own[name], alone[name], strict=True):
            assert got["tokens"] == expected["tokens"]
            assert got["scored"] == expected["scored"]
            assert got["scores"] == pytest.approx(expected["scores"], rel=1e-5, abs=1e-6)
            for rows, others in zip(got["logits"], expected["logits"], strict=True):
                assert np.abs(rows - others).max() < 1e-5 * np.abs(others).max()


def test_both_processes_say_the_same_to_the_last_bit(ranks: list[dict[str, Any]]) -> None:
    """Else one might choose another token, and they would wait for each other for ever."""
    for name in DESIGNS:
        for one, other in zip(ranks[0][name], ranks[1][name], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one["logits"], other["logits"], strict=True))


def test_processes_agree_on_what_each_would_decide_for_itself(ranks: list[dict[str, Any]]) -> None:
    one, other = (own["agreed"] for own in ranks)
    assert one["tokens"] == other["tokens"]
    assert one["limit"] == other["limit"] == 3 << 19
    assert "leave the draft out" in one["draft"] and "without bits" in one["quantised"]


def test_the_documented_script_writes_what_one_process_writes(tmp_path: Path) -> None:
    """docs/engine.md's, under torchrun."""
    page = (Path(__file__).parents[2] / "docs" / "engine.md").read_text(encoding="utf-8")
    (script,) = (
        block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "parallelise" in block
    )
    model = speaking("gpt_neox", positions=Rotary(8))
    redraw(model.decoder, 2)
    model.save(tmp_path / "model")
    name = re.search(r"load\(\"(.*)\"\)", script)
    assert name is not None
    (tmp_path / "write.py").write_text(script.replace(name[1], str(tmp_path / "model")), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "write.py")], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = model.generate(["Once upon a time", "It was"], max_new_tokens=40)
    assert done.stdout == "".join(f"{text.text}\n" for text in expected)
