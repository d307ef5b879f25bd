"""The short connection in one call: open, send, receive, close."""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import Cause, MessageTooLarge, PeerLost
from .keepalive import in_seconds
from .keepalive_socket import KeepaliveSocket

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["exchange"]

_PART = 65536
_LONGEST_WAIT = 86400.0  # poll(2) takes 24 days
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # without a descriptor of its own


def split_address(address: Any) -> tuple[str, int]:
    """``(host, port)`` of a pair or of ``"host:port"``, ``"[::1]:port"``."""
    host: Any = None
    port: Any = None
    if isinstance(address, str):
        host, colon, port = address.rpartition(":")
        if not colon or (":" in host and not host.startswith("[")):
            port = None
        host = host.removeprefix("[").removesuffix("]")
    elif isinstance(address, tuple | list) and len(address) >= 2:
        host, port = address[:2]
        if isinstance(host, bytes | bytearray) and host.isascii():
            host = host.decode()
    if isinstance(host, str | None) and str(port).isdecimal():
        if int(port) > 65535:
            raise ValueError(f"address {address!r}: port {port}: 0 to 65535")
        return host or "localhost", int(port)
    raise ValueError(f"address {address!r}: expected (host, port) or 'host:port', '[::1]:port' for IPv6")


def view(data: Any, name: str) -> memoryview:
    """Of a bytes-like object; *name* is the argument's."""
    try:
        return memoryview(data)
    except TypeError:
        raise TypeError(f"{name}: a bytes-like object, not {type(data).__name__}") from None


class _Deadline:
    def __init__(self, timeout: float | None) -> None:
        self._at = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Seconds to wait for, not all of them if they are many; None is for ever."""
        if self._at is None:
            return None
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return min(left, _LONGEST_WAIT)


class _Answer:
    """What has come of it, and where it ends."""

    def __init__(self, peer: tuple[str, int], until: bytes | int | None, max_bytes: int) -> None:
        self.peer = peer
        self.until = until
        self.max_bytes = max_bytes
        self.received = bytearray()
        self.end = 0 if until == 0 else None

    def add(self, part: bytes) -> None:
        """*part* has come; nothing is the end of the stream. What comes after the end of the answer is dropped."""
        if self.end is not None:
            return
        searched = len(self.received)
        self.received += part
        if isinstance(self.until, bytes):
            # its beginning may have come before
            found = self.received.find(self.until, max(0, searched + 1 - len(self.until)))
            self.end = None if found < 0 else found + len(self.until)
        elif self.until is not None and len(self.received) >= self.until:
            self.end = self.until
        elif self.until is None and not part:
            self.end = searched
        if (len(self.received) if self.end is None else self.end) > self.max_bytes:
            host, port = self.peer
            raise MessageTooLarge(f"the answer of {host}:{port} has no end within max_bytes={self.max_bytes}")
        if self.end is None and not part:
            host, port = self.peer
            raise PeerLost(
                None,
                f"{host}:{port} ended the stream after {searched} bytes, before {self.until!r} had come",
                cause=Cause.ENDED,
                peer=self.peer,
            )


def _connect(host: str, port: int, deadline: _Deadline) -> KeepaliveSocket:
    """To the first address that answers in its part of the time."""
    failure = OSError(f"{host} has no address")
    found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    for tried, (family, kind, proto, _, address) in enumerate(found):
        left = deadline.left()
        sock = None
        try:
            sock = KeepaliveSocket(family, kind, proto)
            sock.settimeout(None if left is None else left / (len(found) - tried))
            sock.connect(address)
            return sock
        except BaseException as error:
            if sock is not None:
                sock.close()
            if not isinstance(error, OSError):
                raise
            failure = error
    try:
        raise failure
    finally:
        del failure  # which holds this frame


def exchange(
    address: Any,
    data: Any,
    *,
    until: bytes | int | None = None,
    timeout: float | timedelta | None = 10.0,
    max_bytes: int = 1 << 20,
) -> bytes:
    """Open a connection, send *data*, receive the answer, close: the short connection.

    All of *data* is sent, and the answer is read meanwhile, so that neither side waits for the other. The sending
    side is never half-closed, for many servers take that for the end of the client.

    Args:
        address: ``(host, port)`` or ``"host:port"``.
        data: Any bytes-like object.
        until: Where the answer ends: None, at the end of the stream; bytes, with these; a number, after so many
            bytes.
        timeout: Seconds, or a timedelta, for everything together; None waits for ever (a dead peer is noticed all
            the same). Of several addresses each has its part of what is left. The system's look-up of a name counts,
            but can't be cut short.
        max_bytes: The longest answer to be accepted.

    Returns:
        The answer, with the bytes of *until*; what came after them is dropped.

    Raises:
        TimeoutError: The time was up.
        PeerLost: The peer is gone, or (cause ``ended``) the stream ended before *until*.
        MessageTooLarge: No end within *max_bytes*.
        OSError: The connection could not be made; ``errno`` is kept.
        TypeError, ValueError: An argument is no good; nothing was sent.
    """
    rest = view(data, "data").cast("B")
    if isinstance(until, bytearray | memoryview):
        until = bytes(until)
    if isinstance(until, bool) or not isinstance(until, bytes | int | None):
        raise TypeError(f"until: bytes, a number of bytes, or None, not {type(until).__name__}")
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise TypeError(f"max_bytes: a number of bytes, not {type(max_bytes).__name__}")
    if until == b"":
        raise ValueError("until=b'': say None for the end of the stream")
    if max_bytes < 0:
        raise ValueError(f"max_bytes={max_bytes}: 0 or more")
    if isinstance(until, int) and not 0 <= until <= max_bytes:
        raise ValueError(f"until={until}: 0 to max_bytes={max_bytes} bytes")
    if timeout is not None:
        timeout = in_seconds(timeout, "timeout")
        if not timeout > 0:  # nor NaN
            raise ValueError(f"timeout={timeout:g}: more than 0 seconds, or None")
    host, port = split_address(address)
    answer = _Answer((host, port), until, max_bytes)
    deadline = _Deadline(timeout)
    reading, writing = selectors.EVENT_READ, selectors.EVENT_WRITE
    with _connect(host, port, deadline) as sock, _Selector() as selector:
        sock.setblocking(False)
        selector.register(sock, reading)
        is_open = True
        while rest or answer.end is None:
            selector.modify(sock, (reading if is_open else 0) | (writing if rest else 0))
            ready = sum(events for _, events in selector.select(deadline.left()))
            if ready & reading:
                with suppress(BlockingIOError):
                    part = sock.recv(_PART)
                    is_open = part != b""
                    answer.add(part)
            if ready & writing:
                with suppress(BlockingIOError):
                    rest = rest[sock.send(rest) :]
    return bytes(answer.received[: answer.end])
