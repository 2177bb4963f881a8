"""The files of one checkpoint: written by torch.distributed.checkpoint and hashed on the way, read without
running anything that they hold.
"""

from __future__ import annotations

import enum
import errno
import hashlib
import json
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from daybreak.errors import DaybreakError
from daybreak.train.ranks import Ranks

FORMAT = 1
MANIFEST = "manifest.json"
NUMBERS = "numbers.json"
PLACES = ".metadata"
"""Where each tensor lies in which file; torch's name, and torch's format: a pickle."""


@dataclass(frozen=True)
class Digest:
    """What a file must be."""

    bytes: int
    sha256: str


class _Stream:
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._bytes = 0
        self._sha256 = hashlib.sha256()
        self.failed: OSError | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        view = memoryview(data).cast("B")
        try:
            self._file.write(view)
        except OSError as error:  # torch's writer in C++ loses it
            self.failed = error
            raise
        self._sha256.update(view)
        self._bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Torch closes its streams; this one is closed by whoever opened it."""

    def finish(self) -> Digest:
        self._file.flush()
        os.fsync(self._file.fileno())
        return Digest(self._bytes, self._sha256.hexdigest())


class _Files(FileSystem):
    """What torch's writer opens files with: it keeps their digests, and the first error of a write."""

    def __init__(self) -> None:
        self.digests: dict[str, Digest] = {}
        self.failed: OSError | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        with Path(path).open(mode) as file:
            stream = _Stream(file)
            try:
                yield stream
                self.digests[Path(path).name] = stream.finish()
            finally:
                self.failed = self.failed or stream.failed

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.digests[Path(new_path).name] = self.digests.pop(Path(path).name)


class _Writer(FileSystemWriter):
    """Torch's writer without the name of the folder in what it writes: the folder is renamed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sync_files=False)  # torch syncs before it flushes; `_Stream` does it
        self.files = _Files()
        self.fs = self.files

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(save_id=self.save_id)


def write_tensors(folder: Path, tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Digest]:
    """Write the tensors, each process its own parts, and return the digests of this process's files.

    Raises `OSError` where the disk refuses, on the process whose disk does.
    """
    writer = _Writer(folder)
    _quiet()
    try:
        save(tensors, storage_writer=writer, process_group=ranks.group, no_dist=ranks.group is None)
    except (Exception, CheckpointException) as error:
        raise (writer.files.failed or _cause(error, ranks.rank)) from None
    return writer.files.digests


def read_tensors(folder: Path, tensors: dict[str, Tensor], ranks: Ranks) -> None:
    """Fill `tensors` in place with what the files hold, whatever the layout that they were written in.

    Raises `DaybreakError` where the files hold other tensors.
    """
    places = read_places(folder)
    _check_same(folder, places, tensors)
    _quiet()
    reader = _Reader(folder, places)
    try:
        load(tensors, storage_reader=reader, process_group=ranks.group, no_dist=ranks.group is None)
    except CheckpointException as error:
        causes = "; ".join(
            sorted({f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()})
        )
        raise DaybreakError(
            f"{folder} cannot be read ({causes}); continue from another checkpoint"
        ) from error


def _quiet() -> None:
    # One process without a group is what is meant here.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class FailedElsewhere(Exception):
    """Another process could not write its part."""


def _cause(error: BaseException, rank: int) -> BaseException:
    """What went wrong in this process, out of what torch collects from all of them."""
    if not isinstance(error, CheckpointException):
        return error
    own = error.failures.get(rank)
    return own[0] if own is not None else FailedElsewhere()


def write_json(file: Path, value: Mapping[str, Any]) -> Digest:
    """Write, sync, and say what was written."""
    return write_text(file, json.dumps(value, indent=1))


def write_text(file: Path, text: str) -> Digest:
    """The same for a text."""
    files = _Files()
    with files.create_stream(file, "wb") as stream:
        stream.write(text.encode())
    return files.digests[file.name]


def write_manifest(folder: Path, step: int, digests: Mapping[str, Digest], ranks: int) -> None:
    """The last file of a checkpoint: what the others must be."""
    manifest = {
        "format": FORMAT,
        "step": step,
        "torch": torch.__version__,
        "ranks": ranks,
        "files": {name: asdict(digests[name]) for name in sorted(digests)},
    }
    write_json(folder / MANIFEST, manifest)


class DamagedManifest(Exception):
    """The manifest is not what was written, or not this checkpoint's."""


def read_manifest(folder: Path, step: int) -> dict[str, Digest]:
    """The digests of all files by name. Raises `DaybreakError` for a manifest of a newer format."""
    content = (folder / MANIFEST).read_bytes()
    try:
        manifest = json.loads(content)
        newer, other = manifest["format"] > FORMAT, manifest["step"] != step
        digests = {name: Digest(**digest) for name, digest in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedManifest(f"{type(error).__name__}: {error}") from None
    if newer:
        raise DaybreakError(
            f"{folder} is a checkpoint of format {manifest['format']}, and this daybreak reads {FORMAT}; "
            "continue the run with the newer version that wrote it"
        )
    if other:
        raise DamagedManifest(f"it is of step {manifest['step']}")
    return digests


def damage(folder: Path, digests: Mapping[str, Digest]) -> str | None:
    """What is wrong with the first of the files that is not as it was written; None: nothing."""
    for name, digest in digests.items():
        try:
            with (folder / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != digest.bytes:
                    return f"{name} has {size} bytes instead of {digest.bytes}"
                if hashlib.file_digest(file, "sha256").hexdigest() != digest.sha256:
                    return f"{name} has another checksum than when it was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


_ALLOWED = {
    *(
        ("torch", str(value).removeprefix("torch."))
        for value in vars(torch).values()
        if isinstance(value, torch.dtype)
    ),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}
"""What the places of tensors are made of. An entry that is no tensor (`BytesStorageMetadata`) is not among
it: torch would read that with its full unpickler."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _member(kind: Any, name: Any) -> Any:
    """Of an enumeration, which Python up to 3.11.3 writes as getattr(enumeration, name); of nothing else."""
    if not isinstance(kind, enum.EnumMeta) or not isinstance(name, str):
        raise pickle.UnpicklingError("it names builtins.getattr")
    return kind[name]


def read_places(folder: Path) -> Metadata:
    """Where which tensor lies. Raises `DaybreakError` for a file that names anything but that."""
    file = folder / PLACES
    try:
        with file.open("rb") as handle:
            places = _Unpickler(handle).load()
    except OSError as error:
        raise DaybreakError(f"{file} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # whatever bytes can make of a pickle
        raise DaybreakError(
            f"{file} is not what a checkpoint of training holds ({error}), and nothing of it was run; delete "
            f"{folder.name} and continue from another checkpoint"
        ) from None
    if not isinstance(places, Metadata):
        raise DaybreakError(f"{file} holds a {type(places).__name__}; delete the checkpoint {folder.name}")
    return places


class _Reader(FileSystemReader):
    """Torch's reader with places that were read already. Tensors it reads with the weights-only unpickler."""

    def __init__(self, folder: Path, places: Metadata) -> None:
        super().__init__(folder)
        self._places = places

    def read_metadata(self) -> Metadata:
        return self._places


def _check_same(folder: Path, places: Metadata, tensors: Mapping[str, Tensor]) -> None:
    stored = places.state_dict_metadata
    remedy = "continue with the model, optimizer and ema that the run was started with"
    for name in sorted(stored.keys() ^ tensors.keys()):
        where = "is in the checkpoint and not in this run" if name in stored else "is not in the checkpoint"
        raise DaybreakError(f"{folder}: {name} {where}; {remedy}")
    for name, tensor in tensors.items():
        held = stored[name]
        if not isinstance(held, TensorStorageMetadata) or held.size != tensor.shape:
            shape = list(getattr(held, "size", ()))
            raise DaybreakError(
                f"{folder}: {name} has the shape {shape}, and {list(tensor.shape)} here; {remedy}"
            )


def reason(error: BaseException) -> str:
    """Why a checkpoint could not be written, for people."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"there is no space left on the disk ({error.strerror})"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"


def sync_folder(folder: Path) -> None:
    """Names of files, and what they were renamed to, reach the disk with their folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
