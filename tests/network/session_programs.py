"""Owns what runs at the two ends of a session whose links break: numbered messages, each to arrive once and in order.

Each `be_...` runs in a process of its own, in a host of the lab, with a pipe (`link`) to the director (stage.py) and
counters in memory that both share: who is stopped or killed can't be asked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from link_programs import CERTIFICATES, OVER_TLS
from programs import PORT, describe, die_with_parent
from stage import SLACK

if TYPE_CHECKING:
    from longconn import Event, LongConnection

# What is no silence between two messages, in seconds.
SHORT = 0.05
# How long everything may take to arrive once nothing is broken any more.
REST = 60 * SLACK
END = b""


@dataclass(frozen=True)
class Talk:
    """The settings of one end, and what it sends; times in seconds."""

    per_second: float = 200
    least: int = 0  # messages, whatever the time
    large: int = 8_000  # bytes of every hundredth message; others have 8 to 200
    takes_each: float = 0  # at the most one message in that time
    interval: float = 0.25
    limit: float | None = None
    retention: float = 60.0
    resends: bool = False
    backoff: tuple[float, float] = (0.05, 0.5)


class Counters:
    """What an end has done so far, in memory that its director sees."""

    def __init__(self, takes: int = 0) -> None:
        shared = get_context("fork")
        self.sent = shared.RawValue("Q", 0)
        self.received = shared.RawValue("Q", 0)
        # When each message was taken, as of `time.monotonic()`; 0: it wasn't.
        self.taken_at = shared.RawArray("d", takes)

    def taken(self) -> list[int]:
        """The numbers that were taken."""
        return [number for number, at in enumerate(self.taken_at) if at]


def numbered(number: int, large: int) -> bytes:
    """A message that says its number all over: fragments in a wrong place would be seen."""
    size = large if number % 100 == 99 else number * 2654435761 % 193 + 8
    return number.to_bytes(8) * (size // 8)


def number_of(message: bytes) -> int:
    return int.from_bytes(message[:8])


class Line:
    """One end's session, with everything that its events told."""

    def __init__(self, link: Connection, host: str, address: str, talk: Talk) -> None:
        import longconn

        self.events: list[tuple[float, str, str | None, int | None, bool]] = []
        heartbeat = longconn.Heartbeat(talk.interval, talk.limit)
        self.connection: LongConnection
        if host == "server":
            self.server = longconn.LongServer(
                (address, PORT),
                heartbeat=heartbeat,
                session_retention=talk.retention,
                on_event=lambda _, event: self._on_event(event),
                tls=longconn.TLS(certificate=CERTIFICATES / "server.pem") if OVER_TLS in os.environ else None,
            )
            link.send("listening")
            self.connection = self.server.accept()
        else:
            link.recv()  # "listening"
            first, cap = talk.backoff
            self.connection = longconn.connect(
                (address, PORT),
                heartbeat=heartbeat,
                reconnect=longconn.Backoff(first, cap),
                on_session_lost="resend" if talk.resends else "raise",
                on_event=self._on_event,
                tls=longconn.TLS(ca=CERTIFICATES / "ca.pem", server_name="server.example")
                if OVER_TLS in os.environ
                else None,
            )

    def _on_event(self, event: Event) -> None:
        self.events.append(
            (time.monotonic(), event.state, event.cause and str(event.cause), event.replayed, event.fresh)
        )


# ---- both send and both take, whatever happens


def be_numbering(link: Connection, host: str, address: str, talk: Talk, counters: Counters) -> None:
    """Sends numbered messages and checks those that come, until the director says that it is enough; reports then."""
    die_with_parent()
    line = Line(link, host, address, talk)
    connection = line.connection
    check = Check(connection, talk, counters)
    taking = threading.Thread(target=check.run)
    taking.start()
    link.send("ready")
    error = None
    try:
        for number in _pace(talk, link.poll):
            connection.send(numbered(number, talk.large))
            counters.sent.value = number + 1
        connection.send(END)
        connection.flush(timeout=REST)
    except OSError as caught:
        error = caught
    taking.join(REST)
    link.send(
        {
            "sent": counters.sent.value,
            "received": counters.received.value,
            "wrong": check.wrong,
            "finished": check.is_finished,
            "gaps": [*zip(check.gaps[::2], check.gaps[1::2], strict=True)],
            "errors": [describe(each) for each in (error, check.error) if each],
            "lost": connection.lost and str(connection.lost),
            "events": line.events,
            "connections": connection.stats().connections,
        }
    )
    signal.pause()


def _pace(talk: Talk, is_enough: Callable[[], bool]) -> Iterator[int]:
    """The numbers, as they are due. Who could not send for a while catches up."""
    began, number, due = time.monotonic(), 0, 0
    while True:
        if is_enough():
            due = max(talk.least, number)
        while number < due:
            yield number
            number += 1
        if is_enough() and number >= talk.least:
            return
        time.sleep(0.01)
        due = int((time.monotonic() - began) * talk.per_second)


class Check:
    """Takes messages until the peer has said that it was all, and compares each with what it has to be."""

    def __init__(self, connection: LongConnection, talk: Talk, counters: Counters) -> None:
        self._connection, self._talk, self._counters = connection, talk, counters
        self.wrong: list[str] = []
        self.error: OSError | None = None
        self.is_finished = False
        # From when to when nothing came; in little memory, for memory is looked at.
        self.gaps = array("d")

    def run(self) -> None:
        expected, last = 0, time.monotonic()
        try:
            while (message := self._connection.recv()) != END:
                now = time.monotonic()
                if message != numbered(expected, self._talk.large):
                    self.wrong.append(f"{len(message)} bytes of number {number_of(message)} instead of {expected}")
                    return
                if now - last > SHORT:
                    self.gaps.extend((last, now))
                expected, last = expected + 1, now
                self._counters.received.value = expected
                if self._talk.takes_each:
                    time.sleep(self._talk.takes_each)
            self.is_finished = True
        except OSError as error:
            self.error = error


# ---- one sends and the other takes, and one of them is killed


def be_sending(link: Connection, host: str, address: str, talk: Talk, counters: Counters) -> None:
    """Sends numbered messages until the session is lost, or the director says that it is enough; reports then."""
    die_with_parent()
    line = Line(link, host, address, talk)
    connection = line.connection
    link.send("ready")
    error = None
    try:
        for number in _pace(talk, link.poll):
            connection.send(numbered(number, talk.large))
            counters.sent.value = number + 1
        connection.flush(timeout=REST)
    except OSError as caught:
        error = caught
    report: dict[str, Any] = {"at": time.monotonic(), "error": error and describe(error)}
    undelivered = getattr(error, "undelivered", None)
    report["undelivered"] = None if undelivered is None else [number_of(message) for message in undelivered]
    report["same"] = undelivered == connection.undelivered
    report["because"] = error and error.__cause__ and describe(error.__cause__)
    # The event is told on another thread.
    deadline = time.monotonic() + 5 * SLACK
    while error and not any(state == "closed" for _, state, *_ in line.events) and time.monotonic() < deadline:
        time.sleep(0.01)
    link.send(report | {"sent": counters.sent.value, "events": line.events})
    signal.pause()


def be_taking(link: Connection, host: str, address: str, talk: Talk, counters: Counters) -> None:
    """Takes messages, and notes when, until it is killed."""
    die_with_parent()
    line = Line(link, host, address, talk)
    link.send("ready")
    for message in line.connection:
        counters.taken_at[number_of(message)] = time.monotonic()
        counters.received.value += 1
        if talk.takes_each:
            time.sleep(talk.takes_each)


# ---- in between


def be_holding(link: Connection, place: str, address: str, server: str) -> None:
    """A proxy of connections, each for itself. Told to hold, it keeps what the client sends on those that it has, and
    ends them for the client a second later; told to release, it hands over to the server what it has kept, and says
    how much that was."""
    die_with_parent()
    listener = socket.create_server((address, PORT))
    link.send("listening")
    is_released = threading.Event()
    held: dict[socket.socket, int] = {}
    clients: list[socket.socket] = []

    def carry(source: socket.socket, sink: socket.socket) -> None:
        kept = b""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source in held:
                    kept += data
                    held[source] = len(kept)
                else:
                    sink.sendall(data)
        if source in held:
            is_released.wait()
            with contextlib.suppress(OSError):
                sink.sendall(kept)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        while True:
            client, upstream = listener.accept()[0], socket.create_connection((server, PORT))
            clients.append(client)
            for ends in ((client, upstream), (upstream, client)):
                threading.Thread(target=carry, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    link.recv()  # "hold"
    held.update(dict.fromkeys(clients, 0))
    time.sleep(1)
    for client in held:
        with contextlib.suppress(OSError):  # one that has given this connection up already has another
            client.shutdown(socket.SHUT_RDWR)
    link.recv()  # "release"
    is_released.set()
    link.send(sum(held.values()))
    signal.pause()
