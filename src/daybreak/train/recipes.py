"""Published hyperparameters, read from the YAML files in `daybreak/recipes`.

A file holds a family's figures: `title`, `about` (where they come from, and what they leave open), `common`
settings of all its sizes, and under `sizes` what differs, with `expect`, the published result. Behind every
value stands its source as a comment. What a recipe does not say keeps the default.
"""

from __future__ import annotations

import copy
import functools
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from daybreak import settings
from daybreak.errors import DaybreakError, nearest

FOLDER = Path(__file__).parents[1] / "recipes"
_LINE = re.compile(r"( *)([\w.-]+):(?: +(.+?))?(?:  # (.+))?")
COMMENT_WIDTH = 108


Place = tuple[str, ...]


class Written(NamedTuple):
    """A value as the file spells it, and where it comes from."""

    value: str
    source: str


@dataclass(frozen=True)
class _Recipe:
    """One size of one file."""

    name: str
    title: str
    about: str
    expect: str | None
    tree: Mapping[str, Any]
    written: Mapping[Place, Written]
    """How each value of `tree` stands in the file, by its place."""


def recipe_names() -> list[str]:
    """The published sizes that there are hyperparameters for, file by file."""
    return list(_recipes())


def recipe_tree(name: str) -> dict[str, Any]:
    """The recipe of this name as a tree for `settings.build`. Raises `DaybreakError` for an unknown one."""
    return copy.deepcopy(dict(_recipe(name).tree))


def recipe_sources(name: str) -> dict[Place, str]:
    """Where the values of `recipe_tree` come from, by their place in it: ("optimizer", "lr") -> source."""
    return {place: written.source for place, written in _recipe(name).written.items()}


def recipe_text(name: str) -> str:
    """The recipe as a YAML file of settings: its sources above, and behind each value where it stands."""
    recipe = _recipe(name)
    notes = [f"{name}: {recipe.title}", recipe.about]
    notes += [f"To expect: {recipe.expect}."] if recipe.expect else []
    head = [line for note in notes for line in textwrap.wrap(note, COMMENT_WIDTH)]
    lines = [f"# {line}" for line in head] + list(_shown(recipe.tree, recipe.written, ()))
    return "".join(f"{line}\n" for line in lines)


def _recipe(name: str) -> _Recipe:
    known = _recipes()
    found = next((recipe for key, recipe in known.items() if key.lower() == name.lower()), None)
    if found is None:
        raise DaybreakError(f"no recipe {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return found


@functools.cache
def _recipes() -> dict[str, _Recipe]:
    return {recipe.name: recipe for file in sorted(FOLDER.glob("*.yaml")) for recipe in _read(file)}


def _read(file: Path) -> Iterator[_Recipe]:
    whole = settings.read_yaml(file)
    lines = dict(_written(file.read_text(encoding="utf-8")))
    for name, entry in whole["sizes"].items():
        own = dict(entry)
        expect = own.pop("expect", None)
        tree = settings.merged(whole["common"], {"model": {"size": name}}, own)
        written: dict[Place, Written] = {("model", "size"): Written(name, "the name of this recipe")}
        for root in (("common",), ("sizes", name)):
            written |= {
                place[len(root) :]: line for place, line in lines.items() if place[: len(root)] == root
            }
        yield _Recipe(name, whole["title"], whole["about"].strip(), expect, tree, written)


def _written(text: str) -> Iterator[tuple[Place, Written]]:
    """Values with the comments behind them, which YAML's reader drops. The files are plain enough to be read
    by lines: two spaces for a level, one key on a line."""
    path: list[str] = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is not None:
            path[len(match[1]) // 2 :] = [match[2]]
            if match[3] and match[4]:
                yield tuple(path), Written(match[3], match[4])


def _shown(tree: Mapping[str, Any], written: Mapping[Place, Written], path: Place) -> Iterator[str]:
    for key, value in tree.items():
        place, indent = (*path, key), "  " * len(path)
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _shown(value, written, place)
        else:
            yield f"{indent}{key}: {written[place].value}  # {written[place].source}"
