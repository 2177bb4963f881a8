"""Weight files, their tables of contents read and nothing executed: safetensors, and torch's format through
the weights-only unpickler."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping as Dict
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch

from daybreak.checkpoint.inert import passed_over
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
_DAMAGE = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    StopIteration, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What torch raises for pickles that are cut short or make no sense."""


def contents(file: Path, entry: str | None = None) -> list[Stored]:
    """The tensors of a weight file in the order in which they lie there. Raises `DaybreakError` if it is
    damaged.

    A file of torch's may hold them in one `entry` among others; objects elsewhere in it are passed over.
    """
    try:
        with file.open("rb"):
            size = file.stat().st_size
    except OSError as error:
        raise DaybreakError(f"{file} cannot be read: {error.strerror or error}") from None
    found = _safetensors(file) if file.suffix == ".safetensors" else _pickled(file, entry)
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
        dtype, shape, places = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError):
        dtype = shape = places = None
    if not isinstance(dtype, str) or not _is_whole(shape) or not _is_whole(places) or len(places) != 2:
        raise DaybreakError(f"{file} describes tensor {name!r} by {entry!r}: {AGAIN}")
    if dtype not in SAFETENSORS_DTYPES:
        raise DaybreakError(
            f"{file} stores tensor {name!r} as {dtype}; known are {', '.join(SAFETENSORS_DTYPES)}"
        )
    begin, end = places
    stored = Stored(name, file, SAFETENSORS_DTYPES[dtype], tuple(shape), start + begin)
    if begin < 0 or end - begin != stored.bytes or min(shape, default=1) < 0:
        raise DaybreakError(f"{file} gives tensor {name!r} of shape {shape} {end - begin} bytes: {AGAIN}")
    return stored


def _is_whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)


def _pickled(file: Path, entry: str | None) -> list[Stored]:
    # Under fake tensors torch reads only the table (names, shapes, places) of a file; the data is mapped
    # later, as for safetensors. weights_only refuses everything but tensors and plain containers.
    from torch._subclasses.fake_tensor import FakeTensorMode

    records = _records(file)
    try:
        with passed_over(file) if entry is not None and records else nullcontext():
            with FakeTensorMode():
                tensors = _entry(file, torch.load(file, map_location="cpu", weights_only=True), entry)
            if _is_mappable(tensors, records):
                return [_fake(file, name, tensor) for name, tensor in tensors.items()]
            tensors = _entry(file, torch.load(file, map_location="cpu", weights_only=True), entry)
    except pickle.UnpicklingError as error:
        raise DaybreakError(
            f"{file} holds more than tensors, so it is not opened, because that could run code: "
            f"{_reason(error)}; "
            "use a safetensors version of the checkpoint"
        ) from None
    except _DAMAGE as error:
        raise DaybreakError(f"{file} is no file of torch's: {_first_line(error)}; {AGAIN}") from None
    return [_loaded(file, name, tensor) for name, tensor in _named(file, tensors).items()]


def _entry(file: Path, held: Any, entry: str | None) -> Any:
    if entry is None:
        return held
    if not isinstance(held, dict) or entry not in held:
        raise DaybreakError(f"{file} has no entry {entry!r}, which holds the tensors of such files: {AGAIN}")
    return held[entry]


def _records(file: Path) -> dict[int, int]:
    """First byte and length of every record of a file of torch's; before version 1.6 it has none.

    Since then it is a zip archive. Its tensors can only be mapped if they lie there as in memory, and torch
    itself crashes where it swaps the bytes of tensors that it has not read: other archives are refused.
    """
    with file.open("rb") as handle:
        if handle.read(4) != b"PK\x03\x04":
            return {}
        try:
            with zipfile.ZipFile(handle) as archive:
                _check_entries(file, archive)
                return {_start(handle, entry): entry.file_size for entry in archive.infolist()}
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, struct.error) as error:
            raise DaybreakError(f"{file} is no file of torch's: {_first_line(error)}; {AGAIN}") from None


def _check_entries(file: Path, archive: zipfile.ZipFile) -> None:
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise DaybreakError(
                f"{file} was compressed after it was saved, so its tensors cannot be mapped; use a "
                "safetensors version of the checkpoint, or load it with torch and save it anew"
            )
        if entry.filename.endswith("/byteorder") and (order := archive.open(entry).read(16)) != b"little":
            raise DaybreakError(
                f"{file} has the byte order {order.decode(errors='replace')!r}, and only little is read; use "
                "a safetensors version of the checkpoint"
            )


def _start(handle: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry's contents start: behind its header of 30 bytes, its name and its padding."""
    handle.seek(entry.header_offset + 26)
    name, padding = struct.unpack("<HH", handle.read(4))
    return entry.header_offset + 30 + int(name) + int(padding)


def _is_mappable(tensors: Any, records: Dict[int, int]) -> bool:
    """Does every tensor lie where torch says? It computes places from its own way of writing, and archives
    that others have packed again differ."""
    return isinstance(tensors, dict) and all(
        isinstance(tensor, torch.Tensor)
        and records.get(_offset(tensor) or -1) == tensor.untyped_storage().nbytes()
        for tensor in tensors.values()
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


def _reason(error: BaseException) -> str:
    """What torch's unpickler stumbled over, without the advice around it to read the file unsafely."""
    text = re.split(r"WeightsUnpickler error:|\n\n", str(error).split("\n\nCheck the documentation")[0])[-1]
    return re.split(r" Please use | In PyTorch ", text.strip().split("\n")[0])[0].rstrip(". ")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(". ")
