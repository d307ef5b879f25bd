r"""Plain peers: stdlib sockets that know nothing of longconn, over raw bytes, lines and length-prefixed messages."""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import longconn
import pytest
from longconn import Cause, Heartbeat, Keepalive, LengthPrefixed, Lines, LongConnection, LongServer, PlainHeartbeat
from peers import (
    PATIENCE,
    SLACK,
    cut_off,
    let_go,
    listening,
    memory_bytes,
    open_descriptors,
    python_says,
    reset,
    rto_max,
    timings,
    wait_until,
    wait_until_blocked,
)


@contextmanager
def connected(framing: Any = "raw", **kwargs: Any) -> Iterator[tuple[LongConnection, socket.socket]]:
    """A connection of ours, and the plain peer, of the stdlib's."""
    with listening() as listener:
        connection = longconn.connect(listener.getsockname(), framing=framing, timeout=PATIENCE, **kwargs)
        peer, _ = listener.accept()
        peer.settimeout(PATIENCE)
        connection.settimeout(PATIENCE)
        with peer:
            try:
                yield connection, peer
            finally:
                let_go(connection)


@contextmanager
def serving(framing: Any = "raw", **kwargs: Any) -> Iterator[LongServer]:
    with LongServer(("127.0.0.1", 0), framing=framing, **kwargs) as server:
        server.settimeout(PATIENCE)
        yield server


def dial(server: LongServer) -> socket.socket:
    peer = socket.create_connection(server.address, timeout=PATIENCE)
    return peer


def receive(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := peer.recv(count - len(data))):
        data += more
    return data


def receive_all(peer: socket.socket) -> bytes:
    return b"".join(iter(lambda: peer.recv(65536), b""))


# ---- bytes, lines, lengths


def test_raw_bytes_go_both_ways():
    with connected() as (ours, peer):
        ours.send(b"hello ")
        ours.sendall(bytearray(b"wor"))
        assert ours.send_many([b"l", memoryview(b"d")]) == 2
        assert receive(peer, 11) == b"hello world"
        peer.sendall(b"abcdef")
        wait_until(lambda: ours.stats().inbox_bytes == 6)
        assert ours.recv(4) == b"abcd"
        assert ours.recv() == b"ef"
        with pytest.raises(TimeoutError):
            ours.recv(10, timeout=0.01)
        assert ours.state == "open"


@pytest.mark.parametrize("size", [1, 65_536, 20_000_000])
def test_any_amount_of_raw_bytes_arrives(size):
    data = os.urandom(size)
    with connected() as (ours, peer):
        sender = threading.Thread(target=ours.send, args=(data,))
        sender.start()
        assert receive(peer, size) == data
        sender.join()
        echo = threading.Thread(target=peer.sendall, args=(data,))
        echo.start()
        got = bytearray()
        while len(got) < size:
            got += ours.recv(1 << 20)
        assert got == data
        echo.join()


def test_lines_come_with_their_ends():
    with connected("lines") as (ours, peer):
        peer.sendall(b"one\r\n\ntw")
        assert ours.recv() == b"one\r\n"
        assert ours.recv() == b"\n"
        with pytest.raises(TimeoutError):
            ours.recv(timeout=0.01)
        peer.sendall(b"o\nthree\nfour\n")
        assert ours.recv() == b"two\n"
        wait_until(lambda: ours.stats().inbox_bytes == 11)
        assert ours.recv_many(10) == [b"three\n", b"four\n"]
        ours.send_many([b"without an end", b"with its own\r\n"])
        assert receive(peer, 29) == b"without an end\nwith its own\r\n"


def test_lines_end_as_is_wished():
    with connected(Lines(b"\r\n")) as (ours, peer):
        ours.send(b"HELO")
        assert receive(peer, 6) == b"HELO\r\n"
        with pytest.raises(ValueError, match="line end at byte 1"):
            ours.send(b"a\nb")
        ours.send(b"b")
        assert receive(peer, 3) == b"b\r\n"


@pytest.mark.parametrize(
    ("framing", "wire"),
    [
        (LengthPrefixed(), b"\0\0\0\x03abc"),
        (LengthPrefixed(2, "little"), b"\x03\0abc"),
        (LengthPrefixed(size=1, includes_prefix=True), b"\x04abc"),
    ],
)
def test_messages_have_their_length_before_them(framing, wire):
    with connected(framing) as (ours, peer):
        ours.send(b"abc")
        assert receive(peer, len(wire)) == wire
        for byte in wire:
            peer.sendall(bytes([byte]))
        assert ours.recv() == b"abc"
        ours.send(b"")
        assert receive(peer, framing.size)
        peer.sendall(wire * 2)
        assert ours.recv() == ours.recv() == b"abc"


def test_a_size_is_for_raw_streams_only():
    with connected() as (ours, peer):
        peer.sendall(b"x")
        assert ours.recv(1) == b"x"
        for bad in (0, -1):
            with pytest.raises(ValueError, match="1 or more"):
                ours.recv(bad)
        with pytest.raises(TypeError):
            ours.recv("1")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="one size"):
            ours.recv(1, 2)
    with connected("lines") as (ours, _), pytest.raises(TypeError, match='recv\\(n\\) is for framing="raw"'):
        ours.recv(10)


def test_it_is_known_since_when_and_what_the_kernel_knows():
    with connected() as (ours, peer):
        assert 0 <= time.time() - ours.opened_at < PATIENCE
        ours.send(b"x" * 1000)
        ours.flush()
        assert ours.stats().tcp_info.bytes_acked >= 1000
        reset(peer)
        wait_until(lambda: ours.state == "closed")
        assert ours.stats().tcp_info is None


def test_what_only_our_own_protocol_has_is_refused_by_name():
    with connected() as (ours, _):
        for what, refused in [
            ("ping", lambda: ours.ping()),
            ("status", lambda: ours.status),
            ("peer_status", lambda: ours.peer_status),
            ("progress", lambda: ours.progress()),
            ("close", lambda: ours.close(1)),
            ("close", lambda: ours.close(reason="so long")),
        ]:
            with pytest.raises(TypeError, match=rf"{what}.*: a plain peer"):
                refused()
        with pytest.raises(TypeError, match="status: a plain peer"):
            ours.status = b"busy"
        with pytest.raises(ValueError, match="SHUT_RD"):
            ours.shutdown(socket.SHUT_RD)
        assert ours.state == "open"


# ---- the end of a direction


def test_a_peer_that_has_said_all_still_hears_the_answer():
    with connected() as (ours, peer):
        peer.sendall(b"request")
        peer.shutdown(socket.SHUT_WR)
        assert ours.recv(100) == b"request"
        assert ours.recv(100) == ours.recv(100) == b""
        assert ours.recv_many(5) == []
        assert list(ours) == []
        assert ours.state == "open"
        ours.send(b"answer")
        assert receive(peer, 6) == b"answer"
        ours.close()
        assert receive_all(peer) == b""
        assert ours.lost is Cause.CLOSED


def test_our_own_end_leaves_the_other_direction_open():
    with connected() as (ours, peer):
        ours.send(b"request")
        ours.shutdown(socket.SHUT_WR)
        assert receive_all(peer) == b"request"
        with pytest.raises(BrokenPipeError):
            ours.send(b"more")
        assert ours.state == "open"
        peer.sendall(b"answer")
        assert ours.recv(100) == b"answer"
        peer.close()
        assert ours.recv(100) == b""
        ours.wait_for("closed")
        assert ours.lost is Cause.CLOSED
        assert ours.recv(100) == b""
        with pytest.raises(longconn.AlreadyClosed):
            ours.send(b"more")


def test_the_last_line_may_have_no_end():
    with connected("lines") as (ours, peer):
        peer.sendall(b"one\ntwo")
        peer.close()
        assert list(ours) == [b"one\n", b"two"]
        assert ours.recv() == b""


def test_an_end_between_messages_ends_what_is_received():
    with connected(LengthPrefixed(1)) as (ours, peer):
        peer.sendall(b"\x01a\x00")
        peer.shutdown(socket.SHUT_WR)
        assert [ours.recv(), ours.recv()] == [b"a", b""]
        with pytest.raises(longconn.PeerLost, match=r"ended its stream.*may still be sent to") as caught:
            ours.recv()
        assert caught.value.cause is Cause.ENDED
        assert list(ours) == []
        ours.send(b"answer")
        assert receive(peer, 7) == b"\x06answer"


def test_an_end_inside_a_message_is_an_error_that_says_so():
    with connected(LengthPrefixed(4)) as (ours, peer):
        peer.sendall(b"\0\0\0\x01a\0\0\0\x09half")
        peer.close()
        assert ours.recv() == b"a"
        with pytest.raises(longconn.ProtocolError, match="ended inside a message, 5 bytes short"):
            ours.recv()
        assert ours.lost is Cause.PROTOCOL


@pytest.mark.parametrize(
    ("framing", "data", "says"),
    [
        ("lines", b"x" * 1001, "1001 bytes or more, at most 1000"),
        (LengthPrefixed(4), b"\0\0\x03\xe9", "1001 bytes or more, at most 1000"),
        (LengthPrefixed(8), b"\xff" * 8, "18446744073709551615 bytes or more, at most 1000"),
        (LengthPrefixed(4, includes_prefix=True), b"\0\0\0\x03", "length of 3, less than its own 4 bytes"),
    ],
)
def test_what_is_too_large_ends_the_connection_by_name(framing, data, says):
    with connected(framing, largest_message_bytes=1000) as (ours, peer):
        peer.sendall(data)
        with pytest.raises(longconn.ProtocolError, match=says) as caught:
            ours.recv()
        assert caught.value.peer == peer.getsockname()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    with connected(framing, largest_message_bytes=1000) as (ours, _), pytest.raises(longconn.MessageTooLarge):
        ours.send(b"x" * 1001)


def test_a_peer_that_resets_is_lost():
    with connected() as (ours, peer):
        reset(peer)
        with pytest.raises(longconn.PeerReset) as caught:
            ours.recv(1)
        assert caught.value.cause is Cause.RESET
        with pytest.raises(longconn.PeerReset):
            ours.send(b"x")


def test_who_sends_to_a_peer_that_has_closed_learns_that_it_ended():
    with connected() as (ours, peer):
        peer.sendall(b"last words")
        peer.close()
        wait_until(lambda: ours.stats().inbox_bytes == 10)

        def is_refused() -> bool:
            try:
                ours.send(b"x")
            except longconn.PeerLost as lost:
                return lost.cause in (Cause.ENDED, Cause.RESET)
            return False

        wait_until(is_refused)
        # what was heard before is heard all the same
        assert ours.recv(100) == b"last words"
        assert ours.recv(100) == b""


def test_who_was_told_of_the_end_is_not_told_again_by_close():
    with connected("lines") as (ours, peer):
        peer.close()
        ours.send(b"READ")  # answered by a reset
        assert ours.recv() == b""
        ours.wait_for("closed")
        ours.close()


def test_close_tells_of_what_was_sent_after_the_end_and_lost():
    with connected("lines") as (ours, peer):
        peer.close()
        assert ours.recv() == b""
        ours.send(b"QUIT")
        ours.wait_for("closed")
        with pytest.raises(longconn.PeerLost):
            ours.close()
        ours.close()


def test_a_heartbeat_that_met_a_reset_is_no_loss_of_the_programs():
    with connected("lines", heartbeat=PlainHeartbeat(interval=0.05, send=b"PING")) as (ours, peer):
        peer.close()
        assert ours.recv() == b""
        ours.wait_for("closed")
        ours.close()


# ---- closing and flushing


def test_flush_waits_for_the_peers_kernel():
    with connected() as (ours, peer):
        ours.send(b"x" * 100)
        ours.flush()
        assert ours.stats().untaken_bytes == 0
        size = 8_000_000
        ours.send(b"x" * size)
        with pytest.raises(TimeoutError):
            ours.flush(timeout=0.05)
        assert ours.stats().untaken_bytes > 0
        reader = threading.Thread(target=receive, args=(peer, size + 100))
        reader.start()
        ours.flush()
        assert ours.stats().untaken_bytes == 0
        reader.join()


def test_close_brings_everything_over_first():
    data = os.urandom(3_000_000)
    with connected() as (ours, peer):
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(receive_all(peer)))
        ours.send(data)
        reader.start()
        ours.close()
        reader.join()
        assert got == [data]
        with pytest.raises(longconn.AlreadyClosed):
            ours.send(b"x")
        with pytest.raises(longconn.AlreadyClosed):
            ours.recv(1)
        ours.close()


def test_close_in_haste_says_what_was_left_and_makes_it_look_like_no_whole_stream():
    with connected() as (ours, peer):
        ours.send(b"x" * 20_000_000)
        with pytest.raises(TimeoutError, match=r"kernel had not got \d+ bytes"):
            ours.close(timeout=0.05)
        with pytest.raises(ConnectionResetError):
            receive_all(peer)


def test_close_with_nothing_under_way_is_an_end_of_stream():
    with connected() as (ours, peer):
        ours.send(b"x")
        assert receive(peer, 1) == b"x"
        ours.flush()
        ours.close(timeout=0)
        assert receive_all(peer) == b""


def test_what_the_peer_still_sends_does_not_spoil_a_close():
    with connected() as (ours, peer):
        peer.sendall(b"nobody reads this")
        wait_until(lambda: ours.stats().inbox_bytes)
        ours.send(b"goodbye")
        peer.sendall(b"nor this")
        ours.close()
        assert receive_all(peer) == b"goodbye"


def test_close_tells_that_the_peer_went_before_it_got_everything_unless_that_was_told():
    with connected() as (ours, peer):
        ours.send(b"arrives")
        assert receive(peer, 7) == b"arrives"
        cut_off(peer)
        ours.send(b"doesn't")
        reset(peer)
        wait_until(lambda: ours.state == "closed")
        with pytest.raises(longconn.PeerLost) as caught:
            ours.close()
        assert caught.value.cause is Cause.RESET
        ours.close()


def test_close_is_content_with_what_had_arrived_before_the_peer_went():
    with connected() as (ours, peer):
        ours.send(b"arrives")
        assert receive(peer, 7) == b"arrives"
        reset(peer)
        wait_until(lambda: ours.state == "closed")
        ours.close()


def test_close_tells_of_a_peer_that_takes_nothing_more_who_did_not_know_that_it_had_ended():
    with connected() as (ours, peer):
        peer.close()
        # the first is answered by a reset, which the next one meets
        wait_until(lambda: ours.state == "closed" or ours.send(b"x"))
        assert ours.lost is Cause.ENDED
        with pytest.raises(longconn.PeerLost, match="ended its stream"):
            ours.close()


def test_closed_means_closed():
    with connected("lines") as (ours, peer):
        peer.sendall(b"one\ntwo\n")
        wait_until(lambda: ours.stats().inbox_bytes == 8)
        assert ours.recv() == b"one\n"
        ours.close()
        with pytest.raises(longconn.AlreadyClosed):
            ours.recv()


def test_who_is_called_back_goes_with_the_connection():
    class Device:
        def __init__(self, address: Any) -> None:
            self.connection = longconn.connect(address, framing="raw", on_event=self.heard)

        def heard(self, event: object) -> None: ...

    with listening() as listener:
        device = Device(listener.getsockname())
        gone = weakref.ref(device)
        let_go(device.connection)
        del device
        wait_until(lambda: gc.collect() is not None and gone() is None)


# ---- a program that doesn't receive


@pytest.mark.parametrize("framing", ["raw", "lines", LengthPrefixed(2)])
def test_a_program_that_does_not_receive_closes_the_window(framing):
    message = {"raw": b"x" * 99 + b"\n", "lines": b"x" * 99 + b"\n"}.get(framing, b"\0\x62" + b"x" * 98)  # type: ignore[call-overload]
    with connected(framing, keepalive=Keepalive(1, 1, 3, guard=0.5)) as (ours, peer):
        peer.settimeout(0.3 * SLACK)
        sent = 0
        block = message * 1000
        rest = memoryview(block)
        with suppress(TimeoutError):
            while sent < 100_000_000:
                count = peer.send(rest)
                sent += count
                rest = rest[count:] if count < len(rest) else memoryview(block)
        assert sent < 50_000_000, "the kernels' buffers have their bounds"
        assert ours.stats().inbox_bytes < 1_000_000
        # the peer lives, though nobody reads what it sends: longer than the guard's limit
        time.sleep(1.5)
        assert ours.state == "open"
        peer.settimeout(PATIENCE)
        finisher = threading.Thread(target=lambda: (peer.sendall(rest), peer.shutdown(socket.SHUT_WR)))
        finisher.start()
        got = 0
        for part in ours:
            got += len(part) + (2 if isinstance(framing, LengthPrefixed) else 0)
        finisher.join()
        assert got == sent + len(rest)
        assert ours.stats().bytes_heard == got


def test_an_end_that_came_while_nothing_was_received_is_told_at_once():
    events: list[longconn.Event] = []
    with connected("lines", on_event=events.append) as (ours, peer):
        data = b"x" * 99 + b"\n"
        peer.settimeout(0.2 * SLACK)
        with suppress(TimeoutError):
            while True:
                peer.sendall(data)
        reset(peer)
        wait_until(lambda: [event.cause for event in events if event.state == "closed"] == [Cause.RESET])
        got: list[bytes] = []
        with pytest.raises(longconn.PeerReset):
            got.extend(iter(ours.recv, b""))
        assert len(got) > 100
        assert set(got) == {data}


def test_a_peer_that_does_not_receive_keeps_us_waiting():
    with connected() as (ours, peer):
        sent = 0
        with suppress(TimeoutError):
            while sent < 1_000_000_000:
                ours.send(b"x" * 100_000, timeout=0.2)
                sent += 100_000
        assert sent < 1_000_000_000
        assert ours.stats().untaken_bytes > 1_000_000
        assert ours.state == "open"
        reader = threading.Thread(target=receive, args=(peer, sent + 1))
        reader.start()
        ours.send(b"!")
        ours.flush()
        reader.join()


# ---- heartbeats of the peer's own


def test_heartbeats_are_sent_each_interval():
    with connected("lines", heartbeat=PlainHeartbeat(0.05, send=b"PING")) as (ours, peer):
        assert receive(peer, 15) == b"PING\n" * 3
        stats = ours.stats()
        assert stats.beats_sent >= 3
        assert (stats.send_interval_seconds, stats.hear_interval_seconds, stats.limit_seconds) == (0.05, None, None)


def test_heartbeats_of_the_peer_are_swallowed():
    heartbeat = PlainHeartbeat(60, expect=b"+PONG", swallow=[b"*", b"noise"])
    with connected("lines", heartbeat=heartbeat) as (ours, peer):
        peer.sendall(b"+PONG\r\n*\nnoise\nvalue\n+PONG\n")
        assert ours.recv() == b"value\n"
        with pytest.raises(TimeoutError):
            ours.recv(timeout=0.05)
        wait_until(lambda: ours.stats().beats_heard == 4)
        peer.shutdown(socket.SHUT_WR)
        assert ours.recv() == b""


def test_a_peer_whose_program_is_stopped_is_frozen():
    """It takes our heartbeats with its kernel, and answers none."""
    events: list[longconn.Event] = []
    heartbeat = PlainHeartbeat(0.2, send=b"PING", expect=b"PONG", limit=1.0 * SLACK)
    with connected("lines", heartbeat=heartbeat, on_event=events.append) as (ours, peer):
        peer.sendall(b"PONG\nvalue\n")
        assert ours.recv() == b"value\n"
        with pytest.raises(longconn.PeerLost, match="the peer's kernel answers") as caught:
            ours.recv()
        lost = caught.value
        assert (lost.cause, lost.limit, lost.kernel_answers) == (Cause.FROZEN, 1.0 * SLACK, True)
        assert lost.silence >= lost.limit
        wait_until(lambda: [event.state for event in events] == ["open", "suspect", "closed"])


def test_a_peer_that_answers_lives():
    heartbeat = PlainHeartbeat(0.1, send=b"PING", expect=b"PONG", limit=1.0 * SLACK)
    with connected("lines", heartbeat=heartbeat) as (ours, peer):

        def answer() -> None:
            with peer.makefile("rb") as lines, suppress(OSError):
                for _ in lines:
                    peer.sendall(b"PONG\n")

        answers = threading.Thread(target=answer)
        answers.start()
        wait_until(lambda: ours.stats().beats_heard >= 25 * SLACK, patience=10 * PATIENCE)
        assert ours.state in ("open", "suspect")
        ours.close()
        answers.join()


def test_any_byte_ends_a_silence_on_a_raw_stream(fake_clock):
    with connected("raw", heartbeat=PlainHeartbeat(30, limit=40)) as (ours, peer):
        for _ in range(10):
            fake_clock.advance(35)
            peer.sendall(b"x")
            assert ours.recv(1) == b"x"
        fake_clock.advance(41)
        with pytest.raises(longconn.PeerLost) as caught:
            ours.recv(1)
        assert caught.value.cause in (Cause.SILENT, Cause.FROZEN)


def test_silence_is_not_judged_while_the_program_does_not_receive():
    """The answers wait in the kernel, for nobody has read what is before them."""
    heartbeat = PlainHeartbeat(0.1, expect=b"beat", limit=0.4 * SLACK)
    with connected("lines", heartbeat=heartbeat) as (ours, peer):
        peer.settimeout(0.2)
        with suppress(TimeoutError):
            while True:
                peer.sendall(b"x" * 9999 + b"\n")
        time.sleep(1.0 * SLACK)
        assert ours.state == "open"
        assert ours.recv() == b"x" * 9999 + b"\n"


def test_a_peer_behind_a_pulled_cable_is_unreachable():
    """By the guard; nothing is expected of the program."""
    with connected("lines", keepalive=Keepalive(1, 1, 3, guard=1.0)) as (ours, peer):
        peer.sendall(b"hello\n")
        assert ours.recv() == b"hello\n"
        cut_off(peer)
        ours.send(b"into the void")
        with pytest.raises(longconn.PeerLost) as caught:
            ours.recv(timeout=60 * SLACK)
        lost = caught.value
        assert (lost.cause, lost.limit, lost.kernel_answers, lost.level) == (Cause.UNREACHABLE, 1.0, False, "path")
        assert ours.lost is Cause.UNREACHABLE
        with pytest.raises(longconn.PeerLost):
            ours.send(b"more")


def test_what_had_arrived_before_the_cable_was_pulled_is_received_before_the_verdict():
    """The program was behind, so much of it was still with the kernel when the guard cut the connection."""
    events: list[longconn.Event] = []
    with connected(keepalive=Keepalive(1, 1, 3, guard=1.0), on_event=events.append) as (ours, peer):
        peer.settimeout(0.3 * SLACK)
        sent = 0
        with suppress(TimeoutError):
            while sent < 100_000_000:
                sent += peer.send(b"x" * 65536)
        # with the SYN, on some kernels
        arrived = longconn._longconn.tcp_info(peer.fileno()).bytes_acked - 1
        assert ours.stats().inbox_bytes < arrived < sent
        cut_off(peer)
        ours.send(b"into the void")
        # only one direction is cut, and the peer goes on probing our window
        wait_until(lambda: [event.cause for event in events if event.state == "closed"] == [Cause.DEAF])
        received: list[bytes] = []
        with pytest.raises(longconn.PeerLost, match="nothing of ours has arrived"):
            received.extend(iter(ours.recv, b""))
        assert arrived <= sum(map(len, received)) <= sent


def test_keepalive_and_guard_are_as_they_are_set():
    def socket_of(ours: LongConnection) -> socket.socket:
        """A copy of its descriptor."""
        for fd in open_descriptors():
            with suppress(OSError):
                sock = socket.socket(fileno=fd)
                try:
                    with suppress(OSError):
                        if (sock.getsockname(), sock.getpeername()) == (ours.getsockname(), ours.getpeername()):
                            return sock.dup()
                finally:
                    sock.detach()
        raise AssertionError("no such socket")

    with connected(keepalive=Keepalive(7, 2, 4)) as (ours, _), socket_of(ours) as sock:
        # one probe more than is judged by: the guard comes before the kernel
        assert timings(sock) == (1, 7, 2, 5)
        assert rto_max(sock) in (1500, None)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
    with connected(keepalive=Keepalive(7, 2, 4, guard=False)) as (ours, _), socket_of(ours) as sock:
        assert timings(sock) == (1, 7, 2, 4)
        assert rto_max(sock) in (120_000, None)
    with connected(keepalive=False) as (ours, _), socket_of(ours) as sock:
        assert timings(sock)[0] == 0
    with (
        serving(keepalive=Keepalive(7, 2, 4)) as server,
        dial(server),
        server.accept() as ours,
        socket_of(ours) as sock,
    ):
        assert timings(sock) == (1, 7, 2, 5)


def test_redis_is_kept_alive_by_its_ping():
    """A little server that speaks as much of Redis's protocol as inline commands need."""

    def serve(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        store: dict[bytes, bytes] = {}
        with peer, peer.makefile("rb") as lines:
            for line in lines:
                command, *arguments = line.split()
                if command == b"PING":
                    peer.sendall(b"+PONG\r\n")
                elif command == b"SET":
                    store[arguments[0]] = arguments[1]
                    peer.sendall(b"+OK\r\n")
                elif command == b"GET":
                    peer.sendall(b"$%d\r\n%s\r\n" % (len(store[arguments[0]]), store[arguments[0]]))

    with listening() as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        heartbeat = PlainHeartbeat(interval=0.05, send=b"PING", expect=b"+PONG", limit=5 * SLACK)
        with longconn.connect(listener.getsockname(), framing=Lines(b"\r\n"), heartbeat=heartbeat) as redis:
            redis.settimeout(PATIENCE)
            for number in range(200):
                redis.send(b"SET key %d" % number)
                assert redis.recv() == b"+OK\r\n"
                redis.send(b"GET key")
                value = b"%d" % number
                assert [redis.recv(), redis.recv()] == [b"$%d\r\n" % len(value), value + b"\r\n"]
            wait_until(lambda: redis.stats().beats_heard >= 3)
        server.join(PATIENCE)
        assert not server.is_alive()


# ---- servers


def test_a_server_accepts_plain_clients():
    with serving("lines") as server:

        def serve() -> None:
            for connection in server:
                with connection:
                    for line in connection:
                        connection.send(line.upper())

        thread = threading.Thread(target=serve)
        thread.start()
        for _ in range(3):
            with dial(server) as peer:
                peer.sendall(b"hello\nworld")
                assert receive(peer, 6) == b"HELLO\n"
                peer.shutdown(socket.SHUT_WR)
                assert receive_all(peer) == b"WORLD\n"
        wait_until(lambda: server.stats().open == 0)
        assert server.stats().opened == 3
        server.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_one_loop_serves_all_plain_clients():
    with serving("lines") as server:
        ended: list[object] = []

        def serve() -> None:
            for connection, line in server.messages():
                if line:
                    connection.send(line.upper())
                else:
                    ended.append(connection)
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        peers = [dial(server) for _ in range(10)]
        for turn in range(20):
            for number, peer in enumerate(peers):
                peer.sendall(b"%d-%d\n" % (turn, number))
        for number, peer in enumerate(peers):
            with peer:
                peer.sendall(b"last")
                peer.shutdown(socket.SHUT_WR)
                assert receive_all(peer) == b"".join(b"%d-%d\n" % (turn, number) for turn in range(20)) + b"LAST\n"
        wait_until(lambda: server.stats().open == 0)
        assert len(set(ended)) == 10
        server.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_one_loop_answers_messages_before_it_closes_who_has_said_all():
    with serving(LengthPrefixed(1)) as server:

        def serve() -> None:
            for connection, message in server.messages():
                connection.send(message * 2)

        thread = threading.Thread(target=serve)
        thread.start()
        with dial(server) as peer:
            peer.sendall(b"\x01a\x02bc\x00")
            peer.shutdown(socket.SHUT_WR)
            assert receive_all(peer) == b"\x02aa\x04bcbc\x00"
        wait_until(lambda: server.stats().open == 0)
        server.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_one_loop_that_fell_behind_has_the_rest_read():
    """It waits for the server and not for a connection, so nobody but the native thread reads on."""
    with serving("lines") as server, dial(server) as peer:
        messages = server.messages()
        peer.settimeout(1.5)  # until no timer of the connection's is left that would have it read, too
        line, sent = b"x" * 99 + b"\n", 0
        block = line * 1000
        with suppress(TimeoutError):
            while sent < 100_000_000:
                sent += peer.send(block[sent % len(block) :])
        (ours,) = server.connections
        assert ours.stats().inbox_bytes < 1_000_000 < sent
        peer.shutdown(socket.SHUT_WR)
        got = 0
        for _, message in messages:
            if not message:
                break
            got += len(message)
        assert got == sent
        ours.close()


def test_a_server_broadcasts_to_plain_clients_and_tells_who_comes_and_goes():
    told: list[tuple[LongConnection, longconn.Event]] = []
    with serving("lines", on_event=lambda *what: told.append(what)) as server:
        peers = [dial(server) for _ in range(3)]
        accepted = [server.accept() for _ in peers]
        assert set(server.connections) == set(accepted)
        assert server.broadcast(b"all of you") == (3, 0, 0)
        assert server.broadcast(b"not\none line").failed == 3
        for peer in peers:
            assert receive(peer, 11) == b"all of you\n"
        reset(peers[0])
        wait_until(lambda: server.stats().open == 2)
        server.close()
        for peer in peers[1:]:
            with peer:
                assert receive_all(peer) == b""
        wait_until(lambda: len(told) == 6)
        by_cause = sorted(str(event.cause) for _, event in told if event.state == "closed")
        assert by_cause == ["closed", "closed", "reset"]
        for connection in accepted:
            let_go(connection)


def test_what_is_over_keeps_neither_memory_nor_descriptors():
    """The news of it, for which nobody asks, is kept; not what the client never got, nor what the program didn't."""
    megabytes = 200
    with serving() as server:
        before, descriptors = memory_bytes(), open_descriptors()
        for _ in range(megabytes):
            with dial(server) as peer, server.accept() as ours:
                ours.fileno()
                ours.send(b"x" * 8_000_000)
                peer.sendall(b"x" * 200_000)
                wait_until(lambda ours=ours: ours.stats().inbox_bytes == 200_000)
                reset(peer)
                wait_until(lambda ours=ours: ours.state == "closed")
                with suppress(longconn.PeerLost):
                    ours.recv(1)
                    ours.flush()
        del ours
        assert memory_bytes() - before < megabytes * 1_000_000 / 4
        assert len(open_descriptors() - descriptors) < 5


def test_a_loop_hands_out_nothing_of_a_connection_that_the_program_has_closed():
    with serving("lines") as server:
        messages = server.messages()
        with dial(server) as peer:
            peer.sendall(b"".join(b"%d\n" % number for number in range(10)))
            wait_until(lambda: len(server.connections) == 1 and server.connections[0].stats().inbox_bytes == 20)
            connection, message = next(messages)
            assert message == b"0\n"
            connection.close()
            with pytest.raises(TimeoutError):
                next(server.messages(timeout=0.05))
            assert receive_all(peer) == b""


def test_plain_clients_beyond_the_limits_are_refused():
    with serving("raw", max_connections=1) as server, dial(server) as first, server.accept() as ours:
        with dial(server) as second:
            with suppress(ConnectionResetError):
                assert second.recv(1) == b""
        assert server.stats().refused_too_many == 1
        first.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_what_plain_peers_can_not_have_is_refused():
    with pytest.raises(ValueError, match="authenticate: a plain client"):
        LongServer(("127.0.0.1", 0), framing="raw", authenticate=lambda *_: True)
    with pytest.raises(ValueError, match="keepalive: for plain clients"):
        LongServer(("127.0.0.1", 0), keepalive=Keepalive())
    for kwargs, error, says in [
        ({"framing": "raw", "client_id": "me"}, ValueError, "client_id, token"),
        ({"framing": "raw", "token": b"x"}, ValueError, "client_id, token"),
        ({"framing": "utf-8"}, ValueError, "framing='utf-8'"),
        ({"framing": 4}, TypeError, "framing: .*not int"),
        ({"framing": "raw", "heartbeat": Heartbeat()}, TypeError, "take a PlainHeartbeat"),
        ({"heartbeat": PlainHeartbeat(send=b"x")}, TypeError, "say framing="),
        ({"framing": "raw", "heartbeat": PlainHeartbeat(expect=b"x")}, ValueError, "set a limit"),
        ({"framing": "lines", "heartbeat": PlainHeartbeat(send=b"a\nb")}, ValueError, "heartbeat can't be sent"),
        ({"framing": "raw", "keepalive": True}, TypeError, "keepalive: .*not bool"),
    ]:
        with listening() as listener, pytest.raises(error, match=says):  # type: ignore[call-overload]
            longconn.connect(listener.getsockname(), **kwargs)


def test_the_values_are_values():
    for value in (Lines(), LengthPrefixed(2, "little"), PlainHeartbeat(1, send=b"PING", expect=[b"a", b"b"])):
        assert pickle.loads(pickle.dumps(value)) == value == eval(repr(value))
        assert len({value, pickle.loads(pickle.dumps(value))}) == 1
        with pytest.raises(AttributeError, match="doesn't change"):
            value.size = 3  # type: ignore[union-attr]
        with pytest.raises(AttributeError, match="doesn't change"):
            del value.size  # type: ignore[union-attr]
    assert Lines() != LengthPrefixed()
    for make, error, says in [
        (lambda: Lines(b"\r"), ValueError, "end="),
        (lambda: LengthPrefixed(9), ValueError, "1 to 8"),
        (lambda: LengthPrefixed(True), TypeError, "whole number"),
        (lambda: LengthPrefixed(4, "middle"), ValueError, "byteorder"),  # type: ignore[arg-type]
        (lambda: LengthPrefixed(4, "big", 1), TypeError, "includes_prefix"),  # type: ignore[arg-type]
        (lambda: PlainHeartbeat(), ValueError, "nothing to send"),
        (lambda: PlainHeartbeat(send="PING"), TypeError, "send: bytes, not str"),  # type: ignore[arg-type]
        (lambda: PlainHeartbeat(expect="PONG"), TypeError, "expect: bytes"),  # type: ignore[arg-type]
        (lambda: PlainHeartbeat(expect=[b""]), ValueError, "expect: an empty"),
        (lambda: PlainHeartbeat(5, limit=1), ValueError, "below interval"),
        (lambda: PlainHeartbeat(float("nan"), send=b"x"), ValueError, "interval=nan"),
    ]:
        with pytest.raises(error, match=says):
            make()


# ---- threads, signals, forks


def test_threads_share_a_connection():
    count, threads = 2000, 4
    with connected("lines") as (ours, peer):
        got: list[bytes] = []

        def receive_many() -> None:
            for line in ours:
                got.append(line)

        def echo() -> None:
            with peer.makefile("rb") as lines:
                for line in lines:
                    peer.sendall(line)
            peer.shutdown(socket.SHUT_WR)

        echoes = threading.Thread(target=echo)
        receivers = [threading.Thread(target=receive_many) for _ in range(threads)]
        senders = [
            threading.Thread(target=ours.send_many, args=([b"%d-%d" % (who, n) for n in range(count)],))
            for who in range(threads)
        ]
        for thread in (echoes, *receivers, *senders):
            thread.start()
        for thread in senders:
            thread.join()
        ours.shutdown(socket.SHUT_WR)
        for thread in (echoes, *receivers):
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert sorted(got) == sorted(b"%d-%d\n" % (who, n) for who in range(threads) for n in range(count))


def test_all_who_wait_learn_of_the_end():
    with connected() as (ours, peer):
        got: list[bytes] = []
        waiting = [threading.Thread(target=lambda: got.append(ours.recv(10))) for _ in range(4)]
        for thread in waiting:
            thread.start()
            wait_until(lambda thread=thread: thread.native_id)
            wait_until_blocked(thread.native_id)
        peer.shutdown(socket.SHUT_WR)
        for thread in waiting:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert got == [b""] * 4


def test_its_descriptor_is_readable_while_recv_would_not_wait():
    with connected("lines") as (ours, peer):

        def is_readable(timeout: float = 0) -> bool:
            return bool(select.select([ours.fileno()], [], [], timeout)[0])

        assert not is_readable()
        peer.sendall(b"half a li")
        assert not is_readable(0.05)
        peer.sendall(b"ne\n")
        assert is_readable(PATIENCE)
        ours.recv()
        assert not is_readable()
        peer.shutdown(socket.SHUT_WR)
        assert is_readable(PATIENCE)
        assert ours.recv() == b""
        assert is_readable()


def test_waiting_costs_nothing_once_the_peer_has_ended_its_stream():
    """Its descriptor stays readable for ever: who waits for something else must not look at it again and again."""
    with connected() as (ours, peer):
        peer.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""
        before = time.process_time()
        with pytest.raises(TimeoutError):
            ours.wait_for("closing", timeout=1.0)
        assert time.process_time() - before < 0.5


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="SIGINT is ignored here")
def test_ctrl_c_ends_a_wait():
    with connected() as (ours, _):
        me = threading.get_ident()
        timer = threading.Timer(0.2, signal.pthread_kill, [me, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            ours.recv(1, timeout=PATIENCE)
        timer.join()
        assert ours.state == "open"


def test_a_forked_child_leaves_plain_connections_to_its_parent():
    code = """
import os, socket, longconn
listener = socket.create_server(("127.0.0.1", 0))
ours = longconn.connect(listener.getsockname(), framing="raw", keepalive=longconn.Keepalive(1, 1, 3))
peer, _ = listener.accept()
child = os.fork()
if not child:
    try:
        ours.recv(1)
    except longconn.ForkedError:
        with longconn.connect(listener.getsockname(), framing="raw") as new:
            other, _ = listener.accept()
            other.sendall(b"x")
            os._exit(0 if new.recv(1) == b"x" else 1)
    os._exit(2)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
peer.sendall(b"still here")
print(ours.recv(100))
ours.close()
peer.close()
listener.close()
"""
    assert python_says(code).split("\n") == ["0", "b'still here'", ""]


def test_a_process_ends_with_plain_connections_open():
    code = """
import socket, threading, longconn
listener = socket.create_server(("127.0.0.1", 0))
ours = longconn.connect(listener.getsockname(), framing="lines", heartbeat=longconn.PlainHeartbeat(0.01, send=b"x"))
peer, _ = listener.accept()
threading.Thread(target=ours.recv, daemon=True).start()
print(peer.recv(2))
import os, sys
sys.stdout.flush()
import warnings
warnings.simplefilter("ignore", ResourceWarning)
"""
    assert python_says(code) == "b'x\\n'\n"


def test_its_picture_shows_what_it_is():
    with connected() as (ours, peer):
        assert "LongConnection" in repr(ours)
        assert ours.getpeername() == peer.getsockname()
        assert ours.client_id == ""
        stats = ours.stats()
        assert (stats.phi, stats.untaken_messages, stats.round_trip_last_seconds) == (None, None, None)
