"""`longconn watch`: this machine's TCP connections, and who would notice a dead peer."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..connections import PROC, TcpConnection, connections, processes
from .printing import duration

__all__ = ["watch"]

_REFRESH = 1.0
#: Seconds; who is told later than this would as well be told never. Arbitrary: between the quarter of an hour after
#: which a kernel gives up sending, and the two hours after which it begins to probe.
_LATE = 3600.0
_ENDLESS = 10_000
#: What is left out first where the terminal is narrow.
_SPARE = ("timer", "local", "state", "heard")


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
    if seconds is None or seconds > _LATE:
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


def _picture(all_found: list[TcpConnection], console: Console) -> Group:
    """The answer first, for what is below it may be longer than the terminal."""
    tables = (_table(all_found, _SPARE[:count]) for count in range(len(_SPARE) + 1))
    # The first that isn't too wide, or the narrowest.
    for table in tables:
        if table.__rich_measure__(console, console.options.update(width=_ENDLESS)).maximum <= console.width:
            break
    return Group(_summary(all_found), table)


def _table(all_found: list[TcpConnection], without: tuple[str, ...]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns: dict[str, Callable[[TcpConnection], str | Text]] = {
        "process": lambda found: f"{found.program} {found.pid}/{found.fd}",
        "local": lambda found: _place(found.local),
        "peer": lambda found: _place(found.peer),
        "state": lambda found: found.state,
        "heard": lambda found: "–" if found.silent_seconds is None else f"{duration(found.silent_seconds)} ago",
        "timer": _timer,
        "protected by": _protection,
        "told if\nit waits": lambda found: _told_in_both_cases(found)[0],
        "told if\nit sends": lambda found: _told_in_both_cases(found)[1],
    }
    shown = {title: cell for title, cell in columns.items() if title not in without}
    for title in shown:
        is_time = title.startswith(("heard", "told"))
        table.add_column(title, overflow="fold", justify="right" if is_time else "left", vertical="bottom")
    for found in all_found:
        table.add_row(*(cell(found) for cell in shown.values()))
    return table


def _summary(all_found: list[TcpConnection]) -> Text:
    bare = sum(found.is_protected is False for found in all_found)
    unknown = sum(found.is_protected is None for found in all_found)
    late = [each.told.idle for each in all_found if not each.is_supervised and each.told and each.told.idle]
    late = [seconds for seconds in late if seconds > _LATE]
    text, style = f"{len(all_found)} connection{'s' * (len(all_found) != 1)}", "bold"
    if bare:
        text += f", {bare} unprotected: if the peer is gone, its program is never told while it only waits"
        style = "bold red"
    elif all_found and not unknown:
        text += ", all protected"
        style = "bold yellow" if late else "bold green"
    if late:
        text += f"; {len(late)} told only after {duration(max(late))}"
    if unknown:
        text += f"; {unknown} can't be read (another user's: try root)"
    return Text(text, style=style)


def _as_json(found: TcpConnection) -> dict[str, object]:
    told = found.told
    return {
        **asdict(found),
        "is_supervised": found.is_supervised,
        "is_protected": found.is_protected,
        "told_seconds": None if told is None else told._asdict(),
    }


def _look_into(pid: int) -> None:
    """See that there is such a process, and that it is ours to read: no connections would look like no danger."""
    try:
        next((PROC / str(pid) / "fd").iterdir(), None)
    except FileNotFoundError:
        if PROC.exists():  # else connections() tells what is missing
            raise typer.BadParameter(f"there is no process {pid}") from None
    except PermissionError:
        raise PermissionError(f"process {pid} is another user's: its connections can't be read, try root") from None


def watch(
    who: Annotated[str, typer.Argument(metavar="PID|all", help="whose connections")] = "all",
    once: Annotated[bool, typer.Option("--once", help="look once, and don't go on")] = False,
    check: Annotated[bool, typer.Option("--check", help="look once; exit status 1 if one is unprotected")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="look once; one array, for programs")] = False,
) -> int:
    """Show TCP connections, and when their program would be told that the peer is gone.

    "longconn" stands where its threads run in the process and its options are set on the socket. All else is what the
    kernel alone does. Other users' connections need root.
    """
    if who != "all" and not (who.isdecimal() and int(who) > 0):
        raise typer.BadParameter(f"{who!r}: the number of a process, or all")
    if who != "all":
        _look_into(int(who))

    def look() -> list[TcpConnection]:
        found = connections(processes() if who == "all" else [int(who)])
        return sorted(found, key=lambda each: (each.is_protected is not False, each.pid, each.fd))

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    found = look()
    if as_json:
        print(json.dumps([_as_json(each) for each in found], indent=1))
    elif once or check or not sys.stdout.isatty():
        console.print(_picture(found, console))
    else:
        with suppress(KeyboardInterrupt), Live(_picture(found, console), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(_REFRESH)
                if who != "all" and not (PROC / who).exists():
                    live.console.print(f"process {who} has ended")
                    break
                live.update(_picture(look(), console), refresh=True)
    return int(check and any(each.is_protected is False for each in found))
