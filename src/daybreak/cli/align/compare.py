"""`daybreak align compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daybreak.cli import plain, writing
from daybreak.cli.options import BatchSize, Device
from daybreak.errors import DaybreakError


def compare(
    models: Annotated[
        list[str] | None, typer.Argument(help="The models to compare; NAME=FOLDER gives one a name.")
    ] = None,
    *,
    reference: Annotated[str, typer.Option(help="The model that they began as.")],
    prompts: Annotated[Path, typer.Option(help="Rows with a prompt, or with messages.")],
    reward: Annotated[str, typer.Option(help="The folder of the reward model that judges.")],
    out: Annotated[
        Path | None, typer.Option(help="A folder for the table, the picture and the answers.")
    ] = None,
    best_of: Annotated[
        list[int] | None, typer.Option(help="Compare the reference's best of so many answers, too.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Models beside the one that they began as: how often their answers are preferred, and how far they went.

    The divergence is measured on each model's own answers at temperature 1, by the engine's log-probabilities
    and the reference's; that of best of n is an upper bound. With --out, compare.md, compare.json,
    compare.png and answers.jsonl are written there.
    """
    if not models and not best_of:
        raise typer.BadParameter("name models to compare, or --best-of 16")
    from dataclasses import asdict

    from daybreak.align.comparison import Comparison, Setting, table, write
    from daybreak.align.judging import scorer_of
    from daybreak.align.reward_model import load_reward_model
    from daybreak.data.prompts import read_prompts

    if out is not None:  # said, or made, before all that is written and not after
        if out.exists() and not out.is_dir():
            raise DaybreakError(f"{out} is no folder; name another with --out")
        out.mkdir(parents=True, exist_ok=True)
    asked = [prompt for _, prompt in read_prompts(prompts)]
    scorer = scorer_of(load_reward_model(reward, device))
    start = writing.load(reference, None, "float32", device, None)
    setting = Setting(max_new_tokens, samples, seed, batch_size)
    found = Comparison(start, asked, scorer, setting, writing.tell)
    for given in models or []:
        name, equals, folder = given.partition("=")
        found.add(name, writing.load(folder if equals else given, None, "float32", device, None))
    for n in best_of or []:
        found.add_best_of(n)
    writing.tell("")
    told = {"reference": reference, "reward": reward, "prompts": str(prompts), **asdict(setting)}
    if out is not None:
        write(out, found, told)
    if as_json:
        rows = [{**asdict(row), "per_nat": row.per_nat} for row in found.rows]
        plain.print_json({**told, "rows": rows})
    else:
        print(plain.columns(table(found.rows)))
