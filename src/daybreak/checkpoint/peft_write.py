"""Writing adapters as PEFT does, so that it computes the same with them.

Where transformers holds queries, keys and values as one map, PEFT has one A for them. Three that share their
A are written as they are; three with an A each become one of three times the rank: its A has the rows of all
three, and its B each one's columns where its A stands, and zeros else.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from daybreak.architecture import Architecture
from daybreak.checkpoint import peft_config as files
from daybreak.checkpoint.peft_config import CONFIG, Placed
from daybreak.checkpoint.peft_places import OF_TABLES, PARTS, PREFIX, WEIGHTS, Place, modules, places
from daybreak.checkpoint.save import to_json
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.model.adapters import of, settings_of
from daybreak.model.decoder import Decoder
from daybreak.model.lora import Lora, Whole
from daybreak.model.lora_settings import maps


def save(folder: Path, family: Family, decoder: Decoder, name: str, source: str | None = None) -> None:
    """Write an adapter as PEFT does; `source` is the model's name for the file. Raises `DaybreakError` for
    one that PEFT's files cannot hold.
    """
    parts, settings = of(decoder, name), settings_of(decoder, name)
    placed: dict[str, Placed] = {}
    tensors: dict[str, Tensor] = {}
    whole, turned = [], False
    every = places(family, decoder.architecture)
    for place in every:
        own = [parts.pop(one, None) for one in place.ours]
        if all(part is None for part in own):
            continue
        if any(isinstance(part, Whole) for part in own):
            tensors.update(_written_whole(place, own, decoder.architecture))
            whole.append(place.theirs)
            continue
        placed[place.theirs], found = written_lora(place, own, decoder.architecture, settings.rslora)
        tensors.update(found)
        turned = turned or (not place.is_table and place.rows is not place.layout)
    if parts:
        raise DaybreakError(
            f"PEFT's files have no name for {min(parts)} of {family.title}, so the adapter cannot be saved"
        )
    config = files.write(
        placed,
        whole,
        modules(family, decoder.architecture),
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        rslora=settings.rslora,
        turned=turned,
        source=source,
    )
    _write(folder, tensors, to_json(config))


def _written_whole(
    place: Place, own: Sequence[nn.Module | None], architecture: Architecture
) -> dict[str, Tensor]:
    if not all(isinstance(part, Whole) for part in own):
        raise DaybreakError(
            f"{' and '.join(place.ours)} are one module, {place.theirs}, in PEFT's files: either all of them "
            "are whole or none"
        )
    found = {}
    for end, layout in (("weight", place.layout), ("bias", place.rows)):
        parts = [getattr(part, end) for part in own]
        if parts[0] is not None:
            found[f"{place.theirs}.{end}"] = layout.join([part.detach() for part in parts], architecture)
    return found


def written_lora(
    place: Place, own: Sequence[nn.Module | None], architecture: Architecture, rslora: bool
) -> tuple[Placed, dict[str, Tensor]]:
    """A and B of a module; where its maps do not share one A, those of all of them below each other."""
    loras = [part for part in own if isinstance(part, Lora)]
    if len({part.scale for part in loras}) > 1:
        raise DaybreakError(
            f"{' and '.join(place.ours)} are one module, {place.theirs}, in PEFT's files, but their adapters "
            f"are multiplied by {', '.join(str(part.scale) for part in loras)}; give them one alpha and rank"
        )
    stacked, begins = _stacked([part.a.detach() for part in loras])
    rank, first = sum(map(len, stacked)), loras[0]
    rows, place_of = [], iter(begins)
    for name, part in zip(place.ours, own, strict=True):
        whole = first.b.new_zeros(maps(architecture)[name][1], rank)
        if isinstance(part, Lora):
            begin = next(place_of)
            whole[:, begin : begin + part.rank] = part.b.detach()
        rows.append(whole)
    a_name, b_name = OF_TABLES if place.is_table else PARTS
    tensors = {
        f"{place.theirs}.{a_name}": torch.cat(stacked),
        f"{place.theirs}.{b_name}": place.rows.join(rows, architecture),
    }
    alpha = first.alpha
    if rank != first.rank:  # so that alpha / rank, or alpha / sqrt(rank), stays what it is
        alpha = alpha * (rank / first.rank) ** 0.5 if rslora else alpha * rank / first.rank
    return Placed(rank, alpha), tensors


def _stacked(parts: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Each different A once, and for each of `parts` the row where its own begins."""
    different: list[Tensor] = []
    begins = []
    for part in parts:
        same = [
            number
            for number, one in enumerate(different)
            if one.shape == part.shape and torch.equal(one, part)
        ]
        if not same:
            different.append(part)
        number = same[0] if same else len(different) - 1
        begins.append(sum(map(len, different[:number])))
    return different, begins


def _write(folder: Path, tensors: Mapping[str, Tensor], config: bytes) -> None:
    """Both files, or, where that fails, what was there."""
    from safetensors.torch import save

    named = {PREFIX + name: tensors[name].cpu().contiguous() for name in sorted(tensors)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
            for name, data in ((WEIGHTS, save(named, {"format": "pt"})), (CONFIG, config)):
                (Path(scratch) / name).write_bytes(data)
            for name in (WEIGHTS, CONFIG):
                os.replace(Path(scratch) / name, folder / name)
    except OSError as error:
        raise DaybreakError(f"{folder} cannot be written: {error.strerror or error}") from None
