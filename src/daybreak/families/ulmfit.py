"""ULMFiT (January 2018): before the transformers, an LSTM learns a language and is then tuned to a task.

AWD-LSTM is the network (arXiv 1708.02182): three LSTM layers, kept from learning by heart by five kinds of
dropout. ULMFiT (arXiv 1801.06146) is what was done with it: learn general text, go on with the task's own
text, then put a classifier on top and unfreeze the layers one after another.
"""

from __future__ import annotations

from daybreak.families.recurrent import Dropouts, Lstm, RecurrentFamily, RecurrentSize
from daybreak.rules import Rule

SPECIALS = ("xxunk", "xxpad", "xxbos", "xxeos", "xxfld", "xxrep", "xxwrep", "xxup", "xxmaj")
"""fastai's, in its order: unknown word, padding, start of a text, end, field, a character or a word repeated,
the next word in capitals, the next word with one capital."""

# The names that fastai gives to a language model. It stores the embedding three times, and older versions the
# state's weights twice, once as the last step had dropped them; the trained ones are the `_raw`.
RULES = (
    Rule("0.encoder.weight", "tokens.weight"),
    Rule("0.rnns.{i}.module.weight_ih_l0", "layers.{i}.input_weight"),
    Rule("0.rnns.{i}.weight_hh_l0_raw", "layers.{i}.state_weight"),
    Rule("0.rnns.{i}.module.bias_ih_l0", "layers.{i}.input_bias"),
    Rule("0.rnns.{i}.module.bias_hh_l0", "layers.{i}.state_bias"),
    Rule("1.decoder.bias", "head_bias"),
)
TWINS = {
    "0.encoder_dp.emb.weight": "0.encoder.weight",
    "1.decoder.weight": "0.encoder.weight",
}

FAMILY = RecurrentFamily(
    name="ulmfit",
    title="ULMFiT",
    year=2018,
    paper=(
        "Howard and Ruder, Universal Language Model Fine-tuning for Text Classification (arXiv 1801.06146); "
        "Merity et al., Regularizing and Optimizing LSTM Language Models (arXiv 1708.02182)"
    ),
    story=(
        "An LSTM, and the last great one: a language model is learned once, tuned to a task's text and then "
        "to the task, layer by layer."
    ),
    model_type="awd_lstm",
    base=Lstm(),
    sizes={
        "awd-lstm-1150": RecurrentSize({"hidden": 1150}, 44_271_600, "the paper's width"),
        "awd-lstm-1152": RecurrentSize(
            {"hidden": 1152}, 44_333_280, "fastai's width; published by fast.ai as wt103-fwd and wt103-bwd"
        ),
    },
    rules=RULES,
    twins=TWINS,
    stale=("0.rnns.{i}.module.weight_hh_l0",),
    # A classifier wraps its encoder for long texts; an encoder may be saved alone.
    shells={
        "0.module.": "0.",
        **{f"{part}.": f"0.{part}." for part in ("encoder", "encoder_dp", "rnns")},
    },
    specials=SPECIALS,
    unknown="xxunk",
    pad="xxpad",
    start="xxbos",
    language_dropouts=Dropouts(embedding=0.02, input=0.25, hidden=0.15, output=0.1, weight=0.2),
    classifier_dropouts=Dropouts(embedding=0.05, input=0.4, hidden=0.3, output=0.4, weight=0.5),
    special_tokens={"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1},
)
