"""Owns the proof that an adaptive interval finds out what a real NAT bears, and loses nothing meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from longconn.testing.network import Lab, is_privileged
from stage import SLACK

pytestmark = pytest.mark.timeout(300 * SLACK)

FORGETS_AFTER = 2

SERVER = """
import sys, longconn
with longconn.LongServer((sys.argv[1], 8083), heartbeat=longconn.Heartbeat(60)) as server:
    print("listening", flush=True)
    for conn, message in server.messages():
        conn.send(message)
"""

# It sends only once the path was quiet for a while, so that it doesn't keep the path open itself.
CLIENT = """
import json, sys, time, longconn
adaptive = longconn.Adaptive(min=1, max=30, step=1.5, remember=sys.argv[2])
drops = []
with longconn.connect(
    (sys.argv[1], 8083), heartbeat=longconn.Heartbeat(adaptive),
    on_event=lambda event: event.state == "reconnecting" and drops.append(event.cause),
) as conn:
    deadline = time.monotonic() + float(sys.argv[3])
    while conn.stats().settled_seconds_ago is None and time.monotonic() < deadline:
        time.sleep(0.1)
    learnt = conn.stats()
    # The next link begins with the least again, and the last one may have been lost just now.
    while conn.stats().send_interval_seconds != learnt.proven_interval_seconds and time.monotonic() < deadline:
        time.sleep(0.1)
    before = len(drops)
    beats, until = conn.stats().beats_sent, time.monotonic() + 12
    time.sleep(12)
    now = conn.stats()
    conn.send(b"still there?")
    answer = conn.recv(timeout=20).decode()
    print(json.dumps({
        "proven": learnt.proven_interval_seconds, "settled": learnt.settled_seconds_ago is not None, "answer": answer,
        "causes": drops[:before], "drops_once_settled": len(drops) - before, "beats": now.beats_sent - beats,
    }))
"""


@pytest.fixture
def lab():
    if not is_privileged():
        pytest.skip("makes a lab in the test process itself, which takes root")
    with Lab(nat=True) as lab:
        lab.forget_after(FORGETS_AFTER)
        yield lab


def test_the_interval_that_a_nat_bears_is_found_at_the_price_of_two_links(lab, tmp_path):
    address, kept = lab.address("server"), tmp_path / "intervals.json"
    server = lab.popen("server", [sys.executable, "-c", SERVER, address], stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "listening\n"
    argv = [sys.executable, "-c", CLIENT, address, kept, str(120 * SLACK)]
    client = lab.popen("client", argv, stdout=subprocess.PIPE, text=True)
    said = json.loads(client.communicate(timeout=200 * SLACK)[0])
    assert client.returncode == 0
    print(json.dumps(said))
    # 1.5 s is borne, and 2.25 s isn't: 1.5 s less the margin. A busy machine may be late with a beat of 1.5 s.
    assert said["settled"]
    assert 0.9 <= said["proven"] <= 1.35 + 1e-3
    assert len(said["causes"]) >= 2
    assert set(said["causes"]) <= {"unreachable", "silent", "deaf"}
    # And that is kept: 12 s without a beat lost, in which both sides beat together and not each for itself.
    assert (said["drops_once_settled"], said["answer"]) == (0, "still there?")
    assert 12 / said["proven"] - 2 <= said["beats"] <= 12 / (0.95 * said["proven"]) * 1.5 + 2
    (entry,) = json.loads(kept.read_text())["networks"]
    assert entry["peer"] == f"{address}:8083"
    assert entry["interval"] == pytest.approx(said["proven"], abs=1e-3)
    assert entry["network"] == address.rsplit(".", 2)[0] + ".1.0"
