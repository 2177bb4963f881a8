"""Policies beside the reference that they began as: how often their answers are preferred, and what that cost
in divergence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daybreak.align import sampling
from daybreak.align.judging import Best, Scorer, best_of, kl_bound
from daybreak.data.order import draw
from daybreak.data.rankings import Prompt
from daybreak.engine.prompts import Model
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError

Z = 1.96
"""Of an interval that holds the truth in 95 of 100 cases."""


@dataclass(frozen=True)
class Row:
    """One policy."""

    name: str
    answers: int
    win_rate: float
    """How often its answer is worth more than the reference's to the same prompt; equal ones count half."""
    low: float
    high: float
    """The interval of 95 % around it (Wilson's)."""
    reward: float
    """Mean of its answers."""
    reward_reference: float
    """Mean of the reference's."""
    kl: float
    """Nats per answer from the reference: k3 on the policy's own answers, or an upper bound."""
    kl_k1: float | None
    """The same by k1; None: not measured."""
    kl_is_bound: bool
    """Best of n, whose divergence is at most this."""
    tokens: float
    """Mean length of its answers."""
    ended: float
    """Share of its answers that end by themselves."""

    @property
    def per_nat(self) -> float | None:
        """Wins above one half for each nat of divergence; None where there is hardly any."""
        return (self.win_rate - 0.5) / self.kl if self.kl > 1e-3 else None


@dataclass(frozen=True)
class Setting:
    """How answers are written."""

    max_new_tokens: int = 128
    samples: int = 1
    """Answers to every prompt."""
    seed: int = 0
    batch_size: int = 32

    def sampling(self, whose: str, n: int) -> Sampling:
        """Every model draws for itself: with one seed for two models that are alike most answers would be
        the same, and which is preferred another question."""
        seed = draw("answers", whose, self.seed) >> 1
        return Sampling(max_new_tokens=self.max_new_tokens, temperature=1.0, n=n, seed=seed)


class Comparison:
    """Answers of a reference, with which those of policies are compared one by one; so no more than two
    models are in memory."""

    def __init__(
        self,
        reference: Model,
        prompts: Sequence[Prompt],
        scorer: Scorer,
        setting: Setting | None = None,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.setting, self._progress = setting or Setting(), progress
        self._reference, self._prompts, self._scorer = reference, list(prompts), scorer
        if not self._prompts:
            raise DaybreakError("there are no prompts to compare answers to; give a file that has some")
        self._own = self._written("the reference", reference)
        self.rows: list[Row] = []
        self.answers: list[dict[str, Any]] = []
        """What was written, for people to read."""

    def add(self, name: str, policy: Model) -> Row:
        """Compare a policy. Raises `DaybreakError` for one that reads other tokens than the reference."""
        if policy.architecture.vocabulary != self._reference.architecture.vocabulary:
            raise DaybreakError(
                f"{name} has {policy.architecture.vocabulary} tokens and the reference "
                f"{self._reference.architecture.vocabulary}; compare models of one tokenizer"
            )
        found = self._written(name, policy)
        self._progress(f"{name}: how far it is from the reference")
        far = sampling.kl([one.answer for one in found], self._reference.decoder)
        return self._added(name, found, far.k3, far.k1)

    def add_best_of(self, n: int) -> Row:
        """Compare the reference's own best of `n` answers, chosen by the scorer that also compares."""
        if n < 2:
            raise DaybreakError(f"best of {n} is no choice; give at least 2")
        name = f"best of {n}"
        self._progress(f"{name}: {n * len(self._prompts):,} answers")
        how = self.setting.sampling(name, n)
        chosen = best_of(self._reference, self._scorer, self._prompts, how, self.setting.batch_size)
        found = [Best(one.answer, (one.reward,)) for one in chosen for _ in range(self.setting.samples)]
        return self._added(name, found, kl_bound(n), None)

    def _written(self, name: str, model: Model) -> list[Best]:
        """One entry for every answer."""
        self._progress(f"{name}: {self.setting.samples * len(self._prompts):,} answers")
        prompts = self._prompts
        how = self.setting.sampling(name, self.setting.samples)
        written = sampling.write(model, prompts, how, self.setting.batch_size)
        rewards = self._scorer([(one.prompt, one.words) for one in written])
        return [Best(one, (float(own),)) for one, own in zip(written, rewards, strict=True)]

    def _added(self, name: str, found: Sequence[Best], far: float, k1: float | None) -> Row:
        pairs = list(zip(found, self._own, strict=True))
        won = sum(0.5 if a.reward == b.reward else float(a.reward > b.reward) for a, b in pairs)
        count = len(pairs)
        low, high = interval(won, count)
        row = Row(
            name=name,
            answers=count,
            win_rate=won / count,
            low=low,
            high=high,
            reward=sum(one.reward for one in found) / count,
            reward_reference=sum(one.reward for one in self._own) / count,
            kl=far,
            kl_k1=k1,
            kl_is_bound=k1 is None,
            tokens=sum(one.answer.text.length for one in found) / count,
            ended=sum(one.answer.ended for one in found) / count,
        )
        self.rows.append(row)
        self.answers += [_shown(name, a, b) for a, b in pairs]
        return row


def interval(won: float, count: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share (1927): right also near 0 and 1, and for few answers."""
    share, weight = won / count, Z * Z / count
    centre = (share + weight / 2) / (1 + weight)
    reach = Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The rows in words, the best for its divergence first, under a line of titles."""
    titles = [
        "model",
        "win rate",
        "95 %",
        "KL (nats)",
        "wins above half per nat",
        "reward",
        "tokens",
        "ended",
    ]
    return [titles, *(_words(row) for row in sorted(rows, key=lambda row: -row.win_rate))]


def _words(row: Row) -> list[str]:
    return [
        row.name,
        f"{row.win_rate:.1%}",
        f"{row.low:.1%} to {row.high:.1%}",
        f"{'at most ' if row.kl_is_bound else ''}{row.kl:.3f}",
        "–" if row.per_nat is None else f"{'at least ' if row.kl_is_bound else ''}{row.per_nat:.3f}",
        f"{row.reward:.3f}",
        f"{row.tokens:.1f}",
        f"{row.ended:.0%}",
    ]


def write(folder: Path, comparison: Comparison, told: dict[str, Any]) -> None:
    """compare.md with the table, compare.json with every figure and what was `told`, answers.jsonl, and the
    picture compare.png."""
    from daybreak.align.comparison_picture import picture

    folder.mkdir(parents=True, exist_ok=True)
    head, *body = table(comparison.rows)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
    (folder / "compare.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    facts = {**told, "rows": [{**asdict(row), "per_nat": row.per_nat} for row in comparison.rows]}
    (folder / "compare.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in comparison.answers)
    picture(comparison.rows, folder / "compare.png")


def _shown(name: str, own: Best, reference: Best) -> dict[str, Any]:
    return {
        "model": name,
        "prompt": own.answer.prompt,
        "answer": own.answer.words,
        "reward": own.reward,
        "reference": reference.answer.words,
        "reward_reference": reference.reward,
    }
