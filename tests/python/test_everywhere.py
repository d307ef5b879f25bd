"""What has to hold on every system, with nothing of Linux's: on macOS these tests run, and the others are left out."""

from __future__ import annotations

import os
import socket
import threading

import longconn
import pytest
from longconn import Heartbeat, Keepalive, KeepaliveSocket, LongServer, _longconn
from peers import PATIENCE, STDLIB, connected, listening

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def take(sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        part = sock.recv(65536)
        assert part, "the end came early"
        got += part
    return bytes(got)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_bytes_go_both_ways(timeout):
    with connected() as (ours, peer):
        ours.settimeout(timeout)
        ours.send(b"hello")
        assert peer.recv(100) == b"hello"
        peer.sendall(b"welcome")
        assert ours.recv(100) == b"welcome"
        peer.close()
        assert ours.recv(100) == b""


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("size", [100, 8_000, 100_000])
def test_a_send_that_has_to_wait_lets_other_threads_run(size, timeout):
    """Else the thread that is to read never would."""
    data, times = os.urandom(size), 8_000_000 // size
    with connected() as (ours, peer):
        ours.settimeout(timeout)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(take(peer, size * times)))
        reader.start()
        for _ in range(times):
            sent = ours.send(data)
            if sent < size:  # with a timeout a send gives what there was room for
                ours.sendall(data[sent:])
        ours.shutdown(socket.SHUT_WR)
        reader.join(PATIENCE)
        assert not reader.is_alive()
        assert got == [data * times]


def test_a_timeout_is_kept():
    with connected() as (ours, _peer):
        ours.settimeout(0.05)
        with pytest.raises(TimeoutError):
            ours.recv(1)
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)


def test_the_kernels_keepalive_is_what_was_asked_for():
    with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as sock:
        done = Keepalive(60, 10, 6, guard=False).apply(sock)
        assert (done.emulated, done.refused) == ({}, {})
        assert sorted(done.applied.values()) == [1, 6, 10, 60]
        assert _longconn.keepalive_of(sock.fileno())[:4] == (True, 60, 10, 6)


def test_a_listeners_settings_are_those_of_what_it_accepts():
    with listening(KeepaliveSocket, keepalive=Keepalive(60, 10, 6)) as listener:
        with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as peer:
            peer.connect(listener.getsockname())
            ours, _ = listener.accept()
            with ours:
                assert _longconn.keepalive_of(ours.fileno())[:4] == (True, 60, 10, 6)


def test_the_guard_works_or_is_refused_by_name():
    with connected(STDLIB) as (sock, _peer):
        if _longconn.HAS_GUARD:
            with longconn.guard(sock, limit=5) as guard:
                assert guard.lost is None
            return
        with pytest.raises(NotImplementedError, match=_longconn.PLATFORM):
            longconn.guard(sock, limit=5)
        for each in sock, KeepaliveSocket(fileno=os.dup(sock.fileno())):
            with each:
                done = Keepalive(60, 10, 6).apply(each)
                assert _longconn.PLATFORM in done.refused["guard"]
                assert done.emulated == {}
        assert any(_longconn.PLATFORM in each for each in Keepalive().warnings())


def test_a_user_timeout_is_set_or_refused_by_name():
    with connected(STDLIB) as (sock, _peer):
        done = Keepalive(60, 10, 6, user_timeout=20, guard=False).apply(sock)
        (option,) = {*done.applied, *done.refused} - {*Keepalive(60, 10, 6, guard=False).apply(sock).applied}
        if option in done.refused:
            assert "TCP_USER_TIMEOUT" in done.refused[option]
        else:
            assert _longconn.keepalive_of(sock.fileno())[4] == 20


def test_messages_go_both_ways_and_beats_beside_them():
    with LongServer(("127.0.0.1", 0), heartbeat=Heartbeat(0.1, limit=PATIENCE)) as server:
        with longconn.connect(server.address, heartbeat=Heartbeat(0.1, limit=PATIENCE)) as ours:
            with server.accept(timeout=PATIENCE) as theirs:
                messages = [os.urandom(size) for size in (0, 1, 64, 70_000, 5_000_000)]
                for one, other in (ours, theirs), (theirs, ours):
                    sender = threading.Thread(target=lambda one=one: [one.send(message) for message in messages])
                    sender.start()
                    assert [other.recv(timeout=PATIENCE) for _ in messages] == messages
                    sender.join(PATIENCE)
                    assert not sender.is_alive()
                    one.flush(timeout=PATIENCE)
                assert ours.ping(timeout=PATIENCE) < PATIENCE


def test_a_peer_that_closes_is_told_of():
    with LongServer(("127.0.0.1", 0)) as server:
        with longconn.connect(server.address, reconnect=False) as ours:
            server.accept(timeout=PATIENCE).close()
            with pytest.raises(longconn.PeerClosed):
                ours.recv(timeout=PATIENCE)


def test_a_plain_peer_speaks_lines():
    with listening() as listener:
        with longconn.connect("{}:{}".format(*listener.getsockname()), framing="lines") as ours:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"one\ntwo\n")
                assert [ours.recv(timeout=PATIENCE) for _ in range(2)] == [b"one\n", b"two\n"]
                ours.send(b"three\n")
                assert take(peer, 6) == b"three\n"


def test_who_answers_nobody_is_refused():
    with listening() as listener:
        address = "{}:{}".format(*listener.getsockname())
    with pytest.raises(longconn.ConnectFailed):
        longconn.connect(address, timeout=PATIENCE)


@needs_fork
def test_after_a_fork_the_parents_links_go_on_and_the_childs_are_dead():
    with LongServer(("127.0.0.1", 0)) as server:
        with longconn.connect(server.address) as ours, server.accept(timeout=PATIENCE) as theirs:
            child = os.fork()
            if child == 0:
                try:
                    ours.send(b"from the child")
                except longconn.ForkedError:
                    os._exit(7)
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 7 << 8
            ours.send(b"from the parent")
            assert theirs.recv(timeout=PATIENCE) == b"from the parent"
