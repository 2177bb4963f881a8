"""A run that is killed again and again ends as the run that was left alone, bit for bit."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from daybreak.train.records import Point
from daybreak.train.settings import Settings
from tests.unit.tiny_run import Silent, data_set, settings, steps, trained

KILLS = 20


class Telling(Silent):
    """Tells another process of every step."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self.pipe = pipe

    def point(self, point: Point) -> None:
        self.pipe.send(point.step)


def run(pipe: Connection, folder: Path, given: Settings) -> None:
    torch.set_num_threads(1)
    trained(folder, given, Telling(pipe))


def killed(folder: Path, given: Settings, draw: random.Random, inside: bool) -> bool:
    """Start the run, and kill it at a random moment; was it still running?"""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "daybreak.train.run"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(theirs, folder, given))
    process.start()
    theirs.close()
    for _ in range(draw.randint(1, 18)):
        assert ours.poll(60), "the run does not go on"
        ours.recv()
    if inside:
        _wait_for_a_write(folder, ours, draw)
    time.sleep(draw.choice([0, 0.001, 0.003, 0.01]))
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


def _wait_for_a_write(folder: Path, pipe: Connection, draw: random.Random) -> None:
    """Until a checkpoint is being written, and one, two, three or more of its files are there."""
    files = draw.randint(0, 3)
    while not any(_files(one) >= files for one in _partial(folder)):
        while pipe.poll():  # a full pipe would hold the run up
            pipe.recv()


def _files(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # it has got its final name meanwhile
        return len(list(folder.iterdir()))
    return 0


def _partial(folder: Path) -> list[Path]:
    return [one for one in (folder / "checkpoints").glob("*.partial") if one.is_dir()]


def test_killed_twenty_times_the_run_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data")
    given = settings(
        data,
        length="380 steps",
        ema=0.99,
        log={"every": 1},
        checkpoints={"every": 9},
        batch={"sequences": 4, "ramp_from": 2, "ramp_over": "150 steps"},
    )
    trained(tmp_path / "alone", given)
    draw, folder = random.Random(1), tmp_path / "killed"
    torn = 0
    for number in range(KILLS):
        assert killed(folder, given, draw, inside=number % 5 in (1, 3)), "the run ended before it was killed"
        torn += len(_partial(folder))
    assert torn >= 3, f"only {torn} of the kills were inside the writing of a checkpoint"
    outcome = trained(folder, given)
    assert outcome.ending == "finished"
    assert (expected := steps(tmp_path / "alone")) and len(expected) == 380
    assert steps(folder) == expected
    name = "model/model.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    story = (folder / "logbook.md").read_text(encoding="utf-8")
    assert story.count("was killed without a word") == KILLS
    assert "is left over from a process that was ended" in story
