"""Text generation: one prompt or many, greedy or sampled, all at once or piece by piece."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from daybreak.engine import frame
from daybreak.engine.adapted import Adapters, assign
from daybreak.engine.agreed import agreed
from daybreak.engine.continuation import IN_USE, Continuation, Result
from daybreak.engine.engine import Engine, write
from daybreak.engine.frame import Frame
from daybreak.engine.prompts import Model, Prompt, Prompts, prepare, special_tokens
from daybreak.engine.settings import Sampling, resolve
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from daybreak.text.stream import TextStream


def generate(
    model: Model,
    prompts: Prompts,
    sampling: Sampling | None = None,
    *,
    defaults: bool = True,
    batch_size: int = 32,
    engine: Engine | None = None,
    progress: Callable[[int, int], None] | None = None,
    adapters: Adapters = IN_USE,
    **settings: Any,
) -> list[Result]:
    """Continue every prompt; `n` results per prompt, in the order of the prompts.

    `settings` are fields of `Sampling` and go before generation_config.json's; with `sampling` that file is
    not asked, with `defaults=False` only for its token ids. Texts are written beside each other, at most
    `batch_size` at a time; with an `engine` by this one, which remembers what it has read. `progress` is
    called with the number of finished texts and of all. `adapters` names one adapter, or one for each prompt;
    None is the model without any, and nothing said the one in use. Raises `DaybreakError` for a prompt that
    the model cannot read and for settings that make no sense.
    """
    engine = Engine.for_model(engine, model, batch_size)
    chosen = settings_of(model, sampling, settings, defaults)
    texts = continuations(model, prepare(model, prompts), chosen, live=bool(chosen.stop))
    assign(texts, adapters)
    done = 0
    for finished in write(engine, texts, seed_of(chosen, model.decoder)):
        if progress is not None and finished:
            done += finished
            progress(done, len(texts))
    return [text.result(text.take()) for text in texts]


class Stream:
    """Iterate over it for pieces of text; afterwards `result` has everything.

    No piece holds part of a character or of a stop string.
    """

    def __init__(self, text: Continuation, engine: Engine, seed: int) -> None:
        self._text = text
        self._engine, self._seed = engine, seed
        self._shown: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for _ in write(self._engine, [self._text], self._seed):
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
    engine: Engine | None = None,
    **settings: Any,
) -> Stream:
    """Continue one prompt, piece by piece: the text that `generate` gives, as it comes; see there."""
    chosen = settings_of(model, sampling, settings, defaults)
    if chosen.n != 1:
        raise DaybreakError(f"n is {chosen.n}, but a stream is one text; use generate for several samples")
    if model.tokenizer is None:
        raise DaybreakError(
            "the model has no tokenizer, so there is no text to stream; use generate for token ids"
        )
    prompts = prepare(model, [prompt])  # type: ignore[arg-type]
    texts = continuations(model, prompts, chosen, live=True)
    return Stream(texts[0], Engine.for_model(engine, model), seed_of(chosen, model.decoder))


def settings_of(
    model: Model, sampling: Sampling | None, settings: dict[str, Any], defaults: bool
) -> Sampling:
    """The settings of one call, with what the model itself asks for."""
    if sampling is not None:
        chosen = dataclasses.replace(sampling, **settings)
    else:
        chosen = resolve(model.generation if defaults else {}, settings)
    return chosen if model.architecture.blanks is None else _with_blanks(model, chosen)


def _with_blanks(model: Model, chosen: Sampling) -> Sampling:
    """Tokens that a model with blanks only reads are never chosen; nor are its ends where they end nothing,
    for they are never read.
    """
    if chosen.prompt_logprobs is not None:
        raise DaybreakError(
            f"{model.family.title} reads a prompt in both directions, so its tokens have no probability "
            "given those before them; leave prompt_logprobs out"
        )
    ends = {*special_tokens(model, "eos"), *Frame.of(model).endings()}
    silent = {*Frame.of(model).silent(model)} - ends
    never = (silent | ends if chosen.ignore_eos else silent) - {*chosen.stop_tokens}
    return dataclasses.replace(chosen, suppress_tokens=(*chosen.suppress_tokens, *sorted(never)))


def seed_of(sampling: Sampling, decoder: Decoder | None = None) -> int:
    """The same on all processes that the decoder is spread over."""
    if sampling.seed is not None:
        return sampling.seed
    drawn = secrets.randbits(63)
    return drawn if decoder is None else agreed(decoder, drawn)


def continuations(
    model: Model, prompts: Sequence[Prompt], sampling: Sampling, live: bool
) -> list[Continuation]:
    endings = endings_of(model, sampling)
    found = []
    for prompt in prompts:
        room = room_of(model, prompt, sampling)
        for sample in range(sampling.n):
            words = None
            if model.tokenizer is not None:
                words = TextStream(
                    model.tokenizer,
                    _shown(model, prompt),
                    sampling.stop,
                    unfinished=not prompt.from_text,
                )
            found.append(Continuation(prompt, sample, room, sampling, endings, words, live))
    return found


def room_of(model: Model, prompt: Prompt, sampling: Sampling) -> int:
    """New tokens at most."""
    wanted, left = sampling.room(len(prompt.tokens)), frame.room(model.architecture, prompt.tokens)
    return wanted if left is None else min(wanted, left)


def _shown(model: Model, prompt: Prompt) -> tuple[int, ...]:
    """Tokens that the new text continues: a piece that fills a blank is a text of its own."""
    if model.architecture.blanks is None:
        return prompt.tokens
    starts = [place for place, token in enumerate(prompt.tokens) if token == model.architecture.blanks.start]
    return prompt.tokens[starts[-1] + 1 :]


def endings_of(model: Model, sampling: Sampling) -> frozenset[int]:
    """Tokens that end a text. A stop string that is a special token is one of them: texts do not show it."""
    if sampling.stop and model.tokenizer is None:
        raise DaybreakError("stop strings need a tokenizer, and the model has none; use stop_tokens")
    own: set[int] = set()
    if not sampling.ignore_eos:
        own.update(special_tokens(model, "eos"))
        if model.architecture.blanks is not None:
            own.update(Frame.of(model).endings())
    written = [model.tokenizer.special_id(stop) for stop in sampling.stop]
    return frozenset(sampling.stop_tokens).union(own, (token for token in written if token is not None))
