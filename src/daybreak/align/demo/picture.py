"""How the runs of the demo went, as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = {
    "score": "score (reward model, penalty where cut off)",
    "kl": "KL from the reference (nats per answer)",
    "entropy": "entropy (nats per token)",
    "length": "tokens of an answer",
    "ended": "share of answers that end",
    "explained_variance": "variance that the values explain",
}
COLOURS = ("#2a6f97", "#c1121f", "#588157")


def curves(runs: Mapping[str, Sequence[Path]], file: Path) -> None:
    """Figures over iterations, a colour for each kind of run and a line for each seed; written as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.subplots(2, 3).flatten()
    for axes, (key, title) in zip(grid, PANELS.items(), strict=True):
        for colour, (name, folders) in zip(COLOURS, runs.items(), strict=False):
            for number, folder in enumerate(folders):
                rows = [row for row in iterations(folder) if row.get(key) is not None]
                steps, values = [row["step"] for row in rows], [row[key] for row in rows]
                label = name if number == 0 else None
                axes.plot(steps, values, color=colour, alpha=0.8, linewidth=1.3, label=label)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
    grid[0].legend(fontsize=8)
    for axes in grid[3:]:
        axes.set_xlabel("iteration", fontsize=9)
    figure.savefig(file, dpi=110)


def iterations(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that are iterations."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [row for row in map(json.loads, text.splitlines()) if "score" in row]
