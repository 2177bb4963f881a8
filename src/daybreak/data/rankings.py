"""Answers that people have compared: files of rankings, of pairs, and of ratings.

A row says what was asked (`prompt`: a text that the answer continues, or a list of messages), the answers,
and how good each was found, in one of these forms:

    {"prompt": ..., "answers": [...], "ranks": [1, 3, 2]}         the best has rank 1
    {"prompt": ..., "answers": [...], "scores": [0.9, 0.1, 0.4]}  the best has the highest score
    {"prompt": ..., "chosen": ..., "rejected": ...}               of two answers, the better one first
    {"messages": [...], "answers": [...], "ratings": [5, null]}   what `append_rating` keeps; null: not rated

Equal numbers are ties. A row may also have a `demonstration`, an answer as it should be. Answers may be lists
of messages, as pairs on the hub often are: the last one is the answer, and those before it belong to the
prompt. A column that is null is none, as in tables whose rows have different forms.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from daybreak.data.open_turns import refuse_open
from daybreak.data.order import draw
from daybreak.data.rows import check_text, rows
from daybreak.errors import DaybreakError
from daybreak.text.chat import checked
from daybreak.text.chat_template import Message

Prompt = str | tuple[Message, ...]
"""A text that is continued, or messages that are answered."""
VALUES = ("ranks", "scores", "ratings")
FORMS = "prompt with answers and ranks or scores, prompt with chosen and rejected, or messages with ratings"


@dataclass(frozen=True)
class Ranking:
    """What was asked, and at least two answers of which at least two differ in value."""

    prompt: Prompt
    answers: tuple[str, ...]
    values: tuple[float, ...]
    """How good each answer was found: larger is better."""
    demonstration: str | None = None
    """An answer as it should be, by somebody who was asked to write one."""
    where: str = ""
    """File and row, for errors."""

    @property
    def order(self) -> list[int]:
        """The answers' places, the best first; those of equal value as they came."""
        return sorted(range(len(self.values)), key=lambda place: -self.values[place])

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(better, worse) for every two answers that are no tie."""
        for better, first in enumerate(self.values):
            for worse, second in enumerate(self.values):
                if first > second:
                    yield better, worse


def read_rankings(file: Path) -> list[Ranking]:
    """The rankings in a file of JSON lines, CSV or parquet, in order; people rate single answers, too, and
    rows of ratings that compare nothing are passed over (`uncompared` counts them). Raises `DaybreakError`,
    which names file and row, for what is none."""
    found = [ranking_of(row, where) for where, row in rows(file) if not _compares_nothing(row, where)]
    if not found and uncompared(file):
        raise DaybreakError(
            f"{file} has no row with two answers that are rated differently, and comparing takes two; learn "
            "from single answers with `daybreak align dpo --loss kto`"
        )
    if not found:
        raise DaybreakError(f"{file} holds no rankings; give a file with rows of {FORMS}")
    return found


def uncompared(file: Path) -> int:
    """How many rows of ratings hold no two answers that are rated differently."""
    return sum(_compares_nothing(row, where) for where, row in rows(file))


def _compares_nothing(row: Mapping[str, Any], where: str) -> bool:
    return not _is_pair(row) and row.get("ratings") is not None and len(set(rated(row, where)[2])) < 2


def ranking_of(row: Mapping[str, Any], where: str) -> Ranking:
    """The ranking in a row; `where` names it in errors. Raises `DaybreakError` for what is none."""
    if _is_pair(row):
        prompt, answers, values = _pair(row, where)
    else:
        prompt, answers, values = _listed(row, where)
    if len(answers) < 2:
        raise DaybreakError(
            f"{where} has {len(answers)} rated answer, and comparing takes two; add answers, leave it out, "
            "or make it a prompt with a completion and a label, from which `daybreak align dpo --loss kto` "
            "learns"
        )
    if len(set(values)) == 1:
        raise DaybreakError(f"{where}: all {len(answers)} answers are ties, which says nothing; leave it out")
    return Ranking(prompt, tuple(answers), tuple(values), _demonstration(row, where), where)


class Asked(Protocol):
    """Whatever a prompt belongs to."""

    @property
    def prompt(self) -> Prompt: ...


A = TypeVar("A", bound=Asked)


def held_out(rows: Sequence[A], share: float) -> tuple[list[A], list[A]]:
    """The rows in two: those to learn from, and about this share of them kept apart. What was asked decides,
    so that no prompt stands on both sides, and the same prompts are apart in every run."""
    sides: tuple[list[A], list[A]] = ([], [])
    for row in rows:
        text = json.dumps(row.prompt, ensure_ascii=False, sort_keys=True)
        sides[draw("held out", text) < share * 2**64].append(row)
    return sides


def append_rating(
    file: Path,
    messages: Sequence[Message],
    answers: Sequence[str],
    ratings: Sequence[float | None],
    **further: Any,
) -> None:
    """Add a line to a file of ratings: what was said, the answers given to it, and what they are worth
    (larger is better; None: not rated); `further` keys are kept beside, such as the model's name.

    The line is written at once or not at all, also where several processes write, and is on the disk when
    this returns. Raises `DaybreakError` for what could not be read back, and where it cannot be written.
    """
    checked(messages)
    given = [None if rating is None else float(rating) for rating in ratings]
    if len(given) != len(answers) or not answers:
        raise DaybreakError(f"there are {len(answers)} answers and {len(given)} ratings; give one for each")
    if any(rating is not None and not math.isfinite(rating) for rating in given):
        raise DaybreakError(f"the ratings are {list(ratings)}; give numbers, or None for an unrated answer")
    row = {
        "messages": [dict(message) for message in messages],
        "answers": list(answers),
        "ratings": given,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **further,
    }
    _append(file, (json.dumps(row, ensure_ascii=False) + "\n").encode())


def _append(file: Path, line: bytes) -> None:
    """One call of write on a file opened to append, which the system does not interleave with others'."""
    import fcntl

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+", buffering=0) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = handle.seek(0, os.SEEK_END)
            if size:
                handle.seek(size - 1)
                # What a process left that was killed, or a full disk, must not spoil the next line as well.
                line = line if handle.read(1) == b"\n" else b"\n" + line
            if handle.write(line) != len(line):
                handle.truncate(size)
                raise DaybreakError(f"{file} cannot be written: the disk is full; make room")
            os.fsync(handle.fileno())
    except OSError as error:
        raise DaybreakError(f"{file} cannot be written: {error.strerror or error}") from None


# Rows ----------------------------------------------------------


def _is_pair(row: Mapping[str, Any]) -> bool:
    return row.get("chosen") is not None or row.get("rejected") is not None


def _listed(row: Mapping[str, Any], where: str) -> tuple[Prompt, list[str], list[float]]:
    if row.get("answers") is None:
        prompt_in(row, where)
        raise _lacking(row, where)
    return rated(row, where)


def rated(row: Mapping[str, Any], where: str) -> tuple[Prompt, list[str], list[float]]:
    """Prompt, answers and values (larger is better) of a row that has lists of these; answers that nobody
    rated are left out. Raises `DaybreakError` for what is none.

    Rated answers are a model's own and may be empty, for models say nothing at times; who ranks answers has
    written them down, and an empty one is a mistake.
    """
    prompt = prompt_in(row, where)
    answers: Any = row.get("answers")
    named = [name for name in VALUES if row.get(name) is not None]
    if len(named) != 1:
        said = " and ".join(named) or "none"
        raise DaybreakError(f"{where} needs one of {', '.join(VALUES)} for its answers, and has {said}")
    values = row[named[0]]
    if not _is_list(answers) or not _is_list(values) or len(answers) != len(values):
        raise DaybreakError(f"{where}: answers and {named[0]} must be lists of equal lengths")
    kept = [
        (_answer(answer, where, named[0] == "ratings"), _number(value, named[0], where))
        for answer, value in zip(answers, values, strict=True)
        if named[0] != "ratings" or value is not None
    ]
    sign = -1.0 if named[0] == "ranks" else 1.0
    return prompt, [answer for answer, _ in kept], [sign * value for _, value in kept]


def _pair(row: Mapping[str, Any], where: str) -> tuple[Prompt, list[str], list[float]]:
    both = [row.get("chosen"), row.get("rejected")]
    if any(one is None for one in both):
        raise _lacking(row, where)
    if all(_is_list(one) and one for one in both):
        talks = [_messages(one, where) for one in both]
        if talks[0][:-1] != talks[1][:-1]:
            raise DaybreakError(
                f"{where}: chosen and rejected must be the same messages up to the last one, the answer"
            )
        before = prompt_of(row["prompt"], where) if row.get("prompt") is not None else ()
        if isinstance(before, str):
            before = ({"role": "user", "content": before},)
        shared = talks[0][:-1]
        whole = shared if _holds(shared, before) else (*before, *shared)
        return prompt_of(list(whole), where), [_last(talk, where) for talk in talks], [1.0, 0.0]
    if row.get("prompt") is None:
        raise _lacking(row, where)
    return prompt_of(row["prompt"], where), [answer_of(one, where) for one in both], [1.0, 0.0]


def _holds(talk: tuple[Message, ...], part: tuple[Message, ...]) -> bool:
    """Does the part stand anywhere in the talk, such as a question behind a system message?"""
    return any(talk[place : place + len(part)] == part for place in range(len(talk) - len(part) + 1))


def prompt_in(row: Mapping[str, Any], where: str) -> Prompt:
    """What a row asks, under `prompt` or else `messages`. Raises `DaybreakError`, as `prompt_of` does."""
    given = asked_in(row)
    if given is None:
        raise DaybreakError(
            f"{where} has neither prompt nor messages (it has {', '.join(map(str, row)) or 'nothing'}); a "
            "row needs one of them, a text or a list of messages"
        )
    return prompt_of(given, where)


def asked_in(row: Mapping[str, Any]) -> Any:
    """The same as it stands there; None: nothing does."""
    named = [row[name] for name in ("prompt", "messages") if row.get(name) is not None]
    return named[0] if named else None


def prompt_of(given: Any, where: str) -> Prompt:
    """What is asked: a text, or messages. Raises `DaybreakError`, which names `where` it stands,
    for what is none."""
    if isinstance(given, str):
        if not given.strip():
            raise DaybreakError(f"{where} has an empty prompt; say what was asked, or leave it out")
        check_text(given, where)
        return given
    messages = _messages(given, where)
    if messages[-1]["role"] == "assistant":
        raise DaybreakError(f"{where}: the prompt ends with an answer; the last message must be a question")
    if not any(message["content"].strip() for message in messages):
        raise DaybreakError(f"{where} has an empty prompt; say what was asked, or leave it out")
    return messages


def _messages(given: Any, where: str) -> tuple[Message, ...]:
    if not _is_list(given):
        raise DaybreakError(f"{where} has {_shown(given)} where a text or a list of messages is expected")
    refuse_open(given, where)
    try:
        return tuple(checked(list(given)))
    except DaybreakError as error:
        raise DaybreakError(f"{where}: {error}") from None


def answer_of(given: Any, where: str) -> str:
    """An answer: a text, or a list of the assistant's one message. Raises `DaybreakError` for what is
    none."""
    return _answer(given, where, False)


def _answer(given: Any, where: str, empty: bool) -> str:
    """The same; `empty`: it may be."""
    if _is_list(given) and len(given) == 1:
        return _last(_messages(given, where), where, empty)
    if not isinstance(given, str):
        raise DaybreakError(f"{where} has {_shown(given)} as an answer; answers are texts")
    if not given.strip() and not empty:
        raise DaybreakError(f"{where} has an empty answer; leave it out")
    check_text(given, where)
    return given


def _last(messages: Sequence[Message], where: str, empty: bool = False) -> str:
    if messages[-1]["role"] != "assistant":
        raise DaybreakError(f"{where}: the last message of an answer must be the assistant's")
    return _answer(messages[-1]["content"], where, empty)


def _demonstration(row: Mapping[str, Any], where: str) -> str | None:
    given = row.get("demonstration")
    return None if given is None else answer_of(given, where)


def _number(given: Any, name: str, where: str) -> float:
    value = math.nan
    if isinstance(given, int | float) and not isinstance(given, bool):
        with suppress(OverflowError):
            value = float(given)
    if not math.isfinite(value):
        raise DaybreakError(f"{where} has {_shown(given)} among its {name}; give a number for every answer")
    return value


def _lacking(row: Mapping[str, Any], where: str) -> DaybreakError:
    filled = [str(name) for name, value in row.items() if value is not None]
    return DaybreakError(f"{where} has the columns {', '.join(filled) or 'none'}; it needs {FORMS}")


def _is_list(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else text[:57] + "..."
