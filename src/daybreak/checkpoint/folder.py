"""What lies in a checkpoint's folder: its JSON files, and which weight files belong to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from daybreak.checkpoint.stored import Stored
from daybreak.checkpoint.tensors import contents
from daybreak.errors import DaybreakError

CONFIG = "config.json"
GENERATION = "generation_config.json"
SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
INDEX = ".index.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises `DaybreakError` naming the file, and the place of the mistake in it."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DaybreakError(f"{file} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DaybreakError(f"{file} is not text; fetch it again") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DaybreakError(f"{file} is not valid JSON ({error.msg} at {where}); fetch it again") from None
    if not isinstance(value, dict):
        raise DaybreakError(f"{file} holds a {type(value).__name__} where an object with keys is expected")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Code that a checkpoint brings along is refused, whatever model it claims to be."""
    file = folder / CONFIG
    if not file.is_file():
        raise DaybreakError(
            f"{folder} has no {CONFIG}, so it is no checkpoint; name the folder that holds it"
        )
    config = read_json(file)
    if config.get("auto_map"):
        raise DaybreakError(
            f"{file} asks to run Python code that comes with the checkpoint (auto_map); nothing from a "
            "checkpoint is "
            "executed here. If the weights are of a supported family, remove auto_map and set its model_type"
        )
    if not isinstance(config.get("model_type"), str):
        raise DaybreakError(f"{file} has no model_type, so the family is unknown; add the key")
    return config


def read_generation(folder: Path) -> dict[str, Any]:
    """generation_config.json, or nothing where there is none."""
    file = folder / GENERATION
    return read_json(file) if file.is_file() else {}


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
    if named in DTYPES:
        return DTYPES[named]
    weights = [stored for stored in found.values() if stored.dtype in DTYPES.values()]
    return max(weights, key=lambda stored: stored.bytes).dtype if weights else torch.float32
