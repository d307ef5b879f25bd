"""KeepaliveSocket: a drop-in for `socket.socket` that raises when the other side is gone."""

from __future__ import annotations

import _socket
import errno
import operator
import os
import socket
import sys
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import _longconn
from .errors import Cause, PeerLost, peer_lost
from .guarding import lost_by
from .keepalive import PROGRAM_OPTIONS, Keepalive, is_tcp, not_tcp, resolve, with_program_options

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KeepaliveSocket"]

_Base = socket.socket  # the stdlib's, whatever takes its place later
_family = _socket.socket.family.__get__
_kind = _socket.socket.type.__get__
_proto = _socket.socket.proto.__get__
_fileno = _socket.socket.fileno
_TIMED_OUT = frozenset((errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH))
_IN_PROGRESS = frozenset((0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR))
#: In which the guard judges, or will.
_GUARDED = frozenset(("ESTABLISHED", "CLOSE_WAIT", "SYN_SENT"))
_OPEN = _GUARDED | frozenset(("FIN_WAIT1", "FIN_WAIT2", "CLOSING", "LAST_ACK"))
#: `sendto` and `sendmsg` connect with it (TCP Fast Open, RFC 7413).
_FAST_OPEN = getattr(socket, "MSG_FASTOPEN", 0)
#: Descriptors out of which a socket is about to be made, and whose settings it is to have: accepted, duplicated.
_parents: dict[int, KeepaliveSocket] = {}
#: Made of a descriptor that another object may be about to detach: ssl wraps sockets in this way.
_adopted: weakref.WeakValueDictionary[int, KeepaliveSocket] = weakref.WeakValueDictionary()


class KeepaliveSocket(_longconn.SocketMixin, _Base):
    """A `socket.socket` that notices a dead peer and says so.

    Everything is as in the stdlib, and works for every kind of socket. On TCP sockets the kernel's keepalive
    and longconn's guard are switched on, when the socket connects, listens or is made of a descriptor. When the
    other side is gone, whoever waits in a call, or makes the next one, gets `PeerLost`, once; afterwards the
    socket behaves as after the kernel's ETIMEDOUT: ``recv`` gives ``b""``, ``send`` raises ``BrokenPipeError``.

    What the program sets itself wins: ``SO_KEEPALIVE=0`` ends the kernel's probes but not the guard,
    ``SO_KEEPALIVE=1`` keeps our timings, ``TCP_KEEPIDLE`` and the like replace them.

    Args:
        family: As for `socket.socket`; so are *type*, *proto* and *fileno*.
        keepalive: A `Keepalive`; None is the process's default (see `set_default_keepalive`), False is off.

    Raises:
        ValueError: A `Keepalive` was given for a socket that isn't TCP.
    """

    __slots__ = (
        "_keepalive_chosen",
        "_keepalive_is_given",
        "_keepalive_is_late",
        "_keepalive_lost",
        "_keepalive_settings",
        "_keepalive_watch",
    )

    _keepalive_settings: Keepalive | None
    _keepalive_is_given: bool
    """The settings are the program's word, not the default."""
    _keepalive_is_late: bool
    """They changed while it listened: connections may wait that have inherited other options."""
    _keepalive_chosen: dict[str, int] | None
    _keepalive_watch: _longconn.Watch | None
    _keepalive_lost: Cause | None

    def __init__(
        self,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
        *,
        keepalive: Keepalive | bool | None = None,
    ) -> None:
        parent = None if fileno is None else _parents.pop(fileno, None)
        if parent is None:
            self._keepalive_settings = resolve(keepalive)
            self._keepalive_chosen = None
            self._keepalive_is_late = False
        else:
            self._keepalive_settings = parent._keepalive_settings
            self._keepalive_chosen = parent._keepalive_chosen
            self._keepalive_is_late = parent._keepalive_is_late
        self._keepalive_is_given = keepalive is not None
        self._keepalive_watch = None
        self._keepalive_lost = None
        _Base.__init__(self, family, type, proto, fileno)
        if isinstance(keepalive, Keepalive) and not self._keepalive_is_tcp():
            error = not_tcp(_family(self), _kind(self), _proto(self))
            # the descriptor, if it was given, is its owner's again
            _Base.close(self) if fileno is None else _Base.detach(self)
            raise error
        if parent is not None:
            self._keepalive_open()
        elif fileno is not None:
            self._keepalive_adopt()

    # ---- what is to be done, and when

    def _keepalive_is_tcp(self) -> bool:
        return is_tcp(_family(self), _kind(self), _proto(self))

    def _keepalive_effective(self) -> Keepalive | None:
        """Our settings with what the program has chosen itself."""
        settings, chosen = self._keepalive_settings, self._keepalive_chosen
        if settings is None or not chosen:
            return settings
        return with_program_options(settings, chosen)

    def _keepalive_apply(self) -> None:
        """Sets the kernel's options, except those that the program has set itself."""
        settings = self._keepalive_settings
        if settings is None or _fileno(self) < 0 or not self._keepalive_is_tcp():
            return
        chosen = self._keepalive_chosen or {}
        wanted: dict[str, Any] = {"enabled": settings.probes, "user_timeout": settings.user_timeout}
        if settings.probes or chosen.get("enabled"):
            wanted |= {"idle": settings.idle, "interval": settings.interval, "count": settings.count}
        _longconn.apply_keepalive(
            _fileno(self), **{name: value for name, value in wanted.items() if name not in chosen}
        )

    def _keepalive_prepare(self) -> None:
        """Before `connect` and `listen`: a system that refuses an option must not keep a program from them."""
        try:
            self._keepalive_apply()
        except OSError as error:
            _longconn.warn(f"fd {_fileno(self)}: keepalive could not be set: {error}")

    def _keepalive_open(self) -> None:
        """A connection is made or being made: it is guarded from now on."""
        old = self._keepalive_watch
        if old is not None:
            old.stop()
        self._keepalive_lost = None
        self._keepalive_watch = self._keepalive_guard()

    def _keepalive_guard(self) -> _longconn.Watch | None:
        settings = self._keepalive_effective()
        if settings is None or not self._keepalive_is_tcp():
            return None
        limit = settings.guard_limit
        if limit is None or not _longconn.HAS_GUARD:
            return None
        try:
            return _longconn.watch(_fileno(self), limit, is_owned=True, may_be_unconnected=True)
        except ValueError:  # a duplicate of a listener
            pass
        except OSError as error:  # a sandbox without TCP_INFO, for one
            _longconn.warn(f"fd {_fileno(self)}: can't be guarded: {error}")
        return None

    def _keepalive_renew(self) -> None:
        """What the guard goes by has changed; it reads the kernel's options only when it begins.

        What the old one knows is kept: its verdict, and after the end of the connection whom it was with.
        """
        old = self._keepalive_watch
        if old is not None:
            old.stop(restore=True)
            if old.conviction is not None:
                return
        if self._keepalive_lost is None and self._keepalive_state() in _GUARDED:
            self._keepalive_watch = self._keepalive_guard()

    def _keepalive_state(self) -> str:
        """The connection's, if the system tells."""
        with suppress(OSError):
            if _longconn.HAS_GUARD:
                return self.tcp_info().state
        return "ESTABLISHED"

    def _keepalive_adopt(self) -> None:
        """Made of a descriptor: what it is already counts at once."""
        _adopted[_fileno(self)] = self
        if self._keepalive_settings is None or not self._keepalive_is_tcp():
            return
        state = self._keepalive_state()
        self._keepalive_is_late = state == "LISTEN"
        if state in _OPEN or state == "LISTEN":
            self._keepalive_prepare()
        if state in _OPEN:
            self._keepalive_open()

    def _keepalive_explain(self, code: int, reading: bool) -> OSError | int | None:
        """What an error, or the end of the stream (0), means. Called by the native methods.

        Returns an exception to be raised, 0 for the end of the stream, None to go on as the stdlib does.
        """
        if self._keepalive_lost is not None:
            # told already: as after the kernel's ETIMEDOUT
            return 0 if reading else BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        watch = self._keepalive_watch
        if watch is not None and code in _TIMED_OUT:
            watch.look()  # the kernel was first; the guard has seen why
        conviction = None if watch is None else watch.conviction
        error: PeerLost
        if watch is not None and conviction is not None:
            error = lost_by(watch, conviction, code if code in _TIMED_OUT else errno.ETIMEDOUT)
        elif (code not in _TIMED_OUT and code != errno.ECONNRESET) or not self._keepalive_is_tcp():
            return None
        else:
            error = peer_lost(
                code, Cause.RESET if code == errno.ECONNRESET else Cause.UNREACHABLE, **self._keepalive_last_heard(code)
            )
        self._keepalive_lost = error.cause
        if watch is not None:
            watch.stop()
        return error

    def _keepalive_last_heard(self, code: int) -> dict[str, Any]:
        """Details of a loss that the kernel has found; a dead socket still knows when it was last heard."""
        watch, settings = self._keepalive_watch, self._keepalive_effective()
        details: dict[str, Any] = {"peer": None if watch is None else watch.peer}
        try:
            info = self.tcp_info()
        except OSError:
            pass
        else:
            details["silence"] = min(info.last_ack_received_ms, info.last_data_received_ms) / 1000
        if settings is not None and code == errno.ETIMEDOUT:
            details["limit"] = settings.user_timeout or float(settings.idle + settings.interval * settings.count)
        return details

    # ---- what the program sees

    @property
    def keepalive(self) -> Keepalive | None:
        """The settings in force, with what the program has set by ``setsockopt``; None if off, or not TCP.

        Settable at any time: a `Keepalive`, None for the process's default, False for off. A live connection
        takes it over at once.
        """
        if not self._keepalive_is_tcp():
            return None
        if self._keepalive_settings is None and (self._keepalive_chosen or {}).get("enabled") and _fileno(self) >= 0:
            # off as far as we go, but the program has switched the kernel's on
            _, idle, interval, count, user_timeout = _longconn.keepalive_of(_fileno(self))
            return Keepalive(int(idle), int(interval), count, user_timeout or None, guard=False)
        return self._keepalive_effective()

    @keepalive.setter
    def keepalive(self, keepalive: Keepalive | bool | None) -> None:
        settings = resolve(keepalive)
        if not self._keepalive_is_tcp():
            if settings is not None and keepalive is not None:
                raise not_tcp(_family(self), _kind(self), _proto(self))
            self._keepalive_settings = settings
            return
        fd = _fileno(self)
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        before, chosen = self._keepalive_effective(), self._keepalive_chosen or {}
        self._keepalive_settings = settings
        self._keepalive_chosen = None
        self._keepalive_is_given = True
        user_timeout = chosen.get("user_timeout") or (before and before.user_timeout)
        if user_timeout and (settings is None or not settings.user_timeout):
            _longconn.apply_keepalive(fd, user_timeout=0)  # the system's own again
        if settings is not None:
            self._keepalive_apply()
        elif before is not None or "enabled" in chosen:
            _longconn.apply_keepalive(fd, enabled=False)
        if self._keepalive_state() == "LISTEN":
            self._keepalive_is_late = True
        else:
            self._keepalive_renew()

    @property
    def lost(self) -> Cause | None:
        """Why the other side counts as lost, once that is known; None before."""
        if self._keepalive_lost is None and self._keepalive_watch is not None:
            conviction = self._keepalive_watch.conviction
            return None if conviction is None else Cause(conviction[0])
        return self._keepalive_lost

    def tcp_info(self) -> _longconn.TcpInfo:
        """What the kernel knows of the connection (TCP_INFO, tcp(7)), as a named value with units in the names.

        Raises:
            OSError: The socket is closed, or not TCP.
        """
        fd = _fileno(self)
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return _longconn.tcp_info(fd)

    def __repr__(self) -> str:
        text = _Base.__repr__(self)
        if _fileno(self) < 0 or not self._keepalive_is_tcp():
            return text
        settings = self.keepalive
        if self.lost is not None:
            more = f"lost={self.lost}"
        elif settings is None:
            more = "keepalive=off"
        else:
            timings = f"{settings.idle}/{settings.interval}/{settings.count}"
            limit = settings.guard_limit
            more = f"keepalive={timings if settings.probes else 'off'}"
            more += ", guard=off" if limit is None else f", guard={limit:g} s"
        return f"{text[:-1]}, {more}>"

    # ---- the stdlib's methods around which something has to be done

    def _keepalive_connecting(self, call: Callable[..., Any], *args: Any) -> Any:
        self._keepalive_prepare()
        try:
            result = call(self, *args)
        except BlockingIOError:
            self._keepalive_open()
            raise
        self._keepalive_open()
        return result

    def connect(self, address: Any, /) -> None:
        self._keepalive_connecting(_Base.connect, address)

    def connect_ex(self, address: Any, /) -> int:
        self._keepalive_prepare()
        code = _Base.connect_ex(self, address)
        if code in _IN_PROGRESS:
            self._keepalive_open()
        return code

    def sendto(self, *args: Any) -> Any:
        """As `socket.socket.sendto`; a dead peer is PeerLost, once. MSG_FASTOPEN connects."""
        if len(args) == 3 and _connects(args[1]):
            return self._keepalive_connecting(_Base.sendto, *args)
        return _longconn.SocketMixin.sendto(self, *args)

    def sendmsg(self, *args: Any) -> Any:
        """As `socket.socket.sendmsg`; a dead peer is PeerLost, once. MSG_FASTOPEN connects."""
        if len(args) == 4 and _connects(args[2]):
            return self._keepalive_connecting(_Base.sendmsg, *args)
        return _longconn.SocketMixin.sendmsg(self, *args)

    def listen(self, *backlog: int) -> None:
        self._keepalive_prepare()
        _Base.listen(self, *backlog)

    def accept(self) -> tuple[KeepaliveSocket, Any]:
        """As `socket.socket.accept`; the connection is a KeepaliveSocket with this one's settings."""
        fd, address = self._accept()  # type: ignore[attr-defined]
        # Elsewhere than on Linux not all options are inherited from the listener.
        if (self._keepalive_is_late or sys.platform != "linux") and self._keepalive_is_tcp():
            with suppress(OSError, ValueError):  # another thread has closed the listener
                _longconn.apply_keepalive(fd, **_options(_fileno(self)))
        _parents[fd] = self
        sock = KeepaliveSocket(_family(self), _kind(self), _proto(self), fd)
        # as the stdlib: a listener's timeout must not leave the new socket non-blocking (bpo-7995)
        if socket.getdefaulttimeout() is None and self.gettimeout():
            sock.setblocking(True)
        return sock, address

    def setsockopt(self, level: int, optname: int, value: Any, *optlen: int) -> None:
        _Base.setsockopt(self, level, optname, value, *optlen)
        name = PROGRAM_OPTIONS.get((level, optname))
        if name is not None and self._keepalive_is_tcp():
            # not what was said, for that has many forms, but what the kernel has made of it
            self._keepalive_choose(name, self.getsockopt(level, optname))

    def _keepalive_choose(self, name: str, value: int) -> None:
        """The program has set one of our options itself."""
        before = self._keepalive_effective()
        self._keepalive_chosen = {**(self._keepalive_chosen or {}), name: value}
        after = self._keepalive_effective()
        if self._keepalive_state() == "LISTEN":
            self._keepalive_is_late = True
        if before is None or after is None:
            return
        if after.probes and not before.probes:
            self._keepalive_prepare()
        if before.replace(user_timeout=None) != after.replace(user_timeout=None):
            self._keepalive_renew()

    def dup(self) -> KeepaliveSocket:
        """As `socket.socket.dup`; it is the same connection, with the same settings."""
        fd = _socket.dup(_fileno(self))
        _parents[fd] = self
        try:
            sock = self.__class__(_family(self), _kind(self), _proto(self), fileno=fd)
        except BaseException:
            _parents.pop(fd, None)
            raise
        sock.settimeout(self.gettimeout())
        return sock

    def detach(self) -> int:
        """As `socket.socket.detach`; what keeps the connection alive and guarded stays on the descriptor."""
        fd = _fileno(self)
        if fd >= 0 and self._keepalive_is_tcp():
            heir = _adopted.get(fd)
            if heir is not None and heir is not self and _fileno(heir) == fd:
                if self._keepalive_watch is not None:
                    self._keepalive_watch.stop(restore=True)
                heir._keepalive_take_over(self)
            elif self._keepalive_settings is not None:
                self._keepalive_leave(fd)
            self._keepalive_watch = None
        return _Base.detach(self)

    def _keepalive_take_over(self, other: KeepaliveSocket) -> None:
        """This object was made of the other's descriptor, as ssl does: without settings of its own it has those."""
        settings, chosen = other._keepalive_settings, other._keepalive_chosen
        if not self._keepalive_is_given and (self._keepalive_settings != settings or chosen):
            before, self._keepalive_settings, self._keepalive_chosen = self._keepalive_settings, settings, chosen
            if before is not None:
                # what the default has overwritten
                blank = _socket.socket()
                try:
                    wanted = _options(blank.fileno())
                finally:
                    blank.close()
                _longconn.apply_keepalive(_fileno(self), **wanted)
                for option, name in PROGRAM_OPTIONS.items():
                    if chosen and name in chosen:
                        _Base.setsockopt(self, *option, chosen[name])
            self._keepalive_prepare()
        self._keepalive_renew()

    def _keepalive_leave(self, fd: int) -> None:
        """Somebody else will use the descriptor."""
        if self._keepalive_watch is not None:
            self._keepalive_watch.disown()
            return
        settings = self._keepalive_effective()
        limit = None if settings is None or not _longconn.HAS_GUARD else settings.guard_limit
        # the number may have been closed behind our back; detach() doesn't ask either
        with suppress(OSError):
            self._keepalive_apply()
            if limit is not None and self._keepalive_lost is None and self.tcp_info().state != "LISTEN":
                _longconn.watch(fd, limit, may_be_unconnected=True)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        try:
            return _Base.sendfile(self, file, offset, count)
        except PeerLost:
            raise
        except OSError as error:
            # where os.sendfile failed first, the stdlib has tried send() after it, whose error says less
            given_up = getattr(error.__context__, "args", ())
            first = given_up[0] if given_up and isinstance(given_up[0], OSError) else error
            explained = self._keepalive_explain(first.errno, False) if first.errno else None
            if isinstance(explained, OSError):
                raise explained from None
            raise

    def _real_close(self, *args: Any) -> None:
        watch = self._keepalive_watch
        if watch is not None:
            watch.stop()
        _Base._real_close(self, *args)  # type: ignore[attr-defined]


def _connects(flags: Any) -> bool:
    try:
        return operator.index(flags) & _FAST_OPEN != 0
    except TypeError:  # the stdlib's method will say so
        return False


def _options(fd: int) -> dict[str, Any]:
    """What a descriptor has in the kernel, as `apply_keepalive` takes it."""
    names = ("enabled", "idle", "interval", "count", "user_timeout")
    return dict(zip(names, _longconn.keepalive_of(fd), strict=True))


_longconn.add_fast_methods(KeepaliveSocket)
KeepaliveSocket.__module__ = "longconn"
