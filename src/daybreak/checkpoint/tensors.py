"""Weight files, their tables of contents read and nothing executed: safetensors, and torch's format through
the weights-only unpickler."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import Any

import torch

from daybreak.checkpoint.stored import Stored
from daybreak.errors import DaybreakError

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LARGEST_HEADER = 100_000_000
"""The format's own limit; a larger number at the start means that the file is something else."""
AGAIN = "it is damaged or was not downloaded whole; fetch it again"


def contents(file: Path) -> list[Stored]:
    """The tensors of a weight file in the order in which they lie there. Raises `DaybreakError` if it is
    damaged."""
    try:
        with file.open("rb"):
            size = file.stat().st_size
    except OSError as error:
        raise DaybreakError(f"{file} cannot be read: {error.strerror or error}") from None
    found = _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
    for stored in found:
        if stored.loaded is None and stored.offset + stored.bytes > size:
            raise DaybreakError(
                f"{file} ends at byte {size}, before the end of its tensor {stored.name!r} "
                f"at {stored.offset + stored.bytes}: {AGAIN}"
            )
    return sorted(found, key=lambda stored: stored.offset)


def _safetensors(file: Path) -> list[Stored]:
    header, start = _header(file)
    header.pop("__metadata__", None)
    return [_safetensor(file, name, entry, start) for name, entry in header.items()]


def _header(file: Path) -> tuple[dict[str, Any], int]:
    # Eight bytes of length, a JSON table of that length, then the data that the table's offsets count from.
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        text = handle.read(length) if 0 < length <= LARGEST_HEADER else b""
    try:
        header = json.loads(text) if len(text) == length else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise DaybreakError(f"{file} does not start with a table of tensors as safetensors files do: {AGAIN}")
    return header, 8 + length


def _safetensor(file: Path, name: str, entry: Any, start: int) -> Stored:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(map(int, entry["shape"])), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise DaybreakError(f"{file} describes tensor {name!r} by {entry!r}: {AGAIN}") from None
    if dtype not in SAFETENSORS_DTYPES:
        raise DaybreakError(
            f"{file} stores tensor {name!r} as {dtype}; known are {', '.join(SAFETENSORS_DTYPES)}"
        )
    stored = Stored(name, file, SAFETENSORS_DTYPES[dtype], shape, start + begin)
    if begin < 0 or end - begin != stored.bytes or min(shape, default=1) < 0:
        raise DaybreakError(
            f"{file} gives tensor {name!r} of shape {list(shape)} {end - begin} bytes: {AGAIN}"
        )
    return stored


def _pickled(file: Path) -> list[Stored]:
    # Under fake tensors torch reads only the table (names, shapes, places) of a file; the data is mapped
    # later, as for safetensors. weights_only refuses everything but tensors and plain containers.
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        if _is_mappable(tensors):
            return [_fake(file, name, tensor) for name, tensor in tensors.items()]
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DaybreakError(
            f"{file} holds more than tensors, so it is not opened, because that could run code: "
            f"{_first_line(error)}; "
            "use a safetensors version of the checkpoint"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DaybreakError(f"{file} is no file of torch's: {_first_line(error)}; {AGAIN}") from None
    return [_loaded(file, name, tensor) for name, tensor in _named(file, tensors).items()]


def _is_mappable(tensors: Any) -> bool:
    return isinstance(tensors, dict) and all(
        isinstance(tensor, torch.Tensor) and _offset(tensor) is not None for tensor in tensors.values()
    )


def _offset(tensor: torch.Tensor) -> int | None:
    """First byte of the tensor's storage in the file; None where the file is of the format before 1.6."""
    offset: int | None = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    return offset


def _fake(file: Path, name: str, tensor: torch.Tensor) -> Stored:
    offset = (_offset(tensor) or 0) + int(tensor.storage_offset()) * tensor.element_size()
    strides = None if tensor.is_contiguous() else tuple(tensor.stride())
    return Stored(str(name), file, tensor.dtype, tuple(tensor.shape), offset, strides)


def _loaded(file: Path, name: str, tensor: Any) -> Stored:
    if not isinstance(tensor, torch.Tensor):
        raise DaybreakError(
            f"{file} holds {name!r}, which is no tensor but {type(tensor).__name__}; expected weights only"
        )
    return Stored(str(name), file, tensor.dtype, tuple(tensor.shape), loaded=tensor.detach())


def _named(file: Path, tensors: Any) -> Dict[str, Any]:
    if not isinstance(tensors, dict):
        raise DaybreakError(
            f"{file} holds {type(tensors).__name__}; a dictionary of tensors by name is needed"
        )
    return tensors


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(". ")
