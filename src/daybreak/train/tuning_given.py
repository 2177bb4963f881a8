"""The settings that the command line of a tuning run gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from daybreak import settings as reading
from daybreak.train.run_folder import stored_file

S = TypeVar("S")


def given_settings(
    kind: type[S], out: Path | None, config: Path | None, own: Mapping[str, Any], words: Sequence[str]
) -> S:
    """A file of settings, `own` (a tree) over it, and single settings over that; without a file those of the
    run in `out`, if there is one. Raises `DaybreakError` for what does not fit."""
    file = config or stored_file(kind, out)
    tree = {} if file is None else reading.read_yaml(file)
    given = reading.merged(own, reading.from_words(words))
    return reading.build_given(kind, tree, "" if file is None else str(file), given)
