"""Owns the crowd: a thousand clients of one server that lose it at once, and when they try to come back."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import struct
import threading
import time
from bisect import bisect
from collections import Counter
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, ClassVar

from longconn.testing.network import Lab
from programs import PORT, describe, die_with_parent
from session_programs import REST
from stage import SLACK, Stage, Witness

# Messages of one client at the most, and seconds between two of them.
MOST, PAUSE = 1000, 0.5


@dataclass(frozen=True)
class Crowd:
    """A server's restart, and its clients; times in seconds."""

    name: str
    title: str
    is_killed: bool
    clients: int = 1000
    first: float = 0.1
    cap: float = 5.0
    factor: float = 2.0
    down: float = 8.0
    nat: bool = False
    polite: bool = False
    lane: str = "computing"
    seconds: float = 40

    def run(self, stage: Stage, protection: str, phase: float, trace: bool) -> dict[str, Any]:
        shared = get_context("fork")
        # How often each message was taken, by both servers together; and how many clients are back.
        taken, back = shared.RawArray("B", self.clients * MOST), shared.RawValue("I", 0)
        stage.start(client=(be_crowd, self, back), server=(be_server, taken))
        stage.hear("client", 60 * SLACK)  # "ready"
        time.sleep(2 + phase)
        attempts = Attempts(stage.lab, "server")
        lost_at = time.monotonic()
        if self.is_killed:
            stage.processes["server"].kill()
        else:
            stage.links["server"].send("close")
        attempts.note_for(self.down)
        back_at = time.monotonic()
        stage.restart(be_server, taken)
        deadline = time.monotonic() + REST
        while back.value < self.clients and time.monotonic() < deadline:
            attempts.note_for(0.02)
        all_back_at = time.monotonic()
        stage.links["client"].send("enough")
        report = stage.hear("client", 2 * REST)
        attempts.close()
        sent = report.pop("sent")
        times = Counter(taken[client * MOST + number] for client, most in enumerate(sent) for number in range(most))
        return {
            "attempts": sorted(round(at - lost_at, 4) for at in attempts.times),
            "down": back_at - lost_at,
            "back": back.value,
            "all_back": round(all_back_at - back_at, 2),
            "taken": {str(number): count for number, count in sorted(times.items())},
            "samples": [],
        } | report

    def complaint(self, outcome: dict[str, Any], allowance: float = 1.0) -> str | None:
        """What is wrong with one run; None if nothing is."""
        if outcome["errors"]:
            return f"{len(outcome['errors'])} clients failed: {outcome['errors'][0]}"
        if outcome["back"] < self.clients:
            return f"only {outcome['back']} of {self.clients} came back"
        lost, twice = outcome["taken"].get("0", 0), sum(map(outcome["taken"].get, outcome["taken"].keys() - {"0", "1"}))
        if lost or (twice and not self.is_killed):
            return f"{lost} messages were lost, {twice} came twice: {outcome['taken']}"
        distance = self.distance(outcome)
        if distance > 0.1 * allowance:
            return f"attempts are not spread as the backoff says: {distance:.2f} of them come sooner or later"
        return None

    def distance(self, outcome: dict[str, Any]) -> float:
        """Of the attempts while the server was away from what the backoff says: the largest difference of both
        distributions (Kolmogorov and Smirnov's statistic). Those of the first second don't count: two a client in a
        quarter of it are more than this machine makes."""
        down = outcome["down"]
        both = outcome["attempts"], self.expected(down, 10)
        seen, meant = ([at for at in times if 1 <= at < down] for times in both)
        points = [1 + number * (down - 1) / 200 for number in range(200)]
        return max(abs(bisect(seen, at) / len(seen) - bisect(meant, at) / len(meant)) for at in points)

    def expected(self, down: float, crowds: int) -> list[float]:
        """When attempts are made, by the words of `Backoff`: of so many crowds, with dice."""
        dice, times = random.Random(1), []
        for _ in range(self.clients * crowds):
            at = failed = 0.0
            while (at := at + dice.uniform(0, min(self.cap, self.first * self.factor**failed))) < down:
                times.append(at)
                failed += 1
        return sorted(times)


class Attempts(Witness):
    """Sees when somebody begins to connect: each SYN that comes to the port."""

    FILTER: ClassVar = [
        (0x30, 0, 0, 9),  # A = protocol
        (0x15, 0, 7, 6),  # TCP
        (0xB1, 0, 0, 0),  # X = length of the IP header
        (0x48, 0, 0, 2),  # A = destination port
        (0x15, 0, 4, PORT),
        (0x50, 0, 0, 13),  # A = TCP's flags
        (0x54, 0, 0, 0x02 | 0x10),  # SYN, ACK
        (0x15, 0, 1, 0x02),
        (0x06, 0, 0, 0xFFFF),  # keep it
        (0x06, 0, 0, 0),  # don't
    ]

    def __init__(self, lab: Lab, host: str) -> None:
        super().__init__(lab, host)
        self.times: list[float] = []

    def note_for(self, seconds: float) -> None:
        """As they come, for the kernel keeps only some hundreds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            while (at := self.moment()) is not None:
                self.times.append(at)
            time.sleep(0.005)


# ---- its ends


def be_crowd(link: Connection, host: str, address: str, crowd: Crowd, back: Any) -> None:
    """Connects all clients, and each sends a message each half second, until the director says that it is enough."""
    die_with_parent()
    import longconn

    _allow_descriptors(4 * crowd.clients)
    link.recv()  # "listening"
    clients = [
        longconn.connect(
            (address, PORT),
            reconnect=longconn.Backoff(crowd.first, crowd.cap, crowd.factor),
            on_session_lost="resend" if crowd.is_killed else "raise",
            client_id=str(number),
        )
        for number in range(crowd.clients)
    ]
    link.send("ready")
    sent, errors = [0] * crowd.clients, []
    next_round = time.monotonic()
    while not link.poll(max(0.0, next_round - time.monotonic())):
        next_round += PAUSE
        back.value = sum(client.state == "open" and client.stats().connections > 1 for client in clients)
        for number, client in enumerate(clients):
            try:
                client.send(struct.pack("!II", number, sent[number]))
                sent[number] += 1
            except OSError as error:
                errors.append(describe(error))
    for client in clients:
        try:
            client.flush(timeout=REST)
        except OSError as error:
            errors.append(describe(error))
    link.send({"sent": sent, "errors": errors})
    signal.pause()


def be_server(link: Connection, host: str, address: str, taken: Any) -> None:
    """Counts how often each message comes; told to, it closes and says that it comes back."""
    die_with_parent()
    import longconn

    _allow_descriptors(8192)
    server = longconn.LongServer((address, PORT))

    def take() -> None:
        with contextlib.suppress(longconn.LongConnError):
            for _, message in server.messages():
                client, number = struct.unpack("!II", message)
                taken[client * MOST + number] += 1

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    link.send("listening")
    link.recv()  # "close"
    server.close(code=1, reason="it is started anew")
    taking.join()


def _allow_descriptors(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(number, hard)), hard))
