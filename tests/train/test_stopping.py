"""SIGTERM asks for a stop while training runs in another thread; at other times the handler from before stands."""

import os
import signal
import threading
import time

import pytest

from fmray.train import stopping


@pytest.fixture
def handler():
    """What SIGTERM meant before: it is only put down."""
    got, before = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: got.append(1))
    yield got
    signal.signal(signal.SIGTERM, before)


def wait_until(true, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


def trained(folder, told):
    """Waits in another thread, as Ray Train's training function does, until it was asked to stop."""

    def work():
        with stopping.listening(folder):
            told.append("begun")
            wait_until(stopping.asked)
            told.append("asked")

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: told == ["begun"])
    return thread


def test_sigterm_reaches_the_training_thread_and_nobody_else(handler, tmp_path):
    stopping.install()
    told = []
    thread = trained(tmp_path, told)
    os.kill(os.getpid(), signal.SIGTERM)
    thread.join()
    assert told == ["begun", "asked"]
    assert handler == []
    os.kill(os.getpid(), signal.SIGTERM)
    wait_until(lambda: handler == [1])


def test_a_file_asks_too_and_the_next_training_begins_unasked(tmp_path):
    told = []
    thread = trained(tmp_path, told)
    (tmp_path / stopping.STOP).write_text("{}")
    thread.join()
    assert told == ["begun", "asked"]
    (tmp_path / stopping.STOP).unlink()
    with stopping.listening(tmp_path):
        assert not stopping.asked()


def test_the_driver_is_told_once_and_ended_by_a_later_one(handler, monkeypatch):
    with stopping.Termination() as terminated:
        assert not terminated
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: bool(terminated))
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(stopping, "SAME_S", 0.0)
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGTERM)
        assert end.value.code == 143
    assert handler == []
    os.kill(os.getpid(), signal.SIGTERM)
    wait_until(lambda: handler == [1])
