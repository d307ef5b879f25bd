"""Owns the cases of sockets: what breaks, who has to be told, the cause and the time it may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import programs
from programs import LIMIT, Talk
from stage import PATIENCE, SLACK, Sampler, Stage, drop, forget, freeze_for, hear_out, kill, pull

# Keepalive(1, 1, 3) is 4 s; Linux takes up to 0.1 s more.
IDLE_BOUND = 4.3
# A probe that can't even leave the host is tried again after half a second (TCP_RESOURCE_PROBE_INTERVAL, <net/tcp.h>).
OWN_CABLE_BOUND = IDLE_BOUND + 0.5
IN_FLIGHT_BOUND = LIMIT + 0.5
SLOW_BOUND = LIMIT + 1.5
# A guard that convicts sooner than its limit after the last sign of life is wrong, too. The last sign may be as old as
# the keepalive's idle time when the path breaks.
EARLIEST = LIMIT - programs.IDLE - 0.1


@dataclass(frozen=True)
class Broken:
    """A path or a peer that breaks: the program at `ours` has to be told, with this cause, within the bound."""

    name: str
    title: str
    program: str
    peer: str
    break_it: Callable[[Stage], object]
    bound: float
    cause: str = "unreachable"
    ours: str = "client"
    nat: bool = False
    polite: bool = False
    lane: str = "crowd"
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

    def complaint(self, outcome: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        if outcome["told"] is None:
            return "never told"
        if outcome["cause"] != self.cause:
            return f"cause {outcome['cause']}, expected {self.cause}"
        if not self.earliest <= outcome["told"] <= self.bound * allowance:
            return f"told after {outcome['told']:.2f} s, not in {self.earliest:.2f} to {self.bound * allowance:.2f} s"
        return None


@dataclass(frozen=True)
class Alive:
    """Something is slow, stopped or lossy, but nobody is dead: neither end may be alarmed, and everything arrives."""

    name: str
    title: str
    seconds: float
    client: Talk = field(default_factory=Talk)
    server: Talk = field(default_factory=Talk)
    disturb: Callable[[Stage], object] = lambda stage: None
    nat: bool = False
    polite: bool = False
    lane: str = "crowd"

    def run(self, stage: Stage, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        talk = (programs.be_alive, protection)
        stage.start(client=(*talk, self.client, self.seconds), server=(*talk, self.server, self.seconds))
        return hear_out(stage, self.disturb, phase, self.seconds + 30 * SLACK, trace)

    def complaint(self, outcome: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        if not outcome["alarms"] and outcome["whole"]:
            return None
        return f"{outcome['alarms']} alarms, everything arrived: {outcome['whole']}"


def _lose(stage: Stage) -> None:
    stage.lab.loss(2)
    time.sleep(20)
    stage.lab.loss(0)


# fmt: off
BROKEN = [
    # While idle the kernel's own keepalive finds out; the guard must not stand in its way.
    Broken("cable-idle", "cable pulled while idle",
           "waits", "reads", pull("server"), IDLE_BOUND),
    Broken("cable-idle-selecting", "the same, waiting in a selector",
           "waits-selecting", "reads", pull("server"), IDLE_BOUND),
    Broken("cable-idle-server", "the same, at the server (accepted socket)",
           "waits", "reads", pull("client"), IDLE_BOUND, ours="server"),
    Broken("cable-idle-polite", "the same, the router says unreachable (ICMP)",
           "waits", "reads", pull("server"), IDLE_BOUND, polite=True),
    Broken("cable-idle-own", "our own cable pulled while idle",
           "waits", "reads", pull("client"), OWN_CABLE_BOUND),
    Broken("nat-idle", "NAT forgot us while idle",
           "waits", "reads", forget, IDLE_BOUND, nat=True),
    Broken("nat-idle-server", "the same, at the server",
           "waits", "reads", forget, IDLE_BOUND, nat=True, ours="server"),
    Broken("unheard-idle", "ours to the peer cut while idle",
           "waits", "reads", drop("client"), IDLE_BOUND),
    # With data in flight the kernel says nothing for a quarter of an hour.
    Broken("cable-sending", "cable pulled while we send",
           "sends", "reads", pull("server"), IN_FLIGHT_BOUND),
    Broken("cable-sending-server", "the same, at the server (accepted socket)",
           "sends", "reads", pull("client"), IN_FLIGHT_BOUND, ours="server"),
    Broken("cable-sending-polite", "the same, the router says unreachable (ICMP)",
           "sends", "reads", pull("server"), IN_FLIGHT_BOUND, polite=True),
    Broken("cable-sending-own", "our own cable pulled while we send",
           # Not the peer's end: our own kernel can't send, tries again each half second (TCP_RESOURCE_PROBE_INTERVAL)
           # and counts that in fewer places. Its three attempts may take that much longer.
           "sends", "reads", pull("client"), IN_FLIGHT_BOUND + 0.5),
    Broken("cable-asking", "cable pulled, then one request",
           "asks", "reads", pull("server"), IN_FLIGHT_BOUND),
    Broken("nat-asking", "NAT forgot us, then one request",
           "asks", "reads", forget, IN_FLIGHT_BOUND, nat=True),
    Broken("unanswered-sending", "the peer's to us cut while we send",
           "sends", "reads", drop("server"), IN_FLIGHT_BOUND),
    # Where the kernel's clocks are reset again and again, or don't run.
    Broken("cable-slow-reader", "peer reads nothing, then the cable is pulled",
           "fills", "reads-nothing", pull("server"), SLOW_BOUND),
    Broken("unheard-receiving", "ours to the peer cut, it streams, we only read",
           "receives", "streams", drop("client"), SLOW_BOUND, cause="deaf"),
    Broken("unheard-receiving-ticks", "ours to the peer cut, it sends 100 bytes 20 times a second, we only read",
           "receives", "ticks", drop("client"), SLOW_BOUND, cause="deaf"),
    Broken("unheard-sending", "ours to the peer cut, it streams, we send too",
           "receives-and-sends", "streams", drop("client"), SLOW_BOUND, cause="deaf"),
    Broken("unheard-sending-ticks", "ours to the peer cut, it sends 100 bytes 20 times a second, we send too",
           "receives-and-sends", "ticks", drop("client"), SLOW_BOUND, cause="deaf"),
    # And where nobody has to wait.
    Broken("reset", "peer killed with unread data (RST)",
           "fills", "reads-nothing", kill("server"), 0.5, cause="reset", earliest=0),
]

REDIS = [
    Broken("redis-waiting", "worker in BLPOP, cable pulled",
           "redis-waits", "redis", pull("server"), IDLE_BOUND),
    Broken("redis-subscribed", "subscriber, NAT forgot",
           "redis-subscribes", "redis", forget, IDLE_BOUND, nat=True),
    Broken("redis-asking", "cable pulled, then GET",
           "redis-asks", "redis", pull("server"), IN_FLIGHT_BOUND),
]

ALIVE = [
    Alive("reads-nothing", "peer reads nothing for 30 s", 30,
          server=Talk(sends=False, reads_from=30)),
    Alive("reads-slowly", "peer reads 4 kB/s for 20 s", 20,
          server=Talk(sends=False, bytes_per_second=4000)),
    Alive("loss", "2 % loss for 20 s", 21, disturb=_lose),
    Alive("our-gil", "our Python holds the GIL for 15 s", 18, client=Talk(holds_gil=15)),
    Alive("peer-gil", "the peer's Python holds the GIL for 15 s", 18, server=Talk(holds_gil=15)),
    Alive("we-stopped", "our own process stopped for 10 s", 14, disturb=freeze_for(10, "client")),
    Alive("we-stopped-slow-reader", "the same, and the peer reads nothing", 14,
          server=Talk(sends=False, reads_from=14), disturb=freeze_for(10, "client")),
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
