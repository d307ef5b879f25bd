"""KeepaliveSocket beside the stdlib's class: the same calls, the same results, the same errors."""

from __future__ import annotations

import array
import ctypes
import errno
import inspect
import io
import mmap
import os
import pickle
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longconn import Keepalive, KeepaliveSocket
from longconn import socket as mirror
from peers import (
    PATIENCE,
    SLACK,
    STDLIB,
    connected,
    cut_off,
    fill,
    listening,
    python_says,
    reset,
    wait_until,
    wait_until_blocked,
)

# ---- side by side


def outcome(call: Callable[[], Any]) -> tuple[Any, ...]:
    """What a call does, in a form that can be compared; texts are the implementation's affair."""
    try:
        result = call()
    except Exception as error:
        return "raised", type(error).__name__, getattr(error, "errno", None)
    return "returned", result


def both(scenario: Callable[[Any, socket.socket], Any], timeout: float | None = None) -> tuple[Any, ...]:
    """The scenario with the stdlib's class and with ours, which must do the same; returns what that was."""
    outcomes = []
    for cls in (STDLIB, KeepaliveSocket):
        with connected(cls) as (ours, peer):
            ours.settimeout(timeout)
            outcomes.append(outcome(lambda: scenario(ours, peer)))
    assert outcomes[1] == outcomes[0]
    return outcomes[0]


TIMEOUTS = pytest.mark.parametrize("timeout", [None, 0.0, 5.0], ids=["blocking", "non-blocking", "with a timeout"])


def has_arrived(sock: socket.socket, data: bytes) -> bool:
    """Look without taking."""
    try:
        return sock.recv(len(data), socket.MSG_PEEK | socket.MSG_DONTWAIT) == data
    except BlockingIOError:
        return False


def deliver(ours: socket.socket, peer: socket.socket, data: bytes) -> None:
    """The peer sends, and it has arrived: what follows doesn't depend on the time that loopback takes."""
    peer.sendall(data)
    wait_until(lambda: has_arrived(ours, data), "data arrive")


# ---- the class


def test_it_is_a_true_subclass():
    assert issubclass(KeepaliveSocket, STDLIB)
    assert KeepaliveSocket.__mro__.index(STDLIB) > 0
    with KeepaliveSocket() as sock:
        assert isinstance(sock, STDLIB)
        assert isinstance(sock, socket.SocketType)


def test_it_has_every_attribute_of_the_stdlibs():
    assert set(dir(STDLIB)) <= set(dir(KeepaliveSocket))


KINDS = {
    "tcp": (socket.AF_INET, socket.SOCK_STREAM, 0),
    "tcp by number": (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "tcp6": (socket.AF_INET6, socket.SOCK_STREAM, 0),
    "multipath tcp": (socket.AF_INET, socket.SOCK_STREAM, getattr(socket, "IPPROTO_MPTCP", 262)),
    "udp": (socket.AF_INET, socket.SOCK_DGRAM, 0),
    "udp6": (socket.AF_INET6, socket.SOCK_DGRAM, 0),
    "unix": (socket.AF_UNIX, socket.SOCK_STREAM, 0),
    "unix datagrams": (socket.AF_UNIX, socket.SOCK_DGRAM, 0),
    "unix packets": (socket.AF_UNIX, socket.SOCK_SEQPACKET, 0),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def make(cls: type[socket.socket], kind: tuple[int, int, int]) -> socket.socket:
    try:
        return cls(*kind)
    except OSError as error:
        pytest.skip(f"this machine can't: {error}")


@pytest.mark.parametrize("method", ["recv", "send"])
def test_its_methods_want_its_own_objects_and_say_what_they_are(method):
    function = getattr(KeepaliveSocket, method)
    with socket.socket() as other, pytest.raises(TypeError, match="KeepaliveSocket"):
        function(other, b"")
    assert list(inspect.signature(function).parameters)[-1] == "flags"
    for name in ("recv", "recv_into", "send", "sendall", "recvfrom", "sendmsg"):
        assert "PeerLost" in (getattr(KeepaliveSocket, name).__doc__ or "")


def test_a_subclass_may_put_its_own_methods_before_ours():
    class Counting(KeepaliveSocket):
        __slots__ = ("count",)

        def recv(self, *args: Any) -> bytes:
            self.count = getattr(self, "count", 0) + 1
            return super().recv(*args)

    with connected(Counting) as (ours, peer):
        peer.send(b"abc")
        assert (ours.recv(1), ours.recv(2, 0), ours.count) == (b"a", b"bc", 2)


def test_the_kernels_flags_in_the_type_count():
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with KeepaliveSocket(socket.AF_INET, socket.SOCK_STREAM | flags, keepalive=Keepalive()) as sock:
        assert (sock.type, sock.gettimeout()) == (socket.SOCK_STREAM, 0.0)


@every_kind
def test_every_kind_of_socket_can_be_made(kind):
    with make(STDLIB, kind) as theirs, make(KeepaliveSocket, kind) as ours:
        assert (ours.family, ours.type, ours.proto) == (theirs.family, theirs.type, theirs.proto)
        assert isinstance(ours.family, socket.AddressFamily)
        assert isinstance(ours.type, socket.SocketKind)
        assert ours.gettimeout() == theirs.gettimeout()
        assert ours.get_inheritable() == theirs.get_inheritable() is False
        assert ours.fileno() >= 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind[1] != socket.SOCK_DGRAM])
def test_streams_of_every_kind_carry_bytes_both_ways(kind, tmp_path):
    with make(KeepaliveSocket, kind) as listener, make(KeepaliveSocket, kind) as ours:
        addresses = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0), socket.AF_UNIX: str(tmp_path / "s")}
        try:
            listener.bind(addresses[kind[0]])
        except OSError as error:
            pytest.skip(f"this machine can't: {error}")
        listener.listen()
        ours.connect(listener.getsockname())
        accepted, address = listener.accept()
        with accepted:
            assert type(accepted) is KeepaliveSocket
            assert address == ours.getsockname()
            for one, other in ((ours, accepted), (accepted, ours)):
                one.sendall(b"there")
                assert other.recv(100) == b"there"


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind[1] == socket.SOCK_DGRAM])
def test_datagrams_of_every_kind_keep_their_borders(kind, tmp_path):
    with make(KeepaliveSocket, kind) as ours, make(KeepaliveSocket, kind) as other:
        for name, sock in (("a", ours), ("b", other)):
            addresses = {
                socket.AF_INET: ("127.0.0.1", 0),
                socket.AF_INET6: ("::1", 0),
                socket.AF_UNIX: str(tmp_path / name),
            }
            try:
                sock.bind(addresses[kind[0]])
            except OSError as error:
                pytest.skip(f"this machine can't: {error}")
        assert ours.sendto(b"one", other.getsockname()) == 3
        assert ours.sendto(b"", other.getsockname()) == 0
        assert ours.sendto(b"three", other.getsockname()) == 5
        assert other.recvfrom(100) == (b"one", ours.getsockname())
        assert other.recv(100) == b""
        assert other.recv(2) == b"th"  # the rest of a datagram is lost
        ours.connect(other.getsockname())
        ours.send(b"x" * 3000)
        assert len(other.recv(65536)) == 3000
        buffer = bytearray(100)
        ours.send(b"into")
        assert (other.recv_into(buffer), bytes(buffer[:4])) == (4, b"into")


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_pair_of_sockets_talks(family):
    one, other = mirror.socketpair(socket.AF_UNIX) if family == socket.AF_UNIX else mirror.socketpair()
    with one, other:
        assert type(one) is type(other) is KeepaliveSocket
        one.send(b"there")
        assert other.recv(5) == b"there"


def test_ancillary_data_pass_through():
    one, other = mirror.socketpair()
    with one, other, open(os.devnull) as file:
        socket.send_fds(one, [b"x"], [file.fileno()])
        data, descriptors, _, _ = socket.recv_fds(other, 10, 1)
        assert data == b"x"
        os.close(descriptors[0])


# ---- receiving


@TIMEOUTS
@pytest.mark.parametrize("size", [1, 5, 100, 8192, 8193, 65536, 256 * 1024, 256 * 1024 + 1, 3_000_000])
def test_recv_gives_what_is_there(timeout, size):
    def scenario(ours, peer):
        deliver(ours, peer, b"hello")
        return ours.recv(size)

    assert both(scenario, timeout) == ("returned", b"hello"[:size])


@TIMEOUTS
@pytest.mark.parametrize("size", [0, -1, -(2**62), 2**63, -(2**70), sys.maxsize])
def test_recv_of_odd_sizes(timeout, size):
    def scenario(ours, peer):
        deliver(ours, peer, b"hello")
        return ours.recv(size)

    both(scenario, timeout)


@pytest.mark.parametrize(
    "arguments", [(), ("5",), (1.5,), (None,), (b"5",), (5, "0"), (5, None), (5, 2**40), (5, 0, 0), (True,)]
)
def test_recv_refuses_other_arguments(arguments):
    def scenario(ours, peer):
        deliver(ours, peer, b"hello")
        return ours.recv(*arguments)

    both(scenario)


def test_recv_takes_no_keywords():
    assert both(lambda ours, peer: ours.recv(bufsize=5))[:2] == ("raised", "TypeError")
    assert both(lambda ours, peer: ours.recv(5, flags=0))[:2] == ("raised", "TypeError")


class Five:
    def __index__(self) -> int:
        return 5


def test_sizes_may_be_anything_with_an_index():
    def scenario(ours, peer):
        deliver(ours, peer, b"hello world")
        buffer = bytearray(20)
        return ours.recv(Five()), ours.recv_into(buffer, Five()), bytes(buffer)

    assert both(scenario) == ("returned", (b"hello", 5, b" worl" + bytes(15)))


@TIMEOUTS
def test_recv_with_nothing_there(timeout):
    both(lambda ours, peer: ours.recv(10), 0.02 if timeout is None else timeout and 0.05)


@pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["blocking", "with a timeout"])
@pytest.mark.parametrize("size", [1, 6, 8192, 8193, 100_000, 256 * 1024, 1_000_000])
@pytest.mark.parametrize("into", [False, True], ids=["recv", "recv_into"])
def test_who_waits_gets_exactly_what_comes(timeout, size, into):
    with connected() as (ours, peer):
        ours.settimeout(timeout)
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(receive_part(ours, size, into)))
        thread.start()
        wait_until_blocked(thread.native_id)
        peer.sendall(b"there!")
        thread.join(PATIENCE)
        assert got == [b"there!"[:size]]


@pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["blocking", "with a timeout"])
def test_questions_and_streams_may_alternate(timeout):
    """Who waited for the last answer is treated otherwise than who found data there: neither may show."""
    with connected() as (ours, peer):
        ours.settimeout(timeout)
        for _ in range(5):
            for number in range(20):
                answer = threading.Timer(0.001, peer.sendall, [bytes([number])])
                answer.start()
                assert ours.recv(10) == bytes([number])
                answer.join()
            deliver(ours, peer, bytes(range(200)))
            assert b"".join(ours.recv(1) for _ in range(200)) == bytes(range(200))


@TIMEOUTS
@pytest.mark.parametrize(
    "receive",
    [
        lambda sock: sock.recv(10),
        lambda sock: sock.recv(100_000),
        lambda sock: sock.recv(0),
        lambda sock: sock.recv_into(bytearray(10)),
        lambda sock: sock.recv_into(bytearray(0)),
        lambda sock: sock.recvfrom(10),
        lambda sock: sock.recvfrom_into(bytearray(10)),
        lambda sock: sock.recvmsg(10),
        lambda sock: sock.recvmsg_into([bytearray(10)]),
    ],
)
def test_the_end_of_the_stream_stays_the_end(timeout, receive):
    def scenario(ours, peer):
        peer.shutdown(socket.SHUT_WR)
        wait_until(lambda: is_at_end(ours), "the end arrives")
        return [receive(ours) for _ in range(3)]

    assert both(scenario, timeout)[0] == "returned"


def is_at_end(sock: socket.socket) -> bool:
    return has_arrived(sock, b"")


@TIMEOUTS
def test_data_before_the_end_come_first(timeout):
    def scenario(ours, peer):
        peer.sendall(b"last words")
        peer.close()
        wait_until(lambda: has_arrived(ours, b"last words"))
        return ours.recv(4), ours.recv(100), ours.recv(100)

    assert both(scenario, timeout) == ("returned", (b"last", b" words", b""))


@pytest.mark.parametrize("timeout", [None, 0.0, 0.1], ids=["blocking", "non-blocking", "with a timeout"])
def test_flags_do_what_they_do(timeout):
    def scenario(ours, peer):
        deliver(ours, peer, b"hello")
        buffer = bytearray(3)
        return (
            ours.recv(2, socket.MSG_PEEK),
            ours.recv_into(buffer, 3, socket.MSG_PEEK),
            bytes(buffer),
            ours.recv(5, socket.MSG_WAITALL),
            outcome(lambda: ours.recv(1, socket.MSG_DONTWAIT)),
            outcome(lambda: ours.recv(1, socket.MSG_OOB)),
            ours.send(b"x", socket.MSG_DONTWAIT),
            ours.send(b"x", socket.MSG_NOSIGNAL),
            ours.sendall(b"x", socket.MSG_MORE),
            ours.sendall(b"x"),
            peer.recv(4, socket.MSG_WAITALL),
        )

    assert both(scenario, timeout)[0] == "returned"


def test_waitall_waits_for_all():
    def scenario(ours, peer):
        peer.sendall(b"one ")
        later = threading.Timer(0.05, peer.sendall, [b"two"])
        later.start()
        try:
            return ours.recv(7, socket.MSG_WAITALL)
        finally:
            later.join()

    assert both(scenario) == ("returned", b"one two")


@TIMEOUTS
def test_recv_into_fills_the_buffer_or_a_part_of_it(timeout):
    def scenario(ours, peer):
        deliver(ours, peer, b"hello world")
        buffer = bytearray(b"-" * 8)
        view = memoryview(buffer)
        return (
            ours.recv_into(buffer, 3),
            bytes(buffer),
            ours.recv_into(view[5:]),
            bytes(buffer),
            ours.recv_into(buffer, nbytes=2, flags=0),
            bytes(buffer),
            ours.recv_into(buffer=buffer),
            bytes(buffer),
        )

    assert both(scenario, timeout)[0] == "returned"


@pytest.mark.parametrize("nbytes", [-1, 11, 2**31, 2**63, "3", 1.5, None])
def test_recv_into_refuses_odd_sizes(nbytes):
    def scenario(ours, peer):
        deliver(ours, peer, b"hello")
        return ours.recv_into(bytearray(10), nbytes)

    both(scenario)


WRITABLE: dict[str, Callable[[], Any]] = {
    "bytearray": lambda: bytearray(8),
    "array of int": lambda: array.array("i", [0, 0]),
    "array of double": lambda: array.array("d", [0.0]),
    "memoryview": lambda: memoryview(bytearray(8)),
    "slice": lambda: memoryview(bytearray(20))[3:11],
    "cast": lambda: memoryview(bytearray(8)).cast("I"),
    "matrix": lambda: memoryview(bytearray(8)).cast("B", (2, 4)),
    "ctypes": lambda: (ctypes.c_ushort * 4)(),
    "mmap": lambda: mmap.mmap(-1, 8),
    "every other byte": lambda: memoryview(bytearray(16))[::2],
    "backwards": lambda: memoryview(bytearray(8))[::-1],
    "empty": lambda: bytearray(),
    "bytes": lambda: bytes(8),
    "read-only": lambda: memoryview(bytes(8)),
    "str": lambda: "8 bytes!",
    "None": lambda: None,
    "list": lambda: [0] * 8,
    "number": lambda: 8,
}


@pytest.mark.parametrize("timeout", [None, 5.0], ids=["blocking", "with a timeout"])
@pytest.mark.parametrize("kind", WRITABLE)
@pytest.mark.parametrize("flags", [0, socket.MSG_PEEK])
def test_recv_into_takes_and_refuses_the_same_buffers(timeout, kind, flags):
    def scenario(ours, peer):
        deliver(ours, peer, b"hello wo")
        buffer = WRITABLE[kind]()
        got = ours.recv_into(buffer, 0, flags)
        return got, bytes(memoryview(buffer))

    both(scenario, timeout)


def test_a_buffer_can_not_be_resized_while_recv_into_waits_and_can_afterwards():
    def scenario(ours, peer):
        buffer = bytearray(8)
        identity: list[int] = []

        def receive() -> None:
            identity.append(threading.get_native_id())
            ours.recv_into(buffer)

        thread = threading.Thread(target=receive)
        thread.start()
        wait_until_blocked(wait_until(lambda: identity and identity[0]))
        during = outcome(lambda: buffer.append(1))
        peer.sendall(b"x")
        thread.join()
        buffer.append(1)
        return during, len(buffer)

    assert both(scenario) == ("returned", (("raised", "BufferError", None), 9))


# ---- sending

READABLE: dict[str, Callable[[], Any]] = {
    **WRITABLE,
    "bytes subclass": lambda: type("Bytes", (bytes,), {})(b"derived!"),
    "float view": lambda: memoryview(array.array("f", [1.0, 2.0])),
    "empty bytes": lambda: b"",
    "BytesIO": lambda: io.BytesIO(b"getbuffer").getbuffer(),
}


@TIMEOUTS
@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize("method", ["send", "sendall"])
def test_sending_takes_and_refuses_the_same_buffers(timeout, kind, method):
    def scenario(ours, peer):
        data = READABLE[kind]()
        return getattr(ours, method)(data), peer.recv(len(bytes(data)) or 1) if len(bytes(data)) else b""

    both(scenario, timeout)


@pytest.mark.parametrize("arguments", [(), (b"x", "0"), (b"x", None), (b"x", 2**40), (b"x", 0, 0)])
@pytest.mark.parametrize("method", ["send", "sendall"])
def test_sending_refuses_other_arguments(method, arguments):
    assert both(lambda ours, peer: getattr(ours, method)(*arguments))[0] == "raised"
    assert both(lambda ours, peer: getattr(ours, method)(data=b"x"))[:2] == ("raised", "TypeError")


@TIMEOUTS
@pytest.mark.parametrize("size", [1, 64, 16 * 1024, 16 * 1024 + 1, 100_000])
def test_send_returns_what_went_out(timeout, size):
    def scenario(ours, peer):
        sent = ours.send(bytes(size))
        return 0 < sent <= size, peer.recv(sent, socket.MSG_WAITALL) == bytes(sent)

    assert both(scenario, timeout) == ("returned", (True, True))


@pytest.mark.parametrize("size", [10, 16 * 1024, 200_000])
def test_a_blocking_send_sends_all_though_the_peer_reads_late(size):
    def scenario(ours, peer):
        before = fill(ours)
        reader = threading.Thread(target=drain, args=(peer, before + size))
        reader.start()
        sent = ours.send(bytes(size))
        reader.join(PATIENCE)
        return sent, reader.is_alive()

    assert both(scenario) == ("returned", (size, False))


@pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["blocking", "with a timeout"])
@pytest.mark.parametrize("size", [1000, 16 * 1024, 16 * 1024 + 1, 50_000])
@pytest.mark.parametrize("method", ["send", "sendall"])
def test_sends_that_find_room_for_a_part_only_lose_and_repeat_nothing(timeout, size, method):
    data = os.urandom(1_000_000)
    with connected() as (ours, peer):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.settimeout(timeout)
        got = bytearray()

        def sip() -> None:
            while part := peer.recv(5000):
                got.extend(part)

        thread = threading.Thread(target=sip)
        thread.start()
        view = memoryview(data)
        while view:
            sent = getattr(ours, method)(view[:size])
            view = view[size if sent is None else sent :]
        ours.close()
        thread.join(PATIENCE)
        assert got == data


@pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["blocking", "with a timeout"])
@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 10_000_000])
def test_sendall_sends_all_though_the_peer_reads_late(timeout, size):
    def scenario(ours, peer):
        before = fill(ours)
        ours.settimeout(timeout)
        reader = threading.Thread(target=drain, args=(peer, before + size))
        reader.start()
        result = ours.sendall(bytes(size))
        reader.join(PATIENCE)
        return result, reader.is_alive()

    assert both(scenario, timeout) == ("returned", (None, False))


def drain(sock: socket.socket, size: int) -> bytearray:
    got = bytearray()
    while len(got) < size:
        part = sock.recv(1 << 20)
        if not part:
            break
        got += part
    return got


def test_a_full_socket_would_block_or_times_out():
    def scenario(ours, peer):
        fill(ours)
        results = []
        for timeout in (0.0, 0.05):
            ours.settimeout(timeout)
            results.append(outcome(lambda: ours.send(b"x" * 65536)))
            results.append(outcome(lambda: ours.sendall(b"x" * 10_000_000)))
        return results

    kind, results = both(scenario)
    assert kind == "returned"
    assert [name for _, name, _ in results] == ["BlockingIOError", "BlockingIOError", "TimeoutError", "TimeoutError"]


def test_the_timeout_of_sendall_is_that_of_the_whole():
    """A peer that takes a little now and then doesn't extend it."""

    def scenario(ours, peer):
        fill(ours)
        ours.settimeout(0.3)
        ended = threading.Event()

        def sip() -> None:
            while not ended.wait(0.02):
                peer.recv(200_000)

        sipping = threading.Thread(target=sip)
        sipping.start()
        began = time.monotonic()
        try:
            result = outcome(lambda: ours.sendall(bytes(100_000_000)))
            return result, 0.3 <= time.monotonic() - began < 0.3 + 1.0 * SLACK
        finally:
            ended.set()
            sipping.join()

    assert both(scenario) == ("returned", (("raised", "TimeoutError", None), True))


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.binary(max_size=30_000), max_size=12),
    sizes=st.lists(st.integers(min_value=1, max_value=100_000), min_size=1, max_size=5),
    timeout=st.sampled_from([None, 5.0]),
    whole=st.booleans(),
    into=st.booleans(),
)
def test_any_split_of_sends_arrives_whole(parts, sizes, timeout, whole, into):
    one, other = mirror.socketpair()
    with one, other:
        one.settimeout(timeout)
        other.settimeout(timeout)
        thread = threading.Thread(target=send_parts, args=(one, parts, whole))
        thread.start()
        got = bytearray()
        while part := receive_part(other, sizes[len(got) % len(sizes)], into):
            got += part
        thread.join()
        assert got == b"".join(parts)


def send_parts(sock: KeepaliveSocket, parts: list[bytes], whole: bool) -> None:
    for part in parts:
        if whole:
            sock.sendall(part)
            continue
        view = memoryview(part)
        while view:
            view = view[sock.send(view) :]
    sock.shutdown(socket.SHUT_WR)


def receive_part(sock: KeepaliveSocket, size: int, into: bool) -> bytes:
    if not into:
        return sock.recv(size)
    buffer = bytearray(size)
    return bytes(buffer[: sock.recv_into(buffer)])


@pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["blocking", "with a timeout"])
def test_megabytes_pass_through_unchanged_in_both_directions_at_once(timeout):
    data = os.urandom(1 << 20) * 4
    with connected(KeepaliveSocket) as (ours, peer):
        ours.settimeout(timeout)
        received: list[bytearray] = []
        threads = [
            threading.Thread(target=ours.sendall, args=(data,)),
            threading.Thread(target=peer.sendall, args=(data,)),
            threading.Thread(target=lambda: received.append(drain(peer, len(data)))),
        ]
        for thread in threads:
            thread.start()
        received.append(drain(ours, len(data)))
        for thread in threads:
            thread.join(PATIENCE)
        assert received == [data, data]


# ---- timeouts


@pytest.mark.parametrize(
    "call",
    [
        lambda sock: sock.recv(1),
        lambda sock: sock.recv(100_000),
        lambda sock: sock.recv(300_000),
        lambda sock: sock.recv(1, socket.MSG_PEEK),
        lambda sock: sock.recv_into(bytearray(1)),
        lambda sock: sock.recvfrom(1),
        lambda sock: sock.recvmsg(1),
        lambda sock: sock.recvmsg_into([bytearray(1)]),
    ],
)
def test_a_timeout_that_expires_is_kept_and_leaves_the_socket_usable(call):
    with connected() as (ours, peer):
        ours.settimeout(0.1)
        began = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            call(ours)
        elapsed = time.monotonic() - began
        assert type(caught.value) is TimeoutError
        assert caught.value.errno is None
        assert 0.1 <= elapsed < 0.1 + 1.0 * SLACK
        assert ours.gettimeout() == 0.1
        assert ours.lost is None
        peer.send(b"x")
        wait_until(lambda: has_arrived(ours, b"x"))
        assert ours.recv(1) == b"x"


def test_accept_and_connect_have_timeouts_too():
    with listening(KeepaliveSocket) as listener:
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.accept()
        cut_off(listener)  # no SYN arrives
        with KeepaliveSocket() as sock:
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError) as caught:
                sock.connect(listener.getsockname())
            assert type(caught.value) is TimeoutError


@pytest.mark.parametrize("timeout", [-1, "1", 1e30, float("nan"), float("inf"), None, 0, 0.0, True, 3])
def test_settimeout_takes_the_same(timeout):
    def scenario(ours, peer):
        ours.settimeout(timeout)
        return ours.gettimeout(), ours.getblocking()

    both(scenario)


@pytest.mark.parametrize("timeout", [1e-9, 1e-4, 1e6, 4e9])
def test_tiny_and_huge_timeouts_work(timeout):
    def scenario(ours, peer):
        ours.settimeout(timeout)
        if timeout < 1:
            return outcome(lambda: ours.recv(1))
        threading.Timer(0.03, peer.send, [b"x"]).start()
        return ours.recv(1)

    both(scenario)


def test_the_default_timeout_is_taken_over():
    socket.setdefaulttimeout(12.5)
    try:
        with KeepaliveSocket() as sock:
            assert sock.gettimeout() == 12.5
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.parametrize("default_timeout", [None, 12.5])
@pytest.mark.parametrize("listener_timeout", [None, 5.0])
def test_accepted_sockets_have_the_timeout_of_the_stdlibs(default_timeout, listener_timeout):
    found = []
    for cls in (STDLIB, KeepaliveSocket):
        socket.setdefaulttimeout(default_timeout)
        try:
            with listening(cls) as listener, socket.create_connection(listener.getsockname()):
                listener.settimeout(listener_timeout)
                accepted, _ = listener.accept()
                with accepted:
                    found.append((accepted.gettimeout(), accepted.getblocking(), os.get_blocking(accepted.fileno())))
        finally:
            socket.setdefaulttimeout(None)
    assert found[0] == found[1]


def test_the_kernels_own_receive_timeout_works():
    def scenario(ours, peer):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
        return ours.recv(1)

    assert both(scenario) == ("raised", "BlockingIOError", errno.EAGAIN)


def test_the_kernels_own_send_timeout_works():
    def scenario(ours, peer):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 50_000))
        fill(ours)
        return ours.send(b"x" * 65536)

    assert both(scenario) == ("raised", "BlockingIOError", errno.EAGAIN)


BEHIND_ITS_BACK = """
import faulthandler, os, socket as stdlib, sys
sys.path.insert(0, sys.argv[1])
import longconn
from peers import SLACK, connected, fill
faulthandler.dump_traceback_later(5 * SLACK, exit=True)
outcomes = []
for cls in (stdlib.socket, longconn.KeepaliveSocket):
    with connected(cls) as (ours, peer):
        if "send" in sys.argv[2]:
            fill(ours)
        ours.settimeout(0.05)
        with ours.dup() as copy:
            copy.setblocking(True)
            try:
                CALL
            except Exception as error:
                outcomes.append(repr(error))
faulthandler.cancel_dump_traceback_later()
assert outcomes == [repr(TimeoutError("timed out"))] * 2, outcomes
"""


@pytest.mark.parametrize(
    "call",
    [
        "ours.recv(1)",
        "ours.recv(100_000)",
        "ours.recv(1_000_000)",
        "ours.recv_into(bytearray(1))",
        "ours.recvfrom(1)",
        "ours.send(b'x' * 100)",
        "ours.sendall(b'x' * 100)",
        "ours.sendall(b'x' * 100_000_000)",
    ],
)
def test_a_timeout_holds_though_a_copy_was_made_blocking(call):
    """O_NONBLOCK is shared by all descriptors of a connection, in other processes too.

    In a process of its own: a call that then blocks with the GIL could not be interrupted.
    """
    python_says(BEHIND_ITS_BACK.replace("CALL", call), str(Path(__file__).parent), call)


@pytest.mark.parametrize(
    "call",
    [
        lambda sock: sock.recv(1),
        lambda sock: sock.recv(100_000),
        lambda sock: sock.recv_into(bytearray(1)),
        lambda sock: sock.recvfrom(1),
        lambda sock: (fill(sock), os.set_blocking(sock.fileno(), False), sock.send(b"x" * 100)),
        lambda sock: (fill(sock), os.set_blocking(sock.fileno(), False), sock.sendall(b"x" * 100_000)),
    ],
)
def test_a_blocking_socket_that_a_copy_has_made_non_blocking_would_block(call):
    def scenario(ours, peer):
        os.set_blocking(ours.fileno(), False)
        return call(ours)

    assert both(scenario) == ("raised", "BlockingIOError", errno.EAGAIN)


# ---- life


CALLS_ON_CLOSED = {
    "recv": lambda sock: sock.recv(1),
    "recv large": lambda sock: sock.recv(100_000),
    "recv nothing": lambda sock: sock.recv(0),
    "recv_into": lambda sock: sock.recv_into(bytearray(1)),
    "recvfrom": lambda sock: sock.recvfrom(1),
    "recvmsg": lambda sock: sock.recvmsg(1),
    "send": lambda sock: sock.send(b"x"),
    "send nothing": lambda sock: sock.send(b""),
    "sendall": lambda sock: sock.sendall(b"x"),
    "sendall nothing": lambda sock: sock.sendall(b""),
    "sendto": lambda sock: sock.sendto(b"x", ("127.0.0.1", 9)),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
    "accept": lambda sock: sock.accept(),
    "connect": lambda sock: sock.connect(("127.0.0.1", 9)),
    "connect_ex": lambda sock: sock.connect_ex(("127.0.0.1", 9)),
    "listen": lambda sock: sock.listen(),
    "bind": lambda sock: sock.bind(("127.0.0.1", 0)),
    "getsockname": lambda sock: sock.getsockname(),
    "getpeername": lambda sock: sock.getpeername(),
    "getsockopt": lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "setsockopt": lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "shutdown": lambda sock: sock.shutdown(socket.SHUT_RDWR),
    "settimeout": lambda sock: sock.settimeout(3),
    "dup": lambda sock: sock.dup(),
    "fileno": lambda sock: sock.fileno(),
    "close": lambda sock: sock.close(),
    "detach": lambda sock: sock.detach(),
    "gettimeout": lambda sock: sock.gettimeout(),
    "get_inheritable": lambda sock: sock.get_inheritable(),
    "with": lambda sock: sock.__enter__() is sock,
}


@TIMEOUTS
@pytest.mark.parametrize("call", CALLS_ON_CLOSED.values(), ids=CALLS_ON_CLOSED)
@pytest.mark.parametrize("how", ["close", "detach"])
def test_a_closed_socket_answers_as_the_stdlibs(timeout, call, how):
    def scenario(ours, peer):
        fd = getattr(ours, how)()
        if fd is not None:
            os.close(fd)
        return call(ours)

    both(scenario, timeout)


UNCONNECTED = {
    name: CALLS_ON_CLOSED[name] for name in ("recv", "recv_into", "send", "sendall", "accept", "getpeername")
}


@TIMEOUTS
@pytest.mark.parametrize("call", UNCONNECTED.values(), ids=UNCONNECTED)
def test_an_unconnected_socket_answers_as_the_stdlibs(timeout, call):
    outcomes = []
    for cls in (STDLIB, KeepaliveSocket):
        with cls() as sock:
            sock.settimeout(timeout)
            outcomes.append(outcome(lambda: call(sock)))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == "raised"


@TIMEOUTS
def test_sending_after_shutdown_is_a_broken_pipe(timeout):
    def scenario(ours, peer):
        ours.shutdown(socket.SHUT_WR)
        return ours.send(b"x")

    assert both(scenario, timeout) == ("raised", "BrokenPipeError", errno.EPIPE)


def test_connect_refused_is_the_stdlibs_error():
    with listening() as listener:
        address = listener.getsockname()
    outcomes = []
    for cls in (STDLIB, KeepaliveSocket):
        for timeout in (None, 5.0):
            with cls() as sock:
                sock.settimeout(timeout)
                outcomes.append((outcome(lambda: sock.connect(address)), sock.connect_ex(address)))
    assert outcomes[:2] == outcomes[2:]
    assert {first for first, _ in outcomes} == {("raised", "ConnectionRefusedError", errno.ECONNREFUSED)}


def test_a_connection_that_is_made_without_blocking_works():
    with listening() as listener, KeepaliveSocket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex(listener.getsockname()) in (0, errno.EINPROGRESS)
        peer, _ = listener.accept()
        with peer:
            wait_until(lambda: sock.connect_ex(listener.getsockname()) in (0, errno.EISCONN))
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            sock.setblocking(True)
            sock.send(b"x")
            assert peer.recv(1) == b"x"


def test_a_socket_can_be_made_of_a_descriptor_and_knows_what_it_is():
    def scenario(ours, peer):
        again = type(ours)(fileno=ours.detach())
        with again:
            peer.send(b"x")
            return again.family, again.type, again.proto, again.recv(1), ours.fileno()

    assert both(scenario) == ("returned", (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, b"x", -1))


@pytest.mark.parametrize("fileno", [-1, 10**6, "3", 1.5, True])
def test_a_descriptor_that_is_none_is_refused_alike(fileno):
    def attempt(cls):
        sock = cls(fileno=fileno)
        sock.detach()

    assert outcome(lambda: attempt(STDLIB)) == outcome(lambda: attempt(KeepaliveSocket))


def test_a_descriptor_that_is_no_socket_is_refused_and_left_open():
    with open(os.devnull) as file:
        assert outcome(lambda: KeepaliveSocket(fileno=file.fileno())) == ("raised", "OSError", errno.ENOTSOCK)
        assert os.fstat(file.fileno())


def test_a_duplicate_lives_on():
    def scenario(ours, peer):
        with ours.dup() as copy:
            ours.close()
            peer.send(b"x")
            return type(copy) is type(ours), copy.recv(1), copy.get_inheritable(), copy.gettimeout()

    both(scenario, 5.0)


def test_a_file_of_a_socket_reads_lines_and_keeps_it_open():
    def scenario(ours, peer):
        with ours.makefile("rwb") as file:
            ours.close()
            peer.sendall(b"one\ntwo\nthree")
            peer.shutdown(socket.SHUT_WR)
            file.write(b"answer")
            file.flush()
            return file.readline(), file.read(), peer.recv(100), ours.fileno() >= 0

    assert both(scenario, 5.0) == ("returned", (b"one\n", b"two\nthree", b"answer", True))


def test_a_text_file_of_a_socket_decodes():
    def scenario(ours, peer):
        peer.sendall("grüße\r\n".encode())
        with ours.makefile("r", encoding="utf-8") as file:
            return file.readline()

    assert both(scenario) == ("returned", "grüße\n")


def test_a_file_is_sent(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(300_000))

    def scenario(ours, peer):
        with path.open("rb") as file:
            sent: list[int] = []
            thread = threading.Thread(target=lambda: sent.append(ours.sendfile(file)))
            thread.start()
            got = drain(peer, 300_000)
            thread.join()
            return sent, got == path.read_bytes()

    assert both(scenario, 5.0) == ("returned", ([300_000], True))


def test_closing_twice_and_leaving_a_with_block_close():
    with connected() as (ours, peer):
        with ours:
            pass
        ours.close()
        assert ours.fileno() == -1
        assert peer.recv(1) == b""


def test_a_socket_that_is_dropped_warns_and_is_closed():
    with listening() as listener:
        sock = KeepaliveSocket()
        sock.connect(listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            with pytest.warns(ResourceWarning, match="unclosed"):
                del sock
            assert peer.recv(1) == b""


def test_it_can_be_referred_to_weakly():
    import weakref

    with KeepaliveSocket() as sock:
        assert weakref.ref(sock)() is sock


def test_it_takes_no_other_attributes_than_the_stdlibs():
    """Side by side: the stdlib's class has slots, and an instance no dictionary."""
    outcomes = []
    for cls in (STDLIB, KeepaliveSocket):
        with cls() as sock:
            outcomes.append(outcome(lambda: setattr(sock, "other", 1)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_can_not_be_pickled(protocol):
    outcomes = []
    for cls in (STDLIB, KeepaliveSocket):
        with cls() as sock:
            outcomes.append(outcome(lambda: pickle.dumps(sock, protocol)))
    assert outcomes == [("raised", "TypeError", None)] * 2


def test_it_can_not_be_copied():
    import copy

    with KeepaliveSocket() as sock:
        for function in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                function(sock)


@pytest.mark.parametrize(
    "arguments", [("x",), (socket.AF_INET, "x"), (12345,), (socket.AF_INET, socket.SOCK_STREAM, 17)]
)
def test_odd_arguments_of_the_constructor_are_refused_alike(arguments):
    assert outcome(lambda: KeepaliveSocket(*arguments)) == outcome(lambda: STDLIB(*arguments))


def test_what_it_is_made_with_may_be_given_by_name():
    with KeepaliveSocket(family=socket.AF_INET, type=socket.SOCK_STREAM, proto=0, fileno=None, keepalive=None) as sock:
        assert sock.family == socket.AF_INET
    with pytest.raises(TypeError):
        KeepaliveSocket(socket.AF_INET, socket.SOCK_STREAM, 0, None, Keepalive())  # type: ignore[misc]


def test_a_subclass_may_override_and_call_on():
    class Counting(KeepaliveSocket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.calls = 0

        def recv(self, *args: Any) -> bytes:
            self.calls += 1
            return super().recv(*args)

        def fileno(self) -> int:  # others override it, as the stdlib's methods don't notice
            return super().fileno()

    with connected(Counting) as (ours, peer):
        peer.send(b"x")
        assert (ours.recv(1), ours.calls) == (b"x", 1)


def test_the_unbound_methods_refuse_what_is_no_socket():
    for method in (KeepaliveSocket.recv, KeepaliveSocket.send):
        with pytest.raises(TypeError):
            method(object(), 1)  # type: ignore[arg-type]


def test_sockets_are_told_apart_and_hashed_by_identity():
    with KeepaliveSocket() as one, KeepaliveSocket() as other:
        assert one != other
        assert len({one, other, one}) == 2


# ---- audit events


AUDIT = """
import socket as stdlib, sys
from longconn import KeepaliveSocket
cls = {"ours": KeepaliveSocket, "stdlib": stdlib.socket}[sys.argv[1]]
events = []
sys.addaudithook(lambda name, args: events.append((name, args[1:])) if name.startswith("socket.") else None)
listener = cls(stdlib.AF_INET, stdlib.SOCK_STREAM)
listener.bind(("127.0.0.1", 0)); listener.listen(); port = listener.getsockname()[1]
ours = cls(stdlib.AF_INET, stdlib.SOCK_STREAM)
ours.connect(listener.getsockname()); peer, _ = listener.accept()
ours.send(b"x"); peer.recv(1); ours.sendall(b"x"); peer.recv_into(bytearray(1)); ours.sendmsg([b"x"])
datagrams = cls(stdlib.AF_INET, stdlib.SOCK_DGRAM)
datagrams.sendto(b"x", ("127.0.0.1", port)); datagrams.sendmsg([b"x"], [], 0, ("127.0.0.1", port))
for sock in (ours, peer, listener, datagrams):
    sock.close()
for name, args in events:
    print(name, str(args).replace(str(port), "PORT"))
"""


def test_audit_events_are_the_stdlibs():
    theirs = python_says(AUDIT, "stdlib")
    assert "socket.connect" in theirs
    assert python_says(AUDIT, "ours") == theirs


def test_an_audit_hook_can_refuse():
    said = python_says(
        """
import sys
from longconn import KeepaliveSocket
def refuse(name, args):
    if name == "socket.connect":
        raise PermissionError(name)
sys.addaudithook(refuse)
sock = KeepaliveSocket()
try:
    sock.connect(("127.0.0.1", 1))
except PermissionError as error:
    print(error)
sock.close()
"""
    )
    assert said == "socket.connect\n"


# ---- what a reset leaves behind is in test_errors; here only that plain data go first


def test_what_arrived_before_a_reset_can_be_read():
    with connected() as (ours, peer):
        peer.sendall(b"last words")
        wait_until(lambda: has_arrived(ours, b"last words"))
        reset(peer)
        assert ours.recv(100) == b"last words"
