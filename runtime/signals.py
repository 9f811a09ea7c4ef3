"""Stopping at a signal without losing work."""

import signal


class StopSignals:
    """While entered, Ctrl-C and SIGTERM are noted in `received`, for the loop to save and end."""

    def __enter__(self):
        self.received = 0
        self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self.received = signal.Signals(number)
        # A second Ctrl-C does not wait for the step to end. SIGTERM may well come twice, from a
        # system that stops a whole job, and from torchrun.
        if number == signal.SIGINT:
            signal.signal(number, self.previous[number])

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
