"""Owns the two ends that the tests talk through, the ways to break them, and how long the tests wait."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import longconn
from interpreters import SUPPORTED, find
from longconn import KeepaliveSocket

SLACK = float(os.environ.get("LONGCONN_TEST_SLACK", "1.0"))
#: For what comes in milliseconds on a machine at rest.
PATIENCE = 20 * SLACK
#: The stdlib's, whatever has been put in its place.
STDLIB: type[socket.socket] = next(cls for cls in KeepaliveSocket.__mro__ if cls.__module__ == "socket")
PACKAGE = Path(longconn.__file__).parent
#: Convicts soon; on an idle path after about 3 s, for the kernel probes in whole seconds.
QUICK = longconn.Keepalive(1, 1, 3, guard=0.5)
#: Whoever is lost is lost because of a reset: no timer comes near.
SLOW = longconn.Keepalive(60, 20, 6)

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
TCP_RTO_MAX_MS = 44  # linux/tcp.h, 6.15
OPTIONS = {
    "SO_KEEPALIVE": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "TCP_KEEPIDLE": (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", 0x10)),  # macOS: TCP_KEEPALIVE
    "TCP_KEEPINTVL": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "TCP_KEEPCNT": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    "TCP_USER_TIMEOUT": (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", 0)),  # Linux only
}


# ---- two ends


@contextmanager
def listening(cls: type[socket.socket] = STDLIB, **kwargs: Any) -> Iterator[socket.socket]:
    with cls(socket.AF_INET, socket.SOCK_STREAM, **kwargs) as listener:
        # ports of past connections are as good as new ones
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        yield listener


@contextmanager
def connected(cls: type[socket.socket] = KeepaliveSocket, **kwargs: Any) -> Iterator[tuple[Any, socket.socket]]:
    """A connection over loopback: our end, of the class in question, and the peer's, of the stdlib's."""
    with listening() as listener, cls(socket.AF_INET, socket.SOCK_STREAM, **kwargs) as ours:
        ours.connect(listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(PATIENCE)
            yield ours, peer


@contextmanager
def connections(count: int, cls: type[socket.socket] = STDLIB) -> Iterator[list[tuple[Any, socket.socket]]]:
    """Many of them. They end in resets, which leave no TIME_WAIT behind to use up the ports."""
    with ExitStack() as stack:
        listener = stack.enter_context(listening())
        pairs = []
        for _ in range(count):
            ours = stack.enter_context(cls(socket.AF_INET, socket.SOCK_STREAM))
            ours.connect(listener.getsockname())
            peer = stack.enter_context(listener.accept()[0])
            reset_at_close(peer)
            pairs.append((ours, peer))
        yield pairs
        for _, peer in pairs:
            peer.close()


def let_go(connection: longconn.LongConnection) -> None:
    """Close it, whatever its peer has not taken."""
    with suppress(TimeoutError, longconn.PeerLost, longconn.PeerClosed):
        connection.close(timeout=0)


# ---- ways to break them


def reset_at_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset(peer: socket.socket) -> None:
    """The peer ends the connection by RST."""
    reset_at_close(peer)
    peer.close()


def cut_off(sock: socket.socket) -> None:
    """From now on nothing reaches this socket, neither data nor probes nor answers, and nobody is told.

    A filter (BPF, socket(7)) drops each segment before TCP sees it: a pulled cable for one socket, on loopback and
    without any rights. What the socket sends still goes out.
    """
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K, 0 bytes
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def fill(sock: socket.socket) -> int:
    """Send until the peer's window and our buffer are full; returns the number of bytes. Leaves it blocking."""
    sock.setblocking(False)
    sent = 0
    try:
        while True:
            sent += sock.send(b"x" * 65536)
    except BlockingIOError:
        pass
    sock.setblocking(True)
    return sent


# ---- what can be seen of them


def options(sock: socket.socket) -> dict[str, int]:
    return {name: sock.getsockopt(*option) for name, option in OPTIONS.items()}


def timings(sock: socket.socket) -> tuple[int, ...]:
    """SO_KEEPALIVE, idle, interval, count."""
    return tuple(options(sock).values())[:4]


def rto_max(sock: socket.socket) -> int | None:
    """TCP_RTO_MAX_MS, None on a kernel that hasn't got it."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS)
    except OSError:
        return None


def watch_of(sock: KeepaliveSocket) -> Any:
    """The guard of a KeepaliveSocket; users see only what comes of it."""
    return sock._keepalive_watch


def open_descriptors() -> set[int]:
    found = {int(name) for name in os.listdir("/dev/fd")}
    return {fd for fd in found if os.path.exists(f"/dev/fd/{fd}")}  # without listdir's own


def memory_bytes() -> int:
    """What this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def native_threads() -> list[str]:
    """Names of all threads of this process, as Linux has them (15 characters); elsewhere none is known."""
    names = []
    if not os.path.exists("/proc/self/task"):
        return names
    for task in os.listdir("/proc/self/task"):
        try:
            names.append(Path(f"/proc/self/task/{task}/comm").read_text().strip())
        except FileNotFoundError:  # it has ended meanwhile
            continue
    return names


# ---- waiting


def wait_until(condition: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
    """For conditions that nothing announces."""
    deadline = time.monotonic() + patience
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what or condition}"
        time.sleep(0.002)
    return result


def is_asleep(thread_id: int, process_id: int | None = None) -> bool:
    """True if the kernel has it waiting: a thread in a call that blocks."""
    try:
        stat = Path(f"/proc/{process_id or os.getpid()}/task/{thread_id}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] == "S"


def wait_until_blocked(thread_id: int, process_id: int | None = None) -> None:
    """Until a thread blocks: asleep at ten looks in a row, so not for a moment of waiting for the GIL."""
    looks = [0]

    def settled() -> bool:
        looks[0] = looks[0] + 1 if is_asleep(thread_id, process_id) else 0
        return looks[0] >= 10

    wait_until(settled, f"thread {thread_id} blocks")


# ---- other processes


def environment(**changes: str) -> dict[str, str]:
    """Ours, so that it finds the same package, and nothing in it that would change what Python or longconn do."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LONGCONN_KEEPALIVE"))}
    if "PYTHONPATH" in os.environ:
        kept["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return {**kept, **changes}


def python(
    *arguments: str | os.PathLike[str],
    interpreter: str = sys.executable,
    env: dict[str, str] | None = None,
    **kwargs: Any,
) -> subprocess.CompletedProcess[str]:
    """Run an interpreter to its end; the caller judges."""
    return subprocess.run(
        [interpreter, *map(str, arguments)],
        env=environment() if env is None else env,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
        check=False,
        **kwargs,
    )


def python_says(code: str, *arguments: str, **kwargs: Any) -> str:
    """What a program prints; it must end well and say nothing on stderr."""
    done = python("-W", "error", "-c", code, *arguments, **kwargs)
    assert (done.returncode, done.stderr) == (0, ""), f"{done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def interpreters() -> dict[str, str | None]:
    """Each supported version of CPython that takes this very module, and where it is: this one, or another; or None."""
    this = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return {this: sys.executable}  # the module is built for this one alone
    found = {name: find(name) for name in SUPPORTED if name != this and not name.endswith("t")}
    return dict(sorted({this: sys.executable, **{name: each and each.path for name, each in found.items()}}.items()))
