"""The thread that renders for all browsers, and pictures of the training views in between."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from viewer.loaded_run import LoadedRun, Shot
from viewer.refining import Picture, Speed, refine

logger = logging.getLogger(__name__)


@dataclass
class Screen:
    """A browser: what it should show, and how far that is.

    show: called with each picture. shot: the latest request; started: when it was made; work: the
    pictures still to come.
    """

    show: Callable[[Picture, Shot, float], None]
    shot: Shot | None = None
    started: float = 0.0
    is_new: bool = False
    work: Iterator[Picture | None] | None = None


@dataclass
class Worker:
    """Renders what screens request; the newest request wins, and screens take turns.

    background: work for when no screen waits, called until it returns False.
    """

    loaded: LoadedRun
    background: Callable[[], bool] = lambda: False
    speed: Speed = field(default_factory=Speed)
    screens: dict[int, Screen] = field(default_factory=dict)
    is_running: bool = True

    def __post_init__(self):
        self.wake = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="rendering", daemon=True)

    def start(self) -> None:
        """Begin to render."""
        self.thread.start()

    def stop(self) -> None:
        """End the thread after the tile that it renders."""
        with self.wake:
            self.is_running = False
            self.wake.notify()
        self.thread.join(timeout=5)

    def add_screen(self, key: int, show: Callable[[Picture, Shot, float], None]) -> None:
        """Add a browser."""
        with self.wake:
            self.screens[key] = Screen(show)

    def remove_screen(self, key: int) -> None:
        """Forget a browser."""
        with self.wake:
            self.screens.pop(key, None)

    def request(self, key: int, shot: Shot) -> None:
        """Render a shot for a browser, unless that is what it already shows."""
        with self.wake:
            screen = self.screens.get(key)
            if screen is None or screen.shot == shot:
                return
            screen.shot, screen.is_new, screen.started = shot, True, time.perf_counter()
            self.wake.notify()

    def set_loaded(self, loaded: LoadedRun) -> None:
        """Render from another checkpoint from now on."""
        with self.wake:
            self.loaded = loaded
            for screen in self.screens.values():
                screen.is_new = screen.shot is not None
            self.wake.notify()

    def notify(self) -> None:
        """Look for background work again."""
        with self.wake:
            self.wake.notify()

    def _run(self) -> None:
        while self.is_running:
            try:
                if not self._step() and not self.background():
                    with self.wake:
                        if self.is_running and not self._waiting():
                            self.wake.wait(timeout=1.0)
            except Exception:
                logger.exception("A picture could not be rendered.")
                time.sleep(1.0)

    def _waiting(self) -> list[Screen]:
        """The screens whose pictures are not complete."""
        return [screen for screen in self.screens.values() if screen.is_new or screen.work]

    def _step(self) -> bool:
        """Render the next picture or tile of each waiting screen; False if none waits."""
        with self.wake:
            waiting, loaded = self._waiting(), self.loaded
            for screen in waiting:
                if screen.is_new:
                    screen.work = refine(loaded, screen.shot, self.speed)
                    screen.is_new = False
            jobs = [(screen, screen.work, screen.shot) for screen in waiting]
        for screen, work, shot in jobs:
            try:
                picture = next(work, None)
            except Exception:
                screen.work = None
                raise
            if picture is not None:
                screen.show(picture, shot, time.perf_counter() - screen.started)
            if picture is not None and picture.is_final:
                screen.work = None
        return bool(jobs)


