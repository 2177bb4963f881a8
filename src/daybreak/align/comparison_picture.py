"""Win rate over divergence as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from daybreak.align.comparison import Row

COLOUR, BOUND = "#2a6f97", "#999999"


def picture(rows: Sequence[Row], file: Path) -> None:
    """One mark for each policy with its interval of 95 %; best of n, whose divergence is a bound, as a grey
    arrow to where it truly lies. Written as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0.5, color="#bbbbbb", linewidth=0.8)
    for number, row in enumerate(sorted(rows, key=lambda row: row.kl)):
        colour = BOUND if row.kl_is_bound else COLOUR
        reach = [[row.win_rate - row.low], [row.high - row.win_rate]]
        axes.errorbar(
            [row.kl],
            [row.win_rate],
            yerr=reach,
            fmt="<" if row.kl_is_bound else "o",
            color=colour,
            markersize=6,
            linewidth=1,
            capsize=3,
        )
        beside = (7, -13 if number % 2 else 5)  # so that the names of neighbours do not meet
        axes.annotate(row.name, (row.kl, row.win_rate), xytext=beside, textcoords="offset points", fontsize=9)
    axes.scatter([0.0], [0.5], marker="x", color="#333333")
    axes.annotate("reference", (0.0, 0.5), xytext=(7, -12), textcoords="offset points", fontsize=9)
    axes.set(
        xlabel="KL divergence from the reference (nats per answer; best of n: at most)",
        ylabel="win rate against the reference",
        ylim=(0, 1.03),
    )
    widest = max([1e-3, *(row.kl for row in rows)])
    axes.set_xlim(-0.03 * widest, 1.2 * widest)  # with room for the names
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
