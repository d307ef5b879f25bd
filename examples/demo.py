"""Owns `make demo`: the tutorial's server and client, with the stdlib and with longconn, when the path really breaks.

Both pairs talk over the same network of namespaces (tests/network/lab.py): a client, a router, a server. Then
something breaks there that no program is told of, and we watch for ten seconds which of the four notices, and why.
The scripts are the same files in both cases. Nothing is left behind: not at Ctrl-C either.

Where namespaces can't be made (see `reason_unavailable()`), it says so and shows what loopback can show.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import os
import re
import selectors
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "network"))

from lab import Lab, LabError, enter_unprivileged, reason_unavailable  # noqa: E402

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text
except ImportError:  # then there is no live display; the plain lines say the same
    Console = None  # type: ignore[assignment, misc]

SLACK = float(os.environ.get("LONGCONN_TEST_SLACK", "1"))
WIDTH = 100  # of the plain lines, as README shows them
RUN = ["-m", "longconn", "run", "--keepalive", "1,1,3", "--guard", "3"]
# The two ways to run the same scripts, and the port for each.
WAYS = {"stdlib": (8083, []), "longconn": (8084, RUN)}
DOES = {"server": "only waits", "client": "sends each second"}
# When the stdlib's programs will be told. The server's script has no keepalive; what is in flight Linux repeats
# tcp_retries2 = 15 times (ip-sysctl.rst: 924.6 s at least).
LATER = {"server": "never will be", "client": "after 15 minutes"}


# ---- the programs


class Program:
    """One of the tutorial's scripts at work, and what became of it."""

    def __init__(self, way: str, role: str, process: subprocess.Popen[bytes]) -> None:
        self.way, self.role, self.process = way, role, process
        self.lines: list[str] = []  # what it printed
        self.complaint: list[str] = []  # its traceback
        self.last_line_at = 0.0
        self.told_at: float | None = None
        self.is_over = False
        self._rest = {"lines": b"", "complaint": b""}
        self._open = 2

    def take(self, stream: str, data: bytes) -> None:
        """Takes over what came from a pipe; b"" is its end."""
        now = time.monotonic()
        if stream == "complaint" or b"closed by" in data:
            self.told_at = self.told_at or now
        if not data:
            self._open -= 1
            self.is_over = not self._open
            self.told_at = self.told_at or now
            return
        *whole, self._rest[stream] = (self._rest[stream] + data).split(b"\n")
        getattr(self, stream).extend(line.decode(errors="replace") for line in whole)
        self.last_line_at = now

    @property
    def why(self) -> str:
        """The last thing that it said: its exception, without module and number, or a line of its own."""
        if not self.complaint:
            return self.lines[-1] if self.lines else "nothing"
        return re.sub(r"^(?:\w+\.)*(\w+: )(?:\[Errno \d+\] )?", r"\1", self.complaint[-1])


class Stage:
    """The four programs of an act, in a lab or on loopback."""

    def __init__(self, place: Lab | Loopback, screen: Screen) -> None:
        self.place, self.screen = place, screen
        self.programs: list[Program] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()

    def start_all(self) -> None:
        """The servers first; each client when its server listens."""
        address = self.place.address("server")
        ports = WAYS if isinstance(self.place, Lab) else dict.fromkeys(WAYS, (0, []))
        for way in WAYS:
            self._start(way, "server", address, str(ports[way][0]))
        self.wait(lambda: all(server.lines for server in self.programs), "the servers to listen")
        for server in list(self.programs):
            self._start(server.way, "client", address, server.lines[0].split()[-1])  # "listening on HOST PORT"

    def _start(self, way: str, role: str, *arguments: str) -> None:
        argv = [sys.executable, *WAYS[way][1], str(HERE / f"long_{role}.py"), *arguments]
        process = self.place.popen(
            role,
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us: we end them
            preexec_fn=_die_with_parent,
        )
        program = Program(way, role, process)
        for stream, pipe in (("lines", process.stdout), ("complaint", process.stderr)):
            self._selector.register(pipe, selectors.EVENT_READ, (program, stream))  # type: ignore[arg-type]
        self.programs.append(program)

    def find(self, way: str, role: str) -> Program:
        return next(program for program in self.programs if (program.way, program.role) == (way, role))

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
        self.screen.show(self.programs)
        return over

    def wait(self, is_done: Callable[[], bool], what: str) -> None:
        """For what must come before anything is broken."""
        deadline = time.monotonic() + 30 * SLACK
        while not is_done():
            over = self.pump(deadline)
            if over or time.monotonic() > deadline:
                said = "\n".join(line for program in over for line in program.complaint)
                raise RuntimeError(f"waited for {what} in vain\n{said}".rstrip())


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


# ---- the acts


@dataclass(frozen=True)
class Act:
    """Something that breaks."""

    name: str
    title: str
    break_it: Callable[[Stage], None]
    nat: bool = False
    victim: str | None = None  # a role that is killed, and so not told


def _pull(stage: Stage) -> None:
    assert isinstance(stage.place, Lab)
    stage.place.pull("server")


def _forget(stage: Stage) -> None:
    assert isinstance(stage.place, Lab)
    stage.place.forget()


def _kill(stage: Stage) -> None:
    for program in stage.programs:
        if program.role == "server":
            program.process.kill()


ACTS = [
    Act("cable pulled", "The server's cable is pulled.", _pull),
    Act("NAT forgot", "The cables are fine, but the router (a NAT) forgets its connections.", _forget, nat=True),
]
LOOPBACK_ACTS = [Act("server killed", "The servers are killed (SIGKILL).", _kill, victim="server")]

Told = dict[tuple[str, str], float | None]


def play(number: int, act: Act, place: Lab | Loopback, screen: Screen, seconds: float) -> Told:
    """Runs one act; returns for each program that could be told after how many seconds it was, or None."""
    told: Told = {}
    with place, Stage(place, screen) as stage:
        screen.act = number
        stage.start_all()
        stage.wait(lambda: all(len(program.lines) > 3 for program in stage.programs), "some messages")
        # Just before the next message, so that something is in flight soon after the cut.
        sender = stage.find("longconn", "client")
        count = len(sender.lines)
        stage.wait(lambda: len(sender.lines) > count, "the next message")
        cut_at = sender.last_line_at + 0.9
        while time.monotonic() < cut_at:
            stage.pump(cut_at)

        messages = {program: len(program.lines) for program in stage.programs}
        act.break_it(stage)
        screen.cut_at = cut_at = time.monotonic()
        screen.say(f"\n{number}. {act.title}", "bold")
        while time.monotonic() < cut_at + seconds and not all(program.is_over for program in stage.programs):
            for program in stage.pump(cut_at + seconds):
                if program.role == act.victim:
                    continue
                assert program.told_at
                told[program.way, program.role] = program.told_at - cut_at
                screen.say_event(program.told_at - cut_at, program, f"told: {program.why}")
        waiting = [program for program in stage.programs if not program.is_over]
        for program in waiting:
            told[program.way, program.role] = None
            more = len(program.lines) - messages[program]
            still = "still waits" if program.role == "server" else f'still says "send data", {more} times by now'
            screen.say_event(seconds, program, f"told nothing; {still}")
        screen.close()
    return told


# ---- what is seen


class Screen:
    """Plain lines, and a live display below them where stdout is a terminal and rich is installed."""

    def __init__(self, *, is_plain: bool) -> None:
        self.act = 0
        self.cut_at: float | None = None
        self._console = None if is_plain or Console is None else Console(highlight=False)
        self._live: Live | None = None

    def say(self, text: str, style: str = "") -> None:
        if self._console is None:
            print(text, flush=True)
        else:  # above the live display, if there is one
            self._console.print(text, style=style or None, markup=False, soft_wrap=True)

    def say_event(self, after: float, program: Program, text: str) -> None:
        head = f"{after:6.1f} s  {program.way:8}  {program.role}  "
        lines = textwrap.wrap(text, WIDTH - len(head), break_long_words=False, break_on_hyphens=False)
        self.say(head + ("\n" + " " * len(head)).join(lines), "green" if program.is_over else "yellow")

    def show(self, programs: Sequence[Program]) -> None:
        """Draws the live display anew."""
        if self._console is None:
            return
        if self._live is None:  # drawn by us and not by rich's thread: we fork, and move between namespaces
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        table = Table.grid(expand=True, padding=0)
        for _ in WAYS:
            table.add_column(ratio=1)
        for role in DOES:
            table.add_row(
                *(
                    self._panel(program)
                    for way in WAYS
                    for program in programs
                    if (program.way, program.role) == (way, role)
                )
            )
        if self.cut_at is None:
            head = Text(f"\nBefore act {self.act}: all is well", "bold")
        else:
            head = Text(f"{time.monotonic() - self.cut_at:6.1f} s since then", "bold yellow")
        self._live.update(Group(head, table), refresh=True)

    def _panel(self, program: Program) -> Panel:
        body = "\n".join(program.lines[-3:])
        if program.is_over:
            state, style = "ended", "green"
            body = program.why
            if self.cut_at is not None and program.told_at:
                state = f"told after {program.told_at - self.cut_at:.1f} s"
        elif self.cut_at is not None:
            state, style = f"told nothing for {time.monotonic() - self.cut_at:.1f} s", "yellow"
        else:
            state, style = DOES[program.role], "dim"
        title = f"{program.way}: long_{program.role}.py"
        return Panel(Text(body, overflow="fold"), title=title, subtitle=state, border_style=style, height=5)

    def fail(self, text: str, status: int) -> int:
        self.close()
        print(text, file=sys.stderr)
        return status

    def close(self) -> None:
        """Ends the live display; the lines stay."""
        self.cut_at = None
        if self._live is not None:
            self._live.stop()
            self._live = None


def say_summary(screen: Screen, acts: Sequence[Act], told: dict[str, Told], seconds: float) -> None:
    """Who was told, in a table."""
    screen.say("\n" + " " * 39 + "".join(f"{act.name:21}" for act in acts).rstrip(), "bold")
    for way in WAYS:
        for role, does in DOES.items():
            if all(role == act.victim for act in acts):
                continue
            times = [told[act.name][way, role] for act in acts]
            cells = [f"not told in {seconds:g} s" if each is None else f"told after {each:.1f} s" for each in times]
            line = f"  {way:10}{role}, {does:19}" + "".join(f"{cell:21}" for cell in cells)
            if None in times and way == "stdlib":
                line += LATER[role]
            screen.say(line.rstrip(), "yellow" if None in times else "green")


# ---- everything together


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end us as Ctrl-C does: by an exception, so that everything is cleaned up."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    parser = argparse.ArgumentParser(description="Who is told, when and why, if the cable is pulled.")
    parser.add_argument("--plain", action="store_true", help="no live display, as when stdout isn't a terminal")
    parser.add_argument("--loopback", action="store_true", help="as where no network namespaces can be made")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to watch after something broke")
    options = parser.parse_args()
    if importlib.util.find_spec("longconn") is None:
        parser.error("longconn isn't installed for this Python; `make demo` builds it and runs this")
    screen = Screen(is_plain=options.plain or not sys.stdout.isatty())
    try:
        with ended_by_signals():
            return show_all(options, screen)
    except KeyboardInterrupt:
        return screen.fail("\nstopped, and nothing is left running", 130)
    except (LabError, OSError, RuntimeError) as error:
        return screen.fail(f"demo: {error}", 1)
    finally:
        screen.close()


def show_all(options: argparse.Namespace, screen: Screen) -> int:
    reason = "--loopback was asked for" if options.loopback else reason_unavailable()
    acts, where = ACTS, "over a network (namespaces): client -- router -- server"
    if reason is None:
        enter_unprivileged()
    else:
        acts, where = LOOPBACK_ACTS, "over loopback"
    screen.say(f"The tutorial's two scripts, unchanged, {where}")
    for way, (_, arguments) in WAYS.items():
        screen.say(f"  {way:10}" + " ".join(["python", *arguments, "long_server.py"]) + "  (and long_client.py)")
    if reason is not None:
        sorry = f"A pulled cable or a NAT that forgets can't be shown here: {reason}."
        screen.say("\n" + textwrap.fill(sorry, WIDTH), "yellow")
        screen.say("On loopback a peer can only die. Then its kernel speaks for it, and the stdlib is told as well:")
    told: dict[str, Told] = {}
    for number, act in enumerate(acts, 1):
        place = Loopback() if reason is not None else Lab(nat=act.nat)
        told[act.name] = play(number, act, place, screen, options.seconds)
    say_summary(screen, acts, told, options.seconds)
    screen.say(
        "\nNext: `python -m longconn run SCRIPT`, or replace its `import socket` by `from longconn import socket`."
    )
    screen.say("`python -m longconn explain 60,10,6` says what is noticed when, with any other settings.")
    missed = any(after is None for each in told.values() for (way, _), after in each.items() if way == "longconn")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
