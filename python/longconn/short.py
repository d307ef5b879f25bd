"""The short connection in one call: open, send, receive, close."""

from __future__ import annotations

import time
from typing import Any

from .errors import Cause, MessageTooLarge, PeerLost
from .keepalive_socket import KeepaliveSocket
from .socket import create_connection

__all__ = ["exchange"]


def split_address(address: Any) -> tuple[str, int]:
    """``(host, port)`` of a tuple or of ``"host:port"``, ``"[::1]:port"``."""
    if isinstance(address, tuple) and len(address) >= 2:
        return str(address[0]), int(address[1])
    if isinstance(address, str):
        host, colon, port = address.rpartition(":")
        if colon and port.isdecimal() and int(port) <= 65535 and (":" not in host or host.startswith("[")):
            return host.removeprefix("[").removesuffix("]") or "localhost", int(port)
    raise ValueError(f"address {address!r}: expected (host, port) or 'host:port', '[::1]:port' for IPv6")


def exchange(
    address: Any,
    data: Any,
    *,
    until: bytes | int | None = None,
    timeout: float | None = 10.0,
    max_bytes: int = 1 << 20,
) -> bytes:
    """Open a connection, send *data*, receive the answer, close: the short connection.

    The sending side is never half-closed, for many servers take that for the end of the client.

    Args:
        address: ``(host, port)`` or ``"host:port"``.
        data: Any bytes-like object.
        until: Where the answer ends: None, at the end of the stream; bytes, with these; a number, after so many
            bytes.
        timeout: Seconds for everything together; None waits for ever (a dead peer is noticed all the same).
        max_bytes: The longest answer to be accepted.

    Returns:
        The answer, with the bytes of *until*; what came after them is dropped.

    Raises:
        TimeoutError: The time was up.
        PeerLost: The peer is gone, or (cause ``ended``) the stream ended before *until*.
        MessageTooLarge: No end within *max_bytes*.
        OSError: The connection could not be made; ``errno`` is kept.
    """
    if isinstance(until, bytes | bytearray) and not until:
        raise ValueError("until=b'': say None for the end of the stream")
    if isinstance(until, int) and not 0 <= until <= max_bytes:
        raise ValueError(f"until={until}: 0 to max_bytes={max_bytes} bytes")
    if max_bytes < 0:
        raise ValueError(f"max_bytes={max_bytes}: 0 or more")
    if timeout is not None and not timeout > 0:  # nor NaN
        raise ValueError(f"timeout={timeout}: more than 0 seconds, or None")
    deadline = None if timeout is None else time.monotonic() + timeout
    host, port = split_address(address)

    def limit(sock: KeepaliveSocket) -> None:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            sock.settimeout(left)

    with create_connection((host, port), timeout) as sock:
        limit(sock)
        sock.sendall(data)
        answer = bytearray()
        while True:
            end = _end(answer, until)
            if end is not None and end <= max_bytes:
                return bytes(answer[:end])
            if len(answer) > max_bytes or end is not None:
                raise MessageTooLarge(f"the answer of {host}:{port} has no end within max_bytes={max_bytes}")
            limit(sock)
            part = sock.recv(min(65536, max_bytes + 1 - len(answer)))
            if not part:
                break
            answer += part
    if until is None:
        return bytes(answer)
    raise PeerLost(
        None,
        f"{host}:{port} ended the stream after {len(answer)} bytes, before {until!r} had come",
        cause=Cause.ENDED,
        peer=(host, port),
    )


def _end(answer: bytearray, until: bytes | int | None) -> int | None:
    """Where the answer ends, if it does."""
    if until is None:
        return None
    if isinstance(until, int):
        return until if len(answer) >= until else None
    found = answer.find(until)
    return None if found < 0 else found + len(until)
