"""What is measured and shown while a run goes on: loss and bits per byte on held-out text, and samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from daybreak.data.loader import Loader
from daybreak.data.token_shards import TokenSet, TokenSource
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.objectives.batch import UNSCORED, Objective
from daybreak.train.precision import Loss
from daybreak.train.step import batches, share
from daybreak.train.world import World

WHOLE = "all"
"""The name of the figures over all sources, each counted by its bytes."""


@dataclass(frozen=True)
class Score:
    """Of the held-out text of one source."""

    loss: float
    """Nats per predicted token."""
    bits_per_byte: float
    """The same per byte of text, in bits: does not depend on the tokenizer. All tokens of the source are
    taken to cost as much as the predicted ones do: with blanks or masking some are never predicted."""
    tokens: int
    """Predicted ones."""


class Evaluation:
    """The same sequences every time: the first of each source of the validation split, in a fixed order."""

    def __init__(
        self, data: TokenSet, length: int, sequences: int, micro: int, world: World, masking: bool = False
    ) -> None:
        self._sources = [source for source in data.sources if source.tokens > length]
        self.left_out = [source.name for source in data.sources if source not in self._sources]
        """Sources whose held-out text is shorter than one sequence."""
        self._loaders = [Loader(data, length, 0, {source.name: 1.0}, masking) for source in self._sources]
        self._length, self._sequences, self._micro, self._world = length, sequences, micro, world

    def __bool__(self) -> bool:
        return bool(self._sources)

    def score(self, model: LanguageModel, objective: Objective, loss_of: Loss) -> dict[str, Score]:
        """Source -> its score, and `all`. Every process takes part, and gets the same."""
        found = {
            source.name: self._score(source, loader, model, objective, loss_of)
            for source, loader in zip(self._sources, self._loaders, strict=True)
        }
        if len(found) > 1:
            found[WHOLE] = _together(found, self._sources)
        return found

    @torch.no_grad()
    def _score(
        self, source: TokenSource, loader: Loader, model: LanguageModel, objective: Objective, loss_of: Loss
    ) -> Score:
        world = self._world
        count = min(self._sequences, source.tokens // self._length)  # each once
        # All processes have to make as many passes: where the last ones have less to score, they read without
        # scoring.
        numbers = share(-(-count // world.data_ranks) * world.data_ranks, 0, world)
        total = torch.zeros(2, dtype=torch.float64, device=world.device)
        parts = batches(objective, loader.windows(numbers), numbers, self._micro, world.device)
        for part, batch in enumerate(parts):
            first = numbers.start + part * self._micro
            targets = batch.targets.clone()  # they may share their memory with the tokens that are read
            targets[max(0, count - first) :] = UNSCORED
            total[0] += loss_of(model.decoder, dataclasses.replace(batch, targets=targets)).double()
            total[1] += (targets != UNSCORED).sum()
        losses, tokens = world.sum(total).tolist()
        loss = losses / max(tokens, 1)
        return Score(loss, loss / math.log(2) * source.tokens / source.bytes, int(tokens))


def continuations(model: LanguageModel, prompts: Sequence[str], tokens: int) -> list[tuple[str, str]]:
    """Each prompt with what the model writes on, at temperature 0.8 and always with the same seed."""
    settings: dict[str, Any] = {"max_new_tokens": tokens, "temperature": 0.8, "top_p": 0.95, "seed": 0}
    found = []
    for prompt in prompts:
        try:
            found.append((prompt, model.generate(prompt, defaults=False, **settings)[0].text))
        except DaybreakError as error:  # a prompt that does not fit must not end a run
            found.append((prompt, f"({error})"))
    return found


def _together(scores: Mapping[str, Score], sources: Sequence[TokenSource]) -> Score:
    """By the bytes of the whole split, whatever part of it was scored."""
    whole = sum(source.bytes for source in sources)
    tokens = sum(source.tokens for source in sources)
    bits = sum(scores[source.name].bits_per_byte * source.bytes for source in sources) / whole
    loss = sum(scores[source.name].loss * source.tokens for source in sources) / tokens
    return Score(loss, bits, sum(scores[source.name].tokens for source in sources))
