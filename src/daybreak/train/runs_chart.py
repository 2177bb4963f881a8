"""Curves in letters, for terminals: one run in dots of Braille, several with a letter for each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from daybreak.train.runs import CURVES, Curve, History

STEPS = "steps"
WIDTH = 84
"""Columns of a chart, without its scale."""
HEIGHTS = {"loss": 10}
"""Rows of a chart; others have `HEIGHT`."""
HEIGHT = 5
SCALE = 9
"""Columns of the scale."""
LOGARITHMIC = 2.5
"""Losses and norms that span more than this factor are drawn on a logarithmic scale."""
MARKS = {"event": "!", "restart": "|", "return": "<"}
"""Under the loss: spikes, restarts, returns to a checkpoint."""
LISTED = 12
"""Marks that are also told in words."""
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""A Braille letter's dots by row and column, as bits of its place in Unicode from U+2800 on."""


def charts(histories: Sequence[History], unit: str, braille: bool = True) -> list[str]:
    """The curves of some runs, below each other, as lines. `unit` is what they run over; without `braille`
    all signs are ASCII."""
    alone = len(histories) == 1
    lines = [
        each.name if alone else f"{_letter(number)}  {each.name}" for number, each in enumerate(histories)
    ]
    reach = _reach(histories)
    for name, title in CURVES.items():
        curves = {number: each.curves[name] for number, each in enumerate(histories) if name in each.curves}
        if not curves:
            continue
        lines += ["", title + _figures(curves, len(histories), name, unit)]
        lines += _chart(curves, name, reach, braille and alone)
        if name == "loss":
            lines += [
                f"{'' if alone else _letter(number):>{SCALE}}  {_marks(each, reach)}"
                for number, each in enumerate(histories)
                if each.marks
            ]
        lines.append(_axis(reach, unit))
    return lines + _told(histories, unit)


def _reach(histories: Sequence[History]) -> tuple[float, float]:
    steps = [step for each in histories for curve in each.curves.values() for step in curve.steps]
    return min(steps), max(steps)


def _figures(curves: Mapping[int, Curve], runs: int, name: str, unit: str) -> str:
    """The last value of each, and where the lowest of a loss was."""
    told = []
    for number, curve in curves.items():
        text = f"{_letter(number)} " if runs > 1 else ""
        text += f"last {_short(curve.values[-1])}"
        if name in ("loss", "bits_per_byte"):
            at = min(range(len(curve.values)), key=curve.values.__getitem__)
            text += f", lowest {_short(curve.values[at])} at {_place(curve.steps[at], unit)}"
        told.append(text)
    return ": " + "; ".join(told)


def _chart(curves: Mapping[int, Curve], name: str, reach: tuple[float, float], braille: bool) -> list[str]:
    wide, high = (2, 4) if braille else (1, 1)
    height = HEIGHTS.get(name, HEIGHT)
    binned = {number: _bins(curve, reach, WIDTH * wide) for number, curve in curves.items()}
    values = [value for bins in binned.values() for value in bins.values()]
    low, high_value = min(values), max(values)
    if name == "tokens_per_second":
        low = 0.0  # a speed's noise is not its story
    logarithmic = name in ("loss", "gradient_norm") and low > 0 and high_value / low > LOGARITHMIC
    scale = _Scale(low, high_value, logarithmic, height * high)
    cells: dict[tuple[int, int], str] = {}
    for number, bins in binned.items():
        for column, row in _line(bins, scale):
            place = (row // high, column // wide)
            if braille:
                before = ord(cells.get(place, "\u2800"))
                cells[place] = chr(before | _DOTS[row % high][column % wide])
            else:
                cells[place] = _letter(number) if len(curves) > 1 else "*"
    return [
        f"{_label(scale, row, height):>{SCALE}} |"
        + "".join(cells.get((row, column), " ") for column in range(WIDTH)).rstrip()
        for row in range(height)
    ]


class _Scale:
    """From values to rows, the highest value in row 0."""

    def __init__(self, low: float, high: float, logarithmic: bool, rows: int) -> None:
        self._logarithmic = logarithmic
        self._low, self._high = self._of(low), self._of(high)
        self._rows = rows

    def _of(self, value: float) -> float:
        return math.log(value) if self._logarithmic else value

    def row(self, value: float) -> int:
        if self._high == self._low:
            return self._rows // 2
        share = (self._high - self._of(value)) / (self._high - self._low)
        return round(share * (self._rows - 1))

    def value(self, share: float) -> float:
        """At this share of the height, from the top."""
        inside = self._high - share * (self._high - self._low)
        return math.exp(inside) if self._logarithmic else inside


def _bins(curve: Curve, reach: tuple[float, float], columns: int) -> dict[int, float]:
    """The mean of the values in each column that has some."""
    found: dict[int, list[float]] = {}
    for step, value in zip(curve.steps, curve.values, strict=True):
        found.setdefault(_column(step, reach, columns), []).append(value)
    return {column: sum(values) / len(values) for column, values in sorted(found.items())}


def _column(step: float, reach: tuple[float, float], columns: int) -> int:
    first, last = reach
    return 0 if last == first else round((step - first) / (last - first) * (columns - 1))


def _line(bins: Mapping[int, float], scale: _Scale) -> Iterator[tuple[int, int]]:
    """The dots of a line through the values: (column, row)."""
    points = [(column, scale.row(value)) for column, value in bins.items()]
    yield from points[:1]
    for (column, row), (next_column, next_row) in pairwise(points):
        steps = max(next_column - column, abs(next_row - row))
        for step in range(1, steps + 1):
            share = step / steps
            yield round(column + share * (next_column - column)), round(row + share * (next_row - row))


def _label(scale: _Scale, row: int, height: int) -> str:
    return _short(scale.value(row / (height - 1))) if row in (0, height // 2, height - 1) else ""


def _marks(history: History, reach: tuple[float, float]) -> str:
    row = [" "] * WIDTH
    for mark in history.marks:
        row[_column(mark.step, reach, WIDTH)] = MARKS[mark.kind]
    return "".join(row).rstrip()


def _axis(reach: tuple[float, float], unit: str) -> str:
    first, last = f"{reach[0]:,.4g}" if unit != STEPS else f"{reach[0]:,.0f}", _place(reach[1], unit)
    return f"{'':{SCALE}}  {first}{last:>{WIDTH - len(first)}}"


def _told(histories: Sequence[History], unit: str) -> list[str]:
    marks = []
    for number, each in enumerate(histories):
        run = f"{_letter(number)} " if len(histories) > 1 else ""
        marks += [f"{MARKS[mark.kind]}  {run}{_place(mark.step, unit)}: {mark.text}" for mark in each.marks]
    left = [f"   and {len(marks) - LISTED} before these"] if len(marks) > LISTED else []
    return ["", *left, *marks[-LISTED:]] if marks else []


def _place(step: float, unit: str) -> str:
    return f"step {step:,.0f}" if unit == STEPS else f"{step:.4g} {unit}"


def _letter(number: int) -> str:
    return chr(ord("A") + number % 26)


def _short(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    if 0 < abs(value) < 1e-3:
        written = (f"{value:.{digits}e}" for digits in (3, 2, 1, 0))
        return next(text for text in written if len(text) <= SCALE)
    return f"{value:.4g}"
