"""Owns the programs of an act: it starts them in a lab or on loopback, reads what they print, and ends them."""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from longconn.testing.network import Lab, LabError, enter_unprivileged, reason_unavailable

__all__ = ["SLACK", "Lab", "LabError", "Loopback", "Program", "Stage", "enter_unprivileged", "reason_unavailable"]

SLACK = float(os.environ.get("LONGCONN_TEST_SLACK", "1"))


class Program:
    """A program at work, and what it has printed."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name, self.process = name, process
        self.lines: list[str] = []
        self.complaint: list[str] = []  # its traceback
        self.last_line_at = 0.0
        self.over_at: float | None = None
        self._rest = {"lines": b"", "complaint": b""}
        self._open = 2

    @property
    def is_over(self) -> bool:
        return self.over_at is not None

    def take(self, stream: str, data: bytes) -> None:
        """Takes over what came from a pipe; b"" is its end."""
        if not data:
            self._open -= 1
            self.over_at = None if self._open else time.monotonic()
            return
        *whole, self._rest[stream] = (self._rest[stream] + data).split(b"\n")
        getattr(self, stream).extend(line.decode(errors="replace") for line in whole)
        self.last_line_at = time.monotonic()


class Stage:
    """The programs of an act.

    Args:
        place: Where they run.
        after_pump: Called whenever something may have been printed: draws it.
    """

    def __init__(self, place: Lab | Loopback, after_pump: Callable[[], None]) -> None:
        self.place, self._after_pump = place, after_pump
        self.programs: list[Program] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()

    def start(self, host: str, argv: Sequence[str], kind: Callable[[subprocess.Popen[bytes]], Any]) -> Any:
        """Starts Python with these arguments at a host; returns the `Program`, as `kind` makes it of the process."""
        # A signal that ended us between its start and the note of it would leave it behind.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

        def begin() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            _die_with_parent()

        try:
            process = self.place.popen(
                host,
                [sys.executable, *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for us: we end them
                preexec_fn=begin,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        program = kind(process)
        for stream, pipe in (("lines", process.stdout), ("complaint", process.stderr)):
            self._selector.register(pipe, selectors.EVENT_READ, (program, stream))  # type: ignore[arg-type]
        self.programs.append(program)
        return program

    def pump(self, until: float) -> list[Program]:
        """Takes over what is printed, until that time at the latest; returns those that have just ended."""
        over = []
        for key, _ in self._selector.select(max(0.0, min(until - time.monotonic(), 0.1))):
            program, stream = key.data
            data = os.read(key.fd, 65536)
            if not data:
                self._selector.unregister(key.fileobj)
            program.take(stream, data)
            over += [program] * program.is_over
        self._after_pump()
        return over

    def wait(self, is_done: Callable[[], object], what: str) -> None:
        """For what must come before anything is broken: that somebody ends meanwhile is an error."""
        deadline = time.monotonic() + 30 * SLACK
        while not is_done():
            over = self.pump(deadline)
            if over or time.monotonic() > deadline:
                said = "\n".join(line for program in over for line in program.complaint)
                raise RuntimeError(f"waited for {what} in vain\n{said}".rstrip())

    def rest(self, seconds: float) -> None:
        """Lets them work for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.pump(until)


class Loopback:
    """Stands in for the lab where none can be made: everybody on this machine's loopback, and no cable to pull."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()

    @staticmethod
    def address(host: str) -> str:
        return "127.0.0.1"

    def popen(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        self._processes.append(subprocess.Popen(argv, **options))
        return self._processes[-1]


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """prctl(PR_SET_PDEATHSIG): the lab ends its processes, but it can't if we are killed by SIGKILL."""
    if sys.platform == "linux":
        _libc.prctl(1, signal.SIGKILL)
