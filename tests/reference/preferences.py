"""Losses of preferences, one pair at a time in Python's own numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations


def log_sigmoid(number: float) -> float:
    return -math.log1p(math.exp(-number)) if number > 0 else number - math.log1p(math.exp(number))


def ranking(scores: Sequence[float], values: Sequence[float]) -> float:
    """One prompt's loss: each pair once, the better answer first, ties left out."""
    total = 0.0
    for a, b in combinations(range(len(scores)), 2):
        if values[a] != values[b]:
            winner, loser = (a, b) if values[a] > values[b] else (b, a)
            total -= log_sigmoid(scores[winner] - scores[loser])
    return total / math.comb(len(scores), 2)


def dpo(chosen: float, rejected: float, beta: float, smoothing: float = 0.0) -> float:
    margin = beta * (chosen - rejected)
    return -(1 - smoothing) * log_sigmoid(margin) - smoothing * log_sigmoid(-margin)


def hinge(chosen: float, rejected: float, beta: float) -> float:
    return max(0.0, 1 - beta * (chosen - rejected))


def ipo(chosen: float, rejected: float, beta: float, lengths: tuple[int, int]) -> float:
    """Of sums over tokens, and how many tokens these are."""
    return (chosen / lengths[0] - rejected / lengths[1] - 1 / (2 * beta)) ** 2


def kto(
    ratios: Sequence[float], desirable: Sequence[bool], mismatched: Sequence[float], beta: float
) -> list[float]:
    reference = max(0.0, sum(mismatched) / len(mismatched))
    return [
        1 - 1 / (1 + math.exp(-beta * ((ratio - reference) if liked else (reference - ratio))))
        for ratio, liked in zip(ratios, desirable, strict=True)
    ]
