"""Reading adapters in PEFT's files, adapter_config.json and adapter_model.safetensors, exactly.

PEFT names the modules of transformers, where some families hold queries, keys and values as one map. The
LoRA of such a map has one A, and a B whose rows are laid out as the rows of the map's weights: it becomes
three that share their A.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from daybreak.architecture import Architecture
from daybreak.checkpoint import peft_config as files
from daybreak.checkpoint.peft_config import PeftConfig
from daybreak.checkpoint.peft_places import OF_TABLES, PARTS, PICKLED, PREFIX, WEIGHTS, Place, places
from daybreak.checkpoint.stored import Mapping as Mapped
from daybreak.checkpoint.tensors import contents
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.model.adapters import attach, prepared, whole_of
from daybreak.model.decoder import Decoder
from daybreak.model.lora import Lora, LoraEmbedding
from daybreak.model.lora_settings import LoraSettings, described, maps

OTHER = "take an adapter that was trained on this model"


def load(folder: Path, family: Family, decoder: Decoder, name: str) -> None:
    """Give the decoder the adapter in `folder`, under this name, and use it.

    Raises `DaybreakError` for a tensor that is missing, unexpected or of another shape, and for what would
    compute something else.
    """
    switch = prepared(decoder, name)
    config, tensors = files.read(folder), _tensors(folder)
    _drop_base_tables(decoder, family, tensors, folder)
    made: dict[str, nn.Module] = {}
    shared = False
    for place in places(family, decoder.architecture, older=True):
        for module in (place.theirs, *place.also):
            part = read_lora(place, module, config, tensors, decoder.architecture)
            part = part or _read_whole(place, module, tensors, decoder)
            if twice := part.keys() & made.keys():
                raise DaybreakError(f"{folder} holds an adapter of {min(twice)} twice, under two names")
            made.update(part)
            shared = shared or len(part) > 1
    if tensors:
        raise DaybreakError(
            f"{folder} holds {min(tensors)!r}, which belongs to no map of this {family.title}; {OTHER}"
        )
    low = [own for own, part in made.items() if isinstance(part, Lora)]
    if not low:
        raise DaybreakError(
            f"{folder} holds no A and B of any map; it is not the adapter of a language model"
        )
    settings = LoraSettings(
        rank=config.rank,
        alpha=float(config.alpha),
        dropout=config.dropout,
        targets=described(decoder.architecture, low),
        rslora=config.rslora,
        shared=shared,
        whole=described(decoder.architecture, [own for own in made if own not in low]),
    )
    attach(decoder, switch, name, settings, made)


def _tensors(folder: Path) -> dict[str, Tensor]:
    """By their names without PEFT's prefix, in float32."""
    file = folder / (WEIGHTS if (folder / WEIGHTS).exists() or not (folder / PICKLED).exists() else PICKLED)
    found = contents(file)
    if not found:
        raise DaybreakError(f"{file} holds no tensors")
    mapped, tensors = Mapped(file), {}
    for stored in found:
        if not stored.name.startswith(PREFIX):
            raise DaybreakError(
                f"{file} holds {stored.name!r}, where PEFT's names begin with {PREFIX}; save it with PEFT"
            )
        if not stored.dtype.is_floating_point:
            raise DaybreakError(f"{file} holds {stored.name!r} as {stored.dtype}, which is no floating point")
        tensors[stored.name.removeprefix(PREFIX)] = mapped.tensor(stored).float().clone()
    return tensors


def _drop_base_tables(decoder: Decoder, family: Family, tensors: dict[str, Tensor], folder: Path) -> None:
    """PEFT puts a copy of the model's own table beside an adapter of it. One that is another table means that
    the adapter belongs to another model.
    """
    for place in places(family, decoder.architecture, older=True):
        for module in (place.theirs, *place.also):
            copy = tensors.pop(f"{module}.base_layer.weight", None)
            if copy is None:
                continue
            own = _own_weight(decoder, "tokens" if "tied_head" in place.ours else place.ours[0])
            if own is not None and not _is_copy(copy, own):
                raise DaybreakError(
                    f"{folder} brings its own {module} along, which is not this model's; {OTHER}"
                )


def _own_weight(decoder: Decoder, name: str) -> Tensor | None:
    """None: it has few bits, so it cannot be compared."""
    module = decoder.get_submodule(name)
    return module.weight if isinstance(module, nn.Linear | nn.Embedding) else None


def _is_copy(copy: Tensor, own: Tensor) -> bool:
    """Either may have been rounded: this model was read in another dtype than where the adapter was trained,
    or the other way round."""
    rounded = (own.to(dtype).to(copy) for dtype in (torch.bfloat16, torch.float16))
    return torch.equal(own, copy.to(own)) or any(torch.equal(one, copy) for one in rounded)


def read_lora(
    place: Place, module: str, config: PeftConfig, tensors: dict[str, Tensor], architecture: Architecture
) -> dict[str, nn.Module]:
    """Takes A and B of a module out of `tensors`; one adapter for each of the maps that it holds."""
    ends = OF_TABLES if place.is_table else PARTS
    a, b = (tensors.pop(f"{module}.{end}", None) for end in ends)
    if a is None and b is None:
        return {}
    shapes = [maps(architecture)[own] for own in place.ours]
    rank, alpha = config.rank_of(module), config.alpha_of(module)
    inputs, outputs = shapes[0][0], sum(shape[1] for shape in shapes)
    for end, tensor, wanted in zip(ends, (a, b), ([rank, inputs], [outputs, rank]), strict=True):
        shape = None if tensor is None else list(tensor.shape)
        if shape != wanted:
            found = "is missing" if shape is None else f"has shape {shape}"
            raise DaybreakError(
                f"{module}.{end} of the adapter {found}; rank {rank} and this model make it {wanted}: {OTHER}"
            )
    assert a is not None and b is not None
    shared = nn.Parameter(a)
    kind = LoraEmbedding if place.is_table else Lora
    made: dict[str, nn.Module] = {}
    for own, sizes, part in zip(place.ours, shapes, place.rows.split(b, architecture), strict=True):
        lora = kind(*sizes, rank, float(alpha), config.rslora, config.dropout)
        lora.a, lora.b = shared, nn.Parameter(part.contiguous())
        made[own] = lora
    return made


def _read_whole(
    place: Place, module: str, tensors: dict[str, Tensor], decoder: Decoder
) -> dict[str, nn.Module]:
    """Takes a module that is stored whole out of `tensors`."""
    found = {end: tensors.pop(f"{module}.{end}", None) for end in ("weight", "bias")}
    if found["weight"] is None:
        return {}
    made: dict[str, nn.Module] = {own: whole_of(decoder, own) for own in place.ours}
    for end, layout in (("weight", place.layout), ("bias", place.rows)):
        own = [getattr(part, end) for part in made.values()]
        tensor = found[end]
        wanted = None if own[0] is None else layout.shape([tuple(one.shape) for one in own])
        if (None if tensor is None else tuple(tensor.shape)) != wanted:
            raise DaybreakError(
                f"{module}.{end} of the adapter has shape {None if tensor is None else list(tensor.shape)}; "
                f"this model makes it {wanted and list(wanted)}: {OTHER}"
            )
        if tensor is not None:
            for part, piece in zip(made.values(), layout.split(tensor, decoder.architecture), strict=True):
                setattr(part, end, nn.Parameter(piece.to(getattr(part, end).dtype).contiguous()))
    return made
