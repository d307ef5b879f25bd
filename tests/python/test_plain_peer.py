"""Conversations of both classes with a peer that was written from docs/SPEC.md alone."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import longconn
import pytest
from longconn import Cause, Heartbeat, LongConnection, LongServer
from peers import PATIENCE, SLACK, let_go, listening
from plain_peer import Closed, PlainPeer

BEATS = Heartbeat(0.1)


@contextmanager
def our_server() -> Iterator[tuple[LongConnection, PlainPeer]]:
    """They are the client."""
    with LongServer(("127.0.0.1", 0), heartbeat=BEATS) as server:
        with socket.create_connection(server.address, timeout=PATIENCE) as sock:
            peer = PlainPeer(sock, is_client=True)
            peer.say_hello("plain", b"secret")
            ours = server.accept(timeout=PATIENCE)
            assert ours.client_id == "plain"
            ours.settimeout(PATIENCE)
            yield ours, peer
            let_go(ours)


@contextmanager
def our_client(**kwargs: object) -> Iterator[tuple[LongConnection, PlainPeer]]:
    """They are the server; a lost link is the end."""
    with listening() as listener:
        made: list[LongConnection] = []

        def connect() -> None:
            settings = {"heartbeat": BEATS, "token": b"t", "timeout": PATIENCE, "reconnect": False, **kwargs}
            made.append(longconn.connect(listener.getsockname(), client_id="ours", **settings))  # type: ignore[arg-type]

        thread = threading.Thread(target=connect)
        thread.start()
        sock, _ = listener.accept()
        with sock:
            peer = PlainPeer(sock, is_client=False)
            peer.wait_for_hello()
            thread.join()
            assert (peer.client_id, peer.token) == ("ours", b"t")
            made[0].settimeout(PATIENCE)
            yield made[0], peer
            let_go(made[0])


@pytest.fixture(params=[our_server, our_client])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[LongConnection, PlainPeer]]:
    with request.param() as both:
        yield both


@contextmanager
def meanwhile(task: Callable[[], object]) -> Iterator[list[object]]:
    """What ours does in another thread, while the plain peer is moved forward here."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(task())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield results
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 16_385, 32_760, 32_761, 300_000, 3_000_000])
def test_messages_of_any_size_go_both_ways(pair, size):
    ours, peer = pair
    message = os.urandom(size)
    with meanwhile(lambda: ours.send(message)):
        assert peer.recv() == message
    with meanwhile(ours.recv) as received:
        peer.send(message)
        peer.flush()
    assert received == [message]


def test_a_large_message_comes_whole_whatever_comes_between_its_frames(pair):
    ours, peer = pair
    dice = random.Random(7)

    def pump() -> None:
        while peer.queue and peer.sent + len(peer.queue[0]) <= peer.credit:
            frame = peer.queue.popleft()
            peer.sent += len(frame)
            if dice.random() < 0.2:
                frame = peer.frame(0x80, bytes(dice.randrange(100))) + frame
            at = dice.randrange(len(frame))
            peer.sock.sendall(frame[:at])
            peer.sock.sendall(frame[at:])
            if dice.random() < 0.1:
                peer.beat(answer=True)

    peer.pump = pump
    messages = [os.urandom(size) for size in (100_000, 70_000, 2_000_000, 5, 65_536, 1_000_000)]
    with meanwhile(lambda: [ours.recv() for _ in messages]) as received:
        for message in messages:
            peer.send(message)
        peer.flush()
    assert received == [messages]


@contextmanager
def held_up(peer: PlainPeer, message: bytes) -> Iterator[None]:
    """The first part of the message is sent, and the rest at the end."""
    peer.send(message)
    peer.pump = lambda: None
    yield
    del peer.pump
    peer.pump()


def test_a_timeout_within_a_large_message_loses_nothing_of_it(pair):
    ours, peer = pair
    message = os.urandom(1_000_000)
    with held_up(peer, message):
        for _ in range(2):
            with meanwhile(lambda: ours.recv(timeout=0.3)) as results:
                peer.run(lambda: results)
            assert isinstance(results[0], TimeoutError)
        assert ours.stats().inbox_bytes > 200_000
    with meanwhile(ours.recv) as received:
        peer.flush()
    assert received == [message]


def test_a_signal_within_a_large_message_loses_nothing_of_it(pair):
    ours, peer = pair
    message = os.urandom(1_000_000)
    over: list[object] = []

    def strike(*_: object) -> None:
        over.append(None)
        raise InterruptedError("by the handler")

    before = signal.signal(signal.SIGALRM, strike)
    try:
        with held_up(peer, message), meanwhile(lambda: peer.run(lambda: over)):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(InterruptedError, match="by the handler"):
                ours.recv()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with meanwhile(ours.recv) as received:
        peer.flush()
    assert received == [message]


def test_the_end_within_a_large_message_is_told_at_once(pair):
    ours, peer = pair
    with held_up(peer, bytes(1_000_000)), meanwhile(ours.recv) as results:
        peer.run(lambda: ours.stats().inbox_bytes > 200_000)
        peer.sock.shutdown(socket.SHUT_RDWR)
        peer.queue.clear()
    assert isinstance(results[0], longconn.PeerLost)
    assert results[0].cause in (Cause.ENDED, Cause.RESET)


def test_our_own_close_ends_the_wait_for_the_rest_of_a_large_message(pair):
    ours, peer = pair
    with held_up(peer, bytes(1_000_000)), meanwhile(ours.recv) as results:
        peer.run(lambda: ours.stats().inbox_bytes > 200_000)
        with meanwhile(lambda: ours.close(timeout=PATIENCE)), pytest.raises(Closed):
            peer.run(lambda: False)
        peer.queue.clear()
        peer.close()
    assert isinstance(results[0], longconn.LongConnError)


def test_many_messages_go_within_the_credit(pair):
    ours, peer = pair
    messages = [os.urandom(number % 700) for number in range(5000)]
    with meanwhile(lambda: ours.send_many(messages)):
        assert [peer.recv() for _ in messages] == messages
    with meanwhile(lambda: [ours.recv() for _ in messages]) as received:
        for message in messages:
            peer.send(message)
        peer.flush()
    assert received == [messages]


def test_what_the_plain_peer_has_taken_is_flushed(pair):
    ours, peer = pair
    ours.send(b"x")
    with pytest.raises(TimeoutError):
        ours.flush(timeout=0.05)
    with meanwhile(ours.flush) as flushed:
        assert peer.recv() == b"x"
        ours_is_told = time.monotonic() + PATIENCE
        peer.run(lambda: flushed or time.monotonic() > ours_is_told)
    assert flushed == [None]


def test_both_measure_the_round_trip_and_tell_their_status(pair):
    ours, peer = pair
    ours.status, peer.status = b"ours", b"theirs"
    peer.beat(answer=True)
    peer.run(lambda: peer.round_trip is not None and peer.peer_status == b"ours" and peer.beats_heard >= 5)
    assert 0 <= peer.round_trip < 1.0 * SLACK
    with meanwhile(ours.ping) as pinged:
        peer.run(lambda: pinged)
    assert 0 <= pinged[0] < 1.0 * SLACK
    assert ours.peer_status == b"theirs"
    assert peer.peer_ages[0] < 1000 * SLACK


def test_beats_come_as_often_as_was_agreed(pair):
    _ours, peer = pair
    assert peer.interval == peer.their_interval == 100
    first, since = peer.beats_heard, time.monotonic()
    peer.run(lambda: peer.beats_heard >= first + 20)
    assert 20 * 0.07 < time.monotonic() - since < 20 * 0.1 + 1.0 * SLACK


def test_the_plain_peers_goodbye_is_understood(pair):
    ours, peer = pair
    peer.send(b"last words")
    with meanwhile(lambda: [ours.recv(), ours.close]):
        peer.flush()
    peer.close(4711, "enough")
    with pytest.raises(longconn.PeerClosed) as raised:
        ours.recv()
    assert (raised.value.code, raised.value.reason) == (4711, "enough")


def test_our_goodbye_is_understood(pair):
    ours, peer = pair
    ours.send(b"last words")
    with meanwhile(lambda: ours.close(5000, "enough")) as closed:
        assert peer.recv() == b"last words"
        with pytest.raises(Closed) as raised:
            peer.run(lambda: False)
        assert raised.value.args[:2] == (5000, "enough")
        peer.close()
    assert closed == [None]


def test_a_plain_peer_that_stops_is_noticed(pair):
    ours, _peer = pair
    with pytest.raises(longconn.PeerLost) as raised:
        ours.recv()
    assert raised.value.cause in (Cause.FROZEN, Cause.SILENT)
    assert raised.value.limit < 1.5


def test_ignorable_frames_are_skipped(pair):
    ours, peer = pair
    peer.sock.sendall(peer.frame(0x80, b"from a later version") + peer.frame(0xFF, b""))
    peer.send(b"x")
    assert ours.recv() == b"x"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (1, b""),
        (0x20, b""),
        (4, b"outside of a message"),
        (6, (10).to_bytes(8, "big") + (1 << 20).to_bytes(8, "big")),
        (6, bytes(16)),
        (7, bytes(33)),
    ],
)
def test_a_broken_rule_is_answered_by_close(pair, kind, payload):
    ours, peer = pair
    peer.sock.sendall(peer.frame(kind, payload))
    with pytest.raises((Closed, ConnectionResetError)) as raised:
        peer.run(lambda: False)
    if isinstance(raised.value, Closed):
        assert raised.value.args[0] == 4
    with pytest.raises(longconn.ProtocolError):
        ours.recv()


def test_a_client_whose_limit_is_too_short_is_refused():
    with LongServer(("127.0.0.1", 0), heartbeat=Heartbeat(1.0, floor=1.0)) as server:
        with socket.create_connection(server.address, timeout=PATIENCE) as sock:
            peer = PlainPeer(sock, is_client=True, limit=1500)
            with pytest.raises(Closed) as raised:
                peer.say_hello()
            assert raised.value.args[0] == 6
