"""Kahneman-Tversky optimisation: a policy learns from single answers that people liked or not (arXiv
2402.01306)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch

from daybreak.align.encoding import Answered, TooLong, answered
from daybreak.align.policy_job import PolicyJob, Referred, read_by
from daybreak.align.preference_settings import PreferenceSettings, RankingData
from daybreak.align.reward_training import told
from daybreak.data.judged import Judged, read_judged
from daybreak.data.order import draw, permuted
from daybreak.data.rankings import held_out
from daybreak.engine.prompts import Model
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.model.decoder import Decoder
from daybreak.objectives.preference import kto_losses, kto_reference
from daybreak.text.answers import keep_template
from daybreak.train.tuning import Scored


@dataclass(frozen=True)
class Opinion:
    """An answer, whether it was liked, and its prompt with another prompt's answer."""

    own: Referred
    liked: bool
    mismatched: Referred


class KtoJob(PolicyJob[Opinion]):
    """To be likelier than the start to write what was liked, and less so what was not."""

    def loss(self, part: Sequence[Opinion]) -> Scored:
        """The point that gains are counted from is measured on the part itself, so parts of one answer make a
        poor one."""
        settings = self.settings.loss
        with torch.no_grad():
            reference = kto_reference(self.ratios([one.mismatched for one in part]))
        ratios = self.ratios([one.own for one in part])
        liked = torch.tensor([one.liked for one in part], device=ratios.device)
        losses = kto_losses(ratios, liked, reference, settings.beta, (settings.liked, settings.disliked))
        gains = settings.beta * torch.where(liked, ratios - reference, reference - ratios).detach()
        figures = {
            "accuracy": (gains > 0).float().sum(),
            "gain": gains.sum(),
            "z0": reference * len(part),
        }
        tokens = sum(len(one.own.text.tokens) + len(one.mismatched.text.tokens) for one in part)
        return Scored(losses.sum(), len(part), tokens, figures)

    def fingerprint(self) -> str:
        """Of the texts alone: what a reference says of them differs in the last digit between machines."""
        texts = [(one.own.text, one.liked, one.mismatched.text) for one in self.examples]
        return blake2b(repr(texts).encode(), digest_size=16).hexdigest()


def mismatched(texts: Sequence[Answered], seed: int, context: int) -> list[Answered]:
    """Round a ring in random order, each prompt gets the answer of the next text that is of another prompt;
    its own where there is but one prompt."""
    size, key = len(texts), draw("mismatched", seed)
    ring = [permuted(place, size, key) for place in range(size)]
    asked = [texts[number].tokens[: texts[number].prompt] for number in ring]
    found, others = list(texts), list(ring)
    if len(set(asked)) < 2:
        return found
    for step in range(2 * size, 0, -1):  # twice round, as the last ones are followed by the first
        place, after = (step - 1) % size, step % size
        others[place] = ring[after] if asked[after] != asked[place] else others[after]
    for place, number in enumerate(ring):
        prompt, other = texts[number].prompt, texts[others[place]]
        # What does not fit is cut off: nobody has to like this answer. The prompt's own left room for one.
        found[number] = Answered((*asked[place], *other.answer)[:context], prompt)
    return found


def opinions(
    model: Model, reference: Decoder, rows: Sequence[Judged], data: RankingData, seed: int
) -> tuple[list[Opinion], int]:
    """The rows with what the reference says of their texts, and how many are left out because they are too
    long. Raises `DaybreakError` for the first of these, unless they are to be left out."""
    texts, liked = list[Answered](), list[bool]()
    for row in rows:
        try:
            texts.append(answered(model, row.prompt, row.answer, row.where, data.context))
            liked.append(row.liked)
        except TooLong:
            if data.longer == "refuse":
                raise
    if not texts:
        return [], len(rows)
    others = mismatched(texts, seed, model.architecture.context)
    known = read_by(reference, [*texts, *others])
    every = zip(texts, liked, others, strict=True)
    return [Opinion(known[own], good, known[other]) for own, good, other in every], len(rows) - len(texts)


def kto_job(model: LanguageModel, reference: Decoder | None, settings: PreferenceSettings) -> KtoJob:
    """See `daybreak.align.preference_training.job_of`."""
    data = settings.data
    if data.file is None:
        raise DaybreakError("no data is named; give a file of answers that were liked or not, or of rankings")
    learned, kept = read_judged(data.file), list[Judged]()
    if data.validation is not None:
        kept = read_judged(data.validation)
    else:
        learned, kept = held_out(learned, data.held_out)
    if model.tokenizer is not None and any(isinstance(row.prompt, tuple) for row in (*learned, *kept)):
        keep_template(model.tokenizer)
    start = reference or model.decoder
    examples, left = opinions(model, start, learned, data, settings.seed)
    others, left_held = opinions(model, start, kept, data, settings.seed)
    prompts = [row.prompt for row in kept or learned]
    words = told(data, len(examples), "judged answers", len(others), left + left_held)
    return KtoJob(model, reference, examples, others, settings, prompts, words)
