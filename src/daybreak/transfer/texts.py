"""Texts and their classes from files with named columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from daybreak.data.rows import rows
from daybreak.errors import DaybreakError, nearest

PLAIN = (".txt", ".md")


@dataclass(frozen=True)
class Text:
    """One text of a file."""

    text: str
    label: str | None
    where: str
    """File and row, for errors."""


def read_texts(files: Sequence[str | Path], column: str = "text", label: str | None = None) -> list[Text]:
    """All texts of the files, with their classes where a column of them is named.

    Raises `DaybreakError`, which names file, row and remedy: a file that is not there or not understood, a
    column that is missing, an empty text or class, no text at all.
    """
    found = [text for file in files for text in _of_file(Path(file), column, label)]
    if not found:
        told = ", ".join(map(str, files)) or "no file"
        raise DaybreakError(f"there is no text in {told}; name files that have some")
    return found


def _of_file(file: Path, column: str, label: str | None) -> Iterator[Text]:
    if file.suffix in PLAIN:
        if label is not None:
            raise DaybreakError(f"{file} has no columns, and so no classes; give a .csv or .jsonl")
        yield Text(_plain(file), None, str(file))
        return
    for where, row in rows(file):
        yield Text(
            _cell(where, row, column, "--column"),
            None if label is None else _cell(where, row, label, "--label"),
            where,
        )


def _plain(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DaybreakError(f"{file} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DaybreakError(f"{file} is no text in UTF-8 ({error.reason} at byte {error.start})") from None
    if not text.strip():
        raise DaybreakError(f"{file} is empty; leave it out")
    return text


def _cell(where: str, row: dict[str, object], column: str, option: str) -> str:
    value = row.get(column)
    if value is None:
        known = [name for name in row if name]
        hint = "" if column in row else nearest(column, known)
        raise DaybreakError(
            f"{where} has no {column!r}{hint}; fill it in or remove the row, or name "
            f"another column with {option} (there: {', '.join(known) or 'none'})"
        )
    text = value if isinstance(value, str) else str(value) if isinstance(value, int | bool) else None
    if text is None:
        raise DaybreakError(
            f"{where} has a {type(value).__name__} under {column!r}, where a text is expected; correct it"
        )
    if not text.strip():
        raise DaybreakError(f"{where} has nothing but blanks under {column!r}; fill it in or remove the row")
    return text


def classes(texts: Sequence[Text]) -> list[str]:
    """The classes in their order. Raises `DaybreakError` where there is only one."""
    found = sorted({text.label for text in texts if text.label is not None})
    if len(found) < 2:
        raise DaybreakError(
            f"all {len(texts)} texts have the class {found[0]!r}; a classifier needs texts of two or more"
            if found
            else "no text has a class; name their column with --label"
        )
    return found


def numbers(texts: Sequence[Text], known: Sequence[str]) -> list[int]:
    """Of each text the number of its class. Raises `DaybreakError` for one that was not learned."""
    places = {label: number for number, label in enumerate(known)}
    for text in texts:
        if text.label not in places:
            raise DaybreakError(
                f"{text.where} has the class {text.label!r}{nearest(str(text.label), known)}, which no text "
                f"of the training had; those have {', '.join(known)}"
            )
    return [places[text.label] for text in texts if text.label is not None]


def majority(texts: Sequence[Text], training: Sequence[Text]) -> float:
    """The share of `texts` with the class that is most frequent in `training`."""
    most = Counter(text.label for text in training).most_common(1)[0][0]
    return sum(text.label == most for text in texts) / len(texts)
