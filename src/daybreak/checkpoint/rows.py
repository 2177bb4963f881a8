"""Tensors that no file holds as such: put together from shards, or scaled from small integers. They are made
some rows at a time, so that none of them has to fit into memory twice.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daybreak.checkpoint.stored import Mapping, Rows, Stored, copy_serially
from daybreak.rules import Shape


@dataclass(frozen=True, eq=False)
class Mapped:
    """Rows as the file holds them."""

    stored: Stored
    mapping: Mapping

    @property
    def shape(self) -> Shape:
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    def read(self, first: int, last: int) -> Tensor:
        whole = self.mapping.tensor(self.stored)
        return whole[first:last] if self.stored.shape else whole  # a single number has no rows

    def release(self) -> None:
        self.mapping.release(self.stored)


@dataclass(frozen=True, eq=False)
class Section:
    """Some rows of another, as a tensor of its own."""

    whole: Rows
    start: int
    stop: int

    @property
    def shape(self) -> Shape:
        return (self.stop - self.start, *self.whole.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.whole.dtype

    def read(self, first: int, last: int) -> Tensor:
        return self.whole.read(self.start + first, min(self.start + last, self.stop))

    def release(self) -> None:
        self.whole.release()


@dataclass(frozen=True, eq=False)
class Stacked:
    """One below the other."""

    parts: Sequence[Rows]

    @property
    def shape(self) -> Shape:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    def read(self, first: int, last: int) -> Tensor:
        starts = [0, *itertools.accumulate(part.shape[0] for part in self.parts)]
        at = bisect.bisect_right(starts, first) - 1
        found = []
        while at < len(self.parts) and starts[at] < last:
            found.append(self.parts[at].read(max(first - starts[at], 0), last - starts[at]))
            at += 1
        return found[0] if len(found) == 1 else torch.cat(found)

    def release(self) -> None:
        for part in self.parts:
            part.release()


@dataclass(frozen=True, eq=False)
class Joined:
    """One beside the other."""

    parts: Sequence[Rows]

    @property
    def shape(self) -> Shape:
        return (self.parts[0].shape[0], sum(part.shape[1] for part in self.parts))

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    def read(self, first: int, last: int) -> Tensor:
        found = [part.read(first, last) for part in self.parts]
        columns = [part.shape[1] for part in found]
        made = torch.empty(found[0].shape[0], sum(columns), dtype=found[0].dtype)
        for piece, target in zip(found, torch.split(made, columns, dim=1), strict=True):
            copy_serially(piece, target)  # as `torch.cat`, whose threads wait for pages of the file
        return made

    def release(self) -> None:
        for part in self.parts:
            part.release()


@dataclass(frozen=True, eq=False)
class Scaled:
    """Whole numbers of eight or four bits times a scale for each row."""

    numbers: Rows
    """[rows, columns] int8; of four bits two to a byte, [rows, columns / 2]."""
    scales: Rows
    """[rows]"""
    bits: int

    @property
    def shape(self) -> Shape:
        rows, bytes_ = self.numbers.shape
        return (rows, bytes_ * 8 // self.bits)

    @property
    def dtype(self) -> torch.dtype:
        return self.scales.dtype

    def read(self, first: int, last: int) -> Tensor:
        """In float32, which holds the product of eight bits and a float16's eleven without rounding."""
        numbers = self.numbers.read(first, last)
        if self.bits == 4:
            numbers = nibbles(numbers)
        return numbers.float().mul_(self.scales.read(first, last).float()[:, None])

    def release(self) -> None:
        self.numbers.release()
        self.scales.release()


def nibbles(packed: Tensor) -> Tensor:
    """[rows, bytes] int8 -> [rows, 2 * bytes] from -8 to 7: of each byte the upper bits, then the lower."""
    upper = packed >> 4  # copies the sign
    lower = (packed << 4) >> 4
    return torch.stack((upper, lower), dim=-1).flatten(-2)
