"""The vocabulary: every design decision of these papers is a field of `Architecture`.

GPT-2 is all defaults, so another family's page shows only what that family decided differently. The list of
fields is frozen by a test: a new one needs a published checkpoint that cannot be expressed without it, and a
mutation test.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from daybreak.errors import DaybreakError, nearest

Block = Literal["pre", "post", "parallel"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Residual = Literal["input", "normed"]
BIASES = frozenset({"qkv", "out", "mlp", "head"})


@dataclass(frozen=True)
class Learned:
    """A trained vector per position, added to the token's (GPT). Position p has row p + `offset` (OPT: 2)."""

    offset: int = 0


@dataclass(frozen=True)
class Rotary:
    """Queries and keys are rotated by an angle proportional to the position (RoFormer, arXiv 2104.09864).

    `width` components of each head turn, the rest stay. `pairs` says which two components form a plane:
    `neighbours` (2j, 2j + 1) as in GPT-J, `halves` (j, j + width / 2) as in GPT-NeoX.
    """

    width: int
    pairs: Literal["neighbours", "halves"] = "halves"
    base: float = 10000.0


@dataclass(frozen=True)
class Alibi:
    """No position vectors; scores fall linearly with distance, with one slope per head (arXiv 2108.12409)."""


Positions = Learned | Rotary | Alibi


@dataclass(frozen=True)
class Architecture:
    """One decoder-only transformer, described by the decisions that were taken. Raises `DaybreakError` if
    they conflict.
    """

    vocabulary: int = 50257
    """Rows of the token embedding; may exceed what the tokenizer knows."""
    context: int = 1024
    """Longest text in tokens that training used; rows of a learned position table."""
    layers: int = 12
    width: int = 768
    """Components of the residual stream."""
    heads: int = 12
    inner: int = 3072
    """Components inside the MLP."""
    embedding_width: int | None = None
    """Components of the token embedding where it differs from `width`; two projections bridge them
    (OPT-350m).
    """
    positions: Positions = Learned()
    block: Block = "pre"
    """`pre`: x + f(norm(x)); `post`: norm(x + f(x)); `parallel`: x + attention(norm(x)) + mlp(norm'(x))."""
    shared_norm: bool = False
    """In a parallel block attention and MLP read the same norm (GPT-J) instead of one each (GPT-NeoX)."""
    residual: Residual = "input"
    """What is carried past a sublayer of a `pre` block: its input, or the normed input (an option of BLOOM;
    GLM-130B).
    """
    residual_scale: float = 1.0
    """Factor on what is carried past a sublayer (DeepNorm's alpha, arXiv 2203.00555)."""
    embedding_norm: bool = False
    """A norm right after the embedding (BLOOM)."""
    final_norm: bool = True
    """A norm before the head."""
    norm_eps: float = 1e-5
    norm_affine: bool = True
    """Norms have a gain and a bias of their own."""
    activation: Activation = "gelu_tanh"
    windows: tuple[int | None, ...] = (None,)
    """How many latest keys, itself included, a query sees, by layer and repeated over the layers; None: all.
    """
    scaled_scores: bool = True
    """Scores are divided by the square root of the head's width (GPT-Neo does not)."""
    layer_scaled_scores: bool = False
    """Scores are further divided by the layer's number, counted from 1 (an option of GPT-2)."""
    biases: frozenset[str] = frozenset({"qkv", "out", "mlp"})
    """Which linear maps add a bias: `qkv`, `out` (attention's output), `mlp`, `head`."""
    tied: bool = True
    """The head's matrix is the token embedding."""

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("vocabulary", "context", "layers", "width", "heads", "inner"):
            _positive(name, getattr(self, name))
        if self.embedding_width is not None:
            _positive("embedding_width", self.embedding_width)
        if self.width % self.heads:
            raise DaybreakError(f"width {self.width} is not divisible by {self.heads} heads")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise DaybreakError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )
        if unknown := self.biases - BIASES:
            raise DaybreakError(f"biases names {sorted(unknown)}; known are {sorted(BIASES)}")
        if not self.windows or not all(window is None or _is_count(window) for window in self.windows):
            raise DaybreakError(
                f"windows is {self.windows}; give positive numbers of keys, or None for all keys"
            )
        self._check_block()
        self._check_rotary()

    def _check_types(self) -> None:
        kinds = {"windows": (tuple,), "biases": (frozenset,), "positions": (Learned, Rotary, Alibi)}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and not isinstance(value, bool):
                raise DaybreakError(f"{field.name} is {value!r}; it must be true or false")
            if field.type == "float" and not _is_positive(value):
                raise DaybreakError(f"{field.name} is {value!r}; it must be a positive number")
            if field.name in kinds and not isinstance(value, kinds[field.name]):
                raise DaybreakError(f"{field.name} is {value!r}; it must be of type {field.type}")

    def _check_block(self) -> None:
        if self.shared_norm and self.block != "parallel":
            raise DaybreakError("shared_norm needs block 'parallel': other blocks have two norms in sequence")
        if self.block != "pre" and (self.residual != "input" or self.residual_scale != 1.0):
            raise DaybreakError(f"residual and residual_scale belong to block 'pre', not {self.block!r}")
        if "head" in self.biases and self.tied:
            raise DaybreakError("a tied head has no bias: set tied=False or leave 'head' out of biases")

    def _check_rotary(self) -> None:
        if isinstance(self.positions, Learned):
            if not (self.positions.offset == 0 or _is_count(self.positions.offset)):
                raise DaybreakError(
                    f"offset of learned positions is {self.positions.offset}; it must be 0 or more"
                )
        elif isinstance(self.positions, Rotary):
            width = self.positions.width
            if not _is_count(width) or width % 2 or width > self.head_width:
                raise DaybreakError(
                    f"rotary width {width} must be even, 2 or more, and at most the head's {self.head_width}"
                )
            if self.positions.pairs not in ("neighbours", "halves"):
                raise DaybreakError(
                    f"rotary pairs is {self.positions.pairs!r}; it must be neighbours or halves"
                )
            if not _is_positive(self.positions.base):
                raise DaybreakError(f"rotary base is {self.positions.base}; it must be positive")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def window(self, layer: int) -> int | None:
        """Keys that layer `layer` (from 0) sees, or None for all."""
        return self.windows[layer % len(self.windows)]

    def spelled_out(self) -> Architecture:
        """The same with one window per layer: two architectures that compute the same are then equal."""
        return dataclasses.replace(self, windows=tuple(map(self.window, range(self.layers))))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that `from_dict` reads back."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["positions"] = {
            "kind": type(self.positions).__name__.lower(),
            **dataclasses.asdict(self.positions),
        }
        data["windows"] = list(self.windows)
        data["biases"] = sorted(self.biases)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_dict`; missing fields take defaults, unknown ones raise `DaybreakError`."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in data:
            if key not in known:
                raise DaybreakError(f"unknown field {key!r} of an architecture{nearest(key, known)}")
        values = dict(data)
        for name, kind in (("positions", _positions), ("windows", tuple), ("biases", frozenset)):
            if name in values:
                try:
                    values[name] = kind(values[name])
                except (KeyError, TypeError, ValueError) as error:
                    raise DaybreakError(f"{name} of an architecture is {values[name]!r}: {error}") from error
        return cls(**values)


def _positions(data: Mapping[str, Any]) -> Positions:
    parts = dict(data)
    found: Positions = _POSITIONS[parts.pop("kind")](**parts)
    return found


_POSITIONS: dict[str, Any] = {"learned": Learned, "rotary": Rotary, "alibi": Alibi}
_CHOICES: dict[str, tuple[str, ...]] = {
    "block": ("pre", "post", "parallel"),
    "activation": ("gelu", "gelu_tanh", "relu", "silu"),
    "residual": ("input", "normed"),
}


def _positive(name: str, value: object) -> None:
    if not _is_count(value):
        raise DaybreakError(f"{name} is {value!r}; it must be a whole number of at least 1")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    )
