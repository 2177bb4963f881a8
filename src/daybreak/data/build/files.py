"""Which files the paths of a recipe mean: each file once, and nothing passed over in silence."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from daybreak.data.build.kinds import ENDINGS, kind_of
from daybreak.data.recipe import SourceSettings
from daybreak.errors import DaybreakError

BUILDING = ".building"
"""Inside the data set's folder: everything of a build that is not through."""
FILES = ("manifest.json", "report.json", "recipe.yaml")
FOLDERS = ("training", "validation", "tokenizer")
"""What a finished data set consists of."""


class Found:
    """Files of all sources; each is taken once. What a build writes into `out` is none of its own sources."""

    def __init__(self, base: Path, out: Path | None = None) -> None:
        self.base = base.resolve()
        self.out = None if out is None else out.resolve()
        self.seen: set[str] = set()
        self.other_kinds: list[tuple[str, str]] = []
        self.twice: list[tuple[str, str]] = []

    def files(self, source: SourceSettings) -> list[tuple[Path, str, str]]:
        """Path, name and kind of the files of a source, in order. Raises `DaybreakError` for a path that is
        not there, for a folder that cannot be read, and for a source without a file that can be read."""
        result = []
        for pattern in source.paths:
            for path in self._matching(pattern, source):
                name, real = self._name(path), os.path.realpath(path)
                kind = kind_of(path.name) if source.kind == "auto" else source.kind
                if self._is_own(real):
                    continue
                if kind is None or (os.path.exists(real) and not os.path.isfile(real)):
                    self.other_kinds.append((source.name, name))
                elif real in self.seen:
                    self.twice.append((source.name, name))
                else:
                    self.seen.add(real)
                    result.append((path, name, kind))
        if source.paths and not result:
            raise DaybreakError(
                f"the source {source.name!r} has no file that can be read in {', '.join(source.paths)}: "
                f"readers take {', '.join(ENDINGS)}, and other endings where the source says its kind"
            )
        return result

    def _matching(self, pattern: str, source: SourceSettings) -> list[Path]:
        inside = os.path.expanduser(pattern)
        whole = os.path.join(self.base, inside)
        matches = (
            [Path(whole)]
            if os.path.exists(whole)
            else _globbed(os.path.join(glob.escape(str(self.base)), inside))
        )
        if not matches:
            raise DaybreakError(f"the source {source.name!r}: there is nothing at {whole}")
        return sorted(set(self._below(matches, source)))

    def _below(self, matches: Iterable[Path], source: SourceSettings) -> Iterator[Path]:
        """The files, and all files below the folders. Links are followed last, so that a folder that has a
        second name is read under its own, and each folder is read once, so that a link to where it stands
        is no loop."""
        waiting: list[Path] = []
        links: deque[Path] = deque()
        reached: dict[str, Path] = {}

        def add(paths: Iterable[Path]) -> None:
            for path in paths:
                (links if path.is_symlink() else waiting).append(path)

        add(matches)
        while waiting or links:
            path = waiting.pop() if waiting else links.popleft()
            real = os.path.realpath(path)
            if not os.path.isdir(path):
                yield path
            elif real not in reached and not self._is_own(real):
                reached[real] = path
                add(_entries(path))
            elif reached.get(real, path) != path:
                self.twice.append((source.name, f"{self._name(path)}/"))

    def _is_own(self, real: str) -> bool:
        if self.out is None or not Path(real).is_relative_to(self.out):
            return False
        return Path(real).relative_to(self.out).parts[:1] in {
            (name,) for name in (BUILDING, *FILES, *FOLDERS)
        }

    def _name(self, path: Path) -> str:
        absolute = Path(os.path.abspath(path))
        inside = absolute.is_relative_to(self.base)
        return (absolute.relative_to(self.base) if inside else absolute).as_posix()


def _globbed(pattern: str) -> list[Path]:
    parts = Path(pattern).parts
    for number, part in enumerate(parts):
        if glob.has_magic(part):
            for folder in glob.glob(os.path.join(*parts[:number], ""), recursive=True):
                _entries(Path(folder))  # the library passes over folders that it cannot read
    return sorted(map(Path, glob.glob(pattern, recursive=True)))


def _entries(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries)
    except OSError as error:
        raise DaybreakError(
            f"the folder {folder} cannot be read: {error.strerror or error}; make it readable, or give paths "
            "that do not lead there"
        ) from None
