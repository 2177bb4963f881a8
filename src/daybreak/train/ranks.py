"""Agreement among the processes of a run about what happens on disk; alone, a process agrees with itself."""

from __future__ import annotations

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


class Ranks:
    """All processes of the run, over a group of their own: what is agreed on in the background never mixes
    with the collectives of a training step. Every process has to make its `Ranks` at the same place.
    """

    def __init__(self) -> None:
        together = distributed.is_initialized() and distributed.get_world_size() > 1
        # Gloo: these are objects in the host's memory, also where the tensors travel by NCCL.
        self.group = distributed.new_group(backend="gloo") if together else None
        self.rank = distributed.get_rank() if together else 0
        self.size = distributed.get_world_size() if together else 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process's `value`, in the order of the ranks, on all of them."""
        if self.group is None:
            return [value]
        values: list[T | None] = [None] * self.size
        distributed.all_gather_object(values, value, group=self.group)
        return values  # type: ignore[return-value]

    def first(self, value: T) -> T:
        """Rank 0's `value`, on all."""
        values = [value]
        if self.group is not None:
            distributed.broadcast_object_list(values, src=0, group=self.group)
        return values[0]
