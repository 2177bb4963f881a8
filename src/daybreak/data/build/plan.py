"""What a build will do, fixed before it starts: files with their checksums, tasks, shards.

The plan depends on the recipe and the files alone, not on how many workers there are: a data set that was
built on two cores and one that was built on a cluster are the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daybreak.data.build.files import Found
from daybreak.data.build.kinds import growth, packing_of
from daybreak.data.recipe import Recipe, SourceSettings
from daybreak.errors import DaybreakError


@dataclass(frozen=True)
class Input:
    """A file that is read, or a data set of the hub."""

    path: str
    """Where it lies; of the hub's, its repository."""
    name: str
    """What provenance and reports call it: relative to the recipe's folder where it lies below that."""
    kind: str
    """text, jsonl, parquet or hub."""
    packing: str | None
    """gzip or zstd, by the ending."""
    bytes: int
    modified: int
    """In nanoseconds, so that a change during the build is noticed."""
    sha256: str
    commit: str | None = None
    """Of a data set of the hub."""


@dataclass(frozen=True)
class Task:
    """Inputs of one source that one worker reads."""

    source: int
    inputs: tuple[Input, ...]


@dataclass(frozen=True)
class Piece:
    """One shard of the result: the documents whose key falls into the `number`-th of `of` equal ranges."""

    split: str
    source: int
    number: int
    of: int


@dataclass(frozen=True)
class Plan:
    """See the module."""

    recipe: Recipe
    tasks: tuple[Task, ...]
    pieces: tuple[Piece, ...]
    other_kinds: tuple[tuple[str, str], ...]
    """Files found in folders that no reader takes: source and name."""
    twice: tuple[tuple[str, str], ...]
    """Files that were reached a second time, and read once: source and name."""

    @property
    def inputs(self) -> list[Input]:
        return [item for task in self.tasks for item in task.inputs]

    def checksums(self) -> dict[str, str]:
        """By source and name, as the manifest keeps them."""
        return {
            f"{self.recipe.sources[task.source].name}:{item.name}": item.sha256
            for task in self.tasks
            for item in task.inputs
        }


Told = Callable[[int, int], None]
"""Bytes done, bytes in all."""


def make_plan(recipe: Recipe, base: Path, progress: Told | None = None, out: Path | None = None) -> Plan:
    """Find the files, take their checksums and cut the work into tasks. Relative paths start at `base`; what
    a build writes into `out` is left out.

    Raises `DaybreakError` for a path that is not there, for what cannot be read, where the hub does not
    answer, and for a source without a file that can be read.
    """
    found = Found(base, out)
    files = [found.files(source) for source in recipe.sources]
    sums = _checksums(
        [path for list_ in files for path, _, _ in list_], progress or (lambda done, all_: None)
    )
    tasks: list[Task] = []
    texts: list[float] = []
    for number, (source, list_) in enumerate(zip(recipe.sources, files, strict=True)):
        inputs = [_input(path, name, kind, sums[path]) for path, name, kind in list_]
        if source.dataset is not None:
            inputs = [_of_the_hub(source)]
        tasks += [Task(number, part) for part in _grouped(inputs, recipe.task_megabytes * 1e6)]
        texts.append(sum(item.bytes * growth(item.kind, item.packing) for item in inputs))
    pieces = tuple(_pieces(recipe, texts))
    return Plan(recipe, tuple(tasks), pieces, tuple(found.other_kinds), tuple(found.twice))


def _checksums(paths: list[Path], progress: Told) -> Mapping[Path, tuple[os.stat_result, str]]:
    total = sum(os.path.getsize(path) for path in paths if path.exists())
    done = 0
    result = {}
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        for path, found in zip(paths, pool.map(_checksum, paths), strict=True):
            result[path] = found
            done += found[0].st_size
            progress(done, total)
    return result


def _checksum(path: Path) -> tuple[os.stat_result, str]:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()), hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DaybreakError(f"{path} cannot be read: {error.strerror or error}") from None


def _input(path: Path, name: str, kind: str, found: tuple[os.stat_result, str]) -> Input:
    stat, sha256 = found
    where = os.path.abspath(path)
    return Input(where, name, kind, packing_of(path.name), stat.st_size, stat.st_mtime_ns, sha256)


def _of_the_hub(source: SourceSettings) -> Input:
    from daybreak.checkpoint.hub import dataset_commit

    assert source.dataset is not None
    name = "/".join(filter(None, (source.dataset, source.configuration, source.part)))
    commit = dataset_commit(source.dataset, source.revision)
    # Its bytes are not known before they are read, and the hub's commit stands for a checksum.
    return Input(source.dataset, f"hub:{name}", "hub", None, 0, 0, f"revision {commit}", commit)


def _grouped(inputs: list[Input], most: float) -> Iterator[tuple[Input, ...]]:
    group: list[Input] = []
    size = 0.0
    for item in inputs:
        text = item.bytes * growth(item.kind, item.packing)
        if group and size + text > most:
            yield tuple(group)
            group, size = [], 0.0
        group.append(item)
        size += text
    yield tuple(group)


def _pieces(recipe: Recipe, texts: list[float]) -> Iterator[Piece]:
    shares = {"training": 1 - recipe.validation, "validation": recipe.validation}
    for split, share in shares.items():
        for source, text in enumerate(texts):
            of = max(1, round(text * share / (recipe.shard_megabytes * 1e6)))
            yield from (Piece(split, source, number, of) for number in range(of) if share > 0)


def fingerprint(recipe: Recipe) -> str:
    """sha256 of what decides the result; how a cluster is asked is no part of it."""
    from daybreak import settings

    tree = settings.to_tree(recipe)
    del tree["slurm"]
    return sum_of(tree)


def sum_of(tree: Any) -> str:
    """sha256 of values that JSON knows."""
    import json

    text = json.dumps(tree, sort_keys=True, ensure_ascii=False, default=asdict)
    return hashlib.sha256(text.encode()).hexdigest()
