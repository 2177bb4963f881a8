"""What the quickstart learns from: files of source code, split, with a tokenizer of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from daybreak.data.standard_library import SourceFile, split, standard_library
from daybreak.data.windows import Ids
from daybreak.errors import DaybreakError
from daybreak.text.tokenizer import Tokenizer
from daybreak.text.train_tokenizer import train_tokenizer


@dataclass(frozen=True, eq=False)
class Part:
    """Training or validation files, and their tokens."""

    files: Sequence[SourceFile]
    documents: Sequence[Ids]

    @property
    def content(self) -> bytes:
        """All files, one after another."""
        return b"".join(file.content for file in self.files)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(file.content) for file in self.files)

    def summary(self) -> dict[str, int]:
        """Files, bytes and tokens; document start tokens are not counted."""
        tokens = sum(map(len, self.documents)) - len(self.documents)
        return {"files": len(self.files), "bytes": self.size, "tokens": tokens}


@dataclass(frozen=True, eq=False)
class Text:
    """Everything that is read before training."""

    tokenizer: Tokenizer
    training: Part
    validation: Part


def read_text(vocabulary: int, folder: Path | None = None, marks: Sequence[str] = ()) -> Text:
    """The standard library's files (or the Python files in `folder`), and a tokenizer trained on those for
    training, which knows the special tokens `marks` as well."""
    training, validation = split(standard_library(folder))
    tokenizer = train_tokenizer([file.text for file in training], vocabulary, marks=marks)
    return Text(tokenizer, _part(training, tokenizer), _part(validation, tokenizer))


def _part(files: Sequence[SourceFile], tokenizer: Tokenizer) -> Part:
    return Part(files, [_document(file.text, tokenizer) for file in files])


def _document(text: str, tokenizer: Tokenizer) -> Ids:
    if tokenizer.bos_id is None:
        raise DaybreakError("the tokenizer has no token that a document starts with")
    return np.array([tokenizer.bos_id, *tokenizer.encode(text, bos=False, special=False)], dtype=np.int32)
