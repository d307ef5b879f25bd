"""LongConnection and LongServer: how they are made, and the values that they tell."""

from __future__ import annotations

import errno
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from . import _longconn
from ._longconn import LongConnection
from .backoff import Backoff
from .errors import AlreadyClosed, Cause, LongConnError, reset_at_once
from .framing import plain_settings
from .heartbeat import Adaptive, Heartbeat
from .keepalive import Keepalive, in_seconds
from .keepalive_socket import KeepaliveSocket
from .short import split_address, view
from .tls import client_settings
from .tls import server_settings as tls_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta
    from types import EllipsisType, TracebackType
    from typing import Literal

    from ._longconn import ClientSettings, Handshaken, TcpInfo
    from .framing import Framing, PlainHeartbeat
    from .tls import TLS

__all__ = ["Broadcast", "Event", "LinkStats", "LongServer", "ServerStats", "connect"]

#: Seconds. An age below this says no more than that nothing is wrong: what is asked every 100 ms is that old.
FRESH = 1.0
_LARGEST = 1 << 30
_MANY = 1 << 31
_Connection = TypeVar("_Connection")


class LinkStats(NamedTuple):
    """What a `LongConnection` has measured and counted; None is unknown, or what a plain peer hasn't got."""

    state: str
    silence_seconds: float
    """Since the last byte was heard."""
    limit_seconds: float | None
    """The silence after which the peer counts as lost, as it is now; of a plain peer, if it is expected to beat."""
    phi: float | None
    """How improbable the silence is, with ``detector="phi"``."""
    send_interval_seconds: float | None
    """Between our beats, as both sides agreed."""
    hear_interval_seconds: float | None
    """Between the peer's."""
    round_trip_last_seconds: float | None
    round_trip_smoothed_seconds: float | None
    round_trip_least_seconds: float | None
    beats_sent: int
    beats_heard: int
    beats_late: int
    """Ours that were handed to the kernel more than 20 ms after they were due."""
    worst_lateness_seconds: float
    bytes_sent: int
    """On the wire, beats and headers included."""
    bytes_heard: int
    untaken_bytes: int
    """Sent or waiting to be sent, and not known to be taken by the peer's program; of a plain peer, by its kernel."""
    untaken_messages: int | None
    inbox_bytes: int
    """Received and not taken by this program."""
    inbox_messages: int | None
    peer_interpreter_age_seconds: float | None
    """How long the peer's interpreter had not been able to run when it beat last."""
    peer_application_age_seconds: float | None
    """How long the peer's program had made no progress, though messages waited for it, when it beat last."""
    peer_ages_told_seconds_ago: float | None
    tcp_info: TcpInfo | None
    """What the kernel knows of the connection; None once it is over."""
    connections: int = 1
    """How many there have been, one after another, in this session; what is counted above is of the last."""
    messages_after_close: int = 0
    """That came after this side's goodbye, or weren't received by then: nobody takes them."""
    proven_interval_seconds: float | None = None
    """With an `Adaptive` interval: the longest that the present network is known to bear. The one in force is
    `send_interval_seconds`: shorter at first, and longer while more is tried."""
    settled_seconds_ago: float | None = None
    """Since when nothing longer is tried; None: it is, or the interval isn't adaptive."""


class Event(NamedTuple):
    """A connection's change of state."""

    time: float
    """As of ``time.time()``, and of what a `longconn.testing.FakeClock` has skipped."""
    state: str
    """The new one: ``open``, ``suspect``, ``reconnecting`` or ``closed``."""
    cause: Cause | None
    """Why the connection was lost, or is closed."""
    error: LongConnError | None
    """The same with all details, as calls on the connection raise it once it is closed."""
    replayed: int | None = None
    """The session goes on over another connection, and so many messages were sent again, as a whole or in part."""
    fresh: bool = False
    """It goes on in another session: the server knew nothing of the one before, or had closed."""


class Broadcast(NamedTuple):
    """What became of one message for many."""

    sent: int
    full: int
    """Connections that take no more for now: the message was not sent to them."""
    failed: int
    """Connections that were closing, or whose peers take only smaller messages."""


class ServerStats(NamedTuple):
    """What a `LongServer` has counted since it began; `open` and `handshakes` are as it is now."""

    open: int
    handshakes: int
    """Clients that have connected and not finished their handshake."""
    accepted: int
    """TCP connections, in all."""
    opened: int
    """Of these, clients that have finished their handshake."""
    refused_too_many: int
    """For ``max_connections`` or ``max_connections_per_address``."""
    refused_unauthorized: int
    """By ``authenticate``."""
    failed_handshakes: int
    """Broke the rules, took too long, or went away."""
    failed_tls: int
    """Of these, for TLS: one side didn't trust the other, or it wasn't TLS; the log says why."""
    crowded_out: int
    """Dropped without a word, for ``max_handshakes`` were under way."""
    out_of_resources: int
    """Clients that were reset for want of descriptors, and times that none could be accepted for want of memory."""
    events_dropped: int
    """Events that found 10,000 others waiting, for `LongServer.events` or for ``on_event``."""
    refused_stale: int
    """Claimed a session that isn't theirs, or said an old HELLO again."""
    resumed: int
    """Sessions that went on over another connection."""
    expired: int
    """Sessions that ended without their client having come back."""
    waiting: int
    """Sessions that have lost their connection, as it is now, and wait for their clients."""
    waiting_bytes: int
    """What these keep: bytes that were not taken, by either side."""


def monotonic() -> float:
    """As of `time.monotonic`, and of what a `longconn.testing.FakeClock` has skipped: connections' own clock."""
    return time.monotonic() + _longconn.skipped()


def _rhythm(heartbeat: object) -> tuple[Any, ...]:
    if heartbeat is None:
        heartbeat = Heartbeat()
    elif not isinstance(heartbeat, Heartbeat):
        raise TypeError(f"heartbeat: a Heartbeat, or None for the default, not {type(heartbeat).__name__}")
    adaptive = heartbeat.interval if isinstance(heartbeat.interval, Adaptive) else None
    return (
        heartbeat.least_interval,
        heartbeat.limit,
        heartbeat.detector == "phi",
        heartbeat.floor,
        heartbeat.threshold,
        heartbeat.window,
        heartbeat.min_std,
        heartbeat.acceptable_pause,
        heartbeat.application_limit,
        heartbeat.interpreter_limit,
        adaptive and (adaptive.max, adaptive.step),
    )


def _whole(value: object, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: a whole number, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name}={value}: {least} to {most}")
    return value


def _positive_seconds(value: object, name: str) -> float:
    seconds = in_seconds(value, name)
    if not 0.001 <= seconds <= 86400:  # nor NaN
        raise ValueError(f"{name}={seconds:g}: 0.001 to 86400 seconds")
    return seconds


def _check_callable(value: Any, name: str) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name}: a callable or None, not {type(value).__name__}")


def _places(address: Any) -> list[tuple[str, int]]:
    """One place, or several in a list."""
    is_several = isinstance(address, list | tuple) and all(
        isinstance(each, list | tuple) or (isinstance(each, str) and ":" in each) for each in address
    )
    return [split_address(each) for each in address] if is_several and address else [split_address(address)]


def _is_choice(value: object, name: str, choices: tuple[str, str]) -> bool:
    """Whether it is the second."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: {choices[0]!r} or {choices[1]!r}")
    return value == choices[1]


def _retention(value: object) -> float:
    seconds = in_seconds(value, "session_retention")
    if not 0 <= seconds <= 86400:  # nor NaN
        raise ValueError(f"session_retention={seconds:g}: 0 to 86400 seconds")
    return seconds


def _optional_seconds(value: object, name: str) -> float | None:
    return None if value is None else _positive_seconds(value, name)


def connect(
    address: Any,
    *,
    framing: Framing | None = None,
    heartbeat: Heartbeat | PlainHeartbeat | None = None,
    timeout: float | timedelta | None = 10.0,
    client_id: str = "",
    token: bytes = b"",
    largest_message_bytes: int = 16 * 1024 * 1024,
    keepalive: Keepalive | Literal[False] | None = None,
    reconnect: Backoff | bool = True,
    give_up_after: float | timedelta | None = None,
    on_session_lost: Literal["raise", "resend"] = "raise",
    follow: bool = False,
    when_full: Literal["wait", "raise"] = "wait",
    on_event: Callable[[Event], object] | None = None,
    tls: TLS | bool | None = None,
) -> LongConnection:
    """Connect to a `LongServer`, and have the connection supervised from both sides; or to any TCP program.

    A connection that is lost is made again, and the session goes on over the new one: what was sent arrives once and in
    order, calls just take longer. `LongConnection.events` and *on_event* tell of it. The first one is made before this
    returns, or what went wrong is raised.

    With *framing* the peer is a plain one, which doesn't speak longconn's protocol: bytes, lines, or messages with a
    length before them go out and come in, the guard and the kernel's keepalive watch the path, and a `PlainHeartbeat`
    the program, if its protocol has one.

    Args:
        address: ``(host, port)`` or ``"host:port"``, ``"[::1]:port"``, or a list of several: who answers first is it
            (RFC 8305), each time.
        framing: None: the peer is a `LongServer`. ``"raw"``, ``"lines"``, `Lines` or `LengthPrefixed`: a plain peer.
        heartbeat: How soon a lost peer is noticed; None is ``Heartbeat()``. Of a plain peer a `PlainHeartbeat`; None is
            none.
        timeout: Seconds, or a timedelta, for all addresses and the handshake together; None waits for ever. The look-up
            of a name can't be cut short. The connection's own timeout is None at first.
        client_id: What the server sees this client as; at most 255 bytes of UTF-8.
        token: What the server's ``authenticate`` is given; at most 3072 bytes. Without *tls* anybody on the
            way can read it.
        largest_message_bytes: The largest message that this side takes, up to 1 GiB; or line. A raw stream has none.
        keepalive: The kernel's probes beside the heartbeat, which doesn't need them; None: none. Of a plain peer the
            probes and the guard; None: `default_keepalive()`; False: none.
        reconnect: When a lost connection is tried again; True is ``Backoff()``. False: the first loss is the end, and
            raised as `PeerLost`. Plain peers are never connected to again.
        give_up_after: Seconds without a connection after which the session is given up; None: never. Then calls raise
            `SessionLost` if messages may not have been taken, else `PeerLost`.
        on_session_lost: If the server has lost the session (it was started anew, or the client came back too late) and
            messages may or may not have been taken: ``"raise"``: calls raise `SessionLost`, with these messages.
            ``"resend"``: they are sent again, in a new session, so that some may arrive twice. Messages that can't have
            been taken go in a new session without asking.
        follow: A server that goes away may say where to come back; True: that is believed.
        when_full: What `send` does when 2 MiB wait to be taken: ``"wait"``, or ``"raise"`` `BufferFull`.
        on_event: Called with each `Event`, on longconn's own thread; `LongConnection.events` is told the same.
        tls: True, or a `TLS`: the connection is encrypted and the server's certificate verified, each time, before
            anything is said. None: it is not.

    Raises:
        ConnectFailed: No connection could be made, or what answered isn't a longconn server; ``cause`` says which,
            ``tls`` that the server isn't trusted, or doesn't trust this client.
        HandshakeRejected: The server answered, and doesn't want this client.
        TimeoutError: The time was up.
        OSError: The name is unknown (``socket.gaierror``), or the system refused; ``errno`` is kept.
        ValueError, TypeError: An argument is no good.
    """
    plan = plan_of(
        address,
        framing=framing,
        heartbeat=heartbeat,
        timeout=timeout,
        client_id=client_id,
        token=token,
        largest_message_bytes=largest_message_bytes,
        keepalive=keepalive,
        reconnect=reconnect,
        give_up_after=give_up_after,
        on_session_lost=on_session_lost,
        follow=follow,
        when_full=when_full,
        on_event=on_event,
        tls=tls,
    )
    connection: LongConnection = plan.open(_longconn.dial(plan.places, plan.seconds_left(), plan.security))
    return connection


class Plan(NamedTuple):
    """How a connection is to be made."""

    places: list[tuple[str, int]]
    deadline: float | None
    """As of `time.monotonic`."""
    probes: tuple[float, float, int, float | None] | None
    plain: tuple[Any, ...] | None
    security: ClientSettings | None
    settings: dict[str, Any]

    def seconds_left(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def open(self, dialled: tuple[int, Handshaken | None], **hub: Any) -> Any:
        """What begins on a socket that is connected: a connection, or with a *hub* perhaps what is to be awaited."""
        fd, handshaken = dialled
        if self.probes is not None:
            idle, interval, count, user_timeout = self.probes
            _longconn.apply_keepalive(
                fd, enabled=True, idle=idle, interval=interval, count=count, user_timeout=user_timeout
            )
        try:
            if self.plain is not None:
                return _longconn.open_plain_link(fd, handshaken=handshaken, settings=self.plain, **self.settings, **hub)
            return _longconn.open_link(fd, handshaken=handshaken, timeout=self.seconds_left(), **self.settings, **hub)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            failed = reset_at_once(self.places)
            raise failed from failed.__cause__


def plan_of(
    address: Any,
    *,
    framing: Framing | None,
    heartbeat: Heartbeat | PlainHeartbeat | None,
    timeout: float | timedelta | None,
    client_id: str,
    token: bytes,
    largest_message_bytes: int,
    keepalive: Keepalive | Literal[False] | None,
    reconnect: Backoff | bool,
    give_up_after: float | timedelta | None,
    on_session_lost: Literal["raise", "resend"],
    follow: bool,
    when_full: Literal["wait", "raise"],
    on_event: Callable[[Event], object] | None,
    tls: TLS | bool | None,
) -> Plan:
    """What `connect` was asked for, if it makes sense; its time begins now."""
    _whole(largest_message_bytes, "largest_message_bytes", 1, _LARGEST)
    plain = plain_settings(framing, heartbeat, keepalive, largest_message_bytes)
    rhythm = _rhythm(heartbeat) if plain is None else ()
    if not isinstance(client_id, str):
        raise TypeError(f"client_id: a str, not {type(client_id).__name__}")
    token = bytes(view(token, "token"))
    if len(client_id.encode()) > 255:
        raise ValueError(f"client_id: {len(client_id.encode())} bytes, at most 255")
    if len(token) > 3072:
        raise ValueError(f"token: {len(token)} bytes, at most 3072")
    if plain is not None and (client_id or token):
        raise ValueError("client_id, token: a plain peer (framing=...) is told neither; send what its protocol wants")
    if keepalive is not None and keepalive is not False and not isinstance(keepalive, Keepalive):
        raise TypeError(f"keepalive: a Keepalive, None or False, not {type(keepalive).__name__}")
    _check_callable(on_event, "on_event")
    deadline = None
    if timeout is not None:
        seconds = in_seconds(timeout, "timeout")
        if not seconds > 0:  # nor NaN
            raise ValueError(f"timeout={seconds:g}: more than 0 seconds, or None")
        deadline = time.monotonic() + seconds
    if not isinstance(reconnect, bool | Backoff):
        raise TypeError(f"reconnect: a Backoff, True or False, not {type(reconnect).__name__}")
    if not isinstance(follow, bool):
        raise TypeError(f"follow: True or False, not {type(follow).__name__}")
    resends = _is_choice(on_session_lost, "on_session_lost", ("raise", "resend"))
    raises_when_full = _is_choice(when_full, "when_full", ("wait", "raise"))
    give_up_after = _optional_seconds(give_up_after, "give_up_after")
    if plain is not None and (isinstance(reconnect, Backoff) or give_up_after is not None or resends or follow):
        raise ValueError(
            "reconnect, give_up_after, on_session_lost, follow: a plain peer (framing=...) knows no sessions"
        )
    places = _places(address)
    probes = None
    if plain is None and keepalive and keepalive.probes:
        probes = (keepalive.idle, keepalive.interval, keepalive.count, keepalive.user_timeout)
    coming_back = None
    if plain is None and reconnect is not False:
        backoff = Backoff() if reconnect is True else reconnect
        coming_back = (places, backoff.first, backoff.cap, backoff.factor, follow, resends, give_up_after, probes)
    security = client_settings(tls)
    sys.audit("longconn.connect", places)
    settings: dict[str, Any] = {"on_event": on_event, "raises_when_full": raises_when_full}
    if plain is None:
        memory = heartbeat.interval.memory(places) if heartbeat and isinstance(heartbeat.interval, Adaptive) else None
        settings |= {
            "heartbeat": rhythm,
            "largest_message_bytes": largest_message_bytes,
            "client_id": client_id,
            "token": token,
            "coming_back": coming_back,
            "tls": security,
            "learnt": memory.load() if memory else None,
            "keeper": memory.save if memory else None,
        }
    return Plan(places, deadline, probes, plain, security, settings)


def listen(host: str, port: int, backlog: int, reuse_port: bool) -> int:
    """The descriptor of a listening socket."""
    family, _, _, _, bound = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0]
    sock = KeepaliveSocket(family, socket.SOCK_STREAM, keepalive=False)
    try:
        # ports of past connections are as good as new ones
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            sock.bind(bound)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} (while binding to {host}:{port})") from None
        sock.listen(backlog)
        return sock.detach()
    finally:
        sock.close()


def place_to_listen(address: Any) -> tuple[str, int]:
    if isinstance(address, tuple | list) and len(address) >= 2 and address[0] == "":
        address = ("0.0.0.0", address[1])  # as bind(2) takes it
    return split_address(address)


def server_settings(
    *,
    framing: Framing | None,
    heartbeat: Heartbeat | PlainHeartbeat | None,
    max_connections: int,
    max_connections_per_address: int | None,
    authenticate: Callable[..., object] | None,
    handshake_timeout: float | timedelta,
    max_handshakes: int,
    largest_message_bytes: int,
    keepalive: Keepalive | Literal[False] | None,
    session_retention: float | timedelta,
    max_waiting_sessions: int,
    max_waiting_bytes: int,
    when_full: Literal["wait", "raise"],
    tls: TLS | None,
    backlog: int,
    on_event: Callable[..., object] | None,
) -> dict[str, Any]:
    """What a server was asked for, if it makes sense, as `_longconn.listen` takes it."""
    _check_callable(authenticate, "authenticate")
    _check_callable(on_event, "on_event")
    _whole(largest_message_bytes, "largest_message_bytes", 1, _LARGEST)
    plain = plain_settings(framing, heartbeat, keepalive, largest_message_bytes)
    if plain is None and keepalive is not None:
        raise ValueError("keepalive: for plain clients (framing=...); those of longconn beat instead")
    if plain is not None and authenticate is not None:
        raise ValueError("authenticate: a plain client (framing=...) doesn't say who it is; ask it by its protocol")
    _whole(backlog, "backlog", 0, 65535)
    return {
        "heartbeat": _rhythm(heartbeat if plain is None else None),
        "plain": plain,
        "largest_message_bytes": largest_message_bytes,
        "handshake_timeout": _positive_seconds(handshake_timeout, "handshake_timeout"),
        "max_connections": _whole(max_connections, "max_connections", 1, _MANY),
        "max_connections_per_address": _MANY
        if max_connections_per_address is None
        else _whole(max_connections_per_address, "max_connections_per_address", 1, _MANY),
        "max_handshakes": _whole(max_handshakes, "max_handshakes", 1, _MANY),
        "authenticate": authenticate,
        "on_event": on_event,
        "retention": _retention(session_retention),
        "max_waiting": _whole(max_waiting_sessions, "max_waiting_sessions", 0, _MANY),
        "max_waiting_bytes": _whole(max_waiting_bytes, "max_waiting_bytes", 0, 1 << 48),
        "raises_when_full": _is_choice(when_full, "when_full", ("wait", "raise")),
        "tls": tls_settings(tls),
    }


def closing(
    drain: float | timedelta, code: int, reason: str, retry_after: float | timedelta, come_back_to: str
) -> tuple[float, int, str, float, str]:
    """How a server is to be closed, if it makes sense."""
    seconds = in_seconds(drain, "drain")
    if not 0 <= seconds <= 86400:  # nor NaN
        raise ValueError(f"drain={seconds:g}: 0 to 86400 seconds")
    later = in_seconds(retry_after, "retry_after")
    if not 0 <= later <= 300:
        raise ValueError(f"retry_after={later:g}: 0 to 300 seconds")
    if come_back_to:
        split_address(come_back_to)
    return seconds, code, reason, later, come_back_to


class BaseServer(Generic[_Connection]):
    """What a LongServer is, whoever waits for it: threads, or the tasks of an event loop."""

    __slots__ = ("__weakref__", "_closed", "_server")
    _name = "longconn.LongServer"
    _closed: bool
    _server: _longconn.Server

    @property
    def address(self) -> tuple[str, int]:
        """(host, port), with the port that it got."""
        return self._server.address

    @property
    def connections(self) -> list[_Connection]:
        """Who is here, and who is expected back: each with its ``client_id``, ``state`` and ``opened_at``."""
        connections: list[Any] = self._server.connections()
        return connections

    def broadcast(self, data: Any, *, behind: Literal["skip", "close"] = "skip") -> Broadcast:
        """Send one message to every connection that has room for it, and wait for none.

        Args:
            data: Any bytes-like object. A client that is away gets it when it comes back.
            behind: What becomes of connections of which 2 MiB wait to be taken: ``"skip"``: they don't get this
                message; ``"close"``: they are closed (too slow), so that who is here has got everything.
        """
        return Broadcast(*self._server.broadcast(data, _is_choice(behind, "behind", ("skip", "close"))))

    def reload_tls(self, tls: TLS) -> None:
        """Have clients that come from now on shake hands by *tls*: a renewed certificate, perhaps of the same files.

        Connections that are open go on. If something is wrong with *tls*, that is raised, and what was before stays in
        force. Whether clients are asked for certificates (``client_ca``) can't be changed.
        """
        settings = tls_settings(tls)
        if settings is None:
            raise TypeError("reload_tls(): a TLS; a server that began with TLS can't go on without")
        self._server.reload_tls(settings)

    def stats(self) -> ServerStats:
        """What was counted."""
        return ServerStats(**self._server.counts())

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            try:
                import warnings

                self._server.counts()
            except Exception:
                # It is another process's to close (ForkedError); or it is so late in the interpreter's exit that nobody
                # is warned any more: without a GIL even this module's own names may be gone by then.
                return
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)
            self._server.abandon()

    def __repr__(self) -> str:
        host, port = self.address
        if self._closed:
            return f"<{self._name} {host}:{port}, closed>"
        try:
            count = self._server.counts()["open"]
        except LongConnError:
            return f"<{self._name} {host}:{port}, of the process that forked this one>"
        return f"<{self._name} {host}:{port}, {count} connections>"

    def _repr_html_(self) -> str:
        from . import pictures

        return pictures.server(self)


class LongServer(BaseServer[LongConnection]):
    """Takes connections of `longconn.connect`, each supervised by heartbeats in both directions; or of any TCP program.

    Connections come by `accept()` or iteration, to be served by a thread each; or their messages come by `messages()`,
    one loop for thousands of connections. A server does either the one or the other. A client that is lost and comes
    back has the same `LongConnection` as before: who waits in a call goes on.

    With *framing* the clients are plain ones, as for `longconn.connect`. Who ends its stream may wait for an answer, so
    its connection stays until the program closes it. `messages()` tells that as ``b""``; with `LengthPrefixed`, where
    that is a message, it closes such a connection when it is asked for more after the last message.

    Args:
        address: ``(host, port)`` or ``"host:port"``; port 0 takes a free one, which `address` tells.
        framing: None: clients are `longconn.connect`'s. ``"raw"``, ``"lines"``, `Lines` or `LengthPrefixed`: plain
            ones.
        heartbeat: How soon a lost client is noticed; None is ``Heartbeat()``. Of plain clients a `PlainHeartbeat`; None
            is none.
        max_connections: Open connections at the most; further clients are refused with a reason.
        max_connections_per_address: The same for each client address; None: no limit.
        authenticate: Called as ``authenticate(client_id, token, address)`` for each client, on longconn's own thread,
            one at a time: keep it quick. True lets it in; so does any other object but False and None, and becomes the
            connection's ``principal``. ``PermissionError`` refuses it with the error's text as reason. None: everyone
            is let in. Plain clients can't be asked. With a *tls* that has a ``client_ca`` it is called as
            ``authenticate(client_id, token, address, identity)``, with the `Identity` of the client's certificate.
        handshake_timeout: Seconds in which a client must have finished its handshake, that of TLS included.
        max_handshakes: Unfinished handshakes at the most; further connections are dropped.
        largest_message_bytes: The largest message that this side takes, up to 1 GiB.
        keepalive: Plain clients' probes and guard; None: `default_keepalive()`; False: none. Others need none.
        session_retention: Seconds for which the session of a client that is lost is kept for it; 0: not at all. Its
            connection is `reconnecting` meanwhile, and calls on it wait; afterwards they raise `SessionLost` if the
            client may not have taken everything, else `PeerLost`.
        max_waiting_sessions: Sessions that wait for their clients at the most; the oldest are given up.
        max_waiting_bytes: What these keep at the most, all together: bytes that were not taken, by either side.
        when_full: What a connection's `send` does when 2 MiB wait to be taken: ``"wait"``, or ``"raise"`` `BufferFull`.
        backlog: Connections that the kernel keeps waiting for us, as of ``socket.listen``.
        reuse_port: Let several processes listen at this address (SO_REUSEPORT).
        on_event: Called with each connection and `Event`, on longconn's own thread; `events` is told the same.
            Released when the server is closed.
        tls: A `TLS` with the server's certificate and key: all clients have to come with TLS. None: none does.

    Raises:
        OSError: The address can't be had; ``errno`` is kept.
        ValueError, TypeError: An argument is no good.
    """

    __slots__ = ("_timeout",)

    def __init__(
        self,
        address: Any,
        *,
        framing: Framing | None = None,
        heartbeat: Heartbeat | PlainHeartbeat | None = None,
        max_connections: int = 10_000,
        max_connections_per_address: int | None = None,
        authenticate: Callable[..., object] | None = None,
        handshake_timeout: float | timedelta = 10.0,
        max_handshakes: int = 1000,
        largest_message_bytes: int = 16 * 1024 * 1024,
        keepalive: Keepalive | Literal[False] | None = None,
        session_retention: float | timedelta = 60.0,
        max_waiting_sessions: int = 10_000,
        max_waiting_bytes: int = 256 * 1024 * 1024,
        when_full: Literal["wait", "raise"] = "wait",
        backlog: int = 1024,
        reuse_port: bool = False,
        on_event: Callable[[LongConnection, Event], object] | None = None,
        tls: TLS | None = None,
    ) -> None:
        self._closed = True
        self._timeout: float | None = None
        settings = server_settings(
            framing=framing,
            heartbeat=heartbeat,
            max_connections=max_connections,
            max_connections_per_address=max_connections_per_address,
            authenticate=authenticate,
            handshake_timeout=handshake_timeout,
            max_handshakes=max_handshakes,
            largest_message_bytes=largest_message_bytes,
            keepalive=keepalive,
            session_retention=session_retention,
            max_waiting_sessions=max_waiting_sessions,
            max_waiting_bytes=max_waiting_bytes,
            when_full=when_full,
            tls=tls,
            backlog=backlog,
            on_event=on_event,
        )
        self._server = _longconn.listen(listen(*place_to_listen(address), backlog, reuse_port), **settings)
        self._closed = False

    def settimeout(self, timeout: float | timedelta | None, /) -> None:
        """What `accept`, iteration and `messages` wait for that don't say; None, as at first: for ever."""
        if timeout is not None:
            timeout = in_seconds(timeout, "timeout")
            if not timeout >= 0:  # nor NaN
                raise ValueError(f"timeout={timeout:g}: 0 or more seconds, or None for ever")
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """What `settimeout` was told."""
        return self._timeout

    def accept(self, *, timeout: float | timedelta | EllipsisType | None = ...) -> LongConnection:
        """Wait for the next client that has finished its handshake; the connection is the caller's to close.

        Raises:
            TimeoutError: Nobody came in time.
            AlreadyClosed: The server is closed.
            RuntimeError: The server's connections come with their `messages()`.
        """
        return self._server.accept(self._timeout if timeout is ... else timeout)

    def __iter__(self) -> Iterator[LongConnection]:
        """Each connection, as it comes; ends when the server is closed."""
        while True:
            try:
                connection = self._server.accept(self._timeout)
            except AlreadyClosed:
                return
            yield connection

    def messages(
        self, *, timeout: float | timedelta | EllipsisType | None = ...
    ) -> Iterator[tuple[LongConnection, bytes]]:
        """(connection, message) of all connections, as they come; ends when the server is closed.

        Several threads may iterate at once, each over an iterator of its own. A loop that was left goes on where it was
        with the next call. A message counts as taken, for the peer's `flush`, once it is handed out.

        Raises:
            TimeoutError: Nothing came in time; from the iteration, which may go on.
            RuntimeError: The server's connections come by `accept()`.
        """
        return self._server.messages(self._timeout if timeout is ... else timeout)

    def events(self) -> Iterator[tuple[LongConnection, Event]]:
        """(connection, event) of all connections: who came, went silent, was lost, came back, ended.

        Ends when the server is closed and everyone has gone. Clients that don't finish their handshake are counted in
        `stats` only. Several iterators share the events: each goes to one. 10,000 wait for who doesn't ask; older ones
        are dropped and counted.
        """
        return self._server.events()

    def close(
        self,
        *,
        drain: float | timedelta = 10.0,
        code: int = 1,
        reason: str = "the server is closing",
        retry_after: float | timedelta = 0.0,
        come_back_to: str = "",
    ) -> None:
        """Take nobody any more, tell everyone why, and wait until they are gone.

        Args:
            drain: Seconds that peers have to take what was sent to them; then it is dropped.
            code: 1 means that the server goes away or restarts, 0 is the normal end; 4096 to 65535 are the program's
                own.
            reason: For people; at most 1024 bytes.
            retry_after: Seconds before which nobody is to come back, at most 300; clients spread themselves behind it.
            come_back_to: ``"host:port"`` of a server to come back to, for clients that were made with ``follow=True``.

        With code 1 clients come back by themselves, in a new session, with what wasn't taken: nothing is lost, and
        nothing arrives twice.
        """
        self._server.close(*closing(drain, code, reason, retry_after, come_back_to))
        self._closed = True

    def __enter__(self) -> LongServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=10.0 if error is None else 1.0)


for _value in (Broadcast, Event, LinkStats, LongServer, ServerStats, connect):
    _value.__module__ = "longconn"
