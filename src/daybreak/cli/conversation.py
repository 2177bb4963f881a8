"""A conversation in the terminal: the messages so far, the model that answers them, and what people think of
its answers."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.engine.chat import Answer
    from daybreak.engine.engine import Engine
    from daybreak.language_model import LanguageModel


@dataclass
class Turn:
    """The last question, and every answer that it was given."""

    asked: list[dict[str, str]]
    """The messages up to the question."""
    answers: list[str] = field(default_factory=list)
    ratings: list[float | None] = field(default_factory=list)


class Conversation:
    """The messages so far, and the model that answers them; its engine remembers what it has read."""

    def __init__(
        self,
        model: LanguageModel,
        engine: Engine,
        system: str | None,
        defaults: bool,
        settings: dict[str, Any],
        ratings: Path | None = None,
        name: str = "",
    ) -> None:
        """Ratings are added to the file `ratings`, as those of the model of that `name`."""
        from daybreak.engine.chat import settings_of

        self.model, self.engine, self.system = model, engine, system or None
        self.sampling = settings_of(model, None, settings, defaults)
        self.messages: list[dict[str, str]] = []
        self._ratings, self._name = ratings, name
        self._turn: Turn | None = None

    def introduce(self) -> None:
        """Say so where the answers are those of a model that was never trained to give any."""
        from daybreak.engine.chat import has_template

        if not has_template(self.model):
            note(
                f"this {self.model.family.title} brings no chat template along, so it continues a transcript "
                "of User and Assistant; models that were not trained to answer often do not"
            )

    def everything(self) -> list[dict[str, str]]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.messages]

    def ask(self, text: str, shown: bool = True) -> Answer:
        """Print the answer, and keep it. Interrupted, what has come so far is the answer; if that is
        nothing, the question counts as not asked.
        """
        self.leave()
        question = {"role": "user", "content": text}
        turn = Turn([*self.everything(), question])
        try:
            return self._answer(turn, shown)
        finally:
            if turn.answers:
                self.messages += [question, said(turn.answers[-1])]
                self._turn = turn

    def retry(self) -> None:
        """Another answer to the last question, which takes the place of the one before."""
        turn = self._current()
        try:
            self._answer(turn, True)
        finally:
            self.messages[-1] = said(turn.answers[-1])
        if turn.answers[-1] in turn.answers[:-1]:
            greedy = self.sampling.temperature == 0
            note("this is what it said before" + "; with a --temperature above 0 answers differ" * greedy)

    def rate(self, text: str) -> None:
        """Remember what the last answer is worth. Raises `DaybreakError` for what is no number."""
        if self._ratings is None:
            raise DaybreakError("ratings are kept in a file; start the chat with --ratings FILE")
        turn = self._current()
        try:
            value = {"+": 1.0, "-": -1.0}.get(text) or float(text)
        except ValueError:
            raise DaybreakError(f"/rate {text}: say + or -, or a number (larger is better)") from None
        if not math.isfinite(value):
            raise DaybreakError(f"/rate {text}: a rating is a finite number")
        turn.ratings[-1] = value
        note(f"answer {len(turn.answers)} is rated {value:g}")

    def leave(self) -> None:
        """The last question is done with: its ratings, if there are any, go into the file."""
        turn, self._turn = self._turn, None
        if self._ratings is None or turn is None or all(value is None for value in turn.ratings):
            return
        from daybreak.data.rankings import append_rating

        append_rating(self._ratings, turn.asked, turn.answers, turn.ratings, model=self._name)

    def undo(self) -> None:
        self.leave()
        del self.messages[-2:]

    def reset(self) -> None:
        self.leave()
        self.messages.clear()

    def _current(self) -> Turn:
        if self._turn is None:
            raise DaybreakError("there is no answer yet; ask something first")
        return self._turn

    def _answer(self, turn: Turn, shown: bool) -> Answer:
        """One more answer to a turn's question, if any of it comes."""
        from daybreak.engine.chat import chat, fit

        kept, dropped = fit(self.model, turn.asked, self.sampling)
        if dropped:
            note(f"the context is full: the first {dropped} messages are left out")
        sampling, tried = self.sampling, len(turn.answers)
        if sampling.seed is not None:  # the same seed would write the same again
            sampling = dataclasses.replace(sampling, seed=sampling.seed + tried)
        answer = chat(self.model, kept, sampling, engine=self.engine)
        finished = False
        try:
            for piece in answer:
                if shown:
                    print(piece, end="", flush=True)
            finished = True
        finally:
            if shown:
                print(flush=True)
            if finished or answer.text:
                turn.answers.append(answer.message["content"])
                turn.ratings.append(None)
        return answer


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
