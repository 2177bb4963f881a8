"""How far training is, and the learning rate there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol


class Budget(Protocol):
    """What limits a run."""

    def fraction(self, step: int) -> float:
        """How much is used up before `step` (from 0); training ends at 1."""


@dataclass(frozen=True)
class Steps:
    """A number of steps: the same seed gives the same model."""

    total: int

    def fraction(self, step: int) -> float:
        return step / self.total


@dataclass(frozen=True)
class Seconds:
    """A stretch of time from now, however many steps a machine takes in it."""

    total: float
    started: float = field(default_factory=time.perf_counter)

    def fraction(self, step: int) -> float:
        del step
        return (time.perf_counter() - self.started) / self.total


def linear(fraction: float, warmup: float = 0.02) -> float:
    """Factor on the learning rate: up during `warmup`, then down to 0 in a straight line.

    On a short run linear decay to zero beats the cosine with a floor (Bergsma et al., arXiv 2502.15938).
    """
    return min((fraction + 1e-3) / (warmup + 1e-3), (1 - fraction) / (1 - warmup))
