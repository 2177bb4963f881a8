"""Filling the blanks of texts, one after another, each in the text in which those before it are filled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from daybreak.architecture import Learned
from daybreak.engine.continuation import Continuation, FinishReason
from daybreak.engine.engine import Engine, write
from daybreak.engine.frame import Frame
from daybreak.engine.generate import endings_of, room_of, seed_of, settings_of
from daybreak.engine.logprobs import TokenLogprob
from daybreak.engine.prompts import Model, Prompt, check, encode
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError
from daybreak.text.stream import TextStream


@dataclass(frozen=True)
class Blank:
    """What was written for one mask."""

    mask: str
    """How the text spells it: [MASK], [sMASK] or [gMASK]."""
    text: str
    """As it stands in the filled text; empty if the model has nothing to say here."""
    tokens: list[int]
    """The new tokens, the one that ended the piece included."""
    finish_reason: FinishReason
    """`stop`: the model ended the piece, or a stop token did; `length`: no room was left."""
    logprobs: list[TokenLogprob] | None
    """Of `tokens`, as in `daybreak.engine.continuation.Result`; None: not asked for."""


@dataclass(frozen=True)
class Filled:
    """One text with its blanks filled."""

    text: str
    """The given text as it was given, with what was written in place of each mask."""
    blanks: list[Blank]
    tokens: list[int]
    """The text's ids with those of the pieces in place of the masks, as the model reads them."""
    prompt: int
    """Which text of the call, from 0."""
    sample: int
    """Which sample of this text, from 0."""


class Piece(NamedTuple):
    """A part of a text that is being filled."""

    text: str
    blank: int | None
    """Which blank it was written for, from 0; None: it was given."""


@dataclass(frozen=True)
class Form:
    """A text with blanks, taken apart."""

    prompt: int
    given: tuple[str, ...]
    """The text between the masks: one more than these."""
    masks: tuple[str, ...]
    tokens: tuple[int, ...]


def infill(
    model: Model,
    texts: str | Sequence[str],
    sampling: Sampling | None = None,
    *,
    defaults: bool = True,
    batch_size: int = 32,
    engine: Engine | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> list[Filled]:
    """Fill the blanks of every text; `n` results per text, in the order of the texts.

    For the arguments see `daybreak.engine.generate.generate`; max_new_tokens is that of each blank, and
    `progress` counts blanks. Raises `DaybreakError` for a model without blanks or tokenizer, and for a text
    without any blank or with a [gMASK] before its end.
    """
    engine = Engine.for_model(engine, model, batch_size)
    frame, chosen = _prepare(model, sampling, settings, defaults)
    forms = [_form(model, frame, number, text) for number, text in enumerate(_texts(texts))]
    fillings = [_Filling(model, frame, chosen, form, sample) for form in forms for sample in range(chosen.n)]
    seed, done, all_ = seed_of(chosen, model.decoder), 0, sum(len(filling.form.masks) for filling in fillings)
    while waiting := [filling for filling in fillings if not filling.full]:
        begun = [filling.begin(number, live=False) for number, filling in enumerate(waiting)]
        for finished in write(engine, begun, seed):
            if progress is not None and finished:
                done += finished
                progress(done, all_)
        for filling, written in zip(waiting, begun, strict=True):
            filling.fill(written, filling.shown(written))
    return [filling.result() for filling in fillings]


class InfillStream:
    """Iterate over it for the pieces of the filled text; afterwards `result` has everything.

    No piece holds part of a character.
    """

    def __init__(self, engine: Engine, filling: _Filling, sampling: Sampling) -> None:
        self._engine, self._filling, self._sampling = engine, filling, sampling

    def __iter__(self) -> Iterator[Piece]:
        filling, seed = self._filling, seed_of(self._sampling, self._filling.model.decoder)
        while not filling.full:
            number = len(filling.blanks)
            if given := filling.form.given[number]:
                yield Piece(given, None)
            written, whole = filling.begin(0, live=True), ""
            for _ in write(self._engine, [written], seed):
                if piece := filling.shown(written, whole):
                    whole += piece
                    yield Piece(piece, number)
            filling.fill(written, whole)
        if filling.form.given[-1]:
            yield Piece(filling.form.given[-1], None)

    @property
    def result(self) -> Filled:
        """The filled text with its blanks. Raises `DaybreakError` before the last blank is filled."""
        if not self._filling.full:
            raise DaybreakError("the text is not filled; read all pieces of the stream first")
        return self._filling.result()


def infill_stream(
    model: Model,
    text: str,
    sampling: Sampling | None = None,
    *,
    defaults: bool = True,
    engine: Engine | None = None,
    **settings: Any,
) -> InfillStream:
    """Fill the blanks of one text, piece by piece: the text that `infill` gives, as it comes; see there."""
    frame, chosen = _prepare(model, sampling, settings, defaults)
    if chosen.n != 1:
        raise DaybreakError(f"n is {chosen.n}, but a stream is one text; use infill for several samples")
    filling = _Filling(model, frame, chosen, _form(model, frame, 0, text), 0)
    return InfillStream(Engine.for_model(engine, model), filling, chosen)


def _prepare(
    model: Model, sampling: Sampling | None, settings: dict[str, Any], defaults: bool
) -> tuple[Frame, Sampling]:
    frame = Frame.of(model)
    if model.tokenizer is None:
        raise DaybreakError("the model has no tokenizer, so it cannot read a text with blanks; use generate")
    chosen = settings_of(model, sampling, settings, defaults)
    if ordinary := [stop for stop in chosen.stop if model.tokenizer.special_id(stop) is None]:
        raise DaybreakError(
            f"stop is {ordinary[0]!r}, which may end within a token, and a blank is filled with whole ones; "
            "give stop_tokens"
        )
    return frame, chosen


def _texts(texts: str | Sequence[str]) -> list[str]:
    entries = [texts] if isinstance(texts, str) else texts
    wrong = not isinstance(entries, Sequence) or not all(isinstance(entry, str) for entry in entries)
    if wrong or not entries:
        raise DaybreakError("there is no text to fill; give one with a blank, or a list of such")
    return list(entries)


def _form(model: Model, frame: Frame, number: int, text: str) -> Form:
    name, blanks = f"text {number + 1}", frame.blanks
    tokens = encode(model, name, text)
    spelled = {
        spelling: token
        for role, spelling in model.family.blank_tokens.items()
        if role not in ("start", "end") and (token := model.tokenizer.special_id(spelling)) in blanks.masks
    }
    if not spelled:
        raise DaybreakError(
            "the model's tokenizer has no token for a blank; take it from the same checkpoint"
        )
    if blanks.start in tokens or blanks.end in tokens:
        raise DaybreakError(f"{name} has the token that starts or ends what fills a blank; leave it out")
    found = [token for token in tokens if token in blanks.masks]
    if not found:
        raise DaybreakError(f"{name} has no blank; put one of {', '.join(spelled)} into it")
    if blanks.rest in tokens[:-1]:
        raise DaybreakError(
            f"{name} has a [gMASK] before its end; it stands for the rest of a text, so put it behind all "
            "else, or take another mask"
        )
    parts = re.split(f"({'|'.join(map(re.escape, spelled))})", text)
    if [spelled[mask] for mask in parts[1::2]] != found:
        raise DaybreakError(f"{name} has blanks that the tokenizer reads differently; put spaces around them")
    return Form(number, tuple(parts[::2]), tuple(parts[1::2]), tuple(tokens))


@dataclass(eq=False)
class _Filling:
    """A text whose blanks are being filled."""

    model: Model
    frame: Frame
    sampling: Sampling
    form: Form
    sample: int
    blanks: list[Blank] = field(default_factory=list)
    text: str = ""
    """Up to the next blank."""

    def __post_init__(self) -> None:
        self.tokens = list(self.form.tokens)
        self.text = self.form.given[0]
        self._endings = endings_of(self.model, self.sampling)
        others = {*self.frame.blanks.masks} - {self.frame.blanks.rest}
        name, prompts = f"text {self.form.prompt + 1}", [self._prompt()]
        if self._goes_on():  # its last prompt has the [gMASK] and the end of the text besides
            prompts.append(self.frame.prompt([token for token in self.tokens if token not in others]))
        for prompt in prompts:
            check(self.model, name, prompt)

    @property
    def full(self) -> bool:
        return len(self.blanks) == len(self.form.masks)

    def begin(self, index: int, *, live: bool) -> Continuation:
        """The piece for the next blank, to be written; `index` tells it from others of its batch."""
        prompt = Prompt(index, tuple(self._prompt()), from_text=True)
        left = room_of(self.model, prompt, self.sampling)
        last = len(self.blanks) + 1 == len(self.form.masks)
        if isinstance(self.model.architecture.positions, Learned) and not last:
            left = min(left, self._room_of_text())
        words = TextStream(self.model.tokenizer, self.tokens[: self._place()])
        return Continuation(prompt, self.sample, left, self.sampling, self._endings, words, live)

    def shown(self, written: Continuation, before: str = "") -> str:
        """The text that the piece has got, behind the part that was shown `before`.

        Where the tokenizer drops white space before a mask, the given white space stands for the piece's.
        """
        piece = written.take()
        return piece.lstrip() if not before and self._dropped() else piece

    def fill(self, written: Continuation, text: str) -> None:
        """Put a finished piece into its blank."""
        result, place, number = written.result(text), self._place(), len(self.blanks)
        ended = result.finish_reason == "stop"
        self.tokens[place : place + 1] = result.tokens[:-1] if ended else result.tokens
        self.text += text + self.form.given[number + 1]
        mask = self.form.masks[number]
        self.blanks.append(Blank(mask, text, result.tokens, result.finish_reason, result.logprobs))

    def result(self) -> Filled:
        return Filled(self.text, self.blanks, self.tokens, self.form.prompt, self.sample)

    def _prompt(self) -> list[int]:
        """What the model reads for the next blank. A [gMASK] at the end says to the others only that the text
        goes on.
        """
        goes_on = self._goes_on()
        return self.frame.prompt(self.tokens[:-1] if goes_on else self.tokens, goes_on=goes_on)

    def _goes_on(self) -> bool:
        """A [gMASK] stands behind other blanks."""
        return self.tokens[-1] == self.frame.blanks.rest and self._place() < len(self.tokens) - 1

    def _place(self) -> int:
        return next(place for place, token in enumerate(self.tokens) if token in self.frame.blanks.masks)

    def _room_of_text(self) -> int:
        """New tokens with which the text still fits the table of positions for the blanks after this one."""
        place = self._place()
        emptied = [*self.tokens[:place], *self.tokens[place + 1 :]]
        following = self.frame.prompt(emptied)  # with the start of a piece, which is none of the context
        return max(0, self.model.architecture.context - len(following) + 1)

    def _dropped(self) -> bool:
        """The white space before the blank is not among the tokens before it."""
        before = self.model.tokenizer.decode(self.tokens[: self._place()])
        return self.text[-1:].isspace() and not before[-1:].isspace()
