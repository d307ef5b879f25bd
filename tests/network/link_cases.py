"""Owns the cases of LongConnection and LongServer: what breaks, what each side that survives has to be told, and when.

Beats come each second and the limit is the default one where a case doesn't say otherwise. A way of being told is the
cause; with it whom the peer gave up and why, if it did ("deaf: unheard"), or which level hangs ("hung: interpreter").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from typing import Any

import link_programs as programs
from link_programs import End, Talk
from longconn.testing.network import HOSTS
from stage import PATIENCE, SLACK, Sampler, Stage, Witness, drop, forget, freeze_for, hear_out, kill, pull

PROTECTION = "link"

INTERVAL = 1.0
# Two and a half intervals; round trips are well below a millisecond here.
LIMIT = 2.5
BOUND = LIMIT + 0.1
# Who is heard no more learns it from the peer, which has its limit, or by its own clock, which starts with a beat.
ONE_WAY_BOUND = LIMIT + INTERVAL + 0.1
# Whoever convicts sooner was too quick: the last byte may have come an interval before the fault.
EARLIEST = LIMIT - INTERVAL - 0.1
QUICK = {"interval": 0.1, "limit": 0.25}
# After a packet that says all. The median is held to 20 ms, one run may meet a busy machine.
BY_PACKET, BY_PACKET_MEDIAN = 0.5, 0.02
# Who was stopped finds in its buffers that it was given up.
AFTER_PAUSE = 1.0


@dataclass(frozen=True)
class Told:
    """In one of these ways, not before `earliest` and within `bound` (seconds)."""

    ways: tuple[str, ...]
    bound: float = BOUND
    earliest: float = EARLIEST
    median: float | None = None

    def complaint(self, report: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        if report["told"] is None:
            return "never told"
        if report["way"] not in self.ways:
            return f"told {report['way']!r}, expected {' or '.join(map(repr, self.ways))}"
        if report["lost"] != report["cause"] or report["events"][-1] != ["closed", report["cause"]]:
            return f"raised {report['cause']}, but lost is {report['lost']} and the events {report['events']}"
        if not self.earliest <= report["told"] <= self.bound * allowance:
            return f"told after {report['told']:.3f} s, not in {self.earliest:.3f} to {self.bound * allowance:.3f} s"
        return None


UNREACHABLE = Told(("unreachable",))
FROZEN = Told(("frozen",))
UNHEARD = Told(("deaf", "deaf: unheard", "unreachable", "reset: unheard"), ONE_WAY_BOUND)
PAUSED = Told(("deaf: paused", "reset: paused"), AFTER_PAUSE, 0)
QUICKLY = Told(("unreachable", "silent"), 0.3, 0.1)


@dataclass(frozen=True)
class LinkBroken:
    """A path or a peer that breaks: each host of `told` has to be told.

    `break_it` may give the moments from which a host's time counts; else it is the moment before the fault, or, with
    `by_packet`, that of the FIN or RST that comes to the one who is told.
    """

    name: str
    title: str
    break_it: Callable[[Stage], object]
    told: dict[str, Told]
    client: End = field(default_factory=End)
    server: End = field(default_factory=End)
    by_packet: bool = False
    through_proxy: bool = False
    nat: bool = False
    polite: bool = False
    lane: str = "crowd"
    seconds: float = LIMIT

    def run(self, stage: Stage, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        proxy = {"router": (programs.be_proxy, stage.lab.address("server"))} if self.through_proxy else {}
        stage.start(client=(programs.be_told, self.client), server=(programs.be_told, self.server), **proxy)
        descriptors = {host: stage.hear(host, 20 * SLACK) for host in HOSTS}
        for host in HOSTS:
            stage.hear(host, 20 * SLACK)  # "ready"
        # Not a wait for something: the runs spread over the heartbeat's period, and a few beats have shown the path.
        time.sleep(2 + phase)
        (first, *_) = self.told
        witness = Witness(stage.lab, first)
        with Sampler(stage.processes[first].pid, descriptors[first] if trace else None) as sampler:
            broken_at = time.monotonic()
            moments = self.break_it(stage)
            reports = self._reports(stage)
        for host, report in reports.items():
            since = moments.get(host, broken_at) if isinstance(moments, dict) else broken_at
            if self.by_packet:
                since = witness.moment() or since
            if (told_at := report.pop("told_at")) is not None:
                report["told"] = round(told_at - since, 4)
                detail = report["given_up"] or (report["cause"] == "hung" and report["level"])
                report["way"] = f"{report['cause']}: {detail}" if detail else report["cause"]
        witness.close()
        return {"ends": reports, "samples": sampler.samples}

    def complaint(self, outcome: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        wrong = ((host, told.complaint(outcome["ends"][host], allowance)) for host, told in self.told.items())
        return "; ".join(f"{host}: {text}" for host, text in wrong if text) or None

    def _reports(self, stage: Stage) -> dict[str, dict[str, Any]]:
        reports: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + PATIENCE * SLACK
        while waiting := {stage.links[host]: host for host in self.told if host not in reports}:
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for link in ready:
                reports[waiting[link]] = link.recv()  # type: ignore[index, union-attr]
        nothing = {"told_at": None, "told": None, "way": "nothing", "cause": None}
        return {host: reports.get(host, dict(nothing)) for host in self.told}


@dataclass(frozen=True)
class LinkAlive:
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
        talks = {host: (programs.be_alive, getattr(self, host), self.seconds) for host in HOSTS}
        stage.start(**talks)
        return hear_out(stage, self.disturb, phase, self.seconds + 60 * SLACK, trace)

    def complaint(self, outcome: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        if outcome["alarms"] or not outcome["whole"]:
            errors = {host: end["errors"] for host, end in outcome["ends"].items()}
            return f"{outcome['alarms']} alarms ({errors}), everything arrived: {outcome['whole']}"
        return None


@dataclass(frozen=True)
class LinkAges:
    """The server's program hangs, and the client's heartbeat has to say since when, and which level hangs."""

    name: str
    title: str
    hangs: str
    level: str
    bound: float = 1.0
    nat: bool = False
    polite: bool = False
    lane: str = "crowd"
    seconds: float = 9

    def run(self, stage: Stage, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        watching = (programs.be_watching, End(), self.level == "application", self.seconds)
        stage.start(client=watching, server=(programs.be_told, End(self.hangs)))
        for host in HOSTS:
            stage.hear(host, 20 * SLACK)  # its descriptor
            stage.hear(host, 20 * SLACK)  # "ready"
        time.sleep(1 + phase)
        hung_at = _hang("server")(stage)["client"]
        reported, watched, deviation = None, 0.0, {"interpreter": 0.0, "application": 0.0}
        for at, interpreter, application, told_ago in stage.hear("client", self.seconds + 20 * SLACK):
            hung_for, watched = at - hung_at, at - hung_at
            if told_ago is None or told_ago > hung_for:
                continue  # the peer hasn't beaten since it hangs
            reported = hung_for if reported is None else reported
            for level, age in (("interpreter", interpreter), ("application", application)):
                # An age is as of the last beat; one that stands still is no age.
                wrong_by = age + told_ago - hung_for if level == self.level else age
                deviation[level] = max(deviation[level], round(abs(wrong_by), 3))
        return {"reported": reported, "watched": watched, "deviation": deviation, "samples": []}

    def complaint(self, outcome: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        if outcome["reported"] is None or outcome["watched"] < self.seconds / 2:
            return f"reported after {outcome['reported']} s, watched for {outcome['watched']:.1f} s"
        if outcome["reported"] > (INTERVAL + 0.1) * allowance:
            return f"the first beat that tells of it came after {outcome['reported']:.2f} s"
        if max(outcome["deviation"].values()) > self.bound * allowance:
            return f"ages differ from the truth by {outcome['deviation']} s"
        return None


def _lose(stage: Stage) -> None:
    stage.lab.loss(5)
    time.sleep(20)
    stage.lab.loss(0)


def _narrow(queue: float) -> Callable[[Stage], object]:
    return lambda stage: stage.lab.rate(8000, queue=queue)


def _freeze(host: str) -> Callable[[Stage], dict[str, float]]:
    """Until ten seconds later, from which its own time counts."""

    def freeze(stage: Stage) -> dict[str, float]:
        pid = stage.processes[host].pid
        assert pid
        stage.lab.freeze(pid)
        time.sleep(10)
        thawed_at = time.monotonic()
        stage.lab.thaw(pid)
        return {host: thawed_at}

    return freeze


def _kill_frozen(stage: Stage) -> None:
    """After a beat came that it won't read: its kernel says RST and not FIN."""
    pid = stage.processes["server"].pid
    assert pid
    stage.lab.freeze(pid)
    time.sleep(1.2 * INTERVAL)
    stage.processes["server"].kill()


def _power_off(stage: Stage) -> None:
    stage.lab.power_off("server")


def _reboot(stage: Stage) -> None:
    stage.lab.power_off("server")
    time.sleep(0.5)
    stage.lab.power_on("server")


def _drop_larger(stage: Stage) -> None:
    stage.lab.drop_larger(80, "client")


def _swallow(sender: str) -> Callable[[Stage], None]:
    def swallow(stage: Stage) -> None:
        stage.links["router"].send(sender)
        stage.hear("router", 20 * SLACK)

    return swallow


def _hang(host: str) -> Callable[[Stage], dict[str, float]]:
    """The other's time counts from the moment at which the program says that it hangs from now on."""

    def hang(stage: Stage) -> dict[str, float]:
        stage.links[host].send("hang")
        hung_at = stage.hear(host, 20 * SLACK)
        return {other: hung_at for other in HOSTS if other != host}

    return hang


def _both(told: Told) -> dict[str, Told]:
    return dict.fromkeys(HOSTS, told)


SENDS, FLOODS = End("sends"), End("floods")

# fmt: off
BROKEN = [
    LinkBroken("link-cable-idle", "cable pulled while idle", pull("server"), _both(UNREACHABLE)),
    LinkBroken("link-cable-sending", "cable pulled while the client sends", pull("server"), _both(UNREACHABLE),
               client=SENDS),
    LinkBroken("link-cable-sending-own", "the client's own cable pulled while it sends", pull("client"),
               _both(UNREACHABLE), client=SENDS),
    LinkBroken("link-nat-idle", "NAT forgot us while idle", forget, _both(UNREACHABLE), nat=True),
    LinkBroken("link-nat-sending", "NAT forgot us while the client sends", forget, _both(UNREACHABLE),
               client=SENDS, nat=True),
    LinkBroken("link-power", "the server's power cut", _power_off, {"client": UNREACHABLE}),
    LinkBroken("link-frozen", "the server frozen (SIGSTOP), and continued after 10 s", _freeze("server"),
               {"client": FROZEN, "server": PAUSED}),
    LinkBroken("link-frozen-client", "the client frozen, and continued after 10 s", _freeze("client"),
               {"server": FROZEN, "client": PAUSED}),
    LinkBroken("link-frozen-sending", "the server frozen while the client sends", _freeze("server"),
               {"client": FROZEN, "server": PAUSED}, client=SENDS),
    LinkBroken("link-frozen-flooded", "the server frozen while the client sends all it can", _freeze("server"),
               {"client": FROZEN, "server": PAUSED}, client=FLOODS),
    LinkBroken("link-unheard", "client to server cut while idle", drop("client"),
               {"server": UNREACHABLE, "client": UNHEARD}),
    LinkBroken("link-unheard-sending", "client to server cut while the client sends", drop("client"),
               {"server": UNREACHABLE, "client": UNHEARD}, client=SENDS),
    LinkBroken("link-unanswered", "server to client cut while idle", drop("server"),
               {"client": UNREACHABLE, "server": UNHEARD}),
    LinkBroken("link-unanswered-sending", "server to client cut while the client sends", drop("server"),
               {"client": UNREACHABLE, "server": UNHEARD}, client=SENDS),
    # By the client's own clock: its acknowledgements arrive, so the server's beats come; what it sends doesn't.
    LinkBroken("link-larger", "what the client sends is lost, but for bare ACKs (packets over 80 bytes)",
               _drop_larger, {"client": Told(("deaf: unheard",), ONE_WAY_BOUND), "server": FROZEN}),
    LinkBroken("link-larger-patient", "the same, the server's limit is 30 s",
               _drop_larger, {"client": Told(("deaf",), ONE_WAY_BOUND)}, server=End(limit=30.0)),
    # The kernel next to us acknowledges what the proxy then throws away: to the other side it looks frozen.
    LinkBroken("link-swallowed", "a proxy swallows what the client sends", _swallow("client"),
               {"client": Told(("deaf: unheard",), ONE_WAY_BOUND), "server": FROZEN}, through_proxy=True),
    LinkBroken("link-swallowed-server", "a proxy swallows what the server sends", _swallow("server"),
               {"server": Told(("deaf: unheard",), ONE_WAY_BOUND), "client": FROZEN}, through_proxy=True),
    # Our own clock, too, takes the proxy's kernel for the server's: the server has to say it, when its limit is over.
    LinkBroken("link-swallowed-patient", "the same, the server's limit is 6 s", _swallow("client"),
               {"client": Told(("deaf: unheard",), 6 + 0.1, 6 - INTERVAL - 0.1)}, server=End(limit=6.0),
               through_proxy=True),
    LinkBroken("link-hung-interpreter", "a C call holds the server's GIL, interpreter_limit=3", _hang("server"),
               {"client": Told(("hung: interpreter",), 3 + INTERVAL + 0.2, 3)},
               client=End(interpreter_limit=3.0), server=End("hangs-interpreter")),
    LinkBroken("link-hung-application", "the server takes no message any more, application_limit=3", _hang("server"),
               {"client": Told(("hung: application",), 3 + INTERVAL + 0.2, 3)},
               client=End("sends", application_limit=3.0), server=End("hangs-application")),
    # Where it is a matter of milliseconds.
    LinkBroken("link-quick-cable", "cable pulled while idle, Heartbeat(0.1, limit=0.25)", pull("server"),
               _both(QUICKLY), client=End(**QUICK), server=End(**QUICK), lane="quiet"),
    LinkBroken("link-quick-frozen", "the server frozen, Heartbeat(0.1, limit=0.25)", _freeze("server"),
               {"client": Told(("frozen", "silent"), 0.3, 0.1), "server": PAUSED},
               client=End(**QUICK), server=End(**QUICK), lane="quiet"),
    LinkBroken("link-killed", "the server killed", kill("server"),
               {"client": Told(("ended", "reset"), BY_PACKET, 0, BY_PACKET_MEDIAN)}, by_packet=True, lane="quiet"),
    LinkBroken("link-reset", "the server killed with unread data (RST)", _kill_frozen,
               {"client": Told(("reset",), BY_PACKET, 0, BY_PACKET_MEDIAN)}, by_packet=True, lane="quiet"),
    LinkBroken("link-reboot", "the server's power cut, and back half a second later (RST)", _reboot,
               {"client": Told(("reset",), BY_PACKET, 0, BY_PACKET_MEDIAN)}, by_packet=True, lane="quiet"),
]

LARGE = {"client": Talk(pause=0, large=100_000_000), "server": Talk(), "lane": "large"}
ALIVE = [
    LinkAlive("link-peer-gil", "a C call holds the server's GIL for 15 s", 18, server=Talk(holds_gil=15)),
    LinkAlive("link-our-gil", "a C call holds the client's GIL for 15 s", 18, client=Talk(holds_gil=15)),
    LinkAlive("link-peer-loops", "a loop in pure Python on the server for 15 s", 18, server=Talk(loops=15),
              lane="computing"),
    LinkAlive("link-our-loop", "a loop in pure Python on the client for 15 s", 18, client=Talk(loops=15),
              lane="computing"),
    LinkAlive("link-loss", "5 % loss for 20 s", 21, disturb=_lose),
    LinkAlive("link-loss-idle", "the same, and nothing is sent", 21, client=Talk(pause=0), server=Talk(pause=0),
              disturb=_lose),
    LinkAlive("link-slow-consumer", "the server takes nothing for 30 s while the client sends 100 kB/s", 31,
              client=Talk(pause=0.01), server=Talk(takes_from=30)),
    LinkAlive("link-large", "a message of 100 MB over 8 Mbit/s, the router's queue 50 ms", 105, disturb=_narrow(0.05),
              **LARGE),
    LinkAlive("link-large-queue", "the same, the router's queue 2 s", 105, disturb=_narrow(2.0), **LARGE),
    LinkAlive("link-stopped", "the client stopped for 10 s, the server's limit is 30 s", 14, server=Talk(limit=30.0),
              disturb=freeze_for(10, "client")),
    LinkAlive("link-idle", "nothing is sent for 20 s", 20, client=Talk(pause=0), server=Talk(pause=0)),
]

AGES = [
    LinkAges("link-ages-interpreter", "a C call holds the server's GIL", "hangs-interpreter", "interpreter"),
    LinkAges("link-ages-application", "the server takes no message any more", "hangs-application", "application"),
]
# fmt: on


def _over_tls(cases: list[Any], *names: str) -> list[Any]:
    """The same bounds hold there."""
    chosen = {f"link-{name}" for name in names}
    over_tls = [
        replace(
            case,
            name=case.name.replace("link-", "link-tls-"),
            title=f"{case.title}, TLS",
            client=replace(case.client, tls=True),
            server=replace(case.server, tls=True),
        )
        for case in cases
        if case.name in chosen
    ]
    assert len(over_tls) == len(chosen)
    return over_tls


# What TLS could change: what the kernel counts, what lies in front of a beat, and how a connection ends.
BROKEN_TLS = _over_tls(
    BROKEN,
    *("cable-idle", "cable-sending", "nat-idle", "frozen", "frozen-client", "frozen-flooded", "unheard-sending"),
    *("unanswered", "larger", "larger-patient", "swallowed", "hung-interpreter", "quick-cable", "killed", "reset"),
)
ALIVE_TLS = _over_tls(ALIVE, "peer-gil", "loss", "slow-consumer", "large", "idle")

CASES: dict[str, Any] = {case.name: case for case in [*BROKEN, *ALIVE, *AGES, *BROKEN_TLS, *ALIVE_TLS]}
