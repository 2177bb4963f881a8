"""GLM (2021): one model for understanding and writing. A text with blanks is read in both directions, what
fills the blanks is written from left to right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from daybreak.architecture import Architecture, Blanks, Learned
from daybreak.errors import DaybreakError
from daybreak.families import shards
from daybreak.families.family import Family, Initialisation, ShardRelease, Size
from daybreak.families.keys import Keys, hf_activation
from daybreak.families.marks import at_the_end
from daybreak.families.tokenizer import END_OF_TEXT, TokenizerDesign
from daybreak.rules import THIRDS, THIRDS_OF_ROWS, Rule, fused, linear, norm

# Scores are float32 here in any case, so the scaling that keeps them within float16 changes nothing.
HARMLESS = (
    "attention_scale output_predict parallel_output pool_token spell_func checkpoint_activations "
    "checkpoint_num_layers embedding_dropout_prob attention_dropout_prob output_dropout_prob "
    "max_memory_length bad_words_id layernorm_order"
)
BPE = Blanks(start=50257, end=50258, mask=50260, rest=50263, sentence=50264)
"""Of the models with GPT-2's vocabulary; the ids follow its last one."""
CHINESE = Blanks(start=50006, end=50007, mask=50003, rest=50009, sentence=50008)
"""Of the models with the sentencepiece vocabulary of 50,000 pieces."""
WORDPIECE = Blanks(start=30522, end=30523, mask=103, rest=30524, sentence=30525)
"""Of the models with BERT's uncased vocabulary."""
BY_VOCABULARY = {50304: BPE, 50048: CHINESE, 30592: WORDPIECE}
"""Published config.json files do not hold these ids; the tokenizer beside them, where there is one, does."""
BASE = Architecture(
    vocabulary=30592,
    context=512,
    positions=Learned(blocks=True),
    activation="gelu",
    blanks=WORDPIECE,
)
IDS = {
    "start": "sop_token_id",
    "end": "eop_token_id",
    "mask": "mask_token_id",
    "rest": "gmask_token_id",
    "sentence": "smask_token_id",
}


def read(config: Mapping[str, Any]) -> Architecture:
    if "num_hidden_layers" in config and "num_layers" not in config:
        raise DaybreakError(
            "config.json describes GLM-4, a later architecture that shares the name glm; supported here is "
            "GLM with blanks (2021, arXiv 2103.10360)"
        )
    keys = Keys(config, "GLM")
    keys.only("add_cross_attention", False)
    keys.only("relative_encoding", False)
    keys.only("block_position_encoding", True)
    keys.only("spell_length")
    width, vocabulary = keys.need("hidden_size"), keys.need("vocab_size")
    architecture = Architecture(
        vocabulary=vocabulary,
        context=keys.need("max_sequence_length"),
        layers=keys.need("num_layers"),
        width=width,
        heads=keys.need("num_attention_heads"),
        inner=keys.get("inner_hidden_size", 4 * width),
        positions=Learned(blocks=True),
        norm_eps=keys.get("layernorm_epsilon", 1e-5),
        # The hub's code computes the exact gelu, the original repository's the one with tanh.
        activation=keys.activation("hidden_act", "gelu"),
        blanks=_blanks(keys, vocabulary),
    )
    keys.finish(HARMLESS)
    return architecture


def _blanks(keys: Keys, vocabulary: int) -> Blanks:
    published = BY_VOCABULARY.get(vocabulary)
    found = {
        field: keys.get(key, -1 if published is None else getattr(published, field))
        for field, key in IDS.items()
    }
    if lacking := [IDS[field] for field, number in found.items() if number < 0 and field != "sentence"]:
        raise DaybreakError(
            f"config.json says vocab_size {vocabulary}, which no published GLM has, and not {lacking[0]}; "
            f"add the ids of the tokens of blanks: {', '.join(IDS.values())}"
        )
    return Blanks(**{**found, "sentence": None if found["sentence"] < 0 else found["sentence"]})


def write(architecture: Architecture) -> dict[str, Any]:
    blanks = architecture.blanks
    if blanks is None:
        raise DaybreakError("GLM's config.json can only say texts with blanks")
    return {
        "vocab_size": architecture.vocabulary,
        "max_sequence_length": architecture.context,
        "num_layers": architecture.layers,
        "hidden_size": architecture.width,
        "num_attention_heads": architecture.heads,
        "inner_hidden_size": architecture.inner,
        "layernorm_epsilon": architecture.norm_eps,
        "hidden_act": hf_activation(architecture.activation),
        "block_position_encoding": True,
        "relative_encoding": False,
        "attention_scale": 1.0,
        **{key: getattr(blanks, field) for field, key in IDS.items()},
    }


RULES = (
    Rule("word_embeddings.weight", "tokens.weight", also=("transformer.word_embeddings.weight",)),
    Rule("transformer.position_embeddings.weight", "positions.weight"),
    Rule(
        "transformer.block_position_embeddings.weight",
        "block_positions.weight",
        also=("mixins.block_position_embedding.block_position_embeddings.weight",),
    ),
    *norm("transformer.layers.{i}.input_layernorm", "blocks.{i}.attention_norm"),
    *fused("transformer.layers.{i}.attention.query_key_value", "blocks.{i}.attention", THIRDS, THIRDS),
    *linear("transformer.layers.{i}.attention.dense", "blocks.{i}.attention.out"),
    *norm("transformer.layers.{i}.post_attention_layernorm", "blocks.{i}.mlp_norm"),
    *linear("transformer.layers.{i}.mlp.dense_h_to_4h", "blocks.{i}.mlp.up"),
    *linear("transformer.layers.{i}.mlp.dense_4h_to_h", "blocks.{i}.mlp.down"),
    *norm("transformer.final_layernorm", "final_norm"),
)

CUTS = shards.cuts(queries=THIRDS_OF_ROWS)
"""Tables of positions are whole, too."""


def recognises(shapes: shards.Shapes) -> bool:
    """A second table of positions."""
    return any(name.endswith("block_position_embeddings.weight") for name in shapes)


def shard_fields(shapes: shards.Shapes, settings: Mapping[str, Any]) -> dict[str, Any]:
    width = shards.rows(shapes, "transformer.final_layernorm.weight")
    return {
        "vocabulary": shards.rows(shapes, "word_embeddings.weight", "transformer.word_embeddings.weight"),
        "context": shards.rows(shapes, "transformer.position_embeddings.weight") - 1,
        "layers": shards.layers(shapes),
        "width": width,
        "heads": shards.heads(width, 64, settings),
        "inner": shards.rows(shapes, "transformer.layers.0.mlp.dense_h_to_4h.weight"),
        "norm_eps": settings.get("layernorm_epsilon", BASE.norm_eps),
        # The original code's gelu is the one with tanh, and its shards say so by being its format.
        "activation": "gelu_tanh",
    }


def initialisation(architecture: Architecture) -> Initialisation:
    """As Megatron-LM's GPT-2: output layers scaled by 1/sqrt(2N)."""
    return Initialisation(0.02, 0.02 / math.sqrt(2 * architecture.layers))


def follows(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The marks' ids by the published vocabularies; in another vocabulary its last ones."""
    vocabulary = fields["vocabulary"]
    return {"blanks": BY_VOCABULARY.get(vocabulary, at_the_end(vocabulary))}


def _size(layers: int, width: int, heads: int, vocabulary: int, context: int, parameters: int) -> Any:
    shape = {"layers": layers, "width": width, "heads": heads, "vocabulary": vocabulary, "context": context}
    return lambda hub, **extra: Size(shape, parameters, hub, **extra)


_BPE_TOKENS = {"eos_token_id": 50258, "pad_token_id": 50256}
_CHINESE_TOKENS = {"eos_token_id": 50007, "pad_token_id": 50000}
SIZES = {
    "glm-base": _size(12, 768, 12, 30592, 512, 109_338_624)(None),
    "glm-large": _size(24, 1024, 16, 30592, 512, 334_688_256)("THUDM/glm-large"),
    "glm-large-chinese": _size(24, 1024, 16, 50048, 1024, 355_659_776)(
        "THUDM/glm-large-chinese", special_tokens=_CHINESE_TOKENS
    ),
    "glm-515m": _size(30, 1152, 18, 30592, 512, 514_632_960)("THUDM/glm-515m"),
    "glm-2b": _size(36, 2048, 32, 50304, 1024, 1_920_122_880)("THUDM/glm-2b", special_tokens=_BPE_TOKENS),
    "glm-10b": _size(48, 4096, 64, 50304, 1024, 9_880_682_496)("THUDM/glm-10b", special_tokens=_BPE_TOKENS),
    "glm-10b-chinese": _size(48, 4096, 64, 50048, 1024, 9_879_633_920)(
        "THUDM/glm-10b-chinese", special_tokens=_CHINESE_TOKENS
    ),
}

# Of the models with the sentencepiece vocabulary; those with GPT-2's or BERT's took these over.
TOKENIZER = TokenizerDesign(
    "pieces",
    50010,
    last=(
        END_OF_TEXT,
        "[SEP]",
        "[CLS]",
        "[MASK]",
        "[UNK]",
        "[UNUSED1]",
        "<|startofpiece|>",
        "<|endofpiece|>",
        "[sMASK]",
        "[gMASK]",
    ),
    bos=None,
    pad=END_OF_TEXT,
)

FAMILY = Family(
    name="glm",
    title="GLM",
    year=2021,
    paper="Du et al., GLM: General Language Model Pretraining with Autoregressive Blank Infilling (ACL 2022, "
    "arXiv 2103.10360)",
    story="Parts of a text are blanked out; the rest is read in both directions, and the parts are written "
    "from left to right, each token with two positions: its blank's and its place within the part.",
    model_type="glm",
    hf_class="GLMForConditionalGeneration",
    base=BASE,
    sizes=SIZES,
    read=read,
    write=write,
    rules=RULES,
    initialisation=initialisation,
    prefix="glm.",
    shard_release=ShardRelease(CUTS, recognises, shard_fields),
    special_tokens={"eos_token_id": 30523, "pad_token_id": 0},
    follows=follows,
    blank_tokens={
        "start": "<|startofpiece|>",
        "end": "<|endofpiece|>",
        "mask": "[MASK]",
        "rest": "[gMASK]",
        "sentence": "[sMASK]",
    },
    frame=(("[CLS]",), ("<|endoftext|>", "[SEP]")),
    remote_code=("configuration_glm", "modeling_glm", "tokenization_glm"),
    tokenizer=TOKENIZER,
)
