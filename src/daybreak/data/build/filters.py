"""datatrove's filters by name, with their parameters from a recipe."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from time import process_time
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result

from daybreak.data.build.tally import Tally
from daybreak.data.build.words import Words
from daybreak.data.recipe import Filters, Recipe, SourceSettings
from daybreak.errors import DaybreakError, nearest

_ROOM = "datatrove.pipeline.filters"
_THEIRS = {
    "c4_quality": "C4QualityFilter",
    "c4_paragraphs": "C4ParagraphFilter",
    "c4_bad_words": "C4BadWordsFilter",
    "fineweb_quality": "FineWebQualityFilter",
    "gopher_quality": "GopherQualityFilter",
    "gopher_repetition": "GopherRepetitionFilter",
    "language": "LanguageFilter",
    "regex": "RegexFilter",
    "sample": "SamplerFilter",
    "unigrams": "UnigramLogProbFilter",
    "url": "URLFilter",
}
NAMES = ("length", *_THEIRS)


class Length(BaseFilter):  # type: ignore[misc]
    """Bounds on the length of a document; datatrove has none by itself."""

    name = "📏 Length"

    def __init__(
        self,
        min_bytes: int = 0,
        max_bytes: int | None = None,
        min_words: int = 0,
        max_words: int | None = None,
    ) -> None:
        super().__init__()
        self.bytes, self.words = (min_bytes, max_bytes), (min_words, max_words)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Is the document as long as it may be?"""
        if self.bytes != (0, None) and (wrong := _outside(len(doc.text.encode()), self.bytes)):
            return False, f"{wrong} bytes"
        if self.words != (0, None) and (wrong := _outside(len(doc.text.split()), self.words)):
            return False, f"{wrong} words"
        return True


def _outside(value: int, bounds: tuple[int, int | None]) -> str | None:
    least, most = bounds
    return "too few" if value < least else "too many" if most is not None and value > most else None


def make(recipe: Recipe, source: SourceSettings) -> dict[str, Any]:
    """The filters of a source by name, the recipe's before its own.

    Raises `DaybreakError` for a filter or a parameter that there is not, and where a library is missing.
    """
    wanted: Filters = {**recipe.filters, **source.filters}
    return {name: _one(name, parameters or {}, recipe.seed) for name, parameters in wanted.items()}


def _one(name: str, parameters: Mapping[str, Any], seed: int) -> Any:
    if name not in NAMES:
        raise DaybreakError(
            f"there is no filter {name!r}{nearest(name, NAMES)}; there are {', '.join(NAMES)}"
        )
    kind = Length if name == "length" else getattr(importlib.import_module(_ROOM), _THEIRS[name])
    known = dict(inspect.signature(kind.__init__).parameters)
    for own in ("self", "exclusion_writer"):
        known.pop(own, None)
    for key, value in parameters.items():
        _check(name, key, value, known)
    given = dict(parameters)
    if "language" in known:
        given.setdefault("language", Words())
    if "seed" in known:  # the same documents on every run
        given.setdefault("seed", seed)
    try:
        return kind(**given)
    except (ImportError, TypeError, ValueError) as error:
        raise DaybreakError(f"the filter {name!r} cannot be made: {' '.join(str(error).split())}") from None


def _check(name: str, key: str, value: Any, known: Mapping[str, inspect.Parameter]) -> None:
    if key not in known:
        hint = nearest(key, known) or f"; it knows {', '.join(known) or 'none'}"
        raise DaybreakError(f"the filter {name!r} has no parameter {key!r}{hint}")
    default = known[key].default
    number = isinstance(default, int | float) and not isinstance(default, bool)
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and ((number and not fits) or (isinstance(default, bool) and value not in (0, 1))):
        wanted = "a number" if number else "true or false"
        raise DaybreakError(f"the filter {name!r}: {key} is {value!r}, which is not {wanted}")


def passed(name: str, step: Any, documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
    """The documents that a filter keeps; the others are counted with the reason."""
    for document in documents:
        began = process_time()
        try:
            kept, reason = get_filter_result(step.filter(document))
            if kept and not document.text.strip():
                kept, reason = False, "nothing is left of it"
        except (ArithmeticError, ValueError, IndexError) as error:
            # Shares of lines and words in a document that has none of them.
            kept, reason = False, f"it cannot be judged ({type(error).__name__})"
            where = document.metadata
            tally.name("filtered", where["file"], where["place"], f"{name}: {reason}")
        tally.seconds[f"filter {name}"] += process_time() - began  # type: ignore[assignment]
        if kept:
            yield document
        else:
            tally.dropped[name] += 1
            tally.left[f"{name}: {reason}" if reason else name] += 1
