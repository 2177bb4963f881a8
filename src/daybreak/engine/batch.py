"""Texts that advance together, one token each per step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from daybreak.engine import logprobs
from daybreak.engine.chooser import Chooser
from daybreak.engine.continuation import Continuation
from daybreak.engine.prompts import Model, Prompt, live_vocabulary
from daybreak.engine.sampling import stream_key
from daybreak.engine.settings import Sampling
from daybreak.model.cache import Cache

RESERVED = 2048
"""New tokens that the cache has room for from the start; it grows if a text gets longer."""


def together(
    model: Model, texts: Sequence[Continuation], sampling: Sampling, seed: int, batch_size: int
) -> Iterator[int]:
    """Write all texts to their ends, at most `batch_size` at a time, the longest prompts first; yields how
    many each step finished.
    """
    order = sorted(range(len(texts)), key=lambda place: -len(texts[place].prompt.tokens))
    for begin in range(0, len(order), batch_size):
        part = [texts[place] for place in order[begin : begin + batch_size]]
        yield from advance(Batch(model, part, sampling, seed))


def advance(batch: Batch) -> Iterator[int]:
    """Run a batch to its end, one token per text and step; yields how many texts each step finished."""
    batch.read_prompts()
    yield batch.leave()
    while batch.texts:
        batch.choose()
        yield batch.leave()
        if batch.texts:
            batch.read_choice()


class Batch:
    """Texts that advance together, with their cache."""

    def __init__(self, model: Model, texts: Sequence[Continuation], sampling: Sampling, seed: int) -> None:
        self.texts = list(texts)
        self._decoder = model.decoder
        self._sampling = sampling
        self._live = live_vocabulary(model)
        self._step = 0
        self._device = model.decoder.tokens.weight.device
        self._chosen: list[int] = []
        self._chooser = Chooser(
            sampling,
            [text.prompt.tokens for text in texts],
            [stream_key(seed, text.prompt.tokens, text.sample) for text in texts],
            live=self._live,
            vocabulary=model.architecture.vocabulary,
            endings=sorted(texts[0].endings),
            device=self._device,
        )

    @torch.inference_mode()
    def read_prompts(self) -> None:
        """The first pass, once per prompt however many samples it has, padded on the left."""
        prompts = list({text.prompt.index: text.prompt for text in self.texts}.values())
        longest = max(len(prompt.tokens) for prompt in prompts)
        rows = [[0] * (longest - len(prompt.tokens)) + list(prompt.tokens) for prompt in prompts]
        tokens = torch.tensor(rows, device=self._device)  # [prompts, longest]
        lengths = torch.tensor([len(prompt.tokens) for prompt in prompts], device=self._device)
        mask = torch.arange(longest, device=self._device) >= longest - lengths[:, None]
        room = max(text.room for text in self.texts)
        self._cache = Cache(
            self._decoder.architecture,
            len(prompts),
            longest + min(room, RESERVED),
            self._decoder.tokens.weight.dtype,
            self._device,
            self._decoder.part[1],
        )
        hidden = self._decoder(
            self._decoder.reading(tokens, mask, cache=self._cache), self._cache
        )  # [prompts, longest, width]
        if self._sampling.prompt_logprobs is not None:
            self._score_prompts(prompts, hidden)
        place = {prompt.index: row for row, prompt in enumerate(prompts)}
        self._logits = self._decoder.unembed(hidden[:, -1]).float()  # [prompts, vocabulary]
        if len(prompts) < len(self.texts):
            spread = torch.tensor([place[text.prompt.index] for text in self.texts], device=self._device)
            self._cache.select(spread)
            self._logits = self._logits[spread]

    @torch.inference_mode()
    def choose(self) -> None:
        """One more token for every text."""
        self._chosen = self._chooser.choose(self._logits, self._step)
        if self._sampling.logprobs is not None:
            found = logprobs.of_tokens(self._logits, self._chosen, self._sampling.logprobs, self._live)
            for text, entry in zip(self.texts, found, strict=True):
                text.logprobs.append(entry)
        for text, token in zip(self.texts, self._chosen, strict=True):
            text.accept(token)
        self._step += 1

    @torch.inference_mode()
    def leave(self) -> int:
        """Finished texts leave the batch; returns how many."""
        kept = [row for row, text in enumerate(self.texts) if text.finish_reason is None]
        gone = len(self.texts) - len(kept)
        if gone and kept:
            rows = torch.tensor(kept, device=self._device)
            self._cache.select(rows)
            self._chooser.select(rows)
            self._logits = self._logits[rows]
        if gone:
            self.texts = [self.texts[row] for row in kept]
            self._chosen = [self._chosen[row] for row in kept] if self._chosen else []
        return gone

    @torch.inference_mode()
    def read_choice(self) -> None:
        """The model reads the tokens just chosen."""
        tokens = torch.tensor(self._chosen, device=self._device)[:, None]  # [texts, 1]
        hidden = self._decoder(self._decoder.reading(tokens, cache=self._cache), self._cache)
        self._logits = self._decoder.unembed(hidden[:, -1]).float()  # [texts, vocabulary]

    def _score_prompts(self, prompts: Sequence[Prompt], hidden: Tensor) -> None:
        wanted = self._sampling.prompt_logprobs or 0
        for row, prompt in enumerate(prompts):
            own = hidden[row, hidden.shape[1] - len(prompt.tokens) :]
            scores = logprobs.of_prompt(own, prompt.tokens, self._decoder.unembed, wanted, self._live)
            for text in self.texts:
                if text.prompt.index == prompt.index:
                    text.prompt_logprobs = list(scores)
