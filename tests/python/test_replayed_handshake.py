"""Owns the proof that a HELLO which comes late, or again, changes nothing for the session that it names."""

from __future__ import annotations

import contextlib
import socket
import threading

import longconn
import pytest
from peers import PATIENCE, wait_until
from plain_peer import CLOSE, PREAMBLE

STALE = 10


class Recorder:
    """A proxy that keeps what each client says, and, told so, doesn't hand it on."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.said: list[bytes] = []
        self.is_holding = False
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, upstream = self.listener.accept()[0], socket.create_connection(self.server)
                self._ends += [client, upstream]
                self.said.append(b"")
                for arguments in ((client, upstream, len(self.said) - 1), (upstream, client, None)):
                    thread = threading.Thread(target=self._carry, args=arguments)
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket, number: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if number is not None:
                    self.said[number] += data
                    if self.is_holding:
                        continue
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # close() alone doesn't wake accept()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in [self.listener, *self._ends]:
            end.close()


@pytest.fixture
def server():
    with longconn.LongServer(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def proxy(server):
    proxy = Recorder(server.address)
    yield proxy
    proxy.close()


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
        proxy.is_holding = was_held
        proxy.cut()
        # its HELLO names the session, with the first epoch
        assert wait_until(lambda: len(proxy.said) > 1 and len(proxy.said[1]) > 100)
        if not was_held:
            assert wait_until(lambda: accepted.stats().connections == 2)
        proxy.is_holding = False
        connections = accepted.stats().connections
        proxy.cut()
        assert wait_until(lambda: accepted.stats().connections == connections + 1)
        client.send(b"now")
        assert accepted.recv(timeout=PATIENCE) == b"now"

        assert refusal(answer_to(server, hello(proxy.said[1]))) == (CLOSE, STALE)

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
        proxy.cut()
        assert wait_until(lambda: accepted.stats().connections == 2)
        said = bytearray(hello(proxy.said[1]))
        # the session stands at its end: id, secret, and the epoch and two offsets of eight bytes each (docs/SPEC.md)
        said[-25] ^= 1
        said[-17] += 1  # an epoch that would do
        assert refusal(answer_to(server, bytes(said))) == (CLOSE, STALE)
        assert server.stats().refused_stale == 1
        client.send(b"still here")
        assert accepted.recv(timeout=PATIENCE) == b"still here"
        assert accepted.stats().connections == 2
