"""Published mixtures of sources, as recipes of data sets to fill in: the YAML files in `recipes/mixtures`."""

from __future__ import annotations

from pathlib import Path

from daybreak.errors import DaybreakError, nearest

FOLDER = Path(__file__).parents[1] / "recipes" / "mixtures"


def mixture_names() -> list[str]:
    """The mixtures that there are."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def mixture_file(name: str) -> Path:
    """The recipe of this name; every path in it starts with FILL-IN. Raises `DaybreakError` for an unknown
    one."""
    known = mixture_names()
    if name.lower() not in known:
        raise DaybreakError(f"no mixture {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return FOLDER / f"{name.lower()}.yaml"
