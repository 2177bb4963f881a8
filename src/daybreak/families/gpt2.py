"""GPT-2 (2019): the norm moves in front of each sublayer, one more stands before the head. The lineage's
common shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from daybreak.architecture import Architecture
from daybreak.families.family import Family, Initialisation, sizes
from daybreak.families.keys import Keys, hf_activation
from daybreak.families.tokenizer import PAIRS_OF_BYTES
from daybreak.rules import THIRDS, TRANSPOSED, TRANSPOSED_THIRDS, Rule, fused, linear, norm

# Scores are float32 here in any case, which is what reorder_and_upcast_attn asks for.
HARMLESS = (
    "n_ctx embd_pdrop resid_pdrop summary_activation summary_first_dropout "
    "summary_proj_to_labels summary_type "
    "reorder_and_upcast_attn"
)


def read(config: Mapping[str, Any]) -> Architecture:
    keys = Keys(config, "GPT-2")
    keys.only("add_cross_attention", False)
    width = keys.need("n_embd", "hidden_size")
    architecture = Architecture(
        vocabulary=keys.need("vocab_size"),
        context=keys.get("n_positions", 1024, "max_position_embeddings"),
        layers=keys.need("n_layer", "num_hidden_layers"),
        width=width,
        heads=keys.need("n_head", "num_attention_heads"),
        inner=keys.get("n_inner", 4 * width),
        norm_eps=keys.get("layer_norm_epsilon", 1e-5),
        activation=keys.activation("activation_function", "gelu_new"),
        scaled_scores=keys.get("scale_attn_weights", True),
        layer_scaled_scores=keys.get("scale_attn_by_inverse_layer_idx", False),
        tied=keys.get("tie_word_embeddings", True),
    )
    keys.finish(HARMLESS)
    return architecture


def write(architecture: Architecture) -> dict[str, Any]:
    return {
        "vocab_size": architecture.vocabulary,
        "n_positions": architecture.context,
        "n_layer": architecture.layers,
        "n_embd": architecture.width,
        "n_head": architecture.heads,
        "n_inner": architecture.inner,
        "layer_norm_epsilon": architecture.norm_eps,
        "activation_function": hf_activation(architecture.activation),
        "scale_attn_weights": architecture.scaled_scores,
        "scale_attn_by_inverse_layer_idx": architecture.layer_scaled_scores,
        "tie_word_embeddings": architecture.tied,
    }


RULES = (
    Rule("wte.weight", "tokens.weight"),
    Rule("wpe.weight", "positions.weight"),
    *norm("h.{i}.ln_1", "blocks.{i}.attention_norm"),
    *fused("h.{i}.attn.c_attn", "blocks.{i}.attention", TRANSPOSED_THIRDS, THIRDS),
    *linear("h.{i}.attn.c_proj", "blocks.{i}.attention.out", TRANSPOSED),
    *norm("h.{i}.ln_2", "blocks.{i}.mlp_norm"),
    *linear("h.{i}.mlp.c_fc", "blocks.{i}.mlp.up", TRANSPOSED),
    *linear("h.{i}.mlp.c_proj", "blocks.{i}.mlp.down", TRANSPOSED),
    *norm("ln_f", "final_norm"),
    Rule("lm_head.weight", "head.weight"),
)


def initialisation(architecture: Architecture) -> Initialisation:
    """Section 2.3: residual outputs scaled by 1/sqrt(N), N = 2 residual layers per block."""
    return Initialisation(0.02, 0.02 / math.sqrt(2 * architecture.layers))


FAMILY = Family(
    name="gpt2",
    title="GPT-2",
    year=2019,
    paper="Radford et al., Language Models are Unsupervised Multitask Learners (2019)",
    story=(
        "Norms move to the input of each sublayer and one is added before the head; "
        "byte-level BPE; 1024 tokens of context."
    ),
    model_type="gpt2",
    hf_class="GPT2LMHeadModel",
    base=Architecture(),
    sizes=sizes({"distilgpt2": (6, 768, 12, 81_912_576)}, hub="distilbert/{}")
    | sizes(
        {
            "gpt2": (12, 768, 12, 124_439_808),
            "gpt2-medium": (24, 1024, 16, 354_823_168),
            "gpt2-large": (36, 1280, 20, 774_030_080),
            "gpt2-xl": (48, 1600, 25, 1_557_611_200),
        },
        hub="openai-community/{}",
    ),
    read=read,
    write=write,
    rules=RULES,
    initialisation=initialisation,
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",),
    special_tokens={"bos_token_id": 50256, "eos_token_id": 50256},
    tokenizer=PAIRS_OF_BYTES,
)
