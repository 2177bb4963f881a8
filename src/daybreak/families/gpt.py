"""GPT (2018): a transformer decoder alone, pretrained on books, fine-tuned on everything. Norms still follow
the sublayers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daybreak.architecture import Activation, Architecture
from daybreak.errors import DaybreakError
from daybreak.families.family import ArrayRelease, Family, Initialisation, sizes
from daybreak.families.keys import Keys
from daybreak.families.tokenizer import TokenizerDesign
from daybreak.rules import THIRDS, TRANSPOSED, TRANSPOSED_THIRDS, Rule, fused, linear, norm

HARMLESS = (
    "n_ctx embd_pdrop resid_pdrop n_special summary_activation summary_first_dropout "
    "summary_proj_to_labels summary_type"
)
# The reference maps "gelu" to the tanh form for this family alone (its modeling file, ACT_FNS).
ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
SPELLED: dict[Activation, str] = {"gelu_tanh": "gelu", "relu": "relu", "silu": "silu"}


def read(config: Mapping[str, Any]) -> Architecture:
    keys = Keys(config, "GPT")
    width = keys.need("n_embd", "hidden_size")
    activation = keys.get("afn", "gelu")
    if activation not in ACTIVATIONS:
        raise DaybreakError(f"config.json sets afn = {activation!r}; known are {', '.join(ACTIVATIONS)}")
    architecture = Architecture(
        vocabulary=keys.need("vocab_size"),
        context=keys.get("n_positions", 512, "max_position_embeddings"),
        layers=keys.need("n_layer", "num_hidden_layers"),
        width=width,
        heads=keys.need("n_head", "num_attention_heads"),
        inner=4 * width,
        block="post",
        final_norm=False,
        norm_eps=keys.get("layer_norm_epsilon", 1e-5),
        activation=ACTIVATIONS[activation],
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
        "afn": SPELLED.get(architecture.activation, architecture.activation),
        "layer_norm_epsilon": architecture.norm_eps,
        "tie_word_embeddings": architecture.tied,
    }


RULES = (
    Rule("tokens_embed.weight", "tokens.weight"),
    Rule("positions_embed.weight", "positions.weight"),
    *fused("h.{i}.attn.c_attn", "blocks.{i}.attention", TRANSPOSED_THIRDS, THIRDS),
    *linear("h.{i}.attn.c_proj", "blocks.{i}.attention.out", TRANSPOSED),
    *norm("h.{i}.ln_1", "blocks.{i}.attention_norm"),
    *linear("h.{i}.mlp.c_fc", "blocks.{i}.mlp.up", TRANSPOSED),
    *linear("h.{i}.mlp.c_proj", "blocks.{i}.mlp.down", TRANSPOSED),
    *norm("h.{i}.ln_2", "blocks.{i}.mlp_norm"),
    Rule("lm_head.weight", "head.weight"),
)


# finetune-transformer-lm, model/params_shapes.json: variables in the order in which its train.py makes them.
_ARRAYS = (
    "positions_embed.weight",
    "tokens_embed.weight",
    *(
        f"h.{{i}}.{part}.{kind}"
        for part in ("attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2")
        for kind in ("weight", "bias")
    ),
)


def _release_config(shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The release has no config.json; the shapes say all but the number of heads, 12 in its train.py."""
    (context, width), (vocabulary, _) = shapes[:2]
    return {
        "model_type": "openai-gpt",
        "vocab_size": vocabulary,
        "n_positions": context,
        "n_embd": width,
        "n_layer": (len(shapes) - 2) // 12,
        "n_head": 12,
        "afn": "gelu",
    }


# The published vocabulary has no token for the end of a text; training on several texts needs one.
TOKENIZER = TokenizerDesign("words", 40478, first=("<unk>",), bos=None)

FAMILY = Family(
    name="gpt",
    title="GPT",
    year=2018,
    paper="Radford et al., Improving Language Understanding by Generative Pre-Training (2018)",
    story=(
        "The decoder half of the transformer alone, learned positions, norms after each "
        "sublayer, the head tied to the embedding."
    ),
    model_type="openai-gpt",
    hf_class="OpenAIGPTLMHeadModel",
    base=Architecture(vocabulary=40478, context=512, block="post", final_norm=False),
    sizes=sizes({"openai-gpt": (12, 768, 12, 116_534_784)}, hub="openai-community/{}"),
    read=read,
    write=write,
    rules=RULES,
    initialisation=lambda architecture: Initialisation(0.02, 0.02),
    array_release=ArrayRelease(_ARRAYS, _release_config),
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.bias", r"position_ids"),
    tokenizer=TOKENIZER,
)
