"""How a checkpoint names and lays out the weights: one table per family, read in both directions.

A `Rule` ties a name in the file (`theirs`) to one or more parameters of the decoder (`ours`) through a
`Layout`. `{i}` stands for the layer. Because loading and saving read the same line, they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from daybreak.architecture import Architecture

if TYPE_CHECKING:
    from torch import Tensor


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How one tensor of a file holds one or more of ours."""

    name: str
    split: Callable[[Tensor, Architecture], list[Tensor]]
    """The tensor of the file into ours, views of it where possible."""
    join: Callable[[Sequence[Tensor], Architecture], Tensor]
    """The exact inverse."""
    shape: Callable[[Sequence[Shape]], Shape]
    """The shape that `join` gives to tensors of these shapes."""


def _concatenate(parts: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.cat(list(parts))


def _stacked(shapes: Sequence[Shape]) -> Shape:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _split_heads(tensor: Tensor, architecture: Architecture) -> list[Tensor]:
    # [heads * 3 * head_width, ...] -> three of [heads * head_width, ...]
    rest = tensor.shape[1:]
    parts = tensor.view(architecture.heads, 3, architecture.head_width, *rest)
    return [parts[:, k].reshape(-1, *rest) for k in range(3)]


def _join_heads(parts: Sequence[Tensor], architecture: Architecture) -> Tensor:
    import torch

    rest = parts[0].shape[1:]
    shape = (architecture.heads, architecture.head_width, *rest)
    return torch.stack([part.reshape(shape) for part in parts], dim=1).reshape(-1, *rest)


SAME = Layout("same", lambda t, a: [t], lambda p, a: p[0], lambda s: s[0])
"""Stored as `torch.nn.Linear` stores it: [outputs, inputs]."""

TRANSPOSED = Layout("transposed", lambda t, a: [t.t()], lambda p, a: p[0].t(), lambda s: s[0][::-1])
"""[inputs, outputs], as the `Conv1D` of GPT and GPT-2 stores it."""

THIRDS = Layout("thirds", lambda t, a: list(t.chunk(3)), lambda p, a: _concatenate(p), _stacked)
"""Queries, keys and values one after another along the outputs."""

HALVES = Layout("halves", lambda t, a: list(t.chunk(2)), lambda p, a: _concatenate(p), _stacked)
"""The two maps of a gated MLP one after another along the outputs (GLM-130B)."""

TRANSPOSED_THIRDS = Layout(
    "transposed thirds",
    lambda t, a: [part.t() for part in t.chunk(3, dim=1)],
    lambda p, a: _concatenate(p).t(),
    lambda s: _stacked(s)[::-1],
)
"""The same in `Conv1D` orientation: [inputs, 3 * width]."""

PER_HEAD = Layout("per head", _split_heads, _join_heads, _stacked)
"""Along the outputs head by head, each with its queries, keys and values (GPT-NeoX, BLOOM)."""


def along_outputs(layout: Layout) -> Layout:
    """How the same file lays out what has one row per output, as biases do: its maps in the same order, never
    turned.
    """
    return {TRANSPOSED.name: SAME, TRANSPOSED_THIRDS.name: THIRDS}.get(layout.name, layout)


def _interleaved(heads: Callable[[Architecture], int]) -> Layout:
    """Rows of each head with their two halves interleaved, 0, d/2, 1, d/2 + 1, ..., for code that turns
    neighbouring components."""

    def split(tensor: Tensor, architecture: Architecture) -> list[Tensor]:
        pairs = tensor.reshape(heads(architecture), -1, 2, *tensor.shape[1:])
        return [pairs.transpose(1, 2).reshape(tensor.shape)]

    def join(parts: Sequence[Tensor], architecture: Architecture) -> Tensor:
        halves = parts[0].reshape(heads(architecture), 2, -1, *parts[0].shape[1:])
        return halves.transpose(1, 2).reshape(parts[0].shape)

    return Layout("interleaved", split, join, lambda shapes: shapes[0])


INTERLEAVED = _interleaved(lambda a: a.heads)
"""Queries as llama.cpp's files hold them."""
INTERLEAVED_KEYS = _interleaved(lambda a: a.key_heads or a.heads)
"""The same for keys, whose heads may be fewer."""


@dataclass(frozen=True)
class Rule:
    """One line of a family's table. `also` lists older spellings of the name, read but never written."""

    theirs: str
    ours: str | tuple[str, ...]
    layout: Layout = SAME
    also: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The decoder's parameters this rule fills, with `{i}` left in."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def at(self, layer: int) -> Rule:
        """The rule with `{i}` replaced by `layer`."""

        def fill(text: str) -> str:
            return text.replace("{i}", str(layer))

        return Rule(fill(self.theirs), tuple(map(fill, self.names)), self.layout, tuple(map(fill, self.also)))


def expand(
    rules: Iterable[Rule],
    layers: int,
    parameters: Iterable[str],
    prefix: str = "",
    older_prefixes: Sequence[str] = (),
) -> list[Rule]:
    """The rules of one model: repeated over its layers, prefixed, and only those whose parameters the model
    has.

    A family's table lists every tensor any of its sizes can hold; a model without, say, biases of queries
    simply lacks these parameters, and the rule with them. The head stands outside the prefix.
    """
    present = set(parameters)
    written = [
        line
        for rule in rules
        for line in ([rule.at(i) for i in range(layers)] if "{i}" in rule.theirs else [rule.at(0)])
    ]
    return [_prefixed(rule, prefix, older_prefixes) for rule in written if present.issuperset(rule.names)]


def _prefixed(rule: Rule, prefix: str, older: Sequence[str]) -> Rule:
    if rule.names[0].startswith("head."):
        return rule
    also = tuple(before + name for before in (prefix, *older) for name in (rule.theirs, *rule.also))
    return replace(rule, theirs=prefix + rule.theirs, also=also[1:])


def linear(theirs: str, ours: str, layout: Layout = SAME) -> list[Rule]:
    """Weight and bias of a linear map; only the weight has an orientation."""
    return [Rule(f"{theirs}.weight", f"{ours}.weight", layout), Rule(f"{theirs}.bias", f"{ours}.bias")]


def norm(theirs: str, ours: str) -> list[Rule]:
    """Gain and bias of a norm."""
    return linear(theirs, ours)


def fused(theirs: str, ours: str, weight: Layout, bias: Layout) -> list[Rule]:
    """Queries, keys and values in one tensor of the file; `ours` is the attention they belong to."""
    parts = ("query", "key", "value")
    return [
        Rule(f"{theirs}.weight", tuple(f"{ours}.{part}.weight" for part in parts), weight),
        Rule(f"{theirs}.bias", tuple(f"{ours}.{part}.bias" for part in parts), bias),
    ]


@dataclass(frozen=True)
class Cut:
    """How tensor-parallel training cuts a tensor into one piece for each process (Megatron-LM, arXiv
    1909.08053, section 3).
    """

    dim: int
    """0: the outputs, or the rows of a table; 1: the inputs."""
    parts: int = 1
    """Equal parts along `dim` that are cut each by itself: every process has a piece of each, in this order.
    """

    def whole(self, shape: Shape, pieces: int) -> Shape:
        """The shape of the tensor that was cut into so many pieces of this shape."""
        return tuple(length * pieces if at == self.dim else length for at, length in enumerate(shape))

    def piece(self, shape: Shape, pieces: int) -> Shape:
        """The inverse; lengths are rounded down."""
        return tuple(length // pieces if at == self.dim else length for at, length in enumerate(shape))


ROWS = Cut(0)
"""Piece after piece along the outputs (column-parallel maps, vocabulary-parallel tables)."""
HALVED_ROWS = Cut(0, 2)
"""Each piece holds a part of both maps of a gated MLP, one after another."""
THIRDS_OF_ROWS = Cut(0, 3)
"""Each piece holds its queries, keys and values one after another."""
COLUMNS = Cut(1)
"""Piece beside piece along the inputs (row-parallel maps)."""
