"""Demonstrations to learn from, in the forms that people have them, told apart by their columns.

    {"messages": [{"role": "user", "content": ...}, ...]}    any number of turns
    {"prompt": ..., "completion": ...}     a text and how it goes on, or messages and the answer
    {"instruction": ..., "input": ..., "output": ...}        Alpaca's; the input may be empty or absent

Rows stand in files of JSON lines (or one JSON list), CSV or parquet. A column with another name is said in
`columns`, `{"output": "response"}`; where a file has the columns of two forms, `form` says which is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from daybreak.data.open_turns import refuse_open
from daybreak.data.rows import check_text, rows
from daybreak.errors import DaybreakError, nearest
from daybreak.text.chat import checked
from daybreak.text.chat_template import Message

Form = Literal["auto", "messages", "completion", "alpaca"]
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
"""What a row of each form must have."""
OPTIONAL = {"alpaca": ("input",)}


@dataclass(frozen=True)
class Demonstration:
    """Something to be written, and what stands before it."""

    messages: tuple[Message, ...]
    """A conversation; of a `text`, empty."""
    text: tuple[str, str] | None = None
    """A prompt that is no message, and its completion."""
    where: str = ""
    """File and row, for errors."""


def read_demonstrations(
    file: Path, form: Form = "auto", columns: Mapping[str, str] | None = None
) -> list[Demonstration]:
    """All rows of a file. Raises `DaybreakError`, which names file, row and remedy, for one that is none."""
    names = _names(columns or {})
    found = []
    for where, row in rows(file):
        if form == "auto":
            form = _form(row, names, where)
        found.append(_READERS[form](_cells(row, form, names, where), where))
    if not found:
        raise DaybreakError(f"{file} holds no rows; give a file that has some")
    return found


def _names(columns: Mapping[str, str]) -> dict[str, str]:
    """Our name of a column -> the file's."""
    known = [name for form in COLUMNS for name in (*COLUMNS[form], *OPTIONAL.get(form, ()))]
    for name in columns:
        if name not in known:
            raise DaybreakError(
                f"data.columns has {name!r}{nearest(name, known)}; it says for {', '.join(known)} how the "
                "file calls them"
            )
    return {name: columns.get(name, name) for name in known}


def _form(row: Mapping[str, Any], names: Mapping[str, str], where: str) -> Form:
    """The form of the first row, which is that of all."""
    fitting = [form for form, needed in COLUMNS.items() if all(names[name] in row for name in needed)]
    if len(fitting) > 1:  # a table of several sources has null in the columns of the others
        filled = [form for form in fitting if all(row[names[name]] is not None for name in COLUMNS[form])]
        fitting = filled or fitting
    if len(fitting) == 1:
        return fitting[0]  # type: ignore[return-value]
    there = ", ".join(map(str, row)) or "none"
    if fitting:
        raise DaybreakError(
            f"{where} has the columns of more than one form ({there}); say which is meant with --data.form "
            f"{' or '.join(fitting)}"
        )
    wanted = "; ".join(" and ".join(needed) for needed in COLUMNS.values())
    raise DaybreakError(
        f"{where} has the columns {there}; a row needs {wanted}. Say what others are called with "
        '--data.columns, such as "{prompt: question, completion: answer}"'
    )


def _cells(row: Mapping[str, Any], form: str, names: Mapping[str, str], where: str) -> dict[str, Any]:
    found = {name: row.get(names[name]) for name in (*COLUMNS[form], *OPTIONAL.get(form, ()))}
    for name in COLUMNS[form]:
        if found[name] is None:
            raise DaybreakError(
                f"{where} has no {names[name]}; fill it in, or remove the row (columns: "
                f"{', '.join(map(str, row)) or 'none'})"
            )
    return found


def _messages(cells: Mapping[str, Any], where: str) -> Demonstration:
    return Demonstration(_talk(cells["messages"], where), where=where)


def _completion(cells: Mapping[str, Any], where: str) -> Demonstration:
    prompt, completion = cells["prompt"], cells["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        check_text(prompt, where)
        _check_answer(completion, "completion", where)
        return Demonstration((), (prompt, completion), where)
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    after = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    for name, part in (("prompt", before), ("completion", after)):
        if not _is_list(part):
            raise DaybreakError(f"{where}: {name} is {_shown(part)}; give a text or a list of messages")
    return Demonstration(_talk([*before, *after], where), where=where)


def _alpaca(cells: Mapping[str, Any], where: str) -> Demonstration:
    instruction, more, output = cells["instruction"], cells["input"], cells["output"]
    for name, value in cells.items():
        if not isinstance(value, str) and not (name == "input" and value is None):
            raise DaybreakError(f"{where}: {name} is {_shown(value)}; give a text")
        check_text(value or "", where)
    if not instruction.strip():
        raise DaybreakError(f"{where} has an empty instruction; say what was asked, or remove the row")
    _check_answer(output, "output", where)
    asked = f"{instruction}\n\n{more}" if more and more.strip() else instruction
    talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]
    return Demonstration(tuple(talk), where=where)


def _talk(given: Any, where: str) -> tuple[Message, ...]:
    """The messages up to the last answer: what stands behind it teaches nothing."""
    if not _is_list(given):
        raise DaybreakError(f"{where} has {_shown(given)} where a list of messages is expected")
    refuse_open(given, where)
    try:
        found = checked(list(given))
    except DaybreakError as error:
        raise DaybreakError(f"{where}: {error}") from None
    while found and found[-1]["role"] != "assistant":
        found.pop()
    answers = [message["content"] for message in found[1:] if message["role"] == "assistant"]
    if not answers:
        raise DaybreakError(
            f"{where} has no answer: a message of the assistant behind another one; remove the row"
        )
    for answer in answers:
        _check_answer(answer, "answer", where)
    return tuple(found)


def _check_answer(text: str, name: str, where: str) -> None:
    if not text.strip():
        raise DaybreakError(f"{where} has an empty {name}; write one, or remove the row")
    check_text(text, where)


def _is_list(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else text[:57] + "..."


_READERS: dict[str, Any] = {"messages": _messages, "completion": _completion, "alpaca": _alpaca}
