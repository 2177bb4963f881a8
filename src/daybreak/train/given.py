"""The settings that a command line gives, and what they will cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from daybreak import settings as reading
from daybreak.train.recipes import recipe_tree
from daybreak.train.run_folder import stored_tree
from daybreak.train.settings import Settings

if TYPE_CHECKING:
    from daybreak.train.estimate import Estimate


def given_settings(
    out: Path | None, data: Path | None, recipe: str | None, config: Path | None, words: Sequence[str]
) -> Settings:
    """A recipe, a file of settings over it, and single settings over that; with none of them those of the run
    in `out`, if there is one. Raises `DaybreakError` for what does not fit."""
    trees = []
    stored = stored_tree(Settings, out) if recipe is None and config is None else None
    if stored is not None:
        trees.append(stored)
    if recipe is not None:
        trees.append(recipe_tree(recipe))
    if config is not None:
        trees.append(reading.read_yaml(config))
    if data is not None:
        trees.append({"data": {"folder": str(data)}})
    trees.append(reading.from_words(words))
    source = str(config) if config is not None else ""
    return reading.build(Settings, reading.merged(*trees), source)


def estimated(settings: Settings) -> Estimate:
    """What a run of these settings needs, on as many processes as they are arranged for."""
    from daybreak.train.course import Course
    from daybreak.train.estimate import estimate
    from daybreak.train.run import opened
    from daybreak.train.subject import architecture, context_of

    data = opened(settings) if settings.data.folder is not None else None
    shape = architecture(settings, data)
    return estimate(settings, shape, Course(settings, context_of(settings, shape, data)))
