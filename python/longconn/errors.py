"""What goes wrong, as exceptions: what happened, to whom, and what to do."""

from __future__ import annotations

import errno as _errno
import os
from enum import StrEnum

__all__ = ["Cause", "LongConnError", "MessageTooLarge", "PeerLost", "PeerReset", "PeerTimedOut"]


class Cause(StrEnum):
    """Why a peer counts as lost."""

    UNREACHABLE = "unreachable"
    """Nothing of ours is answered and nothing is heard: cable, power, NAT, firewall."""
    DEAF = "deaf"
    """The peer is heard, but nothing of ours arrives: one direction is cut."""
    RESET = "reset"
    """RST: the peer was killed or rebooted, gave us up, or something in between forgot the connection."""
    ENDED = "ended"
    """The stream ended before what was asked for had come."""


class LongConnError(Exception):
    """The root of what longconn raises by itself."""


class PeerLost(LongConnError, ConnectionError):
    """The other side of a connection is gone.

    Also a ``TimeoutError`` (`PeerTimedOut`) or a ``ConnectionResetError`` (`PeerReset`) where the stdlib would
    raise that, so that old ``except`` clauses work. An expired ``settimeout()`` is the plain ``TimeoutError``.

    Attributes:
        cause: A `Cause`.
        silence: Seconds for which nothing was heard, or, if `cause` is ``deaf``, nothing of ours has arrived;
            None where it can't be known.
        limit: The limit in seconds that was passed; None if no limit had to do with it.
        peer: Address of the other side, or None where it isn't known any more.
        errno: As the system has it; None where no system call failed.
    """

    def __init__(
        self,
        errno: int | None = None,
        strerror: str | None = None,
        *,
        cause: Cause = Cause.UNREACHABLE,
        silence: float | None = None,
        limit: float | None = None,
        peer: object = None,
    ) -> None:
        super().__init__(*(value for value in (errno, strerror) if value is not None))
        self.cause = cause
        self.silence = silence
        self.limit = limit
        self.peer = peer


class PeerTimedOut(PeerLost, TimeoutError):
    """Nothing was answered for too long; ``errno`` is ETIMEDOUT."""


class PeerReset(PeerLost, ConnectionResetError):
    """The connection was reset; ``errno`` is ECONNRESET."""


class MessageTooLarge(LongConnError, ValueError):
    """More was received than the caller allows."""


for _error in (LongConnError, PeerLost, PeerTimedOut, PeerReset, MessageTooLarge, Cause):
    _error.__module__ = "longconn"  # where users find them, and what tracebacks say


def _seconds(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") + " s"


def peer_lost(
    errno: int,
    cause: Cause,
    *,
    silence: float | None = None,
    limit: float | None = None,
    peer: object = None,
) -> PeerLost:
    """Make the `PeerLost` that fits *errno*, with a text for people."""
    # hosts of IPv6 carry colons of their own
    who = (
        "peer {}:{}".format(f"[{peer[0]}]" if ":" in str(peer[0]) else peer[0], peer[1])
        if (isinstance(peer, tuple) and len(peer) >= 2)
        else "peer"
    )
    text = {
        Cause.UNREACHABLE: f"{who} is unreachable: nothing we sent was answered",
        Cause.DEAF: f"{who} is heard, but nothing we send arrives there",
        Cause.RESET: f"{who} has reset the connection: it was killed, rebooted or gave us up",
        Cause.ENDED: f"{who} ended the stream",
    }[cause]
    if silence is not None and cause is not Cause.RESET:
        text += f"; silent for {_seconds(silence)}" if cause is Cause.UNREACHABLE else f" for {_seconds(silence)}"
        if limit is not None:
            text += f" (limit {_seconds(limit)})"
    kind = {_errno.ETIMEDOUT: PeerTimedOut, _errno.ECONNRESET: PeerReset}.get(errno, PeerLost)
    if kind is PeerLost and cause is not Cause.ENDED:
        text += f" [{os.strerror(errno)}]"
    return kind(errno, text + "; connect again", cause=cause, silence=silence, limit=limit, peer=peer)
