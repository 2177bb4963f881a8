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
Norm = Literal["layer", "rms"]
BIASES = frozenset({"qkv", "out", "mlp", "head"})


@dataclass(frozen=True)
class Learned:
    """A trained vector per position, added to the token's (GPT). Position p has row p + `offset` (OPT: 2).

    With `blocks` a second table of the same size holds a vector per place within a piece (GLM, section 2.1);
    such places count from 1, so both tables have a row more than the context.
    """

    offset: int = 0
    blocks: bool = False


@dataclass(frozen=True)
class Rotary:
    """Queries and keys are rotated by an angle proportional to the position (RoFormer, arXiv 2104.09864).

    `width` components of each head turn, the rest stay. `pairs` says which two components form a plane:
    `neighbours` (2j, 2j + 1) as in GPT-J, `halves` (j, j + width / 2) as in GPT-NeoX.
    With `blocks` the next `width` components turn by the place within a piece (ChatGLM).
    With `half_frequencies` the frequencies are rounded to float16, as some published code holds them.
    """

    width: int
    pairs: Literal["neighbours", "halves"] = "halves"
    base: float = 10000.0
    blocks: bool = False
    half_frequencies: bool = False


@dataclass(frozen=True)
class Alibi:
    """No position vectors; scores fall linearly with distance, with one slope per head (arXiv 2108.12409)."""


Positions = Learned | Rotary | Alibi


@dataclass(frozen=True)
class Blanks:
    """A text with blanks is read in both directions, and the pieces that fill them are then written from left
    to right (GLM, arXiv 2103.10360, section 2.1). The fields are token ids.

    Positions of a piece stand still at its blank; what moves is the place within the piece.
    """

    start: int
    """Opens a piece ([sop]); the context ends before the first one."""
    end: int
    """Closes a piece ([eop]); predicted, never read."""
    mask: int
    """A short blank ([MASK])."""
    rest: int
    """The blank at which the text goes on to its end ([gMASK])."""
    sentence: int | None = None
    """The blank of whole sentences ([sMASK])."""
    runs_on: bool = False
    """After a [gMASK] positions run on instead of standing still (GLM-130B)."""

    @property
    def masks(self) -> tuple[int, ...]:
        """The tokens that stand for a blank."""
        return (self.mask, self.rest) if self.sentence is None else (self.mask, self.sentence, self.rest)


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
    key_heads: int | None = None
    """Heads of keys and values where they are fewer than those of queries, which then share them in turn
    (grouped-query attention, arXiv 2305.13245).
    """
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
    norm: Norm = "layer"
    """`layer`: LayerNorm; `rms`: divided by the root of the mean square, without bias (arXiv 1910.07467)."""
    norm_eps: float = 1e-5
    norm_affine: bool = True
    """Norms have a gain and a bias of their own."""
    activation: Activation = "gelu_tanh"
    gated: bool = False
    """The MLP multiplies its inner components by the activation of a second map (GLU, arXiv 2002.05202)."""
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
    blanks: Blanks | None = None
    """Texts are a context with blanks, then pieces that fill them (GLM); None: plain left to right."""

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
        self._check_heads()
        self._check_blanks()

    def _check_types(self) -> None:
        kinds: dict[str, tuple[type, ...]] = {
            "windows": (tuple,),
            "biases": (frozenset,),
            "positions": (Learned, Rotary, Alibi),
            "blanks": (Blanks, type(None)),
        }
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
            rows = 2 if self.positions.blocks else 1
            if not _is_count(width) or width % 2 or rows * width > self.head_width:
                most = "half of the head's" if rows == 2 else "the head's"
                raise DaybreakError(
                    f"rotary width {width} must be even, 2 or more, and at most {most} {self.head_width}"
                )
            if self.positions.pairs not in ("neighbours", "halves"):
                raise DaybreakError(
                    f"rotary pairs is {self.positions.pairs!r}; it must be neighbours or halves"
                )
            if not _is_positive(self.positions.base):
                raise DaybreakError(f"rotary base is {self.positions.base}; it must be positive")
        switches = {} if isinstance(self.positions, Alibi) else dataclasses.asdict(self.positions)
        for name in ("blocks", "half_frequencies"):
            if not isinstance(switches.get(name, False), bool):
                raise DaybreakError(f"{name} of positions is {switches[name]!r}; it must be true or false")
        if switches.get("blocks") and switches.get("offset"):
            raise DaybreakError("learned positions have blocks or an offset, not both")

    def _check_heads(self) -> None:
        if self.key_heads is None:
            return
        _positive("key_heads", self.key_heads)
        if self.heads % self.key_heads:
            raise DaybreakError(
                f"{self.heads} heads cannot share {self.key_heads} heads of keys evenly; key_heads must "
                "divide heads"
            )

    def _check_blanks(self) -> None:
        if not isinstance(self.positions, Alibi) and self.positions.blocks and self.blanks is None:
            raise DaybreakError("positions with blocks need blanks: without pieces there is no place in one")
        if self.blanks is None:
            return
        ids = {name: value for name, value in dataclasses.asdict(self.blanks).items() if name != "runs_on"}
        for name, value in ids.items():
            if not (name == "sentence" and value is None) and not _is_id(value, self.vocabulary):
                raise DaybreakError(
                    f"{name} of blanks is {value!r}; it must be a token id below the vocabulary's "
                    f"{self.vocabulary}"
                )
        marks = [*self.blanks.masks, self.blanks.start]
        if len(set(marks)) < len(marks):
            raise DaybreakError(f"start and masks of blanks are {marks}; each must be a token of its own")
        if any(window is not None for window in self.windows) or isinstance(self.positions, Alibi):
            raise DaybreakError("blanks go with neither windows nor ALiBi: a context has no direction")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def key_width(self) -> int:
        """Components of all keys of a token, and of all values."""
        return (self.key_heads or self.heads) * self.head_width

    @property
    def has_blocks(self) -> bool:
        """Places within a piece are a second row of positions."""
        return not isinstance(self.positions, Alibi) and self.positions.blocks

    def window(self, layer: int) -> int | None:
        """Keys that layer `layer` (from 0) sees, or None for all."""
        return self.windows[layer % len(self.windows)]

    def spelled_out(self) -> Architecture:
        """The same with one window per layer and the heads of keys counted: two architectures that compute
        the same are then equal.
        """
        windows = tuple(map(self.window, range(self.layers)))
        return dataclasses.replace(self, windows=windows, key_heads=self.key_heads or self.heads)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that `from_dict` reads back."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["positions"] = {
            "kind": type(self.positions).__name__.lower(),
            **dataclasses.asdict(self.positions),
        }
        data["blanks"] = None if self.blanks is None else dataclasses.asdict(self.blanks)
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
        kinds = (("positions", _positions), ("windows", tuple), ("biases", frozenset), ("blanks", _blanks))
        for name, kind in kinds:
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


def _blanks(data: Mapping[str, Any] | None) -> Blanks | None:
    return None if data is None else Blanks(**data)


_POSITIONS: dict[str, Any] = {"learned": Learned, "rotary": Rotary, "alibi": Alibi}
_CHOICES: dict[str, tuple[str, ...]] = {
    "block": ("pre", "post", "parallel"),
    "activation": ("gelu", "gelu_tanh", "relu", "silu"),
    "residual": ("input", "normed"),
    "norm": ("layer", "rms"),
}


def _positive(name: str, value: object) -> None:
    if not _is_count(value):
        raise DaybreakError(f"{name} is {value!r}; it must be a whole number of at least 1")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_id(value: object, vocabulary: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocabulary


def _is_positive(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    )
