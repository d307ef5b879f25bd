"""Owns what runs at the two ends of a case: ways to protect a connection, programs that are told, peers that aren't.

Each function here runs in a process of its own, in a host of the lab, with a pipe (`link`) to the director in cases.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

PORT = 8083
IDLE, INTERVAL, COUNT = 1, 1, 3
LIMIT = 3.0
# A small receive buffer closes the window after a moment, not after megabytes.
SMALL_BUFFER = 16 * 1024


# ---- ways to protect a connection


class Stdlib:
    """The stdlib's socket with the kernel's keepalive: what people write today."""

    title = "stdlib, SO_KEEPALIVE 1/1/3"

    def make(self) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, COUNT)
        return sock

    def begin(self, sock: socket.socket) -> None:
        """Called once the connection stands."""

    def lost(self, sock: socket.socket) -> str | None:
        """The cause that the socket or its guard tells; the stdlib tells none."""
        return None


class StdlibUserTimeout(Stdlib):
    """With the option that is often recommended beside it."""

    title = "stdlib, SO_KEEPALIVE 1/1/3, TCP_USER_TIMEOUT 3 s"

    def make(self) -> socket.socket:
        sock = super().make()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(LIMIT * 1000))
        return sock


class Ours:
    """longconn's own class; nothing but the constructor differs from the stdlib's."""

    title = "KeepaliveSocket"

    def make(self) -> socket.socket:
        import longconn

        return longconn.KeepaliveSocket(keepalive=longconn.Keepalive(IDLE, INTERVAL, COUNT, guard=LIMIT))

    def begin(self, sock: socket.socket) -> None:
        pass

    def lost(self, sock: Any) -> str | None:
        return sock.lost and str(sock.lost)


class OursByKernel(Ours):
    """longconn's class without the guard: whatever the kernel concludes has to reach the program as PeerLost."""

    title = "KeepaliveSocket, guard=False, user_timeout=3"

    def make(self) -> socket.socket:
        import longconn

        keepalive = longconn.Keepalive(IDLE, INTERVAL, COUNT, user_timeout=LIMIT, guard=False)
        return longconn.KeepaliveSocket(keepalive=keepalive)


class Guarded:
    """The stdlib's socket, watched by `longconn.guard` from outside."""

    title = "stdlib, longconn.guard"

    def __init__(self) -> None:
        self.guards: list[Any] = []
        self.told: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()  # by on_lost, on its own thread

    def make(self) -> socket.socket:
        return socket.socket()

    def begin(self, sock: socket.socket) -> None:
        import longconn

        self.guards.append(
            longconn.guard(
                sock,
                limit=LIMIT,
                keepalive=longconn.Keepalive(IDLE, INTERVAL, COUNT),
                on_lost=lambda error: self.told.put((time.monotonic(), str(error.cause))),
            )
        )

    def lost(self, sock: socket.socket) -> str | None:
        return next((str(guard.lost) for guard in self.guards if guard.lost), None)


class Redis(Guarded):
    """A client of redis-py, with the guard on its connections."""

    title = "redis-py, longconn.guard"

    def client(self, address: str) -> Any:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        def greet(connection: Any) -> None:
            self.begin(connection._sock)
            connection.on_connect()

        # Without redis-py's own time limit and retries, so that what is seen is what the guard brings about.
        return redis.Redis(
            host=address,
            port=PORT,
            redis_connect_func=greet,  # type: ignore[arg-type]  # it is called with the connection
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
        )


PROTECTIONS: dict[str, type[Stdlib | Ours | Guarded]] = {
    "socket": Ours,
    "kernel": OursByKernel,
    "guard": Guarded,
    "redis": Redis,
    "stdlib": Stdlib,
    "user-timeout": StdlibUserTimeout,
}


# ---- programs that are told that the peer is gone: each runs until an exception, or the end of the stream, ends it


def waits(sock: socket.socket, link: Connection) -> bytes:
    """Idle: blocked in recv, as a client that waits for news."""
    link.send("ready")
    return sock.recv(1)


def waits_selecting(sock: socket.socket, link: Connection) -> bytes:
    """Idle in a selector, with a non-blocking socket, as an event loop does."""
    import selectors

    sock.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        link.send("ready")
        selector.select()
    return sock.recv(1)


def asks(sock: socket.socket, link: Connection) -> bytes:
    """Sends one request after the path broke, and waits for its answer: one call of an RPC."""
    link.send("ready")
    link.recv()  # "broken"
    sock.sendall(b"?")
    return sock.recv(1)


def sends(sock: socket.socket, link: Connection) -> bytes:
    """Sends a message every 20 ms and never reads."""
    link.send("ready")
    while True:
        sock.sendall(bytes(64))
        time.sleep(0.02)


def fills(sock: socket.socket, link: Connection) -> bytes:
    """Sends until the peer's window is closed, and is then blocked in sendall."""
    block = bytes(SMALL_BUFFER)
    while not _window_is_closed(sock):
        try:
            sock.send(block, socket.MSG_DONTWAIT)
        except BlockingIOError:
            time.sleep(0.02)  # the kernel has no event for "the window is closed"
    link.send("ready")
    while True:
        sock.sendall(block)


def receives(sock: socket.socket, link: Connection) -> bytes:
    """Reads what the peer streams, and sends nothing of its own: only acknowledgements."""
    sock.recv(65536)
    link.send("ready")
    while data := sock.recv(65536):
        pass
    return data


def receives_and_sends(sock: socket.socket, link: Connection) -> bytes:
    """Reads what the peer streams, and sends a message every 20 ms; with a timeout set, as many programs have."""
    data = sock.recv(65536)
    sock.settimeout(0.02)
    link.send("ready")
    sent_at = 0.0
    while data:
        try:
            data = sock.recv(65536)
        except TimeoutError as error:
            if error.errno is not None:  # the kernel's ETIMEDOUT or PeerLost, and not our 20 ms
                raise
        if time.monotonic() - sent_at > 0.02:
            sent_at = time.monotonic()
            sock.sendall(bytes(64))
    return data


def redis_waits(client: Any, link: Connection) -> object:
    """A worker that waits for a job."""
    client.ping()
    link.send("ready")
    return client.blpop("jobs")


def redis_asks(client: Any, link: Connection) -> object:
    """One command after the path broke."""
    client.ping()
    link.send("ready")
    link.recv()
    return client.get("key")


def redis_subscribes(client: Any, link: Connection) -> object:
    """A subscriber, who never sends."""
    with client.pubsub() as subscription:
        subscription.subscribe("news")
        subscription.get_message(timeout=10)  # the confirmation
        link.send("ready")
        return next(subscription.listen())


PROGRAMS: dict[str, Callable[[Any, Connection], object]] = {
    "waits": waits,
    "waits-selecting": waits_selecting,
    "asks": asks,
    "sends": sends,
    "fills": fills,
    "receives": receives,
    "receives-and-sends": receives_and_sends,
    "redis-waits": redis_waits,
    "redis-asks": redis_asks,
    "redis-subscribes": redis_subscribes,
}


def be_told(link: Connection, host: str, address: str, protection_name: str, program: str) -> None:
    """The end that is to be told: runs the program and reports when it was told, and what it saw."""
    die_with_parent()
    protection = PROTECTIONS[protection_name]()
    if isinstance(protection, Redis):
        link.recv()  # "listening"
        end = sock = protection.client(address)
        descriptor = None
    else:
        end = sock = _connection(link, host, address, protection.make)
        protection.begin(sock)
        descriptor = sock.fileno()
    link.send(descriptor)
    seen, error = "", None
    try:
        seen = repr(PROGRAMS[program](end, link))
    except Exception as caught:
        error = caught
    report: dict[str, Any] = {"told_at": time.monotonic()}
    report |= describe(error) if error else {"seen": seen, "cause": None}
    if isinstance(protection, Guarded):
        try:
            report["callback_at"], report["callback_cause"] = protection.told.get(timeout=2)
        except queue.Empty:
            report["callback_at"] = report["callback_cause"] = None
    report["lost"] = protection.lost(sock)
    report["cause"] = report["cause"] or report["lost"]
    if isinstance(protection, Redis):
        link.send(None)
        while link.recv() != "repaired":  # "broken" may still be unread
            pass
        report["afterwards"] = [_outcome(end.ping)]
    else:
        sock.settimeout(5)
        report["afterwards"] = [_outcome(lambda: sock.recv(1)), _outcome(lambda: sock.send(b"x"))]
    link.send(report)
    signal.pause()  # the director may still be about to say "broken"


def _outcome(call: Callable[[], object]) -> str:
    try:
        return repr(call())
    except Exception as error:
        return type(error).__name__


def describe(error: BaseException) -> dict[str, Any]:
    cause = getattr(error, "cause", None)
    return {
        "seen": type(error).__name__,
        "text": str(error),
        "kinds": [kind.__name__ for kind in type(error).__mro__],
        "cause": cause and str(cause),
        "errno": getattr(error, "errno", None),
        "silence": getattr(error, "silence", None),
        "limit": getattr(error, "limit", None),
    }


# ---- peers: the stdlib's sockets, nobody watches over them


def reads(sock: socket.socket, link: Connection) -> None:
    """Reads everything, says nothing."""
    while sock.recv(65536):
        pass


def reads_nothing(sock: socket.socket, link: Connection) -> None:
    """Says nothing, and lets everything lie."""
    signal.pause()


def streams(sock: socket.socket, link: Connection) -> None:
    """Sends 400 kB/s for ever, and reads what comes."""
    threading.Thread(target=reads, args=(sock, link), daemon=True).start()
    while True:
        sock.sendall(bytes(4000))
        time.sleep(0.01)


def ticks(sock: socket.socket, link: Connection) -> None:
    """Sends 100 bytes twenty times a second, as a feed of prices or positions does, and reads what comes.

    Its repeats, unlike those of a full stream, carry new bytes too: they refresh the clocks of our kernel's keepalive.
    """
    threading.Thread(target=reads, args=(sock, link), daemon=True).start()
    while True:
        sock.sendall(bytes(100))
        time.sleep(0.05)


def pretends_to_be_redis(sock: socket.socket, link: Connection) -> None:
    """As much of redis as one client needs for these cases. BLPOP is never answered: there is no job."""
    answers = {
        b"HELLO": b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n",
        b"PING": b"+PONG\r\n",
        b"CLIENT": b"+OK\r\n",
        b"SUBSCRIBE": b">3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n",
        b"GET": b"$5\r\nvalue\r\n",
        b"BLPOP": b"",
    }
    stream = sock.makefile("rb")
    while line := stream.readline():
        words = []
        for _ in range(int(line[1:])):  # *2 $3 GET $3 key
            size = int(stream.readline()[1:])
            words.append(stream.read(size + 2)[:-2])
        sock.sendall(answers.get(words[0].upper(), b"-ERR unknown command\r\n"))


PEERS: dict[str, Callable[[socket.socket, Connection], None]] = {
    "reads": reads,
    "reads-nothing": reads_nothing,
    "streams": streams,
    "ticks": ticks,
    "redis": pretends_to_be_redis,
}


def be_peer(link: Connection, host: str, address: str, program: str) -> None:
    """The other end. It outlives its connections: whatever happens to them, the process stays until it is killed."""
    die_with_parent()
    if program == "redis":
        with socket.create_server((address, PORT)) as listener:
            link.send("listening")
            while True:  # a client comes back when its connection was lost
                sock, _ = listener.accept()
                threading.Thread(target=_run_peer, args=(program, sock, link), daemon=True).start()
    _run_peer(program, _connection(link, host, address, socket.socket), link)
    signal.pause()


def _run_peer(program: str, sock: socket.socket, link: Connection) -> None:
    with contextlib.suppress(OSError):
        PEERS[program](sock, link)


# ---- two protected ends that talk while something is wrong, but nobody is dead


@dataclass(frozen=True)
class Talk:
    """What one of two living ends does, in seconds from the start."""

    sends: bool = True
    reads_from: float = 0  # and nothing before
    bytes_per_second: int | None = None  # how fast it reads, until the talk's end
    holds_gil: float = 0  # seconds in one C call, begun after the first second


def be_alive(link: Connection, host: str, address: str, protection_name: str, talk: Talk, seconds: float) -> None:
    """Talks for so long, reads what is left, and reports what went through and every alarm."""
    die_with_parent()
    protection = PROTECTIONS[protection_name]()
    sock = _connection(link, host, address, protection.make)
    protection.begin(sock)
    link.send(sock.fileno())
    end_at = time.monotonic() + seconds
    sent = received = 0
    errors: list[dict[str, Any]] = []
    enough = threading.Event()

    def send() -> None:
        nonlocal sent
        try:
            while time.monotonic() < end_at and not enough.is_set():
                if talk.sends:
                    sock.sendall(bytes(1000))
                    sent += 1000
                time.sleep(0.01)
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            errors.append(describe(error))

    def hold_gil() -> None:
        time.sleep(1)
        ctypes.PyDLL(None).usleep(round(talk.holds_gil * 1e6))  # PyDLL, unlike CDLL, keeps the GIL

    threads = [threading.Thread(target=send)]
    if talk.holds_gil:
        threads.append(threading.Thread(target=hold_gil))
    for thread in threads:
        thread.start()
    time.sleep(talk.reads_from)
    try:
        while data := sock.recv(65536 if talk.bytes_per_second is None else talk.bytes_per_second // 10):
            received += len(data)
            if talk.bytes_per_second is not None and time.monotonic() < end_at:
                time.sleep(0.1)
    except OSError as error:
        errors.append(describe(error))
        enough.set()
    for thread in threads:
        thread.join()
    lost = protection.lost(sock)
    link.send({"sent": sent, "received": received, "errors": errors, "lost": lost})
    link.recv()  # both have reported: now the sockets may be closed


# ---- plumbing


def _connection(link: Connection, host: str, address: str, make: Callable[[], socket.socket]) -> socket.socket:
    """The connection of this end: the server accepts it (and inherits from its listener), the client opens it."""
    sock = make()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    if host == "server":
        with sock:
            sock.bind((address, PORT))
            sock.listen()
            link.send("listening")
            return sock.accept()[0]
    link.recv()  # "listening"
    sock.connect((address, PORT))
    return sock


def _window_is_closed(sock: socket.socket) -> bool:
    """All that was sent is acknowledged, more waits, and the kernel has begun to probe the window (tcpi_backoff)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    (unacked,) = struct.unpack_from("=I", info, 24)
    (notsent,) = struct.unpack_from("=I", info, 144)
    return unacked == 0 and notsent > 0 and info[4] > 0


def die_with_parent() -> None:
    """prctl(PR_SET_PDEATHSIG): a director that was killed leaves nobody behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() == 1:  # it died before we asked
        sys.exit(1)
