"""Real text that is on every machine with Python: the source of its own standard library."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daybreak.errors import DaybreakError

LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data"}
)
"""Folders that are no source of the library: what was installed later, tests, compiled files, and the
language reference, which stands in pydoc_data as one long string."""
VALIDATION = 0.06
"""Share of the bytes that no training sees."""


@dataclass(frozen=True)
class SourceFile:
    """One file of source code."""

    name: str
    """Path below the library's folder, with slashes."""
    content: bytes

    @property
    def text(self) -> str:
        """The content as text; a byte that is not UTF-8 becomes U+FFFD."""
        return self.content.decode("utf-8", errors="replace")


def standard_library(folder: Path | None = None) -> list[SourceFile]:
    """The library's Python files in the order of their names, each content once, empty files left out.

    `folder` is by default that of the running Python. Raises `DaybreakError` where there is no source to
    read.
    """
    folder = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    files, seen = [], set()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if LEFT_OUT.isdisjoint(name.parts[:-1]):
            content = path.read_bytes()
            if content and content not in seen:
                seen.add(content)
                files.append(SourceFile(name.as_posix(), content))
    if len(files) < 2:
        raise DaybreakError(
            f"{folder} holds no Python source; the standard library may be absent here, or packed into an "
            "archive: run daybreak with a full installation of Python"
        )
    return files


def split(
    files: Sequence[SourceFile], share: float = VALIDATION
) -> tuple[list[SourceFile], list[SourceFile]]:
    """Training files and validation files, whole files each, in the order given.

    Files are drawn for validation in the order of the SHA-256 of their names, until the next one would exceed
    `share` of all bytes; so the same library is split in the same way everywhere.
    """
    room = share * sum(len(file.content) for file in files)
    drawn: set[str] = set()
    for file in sorted(files, key=lambda file: hashlib.sha256(file.name.encode()).digest()):
        room -= len(file.content)
        if room < 0 and drawn:
            break
        drawn.add(file.name)
    return [file for file in files if file.name not in drawn], [file for file in files if file.name in drawn]
