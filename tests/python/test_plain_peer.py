"""Conversations of both classes with a peer that was written from docs/SPEC.md alone."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import longconn
import pytest
from longconn import Cause, Heartbeat, LongConnection, LongServer
from peers import PATIENCE, SLACK, let_go, listening, wait_until
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
        while frame := peer.next_frame():
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


# ---- sessions


@contextmanager
def returning_client() -> Iterator[tuple[LongConnection, PlainPeer, Callable[[], socket.socket]]]:
    """They are the client; and how they connect again."""
    with ExitStack() as stack:
        server = stack.enter_context(LongServer(("127.0.0.1", 0), heartbeat=BEATS))

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(server.address, timeout=PATIENCE))

        peer = PlainPeer(connect(), is_client=True, comes_back=True)
        peer.say_hello("plain")
        ours = server.accept(timeout=PATIENCE)
        ours.settimeout(PATIENCE)
        yield ours, peer, connect
        let_go(ours)


@contextmanager
def returning_server(**kwargs: object) -> Iterator[tuple[LongConnection, PlainPeer, Callable[[], socket.socket]]]:
    """They are the server; and how they take the client again."""
    with ExitStack() as stack:
        listener = stack.enter_context(listening())
        listener.settimeout(PATIENCE)

        def accept() -> socket.socket:
            return stack.enter_context(listener.accept()[0])

        settings = {"heartbeat": BEATS, "reconnect": longconn.Backoff(0.01, 0.05), "timeout": PATIENCE, **kwargs}
        with meanwhile(lambda: longconn.connect(listener.getsockname(), **settings)) as made:  # type: ignore[arg-type]
            peer = PlainPeer(accept(), is_client=False, comes_back=True)
            peer.wait_for_hello()
        ours = made[0]
        assert isinstance(ours, LongConnection)
        ours.settimeout(PATIENCE)
        yield ours, peer, accept
        let_go(ours)


@pytest.fixture(params=[returning_client, returning_server])
def returning(
    request: pytest.FixtureRequest,
) -> Iterator[tuple[LongConnection, PlainPeer, Callable[[], socket.socket]]]:
    with request.param() as three:
        yield three


def test_a_session_goes_on_over_another_link(returning):
    ours, peer, connect = returning
    ours.send(b"not taken")
    peer.run(lambda: peer.inbox)
    peer.send(b"sent")
    peer.cut()
    ours.wait_for("reconnecting")
    ours.send(b"while away")
    peer.send(b"while away, too")
    peer.come_back(connect())
    assert peer.is_resumed
    assert [peer.recv() for _ in range(2)] == [b"not taken", b"while away"]
    assert [ours.recv() for _ in range(2)] == [b"sent", b"while away, too"]
    with meanwhile(ours.flush) as flushed:
        peer.flush()
        peer.run(lambda: flushed)
    assert ours.stats().connections == 2


@pytest.mark.parametrize("seed", range(5))
def test_each_message_comes_once_and_in_order_wherever_the_links_are_cut(returning, seed):
    ours, peer, connect = returning
    dice = random.Random(seed)
    random.seed(seed)  # peer.cut's
    messages = [bytes([number % 256]) * dice.choice((0, 1, 500, 16_384, 70_000, 600_000)) for number in range(120)]
    received: list[bytes] = []
    with meanwhile(lambda: ours.send_many(messages)), meanwhile(lambda: [ours.recv() for _ in messages]) as got:
        for number, message in enumerate(messages):
            peer.send(message)
            if number % 10 == 9:
                until = time.monotonic() + dice.random() * 0.02
                peer.run(lambda until=until: time.monotonic() > until)
                peer.cut()
                peer.come_back(connect())
                assert peer.is_resumed
            while peer.inbox and dice.random() < 0.7:
                received.append(peer.recv())
        while len(received) < len(messages):
            received.append(peer.recv())
        peer.flush()
    assert received == messages
    assert got == [messages]
    assert ours.stats().connections == 13


def test_a_wrong_secret_or_an_old_epoch_changes_nothing():
    with returning_client() as (ours, peer, connect):
        assert peer.session
        peer.cut()
        peer.come_back(connect())
        for session, epoch in (((peer.session[0], bytes(32)), 5), (peer.session, 0), (peer.session, 1)):
            other = PlainPeer(connect(), is_client=True, comes_back=True)
            other.session, other.epoch = session, epoch - 1
            with pytest.raises(Closed) as raised:
                other.say_hello()
            assert raised.value.args[0] == 10
        peer.send(b"the good one is up")
        assert ours.recv() == b"the good one is up"
        assert ours.stats().connections == 2


def test_who_comes_back_with_the_old_link_still_up_ends_that_one():
    with returning_client() as (ours, peer, connect):
        peer.send(b"one")
        old = peer.sock
        peer.come_back(connect())
        peer.send(b"two")
        assert [ours.recv() for _ in range(2)] == [b"one", b"two"]
        old.settimeout(PATIENCE)
        with suppress(ConnectionResetError):
            while old.recv(65536):
                pass


@pytest.mark.parametrize(("received", "taken"), [(1 << 40, 0), (3, 0), (0, 3), (7, 4)])
def test_a_position_that_can_not_be_is_refused_and_the_session_stays(received, taken):
    with returning_client() as (ours, peer, connect):
        ours.send(b"abc")
        assert peer.recv() == b"abc"
        ours.flush()
        ours.send(b"not taken")
        peer.run(lambda: peer.inbox)
        peer.cut()
        ours.wait_for("reconnecting")
        right = peer.received, peer.taken
        peer.received, peer.taken = right[0] + received, right[1] + taken
        peer.granted = peer.received + (1 << 18)
        with pytest.raises(Closed) as raised:
            peer.come_back(connect())
        assert raised.value.args[0] == 4
        peer.received, peer.taken = right
        peer.come_back(connect())
        assert peer.is_resumed
        assert peer.recv() == b"not taken"


def test_a_session_that_the_server_has_closed_says_so_again():
    with returning_client() as (ours, peer, connect):
        peer.send(b"taken")
        assert ours.recv() == b"taken"
        peer.cut()
        ours.wait_for("reconnecting")
        ours.close(5000, "enough")
        for _ in range(2):
            with pytest.raises(Closed) as raised:
                peer.come_back(connect())
            assert raised.value.args == (5000, "enough", len(b"taken") + 4, True)


def test_a_server_that_has_forgotten_gets_in_a_new_session_what_it_had_not_taken():
    with LongServer(("127.0.0.1", 0), session_retention=0) as server:
        with socket.create_connection(server.address, timeout=PATIENCE) as first:
            peer = PlainPeer(first, is_client=True, comes_back=True)
            peer.say_hello()
            with server.accept(timeout=PATIENCE) as ours:
                peer.send(b"taken")
                assert ours.recv(timeout=PATIENCE) == b"taken"
                peer.flush()
                peer.send(b"not taken")
                peer.cut()
                ours.wait_for("closed", timeout=PATIENCE)
            peer.send(b"later")
            with socket.create_connection(server.address, timeout=PATIENCE) as second:
                peer.come_back(second)
                assert not peer.is_resumed
                with server.accept(timeout=PATIENCE) as again:
                    assert [again.recv(timeout=PATIENCE) for _ in range(2)] == [b"not taken", b"later"]
                    peer.close()


def test_a_client_is_told_that_its_server_has_forgotten_it():
    with returning_server() as (ours, peer, accept):
        ours.send_many([b"taken", b"not taken"])
        peer.run(lambda: len(peer.inbox) == 2)
        assert peer.recv() == b"taken"
        wait_until(lambda: ours.unacknowledged == 1)
        peer.cut()
        peer.session = None
        with pytest.raises((Closed, EOFError, ConnectionResetError)):
            peer.come_back(accept())
        with pytest.raises(longconn.SessionLost) as raised:
            ours.recv()
        assert raised.value.undelivered == [b"not taken"]


def test_a_client_that_wants_it_sends_again_what_may_have_been_taken():
    with returning_server(on_session_lost="resend") as (ours, peer, accept):
        ours.send_many([b"taken", b"not taken"])
        peer.run(lambda: len(peer.inbox) == 2)
        assert peer.recv() == b"taken"
        wait_until(lambda: ours.unacknowledged == 1)
        peer.cut()
        peer.session = None
        peer.come_back(accept())
        peer.run(lambda: len(peer.inbox) == 2)
        assert [message for _, message in peer.inbox] == [b"not taken", b"not taken"]


def test_a_client_comes_back_from_a_close_of_the_link_alone_and_not_too_soon():
    with returning_server() as (ours, peer, accept):
        peer.say_close(1, "for a while", ends_session=False, retry_after=500)
        peer.is_open = False
        peer.sock.shutdown(socket.SHUT_WR)
        peer.come_back(accept())
        assert peer.is_resumed
        _, parted, opened = [next(ours.events()) for _ in range(3)]
        assert parted.state == "reconnecting"
        assert opened.time - parted.time >= 0.45
