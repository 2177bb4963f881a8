"""Weights of 8 or 4 bits: small whole numbers, with a scale for each row or for each group of a row's inputs.

Per row is GLM-130B's scheme (Zeng et al. 2022, section 3.4); groups follow llama.cpp and AWQ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from daybreak.errors import DaybreakError

MIDDLE = {8: 128, 4: 8}
"""The number that stands for 0 where a group has no zero point of its own."""
GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class Scheme:
    """How weights are quantised."""

    bits: Literal[8, 4] = 8
    group: int | None = None
    """Inputs that share a scale; None: all of a row."""
    zeros: bool = False
    """Numbers lie between a group's least and largest weight, instead of around 0."""
    embeddings: bool = False
    """The token embedding is quantised as well."""

    def __post_init__(self) -> None:
        if self.bits not in MIDDLE:
            raise DaybreakError(f"weights of {self.bits} bits are not supported; say 8 or 4")
        if self.group is not None and self.group not in GROUPS:
            raise DaybreakError(
                f"groups of {self.group} inputs are not supported; say 32, 64 or 128, or none"
            )

    @classmethod
    def usual(cls, bits: int, embeddings: bool = False) -> Scheme:
        """What is used where nothing else is said: with 4 bits a scale for each row would be too coarse."""
        return cls(bits, None if bits == 8 else 32, embeddings=embeddings)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Quantised:
    """A matrix [rows, inputs] in few bits: weight = (number - zero) * scale."""

    numbers: Tensor
    """uint8 [rows, inputs]: 1 to 255 with 8 bits, 0 to 15 with 4 (1 to 15 without zero points)."""
    scales: Tensor
    """float32 [rows, groups]."""
    zeros: Tensor | None
    """float32 [rows, groups]; None: `MIDDLE` everywhere."""
    bits: int
    group: int | None

    @property
    def shape(self) -> torch.Size:
        return self.numbers.shape

    def whole(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights that the numbers stand for, [rows, inputs]."""
        rows, width = self.shape
        groups, group = self.scales.shape[1], self.group or width
        zeros = (
            self.scales.new_full((), MIDDLE[self.bits])
            if self.zeros is None
            else self._wide(self.zeros, group)
        )
        values = (self.numbers - zeros) * self._wide(self.scales, group)
        assert values.shape == (rows, width) and groups == -(-width // group)
        return values.to(dtype)

    def _wide(self, values: Tensor, group: int) -> Tensor:
        return values.repeat_interleave(group, 1)[:, : self.shape[1]]


def quantise(weight: Tensor, scheme: Scheme, name: str = "a matrix") -> Quantised:
    """The nearest numbers for `weight` [rows, inputs], of any dtype.

    The scale is the largest weight's of a group divided by the largest number, so that nothing is cut off.
    Raises `DaybreakError` with the `name` for weights that are not finite.
    """
    rows, width = weight.shape
    group = scheme.group or width
    groups = -(-width // group)
    values = torch.zeros(rows, groups * group)
    values[:, :width] = weight
    values = values.view(rows, groups, group)
    middle = MIDDLE[scheme.bits]
    first = 0 if scheme.zeros and scheme.bits == 4 else 1
    last = 2 * middle - 1
    if scheme.zeros:
        # A weight of 0 stays 0: inputs that are always 0 must not shift a sum.
        least, most = values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)
        scales = (most - least) / (last - first)
        zeros = (first - least / _not_zero(scales)).round()
    else:
        scales = values.abs().amax(-1) / (last - middle)
        zeros = torch.full_like(scales, middle)
    if not scales.isfinite().all():  # a largest weight is infinite or NaN where one is
        raise DaybreakError(f"{name} has weights that are not finite, so it cannot be quantised")
    numbers = values.div_(_not_zero(scales)[..., None]).add_(zeros[..., None]).round_().clamp_(first, last)
    numbers = numbers.to(torch.uint8).flatten(1)[:, :width]
    return Quantised(numbers, scales, zeros if scheme.zeros else None, scheme.bits, scheme.group)


def _not_zero(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, scales, 1.0)
