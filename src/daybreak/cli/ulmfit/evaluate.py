"""`daybreak ulmfit evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from daybreak.cli import plain
from daybreak.cli import ulmfit as common


def evaluate(
    models: Annotated[list[str], typer.Argument(help="A model; or a forward and a backward classifier.")],
    texts: Annotated[list[str], typer.Option(help="A file of texts.")],
    column: common.Column = None,
    label: common.Label = None,
    as_json: common.AsJson = False,
) -> None:
    """Score texts: a language model by perplexity and bits per byte, classifiers by how often they are right.

    The probabilities of several classifiers are averaged.
    """
    from daybreak.transfer.use import evaluate as logic

    scores = logic(models, texts, column or "text", label or "label")
    if as_json:
        plain.print_json(scores)
        return
    print(plain.columns([[name.replace("_", " "), f"{value:.4f}"] for name, value in scores.items()]))
