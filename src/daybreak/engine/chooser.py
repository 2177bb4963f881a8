"""Which token comes next, for a batch of texts that advance together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from daybreak.engine.sampling import draw, narrow, penalise_presence, penalise_repetition
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError


class Chooser:
    """Holds what choosing must remember: which tokens stand in each text, and each text's random numbers."""

    def __init__(
        self,
        sampling: Sampling,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[int],
        *,
        live: int,
        vocabulary: int,
        endings: Sequence[int],
        device: torch.device,
    ) -> None:
        """`prompts` and `keys` (of the random numbers) per row; ids from `live` on are never chosen."""
        self._sampling = sampling
        self._live = live
        self._endings = _ids(endings, live, device)
        self._never = _ids(sampling.suppress_tokens, live, device)
        self._never_first = _ids(sampling.begin_suppress_tokens, live, device)
        self._keys = torch.tensor(keys, dtype=torch.int64, device=device)
        self._seen = self._counts = None
        if sampling.repetition_penalty != 1.0:
            self._seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=device)
            for row, prompt in enumerate(prompts):
                self._seen[row, torch.tensor(list(prompt), device=device)] = True
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._counts = torch.zeros(len(prompts), vocabulary, device=device)

    def plain(self, step: int) -> bool:
        """It would take the likeliest token as the model says, and need not remember it."""
        touched = self._seen is not None or self._counts is not None or len(self._never) > 0
        held = step < self._sampling.min_new_tokens or (step == 0 and len(self._never_first) > 0)
        return self._sampling.greedy and not touched and not held

    def expect(self, logits: Tensor, step: int) -> int:
        """What `choose` would take for one text, from another model's logits; nothing is remembered."""
        return int(self._likeliest(logits, step)[1])

    def remember(self, tokens: Sequence[int]) -> None:
        """What one text has chosen already, before it was left."""
        for token in tokens:
            self._remember(torch.tensor([token], device=self._keys.device))

    def choose(self, logits: Tensor, step: int) -> list[int]:
        """The next token of every row of `logits` [rows, vocabulary] float32; `step` counts new ones from
        0."""
        best, ids = self._likeliest(logits, step)
        chosen: list[int] = torch.where(best.isfinite(), ids, -1).tolist()  # one wait for the device, not two
        if min(chosen) < 0:
            raise DaybreakError(
                "the model's logits leave no token to choose: they are not finite, or every token is "
                "suppressed; some models overflow in float16, so try dtype='float32'"
            )
        self._remember(ids)
        return chosen

    def _likeliest(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Score and id of every row's next token."""
        scores = self._penalised(logits[:, : self._live], step)
        if self._sampling.greedy:
            return scores.max(-1)
        return draw(narrow(scores, self._sampling), self._keys, step)

    def _penalised(self, scores: Tensor, step: int) -> Tensor:
        sampling = self._sampling
        if self._seen is not None:
            scores = penalise_repetition(scores, self._seen[:, : self._live], sampling.repetition_penalty)
        if self._counts is not None:
            counts = self._counts[:, : self._live]
            scores = penalise_presence(scores, counts, sampling.presence_penalty, sampling.frequency_penalty)
        for ids, active in (
            (self._endings, step < sampling.min_new_tokens),
            (self._never, True),
            (self._never_first, step == 0),
        ):
            if active and len(ids):
                scores = scores.index_fill(-1, ids, -math.inf)
        return scores

    def _remember(self, ids: Tensor) -> None:
        if self._seen is not None:
            self._seen.scatter_(1, ids[:, None], True)
        if self._counts is not None:
            self._counts.scatter_add_(
                1, ids[:, None], torch.ones_like(ids[:, None], dtype=self._counts.dtype)
            )


def _ids(tokens: Sequence[int], live: int, device: torch.device) -> Tensor:
    kept = sorted({token for token in tokens if token < live})
    return torch.tensor(kept, dtype=torch.int64, device=device)
