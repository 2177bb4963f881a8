"""Tokens that were added to a vocabulary after training: what the files say, and the ids that they get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

DECODER = "added_tokens_decoder"
"""The key of tokenizer_config.json that lists them."""
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


@dataclass(frozen=True)
class Added:
    """A token as a file lists it."""

    file: Path
    id: int
    text: str
    flags: Mapping[str, bool] = field(default_factory=dict)
    special: bool = False


def from_list(file: Path, spelled: Mapping[str, Any]) -> list[Added]:
    """What added_tokens.json says: ids by text. Raises `DaybreakError` for anything else."""
    for text, number in spelled.items():
        if not text or type(number) is not int or number < 0:
            raise DaybreakError(f"{file} gives the token {text!r} the id {number!r}; fetch the file again")
    return [Added(file, number, text) for text, number in spelled.items()]


def from_config(file: Path, config: Mapping[str, Any]) -> list[Added]:
    """What tokenizer_config.json says: descriptions by id. Raises `DaybreakError` for anything else."""
    entries = config.get(DECODER)
    if entries is None:
        return []
    if not isinstance(entries, dict):
        raise DaybreakError(
            f"{file} holds a {type(entries).__name__} under {DECODER} where ids with their tokens are "
            "expected; fetch the file again"
        )
    return [_described(file, number, entry) for number, entry in entries.items()]


def _described(file: Path, number: str, entry: Any) -> Added:
    text = entry.get("content") if isinstance(entry, dict) else None
    if not number.isdecimal() or not isinstance(text, str) or not text:
        raise DaybreakError(
            f"{file} describes the token {number!r} under {DECODER} by {entry!r}; fetch the file again"
        )
    flags = {flag: bool(entry[flag]) for flag in FLAGS if flag in entry}
    return Added(file, int(number), text, flags, bool(entry.get("special")))


def add(backend: Backend, tokens: Iterable[Added], special: Iterable[str | None]) -> None:
    """Make the backend know these tokens as wholes, and of the vocabulary those named `special`.

    Tokens in the vocabulary keep their ids, others follow in order. Raises `DaybreakError` where that is not
    the id that the file gives.
    """
    from tokenizers import AddedToken

    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in sorted(tokens, key=lambda token: token.id):
        if token.text not in known:
            made = AddedToken(token.text, special=token.special, **token.flags)
            backend.add_special_tokens([made]) if token.special else backend.add_tokens([made])
            known |= {token.text} if token.special else set()
        found = backend.token_to_id(token.text)
        if found != token.id:
            raise DaybreakError(
                f"{token.file} gives the token {token.text!r} the id {token.id}, but beside this vocabulary "
                f"it is {found}; take all of the tokenizer's files from the same checkpoint"
            )
    for text in dict.fromkeys(special):
        if text is not None and text not in known and backend.token_to_id(text) is not None:
            backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
