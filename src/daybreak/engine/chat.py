"""Conversations: messages in, an answer out, in the format that the checkpoint or its family asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from daybreak.engine.continuation import Result
from daybreak.engine.engine import Engine
from daybreak.engine.frame import Frame
from daybreak.engine.generate import Stream, stream
from daybreak.engine.prompts import Model
from daybreak.engine.settings import Sampling, resolve
from daybreak.errors import DaybreakError
from daybreak.text.chat import encode_chat, own_template, turn_end
from daybreak.text.chat_template import Message

NEW_TOKENS = 512
"""Of an answer at most, where neither the call nor the checkpoint nor the family says."""
ROOM = 4
"""The longest prompt leaves this part of the context, one in four, for its answer."""

SAMPLES = {"do_sample", "temperature", "top_k", "top_p"}
"""Keys of a generation_config.json that says how to sample."""


class Answer:
    """Iterate over it for pieces of text, white space before the first word left out.

    Afterwards `text` has the answer and `result` everything. Stopped midway, `text` is what has come so far.
    """

    def __init__(self, pieces: Stream) -> None:
        self._stream = pieces
        self._shown: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for piece in self._stream:
            piece = piece if self._shown else piece.lstrip()
            if piece:
                self._shown.append(piece)
                yield piece

    @property
    def text(self) -> str:
        """Without white space around it; iterate first."""
        return "".join(self._shown).strip()

    @property
    def message(self) -> dict[str, str]:
        """The answer as a message, to be added to those that led to it."""
        return {"role": "assistant", "content": self.text}

    @property
    def result(self) -> Result:
        """The tokens and the reason for the end; its text is the model's to the letter."""
        return self._stream.result


def chat(
    model: Model,
    messages: Sequence[Message],
    sampling: Sampling | None = None,
    *,
    defaults: bool = True,
    engine: Engine | None = None,
    **settings: Any,
) -> Answer:
    """The answer to the last of the messages, piece by piece as it comes.

    `settings` are fields of `Sampling` and go before generation_config.json's, and these before the
    family's, which count where that file does not say how to sample; with `sampling` or `defaults=False`
    neither counts. With an `engine`, an answer reads only what the one before has not. Raises
    `DaybreakError` for messages that are none, and for those that the checkpoint's own template refuses.
    """
    chosen = settings_of(model, sampling, settings, defaults)
    return Answer(stream(model, prompt(model, messages), chosen, engine=engine))


def prompt(model: Model, messages: Sequence[Message]) -> list[int]:
    """The ids that an answer continues. A template writes its begin-of-text token itself, if it wants one."""
    tokenizer = _tokenizer(model)
    own = own_template(tokenizer)
    ids = encode_chat(tokenizer, own or model.family.chat.template, messages)
    if model.architecture.blanks is not None:
        around = Frame.of(model)
        if around.blanks.start in ids:
            return ids
        return around.prompt(ids if around.blanks.rest in ids[-1:] else [*ids, around.blanks.rest])
    if own is None and tokenizer.adds_bos and tokenizer.bos_id is not None:
        ids.insert(0, tokenizer.bos_id)
    return ids


def has_template(model: Model) -> bool:
    """The checkpoint brings its format along, or its family was trained to converse in the family's."""
    return own_template(_tokenizer(model)) is not None or model.family.chat.tuned


def settings_of(
    model: Model, sampling: Sampling | None, settings: dict[str, Any], defaults: bool
) -> Sampling:
    """The settings of one answer, with what ends one in the format of the conversation."""
    tokenizer, format_ = _tokenizer(model), model.family.chat
    own = own_template(tokenizer)
    if sampling is not None:
        chosen = dataclasses.replace(sampling, **settings)
    else:
        family = format_.generation if own is None else {}
        chosen = resolve(_published(model.generation, family) if defaults else {}, settings)
    if chosen.max_new_tokens is None and chosen.max_length is None:
        chosen = dataclasses.replace(chosen, max_new_tokens=NEW_TOKENS)
    if own is None:
        return dataclasses.replace(chosen, stop=(*chosen.stop, *format_.stop))
    end = None if chosen.ignore_eos else turn_end(tokenizer, own)
    return chosen if end is None else dataclasses.replace(chosen, stop_tokens=(*chosen.stop_tokens, end))


def _published(own: Mapping[str, Any], family: Mapping[str, Any]) -> Mapping[str, Any]:
    """generation_config.json, with the family's settings beneath it unless it says itself how to sample.

    Files made by conversion hold nothing but ids.
    """
    said = {key: value for key, value in own.items() if value is not None}
    return said if said.keys() & SAMPLES else {**family, **said}


def fit(
    model: Model, messages: Sequence[Message], sampling: Sampling | None = None
) -> tuple[list[Message], int]:
    """The messages whose prompt leaves room for an answer in the model's context, and how many are left out.

    Whole turns go, the oldest first; system messages and the last message stay. Raises `DaybreakError` where
    these alone are too long.
    """
    sampling = sampling or Sampling()
    context = min(model.architecture.context, sampling.max_length or model.architecture.context)
    wanted = max(1, context // ROOM)
    if sampling.max_new_tokens is not None:
        wanted = min(wanted, sampling.max_new_tokens)
    kept = list(messages)
    while (length := len(prompt(model, kept))) + wanted > context:
        oldest = _oldest_turn(kept)
        if not oldest:
            if length < context:
                break  # a shorter answer is one
            raise DaybreakError(
                f"the last message makes a prompt of {length} tokens, but prompt and answer have {context} "
                "together; shorten it"
            )
        kept = [message for place, message in enumerate(kept) if place not in oldest]
    return kept, len(messages) - len(kept)


def _oldest_turn(messages: Sequence[Message]) -> set[int]:
    """Places of the first message of somebody and of those up to the next user's; empty if it is the last."""
    spoken = [place for place, message in enumerate(messages) if message["role"] != "system"]
    users = [place for place in spoken[1:] if messages[place]["role"] == "user"]
    return {place for place in spoken if place < users[0]} if users else set()


def _tokenizer(model: Model) -> Any:
    if model.tokenizer is None:
        raise DaybreakError(
            "the model has no tokenizer, so it cannot be spoken to; load it with its tokenizer's files"
        )
    return model.tokenizer
