"""How fast this machine reads memory: what decoding cannot exceed, since a step reads all weights once."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

NUMBERS = 1 << 27
"""In float32: 512 MiB, many times what the caches hold."""
COLUMNS = 4096
TRIES = 3


class Roof:
    """Measured again and again in the course of a run, for the machine may be shared."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._numbers = torch.ones(NUMBERS // COLUMNS, COLUMNS)
        self._vector = torch.ones(COLUMNS)

    def bytes_per_second(self) -> float:
        """Of the faster of a sum and a product with a vector: what else limits either is not the roof."""
        best = min(
            seconds(call)
            for call in (self._numbers.sum, lambda: torch.mv(self._numbers, self._vector))
            for _ in range(TRIES)
        )
        return self._numbers.nbytes / best


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
