"""How a model knows where a token stands: rotated queries and keys, or scores that fall with distance.

(A learned table is an embedding and lives in the decoder.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from daybreak.architecture import Rotary
from daybreak.model.reading import Reading

Turn = tuple[Tensor, Tensor]
"""Cosine and sine of every token's angles, [batch or 1, 1, length, rotary width / 2] float32."""
Turns = tuple[Turn, ...]
"""One by position and, where the architecture says so, one by the place within a piece."""


def rotary_turns(rotary: Rotary, reading: Reading) -> Turns:
    """What every layer turns its queries and keys by."""
    if not rotary.blocks:
        return (rotary_turn(rotary, reading.positions),)
    assert reading.blocks is not None  # the architecture has blanks
    return rotary_turn(rotary, reading.positions), rotary_turn(rotary, reading.blocks)


def rotary_turn(rotary: Rotary, positions: Tensor) -> Turn:
    """Angles position * base^(-2j / width) (RoFormer, section 3.2.2); `positions` [batch or 1, length]."""
    exponent = torch.arange(0, rotary.width, 2, dtype=torch.float32, device=positions.device) / rotary.width
    frequency = 1.0 / rotary.base**exponent
    if rotary.half_frequencies:
        frequency = frequency.half().float()
    angle = positions[:, None, :, None].float() * frequency  # [batch or 1, 1, length, width / 2]
    return angle.cos(), angle.sin()


def rotate(vectors: Tensor, turns: Turns, rotary: Rotary) -> Tensor:
    """Turn the first `rotary.width` components of [batch, heads, length, head_width] by the first of `turns`,
    the next by the second, in float32; the rest pass.
    """
    whole = rotary.width * len(turns)
    parts = torch.split(vectors[..., :whole].float(), rotary.width, dim=-1)
    turned = [_rotate(part, turn, rotary) for part, turn in zip(parts, turns, strict=True)]
    together = (turned[0] if len(turned) == 1 else torch.cat(turned, dim=-1)).to(vectors.dtype)
    if whole == vectors.shape[-1]:
        return together
    return torch.cat([together, vectors[..., whole:]], dim=-1)


def _rotate(vectors: Tensor, turn: Turn, rotary: Rotary) -> Tensor:
    cosine, sine = turn
    if rotary.pairs == "halves":
        first, second = vectors.chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    first, second = vectors[..., ::2], vectors[..., 1::2]
    pairs = torch.stack([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return pairs.flatten(-2)


def alibi_slopes(heads: int) -> list[float]:
    """One slope per head: a geometric sequence from 2^(-8/n), n a power of two.

    Other head counts take the sequence of the power below and fill up with every second slope of the power
    above (ALiBi's reference code).
    """

    def sequence(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (k + 1) / count) for k in range(count)]

    power = 2 ** math.floor(math.log2(heads))
    return sequence(power) + sequence(2 * power)[::2][: heads - power]


def alibi_bias(slopes: Tensor, reading: Reading) -> Tensor:
    """-slope * distance, [batch or 1, heads, length, keys] in float32; `slopes` [heads].

    BLOOM's code adds slope * key position, which differs by a constant per query that softmax removes;
    distances keep the numbers near the diagonal, where attention is, small and so exact.
    """
    distance = reading.key_positions[:, None, :] - reading.positions[:, :, None]  # [batch or 1, length, keys]
    return slopes[:, None, None] * distance[:, None].to(slopes.dtype)
