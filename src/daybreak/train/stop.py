"""Ending early without losing what was learned."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
