"""The loop of PPO: write answers, have them judged, learn from them, again."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from daybreak.align.experience import Experience, experienced
from daybreak.align.learning import Learned, add_gradients
from daybreak.align.players import Players
from daybreak.align.ppo_figures import PpoWatch, figures_of
from daybreak.align.ppo_records import PpoRecords
from daybreak.align.ppo_settings import PpoSettings
from daybreak.align.ppo_state import PpoState
from daybreak.align.rollout import Answer
from daybreak.align.rounds import Ids, converse
from daybreak.data.loader import Loader
from daybreak.data.order import draw, permuted
from daybreak.errors import DaybreakError
from daybreak.objectives.policy import adapted_beta
from daybreak.text.tokenizer import Tokenizer
from daybreak.train.run_status import Ending
from daybreak.train.stop import Stop

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PER_ANSWER = 8
"""Sequences of pretraining text for each answer (InstructGPT, appendix C.4)."""


@dataclass(eq=False)
class Ppo:
    """A run in progress; made by `daybreak.align.ppo_run`. Everything random is a function of the seed and of
    how far the run is."""

    players: Players
    conversations: Sequence[Ids]
    """What is asked: of one round, most often."""
    settings: PpoSettings
    state: PpoState
    watch: PpoWatch
    records: PpoRecords
    loader: Loader | None = None
    """Of the text to mix in."""
    last: dict[str, Any] = field(default_factory=dict)
    """Figures of the last iteration."""

    def train(self, stop: Stop) -> Ending:
        """Go on until all iterations are done or `stop` is asked for; a checkpoint is left in either case.

        Raises `DaybreakError` for what is not finite, before it has moved anything, and when the policy has
        left its reference too far (watch.stop_kl).
        """
        settings, progress = self.settings, self.state.progress
        while progress.iteration < settings.iterations:
            if stop.asked:
                self._save()
                return "stopped"
            began = time.perf_counter()
            seen = self.explore()
            self.last = figures = self.learn(seen)
            self._note(seen, figures, time.perf_counter() - began)
            self._sample(progress.iteration)
            if progress.iteration % settings.checkpoints.every == 0:
                self._save(wait=False)
        self._save()
        return "finished"

    def explore(self) -> Experience:
        """The answers of the iteration that comes, judged."""
        settings, number = self.settings, self.state.progress.iteration
        count, size = settings.rollout.answers, len(self.conversations)
        places = range(number * count, (number + 1) * count)
        chosen = [
            self.conversations[permuted(place % size, size, draw("prompts", settings.seed, place // size))]
            for place in places
        ]
        with self.players.writing() as writer:
            talks = converse(
                writer,
                chosen,
                settings.rollout.max_new_tokens,
                draw("answers", settings.seed, number) % 2**63,
                settings.rollout.batch_size,
                self.players.stop_tokens,
            )
        answers = [one for talk in talks for one in talk]
        return experienced(self.players, answers, settings, self.state.progress.beta, DTYPES[settings.dtype])

    def learn(self, seen: Experience) -> dict[str, Any]:
        """All steps of an iteration; returns its figures."""
        settings, state = self.settings, self.state
        steps: list[Learned] = []
        norms: list[dict[str, float]] = []
        for epoch in range(settings.update.epochs):
            seed = draw("minibatches", settings.seed, state.progress.iteration, epoch) % 2**63
            order = torch.randperm(len(seen.answers), generator=torch.Generator().manual_seed(seed)).tolist()
            for rows in minibatches(order, settings.update.minibatch):
                dtype = DTYPES[settings.dtype]
                mixed = self._mixed(len(rows))
                steps.append(add_gradients(self.players, seen, rows, settings, dtype, mixed))
                norms.append(state.norms())
                self._check(steps[-1], norms[-1])
                state.move(norms[-1])
        figures = figures_of(seen, state.progress.beta, steps)
        figures["lr"] = settings.optimizer.lr * state.rate()
        for name in norms[0]:
            figures[f"{name}_gradient_norm"] = sum(one[name] for one in norms) / len(norms)
        if settings.kl.adaptive:
            kl = settings.kl
            count, beta = len(seen.answers), state.progress.beta
            state.progress.beta = adapted_beta(beta, figures["kl"], count, kl.target, kl.horizon)
        state.advance()
        return figures

    def _mixed(self, answers: int) -> torch.Tensor | None:
        """The pretraining text of the next minibatch, which has so many answers: [sequences, length + 1]."""
        if self.loader is None:
            return None
        count = self.settings.ptx.sequences or PER_ANSWER * answers
        first = self.state.progress.mixed
        self.state.progress.mixed += count
        return self.loader.windows(range(first, first + count)).tokens

    def _check(self, step: Learned, norms: dict[str, float]) -> None:
        for name, value in {**vars(step), **{f"{one} gradient's norm": norms[one] for one in norms}}.items():
            if value is not None and not math.isfinite(value):
                number = self.state.progress.iteration + 1
                raise DaybreakError(
                    f"the {name.replace('_', ' ')} of iteration {number} is {value}, and the step was not "
                    "taken; lower optimizer.lr, or use dtype float32"
                )

    def _note(self, seen: Experience, figures: dict[str, Any], seconds: float) -> None:
        number, settings = self.state.progress.iteration, self.settings
        warnings = self.watch.look(number, figures)
        tokens = int(seen.mask.sum())
        self.state.progress.tokens += tokens
        self.records.iteration(number, figures, warnings, tokens, seconds, self.state.progress.tokens)
        if settings.watch.stop_kl is not None and figures["kl"] > settings.watch.stop_kl:
            raise DaybreakError(
                f"the answers of iteration {number} are {figures['kl']:.1f} nats from the reference, above "
                f"watch.stop_kl = {settings.watch.stop_kl:g}; raise kl.beta, or lower optimizer.lr"
            )

    def _sample(self, iteration: int) -> None:
        """Answers for people to read, the policy's beside the reference's."""
        samples, tokenizer = self.settings.samples, self.players.policy.tokenizer
        if not samples.every or not samples.prompts or tokenizer is None:
            return
        if iteration % samples.every and iteration not in (1, self.settings.iterations):
            return
        asked, room = self.conversations[: samples.prompts], self.settings.rollout.max_new_tokens
        ends = self.players.stop_tokens
        with self.players.writing() as writer:
            own = converse(writer, asked, room, seed=0, stop_tokens=ends)
        with self.players.as_reference() as reference:
            others = converse(reference, asked, room, seed=0, stop_tokens=ends)
        texts = [
            (tokenizer.decode(list(rounds[0])), *(_told(tokenizer, talk, rounds) for talk in both))
            for rounds, *both in zip(asked, own, others, strict=True)
        ]
        self.records.samples(iteration, texts)

    def _save(self, wait: bool = True) -> None:
        self.records.saving(self.state.progress.iteration)
        self.state.save(self.watch.state())
        if wait:
            self.state.checkpoints.wait()


def minibatches(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """`order` in as few parts of at most `size` as can be, each as long as the others or one longer: what is
    left over must not make a step of its own, as long as any other, from an answer or two. Conversations of
    several rounds may end early, so that the number of answers is nobody's choice."""
    count = -(-len(order) // size)
    cuts = [len(order) * part // count for part in range(count + 1)]
    return [order[first:end] for first, end in pairwise(cuts)]


def _told(tokenizer: Tokenizer, talk: Sequence[Answer], rounds: Ids) -> str:
    """What was written; the messages of later rounds stand between it."""
    parts = [talk[0].tokens]
    for said, answer in zip(rounds[1:], talk[1:], strict=False):
        parts += [tuple(said), answer.tokens]
    return "\n\n".join(tokenizer.decode(list(part)) for part in parts)
