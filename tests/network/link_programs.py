"""Owns what runs at the two ends of a LongConnection in a case, and the proxy that may stand between them.

Each `be_...` runs in a process of its own, in a place of the lab, with a pipe (`link`) to the director (stage.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from programs import PORT, describe, die_with_parent

if TYPE_CHECKING:
    from longconn import Event, LongConnection

LARGEST = 128 << 20
#: In the environment, it has sessions go over TLS, too.
OVER_TLS = "LONGCONN_LAB_TLS"
#: A CA that nobody trusts, and a server's certificate of it.
CERTIFICATES = Path(__file__).parents[1] / "rust/tls"


@dataclass(frozen=True)
class End:
    """The settings of one end, and what it does until it is told; in seconds."""

    does: str = "takes"
    interval: float = 1.0
    limit: float | None = None
    application_limit: float | None = None
    interpreter_limit: float | None = None
    tls: bool = False


@dataclass(frozen=True)
class Talk(End):
    """What one of two living ends does, in seconds from the start."""

    pause: float = 0.1  # between its messages of 1000 bytes; 0: it sends none
    large: int = 0  # bytes of one message, before those
    takes_from: float = 0  # and nothing before
    holds_gil: float = 0  # in one C call, begun after the first second
    loops: float = 0  # the same in pure Python


class Line:
    """One end's connection, with everything that its events told."""

    def __init__(self, link: Connection, host: str, address: str, end: End) -> None:
        import longconn

        self.events: list[tuple[str, str | None]] = []
        heartbeat = longconn.Heartbeat(
            end.interval,
            end.limit,
            application_limit=end.application_limit,
            interpreter_limit=end.interpreter_limit,
        )
        self.connection: LongConnection
        if host == "server":
            self.server = longconn.LongServer(
                (address, PORT),
                heartbeat=heartbeat,
                largest_message_bytes=LARGEST,
                on_event=lambda _, event: self._on_event(event),
                tls=longconn.TLS(certificate=CERTIFICATES / "server.pem") if end.tls else None,
            )
            link.send("listening")
            self.connection = self.server.accept()
        else:
            link.recv()  # "listening"
            # A lost connection is the end of these: when and why it counts as lost is what they are for.
            self.connection = longconn.connect(
                (address, PORT),
                heartbeat=heartbeat,
                largest_message_bytes=LARGEST,
                reconnect=False,
                on_event=self._on_event,
                tls=longconn.TLS(ca=CERTIFICATES / "ca.pem", server_name="server.example") if end.tls else None,
            )
        link.send(descriptor_of(self.connection))

    def _on_event(self, event: Event) -> None:
        self.events.append((event.state, event.cause and str(event.cause)))


def descriptor_of(connection: LongConnection) -> int:
    """Of the TCP socket of a connection in this process, which it doesn't show: by its two addresses."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if (sock.getsockname(), sock.getpeername()) == (connection.address, connection.peer_address):
                    return int(name)
        except OSError:  # closed meanwhile, or not connected
            continue
    raise RuntimeError(f"no descriptor of this process is {connection}")


# ---- programs that are told that the peer is gone: each runs until an exception ends it


def takes(connection: LongConnection, link: Connection) -> None:
    """Waits for messages."""
    link.send("ready")
    while True:
        connection.recv()


def sends(connection: LongConnection, link: Connection) -> None:
    """Sends 64 bytes every 20 ms, and takes nothing."""
    link.send("ready")
    while True:
        connection.send(bytes(64))
        time.sleep(0.02)


def floods(connection: LongConnection, link: Connection) -> None:
    """Sends as much as it can."""
    link.send("ready")
    while True:
        connection.send(bytes(10_000))


def hangs_interpreter(connection: LongConnection, link: Connection) -> None:
    """Takes messages, until it is told to hang: a C call that keeps the GIL."""

    def hang() -> None:
        link.send("ready")
        link.recv()
        link.send(time.monotonic())
        _hold_gil(HANGS)

    threading.Thread(target=hang, daemon=True).start()
    while True:
        connection.recv()


def hangs_application(connection: LongConnection, link: Connection) -> None:
    """Takes messages, until it is told to hang: Python runs, but nobody takes what comes."""
    link.send("ready")
    while not link.poll():
        connection.recv()
    link.recv()
    link.send(time.monotonic())
    time.sleep(HANGS)
    while True:
        connection.recv()


# Seconds; longer than any case waits for.
HANGS = 12.0
PROGRAMS: dict[str, Callable[[LongConnection, Connection], None]] = {
    "takes": takes,
    "sends": sends,
    "floods": floods,
    "hangs-interpreter": hangs_interpreter,
    "hangs-application": hangs_application,
}


def be_told(link: Connection, host: str, address: str, end: End) -> None:
    """Runs the program until it is told, and reports when, and what it saw."""
    die_with_parent()
    line = Line(link, host, address, end)
    try:
        PROGRAMS[end.does](line.connection, link)
    except OSError as error:
        told_at = time.monotonic()
        report = {"told_at": told_at, "lost": str(line.connection.lost), "limit_was": end.limit} | describe(error)
        for name in ("level", "kernel_answers", "given_up"):
            report[name] = getattr(error, name, None)
    # The event is told on another thread.
    deadline = time.monotonic() + 5
    while ("closed", report["cause"]) not in line.events and time.monotonic() < deadline:
        time.sleep(0.001)
    link.send(report | {"events": line.events})
    signal.pause()


# ---- two ends that talk while something is wrong, but nobody is dead


def be_alive(link: Connection, host: str, address: str, talk: Talk, seconds: float) -> None:
    """Talks for so long, takes what is left, and reports what went through and every alarm."""
    die_with_parent()
    line = Line(link, host, address, talk)
    connection = line.connection
    end_at = time.monotonic() + seconds
    sent, received = Tally(), Tally()
    errors: list[dict[str, Any]] = []

    def send(message: bytes) -> None:
        connection.send(message)
        sent.add(message)

    def send_all() -> None:
        try:
            if talk.large:
                send(bytes(range(256)) * (talk.large // 256))
            while time.monotonic() < end_at:
                if talk.pause:
                    send(sent.count.to_bytes(8) + bytes(992))
                time.sleep(talk.pause or 0.1)
            connection.send(b"")  # that was all
        except OSError as error:
            errors.append(describe(error))

    def be_busy() -> None:
        time.sleep(1)
        if talk.holds_gil:
            _hold_gil(talk.holds_gil)
        until = time.monotonic() + talk.loops
        while time.monotonic() < until:
            pass

    threads = [threading.Thread(target=target) for target in (send_all, be_busy)]
    for thread in threads:
        thread.start()
    time.sleep(talk.takes_from)
    try:
        while message := connection.recv():
            received.add(message)
    except OSError as error:
        errors.append(describe(error))
    for thread in threads:
        thread.join()
    stats = connection.stats()
    link.send(
        {
            "sent": sent.as_list(),
            "received": received.as_list(),
            "errors": errors,
            "lost": connection.lost and str(connection.lost),
            "events": line.events,
            "beats": [stats.beats_sent, stats.beats_heard, stats.beats_late],
            "worst_lateness": stats.worst_lateness_seconds,
        }
    )
    link.recv()  # both have reported: now they may be closed


class Tally:
    """How many messages, how many bytes, and a checksum over all in their order."""

    def __init__(self) -> None:
        self.count = self.size = self.crc = 0

    def add(self, message: bytes) -> None:
        self.count += 1
        self.size += len(message)
        self.crc = zlib.crc32(message, self.crc)

    def as_list(self) -> list[int]:
        return [self.count, self.size, self.crc]


def be_watching(link: Connection, host: str, address: str, end: End, asks: bool, seconds: float) -> None:
    """Notes for so long how the peer is said to be; sends it messages that it ought to take, or none."""
    die_with_parent()
    line = Line(link, host, address, end)
    link.send("ready")
    end_at, notes = time.monotonic() + seconds, []
    while time.monotonic() < end_at:
        if asks:
            line.connection.send(b"?")
        stats = line.connection.stats()
        ages = (stats.peer_interpreter_age_seconds, stats.peer_application_age_seconds)
        notes.append((time.monotonic(), *ages, stats.peer_ages_told_seconds_ago))
        time.sleep(0.05)
    link.send(notes)
    signal.pause()


# ---- in between


def be_proxy(link: Connection, place: str, address: str, server: str) -> None:
    """Passes on what it reads, as any TCP proxy does; from a host that the director names, it only reads on."""
    die_with_parent()
    with socket.create_server((address, PORT)) as listener:
        link.send("listening")
        ends = {"client": listener.accept()[0], "server": socket.create_connection((server, PORT))}
    swallowed: set[str] = set()

    def carry(sender: str, receiver: str) -> None:
        with contextlib.suppress(OSError):
            while data := ends[sender].recv(65536):
                if sender not in swallowed:
                    ends[receiver].sendall(data)
        if sender not in swallowed:
            with contextlib.suppress(OSError):
                ends[receiver].shutdown(socket.SHUT_WR)

    for sender, receiver in (("client", "server"), ("server", "client")):
        threading.Thread(target=carry, args=(sender, receiver), daemon=True).start()
    while True:
        swallowed.add(link.recv())
        link.send("swallowing")


def _hold_gil(seconds: float) -> None:
    """PyDLL, unlike CDLL, keeps the GIL while it calls."""
    sleep = ctypes.PyDLL(None).usleep
    sleep(round(seconds * 1e6))
