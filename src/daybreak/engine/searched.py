"""Scales that lose least: a few of the largest weights may be cut off if the many are met more exactly."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from daybreak.engine.quantised import MIDDLE, Scheme

SHARES = tuple(1 - 0.02 * step for step in range(21))
"""Of the range that cuts nothing off."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Between which numbers each group of each row may choose: weight = (number - zero) * scale."""

    scales: Tensor
    """float32 [groups, rows]; 0 where all weights are."""
    zeros: Tensor
    """float32 [groups, rows]."""
    first: int
    last: int

    def nearest(self, weights: Tensor, group: int | slice) -> Tensor:
        """The nearest numbers for weights [.., rows] of a group, or of some [groups, inputs, rows]."""
        scales, zeros = self._of(group)
        return (weights / torch.where(scales > 0, scales, 1.0) + zeros).round_().clamp_(self.first, self.last)

    def whole(self, numbers: Tensor, group: int | slice) -> Tensor:
        """The weights that they stand for."""
        scales, zeros = self._of(group)
        return (numbers - zeros) * scales

    def _of(self, group: int | slice) -> tuple[Tensor, Tensor]:
        if isinstance(group, slice):
            return self.scales[group, None], self.zeros[group, None]
        return self.scales[group], self.zeros[group]


def searched(weight: Tensor, importance: Tensor, scheme: Scheme) -> Grid:
    """The scales, and zero points, with the least squared error of rounding `weight` [width, rows] float32 to
    the nearest, each input's weighed by its `importance` [width]; inputs that are worth nothing count alike.
    """
    group = scheme.group or len(weight)
    values = by_groups(weight, group)  # [groups, group, rows]
    weights = by_groups(importance, group)[..., None]
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, 1.0)
    found = [_best(one[None], other[None], scheme) for one, other in zip(values, weights, strict=True)]
    scales, zeros = (
        torch.cat(parts) for parts in zip(*((one.scales, one.zeros) for one in found), strict=True)
    )
    return Grid(scales, zeros, found[0].first, found[0].last)


def _best(values: Tensor, weights: Tensor, scheme: Scheme) -> Grid:
    """Of one group, [1, group, rows]: what it takes stays in the processor's cache."""
    best, least = _grid(values, 1.0, scheme), None
    for share, between in product(SHARES, (False, True) if scheme.zeros else (False,)):
        tried = _grid(values, share, scheme, between)
        whole = tried.whole(tried.nearest(values, slice(None)), slice(None))
        off = whole.sub_(values).square_().mul_(weights).sum(1)  # [1, rows]
        if least is None:
            best, least = tried, off
            continue
        better = off < least
        least = torch.where(better, off, least)
        scales, zeros = (
            torch.where(better, new, old)
            for new, old in ((tried.scales, best.scales), (tried.zeros, best.zeros))
        )
        best = Grid(scales, zeros, tried.first, tried.last)
    return best


def _grid(values: Tensor, share: float, scheme: Scheme, between: bool = False) -> Grid:
    """As `quantise` has it, but for a `share` of the range; zero points may lie `between` whole numbers."""
    middle = MIDDLE[scheme.bits]
    first, last = 0 if scheme.zeros and scheme.bits == 4 else 1, 2 * middle - 1
    if not scheme.zeros:
        scales = values.abs().amax(1) * (share / (last - middle))
        return Grid(scales, torch.full_like(scales, middle), first, last)
    least, most = values.amin(1).clamp_(max=0) * share, values.amax(1).clamp_(min=0) * share
    scales = (most - least) / (last - first)
    zeros = first - least / torch.where(scales > 0, scales, 1.0)
    return Grid(scales, zeros if between else zeros.round_(), first, last)


def by_groups(values: Tensor, group: int) -> Tensor:
    """[width, ..] -> [groups, group, ..], what is beyond the last input 0."""
    groups = -(-len(values) // group)
    wide = values.new_zeros(groups * group, *values.shape[1:])
    wide[: len(values)] = values
    return wide.view(groups, group, *values.shape[1:])
