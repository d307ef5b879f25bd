"""How long skipped time takes: a connection whose ends are both in this process, and beat every 30 s.

python benches/skip.py [year]
"""

from __future__ import annotations

import sys
import time

import longconn
from longconn.testing import FakeClock

SPANS = {"hour": 3600, "day": 86400, "month": 30 * 86400, "year": 365 * 86400}


def main(last: str = "month") -> None:
    beat = longconn.Heartbeat(30, limit=75)
    with (
        FakeClock() as clock,
        longconn.LongServer(("127.0.0.1", 0), heartbeat=beat) as server,
        longconn.connect(server.address, heartbeat=beat, reconnect=False) as client,
        server.accept(timeout=10),
    ):
        for name, seconds in SPANS.items():
            heard, began = client.stats().beats_heard, time.perf_counter()
            clock.advance(seconds)
            took = time.perf_counter() - began
            beats = client.stats().beats_heard - heard
            print(
                f"{name:6} {took * 1000:10.1f} ms  {beats:9,} beats heard, {took / beats * 1e6:.0f} us each", flush=True
            )
            if name == last:
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
