"""`longconn doctor`: what this machine gives longconn to work with."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__, _longconn
from ..keepalive import VARIABLE, default_keepalive, detection_time, has_rto_max
from .printing import duration

__all__ = ["doctor"]

#: What each extra is known by.
EXTRAS = {"cli": "typer", "notebook": "IPython", "metrics": "prometheus_client", "test": "pytest"}


@dataclass(frozen=True)
class _Finding:
    what: str
    value: str
    verdict: str = "ok"
    """``ok``, ``note`` or ``bad``."""
    remark: str = ""


def _sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys", name).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _findings() -> Iterator[_Finding]:
    yield _Finding("longconn", __version__)
    is_free = not getattr(sys, "_is_gil_enabled", lambda: True)()
    kind = "free-threaded" if is_free else "with a GIL"
    yield _Finding("Python", f"{platform.python_implementation()} {platform.python_version()}, {kind}")
    yield _Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    if _longconn.HAS_GUARD:
        yield _Finding("the guard", "works")
        if has_rto_max():
            yield _Finding("TCP_RTO_MAX_MS", "yes")
        else:
            remark = "before Linux 6.15; a dead path behind a slow reader is seen only when the kernel probes it again"
            yield _Finding("TCP_RTO_MAX_MS", "no", "note", remark)
    else:
        remark = "only the kernel's keepalive works; heartbeats of LongConnections do"
        yield _Finding("the guard", f"isn't there on {_longconn.PLATFORM}", "bad", remark)
    yield from _kernel()
    yield from _settings()
    yield from _rights()
    for extra, module in EXTRAS.items():
        is_there = importlib.util.find_spec(module) is not None
        remark = "" if is_there else f"pip install 'longconn[{extra}]'"
        value, verdict = ("installed", "ok") if is_there else ("not installed", "note")
        yield _Finding(f"extra {extra}", value, verdict, remark)


def _kernel() -> Iterator[_Finding]:
    """What connections get that nobody protects."""
    idle = _sysctl("net/ipv4/tcp_keepalive_time")
    interval, count = _sysctl("net/ipv4/tcp_keepalive_intvl"), _sysctl("net/ipv4/tcp_keepalive_probes")
    if idle and interval and count:
        seconds = int(idle) + int(interval) * int(count)
        value = f"{idle},{interval},{count}: told after {duration(seconds)}"
        remark = "what a program gets that only says SO_KEEPALIVE" if seconds > 600 else ""
        yield _Finding("the kernel's keepalive", value, "note" if remark else "ok", remark)
    retries = _sysctl("net/ipv4/tcp_retries2")
    patience = detection_time(None, probes=None).in_flight
    if retries and patience is not None:
        remark = "how long who sends isn't told, without the guard" if patience > 120 else ""
        yield _Finding("tcp_retries2", f"{retries}: {duration(patience)}", "note" if remark else "ok", remark)


def _settings() -> Iterator[_Finding]:
    told = os.environ.get(VARIABLE, "")
    try:
        settings = default_keepalive()
    except ValueError as error:
        yield _Finding(VARIABLE, told, "bad", str(error))
        return
    value = "nothing" if settings is None else repr(settings)
    yield _Finding("sockets get", value, remark=f"{VARIABLE}={told}" if told else "")


def _rights() -> Iterator[_Finding]:
    try:
        import resource
    except ImportError:  # not POSIX
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    verdict = "note" if soft < 4096 else "ok"
    remark = "a LongServer of thousands needs more: ulimit -n" if verdict == "note" else ""
    yield _Finding("open files", f"{soft} (at most {hard})", verdict, remark)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="one array, for programs")] = False) -> int:
    """Say what of this platform, kernel and Python longconn can use here.

    Exit status: 1 if something is bad.
    """
    findings = list(_findings())
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        signs = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}
        for finding in findings:
            table.add_row(signs[finding.verdict], finding.what, finding.value, Text(finding.remark, style="dim"))
        console = Console(highlight=False)
        console.print(table)
        bad, notes = (sum(finding.verdict == verdict for finding in findings) for verdict in ("bad", "note"))
        if bad:
            console.print(f"\n[bold red]{bad} of these keep longconn from working as it should.[/]")
        else:
            console.print(
                "\n[bold green]Everything that longconn needs is here[/]" + ("." if not notes else ", with notes.")
            )
    return int(any(finding.verdict == "bad" for finding in findings))
