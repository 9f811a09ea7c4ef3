"""The rendering thread: the newest request wins, screens take turns, background work waits."""

import threading
from types import SimpleNamespace

import pytest

from tests.viewer.test_refining import shot
from viewer import worker as worker_module
from viewer.worker import Worker


@pytest.fixture
def steps(monkeypatch):
    """A list of what is rendered: three pictures for a shot, named by width and number."""
    rendered = []

    def refine(loaded, wanted, speed):
        for i in range(3):
            rendered.append((loaded, wanted.width, i))
            yield SimpleNamespace(is_final=i == 2, name=(wanted.width, i)) if i != 1 else None

    monkeypatch.setattr(worker_module, "refine", refine)
    return rendered


class Screen:
    """Records the pictures that it is sent."""

    def __init__(self):
        self.shown, self.final = [], threading.Event()

    def __call__(self, picture, wanted, seconds):
        self.shown.append(picture.name)
        if picture.is_final:
            self.final.set()


def test_a_newer_request_replaces_unfinished_work_and_an_equal_one_does_not(steps):
    worker, screen = Worker("run"), Screen()
    worker.add_screen(1, screen)
    worker.request(1, shot(width=10))
    worker._step()
    worker.request(1, shot(width=20))
    worker._step()
    worker.request(1, shot(width=20))
    for _ in range(2):
        assert worker._step()
    assert not worker._step()
    assert screen.shown == [(10, 0), (20, 0), (20, 2)]
    assert [step[1:] for step in steps] == [(10, 0), (20, 0), (20, 1), (20, 2)]


def test_screens_take_turns_and_removed_ones_are_forgotten(steps):
    worker, first, second = Worker("run"), Screen(), Screen()
    for key, screen in enumerate((first, second)):
        worker.add_screen(key, screen)
        worker.request(key, shot(width=10 + key))
    worker._step()
    assert first.shown == [(10, 0)] and second.shown == [(11, 0)]
    worker.remove_screen(0)
    worker.request(0, shot(width=30))
    while worker._step():
        pass
    assert first.shown == [(10, 0)] and second.shown[-1] == (11, 2)


def test_a_newer_run_renders_every_screen_again(steps):
    worker, screen = Worker("old"), Screen()
    worker.add_screen(1, screen)
    worker.request(1, shot(width=10))
    while worker._step():
        pass
    worker.set_loaded("new")
    while worker._step():
        pass
    assert [step[0] for step in steps] == ["old"] * 3 + ["new"] * 3


def test_the_thread_works_in_the_background_only_when_no_screen_waits_and_survives_errors(steps):
    done, left = threading.Event(), [1, 2, 3]

    def background():
        if not left:
            done.set()
            return False
        left.pop()
        if len(left) == 1:
            raise ValueError("once")
        return True

    worker, screen = Worker("run", background), Screen()
    worker.add_screen(1, screen)
    worker.request(1, shot(width=10))
    worker.start()
    assert screen.final.wait(10) and done.wait(10)
    worker.request(1, shot(width=20))
    screen.final.clear()
    assert screen.final.wait(10)
    worker.stop()
    assert not worker.thread.is_alive()
