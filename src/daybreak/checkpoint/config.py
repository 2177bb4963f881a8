"""The JSON files in a checkpoint's folder; reading them needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.errors import DaybreakError
from daybreak.families.family import Family

CONFIG = "config.json"
GENERATION = "generation_config.json"
QUANTISED, METHOD = "quantization_config", {"quant_method": "daybreak"}
"""The key under which a folder of `daybreak quantize` says so, and how; see engine/quantised_folder.py."""


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
    """config.json. Nothing that a checkpoint brings along is executed; code that no family here stands for is
    refused, because the weights would load and compute something else.
    """
    file = folder / CONFIG
    if not file.is_file():
        within = folder / "model"  # where runs leave theirs
        told = f"give {within}" if (within / CONFIG).is_file() else "name the folder that holds it"
        raise DaybreakError(f"{folder} has no {CONFIG}, so it is no checkpoint; {told}")
    config = read_json(file)
    if code := _foreign_code(config):
        raise DaybreakError(
            f"{file} asks to run Python code that comes with the checkpoint (auto_map: {code}); nothing from "
            "a checkpoint is "
            "executed here. If the weights are of a supported family, remove auto_map and set its model_type"
        )
    if not isinstance(config.get("model_type"), str):
        raise DaybreakError(f"{file} has no model_type (a text), so the family is unknown; add the key")
    return config


def _foreign_code(config: dict[str, Any]) -> str | None:
    """What auto_map names beside the code that the family's page stands for: repository--module.Class."""
    named = config.get("auto_map") or {}
    if not isinstance(named, dict):
        return str(named)
    classes = [text for value in named.values() for text in (value if isinstance(value, list) else [value])]
    model_type = config.get("model_type")
    known = families.remote_code(model_type) if isinstance(model_type, str) else ()
    modules = {str(text): str(text).split("--")[-1].rsplit(".", 1)[0] for text in classes if text is not None}
    return next((text for text, module in modules.items() if module not in known), None)


def own_quantisation(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What config.json says of weights that `daybreak quantize` wrote; None: they are others."""
    told = config.get(QUANTISED)
    if not isinstance(told, dict) or any(told.get(key) != value for key, value in METHOD.items()):
        return None
    return {key: value for key, value in told.items() if key not in METHOD}


def read_generation(folder: Path) -> dict[str, Any]:
    """generation_config.json, or nothing where there is none."""
    file = folder / GENERATION
    return read_json(file) if file.is_file() else {}


def saved_config(
    family: Family, architecture: Architecture, told: Mapping[str, Any], dtype: str
) -> dict[str, Any]:
    """config.json as it is written: what the model was `told` before, and over it what it is."""
    return {
        **{key: value for key, value in told.items() if key != "auto_map"},
        **family.config(architecture),
        "model_type": family.model_type,
        "architectures": [family.hf_class] if family.hf_class else [],
        "dtype": dtype,
        "torch_dtype": dtype,  # the name before transformers 4.56
    }
