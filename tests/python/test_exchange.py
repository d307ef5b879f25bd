"""longconn.exchange(): the short connection in one call."""

from __future__ import annotations

import errno
import inspect
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import longconn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longconn import MessageTooLarge, PeerLost, exchange
from longconn.short import split_address
from peers import PATIENCE, QUICK, SLACK, cut_off, listening, open_descriptors, reset, wait_until


@contextmanager
def answering(answer: Callable[[socket.socket], Any]) -> Iterator[tuple[str, int]]:
    """A server that does this with each connection, one after the other, and closes it."""
    failures: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            try:
                with sock:
                    sock.settimeout(PATIENCE)
                    answer(sock)
            except BaseException as error:
                failures.append(error)

    with listening() as listener:
        listener.settimeout(0.02)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            ended.set()
            thread.join(PATIENCE * 2)
    assert failures == []


def upper(sock: socket.socket) -> None:
    sock.sendall(sock.recv(65536).upper())


def upper_and_wait(sock: socket.socket) -> None:
    """Doesn't close by itself: the client has to know where the answer ends."""
    upper(sock)
    with suppress(ConnectionResetError):
        assert sock.recv(1) == b""


# ---- where the answer ends


def test_by_default_it_reads_to_the_end_of_the_stream():
    with answering(upper) as address:
        assert exchange(address, b"hello") == b"HELLO"


def test_bytes_end_the_answer_and_belong_to_it():
    with answering(upper_and_wait) as address:
        assert exchange(address, b"one\r\ntwo", until=b"\r\n") == b"ONE\r\n"


def test_a_number_ends_the_answer():
    with answering(upper_and_wait) as address:
        assert exchange(address, b"hello", until=3) == b"HEL"
        assert exchange(address, b"hello", until=5) == b"HELLO"
        assert exchange(address, b"hello", until=0) == b""


def test_the_end_may_come_in_pieces():
    def piecewise(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.recv(100)
        for piece in (b"he", b"llo\r", b"\n", b"more"):
            sock.sendall(piece)
            wait_until(lambda: outstanding(sock) == 0)

    with answering(piecewise) as address:
        assert exchange(address, b"x", until=b"\r\n") == b"hello\r\n"


def outstanding(sock: socket.socket) -> int:
    return longconn._longconn.tcp_info(sock.fileno()).unacked_segments


@settings(max_examples=30, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=200), max_size=6),
    until=st.one_of(st.none(), st.binary(min_size=1, max_size=3), st.integers(0, 300)),
)
def test_any_answer_ends_where_it_says(pieces, until):
    whole = b"".join(pieces)

    def answer(sock: socket.socket) -> None:
        sock.recv(1)
        with suppress(OSError):  # who has enough closes
            for piece in pieces:
                sock.sendall(piece)

    if until is None:
        expected: bytes | None = whole
    elif isinstance(until, int):
        expected = whole[:until] if len(whole) >= until else None
    else:
        expected = whole[: whole.index(until) + len(until)] if until in whole else None
    with answering(answer) as address:
        if expected is None:
            with pytest.raises(PeerLost) as caught:
                exchange(address, b"x", until=until)
            assert caught.value.cause in ("ended", "reset")
        else:
            assert exchange(address, b"x", until=until) == expected


# ---- what is sent


@pytest.mark.parametrize(
    "data",
    [b"hello", bytearray(b"hello"), memoryview(b"--hello--")[2:7], b""],
    ids=["bytes", "bytearray", "view", "none"],
)
def test_any_bytes_can_be_sent(data):
    def answer(sock: socket.socket) -> None:
        if data:
            assert sock.recv(100) == bytes(data)
        sock.sendall(b"fine")

    with answering(answer) as address:
        assert exchange(address, data, until=4) == b"fine"


def test_megabytes_can_be_sent_and_received():
    data = bytes(range(256)) * 8000

    def answer(sock: socket.socket) -> None:
        got = bytearray()
        while len(got) < len(data):
            got += sock.recv(1 << 20)
        sock.sendall(got[::-1])

    with answering(answer) as address:
        assert exchange(address, data, max_bytes=len(data)) == data[::-1]


def test_an_echo_of_more_than_all_buffers_hold_is_read_while_it_is_sent():
    def echo(sock: socket.socket) -> None:
        with suppress(ConnectionError):  # a client that has heard enough
            while part := sock.recv(65536):
                sock.sendall(part)

    data = bytes(range(256)) * (30_000_000 // 256)
    with answering(echo) as address:
        assert exchange(address, data, until=len(data), max_bytes=len(data), timeout=PATIENCE) == data
        assert exchange(address, data, until=data[:5], timeout=PATIENCE) == data[:5], "all is sent all the same"


def test_all_is_sent_though_the_answer_has_come_to_its_end():
    got: list[int] = []

    def answer_first(sock: socket.socket) -> None:
        sock.sendall(b"fine")
        sock.shutdown(socket.SHUT_WR)
        count = 0
        while part := sock.recv(65536):
            count += len(part)
        got.append(count)

    with answering(answer_first) as address:
        assert exchange(address, b"x" * 10_000_000, timeout=PATIENCE) == b"fine"
    assert got == [10_000_000]


def test_a_server_that_refuses_the_rest_is_a_loss():
    with answering(lambda sock: sock.sendall(b"too much")) as address:
        with pytest.raises(ConnectionError):
            exchange(address, b"x" * 10_000_000, until=b"\n", timeout=PATIENCE)


def test_the_sending_side_is_never_half_closed():
    """Many servers take that for the end of the client."""
    ends: list[bytes] = []

    def answer(sock: socket.socket) -> None:
        sock.recv(100)
        sock.setblocking(False)
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline:  # a FIN sent with the data would have arrived long ago
            with suppress(BlockingIOError):
                ends.append(sock.recv(1))
                break
        sock.sendall(b"fine")

    with answering(answer) as address:
        assert exchange(address, b"hello") == b"fine"
    assert ends == []


def test_the_connection_is_closed_afterwards_whatever_happens():
    before = open_descriptors()
    with listening() as listener:
        inside = open_descriptors()
        for until, error in ((b"never", TimeoutError), (None, TimeoutError)):
            with pytest.raises(error):
                exchange(listener.getsockname(), b"x", until=until, timeout=0.05)
        assert open_descriptors() == inside
    assert open_descriptors() == before


def test_it_is_made_of_a_keepalive_socket(default):
    longconn.set_default_keepalive(QUICK)

    def answer(sock: socket.socket) -> None:
        sock.recv(100)
        cut_off(sock)
        sock.sendall(b"half")
        told.wait(PATIENCE)

    told = threading.Event()
    with answering(answer) as address:
        try:
            with pytest.raises(PeerLost) as caught:
                exchange(address, b"x" * 20_000_000, until=b"never", timeout=None)  # in flight when the path is cut
        finally:
            told.set()
        assert caught.value.cause in ("unreachable", "deaf")


# ---- errors


def test_the_end_of_the_stream_before_the_end_of_the_answer_is_a_loss():
    with answering(upper) as address:
        for until in (b"\r\n", 100):
            with pytest.raises(PeerLost) as caught:
                exchange(address, b"hello", until=until)
            error = caught.value
            assert (error.cause, error.errno, error.peer) == ("ended", None, address)
            assert not isinstance(error, TimeoutError | ConnectionResetError)
            assert "5 bytes" in str(error)


def test_a_reset_in_the_middle_is_a_loss():
    with answering(lambda sock: (sock.recv(100), sock.sendall(b"half"), reset(sock))) as address:
        with pytest.raises(PeerLost) as caught:
            exchange(address, b"hello", until=b"\r\n")
        assert caught.value.cause == "reset"


@pytest.mark.parametrize("until", [None, b"\r\n"])
def test_an_answer_without_an_end_in_bounds_is_refused(until):
    def flood(sock: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock.sendall(b"x" * 65536)

    with answering(flood) as address:
        with pytest.raises(MessageTooLarge) as caught:
            exchange(address, b"hello", until=until, max_bytes=100_000)
        assert "100000" in str(caught.value)
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("until", [None, b"\n", 5])
def test_an_answer_of_exactly_the_bound_is_taken(until):
    with answering(lambda sock: sock.sendall(b"1234\n")) as address:
        assert exchange(address, b"", until=until, max_bytes=5) == b"1234\n"
    with answering(lambda sock: sock.sendall(b"12345\n")) as address:
        if until == 5:
            assert exchange(address, b"", until=until, max_bytes=5) == b"12345"
        else:
            with pytest.raises(MessageTooLarge):
                exchange(address, b"", until=until, max_bytes=5)


def test_the_time_is_for_everything_together():
    """A server that says a byte now and then doesn't extend it."""

    def drip(sock: socket.socket) -> None:
        with suppress(OSError):
            while not ended.wait(0.02):
                sock.sendall(b"x")

    ended = threading.Event()
    with answering(drip) as address:
        began = time.monotonic()
        try:
            with pytest.raises(TimeoutError) as caught:
                exchange(address, b"hello", timeout=0.3)
        finally:
            ended.set()
        assert type(caught.value) is TimeoutError
        assert 0.3 <= time.monotonic() - began < 0.3 + 1.0 * SLACK


@contextmanager
def addresses_of(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> Iterator[None]:
    """A name with several addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        yield


def test_the_time_is_for_all_addresses_together(monkeypatch):
    with listening() as first, listening() as second, listening() as third:
        listeners = (first, second, third)
        for listener in listeners:
            cut_off(listener)
        began = time.monotonic()
        addresses = addresses_of(monkeypatch, *(listener.getsockname() for listener in listeners))
        with addresses, pytest.raises(TimeoutError):
            exchange("several:80", b"hello", timeout=0.6)
        assert 0.6 <= time.monotonic() - began < 0.6 + 1.0 * SLACK


def test_an_address_that_does_not_answer_leaves_time_for_the_next(monkeypatch):
    with listening() as silent, answering(upper) as address:
        cut_off(silent)
        with addresses_of(monkeypatch, silent.getsockname(), address):
            assert exchange("several:80", b"hello", timeout=2 * SLACK) == b"HELLO"


@pytest.mark.parametrize("timeout", [timedelta(seconds=PATIENCE), math.inf, 1e12, None, int(PATIENCE)])
def test_a_timeout_is_any_kind_of_duration(timeout):
    with answering(upper) as address:
        assert exchange(address, b"hello", timeout=timeout) == b"HELLO"


@pytest.mark.parametrize("timeout", ["5", True, [5]])
def test_a_timeout_that_is_none_is_a_type_error(timeout):
    met: list[bytes] = []
    with answering(lambda sock: met.append(sock.recv(100))) as address, pytest.raises(TypeError, match="timeout"):
        exchange(address, b"hello", timeout=timeout)
    assert met == []


def test_nobody_there_is_refused_as_the_stdlib_refuses():
    with listening() as listener:
        address = listener.getsockname()
    with pytest.raises(ConnectionRefusedError) as caught:
        exchange(address, b"hello")
    assert caught.value.errno == errno.ECONNREFUSED
    with pytest.raises(socket.gaierror):
        exchange("name.invalid:80", b"hello")


def test_nobody_who_answers_is_a_timeout():
    with listening() as listener:
        cut_off(listener)
        with pytest.raises(TimeoutError):
            exchange(listener.getsockname(), b"hello", timeout=0.05)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"data": data} for data in ("hello", None, 5, ["hello"])),
        *({"until": until} for until in ("\r\n", 1.5, [b"x"], object(), True)),
        {"max_bytes": 1e6},
        {"max_bytes": "5"},
    ],
    ids=repr,
)
def test_values_of_other_types_are_refused_before_anything_is_sent(arguments):
    met: list[bytes] = []
    with answering(lambda sock: met.append(sock.recv(100))) as address:
        with pytest.raises(TypeError):
            exchange(address, **{"data": b"hello", **arguments})
    assert met == []


@pytest.mark.parametrize("until", [b"LL", bytearray(b"LL"), memoryview(b"LL")])
def test_an_end_may_be_any_bytes(until):
    with answering(upper_and_wait) as address:
        assert exchange(address, b"hello", until=until) == b"HELL"


OUT_OF_RANGE: list[dict[str, Any]] = [
    {"until": b""},
    {"until": -1},
    {"until": 11, "max_bytes": 10},
    {"timeout": -1},
    {"timeout": math.nan},
    {"max_bytes": -1},
]


@pytest.mark.parametrize("arguments", OUT_OF_RANGE, ids=repr)
def test_values_out_of_range_are_refused_before_anything_is_sent(arguments):
    met: list[bytes] = []
    with answering(lambda sock: met.append(sock.recv(100))) as address:
        with pytest.raises(ValueError, match=r"."):
            exchange(address, b"hello", **arguments)
    assert met == []


def test_its_options_are_given_by_name_and_have_the_documented_defaults():
    parameters = inspect.signature(exchange).parameters
    assert [(name, parameter.default) for name, parameter in parameters.items()][2:] == [
        ("until", None),
        ("timeout", 10.0),
        ("max_bytes", 1 << 20),
    ]
    with pytest.raises(TypeError):
        exchange(("127.0.0.1", 1), b"", b"\r\n")  # type: ignore[misc]


# ---- addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8083", ("127.0.0.1", 8083)),
        ("localhost:8083", ("localhost", 8083)),
        ("[::1]:8083", ("::1", 8083)),
        (":8083", ("localhost", 8083)),
        (("::1", 8083, 0, 0), ("::1", 8083)),
        (("localhost", 8083), ("localhost", 8083)),
        (["localhost", 8083], ("localhost", 8083)),
        ((b"localhost", 8083), ("localhost", 8083)),
        (("localhost", "8083"), ("localhost", 8083)),
        ((None, 8083), ("localhost", 8083)),
    ],
)
def test_an_address_may_be_a_pair_or_a_text(text, address):
    assert split_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("localhost", "localhost:", "::1:8083", "localhost:http", "host:65536", "", ("host",), 5, None),
        *(("host", port) for port in (65536, -1, "http", None)),
        (5, 80),
        (b"\xff", 80),
    ],
)
def test_other_addresses_are_refused_by_name(text):
    with pytest.raises(ValueError, match="address"):
        exchange(text, b"hello")


def test_an_exchange_by_text_works():
    with answering(upper) as (host, port):
        assert exchange(f"{host}:{port}", b"hello") == b"HELLO"
