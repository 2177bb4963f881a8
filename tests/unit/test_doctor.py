"""The doctor: each check in good order and out of it, alone and between two processes."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import distributed

from daybreak.cli.main import run
from daybreak.engine.kernels.build import Library
from daybreak.train import doctor, doctor_ranks
from daybreak.train.doctor import Check, examine, lines, worst
from daybreak.train.doctor_ranks import Link, clocks, look, merged, reach
from daybreak.train.world import Place
from tests.unit.tiny_run import data_set

GOOD = Link(0.001, 1e9, 0.0)


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE", 2**20)
    monkeypatch.setattr(doctor, "SLOW", 1)


@pytest.mark.usefixtures("quick")
def test_alone_all_is_well(tmp_path: Path) -> None:
    data_set(tmp_path / "data", 20)
    found = named(examine(tmp_path / "data", tmp_path / "runs" / "first", {}))
    assert list(found) == [
        *("software", "devices", "compiler", "kernels", "backends", "open files"),
        *("data", "tokenizer", "disk"),
    ]
    assert found["data"].state == found["tokenizer"].state == found["disk"].state == "ok"
    assert not (tmp_path / "runs").exists()
    assert [one.name for one in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("split", ["training", "validation"])
def test_a_damaged_data_set_is_a_problem(split: str, tmp_path: Path) -> None:
    data_set(tmp_path, 20)
    shard = next((tmp_path / split).rglob("*.tokens"))
    contents = bytearray(shard.read_bytes())
    contents[0] ^= 1
    shard.write_bytes(contents)
    found = named(examine(tmp_path, None, {}))["data"]
    assert found.state == "problem" and shard.name in found.found


def test_without_a_tokenizer_there_is_a_problem(tmp_path: Path) -> None:
    data_set(tmp_path, 20)
    for file in (tmp_path / "tokenizer").iterdir():
        file.unlink()
    assert named(examine(tmp_path, None, {}))["tokenizer"].state == "problem"


@pytest.mark.usefixtures("quick")
def test_the_disk_is_compared_with_what_the_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_needed", lambda out, data: 2**60)
    found = named(examine(None, tmp_path, {}))["disk"]
    assert found.state == "problem" and found.remedy
    monkeypatch.setattr(doctor, "_needed", lambda out, data: None)
    monkeypatch.setattr(doctor, "SLOW", 2**60)
    assert named(examine(None, tmp_path, {}))["disk"].state == "warning"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "compiler", lambda: None)
    monkeypatch.setattr(doctor, "library", lambda: Library(None, "DAYBREAK_KERNELS=0 says so"))
    monkeypatch.setattr(distributed, "is_gloo_available", lambda: False)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    found = named(examine(None, None, {}))
    missing = ("compiler", "kernels", "backends", "open files")
    assert {found[name].state for name in missing} == {"warning"}
    assert found["kernels"].found == "none: DAYBREAK_KERNELS=0 says so"
    assert found["open files"].remedy == "ulimit -n 1024"
    assert named(doctor.local_checks(None, None, 2))["backends"].state == "problem"


def test_an_environment_without_sense_is_a_problem() -> None:
    found = named(examine(None, None, {"RANK": "3", "WORLD_SIZE": "2"}))["processes"]
    assert found.state == "problem"


def test_lines_give_the_remedy_below() -> None:
    told = lines([Check("a", "ok", "fine"), Check("bb", "problem", "gone", "buy one")])
    assert [line.split() for line in told] == [["ok", "a", "fine"], ["problem", "bb", "gone"], ["buy", "one"]]
    assert worst([Check("a", "warning", ""), Check("b", "ok", "")]) == "warning"


@pytest.mark.usefixtures("quick")
def test_the_command_says_in_its_status_whether_a_run_would_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["doctor", "--out", str(tmp_path), "--json"]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)} >= {"software", "disk"}
    assert run(["doctor", "--data", str(tmp_path)]) == 1
    assert "problem  data" in capsys.readouterr().out


# Between processes ------------------------------------------------------------------------------------------


def test_the_pair_that_fails_is_named() -> None:
    every = {rank: {other: GOOD for other in range(3) if other != rank} for rank in range(3)}
    assert reach(every).state == "ok"
    found = reach({**every, 1: {0: GOOD, 2: "timed out (10.0.0.3:4711)"}})
    assert found.state == "problem" and "rank 1 does not reach rank 2: timed out" in found.found


def test_a_port_where_nobody_listens_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    with pytest.raises(OSError):
        look(address)


def test_clocks_that_differ_are_a_warning() -> None:
    every: dict[int, dict[int, Link | str]] = {0: {1: GOOD, 2: Link(0.001, 1e9, -7.5)}}
    found = clocks(every)
    assert found.state == "warning" and "rank 2" in found.found and "7500.0 ms" in found.found
    assert clocks({0: {1: GOOD}}).state == "ok"


def test_the_worst_of_all_processes_counts() -> None:
    every = {rank: [Check("compiler", "ok", "/usr/bin/g++")] for rank in range(4)}
    assert merged(every) == [Check("compiler", "ok", "/usr/bin/g++")]
    every[2] = [Check("compiler", "warning", "none", "install one")]
    assert merged(every) == [Check("compiler", "warning", "none (rank 2)", "install one")]


@pytest.mark.parametrize("apart", [False, True])
def test_a_folder_that_is_not_shared_is_a_problem(
    tmp_path: Path, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_ranks, "PATIENCE", 0.5)
    folders = [tmp_path / "0", tmp_path / ("1" if apart else "0")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    store = distributed.HashStore()
    places = [Place(rank, 2, rank, "127.0.0.1:1") for rank in range(2)]
    with ThreadPoolExecutor() as threads:
        found, _ = threads.map(doctor_ranks._shared, [store, store], places, folders)
    assert found.state == ("problem" if apart else "ok")
    assert not apart or "ranks 1 do" in found.found
    assert [one for folder in folders for one in folder.iterdir()] == []


def test_two_processes_reach_each_other(tmp_path: Path) -> None:
    """As torchrun starts them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "daybreak.cli.main", "doctor", "--json", "--out", str(tmp_path)]
    processes = [
        subprocess.Popen(
            command,
            env={**common, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [process.communicate(timeout=180)[0] for process in processes]
    found = {one["name"]: one["state"] for one in json.loads(told[0])}
    for name in ("reachability", "clocks", "sums", "shared folder"):
        assert found[name] == "ok", told[0]
    assert told[1] == ""
    assert list(tmp_path.iterdir()) == []
    assert [process.returncode for process in processes] == [0, 0]
