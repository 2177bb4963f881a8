"""The last two stages: documents in shuffled order into shards, and the folder that training reads.

Every document has a key of 64 bits that is as good as random. A shard takes the documents whose keys fall
into its range, in the order of their keys: a shuffle over the whole source that never holds more than a
shard's list of documents in memory, and that does not depend on how the work was cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pyarrow.parquet
from datatrove.pipeline.base import PipelineStep

from daybreak.data import token_shards
from daybreak.data.build.plan import Piece, Plan
from daybreak.data.build.tally import write_json
from daybreak.data.token_shards import ShardWriter


class Gather(PipelineStep):  # type: ignore[misc]
    """Writes the shard with the number of the task."""

    type, name = "🔀 - MERGER", "shards"

    def __init__(self, plan: Plan, vocabulary: int, tokens: Path, done: Path, reports: Path) -> None:
        super().__init__()
        self.plan, self.vocabulary = plan, vocabulary
        self.tokens, self.done, self.reports = tokens, done, reports

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Where no document falls into the range, no shard is written."""
        began = process_time()
        piece = self.plan.pieces[rank]
        source = self.plan.recipe.sources[piece.source].name
        ranks = [number for number, task in enumerate(self.plan.tasks) if task.source == piece.source]
        parts = [_Part(self.tokens / piece.split / f"{number:05d}", piece) for number in ranks]
        shard = None
        if any(len(part.chosen) for part in parts):
            name = f"{piece.split}/{source}/{piece.number:05d}"
            writer = ShardWriter(self.done, name, self.vocabulary)
            for part, number in _in_order(parts):
                writer.add(*part.document(number))
            shard = writer.close()
        report = {"piece": vars(piece), "shard": shard and vars(shard), "seconds": process_time() - began}
        write_json(self.reports / "shards" / f"{rank:05d}.json", report)


class _Part:
    """The documents of one task that belong to a shard."""

    def __init__(self, stem: Path, piece: Piece) -> None:
        self.chosen = np.zeros(0, np.int64)  # [documents]
        self.keys = np.zeros(0, np.uint64)
        keys_file = stem.with_suffix(".npy")
        if not keys_file.exists():
            return
        keys = np.load(keys_file)
        # The upper half of a key says which of up to 2**32 equal ranges it falls into.
        inside = ((keys >> np.uint64(32)) * np.uint64(piece.of)) >> np.uint64(32) == np.uint64(piece.number)
        self.chosen = np.flatnonzero(inside)
        if not len(self.chosen):
            return
        self.keys = keys[self.chosen]
        ends = np.fromfile(stem.with_suffix(".ends"), "<u8").astype(np.int64)
        self.ends = ends[self.chosen]
        self.begins = np.where(self.chosen > 0, ends[self.chosen - 1], 0)
        size = stem.with_suffix(".tokens").stat().st_size // int(ends[-1])
        self.ids = np.memmap(stem.with_suffix(".tokens"), f"<u{size}", "r")
        rows = pyarrow.parquet.read_table(stem.with_suffix(".parquet")).take(self.chosen)
        self.columns = [
            rows.column(name).to_pylist() for name in ("file", "place", "id", "language", "bytes")
        ]

    def document(self, number: int) -> tuple[Any, token_shards.Document]:
        ids = self.ids[self.begins[number] : self.ends[number]]
        return ids, token_shards.Document(*(column[number] for column in self.columns))


def _in_order(parts: list[_Part]) -> Iterator[tuple[_Part, int]]:
    keys = np.concatenate([part.keys for part in parts])
    owner = np.repeat(np.arange(len(parts)), [len(part.keys) for part in parts])
    number = np.concatenate([np.arange(len(part.keys)) for part in parts])
    for place in np.lexsort((number, owner, keys)):
        yield parts[owner[place]], int(number[place])
