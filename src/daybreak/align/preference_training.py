"""Direct preference optimisation and its relatives: a policy learns from pairs, against its frozen start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daybreak.align import sampling
from daybreak.align.encoding import Answered, Compared, all_compared, batch_of, log_probs
from daybreak.align.preference_settings import KlSettings, PreferenceLoss, PreferenceSettings
from daybreak.align.reward_training import about, divided, facts, told
from daybreak.data.order import draw, permuted
from daybreak.data.rankings import Prompt
from daybreak.engine.settings import Sampling
from daybreak.language_model import LanguageModel
from daybreak.model.adapters import disabled
from daybreak.model.decoder import Decoder
from daybreak.objectives.preference import (
    answer_log_probs,
    dpo_losses,
    hinge_losses,
    ipo_losses,
    kto_losses,
    kto_reference,
)
from daybreak.train.tuning import Job, Scored


@dataclass(frozen=True)
class Referred:
    """A text, and the reference's log-probability of its answer, summed over the tokens."""

    text: Answered
    reference: float


@dataclass(frozen=True)
class Pair:
    """A better and a worse answer to one prompt."""

    chosen: Referred
    rejected: Referred
    mismatched: Referred | None = None
    """Kto: the prompt with the better answer of another one."""


def pairs_of(rankings: Sequence[Compared]) -> list[tuple[Answered, Answered]]:
    """All pairs of all rankings, better answer first."""
    return [pair for ranking in rankings for pair in ranking.pairs()]


def referred(
    reference: Decoder, pairs: Sequence[tuple[Answered, Answered]], mismatch: int | None = None
) -> list[Pair]:
    """The pairs with what the reference says of their answers, each text read once. With `mismatch`, a seed,
    each also has another pair's answer behind its prompt, cut where it would not fit."""
    context = reference.architecture.context
    others = [None] * len(pairs) if mismatch is None else _mismatched(pairs, mismatch, context)
    texts = {text: 0.0 for pair in pairs for text in pair}
    texts.update({text: 0.0 for text in others if text is not None})
    found = dict(zip(texts, log_probs(reference, list(texts)).tolist(), strict=True))
    return [
        Pair(
            Referred(chosen, found[chosen]),
            Referred(rejected, found[rejected]),
            None if other is None else Referred(other, found[other]),
        )
        for (chosen, rejected), other in zip(pairs, others, strict=True)
    ]


def _mismatched(pairs: Sequence[tuple[Answered, Answered]], seed: int, context: int) -> list[Answered | None]:
    """Round a ring in random order, each prompt gets the better answer of the next pair that is of another
    prompt; its own where there is but one prompt."""
    size, key = len(pairs), draw("mismatched", seed)
    ring = [permuted(place, size, key) for place in range(size)]
    found: list[Answered | None] = [None] * size
    for place, number in enumerate(ring):
        own = pairs[number][0]
        asked = own.tokens[: own.prompt]
        others = (pairs[ring[(place + step) % size]][0] for step in range(1, size))
        other = next((one for one in others if one.tokens[: one.prompt] != asked), own)
        # What does not fit is cut off: nobody has to like this answer. The prompt's own left room for one.
        found[number] = Answered((*asked, *other.answer)[:context], own.prompt)
    return found


class PreferenceJob(Job[Pair]):
    """To prefer what people preferred, by as much as the loss asks for, and stay near the start."""

    def __init__(
        self,
        model: LanguageModel,
        reference: Decoder | None,
        examples: Sequence[Pair],
        held_out: Sequence[Pair],
        loss: PreferenceLoss,
        measured: KlSettings,
        prompts: Sequence[Prompt] = (),
        words: str = "",
    ) -> None:
        """`reference`: the frozen start; None: the model without its adapters. `prompts` are answered to
        measure the divergence."""
        super().__init__(model.decoder, examples, held_out)
        self.model, self.settings, self.measured = model, loss, measured
        self.prompts = list(prompts)[: measured.prompts]
        self._reference, self._words = reference, words

    def loss(self, part: Sequence[Pair]) -> Scored:
        """Both answers of a pair are read in one pass."""
        chosen, rejected = [one.chosen for one in part], [one.rejected for one in part]
        ratios = self._ratios([*chosen, *rejected])
        better, worse = ratios.chunk(2)
        beta = self.settings.beta
        losses = self._losses(part, better, worse)
        better, worse = better.detach(), worse.detach()
        figures = {
            "accuracy": (better > worse).float().sum(),
            "margin": beta * (better - worse).sum(),
            "reward_chosen": beta * better.sum(),
            "reward_rejected": beta * worse.sum(),
        }
        tokens = sum(len(one.text.tokens) for one in (*chosen, *rejected))
        return Scored(losses.sum(), len(part), tokens, figures)

    def _losses(self, part: Sequence[Pair], better: Tensor, worse: Tensor) -> Tensor:
        """[pairs] from the log-ratios [pairs] of both answers."""
        settings = self.settings
        if settings.name == "dpo":
            return dpo_losses(better, worse, settings.beta, settings.smoothing)
        if settings.name == "hinge":
            return hinge_losses(better, worse, settings.beta)
        if settings.name == "ipo":
            counts = [
                better.new_tensor([text.length for text in texts])
                for texts in ([one.chosen.text for one in part], [one.rejected.text for one in part])
            ]
            return ipo_losses(better / counts[0], worse / counts[1], settings.beta)
        return self._kto(part, better, worse)

    def _kto(self, part: Sequence[Pair], better: Tensor, worse: Tensor) -> Tensor:
        """The better answer is liked and the worse one is not, each for itself."""
        others = [one.mismatched for one in part if one.mismatched is not None]
        with torch.no_grad():
            reference = kto_reference(self._ratios(others))
        liked = torch.tensor([True, False], device=better.device).repeat_interleave(len(part))
        weights = (self.settings.liked, self.settings.disliked)
        losses = kto_losses(torch.cat([better, worse]), liked, reference, self.settings.beta, weights)
        return losses.view(2, -1).mean(0)

    def _ratios(self, texts: Sequence[Referred]) -> Tensor:
        """[texts] log pi - log pi_ref of each answer."""
        own = answer_log_probs(self.model.decoder, batch_of(self.model.decoder, [one.text for one in texts]))
        return own - own.new_tensor([one.reference for one in texts])

    def score(self, micro: int) -> dict[str, float]:
        """With the divergence from the start, measured on answers that the policy writes now."""
        scores = super().score(micro)
        if self.prompts:
            scores.update(self._kl())
        return scores

    def _kl(self) -> dict[str, float]:
        how = Sampling(max_new_tokens=self.measured.tokens, temperature=1.0, seed=0)
        written = sampling.write(self.model, self.prompts, how)
        with self._as_reference() as reference:
            found = sampling.kl(written, reference)
        return {"kl_k1": found.k1, "kl_k3": found.k3, "answer_tokens": found.tokens}

    @contextmanager
    def _as_reference(self) -> Iterator[Decoder]:
        if self._reference is not None:
            yield self._reference.to(self.device)
            return
        with disabled(self.model.decoder):
            yield self.model.decoder

    def save(self, folder: Path) -> None:
        self.model.save(folder)

    def about(self) -> dict[str, str]:
        return {**about(self.model), "data": self._words}

    def facts(self) -> dict[str, Any]:
        return facts(self.model, self.modules)

    def fingerprint(self) -> str:
        """Of the texts alone: what a reference says of them differs in the last digit between machines."""
        texts = [(one.chosen.text, one.rejected.text) for one in self.examples]
        return blake2b(repr(texts).encode(), digest_size=16).hexdigest()


def job_of(
    model: LanguageModel, reference: LanguageModel | None, settings: PreferenceSettings
) -> PreferenceJob:
    """The job that the settings describe, with its data read. `reference` is the same model, and stays as it
    is; None: the model will be trained by adapters, and is its own reference without them. The reference's
    log-probabilities are computed here, once. Raises `DaybreakError` for data that does not fit."""
    data, loss = settings.data, settings.loss
    learned, kept = divided(data)
    texts, left = all_compared(model, learned, data.context, data.longer)
    held, left_held = all_compared(model, kept, data.context, data.longer)
    mismatch = settings.seed if loss.name == "kto" else None
    start = (reference or model).decoder.eval()
    examples = referred(start, pairs_of(texts), mismatch)
    others = referred(start, pairs_of(held), mismatch)
    frozen = None if reference is None else start.requires_grad_(False)
    prompts = [one.prompt for one in kept] or [one.prompt for one in learned]
    words = told(data, len(examples), "pairs", len(others), left + left_held)
    return PreferenceJob(model, frozen, examples, others, loss, settings.kl, prompts, words)
