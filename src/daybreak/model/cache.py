"""Keys and values of the tokens read so far, so that the next token costs one step instead of a full pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from daybreak.architecture import Architecture
from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.model.reading import Reading


class Past(Protocol):
    """What a decoder asks of whatever keeps keys and values."""

    def admit(self, reading: Reading) -> None:
        """Make room for the tokens of `reading`; called once before the layers."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values [batch, key heads, length, head_width]; returns those of all
        tokens so far.
        """

    def advance(self, length: int) -> None:
        """All layers have stored so many new tokens."""


class Cache:
    """Preallocated keys and values of every layer; grows by doubling when `capacity` tokens are not enough.

    Padding is kept with the `tokens` [batch, capacity]: `seen` [batch, capacity] tells real ones, `places`
    [batch, capacity] each one's position in its own text.
    """

    def __init__(
        self,
        architecture: Architecture,
        batch: int,
        capacity: int = 256,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        parts: int = 1,
    ) -> None:
        # With tensor parallelism each process has the heads of its own part.
        heads = (architecture.key_heads or architecture.heads) // parts
        shape = (batch, heads, capacity, architecture.head_width)
        layers = range(architecture.layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.tokens = torch.zeros(batch, capacity, dtype=torch.int64, device=device)
        self.seen = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self.places = torch.zeros(batch, capacity, dtype=torch.int64, device=device)
        self.length = 0
        self.padded = False
        """Some stored token is padding."""

    @property
    def batch(self) -> int:
        return self.seen.shape[0]

    @property
    def capacity(self) -> int:
        return self.seen.shape[1]

    def admit(self, reading: Reading) -> None:
        """Make room for the tokens of `reading` and note which of them are real; called once before the
        layers.
        """
        if reading.start != self.length or reading.documents is not None or reading.given:
            raise DaybreakError(
                f"the cache holds {self.length} tokens, but the reading continues {reading.start}, or is "
                "packed or laid out by hand; make it with Reading.of(tokens, mask, cache=cache)"
            )
        end = self.length + reading.length
        if end > self.capacity:
            self._grow(max(end, 2 * self.capacity))
        self.tokens[:, self.length : end] = reading.tokens
        self.seen[:, self.length : end] = True if reading.real is None else reading.real
        self.places[:, self.length : end] = reading.positions
        self.padded = self.padded or reading.real is not None

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values [batch, key heads, length, head_width]; returns those of all
        tokens so far.
        """
        end = self.length + keys.shape[2]
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, length: int) -> None:
        """The tokens just stored by every layer now belong to the past."""
        self.length += length

    def select(self, rows: Tensor) -> None:
        """Keep (and order, and repeat) the rows given by their indices [new batch], e.g. to drop finished
        texts.
        """
        for layer in range(len(self.keys)):  # one at a time, so that only one layer is in memory twice
            self.keys[layer] = self.keys[layer][rows]
            self.values[layer] = self.values[layer][rows]
        self.tokens, self.seen, self.places = self.tokens[rows], self.seen[rows], self.places[rows]

    def _grow(self, capacity: int) -> None:
        def grown(tensor: Tensor, dim: int) -> Tensor:
            shape = list(tensor.shape)
            shape[dim] = capacity
            wider = tensor.new_zeros(shape)
            wider.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
            return wider

        self.keys = [grown(tensor, 2) for tensor in self.keys]
        self.values = [grown(tensor, 2) for tensor in self.values]
        self.tokens, self.seen, self.places = (
            grown(tensor, 1) for tensor in (self.tokens, self.seen, self.places)
        )
