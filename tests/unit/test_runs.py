"""The list of runs says what each has come to, and the curves are those that were measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daybreak.cli import main
from daybreak.errors import DaybreakError
from daybreak.train import runs, runs_chart, runs_picture
from daybreak.train.metrics import FILE, Metrics
from daybreak.train.run_status import RunFile, RunStatus
from daybreak.train.runs import CURVES, Curve, History, Mark, find, folder_of, history
from daybreak.train.settings import LogSettings

END: Any = {
    "finished": ("finished",),
    "stopped": ("stopped", "SIGTERM"),
    "failed": ("failed", "the disk is full"),
}


def train(folder: Path, steps: int = 40, end: str | None = "finished", plan: int = 40) -> Path:
    """A run of `steps` steps whose loss is 100 / (step + 9), with two sessions and a spike."""
    folder.mkdir(parents=True)
    run = RunFile(folder, {"family": "gpt2", "size": "tiny"}, plan)
    found = Metrics(folder, LogSettings(tensorboard=False), kept=0, run=run.status.id, configuration={})
    found.started(0, 1, run.status.started)
    for step in range(1, steps + 1):
        loss = float("nan") if step == 5 else 100 / (step + 9)
        event = {5: "not finite", 30: "loss spike"}.get(step)
        speed = 1000.0 if step <= steps - 20 else 2000.0
        line = {"step": step, "tokens": step * 10**6, "loss": loss, "lr": 1e-4 * step, "gradient_norm": 1.0}
        found.step({**line, "tokens_per_second": speed, "event": event})
        if step % 10 == 0:
            found.evaluation(step, {"all": {"loss": loss, "bits_per_byte": 20 / step}})
        if step == 12:
            found.started(12, 2, run.status.started)
    run.at(steps)
    found.close()
    if end is not None:
        run.end(*END[end])
    return folder


def killed(folder: Path, steps: int) -> Path:
    train(folder, steps, end=None)
    status = RunStatus.read(folder)
    assert status is not None
    replace(status, process="gone", step=steps - 3).write(folder)
    return folder


def quickstart(folder: Path) -> Path:
    folder.mkdir(parents=True)
    report = {
        "finished": True,
        "steps": 9,
        "bits_per_byte": 1.5,
        "settings": {"family": "glm", "steps": None},
    }
    (folder / "quickstart.json").write_text(json.dumps(report))
    lines = [
        {"step": step, "fraction": 0.1, "tokens": step, "loss": 9.0 - step, "rate": 0.5} for step in (3, 6)
    ]
    (folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_list_of_all_kinds(tmp_path: Path) -> None:
    for number, end in enumerate(END):
        train(tmp_path / f"run-{number}", end=end)
    train(tmp_path / "on", steps=21, end=None)
    killed(tmp_path / "deeper" / "one", steps=7)
    quickstart(tmp_path / "quick")
    (tmp_path / "notes").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (tmp_path / "broken-2").mkdir()
    (tmp_path / "broken-2" / "quickstart.json").write_text("[]")
    found = {run.name: run for run in find(tmp_path)}
    assert {name: (run.status, run.step, run.steps, run.model) for name, run in found.items()} == {
        "run-0": ("finished", 40, 40, "tiny"),
        "run-1": ("stopped", 40, 40, "tiny"),
        "run-2": ("failed", 40, 40, "tiny"),
        "on": ("running", 21, 40, "tiny"),
        "deeper/one": ("killed", 7, 40, "tiny"),
        "quick": ("finished", 9, None, "glm"),
    }
    one, on = found["run-0"], found["on"]
    assert (one.loss, one.bits_per_byte, one.tokens_per_second) == (100 / 49, 0.5, 2000.0)
    assert (on.loss, on.bits_per_byte) == (100 / 30, 1.0)
    assert (found["quick"].loss, found["quick"].bits_per_byte) == (3.0, 1.5)


def test_the_latest_is_first(tmp_path: Path) -> None:
    for name, updated in (
        ("a", "2026-01-01 00:00:00"),
        ("b", "2026-01-03 00:00:00"),
        ("c", "2026-01-02 00:00:00"),
    ):
        status = RunStatus.read(train(tmp_path / name, steps=1))
        assert status is not None
        replace(status, updated=updated).write(tmp_path / name)
    assert [run.name for run in find(tmp_path)] == ["b", "c", "a"]


def test_a_run_before_its_first_step_is_listed(tmp_path: Path) -> None:
    RunFile(tmp_path, {"family": "gpt2"}, 10)
    (run,) = find(tmp_path)
    assert (run.name, run.model, run.step, run.loss) == (tmp_path.name, "gpt2", 0, None)
    with pytest.raises(DaybreakError, match=r"metrics\.jsonl cannot be read"):
        history(tmp_path)
    (tmp_path / FILE).touch()
    with pytest.raises(DaybreakError, match="has measured nothing yet"):
        history(tmp_path)


def test_a_run_is_found_by_folder_and_name(tmp_path: Path) -> None:
    train(tmp_path / "runs" / "first", steps=1)
    assert folder_of(str(tmp_path / "runs" / "first"), tmp_path) == tmp_path / "runs" / "first"
    assert folder_of("first", tmp_path / "runs") == tmp_path / "runs" / "first"
    with pytest.raises(DaybreakError, match=r"frist is no run \(did you mean 'first'\?\)"):
        folder_of("frist", tmp_path / "runs")
    with pytest.raises(DaybreakError, match=r"zzz is no run; .*runs has first"):
        folder_of("zzz", tmp_path / "runs")
    with pytest.raises(DaybreakError, match="there are no runs in"):
        folder_of("zzz", tmp_path / "nowhere")


def test_curves_are_what_was_measured(tmp_path: Path) -> None:
    found = history(train(tmp_path / "run"))
    steps = [float(step) for step in range(1, 41)]
    assert found.name == "run" and set(found.curves) == set(CURVES)
    finite = [step for step in steps if step != 5]
    assert found.curves["loss"] == Curve(finite, [100 / (step + 9) for step in finite])
    assert found.curves["bits_per_byte"] == Curve([10, 20, 30, 40], [2.0, 1.0, 20 / 30, 0.5])
    assert found.curves["lr"].steps == steps
    assert found.marks == [
        Mark(5, "event", "not finite"),
        Mark(12, "restart", "session 2"),
        Mark(30, "event", "loss spike"),
    ]
    over = found.over_tokens()
    assert over.curves["bits_per_byte"].steps == [10.0, 20.0, 30.0, 40.0] and over.marks[1].step == 12.0
    assert over.curves["loss"].values == found.curves["loss"].values


def test_a_return_is_a_mark_and_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(
        b'{"step": 1, "loss": 3.0}\nnonsense \xff\n{"loss": 2}\n'
        b'{"step": 1, "rolled_back": {"from": 9, "event": "loss spike"}}\n{"step": 2, "lo'
    )
    found = history(tmp_path)
    assert found.curves == {"loss": Curve([1], [3.0])}
    assert found.marks == [Mark(1, "return", "back from step 9")]


def test_a_quickstart_has_curves_too(tmp_path: Path) -> None:
    found = history(quickstart(tmp_path / "quick"))
    assert found.curves == {"loss": Curve([3, 6], [6.0, 3.0]), "lr": Curve([3, 6], [0.5, 0.5])}


def drawn(lines: list[str], title: str) -> list[str]:
    """The rows of one chart, without the scale."""
    start = next(number for number, line in enumerate(lines) if line.startswith(title)) + 1
    rows = [line for line in lines[start:] if line]
    stop = next(number for number, line in enumerate(rows) if "|" not in line[:11])
    return [row[11:].ljust(runs_chart.WIDTH) for row in rows[:stop]]


def straight(slope: float, name: str = "run", marks: tuple[Mark, ...] = ()) -> History:
    steps = [float(step) for step in range(200)]
    tokens = Curve(steps, [step * 1e6 for step in steps])
    return History(name, {"lr": Curve(steps, [1 + slope * step for step in steps])}, marks, tokens)


def test_a_falling_line_falls() -> None:
    rows = drawn(runs_chart.charts([straight(-0.01)], "steps", braille=False), "learning rate")
    assert len(rows) == runs_chart.HEIGHT
    ends = [(row.index("*"), row.rindex("*")) for row in rows]
    assert ends[0][0] == 0 and ends[-1][1] == runs_chart.WIDTH - 1
    assert all(after[0] == before[1] + 1 for before, after in pairwise(ends))


def test_braille_dots_are_where_the_values_are() -> None:
    rows = drawn(runs_chart.charts([straight(0.01)], "steps"), "learning rate")
    assert ord(rows[-1][0]) - 0x2800 == 0x40 | 0x80, "the lowest dots on the left"
    assert ord(rows[0][-1]) - 0x2800 == 0x01 | 0x08, "the highest on the right"
    assert rows[0][0] == " " and rows[-1][-1] == " "


def test_several_runs_have_letters_and_their_marks() -> None:
    marks = (Mark(0, "event", "loss spike"), Mark(199, "restart", "session 2"))
    loss = {"loss": Curve([0, 199], [3.0, 2.0])}
    both = [
        replace(straight(-0.01, "up"), curves=loss, marks=marks),
        replace(straight(0.01, "down"), curves=loss),
    ]
    lines = runs_chart.charts(both, "steps")
    assert lines[:2] == ["A  up", "B  down"]
    assert (
        all(set(row) <= set(" AB") for row in drawn(lines, "loss"))
        and "A last 2, lowest 2 at step 199; B" in lines[3]
    )
    assert f"{'A':>9}  !{'|':>{runs_chart.WIDTH - 1}}" in lines
    assert lines[-2:] == ["!  A step 0: loss spike", "|  A step 199: session 2"]


def test_many_marks_are_counted() -> None:
    marks = tuple(Mark(step, "event", "loss spike") for step in range(50))
    lines = runs_chart.charts([straight(1, marks=marks)], "steps")
    assert "   and 38 before these" in lines and lines[-1] == "!  step 49: loss spike"


FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)


@settings(deadline=None)
@example([[1.5089682429120813e-173]], "loss", False)
@example([[-1.5e-173, -2e-99]], "lr", True)
@given(
    st.lists(st.lists(FINITE, min_size=1, max_size=30), min_size=1, max_size=3),
    st.sampled_from(list(CURVES)),
    st.booleans(),
)
def test_charts_of_anything_keep_their_form(values: list[list[float]], name: str, braille: bool) -> None:
    each = [
        History("x", {name: Curve([float(n) for n in range(len(one))], one)}, [], Curve([], []))
        for one in values
    ]
    lines = runs_chart.charts(each, "steps", braille)
    rows = drawn(lines, CURVES[name])
    assert len(rows) == runs_chart.HEIGHTS.get(name, runs_chart.HEIGHT)
    assert all(len(row) == runs_chart.WIDTH for row in rows) and any(row.strip() for row in rows)
    if not braille:
        assert all(line.isascii() for line in lines)


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=300), st.integers(2, 50))
def test_thinning_keeps_the_extremes(values: list[float], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_picture, "MOST", most)
        places = list(runs_picture._extremes(np.array(values)))
    assert len(places) <= max(most, 2) and places == sorted(set(places))
    kept = [values[place] for place in places]
    assert min(kept) == min(values) and max(kept) == max(values)


@pytest.mark.parametrize(("name", "begins"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml")])
def test_a_picture_of_two_runs(tmp_path: Path, name: str, begins: bytes) -> None:
    both = [
        history(train(tmp_path / "runs" / "a-run")),
        history(train(tmp_path / "runs" / "another", steps=70)),
    ]
    runs_picture.picture(both, "steps", tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(begins) and len(content) > 10_000
    if name == "c.svg":
        drawn_colours = set(re.findall(rb"stroke: (#[0-9a-f]{6})", content))
        assert {colour.encode() for colour in runs_picture.COLOURS[:2]} <= drawn_colours


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match=r"c\.docx: .*svg"):
        runs_picture.picture([straight(1)], "steps", tmp_path / "c.docx")
    with pytest.raises(DaybreakError, match=r"c\.png cannot be written: No such file"):
        runs_picture.picture([straight(1)], "steps", tmp_path / "absent" / "c.png")


def test_the_command_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["runs"]) == 0
    assert capsys.readouterr().out == "no runs in runs; `daybreak pretrain` makes one\n"
    train(tmp_path / "runs" / "first")
    killed(tmp_path / "runs" / "second", steps=7)
    assert main.run(["runs"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == [
        "run",
        "model",
        "step",
        "loss",
        "bits/byte",
        "tokens/s",
        "status",
        "last",
        "heard",
        "of",
    ]
    rows = {line.split()[0]: line for line in out[1:]}
    assert re.fullmatch(r"first +tiny +40 of 40  2\.0408 +0\.5000 +2,000  finished  \d+ s ago", rows["first"])
    assert re.fullmatch(r"second +tiny +7 of 40  6\.2500 +2,000  killed +\d+ s ago", rows["second"])
    assert main.run(["runs", "runs", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {run["name"]: run["status"] for run in data} == {"first": "finished", "second": "killed"}


def test_the_command_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "runs" / "first")
    train(tmp_path / "runs" / "second", steps=20)
    assert main.run(["runs", "show", "first", "--out", "curves.png"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("first\n\nloss (nats per token): last 2.041, lowest 2.041 at step 40\n")
    assert out.endswith("|  step 12: session 2\n!  step 30: loss spike\n\ncurves.png is written\n")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert main.run(["runs", "show", "first", "runs/second", "--tokens", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["run"], second["run"]) == ("first", "second")
    assert second["curves"]["bits_per_byte"] == {"steps": [10.0, 20.0], "values": [2.0, 1.0]}
    assert first["marks"][1] == {"step": 12.0, "kind": "restart", "text": "session 2"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "name a run: daybreak runs show RUN"),
        (["show", "nothing"], "nothing is no run; there are no runs in runs"),
        (["nowhere"], "there is no folder nowhere"),
        (["a", "b"], "lists one folder; to see curves: daybreak runs show a"),
        (["--out", "x.png"], "--out and --tokens belong to"),
    ],
)
def test_wrong_words_are_explained(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["runs", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_terminal_without_braille_gets_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    train(tmp_path / "run")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main.run(["runs", "show", str(tmp_path / "run")]) == 0
    stream.flush()
    assert b"?" not in stream.buffer.getvalue() and b"***" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_list_looks_back_only_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "run", steps=40)
    monkeypatch.setattr(runs, "LOOK_BACK", 3)
    (run,) = find(tmp_path)
    assert run.loss == 100 / 49 and run.bits_per_byte == 0.5
