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
    `DaybreakError` where they do not, where the tokenizer knows ids that the model has no row for, and where
    some would stay a guess beside others that it knows: a guess may hit an ordinary word.
    """
    if tokenizer is None or architecture.blanks is None:
        return architecture
    found = {field: tokenizer.special_id(text) for field, text in spellings.items()}
    known: dict[str, int | None] = {field: number for field, number in found.items() if number is not None}
    for field, number in known.items():
        now = getattr(architecture.blanks, field)
        beyond = number is not None and number >= architecture.vocabulary
        if beyond or (said and now is not None and now != number):
            raise DaybreakError(
                f"the tokenizer gives {spellings[field]} the id {number}, config.json's model has {now} for "
                f"it and {architecture.vocabulary} rows; take both from the same checkpoint"
            )
    if known and not said:
        if lacking := [
            text for field, text in spellings.items() if field not in known and field != "sentence"
        ]:
            raise DaybreakError(
                f"the tokenizer spells {spellings[next(iter(known))]} but has no {lacking[0]}, and config."
                "json does not say the ids of the tokens of blanks; add mask_token_id and the like to it"
            )
        known.setdefault("sentence", None)
    merged: dict[str, Any] = {**dataclasses.asdict(architecture.blanks), **known}
    return dataclasses.replace(architecture, blanks=Blanks(**merged))
