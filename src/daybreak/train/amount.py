"""Lengths of a run and of its parts, as papers print them: 300B tokens, 2000 steps, 183105 sequences, 1 %."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from daybreak.errors import DaybreakError

Unit = Literal["steps", "sequences", "tokens", "%"]
_SIZES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_FORM = re.compile(r"(\d[\d_,]*(?:\.\d+)?)\s*([kMBT]?)\s*(steps?|sequences?|tokens?|%)")


@dataclass(frozen=True)
class Amount:
    """A number with its unit."""

    value: float
    unit: Unit

    @classmethod
    def parse(cls, text: str, name: str) -> Amount:
        """`name` is the setting's, for the error. Raises `DaybreakError` for what is no amount."""
        match = _FORM.fullmatch(str(text).strip())
        if match is None:
            raise DaybreakError(
                f"{name} is {text!r}; say how much of what: 2000 steps, 375M tokens, 1000 sequences, 1 %"
            )
        unit: dict[str, Unit] = {"step": "steps", "sequence": "sequences", "token": "tokens", "%": "%"}
        number = float(re.sub("[_,]", "", match[1])) * _SIZES[match[2]]
        return cls(number, unit[match[3].removesuffix("s")])
