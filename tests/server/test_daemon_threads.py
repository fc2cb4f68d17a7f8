"""Threads that may hang, in a process that must end."""

import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from reformer_server.daemon_threads import DaemonThreads

HANGS = """
import threading
from reformer_server.daemon_threads import DaemonThreads
threads = DaemonThreads(2, "hangs")
begun = threading.Event()
threads.submit(lambda: (begun.set(), threading.Event().wait()))
begun.wait()
threads.shutdown(wait=False, cancel_futures=True)
"""


def test_results_and_errors_come_back() -> None:
    threads = DaemonThreads(2, "test")
    assert threads.submit(int, "7").result() == 7
    with pytest.raises(ValueError, match="'x'"):
        threads.submit(int, "x").result()
    threads.shutdown()
    with pytest.raises(CancelledError):
        threads.submit(int, "7").result()


def test_what_has_not_begun_can_be_cancelled() -> None:
    threads, go = DaemonThreads(1, "test"), threading.Event()
    first, second, third = threads.submit(go.wait), threads.submit(int, "2"), threads.submit(int, "3")
    assert second.cancel()
    go.set()
    assert first.result()
    assert third.result() == 3
    go.clear()
    threads.submit(go.wait)
    waits = threads.submit(int, "4")
    threads.shutdown(wait=False, cancel_futures=True)
    go.set()
    with pytest.raises(CancelledError):
        waits.result(timeout=5)


def test_a_thread_that_hangs_doesnt_keep_the_process() -> None:
    assert subprocess.run([sys.executable, "-c", HANGS], timeout=60).returncode == 0
