"""The tokens of blanks: which ids they have, by the model's files and by its tokenizer's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from daybreak.architecture import Architecture, Blanks
from daybreak.errors import DaybreakError
from daybreak.text.tokenizer import Tokenizer


def settled(
    architecture: Architecture, tokenizer: Tokenizer | None, spellings: Mapping[str, str], *, said: bool
) -> Architecture:
    """`architecture` with the ids that the tokenizer gives the tokens of blanks.

    `spellings`: fields of `Blanks` -> how the family spells these tokens. `said`: the ids of the architecture
    were in config.json, and not only guessed from the vocabulary's size; the two must then agree. Raises
    `DaybreakError` where they do not, and where the tokenizer knows ids that the model has no row for.
    """
    if tokenizer is None or architecture.blanks is None:
        return architecture
    found = {field: tokenizer.special_id(text) for field, text in spellings.items()}
    known = {field: number for field, number in found.items() if number is not None}
    for field, number in known.items():
        now = getattr(architecture.blanks, field)
        if number >= architecture.vocabulary or (said and now is not None and now != number):
            raise DaybreakError(
                f"the tokenizer gives {spellings[field]} the id {number}, config.json's model has {now} for "
                f"it and {architecture.vocabulary} rows; take both from the same checkpoint"
            )
    merged: dict[str, Any] = {**dataclasses.asdict(architecture.blanks), **known}
    return dataclasses.replace(architecture, blanks=Blanks(**merged))
