"""`daybreak ulmfit classify`."""

from __future__ import annotations

from typing import Annotated

import typer

from daybreak.cli import ulmfit as common

FREE_WORDS = True
"""Any setting: --epochs 20."""


def classify(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A language model, fine-tuned to such texts.")] = None,
    texts: common.Texts = None,
    out: common.Out = None,
    held_out: common.HeldOut = None,
    column: common.Column = None,
    label: common.Label = None,
    config: common.Config = None,
    print_config: common.PrintConfig = False,
    as_json: common.AsJson = False,
) -> int:
    """Train a classifier on a language model, one more layer unfrozen in each epoch.

    Every setting of --print-config is an option: --epochs 20 --lr 0.005 --gradual false.
    """
    from daybreak.transfer.run import given_settings, learn_classes
    from daybreak.transfer.settings import ClassifySettings

    own = common.tree(model, texts, held_out, column, label)
    settings = given_settings(ClassifySettings, out, config, own, context.args)
    if not print_config and not settings.start:
        raise typer.BadParameter(
            "name the language model to start from; `daybreak ulmfit finetune` makes one"
        )
    then = "daybreak ulmfit evaluate {} --texts test.csv"
    return common.train(settings, out, learn_classes, print_config, as_json, then)
