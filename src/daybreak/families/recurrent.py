"""What the page of a recurrent family says: no attention, but a state that is carried from token to token.

They stand beside the one decoder. `Architecture` describes transformers and has no word for an LSTM; an
LSTM's few decisions have a description of their own here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from daybreak.errors import DaybreakError, nearest
from daybreak.rules import Rule

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Lstm:
    """An LSTM language model: embedding, LSTM layers, and the embedding again as the head. Raises
    `DaybreakError` for values that make no sense.
    """

    vocabulary: int = 60000
    """Rows of the token embedding."""
    width: int = 400
    """Components of the token embedding and of the last layer's output, which the tied head makes equal."""
    hidden: int = 1150
    """Components of the state of every other layer."""
    layers: int = 3
    context: int = 70
    """Tokens through which gradients flow in training (back-propagation through time); reading has no end."""
    direction: Direction = "forward"
    """`backward`: texts are read, and predicted, from their last token to their first."""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "hidden", "layers", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DaybreakError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if self.direction not in ("forward", "backward"):
            raise DaybreakError(f"direction is {self.direction!r}; it must be forward or backward")

    def widths(self, layer: int) -> tuple[int, int]:
        """Components that layer `layer` (from 0) reads, and those of its state."""
        reads = self.width if layer == 0 else self.hidden
        return reads, self.width if layer == self.layers - 1 else self.hidden

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary with all fields."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Dropouts:
    """Shares that are left out in training, each in its own way (AWD-LSTM, arXiv 1708.02182, section 4)."""

    embedding: float = 0.02
    """Words: whole rows of the token embedding."""
    input: float = 0.25
    """Components of what the first layer reads, the same ones at every token of a window."""
    hidden: float = 0.15
    """The same between the layers."""
    output: float = 0.1
    """The same of what the head reads."""
    weight: float = 0.2
    """Weights from the state to the gates of each layer, the same ones at every token (DropConnect)."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
                raise DaybreakError(f"dropout of {name} is {value!r}; it must be from 0 to below 1")

    def times(self, factor: float) -> Dropouts:
        """All of them multiplied (fastai's drop_mult)."""
        return Dropouts(**{name: value * factor for name, value in dataclasses.asdict(self).items()})


NO_DROPOUT = Dropouts(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class RecurrentSize:
    """One published model of a recurrent family."""

    changes: Mapping[str, Any]
    """Fields of `Lstm` in which it differs from the family's base."""
    parameters: int
    """With the tied matrix counted once; a test compares it with the model."""
    note: str = ""
    hub: str | None = None


@dataclass(frozen=True)
class RecurrentFamily:
    """One page: what was decided, how checkpoints spell the weights, in which sizes it came."""

    name: str
    title: str
    year: int
    paper: str
    story: str
    model_type: str
    """`model_type` in config.json."""
    base: Lstm
    sizes: Mapping[str, RecurrentSize]
    rules: tuple[Rule, ...]
    """Names in the file and in the model, `{i}` for the layer."""
    twins: Mapping[str, str]
    """Names in files of tensors that are there twice -> the name under which they are read."""
    stale: tuple[str, ...]
    """Names in older files of what was left of a step's dropout; passed over, never written."""
    shells: Mapping[str, str]
    """How names begin in files of a part (an encoder alone) or of more (a classifier) -> as in `rules`."""
    specials: tuple[str, ...]
    """The vocabulary's first words, which no text spells."""
    unknown: str
    pad: str
    start: str
    """The special word in front of every text."""
    language_dropouts: Dropouts
    classifier_dropouts: Dropouts
    special_tokens: Mapping[str, int]

    def shape(self, size: str | None = None, **changes: Any) -> Lstm:
        """The base, or a published size, with `changes` applied. Raises `DaybreakError` for unknown sizes or
        fields."""
        if size is not None and size not in self.sizes:
            hint = nearest(size, self.sizes)
            raise DaybreakError(f"{self.name} has no size {size!r}{hint}; it has {', '.join(self.sizes)}")
        for name in changes:
            if name not in Lstm.__dataclass_fields__:
                hint = nearest(name, Lstm.__dataclass_fields__)
                known = ", ".join(Lstm.__dataclass_fields__)
                raise DaybreakError(f"an LSTM has no field {name!r}{hint}; it has {known}")
        own = {} if size is None else self.sizes[size].changes
        return dataclasses.replace(self.base, **{**own, **changes})

    def write(self, shape: Lstm) -> dict[str, Any]:
        """config.json of a model of this shape."""
        return {"model_type": self.model_type, **shape.to_dict()}

    def read(self, config: Mapping[str, Any]) -> Lstm:
        """The inverse of `write`. Raises `DaybreakError` for a field that is missing or makes no sense."""
        fields = Lstm.__dataclass_fields__
        if missing := [name for name in fields if name not in config]:
            raise DaybreakError(f"config.json of {self.title} has no {missing[0]!r}; fetch it again")
        return Lstm(**{name: config[name] for name in fields})


def count(shape: Lstm) -> dict[str, int]:
    """Parameters by what they do: `embedding` (the head's matrix, too), `recurrent`, `head` (its bias)."""
    recurrent = 0
    for layer in range(shape.layers):
        reads, state = shape.widths(layer)
        recurrent += 4 * state * (reads + state) + 8 * state  # four gates, two biases each
    return {
        "embedding": shape.vocabulary * shape.width,
        "recurrent": recurrent,
        "head": shape.vocabulary,
    }
