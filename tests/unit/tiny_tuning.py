"""Tuning runs small enough for tests: texts of a few tokens, each token predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from daybreak import settings as reading
from daybreak.language_model import LanguageModel
from daybreak.objectives.batch import UNSCORED, Batch
from daybreak.objectives.summed import loss_sum
from daybreak.train.tuning import Job, Scored
from daybreak.train.tuning_run import TuningOutcome, tune
from daybreak.train.tuning_settings import TuningSettings
from tests.unit.tiny_run import Silent
from tests.unit.tiny_training import VOCABULARY, model_of

Text = tuple[int, ...]


def texts(count: int, seed: int = 0) -> list[Text]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 10, (count,), generator=draw).tolist()
    return [tuple(torch.randint(0, VOCABULARY, (n,), generator=draw).tolist()) for n in lengths]


class Texts(Job[Text]):
    """Predict every token of a text but its first."""

    def __init__(self, model: LanguageModel, examples: Sequence[Text], held_out: Sequence[Text] = ()) -> None:
        super().__init__(model.decoder, examples, held_out)
        self.model = model

    def loss(self, part: Sequence[Text]) -> Scored:
        longest = max(map(len, part))
        tokens = torch.zeros(len(part), longest, dtype=torch.int64)
        targets = torch.full((len(part), longest), UNSCORED)
        mask = torch.zeros(len(part), longest, dtype=torch.bool)
        for row, text in enumerate(part):
            tokens[row, : len(text)] = torch.tensor(text)
            targets[row, : len(text) - 1] = torch.tensor(text[1:])
            mask[row, : len(text)] = True
        loss = loss_sum(self.model.decoder, Batch(self.model.decoder.reading(tokens, mask), targets))
        count = sum(map(len, part)) - len(part)
        return Scored(loss, count, sum(map(len, part)), {"ones": float(count)})

    def save(self, folder: Path) -> None:
        self.model.save(folder)


def settings(**tree: Any) -> TuningSettings:
    base = {
        "epochs": 3,
        "optimizer": {"lr": 3e-3},
        "batch": {"examples": 4, "micro": 2},
        "checkpoints": {"every": 2},
        "dropout": {"residual": 0.1, "embedding": 0.1, "attention": 0.1},
    }
    return reading.build(TuningSettings, reading.merged(base, tree))


def tuned(
    folder: Path, given: TuningSettings, job: Texts | None = None, screen: Silent | None = None
) -> TuningOutcome:
    job = job or Texts(model_of(), texts(10), texts(4, seed=1))
    return tune(job, given, folder, screen or Silent())
