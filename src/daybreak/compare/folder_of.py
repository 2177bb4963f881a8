"""Folders as the smaller references write and read them: config.json and one file of weights."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.errors import DaybreakError
from daybreak.families.family import Family

WEIGHTS = "model.safetensors"


def write(folder: Path, family: Family, architecture: Architecture, tensors: dict[str, Tensor]) -> None:
    """`tensors` by the names in the file."""
    from safetensors.torch import save_file

    config = {"model_type": family.model_type, **family.config(architecture)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def shape(folder: Path) -> tuple[Family, Architecture]:
    """What config.json says."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = families.by_model_type(config["model_type"])
    return family, family.read(config)


def tensors(folder: Path) -> dict[str, Tensor]:
    """By the names in the file."""
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise DaybreakError(
            f"{folder} has no {WEIGHTS}, the one file that this family's reference reads; load it with "
            "daybreak and save it again"
        )
    return load_file(folder / WEIGHTS)
