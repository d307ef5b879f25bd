"""Owns the chaos: faults of all kinds, one after another and at random, on a session that both ends send on.

The same seed strikes with the same faults in the same order; when exactly they meet the packets is the machine's.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import session_programs as programs
from longconn.testing.network import HOSTS, LabError
from session_programs import Counters, Talk
from stage import SLACK, Stage

# The default limit at beats of 0.25 s; a heartbeat may have come just before the fault.
LIMIT = 1.1
RECOVERY = 30 * SLACK
# Such recoveries are reported, in seconds.
SLOW = 2.5
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Fault:
    kind: str
    begin: Callable[[Stage], object]
    seconds: float


@dataclass
class Struck:
    """A fault as it was: from when to when, and what was measured."""

    kind: str
    began: float
    ended: float = 0.0
    recovered: float | None = None
    memory: tuple[int, ...] = ()


def _between(low: float, high: float) -> Callable[[random.Random], float]:
    return lambda dice: dice.uniform(low, high)


CUT = _between(0.2, 2.3)
# What each kind does, and how long for, in seconds.
KINDS: dict[str, tuple[Callable[[random.Random], Callable[[Stage], object]], Callable[[random.Random], float]]] = {
    "the client's cable pulled": (lambda dice: lambda stage: stage.lab.pull("client"), CUT),
    "the server's cable pulled": (lambda dice: lambda stage: stage.lab.pull("server"), CUT),
    "what the client sends dropped": (lambda dice: lambda stage: stage.lab.drop("client"), CUT),
    "what the server sends dropped": (lambda dice: lambda stage: stage.lab.drop("server"), CUT),
    "all packets dropped": (lambda dice: lambda stage: stage.lab.drop(), CUT),
    "a box on the way resets": (lambda dice: _reset(dice), _between(0.02, 0.2)),
    "the NAT forgets": (lambda dice: lambda stage: stage.lab.forget(), _between(0.0, 0.1)),
    "loss of 5 to 60 %": (lambda dice: _lose(dice.uniform(5, 60)), _between(0.5, 2.5)),
    "32 to 512 kbit/s": (lambda dice: _narrow(dice.randrange(32, 512)), _between(0.5, 2.5)),
    "the client stopped, under the limit": (lambda dice: _freeze("client"), _between(0.2, 0.7)),
    "the server stopped, under the limit": (lambda dice: _freeze("server"), _between(0.2, 0.7)),
    "the client stopped, over the limit": (lambda dice: _freeze("client"), _between(1.4, 2.3)),
    "the server stopped, over the limit": (lambda dice: _freeze("server"), _between(1.4, 2.3)),
}


def _reset(dice: random.Random) -> Callable[[Stage], object]:
    told = dice.choice([("client",), ("server",), HOSTS])
    return lambda stage: stage.lab.reset(*told)


def _lose(percent: float) -> Callable[[Stage], object]:
    return lambda stage: stage.lab.loss(percent)


def _narrow(kilobits: int) -> Callable[[Stage], object]:
    return lambda stage: stage.lab.rate(kilobits)


def _freeze(host: str) -> Callable[[Stage], object]:
    return lambda stage: stage.lab.freeze(stage.processes[host].pid or 0)


def _plan(number: int, dice: random.Random) -> Iterator[Fault]:
    """So many faults, each kind as often as any other."""
    kinds = [kind for _ in range(-(-number // len(KINDS))) for kind in dice.sample(list(KINDS), len(KINDS))]
    for kind in kinds[:number]:
        make, duration = KINDS[kind]
        yield Fault(kind, make(dice), duration(dice))


def strike(stage: Stage, messages: int, faults: int, seed: int, per_second: float) -> dict[str, Any]:
    """Both ends of the stage send each other at least so many messages while so many faults strike."""
    dice = random.Random(seed)
    counters = {host: Counters() for host in HOSTS}
    talk = Talk(per_second=per_second, least=messages)
    stage.start(**{host: (programs.be_numbering, talk, counters[host]) for host in HOSTS})
    for host in HOSTS:
        stage.hear(host, 20 * SLACK)  # "ready"
    began = time.monotonic()
    struck: list[Struck] = []
    for fault in _plan(faults, dice):
        struck.append(_strike(stage, fault))
        # Often the next one strikes before anything has recovered.
        if dice.random() < 0.7:
            _wait_for_recovery(counters, fault)
            struck[-1].recovered = time.monotonic() - struck[-1].ended
        time.sleep(dice.uniform(0, 0.5))
    for host in HOSTS:
        stage.links[host].send("enough")
    reports = {host: stage.hear(host, messages / per_second + 2 * programs.REST) for host in HOSTS}
    took = time.monotonic() - began
    return {"seed": seed, "took": round(took, 1), "ends": reports, "faults": _by_kind(struck, reports)} | {
        "memory": _memory(struck),
        "slow": [
            f"{each.recovered:.1f} s after {each.kind}, {each.began - before.ended:.1f} s after {before.kind}"
            for before, each in pairwise(struck)
            if each.recovered and each.recovered > SLOW
        ],
    }


def _strike(stage: Stage, fault: Fault) -> Struck:
    struck = Struck(fault.kind, time.monotonic())
    fault.begin(stage)
    time.sleep(fault.seconds)
    stage.lab.restore()
    struck.ended = time.monotonic()
    struck.memory = tuple(_resident(stage.processes[host].pid) for host in HOSTS)
    return struck


def _wait_for_recovery(counters: dict[str, Counters], fault: Fault) -> None:
    """Until each end has received something that was sent after the fault."""
    sent = {host: counters[other].sent.value for host, other in zip(HOSTS, reversed(HOSTS), strict=True)}
    deadline = time.monotonic() + RECOVERY
    while any(counters[host].received.value <= sent[host] for host in HOSTS):
        if time.monotonic() > deadline:
            raise LabError(f"{RECOVERY:.0f} s after {fault.kind!r} ({fault.seconds:.2f} s) messages don't arrive")
        time.sleep(0.01)


def _resident(pid: int | None) -> int:
    """Memory of a process in bytes (statm of proc(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def _by_kind(struck: list[Struck], reports: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each kind: how many faults, and the longest times without a message in which no other fault had a part."""
    kinds: dict[str, dict[str, Any]] = {kind: {"faults": 0, "gaps": []} for kind in (*KINDS, SEVERAL)}
    for each in struck:
        kinds[each.kind]["faults"] += 1
    for report in reports.values():
        # In seconds and for people; the ends themselves are of no more use.
        for began, ended in report.pop("gaps"):
            met = {at for at, each in enumerate(struck) if began < each.ended and each.began < ended}
            # What comes behind a fault (a repeat that is late) is of that.
            met = met or {max((at for at, each in enumerate(struck) if each.ended <= began), default=-1)} - {-1}
            if met:
                kind = struck[min(met)].kind if len(met) == 1 else SEVERAL
                kinds[kind]["gaps"].append(round(ended - began, 3))
    for told in kinds.values():
        gaps = told["gaps"]
        told["longest"], told["median"] = max(gaps, default=0.0), statistics.median(gaps) if gaps else 0.0
    return kinds


SEVERAL = "several in a row"


def _memory(struck: list[Struck]) -> dict[str, dict[str, float]]:
    """Of each end in MiB: medians of the first, second and last third of the run, and the most."""
    memory = {}
    third = max(1, len(struck) // 3)
    for at, host in enumerate(HOSTS):
        samples = [each.memory[at] / 2**20 for each in struck]
        memory[host] = {
            "first": statistics.median(samples[:third]),
            "middle": statistics.median(samples[third:-third] or samples),
            "last": statistics.median(samples[-third:]),
            "most": max(samples),
        }
    return memory
