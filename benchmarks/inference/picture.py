"""The figures as a picture: prefill, and decoding with the roof, one row of bars for each shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.inference.figures import PREFILL, Measured, Record, Report, decode
from benchmarks.inference.table import number

COLOURS = {"daybreak": "#2a6f97", "transformers": "#c8553d", "CTranslate2": "#588157", "llama.cpp": "#8e6c8a"}
PANELS = ((PREFILL, "prefill", None), (decode(1), "decode, batch 1", 1), (decode(16), "decode, batch 16", 16))
# Text stays text and names do not change, so that a picture of the same figures is the same file.
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "daybreak", "font.family": ["DejaVu Sans"]}


def draw(found: Report, file: Path) -> None:
    """Its ending decides the format."""
    import matplotlib
    from matplotlib.figure import Figure

    shapes = [shape for shape in found.shapes if any(record.samples for record in shape.records)]
    heights = [1.2 + sum(bool(record.samples) for record in shape.records) for shape in shapes]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(11, 0.5 + 0.23 * sum(heights)), layout="constrained")
        rows = figure.subplots(len(shapes), len(PANELS), squeeze=False, height_ratios=heights)
        for shape, row in zip(shapes, rows, strict=True):
            for axes, (name, title, batch) in zip(row, PANELS, strict=True):
                _bars(axes, shape, name, batch)
                first = axes is row[0]
                axes.set_title(f"{shape.title}: {title}" if first else title, loc="left", fontsize=9)
                axes.tick_params(left=False, labelleft=first, labelsize=8)
        figure.supxlabel("tokens a second; a line is the roof, where it is not far to the right", fontsize=9)
        figure.savefig(file, dpi=130, metadata={"Date": None} if file.suffix == ".svg" else None)


def _bars(axes: Any, shape: Measured, name: str, batch: int | None) -> None:
    records = [record for record in shape.records if record.samples][::-1]
    medians = [middle.median if (middle := record.middle(name)) else 0.0 for record in records]
    colours = [COLOURS[record.title.split()[0]] for record in records]
    bars = axes.barh([record.title for record in records], medians, color=colours, height=0.75)
    axes.bar_label(bars, [number(value) if value else "" for value in medians], padding=3, fontsize=8)
    right = 1.3 * max(medians, default=0.0) or 1.0
    for place, record in enumerate(records):
        if batch and (roof := _roof(record, shape, batch)) and roof < right:
            axes.plot([roof, roof], [place - 0.4, place + 0.4], color="#444444", linewidth=1.2)
    axes.set_xlim(0, right)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _roof(record: Record, shape: Measured, batch: int) -> float | None:
    """Tokens a second if a step took no longer than reading the weights."""
    return batch * shape.roof / record.read if shape.roof and record.read else None
