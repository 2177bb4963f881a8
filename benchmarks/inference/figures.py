"""What was measured, and what follows from it: medians, spreads, shares of the roof."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

BATCHES = (1, 4, 16)
FIRST, PREFILL, MEMORY, LOAD, COLD = "first_token", "prefill", "memory", "load", "cold_start"


def decode(batch: int) -> str:
    """The name of the figure: new tokens a second, of all texts together."""
    return f"decode_{batch}"


class Middle(NamedTuple):
    """A median and how far the samples lie apart."""

    median: float
    low: float
    high: float


def middle(samples: Sequence[float]) -> Middle | None:
    return Middle(statistics.median(samples), min(samples), max(samples)) if samples else None


@dataclass
class Record:
    """One configuration on one shape."""

    key: str
    title: str
    exact: bool = False
    """In float32, so that greedy tokens can be compared."""
    timed: bool = True
    """Otherwise only tokens are compared."""
    read: int = 0
    """Bytes of weights that a step reads."""
    samples: dict[str, list[float]] = field(default_factory=dict)
    """By figure: seconds, tokens a second, or bytes."""
    problem: str | None = None
    """Why figures are missing."""
    same: list[int] | None = None
    """Of each text of a batch, how many greedy tokens are the reference's before the first that is not."""

    @property
    def place(self) -> tuple[bool, str]:
        """The smallest is the reference: of those in float32 daybreak."""
        return not self.exact, {"daybreak-float32": ""}.get(self.key, self.key)

    def add(self, figure: str, value: float) -> None:
        self.samples.setdefault(figure, []).append(value)

    def middle(self, figure: str) -> Middle | None:
        return middle(self.samples.get(figure, []))

    def share(self, batch: int, roof: float) -> float | None:
        """Of the tokens a second at which reading the weights would take all the time; `roof` in bytes a
        second."""
        found = self.middle(decode(batch))
        return None if found is None or not self.read else found.median * self.read / (batch * roof)


@dataclass
class Measured:
    """One shape."""

    shape: str
    title: str
    records: list[Record]
    new: list[int] = field(default_factory=list)
    """Tokens that were written after each prompt, for each of BATCHES; those of the last are compared."""
    roofs: list[float] = field(default_factory=list)
    """Bytes a second, measured in every round."""
    rounds: int = 0
    problem: str | None = None
    """Why there is nothing, or not all."""

    @property
    def keys(self) -> list[str]:
        return [record.key for record in self.records]

    @property
    def roof(self) -> float | None:
        return statistics.median(self.roofs) if self.roofs else None


@dataclass
class Report:
    """A whole run."""

    machine: dict[str, Any]
    plan: dict[str, Any]
    shapes: list[Measured]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Report:
        shapes = [
            Measured(**{**shape, "records": [Record(**record) for record in shape["records"]]})
            for shape in told["shapes"]
        ]
        return cls(told["machine"], told["plan"], shapes)


def leading(texts: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> list[int]:
    """Of each text, the tokens before the first that differs."""
    return [
        next((i for i, pair in enumerate(zip(*both, strict=True)) if pair[0] != pair[1]), len(both[0]))
        for both in zip(texts, reference, strict=True)
    ]
