"""The command line: each command as a shell would call it, and what is told to who lacks the extra."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import longconn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longconn.cli import OTHERS, bare
from longconn.cli.printing import duration
from longconn.cli.probing import Search
from longconn.connections import connections
from peers import PATIENCE, connected, listening

ROOT = Path(__file__).resolve().parents[2]


def cli(*words, stdin="", timeout=3 * PATIENCE, **environment):
    return subprocess.run(
        [sys.executable, "-m", "longconn", *map(str, words)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment},
    )


@pytest.fixture
def server():
    with longconn.LongServer(("127.0.0.1", 0), heartbeat=longconn.Heartbeat(0.5)) as server:
        yield server


def place(server):
    return "{}:{}".format(*server.address)


# ---- what is there


def test_the_help_names_every_command():
    done = cli("--help")
    assert done.returncode == 0
    for name in ("run", "explain", "ping", "probe", "serve", "connect", "chaos", "watch", "doctor"):
        assert f" {name} " in done.stdout
        assert cli(name, "--help").returncode == 0


def test_it_says_its_version_with_the_extra_and_without(tmp_path):
    (tmp_path / "typer.py").write_text("raise ImportError('not here')\n")
    for paths in sys.path, [str(tmp_path), *sys.path]:
        done = cli("--version", PYTHONPATH=os.pathsep.join(paths))
        assert (done.returncode, done.stdout, done.stderr) == (0, f"longconn {longconn.__version__}\n", "")


def test_without_the_extra_what_needs_it_names_it_and_the_rest_works(tmp_path):
    (tmp_path / "typer.py").write_text("raise ImportError('not here')\n")
    bare = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    for name in ("ping", "probe", "serve", "connect", "watch", "doctor"):
        done = cli(name, "127.0.0.1:1", **bare)
        assert done.returncode == 2
        assert done.stderr == f"longconn {name} needs the packages typer and rich: pip install 'longconn[cli]'\n"
    assert cli("explain", "60,10,6", **bare).returncode == 0
    done = cli("--help", **bare)
    assert done.returncode == 0
    assert "longconn[cli]" in done.stdout
    assert cli("nonsense", **bare).returncode == 2


def test_the_extra_is_declared():
    if importlib.metadata.metadata("longconn").get_all("Provides-Extra") is None:
        pytest.skip("this environment has the tree and no distribution")
    needs = [each for each in importlib.metadata.requires("longconn") or [] if "cli" in each.partition(";")[2]]
    assert sorted(each[:4] for each in needs) == ["rich", "type"]


def test_a_shell_completes_the_commands():
    done = cli("--show-completion", "bash", _LONGCONN_COMPLETE="", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_LONGCONN_COMPLETE" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["help", *bare.COMMANDS, *OTHERS])
def test_every_command_has_a_picture_and_the_page_shows_it(name):
    page = (ROOT / "docs/how-to/command-line.md").read_text(encoding="utf-8")
    assert f"](../pictures/{name}.svg)" in page
    picture = (ROOT / f"docs/pictures/{name}.svg").read_text(encoding="utf-8")
    typed = re.sub("<.*?>", "", picture, flags=re.DOTALL).replace("&#160;", " ")
    assert f"longconn {'--' * (name == 'help')}{name}" in typed
    for ours in (str(ROOT), "/home/", "/root", "/tmp", "Traceback"):
        assert ours not in typed, "of the machine where it was taken"


# ---- ping


def test_ping_tells_round_trips_and_the_levels(server):
    done = cli("ping", place(server), "--count", 2, "--interval", 0.1)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 asked, 2 answered" in done.stdout
    assert "path alive, interpreter fine" in done.stdout


def test_ping_says_it_to_programs_as_well(server):
    done = cli("ping", place(server), "--count", 1, "--json")
    answered, summary = map(json.loads, done.stdout.splitlines())
    assert answered["event"] == "answered"
    assert answered["application_age_seconds"] == 0
    assert 0 < answered["round_trip_seconds"] < PATIENCE
    assert (summary["asked"], summary["answered"]) == (1, 1)


def test_ping_does_not_call_a_program_fine_whose_interpreter_is_stuck():
    code = """
import ctypes, sys, longconn
server = longconn.LongServer(("127.0.0.1", 0), heartbeat=longconn.Heartbeat(0.2))
print("{}:{}".format(*server.address), flush=True)
sys.stdin.readline()
ctypes.PyDLL(None).sleep(600)
"""
    with python_beside(code) as program:
        address = program.stdout.readline().strip()
        with running("ping", address, "--interval", "0.2") as it:
            fine = [it.stdout.readline() for _ in range(2)][1]
            assert fine.endswith("interpreter fine, program fine\n"), fine
            program.stdin.write("\n")
            program.stdin.flush()
            stuck = next(line for line in it.stdout if "fine" not in line)
            assert re.search(r"path alive, interpreter stuck for \S+ s$", stuck), stuck


def test_ping_says_who_is_there_instead():
    with listening() as nobody:
        address = "{}:{}".format(*nobody.getsockname())
    refused = cli("ping", address, "--count", 1)
    assert refused.returncode == 1
    assert refused.stderr == f"no longconn peer at {address}: no connection to {address}: Connection refused\n"
    with listening() as mute:
        done = cli("ping", "{}:{}".format(*mute.getsockname()), "--count", 1, "--timeout", 0.5, "--json")
    assert done.returncode == 1
    assert "did not finish the handshake" in json.loads(done.stdout)["error"]


def test_ping_tells_that_the_peer_was_lost(server):
    with running("ping", place(server), "--interval", "0.1") as process:
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[2].startswith("beat 2"), lines
        server.close(drain=0)
        rest = process.stdout.read()
        assert process.wait(PATIENCE) == 1
    assert "the server is closing" in rest


# ---- serve and connect


def running(*words, **options):
    return beside([sys.executable, "-m", "longconn", *words], **options)


def python_beside(code):
    return beside([sys.executable, "-c", code])


@contextmanager
def beside(words, **options):
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_lines_go_forth_and_back_between_serve_and_connect():
    with running("serve", "127.0.0.1:0") as server:
        address = server.stderr.readline().split()[-1]
        with running("connect", address, "--id", "device-7", "--wait", "0.2") as client:
            client.stdin.write("hello\n")
            client.stdin.flush()
            assert server.stdout.readline() == "hello\n"
            server.stdin.write("and good day\n")
            server.stdin.flush()
            assert client.stdout.readline() == "and good day\n"
            client.stdin.close()
            assert client.wait(PATIENCE) == 0
            assert client.stderr.read() == ""
            client.stdin = None
        assert "device-7: open" in server.stderr.readline()


def test_connect_waits_for_what_its_input_has_asked(server):
    from threading import Thread

    def answer():
        for connection, message in server.messages():
            connection.send(message.upper())

    Thread(target=answer, daemon=True).start()
    done = cli("connect", place(server), "--wait", "0.5", stdin="one\ntwo\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ONE\nTWO\n", "")


@pytest.mark.parametrize("framing", ["lines", "raw"])
def test_connect_speaks_with_plain_peers(framing):
    with (
        listening() as listener,
        running("connect", "{}:{}".format(*listener.getsockname()), "--framing", framing, "--wait", "0.2") as client,
    ):
        peer, _ = listener.accept()
        with peer:
            client.stdin.write("HELLO\n")
            client.stdin.close()
            assert peer.recv(100) == b"HELLO\n"
            peer.sendall(b"250 good day\n")
            assert client.stdout.readline() == "250 good day\n"
            peer.shutdown(socket.SHUT_WR)
            assert client.wait(PATIENCE) == 0
        client.stdin = None


def test_connect_ends_with_status_1_when_the_peer_is_lost():
    with (
        listening() as listener,
        running("connect", "{}:{}".format(*listener.getsockname()), "--framing", "raw") as client,
    ):
        peer, _ = listener.accept()
        client.stdin.write("it is up and running now\n")
        client.stdin.flush()
        assert peer.recv(100)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        assert client.wait(PATIENCE) == 1
        assert "reset" in client.stderr.read()


# ---- chaos


def test_chaos_breaks_what_it_is_told_to_break():
    with (
        listening() as upstream,
        running("chaos", "{}:{}".format(*upstream.getsockname()), "--order", "latency 0.01") as it,
    ):
        host, _, port = it.stdout.readline().split()[-1].rpartition(":")
        assert "latency(0.01" in it.stdout.readline()
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
            server, _ = upstream.accept()
            with server:
                client.sendall(b"hello")
                assert server.recv(100) == b"hello"
                it.stdin.write("reset\n")
                it.stdin.flush()
                server.settimeout(PATIENCE)
                with pytest.raises(ConnectionResetError):
                    server.recv(100)
        it.stdin.write("fly\n")
        it.stdin.flush()
        assert "'fly': [SECONDS] [SHARE%] and one of admit, bandwidth" in it.stderr.readline()
        it.send_signal(signal.SIGINT)
        assert it.wait(PATIENCE) == 0
        assert any("reset" in line for line in it.stdout)


def test_chaos_tells_programs_what_happened_and_ends_in_time():
    done = cli("chaos", "127.0.0.1:9", "--time", 0.5, "--order", "0.1 latency 0.2 jitter=0.05", "--json")
    listening_at, fault = map(json.loads, done.stdout.splitlines())
    assert listening_at["what"] == "listening"
    assert fault["what"] == "fault"
    assert fault["at"] == pytest.approx(0.1, abs=0.4)
    assert cli("chaos", "127.0.0.1:9", "--order", "latency").returncode == 2
    assert cli("chaos").returncode == 2
    told = cli("chaos", "--list").stdout
    assert re.search(r"^half_close direction +FIN in one direction, .*\. *$", told, re.MULTILINE)
    assert "`" not in told


# ---- watch and doctor


def test_watch_finds_the_unprotected_connection_of_a_test():
    with listening() as listener, socket.create_connection(listener.getsockname()) as bare:
        peer, _ = listener.accept()
        with peer, connected(longconn.KeepaliveSocket, keepalive=longconn.Keepalive(7, 3, 2)) as (ours, _):
            done = cli("watch", os.getpid(), "--json")
            found = {tuple(each["local"]): each for each in json.loads(done.stdout)}
            theirs = found[bare.getsockname()]
            assert (theirs["peer"], theirs["fd"]) == ([*bare.getpeername()], bare.fileno())
            assert (theirs["is_protected"], theirs["probes"]) == (False, None)
            assert theirs["told_seconds"]["idle"] is None
            guarded = found[ours.getsockname()]
            assert (guarded["is_protected"], guarded["probes"]) == (True, [7, 3, 2])
            checked = cli("watch", os.getpid(), "--check")
            assert checked.returncode == 1
            assert "unprotected: if the peer is gone, its program is never told" in checked.stdout
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            (theirs,) = (each for each in connections([os.getpid()]) if each.local == bare.getsockname())
            assert theirs.is_protected
            assert theirs.told.idle == pytest.approx(30 + 75 * 9, abs=1)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_watch_answers_first_and_leaves_out_what_a_narrow_terminal_has_no_room_for(width):
    from io import StringIO

    from longconn.cli.watch import _picture
    from rich.console import Console

    with listening() as listener, socket.create_connection(listener.getsockname()) as bare:
        peer, _ = listener.accept()
        with peer:
            found = [each for each in connections([os.getpid()]) if each.local == bare.getsockname()]
            console = Console(file=StringIO(), width=width)
            console.print(_picture(found, console))
    shown = console.file.getvalue()
    assert shown.startswith("1 connection, 1 unprotected: ")
    assert [title in shown for title in ("state", "timer")] == [width >= 100, width >= 200]
    assert ("ESTABLISHED" in shown) == (width >= 100), "whole, or not at all"
    assert all(word in shown for word in ("none", "never", "15.4 min"))


def test_watch_tells_who_is_told_late():
    from longconn.cli.watch import _summary

    with listening() as listener, socket.create_connection(listener.getsockname()) as late:
        late.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        late.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 7200)
        found = [each for each in connections([os.getpid()]) if each.local == late.getsockname()]
    assert _summary(found).plain == "1 connection, all protected; 1 told only after 2.19 h"


def test_watch_reads_addresses_of_both_families():
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("::1", port)) as six, socket.create_connection(("127.0.0.1", port)) as four:
            accepted = [listener.accept()[0] for _ in range(2)]
            found = {each.local: each for each in connections([os.getpid()])}
            assert found[six.getsockname()[:2]].peer == ("::1", port)
            assert found[four.getsockname()].peer == ("127.0.0.1", port)
            assert ("127.0.0.1", port) in found  # the server's side of it, an IPv6 socket
            for each in accepted:
                each.close()


def test_watch_knows_longconns_own(server):
    with longconn.connect(server.address) as client:
        found = [each for each in connections([os.getpid()]) if each.local == client.address]
        assert [each.is_protected for each in found] == [True]


@pytest.mark.parametrize("wrong", ["nobody", "-1", "0"])
def test_watch_refuses_what_is_no_process(wrong):
    assert cli("watch", "--", wrong).returncode == 2


def test_watch_of_a_process_that_isnt_there_is_an_error_and_no_all_clear():
    done = cli("watch", 2**22 - 1, "--check")
    assert done.returncode == 2
    assert f"there is no process {2**22 - 1}" in done.stderr
    assert not list(connections([2**22 - 1]))  # of several, one that ended meanwhile


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_watch_of_another_users_process_is_an_error_and_no_all_clear():
    source = f"""
import os, sys
import longconn.cli
longconn.cli.main(["watch", str(os.getpid()), "--json"])  # whose imports nobody else may be allowed to read
os.setuid(65534)
sys.exit(longconn.cli.main(["watch", "{os.getpid()}", "--check"]))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is another user's" in done.stderr


def test_watch_on_a_terminal_ends_with_the_process_that_it_watches():
    terminal, end = os.openpty()
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
        subprocess.Popen([sys.executable, "-m", "longconn", "watch", str(process.pid)], stdout=end) as watch,
    ):
        os.close(end)
        try:
            shown = os.read(terminal, 10_000)
            process.communicate(b"\n")
            with suppress(OSError):  # EIO: it has ended
                while True:
                    shown += os.read(terminal, 10_000)
            assert watch.wait(PATIENCE) == 0
        finally:
            watch.kill()
            os.close(terminal)
    assert f"process {process.pid} has ended".encode() in shown


def test_doctor_says_what_is_there():
    findings = {each["what"]: each for each in json.loads(cli("doctor", "--json").stdout)}
    assert findings["longconn"]["value"] == longconn.__version__
    assert findings["the guard"]["verdict"] == "ok"
    assert findings["extra cli"]["value"] == "installed"
    assert "Everything that longconn needs is here" in cli("doctor").stdout
    bad = cli("doctor", LONGCONN_KEEPALIVE="sometimes")
    assert bad.returncode == 1
    assert "sometimes" in bad.stdout
    assert "1 of these keep" in bad.stdout


# ---- probe


@given(
    memory=st.floats(1, 4000),
    least=st.floats(1, 20),
    tolerance=st.floats(0.1, 10),
    width=st.integers(1, 12),
)
def test_the_search_finds_any_memory_in_few_rounds(memory, least, tolerance, width):
    search = Search(least, 1800.0, tolerance, width)
    rounds = 0
    while idles := search.next_round():
        rounds += 1
        assert rounds < 60
        assert idles == sorted(idles)
        assert all(least <= idle <= 1800 for idle in idles)
        for idle in idles:
            search.record(idle, survived=idle < memory)
            if idle >= memory:
                break
    if memory > 1800:
        assert (search.survives, search.forgets_within) == (1800, math.inf)
    elif memory <= least:
        assert search.forgets_within == least
    else:
        assert search.survives < memory <= search.forgets_within
        assert search.forgets_within - search.survives <= max(tolerance, 0.05 * search.forgets_within) + 1e-9


def test_a_path_that_does_not_always_forget_is_told():
    search = Search()
    search.record(10, survived=False)
    search.record(30, survived=True)
    assert (search.survives, search.forgets_within, search.contradictions) == (0, 10, [30])


@pytest.mark.parametrize(
    ("survived", "forgotten", "known", "advice"),
    [
        ([], [], "nothing known yet", ""),
        ([9.7], [], "remembers for 9.7 s", ""),
        ([9.7], [10], "forgets after 9.7 s to 10 s", "Keepalive.nat(9), or Heartbeat(4.85)"),
    ],
)
def test_what_probe_says_is_no_more_than_it_knows(capsys, survived, forgotten, known, advice):
    from longconn.cli.probe import _known, _report

    search = Search()
    search.survived, search.forgotten = survived, forgotten
    assert _known(search) == known
    _report(search, as_json=False, seconds=1.0)
    assert advice in capsys.readouterr().out


def test_probe_of_a_path_that_forgets_nothing(tmp_path):
    state = tmp_path / "state.json"
    with listening() as listener:
        address = "{}:{}".format(*listener.getsockname())
        words = ("probe", address, "--least", 1, "--state", state, "--json")
        done = cli(*words, "--most", 2)
        assert json.loads(done.stdout)["survives_seconds"] == 2, done.stderr
        # it goes on where it was
        done = cli(*words, "--most", 3)
        result = json.loads(done.stdout)
        assert (done.returncode, result["is_done"], result["survives_seconds"]) == (0, True, 3)
        assert sorted(json.loads(state.read_text())["survived"])[0] == 1
        # and ends in time
        done = cli(*words, "--most", 1000, "--time", 1)
        assert done.returncode == 3
    state.write_text("[]")
    assert cli(*words).returncode == 2


def test_probe_tells_a_server_that_hangs_up_from_a_path_that_forgets():
    from threading import Thread

    with listening() as listener:

        def hang_up():
            for _ in range(2):
                listener.accept()[0].close()

        Thread(target=hang_up, daemon=True).start()
        done = cli("probe", "{}:{}".format(*listener.getsockname()), "--least", 1, "--most", 2)
    assert done.returncode == 1
    assert "the server itself ends connections" in done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "never"), (0.0301, "30 ms"), (2.5, "2.5 s"), (924.6, "15.4 min"), (7875, "2.19 h")]
)
def test_durations_are_in_the_unit_that_people_would_say(seconds, text):
    assert duration(seconds) == text
