"""What goes wrong, as exceptions: what happened, to whom, and what to do."""

from __future__ import annotations

import errno as _errno
import os
from enum import StrEnum
from typing import Any

__all__ = [
    "AlreadyClosed",
    "BufferFull",
    "Cause",
    "ConnectFailed",
    "ForkedError",
    "HandshakeRejected",
    "LongConnError",
    "MessageTooLarge",
    "PeerClosed",
    "PeerLost",
    "PeerReset",
    "PeerTimedOut",
    "ProtocolError",
    "SessionLost",
]


class Cause(StrEnum):
    """Why a connection ended."""

    CLOSED = "closed"
    """One side said goodbye, with a code and a reason."""
    ENDED = "ended"
    """The stream ended without a goodbye, or before what was asked for had come: the process ended or was killed."""
    RESET = "reset"
    """RST: the peer was killed or rebooted, gave us up, or something in between forgot the connection."""
    UNREACHABLE = "unreachable"
    """Nothing of ours is answered and nothing is heard: cable, power, NAT, firewall."""
    FROZEN = "frozen"
    """Nothing is heard, but the peer's kernel answers: its program is stopped or starved, or a proxy answers for it."""
    SILENT = "silent"
    """Nothing is heard, and there is no evidence whether the path or the program is to blame."""
    DEAF = "deaf"
    """The peer is heard, but nothing of ours arrives: one direction is cut."""
    HUNG = "hung"
    """Beats come, but the peer's interpreter or application made no progress for longer than allowed."""
    REFUSED = "refused"
    """No connection could be made."""
    HANDSHAKE = "handshake"
    """The peer refused, or didn't finish the handshake."""
    TLS = "tls"
    """TLS failed: a certificate wasn't good enough for the other side, or one side doesn't speak TLS."""
    PROTOCOL = "protocol"
    """The peer broke the rules of the protocol, or speaks another."""


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
        level: Which of the three levels failed, as far as is known: ``path``, ``interpreter``, ``application``.
        kernel_answers: Whether the peer's kernel still acknowledged; None where nobody knows.
        given_up: If the peer gave *us* up: ``unheard`` (nothing of ours arrived there) or ``paused`` (this process
            was stopped or asleep meanwhile).
        undelivered: Of a `LongConnection`: every message that the peer's program isn't known to have taken, in order.
    """

    undelivered: list[bytes]

    def __init__(
        self,
        errno: int | None = None,
        strerror: str | None = None,
        *,
        cause: Cause = Cause.UNREACHABLE,
        silence: float | None = None,
        limit: float | None = None,
        peer: object = None,
        level: str | None = None,
        kernel_answers: bool | None = None,
        given_up: str | None = None,
    ) -> None:
        super().__init__(*(value for value in (errno, strerror) if value is not None))
        self.cause = cause
        self.silence = silence
        self.limit = limit
        self.peer = peer
        self.level = level
        self.kernel_answers = kernel_answers
        self.given_up = given_up
        self.undelivered = []


class SessionLost(PeerLost):
    """The session of a `LongConnection` is over, and with it messages that the peer's program may not have taken.

    Its last connection was lost (`cause`, and ``__cause__`` has the details), and no other was made in time, or the
    peer knew nothing of the session any more: its process was started anew, or the client came back too late; or the
    server doesn't let this client in any more.

    Attributes:
        undelivered: Every message that the peer's program isn't *known* to have taken, in order. None that it hasn't
            taken is missing; it may hold some of which the news that they were taken was under way. Send again what
            bears to be done twice.
    """


class PeerTimedOut(PeerLost, TimeoutError):
    """Nothing was answered for too long; ``errno`` is ETIMEDOUT."""


class PeerReset(PeerLost, ConnectionResetError):
    """The connection was reset; ``errno`` is ECONNRESET."""


class PeerClosed(LongConnError, ConnectionError):
    """The peer said goodbye. Everything that it had sent before was received.

    Attributes:
        code: Why: 0 is the normal end, 1 means that the peer goes away or restarts; 4096 to 65535 are the programs'
            own.
        reason: The peer's words.
        peer: Address of the other side.
        cause: `Cause.CLOSED`.
        undelivered: Messages that the peer's program hasn't taken and never will, in order.
    """

    undelivered: list[bytes]

    def __init__(self, text: str = "", *, code: int = 0, reason: str = "", peer: object = None) -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason
        self.peer = peer
        self.cause = Cause.CLOSED
        self.undelivered = []


class AlreadyClosed(LongConnError, OSError):
    """This side has closed the connection or the server; ``errno`` is EBADF, as of a closed socket."""


class ConnectFailed(LongConnError, ConnectionError):
    """No connection could be made, or what answered isn't a longconn server.

    Attributes:
        cause: `Cause.REFUSED`: not even TCP; ``errno`` is the system's. `Cause.TLS`: one side doesn't trust the other,
            or it wasn't TLS; trying again doesn't help. `Cause.HANDSHAKE` or another: what happened afterwards.
        peer: The address that was tried.
    """

    def __init__(
        self,
        errno: int | None = None,
        strerror: str | None = None,
        *,
        cause: Cause = Cause.REFUSED,
        peer: object = None,
    ) -> None:
        super().__init__(*(value for value in (errno, strerror) if value is not None))
        self.cause = cause
        self.peer = peer


class HandshakeRejected(ConnectFailed):
    """The server answered, and doesn't want this client.

    Attributes:
        code: Why, as a number of docs/SPEC.md: 6 the limits don't fit, 7 the token, 8 too many connections, ...
        reason: The server's words.
    """

    def __init__(self, text: str = "", *, code: int = 0, reason: str = "", peer: object = None) -> None:
        super().__init__(None, text, cause=Cause.HANDSHAKE, peer=peer)
        self.code = code
        self.reason = reason


class ProtocolError(LongConnError, ConnectionError):
    """The peer broke the rules of the protocol; the connection was reset.

    Attributes:
        cause: `Cause.PROTOCOL`.
        peer: Address of the other side.
    """

    def __init__(self, text: str = "", *, peer: object = None) -> None:
        super().__init__(text)
        self.peer = peer
        self.cause = Cause.PROTOCOL


class BufferFull(LongConnError, BlockingIOError):
    """No room for a message, and ``when_full="raise"``: nothing was sent; ``errno`` is EAGAIN."""


class ForkedError(LongConnError, ConnectionError):
    """The connection belongs to the process that forked this one. New connections work."""


class MessageTooLarge(LongConnError, ValueError):
    """More than the receiver allows: nothing was sent, or the rest of an answer wasn't received."""


for _name in __all__:
    globals()[_name].__module__ = "longconn"  # where users find them, and what tracebacks say


def _who(peer: object) -> str:
    if not (isinstance(peer, tuple) and len(peer) >= 2):
        return "peer"
    # hosts of IPv6 carry colons of their own
    return "peer {}:{}".format(f"[{peer[0]}]" if ":" in str(peer[0]) else peer[0], peer[1])


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
    who = _who(peer)
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


_LOST = {
    Cause.ENDED: None,
    Cause.RESET: _errno.ECONNRESET,
    Cause.UNREACHABLE: _errno.ETIMEDOUT,
    Cause.FROZEN: _errno.ETIMEDOUT,
    Cause.SILENT: _errno.ETIMEDOUT,
    Cause.DEAF: _errno.ETIMEDOUT,
    Cause.HUNG: _errno.ETIMEDOUT,
}


def link_ended(
    cause: str,
    text: str,
    peer: object,
    by_peer: bool,
    silence: float,
    limit: float | None,
    level: str | None,
    kernel_answers: bool | None,
    given_up: str | None,
    code: int | None,
    reason: str,
    was_open: bool,
    *,
    goes_on: bool = False,
    is_session: bool = False,
    undelivered: list[bytes] | None = None,
) -> LongConnError:
    """The end of a link, or of a session, as an exception; called by the native side.

    With *goes_on* another link is to come, and nobody has to do anything.
    """
    undelivered = undelivered or []
    details: dict[str, Any] = {
        "cause": Cause(cause),
        "silence": silence,
        "limit": limit,
        "peer": peer,
        "level": level,
        "kernel_answers": kernel_answers,
        "given_up": given_up,
    }
    error = _link_ended(f"{_who(peer)}: {text}", details, by_peer, code, reason, was_open, goes_on)
    if isinstance(error, PeerClosed | PeerLost):
        error.undelivered = undelivered
    if not (is_session and undelivered):
        return error
    what = "message" if len(undelivered) == 1 else "messages"
    lost = SessionLost(
        getattr(error, "errno", None),
        f"{_who(peer)}: {text}; {len(undelivered)} {what} may not have been taken (.undelivered)",
        **details,
    )
    lost.undelivered = undelivered
    lost.__cause__ = error
    return lost


def _link_ended(
    text: str,
    details: dict[str, Any],
    by_peer: bool,
    code: int | None,
    reason: str,
    was_open: bool,
    goes_on: bool,
) -> LongConnError:
    what, peer = details["cause"], details["peer"]
    if not was_open:
        if code is not None and by_peer:
            return HandshakeRejected(text, code=code, reason=reason, peer=peer)
        return ConnectFailed(None, text, cause=what, peer=peer)
    if what is Cause.CLOSED:
        if by_peer:
            return PeerClosed(text, code=code or 0, reason=reason, peer=peer)
        return AlreadyClosed(_errno.EBADF, f"{text} by this side; connect again")
    if what is Cause.PROTOCOL:
        return ProtocolError(text, peer=peer)
    if what is Cause.HANDSHAKE and code is not None and by_peer:
        # it was here before, and isn't wanted any more
        return HandshakeRejected(text, code=code, reason=reason, peer=peer)
    # Never a TimeoutError, though time was up: a loop that goes on after the timeout of a call would not end.
    number = _LOST.get(what)
    return (PeerReset if what is Cause.RESET else PeerLost)(
        number,
        text + ("" if goes_on else "; connect again"),
        **details,
    )


def dial_failed(
    target: str, attempts: list[tuple[str, str | None, int | None, int | None, str, str | None]]
) -> OSError | LongConnError:
    """Why no connection was made; of each attempt its place, address, errno, error of the look-up, text, and cause."""
    if len(attempts) == 1 and (code := attempts[0][3]) is not None:
        import socket

        return socket.gaierror(code, f"{attempts[0][4]}: {attempts[0][0]}")
    peer = target.rpartition(":")
    who = (peer[0].strip("[]"), int(peer[2])) if "," not in target and peer[2].isdigit() else None
    reasons = "; ".join(f"{_place(attempt)}: {attempt[4]}" for attempt in attempts)
    if all(number is None and code is None and cause is None for _, _, number, code, _, cause in attempts):
        return TimeoutError(f"{target} did not answer in time" + (f": {reasons}" if len(attempts) > 1 else ""))
    text = reasons if len(attempts) > 1 else attempts[0][4]
    last = next((OSError(number, text) for _, _, number, _, text, _ in reversed(attempts) if number is not None), None)
    # one that was trusted no more tells more than those that weren't there
    causes = {attempt[5] for attempt in attempts}
    cause = next((cause for cause in (Cause.TLS, Cause.HANDSHAKE) if cause in causes), Cause.REFUSED)
    failed = ConnectFailed(last.errno if last else None, f"no connection to {target}: {text}", cause=cause, peer=who)
    failed.__cause__ = last
    return failed


def reset_at_once(places: list[tuple[str, int]]) -> OSError | LongConnError:
    """The connection stood and was reset before anything was said on it."""
    target = ", ".join(_who(place).removeprefix("peer ") for place in places)
    return dial_failed(target, [(target, None, _errno.ECONNRESET, None, os.strerror(_errno.ECONNRESET), None)])


def _place(attempt: tuple[str, str | None, int | None, int | None, str, str | None]) -> str:
    place, address = attempt[:2]
    return place if address is None or address == place else f"{place} at {address}"
