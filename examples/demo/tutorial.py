"""Owns part one: the tutorial's server and client, with the stdlib and with longconn, when the path really breaks.

Both pairs talk over the same network of namespaces (longconn.testing.network): a client, a router, a server. Then
something breaks there that no program is told of, and we watch for ten seconds which of the four notices, and why.
The scripts are the same files in both cases.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from screen import WIDTH, Screen
from stage import Lab, Loopback, Program, Stage

with contextlib.suppress(ImportError):
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

EXAMPLES = Path(__file__).resolve().parent.parent
RUN = ["-m", "longconn", "run", "--keepalive", "1,1,3", "--guard", "3"]
# The two ways to run the same scripts, and the port for each.
WAYS = {"stdlib": (8083, []), "longconn": (8084, RUN)}
DOES = {"server": "only waits", "client": "sends each second"}
# When the stdlib's programs will be told. The server's script has no keepalive; what is in flight Linux repeats
# tcp_retries2 = 15 times (ip-sysctl.rst: 924.6 s at least).
LATER = {"server": "never will be", "client": "after 15 minutes"}


class Script(Program):
    """One of the tutorial's scripts, and when it was told."""

    def __init__(self, way: str, role: str, process: subprocess.Popen[bytes]) -> None:
        super().__init__(role, process)
        self.way = way
        self.told_at: float | None = None

    def take(self, stream: str, data: bytes) -> None:
        super().take(stream, data)
        if stream == "complaint" or not data or b"closed by" in data:
            self.told_at = self.told_at or time.monotonic()

    @property
    def why(self) -> str:
        """The last thing that it said: its exception, without module and number, or a line of its own."""
        if not self.complaint:
            return self.lines[-1] if self.lines else "nothing"
        return re.sub(r"^(?:\w+\.)*(\w+: )(?:\[Errno \d+\] )?", r"\1", self.complaint[-1])


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
        if program.name == "server":
            program.process.kill()


ACTS = [
    Act("cable pulled", "The server's cable is pulled.", _pull),
    Act("NAT forgot", "The cables are fine, but the router (a NAT) forgets its connections.", _forget, nat=True),
]
LOOPBACK_ACTS = [Act("server killed", "The servers are killed (SIGKILL).", _kill, victim="server")]

Told = dict[tuple[str, str], float | None]


def show(screen: Screen, seconds: float, reason: str | None) -> bool:
    """Plays all acts, on loopback where there is a reason for that; returns whether longconn's programs were told."""
    acts, where = ACTS, "over a network (namespaces): client -- router -- server"
    if reason is not None:
        acts, where = LOOPBACK_ACTS, "over loopback"
    screen.say(f"The tutorial's two scripts, unchanged, {where}")
    for way, (_, arguments) in WAYS.items():
        screen.say(f"  {way:10}" + " ".join(["python", *arguments, "long_server.py"]) + "  (and long_client.py)")
    if reason is not None:
        sorry = f"A pulled cable or a NAT that forgets can't be shown here: {reason}."
        screen.say("\n" + textwrap.fill(sorry, WIDTH), "yellow")
        screen.say("On loopback a peer can only die. Then its kernel speaks for it, and the stdlib is told as well:")
    told = {}
    for number, act in enumerate(acts, 1):
        place = Loopback() if reason is not None else Lab(nat=act.nat)
        told[act.name] = _Performance(number, act, place, screen).play(seconds)
    _say_summary(screen, acts, told, seconds)
    return not any(after is None for each in told.values() for (way, _), after in each.items() if way == "longconn")


class _Performance:
    """One act, from the first message to the last that is told."""

    def __init__(self, number: int, act: Act, place: Lab | Loopback, screen: Screen) -> None:
        self._number, self._act, self._screen = number, act, screen
        self._stage = Stage(place, lambda: screen.show(self._draw))
        self._scripts: list[Script] = []
        self._cut_at: float | None = None

    def play(self, seconds: float) -> Told:
        """Returns for each program that could be told after how many seconds it was, or None."""
        told: Told = {}
        with self._stage.place, self._stage as stage:
            self._start_all()
            stage.wait(lambda: all(len(script.lines) > 3 for script in self._scripts), "some messages")
            # Just before the next message, so that something is in flight soon after the cut.
            sender = self._find("longconn", "client")
            count = len(sender.lines)
            stage.wait(lambda: len(sender.lines) > count, "the next message")
            stage.rest(sender.last_line_at + 0.9 - time.monotonic())

            messages = {script: len(script.lines) for script in self._scripts}
            self._act.break_it(stage)
            self._cut_at = cut_at = time.monotonic()
            self._screen.say(f"\n{self._number}. {self._act.title}", "bold")
            while time.monotonic() < cut_at + seconds and not all(script.is_over for script in self._scripts):
                for script in stage.pump(cut_at + seconds):
                    if script.name == self._act.victim:
                        continue
                    assert isinstance(script, Script)
                    assert script.told_at
                    told[script.way, script.name] = script.told_at - cut_at
                    self._say(script.told_at - cut_at, script, f"told: {script.why}")
            for script in self._scripts:
                if script.is_over:
                    continue
                told[script.way, script.name] = None
                more = len(script.lines) - messages[script]
                still = "still waits" if script.name == "server" else f'still says "send data", {more} times by now'
                self._say(seconds, script, f"told nothing; {still}")
            self._screen.close()
        return told

    def _start_all(self) -> None:
        """The servers first; each client when its server listens."""
        address = self._stage.place.address("server")
        ports = WAYS if isinstance(self._stage.place, Lab) else dict.fromkeys(WAYS, (0, []))
        for way in WAYS:
            self._start(way, "server", address, str(ports[way][0]))
        self._stage.wait(lambda: all(server.lines for server in self._scripts), "the servers to listen")
        for server in list(self._scripts):
            self._start(server.way, "client", address, server.lines[0].split()[-1])  # "listening on HOST PORT"

    def _start(self, way: str, role: str, *arguments: str) -> None:
        argv = [*WAYS[way][1], str(EXAMPLES / f"long_{role}.py"), *arguments]
        self._scripts.append(self._stage.start(role, argv, lambda process: Script(way, role, process)))

    def _find(self, way: str, role: str) -> Script:
        return next(script for script in self._scripts if (script.way, script.name) == (way, role))

    def _say(self, after: float, script: Script, text: str) -> None:
        self._screen.say_at(after, f"{script.way:8}  {script.name}", text, "green" if script.is_over else "yellow")

    def _draw(self) -> Any:
        table = Table.grid(expand=True, padding=0)
        for _ in WAYS:
            table.add_column(ratio=1)
        for role in DOES:
            table.add_row(
                *(
                    self._panel(script)
                    for way in WAYS
                    for script in self._scripts
                    if (script.way, script.name) == (way, role)
                )
            )
        if self._cut_at is None:
            head = Text(f"\nBefore act {self._number}: all is well", "bold")
        else:
            head = Text(f"{time.monotonic() - self._cut_at:6.1f} s since then", "bold yellow")
        return Group(head, table)

    def _panel(self, script: Script) -> Any:
        body = "\n".join(script.lines[-3:])
        if script.is_over:
            state, style = "ended", "green"
            body = script.why
            if self._cut_at is not None and script.told_at:
                state = f"told after {script.told_at - self._cut_at:.1f} s"
        elif self._cut_at is not None:
            state, style = f"told nothing for {time.monotonic() - self._cut_at:.1f} s", "yellow"
        else:
            state, style = DOES[script.name], "dim"
        title = f"{script.way}: long_{script.name}.py"
        return Panel(Text(body, overflow="fold"), title=title, subtitle=state, border_style=style, height=5)


def _say_summary(screen: Screen, acts: Sequence[Act], told: dict[str, Told], seconds: float) -> None:
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
