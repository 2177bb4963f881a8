"""`daybreak align reward`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daybreak.cli import tuning

if TYPE_CHECKING:
    from daybreak.align.reward_report import RewardReport

FREE_WORDS = True
"""Any setting: --batch.examples 64."""


def reward(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="The model to start from: a folder, a repository of the hub, a name.")
    ] = None,
    rankings: Annotated[
        str | None, typer.Argument(help="Answers with ranks or scores, pairs, or ratings.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. Where a run stands there, it goes on.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings with their explanations, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> int:
    """Learn from rankings what answers are worth: one number for each, its head in the vocabulary's place.

    Every setting of --print-config is an option: --optimizer.lr 9e-6 --data.validation held_out.jsonl. The
    model is left in the run's folder `model`, with a report on rankings that were held out in reward.json.
    The same command started again goes on where the run was, whatever ended it.

    Exit status: 0, or 2 for wrong input and a run that cannot go on; 130 or 143 after Ctrl-C or SIGTERM, when
    a checkpoint is written first.
    """
    from daybreak.align.preference_settings import RewardSettings
    from daybreak.train.tuning_given import given_settings

    model, rankings, words = tuning.apart(context.args, model, rankings)
    own = tuning.given({"start": model}, rankings)
    settings = given_settings(RewardSettings, out, config, own, words)
    if print_config:
        return tuning.print_config(settings, as_json)
    tuning.check(settings.start, out)
    from daybreak.align.reward_training import job_of
    from daybreak.train.tuning_start import start_of

    assert out is not None
    job = job_of(start_of(settings), settings)
    status = tuning.run(job, settings, out, as_json, "daybreak align best-of MODEL PROMPTS --reward {}")
    if status == 0 and not as_json:
        _print(job.report)
    return status


def _print(report: RewardReport | None) -> None:
    if report is None:
        print(
            "held out: nothing, so nobody knows how good it is; give more prompts, --data.validation FILE, "
            "or a higher --data.held_out"
        )
        return
    print(
        f"held out: right about {report.accuracy:.1%} of {report.pairs:,} pairs of {report.prompts:,} "
        f"prompts (always the longer answer: {report.length_accuracy:.1%}); calibration error "
        f"{report.calibration_error:.3f}"
    )
    for count, own in report.by_answers.items():
        print(f"  prompts with {count} answers: {own['accuracy']:.1%} of {own['pairs']:,} pairs")
    lengths = [report.length_correlation, report.length_correlation_within]
    told = ["unknown" if one is None else f"{one:+.2f}" for one in lengths]
    print(f"  correlation of reward and length: {told[0]}, within prompts {told[1]}")
