"""Recurrent models in words: what `families`, `describe` and `diff` say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from daybreak import families, parameters
from daybreak.architecture import Architecture
from daybreak.checkpoint.config import CONFIG, read_config
from daybreak.compare.words import WORDS
from daybreak.families.recurrent import Lstm, RecurrentFamily, count

NETWORK = "network"


@dataclass(frozen=True)
class RecurrentSubject:
    """A named recurrent model, as `Subject` for transformers."""

    name: str
    kind: Literal["family", "model", "folder"]
    family: RecurrentFamily
    architecture: Lstm
    special_tokens: Mapping[str, int]
    hub: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One decision: its title, where `describe` puts it, what it says, and whether it only says how large."""

    title: str
    room: str
    say: Callable[[Lstm], str]
    scale: bool = False


LINES: dict[str, Line] = {
    "vocabulary": Line("vocabulary", "shape", lambda a: f"{a.vocabulary:,} words"),
    "context": Line(
        "context",
        "shape",
        lambda a: f"no end: a state is carried on; gradients flow through {a.context:,} tokens in training",
    ),
    "layers": Line("layers", "shape", lambda a: f"{a.layers:,}, of LSTM cells", scale=True),
    "width": Line("width", "shape", lambda a: f"{a.width:,} components of a word's vector", scale=True),
    "hidden": Line("state", "shape", lambda a: f"{a.hidden:,} components between the layers", scale=True),
    "positions": Line("positions", "positions", lambda a: "none: the order is that of reading"),
    "direction": Line(
        "direction",
        "positions",
        lambda a: (
            "texts are read from their end to their start"
            if a.direction == "backward"
            else "texts are read from their start to their end"
        ),
    ),
    "windows": Line(
        "sight",
        "recurrence",
        lambda a: (
            "none: what was read before is known through a state of fixed size alone, not looked at again"
        ),
    ),
    "block": Line(
        "block", "recurrence", lambda a: "a layer's output is the next one's input; nothing is added"
    ),
    "gates": Line(
        "gates",
        "recurrence",
        lambda a: "sigmoids decide what enters the cell, what stays and what leaves it; tanh bounds it",
    ),
    "norm": Line("norm", "recurrence", lambda a: "none"),
    "dropout": Line(
        "dropout",
        "recurrence",
        lambda a: "of words, of components (the same at every token) and of weights from state to state",
    ),
    "tied": Line("head", "embedding and head", lambda a: "the token embedding again (tied), with a bias"),
}
"""In the order in which `describe` prints them; names that decoders have, too, are the same decision."""


def find_recurrent(name: str) -> RecurrentSubject | None:
    """The recurrent family, published model or folder of this name; None: it is something else."""
    if (Path(name) / CONFIG).is_file():
        return _folder(Path(name))
    if (page := families.recurrent(name)) is not None:
        return RecurrentSubject(page.name, "family", page, page.base, page.special_tokens)
    if (found := families.find_recurrent_size(name)) is not None:
        page, size, entry = found
        tokens = page.special_tokens
        return RecurrentSubject(size, "model", page, page.shape(size), tokens, entry.hub, entry.note)
    return None


def _folder(path: Path) -> RecurrentSubject | None:
    config = read_config(path)
    page = families.recurrent(config["model_type"])
    if page is None:
        return None
    special = {key: config[key] for key in page.special_tokens if isinstance(config.get(key), int)}
    return RecurrentSubject(str(path), "folder", page, page.read(config), special)


def told(page: RecurrentFamily) -> dict[str, Any]:
    """What `families` says of it."""
    return {
        "name": page.name,
        "title": page.title,
        "year": page.year,
        "story": page.story,
        "paper": page.paper,
        "sizes": [
            {"name": name, "parameters": size.parameters, "hub": size.hub, "note": size.note}
            for name, size in page.sizes.items()
        ],
    }


def described(subject: RecurrentSubject) -> dict[str, Any]:
    """What `describe` says of it, with the keys that it has for transformers; `state_bytes` in the place of a
    cache's."""
    shape, whole = subject.architecture, subject.kind != "family"
    rooms: dict[str, list[dict[str, str]]] = {}
    for field, line in LINES.items():
        if whole or not line.scale:
            entry = {"field": field, "title": line.title, "words": line.say(shape)}
            rooms.setdefault(line.room, []).append(entry)
    known: dict[str, Any] = {
        "name": subject.name,
        "kind": subject.kind,
        "family": told(subject.family),
        "decisions": rooms,
        "architecture": shape.to_dict(),
        "special_tokens": dict(subject.special_tokens),
        "starts_with_bos": True,
    }
    return {**known, **_numbers(subject)} if whole else known


def _numbers(subject: RecurrentSubject) -> dict[str, Any]:
    shape = subject.architecture
    parts = count(shape)
    total = sum(parts.values())
    state = 2 * sum(shape.widths(layer)[1] for layer in range(shape.layers))
    return {
        "hub": subject.hub,
        "note": subject.note,
        "parameters": {"total": total, "non_embedding": parts["recurrent"], **parts},
        "weight_bytes": {
            name: total * parameters.BITS[name] // 8 for name in ("float32", "bfloat16", "float16")
        },
        "state_bytes": {"float32": 4 * state},
    }


def changes(one: RecurrentSubject | Any, other: RecurrentSubject | Any) -> list[dict[str, Any]]:
    """What differs where at least one side is recurrent: first the network itself, then each decision that
    both sides have a word for; between two families sizes are left out."""
    sides = [one.architecture, other.architecture]
    families_only = one.kind == other.kind == "family"
    found = []
    if any(isinstance(side, Architecture) for side in sides):
        found.append(_change(NETWORK, NETWORK, sides, [_network(side) for side in sides]))
    for field, line in LINES.items():
        words = [_words(field, side) for side in sides]
        if words[0] != words[1] and None not in words and not (line.scale and families_only):
            found.append(_change(field, line.title, sides, words))
    return found


def _words(field: str, side: Lstm | Architecture) -> str | None:
    if isinstance(side, Lstm):
        return LINES[field].say(side)
    return WORDS[field].say(side) if field in WORDS else None


def _network(side: Lstm | Architecture) -> str:
    if isinstance(side, Lstm):
        return "an LSTM: one token after another, each changing a state that the next one finds"
    return "a transformer: all tokens at once, each looking at those before it by attention"


def _change(field: str, title: str, sides: list[Any], words: list[Any]) -> dict[str, Any]:
    values = [side.to_dict().get(field) for side in sides]
    return {"field": field, "title": title, "first": values[0], "second": values[1], "words": words}
