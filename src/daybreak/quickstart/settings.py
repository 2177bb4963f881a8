"""What a run of the quickstart is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daybreak import families
from daybreak.errors import DaybreakError

CAUSAL, BLANK_INFILLING = OBJECTIVES = ("causal", "blank-infilling")


@dataclass(frozen=True)
class Settings:
    """One run of the quickstart. Raises `DaybreakError` for values that make no sense."""

    family: str = families.FIRST_TO_TRAIN
    """Which family's design to train (`daybreak families` lists them)."""
    objective: str | None = None
    """causal: every token from those before it. blank-infilling: blanked lines, spans and endings from what
    is left on both sides. As the family was trained, where nothing is said.
    """
    seconds: float = 270.0
    """Time for everything from reading to the last sample; training takes what the rest leaves."""
    steps: int | None = None
    """Train for exactly so many steps instead: the same seed then gives the same model."""
    seed: int = 0
    """Draws the weights, the order of the text, and the samples."""
    vocabulary: int = 4096
    """Entries of the tokenizer."""
    layers: int = 4
    """Blocks of the network."""
    width: int = 192
    """Components of the residual stream."""
    heads: int = 3
    """Attention heads per block."""
    context: int = 256
    """Tokens read at once, in training and in scoring."""
    batch: int = 8
    """Windows of `context` tokens per step."""
    samples: int = 64
    """Functions to sample for the share that parses."""
    compiling: bool = True
    """Compile the training step where there is a compiler."""
    source: Path | None = None
    """A folder of Python files to learn from instead of the standard library."""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "layers", "width", "heads", "context", "batch", "samples"):
            _at_least(1, name, getattr(self, name))
        if self.steps is not None:
            _at_least(1, "steps", self.steps)
        _at_least(0, "seed", self.seed)
        if not self.seconds > 0:
            raise DaybreakError(f"seconds is {self.seconds}; it must be above 0")
        blanks = families.by_name(self.family).base.blanks
        if self.objective not in (None, *OBJECTIVES):
            raise DaybreakError(f"objective is {self.objective!r}; it must be {' or '.join(OBJECTIVES)}")
        if self.objective == BLANK_INFILLING and blanks is None:
            able = [name for name in families.NAMES if families.by_name(name).base.blanks is not None]
            raise DaybreakError(
                f"objective is {BLANK_INFILLING}, but the design {self.family} has no tokens for blanks; "
                f"take one of {', '.join(able)}"
            )
        if self.source is not None and not self.source.is_dir():
            raise DaybreakError(f"no folder {str(self.source)!r}; --source names one with Python files")

    @property
    def infilling(self) -> bool:
        """The objective is blank infilling: asked for, or by the family's design."""
        blanks = families.by_name(self.family).base.blanks
        return self.objective == BLANK_INFILLING or (self.objective is None and blanks is not None)

    @property
    def stride(self) -> int:
        """Tokens scored per window: each is read behind at least `context` - `stride` others, or all there
        are."""
        return max(1, self.context // 2)


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise DaybreakError(f"{name} is {value}; it must be at least {least}")
