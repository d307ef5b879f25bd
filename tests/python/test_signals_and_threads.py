"""Signals, threads and the interpreter's exit: whoever waits in a call can be interrupted, and nobody crashes."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from longconn import KeepaliveSocket, PeerLost
from longconn import socket as mirror
from peers import (
    PATIENCE,
    QUICK,
    SLACK,
    STDLIB,
    connected,
    cut_off,
    environment,
    fill,
    listening,
    python,
    wait_until,
    wait_until_blocked,
)

LARGE = bytes(50_000_000)  # more than any buffer takes; made here, for that takes longer than some timers
TIMEOUTS = pytest.mark.parametrize("timeout", [None, 60.0], ids=["blocking", "with a timeout"])

# ---- Ctrl-C

CALLS: dict[str, str] = {
    "recv": "sock.recv(10)",
    "recv large": "sock.recv(100_000)",
    "recv larger": "sock.recv(1_000_000)",
    "recv_into": "sock.recv_into(bytearray(10))",
    "recvfrom": "sock.recvfrom(10)",
    "send": "fill(sock, timeout); sock.send(b'x' * 10_000_000)",
    "sendall": "sock.sendall(b'x' * 50_000_000)",
    "sendall small": "fill(sock, timeout); sock.sendall(b'x')",
    "accept": "listener.accept()",
    "connect": "mute(listener); other.connect(listener.getsockname())",
}

INTERRUPTED = """
import signal, socket, sys
sys.path.insert(0, sys.argv[1])
import peers
from longconn import socket as mirror
timeout = eval(sys.argv[2])
mute = peers.cut_off
def fill(sock, timeout):
    peers.fill(sock)
    sock.settimeout(timeout)
signal.signal(signal.SIGINT, signal.default_int_handler)
listener = mirror.create_server(("127.0.0.1", 0))
sock = mirror.create_connection(listener.getsockname())
peer, _ = listener.accept()
other = mirror.socket()
for each in (listener, sock, other):
    each.settimeout(timeout)
print("ready", flush=True)
try:
    CALL
except KeyboardInterrupt:
    print("interrupted", flush=True)
for each in (sock, peer, listener, other):
    each.close()
"""


@TIMEOUTS
@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_ends_a_call_at_once(call, timeout):
    code = INTERRUPTED.replace("CALL", CALLS[call])
    arguments = [sys.executable, "-W", "error", "-c", code, str(Path(__file__).parent), repr(timeout)]
    with subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as it:
        try:
            assert it.stdout.readline() == "ready\n"
            wait_until_blocked(it.pid, it.pid)
            sent = time.monotonic()
            it.send_signal(signal.SIGINT)
            assert it.stdout.readline() == "interrupted\n"
            assert time.monotonic() - sent < 0.5 * SLACK
            assert it.communicate(timeout=PATIENCE) == ("", "")
            assert it.returncode == 0
        finally:
            it.kill()


# ---- handlers that don't raise


@contextmanager
def handling(handler: Callable[..., Any], every: float, times: int = 10**9) -> Iterator[list[float]]:
    """SIGALRM comes every so often, but never while its handler runs; returns when it came."""
    came: list[float] = []
    ended = False

    def handle(*_: Any) -> None:
        came.append(time.monotonic())
        handler()
        if len(came) < times and not ended:
            signal.setitimer(signal.ITIMER_REAL, every)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, every)
    try:
        yield came
    finally:
        ended = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


WAITING: dict[str, Callable[[Any], Any]] = {
    "recv": lambda sock: sock.recv(10),
    "recv large": lambda sock: sock.recv(100_000),
    "recv_into": lambda sock: sock.recv_into(bytearray(10)),
    "recvfrom": lambda sock: sock.recvfrom(10),
}


@pytest.mark.parametrize("call", WAITING.values(), ids=WAITING)
def test_signals_do_not_extend_a_timeout(call):
    with connected() as (ours, _):
        ours.settimeout(0.3)
        with handling(lambda: None, every=0.02) as came:
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                call(ours)
            elapsed = time.monotonic() - began
        assert len(came) >= 3
        assert 0.3 <= elapsed < 0.3 + 0.5 * SLACK


@TIMEOUTS
@pytest.mark.parametrize("call", WAITING.values(), ids=WAITING)
def test_a_call_goes_on_after_a_handler(call, timeout):
    with connected() as (ours, peer):
        ours.settimeout(timeout)
        handlings = iter([lambda: None, lambda: None, lambda: peer.send(b"x" * 10)])
        with handling(lambda: next(handlings)(), every=0.02, times=3) as came:
            call(ours)
        assert len(came) == 3


@TIMEOUTS
def test_a_handler_may_use_the_same_socket(timeout):
    """It receives while the call that it interrupts is receiving."""
    with connected() as (ours, peer):
        ours.settimeout(timeout)
        got: list[bytes] = []

        def handle() -> None:
            peer.send(b"for the handler")
            got.append(ours.recv(100_000))
            peer.send(b"for the call")

        with handling(handle, every=0.05, times=1):
            got.append(ours.recv(100_000))
        assert got == [b"for the handler", b"for the call"]


@TIMEOUTS
def test_accept_and_connect_go_on_after_a_handler(timeout):
    with listening(KeepaliveSocket) as listener, STDLIB() as peer:
        listener.settimeout(timeout)
        with handling(lambda: peer.connect(listener.getsockname()), every=0.05, times=1) as came:
            accepted, _ = listener.accept()
            accepted.close()
        assert len(came) == 1
    with listening() as listener, KeepaliveSocket() as ours:
        ours.settimeout(0.3)
        cut_off(listener)
        with handling(lambda: None, every=0.02) as came, pytest.raises(TimeoutError):
            ours.connect(listener.getsockname())
        assert len(came) >= 3


@TIMEOUTS
@pytest.mark.parametrize("method", ["send", "sendall"])
def test_sending_goes_on_after_handlers_and_loses_nothing(timeout, method):
    data = os.urandom(1 << 20) * 8
    with connected() as (ours, peer):
        ours.settimeout(timeout)
        received = bytearray()

        def read_some() -> None:
            received.extend(peer.recv(1 << 20))

        with handling(read_some, every=0.005):
            view = memoryview(data)
            while view:
                if method == "sendall":
                    assert ours.sendall(view) is None
                    break
                view = view[ours.send(view) :]
        ours.close()
        while part := peer.recv(1 << 20):
            received += part
    assert received == data


@TIMEOUTS
@pytest.mark.parametrize("call", [*WAITING.values(), lambda sock: sock.sendall(LARGE)], ids=[*WAITING, "sendall"])
def test_what_a_handler_raises_ends_the_call_and_the_socket_goes_on(timeout, call):
    class Enough(Exception):
        pass

    def handle() -> None:
        raise Enough

    with connected() as (ours, peer):
        ours.settimeout(timeout)
        with handling(handle, every=0.05, times=1), pytest.raises(Enough):
            call(ours)
        assert ours.lost is None
        peer.send(b"x")
        assert ours.recv(1) == b"x"


def test_a_signal_that_comes_while_the_data_is_made_ends_sendall():
    class Enough(Exception):
        pass

    def handle() -> None:
        raise Enough

    # The interpreter looks for signals after a call, and not between the multiplication and the call.
    with connected() as (ours, _):
        ours.settimeout(None)
        with handling(handle, every=0.001, times=1), pytest.raises(Enough):
            ours.sendall(b"x" * 300_000_000)


def test_a_signal_for_another_thread_does_not_disturb_this_one():
    """The main thread handles signals; one that waits elsewhere goes on waiting."""
    with connected() as (ours, peer):
        got: list[bytes] = []
        thread, identity = in_thread(lambda: got.append(ours.recv(10)))
        wait_until_blocked(identity)
        with handling(lambda: None, every=0.01) as came:
            signal.pthread_kill(thread.ident, signal.SIGALRM)
            wait_until(lambda: len(came) >= 3)
        peer.send(b"x")
        thread.join(PATIENCE)
        assert got == [b"x"]


# ---- threads


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, int]:
    """Returns the thread, and its number in the kernel."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread, thread.native_id


def close_while_waiting(cls: type[socket.socket], timeout: float | None, how: str) -> tuple[Any, ...]:
    with connected(cls) as (ours, peer):
        ours.settimeout(timeout)
        outcomes: list[Any] = []

        def wait() -> None:
            try:
                outcomes.append(ours.recv(10))
            except OSError as error:
                outcomes.append((type(error).__name__, error.errno))

        thread, identity = in_thread(wait)
        wait_until_blocked(identity)
        if how == "shutdown":
            ours.shutdown(socket.SHUT_RDWR)
        else:
            fd = getattr(ours, how)()
            if fd is not None:
                os.close(fd)
            assert thread.is_alive(), "nobody is woken by close(2)"
            peer.send(b"x")
        thread.join(PATIENCE)
        assert not thread.is_alive()
        return outcomes[0], ours.fileno() == -1


@TIMEOUTS
@pytest.mark.parametrize("how", ["close", "detach", "shutdown"])
def test_a_socket_closed_by_another_thread_while_one_waits_does_what_the_stdlibs_does(timeout, how):
    assert close_while_waiting(KeepaliveSocket, timeout, how) == close_while_waiting(STDLIB, timeout, how)


def next_owner_of_its_number(cls: type[socket.socket], call: Callable[[Any], Any], wake: Callable[[Any], Any]) -> Any:
    """One thread waits with a timeout, another closes the socket, and its number becomes another connection's.

    Returns what the call did, what the next owner could still read, and what its peer has got.
    """
    with listening() as listener, connected(cls) as (ours, peer):
        ours.settimeout(PATIENCE)
        outcomes: list[Any] = []

        def wait() -> None:
            try:
                outcomes.append(call(ours))
            except OSError as error:
                outcomes.append((type(error).__name__, error.errno))

        thread, identity = in_thread(wait)
        wait_until_blocked(identity)
        number = ours.fileno()
        ours.close()
        with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as stranger:
            assert stranger.fileno() == number
            stranger.connect(listener.getsockname())
            strangers_peer, _ = listener.accept()
            with strangers_peer:
                strangers_peer.send(b"private")
                assert stranger.recv(7, socket.MSG_PEEK | socket.MSG_WAITALL) == b"private"
                wake(peer)  # the thread polls the old connection all the time
                thread.join(5 * SLACK)
                return outcomes, is_there(stranger), is_there(strangers_peer)


def is_there(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(7, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None


def read_all(sock: socket.socket) -> None:
    """Until the other side is gone, one way or another."""
    try:
        while sock.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass


@pytest.mark.parametrize(
    ("call", "wake"),
    [
        (lambda sock: sock.recv(10), lambda peer: peer.send(b"x")),
        (lambda sock: sock.recv(100_000), lambda peer: peer.send(b"x")),
        (lambda sock: sock.recv_into(bytearray(10)), lambda peer: peer.send(b"x")),
        (lambda sock: sock.sendall(b"x" * 50_000_000), read_all),
    ],
    ids=["recv", "recv large", "recv_into", "sendall"],
)
def test_who_waits_on_a_closed_socket_never_touches_the_next_owner_of_its_number(call, wake):
    theirs = next_owner_of_its_number(STDLIB, call, wake)
    assert theirs == ([("OSError", errno.EBADF)], b"private", None)
    assert next_owner_of_its_number(KeepaliveSocket, call, wake) == theirs


@TIMEOUTS
def test_many_threads_receive_from_one_socket_and_each_byte_once(timeout):
    data = bytes(range(256)) * 4000
    with connected() as (ours, peer):
        ours.settimeout(timeout)
        parts: list[bytes] = []

        def receive() -> None:
            while part := ours.recv(1000):
                parts.append(part)

        threads = [in_thread(receive)[0] for _ in range(8)]
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(b"".join(parts)) == sorted(data)


@TIMEOUTS
def test_many_threads_send_on_one_socket_and_each_byte_arrives_once(timeout):
    with connected() as (ours, peer):
        ours.settimeout(timeout)

        def send(byte: int) -> None:
            for _ in range(200):
                ours.sendall(bytes([byte]) * 1000)

        threads = [in_thread(lambda byte=byte: send(byte))[0] for byte in range(8)]  # type: ignore[misc]
        received = bytearray()
        while len(received) < 8 * 200_000:
            received += peer.recv(1 << 20)
        for thread in threads:
            thread.join(PATIENCE)
        assert [received.count(byte) for byte in range(8)] == [200_000] * 8


def test_both_directions_of_one_socket_at_once():
    """As a heartbeat does: one thread waits for ever, another sends."""
    with connected() as (ours, peer):
        got: list[bytes] = []
        thread, identity = in_thread(lambda: got.append(ours.recv(10)))
        wait_until_blocked(identity)
        for _ in range(100):
            ours.sendall(b"beat")
            assert peer.recv(4, socket.MSG_WAITALL) == b"beat"
        peer.send(b"x")
        thread.join(PATIENCE)
        assert got == [b"x"]


def test_all_threads_that_wait_are_woken_by_the_verdict_and_one_is_told():
    with connected(keepalive=QUICK) as (ours, peer):
        outcomes: list[Any] = []

        def wait() -> None:
            try:
                outcomes.append(ours.recv(10))
            except PeerLost as error:
                outcomes.append(error.cause)

        threads = [in_thread(wait) for _ in range(4)]
        for _, identity in threads:
            wait_until_blocked(identity)
        cut_off(peer)
        ours.send(b"into the void")
        for thread, _ in threads:
            thread.join(PATIENCE)
        assert sorted(map(str, outcomes)) == sorted(["unreachable", "b''", "b''", "b''"])


def test_the_gil_is_free_while_a_call_blocks():
    with connected() as (ours, peer):
        for call in (lambda: ours.recv(10), lambda: ours.recv_into(bytearray(10))):
            thread, identity = in_thread(call)
            wait_until_blocked(identity)
            assert sum(range(1000)) == 499_500
            peer.send(b"x")
            thread.join(PATIENCE)
            assert not thread.is_alive()
        fill(ours)
        thread, identity = in_thread(lambda: ours.sendall(b"x" * 100_000))
        wait_until_blocked(identity)
        peer.setblocking(False)

        def is_sent() -> bool:
            with suppress(BlockingIOError):
                peer.recv(1 << 20)
            return not thread.is_alive()

        wait_until(is_sent)


def test_sockets_are_made_and_closed_by_many_threads_at_once():
    with listening() as listener:
        address = listener.getsockname()
        failures: list[BaseException] = []

        def churn() -> None:
            try:
                for _ in range(100):
                    with mirror.create_connection(address) as sock:
                        sock.keepalive = QUICK
                        sock.send(b"x")
            except BaseException as error:
                failures.append(error)

        threads = [in_thread(churn)[0] for _ in range(4)]
        accepted = 0
        while accepted < 400 and not failures:
            listener.accept()[0].close()
            accepted += 1
        for thread in threads:
            thread.join(PATIENCE)
        assert failures == []


# ---- the interpreter's exit; while threads are blocked: test_exits.py

EXIT_PRELUDE = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
import longconn
from longconn import socket
from peers import QUICK, STDLIB, cut_off, wait_until
listener = socket.create_server(("127.0.0.1", 0))
sock = socket.create_connection(listener.getsockname())
peer, _ = listener.accept()
def background(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread
"""

EXITS: dict[str, str] = {
    "guarded sockets left open": "socks = [socket.create_connection(listener.getsockname()) for _ in range(50)]",
    "a foreign guard left": "g = longconn.guard(STDLIB(fileno=sock.detach()).detach(), limit=8, on_lost=print)",
    "a guard about to convict": """
        peer.keepalive = sock.keepalive = QUICK
        guard = longconn.guard(sock, limit=0.5, on_lost=lambda error: None)
        cut_off(peer); cut_off(sock); sock.send(b"x"); peer.send(b"x")
        wait_until(lambda: guard.lost)
    """,
    "a callback that is slow": """
        begun = threading.Event()
        guard = longconn.guard(sock, limit=0.5, on_lost=lambda error: (begun.set(), time.sleep(0.2)))
        cut_off(peer); sock.send(b"x")
        begun.wait()
    """,
    "a callback that never ends": """
        begun = threading.Event()
        guard = longconn.guard(sock, limit=0.5, on_lost=lambda error: (begun.set(), threading.Event().wait()))
        cut_off(peer); sock.send(b"x")
        begun.wait()
    """,
    "a callback that comes back to an interpreter that is gone": """
        begun = threading.Event()
        guard = longconn.guard(sock, limit=0.5, on_lost=lambda error: (begun.set(), any(iter(lambda: 0, 1))))
        cut_off(peer); sock.send(b"x")
        begun.wait()
    """,
    "the same, of a LongConnection": """
        begun = threading.Event()
        server = longconn.LongServer(("127.0.0.1", 0))
        told = lambda event: (begun.set(), any(iter(lambda: 0, 1)))
        connection = longconn.connect(server.address, on_event=told)
        begun.wait()
    """,
    "a LongServer that lives longer than the modules": """
        import builtins
        builtins.kept = longconn.LongServer(("127.0.0.1", 0))
    """,
    "sockets used by what runs at exit": """
        import atexit
        def use():
            sock.send(b"x")
            assert peer.recv(1) == b"x"
            socket.create_connection(listener.getsockname()).close()
        atexit.register(use)
    """,
    "sys.exit in the middle of a with": """
        with sock, longconn.guard(peer, limit=8):
            sys.exit(0)
    """,
}


@pytest.mark.parametrize("what", EXITS)
def test_the_interpreters_exit_is_clean(what):
    """Without -W error: a socket that is left open at exit warns, as the stdlib's does."""
    code = EXIT_PRELUDE + textwrap.dedent(EXITS[what])
    done = python("-c", code, str(Path(__file__).parent))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


BUSY = (
    EXIT_PRELUDE
    + """
peer.settimeout(TIMEOUT); sock.settimeout(TIMEOUT)
def send():
    while True:
        sock.send(b"x" * 100)
def receive():
    while True:
        CALL
counts = [background(send), background(receive), background(receive)]
time.sleep(0.05)  # they are at it: any moment will do
"""
)


@pytest.mark.parametrize("call", ["peer.recv(100)", "peer.recv(100_000)", "peer.recv_into(bytearray(100))"])
@pytest.mark.parametrize("timeout", [None, 60.0], ids=["blocking", "with a timeout"])
def test_exit_is_clean_while_daemon_threads_are_at_it(call, timeout):
    """They come back from the kernel in the middle of finalisation, when nobody may run Python any more."""
    code = BUSY.replace("TIMEOUT", repr(timeout)).replace("CALL", call)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(4)
    ]
    outcomes = [(process.communicate(timeout=PATIENCE * 2)[0], process.returncode) for process in processes]
    assert outcomes == [("", 0)] * len(processes)
