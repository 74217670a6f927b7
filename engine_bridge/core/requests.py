"""Requests in flight: counted from their arrival until the body of the answer is closed."""

import threading
from collections.abc import Callable
from contextvars import ContextVar
from itertools import count

# The request that the code which runs now answers; carried into tasks and worker threads.
current: ContextVar[int] = ContextVar("current", default=0)
set_current = current.set  # bound once: adapters call both for every request
new_token = count(1).__next__  # cheaper than an object


class Requests:
    """
    The requests that an engine answers.

    An adapter enters a `new_token()` in `open`, with what tells whose request it is: the thread
    under WSGI, None under ASGI, where it hands the token to `set_current` instead. When the answer
    is complete it hands the token to `end`, or does itself what that does: the call of a method
    would be a tenth of all that a request pays for.
    """

    def __init__(self) -> None:
        self.open: dict[int, int | None] = {}  # its single operations are atomic
        self.quiet: Callable[[], object] | None = None  # what to call once nothing is waited for
        self._excused: set[int] = set()
        self._held: set[int] = set()

    def __len__(self) -> int:
        return len(self.open)

    def end(self, token: int) -> None:
        """Count the request of *token* no more; once is enough, twice is harmless."""
        self.open.pop(token, None)
        if self.quiet is not None:
            self.check()

    def waited_for(self) -> int:
        """Return how many are open and not excused."""
        return sum(1 for token in tuple(self.open) if token not in self._excused)

    def hold(self) -> Callable[[], None]:
        """Have a drain wait for more than requests; return what ends that."""
        token = new_token()
        self._held.add(token)

        def let_go() -> None:
            self._held.discard(token)
            self.check()

        return let_go

    def excuse_current(self) -> None:
        """Do not wait for the request that asks: it waits for us."""
        thread = threading.get_ident()
        mine = [token for token, owner in tuple(self.open.items()) if owner == thread]
        self._excused.update(mine, (current.get(),))
        self.check()

    def excuse_all(self) -> None:
        """Wait for none of those that are open now, nor for what holds the drain."""
        self._excused.update(tuple(self.open))
        self._held.clear()

    def tell_when_quiet(self, call: Callable[[], object]) -> None:
        """Have *call* called as soon as there is nothing to wait for."""
        self.quiet = call  # before the check: one that ends in between must find it
        self.check()

    def check(self) -> None:
        """Tell who waits, if there is nothing to wait for any more."""
        call = self.quiet  # read once: several threads may come here
        if call is not None and not self._held and not self.waited_for():
            self.quiet = None
            call()
