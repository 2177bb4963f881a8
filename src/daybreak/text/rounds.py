"""Conversations whose answers are still to be written: what a model reads before each of them."""

from __future__ import annotations

from collections.abc import Sequence

from daybreak.errors import DaybreakError
from daybreak.text.chat import chat_text, encode_chat, own_template, turn_end
from daybreak.text.chat_template import Message
from daybreak.text.tokenizer import Tokenizer

ANSWER = "x"
"""What stands for an answer while the template is asked what it writes around one."""


def round_ids(tokenizer: Tokenizer, rounds: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Token ids to be read before each answer of a conversation: `rounds` are the messages before the first
    one, those between the first and the second, and so on.

    Every later list begins with the mark that the template writes behind an answer. So whoever takes the
    token that ended an answer away and puts the next list there, has the conversation so far: an answer's
    tokens stay those that were drawn, and nothing that it says is read as a mark. Raises `DaybreakError`
    where the template writes no mark behind an answer, or shows earlier turns otherwise than the model wrote
    them, and for messages that it refuses.
    """
    source = own_template(tokenizer)
    end = None if source is None else turn_end(tokenizer, source)
    if source is None or end is None:
        raise DaybreakError(
            "a conversation of several rounds needs a chat template that puts a mark behind each answer, and "
            "the model has none; tune it with `daybreak align sft`, which keeps one, or leave no turns open"
        )
    found: list[list[int]] = []
    messages: list[Message] = []
    text, ends = "", 0  # so far, and how many of the marks stand in it
    for said in rounds:
        messages += said
        ids, whole = encode_chat(tokenizer, source, messages), chat_text(tokenizer, source, messages)
        if found:
            _check(whole, text, _spelled(tokenizer, end))
        places = [place for place, token in enumerate(ids) if token == end]
        found.append(ids[places[ends] :] if found else ids)
        text, ends = whole, len(places)
        messages.append({"role": "assistant", "content": ANSWER})
    return found


def _spelled(tokenizer: Tokenizer, token: int) -> str:
    known = {**tokenizer.added, **tokenizer.specials}
    return next(text for text, number in known.items() if number == token)


def _check(whole: str, before: str, end: str) -> None:
    """`whole` must go on from `before` with an answer and its mark; white space may stand around it."""
    behind = whole.removeprefix(before).lstrip()
    kept = whole.startswith(before) and behind.startswith(ANSWER)
    if not kept or not behind.removeprefix(ANSWER).lstrip().startswith(end):
        raise DaybreakError(
            "the chat template shows earlier turns otherwise than the model wrote them, so it could not go "
            "on from its own tokens; leave no turns open, or give a template that shows all turns alike"
        )
