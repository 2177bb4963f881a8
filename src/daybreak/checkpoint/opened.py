"""A checkpoint's folder, opened: all that is known of the model but its weights, and where each of these
lies.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.checkpoint import folder as files
from daybreak.checkpoint.arrays import is_array_release, read_arrays
from daybreak.checkpoint.config import own_quantisation, read_config, read_generation
from daybreak.checkpoint.fill import expected_shapes
from daybreak.checkpoint.quantised import unpacked, without_packing
from daybreak.checkpoint.shards import is_shard_release, read_shards
from daybreak.checkpoint.stored import Mapping, Stored
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.text.blank_tokens import settled
from daybreak.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Opened:
    """What a folder holds; the tensors are found and not read."""

    folder: Path
    family: Family
    architecture: Architecture
    tokenizer: Tokenizer | None
    config: dict[str, Any]
    """config.json as it was read, or what it would say where there is none."""
    generation: dict[str, Any]
    """generation_config.json as it was read."""
    found: dict[str, Stored]
    dtype: torch.dtype
    """Of the file: as config.json names it, or else that of the largest tensor."""
    spelled: Family | None = None
    """The family with the names and layouts that the tensors have in the file, where they are not its own."""


def open_folder(folder: Path, shape: tuple[Family, Architecture] | None = None) -> Opened:
    """Find out what a checkpoint's folder holds. `shape` says what shards of training are, which do not say
    it themselves. Raises `DaybreakError` for what is damaged, incomplete, or not of a supported family.
    """
    config, found = _tables(folder, shape)
    if own_quantisation(config) is not None:
        raise DaybreakError(
            f"{folder} was written by daybreak quantize, and can be loaded but not made into something else; "
            "take the checkpoint that it was made from"
        )
    family = families.by_model_type(config["model_type"])
    architecture, tokenizer = with_tokenizer(folder, family, config)
    found = _unpacked(found, family, architecture)
    config = without_packing(config, found, folder)
    dtype = files.dtype_of(config, found)
    return Opened(folder, family, architecture, tokenizer, config, read_generation(folder), found, dtype)


def with_tokenizer(
    folder: Path, family: Family, config: dict[str, Any]
) -> tuple[Architecture, Tokenizer | None]:
    """What config.json and the tokenizer's files beside it say together."""
    architecture = family.read(config)
    bos = family.special_tokens.get("bos_token_id")
    # A relative may be of a family whose texts start with bos, but have another bos and not do so.
    starts = family.starts_with_bos and config.get("bos_token_id", bos) == bos
    tokenizer = Tokenizer.load(folder, starts_with_bos=starts)
    check_rows(folder, tokenizer, architecture.vocabulary)
    said = any(config.get(key) is not None for key in ("mask_token_id", "gmask_token_id"))
    return settled(architecture, tokenizer, family.blank_tokens, said=said), tokenizer


def _tables(
    folder: Path, shape: tuple[Family, Architecture] | None
) -> tuple[dict[str, Any], dict[str, Stored]]:
    """config.json and the tensors by name, of every kind of folder."""
    if is_array_release(folder):
        return read_arrays(folder)
    if is_shard_release(folder):
        return read_shards(folder, shape)
    if shape is not None:
        raise DaybreakError(
            f"{folder} has a config.json of its own, so its size is known; leave the size out"
        )
    return read_config(folder), files.weights(folder)


def _unpacked(found: Dict[str, Stored], family: Family, architecture: Architecture) -> dict[str, Stored]:
    packed = [stored for stored in found.values() if stored.dtype == torch.int8 and stored.rows is None]
    if not packed:
        return dict(found)
    mappings = {file: Mapping(file) for file in {stored.file for stored in found.values()}}
    return unpacked(found, expected_shapes(family, architecture), mappings)


def check_rows(folder: Path, tokenizer: Tokenizer | None, rows: int) -> None:
    """Rows without an id are usual, padding for the hardware; ids without a row are a mistake.

    But for special tokens: many a fine-tune added [PAD] to the tokenizer alone, and it is never read. Where a
    text has such a token after all, reading it is refused.
    """
    if tokenizer is None:
        return
    special = set(tokenizer.specials.values())
    if any(number not in special for number in range(rows, tokenizer.vocabulary)):
        raise DaybreakError(
            f"{folder}: the tokenizer gives ids up to {tokenizer.vocabulary - 1}, but the model has {rows} "
            "rows for them; take the tokenizer's files from the same checkpoint, or remove tokens that were "
            "added to it alone"
        )
