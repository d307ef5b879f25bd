"""What connections, servers and fault proxies have lately said of themselves, for pictures that show a course of time.

Counters have no history, so one thread reads them every `PERIOD` seconds, of what was shown or is watched. What begins
and ends between two looks isn't seen, and while Python can't run nothing is read: such a gap shows as one.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

from . import _longconn
from .errors import LongConnError
from .links import BaseServer, LinkStats, ServerStats, monotonic

__all__ = ["PERIOD", "Beat", "Client", "History", "Moment", "Span", "history", "kind_of", "tell"]

PERIOD = 0.1
#: Arbitrary: five minutes of each, after which the oldest go.
_KEPT = 3000
#: What was shown, and isn't watched, is read for so long after it was shown last; arbitrary.
_SHOWN_SECONDS = 300.0
#: Two looks further apart have a gap between them, in which Python couldn't run.
GAP = 5 * PERIOD
_LONG_RECORD = 1000
#: Clients of a server that are looked at one by one; and none if it has many more, for even to list them takes time.
CLIENTS, _FEW = 12, 200

#: Of LongConnections, asyncio's too.
_CONNECTION: type = _longconn.LongConnection.__mro__[1]


class Client(NamedTuple):
    """One of a server's connections, at one moment."""

    key: int
    name: str
    state: str
    silence: float
    limit: float | None
    round_trip: float | None


class Moment(NamedTuple):
    """What was read at one time."""

    at: float
    """As of `longconn.links.monotonic`."""
    stats: LinkStats | ServerStats | None
    """None of a fault proxy."""
    clients: tuple[Client, ...] = ()


class Beat(NamedTuple):
    """Beats between two looks, at the later one, or spread over a gap."""

    at: float
    is_guessed: bool
    """There were several between two looks, or a gap: how many is known, when isn't."""


class Span(NamedTuple):
    """A time with one value."""

    begin: float
    end: float
    value: str


def kind_of(subject: object) -> str:
    """``"connection"``, ``"server"`` or ``"proxy"``.

    Raises:
        TypeError: None of them.
    """
    if isinstance(subject, _CONNECTION):
        return "connection"
    if isinstance(subject, BaseServer):
        return "server"
    if type(subject).__name__ == "FaultProxy" and type(subject).__module__.startswith("longconn"):
        return "proxy"  # whose module isn't imported for the question
    raise TypeError(f"a LongConnection, a LongServer or a FaultProxy, not {type(subject).__name__}")


def name_of(connection: Any) -> str:
    """As people know it: what the client calls itself, or where the peer is."""
    return connection.client_id or "{}:{}".format(*connection.peer_address)


class History:
    """What was read of one subject, oldest first. It doesn't keep the subject alive."""

    def __init__(self, subject: Any) -> None:
        self.kind = kind_of(subject)
        self.name = self._name(subject)
        self.place = ""
        """Of a connection: where its ends are, for both may be drawn, and have one name."""
        if self.kind == "connection":
            self.place = "{}:{} → {}:{}".format(*subject.address, *subject.peer_address)
        self.subject = weakref.ref(subject)
        self._has_ended = False
        self._moments: deque[Moment] = deque(maxlen=_KEPT)
        self.record: tuple[Any, ...] = ()
        """Of a proxy: what happened at it, as it tells itself, each at its time after `proxy_began`."""
        self.proxy_began = 0.0
        self.until = 0.0
        """Read until then, as of `longconn.links.monotonic`."""

    def _name(self, subject: Any) -> str:
        with suppress(LongConnError):
            if self.kind == "connection":
                return name_of(subject)
            return "{} {}:{}".format(self.kind, *subject.address)
        return self.kind

    @property
    def is_over(self) -> bool:
        """It has ended, or is gone: nothing more will be read."""
        return self._has_ended or self.subject() is None

    @property
    def moments(self) -> list[Moment]:
        """A copy: the thread that reads adds to it at any time."""
        return list(self._moments.copy())

    def look(self) -> None:
        """Read once."""
        subject = self.subject()
        if subject is None or self._has_ended:
            return
        now = monotonic()
        try:
            if self.kind == "proxy":
                is_long = len(self.record) > _LONG_RECORD and not subject.is_closed
                if is_long and now - self._moments[-1].at < 1.0:
                    return  # a copy of thousands of events takes milliseconds, and holds the GIL
                self.proxy_began = now - subject._native.now()
                self.record = tuple(subject.record)
                self._moments.append(Moment(now, None))
                self._has_ended = subject.is_closed
                return
            stats = subject.stats()
        except (LongConnError, ValueError):  # closed, another process's, or never open
            self._has_ended = True
            return
        if isinstance(stats, ServerStats):
            self._moments.append(Moment(now, stats, _clients(subject, stats)))
            self._has_ended = subject._closed
        else:
            # What the kernel knows is the largest part of it, and isn't drawn.
            self._moments.append(Moment(now, stats._replace(tcp_info=None)))
            self._has_ended = stats.state == "closed"

    # ---- what comes of it

    @property
    def began(self) -> float | None:
        """When it was read first, as of `longconn.links.monotonic`."""
        return self._moments[0].at if self._moments else None

    def faults(self) -> list[tuple[float, str]]:
        """Of a proxy: what was ordered, and when; its own clock says when, not our looks."""
        return [(self.proxy_began + event.at, event.detail) for event in self.record if event.what == "fault"]

    def states(self) -> list[Span]:
        """Of a connection: its states, one after another; a gap is a state of its own, ``unknown``.

        What is closed stays so, without being read any more.
        """
        found = _spans((each.at, each.stats.state) for each in self.moments if isinstance(each.stats, LinkStats))
        if found and found[-1].value == "closed":
            found[-1] = found[-1]._replace(end=float("inf"))
        return found

    def clients(self) -> dict[int, tuple[str, list[Span]]]:
        """Of a server: name and states of each connection that was looked at."""
        points: dict[int, tuple[str, list[tuple[float, str]]]] = {}
        for moment in self.moments:
            for client in moment.clients:
                points.setdefault(client.key, (client.name, []))[1].append((moment.at, client.state))
        return {key: (name, _spans(each)) for key, (name, each) in points.items()}

    def beats(self, direction: Literal["sent", "heard"]) -> list[Beat]:
        """Of a connection: when beats went or came, as precisely as the looks are close to each other."""
        found: list[Beat] = []
        for before, after in pairwise(self.moments):
            old, new = cast(LinkStats, before.stats), cast(LinkStats, after.stats)
            count = getattr(new, f"beats_{direction}")
            if new.connections == old.connections:  # they are counted for each connection of the session anew
                count -= getattr(old, f"beats_{direction}")
            is_guessed = count > 1 or after.at - before.at > GAP
            step = (after.at - before.at) / max(count, 1)
            found += [Beat(after.at - step * back, is_guessed) for back in reversed(range(max(count, 0)))]
        return found

    def round_trips(self, key: int | None = None) -> list[float]:
        """The measured ones in order, of a connection, or of a server's with this key."""
        found: list[float] = []
        last: object = None
        for moment in self.moments:
            value: float | None = None
            number: float | None = None
            if isinstance(moment.stats, LinkStats):
                value, number = moment.stats.round_trip_last_seconds, moment.stats.beats_heard
            else:
                for client in moment.clients:
                    if client.key == key:
                        value = number = client.round_trip
            if value is not None and (number, value) != last:
                found.append(value)
                last = number, value
        return found


def _clients(server: Any, stats: ServerStats) -> tuple[Client, ...]:
    if stats.open + stats.waiting > _FEW:
        return ()
    found = []
    for connection in server.connections[:CLIENTS]:
        with suppress(LongConnError, ValueError):  # it has gone meanwhile
            link = connection.stats()
            found.append(
                Client(
                    hash(connection),
                    name_of(connection),
                    link.state,
                    link.silence_seconds,
                    link.limit_seconds,
                    link.round_trip_last_seconds,
                )
            )
    return tuple(found)


def _spans(points: Iterator[tuple[float, str]] | list[tuple[float, str]]) -> list[Span]:
    found: list[Span] = []
    for at, value in points:
        if found and at - found[-1].end > GAP:
            found.append(Span(found[-1].end, at, "unknown"))
        elif found:
            found[-1] = found[-1]._replace(end=at)
        if not found or found[-1].value != value:
            found.append(Span(at, at, value))
    return found


class _Sampler:
    """Reads what is to be read, on one thread, which ends when there is nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histories: weakref.WeakKeyDictionary[Any, History] = weakref.WeakKeyDictionary()
        self._listeners: list[Callable[[], bool]] = []
        self._thread: threading.Thread | None = None
        self._is_ending = threading.Event()

    def history(self, subject: Any, seconds: float) -> History:
        kind_of(subject)
        with self._lock:
            history = self._histories.get(subject)
            if history is None:
                history = History(subject)
                history.look()  # so that there is something at once; all others are the thread's
                self._histories[subject] = history
            history.until = max(history.until, monotonic() + seconds)
            self._begin()
        return history

    def tell(self, listener: Callable[[], bool]) -> None:
        with self._lock:
            self._listeners.append(listener)
            self._begin()

    def _begin(self) -> None:
        # One may still have had a look to end when `end` had waited long enough for it, and be over by now.
        if (self._thread is None or not self._thread.is_alive()) and not self._is_ending.is_set():
            # A daemon: who forgets to stop a timeline has a program that ends all the same.
            self._thread = threading.Thread(target=self._run, name="longconn-sampler", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._is_ending.wait(PERIOD):
            with self._lock:
                now = monotonic()
                histories = [each for each in self._histories.values() if now < each.until and not each.is_over]
                listeners = list(self._listeners)
                if not histories and not listeners:
                    self._thread = None
                    return
            for history in histories:
                history.look()
            for listener in listeners:
                if not listener():
                    with self._lock:
                        self._listeners.remove(listener)

    def end(self) -> None:
        """Until `go_on`, or for good."""
        with self._lock:  # or one may just begin
            self._is_ending.set()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)

    def go_on(self) -> None:
        self._is_ending.clear()
        with self._lock:
            if self._histories or self._listeners:
                self._begin()


_sampler = _Sampler()


def history(subject: Any, *, is_watched: bool = False) -> History:
    """What is kept of it, read from now on: for some minutes, or as long as it lives if it is watched.

    Raises:
        TypeError: It has no history.
    """
    return _sampler.history(subject, float("inf") if is_watched else _SHOWN_SECONDS)


def tell(listener: Callable[[], bool]) -> None:
    """Call it after each look, on the sampler's thread, until it returns False. It must not raise."""
    _sampler.tell(listener)


def _begin_anew() -> None:
    # The child has neither the thread nor, perhaps, the lock; and its parent's connections aren't its own.
    global _sampler
    _sampler = _Sampler()


# As the native threads do: CPython 3.12 and later warn at a fork beside a thread. Registered after theirs, so that it
# has ended before they end, and begins after them.
os.register_at_fork(before=lambda: _sampler.end(), after_in_parent=lambda: _sampler.go_on(), after_in_child=_begin_anew)
# A daemon thread that comes back from native code while the interpreter is taken down would be ended in the midst of
# it. Registered after longconn's own end, so that it runs before.
atexit.register(lambda: _sampler.end())
