"""The loss curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from daybreak.quickstart.loop import Point

SPAN = 0.05
"""The smooth line is the mean over this share of the run."""


def loss_curve(points: Sequence[Point], file: Path, title: str) -> None:
    """Loss over tokens seen, as measured and smooth, with the learning rate's course behind it; written as
    PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    tokens = [point.tokens / 1e6 for point in points]
    losses = [point.loss for point in points]
    axes.plot(tokens, losses, color="#2a6f97", alpha=0.3, linewidth=0.8)
    axes.plot(tokens, _smooth(losses), color="#2a6f97", linewidth=1.8)
    axes.set(title=title, xlabel="tokens learned from (millions)", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    behind = axes.twinx()
    behind.fill_between(tokens, [point.rate for point in points], color="#999999", alpha=0.15, linewidth=0)
    behind.set(ylabel="learning rate (share of its highest)", ylim=(0, 1.02))
    figure.savefig(file, dpi=120)


def _smooth(values: Sequence[float]) -> list[float]:
    reach = round(len(values) * SPAN / 2)
    parts = [values[max(0, place - reach) : place + reach + 1] for place in range(len(values))]
    return [sum(part) / len(part) for part in parts]
