"""Errors: what each is, whom an `except` clause catches, and that a loss is raised once."""

from __future__ import annotations

import errno
import pickle
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import longconn
import pytest
from longconn import (
    AlreadyClosed,
    BufferFull,
    Cause,
    ConnectFailed,
    ForkedError,
    HandshakeRejected,
    Keepalive,
    KeepaliveSocket,
    LongConnError,
    MessageTooLarge,
    PeerClosed,
    PeerLost,
    PeerReset,
    PeerTimedOut,
    ProtocolError,
    SessionLost,
)
from longconn import errors as errors_module
from peers import (
    PATIENCE,
    QUICK,
    SLACK,
    SLOW,
    STDLIB,
    connected,
    cut_off,
    fill,
    listening,
    reset,
    wait_until,
)

# ---- the table: the stdlib's class that an old `except` clause names -> ours

TABLE: list[tuple[BaseException, tuple[type[BaseException], ...], dict[str, object]]] = [
    (LongConnError("text"), (Exception,), {}),
    (
        PeerTimedOut(errno.ETIMEDOUT, "text", cause=Cause.UNREACHABLE, silence=3.5, limit=3.0, peer=("::1", 8083)),
        (PeerLost, LongConnError, TimeoutError, ConnectionError, OSError),
        {"errno": errno.ETIMEDOUT, "cause": "unreachable", "silence": 3.5, "limit": 3.0, "peer": ("::1", 8083)},
    ),
    (
        PeerTimedOut(errno.ETIMEDOUT, "text", cause=Cause.DEAF, silence=3.5, limit=3.0),
        (PeerLost, LongConnError, TimeoutError, ConnectionError, OSError),
        {"errno": errno.ETIMEDOUT, "cause": "deaf", "silence": 3.5, "limit": 3.0, "peer": None},
    ),
    (
        PeerReset(errno.ECONNRESET, "text", cause=Cause.RESET),
        (PeerLost, LongConnError, ConnectionResetError, ConnectionError, OSError),
        {"errno": errno.ECONNRESET, "cause": "reset", "silence": None, "limit": None},
    ),
    (
        PeerLost(None, "text", cause=Cause.ENDED),
        (LongConnError, ConnectionError, OSError),
        {"errno": None, "cause": "ended", "silence": None, "limit": None},
    ),
    (
        PeerLost(errno.EHOSTUNREACH, "text", cause=Cause.UNREACHABLE),
        (LongConnError, ConnectionError, OSError),
        {"errno": errno.EHOSTUNREACH, "cause": "unreachable"},
    ),
    (
        PeerLost(errno.ETIMEDOUT, "text", cause=Cause.HUNG, silence=3.5, limit=3.0, level="application"),
        (LongConnError, ConnectionError, OSError),
        {"errno": errno.ETIMEDOUT, "cause": "hung", "level": "application", "kernel_answers": None, "given_up": None},
    ),
    (
        PeerClosed("text", code=4711, reason="enough", peer=("::1", 8083)),
        (LongConnError, ConnectionError, OSError),
        {"code": 4711, "reason": "enough", "peer": ("::1", 8083), "cause": "closed"},
    ),
    (
        SessionLost(errno.ECONNRESET, "text", cause=Cause.RESET, peer=("::1", 8083)),
        (PeerLost, LongConnError, ConnectionError, OSError),
        {"errno": errno.ECONNRESET, "cause": "reset", "peer": ("::1", 8083), "undelivered": []},
    ),
    (BufferFull(errno.EAGAIN, "text"), (LongConnError, BlockingIOError, OSError), {"errno": errno.EAGAIN}),
    (AlreadyClosed(errno.EBADF, "text"), (LongConnError, OSError), {"errno": errno.EBADF}),
    (
        ConnectFailed(errno.ECONNREFUSED, "text", peer=("::1", 8083)),
        (LongConnError, ConnectionError, OSError),
        {"errno": errno.ECONNREFUSED, "cause": "refused", "peer": ("::1", 8083)},
    ),
    (
        HandshakeRejected("text", code=7, reason="no"),
        (ConnectFailed, LongConnError, ConnectionError, OSError),
        {"errno": None, "cause": "handshake", "code": 7, "reason": "no"},
    ),
    (ProtocolError("text"), (LongConnError, ConnectionError, OSError), {"cause": "protocol", "peer": None}),
    (ForkedError("text"), (LongConnError, ConnectionError, OSError), {}),
    (MessageTooLarge("text"), (LongConnError, ValueError), {}),
]
NAMES = [f"{type(error).__name__}-{getattr(error, 'cause', '')}" for error, _, _ in TABLE]


@pytest.mark.parametrize(("error", "bases", "attributes"), TABLE, ids=NAMES)
def test_each_error_is_also_what_the_stdlib_would_raise(error, bases, attributes):
    for base in bases:
        assert isinstance(error, base)
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert "text" in str(error)
    assert type(error).__doc__


@pytest.mark.parametrize(("error", "bases", "attributes"), TABLE, ids=NAMES)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_each_error_survives_the_way_to_another_process(error, bases, attributes, protocol):
    twin = pickle.loads(pickle.dumps(error, protocol))
    assert type(twin) is type(error)
    assert (twin.args, str(twin)) == (error.args, str(error))
    assert {name: getattr(twin, name) for name in attributes} == attributes
    assert vars(twin) == vars(error)


def test_the_table_is_complete():
    public = {getattr(longconn, name) for name in longconn.__all__ if isinstance(getattr(longconn, name), type)}
    exceptions = {each for each in public if issubclass(each, BaseException)}
    assert {type(error) for error, _, _ in TABLE} == exceptions
    assert set(errors_module.__all__) <= set(longconn.__all__)


def test_a_reset_is_no_timeout_and_a_timeout_is_no_reset():
    assert not issubclass(PeerReset, TimeoutError)
    assert not issubclass(PeerTimedOut, ConnectionResetError)
    assert not issubclass(PeerLost, TimeoutError)


def test_causes_are_strings():
    assert {cause.value for cause in Cause} == set(
        "closed ended reset unreachable frozen silent deaf hung refused handshake tls protocol".split()
    )
    assert Cause.RESET == "reset"
    assert f"{Cause.RESET}" == "reset"
    assert Cause("deaf") is Cause.DEAF
    assert pickle.loads(pickle.dumps(Cause.DEAF)) is Cause.DEAF


@pytest.mark.parametrize("cause", [Cause.UNREACHABLE, Cause.DEAF, Cause.RESET, Cause.ENDED])
@pytest.mark.parametrize("peer", [None, ("127.0.0.1", 8083), ("fe80::1", 8083, 0, 0)])
@pytest.mark.parametrize("code", [errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTUNREACH])
def test_the_text_says_who_and_what_to_do(cause, peer, code):
    text = str(errors_module.peer_lost(code, cause, silence=3.14159, limit=3.0, peer=peer))
    assert "connect again" in text
    assert peer is None or str(peer[1]) in text
    assert "3.14159" not in text


NATIVE = [
    (cause, was_open, by_peer, code)
    for cause in Cause
    for was_open in (0, 1)
    for by_peer in (0, 1)
    for code in (None, 7)
]


@pytest.mark.parametrize(("cause", "was_open", "by_peer", "code"), NATIVE)
def test_each_end_of_a_link_is_an_error_that_says_who_and_why(cause, was_open, by_peer, code):
    peer = ("fe80::1", 8083)
    error = errors_module.link_ended(
        str(cause), "it is so", peer, bool(by_peer), 3.5, 3.0, "path", True, None, code, "r", bool(was_open)
    )
    assert "it is so" in str(error)
    assert "peer [fe80::1]:8083" in str(error)
    assert isinstance(error, OSError)
    assert not isinstance(error, TimeoutError)
    if not was_open:
        assert isinstance(error, ConnectFailed)
        assert isinstance(error, HandshakeRejected) == (code is not None and bool(by_peer))
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), vars(twin), str(twin)) == (type(error), vars(error), str(error))


# ---- a reset

RECEIVING: dict[str, Callable[[Any], Any]] = {
    "recv": lambda sock: sock.recv(10),
    "recv large": lambda sock: sock.recv(100_000),
    "recv larger": lambda sock: sock.recv(1_000_000),
    "recv peeking": lambda sock: sock.recv(10, socket.MSG_PEEK),
    "recv_into": lambda sock: sock.recv_into(bytearray(10)),
    "recv_into waiting for all": lambda sock: sock.recv_into(bytearray(10), 10, socket.MSG_WAITALL),
    "recvfrom": lambda sock: sock.recvfrom(10),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(10)),
    "recvmsg": lambda sock: sock.recvmsg(10),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(10)]),
}
SENDING: dict[str, Callable[[Any], Any]] = {
    "send": lambda sock: sock.send(b"x"),
    "send large": lambda sock: sock.send(b"x" * 100_000),
    "send with flags": lambda sock: sock.send(b"x", socket.MSG_NOSIGNAL),
    "sendall": lambda sock: sock.sendall(b"x"),
    "sendall with flags": lambda sock: sock.sendall(b"x", socket.MSG_NOSIGNAL),
    "sendto": lambda sock: sock.sendto(b"x", sock.getsockname()),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
}
TIMEOUTS = pytest.mark.parametrize("timeout", [None, 0.0, 5.0], ids=["blocking", "non-blocking", "with a timeout"])
#: What the end of the stream is for each.
END: dict[str, Any] = {
    "recv_into": 0,
    "recv_into waiting for all": 0,
    "recvfrom": (b"", None),
    "recvfrom_into": (0, None),
    "recvmsg": (b"", [], 0, None),
    "recvmsg_into": (0, [], 0, None),
}


def is_reset(sock: socket.socket) -> bool:
    """Without taking the error, of which there is one."""
    return longconn._longconn.tcp_info(sock.fileno()).state == "CLOSE"


def after_a_reset(cls: type[socket.socket], timeout: float | None, calls: list[Callable[[Any], Any]]) -> list[Any]:
    with connected(cls) as (ours, peer):
        ours.settimeout(timeout)
        reset(peer)
        wait_until(lambda: is_reset(ours))
        outcomes: list[Any] = []
        for call in calls:
            try:
                outcomes.append(call(ours))
            except OSError as error:
                outcomes.append(error)
        return outcomes


@TIMEOUTS
@pytest.mark.parametrize("first", [*RECEIVING, *SENDING])
def test_a_reset_is_raised_once_whichever_call_meets_it(timeout, first):
    calls = [{**RECEIVING, **SENDING}[first], *RECEIVING.values(), *SENDING.values()]
    raised, *afterwards = after_a_reset(KeepaliveSocket, timeout, calls)
    assert type(raised) is PeerReset
    assert (raised.cause, raised.errno, raised.limit) == (Cause.RESET, errno.ECONNRESET, None)
    received, sent = afterwards[: len(RECEIVING)], afterwards[len(RECEIVING) :]
    assert received == [END.get(name, b"") for name in RECEIVING]
    assert [(type(error), error.errno) for error in sent] == [(BrokenPipeError, errno.EPIPE)] * len(SENDING)


@TIMEOUTS
@pytest.mark.parametrize("first", [*RECEIVING, *SENDING])
def test_the_stdlibs_own_class_and_errno_are_met_by_old_except_clauses(timeout, first):
    """What the stdlib raises at that place, ours is an instance of."""
    call = {**RECEIVING, **SENDING}[first]
    (theirs,), (ours,) = (after_a_reset(cls, timeout, [call]) for cls in (STDLIB, KeepaliveSocket))
    assert isinstance(ours, type(theirs))
    assert ours.errno == theirs.errno


@TIMEOUTS
def test_afterwards_it_is_as_in_the_stdlib(timeout):
    calls = [RECEIVING["recv"], RECEIVING["recv"], RECEIVING["recv_into"], SENDING["send"], SENDING["sendall"]]
    theirs, ours = (after_a_reset(cls, timeout, calls)[1:] for cls in (STDLIB, KeepaliveSocket))
    assert [repr(each) for each in ours] == [repr(each) for each in theirs]


def test_the_socket_and_the_error_tell_who_was_lost():
    with connected() as (ours, peer):
        address = peer.getsockname()
        assert ours.lost is None
        reset(peer)
        wait_until(lambda: is_reset(ours))
        with pytest.raises(PeerLost) as caught:
            ours.recv(1)
        assert ours.lost is Cause.RESET
        assert caught.value.peer == address
        assert caught.value.silence is None or caught.value.silence < PATIENCE
        assert "lost=reset" in repr(ours)
        ours.close()
        assert ours.lost is Cause.RESET


def test_a_file_of_the_socket_raises_it_too():
    with connected() as (ours, peer), ours.makefile("rb") as file:
        reset(peer)
        with pytest.raises(PeerReset):
            file.read()
        assert file.read() == b""


def test_sending_a_file_raises_it_too(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    with connected() as (ours, peer), path.open("rb") as file:
        reset(peer)
        wait_until(lambda: is_reset(ours))
        with pytest.raises(PeerReset):
            ours.sendfile(file)
        with pytest.raises(BrokenPipeError) as caught:
            ours.sendfile(file)
        assert type(caught.value) is BrokenPipeError


@pytest.mark.parametrize("keepalive", [False, Keepalive(guard=False), SLOW])
def test_it_is_raised_whatever_the_settings_are(keepalive):
    with connected(keepalive=keepalive) as (ours, peer):
        reset(peer)
        with pytest.raises(PeerReset):
            ours.recv(1)
        assert ours.recv(1) == b""


def test_a_new_connection_of_the_same_socket_is_not_lost():
    """After a verdict, that is: a socket that the peer has reset can't connect again on Linux."""
    with connected(keepalive=QUICK) as (ours, peer), listening() as listener:
        cut_off(peer)
        ours.send(b"into the void")
        with pytest.raises(PeerTimedOut):
            ours.recv(1)
        ours.connect(listener.getsockname())
        assert ours.lost is None
        again, _ = listener.accept()
        with again:
            again.sendall(b"x")
            assert ours.recv(1) == b"x"
            reset(again)
        with pytest.raises(PeerReset):
            ours.recv(1)
        assert ours.lost is Cause.RESET


def test_other_kinds_of_sockets_raise_the_stdlibs_errors():
    one, other = longconn.socket.socketpair()
    with one:
        one.send(b"unread")
        other.close()
        with pytest.raises(ConnectionResetError) as caught:
            one.recv(1)
        assert type(caught.value) is ConnectionResetError
        with pytest.raises(BrokenPipeError) as caught2:
            one.send(b"x")
        assert type(caught2.value) is BrokenPipeError
        assert one.lost is None


def test_an_answer_that_nobody_takes_udp_is_the_stdlibs_error():
    with KeepaliveSocket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        address = gone.getsockname()
    with KeepaliveSocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)


# ---- a verdict


@pytest.mark.parametrize(
    ("name", "timeout"),
    [("recv", None), ("recv", 30.0), ("recv large", None), ("recv_into", 30.0), ("recvfrom", None), ("recvmsg", 30.0)],
)
def test_who_waits_is_told_once(name, timeout):
    with connected(keepalive=QUICK) as (ours, peer):
        address = peer.getsockname()
        ours.settimeout(timeout)
        cut_off(peer)
        ours.send(b"into the void")
        began = time.monotonic()
        with pytest.raises(PeerTimedOut) as caught:
            RECEIVING[name](ours)
        assert time.monotonic() - began < 0.5 + 0.5 + SLACK
        error = caught.value
        assert (error.cause, error.errno, error.limit) == (Cause.UNREACHABLE, errno.ETIMEDOUT, 0.5)
        assert 0.5 <= error.silence < 0.5 + 0.5 + SLACK
        assert error.peer == address
        assert ours.lost is Cause.UNREACHABLE
        assert RECEIVING[name](ours) == END.get(name, b"")
        for call in SENDING.values():
            with pytest.raises(BrokenPipeError) as broken:
                call(ours)
            assert type(broken.value) is BrokenPipeError


@pytest.mark.parametrize("timeout", [None, 30.0], ids=["blocking", "with a timeout"])
def test_who_sends_to_a_slow_reader_is_told_once(timeout):
    with connected(keepalive=QUICK) as (ours, peer):
        bound = ours.keepalive.detection_time().slow_reader
        if bound is None or bound > 10:
            pytest.skip("this kernel has no TCP_RTO_MAX_MS")
        fill(ours)
        ours.settimeout(timeout)
        cut_off(peer)
        with pytest.raises(PeerTimedOut):
            ours.sendall(b"x" * 10_000_000)
        with pytest.raises(BrokenPipeError):
            ours.send(b"x")
        assert ours.recv(1) == b""


def test_whoever_calls_next_is_told():
    """Nobody waited when the verdict fell."""
    with connected(keepalive=QUICK) as (ours, peer):
        ours.setblocking(False)
        cut_off(peer)
        ours.send(b"into the void")
        wait_until(lambda: ours.lost, "the verdict")
        # The cause is known a moment before the connection is aborted; what is sent in between goes nowhere.
        wait_until(lambda: ours.tcp_info().state == "CLOSE", "the abort")
        with pytest.raises(PeerTimedOut):
            ours.send(b"x")
        assert ours.recv(1) == b""


def test_what_had_arrived_before_the_verdict_is_handed_out_first_or_the_loss_is_told():
    with connected(keepalive=QUICK) as (ours, peer):
        peer.sendall(b"last words")
        cut_off(peer)
        ours.send(b"into the void")
        wait_until(lambda: ours.lost, "the verdict")
        read: list[bytes] = []
        with pytest.raises(PeerTimedOut):
            read.extend(iter(lambda: ours.recv(1), b""))
        assert ours.recv(1) == b""


def test_a_verdict_of_the_kernels_own_is_told_alike():
    """Without the guard; TCP_USER_TIMEOUT makes it quick."""
    with connected(keepalive=Keepalive(1, 1, 3, user_timeout=0.5, guard=False)) as (ours, peer):
        cut_off(peer)
        ours.send(b"into the void")
        with pytest.raises(PeerTimedOut) as caught:
            ours.recv(1)
        assert (caught.value.cause, caught.value.errno) == (Cause.UNREACHABLE, errno.ETIMEDOUT)
        assert caught.value.silence >= 0.5
        assert ours.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            ours.send(b"x")


def test_the_kernels_keepalive_without_the_guard_is_told_alike():
    with connected(keepalive=Keepalive(1, 1, 1, guard=False)) as (ours, peer):
        cut_off(peer)
        began = time.monotonic()
        with pytest.raises(PeerTimedOut) as caught:
            ours.recv(1)
        assert time.monotonic() - began <= ours_bound(1, 1, 1) + SLACK
        assert caught.value.limit == 2.0


def ours_bound(idle: int, interval: int, count: int) -> float:
    bound = Keepalive(idle, interval, count, guard=False).detection_time().idle
    assert bound is not None
    return bound


# ---- an expired timeout is something else


@pytest.mark.parametrize("name", RECEIVING)
def test_an_expired_timeout_is_the_plain_timeout_error_and_the_socket_goes_on(name):
    with connected() as (ours, peer):
        ours.settimeout(0.02)
        for _ in range(2):
            with pytest.raises(TimeoutError) as caught:
                RECEIVING[name](ours)
            assert type(caught.value) is TimeoutError
            assert caught.value.errno is None
        assert ours.lost is None
        ours.send(b"x")
        assert peer.recv(1) == b"x"


def test_a_connection_that_the_kernel_gives_up_making_is_the_stdlibs_error():
    """Nobody was there who could have been lost."""
    outcomes: dict[type, BaseException] = {}

    def attempt(cls: type[socket.socket]) -> None:
        with cls(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 100)
            try:
                sock.connect(address)
            except OSError as error:
                outcomes[cls] = error

    with listening() as listener:
        address = listener.getsockname()
        cut_off(listener)
        threads = [threading.Thread(target=attempt, args=(cls,)) for cls in (STDLIB, KeepaliveSocket)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    theirs, ours = outcomes[STDLIB], outcomes[KeepaliveSocket]
    assert (type(ours), ours.errno) == (type(theirs), theirs.errno) == (TimeoutError, errno.ETIMEDOUT)


def test_the_end_of_the_stream_is_no_loss():
    with connected() as (ours, peer):
        peer.close()
        assert ours.recv(1) == b""
        assert ours.recv(1) == b""
        assert ours.lost is None


def test_who_sends_after_the_peer_has_closed_meets_what_the_stdlib_meets():
    """The peer's RST comes after its FIN: EPIPE for the stdlib, and for us."""

    def scenario(cls: type[socket.socket]) -> list[Any]:
        with connected(cls) as (ours, peer):
            peer.close()
            found: list[Any] = [ours.recv(1)]
            ours.send(b"x")
            wait_until(lambda: is_reset(ours))
            for call in (SENDING["send"], SENDING["send"], RECEIVING["recv"]):
                try:
                    found.append(call(ours))
                except OSError as error:
                    found.append((error.errno, [each for each in BUILTIN if isinstance(error, each)]))
            return found

    assert scenario(KeepaliveSocket) == scenario(STDLIB)


BUILTIN = (BrokenPipeError, ConnectionResetError, TimeoutError, ConnectionError, OSError)
