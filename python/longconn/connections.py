"""This machine's TCP connections as their kernel has them: who would notice that the other side is gone, and when.

From /proc (proc_net_tcp(5), proc_pid_fd(5)); the socket options of other processes by a moment's copy of their
descriptor (pidfd_getfd(2), Linux 5.6), for which it takes the right to trace them. Linux only.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import _longconn
from .keepalive import DetectionTime, detection_time

__all__ = ["TcpConnection", "connections", "processes"]

PROC = Path("/proc")
#: include/net/tcp_states.h
STATES = (
    *("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT"),
    *("LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"),
)
#: Those that a program would be told of.
LIVING = frozenset(("ESTABLISHED", "SYN_SENT", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "CLOSING", "LAST_ACK"))
#: get_tcp4_sock of net/ipv4/tcp_ipv4.c
TIMERS = ("none", "retransmission", "keepalive", "time wait", "window probe")
TCP_RTO_MAX_MS = 44  # linux/tcp.h, 6.15
_RTO_MAX_MS = 120_000  # what it is if nobody has set it


@dataclass(frozen=True)
class TcpConnection:
    """One connection of one process."""

    pid: int
    program: str
    fd: int
    local: tuple[str, int]
    peer: tuple[str, int]
    state: str
    timer: str
    """What the kernel waits for: ``none``, ``retransmission``, ``keepalive``, ``window probe``, ``time wait``."""
    timer_seconds: float | None
    """Until it goes off."""
    send_queue: int
    """Bytes that the peer's kernel hasn't acknowledged."""
    receive_queue: int
    """Bytes that this program hasn't read."""
    is_readable: bool
    """Its options could be read; else the next five aren't known."""
    probes: tuple[int, int, int] | None = None
    """TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT; None if SO_KEEPALIVE is off."""
    user_timeout: float | None = None
    rto_max: float | None = None
    """TCP_RTO_MAX_MS in seconds, if somebody has set it, as longconn's guard and heartbeats do."""
    silent_seconds: float | None = None
    """Since anything was heard of the peer's kernel."""
    has_longconn: bool = False
    """Threads of longconn run in its process."""

    @property
    def is_supervised(self) -> bool:
        """By longconn, as far as can be seen from outside: its threads run there, and it has set its options."""
        return self.has_longconn and self.rto_max is not None

    @property
    def told(self) -> DetectionTime | None:
        """When the kernel alone would tell its program that the peer is gone; None if that isn't known."""
        if not self.is_readable:
            return None
        return detection_time(None, probes=self.probes, user_timeout=self.user_timeout)

    @property
    def is_protected(self) -> bool | None:
        """Somebody would notice while the program only waits; None if that isn't known."""
        if self.is_supervised:
            return True
        told = self.told
        if told is None:
            return True if self.timer == "keepalive" else None
        return told.idle is not None


def processes() -> Iterator[int]:
    """Of all that /proc shows."""
    yield from (int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal())


def connections(pids: Iterable[int]) -> Iterator[TcpConnection]:
    """Of these processes; one that is gone, or isn't ours to look into, has none.

    Raises:
        OSError: This system has no /proc/net/tcp.
    """
    if not (PROC / "net/tcp").exists():
        raise OSError(f"{_longconn.PLATFORM} has no /proc/net/tcp, from which the connections would be read")
    tables = dict[str, dict[int, list[str]]]()
    for pid in pids:
        with suppress(OSError):  # it is gone, or another user's
            descriptors = _sockets(pid)
            if not descriptors:
                continue
            network = os.readlink(PROC / str(pid) / "ns/net")
            if network not in tables:
                tables[network] = _table(pid)
            program = (PROC / str(pid) / "comm").read_text().strip()
            has_longconn = _has_longconn(pid)
            for fd, inode in descriptors.items():
                row = tables[network].get(inode)
                if row is not None and STATES[int(row[3], 16)] in LIVING:
                    yield _connection(pid, program, fd, row, has_longconn)


def _sockets(pid: int) -> dict[int, int]:
    """Inode of each descriptor that is a socket; of several for one socket, the first."""
    found = dict[int, int]()
    for entry in sorted((PROC / str(pid) / "fd").iterdir(), key=lambda entry: int(entry.name)):
        with suppress(OSError):  # closed meanwhile
            target = os.readlink(entry)
            if target.startswith("socket:["):
                found.setdefault(int(target[8:-1]), int(entry.name))
    return {fd: inode for inode, fd in found.items()}


def _table(pid: int) -> dict[int, list[str]]:
    """The rows of the process's network namespace by their socket's inode."""
    rows = dict[int, list[str]]()
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError), open(PROC / str(pid) / "net" / name, encoding="ascii") as file:
            next(file)
            for line in file:
                row = line.split()
                rows[int(row[9])] = row
    return rows


def _has_longconn(pid: int) -> bool:
    names = (PROC / str(pid) / "task").glob("*/comm")
    with suppress(OSError):
        return any(name.read_text().startswith("longconn") for name in names)
    return False


def _address(text: str) -> tuple[str, int]:
    """As the kernel prints it: words in the machine's byte order."""
    packed, _, port = text.partition(":")
    words = [int(packed[start : start + 8], 16) for start in range(0, len(packed), 8)]
    raw = struct.pack(f"={len(words)}I", *words)
    if raw.startswith(bytes(10) + b"\xff\xff"):
        raw = raw[12:]  # IPv4 on a socket of both
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw), int(port, 16)


def _connection(pid: int, program: str, fd: int, row: list[str], has_longconn: bool) -> TcpConnection:
    unacknowledged, _, unread = row[4].partition(":")
    kind, _, ticks = row[5].partition(":")
    timer = TIMERS[int(kind, 16)]
    options = _options(pid, fd)
    return TcpConnection(
        pid=pid,
        program=program,
        fd=fd,
        local=_address(row[1]),
        peer=_address(row[2]),
        state=STATES[int(row[3], 16)],
        timer=timer,
        timer_seconds=None if timer == "none" else int(ticks, 16) / os.sysconf("SC_CLK_TCK"),
        send_queue=int(unacknowledged, 16),
        receive_queue=int(unread, 16),
        has_longconn=has_longconn,
        **({"is_readable": False} if options is None else options),
    )


def _options(pid: int, fd: int) -> dict[str, object] | None:
    try:
        copy = socket.socket(fileno=_longconn.copy_descriptor(pid, fd))
    except OSError:  # we may not, it was closed, or the kernel is too old
        return None
    with copy:
        try:
            level = socket.IPPROTO_TCP
            names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            idle, interval, count = (copy.getsockopt(level, name) for name in names)
            is_on = copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            user_timeout = copy.getsockopt(level, socket.TCP_USER_TIMEOUT)
            info = _longconn.tcp_info(copy.fileno())
            rto_max = _RTO_MAX_MS
            with suppress(OSError):  # Linux 6.15
                rto_max = copy.getsockopt(level, TCP_RTO_MAX_MS)
        except OSError:  # it was another's by then
            return None
    return {
        "is_readable": True,
        "probes": (idle, interval, count) if is_on else None,
        "user_timeout": user_timeout / 1000 if user_timeout else None,
        "rto_max": rto_max / 1000 if rto_max != _RTO_MAX_MS else None,
        "silent_seconds": min(info.last_ack_received_ms, info.last_data_received_ms) / 1000,
    }
