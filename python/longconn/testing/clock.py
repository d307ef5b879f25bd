"""Time that goes by in no time."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from .. import _longconn
from ..keepalive import in_seconds
from ..links import monotonic

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["FakeClock"]

#: What an answer may take at each step, really: twice as long as Linux holds back an acknowledgement, and some.
_PATIENCE = 0.1


class FakeClock:
    """longconn's clock in this process, which a test can have skip time: for connections, servers, sessions, attempts
    to connect, and fault proxies minutes and days go by in milliseconds.

        proxy.pull_cable()
        fake_clock.advance(76)
        with pytest.raises(longconn.PeerLost):
            connection.recv(timeout=0)

    Between two calls of `advance` the clock goes on as ever. It is never put back: what was skipped stays so until the
    process ends, and does no harm. There is one clock in a process, however many of these are made. Close it at the
    end, or use it in a ``with``.

    The kernel's clock, Python's and an event loop's skip nothing, and with them `guard`, `KeepaliveSocket`,
    `time.sleep`, `asyncio.timeout`, and peers in other processes, which don't beat the quicker. A call with a timeout
    that was waiting before there was a FakeClock may not be told of what is skipped.
    """

    def __init__(self) -> None:
        self._native = _longconn.Clock()
        self._began, self._skipped_before = monotonic(), _longconn.skipped()

    def close(self) -> None:
        """Nothing is skipped any more, and `longconn.Event.time` and ``opened_at`` tell the true time of day again."""
        self._native.close()

    def __enter__(self) -> FakeClock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    def advance(self, seconds: float | timedelta) -> None:
        """Have so much time go by, and whatever is due by then happen, one after the other, each at its time.

        Calls that wait in other threads and in event loops time out as they would have. Before each step what is under
        way is waited for: a handshake, an answer, a thread that was woken; 0.1 s of real time at most, which the
        environment's ``LONGCONN_TEST_SLACK`` multiplies. What the program computes meanwhile takes real time, so have
        it wait when you advance.

        An event loop stands still while its own thread is in here: ``await asyncio.to_thread(fake_clock.advance, 76)``.

        Args:
            seconds: 0 lets only what is due already happen.

        Raises:
            ValueError: Less than 0, NaN, or more than a hundred years in this process in all; or it is closed.
            RuntimeError: longconn's thread has ended meanwhile, by a bug.
            KeyboardInterrupt: And whatever else a signal's handler raises: the clock stays where it has come to.
        """
        by = in_seconds(seconds, "seconds")
        if not 0 <= by < float("inf"):  # nor NaN
            raise ValueError(f"seconds={by:g}: 0 or more, and not for ever")
        self._native.skip(by, _PATIENCE * float(os.environ.get("LONGCONN_TEST_SLACK", "1")))

    @property
    def elapsed(self) -> float:
        """Seconds that have gone by since this object was made, what was skipped included."""
        return monotonic() - self._began

    def time(self) -> float:
        """As `time.time`, had it gone along since there is a FakeClock: what `longconn.Event.time` tells."""
        return time.time() + self._native.ahead

    def __repr__(self) -> str:
        skipped = _longconn.skipped() - self._skipped_before
        return f"<FakeClock after {self.elapsed:.3f} s, {skipped:.3f} s of them skipped>"
