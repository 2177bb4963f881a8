"""Sequences to train on: which tokens the n-th one has is a pure function of the data, the seed and n."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from daybreak.data import order
from daybreak.data.order import Mixing, Walk
from daybreak.data.token_shards import Document, TokenSet, TokenSource
from daybreak.errors import DaybreakError, nearest

AHEAD = 2
"""Requests that are read in advance."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Stretches of text."""

    tokens: Tensor
    """[sequences, length + 1] int64: each sequence and the token behind it."""
    lengths: list[list[int]] | None
    """With masking: of every row the lengths of the parts that belong to different documents, which add up to
    length + 1."""


@dataclass(frozen=True)
class Read:
    """A document, or a part of one, that a sequence holds."""

    sequence: int
    source: str
    epoch: int
    """How many times the source was read through before."""
    document: Document
    tokens: int
    """Of the document among the first `length` tokens of the sequence."""


class Loader:
    """The sequences of a run, numbered from 0 without end.

    What a number stands for depends on the data, `length`, `seed` and the weights, and on nothing else: not
    on what was read before, not on the number of processes that share the reading.
    """

    def __init__(
        self,
        data: TokenSet,
        length: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        masking: bool = False,
    ) -> None:
        """`weights` are shares of the sources by name, relative to each other; None: those of the data.
        Sources that it leaves out, and those of weight 0, are not read.

        Raises `DaybreakError` for weights that name no source or are none, and for a source with less tokens
        than a sequence needs.
        """
        self.length, self.masking = length, masking
        shares = _shares(data, weights)
        self._sources = {source.name: source for source in data.sources if source.name in shares}
        for source in self._sources.values():
            _check_length(data, source, length)
        self._mixing = Mixing({name: shares[name] for name in self._sources}, seed)
        self._walks = {
            name: Walk(name, source.tokens, length, seed) for name, source in self._sources.items()
        }
        self.fingerprint = self._fingerprint(seed)
        """sha256 of all that determines which tokens a sequence has, as hexadecimal digits."""

    def windows(self, sequences: Sequence[int]) -> Windows:
        """The tokens of these sequences, in this order."""
        tokens = np.empty((len(sequences), self.length + 1), np.int64)
        lengths: list[list[int]] = []
        for row, sequence in enumerate(sequences):
            source, _, pieces = self._pieces(sequence, self.length + 1)
            tokens[row] = np.concatenate([source.read(first, count) for first, count in pieces])
            if self.masking:
                spans = [span for first, count in pieces for span in source.spans(first, count)]
                lengths.append([end - begin for _, begin, end in spans])
        return Windows(torch.from_numpy(tokens), lengths if self.masking else None)

    def documents(self, sequences: Sequence[int]) -> list[Read]:
        """What stands in these sequences, from left to right."""
        found = []
        for sequence in sequences:
            source, epoch, pieces = self._pieces(sequence, self.length)
            for first, count in pieces:
                for number, begin, end in source.spans(first, count):
                    document = source.document(number)
                    found.append(Read(sequence, source.name, epoch, document, end - begin))
        return found

    def ahead(self, requests: Iterable[Sequence[int]]) -> Iterator[Windows]:
        """`windows` of each request, read in a thread while the ones before are being used.

        The requests are taken from the iterator a few at a time before their turn. An error in reading comes
        out here; closing the generator ends the thread.
        """
        waiting: deque[Future[Windows]] = deque()
        with ThreadPoolExecutor(1, "loader") as thread:
            for request in requests:
                waiting.append(thread.submit(self.windows, request))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _pieces(self, sequence: int, count: int) -> tuple[TokenSource, int, list[tuple[int, int]]]:
        """(source, epoch, its stretches as first token and length): two where it goes on from the source's
        end at its beginning."""
        name, number = self._mixing.place(sequence)
        source = self._sources[name]
        epoch, first = self._walks[name].place(number)
        here = min(count, source.tokens - first)
        return source, epoch, [(first, here), (0, count - here)] if here < count else [(first, here)]

    def _fingerprint(self, seed: int) -> str:
        sources = [
            [name, str(share), [[shard.sha256["tokens"], shard.sha256["ends"]] for shard in source.shards]]
            for (name, source), share in zip(self._sources.items(), self._mixing.shares, strict=True)
        ]
        tree = {
            "order": order.VERSION,
            "window": order.WINDOW,
            "length": self.length,
            "seed": seed,
            "masking": self.masking,
            "sources": sources,
        }
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _shares(data: TokenSet, weights: Mapping[str, float] | None) -> dict[str, float]:
    known = {source.name: source.weight for source in data.sources}
    shares = known if weights is None else weights
    for name, weight in shares.items():
        if name not in known:
            raise DaybreakError(
                f"the weights name a source {name!r}{nearest(name, known)}; {data.folder} has "
                f"{', '.join(known)}"
            )
        if not 0 <= weight < float("inf"):
            raise DaybreakError(f"the weight of {name} is {weight}; give 0 or a positive number")
    positive = {name: weight for name, weight in shares.items() if weight > 0}
    if not positive:
        raise DaybreakError(f"no source of {data.folder} has a weight above 0; there are {', '.join(known)}")
    return positive


def _check_length(data: TokenSet, source: TokenSource, length: int) -> None:
    if source.tokens <= length:
        raise DaybreakError(
            f"the source {source.name} has {source.tokens} tokens for {data.split} in {data.folder}, and a "
            f"sequence of {length} needs {length + 1}; give it more text, the weight 0, or the run a "
            "shorter context"
        )
