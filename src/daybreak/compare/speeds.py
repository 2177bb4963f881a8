"""How fast this machine reads memory and disks: short measurements of what decoding cannot exceed."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

LARGEST = 1 << 28
"""Bytes that are read at once: many times what caches hold."""
COLUMNS = 4096
SECONDS = 0.4
"""Of each measurement, about."""
CHUNK = 1 << 23
"""Bytes that are asked of a disk at a time."""


def memory_speed(free: int, device: str = "cpu") -> float:
    """Bytes per second that all threads together read. At most an eighth of the `free` bytes are taken.

    The fastest of some sums and products with a vector counts: what else slows either is not the memory.
    """
    rows = max(1, min(LARGEST, free // 8) // (4 * COLUMNS))
    numbers, vector = torch.ones(rows, COLUMNS, device=device), torch.ones(COLUMNS, device=device)
    calls: tuple[Callable[[], Tensor], ...] = (numbers.sum, lambda: torch.mv(numbers, vector)[-1])
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for call in calls:
            begin = time.perf_counter()
            call().item()  # which waits for a GPU
            best = min(best, time.perf_counter() - begin)
    return numbers.nbytes / best


def disk_speed(file: Path) -> float | None:
    """Bytes per second at which the beginning of `file` comes from its disk, past what the system keeps of
    it; None where that cannot be measured.
    """
    direct = getattr(os, "O_DIRECT", None)
    if direct is None:
        return None
    try:
        handle = os.open(file, os.O_RDONLY | direct)
    except OSError:
        return None  # a file system in memory, or one over a network, may not have it
    try:
        return _speed_of(handle)
    except OSError:
        return None
    finally:
        os.close(handle)


def _speed_of(handle: int) -> float | None:
    begin, done = time.perf_counter(), 0
    with mmap.mmap(-1, CHUNK) as room:  # which begins at a page, as direct reading wants it
        while time.perf_counter() - begin < SECONDS:
            count = os.preadv(handle, [room], done)
            done += count
            if count < CHUNK:
                break
    return done / (time.perf_counter() - begin) if done >= CHUNK else None
