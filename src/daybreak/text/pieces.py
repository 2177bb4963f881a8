"""A sentencepiece model with special tokens beside its pieces, as a tokenizer's backend."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from daybreak.text.piece_model import CONTROL, PieceModel


@dataclass(frozen=True)
class Special:
    """A special token: its id, whether texts can spell it, and on which sides it drops white space."""

    id: int
    spelled: bool = True
    drops_left: bool = False
    drops_right: bool = False


class Pieces:
    """The text before, between and after special tokens is encoded part by part, as in all published code.

    The model puts a space before each part (its dummy prefix), and decoding takes it away again.
    """

    def __init__(
        self,
        model: PieceModel,
        specials: Mapping[str, Special],
        *,
        first_id: int = 0,
        white: Mapping[str, str] | None = None,
        prepare: Callable[[str], str] = str,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """`specials` by their spelling; `first_id`: the id of the first piece.

        `prepare` changes a part of the text before the model cuts it, `white` gives what pieces stand for
        when they are decoded. `names`: other names of tokens, which texts do not spell. Raises `RuntimeError`
        for a model that the library cannot load.
        """
        from sentencepiece import SentencePieceProcessor

        model.protect(specials)
        self._processor = SentencePieceProcessor(model_proto=model.contents())
        self._first, self._prepare, self._names = first_id, prepare, dict(names or {})
        self._pieces = [(white or {}).get(text, text) for text in model.texts]
        self._places = {text: place for place, text in enumerate(model.texts)}
        silent = (place for place, kind in enumerate(model.kinds) if kind == CONTROL)
        self._specials = {model.texts[place]: Special(first_id + place, spelled=False) for place in silent}
        self._specials.update(specials)
        self._spellings = {special.id: text for text, special in self._specials.items()}
        self.vocabulary = max(first_id + len(model.texts), 1 + max(self._spellings, default=0))

    @cached_property
    def _spelled(self) -> re.Pattern[str] | None:
        texts = sorted((text for text, special in self._specials.items() if special.spelled), key=len)
        return re.compile(f"({'|'.join(map(re.escape, reversed(texts)))})") if texts else None

    def encode(self, text: str, special: bool, silent: frozenset[str] = frozenset()) -> list[int]:
        # Nothing to do for `silent`: tokens that are not special are pieces of the model here.
        if not special or self._spelled is None:
            return self._part(text)
        parts = self._spelled.split(text)  # texts at even places, special tokens at odd ones
        found = [self._specials[token] for token in parts[1::2]]
        ids: list[int] = []
        for place, part in enumerate(parts[::2]):
            if place > 0:
                ids.append(found[place - 1].id)
                part = part.lstrip() if found[place - 1].drops_right else part
            if place < len(found) and found[place].drops_left:
                part = part.rstrip()
            ids.extend(self._part(part))
        return ids

    def encode_batch(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        return [self.encode(text, special) for text in texts]

    def _part(self, text: str) -> list[int]:
        return [self._first + place for place in self._processor.encode(self._prepare(text))]

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        parts: list[str] = []
        run: list[str] = []
        for number in ids:
            if number in self._spellings:
                parts.append(self._joined(run))
                parts.append("" if skip_special else self._spellings[number])
                run = []
            elif 0 <= number - self._first < len(self._pieces):
                run.append(self._pieces[number - self._first])
        return "".join((*parts, self._joined(run)))

    def _joined(self, pieces: Sequence[str]) -> str:
        """What is no piece of the model, such as white space that a piece stood for, comes out as it is."""
        text: str = self._processor.decode_pieces(pieces) if pieces else ""
        return text

    def id_of(self, token: str) -> int | None:
        token = self._names.get(token, token)
        if token in self._specials:
            return self._specials[token].id
        return self._first + self._places[token] if token in self._places else None

    def special_id(self, token: str) -> int | None:
        token = self._names.get(token, token)
        return self._specials[token].id if token in self._specials else None

    @property
    def specials(self) -> dict[str, int]:
        return {text: special.id for text, special in self._specials.items()}

    @property
    def added(self) -> dict[str, int]:
        return self.specials
