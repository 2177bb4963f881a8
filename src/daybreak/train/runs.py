"""The runs in a folder: what each has come to, and its curves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from daybreak.errors import DaybreakError, nearest
from daybreak.train import metrics, run_status
from daybreak.train.run_status import RunStatus

QUICKSTART = "quickstart.json"
"""What the folder of a quickstart holds instead of run.json, written at its end."""
LOOK_BACK = 5_000
"""Lines of metrics from the end in which a list looks for the last figures."""
SPEED_OVER = 20
"""Steps whose mean the speed in a list is."""

CURVES = {
    "loss": "loss (nats per token)",
    "bits_per_byte": "validation, bits per byte",
    "lr": "learning rate",
    "gradient_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}
"""What is drawn, with its title."""

_EVALUATED = {"bits_per_byte": "bits_per_byte"}
_MEASURED = {
    "loss": "loss",
    "lr": "lr",
    "rate": "lr",
    "gradient_norm": "gradient_norm",
    "tokens_per_second": "tokens_per_second",
    "tokens": "tokens",
}
"""Curves by their names in lines of metrics.jsonl."""


@dataclass(frozen=True)
class Run:
    """A line of the list. None: not known, or not measured yet."""

    name: str
    folder: Path
    model: str
    status: str
    step: int
    steps: int | None
    loss: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    updated: datetime
    """When it was last heard of."""


@dataclass(frozen=True)
class Curve:
    """Values over steps, or over millions of tokens."""

    steps: list[float]
    values: list[float]


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step."""

    step: float
    kind: Literal["event", "restart", "return"]
    text: str


@dataclass(frozen=True)
class History:
    """All curves of a run by the names of `CURVES`, those without a value left out, and its marks."""

    name: str
    curves: Mapping[str, Curve]
    marks: Sequence[Mark]
    tokens: Curve
    """How many were read after each step."""

    def over_tokens(self) -> History:
        """The same with millions of tokens in place of steps."""

        def moved(steps: Sequence[float]) -> list[float]:
            return [float(x) / 1e6 for x in np.interp(steps, self.tokens.steps, self.tokens.values)]

        curves = {name: replace(curve, steps=moved(curve.steps)) for name, curve in self.curves.items()}
        return replace(
            self, curves=curves, marks=[replace(mark, step=moved([mark.step])[0]) for mark in self.marks]
        )


def find(folder: Path) -> list[Run]:
    """The runs in a folder and one level deeper, or the folder's own if it is one; the latest first."""
    names = (run_status.FILE, QUICKSTART)
    found = {
        file.parent for name in names for depth in ("", "*/", "*/*/") for file in folder.glob(depth + name)
    }
    runs = [run for each in found if (run := _run(each, folder)) is not None]
    return sorted(runs, key=lambda run: (run.updated, run.name), reverse=True)


def folder_of(word: str, runs: Path) -> Path:
    """A run that is named by its folder, or by its name in `runs`. Raises `DaybreakError` if there is
    none."""
    for folder in (Path(word), runs / word):
        if any((folder / name).is_file() for name in (run_status.FILE, QUICKSTART, metrics.FILE)):
            return folder
    known = [run.name for run in find(runs)]
    there = f"; {runs} has {', '.join(known)}" if known else f"; there are no runs in {runs}"
    raise DaybreakError(f"{word} is no run{nearest(word, known) or there}")


def history(folder: Path) -> History:
    """Everything that metrics.jsonl says. Lines that are damaged are passed over. Raises `DaybreakError`
    where nothing was measured."""
    curves = {name: Curve([], []) for name in (*CURVES, "tokens")}
    marks: list[Mark] = []
    try:
        with (folder / metrics.FILE).open("rb") as stream:
            for text in stream:
                if (line := metrics.parsed(text)) is not None:
                    _collect(line, curves, marks)
    except OSError as error:
        raise DaybreakError(f"{folder / metrics.FILE} cannot be read: {error.strerror or error}") from None
    tokens = curves.pop("tokens")
    measured = {name: curve for name, curve in curves.items() if curve.steps}
    if not measured:
        raise DaybreakError(f"{folder} has measured nothing yet; a run's first step takes a moment")
    return History(folder.resolve().name, measured, marks, tokens)


def _collect(line: Mapping[str, Any], curves: Mapping[str, Curve], marks: list[Mark]) -> None:
    step = line["step"]
    for name, value in _figures(line):
        curves[name].steps.append(step)
        curves[name].values.append(float(value))
    if line.get("event"):
        marks.append(Mark(step, "event", str(line["event"])))
    if line.get("session", 1) > 1:
        marks.append(Mark(step, "restart", f"session {line['session']}"))
    if "rolled_back" in line:
        marks.append(Mark(step, "return", f"back from step {line['rolled_back'].get('from')}"))


def _figures(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What one line has of each curve; what was not finite is null. A quickstart's learning rate is a share
    of its highest."""
    if "evaluation" in line:
        sources = line["evaluation"]
        line = sources.get("all") or next(iter(sources.values()), {})
        names = _EVALUATED
    else:
        names = _MEASURED
    for key, name in names.items():
        value = line.get(key)
        if isinstance(value, int | float):
            yield name, value


def _run(folder: Path, among: Path) -> Run | None:
    status = RunStatus.read(folder)
    name = folder.relative_to(among).as_posix() if folder != among else folder.resolve().name
    if status is None:
        return _quickstart(folder, name)
    loss, bits, speed, step = _last(folder / metrics.FILE)
    return Run(
        name=name,
        folder=folder,
        model=str(status.about.get("size") or status.about.get("family") or "?"),
        status=status.now,
        step=max(step, status.step) if status.now in ("running", "killed") else status.step,
        steps=status.steps,
        loss=loss,
        bits_per_byte=bits,
        tokens_per_second=speed,
        updated=datetime.strptime(status.updated, run_status.TIME).replace(tzinfo=UTC),
    )


def _quickstart(folder: Path, name: str) -> Run | None:
    file = folder / QUICKSTART
    try:
        report = json.loads(file.read_bytes())
        loss, _, _, _ = _last(folder / metrics.FILE)
        return Run(
            name=name,
            folder=folder,
            model=str(report["settings"]["family"]),
            status="finished" if report["finished"] else "stopped",
            step=report["steps"],
            steps=report["settings"]["steps"],
            loss=loss,
            bits_per_byte=report["bits_per_byte"],
            tokens_per_second=None,
            updated=datetime.fromtimestamp(file.stat().st_mtime, UTC),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _last(file: Path) -> tuple[float | None, float | None, float | None, int]:
    """The last loss, the last bits per byte, the speed of the last steps, and the last step."""
    loss, bits, step, speeds = None, None, 0, list[float]()
    try:
        for number, (_, text) in enumerate(metrics.lines_backwards(file)):
            line = metrics.parsed(text)
            if number > LOOK_BACK or (None not in (loss, bits) and len(speeds) >= SPEED_OVER):
                break
            if line is None:
                continue
            step, figures = max(step, line["step"]), dict(_figures(line))
            loss = figures.get("loss") if loss is None else loss
            bits = figures.get("bits_per_byte") if bits is None else bits
            if "tokens_per_second" in figures and len(speeds) < SPEED_OVER:
                speeds.append(figures["tokens_per_second"])
    except OSError:
        pass
    return loss, bits, sum(speeds) / len(speeds) if speeds else None, step
