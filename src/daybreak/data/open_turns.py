"""Turns of a conversation whose content is null: a model is to write them while it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from daybreak.errors import DaybreakError


def is_open(message: Any) -> bool:
    return isinstance(message, Mapping) and "content" in message and message["content"] is None


def refuse_open(messages: Sequence[Any], where: str) -> None:
    """Raises `DaybreakError`, which names `where` it stands, for an open turn among what must be said."""
    for number, message in enumerate(messages, 1):
        if is_open(message):
            raise DaybreakError(
                f"{where}: the content of message {number} is null, a turn for the model to write, and only "
                "`daybreak align ppo` does that; fill in what was said, or leave the row out"
            )


def check_open(messages: Sequence[Any], where: str) -> None:
    """Raises `DaybreakError`, which names `where` they stand, for open turns that are no answers: each is the
    assistant's, behind a user's message and before another one."""
    roles = [message.get("role") if isinstance(message, Mapping) else None for message in messages]
    for number, pair in enumerate(pairwise(roles), 1):
        if pair == ("assistant", "assistant"):
            raise DaybreakError(
                f"{where}: messages {number} and {number + 1} are both the assistant's; put a user's message "
                "between them, or make one of them"
            )
    for number, message in enumerate(messages, 1):
        if not is_open(message):
            continue
        if roles[number - 1] != "assistant":
            raise DaybreakError(
                f"{where}: the content of message {number} is null, and its role {roles[number - 1]!r}; only "
                "the assistant's turns can be left open, so fill in what is said there"
            )
        if number == 1 or roles[number - 2] != "user":
            raise DaybreakError(
                f"{where}: message {number} is left open and answers nobody; put a user's message before it"
            )
    if is_open(messages[-1]):
        raise DaybreakError(
            f"{where} ends with an open turn; leave it out, for the last message is answered anyway"
        )
