"""`daybreak ulmfit predict`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from daybreak.cli import ulmfit as common


def predict(
    models: Annotated[list[str], typer.Argument(help="A classifier; or a forward and a backward one.")],
    texts: Annotated[list[str], typer.Option(help="A file of texts.")],
    column: common.Column = None,
) -> None:
    """Print a line of JSON for each text: its class, and the probability of every class."""
    from daybreak.transfer.use import predict as logic

    for line in logic(models, texts, column or "text"):
        print(json.dumps(line, ensure_ascii=False))
