"""Reward models: from rankings to a scorer and its report (InstructGPT, arXiv 2203.02155, section 3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daybreak.align.encoding import Compared, all_compared
from daybreak.align.preference_settings import RankingData, RewardSettings
from daybreak.align.reward_model import RewardModel, scores
from daybreak.align.reward_report import RewardReport, report, write_report
from daybreak.data.rankings import Ranking, held_out, read_rankings, uncompared
from daybreak.engine.prompts import Model
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.model.few_bits import numel
from daybreak.objectives.preference import ranking_losses
from daybreak.train.tuning import Job, Scored

SHOWN = 1000
"""Answers that the bias is measured on at most."""


class RewardJob(Job[Compared]):
    """To give the answers that people preferred the higher scores."""

    def __init__(
        self,
        model: RewardModel,
        examples: Sequence[Compared],
        held_out: Sequence[Compared] = (),
        words: str = "",
    ) -> None:
        super().__init__(model.decoder, examples, held_out)
        self.model, self._words = model, words
        self.report: RewardReport | None = None

    def loss(self, part: Sequence[Compared]) -> Scored:
        """All answers of a prompt stand in one part, one row each."""
        texts = [text.tokens for ranking in part for text in ranking.texts]
        flat = scores(self.model.scorer, texts)  # [answers of all prompts]
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

    def about(self) -> dict[str, str]:
        return {**about(self.model), "data": self._words}

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


def about(model: Model) -> dict[str, str]:
    """The model in words, for the logbook."""
    shape = model.architecture
    return {"model": f"{model.family.title}, {shape.layers} layers of width {shape.width}"}


def facts(model: Model, modules: torch.nn.Module) -> dict[str, Any]:
    """What a list of runs shows beside."""
    count = numel(modules)
    return {"family": model.family.name, "parameters": count}


def divided(data: RankingData) -> tuple[list[Ranking], list[Ranking]]:
    """The rankings to learn from and those held out. Raises `DaybreakError` where nothing is named."""
    if data.file is None:
        raise DaybreakError("no data is named; give a file of rankings or of pairs")
    every = read_rankings(data.file)
    if data.validation is not None:
        return every, read_rankings(data.validation)
    learned, kept = held_out(every, data.held_out)
    if not learned:
        raise DaybreakError(
            f"{data.file}: with data.held_out {data.held_out} nothing is left to learn from; set it lower"
        )
    return learned, kept


def passed_over(data: RankingData) -> int:
    """Rows of ratings of single answers, in the file to learn from."""
    return 0 if data.file is None else uncompared(data.file)


def told(data: RankingData, examples: int, kind: str, held: int, left_out: int, single: int = 0) -> str:
    """The data in words, for the logbook; `single`: rows of ratings that compare nothing."""
    words = f"{data.file}: {examples:,} {kind} to learn from, {held:,} held out"
    if single:
        words += f"; {single:,} rows of ratings that compare nothing passed over"
    return words + (f"; {left_out:,} rankings with a text too long left out" if left_out else "")


def job_of(model: LanguageModel, settings: RewardSettings) -> RewardJob:
    """The job that the settings describe, with its data read; `model` is what the reward model begins as.
    Raises `DaybreakError` for data that does not fit."""
    data = settings.data
    learned, kept = divided(data)
    examples, left = all_compared(model, learned, data.context, data.longer)
    held, left_held = all_compared(model, kept, data.context, data.longer)
    kind, single = "prompts with their answers", passed_over(data)
    words = told(data, len(examples), kind, len(held), left + left_held, single)
    return RewardJob(RewardModel.of(model, settings.seed), examples, held, words)
