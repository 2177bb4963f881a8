"""GPT-J (2021): attention and MLP side by side behind one norm, and rotated positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daybreak.architecture import Architecture, Rotary
from daybreak.errors import DaybreakError
from daybreak.families.family import Family, Initialisation, sizes
from daybreak.families.keys import Keys, hf_activation
from daybreak.families.tokenizer import PAIRS_OF_BYTES
from daybreak.rules import Rule, linear, norm

HARMLESS = (
    "n_ctx embd_pdrop resid_pdrop summary_activation summary_first_dropout "
    "summary_proj_to_labels summary_type"
)
BASE = Architecture(
    vocabulary=50400,
    context=2048,
    layers=28,
    width=4096,
    heads=16,
    inner=16384,
    positions=Rotary(64, "neighbours"),
    block="parallel",
    shared_norm=True,
    biases=frozenset({"mlp", "head"}),
    tied=False,
)


def read(config: Mapping[str, Any]) -> Architecture:
    keys = Keys(config, "GPT-J")
    keys.only("rotary", True)
    keys.only("scale_attn_weights", True)
    keys.only("tie_word_embeddings", False)
    width, heads = keys.need("n_embd", "hidden_size"), keys.need("n_head", "num_attention_heads")
    architecture = Architecture(
        vocabulary=keys.need("vocab_size"),
        context=keys.get("n_positions", 2048, "max_position_embeddings"),
        layers=keys.need("n_layer", "num_hidden_layers"),
        width=width,
        heads=heads,
        inner=keys.get("n_inner", 4 * width),
        positions=Rotary(keys.get("rotary_dim", 64), "neighbours"),
        block="parallel",
        shared_norm=True,
        norm_eps=keys.get("layer_norm_epsilon", 1e-5),
        activation=keys.activation("activation_function", "gelu_new"),
        biases=BASE.biases,
        tied=False,
    )
    keys.finish(HARMLESS)
    return architecture


def write(architecture: Architecture) -> dict[str, Any]:
    if not isinstance(architecture.positions, Rotary):
        raise DaybreakError("GPT-J's config.json can only say rotary positions")
    return {
        "vocab_size": architecture.vocabulary,
        "n_positions": architecture.context,
        "n_layer": architecture.layers,
        "n_embd": architecture.width,
        "n_head": architecture.heads,
        "n_inner": architecture.inner,
        "rotary_dim": architecture.positions.width,
        "layer_norm_epsilon": architecture.norm_eps,
        "activation_function": hf_activation(architecture.activation),
        "tie_word_embeddings": False,
    }


RULES = (
    Rule("wte.weight", "tokens.weight"),
    *norm("h.{i}.ln_1", "blocks.{i}.attention_norm"),
    *linear("h.{i}.attn.q_proj", "blocks.{i}.attention.query"),
    *linear("h.{i}.attn.k_proj", "blocks.{i}.attention.key"),
    *linear("h.{i}.attn.v_proj", "blocks.{i}.attention.value"),
    *linear("h.{i}.attn.out_proj", "blocks.{i}.attention.out"),
    *linear("h.{i}.mlp.fc_in", "blocks.{i}.mlp.up"),
    *linear("h.{i}.mlp.fc_out", "blocks.{i}.mlp.down"),
    *norm("ln_f", "final_norm"),
    *linear("lm_head", "head"),
)


def initialisation(architecture: Architecture) -> Initialisation:
    """mesh-transformer-jax draws residual outputs with std 2 / (L sqrt(d)); the rest as the published config
    says, 0.02.
    """
    return Initialisation(0.02, 2 / (architecture.layers * architecture.width**0.5))


FAMILY = Family(
    name="gpt_j",
    title="GPT-J",
    year=2021,
    paper="Wang and Komatsuzaki, GPT-J-6B: A 6 Billion Parameter Autoregressive Language Model (2021)",
    story="Attention and MLP read the same norm and are added together; a quarter of each head is rotated "
    "by position, in neighbouring pairs; the head is a matrix of its own, with a bias.",
    model_type="gptj",
    hf_class="GPTJForCausalLM",
    base=BASE,
    sizes=sizes({"gpt-j-6b": (28, 4096, 16, 6_050_882_784)}, hub="EleutherAI/{}"),
    read=read,
    write=write,
    rules=RULES,
    initialisation=initialisation,
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)",),
    special_tokens={"bos_token_id": 50256, "eos_token_id": 50256},
    tokenizer=PAIRS_OF_BYTES,
)
