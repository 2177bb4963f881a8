"""Calls the kernels of a given library without torch, at many sizes; run under gcc's sanitizers."""

from __future__ import annotations

import ctypes
import sys

import numpy as np


def place(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    draw, done = np.random.default_rng(0), 0
    for tokens in (1, 3, 9):
        for rows, width in ((1, 1), (16, 64), (17, 65), (47, 130)):
            for bits in (8, 4):
                for group, per_row in ((64, 1), (64, 0), (32, 0), (128, 0)):
                    groups, blocks = -(-width // group), -(-rows // 16)
                    numbers = draw.integers(0, 256, blocks * 16 * groups * group * bits // 8, dtype=np.uint8)
                    scales = draw.random(blocks * (1 if per_row else groups) * 16, dtype=np.float32)
                    inputs = draw.standard_normal((tokens, width), dtype=np.float32)
                    results = np.empty((tokens, rows), np.float32)
                    bias = draw.random(rows, dtype=np.float32) if done % 2 else None
                    numbers[numbers == 0] = 1
                    sizes = (rows, width, group, bits, per_row)
                    library.quantised_linear(
                        place(inputs),
                        ctypes.c_int64(tokens),
                        place(numbers),
                        place(scales),
                        place(scales if done % 3 == 0 else None),
                        place(bias),
                        *map(ctypes.c_int64, sizes),
                        place(results),
                    )
                    assert np.isfinite(results).all()
                    done += 1
    print(f"{done} products")


if __name__ == "__main__":
    main()
