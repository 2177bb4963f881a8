"""What an iteration of PPO looked like, in figures; and what they warn of, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from daybreak.align.experience import Experience
from daybreak.align.learning import Learned
from daybreak.align.ppo_settings import PpoWatchSettings
from daybreak.objectives import policy

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GROWN = 1.25
"""Answers so many times as long as before have grown..."""
RISEN = 0.5
"""...and a score that has risen by so many of its standard deviations may have risen with them."""
FALLEN = 0.25
"""A score that has fallen by so many of its standard deviations has not done so by chance."""

Figures = Mapping[str, Any]


def figures_of(seen: Experience, beta: float, steps: Sequence[Learned]) -> dict[str, Any]:
    """Of an iteration's answers, and of the steps that learned from them. KL divergences are in nats per
    answer (the sum over its tokens) and, with `_token`, per token; entropy is in nats per token."""
    mask, lengths = seen.mask, seen.mask.sum(1)
    k1 = policy.kl_k1(seen.logprobs, seen.reference, mask).double()
    k3 = policy.kl_k3(seen.logprobs, seen.reference, mask)
    answers = [one.tokens for one in seen.answers]
    return {
        "loss": fmean(one.policy_loss for one in steps),
        "value_loss": fmean(one.value_loss for one in steps),
        "mixed_loss": None if steps[0].mixed_loss is None else fmean(one.mixed_loss or 0.0 for one in steps),
        "score": seen.scores.double().mean().item(),
        "score_deviation": seen.scores.double().std(correction=0).item(),
        "score_quantiles": quantiles(seen.scores),
        "reward": seen.rewards.double().mean().item(),
        "kl": k1.sum(1).mean().item(),
        "kl_k3": k3.sum(1).mean().item(),
        "kl_token": policy.masked_mean(k1, mask).item(),
        "kl_k3_token": policy.masked_mean(k3, mask).item(),
        "beta": beta,
        "objective": (seen.scores.double() - beta * k1.sum(1)).mean().item(),
        "entropy": policy.masked_mean(seen.entropies.double(), mask).item(),
        "clipped": fmean(one.clipped for one in steps),
        "value_clipped": fmean(one.value_clipped for one in steps),
        "step_kl": fmean(one.moved for one in steps),
        "explained_variance": _number(policy.explained_variance(seen.values, seen.returns, mask)),
        "length": lengths.double().mean().item(),
        "length_quantiles": quantiles(lengths),
        "ended": fmean(float(one.ended) for one in seen.answers),
        "distinct": len(set(answers)) / len(answers),
        "answers": len(answers),
        "rounds_cut_off": sum(one.left for one in seen.answers if not one.ended),
        "rounds_no_room": sum(one.left for one in seen.answers if one.ended),
    }


def quantiles(values: Tensor) -> list[float]:
    """At `QUANTILES`."""
    return values.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()


class PpoWatch:
    """Looks at each iteration's figures, and says in words what is known to go wrong. A warning of a kind
    comes again after `window` iterations at the earliest."""

    def __init__(self, settings: PpoWatchSettings) -> None:
        self._settings = settings
        self._first: dict[str, float] = {}
        self._recent: list[dict[str, float]] = []
        self._told: dict[str, int] = {}

    def look(self, iteration: int, figures: Figures) -> dict[str, str]:
        """Kind -> warning, of iteration number `iteration`, from 1."""
        known = {name: figures[name] for name in KEPT if figures[name] is not None}
        if not self._first:
            self._first = known
        self._recent = [*self._recent, known][-2 * self._settings.window :]
        found = {}
        for kind, warn in WARNINGS.items():
            text = warn(self, figures)
            if text is not None and iteration - self._told.get(kind, -math.inf) >= self._settings.window:
                self._told[kind] = iteration
                found[kind] = text
        return found

    def state(self) -> dict[str, Any]:
        """What it remembers, for JSON."""
        return {"first": self._first, "recent": self._recent, "told": self._told}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Remember what `state` gave."""
        self._first, self._recent = dict(state["first"]), list(state["recent"])
        self._told = dict(state["told"])

    def _mean(self, name: str, last: int) -> float | None:
        """Of the `last` iterations; None: there were not so many."""
        values = [one[name] for one in self._recent[-last:] if name in one]
        return fmean(values) if len(values) >= last else None

    def _kl(self, figures: Figures) -> str | None:
        if figures["kl"] <= self._settings.kl:
            return None
        return (
            f"the answers are {figures['kl']:.1f} nats from the reference, above {self._settings.kl:g}: the "
            "policy has left it, and the reward model was trained on nothing like this; raise kl.beta, or "
            "lower optimizer.lr"
        )

    def _mismatch(self, figures: Figures) -> str | None:
        """k1 has mean KL >= 0 over what the policy drew; far below 0 it was drawn from something else."""
        mean = self._mean("kl", self._settings.window)
        if mean is None or mean > -0.5:
            return None
        return (
            f"log pi - log pi_ref of the answers is {mean:.2f} nats on average, which a policy's own answers "
            "cannot be: they are not drawn from what the decoder computes (another temperature, or dtype)"
        )

    def _identical(self, figures: Figures) -> str | None:
        if figures["distinct"] >= self._settings.distinct:
            return None
        return (
            f"only {figures['distinct']:.0%} of the answers differ from each other: the policy says the same "
            "to everything; raise kl.beta, lower optimizer.lr, or give more prompts"
        )

    def _cut_off(self, figures: Figures) -> str | None:
        if figures["ended"] >= self._settings.ended:
            return None
        return (
            f"only {figures['ended']:.0%} of the answers end by themselves; the others are cut off, and what "
            "the reward model says of half an answer misleads: raise rollout.max_new_tokens, tune on "
            "demonstrations that end, or set rollout.no_end to a low score"
        )

    def _values(self, figures: Figures) -> str | None:
        mean = self._mean("explained_variance", self._settings.window)
        if mean is None or mean > 0:
            return None
        return (
            f"the values explain none of the returns (explained variance {mean:.2f} over "
            f"{self._settings.window} iterations): the critic does not learn, and advantages are noise; "
            "raise optimizer.value_lr, or update.value_clip"
        )

    def _length(self, figures: Figures) -> str | None:
        if (halves := self._halves()) is None:
            return None
        old, new = halves
        length, score = ([fmean(one[name] for one in part) for part in (old, new)] for name in GROWING)
        deviation = fmean(one["score_deviation"] for one in old)
        if length[1] < GROWN * length[0] or score[1] - score[0] < RISEN * deviation or not deviation:
            return None
        return (
            f"the score rose from {score[0]:.2f} to {score[1]:.2f} while answers grew from "
            f"{length[0]:.0f} to {length[1]:.0f} tokens: the reward model may like length "
            "itself; read the samples, and compare answers of equal length"
        )

    def _falling(self, figures: Figures) -> str | None:
        if (halves := self._halves()) is None:
            return None
        old, new = (fmean(one["score"] for one in part) for part in halves)
        deviation = fmean(one["score_deviation"] for one in halves[0])
        if old - new < FALLEN * deviation or not deviation:
            return None
        cause, remedy = "else than its reward", "raise update.minibatch"
        if figures.get("mixed_loss") is not None:
            cause, remedy = "else, perhaps the text that is mixed in", "lower ptx.weight"
        return (
            f"the score fell from {old:.2f} to {new:.2f} in {self._settings.window} iterations: the policy "
            f"learns something {cause}; {remedy}, or lower optimizer.lr"
        )

    def _halves(self) -> tuple[list[dict[str, float]], list[dict[str, float]]] | None:
        """What is remembered: an older window, and the last one; None: there were not so many iterations."""
        window = self._settings.window
        return None if len(self._recent) < 2 * window else (self._recent[:window], self._recent[window:])

    def _entropy(self, figures: Figures) -> str | None:
        first = self._first["entropy"]
        if figures["entropy"] >= self._settings.entropy * first:
            return None
        return (
            f"the entropy fell from {first:.2f} to {figures['entropy']:.2f} nats per token: the policy "
            "hardly tries anything else any more; raise kl.beta, or lower optimizer.lr"
        )

    def _clipped(self, figures: Figures) -> str | None:
        if figures["clipped"] <= self._settings.clipped:
            return None
        return (
            f"{figures['clipped']:.0%} of the tokens are clipped: steps are too long for the answers that "
            "they learn from; lower optimizer.lr or update.epochs"
        )


GROWING = ("length", "score")
KEPT = ("kl", "entropy", "explained_variance", "length", "score", "score_deviation")
WARNINGS = {
    "kl": PpoWatch._kl,
    "mismatch": PpoWatch._mismatch,
    "identical": PpoWatch._identical,
    "cut_off": PpoWatch._cut_off,
    "values": PpoWatch._values,
    "length": PpoWatch._length,
    "falling": PpoWatch._falling,
    "entropy": PpoWatch._entropy,
    "clipped": PpoWatch._clipped,
}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
