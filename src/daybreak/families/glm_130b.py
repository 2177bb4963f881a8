"""GLM-130B (2022): GLM's blanks with rotary positions, a gated MLP and DeepNorm's residual; published as
tensor-parallel shards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from daybreak.architecture import Architecture, Blanks, Rotary
from daybreak.errors import DaybreakError
from daybreak.families import shards
from daybreak.families.family import Family, Initialisation, ShardRelease, Size
from daybreak.families.keys import Keys, hf_activation
from daybreak.families.marks import at_the_end
from daybreak.rules import HALVED_ROWS, HALVES, PER_HEAD, Rule, fused, linear, norm

BLANKS = Blanks(start=150004, end=150005, mask=150000, rest=150001, sentence=150002, runs_on=True)
BASE = Architecture(
    vocabulary=150528,
    context=2048,
    layers=70,
    width=12288,
    heads=96,
    inner=32768,
    positions=Rotary(128, "halves"),
    residual="normed",
    residual_scale=math.sqrt(2 * 70),
    activation="gelu",
    gated=True,
    blanks=BLANKS,
)


def read(config: Mapping[str, Any]) -> Architecture:
    keys = Keys(config, "GLM-130B")
    keys.only("add_cross_attention", False)
    keys.only("position_encoding_2d", False)
    keys.only("no_glu", False)
    width, heads, layers = keys.need("hidden_size"), keys.need("num_attention_heads"), keys.need("num_layers")
    architecture = Architecture(
        vocabulary=keys.need("vocab_size"),
        context=keys.get("max_sequence_length", 2048),
        layers=layers,
        width=width,
        heads=heads,
        inner=keys.need("inner_hidden_size"),
        positions=Rotary(width // heads, "halves"),
        residual="normed",
        residual_scale=math.sqrt(2 * layers),
        norm_eps=keys.get("layernorm_epsilon", 1e-5),
        activation=keys.activation("hidden_act", "gelu"),
        gated=True,
        blanks=Blanks(
            start=keys.get("bos_token_id", BLANKS.start),
            end=keys.get("eop_token_id", BLANKS.end),
            mask=keys.get("mask_token_id", BLANKS.mask),
            rest=keys.get("gmask_token_id", BLANKS.rest),
            sentence=keys.get("smask_token_id", BLANKS.sentence),
            runs_on=True,
        ),
    )
    keys.only("quantization_bit", 0, 4, 8)
    keys.finish("model_parallel_size")
    return architecture


def write(architecture: Architecture) -> dict[str, Any]:
    blanks = architecture.blanks
    if blanks is None:
        raise DaybreakError("GLM-130B's config.json can only say texts with blanks")
    return {
        "vocab_size": architecture.vocabulary,
        "max_sequence_length": architecture.context,
        "num_layers": architecture.layers,
        "hidden_size": architecture.width,
        "num_attention_heads": architecture.heads,
        "inner_hidden_size": architecture.inner,
        "layernorm_epsilon": architecture.norm_eps,
        "hidden_act": hf_activation(architecture.activation),
        "position_encoding_2d": False,
        "bos_token_id": blanks.start,
        "eop_token_id": blanks.end,
        "mask_token_id": blanks.mask,
        "gmask_token_id": blanks.rest,
        "smask_token_id": blanks.sentence,
    }


RULES = (
    Rule("word_embeddings.weight", "tokens.weight"),
    *norm("layers.{i}.input_layernorm", "blocks.{i}.attention_norm"),
    *fused("layers.{i}.attention.query_key_value", "blocks.{i}.attention", PER_HEAD, PER_HEAD),
    *linear("layers.{i}.attention.dense", "blocks.{i}.attention.out"),
    *norm("layers.{i}.post_attention_layernorm", "blocks.{i}.mlp_norm"),
    # The second half goes through the activation (GEGLU, arXiv 2002.05202, as its code has it).
    *(
        Rule(f"layers.{{i}}.mlp.dense_h_to_4h.{kind}", (f"{up}.up.{kind}", f"{up}.gate.{kind}"), HALVES)
        for up in ("blocks.{i}.mlp",)
        for kind in ("weight", "bias")
    ),
    *linear("layers.{i}.mlp.dense_4h_to_h", "blocks.{i}.mlp.down"),
    *norm("final_layernorm", "final_norm"),
)


CUTS = shards.cuts(up=HALVED_ROWS)


def recognises(shapes: shards.Shapes) -> bool:
    """A gated MLP, and neither tables of positions nor a head of its own. Packed to four bits the second map
    has half its columns.
    """
    up = shapes.get("transformer.layers.0.mlp.dense_h_to_4h.weight", (0,))
    down = shapes.get("transformer.layers.0.mlp.dense_4h_to_h.weight", (0, 1))
    own = any("lm_head" in name or name.endswith("position_embeddings.weight") for name in shapes)
    return not own and up[0] in (2 * down[1], 4 * down[1])


def shard_fields(shapes: shards.Shapes, settings: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("position_encoding_2d", "no_glu"):
        if settings.get(key):
            raise DaybreakError(f"model_config.json sets {key}, which GLM-130B here does not support")
    width = shards.rows(shapes, "transformer.final_layernorm.weight")
    rotary = next((shape for name, shape in shapes.items() if name.endswith("rotary_emb.inv_freq")), None)
    return {
        "vocabulary": shards.rows(shapes, "transformer.word_embeddings.weight"),
        "context": settings.get("max_sequence_length", BASE.context),
        "layers": shards.layers(shapes),
        "width": width,
        "heads": shards.heads(width, 128, settings, 2 * rotary[0] if rotary else None),
        "inner": shards.rows(shapes, "transformer.layers.0.mlp.dense_h_to_4h.weight") // 2,
        "norm_eps": settings.get("layernorm_epsilon", BASE.norm_eps),
    }


def initialisation(architecture: Architecture) -> Initialisation:
    """Xavier, with feed-forward, value and output maps scaled by (2N)^-1/2 (paper, section 2.1; DeepNorm)."""
    scaled = (".attention.value", ".attention.out", ".mlp.up", ".mlp.gate", ".mlp.down")
    return Initialisation(1.0, (2 * architecture.layers) ** -0.5, xavier=True, scaled=scaled)


def follows(fields: Mapping[str, Any]) -> dict[str, Any]:
    """DeepNorm's alpha (2N)^1/2, the whole head turned, and in a smaller vocabulary the last ids as marks."""
    vocabulary = fields["vocabulary"]
    fits = vocabulary > max(BLANKS.start, BLANKS.end)
    return {
        "residual_scale": math.sqrt(2 * fields["layers"]),
        "positions": Rotary(fields["width"] // fields["heads"], "halves"),
        "blanks": BLANKS if fits else at_the_end(vocabulary, runs_on=True),
    }


FAMILY = Family(
    name="glm_130b",
    title="GLM-130B",
    year=2022,
    paper="Zeng et al., GLM-130B (arXiv 2210.02414)",
    story="GLM at 130 billion parameters in English and Chinese: rotary positions, a gated MLP, and "
    "DeepNorm, where the scaled output of each norm is what is carried on.",
    model_type="glm-130b",
    hf_class="",
    base=BASE,
    sizes={
        "glm-130b": Size(
            {},
            128_697_794_560,
            None,
            note="the weights were handed out on request, as SAT shards for 8 GPUs",
        )
    },
    read=read,
    write=write,
    rules=RULES,
    initialisation=initialisation,
    prefix="transformer.",
    packed=True,
    shard_release=ShardRelease(CUTS, recognises, shard_fields),
    ignored=(r".*rotary_emb\.inv_freq",),
    special_tokens={"bos_token_id": 150004, "eos_token_id": 150005},
    follows=follows,
    frame=((), ("</s>",)),
    closes_blanks=False,
    blank_tokens={"start": "sop", "end": "eop", "mask": "[MASK]", "rest": "[gMASK]", "sentence": "[sMASK]"},
)
