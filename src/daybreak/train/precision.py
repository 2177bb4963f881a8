"""In which numbers a training step computes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import Batch

Loss = Callable[[Decoder, Batch], Tensor]
"""A mean in nats per predicted token."""


def faster_dtype() -> torch.dtype:
    """In which this machine multiplies matrices of a training step's size faster: bfloat16 or float32.

    bfloat16 is twice as fast on processors that have it; on others it may be a hundred times slower, which
    small matrices show before large ones would take seconds.
    """
    times = {}
    for size in (256, 512, 1024):
        times = {dtype: _seconds(size, dtype) for dtype in (torch.float32, torch.bfloat16)}
        if max(times.values()) > 4 * min(times.values()):
            break
    return min(times, key=lambda dtype: times[dtype])


def _seconds(size: int, dtype: torch.dtype) -> float:
    """For one product of such matrices."""
    matrix = torch.ones(size, size, dtype=dtype)
    tries = []
    for _ in range(4):  # the first prepares the kernel
        began = time.perf_counter()
        _ = matrix @ matrix
        tries.append(time.perf_counter() - began)
    return min(tries)


def products(dtype: torch.dtype, device: str = "cpu") -> torch.autocast:
    """Within, matrix products are of this dtype; weights, norms and the loss stay float32."""
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)


def in_dtype(loss_of: Loss, dtype: torch.dtype, device: str = "cpu") -> Loss:
    """The same loss with its matrix products in `dtype`."""

    def computed(decoder: Decoder, batch: Batch) -> Tensor:
        with products(dtype, device):
            return loss_of(decoder, batch)

    return computed
