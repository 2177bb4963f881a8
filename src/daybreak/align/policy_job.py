"""What policies that learn from people's preferences have in common: a frozen start, and the way from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from daybreak.align import sampling
from daybreak.align.encoding import Answered, batch_of, log_probs, prompt_length
from daybreak.align.preference_settings import PreferenceSettings
from daybreak.align.reward_training import about, facts
from daybreak.data.rankings import Prompt
from daybreak.engine.quantised_linear import unrounded
from daybreak.engine.settings import Sampling
from daybreak.language_model import LanguageModel
from daybreak.model.adapters import disabled
from daybreak.model.decoder import Decoder
from daybreak.objectives.preference import answer_log_probs
from daybreak.train.tuning import Job

E = TypeVar("E")


@dataclass(frozen=True)
class Referred:
    """A text, and the reference's log-probability of its answer, summed over the tokens."""

    text: Answered
    reference: float


class PolicyJob(Job[E]):
    """To learn from answers, and say how far the policy has gone from its start."""

    def __init__(
        self,
        model: LanguageModel,
        reference: Decoder | None,
        examples: Sequence[E],
        held_out: Sequence[E],
        settings: PreferenceSettings,
        prompts: Sequence[Prompt] = (),
        words: str = "",
    ) -> None:
        """`reference`: the frozen start; None: the model without its adapters. `prompts` are answered to
        measure the divergence; `words` say what the data is."""
        super().__init__(model.decoder, examples, held_out)
        self.model, self.settings = model, settings
        self.prompts = _with_room(model, prompts, settings.kl.prompts)
        self._reference, self._words = reference, words

    def ratios(self, texts: Sequence[Referred]) -> Tensor:
        """[texts] log pi - log pi_ref of each answer, with gradients."""
        own = answer_log_probs(self.model.decoder, batch_of(self.model.decoder, [one.text for one in texts]))
        return own - own.new_tensor([one.reference for one in texts])

    def score(self, micro: int) -> dict[str, float]:
        """With the divergence from the start, measured on answers that the policy writes now."""
        scores = super().score(micro)
        if self.prompts:
            scores.update(self.divergence())
        return scores

    def divergence(self) -> dict[str, float]:
        """Nats per answer, by two estimates, and the answers' mean length."""
        how = Sampling(max_new_tokens=self.settings.kl.tokens, temperature=1.0, seed=0)
        with unrounded(self.model.decoder, exact=False):
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


def _with_room(model: LanguageModel, prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first `count` different ones that leave room for an answer: rankings that are left out as they are
    too long have prompts, too, and many pairs may have the same one."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        if len(found) >= count:
            break
        if repr(prompt) not in found and prompt_length(model, prompt) < model.architecture.context:
            found[repr(prompt)] = prompt
    return list(found.values())


def read_by(reference: Decoder, texts: Sequence[Answered]) -> dict[Answered, Referred]:
    """Each text with the reference's log-probability of its answer; each is read once."""
    every = list(dict.fromkeys(texts))
    found = log_probs(reference, every).tolist()
    return {text: Referred(text, own) for text, own in zip(every, found, strict=True)}
