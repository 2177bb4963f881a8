"""`daybreak ulmfit finetune`."""

from __future__ import annotations

from typing import Annotated

import typer

from daybreak.cli import ulmfit as common

FREE_WORDS = True
"""Any setting: --epochs 15."""


def finetune(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="A folder of ours, or of fastai's with one .pth and one .pkl.")
    ] = None,
    texts: common.Texts = None,
    out: common.Out = None,
    held_out: common.HeldOut = None,
    column: common.Column = None,
    config: common.Config = None,
    print_config: common.PrintConfig = False,
    as_json: common.AsJson = False,
) -> int:
    """Go on with the text of a task: its words, lower rates for lower layers, a slanted triangle over time.

    The texts need no classes, and texts without any may be among them. Every setting of --print-config is an
    option.
    """
    from daybreak.transfer.run import given_settings, learn_language
    from daybreak.transfer.settings import LanguageSettings

    own = common.tree(model, texts, held_out, column)
    settings = given_settings(LanguageSettings, out, config, own, context.args)
    if not print_config and not settings.start:
        raise typer.BadParameter("name the model to start from; `daybreak ulmfit pretrain` makes one")
    then = "daybreak ulmfit classify {} --texts labelled.csv --out runs/classes"
    return common.train(settings, out, learn_language, print_config, as_json, then)
