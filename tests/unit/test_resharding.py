"""Checkpoints saved in one layout on four processes go on in another one, on any number of them."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from daybreak.architecture import Rotary
from daybreak.errors import DaybreakError
from daybreak.train import export as exporting
from daybreak.train.checkpoints import Checkpoints
from daybreak.train.export import export
from daybreak.train.settings import CheckpointSettings, ParallelSettings
from daybreak.train.state import flatten, put_back, tensors_of
from daybreak.train.world import World
from tests.unit.processes import together
from tests.unit.test_checkpoints import flip, small_files
from tests.unit.tiny_training import ALONE, Training, model_of

DESIGNS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neox": {"positions": Rotary(4, "halves")},
    "bloom": {"inner": 96},
    "opt": {"embedding_width": 20},
}


@dataclass(frozen=True)
class Case:
    """`plain`, or a number of processes for each kind of cut: replicas x shards x tensor."""

    family: str
    on_four: str
    on_two: str
    muon: bool = False

    def folder(self, folder: Path) -> Path:
        return folder / f"{self.family} {self.on_four}"


CASES = [
    Case("gpt2", "1x4x1", "1x2x1", muon=True),
    Case("gpt2", "plain", "1x2x1"),
    Case("gpt_neox", "2x2x1", "1x1x2"),
    Case("bloom", "1x2x2", "2x1x1"),
    Case("opt", "1x1x4", "plain"),
]


def world_of(layout: str) -> World:
    if layout == "plain":
        return ALONE
    replicas, shards, tensor = map(int, layout.split("x"))
    settings = ParallelSettings(replicas=replicas, shards=shards, tensor=tensor)
    return World.arranged(settings, torch.device("cpu"))


def training_of(case: Case, layout: str, seed: int) -> Training:
    model = model_of(case.family, seed, **DESIGNS[case.family])
    return Training.of(model, muon=case.muon, world=world_of(layout))


def tree_of(training: Training) -> dict[str, Any]:
    return tensors_of(training.model.decoder, training.optimizers, training.ema)


def prints(training: Training) -> dict[str, str]:
    """Of every tensor, put together."""
    full = {name: whole(tensor) for name, tensor in flatten(tree_of(training))[0].items()}
    return {name: hashlib.sha256(one.numpy().tobytes()).hexdigest() for name, one in full.items()}


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().contiguous()


@contextmanager
def most_alive() -> Iterator[list[int]]:
    """The most bytes of tensors put together that were alive at a time."""
    most = [0]
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    put_together = exporting._whole

    def counted(tensor: Tensor) -> Tensor:
        full = put_together(tensor)
        alive.add(full)
        most[0] = max(most[0], sum(one.nbytes for one in alive))
        return full

    exporting._whole = counted
    try:
        yield most
    finally:
        exporting._whole = put_together


def on_four(folder: Path) -> tuple[list[Any], list[Any]]:
    """All that is done with four processes: to start them takes longer than their work."""
    return [begin(case, case.folder(folder)) for case in CASES], trouble(folder / "trouble")


def begin(case: Case, folder: Path) -> tuple[dict[str, str], list[float], int]:
    """Train, save, export and train on: the state, the losses after it, and the bytes alive in the export."""
    training = training_of(case, case.on_four, seed=0)
    training.steps(0, 3)
    with torch.no_grad():  # as an evaluation does, which leaves tensors put together
        training.model.decoder.logits(torch.zeros(1, 4, dtype=torch.int64))
    kept = Checkpoints(folder, CheckpointSettings(), print)
    kept.save(3, tree_of(training), {"next": 3})
    with most_alive() as most:
        export(training.model, folder / "export")
    export(training.model, folder / "ema", training.ema, shard_size="8KB")
    state_then = prints(training)
    losses = training.steps(3, 6)
    kept.wait()
    return state_then, losses, most[0]


def go_on(folder: Path, on_two: bool) -> list[tuple[dict[str, str], list[float]]]:
    """Other processes read what was saved, into models of other weights: the state, and the losses then."""
    found = []
    for case in CASES:
        training = restored(case, case.on_two if on_two else "plain", folder)
        found.append((prints(training), training.steps(3, 6)))
    return found


def restored(case: Case, layout: str, folder: Path) -> Training:
    training = training_of(case, layout, seed=1)
    kept = Checkpoints(case.folder(folder), CheckpointSettings(), print)
    assert kept.newest() == 3
    assert kept.numbers(3) == {"next": 3}
    tensors = tree_of(training)
    kept.load(3, tensors)
    put_back(tensors, training.model.decoder, training.optimizers, training.ema)
    return training


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[list[Any], list[Any]]]]:
    folder = tmp_path_factory.mktemp("four")
    return folder, together(4, on_four, folder)


@pytest.fixture(scope="module")
def saved(four: tuple[Path, list[Any]]) -> tuple[Path, list[Any]]:
    return four[0], four[1][0][0]


def assert_same(found: list[tuple[dict[str, str], list[float]]], saved: list[Any]) -> None:
    for case, (state_now, losses), (state_then, expected, _) in zip(CASES, found, saved, strict=True):
        assert state_now == state_then, case
        assert losses == pytest.approx(expected, rel=0, abs=1e-6), case


def test_four_go_on_as_one(saved: tuple[Path, list[Any]]) -> None:
    assert_same(go_on(saved[0], on_two=False), saved[1])


def test_four_go_on_as_two(saved: tuple[Path, list[Any]]) -> None:
    assert_same(together(2, go_on, saved[0], True)[0], saved[1])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_export_is_what_the_whole_model_saves(
    saved: tuple[Path, list[Any]], case: Case, tmp_path: Path
) -> None:
    training = restored(case, "plain", saved[0])
    training.model.save(tmp_path / "export")
    with torch.no_grad():
        for name, one in training.model.decoder.named_parameters():
            one.copy_(training.ema[name])
    training.model.save(tmp_path / "ema", shard_size="8KB")
    for kind in ("export", "ema"):
        assert contents(case.folder(saved[0]) / kind) == contents(tmp_path / kind)
    assert len(os.listdir(tmp_path / "ema")) > len(os.listdir(tmp_path / "export"))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_an_export_holds_one_tensor_at_a_time(saved: tuple[Path, list[Any]]) -> None:
    folder, outcomes = saved
    with safe_open(CASES[0].folder(folder) / "export" / "model.safetensors", framework="pt") as file:
        sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118
    assert 0 < outcomes[0][2] <= max(sizes) < sum(sizes) / 4


def trouble(folder: Path) -> list[Any]:
    """One of four processes has no space; a file of another is damaged; the folder of an export is a file."""
    told: list[str] = []
    rank = distributed.get_rank()
    kept = Checkpoints(folder, CheckpointSettings(), told.append)
    tensors = {"model": {"a": distribute(torch.ones(400, 100))}}
    kept.save(1, tensors, {})
    kept.wait()
    with small_files(5000 if rank == 2 else 10**9):
        kept.save(2, tensors, {})
        full = problem_of(kept.wait)
    left = sorted(os.listdir(folder))
    distributed.barrier()
    kept.save(2, tensors, {})
    kept.wait()
    distributed.barrier()
    if rank == 0:
        flip(folder / "step-00000002" / "__3_0.distcp")
    distributed.barrier()
    newest = kept.newest()
    (folder / "file").touch()
    failed = problem_of(lambda: export(model_of(), folder / "file"))
    return [full, left, newest, told, failed]


def distribute(tensor: Tensor) -> DTensor:
    return distribute_tensor(tensor, init_device_mesh("cpu", (4,)), [Shard(0)])


def problem_of(action: Any) -> str:
    try:
        action()
    except DaybreakError as error:
        return str(error)
    return "no error"


def test_what_fails_in_one_fails_in_all(four: tuple[Path, list[Any]]) -> None:
    answers = [troubles for _, troubles in four[1]]
    for at, (full, left, newest, told, failed) in enumerate(answers):
        assert full == answers[0][0]
        assert "checkpoint of step 2 cannot be written" in full
        assert "no space left" in full
        assert "the checkpoint of step 1 is intact" in full
        assert left == ["step-00000001"]
        assert newest == 1
        assert len(told) == (at == 0)
        assert "file cannot be written" in failed
    assert "__3_0.distcp has another checksum" in answers[0][3][0]
