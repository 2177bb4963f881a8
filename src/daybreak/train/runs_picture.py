"""Curves of runs as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from daybreak.errors import DaybreakError
from daybreak.train.runs import CURVES, Curve, History

Numbers = np.ndarray[Any, Any]
COLOURS = ("#2a6f97", "#c8553d", "#588157", "#8e6c8a", "#d4a017", "#4a4e69", "#17a2a2", "#a0522d")
MARKS = {"event": ("v", "spike"), "restart": ("|", "restart"), "return": ("<", "return to a checkpoint")}
SPAN = 0.02
"""The strong line is the median over this share of the curve..."""
PLACES = 400
"""...at so many places."""
MOST = 4000
"""Points of the faint line; of a longer one the lowest and highest of each stretch stay."""
SMOOTH = ("lr",)
"""Curves that have no noise."""
FEW = 60
"""So few points are shown one by one."""


def picture(histories: Sequence[History], unit: str, file: Path) -> None:
    """Draw the curves of some runs into a file; its ending decides the format (png, svg, pdf).

    Raises `DaybreakError` for another ending, and where it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.2), layout="constrained")
    panels = figure.subplot_mosaic(
        [["loss", "loss"], ["bits_per_byte", "lr"], ["gradient_norm", "tokens_per_second"]],
        height_ratios=[1.6, 1, 1],
    )
    for name, title in CURVES.items():
        axes = panels[name]
        for number, history in enumerate(histories):
            if name in history.curves:
                _draw(axes, name, history.curves[name], COLOURS[number % len(COLOURS)])
        _dress(axes, name, title, [each.curves[name] for each in histories if name in each.curves])
        axes.set_xlim(*_reach(histories))
        axes.set_xlabel(unit, fontsize=9)
    for number, history in enumerate(histories):
        _mark(panels["loss"], history, COLOURS[number % len(COLOURS)], number)
    _legend(panels["loss"], histories)
    try:
        figure.savefig(file, dpi=130)
    except ValueError as error:
        raise DaybreakError(f"{file}: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise DaybreakError(f"{file} cannot be written: {error.strerror or error}") from None


def _draw(axes: Any, name: str, curve: Curve, colour: str) -> None:
    steps, values = np.array(curve.steps), np.array(curve.values)
    if len(values) <= FEW:
        axes.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=3.5)
        return
    few = _extremes(values)
    if name in SMOOTH:
        axes.plot(steps[few], values[few], color=colour, linewidth=1.7)
        return
    axes.plot(steps[few], values[few], color=colour, alpha=0.28, linewidth=0.7)
    axes.plot(*_smooth(steps, values), color=colour, linewidth=1.7)


def _extremes(values: Numbers) -> Numbers:
    """The places of the lowest and the highest of each stretch, so that no spike is thinned away."""
    if len(values) <= MOST:
        return np.arange(len(values))
    starts = np.linspace(0, len(values), MOST // 2 + 1).astype(int)
    pairs = pairwise(starts)
    return np.unique(
        [first + find(values[first:last]) for first, last in pairs for find in (np.argmin, np.argmax)]
    )


def _smooth(steps: Numbers, values: Numbers) -> tuple[Numbers, Numbers]:
    """Running medians, which a spike does not move. At the start, where a loss falls fast, they are over as
    many values after a place as there are before it."""
    reach = max(1, round(len(values) * SPAN / 2))
    places = np.unique(np.linspace(0, len(values) - 1, PLACES).astype(int))
    parts = (values[max(0, place - reach) : place + min(reach, place) + 1] for place in places)
    return steps[places], np.array([np.median(part) for part in parts])


def _dress(axes: Any, name: str, title: str, curves: Sequence[Curve]) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if not curves:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#888888")
        axes.set_yticks([])
        return
    values = np.concatenate([curve.values for curve in curves])
    if name == "tokens_per_second":
        axes.set_ylim(0, 1.1 * max(float(values.max()), 1.0))
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
    elif name in ("loss", "gradient_norm") and values.min() > 0 and values.max() > 2.5 * values.min():
        _logarithmic(axes, wide=bool(values.max() > 30 * values.min()))


def _logarithmic(axes: Any, wide: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    digits = (1.0, 2.0, 5.0) if wide else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    axes.yaxis.set_major_locator(LogLocator(subs=digits, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _reach(histories: Sequence[History]) -> tuple[float, float]:
    curves = [curve for each in histories for curve in each.curves.values()]
    steps = [step for curve in curves for step in (curve.steps[0], curve.steps[-1])]
    first, last = min(steps), max(steps)
    return first, last if last > first else first + 1


def _mark(axes: Any, history: History, colour: str, number: int) -> None:
    """Spikes and the like, in a row at the panel's foot for each run, and a line through it at restarts."""
    for kind, (sign, _) in MARKS.items():
        places = [mark.step for mark in history.marks if mark.kind == kind]
        if not places:
            continue
        height = 0.03 + 0.045 * number
        axes.plot(
            places,
            [height] * len(places),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker=sign,
            markersize=6,
            color=colour,
        )
        if kind != "event":
            for place in places:
                axes.axvline(place, color=colour, alpha=0.35, linewidth=0.8, linestyle=(0, (4, 3)))


def _legend(axes: Any, histories: Sequence[History]) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], color=COLOURS[number % len(COLOURS)], linewidth=1.7, label=each.name)
        for number, each in enumerate(histories)
    ]
    found = {mark.kind for each in histories for mark in each.marks}
    for kind, (sign, name) in MARKS.items():
        if kind in found:
            handles.append(
                Line2D([], [], color="#555555", marker=sign, linestyle="none", markersize=6, label=name)
            )
    axes.legend(handles=handles, loc="upper right", fontsize=8, framealpha=0.9)
