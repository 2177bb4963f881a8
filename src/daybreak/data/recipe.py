"""The recipe of a data set: which texts, what is left out, how they become tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from daybreak import settings
from daybreak.errors import DaybreakError

Filters = Mapping[str, Mapping[str, Any] | None]


@dataclass(frozen=True)
class SourceSettings:
    """Texts that are weighted together: files of this machine, or a data set of the Hugging Face hub."""

    name: str
    """Names the source in the data set, in statistics and in weights: letters, digits, - and _."""
    paths: tuple[str, ...] = ()
    """Files, folders (with all that is below them) and globs such as corpus/**/*.jsonl.zst."""
    dataset: str | None = None
    """A data set of the hub (owner/name) instead of paths."""
    configuration: str | None = None
    """Which of the hub's data set's configurations."""
    part: str = "train"
    """Which of the hub's data set's splits."""
    revision: str | None = None
    """Branch, tag or commit of the hub's data set; with a commit, the hub is not asked whether it changed."""
    weight: float | None = None
    """Share in training, relative to the others'; where no source has one, as many as it has tokens."""
    kind: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    """How its files are read; auto: by their endings (.txt, .md, .jsonl, .parquet; .gz and .zst packed)."""
    documents: Literal["file", "lines", "paragraphs"] = "file"
    """Of a text file: it is one document, each line is one, or each block between blank lines."""
    text: str = "text"
    """The key or column with the text."""
    id: str = "id"
    """The key or column with the document's name; where it is missing, file and line name it."""
    language: str | None = None
    """The language of all its documents (de, pt-BR), for statistics."""
    language_key: str | None = None
    """The key or column that says the document's language."""
    filters: Filters = field(default_factory=dict)
    """Filters of this source, beside those of the recipe; one of the same name takes the other's place."""


@dataclass(frozen=True)
class MinhashSettings:
    """Near duplicates by MinHash, over all sources together."""

    words: int = 5
    """Length in words of the pieces of which two documents must have many in common."""
    buckets: int = 14
    """How many groups of hashes; two documents with one equal group are duplicates."""
    hashes: int = 8
    """Hashes of a group. Documents are found that share more than about (1 / buckets) ** (1 / hashes)."""
    seed: int = 1
    """Of the hash functions."""


@dataclass(frozen=True)
class DeduplicationSettings:
    """Which copies are left out, over all sources together."""

    exact: bool = True
    """Documents whose text is the same, character by character; the first source's is kept."""
    minhash: MinhashSettings | None = None
    """Near duplicates, of which one is kept: {} for the usual numbers; null: they stay."""


@dataclass(frozen=True)
class SlurmSettings:
    """What `--executor slurm` asks for."""

    partition: str | None = None
    """The partition; needed there."""
    time: str = "20:00:00"
    """Limit of each task."""
    cpus: int = 1
    """Processors of a task."""
    memory: int = 4
    """GB of memory per processor."""
    qos: str = ""
    """Quality of service, where the cluster has such."""
    environment: str = ""
    """A command that activates the Python environment on the nodes: source /path/.venv/bin/activate."""
    sbatch: Mapping[str, Any] = field(default_factory=dict)
    """Further options of sbatch: {account: abc}."""


@dataclass(frozen=True)
class Recipe:
    """Everything that `daybreak data build` is told."""

    sources: tuple[SourceSettings, ...]
    """The texts."""
    tokenizer: str
    """A folder with tokenizer.json, a repository of the hub or a published name (pythia-70m)."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of the tokenizer's repository."""
    context: int = 2048
    """Tokens of a training sequence, where the run says nothing else."""
    validation: float = 0.005
    """Share of the documents that are held out, chosen by a hash of their text."""
    seed: int = 0
    """Of the documents' order inside their source."""
    filters: Filters = field(default_factory=dict)
    """Filters of all sources by name, with parameters: {length: {min_bytes: 100}, gopher_quality: {}}."""
    deduplication: DeduplicationSettings = field(default_factory=DeduplicationSettings)
    """Which copies are left out."""
    task_megabytes: float = 64
    """Files are grouped into tasks of about so much text; a task is what an interruption can cost."""
    shard_megabytes: float = 512
    """Text of a finished shard, roughly; gathering one needs memory for its list of documents."""
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    """Of the cluster that `--executor slurm` uses."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise DaybreakError("the recipe has no sources; name at least one, with its paths")
        names = [source.name for source in self.sources]
        for number, source in enumerate(self.sources):
            _check_source(source, first=source.name not in names[:number])
        weighted = [source.name for source in self.sources if source.weight is not None]
        if weighted and len(weighted) < len(names):
            rest = next(name for name in names if name not in weighted)
            raise DaybreakError(f"{weighted[0]!r} has a weight and {rest!r} has none; give all or none")
        if weighted and not any(source.weight for source in self.sources):
            raise DaybreakError("all weights are 0; then there is nothing to train on")
        if not 0 <= self.validation < 1:
            raise DaybreakError(f"validation is {self.validation}; it is a share, at least 0 and below 1")
        for name in ("context", "task_megabytes", "shard_megabytes"):
            if getattr(self, name) <= 0:
                raise DaybreakError(f"{name} is {getattr(self, name)}; it must be more than 0")
        if minhash := self.deduplication.minhash:
            for name in ("words", "buckets", "hashes"):
                if getattr(minhash, name) < 1:
                    raise DaybreakError(
                        f"deduplication.minhash.{name} is {getattr(minhash, name)}; it must be at least 1"
                    )


def _check_source(source: SourceSettings, first: bool) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", source.name):
        raise DaybreakError(
            f"the source {source.name!r} cannot be called so; take letters, digits, - and _ only"
        )
    if not first:
        raise DaybreakError(f"two sources are called {source.name!r}; each needs a name of its own")
    if bool(source.paths) == (source.dataset is not None):
        raise DaybreakError(f"the source {source.name!r} needs either paths or a dataset of the hub")
    if source.weight is not None and not 0 <= source.weight < float("inf"):
        raise DaybreakError(f"the weight of {source.name!r} is {source.weight}; it must be 0 or more")
    if source.language is not None and source.language_key is not None:
        raise DaybreakError(f"the source {source.name!r} has language and language_key; give one of them")


def read_recipe(file: Path, words: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `--section.field value` from the command line over it.

    Raises `DaybreakError` for an unknown key, and for values that do not fit.
    """
    tree = settings.merged(settings.read_yaml(file), settings.from_words(words))
    return settings.build(Recipe, tree, str(file))
