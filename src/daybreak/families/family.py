"""What a family's page says: the shape of every page in this folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from daybreak.architecture import Architecture
from daybreak.errors import DaybreakError, nearest
from daybreak.families.chat import PLAIN, Chat
from daybreak.families.tokenizer import TokenizerDesign
from daybreak.rules import Cut, Rule, Shape


@dataclass(frozen=True)
class Initialisation:
    """Standard deviations of the normal draws of fresh weights; biases start at 0, gains at 1."""

    std: float
    output_std: float
    """For the two maps that write into the residual stream: attention's output and the MLP's second."""
    position_std: float | None = None
    """For a learned position table; None: `std`."""
    xavier: bool = False
    """Both are factors on sqrt(2 / (inputs + outputs)) of each matrix (Glorot and Bengio, 2010)."""
    scaled: tuple[str, ...] = (".attention.out", ".mlp.down")
    """Ends of the names of the maps that `output_std` is for."""


@dataclass(frozen=True)
class Size:
    """One published model of a family."""

    changes: Mapping[str, Any]
    """Fields of `Architecture` in which this size differs from the family's base."""
    parameters: int
    """Published or derived count, tied matrices counted once; a test compares it with the decoder."""
    hub: str | None
    """Repository on the Hugging Face hub; None if the weights were never published."""
    note: str = ""
    special_tokens: Mapping[str, int] | None = None
    """Where they are not the family's."""
    starts_with_bos: bool | None = None
    """Where it is not as in the family."""


@dataclass(frozen=True)
class ArrayRelease:
    """Weights published as bare arrays, before config.json: all in one row, cut by a list of shapes."""

    names: tuple[str, ...]
    """Names of the arrays in order, as `rules` spell them; those with `{i}` follow, layer by layer."""
    config: Callable[[Sequence[Sequence[int]]], dict[str, Any]]
    """The shapes in order -> what config.json would say."""


@dataclass(frozen=True)
class ShardRelease:
    """Weights published as the tensor-parallel shards of training, without config.json."""

    cuts: Mapping[str, Cut]
    """Names in the shards, with `{i}` for the layer -> how they are cut. Every other tensor is whole, and the
    same in all shards.
    """
    recognises: Callable[[Mapping[str, Shape]], bool]
    """Names and shapes of the whole tensors -> are they of this family?"""
    fields: Callable[[Mapping[str, Shape], Mapping[str, Any]], dict[str, Any]]
    """Names and shapes of the whole tensors, and what model_config.json says beside the shards -> the fields
    of `Architecture` that they tell. The inputs of a map may be packed, so only outputs are to be trusted.
    """


@dataclass(frozen=True)
class Family:
    """One page of the history: which decisions were taken, how checkpoints spell them, in which sizes they
    came.
    """

    name: str
    title: str
    year: int
    paper: str
    story: str
    """What this family decided differently, in a sentence or two."""
    model_type: str
    """`model_type` in config.json."""
    hf_class: str
    """The class name that config.json's `architectures` carries."""
    base: Architecture
    sizes: Mapping[str, Size]
    read: Callable[[Mapping[str, Any]], Architecture]
    """config.json -> Architecture; refuses by name what it cannot express."""
    write: Callable[[Architecture], dict[str, Any]]
    """Architecture -> the keys of config.json that `read` reads."""
    rules: tuple[Rule, ...]
    initialisation: Callable[[Architecture], Initialisation]
    prefix: str = ""
    """Leads all names but the head's in a saved file."""
    older_prefixes: tuple[str, ...] = ("",)
    """Prefixes that published files carry instead; read, never written."""
    older_rules: tuple[Rule, ...] = ()
    """Other layouts that published files carry instead of those of `rules`; read, never written."""
    array_release: ArrayRelease | None = None
    """How the weights were published at first, where that was as bare arrays."""
    shard_release: ShardRelease | None = None
    """How the weights were published, where that was as shards of training."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of buffers in published files that are no parameters (masks, rotary tables)."""
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    """Default `bos_token_id`, `eos_token_id`, `pad_token_id` of the published models."""
    starts_with_bos: bool = False
    """Training began every text with the bos token, so prompts need it (OPT)."""
    follows: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    """All fields of an architecture -> those that follow from the others where nothing else is asked for
    (GLM-130B: `residual_scale` from `layers`).
    """
    blank_tokens: Mapping[str, str] = field(default_factory=dict)
    """Fields of `Blanks` -> how the family's tokenizers spell these tokens."""
    frame: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """Special tokens before and behind every text (GLM: [CLS] and the end of the text): of each, the first
    spelling that the tokenizer knows.
    """
    closes_blanks: bool = True
    """The token behind a text stands there, too, where the text ends in a blank."""
    packed: bool = False
    """Published checkpoints also come with the layers' matrices packed to eight and four bits."""
    remote_code: tuple[str, ...] = ()
    """Modules of Python code that the published repositories bring along, and that this page replaces."""
    chat: Chat = PLAIN
    """How its models are spoken to where the checkpoint brings no chat template."""
    tokenizer: TokenizerDesign | None = None
    """How its tokenizers were learned; None where that was not published."""

    def tokens(self, size: str | None = None) -> Mapping[str, int]:
        """Ids of the special tokens of a published size, or of the family."""
        own = None if size is None else self.sizes[size].special_tokens
        return self.special_tokens if own is None else own

    def architecture(self, size: str | None = None, **changes: Any) -> Architecture:
        """The base, or a published size, with `changes` applied. Raises `DaybreakError` for unknown sizes or
        fields.
        """
        fields: dict[str, Any] = {}
        if size is not None:
            if size not in self.sizes:
                hint = nearest(size, self.sizes)
                raise DaybreakError(f"{self.name} has no size {size!r}{hint}; it has {', '.join(self.sizes)}")
            fields.update(self.sizes[size].changes)
        fields.update(changes)
        for name in changes:
            if name not in Architecture.__dataclass_fields__:
                hint = nearest(name, Architecture.__dataclass_fields__)
                raise DaybreakError(f"an architecture has no field {name!r}{hint}")
        if ("width" in fields) and "inner" not in fields:
            fields["inner"] = 4 * fields["width"]
        if self.follows is not None:
            every = {name: getattr(self.base, name) for name in Architecture.__dataclass_fields__}
            fields = {**self.follows({**every, **fields}), **fields}
        return replace(self.base, **fields)

    def config(self, architecture: Architecture) -> dict[str, Any]:
        """`write`, proved by `read`: a decision that this config.json cannot say raises `DaybreakError`."""
        written = self.write(architecture)
        meant, understood = architecture.spelled_out(), self.read(written).spelled_out()
        for name in Architecture.__dataclass_fields__:
            if getattr(meant, name) != getattr(understood, name):
                raise DaybreakError(
                    f"a config.json of {self.title} cannot say {name} = {getattr(meant, name)!r}, it would "
                    f"be read as {getattr(understood, name)!r}; take another family, or leave {name} as it is"
                )
        return written


def sizes(
    table: Mapping[str, tuple[int, int, int, int]], hub: str | None = None, **common: Any
) -> dict[str, Size]:
    """Rows of (layers, width, heads, parameters) as the papers print them; `hub` has a `{}` for the name."""
    return {
        name: Size(
            {"layers": layers, "width": width, "heads": heads, "inner": 4 * width, **common},
            parameters,
            hub.format(name) if hub else None,
        )
        for name, (layers, width, heads, parameters) in table.items()
    }
