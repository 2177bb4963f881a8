"""Text generation: one prompt or many, greedy or sampled, all at once or piece by piece."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from daybreak.architecture import Learned
from daybreak.engine import logprobs
from daybreak.engine.chooser import Chooser
from daybreak.engine.continuation import Continuation, Result
from daybreak.engine.prompts import Model, Prompt, Prompts, live_vocabulary, prepare, special_tokens
from daybreak.engine.sampling import stream_key
from daybreak.engine.settings import Sampling, resolve
from daybreak.errors import DaybreakError
from daybreak.model.cache import Cache
from daybreak.text.stream import TextStream

RESERVED = 2048
"""New tokens that the cache has room for from the start; it grows if a text gets longer."""


def generate(
    model: Model,
    prompts: Prompts,
    sampling: Sampling | None = None,
    *,
    defaults: bool = True,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> list[Result]:
    """Continue every prompt; `n` results per prompt, in the order of the prompts.

    `settings` are fields of `Sampling` and go before generation_config.json's; with `sampling` that file is
    not asked, with `defaults=False` only for its token ids. Texts run together, at most `batch_size` at a
    time, the longest prompts first; `progress` is called with the number of finished texts and of all. Raises
    `DaybreakError` for a prompt that the model cannot read and for settings that make no sense.
    """
    if batch_size < 1:
        raise DaybreakError(f"batch_size is {batch_size}; it must be a whole number of at least 1")
    chosen = _settings(model, sampling, settings, defaults)
    texts = _continuations(model, prepare(model, prompts), chosen, live=bool(chosen.stop))
    seed = _seed(chosen)
    order = sorted(range(len(texts)), key=lambda place: -len(texts[place].prompt.tokens))
    done = 0
    for begin in range(0, len(order), batch_size):
        together = [texts[place] for place in order[begin : begin + batch_size]]
        for finished in _advance(_Batch(model, together, chosen, seed)):
            if progress is not None and finished:
                done += finished
                progress(done, len(texts))
    return [text.result(text.take()) for text in texts]


class Stream:
    """Iterate over it for pieces of text; afterwards `result` has everything.

    No piece holds part of a character or of a stop string.
    """

    def __init__(self, text: Continuation, batch: _Batch) -> None:
        self._text = text
        self._batch = batch
        self._shown: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for _ in _advance(self._batch):
            piece = self._text.take()
            if piece:
                self._shown.append(piece)
                yield piece

    @property
    def result(self) -> Result:
        """The whole text with its tokens. Raises `DaybreakError` before the last piece was read."""
        if self._text.finish_reason is None:
            raise DaybreakError("the text is not finished; read all pieces of the stream first")
        return self._text.result("".join(self._shown))


def stream(
    model: Model,
    prompt: str | Sequence[int],
    sampling: Sampling | None = None,
    *,
    defaults: bool = True,
    **settings: Any,
) -> Stream:
    """Continue one prompt, piece by piece: the text that `generate` gives, as it comes; see there."""
    chosen = _settings(model, sampling, settings, defaults)
    if chosen.n != 1:
        raise DaybreakError(f"n is {chosen.n}, but a stream is one text; use generate for several samples")
    if model.tokenizer is None:
        raise DaybreakError(
            "the model has no tokenizer, so there is no text to stream; use generate for token ids"
        )
    prompts = prepare(model, [prompt])  # type: ignore[arg-type]
    texts = _continuations(model, prompts, chosen, live=True)
    return Stream(texts[0], _Batch(model, texts, chosen, _seed(chosen)))


def _settings(model: Model, sampling: Sampling | None, settings: dict[str, Any], defaults: bool) -> Sampling:
    if sampling is not None:
        return dataclasses.replace(sampling, **settings)
    return resolve(model.generation if defaults else {}, settings)


def _seed(sampling: Sampling) -> int:
    return secrets.randbits(63) if sampling.seed is None else sampling.seed


def _continuations(
    model: Model, prompts: Sequence[Prompt], sampling: Sampling, live: bool
) -> list[Continuation]:
    endings = _endings(model, sampling)
    found = []
    for prompt in prompts:
        room = sampling.room(len(prompt.tokens))
        if isinstance(model.architecture.positions, Learned):
            # The last new token is not read back, so it needs no row of the table.
            room = min(room, model.architecture.context - len(prompt.tokens) + 1)
        for sample in range(sampling.n):
            words = None
            if model.tokenizer is not None:
                words = TextStream(
                    model.tokenizer, prompt.tokens, sampling.stop, unfinished=not prompt.from_text
                )
            found.append(Continuation(prompt, sample, room, sampling, endings, words, live))
    return found


def _endings(model: Model, sampling: Sampling) -> frozenset[int]:
    """Tokens that end a text. A stop string that is a special token is one of them: texts do not show it."""
    if sampling.stop and model.tokenizer is None:
        raise DaybreakError("stop strings need a tokenizer, and the model has none; use stop_tokens")
    own = () if sampling.ignore_eos else special_tokens(model, "eos")
    written = [model.tokenizer.special_id(stop) for stop in sampling.stop]
    return frozenset(sampling.stop_tokens).union(own, (token for token in written if token is not None))


def _advance(batch: _Batch) -> Iterator[int]:
    """Run a batch to its end, one token per text and step; yields how many texts each step finished."""
    batch.read_prompts()
    yield batch.leave()
    while batch.texts:
        batch.choose()
        yield batch.leave()
        if batch.texts:
            batch.read_choice()


class _Batch:
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
