"""`daybreak finetune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli import plain, tuning

if TYPE_CHECKING:
    from daybreak.train.tasks import TaskJob

FREE_WORDS = True
"""Any setting: --batch.examples 16."""


def finetune(
    context: typer.Context,
    model: tuning.Start = None,
    data: Annotated[
        str | None, typer.Argument(help="Rows with texts and labels: .jsonl, .json, .csv, .parquet.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classification, entailment, similarity or choice.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Column of a text; twice where two are compared.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="Column of an option, or one that holds a list of them.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="extract: marks around the texts, as GPT; last: the plain text.")
    ] = None,
    out: tuning.Out = None,
    config: tuning.Config = None,
    print_config: tuning.PrintConfig = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is read of a row, and its label, and stop.")
    ] = False,
    as_json: tuning.AsJson = False,
) -> int:
    """Teach a model to classify texts, to compare two of them, or to choose among options.

    Every setting of --print-config is an option: --epochs 5 --optimizer.lr 3e-5 --data.held_out 0.2. The same
    command started again goes on where the run was, whatever ended it. `daybreak classify` uses the result.

    Exit status: 0, or 2 for wrong input and a run that cannot go on; 130 or 143 after Ctrl-C or SIGTERM, when
    a checkpoint is written first.
    """
    from daybreak.train.task_settings import TaskSettings
    from daybreak.train.tuning_given import given_settings

    model, data, words = tuning.apart(context.args, model, data)
    own = tuning.given({"start": model, "task": task, "head": head}, data)
    columns: dict[str, Any] = {"text": text, "label": label, "choices": choice}
    named = {name: value for name, value in columns.items() if value}
    own = {**own, "data": {**own.get("data", {}), **named}}
    settings = given_settings(TaskSettings, out, config, own, words)
    if print_config:
        return tuning.print_config(settings, as_json)
    tuning.check(settings.start, out, dry_run)
    from daybreak.train.tasks import job_of
    from daybreak.train.tuning_start import start_of

    job = job_of(start_of(settings), settings)
    if dry_run:
        _show(job, as_json)
        return 0
    assert out is not None
    return tuning.run(job, settings, out, as_json, 'daybreak classify {} "..."')


def _show(job: TaskJob, as_json: bool) -> None:
    """One row, as it is read."""
    row = job.examples[0]
    read = [job.spelled(one) for one in row.sequences]
    if as_json:
        plain.print_json({**job.about(), "where": row.where, "read": read, "label": job.name_of(row.label)})
        return
    for name, line in job.about().items():
        print(f"{name}: {line}")
    print(f"{row.where}, label {job.name_of(row.label)}:")
    for text in read:
        print(f"    {text}")
