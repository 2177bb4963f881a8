"""Quantised weights in the order in which the compiled kernels read them (kernels/linear.cpp)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from daybreak.engine.quantised import MIDDLE, Quantised, Scheme, quantise

ROWS, FOUR = 16, 4
"""Of a block; as in linear.cpp."""
WHOLE_ROW = 64
"""Inputs that share a scale of the activations where the weights have one for each row."""
AT_ONCE = 1 << 18
"""Weights that are quantised at a time: what they need on the way is some times what they are."""


class Packed(NamedTuple):
    """Blocks of 16 rows, and of each block 4 inputs of all rows after 4 inputs of all rows; padded."""

    numbers: Tensor
    """uint8 [blocks, inputs / 4, 16 rows, 4]; with 4 bits [blocks, inputs / 8, 16 rows, 4], of each byte the
    lower half before the upper."""
    scales: Tensor
    """float32 [blocks, groups, 16 rows]."""
    zeros: Tensor | None
    """The same."""


def group_of(scheme: Scheme) -> int:
    """How many inputs share a scale of the activations."""
    return scheme.group or WHOLE_ROW


def shapes(rows: int, width: int, scheme: Scheme) -> dict[str, tuple[int, ...]]:
    """Of the packed tensors, by name."""
    blocks, groups = -(-rows // ROWS), -(-width // group_of(scheme))
    scales = (blocks, 1 if scheme.group is None else groups, ROWS)
    fours = groups * group_of(scheme) * scheme.bits // 8 // FOUR
    found: dict[str, tuple[int, ...]] = {"numbers": (blocks, fours, ROWS, FOUR), "scales": scales}
    return {**found, "zeros": scales} if scheme.zeros else found


def pack(weights: Quantised, scheme: Scheme) -> Packed:
    """Inputs beyond the last one are 0 in every token, so that it does not matter which weights they have."""
    rows, width = weights.shape
    blocks, fours = shapes(rows, width, scheme)["numbers"][:2]
    columns = fours * FOUR * 8 // scheme.bits
    numbers = torch.full((blocks * ROWS, columns), MIDDLE[scheme.bits], dtype=torch.uint8)
    numbers[:rows, :width] = weights.numbers
    if scheme.bits == 8:
        numbers = numbers.view(blocks, ROWS, -1, FOUR).transpose(1, 2)
    else:
        pairs = numbers.view(blocks, ROWS, -1, 2, FOUR).transpose(1, 2)  # [blocks, eights, 16 rows, 2, 4]
        numbers = pairs[..., 0, :] | pairs[..., 1, :] << 4
    zeros = None if weights.zeros is None else _by_blocks(weights.zeros, blocks)
    return Packed(numbers.contiguous(), _by_blocks(weights.scales, blocks), zeros)


def packed(weight: Tensor, scheme: Scheme, name: str = "a matrix") -> Packed:
    """`pack(quantise(weight, scheme), scheme)`, some rows at a time: beside the result little is in memory.

    Raises `DaybreakError` with the `name` for weights that are not finite.
    """
    rows, width = weight.shape
    found = empty(rows, width, scheme)
    step = ROWS * max(1, AT_ONCE // (ROWS * width))
    for first in range(0, rows, step):
        part = pack(quantise(weight[first : first + step], scheme, name), scheme)
        for whole, some in zip(found, part, strict=True):
            if whole is not None and some is not None:
                whole[first // ROWS : first // ROWS + len(some)] = some
    return found


def empty(rows: int, width: int, scheme: Scheme) -> Packed:
    """Tensors of the right shapes and dtypes."""
    found = shapes(rows, width, scheme)
    zeros = torch.empty(found["zeros"]) if scheme.zeros else None
    return Packed(torch.empty(found["numbers"], dtype=torch.uint8), torch.empty(found["scales"]), zeros)


def unpack(packed: Packed, rows: int, width: int, scheme: Scheme) -> Quantised:
    """The exact inverse of `pack`."""
    numbers = _apart(packed.numbers, scheme).transpose(1, 2)  # [blocks, 16 rows, ..]
    numbers = numbers.reshape(len(numbers) * ROWS, -1)[:rows, :width]
    zeros = None if packed.zeros is None else _by_rows(packed.zeros, rows)
    return Quantised(numbers.contiguous(), _by_rows(packed.scales, rows), zeros, scheme.bits, scheme.group)


def unpack_rows(packed: Packed, numbers: Tensor, width: int, scheme: Scheme) -> Quantised:
    """Rows by their `numbers` [n] int64 alone, each as often as it is named."""
    blocks, rows = numbers // ROWS, numbers % ROWS
    few = _apart(packed.numbers[blocks, :, rows], scheme).flatten(1)[:, :width]
    zeros = None if packed.zeros is None else packed.zeros[blocks, :, rows]
    return Quantised(few, packed.scales[blocks, :, rows], zeros, scheme.bits, scheme.group)


def _apart(numbers: Tensor, scheme: Scheme) -> Tensor:
    """[.., 4] -> with 4 bits [.., 2, 4]: a byte's lower half before its upper."""
    return numbers if scheme.bits == 8 else torch.stack((numbers & 15, numbers >> 4), dim=-2)


def _by_blocks(values: Tensor, blocks: int) -> Tensor:
    """[rows, groups] -> [blocks, groups, 16 rows], what is beyond the last row 0."""
    padded = values.new_zeros(blocks * ROWS, values.shape[1])
    padded[: len(values)] = values
    return padded.view(blocks, ROWS, -1).transpose(1, 2).contiguous()


def _by_rows(values: Tensor, rows: int) -> Tensor:
    return values.transpose(1, 2).reshape(-1, values.shape[1])[:rows].contiguous()
