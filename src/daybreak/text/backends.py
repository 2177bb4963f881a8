"""What does a tokenizer's work: either library that turns text into ids, behind the same few methods."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library


class Backend(Protocol):
    """What `daybreak.text.tokenizer.Tokenizer` needs of them."""

    @property
    def vocabulary(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids; `special`: special tokens written in the text become their ids, else they are text."""

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """The text of token ids, those of special tokens left out or written."""

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary, by its spelling."""

    def special_id(self, token: str) -> int | None:
        """The id of the special token spelled so."""

    @property
    def specials(self) -> Mapping[str, int]:
        """All special tokens: spelling -> id."""


class Fast:
    """The tokenizers library: byte pairs and word pieces."""

    def __init__(self, library: Library) -> None:
        self._library = library

    @cached_property
    def vocabulary(self) -> int:
        return max(self._library.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def _plain(self) -> Library:
        """A copy that takes special tokens for text. The setting is the library object's own, and not safe to
        switch while another thread encodes."""
        plain = copy.deepcopy(self._library)
        plain.encode_special_tokens = True
        return plain

    def encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = (
            (self._library if special else self._plain).encode(text, add_special_tokens=False).ids
        )
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        text: str = self._library.decode(ids, skip_special_tokens=skip_special)
        return text

    def id_of(self, token: str) -> int | None:
        number: int | None = self._library.token_to_id(token)
        return number

    def special_id(self, token: str) -> int | None:
        return self.specials.get(token)

    @cached_property
    def specials(self) -> dict[str, int]:
        known = self._library.get_added_tokens_decoder().items()
        return {entry.content: number for number, entry in known if entry.special}
