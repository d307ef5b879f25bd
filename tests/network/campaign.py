"""Owns how cases are run: each in a lab and a process of its own, many at once, for waiting costs no CPU.

The test suite runs each case once, `benches/detect.py` several times. One case by hand, with samples of TCP_INFO on the
way:

    python tests/network/campaign.py cable-idle socket --trace
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cases
import link_cases
import session_cases
from longconn.testing.network import Lab, enter_unprivileged
from stage import Stage

CASES: dict[str, Any] = cases.CASES | link_cases.CASES | session_cases.CASES
# Runs at once, in lanes beside the crowd's. What is measured to milliseconds runs first and alone; a program that
# computes would take its CPU from everybody; and large messages take memory.
LANES = {"quiet": 1, "computing": 1, "large": 8}
CROWD = 12 * (os.cpu_count() or 1)
# Seconds between two starts. Three interpreters that start and import take the CPU from everybody; thirty runs at once
# would for seconds.
START_GAP = 0.2


def run(name: str, protection: str, *, phase: float, trace: bool) -> dict[str, Any]:
    """One run in a lab of its own, in this process."""
    case = CASES[name]
    with Lab(nat=case.nat, polite=case.polite) as lab, contextlib.closing(Stage(lab)) as stage:
        return case.run(stage, protection, phase, trace)


class Campaign:
    """Many runs at once, each in a process of its own. `outcome()` waits for one of them.

    An outcome is what `run` returns, or {"failure": text} when the run itself went wrong.
    """

    def __init__(self, jobs: int = CROWD) -> None:
        self._lanes = {lane: ThreadPoolExecutor(number) for lane, number in {"crowd": jobs, **LANES}.items()}
        self._quiet_is_over = threading.Event()
        self._starting = threading.Lock()
        self._outcomes: dict[tuple[str, str, int], Future[dict[str, Any]]] = {}

    def start(
        self, wanted: Iterable[tuple[str, str]], *, runs: dict[type, int] | None = None, trace: bool = False
    ) -> None:
        """Starts these cases, the longest first; so many runs of each kind of case (left out: one), with phases that
        spread over a period of keepalive or heartbeat."""
        longest_first = sorted(wanted, key=lambda each: -CASES[each[0]].seconds)
        for name, protection in longest_first:
            case = CASES[name]
            total = (runs or {}).get(type(case), 1)
            for number in range(total):
                self._outcomes[name, protection, number] = self._lanes[case.lane].submit(
                    self._run_apart, name, protection, (number + 0.5) / total, trace
                )
        self._lanes["quiet"].submit(self._quiet_is_over.set)

    def outcome(self, name: str, protection: str, number: int = 0) -> dict[str, Any]:
        return self._outcomes[name, protection, number].result()

    def close(self) -> None:
        """Waits for runs under way (they end by themselves), starts no others."""
        for pool in self._lanes.values():
            pool.shutdown(wait=False, cancel_futures=True)
        self._quiet_is_over.set()
        for pool in self._lanes.values():
            pool.shutdown()

    def _run_apart(self, name: str, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        if CASES[name].lane != "quiet":
            self._quiet_is_over.wait()
        with self._starting:
            time.sleep(START_GAP)
        argv = [sys.executable, __file__, name, protection, "--json", f"--phase={phase}"]
        done = subprocess.run(argv + ["--trace"] * trace, capture_output=True, text=True)
        try:
            outcome: dict[str, Any] = json.loads(done.stdout)
            return outcome
        except ValueError:
            return {"failure": (done.stderr or done.stdout).strip()}


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description="Run one case.")
    parser.add_argument("case", choices=CASES)
    parser.add_argument(
        "protection", choices=(*cases.programs.PROTECTIONS, link_cases.PROTECTION, session_cases.PROTECTION)
    )
    parser.add_argument("--phase", type=float, default=0.5, help="0 to 1: when in the keepalive's period it breaks")
    parser.add_argument("--trace", action="store_true", help="sample TCP_INFO ten times a second")
    parser.add_argument("--json", action="store_true", help="one line of JSON, for programs")
    arguments = parser.parse_args()
    enter_unprivileged()
    outcome = run(arguments.case, arguments.protection, phase=arguments.phase, trace=arguments.trace)
    if arguments.json:
        print(json.dumps(outcome))
        return 0
    for sample in outcome.pop("samples", []):
        print(" ".join(f"{name}={value}" for name, value in sample.items()))
    print(json.dumps(outcome, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
