"""`longconn serve`: answers, says who comes and goes, and closes in order on SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import longconn
import pytest

SLACK = float(os.environ.get("LONGCONN_TEST_SLACK", "1"))


@contextmanager
def served(address, *options):
    command = [sys.executable, "-m", "longconn", "serve", address, "--echo", "--interval", "0.5", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # who runs the tests in the background ignores it, and so would the child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_server_that_is_told_to_stop_says_so_and_its_clients_come_back_to_the_next_one():
    with served("127.0.0.1:0", "--retry-after", "0.3") as (first, address):
        client = longconn.connect(address, client_id="device-7")
        client.send(b"hello")
        assert client.recv(timeout=20 * SLACK) == b"hello"
        client.flush(timeout=20 * SLACK)
        first.send_signal(signal.SIGTERM)
        output, _ = first.communicate(timeout=30 * SLACK)
        assert first.returncode == 0, output
        assert "device-7: open" in output
        assert "closing, within 10 s" in output
    client.wait_for("reconnecting", timeout=20 * SLACK)
    gone = time.monotonic()
    client.send(b"meanwhile")
    with served(address) as (_, again):
        assert again == address
        assert client.recv(timeout=20 * SLACK) == b"meanwhile"
        assert time.monotonic() - gone > 0.2  # retry-after, but for what the first server's exit took
        client.close(timeout=20 * SLACK)
    events = [(event.state, event.fresh) for event in client.events()]
    assert events[:3] == [("open", False), ("reconnecting", False), ("open", True)]


def test_ctrl_c_ends_it_as_well():
    with served("127.0.0.1:0", "--drain", "1") as (server, _):
        server.send_signal(signal.SIGINT)
        output, _ = server.communicate(timeout=30 * SLACK)
        assert server.returncode == 0, output


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["nowhere"], "'nowhere': expected (host, port)"),
        (["127.0.0.1:0", "--interval", "0"], "interval=0: 0.001 to 86400 seconds"),
        (["127.0.0.1:0", "--drain", "-1"], "greater than or equal to 0"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(wrong, reason):
    done = subprocess.run(
        [sys.executable, "-m", "longconn", "serve", *wrong], capture_output=True, text=True, timeout=60 * SLACK
    )
    assert done.returncode == 2
    assert reason in done.stderr
