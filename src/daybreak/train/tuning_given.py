"""The settings that the command line of a tuning run gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from daybreak import settings as reading
from daybreak.train.run_folder import SETTINGS

S = TypeVar("S")


def given_settings(
    kind: type[S], out: Path | None, config: Path | None, own: Mapping[str, Any], words: Sequence[str]
) -> S:
    """A file of settings, `own` (a tree) over it, and single settings over that; without a file those of the
    run in `out`, if there is one. Raises `DaybreakError` for what does not fit."""
    trees: list[Mapping[str, Any]] = []
    stored = None if out is None else out / SETTINGS
    if config is not None:
        trees.append(reading.read_yaml(config))
    elif stored is not None and stored.is_file():
        trees.append(reading.read_yaml(stored))
    source = "" if not trees else str(config or stored)
    return reading.build(kind, reading.merged(*trees, own, reading.from_words(words)), source)
