"""`longconn watch`: this machine's TCP connections, and who would notice a dead peer."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..connections import TcpConnection, connections, processes
from .printing import duration

__all__ = ["watch"]

_REFRESH = 1.0


def _place(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _protection(found: TcpConnection) -> Text:
    if found.is_supervised:
        return Text("longconn", style="green")
    if not found.is_readable:
        is_on = found.timer == "keepalive"
        return Text("keepalive, settings unknown" if is_on else "unknown (not ours to read)", style="dim")
    parts = []
    if found.probes:
        parts.append("keepalive {},{},{}".format(*found.probes))
    if found.user_timeout:
        parts.append(f"user timeout {found.user_timeout:g} s")
    return Text(", ".join(parts), style="green" if found.probes else "yellow") if parts else Text("none", style="red")


def _told(seconds: float | None) -> Text:
    if seconds is None or seconds > 3600:
        return Text(duration(seconds), style="red")
    return Text(duration(seconds), style="yellow" if seconds > 120 else "green")


def _told_in_both_cases(found: TcpConnection) -> tuple[Text, Text]:
    """While it only waits, and with data in flight."""
    if found.is_supervised:
        return Text("soon", style="green"), Text("soon", style="green")
    if found.told is None:
        return Text("?", style="dim"), Text("?", style="dim")
    return _told(found.told.idle), _told(found.told.in_flight)


def _timer(found: TcpConnection) -> str:
    if found.timer_seconds is None:
        return "–"
    return f"{found.timer} in {duration(max(found.timer_seconds, 0.0))}"


def _picture(all_found: list[TcpConnection]) -> Group:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("process", "local", "peer", "state"):
        table.add_column(title, overflow="fold")
    table.add_column("heard", justify="right")
    table.add_column("timer")
    table.add_column("protected by")
    table.add_column("told if it waits", justify="right")
    table.add_column("told if it sends", justify="right")
    for found in all_found:
        heard = "–" if found.silent_seconds is None else f"{duration(found.silent_seconds)} ago"
        place = f"{found.program} {found.pid}/{found.fd}", _place(found.local), _place(found.peer)
        table.add_row(*place, found.state, heard, _timer(found), _protection(found), *_told_in_both_cases(found))
    return Group(table, Text(_summary(all_found), style="bold"))


def _summary(all_found: list[TcpConnection]) -> str:
    bare = sum(found.is_protected is False for found in all_found)
    unknown = sum(found.is_protected is None for found in all_found)
    text = f"{len(all_found)} connections"
    if bare:
        text += f", {bare} unprotected: if the peer is gone, its program is never told while it only waits"
    elif all_found and not unknown:
        text += ", all protected"
    if unknown:
        text += f"; {unknown} can't be read (another user's: try root)"
    return text


def _as_json(found: TcpConnection) -> dict[str, object]:
    told = found.told
    return {
        **asdict(found),
        "is_supervised": found.is_supervised,
        "is_protected": found.is_protected,
        "told_seconds": None if told is None else told._asdict(),
    }


def watch(
    who: Annotated[str, typer.Argument(metavar="PID|all", help="whose connections")] = "all",
    once: Annotated[bool, typer.Option("--once", help="look once, and don't go on")] = False,
    check: Annotated[bool, typer.Option("--check", help="look once; exit status 1 if one is unprotected")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="look once; one array, for programs")] = False,
) -> int:
    """Show TCP connections with their timers, and when their program would be told that the peer is gone.

    "longconn" stands where its threads run in the process and its options are set on the socket. All else is what the
    kernel alone does. Other users' connections need root.
    """
    if who != "all" and not (who.isdecimal() and int(who) > 0):
        raise typer.BadParameter(f"{who!r}: the number of a process, or all")

    def look() -> list[TcpConnection]:
        found = connections(processes() if who == "all" else [int(who)])
        return sorted(found, key=lambda each: (each.is_protected is not False, each.pid, each.fd))

    found = look()
    if as_json:
        print(json.dumps([_as_json(each) for each in found], indent=1))
    elif once or check or not sys.stdout.isatty():
        Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(_picture(found))
    else:
        with suppress(KeyboardInterrupt), Live(_picture(found), auto_refresh=False) as live:
            while True:
                time.sleep(_REFRESH)
                live.update(_picture(look()), refresh=True)
    return int(check and any(each.is_protected is False for each in found))
