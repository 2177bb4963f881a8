"""The engine: texts that are written beside each other, each as if it were alone.

Every step reads some tokens of each text: one where a text is being written, a part of a prompt where it is
not read yet. Texts come and go between steps. Where the pages of keys and values do not suffice, the text
that came last stands back and goes on later with the same outcome.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daybreak.engine import adapted, logprobs
from daybreak.engine.agreed import agreed, spread
from daybreak.engine.chooser import Chooser
from daybreak.engine.continuation import Continuation
from daybreak.engine.memory import available
from daybreak.engine.pages import LAZY, PAGE, PageLayout, Pages
from daybreak.engine.prompts import Model, live_vocabulary
from daybreak.engine.running import Running
from daybreak.engine.sampling import stream_key
from daybreak.engine.speculation import Draft, Guesser, Lookup, Worth
from daybreak.engine.step import stepper
from daybreak.errors import DaybreakError
from daybreak.model import merging


@dataclass(frozen=True)
class EngineSettings:
    """How the engine uses the machine; nothing here changes a text, except for `cache_dtype`. Raises
    `DaybreakError` for values that make no sense.
    """

    batch_size: int = 32
    """Texts that are written beside each other at most."""
    chunk: int = 512
    """Tokens that a step reads at most: longer prompts are read in parts, between which others go on."""
    cache_dtype: str | None = None
    """What keys and values are kept as: float32, bfloat16 or int8; by default bfloat16 where the weights are,
    else float32."""
    guesses: int = 5
    """Tokens that are guessed at a time, where guessing is measured to be faster; the text is the same. 0:
    none."""
    cache_memory: int | None = None
    """Bytes for keys and values at most; by default half of the memory that is free."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("chunk", 1), ("guesses", 0), ("cache_memory", 1)):
            value = getattr(self, name)
            if name == "cache_memory" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise DaybreakError(f"{name} is {value!r}; it must be a whole number of at least {least}")


class Engine:
    """Writes texts with one model. As long as it lives it remembers what it has read, so that the next text
    that starts the same way does not read that again; the model's weights must not change meanwhile.
    """

    def __init__(
        self, model: Model, settings: EngineSettings | None = None, draft: Model | None = None
    ) -> None:
        """`draft`: a smaller model of the same tokenizer, which guesses what this one then checks. Raises
        `DaybreakError` where it has other tokens, and for a model that is spread over several processes.
        """
        self.settings = settings or EngineSettings()
        self._decoder = model.decoder
        self._weights = merging.weights(model.decoder)
        self._device = model.decoder.tokens.weight.device
        self._live = live_vocabulary(model)
        weights = str(model.decoder.tokens.weight.dtype).removeprefix("torch.")
        usual = "bfloat16" if weights in ("bfloat16", "float16") else "float32"
        stored = self.settings.cache_dtype or usual
        layout = PageLayout.of(model.architecture, stored, model.decoder.part[1])
        self.pages = Pages(layout, agreed(model.decoder, self._limit(layout)), self._device)
        self._step = stepper(model.decoder, self.pages)
        self._guesser: Guesser | None = None
        if draft is not None:
            if spread(model.decoder):  # whether guesses are worth their time is measured, by each for itself
                raise DaybreakError(
                    "a model that is spread over several processes is not drafted for; leave the draft out"
                )
            self._guesser = Draft(model, draft, layout.stored, max(1, self.settings.chunk // 8))
        elif model.architecture.blanks is None and self._step.exact:
            self._guesser = Lookup()
        self._worth = Worth()
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []
        self.steps = 0
        """Passes through the model."""
        self.tokens_read = 0
        """By all passes together."""
        self.stood_back = 0
        """How often a text gave its pages to others."""

    @classmethod
    def for_model(cls, engine: Engine | None, model: Model, batch_size: int = 1) -> Engine:
        """The `engine` that was given, else a new one. Raises `DaybreakError` for one of another model."""
        if engine is None:
            return cls(model, EngineSettings(batch_size))
        if engine._decoder is not model.decoder:
            raise DaybreakError(
                "the engine is another model's; make one with the engine method of this model"
            )
        return engine

    def add(self, text: Continuation, seed: int) -> Running:
        """Have a text written. Raises `DaybreakError` where its keys and values would not fit even alone, and
        for an adapter that the model does not have.
        """
        text.adapter = adapted.adapter_of(self._decoder, text.adapter, self._weights)
        longest = len(text.prompt.tokens) + text.room
        if (needed := self.pages.layout.bytes_for(longest, self.settings.chunk)) > self.pages.limit:
            raise DaybreakError(
                f"a text of {longest:,} tokens needs {needed / 2**20:,.0f} MiB for its keys and values, and "
                f"{self.pages.limit / 2**20:,.0f} MiB are allowed; set max_new_tokens lower or cache_memory "
                "higher"
            )
        key = stream_key(seed, text.prompt.tokens, text.sample)
        architecture = self._decoder.architecture
        chooser = Chooser(
            text.sampling,
            [text.prompt.tokens],
            [key],
            live=self._live,
            vocabulary=architecture.vocabulary,
            endings=sorted(text.endings),
            device=self._device,
        )
        chooser.remember(text.tokens)
        added = Running(text, chooser, architecture, self.pages, adapted.mark(self._decoder, text.adapter))
        if not added.done:
            self.waiting.append(added)
        return added

    def cancel(self, running: Running) -> None:
        """A text is not wanted any more."""
        self._let_go(running)
        self.waiting = deque(one for one in self.waiting if one is not running)
        self.running = [one for one in self.running if one is not running]

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self) -> list[Running]:
        """Read once; returns the texts that are finished with it, or have an error."""
        # In inference mode torch takes products of cut matrices apart anew for every number of tokens.
        with torch.no_grad() if spread(self._decoder) else torch.inference_mode():
            return self._stepped()

    def _stepped(self) -> list[Running]:
        self._admit()
        plan = self._plan()
        if plan:
            try:
                self._read(plan)
            except BaseException:
                self._undo([one for one, _ in plan])
                raise
        elif self.waiting and not self.running:
            return [self._refused()]
        finished = [one for one in self.running if one.done]
        for one in finished:
            self._let_go(one)
        self.running = [one for one in self.running if not one.done]
        return finished

    def _read(self, plan: Sequence[tuple[Running, int]]) -> None:
        began, before = time.perf_counter(), sum(len(one.text.tokens) for one, _ in plan)
        guesses = self._guesses(plan)
        read = self._step.read(
            [one.part(count, own) for (one, count), own in zip(plan, guesses, strict=True)]
        )
        self.steps += 1
        self.tokens_read += len(read)
        sizes = [count + len(own) for (_, count), own in zip(plan, guesses, strict=True)]
        ready = []
        for (one, count), own, rows in zip(plan, guesses, torch.split(read, sizes), strict=True):
            self._score(one, rows, count)
            one.note_read(count)
            if not one.left and one.text.finish_reason is None:
                ready.append((one, own, rows[count - 1 :]))
        if ready:
            self._choose(ready)
        if all(count == 1 for _, count in plan):
            written = sum(len(one.text.tokens) for one, _ in plan) - before
            self._worth.learn(any(guesses), written, time.perf_counter() - began)

    def _undo(self, texts: Sequence[Running]) -> None:
        """A pass has failed midway: those that it was for stand back, and read again what they have lost."""
        for one in reversed([one for one in texts if not one.done]):
            self._let_go(one)
            one.stand_back()
            self.running.remove(one)
            self.waiting.appendleft(one)

    def _guesses(self, plan: Sequence[tuple[Running, int]]) -> list[list[int]]:
        """At what follows the texts that are being written; none while prompts are read."""
        none: list[list[int]] = [[] for _ in plan]
        written = all(count == 1 and one.left == 1 for one, count in plan)
        if self._guesser is None or not self.settings.guesses or not written or not self._worth.decide():
            return none
        found = self._guesser.guess([one for one, _ in plan], self.settings.guesses)
        for number, (one, _) in enumerate(plan):
            room = one.text.room - len(one.text.tokens) - 1
            own = found[number][: max(0, room)] if one.text.adapter is None else []
            none[number] = own if own and one.table.reach(len(one.tokens) + len(own)) else []
            one.proposed += len(none[number])
        return none

    def _limit(self, layout: PageLayout) -> int:
        if self.settings.cache_memory is not None:
            return self.settings.cache_memory
        free = available(self._device) // 2
        if self._device.type == "cpu" and LAZY:
            return free  # taken from the system only as it is used
        longest = layout.bytes_for(2 * self._decoder.architecture.context, self.settings.chunk)
        return min(free, self.settings.batch_size * longest)

    def _admit(self) -> None:
        """Waiting texts begin, in their order, as long as there is room for what they read first."""
        while self.waiting and len(self.running) < self.settings.batch_size:
            one = self.waiting[0]
            if self._soon_known(one):
                return
            one.adopt_known()
            if not one.table.reach(one.read + max(one.least, min(one.left, self.settings.chunk))):
                one.stand_back()
                return
            self.running.append(self.waiting.popleft())

    def _soon_known(self, one: Running) -> bool:
        """A running text is about to read what this one goes on with."""
        keys = one.keys()[: (len(one.tokens) - 1) // PAGE]
        missing = keys[len(self.pages.find(keys)) :]
        reading = [other for other in self.running if other.left > 1]
        return bool(missing) and any(missing[0] in other.keys()[other.read // PAGE :] for other in reading)

    def _plan(self) -> list[tuple[Running, int]]:
        """Which texts read how many tokens, those that came first before the others. A text that is being
        written is never kept waiting.
        """
        reading = [one for one in self.running if not one.done]
        written = sum(one.left == 1 for one in reading)
        room, plan = max(1, self.settings.chunk - written), []
        whole = room
        for one in reading:
            count = 1 if one.left == 1 else min(one.left, room)
            if count < one.least:
                count = one.least if room == whole else 0  # a context is read at once, however long
            if count and self._has_room(one, one.read + count):
                plan.append((one, count))
                room -= 0 if one.left == 1 else count
        return [(one, count) for one, count in plan if one in self.running]

    def _has_room(self, one: Running, end: int) -> bool:
        """Pages up to place `end`; those who came last give theirs, it itself at the worst."""
        while one in self.running and not one.table.reach(end):
            last = self.running.pop()
            last.stand_back()
            self.waiting.appendleft(last)
            self.stood_back += 1
        return one in self.running

    def _score(self, one: Running, rows: Tensor, count: int) -> None:
        """Log-probabilities of the prompt's tokens that follow those just read."""
        if one.alternatives is None:
            return
        prompt = one.text.prompt.tokens
        begin = len(one.scores) - 1  # its row tells the next one
        end = min(one.read + count, len(prompt) - 1)
        if one.read <= begin < end:
            own = rows[begin - one.read : end - one.read]
            following = prompt[begin + 1 : end + 1]
            one.scores += logprobs.of_rows(
                own,
                following,
                lambda hidden: self._step.unembed(hidden, [one.text.adapter] * len(hidden)),
                one.alternatives,
                self._live,
            )
        if len(one.scores) >= len(prompt):
            one.text.prompt_logprobs = list(one.scores[: len(prompt)])

    def _choose(self, ready: Sequence[tuple[Running, list[int], Tensor]]) -> None:
        """One more token for each text, from what the head reads of its last one, and another one for every
        guess that was right.
        """
        adapters = [one.text.adapter for one, _, rows in ready for _ in rows]
        logits = self._step.unembed(torch.cat([rows for _, _, rows in ready]), adapters)  # [rows, vocabulary]
        best, ids = logits[:, : self._live].max(-1)
        likeliest = torch.where(best.isfinite(), ids, -1).tolist()
        row = 0
        for one, guesses, rows in ready:
            try:
                self._take(one, guesses, logits[row : row + len(rows)], likeliest[row : row + len(rows)])
            except DaybreakError as error:
                one.error = error
            row += len(rows)

    def _take(self, one: Running, guesses: Sequence[int], logits: Tensor, likeliest: Sequence[int]) -> None:
        for number, own in enumerate(torch.split(logits, 1)):
            step = len(one.text.tokens)
            plain = likeliest[number] >= 0 and one.chooser.plain(step)
            token = likeliest[number] if plain else one.chooser.choose(own, step)[0]
            if (wanted := one.text.sampling.logprobs) is not None:
                one.text.logprobs += logprobs.of_tokens(own, [token], wanted, self._live)
            one.text.accept(token)
            one.tokens.append(token)
            if one.text.finish_reason is not None or number == len(guesses) or guesses[number] != token:
                return
            one.accepted += 1
            one.note_read(1)

    def _refused(self) -> Running:
        """The first that waits: nobody holds anything, and it does not fit."""
        one = self.waiting.popleft()
        self._let_go(one)
        one.error = DaybreakError(
            f"there is no memory for the keys and values of {len(one.tokens):,} tokens; set cache_memory, or "
            "batch_size and chunk lower"
        )
        return one

    def _let_go(self, one: Running) -> None:
        one.table.release()
        if self._guesser is not None:
            self._guesser.forget(one)


def write(engine: Engine, texts: Sequence[Continuation], seed: int) -> Iterator[int]:
    """Write all texts to their ends; yields how many each step finished. Raises the `DaybreakError` of a text
    that could not go on. Whoever steps the engine in between writes them along.
    """
    running: list[Running] = []
    told = 0
    try:
        for text in texts:
            running.append(engine.add(text, seed))
        while True:
            for one in running:
                if one.error is not None:
                    raise one.error
            before, told = told, sum(one.done for one in running)
            yield told - before
            if told == len(running):
                return
            if not all(one.done for one in running):
                engine.step()
    finally:
        for one in running:
            if not one.done or one.error is not None:
                engine.cancel(one)
