"""What changed between two models: a loop over the fields of `Architecture`."""

from __future__ import annotations

from typing import Any

from daybreak import parameters
from daybreak.compare import recurrent
from daybreak.compare.recurrent import RecurrentSubject
from daybreak.compare.subject import Subject, find
from daybreak.compare.words import WORDS, Word
from daybreak.families.recurrent import Lstm, count


def differences(first: str, second: str) -> dict[str, Any]:
    """The fields in which two families, published models or folders differ.

    Keys: `first` and `second` (`name`, `kind`, `title`, `year`; of models and folders `parameters`) and
    `changes`, a list of `field`, `title`, `first`, `second` (values) and `words` (two sentences). Between two
    families the fields that only say how large a model is are left out. Where one side is recurrent, the
    first change is `network`. Raises `DaybreakError` where nothing has that name.
    """
    one, other = _found(first), _found(second)
    if isinstance(one, RecurrentSubject) or isinstance(other, RecurrentSubject):
        return {"first": _side(one), "second": _side(other), "changes": recurrent.changes(one, other)}
    decisions_only = one.kind == other.kind == "family"
    changes = [
        _change(field, word, one, other)
        for field, word in WORDS.items()
        if not (decisions_only and word.scale) and _differ(field, word, one, other)
    ]
    return {"first": _side(one), "second": _side(other), "changes": changes}


def _found(name: str) -> Subject | RecurrentSubject:
    return recurrent.find_recurrent(name) or find(name, prefer="family")


def _differ(field: str, word: Word, one: Subject, other: Subject) -> bool:
    here, there = one.architecture, other.architecture
    # Windows written out for every layer and the same as a pattern are different values of one meaning.
    return getattr(here, field) != getattr(there, field) and word.say(here) != word.say(there)


def _change(field: str, word: Word, one: Subject, other: Subject) -> dict[str, Any]:
    return {
        "field": field,
        "title": word.title,
        "first": one.architecture.to_dict()[field],
        "second": other.architecture.to_dict()[field],
        "words": [word.say(one.architecture), word.say(other.architecture)],
    }


def _side(subject: Subject | RecurrentSubject) -> dict[str, Any]:
    side: dict[str, Any] = {
        "name": subject.name,
        "kind": subject.kind,
        "title": subject.family.title,
        "year": subject.family.year,
    }
    if subject.kind != "family":
        shape = subject.architecture
        counted = sum(count(shape).values()) if isinstance(shape, Lstm) else parameters.count(shape)
        side["parameters"] = counted
    return side
