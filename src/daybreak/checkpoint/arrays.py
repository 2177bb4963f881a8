"""The first release of all: params_shapes.json, params_0.npy to params_9.npy, and a vocabulary under other "
"names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from daybreak import families
from daybreak.checkpoint.stored import Stored
from daybreak.errors import DaybreakError
from daybreak.families.family import ArrayRelease

SHAPES = "params_shapes.json"
Numbers = np.ndarray[Any, np.dtype[np.float32]]


def is_array_release(folder: Path) -> bool:
    """Does the folder hold bare arrays, and no config.json that says more?"""
    return (folder / SHAPES).is_file() and not (folder / "config.json").exists()


def read_arrays(folder: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """What config.json would say, and the tensors by name, copied out of the files, which cut them anywhere.

    Raises `DaybreakError` if shapes and arrays do not fit.
    """
    release = next(family.array_release for family in families.everyone() if family.array_release)
    shapes = _shapes(folder / SHAPES, release)
    row = np.concatenate([_array(file) for file in _parts(folder)])
    lengths = [math.prod(shape) for shape in shapes]
    if sum(lengths) != row.size:
        raise DaybreakError(
            f"{folder / SHAPES} describes {sum(lengths)} numbers, params_*.npy hold {row.size}; fetch the "
            "files again"
        )
    config = release.config(shapes)
    names = _names(release, config["n_layer"])
    pieces = torch.split(torch.from_numpy(row), lengths)
    # Linear maps are stored as convolutions over one position, with a leading dimension of 1.
    tensors = [
        piece.view(shape[1:] if len(shape) == 3 else shape)
        for piece, shape in zip(pieces, shapes, strict=True)
    ]
    return config, {
        name: Stored(name, folder / SHAPES, tensor.dtype, tuple(tensor.shape), loaded=tensor)
        for name, tensor in zip(names, tensors, strict=True)
    }


def _shapes(file: Path, release: ArrayRelease) -> list[list[int]]:
    once = sum("{i}" not in name for name in release.names)
    try:
        shapes = [[int(number) for number in shape] for shape in json.loads(file.read_text())]
    except (ValueError, TypeError):
        raise DaybreakError(f"{file} is no list of shapes; fetch it again") from None
    layers, rest = divmod(len(shapes) - once, len(release.names) - once)
    if layers < 1 or rest or any(len(shape) != 2 for shape in shapes[:once]):
        raise DaybreakError(
            f"{file} lists {len(shapes)} shapes, which do not make {once} tables and a number of layers; "
            "fetch it again"
        )
    return shapes


def _parts(folder: Path) -> list[Path]:
    files = list(folder.glob("params_*.npy"))
    expected = [folder / f"params_{number}.npy" for number in range(len(files))]
    if not files or set(files) != set(expected):
        raise DaybreakError(
            f"{folder} has {SHAPES} but not all of params_0.npy, params_1.npy, ...; fetch the missing ones"
        )
    return expected


def _array(file: Path) -> Numbers:
    try:
        numbers: Numbers = np.load(file, mmap_mode="r", allow_pickle=False).reshape(-1).astype(np.float32)
        return numbers
    except (ValueError, OSError, EOFError):
        raise DaybreakError(f"{file} is no array of numbers; fetch it again") from None


def _names(release: ArrayRelease, layers: int) -> list[str]:
    once = [name for name in release.names if "{i}" not in name]
    repeated = [name for name in release.names if "{i}" in name]
    return once + [name.replace("{i}", str(layer)) for layer in range(layers) for name in repeated]
