"""GGUF, llama.cpp's format: one file with a model's numbers, its tokenizer and its weights, mostly
quantised.

The gguf package reads the file and knows every way of quantising; weights are made floating point some rows
at a time while the model is filled.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from daybreak import families
from daybreak.checkpoint.folder import dtype_of
from daybreak.checkpoint.opened import Opened, check_rows
from daybreak.checkpoint.stored import Stored
from daybreak.errors import DaybreakError
from daybreak.families import gguf as spellings
from daybreak.text.gguf_tokenizer import from_gguf

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
AGAIN = "it is damaged or was not downloaded whole; fetch it again"


def open_gguf(file: Path) -> Opened:
    """What a file holds; the weights stay where they are. Raises `DaybreakError` for a file that is damaged,
    not of an architecture known here, or that says what is not known.
    """
    reader = _open(file)
    metadata = _metadata(file, reader)
    found = {tensor.name: _stored(file, tensor) for tensor in reader.tensors}
    tied = _is_tied(reader)
    if tied:
        found.pop(HEAD, None)
    try:
        config = _config(metadata, found, tied) | _special(metadata)
        family = families.by_model_type(config["model_type"])
        architecture = family.read(config)
    except DaybreakError as error:
        raise DaybreakError(f"{file}: {error}") from None
    tokenizer = from_gguf(file, metadata)
    check_rows(file, tokenizer, architecture.vocabulary)
    dtype = dtype_of({}, found)
    spelled = spellings.spelled_so(family)
    return Opened(file, family, architecture, tokenizer, config, _generation(metadata), found, dtype, spelled)


def _config(metadata: Mapping[str, Any], found: Mapping[str, Stored], tied: bool) -> dict[str, Any]:
    """What config.json would say."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise DaybreakError("the GGUF file has no general.architecture, so the family is unknown")
    kind, parts = metadata.get("general.type", "model"), metadata.get("split.count", 1)
    if kind != "model" or not isinstance(parts, int) or parts > 1:
        raise DaybreakError(
            f"this is no whole model, but of type {kind!r} in {parts} parts (general.type, split.count); "
            "give one that is"
        )
    start = architecture + "."
    own = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
    shapes = {name: stored.shape for name, stored in found.items()}
    return spellings.read(architecture, spellings.Metadata(own, shapes, tied))


def _open(file: Path) -> GGUFReader:
    from gguf import GGUFReader, GGUFValueType

    class Careful(GGUFReader):
        """Never reads past the end, where the library would see nothing and go on."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            needed = int(offset) + np.dtype(dtype).itemsize * int(count)
            if needed > len(self.data):
                raise ValueError(f"it ends at byte {len(self.data)}, its contents at byte {needed}")
            # A slice of np.memmap takes three times as long.
            self.data = self.data.view(np.ndarray)  # type: ignore[assignment]
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            """Lists of texts, which are long, in one pass; all else as the library does it."""
            start = int(orig_offs)
            if raw_type != GGUFValueType.ARRAY or self._get(start, np.uint32)[0] != GGUFValueType.STRING:
                return super()._get_field_parts(orig_offs, raw_type)
            head = [self._get(start, np.uint32), self._get(start + 4, np.uint64)]
            texts, at = [], start + 12
            for _ in range(int(head[1][0])):
                length = int.from_bytes(self.data[at : at + 8].tobytes(), sys.byteorder)
                at += 8 + length
                if at > len(self.data):
                    raise ValueError(f"it ends at byte {len(self.data)}, its contents at byte {at}")
                texts.append(self.data[at - length : at])
            types = [GGUFValueType.ARRAY, GGUFValueType.STRING][: 1 + bool(texts)]
            return at - start, [*head, *texts], list(range(2, 2 + len(texts))), types

    try:
        reader = Careful(file)
    except OSError as error:
        raise DaybreakError(f"{file} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # whatever the library stumbles over in a damaged file
        if "GGMLQuantizationType" in str(error):
            raise DaybreakError(
                f"{file} holds tensors of a type that the gguf package does not know ({error}); update it "
                "with 'pip install -U gguf', or take a file of another quantisation"
            ) from None
        raise DaybreakError(f"{file} is no GGUF file that can be read ({error}): {AGAIN}") from None
    if reader.byte_order != "I":
        raise DaybreakError(f"{file} is written for big-endian machines; take the little-endian file")
    return reader


def _metadata(file: Path, reader: GGUFReader) -> dict[str, Any]:
    from gguf import GGUFValueType

    def plain(value: Any, types: list[GGUFValueType]) -> Any:
        # The shortest decimal that is this float32: what the model's own config.json says.
        return float(str(np.float32(value))) if types == [GGUFValueType.FLOAT32] else value

    try:
        return {name: plain(field.contents(), field.types) for name, field in reader.fields.items()}
    except UnicodeDecodeError as error:
        raise DaybreakError(f"{file} holds text that is no text ({error}): {AGAIN}") from None


def _stored(file: Path, tensor: ReaderTensor) -> Stored:
    shape = tuple(int(length) for length in reversed(tensor.shape.tolist()))
    dtype = PLAIN.get(tensor.tensor_type.name)
    if dtype is not None:
        return Stored(tensor.name, file, dtype, shape, int(tensor.data_offset))
    return Stored(tensor.name, file, torch.float32, shape, rows=_Quantised.of(file, tensor, shape))


@dataclass(frozen=True, eq=False)
class _Quantised:
    """A quantised tensor, made floating point row by row."""

    shape: tuple[int, ...]
    packed: np.ndarray[Any, Any]
    """The bytes in the file, as many rows."""
    kind: Any
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, file: Path, tensor: ReaderTensor, shape: tuple[int, ...]) -> _Quantised:
        from gguf import GGML_QUANT_SIZES, dequantize

        block, size = GGML_QUANT_SIZES[tensor.tensor_type]
        try:
            dequantize(np.zeros((1, size), dtype=np.uint8), tensor.tensor_type)
        except NotImplementedError:
            raise DaybreakError(
                f"{file}: tensor {tensor.name!r} is of type {tensor.tensor_type.name}, which the gguf "
                "package cannot turn into floating point; take a file of another quantisation"
            ) from None
        if not shape or shape[-1] % block:
            raise DaybreakError(f"{file}: tensor {tensor.name!r} has rows that are no whole blocks: {AGAIN}")
        return cls(shape, tensor.data, tensor.tensor_type)

    def read(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last` in float32."""
        from gguf import dequantize

        return torch.from_numpy(dequantize(self.packed[first:last], self.kind).astype(np.float32, copy=False))

    def release(self) -> None:
        """Pages of the file are shared with the system, which takes them back by itself."""


def _is_tied(reader: GGUFReader) -> bool:
    """Some converters write the tied embedding twice."""
    tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name in (EMBEDDING, HEAD)}
    if HEAD not in tensors or EMBEDDING not in tensors:
        return HEAD not in tensors
    first, second = tensors[EMBEDDING], tensors[HEAD]
    alike = (first.tensor_type, first.data.shape) == (second.tensor_type, second.data.shape)
    return alike and np.array_equal(first.data.view(np.uint8), second.data.view(np.uint8))


def _special(metadata: Mapping[str, Any]) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    told = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in names.items()}
    return {f"{role}_token_id": number for role, number in told.items() if isinstance(number, int)}


def _generation(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What generation_config.json would say: where the text starts and ends.

    The end of a message (`eot`) ends a text like the end of all text, as in llama.cpp.
    """
    told = _special(metadata)
    ends = [told.get("eos_token_id"), metadata.get("tokenizer.ggml.eot_token_id")]
    known = list(dict.fromkeys(number for number in ends if isinstance(number, int)))
    if known:
        told["eos_token_id"] = known[0] if len(known) == 1 else known
    return told
