"""The rows of a file of JSON lines, CSV or parquet, each with its name for errors."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from daybreak.errors import DaybreakError

Row = dict[str, Any]
csv.field_size_limit(2**31 - 1)  # 131,072 characters else, and a document may be longer


def rows(file: Path) -> Iterator[tuple[str, Row]]:
    """`("file: line 3", {...})` for every row, in order; empty lines are passed over.

    The file's ending says what it holds: .jsonl, .json (lines, or one list of objects), .csv or .parquet. An
    empty cell of CSV is none, and one that begins as a list of JSON is read as such. Raises `DaybreakError`,
    which names file and row, for what cannot be read.
    """
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DaybreakError(f"{file} is of no known kind; its name must end in {', '.join(_READERS)}")
    try:
        yield from reader(file)
    except OSError as error:
        raise DaybreakError(f"{file} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DaybreakError(f"{file} is no text in UTF-8 ({error.reason} at byte {error.start})") from None


def check_text(text: str, where: str) -> None:
    """Raises `DaybreakError`, which names `where` it stands, for halves of characters, which JSON can spell
    and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DaybreakError(
            f"{where} is not UTF-8 text ({error.reason}); correct it, or leave it out"
        ) from None


def _of_lines(file: Path) -> Iterator[tuple[str, Row]]:
    with file.open(encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            where = f"{file}: line {number}"
            try:
                row = json.loads(line.rstrip())
            except (ValueError, RecursionError) as error:  # the latter: brackets within brackets
                raise DaybreakError(
                    f"{where} is not JSON ({_reason(error)}); correct it, or remove it"
                ) from None
            if not isinstance(row, dict):
                raise DaybreakError(f"{where} holds a {type(row).__name__}; a row is an object with keys")
            yield where, row


def _reason(error: Exception) -> str:
    """Of a line: which one it is stands beside."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _of_json(file: Path) -> Iterator[tuple[str, Row]]:
    """One list of objects, or as many lines."""
    text = file.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from _of_lines(file)
        return
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DaybreakError(f"{file} is not JSON ({error}); correct it") from None
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise DaybreakError(
                f"{file}: row {number} holds a {type(row).__name__}; a row is an object with keys"
            )
        yield f"{file}: row {number}", row


def _of_table(file: Path) -> Iterator[tuple[str, Row]]:
    with file.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(io.StringIO(handle.read()), strict=True)
        try:
            for row in reader:
                where = f"{file}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise DaybreakError(f"{where} has another number of cells than the first line names")
                yield where, {key: _cell(text) for key, text in row.items()}
        except csv.Error as error:
            raise DaybreakError(f"{file}: line {reader.line_num} is not CSV: {error}") from None


def _cell(text: str) -> Any:
    if not text:
        return None
    if text.startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def _of_parquet(file: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            number = 0
            for batch in opened.iter_batches(256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", row
    except pyarrow.ArrowException as error:
        raise DaybreakError(f"{file} is not parquet: {' '.join(str(error).split())}") from None


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    ".jsonl": _of_lines,
    ".json": _of_json,
    ".csv": _of_table,
    ".parquet": _of_parquet,
}
