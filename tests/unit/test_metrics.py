"""Every step stands in metrics.jsonl once, whatever ended the process; and figures reach the trackers."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak.errors import DaybreakError
from daybreak.train import metrics
from daybreak.train.metrics import FILE, TENSORBOARD, Metrics, cut, lines_backwards
from daybreak.train.settings import LogSettings

PLAIN = LogSettings(tensorboard=False)
BOARD = LogSettings(every=2)


def opened(folder: Path, kept: int = 0, log: LogSettings = PLAIN, active: bool = True) -> Metrics:
    return Metrics(folder, log, kept=kept, run="cafe", configuration={"seed": 1}, active=active)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def train(found: Metrics, first: int, last: int) -> None:
    for step in range(first, last + 1):
        found.step({"step": step, "loss": 3.0 / step, "lr": 1e-3, "event": None})


def test_lines_are_what_was_measured(tmp_path: Path) -> None:
    found = opened(tmp_path)
    found.started(0, 1, "2026-01-01 00:00:00")
    train(found, 1, 2)
    found.evaluation(2, {"all": {"loss": 2.5, "bits_per_byte": 1.25}})
    found.sample(2, "Es war", "einmal\nein König")
    found.close()
    assert lines(tmp_path) == [
        {"step": 0, "session": 1, "time": "2026-01-01 00:00:00"},
        {"step": 1, "loss": 3.0, "lr": 1e-3, "event": None},
        {"step": 2, "loss": 1.5, "lr": 1e-3, "event": None},
        {"step": 2, "evaluation": {"all": {"loss": 2.5, "bits_per_byte": 1.25}}},
        {"step": 2, "sample": {"prompt": "Es war", "text": "einmal\nein König"}},
    ]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    found = opened(tmp_path)
    found.step({"step": 1, "loss": math.nan, "gradient_norm": math.inf, "event": "not finite"})
    found.evaluation(1, {"all": {"loss": math.nan}})
    found.close()
    assert lines(tmp_path) == [
        {"step": 1, "loss": None, "gradient_norm": None, "event": "not finite"},
        {"step": 1, "evaluation": {"all": {"loss": None}}},
    ]


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    first = opened(tmp_path)
    train(first, 1, 30)
    first.flush()  # and then the process ends
    second = opened(tmp_path, kept=20)
    train(second, 21, 40)
    second.close()
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 41))


def test_a_new_run_in_the_folder_starts_from_nothing(tmp_path: Path) -> None:
    first = opened(tmp_path)
    train(first, 1, 5)
    first.close()
    second = opened(tmp_path)
    train(second, 1, 2)
    second.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_return_takes_the_steps_away_and_leaves_a_note(tmp_path: Path) -> None:
    found = opened(tmp_path)
    train(found, 1, 29)
    found.step({"step": 30, "position": 870, "sequences": 30, "loss": 9.0})
    found.rolled_back(30, 20, "loss spike")
    train(found, 21, 22)
    found.close()
    assert [line["step"] for line in lines(tmp_path)] == [*range(1, 21), 20, 21, 22]
    note = {"from": 30, "event": "loss spike", "position": 870, "sequences": 30}
    assert lines(tmp_path)[20] == {"step": 20, "rolled_back": note}


@settings(deadline=None)
@given(st.data())
def test_cut_at_any_byte_and_any_step(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A kill leaves any number of bytes; what is kept is whole lines of the steps that hold."""
    file = tmp_path_factory.mktemp("cut") / FILE
    steps = sorted(data.draw(st.lists(st.integers(0, 30), max_size=20)))
    text = "".join(
        json.dumps({"step": step, "sample": "ä" * (step % 7)}, ensure_ascii=False) + "\n" for step in steps
    )
    length = data.draw(st.integers(0, len(text.encode())))
    file.write_bytes(text.encode()[:length])
    kept = data.draw(st.integers(0, 30))
    whole = text.encode()[:length].rpartition(b"\n")
    expected = [line for line in (whole[0] + whole[1]).splitlines() if json.loads(line)["step"] <= kept]
    cut(file, kept)
    assert file.read_bytes() == b"".join(line + b"\n" for line in expected)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=9), st.booleans())
def test_lines_backwards_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], closed: bool
) -> None:
    text = b"\n".join(parts) + (b"\n" if closed and parts else b"")
    file = tmp_path_factory.mktemp("backwards") / FILE
    file.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK", 5)
        found = list(lines_backwards(file))
    assert b"".join(line for _, line in reversed(found)) == text
    assert all(text[start : start + len(line)] == line for start, line in found)
    assert all(line.find(b"\n") in (-1, len(line) - 1) for _, line in found)
    assert len(found) == len([part for part in text.split(b"\n")[:-1]]) + bool(text.rpartition(b"\n")[2])


def test_lines_are_with_the_system_after_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    found = opened(tmp_path)
    train(found, 1, 1)
    assert lines(tmp_path) == []
    clock[0] = metrics.SECONDS
    train(found, 2, 2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_flush_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, synced = opened(tmp_path), []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.path.getsize(tmp_path / FILE)))
    train(found, 1, 3)
    found.flush()
    assert synced == [len((tmp_path / FILE).read_bytes())] and len(lines(tmp_path)) == 3


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"step": 9}\n')
    found = opened(tmp_path, active=False, log=LogSettings())
    found.started(0, 1, "now")
    train(found, 1, 3)
    found.evaluation(1, {})
    found.sample(1, "a", "b")
    found.rolled_back(3, 0, "loss spike")
    found.flush()
    found.close()
    assert [path.name for path in tmp_path.iterdir()] == [FILE] and lines(tmp_path) == [{"step": 9}]


def test_tensorboard_has_the_curves(tmp_path: Path) -> None:
    found = opened(tmp_path, log=BOARD)
    train(found, 1, 3)
    found.step({"step": 5, "loss": 9.0, "loss_scale": None, "event": "loss spike"})
    found.evaluation(3, {"wiki": {"loss": 2.5}})
    found.sample(3, "Es war", "einmal")
    found.close()
    events = list(read_events(next((tmp_path / TENSORBOARD).iterdir())))
    scalars = {(tag, step): value for tag, step, value in events}
    assert scalars["train/loss", 2] == 1.5 and scalars["evaluation/wiki/loss", 3] == 2.5
    assert {step for tag, step in scalars if tag == "train/loss"} == {2, 5}, "every second, and events"
    assert {tag for tag, _ in scalars if tag.startswith("train/")} == {"train/loss", "train/lr"}
    assert any(tag.startswith("samples/Es_war") for tag, _ in scalars)


def test_tensorboard_forgets_what_was_lost(tmp_path: Path) -> None:
    opened(tmp_path, log=LogSettings()).close()
    opened(tmp_path, kept=20, log=LogSettings()).close()
    starts = {step for file in (tmp_path / TENSORBOARD).iterdir() for step in session_starts(file)}
    assert 21 in starts


def test_tensorboard_goes_back_with_the_run(tmp_path: Path) -> None:
    found = opened(tmp_path, log=LogSettings())
    train(found, 1, 30)
    found.rolled_back(30, 20, "loss spike")
    found.close()
    starts = [step for file in (tmp_path / TENSORBOARD).iterdir() for step in session_starts(file)]
    assert starts == [1, 21]


def records(file: Path) -> list[Any]:
    event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")
    data, found = file.read_bytes(), []
    while data:  # length, its checksum, the record, its checksum
        length = int.from_bytes(data[:8], "little")
        found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def read_events(file: Path) -> list[tuple[str, int, float]]:
    return [(v.tag, e.step, v.simple_value) for e in records(file) for v in e.summary.value]


def session_starts(file: Path) -> list[int]:
    return [event.step for event in records(file) if event.HasField("session_log")]


class Recorder:
    """Stands for a tracker's module and its run."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def module(self, name: str) -> types.ModuleType:
        module = types.ModuleType(name)
        module.init = self.init  # type: ignore[attr-defined]
        module.finish = self.finish  # type: ignore[attr-defined]
        return module

    def init(self, **given: Any) -> Recorder:
        self.calls.append(("init", given))
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.calls.append(("define_metric", name, step_metric))

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.calls.append(("log", values, step))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_the_figures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder.module(name))
    log = LogSettings(tensorboard=False, trackers=(name,), project="mine")  # type: ignore[arg-type]
    found = opened(tmp_path, log=log)
    found.step({"step": 7, "loss": 2.0, "event": "loss spike"})
    found.evaluation(7, {"all": {"bits_per_byte": 1.0}})
    found.sample(7, "a", "b")
    found.close()
    (begin, given), *calls = recorder.calls
    assert begin == "init" and given["project"] == "mine" and given["config"] == {"seed": 1}
    assert given["resume"] == "allow" and "cafe" in (given.get("id", ""), given["name"].rpartition("-")[2])
    logged = [call for call in calls if call[0] == "log"]
    expected = [{"train/loss": 2.0}, {"evaluation/all/bits_per_byte": 1.0}, {"samples/a": "b"}]
    if name == "wandb":  # whose own steps cannot go back
        assert calls[0] == ("define_metric", "*", "step")
        assert logged == [("log", {"step": 7, **values}, None) for values in expected]
    else:
        assert logged == [("log", values, 7) for values in expected]
    assert calls[-1] == ("finish",)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_an_absent_tracker_is_named_and_nothing_is_changed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    real = importlib.import_module

    def load(module: str) -> types.ModuleType:
        if module == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(module)

    monkeypatch.setattr(metrics.importlib, "import_module", load)
    (tmp_path / FILE).write_text('{"step": 9}\n')
    with pytest.raises(DaybreakError, match=f"pip install {name}"):
        opened(tmp_path, log=LogSettings(trackers=(name,)))  # type: ignore[arg-type]
    assert lines(tmp_path) == [{"step": 9}] and not (tmp_path / TENSORBOARD).exists()
