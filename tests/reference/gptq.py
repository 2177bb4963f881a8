"""GPTQ row by row and weight by weight, as equations 2 and 3 of its paper (arXiv 2210.17323) have it: after
each weight the inverse is made anew, of the Hessian of those that are left. float64, loops, no factors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def damped(hessian: Tensor, damping: float = 0.01) -> Tensor:
    found = hessian.double().clone()
    mean = float(found.diagonal().mean())
    for place in range(len(found)):
        if found[place, place] <= 0:
            found[place, place] = mean
        found[place, place] += damping * mean
    return found


def rounded(
    weight: Tensor, hessian: Tensor, scales: Tensor, zeros: Tensor, group: int, first: int, last: int
) -> Tensor:
    """Numbers [rows, width] for `weight` [rows, width]; scales and zeros are [rows, groups]. The largest
    diagonal of the Hessian comes first."""
    whole = damped(hessian)
    order = sorted(range(len(whole)), key=lambda place: -float(hessian[place, place]))
    numbers = torch.zeros(weight.shape, dtype=torch.int64)
    for row in range(len(weight)):
        left = weight[row].double().clone()
        for done, place in enumerate(order):
            scale, zero = float(scales[row, place // group]), float(zeros[row, place // group])
            number = min(max(round(float(left[place]) / (scale or 1.0) + zero), first), last)
            numbers[row, place] = number
            rest = order[done:]
            inverse = torch.linalg.inv(whole[rest][:, rest])
            error = (float(left[place]) - (number - zero) * scale) / float(inverse[0, 0])
            for index, other in enumerate(rest):
                left[other] -= error * float(inverse[0, index])
    return numbers


def weighted(weight: Tensor, found: Tensor, hessian: Tensor) -> float:
    """What the products lose, squared, in the mean of the inputs that the Hessian is of."""
    off = weight.double() - found.double()
    return float(((off @ hessian.double()) * off).sum())


def best_share(
    values: list[float], weights: list[float], shares: tuple[float, ...], last: int, middle: int
) -> tuple[float, float]:
    """Scale and squared error of one group without zero points: each share of the largest weight is tried."""
    found = []
    for share in shares:
        scale = max(abs(value) for value in values) * share / (last - middle)
        loss = 0.0
        for value, weight in zip(values, weights, strict=True):
            number = min(max(round(value / (scale or 1.0)), 1 - middle), last - middle)
            loss += weight * (number * scale - value) ** 2
        found.append((loss, scale))
    return min(found, key=lambda one: one[0])[1], min(found)[0]
