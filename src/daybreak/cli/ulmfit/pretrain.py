"""`daybreak ulmfit pretrain`."""

from __future__ import annotations

import typer

from daybreak.cli import ulmfit as common

FREE_WORDS = True
"""Any setting: --changes '{width: 200, hidden: 400}'."""
USUAL = {"factor": 1.0}
"""Layers that all begin fresh learn at one rate."""


def pretrain(
    context: typer.Context,
    texts: common.Texts = None,
    out: common.Out = None,
    held_out: common.HeldOut = None,
    column: common.Column = None,
    config: common.Config = None,
    print_config: common.PrintConfig = False,
    as_json: common.AsJson = False,
) -> int:
    """Train an LSTM language model from scratch; the vocabulary is learned from the same texts.

    Every setting of --print-config is an option: --epochs 10 --direction backward --changes '{width: 200,
    hidden: 400}'. The same command started again goes on where the run was, whatever ended it.
    """
    from daybreak.transfer.run import given_settings, learn_language
    from daybreak.transfer.settings import LanguageSettings

    own = common.tree(None, texts, held_out, column)
    settings = given_settings(LanguageSettings, out, config, own, context.args, USUAL)
    then = "daybreak ulmfit finetune {} --texts texts.csv --out runs/target"
    return common.train(settings, out, learn_language, print_config, as_json, then)
