"""The test kit: who is told what through the fault proxy, assertions that tell a story, and the pytest plugin."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import longconn
import pytest
from longconn import Heartbeat, KeepaliveSocket, LongConnection, LongServer, PeerLost
from longconn.testing import DeadPeer, FaultProxy, assert_not_told_within, assert_told_within
from peers import PATIENCE, QUICK, SLACK, is_asleep, let_go, python, python_says, wait_until

BEAT = Heartbeat(0.2, limit=1.5 * SLACK)


class Pair:
    """A server's connection and a client's, and the proxy between them."""

    def __init__(self, server: LongServer, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.client = longconn.connect(proxy.address, heartbeat=BEAT, reconnect=False, timeout=PATIENCE)
        self.server: LongConnection = server.accept(timeout=PATIENCE)

    def loss(self, who: str) -> PeerLost:
        with pytest.raises(PeerLost) as lost:
            getattr(self, who).recv(timeout=PATIENCE)
        return lost.value


@pytest.fixture
def pair(long_server: Callable[..., LongServer], fault_proxy: Callable[..., FaultProxy]):
    server = long_server(heartbeat=BEAT, session_retention=0)
    pair = Pair(server, fault_proxy(server))
    yield pair
    for each in (pair.client, pair.server):
        let_go(each)


# ---- who is told what


@pytest.mark.parametrize(
    ("break_it", "client", "server"),
    [
        (lambda proxy: proxy.pull_cable(), "unreachable", "unreachable"),
        (lambda proxy: proxy.forget(), "unreachable", "unreachable"),
        (lambda proxy: proxy.stall(), "frozen", "frozen"),
        (lambda proxy: proxy.reset(), "reset", "reset"),
        (lambda proxy: proxy.end(), "ended", "ended"),
    ],
    ids=["pull_cable", "forget", "stall", "reset", "end"],
)
def test_both_sides_are_told_why(pair: Pair, break_it: Callable[[FaultProxy], None], client: str, server: str):
    break_it(pair.proxy)
    assert (pair.loss("client").cause, pair.loss("server").cause) == (client, server)


def test_of_a_stalled_direction_who_isnt_heard_is_told_that_by_who_doesnt_hear(pair: Pair):
    pair.proxy.stall("to_server")
    assert pair.loss("server").cause == "frozen"
    lost = pair.loss("client")
    assert (lost.cause, lost.given_up) in {("deaf", "unheard"), ("reset", "unheard"), ("reset", None)}


def test_a_short_cut_passes_unnoticed(pair: Pair):
    pair.proxy.pull_cable()
    pair.proxy.after(0.3).restore()
    pair.client.send(b"hello")
    assert pair.server.recv(timeout=PATIENCE) == b"hello"
    assert pair.client.state == pair.server.state == "open"


def test_a_guarded_socket_is_told_of_a_pulled_cable_with_data_in_flight(fault_proxy: Callable[..., FaultProxy]):
    with DeadPeer() as peer, KeepaliveSocket(keepalive=QUICK) as sock:
        proxy = fault_proxy(peer)
        sock.connect(proxy.address)
        proxy.pull_cable()
        sock.sendall(b"x")
        with pytest.raises(PeerLost) as lost:
            sock.recv(1)
        assert lost.value.cause == "unreachable"


# ---- assertions


def test_what_was_told_in_time_is_given(pair: Pair):
    pair.proxy.reset()
    with assert_told_within(PATIENCE, cause=("reset", "ended")) as told:
        pair.client.recv()
    assert told.error.cause == "reset"
    assert 0 <= told.seconds <= PATIENCE


def failure(assertion: Any, block: Callable[[], object]) -> str:
    with pytest.raises(AssertionError) as failed, assertion:
        block()
    return str(failed.value)


def test_the_wrong_cause_is_a_story(pair: Pair):
    pair.proxy.reset()
    story = failure(assert_told_within(PATIENCE, cause="unreachable"), pair.client.recv)
    expected, came, *record = story.splitlines()
    assert "with cause unreachable" in expected
    assert "PeerReset" in came
    assert "(cause reset)" in came
    assert any("reset('both')" in line for line in record)


def test_who_isnt_told_is_let_go_and_the_story_says_so(fault_proxy: Callable[..., FaultProxy]):
    """A client that would hang for ever."""
    with DeadPeer() as peer, socket.create_connection(fault_proxy(peer).address) as client:
        story = failure(assert_told_within(0.2 / SLACK), lambda: client.recv(1))
    assert "ConnectionResetError" in story
    assert "is let go" in story


def test_a_block_that_ends_well_was_told_nothing(fault_proxy: Callable[..., FaultProxy]):
    with DeadPeer() as peer:
        proxy = fault_proxy(peer)
        story = failure(assert_told_within(0.1 / SLACK), lambda: None)
        assert "nobody was told anything" in story
        # what was to let the client go, after 1.2 s, is called off
        proxy.after(1.5).latency(0.1)
        assert "latency" in proxy.wait_for("fault")[0].detail


def test_who_hangs_is_shown_to_hang_and_let_go(fault_proxy: Callable[..., FaultProxy]):
    with DeadPeer() as peer, socket.create_connection(fault_proxy(peer).address) as client:
        with assert_not_told_within(0.3) as told:
            client.recv(1)
        assert isinstance(told.error, ConnectionResetError)
        assert told.seconds >= 0.3


def test_who_is_told_doesnt_hang(pair: Pair):
    pair.proxy.reset()
    story = failure(assert_not_told_within(PATIENCE), pair.client.recv)
    assert "was told PeerReset" in story


def test_a_cause_is_found_behind_a_librarys_own_error(pair: Pair):
    def library() -> None:
        try:
            pair.client.recv()
        except OSError as error:
            raise RuntimeError("the database is gone") from error

    pair.proxy.reset()
    with assert_told_within(PATIENCE, cause="reset", error=RuntimeError):
        library()


def test_another_error_is_the_tests_own():
    with pytest.raises(ZeroDivisionError), assert_told_within(PATIENCE):
        1 / 0  # noqa: B018


# ---- programs in trouble


def test_a_dead_peer_takes_connections_and_bytes_and_says_nothing(dead_peer: DeadPeer):
    with socket.create_connection(dead_peer.address, timeout=PATIENCE) as client:
        client.sendall(b"anybody?")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        dead_peer.close()
        client.settimeout(PATIENCE)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_frozen_process_stands_still_and_goes_on(freeze: Callable[[Any], None]):
    argv = [sys.executable, "-c", "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        freeze(process)
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state == "T"
        from longconn import testing

        with testing.freeze(process.pid):
            print("hello", file=process.stdin, flush=True)
        assert process.stdout.readline() == "hello\n"
        process.stdin.close()


def test_who_holds_the_gil_lets_nobody_else_run(hold_gil: Callable[[float], None]):
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.01):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    wait_until(lambda: ticks)
    began = time.monotonic()
    hold_gil(0.3)
    held = time.monotonic() - began
    stop.set()
    thread.join(PATIENCE)
    assert held >= 0.3
    if not hasattr(sys, "_is_gil_enabled") or sys._is_gil_enabled():
        assert not [at for at in ticks if began + 0.1 < at < began + 0.29]


# ---- the plugin


def run_pytest(tmp_path: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    page = tmp_path / "test_it.py"
    page.write_text(source, encoding="utf-8")
    return python("-m", "pytest", "-q", "-p", "no:cacheprovider", *options, page, cwd=tmp_path)


def test_a_failed_test_shows_what_happened_at_its_proxies(tmp_path: Path):
    source = """
import socket

def test_it(fault_proxy, dead_peer):
    proxy = fault_proxy(dead_peer)
    with socket.create_connection(proxy.address):
        proxy.wait_for("connected")
        proxy.pull_cable()
        assert False
"""
    done = run_pytest(tmp_path, source)
    assert done.returncode == 1
    assert "fault proxy 127.0.0.1:" in done.stdout
    assert "pull_cable()" in done.stdout


def test_a_story_that_an_assertion_has_told_isnt_told_again_and_the_kits_own_code_isnt_shown(tmp_path: Path):
    source = """
import socket
from longconn.testing import assert_told_within

def test_it(fault_proxy, dead_peer):
    with socket.create_connection(fault_proxy(dead_peer).address), assert_told_within(60, cause="reset"):
        raise ConnectionRefusedError
"""
    done = run_pytest(tmp_path, source, "-rN")  # no summary: where CI is set, pytest's own repeats the whole error
    assert done.returncode == 1
    assert done.stdout.count("fault proxy 127.0.0.1:") == 1
    assert "telling.py" not in done.stdout


def test_an_error_that_cant_be_told_is_no_trouble_of_the_plugins(tmp_path: Path):
    source = """
class Speechless(Exception):
    def __str__(self):
        raise ZeroDivisionError

def test_it(fault_proxy, dead_peer):
    fault_proxy(dead_peer)
    raise Speechless
"""
    done = run_pytest(tmp_path, source)
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("fault proxy 127.0.0.1:") == 1


def test_an_old_pytest_loads_the_plugin(tmp_path: Path):
    """Every run of pytest loads it where longconn is installed: it may not end those of another project."""
    source = """
import pluggy, pytest
del pytest.StashKey  # of pytest 7
def hookimpl(function=None, hookwrapper=False, optionalhook=False, tryfirst=False, trylast=False):
    return pluggy.HookimplMarker("pytest")(function, hookwrapper, optionalhook, tryfirst, trylast)
pytest.hookimpl = hookimpl  # as of pluggy 1.1
import pytest_longconn
"""
    assert python_says(source) == ""


def test_a_suite_that_doesnt_use_it_doesnt_import_longconn_nor_start_a_thread(tmp_path: Path):
    source = """
import sys, threading

def test_it(request):
    assert request.config.pluginmanager.has_plugin("longconn")
    assert not [name for name in sys.modules if name.partition(".")[0] == "longconn"]
    assert threading.active_count() == 1
"""
    done = run_pytest(tmp_path, source, "-W", "error")
    assert done.returncode == 0, done.stdout


def test_the_fixtures_leave_nothing_behind(tmp_path: Path):
    source = """
import os, threading
import longconn, longconn.testing

def test_they_work(fault_proxy, long_server, dead_peer, freeze, hold_gil):
    server = long_server()
    proxy = fault_proxy(server)
    client = longconn.connect(proxy.address)
    hold_gil(0.01)
    assert client.peer_address == proxy.address

def test_nothing_is_left():
    assert longconn.testing.proxy.open_proxies() == []
"""
    done = run_pytest(tmp_path, source, "-W", "error", "-W", "ignore::ResourceWarning")
    assert done.returncode == 0, done.stdout


def test_the_network_is_skipped_with_a_reason_where_there_is_none(tmp_path: Path):
    source = """
import longconn.testing.network as lab

lab.reason_unavailable = lambda: "no such luck"

def test_it(network):
    network()
"""
    done = run_pytest(tmp_path, source, "-rs")
    assert done.returncode == 0
    assert "no network lab: no such luck" in done.stdout


def test_the_kit_alone_starts_no_thread():
    code = "import threading, os, longconn.testing; print(threading.active_count(), len(os.listdir('/proc/self/task')))"
    assert python_says(code) == "1 1\n"


def test_a_client_in_a_stopped_process_is_frozen_and_not_unreachable(
    long_server: Callable[..., LongServer], freeze: Callable[[Any], None]
):
    server = long_server(heartbeat=BEAT, session_retention=0)
    code = "import longconn, sys; longconn.connect(sys.argv[1], heartbeat=longconn.Heartbeat(0.2)).recv()"
    argv = [sys.executable, "-c", code, "{}:{}".format(*server.address)]
    with subprocess.Popen(argv) as process:
        try:
            connection = server.accept(timeout=PATIENCE)
            wait_until(lambda: is_asleep(process.pid, process.pid))
            freeze(process)
            with assert_told_within(PATIENCE, cause="frozen", error=PeerLost):
                connection.recv(timeout=PATIENCE)
        finally:
            process.kill()
