"""The watcher of a run: which steps are spikes, and what is done about them.

It sees a few numbers of each step after the backward pass, and says before the optimizer's step what shall
happen. No tensor comes here, nothing is drawn at random and nothing is read from a clock: the same numbers
give the same verdicts on every rank, and after a restart.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from daybreak.train.settings import WatchSettings

Kind = Literal[
    "loss spike", "slow rise", "gradient spike", "embedding gradient spike", "not finite", "loss scale"
]
Action = Literal["go", "skip", "roll_back", "stop"]

DEVIATION = 1.4826
"""Standard deviation of a normal distribution per median distance from its median."""


@dataclass(frozen=True)
class Seen:
    """A step as it is after the backward pass, the same on all ranks: loss in nats per token, norms before
    clipping and in true units (the loss scale divided out)."""

    step: int
    loss: float
    gradient_norm: float
    embedding_gradient_norm: float | None = None
    loss_scale: float | None = None
    """float16: the scale that this step was computed with."""
    overflow: bool = False
    """float16: the scaled gradient did not fit, which is how the scale finds its height; no spike."""


@dataclass(frozen=True)
class Event:
    """Something that a person should know of."""

    kind: Kind
    step: int
    value: float
    usual: float | None
    """The running figure that `value` was compared with."""
    text: str


@dataclass(frozen=True)
class Verdict:
    """go: take the step. skip: leave weights and optimizer as they are, and read on. roll_back: return to the
    newest checkpoint at least `back` steps ago, or skip where there is none. stop: end the run, with the
    event's text as the reason."""

    event: Event | None
    action: Action


class Watch:
    """Compares each step with the steps before it.

    Loss, gradient norm and embedding gradient norm are compared with the median of their last `window`
    values. Half of the values would have to be spikes before a median moves; steps that are not taken do not
    enter it at all. A loss that rises too slowly for that is compared with the lowest median of the run.
    """

    def __init__(self, settings: WatchSettings) -> None:
        self._settings = settings
        self._loss: deque[float] = deque(maxlen=settings.window)
        self._gradient: deque[float] = deque(maxlen=settings.window)
        self._embedding: deque[float] = deque(maxlen=settings.window)
        self._lowest: float | None = None
        self._not_taken = 0
        self._low_scale = False
        self._returns: dict[int, int] = {}

    def look(self, seen: Seen) -> Verdict:
        """What to do with this step; call it once for each step, in their order."""
        event = self._not_finite(seen) or self._spike(seen) or self._scale(seen) or self._rise(seen)
        action = self._action(event, seen)
        if action == "go" or (action == "skip" and event is None):
            self._remember(seen)
        # An overflow is no failure while the scale has room to fall.
        taken = action == "go" or (event is None and not self._low_scale)
        self._not_taken = 0 if taken else self._not_taken + 1
        if self._not_taken >= self._settings.most:
            return self._too_many(event, seen)
        return Verdict(event, action)

    def returned(self, step: int, state: Mapping[str, Any]) -> str | None:
        """The run is back at the checkpoint of `step`, whose `state()` this is: the figures are those of
        then. Returns why the run has to end, if it was here too often."""
        returns = {**self._returns, step: self._returns.get(step, 0) + 1}
        self.restore(state)
        self._returns = returns
        if returns[step] < self._settings.most:
            return None
        return (
            f"the run went back to the checkpoint of step {step} {returns[step]} times (watch.most), and "
            "always spiked again; begin at an earlier checkpoint, lower optimizer.lr, or look at the data"
        )

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON keeps it exactly."""
        return {
            "loss": list(self._loss),
            "gradient": list(self._gradient),
            "embedding": list(self._embedding),
            "lowest": self._lowest,
            "not_taken": self._not_taken,
            "low_scale": self._low_scale,
            "returns": {str(step): count for step, count in self._returns.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()`; of a longer window the newest values are taken."""
        for values, kept in (
            (self._loss, state["loss"]),
            (self._gradient, state["gradient"]),
            (self._embedding, state["embedding"]),
        ):
            values.clear()
            values.extend(kept)
        self._lowest = state["lowest"]
        self._not_taken = state["not_taken"]
        self._low_scale = state["low_scale"]
        self._returns = {int(step): count for step, count in state["returns"].items()}

    def _not_finite(self, seen: Seen) -> Event | None:
        figures: list[tuple[str, float | None]] = [("loss", seen.loss)]
        if not seen.overflow:
            figures.append(("gradient norm", seen.gradient_norm))
            figures.append(("embedding's gradient norm", seen.embedding_gradient_norm))
        for name, value in figures:
            if value is not None and not math.isfinite(value):
                return Event("not finite", seen.step, value, None, f"the {name} is {value}")
        return None

    def _spike(self, seen: Seen) -> Event | None:
        settings = self._settings
        loss = self._usual(self._loss)
        if loss is not None:
            spread = DEVIATION * median(abs(value - loss) for value in self._loss)
            if seen.loss > max(settings.loss_factor * loss, loss + settings.loss_deviations * spread):
                return _above("loss spike", "loss", seen.step, seen.loss, loss)
        if seen.overflow:
            return None
        embedding = self._usual(self._embedding)
        value = seen.embedding_gradient_norm
        if value is not None and embedding is not None and value > settings.embedding_factor * embedding:
            name = "embedding's gradient norm"
            return _above("embedding gradient spike", name, seen.step, value, embedding)
        gradient = self._usual(self._gradient)
        if gradient is not None and seen.gradient_norm > settings.gradient_factor * gradient:
            return _above("gradient spike", "gradient norm", seen.step, seen.gradient_norm, gradient)
        return None

    def _usual(self, values: deque[float]) -> float | None:
        return median(values) if len(values) >= self._settings.warmup else None

    def _scale(self, seen: Seen) -> Event | None:
        """Once, when the scale falls too low; again only after it has recovered."""
        scale, smallest = seen.loss_scale, self._settings.smallest_scale
        low = scale is not None and scale < smallest
        new, self._low_scale = low and not self._low_scale, low
        if scale is None or not new:
            return None
        text = f"the loss scale has fallen to {scale:g}, below {smallest:g}: a sign that the run diverges"
        return Event("loss scale", seen.step, scale, smallest, text)

    def _rise(self, seen: Seen) -> Event | None:
        """A loss whose median has left the lowest one behind; the next event is as far above this one."""
        if len(self._loss) < self._settings.window:
            return None
        level = median(self._loss)
        lowest = self._lowest = level if self._lowest is None else min(self._lowest, level)
        if level <= self._settings.rise_factor * lowest:
            return None
        self._lowest = level
        text = f"the loss has risen slowly to {level:.4g}; the lowest running median was {lowest:.4g}"
        return Event("slow rise", seen.step, level, lowest, text)

    def _action(self, event: Event | None, seen: Seen) -> Action:
        policy = self._settings.policy
        kind = event.kind if event is not None else None
        if policy == "roll_back" and kind in ("loss spike", "slow rise", "loss scale"):
            return "roll_back"
        if kind == "not finite" or seen.overflow:
            return "skip"
        spikes = ("loss spike", "gradient spike", "embedding gradient spike")
        # What does not come from the batch is not helped by leaving it out.
        return "skip" if policy != "log" and kind in spikes else "go"

    def _remember(self, seen: Seen) -> None:
        self._loss.append(seen.loss)
        if seen.overflow:
            return
        self._gradient.append(seen.gradient_norm)
        if seen.embedding_gradient_norm is not None:
            self._embedding.append(seen.embedding_gradient_norm)

    def _too_many(self, event: Event | None, seen: Seen) -> Verdict:
        """The weights stay as they are while no step is taken, so that more of it would change nothing."""
        settings = self._settings
        text = (
            f"{self._not_taken} steps in a row could not be taken (watch.most), so the weights are to blame"
        )
        action: Action = "stop"
        if settings.policy != "roll_back":
            text += (
                " and not the data, unless that has changed: go back with --watch.policy roll_back, or "
                "accept a new level with --watch.policy log"
            )
        elif self._not_taken == settings.most:
            action = "roll_back"
        else:  # it came to no return
            text += ", and there is no checkpoint to go back to; begin anew with a lower optimizer.lr"
        if event is None:
            scale = float(seen.loss_scale or 0.0)
            return Verdict(Event("loss scale", seen.step, scale, settings.smallest_scale, text), action)
        return Verdict(replace(event, text=f"{event.text}; {text}"), action)


def _above(kind: Kind, name: str, step: int, value: float, usual: float) -> Event:
    times = f"{value / usual:.3g} times its usual {usual:.4g}" if usual > 0 else "where it was 0"
    return Event(kind, step, value, usual, f"the {name} is {value:.4g}, {times}")
