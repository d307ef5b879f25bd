"""LongConnection: messages, timeouts, states and ends, against a LongServer or a peer that says what it is told to."""

from __future__ import annotations

import array
import datetime
import gc
import itertools
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import longconn
import pytest
from longconn import Cause, Heartbeat, LongConnection, LongServer
from peers import PATIENCE, SLACK, let_go, listening, python_says, reset, wait_until, wait_until_blocked

#: Convicts within a moment.
QUICK = Heartbeat(interval=0.05, limit=0.5 * SLACK)


@contextmanager
def served(**kwargs: object) -> Iterator[tuple[LongServer, LongConnection, LongConnection]]:
    with LongServer(("127.0.0.1", 0), **kwargs) as server:
        client = longconn.connect(server.address, client_id="device-7", timeout=PATIENCE)
        ours = server.accept(timeout=PATIENCE)
        for connection in (client, ours):
            connection.settimeout(PATIENCE)
        try:
            yield server, client, ours
        finally:
            for connection in (client, ours):
                let_go(connection)


@pytest.fixture
def pair() -> Iterator[tuple[LongConnection, LongConnection]]:
    with served() as (_, client, ours):
        yield client, ours


PREAMBLE = b"LONGCONN"


def frame(kind: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind]) + payload


def welcome(want: int = 50, limit: int = 0) -> bytes:
    numbers = struct.pack("!BBIIIQQ", 1, 0, want, 50, limit, 1 << 18, 1 << 24)
    return frame(2, numbers + b"i" * 16 + b"s" * 32 + struct.pack("!QQI", 0, 0, 0))


@contextmanager
def scripted(**kwargs: object) -> Iterator[tuple[LongConnection, socket.socket]]:
    """A client of ours for whom a lost link is the end, and a plain socket that has said WELCOME and says no more."""
    with listening() as listener:
        said: list[socket.socket] = []

        def play() -> None:
            peer, _ = listener.accept()
            peer.settimeout(PATIENCE)
            said.append(peer)
            peer.sendall(PREAMBLE + welcome())

        player = threading.Thread(target=play)
        player.start()
        kwargs = {"reconnect": False, "timeout": PATIENCE, **kwargs}
        connection = longconn.connect(listener.getsockname(), **kwargs)  # type: ignore[arg-type]
        player.join()
        connection.settimeout(PATIENCE)
        with said[0]:
            yield connection, said[0]
        let_go(connection)


# ---- messages


@pytest.mark.parametrize("size", [0, 1, 64, 16_383, 16_384, 16_385, 300_000, 5_000_000])
def test_a_message_arrives_whole(pair, size):
    client, ours = pair
    message = os.urandom(size)
    client.send(message)
    assert ours.recv() == message
    sender = threading.Thread(target=ours.send, args=(message,))
    sender.start()
    assert client.recv() == message
    sender.join()


@pytest.mark.parametrize(
    "data", [b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), array.array("i", [7]), memoryview(bytearray(b"abcd"))]
)
def test_any_bytes_like_object_is_data(pair, data):
    client, ours = pair
    client.send(data)
    client.sendall(data)
    assert ours.recv() == ours.recv() == bytes(data)


def test_a_large_bytearray_may_change_once_it_is_sent(pair):
    client, ours = pair
    data = bytearray(b"x" * 3_000_000)
    received: list[bytes] = []
    receiver = threading.Thread(target=lambda: received.append(ours.recv()))
    receiver.start()
    client.send(data)
    data[:] = b"y" * len(data)
    receiver.join()
    assert received == [b"x" * 3_000_000]


@pytest.mark.parametrize("data", ["text", None, 7, object(), [1, 2]])
def test_what_is_no_data_is_a_type_error(pair, data):
    client, ours = pair
    with pytest.raises(TypeError):
        client.send(data)
    client.send(b"still there")
    assert ours.recv() == b"still there"


def test_many_messages_go_and_come_together(pair):
    client, ours = pair
    messages = [str(number).encode() for number in range(10_000)]
    sender = threading.Thread(target=lambda: sent.append(client.send_many(iter(messages))))
    sent: list[int] = []
    sender.start()
    got: list[bytes] = []
    while len(got) < len(messages):
        part = ours.recv_many(100)
        assert 1 <= len(part) <= 100
        got += part
    sender.join()
    assert got == messages
    assert sent == [len(messages)]


def test_what_the_iterable_raises_comes_through_and_what_went_before_is_sent(pair):
    client, ours = pair

    def messages() -> Iterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.send_many(messages())
    assert ours.recv() == b"one"


def test_a_message_over_the_peers_limit_is_refused_before_it_is_sent():
    with served(largest_message_bytes=1000) as (_, client, ours):
        with pytest.raises(longconn.MessageTooLarge, match="1000") as raised:
            client.send(b"x" * 1001)
        assert isinstance(raised.value, ValueError)
        client.send(b"x" * 1000)
        assert len(ours.recv()) == 1000


def test_recv_takes_no_size(pair):
    with pytest.raises(TypeError, match=r"whole messages.*timeout goes by its name"):
        pair[0].recv(1024)


def test_send_and_recv_take_what_their_signatures_say(pair):
    client, ours = pair
    client.send(data=b"by name")
    client.send(b"with a time", timeout=PATIENCE)
    client.send(timeout=None, data=b"both by name")
    assert [ours.recv(timeout=PATIENCE), ours.recv(), ours.recv(timeout=None)] == [
        b"by name",
        b"with a time",
        b"both by name",
    ]
    for call in (
        lambda: client.send(),
        lambda: client.send(b"x", 1),
        lambda: client.send(b"x", flags=0),
        lambda: client.send(b"x", timeout=1, flags=0),
        lambda: client.send(b"x", data=b"y"),
        lambda: client.recv(size=1),
        lambda: client.recv(1, timeout=1),
        lambda: client.recv(timeout="soon"),
        lambda: LongConnection.recv(ours.address),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(TimeoutError):
        client.recv(timeout=0)


@pytest.mark.parametrize("is_bounded", [False, True])
def test_a_conversation_of_every_size(pair, is_bounded):
    client, ours = pair
    for connection in pair:
        connection.settimeout(PATIENCE if is_bounded else None)

    def echo() -> None:
        with suppress(longconn.PeerClosed):
            while True:
                ours.send(ours.recv())

    echoing = threading.Thread(target=echo)
    echoing.start()
    for number in range(300):
        message = bytes([number % 256]) * (0, 1, 64, 1024, 1025, 4092, 20_000, 200_000)[number % 8]
        client.send(message)
        assert client.recv() == message
    client.close()
    echoing.join()


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda _, peer: reset(peer), longconn.PeerLost),
        (lambda _, peer: peer.close(), longconn.PeerLost),
        (lambda _, peer: peer.sendall(frame(0x42)), longconn.ProtocolError),
        (lambda _, __: None, longconn.PeerLost),  # it is silent
        (lambda client, _: let_go(client), longconn.AlreadyClosed),
    ],
)
def test_a_wait_without_a_timeout_in_a_conversation_ends_with_the_connection(end, error):
    with scripted(heartbeat=QUICK) as (client, peer):
        client.settimeout(None)
        ended: list[BaseException] = []

        def converse() -> None:
            try:
                while client.recv() != b"the last":
                    client.send(b"and then?")
                client.recv()
            except longconn.LongConnError as error:
                ended.append(error)

        conversing = threading.Thread(target=converse)
        conversing.start()
        for _ in range(50):
            peer.sendall(frame(5, b"hello"))
        peer.sendall(frame(5, b"the last"))
        wait_until_blocked(conversing.native_id)
        end(client, peer)
        conversing.join(PATIENCE)
        assert len(ended) == 1
        assert isinstance(ended[0], error)


def test_a_reset_is_heard_though_nobody_reads_after_a_conversation():
    with scripted() as (client, peer):
        client.settimeout(None)
        reading = threading.Thread(target=client.recv)
        reading.start()
        wait_until_blocked(reading.native_id)
        peer.sendall(frame(5, b"hello"))
        reading.join(PATIENCE)
        reset(peer)
        wait_until(lambda: client.state == "closed")
        assert client.lost is Cause.RESET


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda client: client.recv_many(-1), "max_messages=-1"),
        (lambda client: client.close(-1), "code=-1"),
        (lambda client: client.close(1 << 40), "code=1099511627776"),
        (lambda client: client.wait_for("connecting"), "one of open, suspect, reconnecting, closing, closed"),
        (lambda client: client.wait_for("shut"), "one of open"),
    ],
)
def test_a_value_that_can_not_be_is_shown(pair, call, text):
    client, _ = pair
    with pytest.raises(ValueError, match=text):
        call(client)
    assert client.state == "open"


def test_a_batch_of_none_is_refused(pair):
    with pytest.raises(ValueError, match="max_messages"):
        pair[0].recv_many(0)


def test_flush_waits_until_the_peers_program_took_everything(pair):
    client, ours = pair
    client.send(b"a")
    client.send(b"b")
    with pytest.raises(TimeoutError):
        client.flush(timeout=0.05)
    assert client.stats().untaken_messages == 2
    got = ours.recv_many(10)
    while len(got) < 2:
        got += ours.recv_many(10)
    client.flush()
    assert client.stats().untaken_messages == 0


def test_a_ping_needs_nothing_of_the_peers_program(pair):
    client, _ = pair
    assert 0 <= client.ping() < 1.0 * SLACK


def test_a_sender_waits_for_room_and_not_for_ever(pair):
    client, ours = pair
    with pytest.raises(TimeoutError):
        client.send_many(itertools.repeat(b"x" * 10_000), timeout=0.5)
    count = client.stats().untaken_messages
    for _ in range(count):
        assert len(ours.recv()) == 10_000
    client.send(b"room again")
    assert ours.recv() == b"room again"


def test_many_threads_share_a_connection(pair):
    client, ours = pair
    each, threads = 500, 8
    got: list[bytes] = []

    def send(thread: int) -> None:
        for number in range(each):
            client.send(struct.pack("!II", thread, number))

    def receive() -> None:
        for message in ours:
            got.append(message)

    senders = [threading.Thread(target=send, args=(thread,)) for thread in range(threads)]
    receivers = [threading.Thread(target=receive) for _ in range(4)]
    for thread in senders + receivers:
        thread.start()
    for thread in senders:
        thread.join()
    client.close()
    for thread in receivers:
        thread.join()
    assert len(got) == len(set(got)) == each * threads


# ---- timeouts


def test_an_expired_timeout_is_plain_and_the_connection_stays_usable(pair):
    client, ours = pair
    for wait in (
        client.recv,
        lambda **kwargs: client.recv_many(5, **kwargs),
        lambda **kwargs: client.wait_for("closed", **kwargs),
    ):
        for timeout in (0, 0.01, datetime.timedelta(milliseconds=10)):
            with pytest.raises(TimeoutError) as raised:
                wait(timeout=timeout)
            assert type(raised.value) is TimeoutError
    ours.send(b"later")
    assert client.recv() == b"later"


def test_a_timeout_that_is_left_out_is_that_of_settimeout(pair):
    client, _ = pair
    assert client.gettimeout() == PATIENCE
    client.settimeout(0.01)
    with pytest.raises(TimeoutError):
        client.recv()
    with pytest.raises(TimeoutError):
        next(client)
    client.settimeout(datetime.timedelta(seconds=2))
    assert client.gettimeout() == 2.0
    client.settimeout(None)
    assert client.gettimeout() is None


@pytest.mark.parametrize("timeout", [float("nan"), -1, -0.001])
def test_a_time_that_is_none_is_refused(pair, timeout):
    client, _ = pair
    with pytest.raises(ValueError, match="timeout"):
        client.recv(timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        client.settimeout(timeout)


@pytest.mark.parametrize("timeout", ["1", b"1", True, object()])
def test_what_is_no_time_is_refused(pair, timeout):
    client, _ = pair
    with pytest.raises(TypeError, match="timeout"):
        client.recv(timeout=timeout)
    with pytest.raises(TypeError):
        client.send(b"", 1)


@pytest.mark.parametrize("timeout", [1e300, float("inf"), 10**400])
def test_a_time_without_end_is_for_ever(pair, timeout):
    client, ours = pair
    client.settimeout(timeout)
    ours.send(b"x")
    assert client.recv(timeout=timeout) == b"x"


# ---- what is known


def test_both_sides_know_who_they_talk_to(pair):
    client, ours = pair
    assert client.peer_address == client.getpeername() == ours.address == ours.getsockname()
    assert client.address == ours.peer_address
    assert client.client_id == ours.client_id == "device-7"
    assert client.state == ours.state == "open"
    assert client.lost is None
    assert client.principal is None
    host, port = client.address
    assert f"{host}:{port}" in repr(client)
    assert "open" in repr(client)
    assert client == client
    assert client != ours
    assert len({client, ours, client}) == 2


def test_a_status_is_told_with_the_beats(pair):
    client, ours = pair
    client.status = b"charging"
    assert client.status == b"charging"
    client.ping()  # a beat of ours goes out
    wait_until(lambda: ours.peer_status == b"charging")
    with pytest.raises(ValueError, match="1024"):
        client.status = b"x" * 1025
    with pytest.raises(TypeError):
        client.status = "text"
    assert client.status == b"charging"


def test_both_sides_know_since_when(pair):
    for connection in pair:
        assert 0 <= time.time() - connection.opened_at < PATIENCE


def test_the_kernels_figures_are_among_them(pair):
    client, _ = pair
    info = client.stats().tcp_info
    assert (info.state, info.bytes_received > 0) == ("ESTABLISHED", True)
    client.close()
    assert client.stats().tcp_info is None


def test_the_figures_have_units_and_are_true(pair):
    client, ours = pair
    client.send(b"x" * 100)
    client.ping()
    stats = client.stats()
    assert stats.state == "open"
    assert stats.bytes_sent > 100
    assert stats.send_interval_seconds == stats.hear_interval_seconds == 5.0
    assert stats.limit_seconds >= 12.5
    assert stats.round_trip_least_seconds is not None
    assert stats.round_trip_least_seconds <= stats.round_trip_smoothed_seconds
    assert stats.beats_sent >= 1
    assert stats.phi is None
    wait_until(lambda: ours.stats().inbox_messages == 1)
    assert ours.stats().inbox_bytes >= 100


def test_phi_is_among_the_figures():
    with LongServer(("127.0.0.1", 0)) as server:
        with longconn.connect(server.address, heartbeat=Heartbeat(0.05, detector="phi")) as client:
            assert client.stats().phi is not None
            ours = server.accept(timeout=PATIENCE)
            client.close()
            ours.close()


def test_a_program_that_told_of_its_progress_and_stops_is_seen():
    with served(heartbeat=Heartbeat(0.05)) as (_, client, ours):
        ours.progress()
        client.send(b"work")
        age = wait_until(lambda: client.stats().peer_application_age_seconds)
        assert age > 0
        assert wait_until(lambda: client.stats().peer_interpreter_age_seconds is not None)


def test_the_interpreters_age_is_told_while_python_runs():
    with served(heartbeat=Heartbeat(0.05)) as (_, client, _ours):
        wait_until(lambda: client.stats().beats_heard > 5)
        age = client.stats().peer_interpreter_age_seconds
        assert age is not None
        assert age < 1.0 * SLACK


def test_its_descriptor_is_readable_while_something_can_be_received(pair):
    client, ours = pair
    descriptor = client.fileno()
    assert descriptor == client.fileno()
    assert select.select([client], [], [], 0) == ([], [], [])
    ours.send(b"one")
    assert select.select([client], [], [], PATIENCE)[0] == [client]
    assert client.recv() == b"one"
    assert select.select([client], [], [], 0) == ([], [], [])
    closer = threading.Thread(target=ours.close)
    closer.start()
    assert select.select([client], [], [], PATIENCE)[0] == [client]
    closer.join()
    with pytest.raises(longconn.PeerClosed):
        client.recv()


def test_events_tell_how_it_came_and_went(pair):
    client, ours = pair
    ours.close(4711, "enough")
    before = time.time()
    opened, closed = list(client.events())
    assert (opened.state, opened.cause, opened.error) == ("open", None, None)
    assert (closed.state, closed.cause) == ("closed", Cause.CLOSED)
    assert isinstance(closed.error, longconn.PeerClosed)
    assert before - PATIENCE < opened.time <= closed.time <= time.time()
    assert list(client.events()) == []


def test_who_is_called_back_goes_with_the_connection():
    """A method of who has the connection: a circle that leads through the native side, where no collector looks."""

    class Device:
        def __init__(self, address: object) -> None:
            self.connection = longconn.connect(address, timeout=PATIENCE, on_event=self.heard)

        def heard(self, event: object) -> None: ...

    with LongServer(("127.0.0.1", 0)) as server:
        device = Device(server.address)
        gone = weakref.ref(device)
        device.connection.close()
        del device
        wait_until(lambda: gc.collect() is not None and gone() is None)


def test_a_callback_is_told_the_same():
    told: list[longconn.Event] = []
    with LongServer(("127.0.0.1", 0)) as server:
        with longconn.connect(server.address, on_event=told.append):
            ours = server.accept(timeout=PATIENCE)
        ours.close()
        wait_until(lambda: len(told) == 2)
    assert [event.state for event in told] == ["open", "closed"]


def test_what_a_callback_raises_is_told_and_harms_nothing(monkeypatch):
    told: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: told.append(args.exc_type))

    def fail(_: object) -> None:
        raise ZeroDivisionError

    with LongServer(("127.0.0.1", 0)) as server:
        with longconn.connect(server.address, on_event=fail) as client:
            ours = server.accept(timeout=PATIENCE)
            client.ping()
        ours.close()
        wait_until(lambda: told == [ZeroDivisionError] * 2)
    monkeypatch.undo()


def test_changes_of_state_are_logged(caplog):
    caplog.set_level("DEBUG", "longconn.link")
    with scripted() as (client, peer):
        host, port = client.peer_address
        reset(peer)
        with pytest.raises(longconn.PeerLost):
            client.recv()
    wait_until(lambda: [each for each in caplog.records if each.levelname == "WARNING"])
    told = [
        (each.name, each.levelname, each.getMessage()) for each in caplog.records if f":{port}" in each.getMessage()
    ]
    assert told[0] == ("longconn.link", "DEBUG", f"{host}:{port}: open")
    assert told[-1][:2] == ("longconn.link", "WARNING")
    assert "reset" in told[-1][2]


# ---- the end


def test_iteration_ends_quietly_when_the_peer_closes(pair):
    client, ours = pair
    client.send(b"one")
    client.send(b"two")
    closer = threading.Thread(target=client.close)
    closer.start()
    assert list(ours) == [b"one", b"two"]
    closer.join()
    assert ours.state == client.state == "closed"
    assert client.lost is ours.lost is Cause.CLOSED


def test_a_reason_is_told(pair):
    client, ours = pair
    client.close(5000, "battery empty")
    for call in (ours.recv, lambda: next(ours), lambda: ours.send(b"x"), ours.ping, lambda: ours.wait_for("open")):
        with pytest.raises(longconn.PeerClosed) as raised:
            call()
        assert (raised.value.code, raised.value.reason) == (5000, "battery empty")
        assert raised.value.peer == ours.peer_address
        assert raised.value.cause is Cause.CLOSED
        assert isinstance(raised.value, ConnectionError)
    ours.close()


@pytest.mark.parametrize("code", [2, 100, 4095, 65536])
def test_codes_that_are_the_protocols_own_are_refused(pair, code):
    with pytest.raises(ValueError, match="code"):
        pair[0].close(code)
    with pytest.raises(ValueError, match="1024"):
        pair[0].close(0, "x" * 1025)
    assert pair[0].state == "open"


def test_what_was_not_received_before_the_close_is_not_received_after_it(pair):
    client, ours = pair
    ours.send(b"unseen")
    wait_until(lambda: client.stats().inbox_messages == 1)
    client.close()
    with pytest.raises(longconn.AlreadyClosed):
        client.recv()
    assert list(client) == []
    with pytest.raises(longconn.PeerClosed):
        ours.close()  # for "unseen" was not taken, as that side was told


def test_a_close_says_that_the_peer_went_before_it_took_everything():
    with scripted() as (client, peer):
        client.send(b"never taken")
        closer = threading.Timer(0.1, reset, [peer])
        closer.start()
        with pytest.raises(longconn.PeerReset):
            client.close()
        client.close()
        closer.join()


def test_a_close_says_nothing_of_an_end_that_a_call_has_told(pair):
    client, ours = pair
    client.send(b"never taken")
    ours.close()
    with pytest.raises(longconn.PeerClosed):
        client.recv()
    client.close()


def test_a_peer_that_ignores_the_goodbye_does_not_keep_a_close_for_ever():
    with scripted(heartbeat=QUICK) as (client, _):
        client.close(timeout=None)
    assert client.state == "closed"


def test_use_after_close_says_so(pair):
    client, _ = pair
    client.close()
    client.close()
    for call in (client.recv, lambda: client.send(b"x"), client.ping, lambda: client.wait_for("open")):
        with pytest.raises(longconn.AlreadyClosed) as raised:
            call()
        assert isinstance(raised.value, OSError)
        assert raised.value.errno == 9
    assert list(client) == []
    assert "closed" in repr(client)
    client.wait_for("closed")


def test_close_waits_for_the_peers_program_and_says_what_it_had_not_taken(pair):
    client, _ = pair
    client.send(b"x" * 1000)
    with pytest.raises(TimeoutError, match="1004"):
        client.close(timeout=0.05)
    assert client.state == "closed"
    client.close()


def test_a_blocked_receiver_learns_of_the_close(pair):
    client, _ = pair
    raised: list[BaseException] = []

    def receive() -> None:
        try:
            client.recv()
        except longconn.AlreadyClosed as error:
            raised.append(error)

    receiver = threading.Thread(target=receive)
    receiver.start()
    wait_until_blocked(receiver.native_id)
    client.close()
    receiver.join(PATIENCE)
    assert len(raised) == 1


def test_shutdown_is_a_goodbye_that_does_not_wait(pair):
    client, ours = pair
    client.send(b"last words")
    client.shutdown(socket.SHUT_WR)
    assert client.state == "closing"
    with pytest.raises(longconn.AlreadyClosed):
        client.send(b"more")
    assert list(ours) == [b"last words"]
    client.wait_for("closed")


def test_a_close_after_a_shutdown_says_what_was_not_taken(pair):
    client, _ = pair
    client.send(b"never taken")
    client.shutdown(socket.SHUT_WR)
    with pytest.raises(TimeoutError, match="not taken"):
        client.close(timeout=0.05)
    client.close()


def test_receiving_can_not_be_shut_down(pair):
    with pytest.raises(ValueError, match="SHUT_RD"):
        pair[0].shutdown(socket.SHUT_RD)
    with pytest.raises(ValueError, match="how"):
        pair[0].shutdown(17)
    assert pair[0].state == "open"


def test_with_closes_it_and_an_exception_is_told_as_going_away(pair):
    client, ours = pair
    with suppress(KeyError), client as same:
        assert same is client
        raise KeyError
    assert client.state == "closed"
    with pytest.raises(longconn.PeerClosed) as raised:
        ours.recv()
    assert raised.value.code == 1


def test_one_that_nobody_closes_is_closed_with_a_warning():
    with LongServer(("127.0.0.1", 0)) as server:
        clients = [longconn.connect(server.address)]
        ours = server.accept(timeout=PATIENCE)
        with pytest.warns(ResourceWarning, match="unclosed"):
            clients.clear()
        with pytest.raises(longconn.PeerClosed):
            ours.recv(timeout=PATIENCE)


def test_it_can_not_be_pickled(pair):
    with pytest.raises(TypeError):
        pickle.dumps(pair[0])


# ---- the peer is lost


def test_a_peer_that_falls_silent_is_lost_within_the_limit():
    with scripted(heartbeat=QUICK) as (client, _peer):
        before = time.monotonic()
        with pytest.raises(longconn.PeerLost) as raised:
            client.recv()
        assert time.monotonic() - before < 2 * QUICK.limit + 1.0 * SLACK
        error = raised.value
        assert error.cause in (Cause.FROZEN, Cause.SILENT)
        assert error.limit == pytest.approx(QUICK.limit)
        assert error.silence >= QUICK.limit
        assert error.peer == client.peer_address
        assert error.level in ("path", "interpreter", None)
        assert not isinstance(error, TimeoutError)
        assert isinstance(error, ConnectionError)
        assert client.lost is error.cause
        assert str(error.cause) in repr(client)
        with pytest.raises(longconn.PeerLost):  # again and again
            client.send(b"x")
        states = [event.state for event in client.events()]
        assert states == ["open", "suspect", "closed"]


def test_a_blocked_sender_learns_of_it():
    with scripted(heartbeat=QUICK) as (client, _peer):
        with pytest.raises(longconn.PeerLost):
            client.send_many(itertools.repeat(b"x" * 100_000))


def test_an_end_of_stream_without_a_goodbye_is_an_ended_process():
    with scripted() as (client, peer):
        peer.sendall(frame(5, b"hello"))
        peer.recv(65536)
        wait_until(lambda: client.stats().inbox_messages)
        peer.shutdown(socket.SHUT_WR)
        assert client.recv() == b"hello"
        with pytest.raises(longconn.PeerLost) as raised:
            client.recv()
        assert raised.value.cause is Cause.ENDED
        assert not isinstance(raised.value, longconn.PeerReset)


def test_a_peer_that_asks_and_resets_at_once_is_no_more_than_lost():
    """The answer can't be written by who has just received the question."""
    ask = frame(7, struct.pack("!B3Q2I", 1, 1, 0, 0, 0, 0))
    for _ in range(20):
        with scripted() as (connection, peer):

            def go(peer: socket.socket = peer) -> None:
                peer.sendall(ask)
                reset(peer)

            goer = threading.Timer(0.01, go)
            goer.start()
            with pytest.raises(longconn.PeerReset):
                connection.recv()
            goer.join()


def test_a_reset_is_told_as_such():
    with scripted() as (client, peer):
        reset(peer)
        with pytest.raises(longconn.PeerReset) as raised:
            client.recv()
        assert raised.value.cause is Cause.RESET
        assert raised.value.errno == 104
        assert isinstance(raised.value, ConnectionResetError)


@pytest.mark.parametrize(
    "said",
    [frame(0x20, b""), frame(1, b""), b"\xff\xff\xff\x05", frame(6, b"short"), frame(6, b"\xff" * 16), frame(7, b"")],
)
def test_a_peer_that_breaks_the_rules_is_a_protocol_error(said):
    with scripted() as (client, peer):
        peer.sendall(said)
        with pytest.raises(longconn.ProtocolError) as raised:
            client.recv()
        assert raised.value.cause is Cause.PROTOCOL
        assert raised.value.peer == client.peer_address
        assert isinstance(raised.value, ConnectionError)


def test_the_peers_goodbye_has_its_code():
    with scripted() as (client, peer):
        peer.sendall(frame(8, struct.pack("!HBQIHH", 7000, 1, 0, 0, 0, 3) + b"bye"))
        with pytest.raises(longconn.PeerClosed) as raised:
            client.recv()
        assert (raised.value.code, raised.value.reason) == (7000, "bye")


def test_the_peers_words_begin_no_line_of_a_log_and_command_no_terminal():
    with scripted() as (connection, peer):
        reason = "it's über\nroot: all is well\x1b[2J\u202e"
        words = reason.encode()
        peer.sendall(frame(8, struct.pack("!HBQIHH", 5000, 1, 0, 0, 0, len(words)) + words))
        with pytest.raises(longconn.PeerClosed, match="it's über") as raised:
            connection.recv()
    assert raised.value.reason == reason
    assert str(raised.value).isprintable()


def test_a_peer_that_did_not_hear_us_gave_us_up():
    with scripted() as (client, peer):
        peer.sendall(frame(8, struct.pack("!HBQIHH", 2, 1, 0, 0, 0, 0)))
        with pytest.raises(longconn.PeerLost) as raised:
            client.recv()
        assert raised.value.cause is Cause.DEAF
        assert raised.value.given_up in ("unheard", "paused")


def test_a_program_that_hangs_is_lost_if_that_was_asked_for():
    heartbeat = Heartbeat(0.05, application_limit=0.3 * SLACK)
    with LongServer(("127.0.0.1", 0)) as server:
        client = longconn.connect(server.address, heartbeat=heartbeat, reconnect=False)
        ours = server.accept(timeout=PATIENCE)
        ours.progress()
        with pytest.raises(longconn.PeerLost) as raised:
            client.recv(timeout=PATIENCE)
        assert raised.value.cause is Cause.HUNG
        assert raised.value.level == "application"
        client.close()
        ours.close()


HOLDS_THE_GIL = """
import ctypes, sys
import longconn
client = longconn.connect(sys.argv[1], heartbeat=longconn.Heartbeat(0.05), reconnect=False)
print("connected", flush=True)
sys.stdin.readline()
ctypes.PyDLL(None).usleep(int(float(sys.argv[2]) * 1e6))  # it keeps the GIL
print("back", flush=True)
sys.stdin.readline()
client.close()
"""


@contextmanager
def a_client_that_keeps_the_gil(server: LongServer, seconds: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDS_THE_GIL, "{}:{}".format(*server.address), str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "connected\n"
        try:
            yield process
        finally:
            process.communicate("\n\n", PATIENCE)


def test_a_peer_whose_interpreter_is_held_up_lives_and_is_seen_to_be_busy():
    with LongServer(("127.0.0.1", 0), heartbeat=Heartbeat(0.05, limit=1.0 * SLACK)) as server:
        with a_client_that_keeps_the_gil(server, 2.0 * SLACK) as process:
            ours = server.accept(timeout=PATIENCE)
            assert process.stdin
            assert process.stdout
            process.stdin.write("\n")
            process.stdin.flush()
            wait_until(lambda: (ours.stats().peer_interpreter_age_seconds or 0) > 1.2 * SLACK)
            assert ours.state in ("open", "suspect")
            assert process.stdout.readline() == "back\n"
            wait_until(lambda: (ours.stats().peer_interpreter_age_seconds or 0) < 0.5 * SLACK)
            ours.shutdown(socket.SHUT_WR)


def test_a_peer_whose_interpreter_is_held_up_is_lost_if_that_was_asked_for():
    with LongServer(("127.0.0.1", 0), heartbeat=Heartbeat(0.05, interpreter_limit=0.8 * SLACK)) as server:
        with a_client_that_keeps_the_gil(server, 2.0 * SLACK) as process:
            ours = server.accept(timeout=PATIENCE)
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
            with pytest.raises(longconn.PeerLost) as raised:
                ours.recv(timeout=PATIENCE)
            assert (raised.value.cause, raised.value.level) == (Cause.HUNG, "interpreter")


# ---- connecting


def test_an_address_is_a_pair_or_a_text():
    with LongServer("127.0.0.1:0") as server:
        host, port = server.address
        for address in ((host, port), [host, port], f"{host}:{port}", f"localhost:{port}"):
            with longconn.connect(address, timeout=PATIENCE) as client:
                assert client.peer_address == (host, port)


@pytest.mark.parametrize("address", ["nowhere", 7, None, ("host",), ("host", "port"), ("host", 70000), b"host:1"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="address"):
        longconn.connect(address)


def test_where_nobody_listens_no_connection_can_be_made():
    with listening() as listener:
        address = listener.getsockname()
    with pytest.raises(longconn.ConnectFailed) as raised:
        longconn.connect(address)
    assert raised.value.cause is Cause.REFUSED
    assert raised.value.errno == 111
    assert raised.value.peer == address
    assert isinstance(raised.value, ConnectionError)
    assert isinstance(raised.value.__cause__, ConnectionRefusedError)


def test_a_name_that_is_unknown_is_the_stdlibs_error():
    with pytest.raises(socket.gaierror, match=r"host\.invalid") as raised:
        longconn.connect("host.invalid:1")
    assert raised.value.errno == socket.EAI_NONAME


def answered_by(said: bytes) -> longconn.ConnectFailed:
    """What a client is told whose server says this."""
    with listening() as listener:

        def play() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(said)
                peer.settimeout(PATIENCE)
                try:
                    while peer.recv(65536):
                        pass
                except ConnectionResetError:
                    pass

        player = threading.Thread(target=play)
        player.start()
        with pytest.raises(longconn.ConnectFailed) as raised:
            longconn.connect(listener.getsockname(), timeout=PATIENCE)
        player.join()
        return raised.value


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x28" * 2, b"+PONG\r\n...."]
)
def test_a_server_that_speaks_something_else_is_shown(said):
    error = answered_by(said)
    assert error.cause is Cause.PROTOCOL
    assert not isinstance(error, longconn.HandshakeRejected)
    assert repr(said[:5])[2:-1].replace("\\\\", "\\")[:4] in str(error)


def test_a_server_that_refuses_is_heard():
    error = answered_by(PREAMBLE + frame(8, struct.pack("!HBQIHH", 7, 1, 0, 0, 0, 9) + b"who's you"))
    assert isinstance(error, longconn.HandshakeRejected)
    assert (error.code, error.reason, error.cause) == (7, "who's you", Cause.HANDSHAKE)


def test_a_server_that_goes_in_the_middle_is_told():
    with listening() as listener:
        player = threading.Thread(target=lambda: listener.accept()[0].close())
        player.start()
        with pytest.raises(longconn.ConnectFailed) as raised:
            longconn.connect(listener.getsockname(), timeout=PATIENCE)
        player.join()
    assert raised.value.cause is Cause.HANDSHAKE


def test_a_server_that_says_nothing_is_waited_for_in_bounds():
    with listening() as listener:
        with pytest.raises(TimeoutError, match="handshake"):
            longconn.connect(listener.getsockname(), timeout=0.1)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(PATIENCE)
            assert peer.recv(8) == PREAMBLE  # and the connection is given up
            try:
                while peer.recv(65536):
                    pass
            except ConnectionResetError:
                pass


def test_limits_that_do_not_fit_are_refused_with_the_numbers():
    with LongServer(("127.0.0.1", 0), heartbeat=Heartbeat(5.0, floor=5.0)) as server:
        with pytest.raises(longconn.HandshakeRejected) as raised:
            longconn.connect(server.address, heartbeat=Heartbeat(1.0, limit=2.0))
        assert raised.value.code == 6


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"heartbeat": 5}, TypeError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"client_id": b"x"}, TypeError),
        ({"client_id": "ä" * 128}, ValueError),
        ({"token": "secret"}, TypeError),
        ({"token": b"x" * 3073}, ValueError),
        ({"largest_message_bytes": 0}, ValueError),
        ({"largest_message_bytes": 2**31}, ValueError),
        ({"largest_message_bytes": 1.5}, TypeError),
        ({"keepalive": 5}, TypeError),
    ],
)
def test_bad_arguments_are_told_before_anything_is_sent(arguments, error):
    with listening() as listener:
        with pytest.raises(error):
            longconn.connect(listener.getsockname(), **arguments)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_the_kernels_probes_can_be_had_too():
    with LongServer(("127.0.0.1", 0)) as server:
        with longconn.connect(server.address, keepalive=longconn.Keepalive(7, 3, 2)) as client:
            client.send(b"x")
            ours = server.accept(timeout=PATIENCE)
            assert ours.recv(timeout=PATIENCE) == b"x"
        ours.close()


# ---- signals, forks, exit


class Struck(Exception):
    pass


@contextmanager
def struck_soon() -> Iterator[None]:
    def strike(*_: object) -> None:
        raise Struck

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda client, _: client.recv(timeout=None),
        lambda client, _: (client.settimeout(None), client.recv()),
        lambda client, _: client.recv_many(3),
        lambda client, _: next(client),
        lambda client, _: client.wait_for("closed"),
        lambda client, _: [client.send(b"x" * 100_000, timeout=None) for _ in range(1000)],
        lambda client, _: (client.send(b"x"), client.flush()),
        lambda client, _: [None for _ in client.events()],
        lambda _, server: server.accept(timeout=None),
    ],
)
def test_a_signals_handler_may_end_any_wait(call):
    with served() as (server, client, _):
        with struck_soon(), pytest.raises(Struck):
            call(client, server)
        assert client.state == "open"


def test_a_signal_that_is_handled_does_not_end_a_wait(pair):
    client, ours = pair
    handled: list[int] = []

    def strike(number: int, _: object) -> None:
        handled.append(number)
        ours.send(b"from the handler")

    before = signal.signal(signal.SIGALRM, strike)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert client.recv() == b"from the handler"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert handled == [signal.SIGALRM]


@contextmanager
def struck_often() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_ping_comes_back_though_signals_come_faster():
    with scripted() as (client, peer), peer.makefile("rb") as heard:

        def answer_slowly() -> None:
            heard.read(len(PREAMBLE))
            while header := heard.read(4):
                payload = heard.read(int.from_bytes(header[:3], "big"))
                if header[3] == 7 and payload[0] & 1:
                    time.sleep(0.2)
                    peer.sendall(frame(7, struct.pack("!B3Q2I", 2, 1, *struct.unpack_from("!Q", payload, 1), 0, 0, 0)))
                    return

        peer.setblocking(True)
        answerer = threading.Thread(target=answer_slowly)
        answerer.start()
        with struck_often():
            assert client.ping() >= 0.2
        answerer.join()
        client.close(timeout=0)


def test_a_flush_ends_though_others_go_on_sending_and_signals_come(pair):
    client, ours = pair
    stop = threading.Event()

    def send_on() -> None:
        while not stop.is_set():
            client.send(b"more")
            time.sleep(0.001)

    def take_slowly() -> None:
        # always something is under way that isn't taken
        with suppress(longconn.PeerClosed):
            while True:
                ours.recv()
                time.sleep(0.002)

    threads = [threading.Thread(target=function) for function in (send_on, take_slowly)]
    for thread in threads:
        thread.start()
    try:
        with struck_often():
            time.sleep(0.3)
            client.flush()
    finally:
        stop.set()
        threads[0].join()
        client.close()
        threads[1].join()


def test_a_forked_child_can_not_use_it_and_can_connect_anew():
    said = python_says(
        """
import os, sys, threading
import longconn
server = longconn.LongServer(("127.0.0.1", 0))
client = longconn.connect(server.address)
ours = server.accept(timeout=20)
child = os.fork()
if not child:
    calls = [client.recv, lambda: client.send(b"x"), client.ping, client.stats, client.fileno, lambda: client.state,
             lambda: server.accept(timeout=1), lambda: server.broadcast(b"x"), lambda: server.connections]
    for call in calls:
        try:
            call()
            print("no error", call)
        except longconn.ForkedError:
            pass
    repr(client), repr(server)
    client.close()
    server.close()
    fresh = longconn.LongServer(("127.0.0.1", 0))
    with longconn.connect(fresh.address) as again:
        other = fresh.accept(timeout=20)
        again.send(b"child")
        print(other.recv(timeout=20))
    other.close()
    fresh.close()
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
client.send(b"parent")
print(ours.recv(timeout=20))
client.close(); ours.close(); server.close()
"""
    )
    assert said == "b'child'\nb'parent'\n"


def test_a_program_forks_while_its_threads_talk():
    """Their changes of state are logged and told, by locks that are held over the fork."""
    said = python_says(
        """
import os, threading, warnings
import longconn
warnings.simplefilter("ignore", DeprecationWarning)  # of fork, in a process with threads of its own
stop = threading.Event()
told = []

def talk():
    while not stop.is_set():
        with longconn.connect(server.address, on_event=told.append) as client:
            for _ in range(20):
                client.send(b"x" * 300_000)
                client.recv(timeout=60)

def serve():
    for connection, message in server.messages():
        connection.send(message)

with longconn.LongServer(("127.0.0.1", 0)) as server:
    threads = [threading.Thread(target=talk) for _ in range(3)]
    server_thread = threading.Thread(target=serve)
    for thread in (server_thread, *threads):
        thread.start()
    for _ in range(30):
        child = os.fork()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    stop.set()
    for thread in threads:
        thread.join()
server_thread.join()
print("ends")
""",
    )
    assert said == "ends\n"
