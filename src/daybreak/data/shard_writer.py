"""Writing a shard: the tokens of many documents in one file, where each ends, and where each came from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from daybreak.data.manifest import Document, Shard
from daybreak.errors import DaybreakError

ROWS = 4096
"""Documents of a row group of the parquet file: so many are read to find one."""
BUFFER = 1 << 20
"""Bytes that are collected before they are hashed and written."""
NARROW = 1 << 16
"""Vocabularies up to this size have tokens of two bytes."""


def token_type(vocabulary: int) -> np.dtype[Any]:
    """Of the numbers in a .tokens file: uint16 where every id fits, or uint32, little-endian."""
    return np.dtype("<u2" if vocabulary <= NARROW else "<u4")


class ShardWriter:
    """Writes one shard; its three files appear under their names when they are complete, or not at all."""

    def __init__(self, folder: Path, name: str, vocabulary: int) -> None:
        """The shard becomes `folder`/`name`.tokens, .ends and .parquet; every id is below `vocabulary`."""
        self.name, self.vocabulary = name, vocabulary
        self._stem = Path(folder) / name
        self._stem.parent.mkdir(parents=True, exist_ok=True)
        self._tokens = _Part(self._stem, "tokens")
        self._ends = _Part(self._stem, "ends")
        self._rows: list[Document] = []
        self._table: Any = None
        self._count = self._documents = self._bytes = 0
        self._done: Shard | None = None

    def add(self, ids: Sequence[int] | np.ndarray, document: Document) -> None:
        """A document's token ids, the separator among them. Raises `DaybreakError` for a document without
        tokens, and for ids outside the vocabulary."""
        wide = np.asarray(ids, np.int64)
        where = f"{document.file}:{document.place}"
        if not wide.size:
            raise DaybreakError(f"the document {where} has no tokens; leave it out")
        if not 0 <= wide.min() <= wide.max() < self.vocabulary:
            wrong = int(wide.min()) if wide.min() < 0 else int(wide.max())
            raise DaybreakError(
                f"the document {where} has the token {wrong}, outside the vocabulary of {self.vocabulary}; "
                "use the tokenizer that the vocabulary belongs to"
            )
        self._tokens.write(wide.astype(token_type(self.vocabulary)).tobytes())
        self._count += wide.size
        self._ends.write(self._count.to_bytes(8, "little"))
        self._documents += 1
        self._bytes += document.bytes
        self._rows.append(document)
        if len(self._rows) == ROWS:
            self._write_rows()

    def close(self) -> Shard:
        """Bring everything to the disk, give the files their names, and say what was written."""
        if self._done is None:
            self._write_rows()
            self._table.close()
            sums = {part.suffix: part.close() for part in (self._tokens, self._ends)}
            parquet = _partial(self._stem, "parquet")
            with parquet.open("rb") as file:
                os.fsync(file.fileno())
                sums["parquet"] = hashlib.file_digest(file, "sha256").hexdigest()
            for suffix in sums:
                os.replace(_partial(self._stem, suffix), f"{self._stem}.{suffix}")
            sync_folder(self._stem.parent)
            self._done = Shard(self.name, self._documents, self._count, self._bytes, sums)
        return self._done

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def _write_rows(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if self._table is None:
            numbers, text = pyarrow.int64(), pyarrow.string()
            kinds = {"file": text, "place": numbers, "id": text, "language": text, "bytes": numbers}
            file = _partial(self._stem, "parquet")
            schema = pyarrow.schema(list(kinds.items()))
            self._table = pyarrow.parquet.ParquetWriter(file, schema, compression="zstd")
        schema = self._table.schema
        columns = {name: [getattr(row, name) for row in self._rows] for name in schema.names}
        self._table.write_table(pyarrow.table(columns, schema=schema))
        self._rows.clear()

    def _abandon(self) -> None:
        if self._table is not None:
            self._table.close()
        for part in (self._tokens, self._ends):
            part.file.close()
        for suffix in ("tokens", "ends", "parquet"):
            _partial(self._stem, suffix).unlink(missing_ok=True)


class _Part:
    """A file that is hashed while it is written."""

    def __init__(self, stem: Path, suffix: str) -> None:
        self.suffix = suffix
        self.file: IO[bytes] = _partial(stem, suffix).open("wb", buffering=0)
        self._sum = hashlib.sha256()
        self._waiting = bytearray()

    def write(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= BUFFER:
            self._flush()

    def close(self) -> str:
        self._flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return self._sum.hexdigest()

    def _flush(self) -> None:
        self._sum.update(self._waiting)
        left = memoryview(self._waiting)
        while left:
            left = left[self.file.write(left) :]
        self._waiting = bytearray()


def _partial(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}.partial")


def sync_folder(folder: Path) -> None:
    """The names in `folder` survive a crash of the machine."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
