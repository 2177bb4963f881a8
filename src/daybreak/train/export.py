"""A Hugging Face folder from weights that are cut over processes, one full tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor

from daybreak.checkpoint.save import layout, write_folder
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.train.ranks import Ranks


def export(
    model: LanguageModel,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
    shard_size: int | str = "5GB",
) -> None:
    """Write what `model.save` would write if its decoder were whole: the same files, byte for byte.

    `weights` are written instead of the decoder's own, by parameter names: a moving average. Every process of
    the run has to call it. Rank 0 writes; a tensor is put together when its turn comes, so no process ever
    holds more than one tensor of the file beside its own parts. An error of rank 0 is raised in all.
    """
    own: dict[str, Any] = get_model_state_dict(model.decoder)  # nothing but tensors in a decoder
    parameters: dict[str, Tensor] = {**own, **(weights or {})}
    ranks = Ranks()
    if ranks.main:
        _write(model, folder, parameters, shard_size, ranks)
    else:
        _follow(parameters, ranks)


def _write(
    model: LanguageModel, folder: Path, parameters: Mapping[str, Tensor], shard_size: int | str, ranks: Ranks
) -> None:
    problem: str | None = None

    def read(name: str) -> Tensor:
        ranks.first(name)
        return _whole(parameters[name])

    try:
        written = layout(model.family, model.architecture, parameters, read)
        write_folder(folder, written, model.texts(), shard_size)
    except Exception as error:
        problem = str(error)
        raise
    finally:
        # Whatever happened, the others wait for the next name.
        ranks.first("")
        ranks.first(problem)


def _follow(parameters: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Take part in putting together each tensor that rank 0 names, until it names none."""
    while name := ranks.first(""):
        _whole(parameters[name])
    problem: str | None = ranks.first(None)
    if problem is not None:
        raise DaybreakError(problem)


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
