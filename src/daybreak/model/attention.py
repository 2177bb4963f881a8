"""Attention: one function with the fused kernel behind it, and the layer that prepares its queries, keys and values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from daybreak.architecture import Alibi, Architecture, Rotary
from daybreak.model.cache import Cache
from daybreak.model.positions import Turn, alibi_bias, alibi_slopes, rotate
from daybreak.model.reading import Reading


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reading: Reading,
    *,
    scale: float,
    window: int | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Softmax attention, [batch, heads, length, head_width] for queries and result, [.., keys, ..] for keys and values.

    The reading decides who sees whom; `slopes` [heads] adds ALiBi's penalty.
    """
    if slopes is not None:
        bias = alibi_bias(slopes, reading)
        if not reading.sees_all(window):
            bias = bias.masked_fill(~reading.visible(window), -math.inf)
        if query.device.type != "cpu":
            bias = bias.to(query.dtype)  # kernels of accelerators want one dtype; the CPU's keep the bias exact
        return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    if reading.is_plain_causal(window):
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    allowed = None if reading.sees_all(window) else reading.visible(window)
    return scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale)


class Attention(nn.Module):
    """Multi-head attention of one layer, as the architecture describes it."""

    def __init__(self, architecture: Architecture, layer: int) -> None:
        super().__init__()
        width, biases = architecture.width, architecture.biases
        self.query = nn.Linear(width, width, bias="qkv" in biases)
        self.key = nn.Linear(width, width, bias="qkv" in biases)
        self.value = nn.Linear(width, width, bias="qkv" in biases)
        self.out = nn.Linear(width, width, bias="out" in biases)
        self.layer = layer
        self.heads = architecture.heads
        self.window = architecture.window(layer)
        self.rotary = architecture.positions if isinstance(architecture.positions, Rotary) else None
        self.alibi = isinstance(architecture.positions, Alibi)
        self.scale = 1.0 / math.sqrt(architecture.head_width) if architecture.scaled_scores else 1.0
        if architecture.layer_scaled_scores:
            self.scale /= layer + 1

    def forward(self, inputs: Tensor, reading: Reading, turn: Turn | None, cache: Cache | None) -> Tensor:
        """[batch, length, width] -> the same."""
        query, key, value = (self._heads(part(inputs)) for part in (self.query, self.key, self.value))
        if self.rotary is not None and turn is not None:
            query, key = rotate(query, turn, self.rotary), rotate(key, turn, self.rotary)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        slopes = torch.tensor(alibi_slopes(self.heads), device=query.device) if self.alibi else None
        mixed = attend(
            query, key, value, reading, scale=self.scale, window=self.window, slopes=slopes
        )  # [batch, heads, length, head_width]
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result

    def _heads(self, vectors: Tensor) -> Tensor:
        return vectors.unflatten(2, (self.heads, -1)).transpose(1, 2)
