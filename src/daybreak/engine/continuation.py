"""One text on its way: its new tokens, what they say, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from daybreak.engine.logprobs import TokenLogprob
from daybreak.engine.prompts import Prompt
from daybreak.engine.settings import Sampling
from daybreak.text.stream import TextStream

FinishReason = Literal["stop", "length"]
IN_USE = ""
"""Instead of an adapter's name: the one that the model uses at the time."""


@dataclass(frozen=True)
class Result:
    """One continued text."""

    tokens: list[int]
    """The new tokens, the one that ended the text included."""
    text: str
    """What they say, without an end-of-text token and up to a stop string; empty without a tokenizer."""
    finish_reason: FinishReason
    """`stop`: an end-of-text token, a stop token or a stop string; `length`: no room was left."""
    logprobs: list[TokenLogprob] | None
    """Of `tokens`, by the model itself: before temperature, penalties and filters. None: not asked for."""
    prompt_tokens: list[int]
    """The prompt as the model read it."""
    prompt_logprobs: list[TokenLogprob | None] | None
    """Of `prompt_tokens`; the first is None, for nothing comes before it. None: not asked for."""
    prompt: int
    """Which prompt of the call, from 0."""
    sample: int
    """Which sample of this prompt, from 0."""


@dataclass(eq=False)
class Continuation:
    """A text that is being written."""

    prompt: Prompt
    sample: int
    room: int
    """New tokens at most."""
    sampling: Sampling
    endings: frozenset[int]
    """Tokens that end the text."""
    stream: TextStream | None
    """None: the model has no tokenizer."""
    live: bool
    """The text is wanted token by token: somebody reads along, or stop strings must be seen."""
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    adapter: str | None = IN_USE
    """The name of the adapter that writes it; None: the model without any."""

    def __post_init__(self) -> None:
        if not self.room:
            self.finish_reason = "length"

    def accept(self, token: int) -> None:
        """Add a token and see whether it ends the text."""
        self.tokens.append(token)
        if token in self.endings:
            self._finish("stop", self.tokens[:-1])
            return
        if self.live and self.stream is not None:
            watch = len(self.tokens) > self.sampling.min_new_tokens
            self.pieces.append(self.stream.feed([token], watch=watch))
            if self.stream.stopped:
                self.finish_reason = "stop"
                return
        if len(self.tokens) >= self.room:
            self._finish("length", self.tokens)

    def take(self) -> str:
        """The text that can be shown since this was last asked."""
        self.pieces, taken = [], "".join(self.pieces)
        return taken

    def result(self, text: str) -> Result:
        """What the caller gets, with the `text` that was taken."""
        assert self.finish_reason is not None
        return Result(
            tokens=self.tokens,
            text=text,
            finish_reason=self.finish_reason,
            logprobs=None if self.sampling.logprobs is None else self.logprobs,
            prompt_tokens=list(self.prompt.tokens),
            prompt_logprobs=self.prompt_logprobs,
            prompt=self.prompt.index,
            sample=self.sample,
        )

    def _finish(self, reason: FinishReason, written: list[int]) -> None:
        self.finish_reason = reason
        if self.stream is None:
            return
        if not self.live:
            self.pieces.append(self.stream.feed(written))
        self.pieces.append(self.stream.finish())
        if self.stream.stopped:  # a stop string hid in what was held back
            self.finish_reason = "stop"
