"""The fault proxy: what each fault does to a plain connection, as both ends see it."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import longconn
import pytest
from longconn.testing import FaultProxy
from peers import PATIENCE, STDLIB, fill, listening, open_descriptors, reset, wait_until

BYTES = random.Random(0).randbytes(100_000)
#: For what must not come: as long as a test can wait for nothing.
A_WHILE = 0.3
BOTH_WAYS = pytest.mark.parametrize("direction", ["to_server", "to_client"])


class Ends:
    """A client and a server, and the proxy between them."""

    def __init__(self, proxy: FaultProxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy, self.client, self.server = proxy, client, server

    def of(self, direction: str) -> tuple[socket.socket, socket.socket]:
        """Who sends in this direction, and who receives."""
        return (self.client, self.server) if direction == "to_server" else (self.server, self.client)

    def arrives(self, direction: str, data: bytes = b"x") -> bool:
        source, sink = self.of(direction)
        source.sendall(data)
        return receive(sink, len(data)) == data


def receive(sock: socket.socket, count: int) -> bytes:
    """So many bytes, or those until the end."""
    received = b""
    while len(received) < count and (data := sock.recv(count - len(received))):
        received += data
    return received


def is_silent(sock: socket.socket, seconds: float = A_WHILE) -> bool:
    sock.settimeout(seconds)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(PATIENCE)
    return False


def outcome(sock: socket.socket) -> object:
    """What `recv` comes to: bytes, or the error's number."""
    try:
        return sock.recv(65536)
    except OSError as error:
        return error.errno


def fate(address: tuple[str, int]) -> object:
    """What a connection comes to, which may be over before `connect` has returned."""
    with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        try:
            client.connect(address)
        except OSError as error:
            return error.errno
        return outcome(client)


def unacknowledged(sock: socket.socket) -> int:
    return int(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24)[0])


def can_be_mute() -> bool:
    """What takes CAP_NET_RAW on new kernels: a strict source route, and hosts that refuse it."""
    if Path("/proc/sys/net/ipv4/conf/all/accept_source_route").read_text().strip() != "0":
        return False
    with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([137, 7, 4, 127, 0, 0, 1, 0]))
        except PermissionError:
            return False
    return True


@contextmanager
def through(proxy: FaultProxy, listener: socket.socket) -> Iterator[Ends]:
    with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        client.connect(proxy.address)
        server, _ = listener.accept()
        with server:
            server.settimeout(PATIENCE)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield Ends(proxy, client, server)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listening() as listener:
        listener.settimeout(PATIENCE)
        yield listener


@pytest.fixture
def proxy(listener: socket.socket) -> Iterator[FaultProxy]:
    with FaultProxy(listener) as proxy:
        yield proxy


@pytest.fixture
def ends(proxy: FaultProxy, listener: socket.socket) -> Iterator[Ends]:
    with through(proxy, listener) as ends:
        yield ends


# ---- a path as it should be


@BOTH_WAYS
def test_bytes_pass_whole_and_in_order(ends: Ends, direction: str):
    source, sink = ends.of(direction)
    data = os.urandom(3_000_000)
    sender = threading.Thread(target=source.sendall, args=(data,))
    sender.start()
    assert receive(sink, len(data)) == data
    sender.join(PATIENCE)


def test_each_end_of_a_stream_is_passed_on_apart(ends: Ends):
    ends.client.shutdown(socket.SHUT_WR)
    assert ends.server.recv(1) == b""
    assert ends.arrives("to_client", b"still here")
    ends.server.close()
    assert ends.client.recv(1) == b""
    ends.proxy.wait_for("closed")
    assert ends.proxy.connections == []


def test_a_reset_is_passed_on(ends: Ends):
    reset(ends.client)
    assert outcome(ends.server) == errno.ECONNRESET


def test_who_comes_when_no_server_is_there_is_reset(proxy: FaultProxy, listener: socket.socket):
    listener.close()
    assert fate(proxy.address) == errno.ECONNRESET
    assert "refused" in proxy.wait_for("failed")[0].detail.lower()


def test_many_connections_pass_at_once(proxy: FaultProxy, listener: socket.socket):
    pairs = []
    for number in range(100):
        client = socket.create_connection(proxy.address, timeout=PATIENCE)
        client.sendall(b"%3d" % number)
        pairs.append((client, listener.accept()[0]))
    for client, server in pairs:
        with client, server:
            server.sendall(receive(server, 3))
    assert proxy.accepted == 100
    proxy.wait_for("closed", count=100)


def test_a_sender_is_held_back_by_a_receiver_that_doesnt_read(ends: Ends):
    sent = fill(ends.client)
    held = wait_until(lambda: ends.proxy.connections[0].to_server.held, "the proxy holds something")
    assert held <= 256 * 1024
    assert receive(ends.server, sent) == b"x" * sent


# ---- silence


def test_a_pulled_cable_is_silent_both_ways_and_neither_end_is_told(ends: Ends):
    ends.proxy.pull_cable()
    ends.client.sendall(b"to the server")
    ends.server.sendall(b"to the client")
    assert is_silent(ends.server)
    assert is_silent(ends.client)
    ends.proxy.restore()
    assert receive(ends.server, 13) == b"to the server"
    assert receive(ends.client, 13) == b"to the client"


def test_what_our_kernel_has_taken_is_held_back_by_a_cut_too(ends: Ends):
    if not can_be_mute():
        pytest.skip("takes a mute socket: CAP_NET_RAW on this kernel")
    fill(ends.server)
    ends.proxy.drop("to_client")
    has_come = struct.unpack("i", fcntl.ioctl(ends.client, termios.FIONREAD, bytes(4)))[0]
    received = 0
    ends.client.settimeout(A_WHILE)
    with suppress(TimeoutError):
        while True:
            received += len(ends.client.recv(65536))
    assert received == has_come > 0
    ends.proxy.restore()
    ends.client.settimeout(PATIENCE)
    assert ends.client.recv(1)


@BOTH_WAYS
def test_a_cut_is_one_for_the_kernel_too(ends: Ends, direction: str):
    source, _ = ends.of(direction)
    ends.proxy.drop(direction)
    source.sendall(b"x")
    time.sleep(A_WHILE)
    assert unacknowledged(source) == 1


@BOTH_WAYS
def test_one_direction_is_cut_and_the_other_goes_on(ends: Ends, direction: str):
    source, sink = ends.of(direction)
    ends.proxy.drop(direction)
    source.sendall(b"lost")
    assert is_silent(sink)
    sink.sendall(b"heard")
    assert receive(source, 5) == b"heard"
    if can_be_mute():  # its acknowledgement is lost, too
        time.sleep(A_WHILE)
        assert unacknowledged(sink) == 1
    ends.proxy.resume(direction)
    assert receive(sink, 4) == b"lost"


def test_the_end_of_a_stream_waits_for_the_cable(ends: Ends):
    ends.proxy.pull_cable()
    ends.client.close()
    assert is_silent(ends.server)
    ends.proxy.restore()
    assert ends.server.recv(1) == b""


def test_a_reset_is_lost_on_a_pulled_cable_and_learnt_by_who_sends_later(ends: Ends):
    ends.proxy.pull_cable()
    reset(ends.client)
    assert is_silent(ends.server)
    ends.proxy.restore()
    assert is_silent(ends.server)
    ends.server.sendall(b"x")
    assert outcome(ends.server) == errno.ECONNRESET


def test_nobody_can_connect_over_a_pulled_cable(proxy: FaultProxy, listener: socket.socket):
    proxy.pull_cable()
    with pytest.raises(TimeoutError):
        socket.create_connection(proxy.address, timeout=A_WHILE)
    proxy.restore()
    with through(proxy, listener) as ends:
        assert ends.arrives("to_server")


@BOTH_WAYS
def test_a_stalled_path_still_acknowledges(ends: Ends, direction: str):
    source, sink = ends.of(direction)
    ends.proxy.stall(direction)
    source.sendall(b"held")
    assert is_silent(sink)
    wait_until(lambda: unacknowledged(source) == 0)
    ends.proxy.restore()
    assert receive(sink, 4) == b"held"


@BOTH_WAYS
def test_what_is_lost_makes_a_hole(ends: Ends, direction: str):
    source, sink = ends.of(direction)
    ends.proxy.lose(direction)
    source.sendall(b"hole")
    ends.proxy.wait_for("lost")
    ends.proxy.lose(direction, loses=False)
    source.sendall(b"after")
    assert receive(sink, 5) == b"after"


def test_a_nat_that_forgets_is_silent_for_good_but_for_new_connections(proxy: FaultProxy, listener: socket.socket):
    with through(proxy, listener) as old:
        proxy.forget()
        old.client.sendall(b"x")
        old.server.sendall(b"x")
        proxy.restore()
        assert is_silent(old.server)
        assert is_silent(old.client)
        with through(proxy, listener) as new:
            assert new.arrives("to_server")


def test_a_nat_that_forgets_may_answer_by_reset_and_only_who_sends(ends: Ends):
    ends.proxy.forget(resets=True)
    assert is_silent(ends.client)
    ends.client.sendall(b"x")
    assert outcome(ends.client) == errno.ECONNRESET
    assert is_silent(ends.server)


def test_a_nat_forgets_who_is_idle_and_not_who_talks(proxy: FaultProxy, listener: socket.socket):
    proxy.forget_after(idle=1.0)
    with through(proxy, listener) as idle, through(proxy, listener) as busy:
        end = time.monotonic() + 20 * PATIENCE
        while not (forgotten := [event.connection for event in proxy.record if event.what == "forgotten"]):
            assert busy.arrives("to_server")
            assert time.monotonic() < end
            time.sleep(0.05)
        assert forgotten == [1]
        idle.client.sendall(b"x")
        assert is_silent(idle.server)


def test_keepalive_probes_keep_a_nat_from_forgetting(proxy: FaultProxy, listener: socket.socket):
    proxy.forget_after(idle=2.5)
    with through(proxy, listener) as kept, through(proxy, listener):
        kept.client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        kept.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        kept.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        proxy.wait_for("forgotten", timeout=PATIENCE)
        assert [each.connection for each in proxy.record if each.what == "forgotten"] == [2]
        assert kept.arrives("to_client")


# ---- ends


def test_a_reset_tells_both(ends: Ends):
    ends.proxy.reset()
    assert outcome(ends.client) == outcome(ends.server) == errno.ECONNRESET


def test_a_reset_in_one_direction_tells_one_and_the_other_when_it_sends(ends: Ends):
    ends.proxy.reset("to_client")
    assert outcome(ends.client) == errno.ECONNRESET
    assert is_silent(ends.server)
    ends.server.sendall(b"x")
    assert outcome(ends.server) == errno.ECONNRESET


@pytest.mark.parametrize("verb", ["reset", "end"])
def test_what_is_said_on_purpose_is_heard_over_a_pulled_cable(ends: Ends, verb: str):
    ends.proxy.pull_cable()
    getattr(ends.proxy, verb)()
    assert outcome(ends.client) == outcome(ends.server) == (errno.ECONNRESET if verb == "reset" else b"")


def test_who_ends_its_stream_to_a_client_that_is_gone_is_reset(ends: Ends):
    ends.proxy.reset("to_client")
    ends.server.shutdown(socket.SHUT_WR)
    assert outcome(ends.server) == errno.ECONNRESET
    ends.proxy.wait_for("closed")


def test_an_end_is_told_to_both_as_of_programs_that_have_ended(ends: Ends):
    assert ends.arrives("to_server")
    ends.proxy.end()
    assert ends.client.recv(1) == ends.server.recv(1) == b""
    ends.client.sendall(b"x")
    wait_until(lambda: ends.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "the client is reset")


@BOTH_WAYS
def test_a_half_closed_connection_goes_on_the_other_way(ends: Ends, direction: str):
    source, sink = ends.of(direction)
    source.sendall(b"before")
    assert receive(sink, 6) == b"before"
    ends.proxy.half_close(direction)
    assert sink.recv(1) == b""
    source.sendall(b"after")
    assert ends.arrives("to_client" if direction == "to_server" else "to_server")
    assert ends.proxy.wait_for("lost")[0].bytes == 5


# ---- in the middle of something


@BOTH_WAYS
def test_a_message_is_cut_in_its_middle(ends: Ends, direction: str):
    source, sink = ends.of(direction)
    ends.proxy.stall_after(7, direction)
    source.sendall(b"half of it, and the rest")
    assert receive(sink, 7) == b"half of"
    assert is_silent(sink)
    ends.proxy.restore()
    assert receive(sink, 17) == b" it, and the rest"


@pytest.mark.parametrize(("verb", "told"), [("end_after", b""), ("reset_after", errno.ECONNRESET)])
def test_a_message_is_truncated(proxy: FaultProxy, listener: socket.socket, verb: str, told: object):
    getattr(proxy, verb)(4, "to_client")
    for _ in range(2):  # each connection has bytes of its own
        with through(proxy, listener) as ends:
            ends.server.sendall(b"truncated")
            end = outcome(ends.client)
            if end == b"trun":  # a reset may overtake it
                end = outcome(ends.client)
            assert end == told


@pytest.mark.parametrize("verb", ["drop_after", "pull_cable_after"])
def test_the_cable_is_pulled_after_so_many_bytes(ends: Ends, verb: str):
    getattr(ends.proxy, verb)(3, "to_server")
    ends.client.sendall(b"abc")
    assert receive(ends.server, 3) == b"abc"
    wait_until(lambda: ends.proxy.connections[0].to_server.left == 3)
    ends.client.sendall(b"d")
    time.sleep(A_WHILE)
    assert unacknowledged(ends.client) == 1
    ends.server.sendall(b"x")
    assert is_silent(ends.client) == (verb == "pull_cable_after")


# ---- a bad path


@BOTH_WAYS
def test_bytes_take_their_time(ends: Ends, direction: str):
    ends.proxy.latency(0.2, jitter=0.05, direction=direction)
    began = time.monotonic()
    assert ends.arrives(direction)
    assert time.monotonic() - began >= 0.15
    ends.proxy.latency(0, direction=direction)
    assert ends.arrives(direction)


@BOTH_WAYS
def test_a_narrow_path_carries_no_more(ends: Ends, direction: str):
    source, sink = ends.of(direction)
    ends.proxy.bandwidth(100_000, direction)
    began = time.monotonic()
    sender = threading.Thread(target=source.sendall, args=(bytes(40_000),))
    sender.start()
    assert len(receive(sink, 40_000)) == 40_000
    assert time.monotonic() - began >= 0.39
    sender.join(PATIENCE)


def test_what_is_sliced_comes_in_pieces(ends: Ends):
    ends.proxy.slice(2, delay=0.02, direction="to_server")
    ends.client.sendall(b"abcdef")
    pieces = []
    while sum(map(len, pieces)) < 6:
        pieces.append(ends.server.recv(100))
    # a reader that is late finds several together
    assert b"".join(pieces) == b"abcdef"
    assert pieces[0] == b"ab"


def test_a_byte_is_corrupted_by_one_bit(ends: Ends):
    ends.proxy.corrupt(at=3, direction="to_server")
    ends.client.sendall(bytes(8))
    received = receive(ends.server, 8)
    assert [index for index, byte in enumerate(received) if byte] == [3]
    assert received[3].bit_count() == 1


# ---- who gets in


def test_who_is_refused_finds_no_listener_and_the_address_stays(proxy: FaultProxy, listener: socket.socket):
    with through(proxy, listener) as there:
        proxy.refuse()
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(proxy.address, timeout=PATIENCE)
        assert there.arrives("to_server")
    proxy.admit()
    with through(proxy, listener) as ends:
        assert ends.arrives("to_client")


def test_more_connections_than_allowed_are_reset(proxy: FaultProxy, listener: socket.socket):
    proxy.limit_connections(1)
    with through(proxy, listener) as there:
        assert fate(proxy.address) == errno.ECONNRESET
        assert there.arrives("to_server")
    proxy.wait_for("closed")
    with through(proxy, listener) as ends:
        assert ends.arrives("to_server")


def test_one_connection_has_faults_of_its_own(proxy: FaultProxy, listener: socket.socket):
    with through(proxy, listener) as first, through(proxy, listener) as second:
        one, other = proxy.connections
        assert one.client_address == first.client.getsockname()
        one.pull_cable()
        first.client.sendall(b"x")
        assert is_silent(first.server)
        assert second.arrives("to_server")
        other.reset()
        assert outcome(second.client) == errno.ECONNRESET
        one.restore()
        assert receive(first.server, 1) == b"x"


@pytest.mark.parametrize("resets", [False, True])
def test_a_connection_ends_at_its_age(proxy: FaultProxy, listener: socket.socket, resets: bool):
    told = errno.ECONNRESET if resets else b""
    with through(proxy, listener) as old:
        proxy.expire(0.5, resets=resets)
        with through(proxy, listener) as new:
            for ends in old, new:
                assert outcome(ends.client) == outcome(ends.server) == told
    came = {each.connection: each.at for each in proxy.record if each.what == "accepted"}
    ended = [each for each in proxy.record if each.what == ("reset" if resets else "ended")]
    assert {each.connection for each in ended} == {1, 2}
    assert all(each.at - came[each.connection] >= 0.5 for each in ended)
    proxy.expire(None)
    with through(proxy, listener) as ends:
        assert is_silent(ends.client, 2 * A_WHILE)


def test_who_is_too_old_already_ends_at_once_and_who_is_forgotten_is_told_nothing(
    proxy: FaultProxy, listener: socket.socket
):
    with through(proxy, listener) as forgotten:
        proxy.forget()
        with through(proxy, listener) as old:
            proxy.expire(0)
            assert outcome(old.client) == outcome(old.server) == b""
            assert is_silent(forgotten.client)
            assert is_silent(forgotten.server)


def deaf_ones(proxy: FaultProxy, listener: socket.socket, number: int) -> list[bool]:
    """Of so many connections one after the other, which ones lose what the client says."""
    before = len(proxy.record)
    for _ in range(number):
        with through(proxy, listener) as ends:
            ends.client.sendall(b"x")
            ends.client.shutdown(socket.SHUT_WR)
            receive(ends.server, 1)
    wait_until(lambda: not proxy.connections)
    came = [each.connection for each in proxy.record[before:] if each.what == "accepted"]
    lost = {each.connection for each in proxy.record[before:] if each.what == "lost"}
    return [each in lost for each in came]


def test_a_share_of_those_that_come_is_struck_and_the_seed_says_which(listener: socket.socket):
    struck = []
    for _ in range(2):
        with FaultProxy(listener, seed=7) as proxy:
            proxy.some(0.3).lose("to_server")
            struck.append(deaf_ones(proxy, listener, 60))
    assert struck[0] == struck[1]
    assert 6 <= sum(struck[0]) <= 32  # of 60 dice all but two in a hundred thousand


def test_all_or_none_is_a_share_and_the_same_fault_for_all_ends_it(proxy: FaultProxy, listener: socket.socket):
    proxy.some(0).lose("to_server")
    assert deaf_ones(proxy, listener, 5) == [False] * 5
    proxy.some(1).lose("to_server")
    assert deaf_ones(proxy, listener, 5) == [True] * 5
    proxy.lose("to_client", loses=False)
    proxy.restore("to_client")
    assert deaf_ones(proxy, listener, 1) == [True], "the other direction is not concerned"
    proxy.lose(loses=False)
    assert deaf_ones(proxy, listener, 1) == [False]
    proxy.some(1).lose()
    proxy.restore()
    assert deaf_ones(proxy, listener, 1) == [False]
    proxy.after(0).some(1).lose("to_server")
    proxy.wait_for("fault", count=8)
    assert deaf_ones(proxy, listener, 1) == [True]
    assert "some(1).lose('to_server', loses=True)" in proxy.report()


def test_a_share_of_those_that_are_there_is_struck_once(proxy: FaultProxy, listener: socket.socket):
    with ExitStack() as stack:
        there = [stack.enter_context(through(proxy, listener)) for _ in range(40)]
        proxy.some(0.5).reset()
        left = {each.client_address for each in proxy.connections}
        assert 5 <= len(left) <= 35
        for ends in there:
            if ends.client.getsockname() in left:
                assert ends.arrives("to_client")
            else:
                assert outcome(ends.client) == errno.ECONNRESET
        with through(proxy, listener) as newcomer:
            assert newcomer.arrives("to_server")


def test_a_fault_after_so_many_bytes_is_taken_back(proxy: FaultProxy, listener: socket.socket):
    proxy.reset_after(1, "to_server")
    proxy.reset_after(None, "to_server")
    with through(proxy, listener) as ends:
        assert ends.arrives("to_server", BYTES)


def test_what_each_side_has_said_is_kept(listener: socket.socket):
    with FaultProxy(listener, capture_bytes=4) as proxy:
        with through(proxy, listener) as ends:
            assert ends.arrives("to_server", b"question")
            assert ends.arrives("to_client", b"yes")
        proxy.wait_for("closed")
        said = [proxy.captured(1, "to_server"), proxy.captured(1, "to_client"), proxy.captured(2, "to_client")]
        assert said == [b"ques", b"yes", b""]
        with pytest.raises(ValueError, match="direction"):
            proxy.captured(1, "both")  # type: ignore[arg-type]


def test_a_proxy_leads_elsewhere_when_told_so(proxy: FaultProxy, listener: socket.socket):
    with listening() as other:
        proxy.upstream = other
        with socket.create_connection(proxy.address, timeout=PATIENCE), other.accept()[0] as server:
            assert proxy.upstream == [server.getsockname()]
    proxy.upstream = "{}:{}".format(*listener.getsockname())
    with through(proxy, listener) as ends:
        assert ends.arrives("to_server")


# ---- when, and what happened


def test_what_is_planned_happens_though_python_doesnt_run(ends: Ends, hold_gil: Any):
    ends.proxy.after(0.05).reset()
    ends.proxy.after(0.1).refuse()
    hold_gil(0.3)
    assert [event.detail for event in ends.proxy.record if event.what == "fault"] == ["reset('both')", "refuse()"]
    assert outcome(ends.client) == errno.ECONNRESET


def test_what_is_cancelled_doesnt_happen(ends: Ends):
    ends.proxy.after(0.1).reset()
    ends.proxy.cancel()
    assert is_silent(ends.client)
    assert ends.arrives("to_server")


def test_the_record_says_what_happened_in_order(ends: Ends):
    assert ends.arrives("to_server", b"question")
    assert ends.arrives("to_client", b"answer")
    ends.proxy.pull_cable()
    told = [(event.what, event.connection, event.direction, event.bytes) for event in ends.proxy.record]
    assert told == [
        ("accepted", 1, None, 0),
        ("connected", 1, None, 0),
        ("forwarded", 1, "to_server", 8),
        ("forwarded", 1, "to_client", 6),
        ("fault", None, None, 0),
    ]
    report = ends.proxy.report()
    assert "8 bytes to the server" in report
    assert report.index("6 bytes to the client") < report.index("pull_cable()")


# ---- all at once


def break_something(proxy: FaultProxy, dice: random.Random) -> None:
    direction = dice.choice(["both", "to_server", "to_client"])
    what: Any = dice.choice([proxy, proxy.after(dice.random() / 10), *proxy.connections])
    faults = [
        lambda: what.drop(direction),
        lambda: what.stall(direction),
        lambda: what.resume(direction),
        lambda: what.reset(direction),
        lambda: what.end(),
        lambda: what.forget(resets=dice.random() < 0.5),
        lambda: what.forget_after(dice.random()),
        lambda: what.expire(dice.random(), resets=dice.random() < 0.5),
        lambda: proxy.some(dice.random()).stall(direction),
        lambda: proxy.some(dice.random()).expire(dice.random()),
        lambda: what.latency(dice.random() / 50, jitter=0.01, direction=direction),
        lambda: what.bandwidth(dice.randrange(1000, 10**7), direction),
        lambda: what.slice(dice.randrange(1, 2000), spread=dice.randrange(500), direction=direction),
        lambda: what.reset_after(dice.randrange(10**5), direction),
        lambda: what.end_after(dice.randrange(10**5), direction),
        lambda: what.pull_cable_after(dice.randrange(10**5), direction),
        lambda: proxy.refuse(),
        lambda: proxy.limit_connections(5),
        *[proxy.restore] * 10,
    ]
    dice.choice(faults)()


def test_whatever_is_broken_what_arrives_is_what_was_sent_and_nothing_is_left(listener: socket.socket):
    before = open_descriptors()
    over = threading.Event()
    wrong: list[bytes] = []
    whole = [0]

    def receive_all(server: socket.socket) -> None:
        """Of each connection the beginning of the same bytes."""
        with server, suppress(OSError):
            received = b""
            while data := server.recv(65536):
                received += data
            whole[0] += received == BYTES
            if not BYTES.startswith(received):
                wrong.append(received)

    def serve() -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                server, _ = listener.accept()
                server.settimeout(PATIENCE)
                receivers.append(threading.Thread(target=receive_all, args=(server,)))
                receivers[-1].start()

    def send_all(proxy: FaultProxy) -> None:
        while not over.is_set():
            with suppress(OSError), socket.create_connection(proxy.address, timeout=0.5) as client:
                client.sendall(BYTES)
                client.shutdown(socket.SHUT_WR)
                client.recv(1)  # the server has everything, or it takes too long

    listener.settimeout(0.1)
    receivers: list[threading.Thread] = []
    with FaultProxy(listener, buffer_bytes=20_000) as proxy:
        threads = [threading.Thread(target=serve)]
        threads += [threading.Thread(target=send_all, args=(proxy,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        dice = random.Random(1)
        for _ in range(300):
            break_something(proxy, dice)
            time.sleep(0.005)
        over.set()
        proxy.cancel()
        proxy.restore()
        for thread in threads:
            thread.join(PATIENCE)
    for thread in receivers:
        thread.join(2 * PATIENCE)
    assert not any(thread.is_alive() for thread in [*threads, *receivers])
    assert wrong == []
    assert whole[0] > 0
    wait_until(lambda: open_descriptors() <= before)


# ---- life


def test_a_closed_proxy_says_so_and_leaves_nothing(listener: socket.socket):
    before = open_descriptors()
    proxy = FaultProxy(listener)
    with through(proxy, listener) as ends:
        proxy.close()
        proxy.close()
        assert outcome(ends.client) == outcome(ends.server) == errno.ECONNRESET
        with pytest.raises(longconn.AlreadyClosed, match="fault proxy"):
            proxy.pull_cable()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(proxy.address, timeout=PATIENCE)
    wait_until(lambda: open_descriptors() <= before)


def test_in_a_forked_child_a_proxy_is_dead_and_the_parents_goes_on(ends: Ends):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ends.proxy.pull_cable()
        except longconn.ForkedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ends.arrives("to_server")
    assert ends.arrives("to_client")


@pytest.mark.parametrize(
    "mistake",
    [
        lambda proxy: proxy.drop("to_nobody"),
        lambda proxy: proxy.latency(-1),
        lambda proxy: proxy.latency(float("nan")),
        lambda proxy: proxy.latency(1, jitter=1e9),
        lambda proxy: proxy.bandwidth(0),
        lambda proxy: proxy.corrupt(2),
        lambda proxy: proxy.slice(0),
        lambda proxy: proxy.stall_after(-1),
        lambda proxy: proxy.after(-1),
        lambda proxy: proxy.some(1.01),
        lambda proxy: proxy.some(float("nan")),
        lambda proxy: proxy.after(1).some("half"),
        lambda proxy: proxy.expire(-1),
        lambda proxy: FaultProxy("nowhere"),
        lambda proxy: FaultProxy(("127.0.0.1", 1), host="name.example"),
        lambda proxy: FaultProxy(("127.0.0.1", 1), buffer_bytes=0),
    ],
)
def test_a_mistake_is_refused(proxy: FaultProxy, mistake: Any):
    with pytest.raises(ValueError, match=r"\S"):
        mistake(proxy)
