"""Proximal policy optimisation, a token at a time in Python's own numbers; an answer is a list of tokens'
figures, without padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def rewards(score: float, logprobs: Sequence[float], reference: Sequence[float], beta: float) -> list[float]:
    """Of one answer."""
    found = [-beta * (own - other) for own, other in zip(logprobs, reference, strict=True)]
    if found:
        found[-1] += score
    return found


def advantages(
    rewards: Sequence[float], values: Sequence[float], discount: float, decay: float
) -> list[float]:
    """Of one answer, by the definition: the discounted sum of all later surprises."""
    count = len(rewards)
    expected = [*values, 0.0]
    surprises = [rewards[t] + discount * expected[t + 1] - values[t] for t in range(count)]
    return [sum((discount * decay) ** (k - t) * surprises[k] for k in range(t, count)) for t in range(count)]


def mean(rows: Rows) -> float:
    numbers = [number for row in rows for number in row]
    return sum(numbers) / max(1, len(numbers))


def whiten(rows: Rows, shift_mean: bool) -> list[list[float]]:
    middle = mean(rows)
    variance = mean([[(number - middle) ** 2 for number in row] for row in rows])
    scale = 1 / math.sqrt(variance + 1e-8)
    return [[(number - middle) * scale + (0.0 if shift_mean else middle) for number in row] for row in rows]


def policy_loss(logprob: float, before: float, advantage: float, clip: float) -> float:
    ratio = math.exp(logprob - before)
    held = min(max(ratio, 1 - clip), 1 + clip)
    return -min(ratio * advantage, held * advantage)


def value_loss(value: float, before: float, wanted: float, clip: float) -> float:
    held = min(max(value, before - clip), before + clip)
    return max((value - wanted) ** 2, (held - wanted) ** 2) / 2


def k3(logprob: float, reference: float) -> float:
    return math.exp(reference - logprob) - 1 - (reference - logprob)
