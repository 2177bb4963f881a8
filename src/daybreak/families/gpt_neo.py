"""GPT-Neo (2021): the first open answer to GPT-3. Scores are not scaled, and layers see all tokens or the
last 256 in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daybreak.architecture import Architecture
from daybreak.errors import DaybreakError
from daybreak.families.family import Family, Initialisation, sizes
from daybreak.families.keys import Keys, hf_activation, repeated
from daybreak.families.tokenizer import PAIRS_OF_BYTES
from daybreak.rules import Rule, linear, norm

HARMLESS = (
    "embed_dropout resid_dropout summary_activation summary_first_dropout "
    "summary_proj_to_labels summary_type classifier_dropout"
)
BASE = Architecture(
    context=2048,
    windows=(None, 256),
    scaled_scores=False,
    biases=frozenset({"out", "mlp"}),
)


def read(config: Mapping[str, Any]) -> Architecture:
    keys = Keys(config, "GPT-Neo")
    layers = keys.need("num_layers", "num_hidden_layers")
    width = keys.need("hidden_size")
    kinds = _kinds(keys, layers)
    window = keys.get("window_size", 256)
    architecture = Architecture(
        vocabulary=keys.need("vocab_size"),
        context=keys.get("max_position_embeddings", 2048),
        layers=layers,
        width=width,
        heads=keys.need("num_heads", "num_attention_heads"),
        inner=keys.get("intermediate_size", 4 * width),
        windows=tuple(window if kind == "local" else None for kind in kinds),
        norm_eps=keys.get("layer_norm_epsilon", 1e-5),
        activation=keys.activation("activation_function", "gelu_new"),
        scaled_scores=False,
        biases=BASE.biases,
        tied=keys.get("tie_word_embeddings", True),
    )
    keys.finish(HARMLESS)
    return architecture


def _kinds(keys: Keys, layers: int) -> list[str]:
    """Attention of every layer, global or local: listed one by one, or as patterns with a count each."""
    kinds = keys.get("attention_layers", [])
    types = keys.get("attention_types", [[["global", "local"], layers // 2]])
    if not kinds:
        try:
            kinds = [kind for pattern, count in types for kind in pattern * count]
        except (TypeError, ValueError) as error:
            raise DaybreakError(
                f"config.json sets attention_types = {types!r}, which is no pattern"
            ) from error
    if len(kinds) != layers or any(kind not in ("global", "local") for kind in kinds):
        raise DaybreakError(
            f"config.json has attention_layers (or attention_types) for {len(kinds)} layers, {kinds}; "
            f"the model has {layers}, and each must be global or local"
        )
    return list(kinds)


def write(architecture: Architecture) -> dict[str, Any]:
    windows = repeated(architecture.windows, architecture.layers)
    kinds = ["global" if window is None else "local" for window in windows]
    bands = sorted({window for window in windows if window is not None})
    if len(bands) > 1:
        raise DaybreakError(f"GPT-Neo's config.json holds one window size, this architecture has {bands}")
    return {
        "vocab_size": architecture.vocabulary,
        "max_position_embeddings": architecture.context,
        "num_layers": architecture.layers,
        "hidden_size": architecture.width,
        "num_heads": architecture.heads,
        "intermediate_size": architecture.inner,
        "attention_types": [[[kind], 1] for kind in kinds],
        "attention_layers": kinds,
        "window_size": bands[0] if bands else 256,
        "layer_norm_epsilon": architecture.norm_eps,
        "activation_function": hf_activation(architecture.activation),
        "tie_word_embeddings": architecture.tied,
    }


RULES = (
    Rule("wte.weight", "tokens.weight"),
    Rule("wpe.weight", "positions.weight"),
    *norm("h.{i}.ln_1", "blocks.{i}.attention_norm"),
    *linear("h.{i}.attn.attention.q_proj", "blocks.{i}.attention.query"),
    *linear("h.{i}.attn.attention.k_proj", "blocks.{i}.attention.key"),
    *linear("h.{i}.attn.attention.v_proj", "blocks.{i}.attention.value"),
    *linear("h.{i}.attn.attention.out_proj", "blocks.{i}.attention.out"),
    *norm("h.{i}.ln_2", "blocks.{i}.mlp_norm"),
    *linear("h.{i}.mlp.c_fc", "blocks.{i}.mlp.up"),
    *linear("h.{i}.mlp.c_proj", "blocks.{i}.mlp.down"),
    *norm("ln_f", "final_norm"),
    Rule("lm_head.weight", "head.weight"),
)


FAMILY = Family(
    name="gpt_neo",
    title="GPT-Neo",
    year=2021,
    paper="Black et al., GPT-Neo: Large Scale Autoregressive Language Modeling with Mesh-Tensorflow (2021)",
    story="Every second layer sees the last 256 tokens only; scores are left unscaled; queries, keys and "
    "values have no bias.",
    model_type="gpt_neo",
    hf_class="GPTNeoForCausalLM",
    base=BASE,
    sizes=sizes(
        {
            "gpt-neo-125m": (12, 768, 12, 125_198_592),
            "gpt-neo-1.3B": (24, 2048, 16, 1_315_575_808),
            "gpt-neo-2.7B": (32, 2560, 20, 2_651_307_520),
        },
        hub="EleutherAI/{}",
    ),
    read=read,
    write=write,
    rules=RULES,
    initialisation=lambda architecture: Initialisation(0.02, 0.02),
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.attention\.(bias|masked_bias)",),
    special_tokens={"bos_token_id": 50256, "eos_token_id": 50256},
    tokenizer=PAIRS_OF_BYTES,
)
