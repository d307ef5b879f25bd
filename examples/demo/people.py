"""The programs of part two: a gateway, and the devices that are connected to it. What they notice they print, as JSON.

python people.py gateway HOST PORT
python people.py device HOST PORT NAME
python people.py slow-device HOST PORT NAME
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import threading
import time
from typing import Any

import longconn

INTERVAL = 1.0
APPLICATION_LIMIT = 6.0  # more than the laptop computes, so that only the robot is called hung
COMPUTES = 4.0  # more than the silence that is allowed: a heartbeat in Python would be missed
DAWDLES = 1.5  # the slow device takes one message in so many seconds; the gateway sends two a second
HEARTBEAT = longconn.Heartbeat(INTERVAL)

_one_line = threading.Lock()


def tell(**what: Any) -> None:
    with _one_line:
        print(json.dumps({"time": time.time(), **what}), flush=True)


def gateway(host: str, port: str) -> None:
    """Sends each device two messages a second, takes what they say, and tells what it knows of them."""
    with longconn.LongServer((host, port), heartbeat=HEARTBEAT.replace(application_limit=APPLICATION_LIMIT)) as server:
        tell(what="listening", port=server.address[1])
        for work in (tell_events, tell_ages, send_ticks):
            threading.Thread(target=work, args=(server,), daemon=True).start()
        for device, _ in server.messages():
            tell(what="message", of=device.client_id)


def tell_events(server: longconn.LongServer) -> None:
    for device, event in server.events():
        error = event.error
        level = error.level if isinstance(error, longconn.PeerLost) else None
        tell(
            what=event.state,
            of=device.client_id,
            time=event.time,
            cause=event.cause,
            level=level,
            text=str(error or ""),
        )


def tell_ages(server: longconn.LongServer) -> None:
    while True:
        for device in server.connections:
            stats = device.stats()
            tell(
                what="ages",
                of=device.client_id,
                state=stats.state,
                silence=stats.silence_seconds,
                round_trip=stats.round_trip_smoothed_seconds,
                interpreter=stats.peer_interpreter_age_seconds,
                application=stats.peer_application_age_seconds,
                untaken=stats.untaken_messages,
            )
        time.sleep(0.1)


def send_ticks(server: longconn.LongServer) -> None:
    while True:
        server.broadcast(b"tick")
        time.sleep(0.5)


def device(host: str, port: str, name: str, *, dawdles: float = 0.0) -> None:
    """Answers each message; SIGUSR1 lets it compute for a while, SIGUSR2 hang."""
    trouble: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: trouble.append(number))
    try:
        # What is shown is how soon a loss is told, and why; those that come back would blur it.
        settings = {"client_id": name, "heartbeat": HEARTBEAT, "reconnect": False}
        with longconn.connect((host, port), **settings) as connection:
            for message in connection:
                connection.send(b"got " + message)
                if signal.SIGUSR1 in trouble:
                    compute(COMPUTES)
                    trouble.clear()
                    tell(what="computed")
                if signal.SIGUSR2 in trouble:
                    hang()
                time.sleep(dawdles)
    except longconn.PeerLost as lost:
        tell(what="lost", cause=lost.cause, text=str(lost))


def compute(seconds: float) -> None:
    """One C call that keeps the GIL, as json, re or sort do with much data: no Python thread runs meanwhile."""
    ctypes.PyDLL(None).usleep(round(seconds * 1e6))  # PyDLL keeps it, CDLL would give it back


def hang() -> None:
    """A deadlock: this thread waits for itself."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    if role == "gateway":
        gateway(*arguments)
    else:
        device(*arguments, dawdles=DAWDLES if role == "slow-device" else 0.0)
