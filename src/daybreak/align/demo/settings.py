"""What a run of `daybreak align demo` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daybreak.errors import DaybreakError

WHOLE = 25.0
"""Minutes that the amounts below take on two cores for one seed."""


@dataclass(frozen=True)
class DemoSettings:
    """One run of the demo. Raises `DaybreakError` for values that make no sense."""

    minutes: float = WHOLE
    """About how long one seed may take on two cores; all amounts are smaller or larger in proportion."""
    seeds: int = 1
    """How often everything is done, each time with another seed; figures are then means with their spread."""
    seed: int = 0
    """The first seed."""
    model: str | None = None
    """A model to start from, such as one that `daybreak quickstart` left; null: one is trained first."""
    source: Path | None = None
    """A folder of Python files to learn from; null: the standard library."""
    room: int = 96
    """Tokens of an answer at most."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise DaybreakError(f"minutes is {self.minutes}; it must be above 0")
        for name, least in (("seeds", 1), ("seed", 0), ("room", 8)):
            if getattr(self, name) < least:
                raise DaybreakError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.source is not None and not self.source.is_dir():
            raise DaybreakError(f"no folder {str(self.source)!r}; --source names one with Python files")

    def amount(self, whole: int, least: int = 1) -> int:
        """So many of what would be `whole` in a run of the usual length."""
        return max(least, round(whole * self.minutes / WHOLE))
