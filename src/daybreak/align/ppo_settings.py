"""Everything that a run of `daybreak align ppo` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from daybreak.errors import DaybreakError
from daybreak.train.settings import CheckpointSettings, LogSettings


@dataclass(frozen=True)
class RolloutSettings:
    """The answers that the policy writes to learn from, at temperature 1."""

    answers: int = 512
    """Prompts that are answered in an iteration (InstructGPT, appendix C.4: 512). Conversations of several
    rounds have an answer for each round."""
    max_new_tokens: int = 128
    """Tokens of an answer at most, the end token included."""
    no_end: float | None = -1.0
    """The score of an answer that reaches this length without an end token, whatever it says
    (lm-human-preferences' penalty for what it cannot use); null: it is scored as it stands."""
    batch_size: int = 64
    """Answers that are written beside each other."""

    def __post_init__(self) -> None:
        _at_least(1, "rollout", self, ("answers", "max_new_tokens", "batch_size"))


@dataclass(frozen=True)
class UpdateSettings:
    """What is learned from them."""

    minibatch: int = 64
    """Answers of a step (InstructGPT: 64, so that an iteration has 8 steps). Where conversations have several
    rounds, their answers are divided evenly into steps of so many at most."""
    micro: int = 8
    """Answers that are read at once; gradients are summed until the minibatch is read."""
    epochs: int = 1
    """How often the answers of an iteration are gone through (InstructGPT: 1; lm-human-preferences: 4)."""
    clip: float = 0.2
    """The policy's ratio counts up to this distance from 1."""
    value_clip: float = 0.2
    """A value counts up to this distance from what it was when the answer was written."""
    gamma: float = 1.0
    """Discount of what comes later (InstructGPT: none)."""
    lam: float = 0.95
    """Decay of generalised advantage estimates (lm-human-preferences)."""
    whiten_rewards: bool = True
    """Scale the rewards of an iteration to variance 1, without moving their mean (lm-human-preferences)."""

    def __post_init__(self) -> None:
        _at_least(1, "update", self, ("minibatch", "micro", "epochs"))
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise DaybreakError(f"update.{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("clip", "value_clip"):
            if getattr(self, name) <= 0:
                raise DaybreakError(f"update.{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True)
class PpoOptimizer:
    """What moves the weights of policy and value model, which have an optimizer each."""

    lr: float = 1e-5
    """The policy's learning rate."""
    value_lr: float = 9e-6
    """The value model's (InstructGPT, appendix C.4: 9e-6)."""
    warmup: int = 10
    """Iterations over which both rise (InstructGPT: 10)..."""
    warmup_from: float = 0.1
    """...from this share of them (InstructGPT: a tenth); then they stay."""
    beta1: float = 0.9
    """Adam's first decay."""
    beta2: float = 0.95
    """Adam's second decay."""
    eps: float = 1e-8
    """Adam's epsilon."""
    clip: float | None = 1.0
    """A gradient's norm is scaled down to this where it is larger; null: never."""
    ema: float | None = 0.992
    """Decay per iteration of the moving average of the policy's weights, which becomes the model
    (InstructGPT: 0.992); null: the last weights do."""

    def __post_init__(self) -> None:
        _at_least(0, "optimizer", self, ("warmup",))
        for name in ("lr", "value_lr"):
            if getattr(self, name) <= 0:
                raise DaybreakError(f"optimizer.{name} is {getattr(self, name)}; it must be above 0")
        if not 0 < self.warmup_from <= 1:
            raise DaybreakError(f"optimizer.warmup_from is {self.warmup_from}; it must be above 0, at most 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise DaybreakError(f"optimizer.ema is {self.ema}; it must be between 0 and 1")
        if self.clip is not None and self.clip <= 0:  # all gradients would become 0
            raise DaybreakError(f"optimizer.clip is {self.clip}; it must be above 0, or null to clip nothing")


@dataclass(frozen=True)
class KlSettings:
    """What leaving the reference costs."""

    beta: float = 0.02
    """Taken off per nat of log pi - log pi_ref (InstructGPT: 0.02)."""
    adaptive: bool = False
    """Raise and lower beta so that answers come to `target` nats (lm-human-preferences)."""
    target: float = 6.0
    """Nats per answer."""
    horizon: int = 10_000
    """Answers over which beta changes by as much as the divergence is off, at most a fifth of it."""

    def __post_init__(self) -> None:
        if self.beta < 0 or (self.adaptive and self.beta == 0):
            raise DaybreakError(f"kl.beta is {self.beta}; it must be 0 or more, and above 0 to be adaptive")
        if self.target <= 0 or self.horizon < 1:
            raise DaybreakError("kl.target must be above 0, and kl.horizon at least 1")


@dataclass(frozen=True)
class PtxSettings:
    """PPO-ptx: text of the kind that the model was pretrained on is mixed in, so that it is not forgotten."""

    weight: float = 27.8
    """Of the pretraining loss, the mean over its tokens (InstructGPT, appendix C.4: 27.8)."""
    sequences: int | None = None
    """Per minibatch; null: 8 for each of its answers (InstructGPT, appendix C.4)."""
    context: int | None = None
    """Tokens of a sequence; null: as the recipe of the data says, and the model takes."""

    def __post_init__(self) -> None:
        for name in ("sequences", "context"):
            if getattr(self, name) is not None:
                _at_least(1, "ptx", self, (name,))
        if self.weight < 0:  # the model would unlearn the text
            raise DaybreakError(f"ptx.weight is {self.weight}; it must be 0 or more")


@dataclass(frozen=True)
class PpoLora:
    """Adapters in place of whole models: policy and reference share their weights, and so do value model and
    reward model, so that PPO holds two models in memory and not four."""

    rank: int = 0
    """Of the adapters; 0: none, all weights are trained."""
    alpha: float = 32.0
    """Scale of what adapters add, divided by their rank."""

    def __post_init__(self) -> None:
        _at_least(0, "lora", self, ("rank",))


@dataclass(frozen=True)
class PpoWatchSettings:
    """When the run warns, in words; it goes on."""

    kl: float = 30.0
    """Nats per answer above which the policy has left its reference."""
    distinct: float = 0.3
    """Share of different answers below which they are all alike."""
    ended: float = 0.5
    """Share of answers with an end token below which too many are cut off."""
    entropy: float = 0.25
    """Share of the first iteration's entropy below which the policy has stopped exploring."""
    clipped: float = 0.3
    """Share of tokens whose ratio is clipped, above which steps are too long."""
    window: int = 10
    """Iterations that are looked at together, and between two warnings of a kind."""
    stop_kl: float | None = None
    """Nats per answer at which the run ends; null: never."""

    def __post_init__(self) -> None:
        _at_least(2, "watch", self, ("window",))


@dataclass(frozen=True)
class SampleSettings:
    """Answers for people to read in the logbook, the policy's beside the reference's."""

    every: int = 20
    """Iterations between; 0: never."""
    prompts: int = 4
    """The first so many of the file."""

    def __post_init__(self) -> None:
        _at_least(0, "samples", self, ("every", "prompts"))


@dataclass(frozen=True)
class PpoSettings:
    """One run of PPO or, with text to mix in, PPO-ptx."""

    model: str = ""
    """The policy to start from, which is also the reference: a folder, or a name."""
    prompts: Path | None = None
    """What is to be answered: a file of JSON lines, CSV or parquet with a column `prompt` or `messages`, of
    which the assistant's may be null: the policy writes them, and goes on."""
    reward: str = ""
    """A folder that `daybreak align reward` wrote."""
    mix: Path | None = None
    """Token shards to mix in (PPO-ptx), which `daybreak data build` wrote; null: plain PPO."""
    episodes: int = 256_000
    """Prompts that are answered in the whole run (InstructGPT: 256,000)."""
    seed: int = 0
    """Of the order of the prompts and of the answers that are drawn."""
    least_accuracy: float | None = 0.6
    """Share of held-out pairs that the reward model must rank as people did; null: it is not asked for."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products; all else stays float32."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    update: UpdateSettings = field(default_factory=UpdateSettings)
    optimizer: PpoOptimizer = field(default_factory=PpoOptimizer)
    kl: KlSettings = field(default_factory=KlSettings)
    ptx: PtxSettings = field(default_factory=PtxSettings)
    lora: PpoLora = field(default_factory=PpoLora)
    watch: PpoWatchSettings = field(default_factory=PpoWatchSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    checkpoints: CheckpointSettings = field(default_factory=lambda: CheckpointSettings(every=10))
    log: LogSettings = field(default_factory=lambda: LogSettings(every=1, tensorboard=False))

    def __post_init__(self) -> None:
        _at_least(1, "checkpoints", self.checkpoints, ("every", "keep"))
        _at_least(1, "log", self.log, ("every",))
        answers, minibatch = self.rollout.answers, self.update.minibatch
        if answers % minibatch:
            raise DaybreakError(
                f"{answers} answers per iteration (rollout.answers) cannot be divided into minibatches of "
                f"{minibatch} (update.minibatch); let one be a multiple of the other"
            )
        if self.episodes < answers:
            raise DaybreakError(
                f"episodes is {self.episodes}, fewer than the {answers} answers of one iteration; set "
                "episodes higher or rollout.answers lower"
            )

    @property
    def iterations(self) -> int:
        """Of the run; answers that fill no iteration are left out."""
        return self.episodes // self.rollout.answers


FREE = ("checkpoints", "log", "samples", "watch", "device")
"""Settings that a run may change on the way; with another value of any other it would be another run."""


def _at_least(least: int, section: str, settings: object, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(settings, name) < least:
            raise DaybreakError(f"{section}.{name} is {getattr(settings, name)}; it must be at least {least}")
