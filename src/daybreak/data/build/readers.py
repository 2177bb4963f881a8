"""datatrove's readers, made to count and name what they would pass over with a line in a log.

What is different from datatrove's own: a line that is damaged costs that line, not the rest of its file; an
archive that ends early is noticed; and nothing is skipped without being counted.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader, BaseReader
from datatrove.pipeline.readers.huggingface import HuggingFaceDatasetReader

from daybreak.data.build.plan import Input, Task
from daybreak.data.build.tally import Tally
from daybreak.data.recipe import SourceSettings
from daybreak.errors import DaybreakError

ROWS = 1000
"""Rows of a parquet file that are in memory at once."""


class Lacking(Exception):
    """A document that is empty or damaged: kind, and what is wrong."""


def documents(task: Task, source: SourceSettings, tally: Tally, rank: int) -> Iterator[Document]:
    """The documents of a task in their order; `tally` gets what could not be read."""
    for item in task.inputs:
        if item.kind == "hub":
            yield from _of_the_hub(item, source, tally)
            continue
        _check_unchanged(item)
        if item.bytes == 0:
            tally.lacking("empty", item.name, None, "the file is empty")
            continue
        reader = _READERS[item.kind](item, source, tally)
        yield from reader.read_files_shard([item.path.lstrip("/")])


def _of_the_hub(item: Input, source: SourceSettings, tally: Tally) -> Iterator[Document]:
    try:
        yield from _Hub(item, source, tally).run(rank=0, world_size=1)
    except (OSError, ValueError) as error:  # not reached, not there, no such split
        raise DaybreakError(
            f"the data set {item.path} of the source {source.name!r} cannot be read: "
            f"{' '.join(str(error).split())}"
        ) from None


def _check_unchanged(item: Input) -> None:
    stat = os.stat(item.path)
    if (stat.st_size, stat.st_mtime_ns) != (item.bytes, item.modified):
        raise DaybreakError(f"{item.path} was changed while the build was running; start it again")


class _Counting(BaseReader):  # type: ignore[misc]
    """What all readers have in common: how a row becomes a document, and where it came from."""

    def __init__(
        self, item: Input, source: SourceSettings, tally: Tally, *place: Any, **further: Any
    ) -> None:
        super().__init__(*place, adapter=_adapt, text_key=source.text, id_key=source.id, **further)
        self.item, self.source, self.tally = item, source, tally

    def document(self, row: Any, place: int) -> Document | None:
        """The document in a row; None, counted and named, if it has none."""
        try:
            document = self.get_document_from_dict(row, self.item.name, place)
        except Lacking as error:
            self.tally.lacking(error.args[0], self.item.name, place, error.args[1])
            return None
        assert document is not None
        self.tally.read += 1
        return document


def _adapt(reader: _Counting, row: Any, file: str, place: int) -> dict[str, Any]:
    """The hook of datatrove's readers: from a row of a file to the fields of a document."""
    if not isinstance(row, dict):
        raise Lacking("damaged", f"is {_kind(row)} where an object with keys is expected")
    source = reader.source
    if source.text not in row:
        raise Lacking("damaged", f"has no key {source.text!r}; it has {', '.join(map(str, row)) or 'none'}")
    text = row[source.text]
    if not isinstance(text, str):
        raise Lacking("damaged", f"has {_kind(text)} under {source.text!r} where a text is expected")
    if not text or text.isspace():
        raise Lacking("empty", "has an empty text")
    language = source.language
    if source.language_key is not None:
        language = row.get(source.language_key)
    name = row.get(source.id)
    metadata = {
        "source": source.name,
        "file": file,
        "place": place,
        "language": "" if language is None else str(language),
    }
    if "url" in row:
        metadata["url"] = row["url"]
    return {"text": text, "id": f"{file}:{place}" if name is None else str(name), "metadata": metadata}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


class _OfDisk(_Counting, BaseDiskReader):  # type: ignore[misc]
    def __init__(self, item: Input, source: SourceSettings, tally: Tally) -> None:
        super().__init__(item, source, tally, "/")
        self.add_file_path = False

    def rows(self) -> Iterator[tuple[int, Any]]:
        """Places and rows; an exception among them is a row that cannot be read."""
        raise NotImplementedError

    def read_file(self, filepath: str) -> DocumentsPipeline:
        """The hook of datatrove's readers of files."""
        place = 0
        try:
            for place, row in self.rows():
                with self.track_time():
                    if isinstance(row, Lacking):
                        self.tally.lacking(row.args[0], self.item.name, place, row.args[1])
                        continue
                    document = self.document(row, place)
                if document is not None:
                    yield document
        except (OSError, EOFError, pyarrow.ArrowException) as error:
            after = f"nothing after line or row {place} could be read" if place else "it cannot be read"
            what = f"{after}: {' '.join(str(error).split())}"
            self.tally.lacking("damaged", self.item.name, None, what, self.unread(place))

    def unread(self, place: int) -> int:
        """How many documents a file that ends early is counted as."""
        return 1

    def opened(self) -> Any:
        """The unpacked bytes. pyarrow's streams notice archives that end early, and read all their frames."""
        return io.BufferedReader(
            pyarrow.input_stream(self.item.path, compression=self.item.packing),
            1 << 20,
        )


class _Text(_OfDisk):
    name = "📄 Text"

    def rows(self) -> Iterator[tuple[int, Any]]:
        with self.opened() as file:
            for place, part in _PARTS[self.source.documents](file):
                try:
                    yield place, {self.source.text: part.decode("utf-8-sig" if place == 1 else "utf-8")}
                except UnicodeDecodeError as error:
                    yield place, Lacking("damaged", f"is no UTF-8: {error.reason} at byte {error.start}")


def _whole(file: Any) -> Iterator[tuple[int, bytes]]:
    yield 1, file.read()


def _lines(file: Any) -> Iterator[tuple[int, bytes]]:
    for place, line in enumerate(file, 1):
        yield place, line.rstrip(b"\r\n")


def _paragraphs(file: Any) -> Iterator[tuple[int, bytes]]:
    """Blocks between blank lines, each at the place of its first line."""
    block: list[bytes] = []
    first = 1
    for place, line in enumerate(file, 1):
        if line.strip():
            if not block:
                first = place
            block.append(line)
        elif block:
            yield first, b"".join(block).rstrip(b"\r\n")
            block = []
    if block:
        yield first, b"".join(block).rstrip(b"\r\n")


_PARTS = {"file": _whole, "lines": _lines, "paragraphs": _paragraphs}


class _Jsonl(_OfDisk, JsonlReader):  # type: ignore[misc]
    def rows(self) -> Iterator[tuple[int, Any]]:
        with self.opened() as file:
            for place, line in enumerate(file, 1):
                if place == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield place, _parsed(line)


def _parsed(line: bytes) -> Any:
    if not line.strip():
        return Lacking("empty", "is a blank line")
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as wrong:
            return Lacking("damaged", f"is no UTF-8: {wrong.reason} at byte {wrong.start} of the line")
        return Lacking("damaged", f"is no JSON: {error}")


class _Parquet(_OfDisk, ParquetReader):  # type: ignore[misc]
    known: int | None = None
    """Rows that the file's index speaks of."""

    def rows(self) -> Iterator[tuple[int, Any]]:
        place = 0
        with pyarrow.parquet.ParquetFile(self.item.path) as file:
            self.known = file.metadata.num_rows
            wanted = {self.source.text, self.source.id, self.source.language_key, "url"}
            columns = [name for name in file.schema_arrow.names if name in wanted]
            if self.source.text not in columns:
                names = ", ".join(file.schema_arrow.names)
                raise EOFError(f"there is no column {self.source.text!r}; it has {names}")
            for batch in file.iter_batches(batch_size=ROWS, columns=columns):
                for row in _rows_of(batch):
                    place += 1
                    yield place, row
        if not self.known:
            self.tally.lacking("empty", self.item.name, None, "the file has no rows")

    def unread(self, place: int) -> int:
        return 1 if self.known is None else max(1, self.known - place)


def _rows_of(batch: Any) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # one value spoils the batch; taken one by one, it spoils its row
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield Lacking("damaged", f"is no UTF-8: {error.reason} at byte {error.start}")


class _Hub(_Counting, HuggingFaceDatasetReader):  # type: ignore[misc]
    def __init__(self, item: Input, source: SourceSettings, tally: Tally) -> None:
        options = {"name": source.configuration, "split": source.part, "revision": item.commit}
        super().__init__(item, source, tally, item.path, dataset_options=options, streaming=True)
        self.place = 0

    def get_document_from_dict(self, data: Any, source_file: str, id_in_file: Any) -> Document | None:
        """The hook of datatrove's reader; it passes over what is None."""
        self.place += 1
        try:
            document = BaseReader.get_document_from_dict(self, data, self.item.name, self.place)
        except Lacking as error:
            self.tally.lacking(error.args[0], self.item.name, self.place, error.args[1])
            return None
        self.tally.read += 1
        return document


_READERS = {"text": _Text, "jsonl": _Jsonl, "parquet": _Parquet}
