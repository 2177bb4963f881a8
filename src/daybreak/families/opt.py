"""OPT (2022) and Galactica (2022): GPT-3 rebuilt in the open, with ReLU; positions start at row 2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from daybreak.architecture import Architecture, Learned
from daybreak.errors import DaybreakError
from daybreak.families.family import Family, Initialisation, Size, sizes
from daybreak.families.keys import Keys, hf_activation
from daybreak.families.tokenizer import TokenizerDesign
from daybreak.rules import THIRDS, Rule, linear, norm

HARMLESS = "activation_dropout layerdrop hidden_dropout"
BASE = Architecture(vocabulary=50272, context=2048, positions=Learned(offset=2), activation="relu")


def read(config: Mapping[str, Any]) -> Architecture:
    keys = Keys(config, "OPT")
    keys.only("learned_embeddings", True)
    keys.only("scale_embeddings", False)
    width = keys.need("hidden_size")
    embedding = keys.get("word_embed_proj_dim", width)
    before = keys.get("do_layer_norm_before", True)
    removed = keys.get("_remove_final_layer_norm", False)
    biased = keys.get("enable_bias", True, "bias")
    architecture = Architecture(
        vocabulary=keys.need("vocab_size"),
        context=keys.get("max_position_embeddings", 2048),
        layers=keys.need("num_hidden_layers"),
        width=width,
        heads=keys.need("num_attention_heads"),
        inner=keys.get("ffn_dim", 3072),
        embedding_width=None if embedding == width else embedding,
        positions=Learned(offset=2),
        block="pre" if before else "post",
        final_norm=before and not removed,
        norm_affine=keys.get("layer_norm_elementwise_affine", True),
        activation=keys.activation("activation_function", "relu"),
        biases=frozenset({"qkv", "out", "mlp"} if biased else ()),
        tied=keys.get("tie_word_embeddings", True),
    )
    keys.finish(HARMLESS)
    return architecture


def write(architecture: Architecture) -> dict[str, Any]:
    if architecture.norm_eps != 1e-5:
        raise DaybreakError(
            f"OPT's config.json cannot say norm_eps {architecture.norm_eps}: the reference always uses 1e-5"
        )
    before = architecture.block == "pre"
    return {
        "vocab_size": architecture.vocabulary,
        "max_position_embeddings": architecture.context,
        "num_hidden_layers": architecture.layers,
        "hidden_size": architecture.width,
        "num_attention_heads": architecture.heads,
        "ffn_dim": architecture.inner,
        "word_embed_proj_dim": architecture.embedding_width or architecture.width,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not architecture.final_norm,
        "layer_norm_elementwise_affine": architecture.norm_affine,
        "activation_function": hf_activation(architecture.activation),
        "enable_bias": "qkv" in architecture.biases,
        "tie_word_embeddings": architecture.tied,
    }


RULES = (
    Rule("embed_tokens.weight", "tokens.weight"),
    Rule("embed_positions.weight", "positions.weight"),
    Rule("project_in.weight", "project_in.weight"),
    *linear("layers.{i}.self_attn.k_proj", "blocks.{i}.attention.key"),
    *linear("layers.{i}.self_attn.v_proj", "blocks.{i}.attention.value"),
    *linear("layers.{i}.self_attn.q_proj", "blocks.{i}.attention.query"),
    *linear("layers.{i}.self_attn.out_proj", "blocks.{i}.attention.out"),
    *norm("layers.{i}.self_attn_layer_norm", "blocks.{i}.attention_norm"),
    *linear("layers.{i}.fc1", "blocks.{i}.mlp.up"),
    *linear("layers.{i}.fc2", "blocks.{i}.mlp.down"),
    *norm("layers.{i}.final_layer_norm", "blocks.{i}.mlp_norm"),
    Rule("final_layer_norm.weight", "final_norm.weight", also=("layer_norm.weight",)),
    Rule("final_layer_norm.bias", "final_norm.bias", also=("layer_norm.bias",)),
    Rule("project_out.weight", "project_out.weight"),
    Rule("lm_head.weight", "head.weight", also=("decoder.output_projection.weight",)),
)
# metaseq, which trained the models, stacks keys, values and queries, in this order.
_STACKED = tuple(f"blocks.{{i}}.attention.{part}" for part in ("key", "value", "query"))
OLDER_RULES = tuple(
    Rule(f"layers.{{i}}.self_attn.qkv_proj.{kind}", tuple(f"{part}.{kind}" for part in _STACKED), THIRDS)
    for kind in ("weight", "bias")
)


def initialisation(architecture: Architecture) -> Initialisation:
    """The paper's training setup: normal with std 0.006, output layers scaled by 1 / sqrt(2 L)."""
    return Initialisation(0.006, 0.006 / math.sqrt(2 * architecture.layers))


_SHAPE_350M = {"block": "post", "final_norm": False, "embedding_width": 512}
_GALACTICA = {"vocabulary": 50000, "activation": "gelu", "biases": frozenset[str]()}


def _sizes() -> dict[str, Size]:
    opt = sizes(
        {
            "opt-125m": (12, 768, 12, 125_239_296),
            "opt-1.3b": (24, 2048, 32, 1_315_758_080),
            "opt-2.7b": (32, 2560, 32, 2_651_596_800),
            "opt-6.7b": (32, 4096, 32, 6_658_473_984),
            "opt-13b": (40, 5120, 40, 12_853_473_280),
            "opt-30b": (48, 7168, 56, 29_974_540_288),
            "opt-66b": (64, 9216, 72, 65_719_701_504),
        },
        hub="facebook/{}",
    )
    shape_350m = sizes({"opt-350m": (24, 1024, 16, 331_196_416)}, "facebook/{}", **_SHAPE_350M)
    on_request = sizes({"opt-175b": (96, 12288, 96, 174_604_468_224)})
    galactica = sizes(
        {
            "galactica-125m": (12, 768, 12, 124_947_456),
            "galactica-1.3b": (24, 2048, 32, 1_314_758_656),
            "galactica-6.7b": (32, 4096, 32, 6_656_180_224),
            "galactica-30b": (48, 7168, 56, 29_969_494_016),
            "galactica-120b": (96, 10240, 80, 121_332_899_840),
        },
        hub="facebook/{}",
        **_GALACTICA,
    )
    tokens = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    galactica = {
        name: replace(size, special_tokens=tokens, starts_with_bos=False) for name, size in galactica.items()
    }
    return {**opt, **shape_350m, **on_request, **galactica}


# The merges are GPT-2's; the ids follow fairseq's dictionary.
TOKENIZER = TokenizerDesign(
    "bytes",
    50265,
    first=("<s>", "<pad>", "</s>", "<unk>"),
    last=("<mask>",),
    bos="</s>",
    eos="</s>",
    pad="<pad>",
    adds_bos=True,
)

FAMILY = Family(
    name="opt",
    title="OPT and Galactica",
    year=2022,
    paper="Zhang et al., OPT: Open Pre-trained Transformer Language Models (arXiv 2205.01068); "
    "Taylor et al., Galactica (arXiv 2211.09085)",
    story="GPT-3's shape with ReLU and dense attention everywhere; the position table has two unused rows "
    "in front; the 350m model alone keeps its norms after the sublayers and has a narrower "
    "embedding.",
    model_type="opt",
    hf_class="OPTForCausalLM",
    base=BASE,
    sizes=_sizes(),
    read=read,
    write=write,
    rules=RULES,
    initialisation=initialisation,
    older_rules=OLDER_RULES,
    prefix="model.decoder.",
    older_prefixes=("decoder.", ""),
    ignored=(r"version", r"embed_positions\._float_tensor"),
    special_tokens={"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1},
    starts_with_bos=True,
    tokenizer=TOKENIZER,
)
