"""Which adapter writes a text."""

from __future__ import annotations

from collections.abc import Sequence

from daybreak.engine.continuation import IN_USE, Continuation
from daybreak.errors import DaybreakError
from daybreak.model import merging
from daybreak.model.adapters import active, known
from daybreak.model.decoder import Decoder

Adapters = str | Sequence[str | None] | None
"""One for all prompts, or one for each; None: none."""


def assign(texts: Sequence[Continuation], adapters: Adapters) -> None:
    """Give each text the adapter of its prompt. Raises `DaybreakError` where there are more or fewer."""
    prompts = len({text.prompt.index for text in texts})
    own = [adapters] * prompts if adapters is None or isinstance(adapters, str) else list(adapters)
    if len(own) != prompts:
        raise DaybreakError(
            f"there are {len(own)} adapters for {prompts} prompts; give one for each, or one name"
        )
    for text in texts:
        text.adapter = own[text.prompt.index]


def adapter_of(decoder: Decoder, wanted: str | None, weights: int) -> str | None:
    """The adapter that corrects the weights for a text that wants this one. Raises `DaybreakError` where
    there is none of that name, and where the weights have another number by now (see `merging.weights`).
    """
    within = merging.merged(decoder)
    if merging.weights(decoder) != weights:
        raise DaybreakError(
            "an adapter was merged or unmerged since the engine was made, which has read texts with other "
            "weights; make a new one: model.engine()"
        )
    if within is not None:
        if wanted not in (IN_USE, within):
            raise DaybreakError(
                f"adapter {within!r} is merged into the weights, so there is no "
                f"{'model without it' if wanted is None else repr(wanted)} beside it; unmerge it first"
            )
        return None
    if wanted == IN_USE:
        return active(decoder)
    known(decoder, wanted)
    return wanted


def mark(decoder: Decoder, adapter: str | None) -> bytes:
    """What tells the keys and values of texts with an adapter from those of others that read the same tokens:
    -1, which is no token, and a number that no other adapter ever had.
    """
    if adapter is None:
        return b""
    numbers = (-1, known(decoder, adapter).serials[adapter])
    return b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)
