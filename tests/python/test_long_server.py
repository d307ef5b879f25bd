"""LongServer: who is let in, one loop for all, and how it says goodbye."""

from __future__ import annotations

import gc
import re
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import longconn
import pytest
from longconn import Cause, Heartbeat, LongServer
from peers import PATIENCE, SLACK, let_go, memory_bytes, open_descriptors, python_says, reset, wait_until


@contextmanager
def serving(**kwargs: object) -> Iterator[LongServer]:
    with LongServer(("127.0.0.1", 0), **kwargs) as server:
        server.settimeout(PATIENCE)
        yield server


@contextmanager
def clients(server: LongServer, count: int) -> Iterator[list[longconn.LongConnection]]:
    with ExitStack() as stack:
        made = [longconn.connect(server.address, client_id=str(number), timeout=PATIENCE) for number in range(count)]
        for client in made:
            client.settimeout(PATIENCE)
            stack.callback(let_go, client)
        # a client knows a moment earlier than the server that its handshake is over
        wait_until(lambda: server.stats().open == count)
        yield made


# ---- one after the other


def test_it_gives_out_each_client_that_has_come():
    with serving() as server, clients(server, 3):
        accepted = [server.accept() for _ in range(3)]
        assert {each.client_id for each in accepted} == {"0", "1", "2"}
        assert set(server.connections) == set(accepted)
        with pytest.raises(TimeoutError):
            server.accept(timeout=0.01)
        for each in accepted:
            each.close()


def test_its_address_has_the_port_that_it_got():
    with serving() as server:
        host, port = server.address
        assert host == "127.0.0.1"
        assert port > 0
        assert f"{host}:{port}" in repr(server)
        assert "0 connections" in repr(server)
    assert "closed" in repr(server)


def test_iteration_ends_when_it_is_closed():
    with serving() as server:
        seen: list[str] = []

        def serve() -> None:
            for connection in server:
                with connection:
                    seen.append(connection.client_id)
                    for message in connection:
                        connection.send(message.upper())

        thread = threading.Thread(target=serve)
        thread.start()
        for name in ("a", "b"):
            with longconn.connect(server.address, client_id=name) as client:
                client.send(b"hello")
                assert client.recv(timeout=PATIENCE) == b"HELLO"
        server.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert seen == ["a", "b"]
        with pytest.raises(longconn.AlreadyClosed):
            server.accept()


# ---- all in one loop


def test_one_loop_serves_all():
    with serving() as server:

        def serve() -> None:
            for connection, message in server.messages():
                connection.send(connection.client_id.encode() + b":" + message)

        thread = threading.Thread(target=serve)
        thread.start()
        with clients(server, 20) as ours:
            for turn in range(50):
                for client in ours:
                    client.send(b"%d" % turn)
            for number, client in enumerate(ours):
                assert [client.recv() for _ in range(50)] == [b"%d:%d" % (number, turn) for turn in range(50)]
        server.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_loop_that_was_left_goes_on_where_it_was():
    with serving() as server, clients(server, 1) as (client,):
        client.send_many(b"%d" % number for number in range(1000))
        got = []
        while len(got) < 1000:
            for _connection, message in server.messages():
                got.append(message)
                break
        assert got == [b"%d" % number for number in range(1000)]


def test_what_was_handed_out_is_taken_and_no_more():
    with serving() as server, clients(server, 1) as (client,):
        client.send_many([b"a", b"b", b"c"])
        messages = server.messages()
        next(messages)
        with pytest.raises(TimeoutError):
            client.flush(timeout=0.1)
        next(messages)
        next(messages)
        client.flush()


def test_a_connection_is_the_same_object_each_time():
    with serving() as server, clients(server, 2) as ours:
        messages = server.messages()
        seen = set()
        for _ in range(5):
            for client in ours:
                client.send(b"x")
                connection, _message = next(messages)
                seen.add(id(connection))
        assert len(seen) == 2
        assert {id(each) for each in server.connections} == seen


def test_several_threads_may_share_the_work():
    with serving() as server, clients(server, 4) as ours:
        got: list[bytes] = []

        def serve() -> None:
            for _connection, message in server.messages():
                got.append(message)

        threads = [threading.Thread(target=serve) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number, client in enumerate(ours):
            client.send_many(b"%d %d" % (number, each) for each in range(2000))
        for client in ours:
            client.flush()
        server.close()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(got) == len(set(got)) == 8000


def test_waiting_for_messages_has_its_timeout():
    with serving() as server, clients(server, 1) as (client,):
        messages = server.messages(timeout=0.01)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                next(messages)
        client.send(b"x")
        assert next(server.messages())[1] == b"x"


def test_accept_and_messages_exclude_each_other():
    with serving() as server:
        server.messages()
        with pytest.raises(RuntimeError, match=r"messages\(\)"):
            server.accept()
    with serving() as server:
        with pytest.raises(TimeoutError):
            server.accept(timeout=0)
        with pytest.raises(RuntimeError, match=r"accept\(\)"):
            server.messages()


def test_the_last_messages_of_one_that_has_gone_are_there():
    with serving() as server:
        messages = server.messages()
        with longconn.connect(server.address) as client:
            client.send(b"one")
            client.send(b"two")
            client.shutdown(socket.SHUT_WR)
            assert [next(messages)[1] for _ in range(2)] == [b"one", b"two"]


def test_events_tell_who_came_and_why_they_went():
    with serving() as server:
        server.messages()
        events = server.events()
        client = longconn.connect(server.address, client_id="device-7")
        connection, event = next(events)
        assert (connection.client_id, event.state) == ("device-7", "open")
        client.close(5000, "enough")
        again, event = next(events)
        assert again is connection
        assert (event.state, event.cause, event.error.code) == ("closed", Cause.CLOSED, 5000)
        server.close()
        assert list(events) == []


def test_events_end_when_everyone_has_gone_and_not_before():
    with serving() as server, clients(server, 2) as ours:
        server.broadcast(b"taken late")
        told: list[str] = []
        listener = threading.Thread(target=lambda: told.extend(event.state for _, event in server.events()))
        listener.start()
        closer = threading.Thread(target=server.close)
        closer.start()
        for client in ours:
            client.recv()
        closer.join(PATIENCE)
        listener.join(PATIENCE)
        assert not listener.is_alive()
        assert told == ["open"] * 2 + ["closed"] * 2


def test_who_never_was_here_is_counted_and_not_told_of():
    with serving() as server:
        with socket.create_connection(server.address) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            wait_until(lambda: server.stats().failed_handshakes == 1)
        server.close()
        assert list(server.events()) == []


def test_who_is_called_back_goes_with_the_server():
    """Methods of who has the server: circles that lead through the native side, where no collector looks."""

    class Gateway:
        def __init__(self) -> None:
            self.server = LongServer(("127.0.0.1", 0), on_event=self.heard, authenticate=self.admit)

        def heard(self, connection: object, event: object) -> None: ...

        def admit(self, client_id: str, token: bytes, address: object) -> bool:
            return True

    gateway = Gateway()
    gone = weakref.ref(gateway)
    let_go(longconn.connect(gateway.server.address, timeout=PATIENCE))
    gateway.server.close()
    del gateway
    wait_until(lambda: gc.collect() is not None and gone() is None)


def test_a_principal_that_knows_its_connection_goes_with_it():
    class Visitor:
        connection: longconn.LongConnection

    with serving(authenticate=lambda *_: Visitor()) as server:
        gone = []
        for _ in range(100):
            client = longconn.connect(server.address, timeout=PATIENCE)
            ours = server.accept()
            ours.principal.connection = ours
            gone.append(weakref.ref(ours.principal))
            client.close()
            ours.close()
        del client, ours
        gc.collect()
        # those of the last are kept a little longer
        assert gone[0]() is None


def test_a_callback_is_told_the_same():
    told: list[tuple[str, str]] = []
    with serving(on_event=lambda connection, event: told.append((connection.client_id, event.state))) as server:
        messages = server.messages()
        with longconn.connect(server.address, client_id="a") as client:
            client.send(b"x")
            assert next(messages)[1] == b"x"
        wait_until(lambda: told == [("a", "open"), ("a", "closed")])


def test_one_message_goes_to_all_that_have_room():
    with serving() as server, clients(server, 3) as ours:
        outcome = server.broadcast(b"news")
        assert outcome == (3, 0, 0)
        assert [client.recv() for client in ours] == [b"news"] * 3
        ours[0].close()
        wait_until(lambda: server.stats().open == 2)
        assert server.broadcast(bytearray(b"x")).sent == 2
        with pytest.raises(TypeError):
            server.broadcast("text")


# ---- who is let in


def test_a_program_decides_who_is_let_in():
    asked = []

    def authenticate(client_id: str, token: bytes, address: tuple[str, int]) -> object:
        asked.append((client_id, token, address[0]))
        return {b"yes": True, b"user": {"name": "Ada"}, b"no": False}.get(token)

    with serving(authenticate=authenticate) as server:
        with longconn.connect(server.address, client_id="a", token=b"yes") as client:
            with server.accept() as ours:
                assert ours.principal is None
                client.shutdown(socket.SHUT_WR)
        with longconn.connect(server.address, client_id="b", token=bytearray(b"user")) as client:
            with server.accept() as ours:
                assert ours.principal == {"name": "Ada"}
                client.shutdown(socket.SHUT_WR)
        for token in (b"no", b"nonsense", b""):
            with pytest.raises(longconn.HandshakeRejected) as raised:
                longconn.connect(server.address, token=token)
            assert raised.value.code == 7
        assert asked[:2] == [("a", b"yes", "127.0.0.1"), ("b", b"user", "127.0.0.1")]
        assert server.stats().refused_unauthorized == 3


def test_a_refusal_may_say_why():
    def authenticate(*_: object) -> object:
        raise PermissionError("the licence has expired")

    with serving(authenticate=authenticate) as server:
        with pytest.raises(longconn.HandshakeRejected) as raised:
            longconn.connect(server.address)
        assert raised.value.reason == "the licence has expired"


def test_a_failure_of_the_programs_lets_nobody_in_and_is_told(monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: told.append(args.exc_type))

    def authenticate(*_: object) -> object:
        raise ZeroDivisionError

    with serving(authenticate=authenticate) as server:
        with pytest.raises(longconn.HandshakeRejected) as raised:
            longconn.connect(server.address)
        assert "decide" in raised.value.reason
    assert told == [ZeroDivisionError]
    monkeypatch.undo()


def test_who_is_told_of_such_a_failure_may_close_the_server(monkeypatch):
    closed = threading.Event()

    def close(_: object) -> None:
        server.close(drain=0)
        closed.set()

    monkeypatch.setattr("sys.unraisablehook", close)

    def authenticate(*_: object) -> object:
        raise ZeroDivisionError

    with serving(authenticate=authenticate) as server:
        with pytest.raises(longconn.LongConnError):
            longconn.connect(server.address)
        assert closed.wait(PATIENCE)
    monkeypatch.undo()


def test_principals_are_known_in_the_one_loop_too():
    with serving(authenticate=lambda client_id, *_: client_id.upper()) as server:
        with longconn.connect(server.address, client_id="ada") as client:
            client.send(b"x")
            connection, _ = next(server.messages())
            assert connection.principal == "ADA"


def test_too_many_are_refused_with_a_reason():
    with serving(max_connections=2) as server, clients(server, 2):
        with pytest.raises(longconn.HandshakeRejected, match="2 connections") as raised:
            longconn.connect(server.address)
        assert raised.value.code == 8
        assert server.stats().refused_too_many == 1
        assert server.stats().open == 2


def test_too_many_of_one_address_are_refused():
    with serving(max_connections_per_address=1) as server, clients(server, 1):
        with pytest.raises(longconn.HandshakeRejected, match=re.escape("127.0.0.1")) as raised:
            longconn.connect(server.address)
        assert raised.value.code == 8


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500,
        b"LONGCONN\xff\xff\xff\x01",
        b"LONGCONN\x00\x00\x02\x01\x01\x01",
        b"LONGCONN\x00\x00\x00\x07",
    ],
)
def test_who_speaks_something_else_is_dropped_and_counted(said):
    with serving() as server, clients(server, 1) as (client,):
        with socket.create_connection(server.address, timeout=PATIENCE) as stranger:
            stranger.sendall(said)
            try:
                while stranger.recv(65536):
                    pass
            except ConnectionResetError:
                pass
        wait_until(lambda: server.stats().failed_handshakes == 1)
        client.ping()


def test_who_says_nothing_is_dropped_in_time():
    with serving(handshake_timeout=0.1 * SLACK) as server:
        with socket.create_connection(server.address, timeout=PATIENCE) as silent:
            with suppress(ConnectionResetError):
                assert silent.recv(100) == b""
        wait_until(lambda: server.stats().failed_handshakes == 1)


def test_who_resets_in_the_handshake_harms_nobody():
    with serving() as server, clients(server, 1) as (client,):
        for _ in range(20):
            stranger = socket.create_connection(server.address)
            stranger.sendall(b"LONG")
            reset(stranger)
        wait_until(lambda: server.stats().failed_handshakes == 20)
        client.ping()


def test_a_client_that_falls_silent_is_an_event():
    with serving(heartbeat=Heartbeat(0.05, limit=0.4 * SLACK)) as server:
        server.messages()
        hello = bytes.fromhex(
            "0101 00000032 00000032 00000000 0000000000040000 0000000001000000 00 01 78 0000".replace(" ", "")
        )
        with socket.create_connection(server.address, timeout=PATIENCE) as silent:
            ack = b"\x00\x00\x10\x06" + bytes(8) + (1 << 18).to_bytes(8, "big")
            silent.sendall(b"LONGCONN" + len(hello).to_bytes(3, "big") + b"\x01" + hello)
            silent.recv(8, socket.MSG_WAITALL)
            silent.recv(102, socket.MSG_WAITALL)
            silent.sendall(ack)
            events = server.events()
            told = [next(events) for _ in range(3)]
            assert [event.state for _, event in told] == ["open", "suspect", "closed"]
            connection, event = told[-1]
            assert connection.client_id == "x"
            assert event.cause in (Cause.FROZEN, Cause.SILENT)
            assert isinstance(event.error, longconn.PeerLost)


def test_what_is_over_keeps_neither_memory_nor_descriptors():
    """The news of it, for which nobody asks, is kept; not what the client never took, nor what the program didn't."""
    megabytes = 200
    with serving() as server:
        before, descriptors = memory_bytes(), open_descriptors()
        for _ in range(megabytes):
            client = longconn.connect(server.address, timeout=PATIENCE)
            with suppress(longconn.PeerClosed):
                with server.accept() as ours:
                    ours.fileno()
                    ours.send(b"x" * 800_000)
                    client.send(b"x" * 200_000)
                    wait_until(lambda ours=ours: ours.stats().inbox_messages == 1)
                    let_go(client)
                    wait_until(lambda ours=ours: ours.state == "closed")
        del client, ours
        assert memory_bytes() - before < megabytes * 1_000_000 / 4
        assert len(open_descriptors() - descriptors) < 5


def test_one_that_is_dropped_as_its_client_leaves_harms_nobody():
    """The engine ended, for it gave back a second time what the program had let go of."""
    with serving() as server, clients(server, 1) as (witness,):
        stays = server.accept()
        for _ in range(50):
            client = longconn.connect(server.address, timeout=PATIENCE)
            ours = server.accept()
            ours.send(bytes(100_000))
            let_go(client)
            with suppress(longconn.PeerClosed):
                ours.recv(timeout=PATIENCE)
            del client, ours
            witness.ping()
        stays.close()


def test_without_descriptors_those_who_are_here_go_on_and_others_are_reset_until_there_are():
    said = python_says(
        """
import os, resource, socket, time
import longconn

def wait_until(condition):
    while not condition():
        time.sleep(0.01)

with longconn.LongServer(("127.0.0.1", 0)) as server, longconn.connect(server.address) as client:
    ours = server.accept(timeout=20)
    client.send(b"here")
    ours.recv(timeout=20)  # it has all that it needs to wait
    late = [socket.socket() for _ in range(3)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(map(int, os.listdir("/proc/self/fd"))) + 1
    spare = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, limits[1]))
    try:
        while True:
            spare.append(os.dup(0))
    except OSError:
        pass
    for each in late:
        each.connect(server.address)
    for each in late:
        each.settimeout(20)
        try:
            print(each.recv(1))
        except ConnectionResetError:
            pass
    print("accepted", server.stats().accepted, "of", server.stats().out_of_resources + 1)
    client.send(b"still")
    print(ours.recv(timeout=20))
    try:
        longconn.connect(server.address)
    except OSError as error:
        print(error.errno)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for each in late:
        each.close()
    with longconn.connect(server.address, timeout=20) as another:
        another.send(b"again")
        with server.accept(timeout=20) as fresh:
            print(fresh.recv(timeout=20))
    ours.close()
"""
    )
    assert said == "accepted 1 of 4\nb'still'\n24\nb'again'\n"


def test_a_client_is_told_at_once_that_the_server_has_no_descriptor_for_it():
    code = """
import os, resource
import longconn

with longconn.LongServer(("127.0.0.1", 0)) as server:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, limits[1]))
    try:
        while True:
            spare.append(os.dup(0))
    except OSError:
        pass
    print(*server.address, flush=True)
    input()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    print(server.stats().accepted, server.stats().out_of_resources, flush=True)
    with server.accept(timeout=None) as connection:
        connection.send(connection.recv(timeout=None))
        connection.flush()
        input()
"""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdin is not None
            assert program.stdout is not None
            host, port = program.stdout.readline().split()
            # as often as one likes: each is a turn of the one descriptor in reserve
            for _ in range(100):
                with pytest.raises(longconn.ConnectFailed, match="reset"):  # by connect(2), or just after it
                    longconn.connect((host, int(port)), timeout=PATIENCE)
            print(file=program.stdin, flush=True)
            assert program.stdout.readline() == "0 100\n"
            with longconn.connect((host, int(port)), timeout=PATIENCE) as client:
                client.send(b"again")
                assert client.recv(timeout=PATIENCE) == b"again"
                print(file=program.stdin, flush=True)
            assert program.wait(PATIENCE) == 0
        finally:
            program.kill()


def test_a_callback_that_does_not_come_back_is_no_reason_to_grow():
    """It is told of 10,000 events when it does, and how many it missed is counted."""
    held, told = threading.Event(), []

    def hear(connection: longconn.LongConnection, event: longconn.Event) -> None:
        held.wait()
        told.append(event.state)

    with serving(on_event=hear) as server:
        for _ in range(5_101):
            longconn.connect(server.address, timeout=PATIENCE).close()
        wait_until(lambda: server.stats().opened == 5_101 and server.stats().open == 0)
        dropped = server.stats().events_dropped
        held.set()
        wait_until(lambda: len(told) == 10_001)
    # those that nobody asks events() for are dropped too
    assert dropped == 2 * 202 - 1


def test_those_who_left_unseen_take_nobodys_place():
    """A program that only broadcasts never accepts."""
    with serving(max_connections=3) as server:
        for number in range(1, 8):
            longconn.connect(server.address, timeout=PATIENCE).close()
            wait_until(lambda number=number: server.stats().opened == number and server.stats().open == 0)
        with clients(server, 3):
            assert server.broadcast(b"news").sent == 3


def test_a_loop_hands_out_nothing_of_a_connection_that_the_program_has_closed():
    with serving() as server:
        messages = server.messages()
        with longconn.connect(server.address, timeout=PATIENCE) as client:
            for number in range(10):
                client.send(b"%d" % number)
            wait_until(lambda: len(server.connections) == 1 and server.connections[0].stats().inbox_messages == 10)
            connection, message = next(messages)
            assert message == b"0"
            connection.close()
            with pytest.raises(TimeoutError):
                next(server.messages(timeout=0.05))
            with pytest.raises(longconn.PeerClosed):
                client.recv()


# ---- the end


def test_closing_tells_everyone_why():
    with serving() as server, clients(server, 2) as ours:
        server.broadcast(b"last words")
        closer = threading.Thread(target=server.close, kwargs={"code": 4711, "reason": "maintenance"})
        closer.start()
        for client in ours:
            assert client.recv() == b"last words"
            with pytest.raises(longconn.PeerClosed) as raised:
                client.recv()
            assert (raised.value.code, raised.value.reason) == (4711, "maintenance")
        closer.join(PATIENCE)
        assert not closer.is_alive()
        server.close()
        with pytest.raises(longconn.ConnectFailed):
            longconn.connect(server.address)


def test_one_that_does_not_take_what_was_sent_is_not_waited_for_longer():
    with serving() as server, clients(server, 1):
        server.broadcast(b"x" * 1000)
        server.close(drain=0.05)


def test_one_that_nobody_closes_is_closed_with_a_warning():
    servers = [LongServer(("127.0.0.1", 0))]
    with pytest.warns(ResourceWarning, match="unclosed"):
        servers.clear()


def test_a_forked_child_need_not_close_its_parents():
    said = python_says(
        """
import os
import longconn
server = longconn.LongServer(("127.0.0.1", 0))
client = longconn.connect(server.address, timeout=20)
child = os.fork()
if not child:
    del server, client
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
with server.accept(timeout=20) as ours:
    client.close()
server.close()
print("ends")
"""
    )
    assert said == "ends\n"


def test_an_address_that_is_taken_is_the_systems_error():
    with serving() as server:
        with pytest.raises(OSError, match="binding") as raised:
            LongServer(server.address)
        assert raised.value.errno == 98


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"heartbeat": 5}, TypeError),
        ({"max_connections": 0}, ValueError),
        ({"max_connections": 1.5}, TypeError),
        ({"max_connections_per_address": 0}, ValueError),
        ({"max_handshakes": -1}, ValueError),
        ({"authenticate": 5}, TypeError),
        ({"handshake_timeout": 0}, ValueError),
        ({"handshake_timeout": float("nan")}, ValueError),
        ({"largest_message_bytes": 0}, ValueError),
        ({"backlog": -1}, ValueError),
    ],
)
def test_bad_arguments_are_told(arguments, error):
    with pytest.raises(error):
        LongServer(("127.0.0.1", 0), **arguments)


@pytest.mark.parametrize("address", ["nowhere", 7, None, ("127.0.0.1",)])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="address"):
        LongServer(address)


def test_bad_goodbyes_are_told():
    with serving() as server:
        for arguments in ({"drain": -1}, {"drain": float("nan")}, {"code": 3}, {"reason": "x" * 1025}):
            with pytest.raises(ValueError, match=next(iter(arguments))):
                server.close(**arguments)
        with pytest.raises(ValueError, match="timeout"):
            server.settimeout(-1)
        server.settimeout(None)
        assert server.gettimeout() is None
