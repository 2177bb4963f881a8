"""Texts with labels: rows of a file whose columns the caller names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from daybreak.data.order import draw
from daybreak.data.rows import rows
from daybreak.errors import DaybreakError, nearest

Task = Literal["classification", "entailment", "similarity", "choice"]
TEXTS = {"classification": 1, "entailment": 2, "similarity": 2}
"""How many texts an item of each task has."""
Labels = Literal["auto", "classes", "numbers"]


@dataclass(frozen=True)
class Item:
    """One row."""

    texts: tuple[str, ...]
    """What is read; of a choice, what stands before each option."""
    options: tuple[str, ...] = ()
    """Of a choice."""
    label: str | float | None = None
    """As the file has it; None: it is to be found."""
    where: str = ""
    """File and row, for errors."""


@dataclass(frozen=True)
class Columns:
    """Where an item's parts stand."""

    task: Task
    texts: tuple[str, ...]
    label: str | None = None
    options: tuple[str, ...] = ()
    """Columns of the options, or one column that holds a list of them."""

    def __post_init__(self) -> None:
        wanted = TEXTS.get(self.task)
        if wanted is not None and len(self.texts) != wanted:
            many = "one text" if wanted == 1 else f"{wanted} texts"
            raise DaybreakError(
                f"{self.task} reads {many}, and {len(self.texts)} columns are named; give --text COLUMN"
                + (" twice" if wanted == 2 else " once")
            )
        if (self.task == "choice") != bool(self.options):
            raise DaybreakError(
                "choice needs the columns of its options: --choice COLUMN for each, or for one with a list"
                if self.task == "choice"
                else f"{self.task} has no options to choose from; leave --choice out, or say --task choice"
            )

    def every(self) -> list[str]:
        """All names."""
        return [*self.texts, *self.options, *([] if self.label is None else [self.label])]


def read_items(file: Path, columns: Columns) -> list[Item]:
    """All rows of a file. Raises `DaybreakError`, which names file, row and column, for one that lacks
    something."""
    found = [_item(row, columns, where) for where, row in rows(file)]
    if not found:
        raise DaybreakError(f"{file} holds no rows; give a file that has some")
    return found


def _item(row: Mapping[str, Any], columns: Columns, where: str) -> Item:
    for name in columns.every():
        if row.get(name) is None:
            others = nearest(name, row) or f"; its columns are {', '.join(map(str, row)) or 'none'}"
            hint = "; fill it in or remove the row" if name in row else others
            raise DaybreakError(f"{where} has nothing in column {name!r}{hint}")
    texts = tuple(_text(row[name], name, where) for name in columns.texts)
    options = _options(row, columns, where)
    label = None if columns.label is None else row[columns.label]
    endless = isinstance(label, float) and not math.isfinite(label)
    if endless or not isinstance(label, str | int | float | None):
        raise DaybreakError(f"{where}: the label is {label!r}; give a word or a number")
    return Item(texts, options, str(label).lower() if isinstance(label, bool) else label, where)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DaybreakError(f"{where}: {name} is {value!r}; give a text that is not empty")
    return value


def _options(row: Mapping[str, Any], columns: Columns, where: str) -> tuple[str, ...]:
    if not columns.options:
        return ()
    given: Any = [row[name] for name in columns.options]
    name = columns.options[0]
    if len(columns.options) == 1:
        given = given[0]
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise DaybreakError(f"{where}: {name} is {given!r}; a single column must hold a list of options")
    if len(given) < 2:
        raise DaybreakError(f"{where} has {len(given)} option to choose from; give at least two")
    return tuple(_text(one, name, where) for one in given)


def kind_of(items: Sequence[Item], task: Task, labels: Labels) -> Literal["classes", "numbers"]:
    """Are labels classes or numbers? By themselves, they are numbers where two texts are compared and some
    label is no whole number."""
    if labels != "auto":
        return labels
    values = [_number(item.label) for item in items]
    similar = task == "similarity" and None not in values
    return "numbers" if similar and any(value % 1 for value in values if value is not None) else "classes"


def number_of(item: Item) -> float:
    """The label of an item as a number. Raises `DaybreakError` for one that is none."""
    found = _number(item.label)
    if found is None:
        raise DaybreakError(
            f"{item.where}: the label is {item.label!r}, which is no number; correct it, or say "
            "--data.labels classes"
        )
    return found


def _number(label: str | float | None) -> float | None:
    try:
        found = float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def classes_of(items: Sequence[Item]) -> tuple[str, ...]:
    """All labels, in order: numbers by their size, words by the alphabet. Raises `DaybreakError` where there
    is one alone, or nearly every row has its own."""
    found = sorted({name_of(item.label) for item in items}, key=_sorted_by)
    if len(found) < 2:
        raise DaybreakError(f"all {len(items)} labels are {found[0]!r}, so there is nothing to learn")
    if len(found) > max(20, len(items) / 2):
        raise DaybreakError(
            f"there are {len(found)} different labels in {len(items)} rows, such as {found[0]!r}; name "
            "another column with --label, or say --data.labels numbers"
        )
    return tuple(found)


def name_of(label: str | float | None) -> str:
    """A class as text: 1.0, which some files make of whole numbers, is 1."""
    return str(int(label)) if isinstance(label, float) and label % 1 == 0 else str(label)


def _sorted_by(name: str) -> tuple[bool, float, str]:
    number = _number(name)
    return number is None, number or 0.0, name


def are_counted(items: Sequence[Item], first: int) -> bool:
    """Do the labels count options from `first`? An option may be a number itself: then a label that is its
    text looks like the place of another. They do where every label is such a number, unless all are written
    as texts, each of which an option has."""
    places = [_place(item, first) for item in items]
    texts = all(isinstance(item.label, str) and item.label in item.options for item in items)
    return not texts and None not in places


def _place(item: Item, first: int) -> int | None:
    label = name_of(item.label)
    place = int(label) - first if label.isdecimal() else -1
    return place if 0 <= place < len(item.options) else None


def right_option(item: Item, columns: Columns, first: int, counted: bool = False) -> int:
    """Which option the label means: its column's name, its text, or its number counted from `first`, which
    comes before the text where labels are `counted`. Raises `DaybreakError` for one that means none."""
    label, count, place = name_of(item.label), len(item.options), _place(item, first)
    for names in (columns.options if len(columns.options) > 1 else (), () if counted else item.options):
        if label in names:
            return names.index(label)
    if place is not None:
        return place
    hint = ""
    if label.isdecimal() and int(label) == count and first == 0:
        hint = "; if options count from 1, say --data.first 1"
    raise DaybreakError(
        f"{item.where}: the label {label!r} is none of {count} options, numbered from {first}{hint}"
    )


def apart(items: Sequence[Item], share: float) -> tuple[list[Item], list[Item]]:
    """The items in two: those to learn from, and about this share of them kept apart. The texts decide (the
    options where there are none), so that none stands on both sides, and the same ones are apart in every
    run."""
    sides: tuple[list[Item], list[Item]] = ([], [])
    for item in items:
        sides[draw("held out", *(item.texts or item.options)) < share * 2**64].append(item)
    return sides if sides[0] else (list(items), [])


def with_all_classes(rows: Sequence[Item], others: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """The same two sides, but a class whose items chance kept apart one and all, as it does with rare ones,
    is learned from; with its texts, so that none stands on both sides."""
    known = {name_of(item.label) for item in rows}
    needed = {item.texts for item in others if name_of(item.label) not in known}
    moved = [item for item in others if item.texts in needed]
    return [*rows, *moved], [item for item in others if item.texts not in needed]
