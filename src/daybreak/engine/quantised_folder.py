"""A folder with a quantised model: written tensor by tensor, read by memory map.

Its tensors have the decoder's own names and the kernels' own order of numbers, so that they are used where
they lie. Other software does not read it; what one leaves with is the folder it was made from.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from daybreak import families, settings
from daybreak.checkpoint import folder as files
from daybreak.checkpoint.config import (
    CONFIG,
    METHOD,
    QUANTISED,
    own_quantisation,
    read_config,
    read_generation,
    read_json,
)
from daybreak.checkpoint.convert import Parts, check_room, new_folder, texts_of
from daybreak.checkpoint.fill import FLOATING, empty_decoder, matched
from daybreak.checkpoint.opened import Opened, with_tokenizer
from daybreak.checkpoint.save import Written, to_json, write_folder
from daybreak.checkpoint.stored import Mapping, Stored
from daybreak.engine.calibration import calibrate
from daybreak.engine.packed import Packed, packed
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_linear import TOKENS, QuantisedMatrix, Quantiser
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder

ALIGNMENT = 64
"""Bytes: a block's 4 inputs of 16 rows with 8 bits. All packed tensors are whole multiples of it."""

AGAIN = "quantise the checkpoint again"


def write_quantised(
    opened: Opened,
    destination: str | os.PathLike[str],
    scheme: Scheme,
    *,
    shard_size: int | str = "5GB",
    progress: Callable[[int, int], None] = lambda done, total: None,
    texts: Sequence[Tensor] = (),
) -> None:
    """Write the checkpoint `opened` with the matrices of its blocks and its head quantised, and its token
    embedding if `scheme` says so. In memory is one tensor at a time, and what becomes of it. What is not
    quantised keeps its dtype.

    With `texts`, each [length] token ids, they are calibrated on them (see `daybreak.engine.calibration`).
    That has a progress of its own, before that of writing, and takes the room of the folder twice until it is
    finished.

    Raises `DaybreakError` for what `daybreak.load` refuses, a destination that is not empty, weights that are
    not finite, and a disk without room. Nothing is left where it fails.
    """
    folder = new_folder(destination)
    decoder = empty_decoder(opened.architecture)
    uses = matched(opened.spelled or opened.family, decoder, opened.found, opened.folder)
    layers = Quantiser(decoder, scheme).layers
    parts = Parts(uses, opened.architecture, opened.dtype)
    beside = texts_of(opened, opened.dtype)
    config = {**json.loads(beside[CONFIG]), QUANTISED: {**METHOD, **asdict(scheme)}}
    with _scratch(folder, bool(texts)) as scratch:
        known: dict[str, Packed] = {}
        new = _QuantisedParts(parts, layers, known)
        written = [new.written(name, tensor, opened.dtype) for name, tensor in decoder.state_dict().items()]
        check_room(folder, sum(one.bytes for one in written) * (2 if texts else 1))
        if texts:
            known.update(calibrate(parts, opened.architecture, scheme, texts, scratch, progress))
        write_folder(folder, written, {**beside, CONFIG: to_json(config)}, shard_size, progress)


@contextmanager
def _scratch(folder: Path, wanted: bool) -> Iterator[Path]:
    """A folder for what is calibrated, in `folder`, where the room is; nothing is left of either where
    something fails."""
    if not wanted:
        yield folder
        return
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".calibrating-") as name:
            yield Path(name)
    except BaseException:
        if created:
            shutil.rmtree(folder, ignore_errors=True)
        raise


class _QuantisedParts:
    """The tensors of the new files. Those of a quantised layer stand one after another, so that only the last
    layer is kept."""

    def __init__(self, parts: Parts, layers: dict[str, QuantisedMatrix], known: dict[str, Packed]) -> None:
        self._parts = parts
        self._known = known
        self._layers = layers
        self._last: tuple[str, Packed] | None = None

    def written(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Written:
        """`tensor` has the shape, and no memory."""
        source = self._source_of(name)
        shape = tuple(tensor.shape)
        if source is None:
            return Written(name, dtype, shape, lambda: iter([self._parts.part(name)]))
        field = name.rpartition(".")[2]
        return Written(name, tensor.dtype, shape, lambda: self._packed(source, field), ALIGNMENT)

    def _source_of(self, name: str) -> str | None:
        """Of a quantised layer's tensor, the parameter that it is made of."""
        layer, _, field = name.rpartition(".")
        if field not in Packed._fields:
            return None
        return TOKENS if f"{layer}.weight" not in self._layers else f"{layer}.weight"

    def _packed(self, source: str, field: str) -> Iterator[Tensor]:
        if source in self._known:
            self._last = source, self._known[source]
        elif self._last is None or self._last[0] != source:
            self._last = None  # before the next one is made
            self._last = source, packed(self._parts.part(source), self._layers[source].scheme, source)
        tensor: Tensor = getattr(self._last[1], field)
        yield tensor


def is_quantised_folder(folder: Path) -> bool:
    """Was it written by `write_quantised`?"""
    try:
        return own_quantisation(read_json(folder / CONFIG)) is not None
    except DaybreakError:
        return False  # whoever opens it says so


def open_quantised(
    folder: Path, dtype: torch.dtype | None, bits: int | None = None, embeddings: bool = False
) -> tuple[Opened, Decoder]:
    """The model; numbers and scales are views of the mapped files, everything else is of `dtype`
    (None: as in the files).

    Raises `DaybreakError` for what is damaged or incomplete, and where other `bits` or quantised `embeddings`
    are asked for than it has.
    """
    config = read_config(folder)
    told = own_quantisation(config)
    assert told is not None
    del config[QUANTISED]
    scheme = settings.build(Scheme, told, f"{folder / CONFIG}: {QUANTISED}")
    if bits not in (None, scheme.bits):
        raise DaybreakError(f"{folder} has weights of {scheme.bits} bits, not {bits}; leave bits out")
    if embeddings and not scheme.embeddings:
        raise DaybreakError(f"{folder} has its token embedding whole; leave embeddings out")
    family = families.by_model_type(config["model_type"])
    architecture, tokenizer = with_tokenizer(folder, family, config)
    found = files.weights(folder)
    dtype = dtype or files.dtype_of(config, found)
    decoder = empty_decoder(architecture)
    Quantiser(decoder, scheme, dtype)
    decoder.load_state_dict(_state(decoder, found, dtype, folder), assign=True)
    opened = Opened(folder, family, architecture, tokenizer, config, read_generation(folder), found, dtype)
    return opened, decoder


def _state(decoder: Decoder, found: dict[str, Stored], dtype: torch.dtype, folder: Path) -> dict[str, Tensor]:
    """The tensors of `decoder`, which has none yet."""
    wanted = decoder.state_dict()
    if unknown := sorted(found.keys() - wanted.keys()):
        raise DaybreakError(f"{folder}: tensor {unknown[0]!r} is none of the model's; {AGAIN}")
    mappings = {file: Mapping(file) for file in {stored.file for stored in found.values()}}
    buffers = {name for name, _ in decoder.named_buffers()}  # numbers, scales, and the biases beside them
    state: dict[str, Tensor] = {}
    for name, tensor in wanted.items():
        stored = _checked(name, found.get(name), tensor, folder)
        state[name] = mappings[stored.file].tensor(stored).to(tensor.dtype if name in buffers else dtype)
    return state


def _checked(name: str, stored: Stored | None, wanted: Tensor, folder: Path) -> Stored:
    """`stored`, found and of the shape and kind of `wanted`."""
    if stored is None:
        raise DaybreakError(f"{folder} has no tensor {name!r}; {AGAIN}")
    if stored.shape != tuple(wanted.shape):
        shapes = f"has shape {list(stored.shape)}, and the model needs {list(wanted.shape)}"
        raise DaybreakError(f"{folder}: tensor {name!r} {shapes}; {AGAIN}")
    exact = name.rpartition(".")[2] in Packed._fields
    if stored.dtype != wanted.dtype if exact else stored.dtype not in FLOATING:
        kinds = f"is of {stored.dtype}, and the model needs {wanted.dtype}"
        raise DaybreakError(f"{folder}: tensor {name!r} {kinds}; {AGAIN}")
    return stored
