"""Sessions: connections that are cut, on purpose, by a fault proxy, and what the program sees of it."""

from __future__ import annotations

import base64
import errno
import itertools
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import longconn
import pytest
from longconn import Backoff, Cause, LongConnection, LongServer
from longconn.testing import FaultProxy
from peers import PATIENCE, SLACK, let_go, listening, python_says, wait_until, wait_until_blocked

#: Comes back at once, or nearly.
SOON = Backoff(first=0.01, cap=0.05)


def keep_out(proxy: FaultProxy) -> None:
    """Both ends of each connection are told that it is over, and nobody is let through, until `proxy.admit()`."""
    proxy.refuse()
    proxy.end()


@contextmanager
def connected(address: object, **kwargs: Any) -> Iterator[LongConnection]:
    connection = longconn.connect(
        address, **{"reconnect": SOON, "client_id": "device-7", "timeout": PATIENCE, **kwargs}
    )
    connection.settimeout(PATIENCE)
    try:
        yield connection
    finally:
        let_go(connection)


class Trio:
    """A client and the server's connection with it, and what is between them."""

    def __init__(self, server: LongServer, proxy: FaultProxy, client: LongConnection) -> None:
        self.server, self.proxy, self.client = server, proxy, client
        self.ours = server.accept(timeout=PATIENCE)
        self.ours.settimeout(PATIENCE)
        self.both = (client, self.ours)

    def part(self) -> None:
        """Both sides know that the connection is lost, and there is no other until `proxy.admit()`."""
        keep_out(self.proxy)
        for connection in self.both:
            connection.wait_for("reconnecting")

    def rejoin(self) -> None:
        self.proxy.admit()
        for connection in self.both:
            connection.wait_for("open")


@contextmanager
def trio(server: dict[str, Any] | None = None, **client: Any) -> Iterator[Trio]:
    with LongServer(("127.0.0.1", 0), **(server or {})) as listening_server:
        with (
            FaultProxy(listening_server, capture_bytes=1024) as proxy,
            connected(proxy.address, **client) as connection,
        ):
            three = Trio(listening_server, proxy, connection)
            try:
                yield three
            finally:
                for each in three.both:
                    let_go(each)


@contextmanager
def lost(message: bytes = b"sent", **client: Any) -> Iterator[LongConnection]:
    """A client whose server has forgotten it, and perhaps taken a message of it."""
    with trio(**client) as three, LongServer(("127.0.0.1", 0)) as other:
        three.client.send(message)
        wait_until(lambda: three.ours.stats().inbox_messages)
        three.proxy.upstream = other
        three.proxy.end()
        yield three.client


@contextmanager
def meanwhile(task: Callable[[], object]) -> Iterator[list[object]]:
    """What a thread gets of a call that waits, or which error."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(task())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until_blocked(thread.native_id or 0)
    yield results
    thread.join(PATIENCE)
    assert not thread.is_alive()


def next_state(connection: LongConnection) -> tuple[str, int | None, bool]:
    event = next(connection.events())
    return event.state, event.replayed, event.fresh


# ---- a program that doesn't notice


def test_a_loop_over_messages_goes_on_over_many_cuts():
    with trio() as three:
        messages = [b"%d" % number for number in range(2000)]

        def serve() -> None:
            for message in three.ours:
                three.ours.send(message.upper() + b"!")

        serving = threading.Thread(target=serve)
        serving.start()
        got = []
        for number, message in enumerate(messages):
            three.client.send(message)
            if number % 400 == 200:
                three.proxy.end()
            if number >= 10:
                got.append(three.client.recv())
        got += [three.client.recv() for _ in range(10)]
        assert got == [message + b"!" for message in messages]
        three.client.close()
        serving.join(PATIENCE)
        assert not serving.is_alive()
        assert three.client.stats().connections >= 2


def test_one_loop_over_all_connections_goes_on_and_each_is_the_same_object():
    with LongServer(("127.0.0.1", 0)) as server, FaultProxy(server) as proxy:
        messages = server.messages(timeout=PATIENCE)
        with connected(proxy.address) as client:
            seen = []
            for number in range(10):
                proxy.end()
                client.send(b"%d" % number)
                seen.append(next(messages))
            assert [message for _, message in seen] == [b"%d" % number for number in range(10)]
            assert len({id(connection) for connection, _ in seen}) == 1
            assert server.connections == [seen[0][0]]
            assert server.stats().opened == 1


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("side", [0, 1])
def test_who_waits_in_recv_goes_on_waiting(side, timeout):
    with trio() as three:
        waiting, other = three.both[side], three.both[1 - side]
        with meanwhile(lambda: waiting.recv(timeout=timeout)) as received:
            three.part()
            assert received == []
            three.rejoin()
            other.send(b"at last")
        assert received == [b"at last"]


def test_large_messages_survive_cuts():
    message = bytes(range(256)) * 20_000
    with trio() as three:
        with meanwhile(lambda: [three.ours.recv() for _ in range(10)]) as received:
            for _ in range(10):
                sender = threading.Thread(target=three.client.send, args=(message,))
                sender.start()
                three.proxy.end()
                sender.join(PATIENCE)
        assert received == [[message] * 10]


def test_many_threads_share_a_connection_over_cuts():
    with trio() as three:

        def send(thread: int) -> None:
            for number in range(300):
                three.client.send(b"%d %d" % (thread, number))

        got: list[bytes] = []

        def receive() -> None:
            with suppress(longconn.PeerClosed):
                while True:
                    got.append(three.ours.recv())

        senders = [threading.Thread(target=send, args=(number,)) for number in range(6)]
        receivers = [threading.Thread(target=receive) for _ in range(3)]
        for thread in senders + receivers:
            thread.start()
        while any(thread.is_alive() for thread in senders):
            three.proxy.end()
            time.sleep(0.02)
        for thread in senders:
            thread.join(PATIENCE)
        three.client.flush()
        three.client.close()
        for thread in receivers:
            thread.join(PATIENCE)
        assert sorted(got) == sorted(b"%d %d" % (thread, number) for thread in range(6) for number in range(300))


def test_a_ping_that_was_under_way_is_answered_over_the_next_connection():
    with trio() as three:
        three.part()
        with meanwhile(three.client.ping) as pinged:
            three.rejoin()
        assert isinstance(pinged[0], float)


# ---- sending while away


@pytest.mark.parametrize("side", [0, 1])
def test_what_is_sent_while_away_goes_later(side):
    with trio() as three:
        sender, receiver = three.both[side], three.both[1 - side]
        three.part()
        sender.send_many([b"one", b"two", b"three"])
        assert sender.state == "reconnecting"
        assert sender.unacknowledged == sender.stats().untaken_messages == 3
        assert sender.undelivered == [b"one", b"two", b"three"]
        three.rejoin()
        assert [receiver.recv() for _ in range(3)] == [b"one", b"two", b"three"]
        sender.flush()
        assert sender.unacknowledged == 0
        assert sender.undelivered == []


@pytest.mark.parametrize("side", [0, 1])
def test_where_there_is_no_room_a_program_may_be_told_at_once(side):
    with trio({"when_full": "raise"}, when_full="raise") as three:
        sender, receiver = three.both[side], three.both[1 - side]
        three.part()
        with pytest.raises(longconn.BufferFull, match=r"\d+ messages") as raised:
            sender.send_many(itertools.repeat(bytes(100_000)), timeout=None)
        count = sender.unacknowledged
        assert raised.value.errno == errno.EAGAIN
        assert isinstance(raised.value, BlockingIOError)
        assert 2_000_000 <= count * 100_000 <= 2_200_000
        three.rejoin()
        assert {receiver.recv() for _ in range(count)} == {bytes(100_000)}
        sender.flush()
        sender.send(b"more")
        assert receiver.recv() == b"more"


def test_where_there_is_no_room_a_program_waits_for_it_and_not_for_ever():
    with trio() as three:
        three.part()
        with pytest.raises(TimeoutError):
            three.client.send_many(itertools.repeat(bytes(100_000)), timeout=0.2)
        count = three.client.unacknowledged
        with meanwhile(lambda: three.client.send(bytes(100_001), timeout=None)) as sent:
            assert sent == []
            three.rejoin()
            assert [len(three.ours.recv()) for _ in range(count)] == [100_000] * count
        assert sent == [None]
        assert len(three.ours.recv()) == 100_001


def test_flush_waits_over_a_cut():
    with trio() as three:
        three.part()
        three.client.send(b"taken in the end")
        with pytest.raises(TimeoutError):
            three.client.flush(timeout=0.05)
        with meanwhile(three.client.flush) as flushed:
            three.rejoin()
            assert flushed == []
            assert three.ours.recv() == b"taken in the end"
        assert flushed == [None]


# ---- what is told


@pytest.mark.parametrize("side", [0, 1])
def test_events_tell_of_the_loss_and_of_what_was_sent_again(side):
    with trio() as three:
        sender, receiver = three.both[side], three.both[1 - side]
        sender.send(b"one")
        wait_until(lambda: receiver.stats().inbox_messages)
        three.part()
        sender.send(b"two")
        three.rejoin()
        assert [receiver.recv() for _ in range(2)] == [b"one", b"two"]
        three.client.close()
        three.ours.wait_for("closed")
        told = list(sender.events())
        assert [event.state for event in told] == ["open", "reconnecting", "open", "closed"]
        opened, parted, resumed, closed = told
        assert (opened.cause, opened.error, opened.replayed, opened.fresh) == (None, None, None, False)
        assert parted.cause in (Cause.ENDED, Cause.RESET)
        assert isinstance(parted.error, longconn.PeerLost)
        assert not isinstance(parted.error, longconn.SessionLost)
        assert (parted.error.cause, parted.error.peer) == (parted.cause, sender.peer_address)
        assert "connect again" not in str(parted.error)
        assert parted.error.undelivered == []
        assert (resumed.cause, resumed.error, resumed.fresh) == (None, None, False)
        assert resumed.replayed in (0, 1)
        assert closed.cause is Cause.CLOSED
        assert [event.time for event in told] == sorted(event.time for event in told)


def test_callbacks_are_told_the_same():
    told: list[str] = []
    of_server: list[tuple[str, str]] = []

    def on_server_event(connection: LongConnection, event: longconn.Event) -> None:
        of_server.append((connection.client_id, event.state))

    with trio({"on_event": on_server_event}, on_event=lambda event: told.append(event.state)) as three:
        three.part()
        three.rejoin()
        three.client.close()
        three.ours.wait_for("closed")
        wait_until(lambda: len(told) == len(of_server) == 4)
        states = ["open", "reconnecting", "open", "closed"]
        assert told == states
        assert of_server == [("device-7", state) for state in states]
        assert [event.state for _, event in itertools.islice(three.server.events(), 4)] == states


def test_a_server_that_knows_nothing_of_a_session_in_which_all_was_taken_begins_another():
    with trio() as three, LongServer(("127.0.0.1", 0)) as other:
        three.client.send(b"taken")
        assert three.ours.recv() == b"taken"
        three.client.flush()
        three.proxy.upstream = other
        three.part()
        three.client.send(b"to the next")
        three.proxy.admit()
        with other.accept(timeout=PATIENCE) as again:
            assert again.recv(timeout=PATIENCE) == b"to the next"
            assert [next_state(three.client) for _ in range(3)] == [
                ("open", None, False),
                ("reconnecting", None, False),
                ("open", None, True),
            ]
            three.client.shutdown(socket.SHUT_WR)


def test_it_can_be_waited_for():
    with trio() as three:
        with meanwhile(lambda: three.client.wait_for("reconnecting")) as lost:
            keep_out(three.proxy)
        with meanwhile(lambda: three.client.wait_for("open")) as back:
            three.proxy.admit()
        assert lost == back == [None]
        three.part()
        with pytest.raises(TimeoutError):
            three.client.wait_for("open", timeout=0.05)
        assert "reconnecting" in repr(three.client)
        assert three.client.lost is None


def test_both_sides_count():
    with trio() as three:
        three.client.send(b"not taken")
        wait_until(lambda: three.ours.stats().inbox_messages)
        three.ours.send(b"neither")
        wait_until(lambda: three.client.stats().inbox_messages)
        three.part()
        stats = three.server.stats()
        assert (stats.open, stats.waiting, stats.resumed, stats.expired, stats.opened) == (0, 1, 0, 0, 1)
        assert stats.waiting_bytes >= len(b"not taken") + len(b"neither")
        assert three.server.connections == [three.ours]
        assert three.client.stats().state == "reconnecting"
        assert three.client.stats().tcp_info is None
        three.rejoin()
        stats = three.server.stats()
        assert (stats.open, stats.waiting, stats.waiting_bytes, stats.resumed) == (1, 0, 0, 1)
        assert three.client.stats().connections == three.ours.stats().connections == 2


def test_what_comes_after_this_sides_goodbye_is_counted():
    with trio() as three:
        three.ours.send_many([b"one", b"two"])
        wait_until(lambda: three.client.stats().inbox_messages == 2)
        three.client.recv()
        three.client.close()
        assert three.client.stats().messages_after_close == 1
        with pytest.raises(longconn.PeerClosed) as raised:
            three.ours.recv()
        assert raised.value.undelivered == three.ours.undelivered == [b"two"]


def test_no_secret_is_told(caplog):
    caplog.set_level("DEBUG", "longconn")
    with trio() as three:
        three.part()
        three.rejoin()
        three.client.close()
        three.ours.wait_for("closed")
        told = [repr(each) for each in three.both]
        told += [repr(event) for each in three.both for event in each.events()]
        told += [repr(each.stats()) for each in three.both] + [repr(three.server.stats()), repr(three.server)]
        # preamble, header, and of WELCOME what docs/SPEC.md has before the secret
        secret = three.proxy.captured(1, "to_client")[8 + 4 + 30 + 16 :][:32]
    wait_until(lambda: [each for each in caplog.records if "went again" in each.getMessage()])
    text = caplog.text + "\n".join(told)
    assert len(set(secret)) > 8
    for form in (
        secret.hex(),
        secret.hex().upper(),
        base64.b64encode(secret).decode(),
        repr(secret)[2:-1],
        str(list(secret)),
    ):
        assert form not in text


# ---- a session that is lost

CALLS: dict[str, Callable[[LongConnection], object]] = {
    "recv": lambda client: client.recv(),
    "recv for ever": lambda client: client.recv(timeout=None),
    "recv_many": lambda client: client.recv_many(10),
    "send": lambda client: [client.send(b"x") or time.sleep(0.001) for _ in iter(int, 1)],
    "flush": lambda client: client.flush(),
    "ping": lambda client: client.ping(),
    "iteration": lambda client: list(client),
    "close": lambda client: client.close(),
    "wait_for": lambda client: client.wait_for("closing"),
}


@pytest.mark.parametrize("call", CALLS)
def test_each_call_says_which_messages_may_be_lost(call):
    with lost() as client:
        with pytest.raises(longconn.SessionLost) as raised:
            CALLS[call](client)
        error = raised.value
        assert error.undelivered[0] == b"sent"
        assert set(error.undelivered[1:]) <= {b"x"}
        assert client.undelivered == error.undelivered
        assert client.unacknowledged == len(error.undelivered)
        assert error.cause in (Cause.ENDED, Cause.RESET)
        assert error.peer == client.peer_address
        assert isinstance(error.__cause__, longconn.PeerLost)
        assert not isinstance(error.__cause__, longconn.SessionLost)
        assert error.__cause__.cause is error.cause
        assert isinstance(error, ConnectionError)
        assert f"{len(error.undelivered)} message" in str(error)
        assert "knows nothing" in str(error)
        assert client.state == "closed"
        client.close()  # it has been told
        *_, closed = client.events()
        assert isinstance(closed.error, longconn.SessionLost)
        assert closed.error.undelivered == error.undelivered


def test_messages_that_arrived_are_received_before_the_loss_is_told():
    with trio() as three, LongServer(("127.0.0.1", 0)) as other:
        three.client.send(b"sent")
        three.ours.send_many([b"one", b"two"])
        wait_until(lambda: three.ours.stats().inbox_messages)
        wait_until(lambda: three.client.stats().inbox_messages == 2)
        three.proxy.upstream = other
        three.proxy.end()
        three.client.wait_for("closed")
        assert [three.client.recv() for _ in range(2)] == [b"one", b"two"]
        with pytest.raises(longconn.SessionLost):
            three.client.recv()


def test_who_wants_it_has_everything_sent_again():
    with trio(on_session_lost="resend") as three, LongServer(("127.0.0.1", 0)) as other:
        three.client.send_many([b"one", b"two"])
        wait_until(lambda: three.ours.stats().inbox_messages == 2)
        three.proxy.upstream = other
        three.proxy.end()
        with other.accept(timeout=PATIENCE) as again:
            assert [again.recv(timeout=PATIENCE) for _ in range(2)] == [b"one", b"two"]
            three.client.flush()
            assert [next_state(three.client)[::2] for _ in range(3)][-1] == ("open", True)
            three.client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("is_untaken", [False, True])
def test_a_client_may_give_up(is_untaken):
    with trio(give_up_after=0.3 * SLACK) as three:
        if is_untaken:
            three.client.send(b"never taken")
        keep_out(three.proxy)
        with pytest.raises(longconn.PeerLost, match="given up") as raised:
            three.client.recv()
        assert isinstance(raised.value, longconn.SessionLost) == is_untaken
        assert raised.value.undelivered == [b"never taken"] * is_untaken
        assert re.search(r"given up: .+", str(raised.value))  # what came of the last attempt
        attempts = three.proxy.accepted
        time.sleep(0.2)
        assert three.proxy.accepted == attempts


def test_who_gives_up_is_told_what_came_of_the_last_attempt():
    server = LongServer(("127.0.0.1", 0))
    with connected(server.address, give_up_after=0.3 * SLACK) as client:
        server.close()
        with pytest.raises(longconn.LongConnError, match="refused") as raised:
            client.recv()
        assert "{}:{}".format(*server.address) in str(raised.value)


def test_without_reconnecting_the_first_loss_is_the_end_of_both():
    with trio(reconnect=False) as three:
        three.client.send(b"one")
        three.ours.send(b"two")
        wait_until(lambda: three.client.stats().inbox_messages and three.ours.stats().inbox_messages)
        three.proxy.end()
        for connection, received, sent in ((three.client, b"two", b"one"), (three.ours, b"one", b"two")):
            assert connection.recv() == received
            with pytest.raises(longconn.PeerLost) as raised:
                connection.recv()
            assert not isinstance(raised.value, longconn.SessionLost)
            assert raised.value.undelivered == [sent]
            assert "connect again" in str(raised.value)
        assert three.proxy.accepted == 1
        assert three.server.stats().waiting == 0


def test_a_server_keeps_a_session_for_its_retention():
    with trio({"session_retention": 0.3 * SLACK}) as three:
        three.ours.send(b"never taken")
        wait_until(lambda: three.client.stats().inbox_messages)
        three.part()
        three.ours.send(b"nor this")
        with pytest.raises(longconn.SessionLost, match="given up") as raised:
            three.ours.recv()
        assert raised.value.undelivered == [b"never taken", b"nor this"]
        assert three.server.stats().expired == 1
        assert three.server.connections == []
        *_, closed = three.ours.events()
        assert closed.state == "closed"
        assert isinstance(closed.error, longconn.SessionLost)
        of_server = [event.state for _, event in itertools.islice(three.server.events(), 3)]
        assert of_server == ["open", "reconnecting", "closed"]


def test_a_loop_over_all_messages_goes_on_without_those_whose_retention_is_over():
    with LongServer(("127.0.0.1", 0), session_retention=0.2 * SLACK) as server, FaultProxy(server) as proxy:
        messages = server.messages(timeout=PATIENCE)
        with connected(proxy.address), connected(server.address) as other:
            wait_until(lambda: server.stats().open == 2)
            keep_out(proxy)
            wait_until(lambda: server.stats().expired == 1)
            other.send(b"x")
            assert next(messages)[1] == b"x"
            assert len(server.connections) == 1


def test_without_retention_a_session_ends_with_its_connection():
    with trio({"session_retention": 0}) as three:
        three.proxy.end()
        with pytest.raises(longconn.PeerLost):
            three.ours.recv()
        with three.server.accept(timeout=PATIENCE) as again:
            three.client.send(b"in another session")
            assert again.recv(timeout=PATIENCE) == b"in another session"
            three.client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("limit", [{"max_waiting_sessions": 0}, {"max_waiting_bytes": 10}])
def test_what_a_server_keeps_for_who_is_away_is_bounded(limit):
    with trio(limit) as three:
        three.ours.send(b"more than ten bytes")
        keep_out(three.proxy)
        with pytest.raises(longconn.SessionLost):
            three.ours.wait_for("closing")
        assert three.server.stats().expired == 1


# ---- who may come back


def test_who_is_somebody_else_by_now_does_not_get_the_session():
    users = iter(["ada", "bob", "bob", "bob", "bob"])
    with trio({"authenticate": lambda *_: next(users)}) as three:
        assert three.ours.principal == "ada"
        three.client.send(b"ada's")
        wait_until(lambda: three.ours.stats().inbox_messages)
        three.proxy.end()
        with pytest.raises(longconn.LongConnError) as raised:
            three.client.recv()
        assert three.client.undelivered == [b"ada's"]
        assert isinstance(raised.value, longconn.SessionLost)
        assert three.server.stats().refused_stale == 1
        assert three.server.stats().resumed == 0
        assert three.ours.state == "reconnecting"
        assert three.ours.recv() == b"ada's"


def test_who_is_the_same_gets_it_and_keeps_the_principal():
    asked = []

    def authenticate(client_id: str, token: bytes, address: object) -> object:
        asked.append((client_id, token))
        return {"name": client_id}

    with trio({"authenticate": authenticate}, token=b"t") as three:
        principal = three.ours.principal
        three.part()
        three.rejoin()
        three.client.send(b"x")
        assert three.ours.recv() == b"x"
        assert three.ours.principal is principal
        assert asked == [("device-7", b"t")] * 2


@pytest.mark.parametrize("is_untaken", [False, True])
def test_who_is_not_let_in_any_more_is_told_at_once(is_untaken):
    welcome = iter([True])
    with trio({"authenticate": lambda *_: next(welcome, False)}) as three:
        if is_untaken:
            three.client.send(b"never taken")
        three.proxy.end()
        with pytest.raises(longconn.LongConnError, match="not authorized") as raised:
            three.client.recv()
        error = raised.value
        if is_untaken:
            assert isinstance(error, longconn.SessionLost)
            assert error.undelivered == [b"never taken"]
            assert isinstance(error.__cause__, longconn.HandshakeRejected)
            error = error.__cause__
        assert isinstance(error, longconn.HandshakeRejected)
        assert error.code == 7


# ---- several addresses


def dead_address() -> tuple[str, int]:
    with listening() as listener:
        address: tuple[str, int] = listener.getsockname()
        return address


def test_the_first_of_several_addresses_that_answers_is_taken():
    with LongServer(("127.0.0.1", 0)) as server:
        with connected([dead_address(), server.address]) as client:
            assert client.peer_address == server.address
        with connected([dead_address(), "{}:{}".format(*server.address)], framing=None) as client:
            client.ping()


def test_where_none_answers_each_attempt_is_named():
    places = [dead_address(), dead_address()]
    with pytest.raises(longconn.ConnectFailed) as raised:
        longconn.connect(places)
    for host, port in places:
        assert f"{host}:{port}" in str(raised.value)
    assert str(raised.value).count("refused") == 2
    assert raised.value.errno == errno.ECONNREFUSED
    assert raised.value.cause is Cause.REFUSED


def test_the_one_of_several_that_says_nothing_is_named():
    with listening() as silent:
        host, port = silent.getsockname()
        with pytest.raises(TimeoutError, match=f"{host}:{port} accepted"):
            longconn.connect([dead_address(), (host, port)], timeout=0.2)


def test_it_comes_back_to_another_of_its_addresses():
    with LongServer(("127.0.0.1", 0)) as first, LongServer(("127.0.0.1", 0)) as second:
        with connected([first.address, second.address]) as client:
            wait_until(lambda: first.stats().open + second.stats().open == 1)
            there, other = (first, second) if first.stats().open else (second, first)
            there.close(reason="restart")
            client.send(b"to the other")
            with other.accept(timeout=PATIENCE) as again:
                assert again.recv(timeout=PATIENCE) == b"to the other"
                assert client.peer_address == other.address
                client.shutdown(socket.SHUT_WR)


# ---- closing well


def test_a_goodbye_while_away_on_which_nothing_depends_does_not_take_long():
    with trio() as three:
        three.part()
        before = time.monotonic()
        three.client.close(timeout=10 * PATIENCE)
        assert time.monotonic() - before < PATIENCE
        assert three.client.state == "closed"
        with pytest.raises(longconn.AlreadyClosed):
            three.client.recv()


def test_a_goodbye_while_away_is_said_over_the_next_connection():
    with trio() as three:
        three.part()
        three.client.send(b"last words")
        with meanwhile(lambda: three.client.close(5000, "enough")) as closed:
            three.proxy.admit()
            assert three.ours.recv() == b"last words"
            with pytest.raises(longconn.PeerClosed) as raised:
                three.ours.recv()
        assert (raised.value.code, raised.value.reason) == (5000, "enough")
        assert closed == [None]


def test_a_goodbye_while_away_says_what_was_not_taken_in_time():
    with trio() as three:
        three.part()
        three.client.send(b"never taken")
        with pytest.raises(TimeoutError, match="taken"):
            three.client.close(timeout=0.1)
        assert three.client.state == "closed"
        assert three.client.undelivered == [b"never taken"]


def test_a_server_that_goes_tells_its_clients_where_to_come_back():
    with LongServer(("127.0.0.1", 0)) as first, LongServer(("127.0.0.1", 0)) as second:
        with connected(first.address, follow=True) as client:
            ours = first.accept(timeout=PATIENCE)
            client.send_many([b"taken", b"not taken"])
            assert ours.recv(timeout=PATIENCE) == b"taken"
            client.ping()
            first.close(drain=0.1, come_back_to="{}:{}".format(*second.address))
            with second.accept(timeout=PATIENCE) as again:
                assert again.recv(timeout=PATIENCE) == b"not taken"
                assert client.peer_address == second.address
                states = [next(client.events()) for _ in range(3)]
                assert [event.state for event in states] == ["open", "reconnecting", "open"]
                assert isinstance(states[1].error, longconn.PeerClosed)
                assert states[2].fresh
                client.shutdown(socket.SHUT_WR)


def test_who_does_not_follow_comes_back_to_where_it_was():
    with LongServer(("127.0.0.1", 0)) as second:
        first = LongServer(("127.0.0.1", 0))
        with connected(first.address) as client:
            first.close(come_back_to="{}:{}".format(*second.address))
            with LongServer(first.address) as restarted:
                client.send(b"back")
                with restarted.accept(timeout=PATIENCE) as again:
                    assert again.recv(timeout=PATIENCE) == b"back"
                    client.shutdown(socket.SHUT_WR)
        assert second.stats().accepted == 0


def test_nobody_comes_back_before_the_server_wants():
    first = LongServer(("127.0.0.1", 0))
    with connected(first.address) as client:
        first.close(retry_after=0.5)
        with LongServer(first.address) as restarted:
            with restarted.accept(timeout=PATIENCE):
                _, parted, opened = [next(client.events()) for _ in range(3)]
                assert opened.time - parted.time >= 0.45
                client.shutdown(socket.SHUT_WR)


def test_a_server_that_is_closed_for_good_is_the_end():
    with trio() as three:
        three.server.close(code=0, reason="that was all")
        with pytest.raises(longconn.PeerClosed) as raised:
            three.client.recv()
        assert (raised.value.code, raised.value.reason) == (0, "that was all")
        assert list(three.client) == []


def test_a_server_closes_though_its_clients_are_away():
    with trio() as three:
        three.part()
        before = time.monotonic()
        three.server.close(drain=10 * PATIENCE)
        assert time.monotonic() - before < PATIENCE
        assert three.ours.state == "closed"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"retry_after": -1}, "retry_after"),
        ({"retry_after": 301}, "retry_after"),
        ({"retry_after": float("nan")}, "retry_after"),
        ({"come_back_to": "nowhere"}, "address"),
    ],
)
def test_bad_words_of_where_and_when_to_come_back_are_told(arguments, text):
    with LongServer(("127.0.0.1", 0)) as server, pytest.raises(ValueError, match=text):
        server.close(**arguments)


def test_who_is_far_behind_is_skipped_or_closed():
    with trio() as three:
        while three.server.broadcast(bytes(100_000)).sent:
            pass
        assert three.server.broadcast(b"x" * 100_000) == (0, 1, 0)
        assert three.ours.state == "open"
        assert three.server.broadcast(b"x" * 100_000, behind="close").full == 1
        with pytest.raises(longconn.PeerClosed) as raised:
            list(three.client)
        assert raised.value.code not in (0, 1)
        assert "behind" in raised.value.reason
        three.ours.wait_for("closed")
        with pytest.raises(ValueError, match="behind"):
            three.server.broadcast(b"x", behind="later")


# ---- signals, forks, exit, and nobody who knows of it


class Struck(Exception):
    pass


@contextmanager
def struck_soon() -> Iterator[None]:
    def strike(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise Struck

    before = signal.signal(signal.SIGALRM, strike)
    # Again: one that comes between the last look at signals and the wait itself isn't heard, as in the stdlib's calls.
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.recv(timeout=None),
        lambda client: client.recv(timeout=PATIENCE),
        next,
        lambda client: client.ping(),
        lambda client: (client.send(b"x"), client.flush()),
        lambda client: client.wait_for("open"),
        lambda client: [client.send(bytes(100_000), timeout=None) for _ in itertools.count()],
        lambda client: (client.send(b"x"), client.close(timeout=None)),
    ],
)
def test_a_signals_handler_may_end_any_wait_while_away(call):
    with trio() as three:
        three.part()
        with struck_soon(), pytest.raises(Struck):
            call(three.client)


def test_a_signals_handler_may_end_connecting():
    with listening() as silent:
        silent.listen(0)
        with socket.create_connection(silent.getsockname()):
            with struck_soon(), pytest.raises(Struck):  # nobody answers: the backlog is full
                longconn.connect(silent.getsockname(), timeout=None)
    with listening() as silent:
        with struck_soon(), pytest.raises(Struck):  # TCP is there, and no handshake
            longconn.connect(silent.getsockname(), timeout=None)


@pytest.mark.parametrize("is_untaken", [False, True])
def test_one_that_nobody_knows_of_any_more_does_not_go_on_for_ever(is_untaken):
    told: list[str] = []
    with LongServer(("127.0.0.1", 0)) as server, FaultProxy(server) as proxy:
        clients = [longconn.connect(proxy.address, reconnect=SOON, on_event=lambda event: told.append(event.state))]
        with server.accept(timeout=PATIENCE):
            keep_out(proxy)
            clients[0].wait_for("reconnecting", timeout=PATIENCE)
            if is_untaken:
                clients[0].send(b"x")
            with pytest.warns(ResourceWarning, match="unclosed"):
                clients.clear()
            wait_until(lambda: told[-1:] == ["closed"])


def test_a_forked_child_has_nothing_to_do_with_one_that_is_away():
    said = python_says(
        """
import os, socket, threading
import longconn
server = longconn.LongServer(("127.0.0.1", 0))
client = longconn.connect(server.address, reconnect=longconn.Backoff(0.01, 0.05))
ours = server.accept(timeout=20)
server.close(drain=0)
client.wait_for("reconnecting", timeout=20)
for _ in range(20):
    child = os.fork()
    if not child:
        for call in (client.recv, lambda: client.send(b"x"), client.flush, client.ping, lambda: client.undelivered):
            try:
                call()
                print("no error", call)
            except longconn.ForkedError:
                pass
        repr(client)
        client.close()
        fresh = longconn.LongServer(("127.0.0.1", 0))
        with longconn.connect(fresh.address) as again:
            other = fresh.accept(timeout=20)
            again.send(b"child")
            assert other.recv(timeout=20) == b"child"
        fresh.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
client.send(b"parent")
with longconn.LongServer(server.address) as restarted:
    ours = restarted.accept(timeout=20)
    print(ours.recv(timeout=20))
    client.shutdown(socket.SHUT_WR)
"""
    )
    assert said == "b'parent'\n"


def test_an_interpreter_ends_while_connections_are_away():
    said = python_says(
        """
import threading, warnings
warnings.simplefilter("ignore", ResourceWarning)
import longconn
server = longconn.LongServer(("127.0.0.1", 0))
clients = [longconn.connect(server.address, reconnect=longconn.Backoff(0.01, 0.05)) for _ in range(10)]
server.close(drain=0)
for client in clients:
    client.wait_for("reconnecting", timeout=20)
clients[0].send(b"never taken")
for call in (clients[1].recv, clients[2].ping, lambda: list(clients[3]), lambda: list(clients[4].events())):
    threading.Thread(target=call, daemon=True).start()
print("ends")
"""
    )
    assert said == "ends\n"


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"reconnect": 5}, TypeError),
        ({"reconnect": None}, TypeError),
        ({"give_up_after": -1}, ValueError),
        ({"give_up_after": float("nan")}, ValueError),
        ({"give_up_after": "soon"}, TypeError),
        ({"on_session_lost": "ignore"}, ValueError),
        ({"when_full": "drop"}, ValueError),
        ({"follow": "yes"}, TypeError),
    ],
)
def test_bad_arguments_are_told_before_anything_is_sent(arguments, error):
    with listening() as listener:
        with pytest.raises(error, match=next(iter(arguments))):
            longconn.connect(listener.getsockname(), **arguments)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    "arguments",
    [{"reconnect": SOON}, {"give_up_after": 5}, {"on_session_lost": "resend"}, {"follow": True}],
)
def test_what_a_plain_peer_has_not_got_is_refused_by_name(arguments):
    with listening() as listener, pytest.raises(ValueError, match=f"{next(iter(arguments))}.*plain peer"):
        longconn.connect(listener.getsockname(), framing="raw", **arguments)


def test_a_plain_peer_without_room_may_be_told_of_at_once():
    with listening() as listener:
        with connected(
            listener.getsockname(), framing="raw", reconnect=True, client_id="", when_full="raise"
        ) as client:
            with pytest.raises(longconn.BufferFull, match="kernel"):
                client.send_many(itertools.repeat(bytes(100_000)), timeout=None)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"session_retention": -1}, ValueError),
        ({"session_retention": 86401}, ValueError),
        ({"session_retention": "long"}, TypeError),
        ({"max_waiting_sessions": -1}, ValueError),
        ({"max_waiting_bytes": 1.5}, TypeError),
        ({"when_full": "drop"}, ValueError),
    ],
)
def test_bad_arguments_of_a_server_are_told(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        LongServer(("127.0.0.1", 0), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"first": 0}, ValueError),
        ({"first": -1}, ValueError),
        ({"first": 40}, ValueError),
        ({"cap": float("nan")}, ValueError),
        ({"cap": 86401}, ValueError),
        ({"factor": 0.5}, ValueError),
        ({"factor": 11}, ValueError),
        ({"factor": True}, TypeError),
        ({"first": "soon"}, TypeError),
    ],
)
def test_a_backoff_that_can_not_be_is_refused(arguments, error):
    with pytest.raises(error):
        Backoff(**arguments)


def test_a_backoff_is_a_value():
    assert Backoff() == Backoff(0.1, 30, 2)
    assert len({Backoff(), Backoff(), Backoff(1)}) == 2
    with pytest.raises(AttributeError):
        Backoff().first = 1  # type: ignore[misc]
    assert repr(Backoff()) == "Backoff(first=0.1, cap=30.0, factor=2.0)"
