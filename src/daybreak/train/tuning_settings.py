"""What every command that tunes a trained model can be told; each adds what is its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from daybreak.errors import DaybreakError
from daybreak.model.lora_settings import LoraSettings
from daybreak.train.amount import Amount
from daybreak.train.settings import CheckpointSettings, LogSettings, ScheduleSettings


@dataclass(frozen=True)
class TuningBatch:
    """How many examples make a step."""

    examples: int = 32
    """Examples of a step."""
    micro: int = 8
    """Examples that are read at once; gradients are summed until the step's examples are read."""


@dataclass(frozen=True)
class TuningOptimizer:
    """What moves the weights."""

    name: Literal["adamw", "rmsprop"] = "adamw"
    """adamw, or rmsprop (the DPO authors')."""
    lr: float = 1e-5
    """The highest learning rate."""
    beta1: float = 0.9
    """AdamW's first decay."""
    beta2: float = 0.95
    """AdamW's second decay."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices and embeddings; norms and biases have none."""
    clip: float | None = 1.0
    """The gradient's norm is scaled down to this where it is larger; None: never."""


@dataclass(frozen=True)
class DropoutSettings:
    """Shares of values that are set to zero while training, as GPT and GPT-2 place them."""

    residual: float = 0.0
    """Of what attention and MLP add to the residual stream (InstructGPT: 0.2)."""
    embedding: float = 0.0
    """Of what the first block reads."""
    attention: float = 0.0
    """Of the attention weights."""

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share < 1:
                raise DaybreakError(f"dropout.{name} is {share}; it must be from 0 to below 1")


@dataclass(frozen=True)
class TuningLora(LoraSettings):
    """Adapters, and what they are trained on."""

    bits: Literal[8, 4] | None = None
    """Round the weights that stay as they are to so few bits when they are read (QLoRA, arXiv 2305.14314);
    None: they stay as the folder has them."""


@dataclass(frozen=True)
class TuningEvaluation:
    """What is measured on the held-out examples."""

    every: int = 0
    """Steps between two evaluations; 0: once per epoch."""
    best: bool = True
    """Export the weights that did best on the held-out examples, and not the last ones."""


@dataclass(frozen=True)
class TuningSettings:
    """One tuning run."""

    epochs: float = 1.0
    """How often each example is read."""
    steps: int | None = None
    """End after so many steps, whatever `epochs` says."""
    seed: int = 0
    """Of the order of the examples, dropout, and fresh weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products; all else stays float32."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    batch: TuningBatch = field(default_factory=TuningBatch)
    optimizer: TuningOptimizer = field(default_factory=TuningOptimizer)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    dropout: DropoutSettings = field(default_factory=DropoutSettings)
    lora: TuningLora | None = None
    """Train low-rank adapters and leave the weights as they are: --lora.rank 8, --lora.targets attention."""
    evaluation: TuningEvaluation = field(default_factory=TuningEvaluation)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    log: LogSettings = field(default_factory=lambda: LogSettings(tensorboard=False))

    def __post_init__(self) -> None:
        Amount.parse(self.schedule.warmup, "schedule.warmup")
        Amount.parse(self.schedule.decay or "100 %", "schedule.decay")
        if self.epochs <= 0:
            raise DaybreakError(f"epochs is {self.epochs}; it must be above 0")
        if self.optimizer.lr <= 0:
            raise DaybreakError(f"optimizer.lr is {self.optimizer.lr}; it must be above 0")
        if self.optimizer.clip is not None and self.optimizer.clip <= 0:  # all gradients would become 0
            raise DaybreakError(
                f"optimizer.clip is {self.optimizer.clip}; it must be above 0, or null to clip nothing"
            )
        for name, least, value in (
            ("steps", 1, 1 if self.steps is None else self.steps),
            ("batch.examples", 1, self.batch.examples),
            ("batch.micro", 1, self.batch.micro),
            ("checkpoints.every", 1, self.checkpoints.every),
            ("checkpoints.keep", 1, self.checkpoints.keep),
            ("log.every", 1, self.log.every),
            ("evaluation.every", 0, self.evaluation.every),
        ):
            if value < least:
                raise DaybreakError(f"{name} is {value}; it must be at least {least}")


FREE = ("checkpoints", "log", "device")
"""Settings that a run may change on the way; with another value of any other it would be another run."""
