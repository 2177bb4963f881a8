"""`daybreak align sft`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from daybreak.cli import plain, tuning

if TYPE_CHECKING:
    from daybreak.align.sft import Sft

FREE_WORDS = True
"""Any setting: --batch.examples 64."""


def sft(
    context: typer.Context,
    model: tuning.Start = None,
    data: Annotated[
        str | None, typer.Argument(help="Conversations, prompts with completions, or Alpaca's columns.")
    ] = None,
    out: tuning.Out = None,
    config: tuning.Config = None,
    print_config: tuning.PrintConfig = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what of an example is read and what is learned, and stop.")
    ] = False,
    as_json: tuning.AsJson = False,
) -> int:
    """Fine-tune a model on demonstrations; the loss is that of the answers alone.

    Every setting of --print-config is an option: --epochs 16 --optimizer.lr 9.65e-6 --dropout.residual 0.2.
    The same command started again goes on where the run was, whatever ended it.

    Exit status: 0, or 2 for wrong input and a run that cannot go on; 130 or 143 after Ctrl-C or SIGTERM, when
    a checkpoint is written first.
    """
    from daybreak.align.sft_settings import SftSettings
    from daybreak.train.tuning_given import given_settings

    model, data, words = tuning.apart(context.args, model, data)
    own = tuning.given({"start": model}, data)
    settings = given_settings(SftSettings, out, config, own, words)
    if print_config:
        return tuning.print_config(settings, as_json)
    tuning.check(settings.start, out, dry_run)
    from daybreak.align.sft import job_of
    from daybreak.train.tuning_start import start_of

    job = job_of(start_of(settings), settings)
    if dry_run:
        _show(job, as_json)
        return 0
    assert out is not None
    return tuning.run(job, settings, out, as_json, "daybreak chat {}")


def _show(job: Sft, as_json: bool) -> None:
    """One example, piece by piece."""
    from daybreak.align.sft import pieces

    lesson, found = job.examples[0], pieces(job.model, job.examples[0])
    if as_json:
        shown = [{"learned": learned, "text": text, "tokens": count} for learned, text, count in found]
        plain.print_json({**job.about(), "where": lesson.where, "pieces": shown})
        return
    for name, line in job.about().items():
        print(f"{name}: {line}")
    print(f"{lesson.where}, {len(lesson.tokens):,} tokens:")
    for learned, text, count in found:
        print(f"{'learned' if learned else 'read':>8} {count:5,}  {text!r}")
