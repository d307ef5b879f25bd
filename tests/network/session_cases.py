"""Owns the cases of sessions: their links break, and everything arrives once and in order all the same, or is told.

Beats come each quarter of a second, so the limit is 1.1 s, where a case doesn't say otherwise.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import chaos
import session_programs as programs
from crowd import Crowd
from longconn.testing.network import HOSTS, LabError
from session_programs import Counters, Talk
from stage import SLACK, Stage

PROTECTION = "session"

# The kernel's and the interpreter's own wobble, in MiB; a leak of 1 KiB a message or 100 KiB a connection is more.
FLAT = 4.0


@dataclass(frozen=True)
class Chaos:
    """Random faults, one after another; which, a seed in the environment says."""

    SEED: ClassVar = "LONGCONN_CHAOS_SEED"

    name: str
    title: str
    messages: int
    faults: int
    per_second: float
    nat: bool = True
    polite: bool = False
    lane: str = "crowd"
    seconds: float = 60

    def run(self, stage: Stage, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        seed = int(os.environ.get(self.SEED) or random.randrange(1 << 32))
        # Of a run that fails this is what is shown.
        print(f"seed {seed}", file=sys.stderr)
        return chaos.strike(stage, self.messages, self.faults, seed, self.per_second) | {"samples": []}

    def complaint(self, outcome: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        if wrong := doubled_or_lost(outcome["ends"], self.messages):
            return f"seed {outcome['seed']}: {wrong}"
        for host, memory in outcome["memory"].items():
            if memory["last"] > memory["first"] + FLAT:
                return f"seed {outcome['seed']}: the {host}'s memory grew: {memory}"
        return None


def doubled_or_lost(ends: dict[str, dict[str, Any]], messages: int = 0) -> str | None:
    """What didn't arrive once and in order, or who was told of more than a lost link."""
    for host, other in zip(HOSTS, reversed(HOSTS), strict=True):
        end = ends[host]
        if end["wrong"] or end["errors"] or end["lost"]:
            return f"{host}: {end['wrong']} {end['errors']} {end['lost']}"
        if not end["finished"] or end["received"] != ends[other]["sent"] or end["sent"] < messages:
            return f"{host}: {end['received']} received of {ends[other]['sent']}, {end['sent']} sent"
        if any(fresh for *_, fresh in end["events"]):
            return f"{host}: the session was lost: {end['events']}"
    return None


@dataclass(frozen=True)
class Survives:
    """Both ends send while something breaks; each message arrives once and in order, over so many connections.

    Both send messages of the same sizes, by which they know what has to come.
    """

    name: str
    title: str
    disturb: Callable[[Stage], object]
    connections: range = range(2, 4)
    longest: float = 30.0  # without a message, in seconds
    client: Talk = field(default_factory=Talk)
    server: Talk = field(default_factory=Talk)
    through_proxy: bool = False
    nat: bool = False
    polite: bool = False
    lane: str = "crowd"
    seconds: float = 10

    def run(self, stage: Stage, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        talks = {"client": self.client, "server": self.server}
        proxy = {"router": (programs.be_holding, stage.lab.address("server"))} if self.through_proxy else {}
        stage.start(**{host: (programs.be_numbering, talks[host], Counters()) for host in HOSTS}, **proxy)
        for host in HOSTS:
            stage.hear(host, 20 * SLACK)  # "ready"
        time.sleep(1 + phase)
        self.disturb(stage)
        for host in HOSTS:
            stage.links[host].send("enough")
        return {"ends": {host: stage.hear(host, 2 * programs.REST) for host in HOSTS}, "samples": []}

    def complaint(self, outcome: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        connections = outcome["ends"]["client"]["connections"]
        if wrong := doubled_or_lost(outcome["ends"]):
            return wrong
        if connections not in self.connections:
            return f"{connections} connections, not {self.connections.start} to {self.connections.stop - 1}"
        for host, end in outcome["ends"].items():
            longest = max((ended - began for began, ended in end["gaps"]), default=0.0)
            if longest > self.longest * allowance:
                return f"nothing came to the {host} for {longest:.1f} s"
        return None


@dataclass(frozen=True)
class CableBack:
    """A cable is pulled for so long; how long after its return the next message arrives, either way."""

    name: str
    title: str
    host: str
    cut: float
    bound: float = 1.0
    nat: bool = False
    polite: bool = False
    lane: str = "crowd"

    @property
    def seconds(self) -> float:
        return self.cut + 5

    def run(self, stage: Stage, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        talk = Talk(per_second=100, large=1000, interval=1.0)
        stage.start(**{host: (programs.be_numbering, talk, Counters()) for host in HOSTS})
        for host in HOSTS:
            stage.hear(host, 20 * SLACK)  # "ready"
        time.sleep(2 + phase)
        stage.lab.pull(self.host)
        # The phase against whatever is tried again each second.
        time.sleep(self.cut + phase)
        back_at = time.monotonic()
        stage.lab.plug(self.host)
        time.sleep(5)
        for host in HOSTS:
            stage.links[host].send("enough")
        reports = {host: stage.hear(host, 2 * programs.REST) for host in HOSTS}
        for host, report in reports.items():
            after = [ended - back_at for began, ended in report.pop("gaps") if began < back_at < ended]
            if not after:
                raise LabError(f"to the {host} no message came within 5 s of the cable's return")
            report["after"] = round(after[0], 3)
        return {"ends": reports, "samples": []}

    def complaint(self, outcome: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        if wrong := doubled_or_lost(outcome["ends"]):
            return wrong
        for host, end in outcome["ends"].items():
            if end["after"] > self.bound * allowance:
                return f"to the {host} messages came {end['after']} s after the cable"
        return None


# ---- one is killed


@dataclass(frozen=True)
class ServerKilled:
    """kill -9 of the server in the middle of a stream; a supervisor starts another at its address."""

    name: str
    title: str
    client: Talk
    server: Talk = field(default_factory=Talk)
    down: float = 0.3
    nat: bool = False
    polite: bool = False
    lane: str = "crowd"
    seconds: float = 10

    def run(self, stage: Stage, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        sending, before, after = Counters(), Counters(MANY), Counters(MANY)
        stage.start(
            client=(programs.be_sending, self.client, sending), server=(programs.be_taking, self.server, before)
        )
        for host in HOSTS:
            stage.hear(host, 20 * SLACK)  # "ready"
        time.sleep(1 + phase)
        killed_at = time.monotonic()
        stage.processes["server"].kill()
        stage.processes["server"].join()
        time.sleep(self.down)
        stage.restart(programs.be_taking, self.server, after)
        time.sleep(2)
        stage.links["client"].send("enough")
        report = stage.hear("client", 2 * programs.REST)
        return {
            "report": report,
            "before": before.taken(),
            "after": after.taken(),
            "doubtful": _doubtful(report["undelivered"] or after.taken(), before, killed_at, self.client.large),
            "samples": [],
        }

    def complaint(self, outcome: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        report, before, after = outcome["report"], outcome["before"], outcome["after"]
        error = report["error"]
        if before != list(range(len(before))) or not before:
            return f"the first server took {_runs(before)}"
        if not error and not self.client.resends and outcome["doubtful"]["messages"]:
            return f"nobody was told, and some were sent again: {outcome['doubtful']}"
        if not error or self.client.resends:
            # Or everything that was sent was known to be taken: nothing is lost then, and the next session begins.
            if error or not all(number in {*before, *after} for number in range(report["sent"])):
                return f"{error}; {report['sent']} sent, taken were {_runs(before)} and then {_runs(after)}"
            if after != list(range(min(after), report["sent"])):
                return f"the second server took {_runs(after)} of {report['sent']}"
        elif complaint := wrongly_undelivered(report, len(before)):
            return complaint
        return not_explained(outcome["doubtful"], allowance)


@dataclass(frozen=True)
class ClientKilled:
    """kill -9 of the client while the server sends to it: the server keeps the session, and then tells what is left."""

    name: str
    title: str
    server: Talk
    client: Talk = field(default_factory=Talk)
    nat: bool = False
    polite: bool = False
    lane: str = "crowd"
    seconds: float = 10

    def run(self, stage: Stage, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        sending, taking = Counters(), Counters(MANY)
        stage.start(
            client=(programs.be_taking, self.client, taking), server=(programs.be_sending, self.server, sending)
        )
        for host in HOSTS:
            stage.hear(host, 20 * SLACK)  # "ready"
        time.sleep(1 + phase)
        killed_at = time.monotonic()
        stage.processes["client"].kill()
        report = stage.hear("server", self.server.retention + 2 * programs.REST)
        moments = [(at - killed_at, *rest) for at, *rest in report["events"]]
        return {
            "report": report | {"events": moments, "at": report["at"] - killed_at},
            "before": taking.taken(),
            "doubtful": _doubtful(report["undelivered"] or [], taking, killed_at, self.server.large),
            "samples": [],
        }

    def complaint(self, outcome: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        report, before = outcome["report"], outcome["before"]
        if before != list(range(len(before))) or not before:
            return f"the client took {_runs(before)}"
        if complaint := wrongly_undelivered(report, len(before)):
            return complaint
        states = [state for _, state, *_ in report["events"]]
        if states != ["open", "reconnecting", "closed"]:
            return f"events: {report['events']}"
        (_, parted_at, ended_at) = (at for at, *_ in report["events"])
        if not self.server.retention - 0.1 <= ended_at - parted_at <= self.server.retention + 1 * allowance:
            return f"kept for {ended_at - parted_at:.2f} s, not {self.server.retention} s: {report['events']}"
        return not_explained(outcome["doubtful"], allowance)


# More than are sent in any case.
MANY = 100_000
# An ACK is due when half of the least window was taken, and 50 ms after a take (DESIGN 7, and docs/SPEC.md).
UNTOLD_BYTES, UNTOLD_SECONDS = 128 * 1024, 0.05


def wrongly_undelivered(report: dict[str, Any], taken: int) -> str | None:
    """What is wrong with the error of who sent, when the other side had taken so many."""
    error, undelivered, sent = report["error"], report["undelivered"], report["sent"]
    if not error or error["seen"] != "SessionLost":
        return f"told {error}"
    if not report["because"] or report["because"]["seen"] not in ("PeerLost", "PeerReset"):
        return f"its cause is {report['because']}"
    if not report["same"]:
        return "connection.undelivered is another list"
    # It may have taken one more that it had no time to note.
    if not undelivered or undelivered != list(range(undelivered[0], sent)) or undelivered[0] > taken + 1:
        return f"{taken} were taken of {sent}, and undelivered are {_runs(undelivered)}"
    return None


def _doubtful(undelivered: list[int], taking: Counters, killed_at: float, large: int) -> dict[str, float]:
    """Of those that were taken and are told as undelivered, or sent again: how many, and since when the first was."""
    twice = [number for number in undelivered if taking.taken_at[number]]
    size = sum(len(programs.numbered(number, large)) + 4 for number in twice)
    age = killed_at - taking.taken_at[twice[0]] if twice else 0.0
    return {"messages": len(twice), "bytes": size, "age": round(age, 4)}


def not_explained(doubtful: dict[str, float], allowance: float) -> str | None:
    """By an ACK that wasn't due, or under way."""
    if doubtful["bytes"] > UNTOLD_BYTES and doubtful["age"] > UNTOLD_SECONDS * allowance:
        return f"too many were taken, and said not to be: {doubtful}"
    return None


def _runs(numbers: list[int]) -> str:
    """Of numbers in order, for people: 0-17, 19-20."""
    runs: list[list[int]] = []
    for number in numbers or []:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" for first, last in runs[:10]) or "none"


# ---- an old link


def _thaw_server(stage: Stage) -> None:
    """With what the client had sent it in its buffers, and a new connection that waits in its backlog."""
    pid = stage.processes["server"].pid
    assert pid
    stage.lab.freeze(pid)
    time.sleep(4)
    stage.lab.thaw(pid)
    time.sleep(2)


def _thaw_client(stage: Stage) -> None:
    """Its kernel repeats what the server's cable has kept from arriving, while it doesn't know that it was given up."""
    pid = stage.processes["client"].pid
    assert pid
    stage.lab.pull("server")
    time.sleep(0.1)
    stage.lab.freeze(pid)
    time.sleep(3)
    stage.lab.plug("server")
    time.sleep(1.2)
    stage.lab.thaw(pid)
    time.sleep(2)


def _forget_handshake(stage: Stage) -> None:
    """The client has come back to a server that can't answer now; and when it can, the NAT knows nothing of that."""
    pid = stage.processes["server"].pid
    assert pid
    stage.lab.freeze(pid)
    time.sleep(2)
    stage.lab.forget()
    stage.lab.thaw(pid)
    time.sleep(12)


def _cut_for(seconds: float, host: str) -> Callable[[Stage], None]:
    def cut(stage: Stage) -> None:
        stage.lab.pull(host)
        time.sleep(seconds)
        stage.lab.plug(host)
        time.sleep(3)

    return cut


def _hold(stage: Stage) -> None:
    """Until the client has come back and gone on for a while; then what it had said before arrives, late."""
    stage.links["router"].send("hold")
    time.sleep(3)
    stage.links["router"].send("release")
    if not stage.hear("router", 20 * SLACK):
        raise LabError("the proxy had kept nothing")
    time.sleep(1)


def _hole(*senders: str) -> Callable[[Stage], None]:
    """Large packets are lost from now on, as in a tunnel; and a cut before has left much to be sent again."""

    def make(stage: Stage) -> None:
        stage.lab.drop()
        time.sleep(2)
        stage.lab.drop_larger(600, *senders)
        stage.lab.undrop()
        time.sleep(12)

    return make


# fmt: off
CHAOS = [
    Chaos("session-chaos", "15 random faults, 10,000 messages each way", 10_000, 15, 250),
]
LONG_CHAOS = Chaos("session-chaos-long", "300 random faults, 200,000 messages each way", 200_000, 300, 350, seconds=700)
LARGE = Talk(per_second=400, large=60_000)
SURVIVES = [
    Survives("session-thawed-server", "the server frozen and thawed, with the old link's bytes in its buffers",
             _thaw_server),
    Survives("session-thawed-client", "the client frozen and thawed, and its kernel repeats what it had sent",
             _thaw_client),
    # Its limit is long, so the server still believes in the old link, and repeats what it had sent on it.
    Survives("session-retransmitting", "the server's cable back after 5 s, while the server still repeats",
             _cut_for(5, "server"), server=Talk(limit=30.0)),
    Survives("session-retransmitting-client", "the client's cable back after 5 s, while the server still repeats",
             _cut_for(5, "client"), server=Talk(limit=30.0)),
    Survives("session-held", "a proxy holds what the client sends, and hands it over after the client is back",
             _hold, through_proxy=True, server=Talk(limit=30.0)),
    # Of a new connection that is dead already, the kernel's probes tell; a handshake may take 10 s.
    Survives("session-forgotten-handshake", "the NAT forgets a connection while it waits for the server's WELCOME",
             _forget_handshake, range(2, 3), nat=True, longest=7.0),
    Survives("session-mtu-hole-client", "large packets of the client are lost, from a large replay on",
             _hole("client"), range(2, 6), client=LARGE, server=LARGE, seconds=16),
    Survives("session-mtu-hole-server", "large packets of the server are lost, from a large replay on",
             _hole("server"), range(2, 6), client=LARGE, server=LARGE, seconds=16),
    Survives("session-mtu-hole-both", "large packets are lost both ways, from a large replay on",
             _hole(*HOSTS), range(2, 6), client=LARGE, server=LARGE, seconds=16),
]
CABLES = [
    CableBack(f"session-cable-{host}-{cut}", f"the {host}'s cable back after {cut} s", host, cut)
    for host in HOSTS for cut in (5, 10, 20)
]
STREAM = Talk(per_second=1000, large=4000)
KILLED = [
    ServerKilled("session-killed-server", "kill -9 of the server, and another started", STREAM),
    ServerKilled("session-killed-slow-server", "the same, of one that is behind with taking", STREAM,
                 Talk(takes_each=0.003)),
    ServerKilled("session-killed-server-resend", 'the same with on_session_lost="resend"',
                 Talk(per_second=1000, large=4000, resends=True)),
    ClientKilled("session-killed-client", "kill -9 of the client, the server keeps the session for 3 s",
                 Talk(per_second=1000, large=4000, retention=3.0)),
    ClientKilled("session-killed-slow-client", "the same, of one that is behind with taking",
                 Talk(per_second=1000, large=4000, retention=3.0), Talk(takes_each=0.003)),
]
CROWDS = [
    Crowd("session-crowd-restart", "1,000 clients, their server says goodbye (code 1) and is back after 8 s", False),
    Crowd("session-crowd-killed", "the same, and it is killed; the clients resend", True),
]
# fmt: on

CASES: dict[str, Any] = {case.name: case for case in [*CHAOS, LONG_CHAOS, *SURVIVES, *CABLES, *KILLED, *CROWDS]}
