"""What a built data set says about itself: sources, shards with checksums, the tokenizer's numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daybreak import settings
from daybreak.errors import DaybreakError

FILE = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Document:
    """Where a document came from."""

    file: str
    place: int
    """Line or row in the file, from 1."""
    id: str
    language: str | None
    bytes: int
    """Of its text in UTF-8."""


@dataclass(frozen=True)
class Shard:
    """Three files of one name: .tokens, .ends and .parquet."""

    name: str
    """Below the data set's folder, without ending: training/wiki/00000."""
    documents: int
    tokens: int
    bytes: int
    """Of the documents' texts."""
    sha256: Mapping[str, str]
    """By ending: tokens, ends, parquet."""


@dataclass(frozen=True)
class Source:
    """Texts that are weighted together."""

    name: str
    weight: float
    """Share in training, relative to the others'."""
    shards: Mapping[str, tuple[Shard, ...]]
    """By split: training, validation."""


@dataclass(frozen=True)
class Manifest:
    """The whole data set."""

    vocabulary: int
    context: int
    """Tokens of a training sequence, where the run says nothing else."""
    separator: int
    """The token that ends every document."""
    sources: tuple[Source, ...]
    recipe_sha256: str
    inputs: Mapping[str, Any]
    """What the builder wants to remember: checksums of its inputs, versions."""

    def write(self, folder: Path) -> None:
        """The file appears when it is complete."""
        partial = folder / f"{FILE}.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **settings.to_tree(self)}, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises `DaybreakError` where there is none, or it cannot be understood."""
        file = Path(folder) / FILE
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DaybreakError(
                f"{folder} is no finished data set: it has no {FILE}; make one with `daybreak data build`"
            ) from None
        except (OSError, ValueError) as error:
            raise _damaged(file, error) from None
        if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
            raise _damaged(file, f"it is not of format {FORMAT}")
        try:
            return settings.build(cls, tree)
        except DaybreakError as error:
            raise _damaged(file, error) from None


def _damaged(file: Path, reason: object) -> DaybreakError:
    return DaybreakError(
        f"{file} cannot be read as a data set's manifest ({reason}); build the data again with "
        "`daybreak data build --force`"
    )
