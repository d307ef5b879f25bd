"""The native module: what the Python side calls. Not for users; no promises."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextvars import Context
from datetime import timedelta
from types import EllipsisType, TracebackType
from typing import Any, Final, TypeAlias, final

from typing_extensions import disjoint_base

from .errors import Cause
from .links import Event, LinkStats
from .tls import TLSInfo

_Timeout: TypeAlias = float | timedelta | EllipsisType | None

__all__ = [
    "HAS_GUARD",
    "KEEPALIVE_COUNT",
    "KEEPALIVE_SECONDS",
    "PLATFORM",
    "AsyncConnection",
    "AsyncEvents",
    "AsyncMessages",
    "ClientSettings",
    "Clock",
    "Connection",
    "Events",
    "Handshaken",
    "Hub",
    "LongConnection",
    "Messages",
    "Proxy",
    "Server",
    "ServerSettings",
    "SocketMixin",
    "TcpInfo",
    "Ticket",
    "Visitor",
    "Waiting",
    "Watch",
    "add_fast_methods",
    "after_in_child",
    "after_in_parent",
    "apply_keepalive",
    "before_fork",
    "client_tls",
    "copy_descriptor",
    "dial",
    "dial_async",
    "ended_links",
    "has_rto_max",
    "keepalive_of",
    "listen",
    "logging_imported",
    "open_link",
    "open_plain_link",
    "pretend_no_rto_max",
    "register_at_fork",
    "rto_max_for",
    "server_tls",
    "shut_down",
    "skipped",
    "socket_kind",
    "tcp_info",
    "warn",
    "watch",
]

_Counts: TypeAlias = tuple[int, int, int, int, int]

HAS_GUARD: Final[bool]
KEEPALIVE_COUNT: Final[tuple[int, int]]
"""Least and most probes that the platform takes."""
KEEPALIVE_SECONDS: Final[tuple[int, int]]
"""Least and most whole seconds that the platform takes."""
PLATFORM: Final[str]

class SocketMixin:
    """The hot methods of KeepaliveSocket; a mixin without fields."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes: ...
    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int: ...
    def recvfrom(self, *args: Any) -> Any: ...
    def recvfrom_into(self, *args: Any, **kwargs: Any) -> Any: ...
    def recvmsg(self, *args: Any) -> Any: ...
    def recvmsg_into(self, *args: Any) -> Any: ...
    def send(self, data: Any, flags: int = 0, /) -> int: ...
    def sendall(self, data: Any, flags: int = 0, /) -> None: ...
    def sendmsg(self, *args: Any) -> Any: ...
    def sendto(self, *args: Any) -> Any: ...

@final
class TcpInfo:
    """What the kernel knows of a connection: ``struct tcp_info`` of tcp(7), with the units in the names.

    Fields that an older kernel doesn't fill in are 0. ``_us`` are microseconds, ``_ms`` milliseconds;
    counters count from the connection's beginning.
    """

    __hash__: None  # type: ignore[assignment]
    state: Final[str]
    """``ESTABLISHED``, ``CLOSE_WAIT``, ... as ss(8) and netstat(8) have it."""
    retransmits: Final[int]
    """Retransmission timeouts of the segment that is first in flight."""
    probes: Final[int]
    """Keepalive or window probes without an answer."""
    backoff: Final[int]
    """How often the retransmission or probe timer has doubled."""
    retransmission_timeout_us: Final[int]
    round_trip_us: Final[int]
    round_trip_variation_us: Final[int]
    least_round_trip_us: Final[int]
    last_data_sent_ms: Final[int]
    """Since data was sent last; likewise the next two."""
    last_data_received_ms: Final[int]
    last_ack_received_ms: Final[int]
    unacked_segments: Final[int]
    """In flight."""
    lost_segments: Final[int]
    retransmitted_segments: Final[int]
    segments_in: Final[int]
    segments_out: Final[int]
    data_segments_in: Final[int]
    data_segments_out: Final[int]
    out_of_order_segments: Final[int]
    bytes_acked: Final[int]
    bytes_received: Final[int]
    bytes_sent: Final[int]
    """With retransmissions."""
    bytes_retransmitted: Final[int]
    unsent_bytes: Final[int]
    """Accepted from the program and not sent yet."""
    send_window_bytes: Final[int]
    """What the peer lets us send."""
    receive_window_bytes: Final[int]
    congestion_window_segments: Final[int]
    send_segment_bytes: Final[int]
    receive_segment_bytes: Final[int]
    path_mtu_bytes: Final[int]
    delivery_rate_bytes_per_second: Final[int]
    def _asdict(self) -> dict[str, int | str]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...

@final
class Watch:
    """A guarded socket."""

    @property
    def conviction(self) -> tuple[str, float, float, str] | None:
        """(cause, silence, limit, judged by), seconds."""
    @property
    def is_active(self) -> bool: ...
    @property
    def looks(self) -> int: ...
    @property
    def peer(self) -> tuple[str, int] | None: ...
    @property
    def rto_max_ms(self) -> int | None: ...
    def stop(self, *, restore: bool = False) -> None: ...
    def disown(self) -> None: ...
    def look(self) -> None: ...

@disjoint_base
class Connection:
    """What a LongConnection is, whoever waits for it: threads, or the tasks of an event loop."""

    def settimeout(self, timeout: float | timedelta | None, /) -> None:
        """What calls wait for that don't say; None, as at first: for ever. 0 doesn't wait."""

    def gettimeout(self) -> float | None:
        """What `settimeout` was told, in seconds."""

    def getpeername(self) -> tuple[str, int]:
        """The peer's (host, port)."""

    def getsockname(self) -> tuple[str, int]:
        """Our own (host, port)."""

    @property
    def address(self) -> tuple[str, int]:
        """Our own (host, port)."""

    @property
    def peer_address(self) -> tuple[str, int]:
        """The peer's (host, port)."""

    @property
    def client_id(self) -> str:
        """What the client calls itself, on both sides."""

    @property
    def principal(self) -> Any:
        """What the server's ``authenticate`` returned for this client; None if that was True, and on the client."""

    @property
    def tls(self) -> TLSInfo | None:
        """What both sides agreed on; None without TLS, and while there is no connection."""

    @property
    def opened_at(self) -> float | None:
        """When its handshake was finished, or a plain peer was connected, as of ``time.time()``."""

    @property
    def state(self) -> str:
        """``open``, ``suspect`` (silent for longer than usual), ``reconnecting`` (lost, and to be made again; on a
        server: until its client comes back), ``closing`` or ``closed``."""

    @property
    def lost(self) -> Cause | None:
        """Why it ended; None while it hasn't, and while it is only to be made again."""

    @property
    def status(self) -> bytes:
        """What our beats say to the peer: at most 1024 bytes of the program's own, settable at any time."""

    @status.setter
    def status(self, status: Any) -> None: ...
    @property
    def peer_status(self) -> bytes:
        """What the peer's beats say."""

    def progress(self) -> None:
        """Tell that the program goes forward. From the first call on nothing else counts as that: a program that
        stops calling it is reported to the peer as making no progress."""

    @property
    def unacknowledged(self) -> int:
        """Messages of ours that the peer's program isn't known to have taken."""

    @property
    def undelivered(self) -> list[bytes]:
        """These messages, in order: after the end, what may be lost; a copy each time."""

    def stats(self) -> LinkStats:
        """What is measured and counted."""

    def _repr_html_(self) -> str: ...
    def shutdown(self, how: int, /) -> None:
        """As of a socket: ``SHUT_WR`` is `close` without waiting for it; to a plain peer, the end of our stream only.

        Raises:
            ValueError: SHUT_RD: a LongConnection always receives.
        """

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class LongConnection(Connection):
    """A connection of messages that both sides supervise by heartbeats; made by `longconn.connect` or a `LongServer`.

    A message is bytes, received whole or not at all, in the order in which they were sent. Any number of threads may
    use a connection. Every ``timeout`` is in seconds (int, float or timedelta): left out, it is the `settimeout()`
    value; None is for ever. An expired one is the plain ``TimeoutError``, and the connection stays usable.

    While the connection is lost and its session waits for another (``reconnecting``), calls wait, each up to its
    timeout, and `send` accepts what there is room for. Once the session is over, calls raise `SessionLost` if messages
    may not have been taken, else `PeerLost`, which says why; once the peer has closed, `PeerClosed`; what had arrived
    is received before. ``for message in connection`` ends quietly when the peer closes with code 0. In a process that
    was forked, calls raise `ForkedError`.

    With a plain peer (``framing=...``) each direction ends by itself, as TCP has it: once the peer has ended its stream
    `recv` gives ``b""``, iteration ends, and what is sent still goes out; ``shutdown(SHUT_WR)`` ends ours. What the
    peer's program does nobody knows: `flush` and `close` wait for its kernel; `ping`, `status`, `peer_status` and
    `progress` are refused with a ``TypeError``. A program that doesn't receive keeps the peer waiting: no more is read
    than 256 KiB, or one message.
    """

    def send(self, data: Any, *, timeout: float | timedelta | EllipsisType | None = ...) -> None:
        """Send one message; returns when it is accepted, which isn't yet received.

        Args:
            data: Any bytes-like object, empty ones included.
            timeout: How long to wait for room: at most 2 MiB are kept for a peer that doesn't take them, or is away.

        Raises:
            BufferFull: No room, and ``when_full="raise"``; nothing was sent.
            MessageTooLarge: The peer takes only smaller ones; nothing was sent.
            TimeoutError: No room in time; nothing was sent.
            ValueError: It isn't one line, of a plain peer that speaks lines.
            BrokenPipeError: This program has ended its stream to a plain peer by `shutdown`.
            SessionLost, PeerLost, PeerClosed, AlreadyClosed, ForkedError: The session is over.
        """

    def sendall(self, data: Any, *, timeout: float | timedelta | EllipsisType | None = ...) -> None:
        """The same as `send`, by the name that a socket has for it."""

    def send_many(self, messages: Iterable[Any], *, timeout: float | timedelta | EllipsisType | None = ...) -> int:
        """Send each message of an iterable, as `send`; the timeout is for all together.

        Returns:
            How many it were. If it raises, those before were sent.
        """

    def recv(self, *size: int, timeout: float | timedelta | EllipsisType | None = ...) -> bytes:
        """Receive one message. Received is taken, as the peer's `flush` sees it.

        Args:
            size: With ``framing="raw"`` only, where there are no messages: bytes at the most; left out, 64 KiB.
            timeout: How long to wait for it.

        Returns:
            The message; a line with its end; ``b""`` at the end of a raw stream or one of lines.

        Raises:
            TimeoutError: None came in time.
            TypeError: There are messages, and a size was given.
            ProtocolError: It was larger than allowed, or cut by the end of the stream; the connection was reset.
            SessionLost, PeerLost, PeerClosed, AlreadyClosed, ForkedError: The session is over.
        """

    def recv_many(self, max_messages: int, *, timeout: float | timedelta | EllipsisType | None = ...) -> list[bytes]:
        """Wait for one message, and receive with it those that are there, *max_messages* at the most.

        An empty list is the end of a raw stream or one of lines.
        """

    def flush(self, *, timeout: float | timedelta | EllipsisType | None = ...) -> None:
        """Wait until the peer's program took everything that was sent before, over however many connections. Taken
        isn't yet processed.

        A plain peer's program may not even have read it: its kernel has it.
        """

    def ping(self, *, timeout: float | timedelta | EllipsisType | None = ...) -> float:
        """Have the peer beat at once, and measure the round trip in seconds; its program need not do anything."""

    def wait_for(self, state: str, *, timeout: float | timedelta | EllipsisType | None = ...) -> None:
        """Wait until `state` is this.

        Raises:
            TimeoutError: It wasn't in time.
            ValueError: There is no such state.
            SessionLost, PeerLost, PeerClosed, AlreadyClosed, ForkedError: It ended instead.
        """

    def events(self) -> Iterator[Event]:
        """An iterator of `Event`: each change of state, as it comes; ends with the connection.

        Several iterators share them: each event goes to one. 64 wait for who doesn't ask; older ones are dropped.
        """

    def fileno(self) -> int:
        """A descriptor for `select` and its like: readable while `recv` would not wait.

        It isn't the TCP socket's, for the native thread may have read the message already. Don't read from it.
        """

    def close(self, code: int = 0, reason: str = "", *, timeout: float | timedelta | EllipsisType | None = ...) -> None:
        """Say goodbye once the peer's program took everything; closing again does nothing.

        Without a connection it is tried to come back for that, if something waits to be taken; else for 1 second.
        What this side hasn't received when its goodbye goes it never receives: the peer is told that it wasn't taken.

        Args:
            code: 0 is the normal end, 1 says that this side goes away or restarts; 4096 to 65535 are the program's own.
                A plain peer can't be told.
            reason: For people; at most 1024 bytes.
            timeout: Left out: the `settimeout()` value, or 10 seconds if there is none.

        Raises:
            TimeoutError: The peer had not taken everything in time; the connection is closed all the same.
            SessionLost, PeerLost, PeerClosed: It ended before the peer's program took everything, and no other call has
                said so.
        """

    def __iter__(self) -> LongConnection: ...
    def __next__(self) -> bytes: ...
    def __enter__(self) -> LongConnection: ...
    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None: ...

@final
class AsyncConnection(Connection):
    """A connection of messages that both sides supervise by heartbeats, in an event loop; made by
    `longconn.aio.connect`, or by a server of `longconn.aio.serve`.

    All is as of `longconn.LongConnection`, with verbs to be awaited, in the loop in which it was made. Any number of
    tasks may use it. Each verb returns a coroutine, which does nothing before it is awaited; cancelled, it has done
    nothing: a message that it would have given is the next call's, one that it would have sent wasn't. An expired
    ``timeout`` of a call and `asyncio.timeout` are the same in that.

    While the loop has nothing to do, or is late, longconn's own thread reads, beats and answers.
    """

    def send(self, data: Any, *, timeout: _Timeout = ...) -> Coroutine[Any, Any, None]:
        """Send one message; as of `longconn.LongConnection.send`."""

    def sendall(self, data: Any, *, timeout: _Timeout = ...) -> Coroutine[Any, Any, None]:
        """The same as `send`, by the name that a socket has for it."""

    def send_many(self, messages: Iterable[Any], *, timeout: _Timeout = ...) -> Coroutine[Any, Any, int]:
        """Send each message of an iterable, as `send`; gives how many it were. Cancelled, it has sent those before."""

    def recv(self, *size: int, timeout: _Timeout = ...) -> Coroutine[Any, Any, bytes]:
        """Receive one message; as of `longconn.LongConnection.recv`."""

    def recv_many(self, max_messages: int, *, timeout: _Timeout = ...) -> Coroutine[Any, Any, list[bytes]]:
        """Wait for one message, and receive with it those that are there, *max_messages* at the most."""

    def flush(self, *, timeout: _Timeout = ...) -> Coroutine[Any, Any, None]:
        """Wait until the peer's program took everything that was sent before."""

    def ping(self, *, timeout: _Timeout = ...) -> Coroutine[Any, Any, float]:
        """Have the peer beat at once, and measure the round trip in seconds."""

    def wait_for(self, state: str, *, timeout: _Timeout = ...) -> Coroutine[Any, Any, None]:
        """Wait until `state` is this."""

    def events(self) -> AsyncIterator[Event]:
        """An asynchronous iterator of `Event`: each change of state, as it comes; ends with the connection."""

    def close(self, code: int = 0, reason: str = "", *, timeout: _Timeout = ...) -> Coroutine[Any, Any, None]:
        """Say goodbye once the peer's program took everything; as of `longconn.LongConnection.close`.

        Cancelled meanwhile, it is being closed all the same.
        """

    def abandon(self, *, has_failed: bool) -> None:
        """Say goodbye and don't wait; a server does so for a handler that was cancelled, or has failed."""

    def __aiter__(self) -> AsyncConnection: ...
    def __anext__(self) -> Coroutine[Any, Any, bytes]: ...
    def __aenter__(self) -> Coroutine[Any, Any, AsyncConnection]: ...
    def __aexit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> Coroutine[Any, Any, None]: ...

@final
class Events:
    """An iterator of `Event`, or of pairs of a connection and an `Event`."""

    def __iter__(self) -> Events: ...
    def __next__(self) -> Any: ...

@final
class AsyncEvents:
    """An asynchronous iterator of `Event`, or of pairs of a connection and an `Event`."""

    def __aiter__(self) -> AsyncEvents: ...
    def __anext__(self) -> Coroutine[Any, Any, Any]: ...

@final
class AsyncMessages:
    """Pairs of a connection and its message, of all connections of a server."""

    def __aiter__(self) -> AsyncMessages: ...
    def __anext__(self) -> Coroutine[Any, Any, tuple[AsyncConnection, bytes]]: ...

@final
class Hub:
    """Of one event loop, which watches its descriptor and calls `run` when that is readable."""

    def __new__(cls, event_loop: asyncio.AbstractEventLoop) -> Hub: ...
    @property
    def event_loop(self) -> asyncio.AbstractEventLoop | None: ...
    def fileno(self) -> int: ...
    def run(self) -> None: ...
    def close_in_child(self) -> None: ...

@final
class Ticket:
    """What a task waits for: as much of a future as a task asks for."""

    _asyncio_future_blocking: bool
    def get_loop(self) -> asyncio.AbstractEventLoop: ...
    def add_done_callback(self, callback: Callable[[Ticket], object], /, *, context: Context | None = None) -> None: ...
    def remove_done_callback(self, _callback: Callable[[Ticket], object]) -> int: ...
    def cancel(self, msg: Any = None) -> bool: ...
    def cancelled(self) -> bool: ...
    def done(self) -> bool: ...
    def result(self) -> None: ...
    def expire(self) -> None: ...

@final
class Waiting:
    """What the verbs of an event loop's objects return: a coroutine."""

    def __await__(self) -> Waiting: ...
    def __iter__(self) -> Waiting: ...
    def __next__(self) -> Any: ...
    def send(self, _value: Any) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None, /) -> Any: ...
    def close(self) -> None: ...

@final
class Visitor:
    """A client that waits for the program's decision."""

    @property
    def introduction(self) -> tuple[str, bytes, tuple[str, int]] | None: ...
    def decide(self, answer: Any) -> None: ...
    def refuse(self, reason: str) -> None: ...

@final
class Messages:
    """Pairs of a connection and its message, of all connections of a server."""

    def __iter__(self) -> Messages: ...
    def __next__(self) -> tuple[LongConnection, bytes]: ...

@final
class Clock:
    def __new__(cls) -> Clock: ...
    @property
    def ahead(self) -> float: ...
    def close(self) -> None: ...
    def skip(self, by: float, patience: float) -> None: ...

@final
class Proxy:
    """What `longconn.testing.FaultProxy` stands on."""

    def __new__(
        cls,
        address: tuple[str, int],
        upstream: list[tuple[str, int]],
        room_bytes: int,
        seed: int,
        captured_bytes: int,
    ) -> Proxy: ...
    @property
    def address(self) -> tuple[str, int]: ...
    def set_upstream(self, upstream: list[tuple[str, int]]) -> None: ...
    def order(
        self,
        fault: tuple[str, str, list[float]],
        connection: int | None,
        share: float | None,
        after: float | None,
        detail: str,
    ) -> int | None: ...
    def cancel(self, plan: int | None) -> None: ...
    def accepted(self) -> int: ...
    def connections(self) -> list[tuple[int, tuple[str, int], bool, bool, _Counts, _Counts]]: ...
    def captured(self, connection: int, direction: str) -> bytes: ...
    def record(self) -> tuple[list[tuple[float, float, str, int | None, str | None, int, str]], int]: ...
    def now(self) -> float: ...
    def close(self) -> None: ...

@final
class Server:
    """What `LongServer` stands on."""

    @property
    def address(self) -> tuple[str, int]: ...
    def accept(self, timeout: float | timedelta | None) -> LongConnection: ...
    def messages(self, timeout: float | timedelta | None) -> Messages: ...
    def events(self) -> Events: ...
    def connections(self) -> list[LongConnection]: ...
    def broadcast(self, data: Any, closes_the_slow: bool) -> tuple[int, int, int]: ...
    def counts(self) -> dict[str, int]: ...
    def reload_tls(self, settings: ServerSettings) -> None: ...
    def close(self, drain: float, code: int, reason: str, retry_after: float, come_back_to: str) -> None: ...
    def accept_async(self) -> Coroutine[Any, Any, AsyncConnection]: ...
    def messages_async(self) -> AsyncMessages: ...
    def events_async(self) -> AsyncEvents: ...
    def next_client(self) -> Coroutine[Any, Any, Visitor]: ...
    def begin_close(self, drain: float, code: int, reason: str, retry_after: float, come_back_to: str) -> None: ...
    def wait_closed(self) -> Coroutine[Any, Any, None]: ...
    def abandon(self) -> None: ...

def open_link(
    fd: int,
    *,
    heartbeat: tuple[Any, ...],
    largest_message_bytes: int,
    client_id: str,
    token: bytes,
    timeout: float | None,
    on_event: Callable[[Event], object] | None,
    coming_back: tuple[Any, ...] | None,
    raises_when_full: bool,
    tls: ClientSettings | None,
    handshaken: Handshaken | None,
    learnt: list[tuple[str, float, float | None, int]] | None = None,
    keeper: Callable[[list[tuple[str, float, float | None, int]]], object] | None = None,
    hub: Hub | None = None,
) -> Any: ...
def dial_async(
    hub: Hub,
    places: list[tuple[str, int]],
    timeout: float | timedelta | EllipsisType | None,
    tls: ClientSettings | None,
) -> Coroutine[Any, Any, tuple[int, Handshaken | None]]: ...
def dial(
    places: list[tuple[str, int]],
    timeout: float | timedelta | EllipsisType | None,
    tls: ClientSettings | None,
) -> tuple[int, Handshaken | None]: ...
def open_plain_link(
    fd: int,
    *,
    handshaken: Handshaken | None,
    settings: tuple[Any, ...],
    on_event: Callable[[Event], object] | None,
    raises_when_full: bool,
    hub: Hub | None = None,
) -> Any: ...

@final
class ClientSettings:
    """A client's `TLS`, read and checked."""

@final
class ServerSettings:
    """A server's `TLS`, read and checked."""

@final
class Handshaken:
    """What the TLS handshake of a connection came to, for the link that is made of it."""

def client_tls(settings: tuple[Any, ...]) -> ClientSettings: ...
def server_tls(settings: tuple[Any, ...]) -> ServerSettings: ...
def listen(
    fd: int,
    *,
    heartbeat: tuple[Any, ...],
    plain: tuple[Any, ...] | None,
    largest_message_bytes: int,
    handshake_timeout: float,
    max_connections: int,
    max_connections_per_address: int,
    max_handshakes: int,
    authenticate: Callable[..., object] | None,
    on_event: Callable[[LongConnection, Event], object] | None,
    retention: float,
    max_waiting: int,
    max_waiting_bytes: int,
    raises_when_full: bool,
    tls: ServerSettings | None,
    hub: Hub | None = None,
    decides_in_loop: bool = False,
) -> Server: ...
def add_fast_methods(class_: type[SocketMixin], /) -> None:
    """Give the class, of the mixin and of `socket.socket`, bare C functions for small `recv` and `send`."""

def watch(
    fd: int,
    limit: float,
    *,
    is_owned: bool = False,
    may_be_unconnected: bool = False,
    keepalive_options: tuple[bool, float, float, int] | None = None,
    on_lost: Callable[[str, float, float, str], object] | None = None,
) -> Watch: ...
def apply_keepalive(
    fd: int,
    *,
    enabled: bool | None = None,
    idle: float | None = None,
    interval: float | None = None,
    count: int | None = None,
    user_timeout: float | None = None,
) -> None: ...
def keepalive_of(fd: int) -> tuple[bool, float, float, int, float]: ...
def socket_kind(fd: int) -> tuple[int, int, int]: ...
def ended_links() -> dict[str, int]: ...
def copy_descriptor(pid: int, fd: int) -> int: ...
def tcp_info(fd: int) -> TcpInfo: ...
def has_rto_max(fd: int) -> bool: ...
def rto_max_for(limit: float) -> float: ...
def pretend_no_rto_max(pretend: bool) -> None: ...
def skipped() -> float: ...
def warn(text: str) -> None:
    """Log a warning as ``longconn``, by way of the native queue, so that `logging` is imported only if needed."""

def register_at_fork() -> None: ...
def logging_imported() -> None: ...
def before_fork() -> None: ...
def after_in_parent() -> None: ...
def after_in_child() -> None: ...
def shut_down() -> None: ...
