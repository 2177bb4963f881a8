"""The texts of files, one after another, in little memory: for learning tokenizers and comparing them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from daybreak import settings
from daybreak.data.build.kinds import growth
from daybreak.data.build.plan import Input, Task, make_plan
from daybreak.data.build.tally import Tally
from daybreak.data.recipe import Recipe, SourceSettings
from daybreak.errors import DaybreakError

CHARACTERS = 1 << 16
"""Of a text file that are one text; libraries hold some hundreds of texts at once, and a cut in 64 thousand
characters changes no count that matters."""


class Texts:
    """The texts of files, folders and globs (txt, md, jsonl, parquet; gz and zst packed), in order.

    What cannot be read is counted, and named in `problems`. Raises `DaybreakError` for a path that is not
    there, and where no file is one that can be read.
    """

    def __init__(
        self,
        paths: Sequence[str],
        key: str = "text",
        kind: str = "auto",
        progress: Callable[[int, int], None] = lambda done, total: None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`key`: of JSON and parquet. `kind`: text, jsonl, parquet, or auto: by the files' endings.
        `progress` gets the bytes read and, roughly, those of all; `at_end` is called when all are."""
        tree = {"name": "text", "paths": list(paths), "text": key, "kind": kind}
        self._source = settings.build(SourceSettings, tree)
        plan = make_plan(Recipe(sources=(self._source,), tokenizer="none"), Path.cwd())
        self.inputs: list[Input] = plan.inputs
        self._total = round(sum(item.bytes * growth(item.kind, item.packing) for item in self.inputs))
        self._progress, self._at_end = progress, at_end
        self._tally = Tally("text")
        self.bytes = 0
        """UTF-8 of the texts handed out."""
        self.documents = 0
        """Of JSON and parquet; a text file is one."""

    @property
    def damaged(self) -> int:
        """Documents and files of text that could not be read."""
        return self._tally.damaged

    @property
    def problems(self) -> list[str]:
        """Each of them by file and line, with the reason."""
        return [
            f"{problem['file']}{':' + str(problem['place']) if problem['place'] else ''}: {problem['what']}"
            for problem in self._tally.problems
            if problem["kind"] == "damaged"
        ]

    def __iter__(self) -> Iterator[str]:
        for item in self.inputs:
            for text in self._parts(item) if item.kind == "text" else self._documents(item):
                self.bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
                self._progress(self.bytes, max(self._total, self.bytes))
                yield text
        self._at_end()

    def _documents(self, item: Input) -> Iterator[str]:
        from daybreak.data.build.readers import documents

        for document in documents(Task(0, (item,)), self._source, self._tally, rank=0):
            self.documents += 1
            yield document.text

    def _parts(self, item: Input) -> Iterator[str]:
        self.documents += 1
        try:
            with io.TextIOWrapper(_opened(item), encoding="utf-8-sig", newline="") as file:
                while text := file.read(CHARACTERS):
                    yield text
        except (OSError, EOFError, UnicodeDecodeError) as error:
            self._tally.lacking("damaged", item.name, None, f"nothing more could be read: {error}")


def _opened(item: Input) -> Any:
    """The unpacked bytes of a file; an archive that ends early raises `OSError`."""
    import pyarrow

    packing: Any = item.packing
    return io.BufferedReader(pyarrow.input_stream(item.path, compression=packing), 1 << 20)


def first_texts(texts: Texts, most: int) -> list[str]:
    """Texts from the start on, of about `most` bytes. Raises `DaybreakError` where there are none."""
    found: list[str] = []
    room = most
    for text in texts:
        found.append(text[:room])
        room -= len(text.encode("utf-8", "replace"))
        if room <= 0:
            break
    if not any(found):
        raise DaybreakError("the files hold no text to measure; name others")
    return found
