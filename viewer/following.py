"""Following a run that is still training: newer checkpoints, and the training curve."""

import logging
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from checkpoint import list_checkpoints, step_of
from config import Config
from runtime.errors import UserError
from runtime.run_folder import run_folder
from runtime.run_log import read_metrics
from viewer.loaded_run import LoadedRun, load_run

logger = logging.getLogger(__name__)

# Seconds between two looks at the run folder.
PERIOD = 2.0

# Most points of a curve.
CURVE_POINTS = 400


class Curves(NamedTuple):
    """PSNR in dB over the steps of training.

    training: steps and PSNR of the training rays, `[2, M]`; validation: of validation images,
    `[2, V]`.
    """

    training: np.ndarray
    validation: np.ndarray

    @classmethod
    def of(cls, lines: list[dict[str, Any]]) -> "Curves":
        """The curves in the lines of a `metrics.jsonl`."""
        levels = sorted({name for line in lines for name in line if name.startswith("psnr/")},
                        key=lambda name: int(name.rpartition("_")[2]))
        return cls(_curve(lines, levels[-1] if levels else ""), _curve(lines, "validation/psnr"))

    def latest(self) -> tuple[int, float] | None:
        """The last step, and its PSNR in training; None before the first."""
        if not self.training.size:
            return None
        return int(self.training[0, -1]), float(self.training[1, -1])


def _curve(lines: list[dict[str, Any]], name: str) -> np.ndarray:
    points = np.array([(line["step"], line[name]) for line in lines if name in line], dtype=float)
    if len(points) > CURVE_POINTS:
        points = points[np.linspace(0, len(points) - 1, CURVE_POINTS).round().astype(int)]
    return points.reshape(-1, 2).T


class Follower:
    """Watches a run folder in a thread of its own, and only reads there.

    on_run: called with each newer checkpoint; on_curves: with the curves whenever they change.
    """

    def __init__(self, command_line: Config, loaded: LoadedRun,
                 on_run: Callable[[LoadedRun], None], on_curves: Callable[[Curves], None]):
        self.command_line, self.folder = command_line, run_folder(command_line)
        self.step, self.tried, self.seen = loaded.run.step, 0, None
        self.on_run, self.on_curves = on_run, on_curves
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="following", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self.thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self.ended.set()

    def _watch(self) -> None:
        while not self.ended.is_set():
            try:
                self.look()
            except Exception:
                logger.exception("The run folder could not be read.")
            self.ended.wait(PERIOD)

    def look(self) -> None:
        """Report a newer checkpoint and changed curves, if there are any."""
        path = self.folder / "metrics.jsonl"
        if path.exists() and path.stat().st_mtime_ns != self.seen:
            self.seen = path.stat().st_mtime_ns
            self.on_curves(Curves.of(read_metrics(path)))
        newest = max(map(step_of, list_checkpoints(self.folder)), default=0)
        if newest > max(self.step, self.tried):
            try:
                loaded = load_run(self.command_line)
            except UserError as error:  # A file that was replaced meanwhile is there the next time.
                logger.info("The checkpoint of step %d is not shown yet: %s", newest, error)
                return
            self.tried = newest  # A damaged one is not tried again.
            if loaded.run.step > self.step:
                self.step = loaded.run.step
                self.on_run(loaded)
