"""Weights of eight or four bits with a scale for each row, as the published files hold them: `X` beside
`X_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from daybreak.checkpoint.rows import Mapped, Scaled
from daybreak.checkpoint.stored import Mapping, Stored
from daybreak.errors import DaybreakError
from daybreak.rules import Shape

SCALE = "_scale"
BITS = "quantization_bit"
KEYS = (BITS, "quantization_embeddings")
"""Keys of config.json that say how weights are packed, and are no longer true of what was unpacked."""


def unpacked(
    found: Dict[str, Stored], expected: Dict[str, Shape], mappings: Dict[Path, Mapping]
) -> dict[str, Stored]:
    """The same tensors, with numbers and scales made into one each; `expected` are the shapes of the
    unpacked, by name. Raises `DaybreakError` where numbers and scales do not fit.
    """
    result = {}
    for name, stored in found.items():
        if stored.dtype == torch.int8 and name in expected:
            result[name] = _scaled(stored, found.get(name + SCALE), expected[name], mappings)
        elif not (name.endswith(SCALE) and _is_packed(found.get(name.removesuffix(SCALE)))):
            result[name] = stored
    return result


def _is_packed(stored: Stored | None) -> bool:
    return stored is not None and stored.dtype == torch.int8


def without_packing(config: dict[str, Any], found: Dict[str, Stored], source: Path) -> dict[str, Any]:
    """config.json for the unpacked weights; refused if it says another width than the file has."""
    told = config.get(BITS) or None
    widths = {stored.rows.bits for stored in found.values() if isinstance(stored.rows, Scaled)}
    if told is not None and widths != {told}:
        held = " and ".join(f"{bits}" for bits in sorted(widths))
        raise DaybreakError(
            f"{source}: config.json says {BITS} {told}, the checkpoint has "
            f"{f'weights of {held} bits' if widths else 'no such weights'}; take config.json and weights "
            "from the same checkpoint"
        )
    return {key: value for key, value in config.items() if key not in KEYS} if widths else config


def _scaled(numbers: Stored, scale: Stored | None, expected: Shape, mappings: Dict[Path, Mapping]) -> Stored:
    if scale is None:
        raise DaybreakError(
            f"{numbers.file}: tensor {numbers.name!r} is stored as int8, and {numbers.name + SCALE!r}, which "
            "gives its numbers a size, is missing; fetch the checkpoint again, or take the one in "
            "float32, float16 or bfloat16"
        )
    bits = _bits(numbers, expected)
    if scale.shape != numbers.shape[:1] or not scale.dtype.is_floating_point:
        kind = str(scale.dtype).removeprefix("torch.")
        raise DaybreakError(
            f"{scale.file}: tensor {scale.name!r} has shape {list(scale.shape)} and type {kind}; "
            f"{numbers.name!r} has {numbers.shape[0]} rows and needs a scale in floating point for each"
        )
    rows = Scaled(Mapped(numbers, mappings[numbers.file]), Mapped(scale, mappings[scale.file]), bits)
    return replace(numbers, dtype=scale.dtype, shape=rows.shape, strides=None, loaded=None, rows=rows)


def _bits(numbers: Stored, expected: Shape) -> int:
    if len(expected) == 2 and len(numbers.shape) == 2 and numbers.shape[0] == expected[0]:
        for bits in (8, 4):
            if numbers.shape[1] * 8 == expected[1] * bits:
                return bits
    odd = len(expected) == 2 and expected[1] % 2
    reason = (
        f"and {expected[1]} numbers of four bits do not fill whole bytes"
        if odd
        else "which is neither eight nor four bits for each number"
    )
    raise DaybreakError(
        f"{numbers.file}: tensor {numbers.name!r} is int8 of shape {list(numbers.shape)} where the model "
        f"needs {list(expected)}, {reason}; take config.json and weights from the same checkpoint"
    )
