"""What a conviction leaves as it was: what has arrived, other guards, forks, the interpreter's exit."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import longconn
import pytest
from longconn import Cause, Keepalive, KeepaliveSocket, PeerLost
from peers import PATIENCE, SLACK, STDLIB, connected, connections, cut_off, python, python_says, wait_until, watch_of

LIMIT = 0.5
ARRIVED = b"what has arrived "

READS: dict[str, Callable[[socket.socket], bytes]] = {
    "recv": lambda sock: sock.recv(100),
    # the connection is cut by the guard's next look, once what has arrived was read
    "recv with a flag": lambda sock: select.select([sock], [], [], PATIENCE) and sock.recv(100, socket.MSG_DONTWAIT),
    "recv large": lambda sock: sock.recv(100_000),
    "recv_into": lambda sock: (room := bytearray(100))[: sock.recv_into(room)],
    "recvfrom": lambda sock: sock.recvfrom(100)[0],
    "recvfrom_into": lambda sock: (room := bytearray(100))[: sock.recvfrom_into(room)[0]],
    "recvmsg": lambda sock: sock.recvmsg(100)[0],
    "recvmsg_into": lambda sock: (room := bytearray(100))[: sock.recvmsg_into([room])[0]],
}


# ---- what has arrived


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("timeout", [None, 60.0], ids=["blocking", "with a timeout"])
def test_what_has_arrived_is_read_first_then_the_loss_is_told_once_then_it_is_the_end(read, timeout):
    with connected(keepalive=Keepalive(1, 1, 3, guard=LIMIT)) as (ours, peer):
        ours.settimeout(timeout)
        peer.sendall(ARRIVED)
        cut_off(peer)
        ours.send(b"into the void")
        wait_until(lambda: watch_of(ours).conviction, "the verdict")
        assert read(ours) == ARRIVED
        with pytest.raises(PeerLost) as told:
            read(ours)
        assert told.value.cause is Cause.UNREACHABLE
        assert read(ours) == b""
        with pytest.raises(BrokenPipeError):
            ours.send(b"x")


def test_who_is_blocked_in_a_send_is_told_at_once_though_something_has_arrived():
    with connected(keepalive=Keepalive(1, 1, 3, guard=LIMIT)) as (ours, peer):
        peer.sendall(ARRIVED)
        cut_off(peer)
        began = time.monotonic()
        with pytest.raises(PeerLost):
            ours.sendall(bytes(50_000_000))
        assert time.monotonic() - began <= LIMIT + 0.5 + SLACK
        assert ours.recv(100) == ARRIVED


def test_somebody_elses_socket_gives_what_has_arrived_and_then_its_error():
    with connected(STDLIB) as (ours, peer):
        guard = longconn.guard(ours, limit=LIMIT)
        peer.sendall(ARRIVED)
        cut_off(peer)
        ours.send(b"into the void")
        wait_until(lambda: guard.lost, "the verdict")
        assert ours.recv(100) == ARRIVED
        with pytest.raises(OSError):  # noqa: PT011 - the kernel chooses which
            ours.recv(100)


def test_an_answer_that_comes_while_the_kernel_was_to_end_it_calls_that_off():
    detach_filter = 27  # SO_DETACH_FILTER
    with connected(STDLIB) as (ours, peer):
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 7_000_000)
        guard = longconn.guard(ours, limit=LIMIT)
        peer.sendall(ARRIVED)
        cut_off(peer)
        ours.send(b"late")

        def is_being_ended() -> bool:
            return ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1

        wait_until(lambda: is_being_ended() or guard.lost, "the verdict")
        peer.setsockopt(socket.SOL_SOCKET, detach_filter, 0)
        # Whichever was quicker, the answer or the kernel's timer: no state between the two stays.
        wait_until(lambda: guard.lost or not is_being_ended(), "one of them")
        if not guard.lost:
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7_000_000
            assert peer.recv(10) == b"late"


# ---- other guards


def test_a_guard_that_stops_leaves_its_probes_to_another_of_the_same_socket_which_puts_them_back():
    with connected(STDLIB) as (ours, _):
        one, other = longconn.guard(ours, limit=4), longconn.guard(ours, limit=4)
        assert one.applied["SO_KEEPALIVE"] == 1
        assert "SO_KEEPALIVE" not in other.applied
        one.stop()
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        other.stop()
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_the_limit_that_is_told_is_the_one_that_has_passed():
    with connected(keepalive=Keepalive(1, 1, 3, guard=30)) as (ours, peer):
        cut_off(peer)
        with pytest.raises(PeerLost) as told:
            ours.recv(1)
        assert told.value.limit == 3.0
        assert told.value.silence < 30


def test_the_kernels_timings_count_as_they_are_when_the_path_falls_silent():
    with connected(STDLIB) as (ours, peer):
        guard = longconn.guard(ours, limit=30, keepalive=Keepalive(1, 1, 50, guard=30))
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
        cut_off(peer)
        began = time.monotonic()
        wait_until(lambda: guard.lost, "the verdict")
        assert time.monotonic() - began < 10 * SLACK


def test_each_of_many_callbacks_is_called():
    count = 300
    called: list[PeerLost] = []
    may_go = threading.Event()

    def on_lost(error: PeerLost) -> None:
        may_go.wait(PATIENCE)
        called.append(error)

    with connections(count) as pairs:
        guards = [longconn.guard(ours, limit=LIMIT, on_lost=on_lost) for ours, _ in pairs]
        for ours, peer in pairs:
            cut_off(peer)
            ours.send(b"x")
        wait_until(lambda: all(guard.lost for guard in guards), "all verdicts")
        may_go.set()
        wait_until(lambda: len(called) == count, "all callbacks")


# ---- forks and the exit

SETTING = f"""
import logging, os, socket, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import longconn
from peers import STDLIB, connected, cut_off
"""


def test_the_exit_waits_for_a_callback_that_runs():
    said = python_says(
        SETTING
        + """
def on_lost(error):
    began.set()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        time.sleep(0.0005)
    print("done")
began = threading.Event()
with connected(STDLIB) as (ours, peer):
    guard = longconn.guard(ours, limit=0.5, on_lost=on_lost)
    cut_off(peer)
    ours.send(b"x")
    began.wait()
print("exit")
"""
    )
    assert said.split() == ["exit", "done"]


def test_forks_beside_a_stream_of_log_records_neither_hang_nor_wait_nor_say_anything():
    done = python(
        "-W",
        "error",
        "-c",
        "import longconn\n"  # before logging, whose hook then runs before those that were registered earlier
        + SETTING
        + """
class Slow(logging.Handler):
    def emit(self, record):
        time.sleep(0.001)
logging.basicConfig(level=logging.DEBUG, handlers=[Slow()])
def chatter():
    while True:
        longconn._longconn.warn("x")
        time.sleep(0)
threading.Thread(target=chatter, daemon=True).start()
time.sleep(0.05)
worst = 0
for _ in range(50):
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    worst = max(worst, time.monotonic() - began)
print(worst < 0.9, flush=True)
os._exit(0)
""",
    )
    # on 3.12 and later it has a thread of its own
    said = [line for line in done.stderr.splitlines() if "multi-threaded" not in line]
    assert (done.returncode, done.stdout.strip(), said) == (0, "True", [])


def test_a_log_record_in_a_program_without_logging_disturbs_no_fork():
    said = python_says(
        """
import os, sys
import longconn
longconn._longconn.warn("x")
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
print("done")
"""
    )
    assert said == "done\n"


def test_what_a_forked_child_detaches_is_guarded_there():
    said = python_says(
        SETTING
        + """
with connected(longconn.KeepaliveSocket, keepalive=longconn.Keepalive(guard=0.5)) as (ours, peer):
    reading, writing = os.pipe()
    if os.fork() == 0:
        watch = ours._keepalive_watch
        before = watch.looks
        ours.detach()
        deadline = time.monotonic() + 20
        while watch.looks < before + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.write(writing, b"guarded" if watch.looks >= before + 3 else b"asleep")
        os._exit(0)
    print(os.read(reading, 100).decode())
"""
    )
    assert said == "guarded\n"


# ---- datagrams


def test_no_datagram_is_cut_where_several_threads_receive():
    sender = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.connect(("127.0.0.1", int(sys.argv[1])))
    for number in range(60_000):
        sock.send(bytes(10))
        sock.send(bytes(1000))
        if number % 20 == 0:
            time.sleep(0.0005)  # some may be lost, but none in part
"""
    with KeepaliveSocket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        ours.bind(("127.0.0.1", 0))
        ours.settimeout(1.0 * SLACK)
        got: list[int] = []

        def receive() -> None:
            with suppress(TimeoutError):
                while True:
                    got.append(len(ours.recv(65535)))

        threads = [threading.Thread(target=receive) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert python_says(sender, str(ours.getsockname()[1])) == ""
        for thread in threads:
            thread.join(PATIENCE)
    # A large one that is cut counts as a small one.
    assert got.count(10) <= 60_000
    assert set(got) == {10, 1000}
