"""Calls the kernels of a given library without torch, at many sizes; run under gcc's sanitizers."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from daybreak.engine.kernels import structures

DRAW = np.random.default_rng(0)
Array = np.ndarray[Any, np.dtype[Any]]
KEPT: list[Array] = []
"""Whatever addresses point to."""


def place(array: Array | None) -> int | None:
    if array is None:
        return None
    KEPT.append(array)
    return int(array.ctypes.data)


def floats(*shape: int) -> Array:
    return DRAW.standard_normal(shape, dtype=np.float32)


def matrix(kind: int, rows: int, width: int, group: int, per_row: bool, varied: bool) -> structures.Matrix:
    bias = place(floats(rows)) if varied else None
    if kind in (structures.FLOATS, structures.BFLOATS):
        weights = floats(rows, width)
        if kind == structures.BFLOATS:
            weights = (weights.view(np.uint32) >> 16).astype(np.uint16)
        return structures.Matrix(kind, place(weights), None, None, bias, rows, width, 0, 0)
    groups, blocks = -(-width // group), -(-rows // 16)
    numbers = DRAW.integers(1, 255, blocks * 16 * groups * group * kind // 8, dtype=np.uint8)
    scales = DRAW.random(blocks * (1 if per_row else groups) * 16, dtype=np.float32)
    zeros = scales if varied else None
    places = (place(numbers), place(scales), place(zeros), bias)
    return structures.Matrix(kind, *places, rows, width, group, per_row)


def products(library: ctypes.CDLL) -> int:
    done = 0
    for tokens in (1, 3, 9):
        for rows, width in ((1, 1), (16, 64), (17, 65), (47, 130)):
            for kind in (structures.FLOATS, structures.BFLOATS, 8, 4):
                for group, per_row in ((64, True), (64, False), (32, False), (128, False)):
                    KEPT.clear()
                    own = matrix(kind, rows, width, group, per_row, bool(done % 2))
                    results = np.empty((tokens, rows), np.float32)
                    library.linear(
                        ctypes.byref(own),
                        ctypes.c_void_p(place(floats(tokens, width))),
                        ctypes.c_int64(tokens),
                        ctypes.c_void_p(place(results)),
                        ctypes.c_int64(2),
                    )
                    assert np.isfinite(results).all()
                    done += 1
    return done


def step(library: ctypes.CDLL, stored: int, order: int, kind: int, heads: int, wide: int) -> None:
    """Two layers for the tokens of two texts, whose pages are as large as they must be."""
    KEPT.clear()
    key_heads, width, inner, layers = heads // 2, heads * wide, heads * wide + 5, 2
    blocks = (structures.Block * layers)()
    sizes = structures.Heads(heads, key_heads, wide, stored)
    norm = structures.Norm(place(floats(width)), place(floats(width)))
    model = structures.Model(
        layers=layers,
        width=width,
        inner=inner,
        heads=sizes,
        order=order,
        gated=order != 1,
        activation=DRAW.integers(4),
        turning=wide // 4 * 2,
        neighbours=stored == 1,
        has_final_norm=True,
        residual_scale=1.0,
        epsilon=1e-5,
        slopes=place(floats(heads)) if stored == 2 else None,
        final_norm=norm,
        blocks=blocks,
    )
    library.bytes_of_layer.restype = ctypes.c_int64
    of_layer = library.bytes_of_layer(ctypes.byref(model))
    key_width = key_heads * wide
    shapes = [(width, width), (key_width, width), (key_width, width), (width, width)]
    shapes += [(inner, width), (inner, width), (width, inner)]
    for number in range(layers):
        made = [matrix(kind, *shape, 32, False, True) for shape in shapes]
        named = dict(zip(structures.MATRICES, made, strict=True))
        blocks[number] = structures.Block(
            norm, norm, **named, window=number * 5, group=number, offset=0, scale=0.3
        )
    starts, counts = (0, 14), (21, 3)
    pages = [[[place(np.zeros(of_layer, np.uint8)) for _ in range(2)] for _ in starts] for _ in range(layers)]
    lists = [place(np.array(own, np.int64)) for group in pages for own in group]
    places = [start + i for start, count in zip(starts, counts, strict=True) for i in range(count)]
    hidden = floats(sum(counts), width)
    two = ctypes.c_void_p * 2
    angles = [place(floats(len(places), wide // 4)) for _ in range(2)]
    tokens = structures.Tokens(
        len(places),
        2,
        place(hidden),
        two(angles[0]),
        two(angles[1]),
        place(np.repeat(np.arange(2), counts)),
        place(np.array(places, np.int64)),
        place(np.array(places, np.int64) + 1),
        place(np.array(lists, np.int64)),
        2,
    )
    library.step(ctypes.byref(model), ctypes.byref(tokens))
    assert np.isfinite(hidden).all()


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    done = products(library)
    steps = 0
    for stored in range(3):
        for order in range(3):
            for kind in (structures.FLOATS, structures.BFLOATS, 8, 4):
                for heads, wide in ((2, 6), (4, 16), (6, 20)):
                    step(library, stored, order, kind, heads, wide)
                    steps += 1
    print(f"{done} products, {steps} steps")


if __name__ == "__main__":
    main()
