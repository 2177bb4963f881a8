"""How fast this machine multiplies matrices: what a training step's speed is measured against."""

from __future__ import annotations

import time

import torch

SMALL = 256
LARGE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices: large enough that a larger product is no faster."""
TRIES = 4
"""The first prepares the kernel."""
SECONDS = 2.0


def ceiling(dtype: torch.dtype, device: torch.device | str = "cpu", seconds: float = SECONDS) -> float:
    """FLOP/s of a large square product in `dtype`: the best of a few tries, which take about `seconds`.

    Processors without instructions for `dtype` are a hundred times slower in it; their matrices are made
    smaller until the measurement ends in time.
    """
    place = torch.device(device)
    size = LARGE.get(place.type, LARGE["cpu"])
    probe = min(_seconds(SMALL, dtype, place) for _ in range(2))
    while size > SMALL and probe * (size / SMALL) ** 3 * TRIES > 10 * seconds:  # small ones are slower
        size //= 2
    return 2 * size**3 / min(_seconds(size, dtype, place) for _ in range(TRIES))


def _seconds(size: int, dtype: torch.dtype, device: torch.device) -> float:
    left = torch.ones(size, size, dtype=dtype, device=device)
    right = torch.ones(size, size, dtype=dtype, device=device)
    _wait(device)
    began = time.perf_counter()
    _ = left @ right
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
