"""What the demo learns from: functions of real files as demonstrations, their first lines as prompts, and the
rest of the files as the text to mix in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daybreak.align.demo.labeller import MOST, labelled
from daybreak.data.standard_library import SourceFile, split, standard_library
from daybreak.data.token_shards import Document, Manifest, Shard, ShardWriter, Source
from daybreak.errors import DaybreakError
from daybreak.quickstart.functions import functions
from daybreak.text.tokenizer import Tokenizer

NAME = "python"
"""Of the one source in the data set."""


@dataclass(frozen=True)
class Example:
    """A real function."""

    prompt: str
    """Its first line, without the line break."""
    answer: str
    """The rest, the line break first."""


@dataclass(frozen=True)
class Texts:
    """All of it, the training files apart from those for validation."""

    training: Sequence[SourceFile]
    validation: Sequence[SourceFile]

    @classmethod
    def read(cls, folder: Path | None) -> Texts:
        """The standard library's files, or those in `folder`, split as the quickstart does."""
        training, validation = split(standard_library(folder))
        return cls(training, validation)


def examples(files: Iterable[SourceFile], tokenizer: Tokenizer, room: int, prompt_room: int) -> list[Example]:
    """The functions that fit, each prompt once, in the order of the files."""
    found: dict[str, Example] = {}
    for file in files:
        for function in functions(file.text):
            first, line_break, space = re.split(r"(\n)", function.head, maxsplit=1)
            answer = line_break + space + function.body.rstrip() + "\n"
            if first in found or len(tokenizer.encode(first, bos=True)) > prompt_room:
                continue
            if len(tokenizer.encode(answer, bos=False, special=False)) < room:  # and the end token
                found[first] = Example(first, answer)
    return list(found.values())


def shuffled(items: Sequence[Any], seed: int) -> list[Any]:
    """In random order."""
    return [items[number] for number in np.random.default_rng(seed).permutation(len(items))]


def demonstrations(found: Iterable[Example]) -> list[Example]:
    """Those that the labeller cannot ask more of."""
    return [one for one in found if labelled(one.prompt + one.answer).score == MOST]


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A file of JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")


def write_shards(folder: Path, texts: Texts, tokenizer: Tokenizer, context: int) -> None:
    """The files as token shards, as `daybreak data build` writes them."""
    if tokenizer.eos_id is None:
        raise DaybreakError("the model's tokenizer has no token that ends a text; take a model that has one")
    tokenizer.save(folder / "tokenizer")
    shards: dict[str, tuple[Shard, ...]] = {}
    for name, files in (("training", texts.training), ("validation", texts.validation)):
        with ShardWriter(folder, f"{name}/{NAME}/00000", tokenizer.vocabulary) as writer:
            for place, file in enumerate(files, 1):
                ids = tokenizer.encode(file.text, bos=False, special=False)
                document = Document(file.name, place, file.name, None, len(file.content))
                writer.add([*ids, tokenizer.eos_id], document)
        shards[name] = (writer.close(),)
    sources = (Source(NAME, 1.0, shards),)
    told = "the files of a Python library"
    Manifest(tokenizer.vocabulary, context, tokenizer.eos_id, sources, told, {}).write(folder)
