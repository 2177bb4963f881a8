"""Which weight files belong to a checkpoint, and the tensors in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from daybreak.checkpoint.config import read_json
from daybreak.checkpoint.stored import Stored
from daybreak.checkpoint.tensors import contents
from daybreak.errors import DaybreakError

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
INDEX = ".index.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def weights(folder: Path) -> dict[str, Stored]:
    """Every tensor of the checkpoint by its name, in file order. Safetensors are preferred to torch's
    format."""
    for single in (SAFETENSORS, PICKLED):
        if (folder / single).is_file():
            return {stored.name: stored for stored in contents(folder / single)}
        index = folder / (single + INDEX)
        if index.is_file():
            return _sharded(index)
    raise DaybreakError(
        f"{folder} has no weights: expected {SAFETENSORS} or {PICKLED}, or their shards with "
        f"{SAFETENSORS}{INDEX}"
    )


def _sharded(index: Path) -> dict[str, Stored]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise DaybreakError(
            f"{index} has no weight_map that says which shard holds which tensor; fetch it again"
        )
    for name, shard in places.items():
        if not isinstance(shard, str):
            raise DaybreakError(
                f"{index} gives {shard!r} as the shard of tensor {name!r}, which is no file name; "
                "fetch it again"
            )
    found: dict[str, Stored] = {}
    for shard in sorted(set(places.values())):
        for stored in contents(_shard(index, shard)):
            found[stored.name] = stored
    for name, shard in places.items():
        if name not in found or found[name].file.name != shard:
            raise DaybreakError(
                f"{index} says that {shard} holds tensor {name!r}, which it does not; fetch both again"
            )
    return found


def _shard(index: Path, shard: str) -> Path:
    file = index.parent / shard
    if Path(shard).name != shard:
        raise DaybreakError(
            f"{index} names the shard {shard!r}, which is outside the folder; that is not followed"
        )
    if not file.is_file():
        raise DaybreakError(
            f"{index} names the shard {shard}, which is missing; fetch it into the same folder"
        )
    return file


def dtype_of(config: dict[str, Any], found: dict[str, Stored]) -> torch.dtype:
    """What config.json names as the weights' dtype, or else that of the largest tensor."""
    named = config.get("dtype") or config.get("torch_dtype")
    if isinstance(named, str) and named in DTYPES:
        return DTYPES[named]
    weights = [stored for stored in found.values() if stored.dtype in DTYPES.values()]
    return max(weights, key=lambda stored: stored.bytes).dtype if weights else torch.float32
