"""Attention: one function with the fused kernel behind it, and the layer that prepares its queries, keys and
values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from daybreak.architecture import Architecture, Rotary
from daybreak.model.cache import Past
from daybreak.model.positions import Turns, alibi_bias, rotate
from daybreak.model.reading import Reading


@dataclass(frozen=True, eq=False)
class Sight:
    """Who sees whom in the layers of one window, in the terms of the fused kernel; made once per pass."""

    causal: bool
    """Every token sees itself and all before it; no mask is needed."""
    mask: Tensor | None = None
    """[batch or 1, heads or 1, length, keys]: bool (True: seen), or float32 to be added to the scores."""

    @classmethod
    def of(cls, reading: Reading, window: int | None, slopes: Tensor | None = None) -> Sight:
        """What `reading` allows in a layer of this `window`; `slopes` [heads] adds ALiBi's penalty."""
        if slopes is not None:
            bias = alibi_bias(slopes, reading)
            hidden = None if reading.sees_all(window) else ~reading.visible(window)
            return cls(False, bias if hidden is None else bias.masked_fill(hidden, -math.inf))
        if reading.is_plain_causal(window):
            return cls(True)
        return cls(False, None if reading.sees_all(window) else reading.visible(window))


def attend(
    query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float, dropout: float = 0.0
) -> Tensor:
    """Softmax attention, [batch, heads, length, head_width] for queries and result, [batch, key heads, keys,
    head_width] for keys and values; neighbouring heads share where there are fewer of keys.

    Scores and softmax are float32 inside the kernel whatever the dtype. `dropout` is the share of the weights
    that become zero, at random.
    """
    mask = sight.mask
    if mask is not None and mask.is_floating_point() and query.device.type != "cpu":
        mask = mask.to(query.dtype)  # kernels of accelerators want one dtype; the CPU's keep the bias exact
    shared = key.shape[1] != query.shape[1]
    return scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=sight.causal, scale=scale, enable_gqa=shared
    )


class Attention(nn.Module):
    """Multi-head attention of one layer, as the architecture describes it."""

    def __init__(self, architecture: Architecture, layer: int) -> None:
        super().__init__()
        width, biases = architecture.width, architecture.biases
        self.query = nn.Linear(width, width, bias="qkv" in biases)
        self.key = nn.Linear(width, architecture.key_width, bias="qkv" in biases)
        self.value = nn.Linear(width, architecture.key_width, bias="qkv" in biases)
        self.out = nn.Linear(width, width, bias="out" in biases)
        self.layer = layer
        self.dropout = 0.0
        """Share of the weights that become zero while training; see `daybreak.model.dropout`."""
        self.heads = architecture.heads
        self.head_width = architecture.head_width
        self.rotary = architecture.positions if isinstance(architecture.positions, Rotary) else None
        self.scale = 1.0 / math.sqrt(architecture.head_width) if architecture.scaled_scores else 1.0
        if architecture.layer_scaled_scores:
            self.scale /= layer + 1

    def forward(self, inputs: Tensor, sight: Sight, turns: Turns | None, cache: Past | None) -> Tensor:
        """[batch, length, width] -> the same."""
        query, key, value = (self._heads(part(inputs)) for part in (self.query, self.key, self.value))
        if self.rotary is not None and turns is not None:
            query, key = rotate(query, turns, self.rotary), rotate(key, turns, self.rotary)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, sight, self.scale, dropout)  # [batch, heads, length, head_width]
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result

    def _heads(self, vectors: Tensor) -> Tensor:
        batch, length, width = vectors.shape
        return vectors.view(batch, length, width // self.head_width, self.head_width).transpose(1, 2)
