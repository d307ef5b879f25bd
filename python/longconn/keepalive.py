"""Keepalive: what to ask of the kernel and of the guard, as an immutable value, and what comes of it."""

from __future__ import annotations

import _socket
import math
import os
import socket
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from . import _longconn

if TYPE_CHECKING:
    from datetime import timedelta

    from .keepalive_socket import KeepaliveSocket

__all__ = [
    "Applied",
    "DetectionTime",
    "Keepalive",
    "default_keepalive",
    "set_default_keepalive",
]

VARIABLE = "LONGCONN_KEEPALIVE"
_GUARD_LIMITS = (0.5, 7 * 86400.0)
_USER_TIMEOUT = (0.001, 2_147_483.647)  # milliseconds in an int
# What the kernel's own timers add when they fire, measured on idle connections: 30 to 100 ms.
_TIMER_SLACK = 0.1
# TCP_USER_TIMEOUT counts from the first retransmission, as measured.
_USER_TIMEOUT_LATE = 0.42
_RTO_FIRST, _RTO_MAX = 0.2, 120.0
_OPTIONS = {
    "enabled": (socket.SOL_SOCKET, "SO_KEEPALIVE"),
    "idle": (socket.IPPROTO_TCP, "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"),
    "interval": (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
    "count": (socket.IPPROTO_TCP, "TCP_KEEPCNT"),
    # macOS has the second, in whole seconds
    "user_timeout": (socket.IPPROTO_TCP, "TCP_RXT_CONNDROPTIME" if sys.platform == "darwin" else "TCP_USER_TIMEOUT"),
}
#: What a program may set by itself: (level, option) -> our name for it.
PROGRAM_OPTIONS: dict[tuple[int, int], str] = {
    (level, getattr(socket, option)): name for name, (level, option) in _OPTIONS.items() if hasattr(socket, option)
}


class DetectionTime(NamedTuple):
    """Seconds until a program is told that the path is dead; None is never.

    They are upper bounds for this platform, counted from the moment of the cut. A *living* peer is never
    reported, however slowly it reads, unless ``user_timeout`` is set.
    """

    idle: float | None
    """Nothing in flight when the cable is pulled."""
    in_flight: float | None
    """Something of ours unacknowledged."""
    slow_reader: float | None
    """The peer's window was closed, because it reads slowly."""
    connecting: float | None
    """The kernel's attempts to connect to somebody who doesn't answer; ``settimeout()`` ends them sooner."""


class Applied(NamedTuple):
    """What became of the settings on a socket, by the names of the options."""

    applied: dict[str, float]
    """Set in the kernel; durations in seconds."""
    emulated: dict[str, float]
    """Done natively by longconn where the system has no option for it: the guard's limit in seconds."""
    refused: dict[str, str]
    """Not done, and why."""


def in_seconds(value: object, name: str) -> float:
    if hasattr(value, "total_seconds"):  # a timedelta, without the import
        return float(value.total_seconds())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: seconds as int, float or timedelta, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.inf  # out of every range


def _whole_seconds(value: object, name: str) -> int:
    seconds = in_seconds(value, name)
    least, most = _longconn.KEEPALIVE_SECONDS
    # NaN is neither, infinity is over
    if not least <= seconds <= most or seconds != int(seconds):
        raise ValueError(f"{name}={seconds:g}: {_longconn.PLATFORM} takes whole seconds from {least} to {most}")
    return int(seconds)


class Keepalive:
    """How soon a dead peer is noticed: the kernel's keepalive, and the guard that sees what it can't.

    Args:
        idle: Quiet time in seconds before the kernel's first probe (TCP_KEEPIDLE, tcp(7)); whole seconds from
            1 to 32767 on Linux. int, float or timedelta.
        interval: Seconds between probes (TCP_KEEPINTVL), same range.
        count: Probes without answer before the kernel gives up (TCP_KEEPCNT), 1 to 127 on Linux.
        user_timeout: TCP_USER_TIMEOUT (RFC 5482) in seconds; None, the default, leaves it alone. It replaces
            `count`, and kills living peers that read slowly: the guard does better. On macOS it is
            TCP_RXT_CONNDROPTIME, up to the next whole second, which does neither.
        guard: True: the guard's limit is ``idle + interval * count`` seconds. A number: the limit in seconds,
            0.5 to 604800. False: no guard; data in flight and slow readers then hide a dead path for minutes.
        probes: False keeps the kernel from probing (SO_KEEPALIVE off): an idle path is then never seen.

    Raises:
        ValueError: A value is out of the platform's range.
        TypeError: Not a number.
    """

    # Not a dataclass: importing that module takes as long as everything else here together.
    __slots__ = ("count", "guard", "idle", "interval", "probes", "user_timeout")
    __match_args__ = ("idle", "interval", "count", "user_timeout", "guard", "probes")

    idle: int
    interval: int
    count: int
    user_timeout: float | None
    guard: bool | float
    probes: bool

    def __init__(
        self,
        idle: float | timedelta = 15,
        interval: float | timedelta = 5,
        count: int = 3,
        user_timeout: float | timedelta | None = None,
        guard: bool | float | timedelta = True,
        probes: bool = True,
    ) -> None:
        set_ = super().__setattr__
        set_("idle", _whole_seconds(idle, "idle"))
        set_("interval", _whole_seconds(interval, "interval"))
        least, most = _longconn.KEEPALIVE_COUNT
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"count: a whole number, not {type(count).__name__}")
        if not least <= count <= most:
            raise ValueError(f"count={count}: {_longconn.PLATFORM} takes {least} to {most} probes")
        set_("count", count)
        if user_timeout is not None:
            user_timeout = in_seconds(user_timeout, "user_timeout")
            if not _USER_TIMEOUT[0] <= user_timeout <= _USER_TIMEOUT[1]:
                allowed = "{} s to {} s".format(*_USER_TIMEOUT)
                raise ValueError(f"user_timeout={user_timeout:g}: {_longconn.PLATFORM} takes {allowed}")
        set_("user_timeout", user_timeout)
        if not isinstance(probes, bool):
            raise TypeError(f"probes: True or False, not {type(probes).__name__}")
        set_("probes", probes)
        set_("guard", guard if isinstance(guard, bool) else check_limit(guard))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Keepalive doesn't change: make another, with replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Keepalive doesn't change")

    def __reduce__(self) -> tuple[object, ...]:
        return Keepalive, tuple(getattr(self, name) for name in self.__match_args__)

    def replace(self, **changes: Any) -> Keepalive:
        """The same settings but for these."""
        return Keepalive(**{**{name: getattr(self, name) for name in self.__match_args__}, **changes})

    __replace__ = replace  # for copy.replace of Python 3.13

    def _key(self) -> tuple[object, ...]:
        # True equals 1.0, and isn't a limit of one second
        return *(getattr(self, name) for name in self.__match_args__), self.guard is True

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Keepalive) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    @classmethod
    def parse(cls, text: str) -> Keepalive | None:
        """Read ``IDLE,INTERVAL,COUNT`` or ``IDLE,INTERVAL,COUNT,GUARD`` (seconds or ``off``); ``off`` is None."""
        if not isinstance(text, str):
            raise TypeError(f"text: a str as '60,10,6', not {type(text).__name__}")
        if text.strip().lower() == "off":
            return None
        parts = [part.strip() for part in text.split(",")]
        if not 3 <= len(parts) <= 4:
            raise ValueError(f"{text!r}: expected IDLE,INTERVAL,COUNT[,GUARD] as in 60,10,6 or 60,10,6,30, or off")
        try:
            idle, interval = float(parts[0]), float(parts[1])
            count = int(parts[2])
            guard: bool | float = True
            if len(parts) == 4:
                guard = False if parts[3].lower() == "off" else float(parts[3])
        except ValueError:
            raise ValueError(f"{text!r}: expected numbers, IDLE,INTERVAL,COUNT[,GUARD] as in 60,10,6") from None
        return cls(idle, interval, count, guard=guard)

    # ---- presets

    @classmethod
    def quick(cls) -> Keepalive:
        """For a local network: told within about 5 s. A pause of the path of 5 s ends the connection."""
        return cls(idle=2, interval=1, count=3)

    @classmethod
    def patient(cls) -> Keepalive:
        """For paths that fail for a while and come back: told within about 2 minutes."""
        return cls(idle=30, interval=15, count=6)

    @classmethod
    def nat(cls, forgets_after: float) -> Keepalive:
        """Keep a path open through a middlebox that forgets idle connections.

        A probe goes out after half of the time, and two more fit in before it is over, should one be lost. Data
        in flight is guarded with 30 s all the same.

        Args:
            forgets_after: Seconds of silence after which it forgets: 350 for AWS load balancers and NAT
                gateways, 240 for Azure, 60 for nginx, often 30 to 300 at home.
        """
        seconds = in_seconds(forgets_after, "forgets_after")
        if not 4 <= seconds <= 65534:
            raise ValueError(f"forgets_after={seconds:g}: 4 to 65534 seconds")
        return cls(idle=int(seconds // 2), interval=max(1, int(seconds // 8)), count=3, guard=30)

    # ---- what comes of it

    @property
    def guard_limit(self) -> float | None:
        """The guard's limit in seconds; None if it is off."""
        if self.guard is True:
            return float(self.idle + self.interval * self.count)
        return None if self.guard is False else float(self.guard)

    def detection_time(self) -> DetectionTime:
        """Upper bounds in seconds, per case, for this platform and kernel."""
        limit = self.guard_limit if _longconn.HAS_GUARD else None
        return detection_time(
            limit,
            probes=(self.idle, self.interval, self.count) if self.probes else None,
            user_timeout=self.user_timeout,
        )

    def warnings(self) -> tuple[str, ...]:
        """What these settings don't do, though they seem to; one sentence each."""
        found = []
        limit = self.guard_limit
        kernel = self.idle + self.interval * self.count
        if limit is None and self.user_timeout is None:
            found.append(
                "keepalive is suspended while data is in flight: a cut is then seen only by the kernel's "
                "retransmission limit (tcp_retries2, about 15 minutes); switch the guard on"
            )
        if self.user_timeout is not None:
            found.append(
                f"user_timeout={self.user_timeout:g} kills a living peer that reads slowly: a closed window "
                "counts as unacknowledged; the guard tells it from a dead path"
            )
            if self.probes and abs(self.user_timeout - kernel) > 0.5:
                found.append(
                    f"user_timeout={self.user_timeout:g} replaces count on an idle connection: the consistent "
                    f"value is idle + interval * count = {kernel}"
                )
            if not self.probes:
                found.append("user_timeout does nothing on an idle connection without keepalive probes")
        if not self.probes:
            found.append("no probes: with nothing in flight a dead path is never seen, by the guard neither")
        if limit is not None and limit < 2 * self.interval and self.probes:
            found.append(
                f"the guard's limit of {limit:g} s is shorter than two probe intervals: an idle path is "
                f"convicted only after three unanswered probes, {self.idle + 2 * self.interval} s after the cut"
            )
        if self.count == 1:
            found.append("count=1: a single lost packet ends an idle connection")
        if self.probes and self.idle > 240:
            found.append(
                f"idle={self.idle}: middleboxes forget sooner (AWS after 350 s, Azure after 240 s, many homes "
                "after less); see Keepalive.nat()"
            )
        if limit is not None and _longconn.HAS_GUARD and not has_rto_max():
            found.append(
                "this kernel has no TCP_RTO_MAX_MS (Linux 6.15): a dead path behind a slow reader is seen only "
                "when the kernel probes the window again, up to 2 minutes later"
            )
        if limit is not None and not _longconn.HAS_GUARD:
            found.append(f"the guard isn't available on {_longconn.PLATFORM}: only the kernel's keepalive works")
        return tuple(found)

    def apply(self, sock_or_fd: Any) -> Applied:
        """Set all this on any connected or unconnected TCP socket.

        A KeepaliveSocket takes it as its ``keepalive``. On any other socket the kernel's options are set, and
        a guard is begun if it is connected (`longconn.guard` gives a handle of it).

        Raises:
            ValueError: Not a TCP socket, or closed; it is left untouched.
        """
        from .guarding import descriptor, guard
        from .keepalive_socket import KeepaliveSocket

        fd = descriptor(sock_or_fd)
        check_tcp(fd)
        if isinstance(sock_or_fd, KeepaliveSocket):
            sock_or_fd.keepalive = self
        done = Applied({}, {}, {})
        wanted: dict[str, float | None] = {"enabled": self.probes, "user_timeout": self.user_timeout}
        if self.probes:
            wanted |= {"idle": self.idle, "interval": self.interval, "count": self.count}
        for name, value in wanted.items():
            if value is None:
                continue
            option = _OPTIONS[name][1]
            try:
                _longconn.apply_keepalive(fd, **{name: value})  # type: ignore[arg-type]
            except OSError as error:
                done.refused[option] = error.strerror or str(error)
            else:
                done.applied[option] = int(value) if isinstance(value, bool) else value
        limit = self.guard_limit
        if limit is None:
            return done
        if isinstance(sock_or_fd, KeepaliveSocket) and _longconn.HAS_GUARD:
            done.emulated["guard"] = limit
            return done
        try:
            guard(fd, limit=limit, keepalive=False)
        except (OSError, ValueError, NotImplementedError) as error:
            done.refused["guard"] = str(error)
        else:
            done.emulated["guard"] = limit
        return done

    # ---- in the forms that others take

    @property
    def socket_options(self) -> list[tuple[int, int, int]]:
        """As urllib3 and httpx (``HTTPTransport(socket_options=...)``) take them: (level, name, value).

        The guard isn't an option of the kernel's and isn't in here. aiohttp takes a `socket_factory` instead.
        """
        values: dict[str, float | None] = {"enabled": int(self.probes)}
        if self.probes:
            values |= {"idle": self.idle, "interval": self.interval, "count": self.count}
        if self.user_timeout is not None:
            values["user_timeout"] = round(self.user_timeout * 1000)
        codes = {name: code for code, name in PROGRAM_OPTIONS.items()}
        return [(*codes[name], int(value)) for name, value in values.items() if value is not None and name in codes]

    def socket_factory(self, addr_info: tuple[Any, ...], /) -> KeepaliveSocket:
        """A KeepaliveSocket with these settings, as ``aiohttp.TCPConnector(socket_factory=...)`` makes its sockets.

        Args:
            addr_info: What ``getaddrinfo`` gives: family, type, protocol and more.

        Returns:
            A non-blocking socket that isn't connected yet; unlike `socket_options` it has the guard too.
        """
        from .keepalive_socket import KeepaliveSocket

        sock = KeepaliveSocket(*addr_info[:3], keepalive=self)
        sock.setblocking(False)
        return sock

    def redis_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for ``redis.Redis``."""
        timings = {name: value for level, name, value in self.socket_options if level == socket.IPPROTO_TCP}
        return {"socket_keepalive": self.probes, "socket_keepalive_options": timings}

    def libpq_kwargs(self) -> dict[str, int]:
        """Keyword arguments for ``psycopg.connect`` and anything else on libpq."""
        kwargs = {
            "keepalives": int(self.probes),
            "keepalives_idle": int(self.idle),
            "keepalives_interval": int(self.interval),
            "keepalives_count": self.count,
        }
        if self.user_timeout is not None:
            kwargs["tcp_user_timeout"] = round(self.user_timeout * 1000)
        return kwargs

    def __repr__(self) -> str:
        # identity: a guard of 1 s equals True
        defaults = {"user_timeout": None, "guard": True, "probes": True}
        changed = [
            f", {name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name) is not default
        ]
        return f"Keepalive({self.idle}, {self.interval}, {self.count}{''.join(changed)})"

    def _repr_html_(self) -> str:
        from . import pictures

        return pictures.keepalive(self)


def check_limit(limit: object) -> float:
    """The guard's limit in seconds, in range."""
    seconds = in_seconds(limit, "guard")
    least, most = _GUARD_LIMITS
    if not least <= seconds <= most:
        raise ValueError(f"guard={seconds:g}: a limit from {least} to {most:.0f} seconds, True or False")
    return seconds


def check_tcp(fd: int) -> None:
    """Refuse what isn't TCP, by name."""
    what = _longconn.socket_kind(fd)
    if not is_tcp(*what):
        raise not_tcp(*what)


def not_tcp(family: int, kind: int, protocol: int) -> ValueError:
    """What is to be raised for such a socket."""
    if family == getattr(socket, "AF_UNIX", None):
        what = "Unix"
    elif family in (socket.AF_INET, socket.AF_INET6) and kind == socket.SOCK_DGRAM:
        what = "UDP"
    else:
        what = f"family {family}, type {kind}, protocol {protocol}"
    return ValueError(f"keepalive and the guard apply to TCP; this socket is {what}")


def is_tcp(family: int, kind: int, protocol: int) -> bool:
    return (
        (family == socket.AF_INET or family == socket.AF_INET6)
        and kind == socket.SOCK_STREAM
        and (protocol == 0 or protocol == socket.IPPROTO_TCP)
    )


# ---- how long things take ----------------------------------------------------------------------------------


@cache
def has_rto_max() -> bool:
    """Whether this kernel has TCP_RTO_MAX_MS (Linux 6.15)."""
    if not _longconn.HAS_GUARD:
        return False
    probe = _socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        return _longconn.has_rto_max(probe.fileno())
    finally:
        probe.close()


def _sysctl(name: str, otherwise: int) -> int:
    try:
        with open(f"/proc/sys/net/ipv4/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return otherwise


def _doubling(first: float, times: int, most: float) -> float:
    return sum(min(first * 2.0**n, most) for n in range(times))


def _connecting(user_timeout: float | None) -> float | None:
    if _longconn.PLATFORM != "Linux":
        return user_timeout
    # The first so many come a second apart (tcp_syn_linear_timeouts, Linux 6.5), then doubling.
    linear = _sysctl("tcp_syn_linear_timeouts", 0)
    retries = _sysctl("tcp_syn_retries", 6)
    kernel = linear + _doubling(1.0, retries + 1, _RTO_MAX)
    return kernel if user_timeout is None else min(kernel, user_timeout + 1)


def detection_time(
    limit: float | None,
    *,
    probes: tuple[float, float, int] | None,
    user_timeout: float | None = None,
) -> DetectionTime:
    """The table behind `Keepalive.detection_time` and `Guard.detection_time`.

    *limit* is the guard's, None without one; *probes* is (idle, interval, count), None if the kernel sends none.
    """
    bounded = limit is not None and has_rto_max()
    rto_max = _longconn.rto_max_for(limit) if limit is not None and bounded else _RTO_MAX
    look = 0.0 if limit is None else limit / 8
    idle: list[float] = []
    if probes is not None:
        first, interval, count = probes
        if user_timeout is None:
            idle.append(first + interval * count + _TIMER_SLACK)
        else:
            late = max(1, math.ceil((user_timeout - first) / interval))
            idle.append(first + interval * late + _TIMER_SLACK)
        if limit is not None:
            # three probes at least, and `limit` from the first that is seen to be unanswered
            idle.append(first + max(limit, 2 * interval) + look)
    retries = _sysctl("tcp_retries2", 15)
    kernel = _doubling(_RTO_FIRST, retries + 1, rto_max)
    in_flight, slow = [kernel], [kernel + rto_max]
    if user_timeout is not None:
        in_flight.append(user_timeout + _USER_TIMEOUT_LATE)
        slow.append(user_timeout + _USER_TIMEOUT_LATE)
    if limit is not None:
        in_flight.append(max(limit, _doubling(_RTO_FIRST, 2, rto_max)) + look)
        slow.append(rto_max + max(limit, 2 * rto_max) + look)
    return DetectionTime(
        idle=min(idle, default=None),
        in_flight=min(in_flight),
        slow_reader=min(slow),
        connecting=_connecting(user_timeout),
    )


# ---- the process's default -----------------------------------------------------------------------------------


#: None is off; read from the environment at the first use, so that a bad value there stops nobody from importing this.
_default: Keepalive | Literal["unread"] | None = "unread"


def _default_from_environment() -> Keepalive | None:
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return Keepalive()
    try:
        return Keepalive.parse(text)
    except ValueError as error:
        raise ValueError(f"environment variable {VARIABLE}: {error}") from None


def default_keepalive() -> Keepalive | None:
    """What sockets get that are made with ``keepalive=None``; None is off.

    Raises:
        ValueError: The environment variable ``LONGCONN_KEEPALIVE`` is to be the default and makes no sense.
    """
    global _default
    if isinstance(_default, str):
        _default = _default_from_environment()
    return _default


def set_default_keepalive(keepalive: Keepalive | bool | None) -> None:
    """Set what sockets get that are made from now on with ``keepalive=None``.

    Args:
        keepalive: The settings; False for off; True or None for what it is at first: the environment variable
            ``LONGCONN_KEEPALIVE`` (``IDLE,INTERVAL,COUNT[,GUARD]`` or ``off``), else ``Keepalive()``.
    """
    global _default
    _default = _default_from_environment() if keepalive is None or keepalive is True else resolve(keepalive)


def resolve(keepalive: Keepalive | bool | None) -> Keepalive | None:
    """What a parameter ``keepalive`` means: None is the default, False is off (None here)."""
    if keepalive is None or keepalive is True:
        return default_keepalive()
    if keepalive is False:
        return None
    if not isinstance(keepalive, Keepalive):
        raise TypeError(f"keepalive: a Keepalive, None (the default) or False (off), not {type(keepalive).__name__}")
    return keepalive


def with_program_options(settings: Keepalive, chosen: dict[str, int]) -> Keepalive:
    """*settings* with what the program has set itself, which wins."""
    changes: dict[str, Any] = {name: value for name, value in chosen.items() if name in ("idle", "interval", "count")}
    if "user_timeout" in chosen:
        changes["user_timeout"] = chosen["user_timeout"] / 1000 or None
    if "enabled" in chosen:
        changes["probes"] = bool(chosen["enabled"])
    return settings.replace(**changes)
