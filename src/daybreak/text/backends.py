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

    def encode(self, text: str, special: bool, silent: frozenset[str] = frozenset()) -> list[int]:
        """Token ids; `special`: special tokens written in the text become their ids, else they are text, and
        so are the added tokens that are `silent`."""

    def encode_batch(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """The same for many texts at once."""

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """The text of token ids, those of special tokens left out or written."""

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary, by its spelling."""

    def special_id(self, token: str) -> int | None:
        """The id of the special token spelled so."""

    @property
    def specials(self) -> Mapping[str, int]:
        """All special tokens: spelling -> id."""

    @property
    def added(self) -> Mapping[str, int]:
        """All tokens that texts are searched for as wholes, special or not: spelling -> id."""


class Fast:
    """The tokenizers library: byte pairs and word pieces."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._plain: dict[frozenset[str], Library] = {}

    @cached_property
    def vocabulary(self) -> int:
        return max(self._library.get_vocab(with_added_tokens=True).values()) + 1

    def _without(self, silent: frozenset[str]) -> Library:
        """A copy that takes special tokens for text. The setting is the library object's own, and not safe to
        switch while another thread encodes."""
        if silent not in self._plain:
            from tokenizers import AddedToken

            plain = copy.deepcopy(self._library)
            plain.add_special_tokens([AddedToken(text, special=True) for text in sorted(silent)])
            plain.encode_special_tokens = True
            self._plain[silent] = plain
        return self._plain[silent]

    def encode(self, text: str, special: bool, silent: frozenset[str] = frozenset()) -> list[int]:
        library = self._library if special else self._without(silent)
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        library = self._library if special else self._without(frozenset())
        # Fast: without the places of tokens in the text.
        return [found.ids for found in library.encode_batch_fast(texts, add_special_tokens=False)]

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

    @cached_property
    def added(self) -> dict[str, int]:
        known = self._library.get_added_tokens_decoder().items()
        return {entry.content: number for number, entry in known}
