"""A folder with a quantised model: written tensor by tensor, read by memory map.

Its tensors have the decoder's own names and the kernels' own order of numbers, so that they are used where
they lie. Other software does not read it; what one leaves with is the folder it was made from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from daybreak import families, settings
from daybreak.checkpoint import folder as files
from daybreak.checkpoint.config import CONFIG, read_config, read_generation
from daybreak.checkpoint.convert import Parts, check_room, new_folder, opened_source, texts_of
from daybreak.checkpoint.fill import empty_decoder, matched
from daybreak.checkpoint.opened import Opened, with_tokenizer
from daybreak.checkpoint.save import Written, to_json, write_folder
from daybreak.checkpoint.stored import Mapping
from daybreak.engine.packed import Packed, pack
from daybreak.engine.quantised import Scheme, quantise
from daybreak.engine.quantised_linear import QuantisedLinear, Quantiser
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder

KEY, METHOD = "quantization_config", "daybreak"


def write_quantised(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    scheme: Scheme,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    shard_size: int | str = "5GB",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Opened:
    """Write the checkpoint `source` (all that `daybreak.load` reads) with the matrices of its blocks and its
    head quantised. In memory is one tensor at a time. What is not quantised keeps its dtype.

    Raises `DaybreakError` for what `daybreak.load` refuses, a destination that is not empty, and a disk
    without room.
    """
    folder = new_folder(destination)
    opened = opened_source(source, None, revision, local_files_only)
    decoder = empty_decoder(opened.architecture)
    uses = matched(opened.spelled or opened.family, decoder, opened.found, opened.folder)
    layers = Quantiser(decoder, scheme).layers
    parts = _QuantisedParts(Parts(uses, opened.architecture, opened.dtype), layers)
    written = [parts.written(name, tensor, opened.dtype) for name, tensor in decoder.state_dict().items()]
    check_room(folder, sum(one.bytes for one in written))
    texts = texts_of(opened, opened.dtype)
    config = {**json.loads(texts[CONFIG]), KEY: {"quant_method": METHOD, **asdict(scheme)}}
    write_folder(folder, written, {**texts, CONFIG: to_json(config)}, shard_size, progress)
    return opened


class _QuantisedParts:
    """The tensors of the new files; of the quantised layers the last is kept."""

    def __init__(self, parts: Parts, layers: dict[str, QuantisedLinear]) -> None:
        self._parts = parts
        self._sources = {id(layer): name for name, layer in layers.items()}
        self._layers = layers
        self._last: tuple[str, Packed] | None = None

    def written(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Written:
        """`tensor` has the shape, and no memory."""
        source = self._source_of(name)
        shape = tuple(tensor.shape)
        if source is None:
            return Written(name, dtype, shape, lambda: iter([self._parts.part(name)]))
        field = name.rpartition(".")[2]
        return Written(name, tensor.dtype, shape, lambda: self._packed(source, field))

    def _source_of(self, name: str) -> str | None:
        """Of a quantised layer's tensor, the parameter that it is made of."""
        layer, _, field = name.rpartition(".")
        if field not in Packed._fields:
            return None
        return "tokens.weight" if f"{layer}.weight" not in self._layers else f"{layer}.weight"

    def _packed(self, source: str, field: str) -> Iterator[Tensor]:
        if self._last is None or self._last[0] != source:
            self._last = None  # before the next one is made
            scheme = self._layers[source].scheme
            self._last = source, pack(quantise(self._parts.part(source), scheme), scheme)
        tensor: Tensor = getattr(self._last[1], field)
        yield tensor


def is_quantised_folder(folder: Path) -> bool:
    """Was it written by `write_quantised`?"""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False  # whoever opens it says so
    method = config.get(KEY) if isinstance(config, dict) else None
    return isinstance(method, dict) and method.get("quant_method") == METHOD


def open_quantised(
    folder: Path, dtype: torch.dtype | None, bits: int | None = None
) -> tuple[Opened, Decoder]:
    """The model; numbers and scales are views of the mapped files, everything else is of `dtype`
    (None: as in the files).

    Raises `DaybreakError` for what is damaged or incomplete, and for other `bits` than it has.
    """
    config = read_config(folder)
    told = {name: value for name, value in config.pop(KEY).items() if name != "quant_method"}
    scheme = settings.build(Scheme, told, f"{folder / CONFIG}: {KEY}")
    if bits not in (None, scheme.bits):
        raise DaybreakError(f"{folder} has weights of {scheme.bits} bits, not {bits}; leave bits out")
    family = families.by_model_type(config["model_type"])
    architecture, tokenizer = with_tokenizer(folder, family, config)
    found = files.weights(folder)
    dtype = dtype or files.dtype_of(config, found)
    decoder = empty_decoder(architecture)
    Quantiser(decoder, scheme)
    mappings = {file: Mapping(file) for file in {stored.file for stored in found.values()}}
    kernels = {name for name, _ in decoder.named_buffers()}  # numbers, scales, and the biases beside them
    state: dict[str, Tensor] = {}
    for name, tensor in decoder.state_dict().items():
        stored = found.get(name)
        if stored is None or stored.shape != tuple(tensor.shape):
            has = "is missing" if stored is None else f"has shape {list(stored.shape)}"
            raise DaybreakError(
                f"{folder}: tensor {name!r} {has}, and the model needs {list(tensor.shape)}; quantise the "
                "checkpoint again"
            )
        state[name] = mappings[stored.file].tensor(stored).to(tensor.dtype if name in kernels else dtype)
    decoder.load_state_dict(state, assign=True)
    opened = Opened(folder, family, architecture, tokenizer, config, read_generation(folder), found, dtype)
    return opened, decoder
