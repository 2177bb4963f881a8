"""Statistics of a data set as a picture: tokens by source and language, lengths, bytes per token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daybreak.errors import DaybreakError

MOST = 20
"""Bars of a panel; the rest becomes one."""
BLUE, GREY = "#3b6ea5", "#9aa5b1"


def picture(found: Mapping[str, Any], file: Path) -> None:
    """Draw `statistics` into a file; the ending decides the format. Raises `DaybreakError` for another."""
    from matplotlib.figure import Figure

    rows = max(3, min(MOST, max(len(found["sources"]), len(found["languages"]))))
    figure = Figure(figsize=(11, 3.4 + 0.45 * rows), layout="constrained")
    panels = figure.subplots(2, 2)
    total = found["total"]
    figure.suptitle(
        f"{total['tokens']:,} tokens, {total['documents']:,} documents, "
        f"{total['bytes'] / 1e6:,.1f} MB, {total['bytes_per_token'] or 0:.2f} bytes per token"
    )
    _bars(panels[0, 0], "tokens by source", _top(found["sources"], "tokens"))
    _bars(panels[0, 1], "tokens by language", _top(found["languages"], "tokens"))
    _lengths(panels[1, 0], found["lengths"])
    rates = {name: each["bytes_per_token"] or 0.0 for name, each in found["languages"].items()}
    _bars(panels[1, 1], "bytes per token, by language", dict(list(rates.items())[:MOST]))
    try:
        figure.savefig(file, dpi=130)
    except ValueError as error:
        raise DaybreakError(f"{file}: {' '.join(str(error).split())}") from None


def _top(groups: Mapping[str, Any], key: str) -> dict[str, float]:
    ordered = sorted(((name, each[key]) for name, each in groups.items()), key=lambda item: -item[1])
    top = dict(ordered[:MOST])
    if len(ordered) > MOST:
        top[f"{len(ordered) - MOST} others"] = sum(value for _, value in ordered[MOST:])
    return top


def _bars(axes: Any, title: str, values: Mapping[str, float]) -> None:
    names = list(values)[::-1]
    bars = axes.barh(names, [values[name] for name in names], color=BLUE)
    axes.bar_label(bars, [_short(values[name]) for name in names], padding=3, fontsize=8)
    axes.set_title(title, loc="left")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(lambda value, place: _short(value))
    axes.spines[["top", "right"]].set_visible(False)


def _short(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _lengths(axes: Any, lengths: list[dict[str, int]]) -> None:
    names = [f"{each['from']:,}" for each in lengths]
    axes.bar(names, [each["documents"] for each in lengths], color=GREY, width=0.9)
    axes.set_title("documents by length in tokens, from", loc="left")
    axes.yaxis.set_major_formatter(lambda value, place: _short(value))
    axes.spines[["top", "right"]].set_visible(False)
