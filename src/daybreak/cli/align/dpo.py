"""`daybreak align dpo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daybreak.cli import tuning

FREE_WORDS = True
"""Any setting: --batch.examples 64."""


def dpo(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="The model to start from: a folder, a repository of the hub, a name.")
    ] = None,
    rankings: Annotated[
        str | None, typer.Argument(help="Pairs, answers with ranks or scores, or ratings.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. Where a run stands there, it goes on.")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="dpo, ipo, kto or hinge.")] = None,
    beta: Annotated[
        float | None, typer.Option(help="How strongly the policy is held to its start: 0.1.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings with their explanations, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> int:
    """Learn from pairs of answers which to write, against the frozen model that it begins as.

    Every setting of --print-config is an option: --optimizer.lr 5e-7 --loss.smoothing 0.1. The reference's
    log-probabilities are computed once, before anything moves. The same command started again goes on where
    the run was, whatever ended it.

    Exit status: 0, or 2 for wrong input and a run that cannot go on; 130 or 143 after Ctrl-C or SIGTERM, when
    a checkpoint is written first.
    """
    from daybreak.align.preference_settings import PreferenceSettings
    from daybreak.train.tuning_given import given_settings

    model, rankings, words = tuning.apart(context.args, model, rankings)
    own = tuning.given({"start": model}, rankings)
    chosen = {name: value for name, value in (("name", loss), ("beta", beta)) if value is not None}
    own = {**own, "loss": chosen} if chosen else own
    settings = given_settings(PreferenceSettings, out, config, own, words)
    if print_config:
        return tuning.print_config(settings, as_json)
    tuning.check(settings.start, out)
    from daybreak.align.preference_training import job_of
    from daybreak.train.tuning_start import start_of

    assert out is not None
    policy = start_of(settings)
    reference = start_of(settings) if settings.lora is None else None
    return tuning.run(job_of(policy, reference, settings), settings, out, as_json, "daybreak chat {}")
