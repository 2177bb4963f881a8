"""Token shards, memory-mapped: what `daybreak data build` wrote, to be read at any place."""

from __future__ import annotations

import functools
import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from daybreak.data.manifest import Document, Manifest, Shard, Source
from daybreak.data.shard_writer import ShardWriter, token_type
from daybreak.errors import DaybreakError
from daybreak.text.tokenizer import Tokenizer

__all__ = ["Document", "Manifest", "Shard", "ShardWriter", "Source", "TokenSet", "TokenSource"]

OPEN = 200
"""Shards whose files are open at once; a process may have about a thousand."""


class TokenSet:
    """One split of a data set."""

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        self.folder, self.split, self.manifest = folder, split, manifest
        self.vocabulary, self.context = manifest.vocabulary, manifest.context
        self._files = _Files(folder, token_type(manifest.vocabulary))
        self.sources = tuple(TokenSource(source, split, self._files) for source in manifest.sources)

    @classmethod
    def open(cls, folder: str | Path, split: str = "training", verify: bool = False) -> TokenSet:
        """Checks that every file is there with the size that the manifest says; with `verify` also its
        sha256, which reads everything. Raises `DaybreakError` that names the file."""
        folder = Path(folder)
        data = cls(folder, split, Manifest.read(folder))
        for source in data.sources:
            for shard in source.shards:
                data._files.check(shard, verify)
        return data

    def tokenizer(self) -> Tokenizer:
        """The one that made the tokens."""
        found = Tokenizer.load(self.folder / "tokenizer")
        if found is None:
            raise DaybreakError(f"{self.folder / 'tokenizer'} has no tokenizer; {_remedy(self.folder)}")
        return found


class TokenSource:
    """The tokens of one source, its shards one after another; a source without shards has none."""

    def __init__(self, source: Source, split: str, files: _Files) -> None:
        self.name, self.weight = source.name, source.weight
        self.shards = source.shards.get(split, ())
        self._files = files
        self._begins = [0, *accumulate(shard.tokens for shard in self.shards)]
        self._numbers = [0, *accumulate(shard.documents for shard in self.shards)]
        self.tokens, self.documents = self._begins[-1], self._numbers[-1]
        self.bytes = sum(shard.bytes for shard in self.shards)

    def read(self, first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Tokens `first` to `first` + `count` of the source, [count] int64."""
        result = np.empty(count, np.int64)
        for shard, begin, end, place in self._stretches(first, count):
            result[place : place + end - begin] = self._files.tokens(self.shards[shard])[begin:end]
        return result

    def spans(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """Which documents stand in tokens `first` to `first` + `count`: (number of the document in the
        source, begin, end), counted from `first`; those at the borders are cut."""
        found = []
        for shard, begin, end, place in self._stretches(first, count):
            ends = self._files.ends(self.shards[shard])
            # Both numbers in the array's own type: else the whole file would be read and converted.
            number, last = ends.searchsorted(np.array([begin + 1, end], ends.dtype)).tolist()
            cuts = [begin, *ends[number:last].tolist(), end]
            for offset, (left, right) in enumerate(pairwise(cuts)):
                document = self._numbers[shard] + number + offset
                found.append((document, place + left - begin, place + right - begin))
        return found

    def document(self, index: int) -> Document:
        """Where document `index` of the source came from."""
        assert 0 <= index < self.documents
        shard = bisect_right(self._numbers, index) - 1
        return self._files.document(self.shards[shard], index - self._numbers[shard])

    def _stretches(self, first: int, count: int) -> list[tuple[int, int, int, int]]:
        """(shard, begin and end in it, place in the result)"""
        assert 0 <= first <= first + count <= self.tokens
        found, place = [], 0
        shard = bisect_right(self._begins, first) - 1
        while place < count:
            begin = first + place - self._begins[shard]
            end = min(begin + count - place, self.shards[shard].tokens)
            if end > begin:
                found.append((shard, begin, end, place))
            place += end - begin
            shard += 1
        return found


class _Files:
    """The files of a data set's shards, opened where they are needed."""

    def __init__(self, folder: Path, kind: np.dtype[Any]) -> None:
        self.folder, self.kind = folder, kind
        # A mapped file stays open, so the least used are let go of.
        self._mapped = functools.lru_cache(2 * OPEN)(self._map)
        self._rows = functools.lru_cache(8)(self._read_rows)
        self._size = functools.lru_cache(OPEN)(self._read_size)

    def tokens(self, shard: Shard) -> np.ndarray:
        return self._mapped(f"{shard.name}.tokens", self.kind)

    def ends(self, shard: Shard) -> np.ndarray:
        return self._mapped(f"{shard.name}.ends", np.dtype("<u8"))

    def document(self, shard: Shard, index: int) -> Document:
        group, row = divmod(index, self._size(shard.name))
        return self._rows(shard.name, group)[row]

    def check(self, shard: Shard, verify: bool) -> None:
        sizes = {"tokens": shard.tokens * self.kind.itemsize, "ends": shard.documents * 8, "parquet": None}
        for suffix, wanted in sizes.items():
            file = self.folder / f"{shard.name}.{suffix}"
            if not file.is_file():
                raise DaybreakError(f"{file} is missing; {_remedy(self.folder)}")
            size = file.stat().st_size
            if wanted is not None and size != wanted:
                raise DaybreakError(f"{file} has {size} bytes instead of {wanted}; {_remedy(self.folder)}")
            if verify and _sum(file) != shard.sha256[suffix]:
                raise DaybreakError(
                    f"{file} is damaged: its sha256 is not the manifest's; {_remedy(self.folder)}"
                )

    def _map(self, name: str, kind: np.dtype[Any]) -> np.ndarray:
        return np.asarray(np.memmap(self.folder / name, kind, "r"))

    def _read_size(self, name: str) -> int:
        """Documents of a row group; only the last has less."""
        with self._parquet(name) as file:
            return int(file.metadata.row_group(0).num_rows)

    def _read_rows(self, name: str, group: int) -> list[Document]:
        with self._parquet(name) as file:
            return [Document(**row) for row in file.read_row_group(group).to_pylist()]

    @contextmanager
    def _parquet(self, name: str) -> Iterator[Any]:
        import pyarrow
        import pyarrow.parquet

        path = self.folder / f"{name}.parquet"
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                yield file
        except (pyarrow.ArrowException, OSError) as error:
            raise DaybreakError(f"{path} cannot be read ({error}); {_remedy(self.folder)}") from None


def _sum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remedy(folder: Path) -> str:
    return f"build {folder} again with `daybreak data build --force`"
