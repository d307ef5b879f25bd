"""The settings of a KeepaliveSocket: when they are applied, what the program sets itself, and what it is shown."""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import longconn
import pytest
from longconn import Keepalive, KeepaliveSocket, PeerLost
from longconn import socket as mirror
from peers import (
    OPTIONS,
    PATIENCE,
    QUICK,
    STDLIB,
    connected,
    cut_off,
    listening,
    open_descriptors,
    options,
    reset,
    rto_max,
    timings,
    wait_until,
    wait_until_blocked,
    watch_of,
)

OURS = Keepalive(60, 10, 6)
OTHERS = Keepalive(40, 20, 4)


def kernels_own() -> dict[str, int]:
    """What a socket has that nobody has touched."""
    with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as sock:
        return options(sock)


def is_guarded(sock: KeepaliveSocket, limit: float | None = None) -> bool:
    watch = watch_of(sock)
    return watch is not None and watch.is_active and (limit is None or f"guard={limit:g} s" in repr(sock))


# ---- when they are applied


def test_they_are_applied_when_the_socket_connects():
    with KeepaliveSocket(keepalive=OURS) as sock:
        assert options(sock) == kernels_own()
        with listening() as listener:
            sock.connect(listener.getsockname())
            assert timings(sock) == (1, 60, 10, 6)
            assert is_guarded(sock, 120)


def test_they_are_applied_by_connect_ex():
    with KeepaliveSocket(keepalive=OURS) as sock, listening() as listener:
        assert sock.connect_ex(listener.getsockname()) == 0
        assert timings(sock) == (1, 60, 10, 6)
        assert is_guarded(sock, 120)


def test_they_are_applied_when_connecting_does_not_block():
    with KeepaliveSocket(keepalive=OURS) as sock, listening() as listener:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.connect(listener.getsockname())
        assert timings(sock) == (1, 60, 10, 6)
        assert is_guarded(sock, 120)


def test_they_are_applied_by_create_connection():
    with listening() as listener, mirror.create_connection(listener.getsockname()) as sock:
        assert timings(sock) == (1, 15, 5, 3)
        assert is_guarded(sock, 30)


def test_they_are_applied_when_the_socket_listens_and_accepted_ones_inherit_them():
    with listening(KeepaliveSocket, keepalive=OURS) as listener, STDLIB() as peer:
        assert timings(listener) == (1, 60, 10, 6)
        assert watch_of(listener) is None
        peer.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.keepalive == OURS
            assert timings(accepted) == (1, 60, 10, 6)
            assert is_guarded(accepted, 120)


@pytest.mark.parametrize("cls", [STDLIB, KeepaliveSocket])
def test_they_are_applied_to_a_descriptor_that_is_connected(cls):
    with connected(cls) as (ours, _), KeepaliveSocket(fileno=ours.detach(), keepalive=OURS) as sock:
        assert timings(sock) == (1, 60, 10, 6)
        assert is_guarded(sock, 120)


def test_they_are_applied_to_a_descriptor_that_listens():
    with listening() as listener, KeepaliveSocket(fileno=listener.detach(), keepalive=OURS) as sock:
        assert timings(sock) == (1, 60, 10, 6)
        with STDLIB() as peer:
            peer.connect(sock.getsockname())
            accepted, _ = sock.accept()
            with accepted:
                assert accepted.keepalive == OURS


def test_a_descriptor_that_is_not_connected_is_left_alone_until_it_is():
    theirs = STDLIB(socket.AF_INET, socket.SOCK_STREAM)
    with KeepaliveSocket(fileno=theirs.detach(), keepalive=OURS) as sock, listening() as listener:
        assert options(sock) == kernels_own()
        sock.connect(listener.getsockname())
        assert timings(sock) == (1, 60, 10, 6)


def test_without_an_argument_they_are_the_processs_default(default):
    longconn.set_default_keepalive(OTHERS)
    with connected() as (ours, _):
        assert ours.keepalive == OTHERS
        assert timings(ours) == (1, 40, 20, 4)


@pytest.mark.parametrize("value", [None, True])
def test_none_and_true_are_the_default(value):
    with KeepaliveSocket(keepalive=value) as sock:
        assert sock.keepalive == Keepalive()


def fast_open(sock: KeepaliveSocket, way: str, address: object) -> int:
    if way == "sendto":
        return sock.sendto(b"hello", socket.MSG_FASTOPEN, address)
    return sock.sendmsg([b"hel", b"lo"], (), socket.MSG_FASTOPEN, address)


@pytest.mark.parametrize("way", ["sendto", "sendmsg"])
@pytest.mark.parametrize("timeout", [None, PATIENCE, 0])
def test_they_are_applied_when_sending_connects(way, timeout):
    """TCP Fast Open."""
    with KeepaliveSocket(keepalive=OURS) as sock, listening() as listener:
        sock.settimeout(timeout)
        try:
            assert fast_open(sock, way, listener.getsockname()) == 5
        except BlockingIOError:
            assert timeout is not None, "without a cookie it only connects"
        assert timings(sock) == (1, 60, 10, 6)
        assert is_guarded(sock, 120)


@pytest.mark.parametrize("way", ["sendto", "sendmsg"])
def test_sending_that_can_not_connect_raises_what_the_stdlib_raises(way):
    with listening() as listener:
        nobody = listener.getsockname()
    outcomes = []
    for cls in (STDLIB, KeepaliveSocket):
        with cls(socket.AF_INET, socket.SOCK_STREAM) as sock:
            with pytest.raises(OSError, match=r".") as caught:
                fast_open(sock, way, nobody)
            outcomes.append((type(caught.value), caught.value.errno))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("sendto", b"x"),
        ("sendto",),
        ("sendto", b"x", "flags", ("127.0.0.1", 9)),
        ("sendto", b"x", 0, ("127.0.0.1", 9), 1),
        ("sendto", b"x", 2**40, ("127.0.0.1", 9)),
        ("sendmsg", [b"x"], (), None),
        ("sendmsg",),
        ("sendmsg", [b"x"], (), 0, None, 1),
        ("sendmsg", 5),
    ],
    ids=str,
)
def test_arguments_that_sending_does_not_take_are_refused_as_by_the_stdlib(arguments):
    outcomes = []
    for cls in (STDLIB, KeepaliveSocket):
        with cls(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            with pytest.raises(Exception, match=r".") as caught:
                getattr(sock, arguments[0])(*arguments[1:])
            outcomes.append((type(caught.value), str(caught.value)))
    assert outcomes[0] == outcomes[1]


# ---- settable at any time


def test_set_before_the_connection_they_are_in_force_afterwards():
    with KeepaliveSocket() as sock, listening() as listener:
        sock.keepalive = OURS
        assert sock.keepalive == OURS
        sock.connect(listener.getsockname())
        assert timings(sock) == (1, 60, 10, 6)
        assert is_guarded(sock, 120)


def test_set_on_a_live_connection_they_are_in_force_at_once():
    with connected() as (ours, _):
        ours.keepalive = OURS
        assert timings(ours) == (1, 60, 10, 6)
        assert is_guarded(ours, 120)
        ours.keepalive = OTHERS
        assert timings(ours) == (1, 40, 20, 4)
        assert is_guarded(ours, 120)


def test_a_guard_that_is_set_on_a_live_connection_convicts():
    with connected(keepalive=False) as (ours, peer):
        ours.keepalive = QUICK
        cut_off(peer)
        ours.send(b"into the void")
        with pytest.raises(PeerLost):
            ours.recv(1)


def test_set_while_another_thread_waits_they_disturb_nobody():
    with connected(keepalive=OURS) as (ours, peer):
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(ours.recv(10)))
        thread.start()
        wait_until_blocked(thread.native_id)
        for settings in (OTHERS, False, QUICK):
            ours.keepalive = settings
        peer.send(b"x")
        thread.join(PATIENCE)
        assert got == [b"x"]


def test_switched_off_on_a_live_connection_all_is_as_before():
    with connected(keepalive=False) as (ours, _):
        before = options(ours), rto_max(ours)
        ours.keepalive = OURS
        assert (options(ours), rto_max(ours)) != before
        ours.keepalive = False
        assert options(ours)["SO_KEEPALIVE"] == 0
        assert rto_max(ours) == before[1]
        assert ours.keepalive is None
        assert watch_of(ours) is None


def test_set_to_none_they_are_the_default_again():
    with connected(keepalive=OURS) as (ours, _):
        ours.keepalive = None
        assert ours.keepalive == Keepalive()
        assert timings(ours) == (1, 15, 5, 3)


def test_set_on_a_listener_they_are_what_later_connections_get():
    with listening(KeepaliveSocket) as listener:
        listener.keepalive = OURS
        with STDLIB() as peer:
            peer.connect(listener.getsockname())
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.keepalive == OURS
                assert timings(accepted) == (1, 60, 10, 6)


@contextmanager
def changed_while_one_waits(change: Callable[[KeepaliveSocket], KeepaliveSocket | None]) -> Iterator[KeepaliveSocket]:
    """The connection that was in the queue when the listener's settings changed."""
    with ExitStack() as stack:
        listener = stack.enter_context(listening(KeepaliveSocket, keepalive=OURS))
        peer = stack.enter_context(STDLIB())
        peer.connect(listener.getsockname())
        assert select.select([listener], [], [], PATIENCE)[0]
        listener = stack.enter_context(change(listener) or listener)
        accepted, _ = listener.accept()
        with accepted:
            yield accepted


@pytest.mark.parametrize("keepalive", [OTHERS, OTHERS.replace(probes=False), OTHERS.replace(user_timeout=90), None])
def test_set_on_a_listener_they_are_what_connections_get_that_wait_already(keepalive):
    with changed_while_one_waits(lambda listener: setattr(listener, "keepalive", keepalive)) as accepted:
        expected = keepalive or Keepalive()
        assert accepted.keepalive == expected
        if expected.probes:
            assert timings(accepted) == (1, expected.idle, expected.interval, expected.count)
        else:
            assert options(accepted)["SO_KEEPALIVE"] == 0
        assert options(accepted)["TCP_USER_TIMEOUT"] == (expected.user_timeout or 0) * 1000
        assert is_guarded(accepted, expected.guard_limit)


def test_switched_off_on_a_listener_they_are_off_for_connections_that_wait_already():
    with changed_while_one_waits(lambda listener: setattr(listener, "keepalive", False)) as accepted:
        assert accepted.keepalive is None
        assert options(accepted)["SO_KEEPALIVE"] == 0


def test_what_the_program_sets_on_a_listener_is_had_by_connections_that_wait_already():
    def change(listener: KeepaliveSocket) -> None:
        listener.setsockopt(*OPTIONS["TCP_KEEPIDLE"], 77)
        listener.setsockopt(*OPTIONS["TCP_USER_TIMEOUT"], 90_000)

    with changed_while_one_waits(change) as accepted:
        assert accepted.keepalive == OURS.replace(idle=77, user_timeout=90)
        assert timings(accepted) == (1, 77, 10, 6)
        assert options(accepted)["TCP_USER_TIMEOUT"] == 90_000


@pytest.mark.parametrize("kind", [STDLIB, KeepaliveSocket])
def test_a_listener_made_of_a_descriptor_gives_its_settings_to_connections_that_wait_already(kind):
    """As a server that has inherited its listener."""

    def change(listener: KeepaliveSocket) -> KeepaliveSocket:
        return KeepaliveSocket(fileno=kind(fileno=listener.detach()).detach(), keepalive=OTHERS)

    with changed_while_one_waits(change) as accepted:
        assert accepted.keepalive == OTHERS
        assert timings(accepted) == (1, 40, 20, 4)


def test_settings_that_are_no_longer_wanted_are_not_left_in_the_kernel():
    """A user timeout that only the old settings had would kill slow readers."""
    with connected(keepalive=Keepalive(60, 10, 6, user_timeout=120)) as (ours, _):
        assert options(ours)["TCP_USER_TIMEOUT"] == 120_000
        ours.keepalive = OURS
        assert options(ours)["TCP_USER_TIMEOUT"] == 0


@pytest.mark.parametrize("value", [5, "60,10,6", (60, 10, 6), 0, 1.0, object()])
def test_other_types_are_refused_and_leave_no_descriptor(value):
    before = open_descriptors()
    with pytest.raises(TypeError, match="keepalive"):
        KeepaliveSocket(keepalive=value)
    assert open_descriptors() == before
    with connected(keepalive=OURS) as (ours, _):
        with pytest.raises(TypeError, match="keepalive"):
            ours.keepalive = value
        assert ours.keepalive == OURS


def test_they_can_not_be_deleted():
    with KeepaliveSocket() as sock, pytest.raises(AttributeError):
        del sock.keepalive


@pytest.mark.parametrize("keepalive", [None, False, OURS])
@pytest.mark.parametrize("enabled", [None, 0, 1])
def test_a_closed_socket_can_still_be_asked_and_refuses_to_be_told(keepalive, enabled):
    sock = KeepaliveSocket(keepalive=keepalive)
    if enabled is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)
    sock.close()
    assert isinstance(sock.keepalive, Keepalive | None)
    assert sock.lost is None
    assert "[closed]" in repr(sock)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        sock.keepalive = OURS
    assert caught.value.errno == errno.EBADF


# ---- what the program sets itself

ORDERS = pytest.mark.parametrize("when", ["before", "after"])


def with_options(when: str, chosen: list[tuple[int, int, int | bytes]], keepalive: Keepalive | bool | None = OURS):
    """A connection on which the program has set options, before or after it was made."""
    return _WithOptions(when, chosen, keepalive)


class _WithOptions:
    def __init__(self, when, chosen, keepalive):
        self.when, self.chosen, self.keepalive = when, chosen, keepalive

    def __enter__(self) -> KeepaliveSocket:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sock = KeepaliveSocket(keepalive=self.keepalive)
        if self.when == "before":
            self._choose()
        self.sock.connect(self.listener.getsockname())
        self.peer, _ = self.listener.accept()
        if self.when == "after":
            self._choose()
        return self.sock

    def _choose(self) -> None:
        for option in self.chosen:
            self.sock.setsockopt(*option)

    def __exit__(self, *_: object) -> None:
        for sock in (self.sock, self.peer, self.listener):
            sock.close()


ON = (*OPTIONS["SO_KEEPALIVE"], 1)
OFF = (*OPTIONS["SO_KEEPALIVE"], 0)


@ORDERS
@pytest.mark.parametrize("on", [ON, (*ON[:2], True), (*ON[:2], struct.pack("i", 1))], ids=["1", "True", "bytes"])
def test_so_keepalive_keeps_our_timings(when, on):
    with with_options(when, [on]) as sock:
        assert timings(sock) == (1, 60, 10, 6)
        assert sock.keepalive == OURS
        assert is_guarded(sock, 120)


@ORDERS
@pytest.mark.parametrize("off", [OFF, (*OFF[:2], struct.pack("i", 0))], ids=["0", "bytes"])
def test_so_keepalive_0_turns_the_probes_off_but_not_the_guard(when, off):
    with with_options(when, [off]) as sock:
        assert options(sock)["SO_KEEPALIVE"] == 0
        assert sock.keepalive == Keepalive(60, 10, 6, probes=False)
        assert is_guarded(sock, 120)
        assert "keepalive=off" in repr(sock)


@ORDERS
def test_without_probes_the_guard_convicts_what_is_in_flight(when):
    case = with_options(when, [OFF], QUICK)
    with case as sock:
        cut_off(case.peer)
        sock.send(b"into the void")
        with pytest.raises(PeerLost):
            sock.recv(1)


@ORDERS
def test_so_keepalive_off_and_on_again_has_our_timings(when):
    with with_options(when, [OFF, ON]) as sock:
        assert timings(sock) == (1, 60, 10, 6)
        assert sock.keepalive == OURS


@ORDERS
@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("TCP_KEEPIDLE", 77, Keepalive(77, 10, 6)),
        ("TCP_KEEPINTVL", 7, Keepalive(60, 7, 6)),
        ("TCP_KEEPCNT", 2, Keepalive(60, 10, 2)),
        ("TCP_USER_TIMEOUT", 90_500, Keepalive(60, 10, 6, user_timeout=90.5)),
    ],
)
def test_the_programs_timings_win_and_are_shown(when, name, value, shown):
    with with_options(when, [(*OPTIONS[name], value)]) as sock:
        expected = {"SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 0}
        assert options(sock) == {**expected, name: value}
        assert sock.keepalive == shown
        assert is_guarded(sock, shown.guard_limit)


@ORDERS
def test_a_guard_with_a_limit_of_its_own_keeps_it(when):
    with with_options(when, [(*OPTIONS["TCP_KEEPIDLE"], 77)], Keepalive(60, 10, 6, guard=12.5)) as sock:
        assert sock.keepalive == Keepalive(77, 10, 6, guard=12.5)
        assert is_guarded(sock, 12.5)


@ORDERS
def test_all_that_the_program_sets_together_wins(when):
    chosen = [
        ON,
        *((*OPTIONS[name], value) for name, value in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 4))),
    ]
    with with_options(when, chosen) as sock:
        assert timings(sock) == (1, 3, 2, 4)
        assert sock.keepalive == Keepalive(3, 2, 4)


class Index:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


@ORDERS
@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("TCP_USER_TIMEOUT", 2**31 - 1, OURS.replace(user_timeout=2_147_483.647)),
        ("TCP_USER_TIMEOUT", 0, OURS),
        ("TCP_KEEPIDLE", struct.pack("ii", 77, 99), OURS.replace(idle=77)),
        ("TCP_KEEPIDLE", Index(77), OURS.replace(idle=77)),
        ("TCP_KEEPIDLE", bytearray(struct.pack("i", 77)), OURS.replace(idle=77)),
        ("SO_KEEPALIVE", 5, OURS),
        ("SO_KEEPALIVE", -1, OURS),
    ],
)
def test_whatever_the_kernel_takes_is_taken_and_shown_as_the_kernel_has_it(when, name, value, shown):
    with with_options(when, [(*OPTIONS[name], value)]) as sock:
        assert sock.keepalive == shown
        assert timings(sock) == (1, shown.idle, 10, 6)
        assert options(sock)["TCP_USER_TIMEOUT"] == round((shown.user_timeout or 0) * 1000)
        assert is_guarded(sock, shown.guard_limit)


# ---- what the guard goes by


@pytest.mark.parametrize(
    "option",
    [OFF, (*OPTIONS["TCP_KEEPIDLE"], 77), (*OPTIONS["TCP_KEEPINTVL"], 7), (*OPTIONS["TCP_KEEPCNT"], 2)],
    ids=["SO_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"],
)
def test_the_guard_begins_anew_when_the_program_changes_the_probes(option):
    """It reads once how the kernel probes; by what was before it would convict too soon."""
    with connected(keepalive=OURS.replace(guard=20)) as (ours, _):
        before, bound = watch_of(ours), rto_max(ours)
        ours.setsockopt(*option)
        now = watch_of(ours)
        assert now is not before
        assert now.is_active
        assert not before.is_active
        assert now.peer == before.peer is not None
        assert rto_max(ours) == bound
        ours.setsockopt(*option)
        assert watch_of(ours) is now, "said again it changes nothing"
        ours.setsockopt(*OPTIONS["TCP_USER_TIMEOUT"], 90_000)
        assert watch_of(ours) is now, "the guard doesn't go by it"
        ours.keepalive = False
        assert rto_max(ours) == rto_max_untouched()


def rto_max_untouched() -> int | None:
    with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as sock:
        return rto_max(sock)


@pytest.mark.parametrize("change", ["option", "settings"])
def test_a_verdict_that_nobody_has_heard_yet_is_not_lost_by_a_change(change):
    with connected(keepalive=QUICK) as (ours, peer):
        address = ours.getpeername()
        cut_off(peer)
        ours.send(b"into the void")
        wait_until(lambda: ours.lost, "the guard convicts")
        if change == "option":
            ours.setsockopt(*OPTIONS["TCP_KEEPIDLE"], 77)
        else:
            ours.keepalive = OURS
        assert ours.lost is not None
        with pytest.raises(PeerLost) as caught:
            ours.recv(1)
        assert (caught.value.cause, caught.value.peer) == ("unreachable", address)


@pytest.mark.parametrize("change", ["option", "settings"])
def test_whom_a_connection_was_with_is_known_though_options_change_after_its_end(change):
    with connected(keepalive=OURS) as (ours, peer):
        address = ours.getpeername()
        reset(peer)
        wait_until(lambda: ours.tcp_info().state == "CLOSE")
        if change == "option":
            ours.setsockopt(*OPTIONS["TCP_KEEPIDLE"], 77)
        else:
            ours.keepalive = OTHERS
        with pytest.raises(PeerLost) as caught:
            ours.recv(1)
        assert (caught.value.cause, caught.value.peer) == ("reset", address)


@ORDERS
def test_so_keepalive_1_has_our_timings_where_our_settings_leave_the_probes_off(when):
    with with_options(when, [ON], OURS.replace(probes=False, guard=False)) as sock:
        assert sock.keepalive == OURS.replace(guard=False)
        assert timings(sock) == (1, 60, 10, 6)


def test_settings_given_after_the_programs_options_win_over_them():
    with with_options("after", [(*OPTIONS["TCP_KEEPIDLE"], 77), OFF]) as sock:
        sock.keepalive = OTHERS
        assert timings(sock) == (1, 40, 20, 4)
        assert sock.keepalive == OTHERS


@ORDERS
def test_accepted_sockets_inherit_what_the_program_set_on_the_listener(when):
    with KeepaliveSocket(socket.AF_INET, socket.SOCK_STREAM, keepalive=OURS) as listener, STDLIB() as peer:
        listener.bind(("127.0.0.1", 0))
        if when == "after":
            listener.listen()
        listener.setsockopt(*OPTIONS["TCP_KEEPIDLE"], 77)
        listener.setsockopt(*OFF)
        if when == "before":
            listener.listen()
        peer.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert options(accepted)["SO_KEEPALIVE"] == 0
            assert accepted.keepalive == Keepalive(77, 10, 6, probes=False)
            accepted.setsockopt(*ON)
            assert timings(accepted) == (1, 77, 10, 6)
            assert listener.keepalive == Keepalive(77, 10, 6, probes=False), "the listener has its own"


@pytest.mark.parametrize("value", [0, -1, 32768, "5", None, 1.5, 2**40])
@pytest.mark.parametrize("name", ["TCP_KEEPIDLE", "TCP_KEEPCNT"])
def test_an_option_that_is_refused_changes_nothing(name, value):
    with connected(STDLIB) as (theirs, _), connected(keepalive=OURS) as (ours, _):
        outcomes = []
        for sock in (theirs, ours):
            try:
                sock.setsockopt(*OPTIONS[name], value)
            except Exception as error:
                outcomes.append((type(error), getattr(error, "errno", None)))
        assert len(outcomes) == 2
        assert outcomes[0] == outcomes[1]
        assert ours.keepalive == OURS
        assert timings(ours) == (1, 60, 10, 6)


def test_other_options_pass_through():
    with connected() as (ours, _):
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        with pytest.raises(TypeError):
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER)
        with pytest.raises(OSError, match="Protocol not available"):
            ours.setsockopt(socket.IPPROTO_TCP, 9999, 1)


# ---- off


def test_off_leaves_the_kernels_settings_alone_and_guards_nothing():
    with connected(keepalive=False) as (ours, _):
        assert options(ours) == kernels_own()
        assert ours.keepalive is None
        assert watch_of(ours) is None
        assert "keepalive=off" in repr(ours)


def test_off_is_inherited_by_accepted_sockets():
    with listening(KeepaliveSocket, keepalive=False) as listener, STDLIB() as peer:
        peer.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.keepalive is None
            assert options(accepted) == kernels_own()


@ORDERS
def test_off_shows_what_the_program_has_switched_on(when):
    with with_options(when, [ON, (*OPTIONS["TCP_KEEPIDLE"], 77)], keepalive=False) as sock:
        assert sock.keepalive is not None
        assert sock.keepalive.idle == 77
        assert sock.keepalive.guard is False
        assert options(sock) == {**kernels_own(), "SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 77}
        assert watch_of(sock) is None


@ORDERS
def test_off_said_again_switches_off_what_the_program_has_switched_on(when):
    with with_options(when, [ON, (*OPTIONS["TCP_USER_TIMEOUT"], 90_000)], keepalive=False) as sock:
        sock.keepalive = False
        assert sock.keepalive is None
        assert (options(sock)["SO_KEEPALIVE"], options(sock)["TCP_USER_TIMEOUT"]) == (0, 0)


# ---- what is not TCP

NOT_TCP: list[tuple[int, ...]] = [
    (socket.AF_INET, socket.SOCK_DGRAM),
    (socket.AF_UNIX, socket.SOCK_STREAM),
    (socket.AF_UNIX, socket.SOCK_DGRAM),
]


@pytest.mark.parametrize("kind", NOT_TCP)
def test_other_kinds_have_no_keepalive_and_are_left_untouched(kind):
    with KeepaliveSocket(*kind) as sock:
        assert sock.keepalive is None
        assert sock.lost is None
        assert sock.getsockopt(*OPTIONS["SO_KEEPALIVE"]) == 0
        assert "keepalive" not in repr(sock)


@pytest.mark.parametrize("kind", NOT_TCP)
def test_other_kinds_refuse_a_keepalive_and_leave_no_descriptor(kind):
    before = open_descriptors()
    with pytest.raises(ValueError, match="TCP"):
        KeepaliveSocket(*kind, keepalive=OURS)
    assert open_descriptors() == before
    with KeepaliveSocket(*kind) as sock:
        with pytest.raises(ValueError, match="TCP"):
            sock.keepalive = OURS
        assert sock.keepalive is None
        assert sock.getsockopt(*OPTIONS["SO_KEEPALIVE"]) == 0


@pytest.mark.parametrize("kind", NOT_TCP)
def test_other_kinds_take_off_and_the_default(kind):
    for value in (None, False):
        with KeepaliveSocket(*kind, keepalive=value) as sock:
            sock.keepalive = value
            assert sock.keepalive is None


@pytest.mark.parametrize(("kind", "name"), [*zip(NOT_TCP, ["UDP", "Unix", "Unix"], strict=True)])
def test_a_descriptor_of_another_kind_is_its_owners_after_the_refusal(kind, name):
    with STDLIB(*kind) as theirs:
        with pytest.raises(ValueError, match=f"TCP; this socket is {name}"):
            KeepaliveSocket(fileno=theirs.fileno(), keepalive=OURS)
        assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == kind[1]


@pytest.mark.parametrize("kind", NOT_TCP)
def test_other_kinds_take_the_programs_options(kind):
    with KeepaliveSocket(*kind) as sock:
        sock.setsockopt(*ON)
        assert sock.getsockopt(*OPTIONS["SO_KEEPALIVE"]) == 1
        assert sock.keepalive is None


# ---- what is shown


def test_the_repr_says_what_the_stdlibs_says_and_what_is_in_force():
    with connected(keepalive=OURS) as (ours, _):
        text = repr(ours)
        theirs = STDLIB.__repr__(ours)
        assert text.startswith(theirs[:-1])
        assert "KeepaliveSocket" in text
        assert "keepalive=60/10/6" in text
        assert "guard=120 s" in text


def test_the_repr_says_that_there_is_no_guard():
    with KeepaliveSocket(keepalive=Keepalive(60, 10, 6, guard=False)) as sock:
        assert "guard=off" in repr(sock)


def test_the_repr_says_who_is_lost():
    with connected(keepalive=QUICK) as (ours, peer):
        cut_off(peer)
        ours.send(b"into the void")
        wait_until(lambda: ours.lost, "the guard convicts")
        assert "lost=unreachable" in repr(ours)


def test_tcp_info_is_a_named_value_with_units_in_the_names():
    with connected() as (ours, peer):
        ours.sendall(b"12345")
        assert peer.recv(5) == b"12345"
        peer.sendall(b"123")
        assert ours.recv(3) == b"123"
        info = wait_until(lambda: (found := ours.tcp_info()).bytes_acked >= 5 and found)
        assert isinstance(info, longconn.TcpInfo)
        assert (info.state, info.bytes_received, info.bytes_sent) == ("ESTABLISHED", 3, 5)
        assert info.probes == info.unacked_segments == 0
        assert 0 < info.round_trip_us < PATIENCE * 1e6
        assert info.last_ack_received_ms < PATIENCE * 1000
        assert info._asdict()["state"] == "ESTABLISHED"
        assert repr(info).startswith("TcpInfo(state='ESTABLISHED', ")
        assert info == info
        with pytest.raises(AttributeError):
            info.state = "CLOSE"  # type: ignore[misc]
        units = ("_us", "_ms", "_bytes", "_segments", "_per_second", "segments_in", "segments_out")
        for name in info._asdict():
            counters = ("state", "retransmits", "probes", "backoff")
            assert name in counters or name.endswith(units) or name.startswith("bytes_"), name


def test_tcp_info_of_what_has_none_is_an_error_of_the_system():
    with KeepaliveSocket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, pytest.raises(OSError, match=r"."):
        sock.tcp_info()
    sock = KeepaliveSocket()
    assert sock.tcp_info().state == "CLOSE"
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        sock.tcp_info()


# ---- other objects for the same connection


def test_a_duplicate_has_the_same_settings():
    with connected(keepalive=OURS) as (ours, _):
        ours.setsockopt(*OPTIONS["TCP_KEEPIDLE"], 77)
        with ours.dup() as copy:
            assert copy.keepalive == Keepalive(77, 10, 6)
            assert timings(copy) == (1, 77, 10, 6)
            assert is_guarded(copy, 137)


def test_a_duplicate_of_one_that_is_off_is_off():
    with connected(keepalive=False) as (ours, _):
        with ours.dup() as copy:
            assert copy.keepalive is None
        assert options(ours) == kernels_own()


def test_a_detached_connection_stays_guarded_and_alive():
    with connected(keepalive=Keepalive(60, 10, 6, guard=0.5)) as (ours, _):
        watch = watch_of(ours)
        with STDLIB(fileno=ours.detach()) as theirs:
            assert timings(theirs) == (1, 60, 10, 6)
            assert watch.is_active
        wait_until(lambda: not watch.is_active, "the guard ends with the descriptor")


def test_a_socket_that_is_rebuilt_of_its_descriptor_can_keep_its_settings():
    with connected(keepalive=OURS) as (ours, peer):
        settings = ours.keepalive
        with KeepaliveSocket(fileno=ours.detach(), keepalive=settings) as again:
            assert again.keepalive == OURS
            again.send(b"x")
            assert peer.recv(1) == b"x"


@pytest.mark.parametrize("given", ["made with", "set later"])
def test_settings_given_to_an_object_of_the_same_descriptor_are_its_own(given):
    """Only one made without any has those of the socket that leaves it its descriptor, as ssl's."""
    with connected(keepalive=OURS) as (ours, _):
        keepalive = OTHERS if given == "made with" else None
        with KeepaliveSocket(fileno=ours.fileno(), keepalive=keepalive) as heir:
            if given == "set later":
                heir.keepalive = OTHERS
            ours.detach()
            assert heir.keepalive == OTHERS
            assert timings(heir) == (1, 40, 20, 4)
            assert is_guarded(heir, 120)
            heir.keepalive = False
            assert rto_max(heir) == rto_max_untouched()


def test_an_object_of_the_same_descriptor_without_settings_has_those_of_the_one_that_leaves():
    with connected(keepalive=OURS) as (ours, _), KeepaliveSocket(fileno=ours.fileno()) as heir:
        ours.detach()
        assert heir.keepalive == OURS
        assert timings(heir) == (1, 60, 10, 6)
        assert is_guarded(heir, 120)
