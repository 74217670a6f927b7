"""A main thread that waits for a lock hears of signals that other threads take."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from engine_bridge.servers.waking import Waker


@contextmanager
def wakeup_fd(descriptor: int) -> Iterator[None]:
    """Have C's handler write to *descriptor*."""
    earlier = signal.set_wakeup_fd(descriptor)
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)


def present_wakeup_fd() -> int:
    """Return the descriptor to which C's handler writes."""
    present = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(present)
    return present


def take(signum: int) -> None:
    """Take a signal in a thread other than the main one."""
    thread = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signum))
    thread.start()
    thread.join()


def test_main_thread_hears_while_it_waits_for_a_lock() -> None:
    """Each signal anew, and each once."""
    heard = threading.Semaphore(0)
    seen = []

    def handler(signum: int, frame: object) -> None:
        seen.append(signum)
        heard.release()

    earlier = signal.signal(signal.SIGUSR1, handler)
    try:
        with Waker():
            for _ in range(20):
                timer = threading.Timer(0.001, take, [signal.SIGUSR1])
                timer.start()
                assert heard.acquire(timeout=10)
                timer.join()
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    assert seen == [signal.SIGUSR1] * 20


def test_puts_back_what_was_there() -> None:
    """Who was told of signals before is told again."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs, wakeup_fd(theirs.fileno()):
        with Waker():
            assert present_wakeup_fd() not in (-1, theirs.fileno())
            assert signal.getsignal(signal.SIGURG) is not signal.SIG_DFL
        assert present_wakeup_fd() == theirs.fileno()
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL


def test_leaves_what_came_after_it() -> None:
    """A loop that has begun meanwhile goes on being told."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs, wakeup_fd(-1):
        with Waker():
            signal.set_wakeup_fd(theirs.fileno())
        assert present_wakeup_fd() == theirs.fileno()


def test_descriptor_that_was_closed_is_not_put_back() -> None:
    """Its owner has left meanwhile."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, wakeup_fd(theirs.fileno()):
        with Waker():
            theirs.close()
        assert present_wakeup_fd() == -1


def test_somebodys_sigurg_is_left_alone() -> None:
    """Then nobody is woken."""
    earlier = signal.signal(signal.SIGURG, signal.SIG_IGN)
    try:
        with Waker():
            assert signal.getsignal(signal.SIGURG) is signal.SIG_IGN
            assert present_wakeup_fd() == -1
    finally:
        signal.signal(signal.SIGURG, earlier)


def test_forked_child_tells_the_parent_of_no_signal() -> None:
    """What it hears of is not the parent's."""
    with Waker():
        pid = os.fork()
        if pid == 0:
            os._exit(present_wakeup_fd() != -1)
        assert os.waitpid(pid, 0) == (pid, 0)
