"""Counting what happened to every document, so that the report adds up.

Each task writes its counts as one JSON file when it is through; the last stage adds them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST = 1000
"""Problems that a task names one by one; beyond, they are counted only."""


@dataclass
class Tally:
    """What one task found in its inputs."""

    source: str
    read: int = 0
    """Documents, among them those that were empty or damaged."""
    empty: int = 0
    damaged: int = 0
    bytes: int = 0
    """UTF-8 of the documents that could be read."""
    problems: list[dict[str, Any]] = field(default_factory=list)
    """Each with file, place (line or row, from 1; None: the whole file), kind and what."""
    left: Counter[str] = field(default_factory=Counter)
    """Why documents were left out: "filtered gopher_quality: too short" and the like, with their number."""
    seconds: Counter[str] = field(default_factory=Counter)
    """Of processor time, by step."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Documents left out by each step."""

    def lacking(self, kind: str, file: str, place: int | None, what: str, documents: int = 1) -> None:
        """Count documents that are `empty` or `damaged`, and name them."""
        self.read += documents
        setattr(self, kind, getattr(self, kind) + documents)
        self.name(kind, file, place, what)

    def name(self, kind: str, file: str, place: int | None, what: str) -> None:
        """Name a problem, as long as there are not too many."""
        if len(self.problems) < MOST:
            self.problems.append({"file": file, "place": place, "kind": kind, "what": what})

    def write(self, file: Path) -> None:
        """As JSON, at once or not at all."""
        write_json(file, vars(self))


def write_json(file: Path, tree: Any) -> None:
    """The file appears when it is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8") as out:
        json.dump(tree, out, indent=1, ensure_ascii=False)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, file)


def read_json(file: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(file.read_text(encoding="utf-8"))
