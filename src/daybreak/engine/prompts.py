"""What stands before the first new token: prompts as people give them, made into token ids."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from daybreak.architecture import Architecture, Learned
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
    tokens = _encode(model, entry) if from_text else _ids(index, entry)
    if not tokens:
        tokens = [_first_token(model)]
    vocabulary, context = model.architecture.vocabulary, model.architecture.context
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise DaybreakError(
                f"prompt {index + 1} has token id {token}; the model's go from 0 to {vocabulary - 1}"
            )
    if isinstance(model.architecture.positions, Learned) and len(tokens) > context:
        raise DaybreakError(
            f"prompt {index + 1} has {len(tokens)} tokens, but the model reads {context} at most; shorten it"
        )
    return Prompt(index, tuple(tokens), from_text)


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


def _encode(model: Model, text: str) -> list[int]:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise DaybreakError("the model has no tokenizer, so it cannot read text; give lists of token ids")
    tokens = list(tokenizer.encode(text, bos=False))
    if tokenizer.adds_bos and tokens[:1] != [tokenizer.bos_id]:
        tokens.insert(0, tokenizer.bos_id)
    return tokens


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
