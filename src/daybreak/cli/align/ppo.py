"""`daybreak align ppo`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli import plain, tuning

if TYPE_CHECKING:
    from daybreak.align.ppo_run import PpoOutcome

FREE_WORDS = True
"""Any setting: --kl.beta 0.05."""


def ppo(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="The policy to start from, tuned on demonstrations: a folder or name."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Argument(help="What is to be answered: rows with prompt or messages, null turns too."),
    ] = None,
    reward: Annotated[
        Path | None, typer.Option(help="A reward model that `daybreak align reward` wrote.")
    ] = None,
    mix: Annotated[
        Path | None, typer.Option(help="Token shards to mix in, so that little is forgotten (PPO-ptx).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. Where a run stands there, it goes on.")
    ] = None,
    any_reward: Annotated[
        bool, typer.Option("--any-reward", help="Take a reward model however good it is.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings with their explanations, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> int:
    """Learn from a reward model's judgement of the policy's own answers (proximal policy optimisation).

    Every setting of --print-config is an option: --episodes 4096 --rollout.answers 64 --kl.beta 0.05. With
    --lora.rank 8 policy and reference share their weights, and so do value model and reward model. The same
    command started again goes on where the run was, whatever ended it.

    Exit status: 0, or 2 for wrong input and a run that cannot go on; 130 or 143 after Ctrl-C or SIGTERM, when
    a checkpoint is written first.
    """
    from daybreak.align.ppo_settings import PpoSettings
    from daybreak.train.tuning_given import given_settings

    model, prompts, words = tuning.apart(context.args, model, prompts)
    own: dict[str, Any] = {} if model is None else {"model": model}
    for name, path in (("prompts", prompts), ("reward", reward), ("mix", mix)):
        if path is not None:
            own[name] = str(Path(path).absolute())
    if any_reward:
        own["least_accuracy"] = None
    settings = given_settings(PpoSettings, out, config, own, words)
    if print_config:
        return tuning.print_config(settings, as_json)
    tuning.check(settings.model, out)
    assert out is not None
    from daybreak.align.ppo_run import train_ppo
    from daybreak.cli.training_screen import TrainingScreen

    with TrainingScreen() as screen:
        outcome = train_ppo(settings, out, screen)
    _print(outcome, as_json)
    return 0 if outcome.ending == "finished" else tuning.SIGNALLED + (outcome.signal or signal.SIGTERM)


def _print(outcome: PpoOutcome, as_json: bool) -> None:
    if as_json:
        exported = None if outcome.exported is None else str(outcome.exported)
        plain.print_json({**vars(outcome), "folder": str(outcome.folder), "exported": exported})
    elif outcome.ending == "stopped":
        print(
            f"{outcome.folder}: stopped at iteration {outcome.iteration:,} of {outcome.iterations:,}, with a "
            "checkpoint; the same command goes on"
        )
    else:
        last = ", ".join(f"{name} {value:.3f}" for name, value in outcome.figures.items())
        told = f"; the last: {last}" if last else ""
        print(f"{outcome.folder}: {outcome.iteration:,} iterations done{told}")
        from daybreak.text.chat_template import JINJA

        assert outcome.exported is not None
        talks = (outcome.exported / JINJA).is_file()
        use = f"chat {outcome.exported}" if talks else f'generate {outcome.exported} "..."'
        print(f"try: daybreak {use}")
