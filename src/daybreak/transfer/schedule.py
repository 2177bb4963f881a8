"""ULMFiT's rates: over the steps, over the layers, and which layers are trained at all."""

from __future__ import annotations

from collections.abc import Sequence


def slanted_triangle(step: int, steps: int, cut: float = 0.1, ratio: float = 32.0) -> float:
    """Factor on the highest rate in `step` (from 0) of `steps`: a short rise, a long fall (equation 3).

    Where the rise would be shorter than a step, the first one has the highest rate.
    """
    peak = max(1, int(steps * cut))
    if step < peak:
        share = step / peak if steps * cut >= 1 else 1.0
    else:
        # The paper's cut * (1 / cut_frac - 1) is the length of the fall where cut is no whole number, too.
        share = 1 - (step - peak) / max(1, steps - peak)
    return (1 + share * (ratio - 1)) / ratio


def discriminative(lr: float, groups: int, factor: float = 2.6) -> list[float]:
    """The highest rate of each group of layers, first to last: each the next one's divided by `factor`
    (section 3.2)."""
    return [lr / factor ** (groups - 1 - group) for group in range(groups)]


def thawed(epoch: int, groups: int) -> range:
    """Gradual unfreezing (section 3.3): the groups that are trained in `epoch` (from 0), the last one first
    and one more each time."""
    return range(max(0, groups - 1 - epoch), groups)


def stages(epochs: int, groups: int, gradual: bool) -> list[range]:
    """Epochs that share one triangle of rates: each in which a group is unfrozen, and those after."""
    if not gradual:
        return [range(epochs)]
    single = [range(epoch, epoch + 1) for epoch in range(min(epochs, groups - 1))]
    return single + ([range(groups - 1, epochs)] if epochs >= groups else [])


def stage_of(epoch: int, found: Sequence[range]) -> range:
    """The stage that an epoch belongs to."""
    return next(stage for stage in found if epoch in stage)
