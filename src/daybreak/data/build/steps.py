"""The steps that stand between datatrove's: reading and filtering a task, leaving out copies, tokens.

A step gets the number of its task as `rank`. Whatever it writes is named by that number, and written again
from the start where the task was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers import ParquetWriter

from daybreak.data import token_shards
from daybreak.data.build import filters, readers
from daybreak.data.build.plan import Plan
from daybreak.data.build.tally import Tally
from daybreak.errors import DaybreakError
from daybreak.text.tokenizer import Tokenizer

BATCH = 1 << 21
"""Bytes of text that are tokenised at once."""
COLUMNS = ("text", "id", "file", "place", "language")


class Prepare(PipelineStep):  # type: ignore[misc]
    """Read a task's inputs and filter its documents."""

    type, name = "📖 - READER", "sources"

    def __init__(self, plan: Plan, reports: Path) -> None:
        super().__init__()
        self.plan, self.reports = plan, reports

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents that are left; what was read is counted in a file when all were taken."""
        task = self.plan.tasks[rank]
        source = self.plan.recipe.sources[task.source]
        tally = Tally(source.name)
        stream = _sized(readers.documents(task, source, tally, rank), tally)
        for name, step in filters.make(self.plan.recipe, source).items():
            stream = filters.passed(name, step, stream, tally)
        yield from stream
        tally.write(self.reports / "read" / f"{rank:05d}.json")


def _sized(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
    while True:
        began = process_time()
        document = next(documents, None)
        if document is not None:
            size = len(document.text.encode())
            tally.bytes += size
        tally.seconds["reading"] += process_time() - began  # type: ignore[assignment]
        if document is None:
            return
        yield document


class Kept(ParquetWriter):  # type: ignore[misc]
    """datatrove's writer, for documents on their way between two stages: one file per task."""

    def __init__(self, folder: Path) -> None:
        # A batch of 1000 documents may have more than the 2 GiB that a column of plain strings holds.
        kinds = {name: pyarrow.large_string() for name in COLUMNS} | {"place": pyarrow.int64()}
        super().__init__(
            str(folder),
            output_filename="${rank}.parquet",
            compression="zstd",
            max_file_size=-1,
            schema=pyarrow.schema(list(kinds.items())),
            use_content_defined_chunking=False,
            write_page_index=False,
        )

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        where = document.metadata
        return {
            "text": document.text,
            "id": document.id,
            **{name: where[name] for name in ("file", "place", "language")},
        }


def _read_back(file: Path) -> Iterator[Document]:
    if not file.exists():  # none of the task's documents was left
        return
    with pyarrow.parquet.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=1000, columns=list(COLUMNS)):
            for text, name, path, place, language in zip(
                *(batch.column(column).to_pylist() for column in COLUMNS), strict=True
            ):
                yield Document(text, name, metadata={"file": path, "place": place, "language": language})


class Unique(PipelineStep):  # type: ignore[misc]
    """Documents that an earlier stage wrote, without those that datatrove found to be copies."""

    type, name = "🫂 - DEDUP", "copies"

    def __init__(self, plan: Plan, kept: Path, steps: dict[str, Any], reports: Path) -> None:
        super().__init__()
        self.plan, self.kept, self.steps, self.reports = plan, kept, steps, reports

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """`steps` are datatrove's filters of copies: exact, near. They see the documents as the stages saw
        them that looked for copies."""
        tally = Tally(self.plan.recipe.sources[self.plan.tasks[rank].source].name)
        stream: Iterator[Document] = _sized(_read_back(self.kept / f"{rank:05d}.parquet"), tally)
        for name, step in self.steps.items():
            stream = _lost(name, step, stream, tally, rank, world_size)
        yield from stream
        tally.write(self.reports / "unique" / f"{rank:05d}.json")


def _lost(
    name: str, step: Any, stream: Iterator[Document], tally: Tally, rank: int, world_size: int
) -> Iterator[Document]:
    came = 0

    def counted() -> Iterator[Document]:
        nonlocal came
        for document in stream:
            came += 1
            yield document

    went = 0
    for document in step.run(counted(), rank, world_size):
        went += 1
        yield document
    if came > went:
        tally.dropped[name] += came - went


class Tokenise(PipelineStep):  # type: ignore[misc]
    """From documents to token files, one per task and split; the last stage sorts them into shards."""

    type, name = "✂️ - TOKENIZER", "tokens"

    def __init__(self, plan: Plan, tokenizer: Path, folder: Path, reports: Path) -> None:
        super().__init__()
        self.plan, self.tokenizer, self.folder, self.reports = plan, tokenizer, folder, reports

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Takes all documents."""
        tally = Tally(self.plan.recipe.sources[self.plan.tasks[rank].source].name)
        tokenizer = loaded(self.tokenizer)
        outs = {
            split: _Out(self.folder, f"{split}/{rank:05d}", tokenizer) for split in ("training", "validation")
        }
        for batch in _batches(data):
            began = process_time()
            # Special tokens that stand in a text are text: nobody's document can end another one.
            encoded = tokenizer.encode_batch([document.text for document in batch], special=False)
            tokenised = process_time()
            for document, ids in zip(batch, encoded, strict=True):
                text = document.text.encode()
                split = "validation" if _share(text) < self.plan.recipe.validation else "training"
                outs[split].add(ids, document, len(text), _key(self.plan.recipe.seed, document))
                tally.read += 1
                tally.bytes += len(text)
            tally.seconds["tokenising"] += tokenised - began  # type: ignore[assignment]
            tally.seconds["writing"] += process_time() - tokenised  # type: ignore[assignment]
        for out in outs.values():
            out.close()
        tally.write(self.reports / "tokens" / f"{rank:05d}.json")


def loaded(folder: Path) -> Tokenizer:
    """The tokenizer of a build. Raises `DaybreakError` where there is none, or it cannot end a document."""
    tokenizer = Tokenizer.load(folder)
    if tokenizer is None:
        raise DaybreakError(f"{folder} has no tokenizer; give a folder with tokenizer.json")
    if tokenizer.eos_id is None:
        raise DaybreakError(
            f"the tokenizer in {folder} names no eos token, which must end every document; "
            "name one as eos_token in its tokenizer_config.json"
        )
    return tokenizer


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _share(text: bytes) -> float:
    """A number from 0 to 1 that the text decides: equal texts are on the same side of any border."""
    digest = hashlib.blake2b(text, digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "big") / 2.0**64


def _key(seed: int, document: Document) -> int:
    """The document's place in the shuffled order of its source: 64 bits that seed, file and line decide."""
    name = f"{seed}\0{document.metadata['file']}\0{document.metadata['place']}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class _Out:
    """Token file of a task, with its documents' keys; nothing is written where there is no document."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer) -> None:
        self.folder, self.name, self.tokenizer = folder, name, tokenizer
        self.writer: token_shards.ShardWriter | None = None
        self.keys: list[int] = []

    def add(self, ids: list[int], document: Document, size: int, key: int) -> None:
        if self.writer is None:
            self.writer = token_shards.ShardWriter(self.folder, self.name, self.tokenizer.vocabulary)
        assert self.tokenizer.eos_id is not None
        where = document.metadata
        ids.append(self.tokenizer.eos_id)
        self.writer.add(
            ids,
            token_shards.Document(
                where["file"], where["place"], document.id, where["language"] or None, size
            ),
        )
        self.keys.append(key)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            np.save(self.folder / f"{self.name}.npy", np.array(self.keys, np.uint64))
