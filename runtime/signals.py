"""Stopping at a signal without losing work."""

import signal
from types import FrameType
from typing import Any


class StopSignals:
    """Context in which Ctrl-C and SIGTERM only set `received`; the loop inside saves and stops.

    received: the last signal, or 0.
    """

    received: int = 0

    def __enter__(self) -> "StopSignals":
        self.received = 0
        self.previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        # A second Ctrl-C interrupts at once. A second SIGTERM does not: a system that stops a job
        # may send one to each process, and torchrun passes on its own.
        if number == signal.SIGINT:
            signal.signal(number, self.previous[signal.SIGINT])

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
