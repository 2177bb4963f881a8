"""Everything that `daybreak align sft` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from daybreak.data.conversations import Form
from daybreak.errors import DaybreakError
from daybreak.train.settings import ScheduleSettings
from daybreak.train.tuning_settings import TuningSettings


@dataclass(frozen=True)
class SftData:
    """The demonstrations."""

    file: Path | None = None
    """Conversations, prompts with completions, or Alpaca's columns: .jsonl, .json, .csv, .parquet."""
    form: Form = "auto"
    """messages, completion, alpaca, or auto: by the columns."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What the file calls a column, where it has another name: {prompt: question, completion: answer}."""
    context: int | None = None
    """Tokens of an example at most; None: as many as the model's context."""
    longer: Literal["cut", "leave_out", "refuse"] = "cut"
    """Longer ones: cut them at their end (left out where no answer is left), leave them out, or refuse."""
    held_out: float = 0.02
    """Share of the examples that is scored and not learned from; the same ones in every run."""
    validation: Path | None = None
    """A file of such examples, instead of a share."""
    packing: bool = True
    """Read several short examples in one row, each by itself: the same numbers from fewer rows."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise DaybreakError(f"data.held_out is {self.held_out}; it must be from 0 to below 1")
        if self.context is not None and self.context < 2:
            raise DaybreakError(f"data.context is {self.context}; it must be at least 2")


@dataclass(frozen=True)
class SftSettings(TuningSettings):
    """A run of supervised fine-tuning."""

    start: str = ""
    """The model to start from: a folder, a repository of the hub, or a name."""
    revision: str | None = None
    """Branch, tag or commit of `start`."""
    epochs: float = 3.0
    """How often each example is read (InstructGPT: 16)."""
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(warmup="3 %"))
    data: SftData = field(default_factory=SftData)
