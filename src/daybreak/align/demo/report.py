"""The demo's figures in words: means over the seeds, and how far these are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

Result = dict[str, Any]
TITLES = {
    "base": "before: pretrained alone",
    "sft": "tuned on demonstrations (SFT)",
    "dpo": "DPO",
    "ppo": "PPO",
    "ppo-ptx": "PPO-ptx",
}
COLUMNS: dict[str, tuple[str, int]] = {
    "label": ("labeller (0 to 4)", 2),
    "full": ("all four points", 3),
    "reward": ("reward model", 2),
    "kl": ("KL from SFT (nats)", 2),
    "bits_per_byte": ("bits per byte", 3),
    "length": ("tokens", 1),
    "ended": ("ended", 3),
    "distinct": ("distinct", 3),
}


def table(results: Sequence[Result]) -> str:
    """A row for each model, in Markdown."""
    rows = [["model", *(title for title, _ in COLUMNS.values())], ["---", *["---:"] * len(COLUMNS)]]
    for name, title in TITLES.items():
        own = [result["models"][name] for result in results]
        rows.append(
            [title, *(spread([one[key] for one in own], digits) for key, (_, digits) in COLUMNS.items())]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def spread(values: Sequence[float | None], digits: int) -> str:
    """The mean, and with more than one seed the standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{fmean(known):.{digits}f}"
    return mean if len(known) < 2 else f"{mean} ± {stdev(known):.{digits}f}"


def lines(results: Sequence[Result]) -> list[str]:
    """What else is worth a line."""

    def over(of: Callable[[Result], float | None], digits: int) -> str:
        return spread([of(result) for result in results], digits)

    before, after = (
        [result["models"][name]["bits_per_byte"] for result in results] for name in ("sft", "ppo")
    )
    mixed = [result["models"]["ppo-ptx"]["bits_per_byte"] for result in results]
    lost = spread([b - a for a, b in zip(before, after, strict=True)], 3)
    kept = spread([b - a for a, b in zip(before, mixed, strict=True)], 3)
    return [
        f"the reward model is right about {over(lambda one: one['reward_accuracy'], 3)} of held-out pairs",
        f"PPO cost {lost} bits per byte of held-out text against SFT, PPO-ptx {kept}",
        f"a seed took {over(lambda one: sum(one['seconds'].values()) / 60, 1)} minutes",
    ]


def answers_text(result: Result) -> str:
    """Answers of all models to the same prompts, in Markdown."""
    parts = ["# Answers to prompts that nothing was learned from\n"]
    for prompt, own in result["samples"].items():
        parts.append(f"## `{prompt}`\n")
        for name, title in TITLES.items():
            text = f"{prompt}{own[name]}".replace("```", "'''").rstrip()
            parts.append(f"{title}:\n\n```python\n{text}\n```\n")
    return "\n".join(parts)
