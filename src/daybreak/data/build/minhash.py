"""datatrove's MinHash signatures in half the time.

Finding near duplicates took half of a build's time, in three places: characters that are looked at one by one
for their accents, a cryptographic hash per piece of five words, and divisions by a number that needs none.
The result is the same kind of signature in the same files; pairs and groups are datatrove's.
"""

from __future__ import annotations

import dataclasses
import sys
import unicodedata
from hashlib import blake2b

import numpy as np
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.utils.text import simplify_text

PRIME = np.uint64((1 << 61) - 1)
ROWS = 256
"""Pieces whose hashes are in the processor's cache at once."""
KNOWN = 1 << 20
"""Words whose hashes are kept."""
_MARKS = frozenset(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) == "Mn")


class Signature(MinhashDedupSignature):  # type: ignore[misc]
    """Its pieces of words have other hashes than datatrove's, and the same ones are equal."""

    words: _Words | None = None

    def simplified(self, text: str) -> str:
        """What datatrove's `simplify_text` makes of a text: no case, accents, signs; every number is 0."""
        settings = self.config.norm_config
        plain: str = simplify_text(text, dataclasses.replace(settings, norm_unicode_diacritics=False))
        if plain.isascii() or not settings.norm_unicode_diacritics:
            return plain
        return "".join([c for c in unicodedata.normalize("NFD", plain) if c not in _MARKS]).strip()

    def get_shingles(self, text: str) -> np.ndarray:
        """Hashes of the pieces of `n_grams` words, [pieces, 1] uint64; none of a text that is shorter."""
        known = self._known()
        words = self.word_tokenizer.word_tokenize(self.simplified(text))
        hashes = np.fromiter((known[word] for word in words), np.uint64, len(words))
        pieces = max(0, len(words) - self.config.n_grams + 1)
        mixed = np.zeros(pieces, np.uint64)
        for place in range(self.config.n_grams):
            mixed = (mixed ^ hashes[place : place + pieces]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        return mixed.reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """datatrove's numbers, by bucket."""
        a, b = self.parameters
        least = np.full(self.num_hashes, np.iinfo(np.uint64).max, np.uint64)
        for begin in range(0, len(shingles), ROWS):
            values = shingles[begin : begin + ROWS] * a  # [pieces, hashes]
            values += b
            # Modulo 2**61 - 1 without dividing: the upper bits count once more; then one prime may be over.
            high = values >> np.uint64(61)
            values &= PRIME
            values += high
            np.subtract(values, PRIME, out=values, where=values >= PRIME)
            np.minimum(least, values.min(axis=0), out=least)
        return [part.tolist() for part in np.split(least, self.config.num_buckets)]

    def _known(self) -> _Words:
        if self.words is None or len(self.words) > KNOWN:
            self.words = _Words()
        return self.words


class _Words(dict[str, int]):
    """The hash of every word that was asked for."""

    def __missing__(self, word: str) -> int:
        self[word] = value = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
        return value
