"""Which stretches of a text are sentences, or lines: read off the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from daybreak.objectives.spans import Stretch
from daybreak.text.tokenizer import Tokenizer

ENDS = ".?!;:。？！；：…\n"
"""Signs that end a sentence (the original code's list)."""


class Units(Protocol):
    """What may be blanked out as a whole."""

    def find(self, ids: Sequence[int]) -> list[Stretch]:
        """The whole ones in a text of token ids, in order."""


@dataclass(frozen=True)
class Sentences:
    """Everything up to and with a token that ends a sentence; what is left at the end is one, too."""

    ends: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Sentences:
        """Ends are the tokens whose text, but for white space, ends in one of `ENDS`."""
        texts = {number: tokenizer.decode([number]) for number in range(tokenizer.vocabulary)}
        return cls(frozenset(number for number, text in texts.items() if _ends_sentence(text)))

    def find(self, ids: Sequence[int]) -> list[Stretch]:
        found, begin = [], 0
        for place, number in enumerate(ids):
            if number in self.ends:
                found.append(Stretch(begin, place + 1))
                begin = place + 1
        return [*found, Stretch(begin, len(ids))] if begin < len(ids) else found


def _ends_sentence(text: str) -> bool:
    return text.rstrip(" \t").endswith(tuple(ENDS)) or ("\n" in text and not text.strip())


@dataclass(frozen=True)
class Lines:
    """Lines of source code without their indentation and line break, if they are not blank.

    A token may hold the end of a line, its break and the next indentation; `parts` has for such tokens what
    stands before the break and the rest, in tokens of their own.
    """

    parts: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]
    blank: frozenset[int]
    """Tokens of white space alone."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Lines:
        """A document's start token is a line break as well."""
        texts = {number: tokenizer.decode([number]) for number in range(tokenizer.vocabulary)}
        parts = {}
        for number, text in texts.items():
            front, newline, rest = text.partition("\n")
            if newline:
                parts[number] = (_ids(tokenizer, front), _ids(tokenizer, newline + rest))
        if tokenizer.bos_id is not None:
            parts[tokenizer.bos_id] = ((), (tokenizer.bos_id,))
        return cls(parts, frozenset(number for number, text in texts.items() if text.isspace()))

    def find(self, ids: Sequence[int]) -> list[Stretch]:
        """Lines of which both ends are in the text: not what it begins or ends with."""
        found: list[Stretch] = []
        begin: int | None = None
        for place, number in enumerate(ids):
            if number not in self.parts:
                continue
            tail, behind = self.parts[number]
            if begin is not None and not self.blank.issuperset([*ids[begin:place], *tail]):
                found.append(Stretch(begin, place, tail, behind if tail else ()))
            begin = place + 1
        return found


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, bos=False, special=False)) if text else ()
