"""Llama (2023), the successor: the same decoder with RMS norms and a gated MLP, later with shared heads of
keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daybreak.architecture import Architecture, Rotary
from daybreak.errors import DaybreakError
from daybreak.families.family import Family, Initialisation, Size
from daybreak.families.keys import Keys, hf_activation, refuse_scaled_rotary
from daybreak.rules import Rule, linear, norm

HARMLESS = "pretraining_tp is_llama_config rope_interleaved"
BASE = Architecture(
    vocabulary=32000,
    context=2048,
    layers=32,
    width=4096,
    heads=32,
    inner=11008,
    positions=Rotary(128),
    norm="rms",
    norm_eps=1e-6,
    activation="silu",
    gated=True,
    biases=frozenset(),
    tied=False,
)


def _rotary(keys: Keys, head_width: int) -> Rotary:
    """Old files spell rope_theta, newer ones hold it in rope_parameters; the scaled kinds are refused."""
    parameters = Keys(keys.get("rope_parameters", {}), "Llama")
    base = parameters.get("rope_theta", float(keys.get("rope_theta", 10000.0)))
    keys.only("rope_theta", base)
    keys.only("rope_scaling", {"rope_type": "default"})
    refuse_scaled_rotary(parameters)
    return Rotary(head_width, "halves", float(base))


def read(config: Mapping[str, Any]) -> Architecture:
    keys = Keys(config, "Llama")
    keys.only("add_cross_attention", False)
    width, heads = keys.need("hidden_size"), keys.need("num_attention_heads")
    head_width = width // heads
    keys.only("head_dim", head_width)
    keys.only("rope_interleaved", False)
    biases = {"qkv", "out"} if keys.get("attention_bias", False) else set()
    biases |= {"mlp"} if keys.get("mlp_bias", False) else set()
    key_heads = keys.get("num_key_value_heads", heads)
    if key_heads < 1 or heads % key_heads:
        raise DaybreakError(
            f"config.json sets num_key_value_heads = {key_heads}, which {heads} heads cannot share evenly"
        )
    architecture = Architecture(
        vocabulary=keys.need("vocab_size"),
        context=keys.get("max_position_embeddings", 2048),
        layers=keys.need("num_hidden_layers"),
        width=width,
        heads=heads,
        key_heads=None if key_heads == heads else key_heads,
        inner=keys.need("intermediate_size"),
        positions=_rotary(keys, head_width),
        norm="rms",
        norm_eps=keys.get("rms_norm_eps", 1e-6),
        activation=keys.activation("hidden_act", "silu"),
        gated=True,
        biases=frozenset(biases),
        tied=keys.get("tie_word_embeddings", False),
    )
    keys.finish(HARMLESS)
    return architecture


def write(architecture: Architecture) -> dict[str, Any]:
    if not isinstance(architecture.positions, Rotary):
        raise DaybreakError("Llama's config.json can only say rotary positions")
    return {
        "vocab_size": architecture.vocabulary,
        "max_position_embeddings": architecture.context,
        "num_hidden_layers": architecture.layers,
        "hidden_size": architecture.width,
        "num_attention_heads": architecture.heads,
        "num_key_value_heads": architecture.key_heads or architecture.heads,
        "intermediate_size": architecture.inner,
        "rope_theta": architecture.positions.base,
        "rms_norm_eps": architecture.norm_eps,
        "hidden_act": hf_activation(architecture.activation),
        "attention_bias": "qkv" in architecture.biases,
        "mlp_bias": "mlp" in architecture.biases,
        "tie_word_embeddings": architecture.tied,
    }


RULES = (
    Rule("embed_tokens.weight", "tokens.weight"),
    *norm("layers.{i}.input_layernorm", "blocks.{i}.attention_norm"),
    *linear("layers.{i}.self_attn.q_proj", "blocks.{i}.attention.query"),
    *linear("layers.{i}.self_attn.k_proj", "blocks.{i}.attention.key"),
    *linear("layers.{i}.self_attn.v_proj", "blocks.{i}.attention.value"),
    *linear("layers.{i}.self_attn.o_proj", "blocks.{i}.attention.out"),
    *norm("layers.{i}.post_attention_layernorm", "blocks.{i}.mlp_norm"),
    *linear("layers.{i}.mlp.gate_proj", "blocks.{i}.mlp.gate"),
    *linear("layers.{i}.mlp.up_proj", "blocks.{i}.mlp.up"),
    *linear("layers.{i}.mlp.down_proj", "blocks.{i}.mlp.down"),
    *norm("norm", "final_norm"),
    Rule("lm_head.weight", "head.weight"),
)


def initialisation(architecture: Architecture) -> Initialisation:
    """The published configurations' initializer_range."""
    return Initialisation(0.02, 0.02)


def follows(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The whole head turns, whatever its width."""
    head_width = fields["width"] // fields["heads"]
    return {"positions": Rotary(head_width - head_width % 2)}


def _first(layers: int, width: int, heads: int, inner: int, parameters: int, context: int, hub: str) -> Size:
    eps = 1e-5 if "Llama-2" in hub or "TinyLlama" in hub else 1e-6
    shape = {"layers": layers, "width": width, "heads": heads, "inner": inner, "context": context}
    return Size({**shape, "norm_eps": eps}, parameters, hub)


def _smol(
    layers: int, width: int, heads: int, key_heads: int, inner: int, parameters: int, name: str
) -> Size:
    shape = {"layers": layers, "width": width, "heads": heads, "key_heads": key_heads, "inner": inner}
    rest = {"vocabulary": 49152, "context": 8192, "norm_eps": 1e-5, "tied": True}
    positions = Rotary(64, "halves", 130000.0 if name.endswith("1.7B-Instruct") else 100000.0)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return Size(
        {**shape, **rest, "positions": positions}, parameters, f"HuggingFaceTB/{name}", special_tokens=tokens
    )


SIZES = {
    "llama-7b": _first(32, 4096, 32, 11008, 6_738_415_616, 2048, "huggyllama/llama-7b"),
    "llama-13b": _first(40, 5120, 40, 13824, 13_015_864_320, 2048, "huggyllama/llama-13b"),
    "llama-30b": _first(60, 6656, 52, 17920, 32_528_943_616, 2048, "huggyllama/llama-30b"),
    "llama-65b": _first(80, 8192, 64, 22016, 65_285_660_672, 2048, "huggyllama/llama-65b"),
    "llama-2-7b": _first(32, 4096, 32, 11008, 6_738_415_616, 4096, "meta-llama/Llama-2-7b-hf"),
    "llama-2-13b": _first(40, 5120, 40, 13824, 13_015_864_320, 4096, "meta-llama/Llama-2-13b-hf"),
    "smollm2-135m": _smol(30, 576, 9, 3, 1536, 134_515_008, "SmolLM2-135M-Instruct"),
    "smollm2-360m": _smol(32, 960, 15, 5, 2560, 361_821_120, "SmolLM2-360M-Instruct"),
    "smollm2-1.7b": _smol(24, 2048, 32, 32, 8192, 1_711_376_384, "SmolLM2-1.7B-Instruct"),
}

FAMILY = Family(
    name="llama",
    title="Llama",
    year=2023,
    paper="Touvron et al., LLaMA (arXiv 2302.13971); Llama 2 (arXiv 2307.09288)",
    story="The successor of these families: RMS norms, a gated MLP, rotary positions over the whole head, no "
    "biases; later models share heads of keys and values.",
    model_type="llama",
    hf_class="LlamaForCausalLM",
    base=BASE,
    sizes=SIZES,
    read=read,
    write=write,
    rules=RULES,
    initialisation=initialisation,
    prefix="model.",
    older_prefixes=("",),
    ignored=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    special_tokens={"bos_token_id": 1, "eos_token_id": 2},
    starts_with_bos=True,
    follows=follows,
)
