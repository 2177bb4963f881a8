"""GPT-NeoX-20B (2022) and Pythia (2023): parallel blocks with two norms, a quarter of each head rotated in
halves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from daybreak.architecture import Architecture, Rotary
from daybreak.errors import DaybreakError
from daybreak.families.family import Family, Initialisation, sizes
from daybreak.families.keys import Keys, hf_activation, refuse_scaled_rotary
from daybreak.families.tokenizer import END_OF_TEXT, TokenizerDesign
from daybreak.rules import PER_HEAD, Rule, fused, linear, norm

HARMLESS = "hidden_dropout hidden_dropout_prob classifier_dropout"
BASE = Architecture(
    vocabulary=50304,
    context=2048,
    layers=6,
    width=512,
    heads=8,
    inner=2048,
    positions=Rotary(16, "halves"),
    block="parallel",
    activation="gelu",
    tied=False,
)


def _rotary(keys: Keys, head_width: int) -> Rotary:
    """Old files spell rotary_pct and rotary_emb_base; newer ones hold both in rope_parameters."""
    parameters = Keys(keys.get("rope_parameters", {}), "GPT-NeoX")
    older_fraction, older_base = keys.get("rotary_pct", 0.25), keys.get("rotary_emb_base", 10000.0)
    fraction = parameters.get("partial_rotary_factor", float(older_fraction))
    base = parameters.get("rope_theta", float(older_base))
    refuse_scaled_rotary(parameters)
    # Several spellings in one file must agree; alone, the reference would not read the second ones.
    for name in ("rotary_pct", "partial_rotary_factor"):
        keys.only(name, fraction)
    for name in ("rotary_emb_base", "rope_theta"):
        keys.only(name, base)
    return Rotary(int(head_width * fraction), "halves", float(base))


def read(config: Mapping[str, Any]) -> Architecture:
    keys = Keys(config, "GPT-NeoX")
    keys.only("rope_scaling")
    width, heads = keys.need("hidden_size"), keys.need("num_attention_heads")
    parallel = keys.get("use_parallel_residual", True)
    biased = keys.get("attention_bias", True)
    architecture = Architecture(
        vocabulary=keys.need("vocab_size"),
        context=keys.get("max_position_embeddings", 2048),
        layers=keys.need("num_hidden_layers"),
        width=width,
        heads=heads,
        inner=keys.need("intermediate_size"),
        positions=_rotary(keys, width // heads),
        block="parallel" if parallel else "pre",
        norm_eps=keys.get("layer_norm_eps", 1e-5),
        activation=keys.activation("hidden_act", "gelu"),
        biases=frozenset({"qkv", "out", "mlp"} if biased else {"mlp"}),
        tied=keys.get("tie_word_embeddings", False),
    )
    keys.finish(HARMLESS)
    return architecture


def write(architecture: Architecture) -> dict[str, Any]:
    if not isinstance(architecture.positions, Rotary):
        raise DaybreakError("GPT-NeoX's config.json can only say rotary positions")
    return {
        "vocab_size": architecture.vocabulary,
        "max_position_embeddings": architecture.context,
        "num_hidden_layers": architecture.layers,
        "hidden_size": architecture.width,
        "num_attention_heads": architecture.heads,
        "intermediate_size": architecture.inner,
        "rotary_pct": _fraction(architecture.positions.width, architecture.head_width),
        "rotary_emb_base": architecture.positions.base,
        "use_parallel_residual": architecture.block == "parallel",
        "layer_norm_eps": architecture.norm_eps,
        "hidden_act": hf_activation(architecture.activation),
        "attention_bias": "qkv" in architecture.biases,
        "tie_word_embeddings": architecture.tied,
    }


def _fraction(width: int, head_width: int) -> float:
    """A float that, multiplied by the head's width and cut to an integer, gives `width` again (24 / 96 does,
    6 / 14 may not).
    """
    fraction = width / head_width
    while int(head_width * fraction) < width:
        fraction = math.nextafter(fraction, 2.0)
    return fraction


RULES = (
    Rule("embed_in.weight", "tokens.weight"),
    *norm("layers.{i}.input_layernorm", "blocks.{i}.attention_norm"),
    *norm("layers.{i}.post_attention_layernorm", "blocks.{i}.mlp_norm"),
    *fused("layers.{i}.attention.query_key_value", "blocks.{i}.attention", PER_HEAD, PER_HEAD),
    *linear("layers.{i}.attention.dense", "blocks.{i}.attention.out"),
    *linear("layers.{i}.mlp.dense_h_to_4h", "blocks.{i}.mlp.up"),
    *linear("layers.{i}.mlp.dense_4h_to_h", "blocks.{i}.mlp.down"),
    *norm("final_layer_norm", "final_norm"),
    Rule("embed_out.weight", "head.weight", also=("lm_head.weight",)),
)


def initialisation(architecture: Architecture) -> Initialisation:
    """small_init for most, wang_init for residual outputs (gpt-neox, init_functions.py)."""
    width, layers = architecture.width, architecture.layers
    return Initialisation(math.sqrt(2 / (5 * width)), 2 / (layers * math.sqrt(width)))


def _sizes() -> dict[str, Any]:
    pythia = {
        "pythia-14m": (6, 128, 4, 14_067_712),
        "pythia-31m": (6, 256, 8, 30_494_720),
        "pythia-70m": (6, 512, 8, 70_426_624),
        "pythia-160m": (12, 768, 12, 162_322_944),
        "pythia-410m": (24, 1024, 16, 405_334_016),
        "pythia-1b": (16, 2048, 8, 1_011_781_632),
        "pythia-1.4b": (24, 2048, 16, 1_414_647_808),
        "pythia-2.8b": (32, 2560, 32, 2_775_208_960),
        "pythia-6.9b": (32, 4096, 32, 6_857_302_016),
        "pythia-12b": (36, 5120, 40, 11_846_072_320),
        "gpt-neox-20b": (44, 6144, 64, 20_554_567_680),
    }
    # The table is padded to a multiple of 128 times the tensor-parallel ranks of training.
    vocabulary = {"pythia-6.9b": 50432, "pythia-12b": 50688, "gpt-neox-20b": 50432}
    found = {}
    for name, (layers, width, heads, parameters) in pythia.items():
        extra = {
            "positions": Rotary(width // heads // 4, "halves"),
            "vocabulary": vocabulary.get(name, 50304),
            # The published config.json of the 20B model says gelu_fast, those of Pythia say gelu.
            "activation": "gelu_tanh" if name == "gpt-neox-20b" else "gelu",
        }
        found.update(sizes({name: (layers, width, heads, parameters)}, "EleutherAI/{}", **extra))
    return found


TOKENIZER = TokenizerDesign(
    "bytes",
    50277,
    first=(END_OF_TEXT, "<|padding|>"),
    last=(),
    composed=True,
    longest_run=24,
    pad="<|padding|>",
)

FAMILY = Family(
    name="gpt_neox",
    title="GPT-NeoX and Pythia",
    year=2022,
    paper="Black et al., GPT-NeoX-20B (arXiv 2204.06745); Biderman et al., Pythia (arXiv 2304.01373)",
    story="Attention and MLP run in parallel behind a norm each; a quarter of each head is rotated in "
    "halves; input and output embeddings are separate.",
    model_type="gpt_neox",
    hf_class="GPTNeoXForCausalLM",
    base=BASE,
    sizes=_sizes(),
    read=read,
    write=write,
    rules=RULES,
    initialisation=initialisation,
    prefix="gpt_neox.",
    ignored=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    special_tokens={"bos_token_id": 0, "eos_token_id": 0},
    tokenizer=TOKENIZER,
)
