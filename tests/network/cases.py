"""Owns the cases: what breaks, who has to be told, the cause and the time it may take. And runs them, each in its lab.

The test suite runs each case once, `benches/detect.py` ten times; both by `Campaign`, which runs many at once, each in
a process of its own: waiting costs no CPU. One case by hand, with samples of TCP_INFO on the way:

    python tests/network/cases.py cable-idle socket --trace
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

import programs
from lab import HOSTS, Lab, LabError, enter_unprivileged
from programs import LIMIT, Talk

SLACK = float(os.environ.get("LONGCONN_TEST_SLACK", "1"))
# How long we wait to be told before we write down "never". Far above every bound, and arbitrary.
PATIENCE = 20.0
# Keepalive(1, 1, 3) is 4 s; Linux takes up to 0.1 s more.
IDLE_BOUND = 4.3
# A probe that can't even leave the host is tried again after half a second (TCP_RESOURCE_PROBE_INTERVAL, <net/tcp.h>).
OWN_CABLE_BOUND = IDLE_BOUND + 0.5
IN_FLIGHT_BOUND = LIMIT + 0.5
SLOW_BOUND = LIMIT + 1.5
# A guard that convicts sooner than its limit after the last sign of life is wrong, too. The last sign may be as old as
# the keepalive's idle time when the path breaks.
EARLIEST = LIMIT - programs.IDLE - 0.1


class Stage:
    """A lab with both ends running in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.processes: dict[str, BaseProcess] = {}
        self.links: dict[str, Connection] = {}

    def start(self, **ends: tuple[object, ...]) -> None:
        """Starts `server=` and `client=`, each a function of programs.py and its arguments."""
        self._start("server", *ends["server"])
        self.hear("server", 20 * SLACK)  # "listening"
        self._start("client", *ends["client"])
        self.links["client"].send("listening")

    def _start(self, host: str, target: Any, *arguments: object) -> None:
        """By fork, before anything here has threads: a child starts in a millisecond and needs no arguments in text."""
        forking = multiprocessing.get_context("fork")
        self.links[host], link = forking.Pipe()
        arguments = (link, host, self.lab.address("server"), *arguments)
        self.processes[host] = forking.Process(target=target, args=arguments, daemon=True)
        with self.lab.inside(host):
            self.processes[host].start()
        link.close()

    def hear(self, host: str, within: float) -> Any:
        """The next word of that end."""
        if not self.links[host].poll(within):
            raise LabError(f"the {host} says nothing for {within:.0f} s")
        try:
            return self.links[host].recv()
        except EOFError:
            raise LabError(f"the {host}'s process has ended") from None

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()


@dataclass(frozen=True)
class Broken:
    """A path or a peer that breaks: the program at `ours` has to be told, with this cause, within the bound."""

    name: str
    title: str
    program: str
    peer: str
    break_it: Callable[[Stage], None]
    bound: float
    cause: str = "unreachable"
    ours: str = "client"
    nat: bool = False
    polite: bool = False
    earliest: float = EARLIEST

    @property
    def seconds(self) -> float:
        return self.bound

    def run(self, stage: Stage, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        ours = (programs.be_told, protection, self.program)
        theirs = (programs.be_peer, self.peer)
        if self.ours == "client":
            stage.start(client=ours, server=theirs)
        else:
            stage.start(client=theirs, server=ours)
        descriptor = stage.hear(self.ours, 20 * SLACK)
        stage.hear(self.ours, 20 * SLACK)  # "ready"
        # Not a wait for something: the runs spread over the keepalive's period, which begins anew with each answer.
        time.sleep(1 + phase)
        broken_at = time.monotonic()
        with Sampler(stage.processes[self.ours].pid, descriptor if trace else None) as sampler:
            self.break_it(stage)
            stage.links[self.ours].send("broken")
            told = stage.links[self.ours].poll(PATIENCE * SLACK)
        if not told:
            return {"told": None, "seen": "nothing", "cause": None, "samples": sampler.samples}
        report: dict[str, Any] | None = stage.hear(self.ours, 0)
        if report is None:  # a client that reconnects may show it now
            stage.lab.restore()
            stage.links[self.ours].send("repaired")
            report = stage.hear(self.ours, 30 * SLACK)
        assert report
        for moment in ("told", "callback"):
            at = report.pop(moment + "_at", None)
            report[moment] = at and round(at - broken_at, 3)
        return report | {"samples": sampler.samples}


@dataclass(frozen=True)
class Alive:
    """Something is slow, stopped or lossy, but nobody is dead: neither end may be alarmed, and everything arrives."""

    name: str
    title: str
    seconds: float
    client: Talk = field(default_factory=Talk)
    server: Talk = field(default_factory=Talk)
    disturb: Callable[[Stage], None] = lambda stage: None
    nat: bool = False
    polite: bool = False

    def run(self, stage: Stage, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        talk = (programs.be_alive, protection)
        stage.start(client=(*talk, self.client, self.seconds), server=(*talk, self.server, self.seconds))
        descriptors = {host: stage.hear(host, 20 * SLACK) for host in HOSTS}
        time.sleep(phase)
        reports: dict[str, dict[str, Any]] = {}
        with Sampler(stage.processes["client"].pid, descriptors["client"] if trace else None) as sampler:
            self.disturb(stage)
            for host in HOSTS:
                reports[host] = stage.hear(host, self.seconds + 30 * SLACK)
        alarms = sum(bool(report["errors"] or report["lost"]) for report in reports.values())
        client, server = reports["client"], reports["server"]
        whole = (client["sent"], server["sent"]) == (server["received"], client["received"])
        return {"alarms": alarms, "whole": whole, "ends": reports, "samples": sampler.samples}


def _pull(host: str) -> Callable[[Stage], None]:
    return lambda stage: stage.lab.pull(host)


def _drop(*senders: str) -> Callable[[Stage], None]:
    return lambda stage: stage.lab.drop(*senders)


def _forget(stage: Stage) -> None:
    stage.lab.forget()


def _kill_peer(stage: Stage) -> None:
    stage.processes["server"].kill()


def _freeze(host: str) -> Callable[[Stage], None]:
    def freeze_for_ten_seconds(stage: Stage) -> None:
        pid = stage.processes[host].pid
        assert pid
        time.sleep(1)
        stage.lab.freeze(pid)
        time.sleep(10)
        stage.lab.thaw(pid)

    return freeze_for_ten_seconds


def _lose(stage: Stage) -> None:
    stage.lab.loss(2)
    time.sleep(20)
    stage.lab.loss(0)


# fmt: off
BROKEN = [
    # While idle the kernel's own keepalive finds out; the guard must not stand in its way.
    Broken("cable-idle", "cable pulled while idle",
           "waits", "reads", _pull("server"), IDLE_BOUND),
    Broken("cable-idle-selecting", "the same, waiting in a selector",
           "waits-selecting", "reads", _pull("server"), IDLE_BOUND),
    Broken("cable-idle-server", "the same, at the server (accepted socket)",
           "waits", "reads", _pull("client"), IDLE_BOUND, ours="server"),
    Broken("cable-idle-polite", "the same, the router says unreachable (ICMP)",
           "waits", "reads", _pull("server"), IDLE_BOUND, polite=True),
    Broken("cable-idle-own", "our own cable pulled while idle",
           "waits", "reads", _pull("client"), OWN_CABLE_BOUND),
    Broken("nat-idle", "NAT forgot us while idle",
           "waits", "reads", _forget, IDLE_BOUND, nat=True),
    Broken("nat-idle-server", "the same, at the server",
           "waits", "reads", _forget, IDLE_BOUND, nat=True, ours="server"),
    Broken("unheard-idle", "ours to the peer cut while idle",
           "waits", "reads", _drop("client"), IDLE_BOUND),
    # With data in flight the kernel says nothing for a quarter of an hour.
    Broken("cable-sending", "cable pulled while we send",
           "sends", "reads", _pull("server"), IN_FLIGHT_BOUND),
    Broken("cable-sending-server", "the same, at the server (accepted socket)",
           "sends", "reads", _pull("client"), IN_FLIGHT_BOUND, ours="server"),
    Broken("cable-sending-polite", "the same, the router says unreachable (ICMP)",
           "sends", "reads", _pull("server"), IN_FLIGHT_BOUND, polite=True),
    Broken("cable-sending-own", "our own cable pulled while we send",
           # Not the peer's end: our own kernel can't send, tries again each half second (TCP_RESOURCE_PROBE_INTERVAL)
           # and counts that in fewer places. Its three attempts may take that much longer.
           "sends", "reads", _pull("client"), IN_FLIGHT_BOUND + 0.5),
    Broken("cable-asking", "cable pulled, then one request",
           "asks", "reads", _pull("server"), IN_FLIGHT_BOUND),
    Broken("nat-asking", "NAT forgot us, then one request",
           "asks", "reads", _forget, IN_FLIGHT_BOUND, nat=True),
    Broken("unanswered-sending", "the peer's to us cut while we send",
           "sends", "reads", _drop("server"), IN_FLIGHT_BOUND),
    # Where the kernel's clocks are reset again and again, or don't run.
    Broken("cable-slow-reader", "peer reads nothing, then the cable is pulled",
           "fills", "reads-nothing", _pull("server"), SLOW_BOUND),
    Broken("unheard-receiving", "ours to the peer cut, it streams, we only read",
           "receives", "streams", _drop("client"), SLOW_BOUND, cause="deaf"),
    Broken("unheard-receiving-ticks", "ours to the peer cut, it sends 100 bytes 20 times a second, we only read",
           "receives", "ticks", _drop("client"), SLOW_BOUND, cause="deaf"),
    Broken("unheard-sending", "ours to the peer cut, it streams, we send too",
           "receives-and-sends", "streams", _drop("client"), SLOW_BOUND, cause="deaf"),
    Broken("unheard-sending-ticks", "ours to the peer cut, it sends 100 bytes 20 times a second, we send too",
           "receives-and-sends", "ticks", _drop("client"), SLOW_BOUND, cause="deaf"),
    # And where nobody has to wait.
    Broken("reset", "peer killed with unread data (RST)",
           "fills", "reads-nothing", _kill_peer, 0.5, cause="reset", earliest=0),
]

REDIS = [
    Broken("redis-waiting", "worker in BLPOP, cable pulled",
           "redis-waits", "redis", _pull("server"), IDLE_BOUND),
    Broken("redis-subscribed", "subscriber, NAT forgot",
           "redis-subscribes", "redis", _forget, IDLE_BOUND, nat=True),
    Broken("redis-asking", "cable pulled, then GET",
           "redis-asks", "redis", _pull("server"), IN_FLIGHT_BOUND),
]

ALIVE = [
    Alive("reads-nothing", "peer reads nothing for 30 s", 30,
          server=Talk(sends=False, reads_from=30)),
    Alive("reads-slowly", "peer reads 4 kB/s for 20 s", 20,
          server=Talk(sends=False, bytes_per_second=4000)),
    Alive("loss", "2 % loss for 20 s", 21, disturb=_lose),
    Alive("our-gil", "our Python holds the GIL for 15 s", 18, client=Talk(holds_gil=15)),
    Alive("peer-gil", "the peer's Python holds the GIL for 15 s", 18, server=Talk(holds_gil=15)),
    Alive("we-stopped", "our own process stopped for 10 s", 14, disturb=_freeze("client")),
    Alive("we-stopped-slow-reader", "the same, and the peer reads nothing", 14,
          server=Talk(sends=False, reads_from=14), disturb=_freeze("client")),
    Alive("idle", "nothing happens for 15 s", 15, client=Talk(sends=False), server=Talk(sends=False)),
]
# fmt: on

_ALL: list[Broken | Alive] = [*BROKEN, *REDIS, *ALIVE]
CASES = {case.name: case for case in _ALL}

# Which ways of protecting are held to the bounds, by which cases. A reset is told by the socket, not by its guard.
HELD: list[tuple[str, str]] = [
    *((name, "socket") for name in CASES if not name.startswith("redis")),
    *((name, "guard") for name in CASES if not name.startswith(("redis", "reset"))),
    *((case.name, "redis") for case in REDIS),
]
# For contrast only: what the same cases do to people without longconn.
CONTRAST: list[tuple[str, str]] = [
    ("cable-idle", "stdlib"),
    ("cable-sending", "stdlib"),
    ("cable-slow-reader", "stdlib"),
    ("nat-asking", "stdlib"),
    ("unheard-receiving", "stdlib"),
    ("unheard-receiving-ticks", "stdlib"),
    ("unheard-sending", "stdlib"),
    ("reads-nothing", "stdlib"),
    ("cable-sending", "user-timeout"),
    ("cable-slow-reader", "user-timeout"),
    ("unheard-receiving", "user-timeout"),
    ("reads-nothing", "user-timeout"),
    ("reads-slowly", "user-timeout"),
]


class Sampler:
    """Reads TCP_INFO of another process's socket ten times a second while the block runs.

    By a duplicate of its descriptor (pidfd_getfd(2)), so that the other process takes no part in it.
    """

    # Name, offset and form in struct tcp_info, <linux/tcp.h>.
    FIELDS: ClassVar = {
        "state": (0, "B"),
        "retransmits": (2, "B"),
        "probes": (3, "B"),
        "backoff": (4, "B"),
        "unacked": (24, "I"),
        "last_data_recv": (52, "I"),
        "last_ack_recv": (56, "I"),
        "bytes_acked": (120, "Q"),
        "bytes_received": (128, "Q"),
        "segs_out": (136, "I"),
        "segs_in": (140, "I"),
        "notsent": (144, "I"),
        "data_segs_in": (152, "I"),
        "rcv_ooopack": (224, "I"),
        "rcv_wnd": (232, "I"),
    }

    def __init__(self, pid: int | None, descriptor: int | None) -> None:
        self.samples: list[dict[str, float]] = []
        self._process = pid
        self._descriptor = descriptor
        self._enough = threading.Event()

    def __enter__(self) -> Sampler:
        if self._descriptor is not None:
            assert self._process
            process = os.pidfd_open(self._process)
            duplicate = ctypes.CDLL(None, use_errno=True).syscall(438, process, self._descriptor, 0)
            os.close(process)
            if duplicate < 0:
                raise LabError(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
            self._thread = threading.Thread(target=self._sample, args=(socket.socket(fileno=duplicate),))
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            self._enough.set()
            self._thread.join()

    def _sample(self, sock: socket.socket) -> None:
        start = time.monotonic()
        with sock:
            while not self._enough.wait(0.1):
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                fields = {name: struct.unpack_from(form, info, at)[0] for name, (at, form) in self.FIELDS.items()}
                self.samples.append({"at": round(time.monotonic() - start, 2)} | fields)


def run(name: str, protection: str, *, phase: float, trace: bool) -> dict[str, Any]:
    """One run in a lab of its own, in this process."""
    case = CASES[name]
    with Lab(nat=case.nat, polite=case.polite) as lab, contextlib.closing(Stage(lab)) as stage:
        return case.run(stage, protection, phase, trace)


class Campaign:
    """Many runs at once, each in a process of its own. `outcome()` waits for one of them.

    An outcome is what `run` returns, or {"failure": text} when the run itself went wrong.
    """

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(jobs)
        self._outcomes: dict[tuple[str, str, int], Future[dict[str, Any]]] = {}

    def start(self, wanted: Iterable[tuple[str, str]], *, runs: int = 1, trace: bool = False) -> None:
        """Starts these cases, the longest first, each with `runs` phases of the keepalive's period."""
        longest_first = sorted(wanted, key=lambda each: -CASES[each[0]].seconds)
        for name, protection in longest_first:
            for number in range(runs):
                self._outcomes[name, protection, number] = self._pool.submit(
                    _run_apart, name, protection, (number + 0.5) / runs, trace
                )

    def outcome(self, name: str, protection: str, number: int = 0) -> dict[str, Any]:
        return self._outcomes[name, protection, number].result()

    def close(self) -> None:
        """Waits for runs under way (they end by themselves), starts no others."""
        self._pool.shutdown(cancel_futures=True)


def _run_apart(name: str, protection: str, phase: float, trace: bool) -> dict[str, Any]:
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
    parser.add_argument("protection", choices=programs.PROTECTIONS)
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
