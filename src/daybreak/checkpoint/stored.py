"""A tensor in a file: where it lies and what it is, and the private memory mapping through which it is
read."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

CHUNK = 1 << 21
"""Elements that a copy touches before the file's pages are given back."""
SERIAL = 32767
"""The most elements that torch copies without its threads. Copying out of a file is page faults, which
threads only disturb: with two of them a conversion took twice the processor time.
"""


class Rows(Protocol):
    """A tensor that no file holds as such, and that gives its rows on demand (see `checkpoint.rows`)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last`, without the last: a view of a file or a new tensor, of any float type."""

    def release(self) -> None:
        """Give back the pages of files that reading brought in."""


@dataclass(frozen=True, eq=False)
class Stored:
    """One tensor of a checkpoint, found but not read."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0
    """First byte of the tensor in the file."""
    strides: tuple[int, ...] | None = None
    """Elements between neighbours of each dimension; None: row-major."""
    loaded: Tensor | None = None
    """The tensor itself where the file's format cannot be mapped (torch's format before 1.6)."""
    rows: Rows | None = None
    """How the tensor is made where no file holds it as such: from shards, or from packed numbers."""

    @property
    def bytes(self) -> int:
        """Length in the file, from `offset` to the end of the last element."""
        if self.strides is None:
            return math.prod(self.shape) * self.dtype.itemsize
        last = sum((count - 1) * stride for count, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.itemsize


class Mapping:
    """One file in memory, page by page as it is touched. The mapping is private: writing to its tensors
    copies the pages concerned and never reaches the file, and a file that is renamed over keeps its old
    contents here."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as handle:
            self._pages = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, stored: Stored) -> Tensor:
        """The stored tensor as a view of the mapping, or a copy where its place in the file is not
        aligned."""
        if stored.loaded is not None:
            return stored.loaded
        if stored.rows is not None:
            return whole(stored.rows)
        raw = torch.frombuffer(self._pages, dtype=torch.uint8, count=stored.bytes, offset=stored.offset)
        if raw.data_ptr() % stored.dtype.itemsize:
            raw = raw.clone()
        flat = raw.view(stored.dtype)
        return (
            flat.view(stored.shape)
            if stored.strides is None
            else flat.as_strided(stored.shape, stored.strides)
        )

    def release(self, stored: Stored) -> None:
        """Give back the pages that reading `stored` brought in; they are read again if they are touched
        again.

        Only for tensors whose mapped memory nobody has written to: the pages lose what was written.
        """
        if stored.rows is not None:
            stored.rows.release()
        elif stored.loaded is None and hasattr(mmap, "MADV_DONTNEED"):
            self._discard(stored)

    def _discard(self, stored: Stored) -> None:
        start = stored.offset - stored.offset % mmap.PAGESIZE
        self._pages.madvise(mmap.MADV_DONTNEED, start, stored.offset + stored.bytes - start)


def in_chunks(tensor: Tensor, elements: int = CHUNK) -> Iterator[slice]:
    """Slices of the first dimension of `tensor` that hold at most `elements` each, or one row."""
    rows = tensor.shape[0] if tensor.dim() else 1
    step = max(1, elements * rows // max(1, tensor.numel()))
    return (slice(first, first + step) for first in range(0, rows, step))


def copy_serially(source: Tensor, target: Tensor) -> None:
    """`target[:] = source`, whatever their dtypes and devices."""
    for rows in in_chunks(source, SERIAL):
        target[rows] = source[rows]


def whole(rows: Rows, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """All rows in one tensor of `dtype` on `device`, made piece by piece."""
    landed = torch.empty(rows.shape, dtype=dtype or rows.dtype, device=device)
    for chunk in in_chunks(landed):
        landed[chunk] = rows.read(chunk.start, min(chunk.stop, rows.shape[0]))
        rows.release()
    return landed
