"""Everything that `daybreak finetune` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from daybreak.data.labelled import Labels, Task
from daybreak.errors import DaybreakError
from daybreak.train.settings import ScheduleSettings
from daybreak.train.tuning_settings import DropoutSettings, TuningOptimizer, TuningSettings

Head = Literal["extract", "last"]


@dataclass(frozen=True)
class TaskData:
    """The labelled texts."""

    file: Path | None = None
    """Rows of .jsonl, .json, .csv or .parquet."""
    text: tuple[str, ...] = ()
    """Columns of the texts: one, or two that are compared; of a choice, what stands before the options."""
    label: str = "label"
    """Column of the label."""
    choices: tuple[str, ...] = ()
    """choice: columns of the options, or one column that holds a list of them."""
    labels: Labels = "auto"
    """classes, numbers, or auto: numbers for similarities of which some are no whole numbers."""
    first: int = 0
    """choice: the number of the first option, where labels are numbers."""
    context: int | None = None
    """Tokens of a text at most; None: as many as the model's context."""
    held_out: float = 0.1
    """Share of the rows that is scored and not learned from; the same ones in every run."""
    validation: Path | None = None
    """A file of such rows, instead of a share."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise DaybreakError(f"data.held_out is {self.held_out}; it must be from 0 to below 1")
        if self.context is not None and self.context < 8:
            raise DaybreakError(f"data.context is {self.context}; it must be at least 8")


@dataclass(frozen=True)
class TaskSettings(TuningSettings):
    """A classifier's run. The defaults are those of Radford et al. 2018 (section 4.1 and the published code):
    three epochs, batches of 32, 6.25e-5 with a straight fall to zero, dropout of 0.1."""

    start: str = ""
    """The model to start from: a folder, a repository of the hub, or a name."""
    revision: str | None = None
    """Branch, tag or commit of `start`."""
    task: Task = "classification"
    """classification of one text; entailment and similarity of two; choice among options."""
    head: Head = "extract"
    """extract: start, delimiter and extract tokens of their own around the texts, as in the paper; last: the
    plain text, read at its last token, as transformers' classifiers do."""
    language: float | None = None
    """Weight of the auxiliary loss, predicting the texts themselves; None: 0.5 with extract, 0 with last."""
    head_dropout: float = 0.1
    """Share of what the classifier reads that is set to zero, the same for all options of an item."""
    epochs: float = 3.0
    """How often each row is read."""
    optimizer: TuningOptimizer = field(
        default_factory=lambda: TuningOptimizer(lr=6.25e-5, beta2=0.999, weight_decay=0.01)
    )
    schedule: ScheduleSettings = field(
        default_factory=lambda: ScheduleSettings("linear", warmup="0.2 %", floor=0.0)
    )
    dropout: DropoutSettings = field(default_factory=lambda: DropoutSettings(0.1, 0.1, 0.1))
    data: TaskData = field(default_factory=TaskData)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.head_dropout < 1:
            raise DaybreakError(f"head_dropout is {self.head_dropout}; it must be from 0 to below 1")
        if self.language is not None and self.language < 0:
            raise DaybreakError(f"language is {self.language}; it must be 0 or more")

    @property
    def language_weight(self) -> float:
        """Of the auxiliary loss."""
        return {"extract": 0.5, "last": 0.0}[self.head] if self.language is None else self.language
