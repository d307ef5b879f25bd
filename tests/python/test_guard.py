"""longconn.guard() on sockets that aren't ours: what it sets and puts back, whom it convicts, whom it never touches."""

from __future__ import annotations

import asyncio
import errno
import gc
import math
import os
import socket
import sys
import threading
import time
import weakref
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any

import longconn
import pytest
from longconn import Cause, Guard, Keepalive, KeepaliveSocket, PeerLost
from peers import (
    OPTIONS,
    PATIENCE,
    QUICK,
    SLACK,
    STDLIB,
    TCP_RTO_MAX_MS,
    connected,
    connections,
    cut_off,
    fill,
    listening,
    open_descriptors,
    options,
    reset,
    reset_at_close,
    rto_max,
    timings,
    wait_until,
    wait_until_blocked,
    watch_of,
)

LIMIT = 0.5
#: What a stdlib socket raises whose connection the guard has aborted: the kernel chooses.
ABORTED = (ConnectionResetError, BrokenPipeError)


def guarded_and_cut_off(stack: ExitStack, **kwargs: Any) -> tuple[socket.socket, socket.socket, Guard]:
    """A stdlib connection with something in flight that will never arrive."""
    ours, peer = stack.enter_context(connected(STDLIB))
    guard = longconn.guard(ours, limit=LIMIT, **kwargs)
    cut_off(peer)
    ours.send(b"into the void")
    return ours, peer, guard


# ---- the handle


def test_the_handle_says_what_it_does():
    with connected(STDLIB) as (ours, peer):
        with longconn.guard(ours, limit=8) as guard:
            assert isinstance(guard, Guard)
            assert guard.limit == 8
            assert guard.active is True
            assert guard.lost is None
            assert guard.error is None
            assert guard.peer == peer.getsockname()
            assert f"fd={ours.fileno()}" in repr(guard)
            assert "active" in repr(guard)
        assert guard.active is False
        assert "stopped" in repr(guard)


def test_it_looks_at_the_socket_at_least_every_eighth_of_the_limit():
    with connected(STDLIB) as (ours, _), longconn.guard(ours, limit=LIMIT) as guard:
        began = time.monotonic()
        wait_until(lambda: guard.looks >= 8, "eight looks")
        assert time.monotonic() - began <= LIMIT + 0.5 * SLACK


def test_it_says_what_it_applied_and_the_kernel_agrees():
    with connected(STDLIB) as (ours, _), longconn.guard(ours, limit=8) as guard:
        in_force: dict[str, float | None] = dict(options(ours), TCP_RTO_MAX_MS=rto_max(ours))
        assert guard.applied.keys() >= {"SO_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"}
        assert guard.applied.items() <= in_force.items()
        assert guard.applied["SO_KEEPALIVE"] == 1
        assert guard.applied["TCP_KEEPIDLE"] < 8, "or an idle path isn't convicted within the limit or so"
        assert options(ours)["TCP_USER_TIMEOUT"] == 0, "it could kill a slow reader"


@pytest.mark.parametrize("limit", [0.5, 1, 8.0, 30, 350, 604800, timedelta(seconds=8)])
def test_probes_are_as_frequent_as_the_limit_needs(limit):
    seconds = limit.total_seconds() if isinstance(limit, timedelta) else limit
    with connected(STDLIB) as (ours, _), longconn.guard(ours, limit=limit) as guard:
        assert guard.limit == seconds
        _, idle, interval, count = timings(ours)
        assert idle == interval <= max(1, seconds / 4)
        assert idle + interval * count >= min(seconds, 3), "the kernel isn't to give up before the guard does"
        times = guard.detection_time()
        assert times.idle is not None
        assert times.in_flight <= 1.5 * seconds + 1
        assert times.idle <= 2.5 * seconds + 4


@pytest.mark.parametrize("limit", [8, 30, 120, 300, 350, 600, 3600])
def test_what_it_sets_does_not_make_the_kernel_give_up_before_the_limit(limit):
    """TCP_RTO_MAX_MS shortens the retransmissions that the kernel will try (tcp_retries2), and so its patience."""
    patience = Keepalive(guard=False).detection_time().in_flight
    with connected(STDLIB) as (ours, _), longconn.guard(ours, limit=limit) as guard:
        assert guard.detection_time().in_flight >= min(limit, patience)


def test_stopping_puts_back_what_was():
    with connected(STDLIB) as (ours, _):
        ours.setsockopt(*OPTIONS["TCP_KEEPIDLE"], 77)
        before = options(ours), rto_max(ours)
        guard = longconn.guard(ours, limit=8)
        assert (options(ours), rto_max(ours)) != before
        guard.stop()
        assert (options(ours), rto_max(ours)) == before
        assert guard.active is False
        guard.stop()
        assert (options(ours), rto_max(ours)) == before


@pytest.mark.parametrize("broken", [False, True])
def test_the_end_of_the_with_block_puts_back_what_was(broken):
    with connected(STDLIB) as (ours, _):
        before = options(ours), rto_max(ours)
        with suppress(ZeroDivisionError), longconn.guard(ours, limit=8):
            if broken:
                _ = 1 / 0
        assert (options(ours), rto_max(ours)) == before


def test_stopping_leaves_alone_what_the_program_has_changed_meanwhile():
    with connected(STDLIB) as (ours, _):
        before = options(ours)
        guard = longconn.guard(ours, limit=8)
        ours.setsockopt(*OPTIONS["TCP_KEEPIDLE"], 77)
        if rto_max(ours):
            ours.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, 5000)
        guard.stop()
        assert options(ours) == {**before, "TCP_KEEPIDLE": 77}
        assert rto_max(ours) in (5000, None)


def test_the_programs_own_quicker_timings_stay():
    with connected(STDLIB) as (ours, _):
        for name, value in (("SO_KEEPALIVE", 1), ("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3)):
            ours.setsockopt(*OPTIONS[name], value)
        before = options(ours)
        with longconn.guard(ours, limit=30) as guard:
            assert options(ours) == before
            assert guard.applied.items() <= {**before, "TCP_RTO_MAX_MS": rto_max(ours)}.items()
        assert options(ours) == before


def test_a_shorter_bound_of_the_programs_own_stays():
    with connected(STDLIB) as (ours, _):
        if rto_max(ours) is None:
            pytest.skip("this kernel has no TCP_RTO_MAX_MS")
        ours.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, 1000)
        with longconn.guard(ours, limit=100) as guard:
            assert rto_max(ours) == 1000
            assert "TCP_RTO_MAX_MS" not in guard.applied
        assert rto_max(ours) == 1000


def test_keepalive_sets_the_probes():
    with connected(STDLIB) as (ours, _), longconn.guard(ours, keepalive=Keepalive(60, 10, 6)) as guard:
        assert timings(ours) == (1, 60, 10, 7)
        assert guard.limit == 120


def test_a_limit_and_keepalive_can_differ():
    with connected(STDLIB) as (ours, _), longconn.guard(ours, limit=5, keepalive=Keepalive(60, 10, 6)) as guard:
        assert timings(ours) == (1, 60, 10, 7)
        assert guard.limit == 5
        assert guard.detection_time().idle > 60


def test_keepalive_false_leaves_the_probes_alone_and_says_what_that_costs():
    with connected(STDLIB) as (ours, _):
        before = options(ours)
        with longconn.guard(ours, limit=8, keepalive=False) as guard:
            assert options(ours) == before
            assert set(guard.applied) <= {"TCP_RTO_MAX_MS"}
            assert guard.detection_time().idle is None
            assert any("idle" in note or "nothing is in flight" in note for note in guard.notes)
        ours.setsockopt(*OPTIONS["SO_KEEPALIVE"], 1)
        with longconn.guard(ours, limit=8, keepalive=False) as guard:
            assert guard.detection_time().idle > 7200


def test_without_a_limit_it_is_the_defaults(default):
    with connected(STDLIB) as (ours, _):
        with longconn.guard(ours) as guard:
            assert guard.limit == 30
        longconn.set_default_keepalive(Keepalive(60, 10, 6, guard=12.5))
        with longconn.guard(ours) as guard:
            assert guard.limit == 12.5
        longconn.set_default_keepalive(False)
        with longconn.guard(ours) as guard:
            assert guard.limit == 30


# ---- whom it takes


def test_it_takes_a_descriptor_by_number():
    with connected(STDLIB) as (ours, _), longconn.guard(ours.fileno(), limit=8) as guard:
        assert guard.active


def test_it_takes_ipv6():
    try:
        listener = STDLIB(socket.AF_INET6, socket.SOCK_STREAM)
        listener.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"this machine can't: {error}")
    with listener, STDLIB(socket.AF_INET6, socket.SOCK_STREAM) as ours:
        listener.listen()
        ours.connect(listener.getsockname())
        with longconn.guard(ours, limit=8) as guard:
            assert guard.peer == ours.getpeername()[:2]


def test_it_takes_a_keepalive_socket_besides_its_own_guard():
    with connected(keepalive=QUICK) as (ours, peer):
        before = options(ours)
        with longconn.guard(ours, limit=8):
            pass
        assert options(ours) == before
        told: list[PeerLost] = []
        guard = longconn.guard(ours, limit=8, on_lost=told.append)
        cut_off(peer)
        ours.send(b"into the void")
        with pytest.raises(PeerLost):
            ours.recv(1)
        assert ours.lost == "unreachable"
        wait_until(lambda: told, "both are told")
        assert guard.lost == "unreachable"


def test_it_takes_a_peer_that_has_finished_sending():
    with connected(STDLIB) as (ours, peer):
        peer.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""
        with longconn.guard(ours, limit=LIMIT) as guard:
            wait_until(lambda: guard.looks >= 2)
            assert guard.active


def test_two_guards_of_one_socket_get_along():
    with connected(STDLIB) as (ours, peer):
        with longconn.guard(ours, limit=8) as one, longconn.guard(ours, limit=LIMIT) as other:
            cut_off(peer)
            ours.send(b"into the void")
            wait_until(lambda: one.lost and other.lost, "both convict")


@pytest.mark.parametrize("what", ["closed", "unconnected", "listening", "udp", "unix", "refused"])
@pytest.mark.parametrize("cls", [STDLIB, KeepaliveSocket])
def test_others_are_refused_by_a_clear_error_and_left_untouched(what, cls):
    kind = {"udp": (socket.AF_INET, socket.SOCK_DGRAM), "unix": (socket.AF_UNIX, socket.SOCK_STREAM)}
    with cls(*kind.get(what, (socket.AF_INET, socket.SOCK_STREAM))) as sock:
        words = {"closed": "closed", "udp": "UDP", "unix": "Unix"}.get(what, "not connected")
        if what == "closed":
            sock.close()
        elif what == "listening":
            sock.listen()
        elif what == "refused":
            with listening() as gone:
                address = gone.getsockname()
            assert sock.connect_ex(address) == errno.ECONNREFUSED
        before = options(sock) if what not in ("closed", "udp", "unix") else None
        threads = open_descriptors()
        with pytest.raises(ValueError, match=words):
            longconn.guard(sock, limit=8)
        assert open_descriptors() == threads
        if before is not None:
            assert options(sock) == before
        elif what != "closed":
            assert sock.getsockopt(*OPTIONS["SO_KEEPALIVE"]) == 0


def test_a_number_that_is_not_open_is_the_systems_error():
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        longconn.guard(10**6, limit=8)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(ValueError, match="closed"):
        longconn.guard(-1, limit=8)


def test_a_descriptor_of_something_else_is_the_systems_error(tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match="non-socket"):
        longconn.guard(file, limit=8)


@pytest.mark.parametrize("thing", [None, "5", 1.5, True, object(), ("127.0.0.1", 8083)])
def test_what_has_no_descriptor_is_a_type_error(thing):
    with pytest.raises(TypeError):
        longconn.guard(thing, limit=8)


@pytest.mark.parametrize("limit", [0, 0.4, -1, math.nan, math.inf, 1e9, timedelta(0)])
def test_a_limit_out_of_range_is_refused_and_the_socket_untouched(limit):
    with connected(STDLIB) as (ours, _):
        before = options(ours)
        with pytest.raises(ValueError, match=r"0\.5"):
            longconn.guard(ours, limit=limit)
        assert options(ours) == before


@pytest.mark.parametrize("limit", ["8", True, [8], 8j])
def test_a_limit_is_seconds(limit):
    with connected(STDLIB) as (ours, _):
        before = options(ours)
        with pytest.raises(TypeError):
            longconn.guard(ours, limit=limit)
        assert options(ours) == before


@pytest.mark.parametrize(
    "arguments", [{"keepalive": "60,10,6"}, {"keepalive": 5}, {"on_lost": 5}, {"on_lost": "print"}]
)
def test_other_arguments_of_the_wrong_type_are_refused_before_anything_is_done(arguments):
    with connected(STDLIB) as (ours, _):
        before = options(ours)
        with pytest.raises(TypeError):
            longconn.guard(ours, limit=8, **arguments)
        assert options(ours) == before


def test_its_arguments_are_given_by_name():
    with connected(STDLIB) as (ours, _), pytest.raises(TypeError):
        longconn.guard(ours, 8)  # type: ignore[misc]


# ---- conviction


def test_a_path_that_is_dead_with_data_in_flight_is_convicted_in_time():
    with ExitStack() as stack:
        began = time.monotonic()
        ours, _, guard = guarded_and_cut_off(stack)
        with pytest.raises(ABORTED):
            ours.recv(1)
        assert LIMIT <= time.monotonic() - began <= LIMIT + 0.5 + SLACK
        assert guard.lost is Cause.UNREACHABLE
        assert guard.active is False
        assert "lost: unreachable" in repr(guard)
        assert LIMIT <= guard.error.silence <= LIMIT + 0.5 + SLACK
        assert guard.error.limit == LIMIT
        with pytest.raises(ABORTED):
            ours.send(b"x")


def test_an_idle_path_that_is_dead_is_convicted():
    with connected(STDLIB) as (ours, peer), longconn.guard(ours, limit=LIMIT) as guard:
        bound = guard.detection_time().idle
        cut_off(peer)
        began = time.monotonic()
        wait_until(lambda: guard.lost, "the guard convicts")
        assert time.monotonic() - began <= bound + SLACK
        assert guard.lost is Cause.UNREACHABLE


def test_a_path_that_is_dead_in_one_direction_is_called_deaf():
    with ExitStack() as stack:
        ours, peer, guard = guarded_and_cut_off(stack)
        ended = threading.Event()

        def stream() -> None:
            with suppress(OSError):
                while not ended.wait(0.02):
                    peer.send(b"x")

        thread = threading.Thread(target=stream)
        thread.start()
        try:
            wait_until(lambda: guard.lost, "the guard convicts")
        finally:
            ended.set()
            thread.join()
        assert guard.lost is Cause.DEAF
        assert type(guard.error).__name__ == "PeerTimedOut"
        assert ours.fileno() >= 0


def test_a_slow_readers_path_that_dies_is_convicted():
    with connected(STDLIB) as (ours, peer), longconn.guard(ours, limit=LIMIT) as guard:
        bound = guard.detection_time().slow_reader
        if bound is None or bound > 10:
            pytest.skip("this kernel has no TCP_RTO_MAX_MS")
        fill(ours)
        wait_until(lambda: longconn._longconn.tcp_info(ours.fileno()).unacked_segments == 0, "the window is closed")
        cut_off(peer)
        began = time.monotonic()
        wait_until(lambda: guard.lost, "the guard convicts")
        assert time.monotonic() - began <= bound + SLACK


@pytest.mark.parametrize("limit", [2.0, 8.0])
def test_a_path_that_dies_behind_a_window_that_was_taken_back_is_convicted_in_time(limit):
    """A receiver that has run out of memory drops what it had allowed; then its machine is gone."""
    with connected(STDLIB) as (ours, peer):
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        guard = longconn.guard(ours, limit=limit)
        for _ in range(50):
            ours.send(b"x" * 10)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(b"y" * 5000)
        looks = guard.looks
        wait_until(
            lambda: guard.looks >= looks + 32, "four limits have passed"
        )  # the peer lives, and answers each attempt
        assert guard.lost is None
        cut_off(peer)
        began = time.monotonic()
        wait_until(lambda: guard.lost, "the verdict")
        assert time.monotonic() - began <= 1.5 * limit + 1.5 + SLACK
        assert guard.lost is Cause.UNREACHABLE


def test_a_slow_reader_that_lives_is_not_convicted():
    """Nothing is read for two limits; nothing announces that nothing happens, so looks are counted."""
    with connected(STDLIB) as (ours, peer), longconn.guard(ours, limit=LIMIT) as guard:
        fill(ours)
        wait_until(lambda: guard.looks >= 32, "32 looks are two limits of suspicion")
        assert guard.lost is None
        assert peer.recv(1) == b"x"


def test_who_is_blocked_in_another_thread_is_woken():
    with ExitStack() as stack:
        ours, peer = stack.enter_context(connected(STDLIB))
        raised: list[BaseException] = []
        identity: list[int] = []

        def receive() -> None:
            identity.append(threading.get_native_id())
            try:
                ours.recv(1)
            except OSError as error:
                raised.append(error)

        thread = threading.Thread(target=receive)
        thread.start()
        wait_until_blocked(wait_until(lambda: identity and identity[0]))
        guard = longconn.guard(ours, limit=LIMIT)
        cut_off(peer)
        ours.send(b"into the void")
        thread.join(PATIENCE)
        assert isinstance(raised[0], ABORTED)
        assert guard.lost is Cause.UNREACHABLE


def test_a_reset_by_the_peer_is_no_conviction():
    told: list[PeerLost] = []
    with connected(STDLIB) as (ours, peer), longconn.guard(ours, limit=LIMIT, on_lost=told.append) as guard:
        reset(peer)
        wait_until(lambda: not guard.active, "the guard ends")
        with pytest.raises(ConnectionResetError):
            ours.recv(1)
        assert guard.lost is None
        assert guard.error is None
    assert told == []


def test_the_callback_is_called_once_with_the_error_on_a_thread_of_longconns_own():
    told: list[tuple[PeerLost, int, Cause | None]] = []
    with ExitStack() as stack:
        _, peer, guard = guarded_and_cut_off(
            stack, on_lost=lambda error: told.append((error, threading.get_native_id(), guard.lost))
        )
        address = peer.getsockname()
        wait_until(lambda: told, "the callback")
        error, thread, lost = told[0]
        assert isinstance(error, PeerLost)
        assert isinstance(error, TimeoutError)
        assert (error.cause, error.errno, error.limit, error.peer) == ("unreachable", errno.ETIMEDOUT, LIMIT, address)
        assert LIMIT <= error.silence <= LIMIT + 0.5 + SLACK
        assert thread not in {each.native_id for each in threading.enumerate() if each is threading.main_thread()}
        assert lost is Cause.UNREACHABLE, "the handle knows already"
        wait_until(lambda: not guard.active)
        assert len(told) == 1


def test_a_callback_that_raises_goes_to_the_hook_for_that_and_others_are_called(monkeypatch):
    unraisable: list[tuple[type[BaseException], object]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append((args.exc_type, args.object)))

    def raises(error: PeerLost) -> None:
        raise ZeroDivisionError

    told: list[PeerLost] = []
    with ExitStack() as stack:
        guarded_and_cut_off(stack, on_lost=raises)
        guarded_and_cut_off(stack, on_lost=told.append)
        wait_until(lambda: unraisable and told, "both callbacks")
    monkeypatch.undo()
    assert unraisable[0][0] is ZeroDivisionError


def test_a_callback_may_use_all_of_longconn():
    """It stops the guard, closes the socket, begins another: it waits for nothing that the guard's thread holds."""
    done: list[object] = []
    with ExitStack() as stack:
        other, _ = stack.enter_context(connected(STDLIB))

        def react(error: PeerLost) -> None:
            guard.stop()
            ours.close()
            with longconn.guard(other, limit=8) as another:
                done.append(another.active)

        ours, _, guard = guarded_and_cut_off(stack, on_lost=react)
        wait_until(lambda: done, "the callback")
        assert done == [True]
        assert ours.fileno() == -1


def test_a_guard_that_is_stopped_convicts_nobody():
    told: list[PeerLost] = []
    with ExitStack() as stack:
        ours, _, guard = guarded_and_cut_off(stack, on_lost=told.append)
        guard.stop()
        *_, witness = guarded_and_cut_off(stack)
        wait_until(lambda: witness.lost, "one that began later convicts")
        assert guard.lost is None
        assert told == []
        ours.settimeout(0)
        with pytest.raises(BlockingIOError):
            ours.recv(1)


def test_it_goes_on_without_its_handle():
    with ExitStack() as stack:
        ours, _, guard = guarded_and_cut_off(stack)
        del guard
        gc.collect()
        with pytest.raises(ABORTED):
            ours.recv(1)


def test_a_kernel_without_a_bound_for_retransmissions_convicts_as_rightly():
    longconn._longconn.pretend_no_rto_max(True)
    try:
        with ExitStack() as stack:
            ours, _, guard = guarded_and_cut_off(stack)
            assert "TCP_RTO_MAX_MS" not in guard.applied
            with pytest.raises(ABORTED):
                ours.recv(1)
    finally:
        longconn._longconn.pretend_no_rto_max(False)


def test_the_verdict_does_not_wait_for_the_interpreter():
    """Python can't run for three limits; the connection is aborted meanwhile all the same."""
    import ctypes

    sleep_with_the_gil = ctypes.PyDLL(None).usleep
    with ExitStack() as stack:
        *_, guard = guarded_and_cut_off(stack)
        sleep_with_the_gil(int(3 * LIMIT * 1e6))
        assert guard.lost is Cause.UNREACHABLE
        assert guard.error.silence < 2 * LIMIT


# ---- its end


def test_it_ends_when_the_socket_is_closed():
    with connected(STDLIB) as (ours, peer):
        guard = longconn.guard(ours, limit=LIMIT)
        ours.close()
        assert peer.recv(1) == b"", "the guard holds no duplicate that would hold back the FIN"
        wait_until(lambda: not guard.active, "the guard ends")
        assert guard.lost is None
        guard.stop()


@pytest.mark.parametrize("end", ["close", "stop"])
def test_it_lets_go_of_the_callback_when_it_ends(end):
    class Callback:
        def __call__(self, error: PeerLost) -> None:
            raise AssertionError

    callback = Callback()
    reference = weakref.ref(callback)
    with connected(STDLIB) as (ours, _):
        guard = longconn.guard(ours, limit=LIMIT, on_lost=callback)
        del callback
        if end == "stop":
            guard.stop()
        else:
            ours.close()
        wait_until(lambda: not guard.active)
        wait_until(lambda: gc.collect() >= 0 and reference() is None, "it lets go")


def test_a_guard_on_a_duplicate_survives_the_original():
    with connected(STDLIB) as (ours, peer), ours.dup() as copy, longconn.guard(copy, limit=LIMIT) as guard:
        ours.close()
        cut_off(peer)
        copy.send(b"into the void")
        wait_until(lambda: guard.lost, "the guard convicts")


# ---- a number that is another's by now


class Stranger:
    """A connection that has got the number of a guarded one."""

    def __init__(self, number: int, address: Any, listener: socket.socket) -> None:
        self.sock = STDLIB(socket.AF_INET, socket.SOCK_STREAM)
        assert self.sock.fileno() == number, "the kernel gives the lowest number"
        self.sock.connect(address)
        self.peer, _ = listener.accept()
        reset_at_close(self.peer)
        # exactly what a guard sets: putting back would show
        for name, value in (("SO_KEEPALIVE", 1), ("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3)):
            self.sock.setsockopt(*OPTIONS[name], value)
        self.before = options(self.sock), rto_max(self.sock)

    def check_untouched(self) -> None:
        assert (options(self.sock), rto_max(self.sock)) == self.before
        self.sock.send(b"x")
        assert self.peer.recv(1) == b"x"
        self.peer.send(b"y")
        assert self.sock.recv(1) == b"y"

    def close(self) -> None:
        self.peer.close()
        self.sock.close()


def test_a_number_that_is_reused_at_once_is_never_touched_in_10_000_times():
    rounds, batch = 50, 200
    with listening() as listener:
        address = listener.getsockname()
        for number in range(rounds):
            with connections(batch) as pairs:
                strangers, guards = [], []
                for ours, _ in pairs:
                    guard = longconn.guard(ours, limit=LIMIT)
                    fd = ours.fileno()
                    reset_at_close(ours)
                    ours.close()
                    strangers.append(Stranger(fd, address, listener))
                    guards.append(guard)
                    if number % 2:
                        guard.stop()  # would put back the options of whoever has the number
                wait_until(lambda: not any(guard.active for guard in guards), "all guards end")  # noqa: B023
                for stranger in strangers:
                    stranger.check_untouched()
                    stranger.close()
                assert not any(guard.lost for guard in guards)


def test_a_number_that_is_reused_while_the_verdict_falls_is_never_touched():
    """The hardest moment: the connection is about to be convicted, or is being."""
    count = 150
    with listening() as listener, ExitStack() as stack:
        address = listener.getsockname()
        pairs = stack.enter_context(connections(count))
        guards = []
        for ours, peer in pairs:
            guards.append(longconn.guard(ours, limit=LIMIT))
            cut_off(peer)
            ours.send(b"into the void")
        wait_until(lambda: any(guard.lost for guard in guards), "the first verdict")
        strangers = []
        for ours, _ in reversed(pairs):  # towards those whose verdict comes last
            fd = ours.fileno()
            ours.close()
            strangers.append(Stranger(fd, address, listener))
        wait_until(lambda: not any(guard.active for guard in guards), "all guards end")
        for stranger in strangers:
            stranger.check_untouched()
            stranger.close()


def test_dup2_over_a_guarded_number_is_noticed():
    with connected(STDLIB) as (other, other_peer), connected(STDLIB) as (ours, peer):
        guard = longconn.guard(ours, limit=LIMIT)
        before = options(other)
        os.dup2(other.fileno(), ours.fileno())
        assert peer.recv(1) == b""
        wait_until(lambda: not guard.active, "the guard ends")
        assert options(other) == before
        ours.send(b"x")
        assert other_peer.recv(1) == b"x"


# ---- nothing is left behind


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_and_drop(count: int) -> None:
    """Half are guarded connections of ours, half the stdlib's under a guard."""
    with listening() as listener:
        address = listener.getsockname()
        for number in range(count):
            sock: Any = (KeepaliveSocket, STDLIB)[number % 2](socket.AF_INET, socket.SOCK_STREAM)
            sock.connect(address)
            peer, _ = listener.accept()
            if number % 2:
                longconn.guard(sock, limit=LIMIT)
            reset(peer)
            del sock


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_10_000_sockets_made_and_dropped_leave_no_descriptor_and_no_memory():
    make_and_drop(2000)  # whatever is made once and kept
    gc.collect()
    descriptors, memory = open_descriptors(), resident_bytes()
    make_and_drop(10_000)
    gc.collect()
    assert open_descriptors() == descriptors
    # 100 bytes a socket would be 1 MB
    wait_until(lambda: resident_bytes() - memory < 1_000_000, "memory is given back", patience=5 * SLACK)


def test_sockets_that_are_only_made_leave_nothing_either():
    for _ in range(2000):
        KeepaliveSocket().close()
    gc.collect()
    memory = resident_bytes()
    for _ in range(10_000):
        KeepaliveSocket().close()
    assert resident_bytes() - memory < 1_000_000


def test_the_guard_of_a_keepalive_socket_ends_at_once_when_it_is_closed():
    with connected() as (ours, _):
        watch = watch_of(ours)
        ours.close()
        assert not watch.is_active


# ---- asyncio


def test_it_takes_an_asyncio_writer_and_transport():
    async def program() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for thing in (writer, writer.transport, writer.get_extra_info("socket")):
                with longconn.guard(thing, limit=8) as guard:
                    assert guard.active
            with pytest.raises(ValueError, match="not connected"):
                longconn.guard(server.sockets[0], limit=8)
            writer.close()
            await writer.wait_closed()
            with pytest.raises(ValueError, match="closed"):
                longconn.guard(writer, limit=8)

    asyncio.run(program())


def test_an_asyncio_reader_is_told():
    async def program() -> None:
        with listening() as listener:
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            peer, _ = listener.accept()
            with peer:
                loop = asyncio.get_running_loop()
                told = loop.create_future()
                guard = longconn.guard(
                    writer, limit=LIMIT, on_lost=lambda error: loop.call_soon_threadsafe(told.set_result, error)
                )
                cut_off(peer)
                writer.write(b"into the void")
                with pytest.raises(ConnectionResetError):
                    await reader.read(1)
                assert (await told).cause == guard.lost == "unreachable"
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    asyncio.run(program())
