"""`daybreak classify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daybreak.cli.options import Device

if TYPE_CHECKING:
    from daybreak.train.task_answers import Answer


def classify(
    folder: Annotated[Path, typer.Argument(help="The model that `daybreak finetune` wrote.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="The texts of one item; of a choice, what stands before, and the options."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A file of rows instead.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Columns of its texts, if not those that were learned from.")
    ] = None,
    choice: Annotated[list[str] | None, typer.Option(help="The same of its options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per item and line.")] = False,
    device: Device = "cpu",
) -> None:
    """Label texts: the class, number or option that a fine-tuned model finds right."""
    from daybreak.train.task_answers import answers, items_of, rows_of
    from daybreak.train.task_model import load_task_model

    if (file is None) == (not texts):
        raise typer.BadParameter("give the texts of one item, or a file of rows with --file")
    model = load_task_model(folder, device)
    items = rows_of(model, file, text, choice) if file is not None else items_of(model, texts or [])
    for answer in answers(model, items):
        _print(answer, as_json)


def _print(answer: Answer, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer.to_dict(), ensure_ascii=False))
        return
    sure = "" if answer.probability is None else f"\t{answer.probability:.3f}"
    print(f"{answer.label}{sure}")
