"""`daybreak pretrain` on several processes: the same losses as on one, and runs that change their number."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

import daybreak
from daybreak.errors import DaybreakError
from daybreak.train.settings import ParallelSettings, Settings
from tests.unit.tiny_run import Silent, data_set, lines, settings, steps, trained


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def process(rank: int, size: int, port: int, folder: Path, given: Settings) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        trained(folder, given, Silent())
    except DaybreakError as error:
        (folder.parent / f"{folder.name}.{rank}").write_text(str(error))
        raise SystemExit(2) from None


def together(folder: Path, given: Settings, size: int, **layout: Any) -> None:
    given = dataclasses.replace(given, parallel=ParallelSettings(device="cpu", **layout))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "daybreak.train.run"])
    port = free_port()
    ranks = [context.Process(target=process, args=(n, size, port, folder, given)) for n in range(size)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(240)
        one.kill()
    assert [one.exitcode for one in ranks] == [0] * size


def losses(folder: Path) -> list[float]:
    return [values["loss"] for _, values in sorted(steps(folder).items())]


def scores(folder: Path) -> list[float]:
    return [line["evaluation"]["all"]["loss"] for line in lines(folder, "evaluation")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


def short(given: Settings, length: int) -> Settings:
    """The same run, up to an earlier step."""
    return dataclasses.replace(given, length=f"{length} steps")


def test_a_run_on_four_processes_goes_on_with_one_and_with_two(base: Path) -> None:
    given = settings(
        data_set(base / "data"),
        length="40 steps",
        ema=0.9,
        model={"family": "bloom", "changes": {"layers": 2, "width": 32, "heads": 4}},
        schedule={"name": "constant", "warmup": "5 steps"},
        evaluation={"every": 20, "sequences": 7},
    )
    trained(base / "one", given)
    together(base / "four", short(given, 20), 4, shards=2, tensor=2)
    for target in ("four-one", "four-two"):
        shutil.copytree(base / "four", base / target)
    trained(base / "four-one", given)
    together(base / "four-two", given, 2, shards=2)
    expected = losses(base / "one")
    assert len(expected) == 40
    for folder in ("four-one", "four-two"):
        assert losses(base / folder) == pytest.approx(expected, rel=1e-5), folder
        first, _, *rest = scores(base / folder)  # the second is that of the average, where 20 steps were all
        assert [first, *rest] == pytest.approx(scores(base / "one"), rel=1e-5)
        assert daybreak.load(base / folder / "model").generate("the", max_new_tokens=2)[0].text
    # Which text a step reads does not depend on the number of processes.
    assert [values["position"] for values in steps(base / "four-two").values()] == [4 * n for n in range(40)]
    story = (base / "four-two" / "logbook.md").read_text(encoding="utf-8")
    assert "`parallel.tensor`: 2 → 1" in story and story.count("# Logbook") == 1


def test_a_batch_that_cannot_be_shared_is_refused(base: Path) -> None:
    given = settings(data_set(base / "shared"), batch={"sequences": 3, "micro": 1})
    with pytest.raises(AssertionError):
        together(base / "refused", given, 2, shards=2)
    told = (base / "refused.0").read_text()
    assert "a batch of 3 sequences cannot be divided evenly among 2 processes" in told
