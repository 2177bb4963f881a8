"""transformers as the other side of a comparison; only this file imports it.

A development dependency: nothing else in the package needs it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daybreak.architecture import Architecture
from daybreak.compare.redraw import redraw as redraw
from daybreak.errors import DaybreakError
from daybreak.families.family import Family


def _transformers() -> Any:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise DaybreakError(
            "verification against the reference needs transformers: pip install 'daybreak[verify]'"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def title() -> str:
    """Name and version, for the ledger."""
    return f"transformers {_transformers().__version__}"


def build(family: Family, architecture: Architecture, seed: int) -> nn.Module:
    """The reference's model of this shape, every parameter redrawn, in eager attention and float32."""
    transformers = _transformers()
    inside = {
        key: None for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }  # ids beyond the tiny vocabulary
    config = transformers.AutoConfig.for_model(family.model_type, **{**family.write(architecture), **inside})
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    redraw(model, seed)
    return model.eval()


def save(model: Any, folder: Path) -> None:
    """As its users save it: names in files differ from names in memory."""
    model.save_pretrained(folder)


def tensors(folder: Path) -> dict[str, Tensor]:
    """What `save` wrote, by the names in the file."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def load(folder: Path | str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A folder or hub repository opened by the reference."""
    transformers = _transformers()
    model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", trust_remote_code=False
    )
    return model.eval()


def logits(model: Any, tokens: Tensor) -> Tensor:
    """[length] ids of one text -> [length, vocabulary] float32; a plain call, nothing padded."""
    result: Tensor = model(tokens[None]).logits[0].float()
    return result


def as_saved(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its parameters are named and laid out as in its files."""
    return tensors
