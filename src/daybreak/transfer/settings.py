"""What a run of ULMFiT can be told; numbers are the paper's (arXiv 1801.06146) where it has some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from daybreak.errors import DaybreakError
from daybreak.families.recurrent import Direction
from daybreak.train.settings import CheckpointSettings, LogSettings


@dataclass(frozen=True)
class TextFiles:
    """Where the texts are: .csv, .jsonl and .parquet by columns; .txt and .md are one text each."""

    files: tuple[str, ...] = ()
    """What is learned from."""
    held_out: tuple[str, ...] = ()
    """What is scored after every epoch, and decides which weights are kept."""
    text: str = "text"
    """The column of the texts."""
    label: str = "label"
    """The column of the classes."""


@dataclass(frozen=True)
class TransferSettings:
    """What the runs of a language model and of a classifier have in common."""

    start: str = ""
    """The model to start from: a folder of ours, or of fastai's (one .pth and one .pkl)."""
    data: TextFiles = field(default_factory=TextFiles)
    epochs: int = 1
    """How often each text is read."""
    batch: int = 64
    """Texts, or stretches of text, of a step."""
    window: int = 70
    """Tokens through which gradients flow."""
    lr: float = 4e-3
    """The highest learning rate, of the last layer."""
    factor: float = 2.6
    """Each layer's rate is that of the layer after it divided by this (discriminative fine-tuning)."""
    cut: float = 0.1
    """Share of the steps in which the rate rises; then it falls (slanted triangle)."""
    ratio: float = 32.0
    """How many times smaller than the highest rate the lowest one is."""
    dropout: float = 1.0
    """Factor on all dropouts of the LSTM."""
    beta1: float = 0.7
    """Adam's first decay."""
    beta2: float = 0.99
    """Adam's second decay."""
    weight_decay: float = 0.01
    """Decoupled decay of all weights."""
    clip: float | None = 0.25
    """The gradient's norm is scaled down to this where it is larger; None: never (AWD-LSTM: 0.25)."""
    seed: int = 0
    """Of fresh weights, the order of the texts, and dropout."""
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    log: LogSettings = field(default_factory=lambda: LogSettings(tensorboard=False))

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "window"):
            if getattr(self, name) < 1:
                raise DaybreakError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "factor", "ratio"):
            if getattr(self, name) <= 0:
                raise DaybreakError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 < self.cut < 1:
            raise DaybreakError(f"cut is {self.cut}; it must be between 0 and 1")
        for name in ("dropout", "weight_decay"):
            if getattr(self, name) < 0:
                raise DaybreakError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.clip is not None and self.clip <= 0:
            raise DaybreakError(f"clip is {self.clip}; it must be above 0, or null for none")


@dataclass(frozen=True)
class LanguageSettings(TransferSettings):
    """One run of language modelling: pretraining, or going on with the text of a task."""

    size: str | None = None
    """From scratch: a published size, awd-lstm-1150 or awd-lstm-1152."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """From scratch: what differs from it: {width: 200, hidden: 400, layers: 3}."""
    direction: Direction = "forward"
    """From scratch: backward learns from texts read from their ends."""
    words: int = 60000
    """Of the vocabulary at most, special ones included."""
    least_count: int = 3
    """A word that occurs less often is unknown."""
    activation: float = 2.0
    """Factor on the mean square of the outputs (AR)."""
    slowness: float = 1.0
    """Factor on the mean square of their changes (TAR)."""


@dataclass(frozen=True)
class ClassifySettings(TransferSettings):
    """One run of a classifier on a language model."""

    epochs: int = 10
    """How often each text is read."""
    lr: float = 0.01
    """The highest learning rate, of the head."""
    gradual: bool = True
    """Unfreeze the layers one after another, an epoch each, from the head down."""
    inner: int = 50
    """Components between the two maps of the head."""
    head_dropout: float = 0.1
    """Of these; before the first map it is the LSTM's dropout of the output."""
    longest: int = 1440
    """Tokens of a text, from its end, that enter the pool."""
    pretrained: bool = True
    """False: the same network and vocabulary with fresh weights, to compare with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 2:
            raise DaybreakError(f"batch is {self.batch}; it must be at least 2, as the head norms over texts")
        for name in ("inner", "longest"):
            if getattr(self, name) < 1:
                raise DaybreakError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.head_dropout < 1:
            raise DaybreakError(f"head_dropout is {self.head_dropout}; it must be from 0 to below 1")


FREE = ("checkpoints", "log")
"""Settings that a run may change on the way; with another value of any other it would be another run."""
