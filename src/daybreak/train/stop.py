"""Ending early without losing what was learned."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from daybreak.errors import DaybreakError
from daybreak.train.run_status import Ending

NAMES: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stop:
    """Has somebody asked for the end?"""

    def __init__(self) -> None:
        self.asked = False
        self.signal: int | None = None
        """Which signal asked."""


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Within, the first SIGINT (Ctrl-C) or SIGTERM sets `asked` on what is yielded; the second one has its
    usual effect. Outside the main thread, where Python allows no handlers, nothing changes."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        stop.asked, stop.signal = True, number
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reason(number: int | None) -> str | None:
    """The signal that stopped a run, in words."""
    return None if number is None else NAMES.get(number, f"signal {number}")


def ending_by(error: BaseException) -> tuple[Ending, str]:
    """How a run ended that `error` came out of, and why. The second signal comes as an exception."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "stopped", "Ctrl-C, twice" if isinstance(error, KeyboardInterrupt) else "SIGTERM, twice"
    return "failed", str(error) if isinstance(error, DaybreakError) else f"{type(error).__name__}: {error}"
