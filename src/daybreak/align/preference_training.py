"""Direct preference optimisation and its relatives: a policy learns from pairs, against its frozen start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from torch import Tensor

from daybreak.align.encoding import Answered, Compared, all_compared
from daybreak.align.kto import kto_job
from daybreak.align.policy_job import PolicyJob, Referred, read_by
from daybreak.align.preference_settings import PreferenceSettings
from daybreak.align.reward_training import divided, passed_over, told
from daybreak.engine.quantised_linear import is_quantised, unrounded
from daybreak.language_model import LanguageModel
from daybreak.model.decoder import Decoder
from daybreak.objectives.preference import dpo_losses, hinge_losses, ipo_losses
from daybreak.train.precision import products
from daybreak.train.tuning import DTYPES, Scored
from daybreak.train.tuning_start import device_for


@dataclass(frozen=True)
class Pair:
    """A better and a worse answer to one prompt."""

    chosen: Referred
    rejected: Referred


class PairsJob(PolicyJob[Pair]):
    """To prefer what people preferred, by as much as the loss asks for."""

    def loss(self, part: Sequence[Pair]) -> Scored:
        """Both answers of a pair are read in one pass."""
        chosen, rejected = [one.chosen for one in part], [one.rejected for one in part]
        better, worse = self.ratios([*chosen, *rejected]).chunk(2)
        losses = self._losses(part, better, worse)
        beta, better, worse = self.settings.loss.beta, better.detach(), worse.detach()
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
        loss = self.settings.loss
        if loss.name == "dpo":
            return dpo_losses(better, worse, loss.beta, loss.smoothing)
        if loss.name == "hinge":
            return hinge_losses(better, worse, loss.beta)
        better = better / better.new_tensor([one.chosen.text.length for one in part])
        worse = worse / worse.new_tensor([one.rejected.text.length for one in part])
        return ipo_losses(better, worse, loss.beta)

    def fingerprint(self) -> str:
        """Of the texts alone: what a reference says of them differs in the last digit between machines."""
        texts = [(one.chosen.text, one.rejected.text) for one in self.examples]
        return blake2b(repr(texts).encode(), digest_size=16).hexdigest()


def pairs_of(rankings: Sequence[Compared]) -> list[tuple[Answered, Answered]]:
    """All pairs of all rankings, better answer first."""
    return [pair for ranking in rankings for pair in ranking.pairs()]


def referred(reference: Decoder, pairs: Sequence[tuple[Answered, Answered]]) -> list[Pair]:
    """The pairs with what the reference says of their answers."""
    if not pairs:
        return []
    known = read_by(reference, [text for pair in pairs for text in pair])
    return [Pair(known[chosen], known[rejected]) for chosen, rejected in pairs]


def job_of(
    model: LanguageModel, reference: LanguageModel | None, settings: PreferenceSettings
) -> PolicyJob[Any]:
    """The job that the settings describe, with its data read. `reference` is the same model, and stays as it
    is; None: the model will be trained by adapters, and is its own reference without them. The reference's
    log-probabilities are computed here, once, on the run's device. Raises `DaybreakError` for data that does
    not fit."""
    device = device_for(settings.device, is_quantised(model.decoder))
    for one in (model, reference):
        if one is not None:
            one.decoder.to(device)
    frozen = None if reference is None else reference.decoder.requires_grad_(False).eval()
    # As the policy will: it begins as its reference, to the last digit.
    with products(DTYPES[settings.dtype], device.type), unrounded(model.decoder):
        return (kto_job if settings.loss.name == "kto" else _pairs_job)(model, frozen, settings)


def _pairs_job(model: LanguageModel, frozen: Decoder | None, settings: PreferenceSettings) -> PairsJob:
    data = settings.data
    learned, kept = divided(data)
    texts, left = all_compared(model, learned, data.context, data.longer)
    held, left_held = all_compared(model, kept, data.context, data.longer)
    start = frozen or model.decoder.eval()
    examples, others = (referred(start, pairs_of(rankings)) for rankings in (texts, held))
    prompts = [one.prompt for one in kept or learned]
    words = told(data, len(examples), "pairs", len(others), left + left_held, passed_over(data))
    return PairsJob(model, frozen, examples, others, settings, prompts, words)
