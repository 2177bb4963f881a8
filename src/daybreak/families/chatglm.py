"""ChatGLM-6B (2023): GLM-130B's block in small, tuned to converse; two rows of positions turn half of each
head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from daybreak.architecture import Architecture, Blanks, Rotary
from daybreak.errors import DaybreakError
from daybreak.families import shards
from daybreak.families.chat import Chat
from daybreak.families.family import Family, Initialisation, ShardRelease, Size
from daybreak.families.keys import Keys, hf_activation
from daybreak.families.marks import at_the_end
from daybreak.rules import PER_HEAD, ROWS, Rule, fused, linear, norm

BLANKS = Blanks(start=130004, end=130005, mask=130000, rest=130001, sentence=130002)
FIRST_BLANKS = Blanks(start=150004, end=150005, mask=150000, rest=150001, sentence=150002, runs_on=True)
"""Of the first release, whose vocabulary began with 20,000 tokens of images."""
RUNS_ON = "position_runs_on_after_gmask"
"""A key of ours: published files of the first release imply it by not naming the masks' ids."""
BASE = Architecture(
    vocabulary=130528,
    context=2048,
    layers=28,
    width=4096,
    heads=32,
    inner=16384,
    positions=Rotary(64, "halves", blocks=True, half_frequencies=True),
    residual="normed",
    residual_scale=math.sqrt(2 * 28),
    activation="gelu_tanh",
    tied=False,
    blanks=BLANKS,
)


def read(config: Mapping[str, Any]) -> Architecture:
    if "padded_vocab_size" in config or "ffn_hidden_size" in config:
        raise DaybreakError(
            "config.json describes ChatGLM2 or a later one, another architecture under the same name; "
            "supported here is ChatGLM-6B, the first"
        )
    keys = Keys(config, "ChatGLM")
    keys.only("add_cross_attention", False)
    keys.only("pre_seq_len", 0)
    keys.only("prefix_projection", False)
    two_rows = keys.get("position_encoding_2d", True)
    width, heads, layers = keys.need("hidden_size"), keys.need("num_attention_heads"), keys.need("num_layers")
    half_frequencies = keys.get("rotary_half_frequencies", True)
    architecture = Architecture(
        vocabulary=keys.need("vocab_size"),
        context=keys.get("max_sequence_length", 2048),
        layers=layers,
        width=width,
        heads=heads,
        inner=keys.get("inner_hidden_size", 4 * width),
        positions=_rotary(width // heads, two_rows, half_frequencies),
        residual="normed",
        residual_scale=math.sqrt(2 * layers),
        norm_eps=keys.get("layernorm_epsilon", 1e-5),
        activation=keys.activation("hidden_act", "gelu_new"),
        tied=keys.get("tie_word_embeddings", False),
        blanks=_blanks(keys, two_rows),
    )
    keys.only("quantization_bit", 0, 4, 8)
    keys.only("quantization_embeddings", True, False)
    keys.finish("image_length eva_config qformer_config")
    return architecture


def _rotary(head_width: int, two_rows: bool, half_frequencies: bool) -> Rotary:
    width = head_width // 2 if two_rows else head_width
    return Rotary(width, "halves", blocks=two_rows, half_frequencies=half_frequencies)


def _blanks(keys: Keys, two_rows: bool) -> Blanks:
    first = keys.get("gmask_token_id", -1) < 0
    default = FIRST_BLANKS if first else BLANKS
    return Blanks(
        start=keys.get("bos_token_id", default.start),
        end=keys.get("eos_token_id", default.end),
        mask=keys.get("mask_token_id", default.mask),
        rest=keys.get("gmask_token_id", default.rest),
        sentence=keys.get("smask_token_id", default.sentence),
        runs_on=keys.get(RUNS_ON, first or not two_rows),
    )


def write(architecture: Architecture) -> dict[str, Any]:
    blanks, rotary = architecture.blanks, architecture.positions
    if blanks is None or not isinstance(rotary, Rotary):
        raise DaybreakError("ChatGLM's config.json can only say texts with blanks and rotary positions")
    written: dict[str, Any] = {
        "vocab_size": architecture.vocabulary,
        "max_sequence_length": architecture.context,
        "num_layers": architecture.layers,
        "hidden_size": architecture.width,
        "num_attention_heads": architecture.heads,
        "inner_hidden_size": architecture.inner,
        "layernorm_epsilon": architecture.norm_eps,
        "position_encoding_2d": rotary.blocks,
        "bos_token_id": blanks.start,
        "eos_token_id": blanks.end,
        "mask_token_id": blanks.mask,
        "gmask_token_id": blanks.rest,
        "smask_token_id": blanks.sentence,
        RUNS_ON: blanks.runs_on,
        "tie_word_embeddings": architecture.tied,
    }
    # What the published code does is not said in its files.
    if architecture.activation != "gelu_tanh":
        written["hidden_act"] = hf_activation(architecture.activation)
    if not rotary.half_frequencies:
        written["rotary_half_frequencies"] = False
    return written


RULES = (
    Rule("word_embeddings.weight", "tokens.weight"),
    *norm("layers.{i}.input_layernorm", "blocks.{i}.attention_norm"),
    *fused("layers.{i}.attention.query_key_value", "blocks.{i}.attention", PER_HEAD, PER_HEAD),
    *linear("layers.{i}.attention.dense", "blocks.{i}.attention.out"),
    *norm("layers.{i}.post_attention_layernorm", "blocks.{i}.mlp_norm"),
    *linear("layers.{i}.mlp.dense_h_to_4h", "blocks.{i}.mlp.up"),
    *linear("layers.{i}.mlp.dense_4h_to_h", "blocks.{i}.mlp.down"),
    *norm("final_layernorm", "final_norm"),
    Rule("lm_head.weight", "head.weight", also=("mixins.chatglm-final.lm_head.weight",)),
)

CUTS = {**shards.cuts(up=ROWS), "lm_head.weight": ROWS}


def recognises(shapes: shards.Shapes) -> bool:
    """A head of its own, where the original repository's code puts it."""
    return "mixins.chatglm-final.lm_head.weight" in shapes


def shard_fields(shapes: shards.Shapes, settings: Mapping[str, Any]) -> dict[str, Any]:
    width = shards.rows(shapes, "transformer.final_layernorm.weight")
    rotary = next((shape for name, shape in shapes.items() if name.endswith("rotary_emb.inv_freq")), None)
    return {
        "vocabulary": shards.rows(shapes, "transformer.word_embeddings.weight"),
        "context": settings.get("max_sequence_length", BASE.context),
        "layers": shards.layers(shapes),
        "width": width,
        # Two rows of positions turn half of a head each.
        "heads": shards.heads(width, 128, settings, 4 * rotary[0] if rotary else None),
        "inner": shards.rows(shapes, "transformer.layers.0.mlp.dense_h_to_4h.weight"),
        "norm_eps": settings.get("layernorm_epsilon", BASE.norm_eps),
    }


def initialisation(architecture: Architecture) -> Initialisation:
    """Nothing is published; GLM-130B's, whose block it is."""
    scaled = (".attention.value", ".attention.out", ".mlp.up", ".mlp.down")
    return Initialisation(1.0, (2 * architecture.layers) ** -0.5, xavier=True, scaled=scaled)


def follows(fields: Mapping[str, Any]) -> dict[str, Any]:
    """DeepNorm's alpha (2N)^1/2, both halves of the head turned, and in another vocabulary the last ids as
    marks.
    """
    vocabulary = fields["vocabulary"]
    return {
        "residual_scale": math.sqrt(2 * fields["layers"]),
        "positions": _rotary(fields["width"] // fields["heads"], two_rows=True, half_frequencies=True),
        "blanks": {130528: BLANKS, 150528: FIRST_BLANKS}.get(vocabulary, at_the_end(vocabulary)),
    }


ROUNDS = Chat(
    "{% set state = namespace(round=0, question=none) %}"
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "{{ '[Round ' ~ state.round ~ ']\\n问：' ~ (state.question or '') }}"
    "{{ '\\n答：' ~ message.content ~ '\\n' }}"
    "{% set state.round = state.round + 1 %}{% set state.question = none %}"
    "{% elif state.question is none %}{% set state.question = message.content %}"
    "{% else %}{% set state.question = state.question ~ '\\n' ~ message.content %}{% endif %}"
    "{% endfor %}"
    "{% if state.round == 0 %}{{ state.question or '' }}"
    "{% elif add_generation_prompt or state.question %}"
    "{{ '[Round ' ~ state.round ~ ']\\n问：' ~ (state.question or '') ~ '\\n答：' }}{% endif %}",
    generation={"do_sample": True, "top_p": 0.7, "temperature": 0.95, "max_length": 2048},
    tuned=True,
)
"""The published code's rounds; a first question stands alone. It knows no system messages: here they, and
further questions in a row, stand on lines of their own within the question.
"""

_FIRST_TOKENS = {"bos_token_id": 150004, "eos_token_id": 150005, "pad_token_id": 3}

FAMILY = Family(
    name="chatglm",
    title="ChatGLM-6B",
    year=2023,
    paper="Zeng et al., GLM-130B (arXiv 2210.02414); no paper of its own",
    story="GLM-130B's block at six billion parameters, tuned to converse in Chinese and English: half of "
    "each head turns by the position, half by the place within the answer.",
    model_type="chatglm",
    hf_class="ChatGLMForConditionalGeneration",
    base=BASE,
    sizes={
        "chatglm-6b": Size({}, 6_707_929_088, "THUDM/chatglm-6b"),
        "chatglm-6b-first": Size(
            {"vocabulary": 150528},
            6_871_769_088,
            None,
            note="the release of March 2023, the same model with 20,000 tokens of images in front of its "
            "vocabulary",
            special_tokens=_FIRST_TOKENS,
        ),
    },
    read=read,
    write=write,
    rules=RULES,
    initialisation=initialisation,
    prefix="transformer.",
    packed=True,
    shard_release=ShardRelease(CUTS, recognises, shard_fields),
    # Tables of positions stand in shards, where nothing reads them.
    ignored=(r".*rotary_emb\.inv_freq", r"position_embeddings\.weight"),
    special_tokens={"bos_token_id": 130004, "eos_token_id": 130005, "pad_token_id": 3},
    follows=follows,
    blank_tokens={
        "start": "<sop>",
        "end": "<eop>",
        "mask": "[MASK]",
        "rest": "[gMASK]",
        "sentence": "[sMASK]",
    },
    remote_code=("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm"),
    chat=ROUNDS,
)
