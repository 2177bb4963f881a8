"""The same numbers from the same start, to the last bit: which of torch's ways are taken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


@contextmanager
def repeatable(wanted: bool = True) -> Iterator[None]:
    """Within, sums have one order, on GPUs and in compiled code.

    Code that torch.compile writes for CPUs needs it, too: the rows of the embedding's gradient are otherwise
    added by whichever thread comes first. What isn't compiled is repeatable on CPUs anyway. The flags are the
    whole process's, and are put back.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # for finding mistakes: takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]
