"""How good a reward model is, on rankings that it has not learned from; and the gate before it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daybreak.align.encoding import Compared
from daybreak.checkpoint.config import read_config, read_json
from daybreak.errors import DaybreakError

REPORT = "reward.json"
BINS = 10
"""Of the calibration, of equal width from one half to 1."""


@dataclass(frozen=True)
class Bin:
    """Pairs of which the model is so sure."""

    pairs: int
    sure: float
    """The mean of sigmoid(|r_1 - r_2|): how often it should be right."""
    right: float
    """How often it is right."""


@dataclass(frozen=True)
class RewardReport:
    """Figures of held-out rankings. Pairs that people found equal are left out everywhere."""

    prompts: int
    pairs: int
    accuracy: float
    """Of the pairs in which the answer that people preferred has the higher reward; equal rewards count
    half."""
    by_answers: dict[str, dict[str, float]]
    """Accuracy and pairs of prompts with so many answers."""
    calibration_error: float
    """The mean distance between how sure the model is and how often it is right (arXiv 1706.04599)."""
    bins: list[Bin]
    length_correlation: float | None
    """Pearson's, of rewards with the answers' numbers of tokens; None: one of them does not vary."""
    length_correlation_within: float | None
    """The same within prompts: of both, the mean over the prompt's answers is taken off first."""
    length_accuracy: float
    """What the accuracy would be if the longer answer were always taken."""
    mean: float
    """Of all rewards."""
    deviation: float
    """Standard deviation of all rewards."""


def report(rankings: Sequence[Compared], rewards: Sequence[Sequence[float]]) -> RewardReport:
    """`rewards` has the model's for every answer of every ranking."""
    pairs: list[tuple[int, float, float]] = []  # answers of the prompt, difference of rewards, of lengths
    for ranking, own in zip(rankings, rewards, strict=True):
        rated = list(zip(ranking.values, own, (text.length for text in ranking.texts), strict=True))
        pairs += [(len(rated), a[1] - b[1], a[2] - b[2]) for a in rated for b in rated if a[0] > b[0]]
    by_answers = {
        str(count): {"accuracy": _right(d for k, d, _ in pairs if k == count), "pairs": many}
        for count in sorted({k for k, _, _ in pairs})
        if (many := sum(k == count for k, _, _ in pairs))
    }
    every = [reward for own in rewards for reward in own]
    lengths = [[float(text.length) for text in ranking.texts] for ranking in rankings]
    bins = calibration([difference for _, difference, _ in pairs])
    mean = sum(every) / len(every)
    return RewardReport(
        prompts=len(rankings),
        pairs=len(pairs),
        accuracy=_right(difference for _, difference, _ in pairs),
        by_answers=by_answers,
        calibration_error=sum(one.pairs * abs(one.sure - one.right) for one in bins) / len(pairs),
        bins=bins,
        length_correlation=correlation(every, [one for own in lengths for one in own]),
        length_correlation_within=correlation(_centred(rewards), _centred(lengths)),
        length_accuracy=_right(longer for _, _, longer in pairs),
        mean=mean,
        deviation=math.sqrt(sum((reward - mean) ** 2 for reward in every) / len(every)),
    )


def calibration(differences: Iterable[float]) -> list[Bin]:
    """Reward of the preferred answer less that of the other, for each pair -> the bins that have pairs, from
    unsure to sure."""
    rows: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for difference in differences:
        sure = 1 / (1 + math.exp(-abs(difference)))
        rows[min(BINS - 1, int((sure - 0.5) * 2 * BINS))].append((sure, _half(difference)))
    return [
        Bin(len(row), sum(sure for sure, _ in row) / len(row), sum(right for _, right in row) / len(row))
        for row in rows
        if row
    ]


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's; None where one of them does not vary."""
    means = sum(first) / len(first), sum(second) / len(second)
    parts = [(a - means[0], b - means[1]) for a, b in zip(first, second, strict=True)]
    spread = math.sqrt(sum(a * a for a, _ in parts) * sum(b * b for _, b in parts))
    return sum(a * b for a, b in parts) / spread if spread > 0 else None


def require_accuracy(folder: Path | str, least: float = 0.6, anyway: bool = False) -> float | None:
    """The held-out accuracy of the reward model in `folder`; None where nobody has measured it.

    Raises `DaybreakError` where it is below `least` or not known, unless it is to be used `anyway`: a policy
    that is trained against a model which is hardly better than chance learns its mistakes.
    """
    file = Path(folder) / REPORT
    found: Any = read_json(file).get("held_out") if file.is_file() else None
    accuracy = None if found is None else float(found["accuracy"])
    if not file.is_file():
        read_config(Path(folder))  # refuses what is no model at all
    if accuracy is None and not anyway:
        raise DaybreakError(
            f"{folder} does not say how good its rewards are (no held-out accuracy in {REPORT}); train it "
            "with more prompts or with --data.validation FILE, or use it anyway with --any-reward"
        )
    if accuracy is not None and accuracy < least and not anyway:
        raise DaybreakError(
            f"{folder} is right about {accuracy:.1%} of held-out pairs, and {least:.1%} are asked for; "
            "train a better one, or use it anyway with --any-reward"
        )
    return accuracy


def write_report(folder: Path, held_out: RewardReport | None, **further: Any) -> None:
    """reward.json beside the model: the report under `held_out` (null: none was held out), and `further`."""
    told = {**further, "held_out": None if held_out is None else asdict(held_out)}
    (folder / REPORT).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _right(differences: Iterable[float]) -> float:
    found = [_half(difference) for difference in differences]
    return sum(found) / len(found)


def _half(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _centred(rows: Sequence[Sequence[float]]) -> list[float]:
    return [one - sum(row) / len(row) for row in rows for one in row]
