"""`longconn probe` behind a NAT that forgets idle connections, by the kernel's own connection tracking."""

from __future__ import annotations

import json
import sys

import pytest
from longconn.testing.network import Lab, is_privileged

FORGETS_AFTER = 20
LISTENER = """
import socket
listener = socket.create_server(("", 8083), backlog=64)
print("listening", flush=True)
kept = []
while True:
    kept.append(listener.accept())
"""


def test_probe_finds_what_a_nat_remembers_to_two_seconds():
    if not is_privileged():
        pytest.skip("makes a lab in the test process itself, which takes root")
    with Lab(nat=True) as lab:
        lab.forget_after(FORGETS_AFTER)
        server = lab.popen("server", [sys.executable, "-c", LISTENER], stdout=-1)
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        words = [sys.executable, "-m", "longconn", "probe", f"{lab.address('server')}:8083", "--json"]
        client = lab.popen("client", [*words, "--time", "110"], stdout=-1)
        output, _ = client.communicate()
    found = json.loads(output)
    assert client.returncode == 0, found
    assert FORGETS_AFTER - 2 <= found["survives_seconds"] <= FORGETS_AFTER + 0.5, found
    assert FORGETS_AFTER - 0.5 <= found["forgets_within_seconds"] <= FORGETS_AFTER + 2, found
    assert found["contradictions_seconds"] == []
