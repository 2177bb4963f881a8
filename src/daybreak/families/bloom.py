"""BLOOM and BLOOMZ (2022): no position vectors at all, distance lowers the score; a norm follows the
embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from daybreak.architecture import Alibi, Architecture
from daybreak.errors import DaybreakError
from daybreak.families.family import Family, Initialisation, Size, sizes
from daybreak.families.keys import Keys
from daybreak.families.tokenizer import TokenizerDesign
from daybreak.rules import PER_HEAD, Rule, fused, linear, norm

# Switches of the training code that are left in published files and change nothing here; offset_alibi shifts
# every
# score of a query by the same amount, which softmax ignores.
HARMLESS = (
    "hidden_dropout masked_softmax_fusion bias_dropout_fusion attention_softmax_in_fp32 "
    "skip_bias_add skip_bias_add_qkv "
    "offset_alibi slow_but_exact"
)
BASE = Architecture(
    vocabulary=250880,
    context=2048,
    layers=24,
    width=1024,
    heads=16,
    inner=4096,
    positions=Alibi(),
    embedding_norm=True,
)


def read(config: Mapping[str, Any]) -> Architecture:
    keys = Keys(config, "BLOOM")
    width = keys.need("hidden_size", "n_embed", "n_embd")
    keys.only("n_inner", 4 * width)
    normed = keys.get("apply_residual_connection_post_layernorm", False)
    architecture = Architecture(
        vocabulary=keys.need("vocab_size"),
        context=keys.get("seq_length", 2048),
        layers=keys.need("n_layer", "num_hidden_layers"),
        width=width,
        heads=keys.need("n_head", "num_attention_heads"),
        inner=4 * width,
        positions=Alibi(),
        residual="normed" if normed else "input",
        embedding_norm=True,
        norm_eps=keys.get("layer_norm_epsilon", 1e-5),
        tied=keys.get("tie_word_embeddings", True),
    )
    keys.finish(HARMLESS)
    return architecture


def write(architecture: Architecture) -> dict[str, Any]:
    if architecture.inner != 4 * architecture.width:
        raise DaybreakError(
            f"BLOOM's MLP is 4 x width = {4 * architecture.width} wide, this architecture's "
            f"{architecture.inner}"
        )
    return {
        "vocab_size": architecture.vocabulary,
        "seq_length": architecture.context,
        "n_layer": architecture.layers,
        "hidden_size": architecture.width,
        "n_head": architecture.heads,
        "apply_residual_connection_post_layernorm": architecture.residual == "normed",
        "layer_norm_epsilon": architecture.norm_eps,
        "tie_word_embeddings": architecture.tied,
    }


RULES = (
    Rule("word_embeddings.weight", "tokens.weight"),
    *norm("word_embeddings_layernorm", "embedding_norm"),
    *norm("h.{i}.input_layernorm", "blocks.{i}.attention_norm"),
    *fused("h.{i}.self_attention.query_key_value", "blocks.{i}.attention", PER_HEAD, PER_HEAD),
    *linear("h.{i}.self_attention.dense", "blocks.{i}.attention.out"),
    *norm("h.{i}.post_attention_layernorm", "blocks.{i}.mlp_norm"),
    *linear("h.{i}.mlp.dense_h_to_4h", "blocks.{i}.mlp.up"),
    *linear("h.{i}.mlp.dense_4h_to_h", "blocks.{i}.mlp.down"),
    *norm("ln_f", "final_norm"),
    Rule("lm_head.weight", "head.weight"),
)


def initialisation(architecture: Architecture) -> Initialisation:
    """sqrt(1 / (3 h)), the 176B run's 0.0048; Megatron scales output layers by 1 / sqrt(2 L)."""
    std = math.sqrt(1 / (3 * architecture.width))
    return Initialisation(std, std / math.sqrt(2 * architecture.layers))


def _sizes() -> dict[str, Size]:
    table = {
        "560m": (24, 1024, 16, 559_214_592),
        "1b1": (24, 1536, 16, 1_065_314_304),
        "1b7": (24, 2048, 16, 1_722_408_960),
        "3b": (30, 2560, 32, 3_002_557_440),
        "7b1": (30, 4096, 32, 7_069_016_064),
    }
    found = {}
    for kind in ("bloom", "bloomz"):
        found.update(sizes({f"{kind}-{name}": row for name, row in table.items()}, "bigscience/{}"))
        found.update(sizes({f"{kind}-176b": (70, 14336, 112, 176_247_271_424)}, f"bigscience/{kind}"))
    return found


# As published: "(", "|" and ")" stand inside the class, and the inner brackets are a class within it.
SPLIT = r" ?[^(\s|[.,!?…。，、।۔،])]+"
TOKENIZER = TokenizerDesign(
    "bytes",
    250680,
    first=("<unk>", "<s>", "</s>", "<pad>"),
    last=(),
    split=SPLIT,
    bos="<s>",
    eos="</s>",
    pad="<pad>",
)

FAMILY = Family(
    name="bloom",
    title="BLOOM and BLOOMZ",
    year=2022,
    paper="BigScience Workshop, BLOOM (arXiv 2211.05100); Muennighoff et al., BLOOMZ (arXiv 2211.01786)",
    story="No position vectors: scores fall linearly with distance, steeper in some heads than in others; "
    "a norm follows the embedding; a vocabulary of 250,680 tokens for 46 languages.",
    model_type="bloom",
    hf_class="BloomForCausalLM",
    base=BASE,
    sizes=_sizes(),
    read=read,
    write=write,
    rules=RULES,
    initialisation=initialisation,
    prefix="transformer.",
    special_tokens={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3},
    tokenizer=TOKENIZER,
)
