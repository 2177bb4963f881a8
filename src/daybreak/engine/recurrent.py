"""Generation with a recurrent model: what is carried from token to token is a state of fixed size, so there
are no pages, and a text costs the same at every length.

Every text is written by itself, so that it cannot depend on those beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from daybreak.engine import logprobs
from daybreak.engine.chooser import Chooser
from daybreak.engine.continuation import Continuation
from daybreak.engine.sampling import stream_key
from daybreak.engine.settings import Sampling
from daybreak.model.awd_lstm import AwdLstm, State


class StateStep:
    """One text's place in a model: it reads tokens and remembers its state."""

    def __init__(self, model: AwdLstm) -> None:
        self._model = model
        self._state: State | None = None

    def read(self, tokens: list[int]) -> Tensor:
        """What the head reads for each token, [tokens, width]."""
        ids = torch.tensor([tokens], device=self._model.head_bias.device)
        read = self._model(ids, self._state)
        self._state = read.state
        return read.dropped[0]  # type: ignore[no-any-return]

    def unembed(self, hidden: Tensor) -> Tensor:
        """[rows, width] -> [rows, vocabulary] float32."""
        return self._model.unembed(hidden).float()


@torch.inference_mode()
def write(model: AwdLstm, text: Continuation, live: int, seed: int) -> Iterator[None]:
    """Write one text to its end, a token at a time; ids from `live` on are never chosen."""
    step, prompt = StateStep(model), list(text.prompt.tokens)
    rows = step.read(prompt)
    wanted = text.sampling.prompt_logprobs
    if wanted is not None:
        scores = logprobs.of_rows(rows[:-1], prompt[1:], step.unembed, wanted, live)
        text.prompt_logprobs = [None, *scores]
    chooser = _chooser(model, text, live, seed)
    while text.finish_reason is None:
        row = step.unembed(rows[-1:])
        token = chooser.choose(row, len(text.tokens))[0]
        if (alternatives := text.sampling.logprobs) is not None:
            text.logprobs += logprobs.of_tokens(row, [token], alternatives, live)
        text.accept(token)
        yield
        if text.finish_reason is None:
            rows = step.read([token])


def _chooser(model: AwdLstm, text: Continuation, live: int, seed: int) -> Chooser:
    key = stream_key(seed, text.prompt.tokens, text.sample)
    sampling: Sampling = text.sampling
    options: dict[str, Any] = {"live": live, "vocabulary": model.shape.vocabulary}
    return Chooser(
        sampling,
        [text.prompt.tokens],
        [key],
        endings=sorted(text.endings),
        device=model.head_bias.device,
        **options,
    )
