"""`daybreak align reward` from start to end: from rankings to a reward model and its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daybreak.align.encoding import Compared, all_compared
from daybreak.align.preference_settings import RankingData, RewardSettings
from daybreak.align.reward_model import RewardModel, scores
from daybreak.align.reward_report import RewardReport, report, write_report
from daybreak.data.rankings import Ranking, held_out, read_rankings
from daybreak.engine.prompts import Model
from daybreak.errors import DaybreakError
from daybreak.language_model import load
from daybreak.objectives.preference import ranking_losses
from daybreak.train.records import Screen
from daybreak.train.tuning import Job, Scored
from daybreak.train.tuning_run import TuningOutcome, tune

SHOWN = 1000
"""Answers that the bias is measured on at most."""


@dataclass(frozen=True)
class Trained:
    """What came of it."""

    run: TuningOutcome
    report: RewardReport | None
    """None: the run was stopped, or nothing was held out."""
    left_out: int
    """Rankings with a text that is too long."""


class RewardJob(Job[Compared]):
    """To give the answers that people preferred the higher scores."""

    def __init__(
        self, model: RewardModel, examples: Sequence[Compared], held_out: Sequence[Compared]
    ) -> None:
        super().__init__(model.decoder, examples, held_out)
        self.model = model
        self.report: RewardReport | None = None

    def loss(self, part: Sequence[Compared]) -> Scored:
        """All answers of a prompt stand in one part, one row each."""
        texts = [text.tokens for ranking in part for text in ranking.texts]
        flat = scores(self.model.decoder, texts)  # [answers of all prompts]
        rewards, values, real = beside(part, flat)
        losses = ranking_losses(rewards, values, real)
        figures = {"accuracy": right(rewards.detach(), values, real).sum()}
        return Scored(losses.sum(), len(part), sum(map(len, texts)), figures)

    def save(self, folder: Path) -> None:
        """The bias is shifted first, so that demonstrations are worth 0 on average."""
        self.model.shift = 0.0
        given = [one.demonstration for one in self.examples if one.demonstration is not None]
        best = [one.texts[max(range(len(one.values)), key=one.values.__getitem__)] for one in self.examples]
        shown = (given or best)[:SHOWN]
        self.model.shift = -float(self.model.rewards([one.tokens for one in shown]).mean())
        self.report = self._report()
        self.model.save(folder)
        write_report(
            folder,
            self.report,
            shift=self.model.shift,
            shifted_on="demonstrations" if given else "the best answers",
            shifted_on_answers=len(shown),
        )

    def _report(self) -> RewardReport | None:
        if not self.held_out:
            return None
        flat = self.model.rewards([text.tokens for one in self.held_out for text in one.texts]).tolist()
        rewards = [[flat.pop(0) for _ in one.texts] for one in self.held_out]
        return report(self.held_out, rewards)

    def facts(self) -> dict[str, Any]:
        return facts(self.model, self.modules)


def beside(part: Sequence[Compared], flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of all answers one after another, `flat` [answers], as rows: scores, people's values and where
    there is an answer, each [prompts, answers]."""
    counts = [len(ranking.texts) for ranking in part]
    real = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    real = real.to(flat.device)
    values = flat.new_zeros(real.shape)
    values[real] = flat.new_tensor([value for ranking in part for value in ranking.values])
    return flat.new_zeros(real.shape).masked_scatter(real, flat), values, real


def right(rewards: Tensor, values: Tensor, real: Tensor) -> Tensor:
    """[prompts] the share of each prompt's pairs in which the better answer has the higher reward."""
    better = (values[:, :, None] > values[:, None]) & real[:, :, None] & real[:, None]
    won = (rewards[:, :, None] > rewards[:, None]) & better
    return won.sum((1, 2)) / better.sum((1, 2)).clamp(min=1)


def facts(model: Model, modules: torch.nn.Module) -> dict[str, Any]:
    """What a list of runs shows beside."""
    count = sum(one.numel() for one in modules.parameters())
    return {"family": model.family.name, "parameters": count}


def divided(data: RankingData) -> tuple[list[Ranking], list[Ranking]]:
    """The rankings to learn from and those held out. Raises `DaybreakError` where nothing is named."""
    if data.rankings is None:
        raise DaybreakError("no rankings are named; give a file of them, or data.rankings")
    every = read_rankings(data.rankings)
    if data.held_out is not None:
        return every, read_rankings(data.held_out)
    learned, kept = held_out(every, data.share)
    if not learned:
        raise DaybreakError(f"{data.rankings}: with data.share {data.share} nothing is left to learn from")
    return learned, kept


def train_reward(settings: RewardSettings, folder: Path, screen: Screen) -> Trained:
    """Train as `settings` say in the run folder `folder`, or go on there; the model, with reward.json, is
    left in its `model`. Raises `DaybreakError` for rankings, settings or a folder that do not fit."""
    learned, kept = divided(settings.data)
    model = load(settings.start)
    longest, longer = settings.data.length, settings.data.longer
    examples, left = all_compared(model, learned, longest, longer)
    held, left_held = all_compared(model, kept, longest, longer)
    job = RewardJob(RewardModel.of(model, settings.seed), examples, held)
    outcome = tune(job, settings, folder, screen)
    return Trained(outcome, job.report, left + left_held)
