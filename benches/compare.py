"""Owns table and figure of `make compare`: who is told that the other side is gone, when, and who accuses the living.

Each library's two programs (`compare_peers.py`) are connected over a small network of namespaces, something is broken
for real, and it is measured until the client's program is told, with faults spread over a heartbeat. Needs root.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "network"))

import figures
from longconn.testing.network import Lab, reason_unavailable

PEERS = Path(__file__).with_name("compare_peers.py")
PORT = 8083
PATIENCE = 15.0
#: What each is called in the table, and the package whose version is named.
LIBRARIES = {
    "socket": ("socket", None),
    "keepalive": ("socket, keepalive 1/1/3", None),
    "user-timeout": ("... and TCP_USER_TIMEOUT 3 s", None),
    "guard": ("**longconn** KeepaliveSocket, guard 3 s", "longconn"),
    "longconn": ("**longconn** LongConnection", "longconn"),
    "websockets": ("websockets", "websockets"),
    "aiohttp": ("aiohttp's websocket", "aiohttp"),
    "pyzmq": ("pyzmq, heartbeats", "pyzmq"),
}


class Case(NamedTuple):
    title: str
    how: str
    strike: Callable[[Lab, subprocess.Popen[str]], object]
    nat: bool = False
    is_alive: bool = False


def _hold(_: Lab, server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    server.stdin.write("hold\n")
    server.stdin.flush()


CASES = {
    "killed": Case("killed", "idle", lambda _, server: server.kill()),
    "idle": Case("cable, idle", "idle", lambda lab, _: lab.pull("server")),
    "sending": Case("cable, sending", "sending", lambda lab, _: lab.pull("server")),
    "ours": Case("our direction cut", "idle", lambda lab, _: lab.drop("client")),
    "theirs": Case("theirs cut", "idle", lambda lab, _: lab.drop("server")),
    "frozen": Case("frozen (SIGSTOP)", "idle", lambda lab, server: lab.freeze(server)),
    "nat": Case("NAT forgot", "idle", lambda lab, _: lab.forget(), nat=True),
    "power": Case("power cut", "idle", lambda lab, _: lab.power_off("server")),
    "gil": Case("false alarms: GIL held for 8 s", "idle", _hold, is_alive=True),
}


def measure(library: str, case: Case, phase: float) -> float | None:
    """Seconds until the client's program was told; None if it wasn't."""
    with Lab(nat=case.nat) as lab:
        words = [sys.executable, str(PEERS), library]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "stderr": subprocess.DEVNULL}
        server = lab.popen("server", [*words, "server", "0.0.0.0", str(PORT), case.how], **pipes)
        _expect(server, "listening")
        client = lab.popen("client", [*words, "client", lab.address("server"), str(PORT), case.how], **pipes)
        _expect(client, "ready")
        time.sleep(1.5 + phase)
        struck = time.monotonic()
        case.strike(lab, server)
        told: list[float] = []

        def wait() -> None:
            assert client.stdout is not None
            if client.stdout.readline().startswith("told"):
                told.append(time.monotonic() - struck)

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        waiter.join(PATIENCE)
        result = told[0] if told else None
    waiter.join()
    return result


def _expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line.strip() != word:
        raise RuntimeError(f"{process.args}: said {line!r} instead of {word!r}")


def cell(case: Case, times: list[float | None]) -> str:
    if case.is_alive:
        alarms = sum(seconds is not None for seconds in times)
        return f"**{alarms} of {len(times)}**" if alarms else f"0 of {len(times)}"
    known = sorted(seconds for seconds in times if seconds is not None)
    if not known:
        return f"not in {PATIENCE:.0f}"
    text = f"{statistics.median(known):.1f}, {known[-1]:.1f}"
    return text if len(known) == len(times) else f"{text} ({len(times) - len(known)} not)"


def _named(library: str) -> str:
    title, package = LIBRARIES[library]
    return f"{title} {importlib.metadata.version(package)}" if package and package != "longconn" else title


def _measured(libraries: list[str], times: dict[tuple[str, str], list[float | None]], where: str) -> figures.Measured:
    """What the figure shows: every run."""

    def rounded(seconds: list[float | None]) -> list[float | None]:
        return [each if each is None else round(each, 3) for each in seconds]

    return {
        "where": where,
        "patience": PATIENCE,
        "cases": [{"case": case.title, "is_alive": case.is_alive} for case in CASES.values()],
        "libraries": [
            {
                "name": _named(library).replace("**", ""),
                "is_ours": LIBRARIES[library][1] == "longconn",
                "seconds": [rounded(times[library, name]) for name in CASES],
            }
            for library in libraries
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare who is told that the other side is gone, and when.")
    parser.add_argument("--runs", type=int, default=5, help="runs of each case")
    parser.add_argument("--jobs", type=int, default=8, help="runs at once; they mostly wait")
    parser.add_argument("--only", default="", help="libraries, by name, with commas between them")
    parser.add_argument("--json", metavar="FILE", help="write every single outcome there")
    parser.add_argument(
        "--figures", type=Path, metavar="DIRECTORY", help="draw there (default docs/, or nowhere with --only)"
    )
    arguments = parser.parse_args()
    if reason := reason_unavailable():
        print(f"no network lab can be made here: {reason}", file=sys.stderr)
        return 2
    libraries = arguments.only.split(",") if arguments.only else list(LIBRARIES)
    jobs = [(library, name, run) for run in range(arguments.runs) for library in libraries for name in CASES]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = pool.map(lambda job: measure(job[0], CASES[job[1]], job[2] / arguments.runs), jobs)
        times: dict[tuple[str, str], list[float | None]] = {}
        for (library, name, _), seconds in zip(jobs, outcomes, strict=True):
            times.setdefault((library, name), []).append(seconds)
    print(f"| seconds until told: median, worst of {arguments.runs} | {' | '.join(c.title for c in CASES.values())} |")
    print("|" + " --- |" * (len(CASES) + 1))
    for library in libraries:
        row = [cell(case, times[library, name]) for name, case in CASES.items()]
        print(f"| {_named(library)} | {' | '.join(row)} |")
    system = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    where = f"{system}, CPython {platform.python_version()}, {os.cpu_count()} CPUs ({platform.machine()})."
    print(f"\n{where}")
    if folder := arguments.figures or (None if arguments.only else figures.DOCS):
        figures.keep("comparison", _measured(libraries, times, where), folder)
    if arguments.json:
        named = [{"library": library, "case": name, "seconds": each} for (library, name), each in times.items()]
        Path(arguments.json).write_text(json.dumps(named, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
