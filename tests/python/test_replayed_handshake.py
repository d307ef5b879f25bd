"""Owns the proof that a HELLO which comes late, or again, changes nothing for the session that it names."""

from __future__ import annotations

import contextlib
import socket

import longconn
import pytest
from longconn.testing import FaultProxy
from peers import PATIENCE, wait_until
from plain_peer import CLOSE, PREAMBLE

STALE = 10


@pytest.fixture
def server():
    with longconn.LongServer(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def proxy(server):
    with FaultProxy(server, capture_bytes=65536) as proxy:
        yield proxy


def hello(said: bytes) -> bytes:
    """With the preamble; what the client says behind it belongs to a link that stands."""
    return said[: len(PREAMBLE) + 4 + int.from_bytes(said[len(PREAMBLE) :][:3])]


def refusal(answer: bytes) -> tuple[int, int]:
    """The first frame's kind and, of a CLOSE, its code."""
    assert answer.startswith(PREAMBLE)
    frame = answer[len(PREAMBLE) :]
    return frame[3], int.from_bytes(frame[4:6])


def answer_to(server: longconn.LongServer, said: bytes) -> bytes:
    """All that the server says to who says that."""
    with socket.create_connection(server.address, timeout=PATIENCE) as stranger:
        stranger.sendall(said)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while data := stranger.recv(65536):
                answer += data
    return answer


@pytest.mark.parametrize("was_held", [False, True], ids=["said again", "said for the first time, late"])
def test_an_old_hello_is_refused_and_the_link_that_is_up_stays_up(server, proxy, was_held):
    backoff = longconn.Backoff(first=0.01, cap=0.05)
    with longconn.connect(proxy.address, reconnect=backoff) as client, server.accept(timeout=PATIENCE) as accepted:
        client.send(b"before")
        assert accepted.recv(timeout=PATIENCE) == b"before"
        if was_held:
            proxy.stall("to_server")
        proxy.end()
        # its HELLO names the session, with the first epoch
        wait_until(lambda: len(proxy.captured(2, "to_server")) > 100)
        if not was_held:
            assert wait_until(lambda: accepted.stats().connections == 2)
        connections = accepted.stats().connections
        proxy.end()
        proxy.resume()
        assert wait_until(lambda: accepted.stats().connections == connections + 1)
        client.send(b"now")
        assert accepted.recv(timeout=PATIENCE) == b"now"

        assert refusal(answer_to(server, hello(proxy.captured(2, "to_server")))) == (CLOSE, STALE)

        assert server.stats().refused_stale == 1
        # neither end has noticed anything
        accepted.send(b"still here")
        client.send(b"so are we")
        assert client.recv(timeout=PATIENCE) == b"still here"
        assert accepted.recv(timeout=PATIENCE) == b"so are we"
        assert (client.stats().connections, accepted.stats().connections) == (connections + 1, connections + 1)
        assert server.stats().resumed == connections


def test_another_ones_session_is_not_resumed_with_a_wrong_secret(server, proxy):
    backoff = longconn.Backoff(first=0.01, cap=0.05)
    with longconn.connect(proxy.address, reconnect=backoff) as client, server.accept(timeout=PATIENCE) as accepted:
        proxy.end()
        assert wait_until(lambda: accepted.stats().connections == 2)
        said = bytearray(hello(proxy.captured(2, "to_server")))
        # the session stands at its end: id, secret, and the epoch and two offsets of eight bytes each (docs/SPEC.md)
        said[-25] ^= 1
        said[-17] += 1  # an epoch that would do
        assert refusal(answer_to(server, bytes(said))) == (CLOSE, STALE)
        assert server.stats().refused_stale == 1
        client.send(b"still here")
        assert accepted.recv(timeout=PATIENCE) == b"still here"
        assert accepted.stats().connections == 2
