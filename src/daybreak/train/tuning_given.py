"""The settings that the command line of a tuning run gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from daybreak import settings as reading
from daybreak.train.run_folder import stored_tree

S = TypeVar("S")


def given_settings(
    kind: type[S], out: Path | None, config: Path | None, own: Mapping[str, Any], words: Sequence[str]
) -> S:
    """A file of settings, `own` (a tree) over it, and single settings over that; without a file those of the
    run in `out`, if there is one. Raises `DaybreakError` for what does not fit."""
    tree = stored_tree(kind, out) or {} if config is None else reading.read_yaml(config)
    given = reading.merged(own, reading.from_words(words))
    return reading.build_given(kind, tree, "" if config is None else str(config), given)
