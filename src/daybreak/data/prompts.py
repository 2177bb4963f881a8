"""Files of prompts: what is asked, without answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from daybreak.data.open_turns import check_open, is_open
from daybreak.data.rankings import Prompt, asked_in, prompt_in, prompt_of
from daybreak.data.rows import rows
from daybreak.errors import DaybreakError

Rounds = tuple[Prompt, ...]
"""What is said before each answer of a conversation: the first prompt, then what follows an answer."""
T = TypeVar("T")


def read_prompts(file: Path) -> list[tuple[str, Prompt]]:
    """What is asked in each row of a file of JSON lines, CSV or parquet, with the row's name for errors.

    A row has a `prompt` (a text, or a list of messages) or `messages`; what else stands in it is passed over,
    so that files of rankings will do. Raises `DaybreakError` for a row without.
    """
    return _read(file, prompt_in)


def read_rounds(file: Path) -> list[tuple[str, Rounds]]:
    """The same, where turns of the assistant may be left open, with null for their content."""
    return _read(file, rounds_in)


def rounds_in(row: Mapping[str, Any], where: str) -> Rounds:
    """What a row says before each answer: messages are cut at their open turns. Raises `DaybreakError`, which
    names `where` it stands, for what is none."""
    given = asked_in(row)
    if not isinstance(given, list | tuple) or not any(map(is_open, given)):
        return (prompt_in(row, where),)
    check_open(given, where)
    filled = [{**message, "content": "?"} if is_open(message) else message for message in given]
    messages = prompt_of(filled, where)
    assert isinstance(messages, tuple)
    cuts = [place for place, message in enumerate(given) if is_open(message)]
    return tuple(
        messages[first:end] for first, end in zip([0, *(cut + 1 for cut in cuts)], [*cuts, None], strict=True)
    )


def _read(file: Path, read: Callable[[Mapping[str, Any], str], T]) -> list[tuple[str, T]]:
    found = [(where, read(row, where)) for where, row in rows(file)]
    if not found:
        raise DaybreakError(f'{file} holds no prompts; give a file with rows of {{"prompt": ...}}')
    return found
