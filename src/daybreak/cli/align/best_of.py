"""`daybreak align best-of`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli import writing
from daybreak.cli.options import BatchSize, Device, Model, Revision
from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.align.judging import Best


def best_of(
    model: Model,
    prompts: Annotated[Path, typer.Argument(help="Rows with a prompt, or with messages.")],
    reward: Annotated[str, typer.Option(help="A reward model's folder.")],
    n: Annotated[int, typer.Option("--n", "-n", help="Answers to each prompt.")] = 16,
    out: Annotated[
        Path | None, typer.Option(help="A file for the lines of JSON; else they are printed.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="1: the model's own.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    batch_size: BatchSize = 32,
    revision: Revision = None,
    device: Device = "cpu",
) -> None:
    """Write n answers to each prompt, and keep the one that a reward model finds best.

    One line of JSON for each prompt: the answer, its reward, and the rewards of all n. Best of n is at most
    log n - (n - 1) / n nats away from the model that writes.
    """
    from daybreak.align.judging import best_of as logic
    from daybreak.align.judging import kl_bound, scorer_of
    from daybreak.align.reward_model import load_reward_model
    from daybreak.data.prompts import read_prompts
    from daybreak.engine.settings import Sampling

    if out is not None:  # said, or made, before hours of writing and not after
        if out.is_dir():
            raise DaybreakError(f"{out} is a folder; name a file with --out")
        out.parent.mkdir(parents=True, exist_ok=True)
    how = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, n=n, seed=seed)
    asked = [prompt for _, prompt in read_prompts(prompts)]
    scorer = scorer_of(load_reward_model(reward, device))
    writer = writing.load(model, revision, "float32", device, None)
    found = logic(writer, scorer, asked, how, batch_size, _progress)
    writing.tell("")
    lines = "".join(json.dumps(_row(one), ensure_ascii=False) + "\n" for one in found)
    if out is None:
        print(lines, end="")
    else:
        out.write_text(lines, encoding="utf-8")
    first = sum(one.rewards[0] for one in found) / len(found)
    best = sum(one.reward for one in found) / len(found)
    print(
        f"mean reward {best:.3f}, and {first:.3f} of the first answers; at most {kl_bound(n):.3f} nats from "
        "the model",
        file=sys.stderr,
    )


def _progress(done: int, total: int) -> None:
    writing.tell(f"{done} of {total} answers written")


def _row(best: Best) -> dict[str, Any]:
    return {
        "prompt": best.answer.prompt,
        "answer": best.answer.words,
        "reward": best.reward,
        "rewards": best.rewards,
    }
