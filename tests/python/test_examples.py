"""Owns the proof that examples/ works: each script in the three ways the README promises, and the demo."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import longconn
import pytest
from longconn.testing.network import reason_unavailable

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SLACK = float(os.environ.get("LONGCONN_TEST_SLACK", "1"))
PATIENCE = 20 * SLACK
WAYS = ("stdlib", "import", "run")
# As in a job of a shell's background: what we start would inherit that.
needs_ctrl_c = pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="SIGINT is ignored here")


class Script:
    """An example at work. `line()` is what it prints next, with a deadline, so nothing may be held back in a buffer."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self) -> str:
        line = self._lines.get(timeout=PATIENCE)
        assert line is not None, "it ended before it printed what was expected"
        return line

    def line_after(self, prefix: str | tuple[str, ...]) -> str:
        """The next line that doesn't begin so."""
        while (line := self.line()).startswith(prefix):
            pass
        return line

    def say(self, line: str | None) -> None:
        """Type a line into it, or the end of input."""
        assert self.process.stdin
        if line is None:
            self.process.stdin.close()
        else:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def rest(self) -> list[str]:
        """Everything that it still prints until it ends."""
        return list(iter(lambda: self._lines.get(timeout=PATIENCE), None))  # type: ignore[arg-type]

    def status(self) -> int:
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


class Starter:
    """Starts examples in one of the three ways."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.scripts: list[Script] = []

    def __call__(self, way: str, name: str, *arguments: object) -> Script:
        path = EXAMPLES / name
        argv = [sys.executable]
        if way == "import":
            source = path.read_text(encoding="utf-8")
            assert source.count("\nimport socket\n") == 1, "one line is to be changed, and it is easy to find"
            path = self._directory / name
            path.write_text(source.replace("\nimport socket\n", "\nfrom longconn import socket\n"), encoding="utf-8")
        elif way == "run":
            argv += ["-m", "longconn", "run", "--keepalive", "1,1,3", "--guard", "3"]
        argv += [str(path), *map(str, arguments)]
        # Errors among the lines: a traceback or a warning is never what a test expects.
        pipe = subprocess.PIPE
        process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, encoding="utf-8")
        self.scripts.append(Script(process))
        return self.scripts[-1]

    def pair(self, way: str, kind: str, *client_arguments: object) -> tuple[Script, Script]:
        """A server on a free port, and its client."""
        server = self(way, f"{kind}_server.py", "127.0.0.1", 0)
        words = server.line().split()
        assert words[:-1] == ["listening", "on", "127.0.0.1"]
        return server, self(way, f"{kind}_client.py", "127.0.0.1", words[-1], *client_arguments)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    for script in starter.scripts:
        script.end()


def test_a_gateway_serves_several_devices_and_says_who_comes_and_goes(start: Starter) -> None:
    gateway = start("stdlib", "device_gateway.py", "127.0.0.1", 0)
    port = gateway.line().split()[-1]
    first = start("stdlib", "device.py", "127.0.0.1", port, "thermometer", 1)
    assert first.rest() == ["answer b'got 0'"]
    assert first.status() == 0
    lines = sorted(gateway.line() for _ in range(3))
    assert lines == [
        "device thermometer closed closed",
        "device thermometer open ",
        "device thermometer says b'0'",
    ]
    second = start("stdlib", "device.py", "127.0.0.1", port, "barometer")
    assert second.line() == "answer b'got 0'"
    second.process.kill()
    assert gateway.line_after(("device barometer open", "device barometer says")).endswith(
        ("reconnecting ended", "reconnecting reset")
    )


def test_a_gateway_outlives_devices_that_speak_and_leave_at_once(start: Starter) -> None:
    """It ended with the PeerClosed of its own answer."""
    gateway = start("stdlib", "device_gateway.py", "127.0.0.1", 0)
    port = int(gateway.line().split()[-1])
    for _ in range(20):
        hasty = longconn.connect(("127.0.0.1", port), client_id="hasty")
        hasty.send_many([b"1", b"2", b"3"])
        with contextlib.suppress(TimeoutError):
            hasty.close(timeout=0)
    last = start("stdlib", "device.py", "127.0.0.1", port, "last", 1)
    assert last.rest() == ["answer b'got 0'"]


@needs_ctrl_c
def test_a_device_survives_a_restart_of_its_gateway(start: Starter) -> None:
    gateway = start("stdlib", "device_gateway.py", "127.0.0.1", 0)
    port = gateway.line().split()[-1]
    device = start("stdlib", "device.py", "127.0.0.1", port)
    assert device.line() == "answer b'got 0'"
    gateway.process.send_signal(signal.SIGINT)
    assert "the server is closing" in device.line_after("answer")
    assert gateway.status() == 0
    again = start("stdlib", "device_gateway.py", "127.0.0.1", port)
    assert device.line_after("no answer") == "the gateway is back"
    assert device.line().startswith("answer b'got ")
    assert again.line().startswith("listening")
    device.process.send_signal(signal.SIGINT)
    assert device.status() == 0


def test_workers_that_were_forked_share_a_port_and_none_of_their_ends_loses_a_message(start: Starter) -> None:
    """One is killed, all are replaced, and all go."""
    script = start("stdlib", "prefork.py", "127.0.0.1", 0, 2)
    words = script.line().split()
    assert words[:-1] == ["listening", "on", "127.0.0.1"]
    assert script.line_after("worker").startswith("master")
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(longconn.connect(("127.0.0.1", int(words[-1])), on_session_lost="resend"))
            for _ in range(8)
        ]
        asked = 0

        def ask() -> set[int]:
            """Sends three messages of each client before it receives any answer; who has answered."""
            nonlocal asked
            numbers = range(asked, asked + 3)
            asked += 3
            for client in clients:
                client.send_many(b"%d" % number for number in numbers)
            return {receive(client, number) for client in clients for number in numbers}

        def receive(client: longconn.LongConnection, number: int) -> int:
            worker, text = client.recv(timeout=PATIENCE).split(b" ", 1)
            assert text == b"has %d" % number
            return int(worker)

        first = ask()
        killed = min(first)
        for (
            client
        ) in clients:  # what it has taken and not acknowledged would be sent again, and nobody could know better
            client.flush(timeout=PATIENCE)
        os.kill(killed, signal.SIGKILL)
        after_kill = ask()
        assert killed not in after_kill
        while f"worker {killed} ended with -9 and is replaced" != script.line():
            pass
        script.process.send_signal(signal.SIGHUP)
        after_restart = set()
        while (line := script.line()) != "all workers are new":
            assert line.startswith("worker ")
            assert line.endswith("is ready")
            after_restart |= ask()
        assert not ask() & (first | after_kill)
        script.process.send_signal(signal.SIGTERM)
        assert script.rest() == ["all workers have ended"]
        assert script.status() == 0
        for client in clients:
            client.wait_for("reconnecting", timeout=PATIENCE)
            with contextlib.suppress(TimeoutError, longconn.LongConnError):  # nobody is there any more
                client.close(timeout=0)


def test_a_chat_tells_everyone_who_comes_speaks_leaves_and_dies(start: Starter) -> None:
    server = start("stdlib", "chat_server.py", "127.0.0.1", 0)
    port = server.line().split()[-1]
    anna = start("stdlib", "chat_client.py", "Anna", "127.0.0.1", port)
    assert server.line() == "* Anna is here"
    bert = start("stdlib", "chat_client.py", "Bert", "127.0.0.1", port)
    carl = start("stdlib", "chat_client.py", "Carl", "127.0.0.1", port)
    assert {server.line(), server.line()} == {"* Bert is here", "* Carl is here"}
    anna.say("hello")
    for script in (server, bert, carl):
        assert script.line_after("* ") == "Anna: hello"
    bert.say(None)
    assert bert.status() == 0
    carl.process.send_signal(signal.SIGSTOP)
    news = [server.line() for _ in range(3)]
    assert news[0] == "* Bert has left"
    assert news[1:] == ["* Carl has fallen silent", "* Carl is gone: the computer answers, the program doesn't"]
    while anna.line() != news[2]:
        pass
    server.process.kill()
    assert anna.line_after("* Carl").startswith("* the server is lost: ")
    anna.say("anybody here?")
    again = start("stdlib", "chat_server.py", "127.0.0.1", port)
    assert anna.line() == "* the server is back"
    assert anna.line_after("* ") == again.line_after(("* ", "listening")) == "Anna: anybody here?"
    anna.say(None)
    assert anna.status() == 0


def test_a_collector_reads_a_device_that_speaks_lines(start: Starter) -> None:
    device = start("stdlib", "line_device.py", "127.0.0.1", 0)
    port = device.line().split()[-1]
    first = start("stdlib", "line_collector.py", "127.0.0.1", port, 2)
    assert first.rest() == ["temperature 21.0", "temperature 21.1"]
    assert first.status() == 0
    second = start("stdlib", "line_collector.py", "127.0.0.1", port)
    assert second.line() == "temperature 21.0"
    device.process.send_signal(signal.SIGSTOP)  # its kernel goes on answering for it
    assert second.rest()[-1] == "the device is lost: frozen"
    assert second.status() == 0
    device.process.send_signal(signal.SIGCONT)
    third = start("stdlib", "line_collector.py", "127.0.0.1", port)
    assert third.line() == "temperature 21.0"
    device.process.kill()
    assert third.rest()[-1] in (
        "the device has closed",
        "the device is lost: ended",
        "the device is lost: reset",
    )


@pytest.mark.parametrize("way", WAYS)
def test_long_connection_carries_message_after_message_until_the_client_closes(start: Starter, way: str) -> None:
    server, client = start.pair(way, "long", 2)
    assert server.line().startswith("connected from 127.0.0.1 ")
    assert client.line() == "send data"
    assert server.line() == r"received b'hello world\r\n'"  # at once, and not when the client ends
    assert client.process.poll() is None
    assert client.rest() == ["send data"]
    assert server.rest() == [r"received b'hello world\r\n'", "closed by the client"]
    assert (client.status(), server.status()) == (0, 0)


@pytest.mark.parametrize("way", WAYS)
def test_short_connections_come_one_after_the_other(start: Starter, way: str) -> None:
    server, client = start.pair(way, "short", 2)
    assert client.rest() == [r"received b'got hello world\r\n'"] * 2
    assert [server.line(), server.line()] == [r"received b'hello world\r\n'"] * 2
    assert client.status() == 0
    assert server.process.poll() is None  # waits for the next one


@pytest.mark.parametrize("way", WAYS)
def test_heartbeats_go_both_ways_and_silence_is_noticed_by_both(start: Starter, way: str) -> None:
    """One pair loses its client, one its server: stopped, so that their kernels go on answering for them."""
    first, second = start.pair(way, "heartbeat"), start.pair(way, "heartbeat")
    for script in (*first, *second):
        while script.line() != r"received b'heartbeat\r\n'":
            pass
    silent, survivors = (first[1], second[0]), (first[0], second[1])
    for script in silent:
        script.process.send_signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    last_words = [script.rest()[-1] for script in survivors]
    assert last_words == ["lost: the client has been silent for 3 s", "lost: the server has been silent for 3 s"]
    assert 1.9 < time.monotonic() - stopped_at < 2 * (3 + 1) * SLACK
    assert [script.status() for script in survivors] == [0, 0]


@pytest.mark.parametrize("way", WAYS)
def test_heartbeat_pair_ends_in_good_order(start: Starter, way: str) -> None:
    server, client = start.pair(way, "heartbeat", 1)
    assert r"received b'heartbeat\r\n'" in client.rest()
    assert server.rest()[-1] == "closed by the client"
    assert (client.status(), server.status()) == (0, 0)


@needs_ctrl_c
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_ends_a_script_at_once(start: Starter, way: str) -> None:
    server, client = start.pair(way, "long")
    assert client.line() == "send data"
    assert server.line().startswith("connected from")
    for script in (server, client):  # the server first: it would notice that the client has closed
        script.process.send_signal(signal.SIGINT)
    for script in (server, client):
        assert script.rest()[-1] == "KeyboardInterrupt"
        assert script.status() == -signal.SIGINT


# ---- the demo


def run_demo(*arguments: str) -> tuple[int, list[str]]:
    argv = [sys.executable, str(EXAMPLES / "demo"), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100 * SLACK)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def table(lines: list[str]) -> dict[tuple[str, str], str]:
    """The demo's last table: what became of whom."""
    cells = [
        line.split(None, 2) for line in lines if line.startswith(("  stdlib ", "  longconn ")) and "," in line[:20]
    ]
    return {(way, role.rstrip(",")): rest for way, role, rest in cells}


def test_demo_tells_who_was_told_of_a_cut() -> None:
    if reason := reason_unavailable():
        pytest.skip(f"no network lab: {reason}")
    seconds = f"{8 * SLACK:g}"
    status, lines = run_demo("--part", "tutorial", "--seconds", seconds)
    assert status == 0
    assert sum("told: PeerTimedOut: peer 10.88." in line for line in lines) == 4
    outcome = table(lines)
    for role in ("server", "client"):
        assert outcome["stdlib", role].count(f"not told in {seconds} s") == 2
        assert outcome["longconn", role].count("told after") == 2
    assert max(map(len, lines)) <= 105


def known(lines: list[str]) -> dict[str, str]:
    """The last table of part two: what the gateway knew of each device, and the device itself, without times."""
    rows = lines[lines.index(next(line for line in lines if line.startswith("  device   trouble"))) + 1 :]
    cells = [re.sub(r"after [\d.]+ s: ", "", row) for row in rows[: rows.index("")]]
    return {row.split()[0]: " ".join(row[37:].split()) for row in cells}


def test_demo_tells_who_knew_what_of_a_gateway_and_its_devices() -> None:
    if reason := reason_unavailable():
        pytest.skip(f"no network lab: {reason}")
    status, lines = run_demo("--part", "fleet")
    assert status == 0
    who = known(lines)
    assert who["sensor"] == "unreachable (path) unreachable"
    assert who["camera"].startswith("frozen (interpreter) ")
    assert who["printer"] in ("ended -", "reset -")
    assert who["laptop"] == who["modem"] == "no alarm -"
    assert who["robot"] == "hung (application) -"
    assert max(map(len, lines)) <= 105


def test_demo_shows_on_loopback_what_it_can_and_says_why() -> None:
    status, lines = run_demo("--loopback")
    assert status == 0
    assert sum("can't be shown here" in line for line in lines) == 2
    assert {way: text.count("told after") for (way, _), text in table(lines).items()} == {"stdlib": 1, "longconn": 1}
    assert list(known(lines)) == ["camera", "printer", "laptop", "robot", "modem"]


@pytest.mark.parametrize(("part", "programs"), [("tutorial", 4), ("fleet", 7)])
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=needs_ctrl_c), signal.SIGTERM])
def test_demo_leaves_nothing_behind_when_it_is_ended(number: signal.Signals, part: str, programs: int) -> None:
    mark = f"{os.getpid()}-{number}-{part}"
    argv = [sys.executable, str(EXAMPLES / "demo"), "--loopback", "--part", part]
    environment = {**os.environ, "LONGCONN_TEST_DEMO": mark}
    demo = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    with demo:
        deadline = time.monotonic() + PATIENCE
        while len(marked(mark)) < 1 + programs:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        demo.send_signal(number)
        demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 128 + number
    assert marked(mark) == []


def marked(mark: str) -> list[str]:
    """The processes that have inherited the mark."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"LONGCONN_TEST_DEMO={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append(place.name)
    return found


@needs_ctrl_c
def test_a_chat_of_tasks_has_the_same_clients(start: Starter) -> None:
    server = start("stdlib", "async_chat.py", "127.0.0.1", 0)
    port = server.line().split()[-1]
    anna = start("stdlib", "chat_client.py", "Anna", "127.0.0.1", port)
    assert server.line() == "* Anna is here"
    bert = start("stdlib", "chat_client.py", "Bert", "127.0.0.1", port)
    assert server.line() == "* Bert is here"
    anna.say("hello")
    for script in (server, bert):
        assert script.line_after("* ") == "Anna: hello"
    bert.say(None)
    assert bert.status() == 0
    assert server.line() == "* Bert has left"
    server.process.send_signal(signal.SIGINT)
    assert server.status() == 0
