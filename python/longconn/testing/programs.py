"""Programs in trouble: one that answers nothing, one that is stopped, one whose interpreter can't run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..keepalive import in_seconds
from ..keepalive_socket import KeepaliveSocket

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["DeadPeer", "freeze", "hold_gil"]

_Socket: type[socket.socket] = next(cls for cls in KeepaliveSocket.__mro__ if cls.__module__ == "socket")


class DeadPeer:
    """A listener whose connections nobody answers: its kernel accepts and acknowledges, and no program takes anything.

    Like a server that hangs, or has been stopped. No thread is behind it. For a peer whose kernel is silent too, put a
    `FaultProxy` in front of it and `pull_cable()`.
    """

    def __init__(self) -> None:
        self._listener = _Socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._listener.bind(("127.0.0.1", 0))
            self._listener.listen(socket.SOMAXCONN)
        except BaseException:
            self._listener.close()
            raise
        self.address: tuple[str, int] = self._listener.getsockname()
        """(host, port)"""

    def close(self) -> None:
        """Its connections are reset."""
        self._listener.close()

    def __enter__(self) -> DeadPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()


@contextlib.contextmanager
def freeze(process: Any) -> Iterator[None]:
    """Stop a process (SIGSTOP) for as long as the block lasts; its kernel goes on answering for it.

    Args:
        process: Its number, or what has it as ``pid``: a `subprocess.Popen`, a `multiprocessing.Process`. If it is a
            child of this process, it has stopped when the block begins.
    """
    pid: int = process if isinstance(process, int) else process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with contextlib.suppress(ChildProcessError):  # somebody else's child
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def hold_gil(seconds: float | timedelta) -> None:
    """Keep the interpreter to this thread for so long, in calls to C that don't give it up: no other Python code runs.

    On a free-threaded build this is a sleep of one thread.
    """
    deadline = time.monotonic() + in_seconds(seconds, "seconds")
    sleep = ctypes.PyDLL(None).usleep  # PyDLL, unlike CDLL, keeps it
    while (left := deadline - time.monotonic()) > 0:
        sleep(round(min(left, 60.0) * 1e6) + 1)  # a signal ends it
