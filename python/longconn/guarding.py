"""The guard, for anybody's TCP socket: a handle that says what it did and what it found."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Literal

from . import _longconn
from .errors import Cause, PeerLost, peer_lost
from .keepalive import (
    DetectionTime,
    Keepalive,
    check_limit,
    check_tcp,
    default_keepalive,
    detection_time,
    has_rto_max,
)

__all__ = ["Guard", "guard"]


def descriptor(sock_or_fd: Any) -> int:
    """The descriptor of a socket, a transport, or a number."""
    # asyncio's writers and transports
    extra = getattr(sock_or_fd, "get_extra_info", None)
    if extra is not None:
        sock_or_fd = extra("socket") or sock_or_fd
    if isinstance(sock_or_fd, int) and not isinstance(sock_or_fd, bool):
        fd = sock_or_fd
    elif hasattr(sock_or_fd, "fileno"):
        fd = sock_or_fd.fileno()
    else:
        raise TypeError(f"a socket or a file descriptor, not {type(sock_or_fd).__name__}")
    if fd < 0:
        raise ValueError("the socket is closed")
    return fd


def keepalive_for(limit: float) -> tuple[int, int, int]:
    """Idle and interval with which an idle path is convicted `limit` after the first probe; and count."""
    quarter = max(1, min(int(limit / 4), _longconn.KEEPALIVE_SECONDS[1]))
    return quarter, quarter, min(-int(-limit // quarter), _longconn.KEEPALIVE_COUNT[1])


class Guard:
    """The guard of one socket; made by `guard`.

    Attributes:
        limit: Seconds without an answer after which the path counts as dead.
        applied: Options that were set on the socket, by name; `stop` puts them back.
        notes: What the guard can't do here, in words.
    """

    def __init__(
        self,
        fd: int,
        limit: float,
        keepalive: Keepalive | Literal[False] | None,
        on_lost: Callable[[PeerLost], object] | None,
    ) -> None:
        self.limit = limit
        self.applied: dict[str, float] = {}
        self.notes: tuple[str, ...] = ()
        self._probes, ours = self._choose_probes(fd, keepalive)
        options = (True, *self._probes) if ours and self._probes is not None else None
        self._watch = _longconn.watch(
            fd, limit, keepalive_options=options, on_lost=None if on_lost is None else self._told(on_lost)
        )
        self._fd = fd
        if options is not None:
            names = ("SO_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
            now = _longconn.keepalive_of(fd)[:4]
            self.applied.update(zip(names, (int(option) for option in now), strict=True))
        if self._watch.rto_max_ms is not None:
            self.applied["TCP_RTO_MAX_MS"] = self._watch.rto_max_ms
        if not has_rto_max():
            self.notes += ("this kernel has no TCP_RTO_MAX_MS: a dead path behind a slow reader is seen late",)

    def _choose_probes(
        self, fd: int, keepalive: Keepalive | Literal[False] | None
    ) -> tuple[tuple[float, float, int] | None, bool]:
        """The kernel's probes (idle, interval, count), and whether it is for us to set them."""
        enabled, idle, interval, count, _ = _longconn.keepalive_of(fd)
        if keepalive is False or (isinstance(keepalive, Keepalive) and not keepalive.probes):
            if not enabled:
                self.notes += ("keepalive is left off: a dead path isn't seen while nothing is in flight",)
            return (idle, interval, count) if enabled else None, False
        if isinstance(keepalive, Keepalive):
            return (keepalive.idle, keepalive.interval, keepalive.count), True
        wanted = keepalive_for(self.limit)
        # the program's own timings stay where they are quick enough
        if enabled and idle <= wanted[0] and interval <= wanted[1]:
            return (idle, interval, count), False
        return wanted, True

    def _told(self, on_lost: Callable[[PeerLost], object]) -> Callable[..., object]:
        def call(cause: str, silence: float, limit: float, judged: str) -> object:
            return on_lost(lost_by(self._watch, (cause, silence, limit, judged)))

        return call

    @property
    def lost(self) -> Cause | None:
        """Why the path was convicted; None while it wasn't."""
        error = self.error
        return None if error is None else error.cause

    @property
    def error(self) -> PeerLost | None:
        """What `lost` says, as an exception with all details; None while the path wasn't convicted."""
        if self._watch.conviction is None:
            self._watch.look()  # the kernel may have given up since the last look, and the caller knows
        conviction = self._watch.conviction
        return None if conviction is None else lost_by(self._watch, conviction)

    @property
    def active(self) -> bool:
        """False once it was stopped, has convicted, or has found the socket closed."""
        return self._watch.is_active

    @property
    def looks(self) -> int:
        """How often the guard has looked at the socket."""
        return self._watch.looks

    @property
    def peer(self) -> tuple[str, int] | None:
        """The other side's address."""
        return self._watch.peer

    def detection_time(self) -> DetectionTime:
        """Upper bounds in seconds, per case, with this guard and the socket's keepalive."""
        return detection_time(self.limit, probes=self._probes)

    def stop(self) -> None:
        """End the guard and put back the options that it set, unless they were changed since."""
        self._watch.stop(restore=True)

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"lost: {self.lost}" if self.lost else "active" if self.active else "stopped"
        return f"<longconn.Guard fd={self._fd}, limit={self.limit:g} s, {state}>"


def lost_by(watch: _longconn.Watch, conviction: tuple[str, float, float, str], code: int = errno.ETIMEDOUT) -> PeerLost:
    """A conviction as an exception."""
    cause, silence, limit, _ = conviction
    return peer_lost(code, Cause(cause), silence=silence, limit=limit, peer=watch.peer)


def guard(
    sock_or_fd: Any,
    *,
    limit: float | None = None,
    keepalive: Keepalive | Literal[False] | None = None,
    on_lost: Callable[[PeerLost], object] | None = None,
) -> Guard:
    """Watch any connected TCP socket natively, and abort its connection when the path is dead.

    What no socket option sees is seen: data in flight, and a peer whose window is closed; a living peer that
    reads slowly is never convicted. The program finds its blocked and later calls failing with
    ``ConnectionResetError`` or ``BrokenPipeError``, the peer, should it be reached, gets RST. The descriptor
    stays its owner's: once it is closed, the guard ends, whatever gets its number.

    Args:
        sock_or_fd: A socket, a descriptor, an asyncio transport or writer; anybody's.
        limit: Seconds without an answer, 0.5 to 604800. Default: the guard's limit of *keepalive*, or of the
            process's default.
        keepalive: With nothing in flight only the kernel's probes can be answered or not. None: they are
            switched on as *limit* needs, unless the socket has quicker ones. A Keepalive: its timings, with one
            probe more, so that the guard comes before the kernel, for it can say why. False: left alone; if they
            are off, an idle path isn't seen.
        on_lost: Called with the `PeerLost`, on a thread of longconn's own.

    Returns:
        A handle and context manager; the guard goes on without it, until the socket is closed.

    Raises:
        ValueError: The socket is closed, not connected, or not TCP; it is left untouched.
        OSError: The system refused; ``errno`` is kept.
        NotImplementedError: There is no guard for this platform.
    """
    if not _longconn.HAS_GUARD:
        raise NotImplementedError(f"the guard isn't available on {_longconn.PLATFORM}")
    if keepalive is not None and keepalive is not False and not isinstance(keepalive, Keepalive):
        raise TypeError(f"keepalive: a Keepalive, None (as needed) or False, not {type(keepalive).__name__}")
    if on_lost is not None and not callable(on_lost):
        raise TypeError(f"on_lost: a callable, not {type(on_lost).__name__}")
    fd = descriptor(sock_or_fd)
    check_tcp(fd)
    if limit is None:
        settings = keepalive if isinstance(keepalive, Keepalive) else default_keepalive() or Keepalive()
        limit = settings.guard_limit or Keepalive().guard_limit
    assert limit is not None
    return Guard(fd, check_limit(limit), keepalive, on_lost)
