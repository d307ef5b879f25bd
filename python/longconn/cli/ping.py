"""`longconn ping`: is the peer alive, and at which level."""

from __future__ import annotations

import json
import statistics
import time
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from .. import connect
from ..errors import ConnectFailed, HandshakeRejected, PeerClosed, PeerLost, ProtocolError
from ..heartbeat import Heartbeat
from ..links import FRESH
from .printing import milliseconds, said

__all__ = ["ping"]


def _level(age: float | None, name: str) -> str:
    if age is None:
        return f"[dim]{name} unknown[/]"
    return f"[green]{name} fine[/]" if age < FRESH else f"[red]{name} stuck for {age:.1f} s[/]"


def ping(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="a LongServer's")],
    count: Annotated[int, typer.Option("--count", "-c", min=0, help="beats to ask for; 0: until Ctrl-C")] = 0,
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.05, help="seconds between them")] = 1.0,
    timeout: Annotated[float, typer.Option("--timeout", "-t", min=0.001, help="seconds to wait for an answer")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="an object a line, for programs")] = False,
) -> int:
    """Ask a longconn peer for beats: round trips, and who is alive: the path, its interpreter, its program.

    Exit status: 0 if every beat was answered, 1 if not or if there is no longconn peer.
    """
    console = Console(highlight=False)
    asked, round_trips = 0, list[float]()

    def tell(**what: Any) -> None:
        if as_json:
            print(json.dumps(what), flush=True)

    try:
        conn = connect(address, heartbeat=Heartbeat(min(interval, 5.0)), reconnect=False, timeout=timeout)
    except (ConnectFailed, HandshakeRejected, ProtocolError, TimeoutError) as error:
        tell(event="failed", cause=str(getattr(error, "cause", "protocol")), error=str(error))
        if not as_json:
            complain = Console(stderr=True, highlight=False)
            complain.print(f"[red]no longconn peer at {escape(address)}:[/] {escape(said(error))}", soft_wrap=True)
        return 1
    who = "{}:{}".format(*conn.peer_address)
    if not as_json:
        console.print(f"PING {address} ({who})")
    try:
        with suppress(KeyboardInterrupt):
            while not count or asked < count:
                if asked:
                    time.sleep(interval)
                asked += 1
                try:
                    took = conn.ping(timeout=timeout)
                except TimeoutError:
                    tell(event="unanswered", beat=asked, seconds=timeout)
                    if not as_json:
                        console.print(f"beat {asked}: [red]no answer within {timeout:g} s[/]")
                    continue
                round_trips.append(took)
                stats = conn.stats()
                interpreter, program = stats.peer_interpreter_age_seconds, stats.peer_application_age_seconds
                tell(
                    event="answered",
                    beat=asked,
                    round_trip_seconds=took,
                    interpreter_age_seconds=interpreter,
                    application_age_seconds=program,
                )
                if not as_json:
                    levels = [_level(interpreter, "interpreter")]
                    if interpreter is None or interpreter < FRESH:  # else the program can't be fine
                        levels.append(_level(program, "program"))
                    path = "path [green]alive[/]"
                    console.print(f"beat {asked} from {who}: {milliseconds(took)}; {', '.join([path, *levels])}")
    except (PeerLost, PeerClosed) as error:
        tell(event="lost", cause=str(getattr(error, "cause", "closed")), error=str(error))
        if not as_json:
            console.print(f"[red]lost:[/] {escape(said(error))}", soft_wrap=True)
    finally:
        with suppress(OSError):  # all of ours that can come are OSErrors too
            conn.close(timeout=1.0)
    lost = asked - len(round_trips)
    summary: dict[str, Any] = {"event": "summary", "asked": asked, "answered": len(round_trips)}
    if round_trips:
        least, middle, most = min(round_trips), statistics.median(round_trips), max(round_trips)
        summary |= {"least_seconds": least, "median_seconds": middle, "greatest_seconds": most}
    tell(**summary)
    if not as_json:
        console.print(f"--- {address}: {asked} asked, {len(round_trips)} answered")
        if round_trips:
            of_all = f"least {milliseconds(least)}, median {milliseconds(middle)}, most {milliseconds(most)}"
            console.print(f"round trip: {of_all}")
    return int(lost > 0)
