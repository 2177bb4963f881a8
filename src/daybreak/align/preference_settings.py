"""What runs that learn from preferences can be told, beside what all tuning runs can."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from daybreak.errors import DaybreakError
from daybreak.train.settings import ScheduleSettings
from daybreak.train.tuning_settings import TuningBatch, TuningOptimizer, TuningSettings


@dataclass(frozen=True)
class RankingData:
    """What is learned from."""

    file: Path | None = None
    """A file of rankings, pairs or ratings: .jsonl, .json, .csv, .parquet."""
    held_out: float = 0.1
    """Share of the prompts that is scored and not learned from; the same ones in every run."""
    validation: Path | None = None
    """A file of such rankings, instead of a share."""
    context: int | None = None
    """Tokens of prompt and answer together at most; None: as many as the model's context."""
    longer: Literal["refuse", "leave_out"] = "refuse"
    """A ranking of which a text is longer: refuse it, or leave it out."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise DaybreakError(f"data.held_out is {self.held_out}; it must be from 0 to below 1")
        if self.context is not None and self.context < 2:
            raise DaybreakError(f"data.context is {self.context}; it must be at least 2")


@dataclass(frozen=True)
class RewardSettings(TuningSettings):
    """A reward model's run. The defaults are InstructGPT's (arXiv 2203.02155, appendix C): one epoch, 64
    prompts a step with all answers of each, and a cosine to a tenth; more epochs overfit."""

    start: str = ""
    """The model to start from: a folder, a repository of the hub, or a name."""
    revision: str | None = None
    """Branch, tag or commit of `start`."""
    data: RankingData = field(default_factory=RankingData)
    batch: TuningBatch = field(default_factory=lambda: TuningBatch(64, 4))
    optimizer: TuningOptimizer = field(default_factory=lambda: TuningOptimizer(lr=9e-6))
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(warmup="0 steps"))


@dataclass(frozen=True)
class PreferenceLoss:
    """What a policy learns from pairs."""

    name: Literal["dpo", "ipo", "kto", "hinge"] = "dpo"
    """dpo (arXiv 2305.18290), ipo (2310.12036), kto (2402.01306) or hinge (2309.06657)."""
    beta: float = 0.1
    """How strongly the policy is held to its start: more is stronger."""
    smoothing: float = 0.0
    """dpo: the share of pairs that are believed to be labelled the wrong way round."""
    liked: float = 1.0
    """kto: weight of the better answers."""
    disliked: float = 1.0
    """kto: weight of the worse answers."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise DaybreakError(f"loss.beta is {self.beta}; it must be above 0")
        if not 0 <= self.smoothing < 0.5:
            raise DaybreakError(f"loss.smoothing is {self.smoothing}; it must be from 0 to below 0.5")
        if self.smoothing and self.name != "dpo":
            raise DaybreakError(f"loss.smoothing is dpo's, and the loss is {self.name}; leave it out")


@dataclass(frozen=True)
class KlSettings:
    """How far the policy has gone from its start, measured on what it writes itself at every evaluation."""

    prompts: int = 16
    """Held-out prompts that are answered for it; 0: it is not measured."""
    tokens: int = 64
    """Tokens of such an answer at most."""

    def __post_init__(self) -> None:
        for name, least in (("prompts", 0), ("tokens", 1)):
            if getattr(self, name) < least:
                raise DaybreakError(f"kl.{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class PreferenceSettings(TuningSettings):
    """A run of direct preference optimisation. The defaults are its authors' (the repository's config):
    RMSprop, 5e-7, 150 steps of warm-up, batches of 64, clipping at 10."""

    start: str = ""
    """The model to start from, which stays the reference: a folder, a repository of the hub, or a name."""
    revision: str | None = None
    """Branch, tag or commit of `start`."""
    data: RankingData = field(default_factory=RankingData)
    loss: PreferenceLoss = field(default_factory=PreferenceLoss)
    kl: KlSettings = field(default_factory=KlSettings)
    batch: TuningBatch = field(default_factory=lambda: TuningBatch(64, 4))
    optimizer: TuningOptimizer = field(default_factory=lambda: TuningOptimizer("rmsprop", lr=5e-7, clip=10.0))
    schedule: ScheduleSettings = field(
        default_factory=lambda: ScheduleSettings("constant", warmup="150 steps")
    )
