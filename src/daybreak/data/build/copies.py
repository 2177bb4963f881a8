"""Looking for copies: datatrove's exact deduplication and its MinHash, set up for a build.

Both work in stages over all tasks: signatures of every document, the pairs among them, and for each task the
numbers of its documents that are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
)
from datatrove.utils.hashing import HashConfig

from daybreak.data.build.minhash import Signature
from daybreak.data.build.words import Words
from daybreak.data.recipe import MinhashSettings, Recipe

HASH = HashConfig(precision=64, hash_fc="sha1")
"""Needs no further library; of a billion different texts, two share their 64 bits with a chance of 3 %."""
FIRST = 65535
"""datatrove's highest priority."""


def _text(document: Document) -> str:
    text: str = document.text
    return text


class _Earlier:
    """Of equal documents, the one stays whose source stands first in the recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.number = {source.name: number for number, source in enumerate(recipe.sources)}

    def __call__(self, document: Document) -> int:
        return max(1, FIRST - self.number[document.metadata["source"]])


class Exact:
    """Documents with the same text."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.signatures, self.found = str(folder / "signatures"), str(folder / "found")
        self.config = ExactDedupConfig(_text, _Earlier(recipe), HASH)

    def signature(self) -> Any:
        """Takes all documents, and writes their signatures."""
        return ExactDedupSignature(self.signatures, self.config)

    def stages(self) -> Mapping[str, tuple[list[Any], int]]:
        """What finds the pairs: steps and number of tasks, by name."""
        return {"equal documents": ([ExactFindDedups(self.signatures, self.found, self.config)], 1)}

    def filter(self) -> Any:
        """Leaves the copies out."""
        Path(self.found).mkdir(parents=True, exist_ok=True)  # the search makes none if it finds nothing
        return ExactDedupFilter(self.found, self.config)


class Near:
    """Documents that have most of their pieces of a few words in common."""

    def __init__(self, folder: Path, settings: MinhashSettings) -> None:
        self.signatures, self.pairs, self.found = (
            str(folder / name) for name in ("signatures", "pairs", "found")
        )
        self.config = MinhashConfig(
            settings.words, settings.buckets, settings.hashes, settings.seed, hash_config=HASH
        )

    def signature(self) -> Any:
        """Takes all documents, and writes their signatures."""
        return Signature(self.signatures, self.config, language=Words())

    def stages(self) -> Mapping[str, tuple[list[Any], int]]:
        """What finds the pairs and joins them to groups."""
        pairs = MinhashDedupBuckets(self.signatures, self.pairs, config=self.config)
        groups = MinhashDedupCluster(self.pairs, self.found, self.config)
        return {"near documents": ([pairs], self.config.num_buckets), "groups": ([groups], 1)}

    def filter(self) -> Any:
        """Leaves all but one of each group out."""
        return MinhashDedupFilter(self.found)
