"""What there is to say of a family, a published model or a folder, as data; the command line prints it."""

from __future__ import annotations

from typing import Any

from daybreak import families, parameters
from daybreak.architecture import Architecture
from daybreak.compare import recurrent
from daybreak.compare.subject import Subject, find
from daybreak.compare.words import WORDS
from daybreak.families.family import Family

CACHE_TOKENS = 1000
CACHE_DTYPES = ("float32", "bfloat16")


def overview() -> list[dict[str, Any]]:
    """Every family in the order of history: name, title, year, story, paper and sizes."""
    return [*map(recurrent.told, families.recurrents()), *map(_family, families.everyone())]


def describe(name: str) -> dict[str, Any]:
    """A family, a published model or a local folder in words and numbers.

    Keys: `name`, `kind` (family, model or folder), `family`, `decisions` (by room, each a list of `field`,
    `title`, `words`), `architecture`, `special_tokens`, `starts_with_bos`; of a model or folder also `hub`,
    `note`, `parameters`, `weight_bytes` and `cache_bytes_per_1000_tokens`, and where such
    checkpoints were published `packed_weight_bytes`. Of a recurrent model `state_bytes` stands in the
    place of those of a cache. Raises `DaybreakError` where nothing is called `name`.
    """
    if (other := recurrent.find_recurrent(name)) is not None:
        return recurrent.described(other)
    subject = find(name)
    told: dict[str, Any] = {
        "name": subject.name,
        "kind": subject.kind,
        "family": _family(subject.family),
        "decisions": decisions(subject.architecture, with_scale=subject.kind != "family"),
        "architecture": subject.architecture.to_dict(),
        "special_tokens": dict(subject.special_tokens),
        "starts_with_bos": subject.starts_with_bos,
    }
    return told if subject.kind == "family" else {**told, **_numbers(subject)}


def decisions(architecture: Architecture, *, with_scale: bool = True) -> dict[str, list[dict[str, str]]]:
    """Room -> its fields with title and words; without `with_scale`, sizes such as `layers` are left out."""
    rooms: dict[str, list[dict[str, str]]] = {}
    for field, word in WORDS.items():
        if with_scale or not word.scale:
            line = {"field": field, "title": word.title, "words": word.say(architecture)}
            rooms.setdefault(word.room, []).append(line)
    return rooms


def _numbers(subject: Subject) -> dict[str, Any]:
    architecture = subject.architecture
    parts = parameters.breakdown(architecture)
    names = ("embedding", "positions", "attention", "mlp", "norms", "head")
    return {
        "hub": subject.hub,
        "note": subject.note,
        "parameters": {
            "total": parts.total,
            "non_embedding": parts.non_embedding,
            **{name: getattr(parts, name) for name in names},
        },
        "weight_bytes": {dtype: parameters.weight_bytes(architecture, dtype) for dtype in parameters.BITS},
        **({"packed_weight_bytes": _packed(architecture)} if subject.family.packed else {}),
        "cache_bytes_per_1000_tokens": {
            dtype: parameters.cache_bytes(architecture, CACHE_TOKENS, dtype) for dtype in CACHE_DTYPES
        },
    }


def _packed(architecture: Architecture) -> dict[str, int]:
    return {f"int{bits}": parameters.packed_bytes(architecture, bits) for bits in (8, 4)}


def _family(family: Family) -> dict[str, Any]:
    return {
        "name": family.name,
        "title": family.title,
        "year": family.year,
        "story": family.story,
        "paper": family.paper,
        "sizes": [
            {"name": name, "parameters": size.parameters, "hub": size.hub, "note": size.note}
            for name, size in family.sizes.items()
        ],
    }
