"""What a low-rank adapter is to be (LoRA, Hu et al., arXiv 2106.09685), without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from daybreak.architecture import Architecture
from daybreak.errors import DaybreakError, nearest

GROUPS = {
    "attention": ("query", "key", "value", "out"),
    "mlp": ("gate", "up", "down"),
}
"""Words for several maps of a block; those that an architecture lacks are left out."""


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters: every target's W becomes W + scale · B A, and only A and B are trained."""

    rank: int = 8
    """Rows of A, and columns of B."""
    alpha: float = 16.0
    """What B A is multiplied by is alpha / rank."""
    dropout: float = 0.0
    """Share of what A reads that is set to zero while training."""
    targets: tuple[str, ...] = ("attention", "mlp")
    """Which maps: query, key, value, out, gate, up, down, head, tokens, project_in, project_out; attention
    and mlp stand for all of theirs; blocks.3.mlp.up is a single one. QLoRA takes all maps of the blocks.
    """
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (rank-stabilised, arXiv 2312.03732)."""
    shared: bool = False
    """Queries, keys and values read one A, as they do in PEFT where a family stores them as one map; PEFT's
    file then has this rank, and else three times of it.
    """
    whole: tuple[str, ...] = ()
    """Maps of which the adapter has a copy that is trained as a whole, such as head."""

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise DaybreakError(f"rank is {self.rank!r}; it must be a whole number of at least 1")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise DaybreakError(f"alpha is {self.alpha!r}; it must be a positive number")
        if not 0 <= self.dropout < 1:
            raise DaybreakError(f"dropout is {self.dropout!r}; it must be from 0 to below 1")
        if not self.targets:
            raise DaybreakError("an adapter needs targets; say for example attention")


def scale_of(rank: int, alpha: float, rslora: bool) -> float:
    """What B A is multiplied by."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def maps(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """Every map that can have an adapter, by the name of its module: inputs and outputs."""
    a, found = architecture, {}
    narrow = a.embedding_width or a.width
    for layer in range(a.layers):
        attention, mlp = f"blocks.{layer}.attention", f"blocks.{layer}.mlp"
        found[f"{attention}.query"] = found[f"{attention}.out"] = (a.width, a.width)
        found[f"{attention}.key"] = found[f"{attention}.value"] = (a.width, a.key_width)
        if a.gated:
            found[f"{mlp}.gate"] = (a.width, a.inner)
        found[f"{mlp}.up"], found[f"{mlp}.down"] = (a.width, a.inner), (a.inner, a.width)
    if a.embedding_width is not None:
        found["project_in"], found["project_out"] = (narrow, a.width), (a.width, narrow)
    found["tied_head" if a.tied else "head"] = (narrow, a.vocabulary)
    found["tokens"] = (a.vocabulary, narrow)
    return found


def chosen(architecture: Architecture, targets: Iterable[str]) -> list[str]:
    """The names of the maps that `targets` mean. Raises `DaybreakError` for a target that there is not."""
    known = maps(architecture)
    spoken = {name: _spoken(name) for name in known}
    found: dict[str, None] = {}
    for target in targets:
        wanted = GROUPS.get(target, (target,))
        own = [name for name in known if name == target or spoken[name] in wanted]
        if not own:
            words = [*GROUPS, *dict.fromkeys(spoken.values())]
            raise DaybreakError(
                f"the model has no map {target!r}{nearest(target, words)}; targets are {', '.join(words)}"
            )
        found.update(dict.fromkeys(own))
    return [name for name in known if name in found]


def described(architecture: Architecture, names: Iterable[str]) -> tuple[str, ...]:
    """The fewest targets that mean the maps of these names; `chosen` gives the names back."""
    left, found = dict.fromkeys(names), []
    known = maps(architecture)
    words = [*GROUPS, *dict.fromkeys(map(_spoken, known))]
    for word in words:
        wanted = GROUPS.get(word, (word,))
        own = [name for name in known if _spoken(name) in wanted]
        if own and all(name in left for name in own):
            found.append(word)
            left = {name: None for name in left if name not in own}
    return (*found, *left)


def _spoken(name: str) -> str:
    return "head" if name == "tied_head" else name.rpartition(".")[2]
