"""Compiled training is the same to the last bit on several threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from daybreak.cli.main import run
from daybreak.train import compiled as compiling
from daybreak.train.repeatable import repeatable
from tests.unit.test_quickstart import SIZE_OPTIONS, source
from tests.unit.tiny_run import data_set, settings, trained

__all__ = ["source"]

GRADIENTS = """
import hashlib, sys
import torch
import daybreak
from daybreak.objectives.causal import Causal
from daybreak.objectives.summed import loss_sum
from daybreak.train.compiled import compiled
from daybreak.train.repeatable import repeatable

torch.set_num_threads(2)
model = daybreak.create("gpt2", layers=1, width=64, heads=2, vocabulary=64, context=128, seed=0)
batch = Causal().batch(torch.randint(0, 4, (8, 129)))
with repeatable(sys.argv[1] == "repeatable"):
    found = compiled(loss_sum, model.decoder, batch)
    assert found.problem is None, found.problem
    seen = set()
    for _ in range(100):
        found.loss_of(model.decoder, batch).backward()
        seen.add(hashlib.sha256(model.decoder.tokens.weight.grad.numpy().tobytes()).hexdigest())
        model.decoder.zero_grad()
print(len(seen))
"""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Was every compiled step taken with sums in one order?"""
    found: list[bool] = []

    def compile(loss_of: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            found.append(torch.are_deterministic_algorithms_enabled())
            return loss_of(*arguments)

        return watched

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    monkeypatch.setattr(compiling, "compiler", lambda: "/usr/bin/g++")
    monkeypatch.setattr(torch, "compile", compile)
    return found


def test_a_compiled_quickstart_sums_in_one_order(seen: list[bool], source: Path, tmp_path: Path) -> None:
    words = [*SIZE_OPTIONS, "--steps", "2", "--source", str(source), "--out", str(tmp_path / "out")]
    assert run(["quickstart", *words]) == 0
    assert len(seen) == 3 and all(seen) and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("wanted", [True, False])
def test_compiled_pretraining_sums_in_one_order(wanted: bool, seen: list[bool], tmp_path: Path) -> None:
    given = settings(
        data_set(tmp_path / "data"),
        length="2 steps",
        deterministic=wanted,
        precision={"dtype": "float32", "compile": True},
    )
    trained(tmp_path / "run", given)
    assert len(seen) >= 3 and set(seen) == {wanted} and not torch.are_deterministic_algorithms_enabled()


def test_flags_are_put_back_after_a_mistake() -> None:
    with pytest.raises(ZeroDivisionError), repeatable():
        assert torch.are_deterministic_algorithms_enabled()
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="threads must run beside each other")
def test_gradients_of_two_threads_are_the_same_every_time() -> None:
    """Many of the same few tokens: without the flag, their rows' sums come in a hundred orders."""

    def different(word: str) -> int:
        command = [sys.executable, "-c", GRADIENTS, word]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert different("repeatable") == 1
    assert different("as it comes") > 1
