"""`longconn probe`: how long does a NAT or a firewall on this path remember an idle connection?

A connection of its own for each idle time. Nothing is sent on it; after that time the kernel's keepalive asks once a
second whether the other kernel still answers (tcp(7)). So any TCP server will do that leaves idle connections alone.
"""

from __future__ import annotations

import json
import math
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .. import _longconn
from ..short import split_address
from .printing import duration
from .probing import Search

__all__ = ["probe"]

#: Probes without an answer after which the path has forgotten, one a second.
_PROBES = 3
_LOOK = 0.05


class _ServerEnds(Exception):
    """The server itself has ended an idle connection, so no longer time can be tried."""


@dataclass
class _Trial:
    """One connection that is left alone for a while."""

    sock: socket.socket
    idle: float
    began: float
    asked: float | None = None

    @classmethod
    def begin(cls, host: str, port: int, idle: float) -> _Trial:
        sock = socket.create_connection((host, port), timeout=10)
        sock.setblocking(False)
        # it would ask after two hours; told another time later, it asks then
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 20)
        return cls(sock, idle, time.monotonic())

    def look(self, now: float) -> bool | None:
        """Whether it has survived; None while that isn't known."""
        try:
            if not self.sock.recv(65536):
                raise _ServerEnds(
                    f"the server itself ends connections that were idle for {duration(now - self.began)}: "
                    "what the path does with longer ones can't be seen here"
                )
            self.began = now  # a greeting; it isn't idle before
        except BlockingIOError:
            pass
        except OSError:
            return False  # RST, or the kernel has given up
        if self.asked is None:
            if now - self.began >= self.idle:
                self.asked = now
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
            return None
        since = now - self.asked
        info = _longconn.tcp_info(self.sock.fileno())
        if info.last_ack_received_ms / 1000 < since:
            return True
        return False if since > _PROBES else None


def _try(host: str, port: int, idles: list[float], until: float) -> Iterator[tuple[float, bool] | None]:
    """(idle time, survived) of each, and None now and then; leaves the rest after the first that wasn't survived."""
    trials = list[_Trial]()
    try:
        for idle in idles:
            trials.append(_Trial.begin(host, port, idle))
        with selectors.DefaultSelector() as selector:
            for trial in trials:
                selector.register(trial.sock, selectors.EVENT_READ)
            while trials and (now := time.monotonic()) < until:
                for trial in list(trials):
                    survived = trial.look(now)
                    if survived is None:
                        continue
                    trials.remove(trial)
                    selector.unregister(trial.sock)
                    trial.sock.close()
                    yield trial.idle, survived
                    if not survived:
                        return
                yield None
                selector.select(_LOOK)
    finally:
        for trial in trials:
            # nobody is to wait for a FIN that a forgotten path swallows
            trial.sock.close()


def _load(state: Path | None, address: str, search: Search) -> None:
    if state is None or not state.exists():
        return
    try:
        known = json.loads(state.read_text(encoding="utf-8"))
        if known["address"] != address:
            raise typer.BadParameter(f"{state} is of {known['address']}, not of {address}", param_hint="--state")
        search.survived += [float(idle) for idle in known["survived"]]
        search.forgotten += [float(idle) for idle in known["forgotten"]]
    except (ValueError, KeyError, TypeError) as error:
        text = f"{state}: not what `longconn probe` has written: {error}"
        raise typer.BadParameter(text, param_hint="--state") from None


def _save(state: Path | None, address: str, search: Search) -> None:
    if state is not None:
        text = json.dumps({"address": address, **search.to_json()}, indent=1)
        new = state.with_name(state.name + ".new")
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(state)


def probe(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="any TCP server that leaves idle clients alone")],
    least: Annotated[float, typer.Option("--least", min=1, help="shortest idle time to try, seconds")] = 5.0,
    most: Annotated[float, typer.Option("--most", min=2, help="longest idle time to try, seconds")] = 1800.0,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0.1, help="how exactly, seconds; or 5 %")] = 1.0,
    max_time: Annotated[float, typer.Option("--time", min=1, help="seconds that all of it may take")] = 7200.0,
    state: Annotated[Path | None, typer.Option("--state", help="a file to go on from, and to write to")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one object, for programs")] = False,
) -> int:
    """Find how long the path to a server remembers a connection on which nothing is said.

    Opens connections that stay idle for different times, and narrows it down in rounds. Exit status: 0 if it is known
    now, 3 if the time was up before, 1 if the server can't be used for it.
    """
    host, port = split_address(address)
    search = Search(least, most, tolerance)
    _load(state, address, search)
    began = time.monotonic()
    until = began + max_time
    console = Console(highlight=False, stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=as_json or not sys.stderr.isatty()) as progress:
        try:
            while (idles := search.next_round()) and time.monotonic() < until:
                round_began = time.monotonic()
                task = progress.add_task(f"{_known(search)}; {len(idles)} connections are idle", total=idles[-1])
                for outcome in _try(host, port, idles, until):
                    progress.update(task, completed=time.monotonic() - round_began)
                    if outcome is not None:
                        idle, survived = outcome
                        search.record(idle, survived=survived)
                        _save(state, address, search)
                        if not as_json:
                            what = "[green]survived[/]" if survived else "[red]forgotten[/]"
                            progress.print(f"idle for {duration(idle)}: {what}")
                progress.remove_task(task)
        except _ServerEnds as error:
            console.print(f"[red]longconn probe:[/] {error}", soft_wrap=True)
            return 1
    _report(search, as_json=as_json, seconds=time.monotonic() - began)
    return 0 if search.is_done else 3


def _known(search: Search) -> str:
    survives, forgets = search.survives, _finite(search.forgets_within)
    if forgets is not None:
        return f"forgets after {duration(survives)} to {duration(forgets)}"
    return f"remembers for {duration(survives)}" if survives else "nothing known yet"


def _finite(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds


def _report(search: Search, *, as_json: bool, seconds: float) -> None:
    survives, forgets = search.survives, _finite(search.forgets_within)
    if as_json:
        result: dict[str, Any] = {
            "survives_seconds": survives,
            "forgets_within_seconds": forgets,
            "is_done": search.is_done,
            "contradictions_seconds": search.contradictions,
            "took_seconds": seconds,
        }
        print(json.dumps(result))
        return
    console = Console(highlight=False)
    if not search.is_done:
        console.print("[yellow]The time was up before it was known.[/]")
    if forgets is None:
        console.print(f"An idle connection lived for [bold]{duration(survives)}[/]; nothing here forgot it sooner.")
        return
    console.print(f"This path forgets an idle connection after [bold]{duration(survives)} to {duration(forgets)}[/].")
    if search.contradictions:
        kept = ", ".join(duration(idle) for idle in search.contradictions)
        console.print(f"[yellow]Not always, though: {kept} were survived as well.[/]")
    if survives >= 4:
        with suppress(ValueError):
            console.print(
                f"Stay in its memory: Keepalive.nat({math.floor(survives)}), or Heartbeat({survives / 2:.3g})."
            )
