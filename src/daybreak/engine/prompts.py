"""What stands before the first new token: prompts as people give them, made into token ids."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from daybreak.architecture import Architecture
from daybreak.engine import frame
from daybreak.engine.frame import Frame
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.model.decoder import Decoder


class Model(Protocol):
    """What text generation needs of a language model."""

    family: Family
    decoder: Decoder
    tokenizer: Any
    config: dict[str, Any]
    generation: dict[str, Any]

    @property
    def architecture(self) -> Architecture: ...


Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Sequence[Tensor] | Tensor
"""One text, several, one list of token ids, several, or whole numbers [length] or [batch, length]; numpy's
arrays and numbers stand for tensors and ids."""


_FORMS = "give a text, or a list of texts or of token ids"


@dataclass(frozen=True)
class Prompt:
    """Where a text starts."""

    index: int
    """Its place among the prompts of the call."""
    tokens: tuple[int, ...]
    from_text: bool
    """It came as text, so it ends with a whole character."""


def prepare(model: Model, prompts: Prompts) -> list[Prompt]:
    """Token ids of every prompt. Raises `DaybreakError` for a prompt that the model cannot read.

    A text gets the token that the family was trained to start with, if it was, and once; ids are taken as
    they are. An empty prompt becomes the token that texts start from, or else the one that they end with.
    For a model with blanks a text goes on in a [gMASK] at its end, which is put there where it is not.
    """
    given = _plain(prompts)
    if not isinstance(given, str) and not _is_list(given):
        raise DaybreakError(f"the prompts are {reprlib.repr(given)}; {_FORMS}")
    entries = [given] if isinstance(given, str) else [_plain(entry) for entry in given]
    if not entries:
        raise DaybreakError(f"there is no prompt: {_FORMS}")
    if not isinstance(entries[0], str) and not _is_list(entries[0]):
        entries = [entries]
    return [_prepare(model, index, entry) for index, entry in enumerate(entries)]


def _plain(value: Any) -> Any:
    """Lists and numbers for tensors and numpy's arrays."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _prepare(model: Model, index: int, entry: Any) -> Prompt:
    from_text = isinstance(entry, str)
    name = f"prompt {index + 1}"
    tokens = of_text(model, name, entry) if from_text else _ids(index, entry)
    if not tokens and model.architecture.blanks is None:
        tokens = [_first_token(model)]
    check(model, name, tokens)
    return Prompt(index, tuple(tokens), from_text)


def check(model: Model, name: str, tokens: Sequence[int]) -> None:
    """Raises `DaybreakError`, which calls the prompt by its `name`, for ids that the model cannot read."""
    vocabulary, context = model.architecture.vocabulary, model.architecture.context
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise DaybreakError(f"{name} has token id {token}; the model's go from 0 to {vocabulary - 1}")
    if model.architecture.blanks is not None:
        frame.check_layout(name, tokens, model.architecture.blanks)
    room = frame.room(model.architecture, tokens)
    if room is not None and room < 1:
        raise DaybreakError(
            f"{name} has {len(tokens)} tokens, but the model reads {context} at most; shorten it"
        )


def _ids(index: int, entry: Any) -> list[int]:
    if not _is_list(entry):
        raise DaybreakError(f"prompt {index + 1} is {reprlib.repr(entry)}; {_FORMS}")
    ids = []
    for place, token in enumerate(entry, 1):
        try:
            ids.append(operator.index(token))
        except TypeError:
            raise DaybreakError(
                f"prompt {index + 1} has {reprlib.repr(token)} as entry {place}; token ids are whole numbers"
            ) from None
    return ids


def of_text(model: Model, name: str, text: str) -> list[int]:
    """The ids of a text that goes on, whatever their number; none of an empty one whose model needs none in
    front. `name` is the text's, for errors."""
    tokenizer, tokens = model.tokenizer, encode(model, name, text)
    if model.architecture.blanks is not None:
        return _going_on(Frame.of(model), name, tokens)
    if tokenizer.adds_bos and tokens[:1] != [tokenizer.bos_id]:
        tokens.insert(0, tokenizer.bos_id)
    return tokens


def encode(model: Model, name: str, text: str) -> list[int]:
    """The ids of a text alone. Raises `DaybreakError` for what is no text."""
    if model.tokenizer is None:
        raise DaybreakError("the model has no tokenizer, so it cannot read text; give lists of token ids")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DaybreakError(f"{name} is not UTF-8 text: {error}") from None
    return list(model.tokenizer.encode(text, bos=False))


def _going_on(around: Frame, name: str, tokens: list[int]) -> list[int]:
    """A context whose end is to be written on. A text with the start of a piece is laid out already."""
    blanks = around.blanks
    if blanks.start in tokens:
        return tokens
    found = tokens.count(blanks.rest)
    if found > 1 or (found and tokens[-1] != blanks.rest):
        raise DaybreakError(
            f"{name} has a [gMASK] (id {blanks.rest}) before its end; it stands for the rest of a text, so "
            "put one at the end, or none"
        )
    return around.prompt(tokens if found else [*tokens, blanks.rest])


def _first_token(model: Model) -> int:
    for name in ("bos", "eos"):
        token = special_token(model, name)
        if token is not None and token < model.architecture.vocabulary:
            return token
    raise DaybreakError(
        "the prompt is empty, and this model has no token that a text starts from; give at least one word"
    )


def special_token(model: Model, name: str) -> int | None:
    """The id of `bos` or `eos`; the first where there are several, None where there is none."""
    ids = special_tokens(model, name)
    return ids[0] if ids else None


def special_tokens(model: Model, name: str) -> list[int]:
    """The ids of `bos` or `eos`: generation_config.json's, else config.json's, the tokenizer's, the
    family's."""
    key = f"{name}_token_id"
    sources: list[Mapping[str, Any]] = [model.generation, model.config]
    sources.append(
        model.family.special_tokens
        if model.tokenizer is None
        else {key: getattr(model.tokenizer, f"{name}_id")}
    )
    value = next((source[key] for source in sources if source.get(key) is not None), None)
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def live_vocabulary(model: Model) -> int:
    """Ids that may be chosen are below this: rows that pad the table to a round number mean nothing."""
    rows = model.architecture.vocabulary
    return rows if model.tokenizer is None else min(rows, model.tokenizer.vocabulary)
