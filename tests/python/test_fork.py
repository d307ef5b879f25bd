"""fork and multiprocessing: no warning, no deadlock, both sides go on, and sockets travel with their settings."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_sharer, resource_tracker
from pathlib import Path
from typing import Any

import longconn
import pytest
from longconn import Keepalive, KeepaliveSocket
from peers import (
    OPTIONS,
    PACKAGE,
    PATIENCE,
    QUICK,
    STDLIB,
    connected,
    cut_off,
    environment,
    interpreters,
    native_threads,
    options,
    python,
    python_says,
    timings,
    wait_until,
    watch_of,
)

HERE = Path(__file__).parent
SETTINGS = Keepalive(60, 10, 6, guard=12.5)


def forked(child: Callable[[], Any], in_parent: Callable[[], Any] = lambda: None) -> str:
    """Runs *child* in a forked process, at once as fork leaves it; returns what it returns, as text."""
    readable, writable = os.pipe()
    process = os.fork()
    if process == 0:
        text = "the child was ended by an exception that nothing catches"
        try:
            text = str(child())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writable, text.encode())
            os._exit(0)
    os.close(writable)
    in_parent()
    with open(readable, encoding="utf-8") as pipe:
        text = pipe.read()
    assert os.waitpid(process, 0) == (process, 0)
    return text


@pytest.fixture(autouse=True, scope="module")
def _multiprocessings_own_helpers_end() -> Iterator[None]:
    yield
    resource_sharer.stop(timeout=PATIENCE)
    forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()


def is_guard_running() -> bool:
    """It takes its name itself, a moment after it was begun."""
    return "longconn-guard" in native_threads()


# ---- one fork, in this process


def test_no_thread_of_ours_runs_while_the_fork_happens_and_it_runs_again_afterwards():
    """That is what keeps CPython 3.12 and later from warning; here on whichever runs the tests."""
    with connected() as (ours, _):
        watch = watch_of(ours)
        assert wait_until(is_guard_running)
        seen = forked(native_threads)
        assert "longconn-guard" not in seen
        assert wait_until(is_guard_running)
        assert watch.is_active


def test_the_parents_guard_goes_on_and_convicts():
    with connected(keepalive=QUICK) as (ours, peer):
        watch = watch_of(ours)
        forked(lambda: None)
        looks = watch.looks
        wait_until(lambda: watch.looks > looks + 2, "it looks again")
        cut_off(peer)
        ours.send(b"into the void")
        with pytest.raises(longconn.PeerLost):
            ours.recv(1)


def test_the_childs_sockets_work_and_their_guard_begins_with_the_next_use():
    with connected(keepalive=QUICK) as (ours, peer):

        def child() -> str:
            watch = watch_of(ours)
            assert not is_guard_running(), "nothing runs in a child that doesn't use them"
            looks = watch.looks
            assert watch.is_active
            ours.send(b"from the child")
            wait_until(lambda: watch.looks > looks + 2, "it looks again")
            wait_until(is_guard_running)
            return f"{ours.keepalive} {ours.lost} {ours.recv(100)!r}"

        peer.send(b"for the child")
        assert forked(child) == f"{QUICK} None b'for the child'"
        assert peer.recv(100) == b"from the child"


@pytest.mark.parametrize(
    "use",
    [
        lambda sock: sock.send(b"x"),
        lambda sock: sock.sendall(b"x"),
        lambda sock: sock.sendmsg([b"x"]),
        lambda sock: sock.send(b"x", socket.MSG_NOSIGNAL),
        lambda sock: sock.recv(1),
        lambda sock: sock.recv(100_000),
        lambda sock: sock.recv_into(bytearray(1)),
        lambda sock: sock.recvfrom(1),
    ],
)
def test_any_use_wakes_the_childs_guard(use):
    with connected(keepalive=QUICK) as (ours, peer):
        peer.send(b"x")
        watch = watch_of(ours)

        def child() -> bool:
            looks = watch.looks
            use(ours)
            return wait_until(lambda: watch.looks > looks)

        assert forked(child) == "True"


def test_the_childs_guard_convicts():
    with connected(keepalive=QUICK) as (ours, peer):
        here, there = socket.socketpair()

        def child() -> str:
            here.recv(1)  # the parent's guard, which would be as quick, has ended
            cut_off(peer)
            ours.send(b"into the void")
            try:
                ours.recv(1)
            except longconn.PeerLost as error:
                return f"{error.cause} {ours.lost} {ours.recv(1)!r}"
            return "not told"

        def close() -> None:
            ours.close()
            there.send(b"x")

        with here, there:
            assert forked(child, close) == "unreachable unreachable b''"


def test_the_child_can_close_its_copy_and_make_new_connections():
    with connected(keepalive=SETTINGS) as (ours, peer):

        def child() -> str:
            ours.close()
            with connected(keepalive=SETTINGS) as (new, new_peer):
                new.send(b"x")
                return f"{new_peer.recv(1)!r} {watch_of(new).is_active} {wait_until(is_guard_running)}"

        assert forked(child) == "b'x' True True"
        ours.send(b"y")
        assert peer.recv(1) == b"y"
        assert watch_of(ours).is_active


def test_the_childs_end_leaves_the_parents_connection_and_options_alone():
    with connected(STDLIB) as (theirs, theirs_peer), connected(keepalive=SETTINGS) as (ours, peer):
        with longconn.guard(theirs, limit=8) as guard:
            before = options(theirs), options(ours)

            def child() -> str:
                state = f"{guard.active} {guard.lost}"
                guard.stop()
                ours.close()
                theirs.close()
                return state

            assert forked(child) == "False None", "what somebody else's are guarded for is the parent's affair"
            assert (options(theirs), options(ours)) == before
            assert guard.active
            for one, other in ((theirs, theirs_peer), (ours, peer)):
                one.send(b"x")
                assert other.recv(1) == b"x"


def test_the_child_may_guard_what_the_parent_guards():
    with connected(STDLIB) as (theirs, peer), longconn.guard(theirs, limit=8) as guard:

        def child() -> str:
            own = longconn.guard(theirs, limit=0.5)
            cut_off(peer)
            theirs.send(b"into the void")
            return wait_until(lambda: own.lost)

        assert forked(child) == "unreachable"
        assert guard.lost in (None, "unreachable")


def test_a_fork_in_a_thread_works():
    with connected(keepalive=QUICK) as (ours, peer):
        outcomes: list[str] = []

        def child() -> str:
            ours.send(b"from the child")
            return str(wait_until(lambda: watch_of(ours).looks > 0))

        thread = threading.Thread(target=lambda: outcomes.append(forked(child)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the main thread, which runs beside it
            thread.start()
            thread.join(PATIENCE)
        assert outcomes == ["True"]
        assert peer.recv(100) == b"from the child"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # CPython's own, of the thread that doesn't end
@pytest.mark.parametrize("ends", [True, False], ids=["ends soon", "does not end"])
def test_a_fork_waits_for_a_callback_but_not_for_ever(ends):
    begun, ended, done = threading.Event(), threading.Event(), threading.Event()

    def react(error: longconn.PeerLost) -> None:
        begun.set()
        ended.wait(PATIENCE)
        done.set()

    with connected(STDLIB) as (theirs, peer):
        longconn.guard(theirs, limit=0.5, on_lost=react)
        cut_off(peer)
        theirs.send(b"into the void")
        begun.wait(PATIENCE)
        if ends:
            ended.set()
        assert forked(lambda: "ran") == "ran"
        assert done.is_set() == ends
        ended.set()
        assert done.wait(PATIENCE)


def test_a_fork_inside_a_callback_works():
    outcomes: list[str] = []
    with connected(STDLIB) as (theirs, peer):
        longconn.guard(theirs, limit=0.5, on_lost=lambda error: outcomes.append(forked(lambda: "ran")))
        cut_off(peer)
        theirs.send(b"into the void")
        wait_until(lambda: outcomes)
    assert outcomes == ["ran"]


CHURN = """
import faulthandler, os, sys, threading
sys.path.insert(0, sys.argv[1])
import longconn
from peers import SLACK, QUICK, STDLIB, connected, wait_until, watch_of
faulthandler.dump_traceback_later(30 * SLACK, exit=True)
stop = threading.Event()
def churn():
    with connected(keepalive=False) as (ours, _), connected(STDLIB) as (theirs, _):
        while not stop.is_set():
            ours.keepalive = QUICK
            longconn.guard(theirs, limit=8).stop()
            ours.keepalive = False
threads = [threading.Thread(target=churn) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(30):
    child = os.fork()
    if child == 0:
        with connected(keepalive=QUICK) as (ours, _):
            wait_until(lambda: watch_of(ours).looks > 0)
        os._exit(7)
    assert os.waitpid(child, 0)[1] == 7 << 8
stop.set()
for thread in threads:
    thread.join()
faulthandler.cancel_dump_traceback_later()
print("fine")
"""


def test_forks_while_other_threads_begin_and_end_guards_deadlock_neither_side():
    """In a process of its own: a thread that is stuck in fork can't be interrupted."""
    done = python("-W", "ignore::DeprecationWarning", "-c", CHURN, str(HERE))
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


ANOTHER_HOOK = """
import os, socket, struct, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of CPython 3.12 and later: a thread of ours talks
talk_now, peers = threading.Event(), []

def hook():
    # Behind longconn's, which was registered later and holds its locks by now.
    for peer in peers:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    talk_now.set()
    time.sleep(0.3)  # without the interpreter, and the other thread has it

os.register_at_fork(before=hook)
import longconn
listener = socket.create_server(("127.0.0.1", 0))
ours = []
for _ in range(5):
    ours.append(longconn.connect(listener.getsockname(), framing="raw", on_event=lambda event: None))
    peers.append(listener.accept()[0])
told = []

def talk():
    talk_now.wait()
    for connection in ours:
        try:
            while True:
                connection.send(b"x")  # finds out that it is over, which is logged and told: that takes a lock
        except longconn.PeerLost as error:
            told.append(error.cause)

thread = threading.Thread(target=talk)
thread.start()
child = os.fork()
if child == 0:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
thread.join()
print(*told, flush=True)
os._exit(0)
"""


def test_another_hook_may_give_the_interpreter_away_to_a_thread_that_wants_what_we_hold_over_the_fork():
    assert python_says(ANOTHER_HOOK) == "7\n" + " ".join(["reset"] * 5) + "\n"


def test_a_grandchild_is_as_good_as_a_child():
    with connected(keepalive=QUICK) as (ours, peer):

        def grandchild() -> str:
            looks = watch_of(ours).looks
            ours.send(b"from the grandchild")
            wait_until(lambda: watch_of(ours).looks > looks)
            return "looked"

        assert forked(lambda: forked(grandchild)) == "looked"
        assert peer.recv(100) == b"from the grandchild"


# ---- on all interpreters that are here: no warning, by way of the abi3 module that this one uses

UNDER_ERROR = """
import os, sys
import longconn
from longconn import Keepalive, socket
import socket as stdlib
listener = socket.create_server(("127.0.0.1", 0))
ours = socket.create_connection(listener.getsockname())
peer, _ = listener.accept()
theirs = stdlib.create_connection(listener.getsockname())
theirs_peer, _ = listener.accept()
guard = longconn.guard(theirs, limit=0.5, on_lost=print)
for each in (ours, peer):
    each.keepalive = Keepalive(1, 1, 3, guard=0.5)
watch = ours._keepalive_watch
while watch.looks < 2 or guard.looks < 2:
    pass
child = os.fork()
if child == 0:
    looks = watch.looks
    ours.sendall(b"from the child")
    while watch.looks < looks + 2:
        pass
    os._exit(7)
assert os.waitpid(child, 0)[1] == 7 << 8
assert peer.recv(100) == b"from the child"
looks = watch.looks, guard.looks
while watch.looks < looks[0] + 2 or guard.looks < looks[1] + 2:
    pass
for each in (ours, peer, theirs, theirs_peer, listener):
    each.close()
print(sys.version_info[:2], "fine")
"""
FOUND = interpreters()


@pytest.mark.parametrize("version", FOUND)
def test_a_fork_with_guarded_sockets_warns_of_nothing(version):
    interpreter = FOUND[version]
    if interpreter is None:
        pytest.skip(f"no Python {version} was found on PATH or beside this one")
    major, minor = version.split(".")
    said = python_says(UNDER_ERROR, interpreter=interpreter, env=environment(PYTHONPATH=str(PACKAGE.parent)))
    assert said == f"({major}, {minor}) fine\n"


# ---- multiprocessing


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_sockets_travel_to_a_child_and_back_with_their_settings(method, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(PACKAGE.parent)]))
    context = multiprocessing.get_context(method)
    with connected(keepalive=SETTINGS) as (ours, peer):
        ours.setsockopt(*OPTIONS["TCP_KEEPIDLE"], 77)
        here, there = context.Pipe()
        process = context.Process(target=child_of_multiprocessing, args=(there,))
        process.start()
        try:
            there.close()
            here.send(ours)
            assert here.poll(PATIENCE)
            assert here.recv() == ("KeepaliveSocket", Keepalive(77, 10, 6, guard=12.5), (1, 77, 10, 6), True)
            assert peer.recv(100) == b"from the child"
            assert here.poll(PATIENCE)
            with here.recv() as back:
                assert type(back) is KeepaliveSocket
                assert back.keepalive == Keepalive(77, 10, 6, guard=12.5)
                assert back.fileno() != ours.fileno()
                back.send(b"back again")
                assert peer.recv(100) == b"back again"
            here.send("done")
            process.join(PATIENCE)
            assert process.exitcode == 0
        finally:
            here.close()
            process.kill()
            process.join()
            process.close()
        assert timings(ours) == (1, 77, 10, 6)


def child_of_multiprocessing(pipe: Any) -> None:
    sock = pipe.recv()
    watch = watch_of(sock)
    pipe.send((type(sock).__name__, sock.keepalive, timings(sock), watch is not None and watch.is_active))
    sock.send(b"from the child")
    pipe.send(sock)
    assert pipe.recv() == "done"  # the descriptor is handed over by this process, at the time of the parent's recv
    sock.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_socket_may_be_an_argument_of_a_process(method, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(PACKAGE.parent)]))
    context = multiprocessing.get_context(method)
    with connected(keepalive=SETTINGS) as (ours, peer):
        process = context.Process(target=say_and_close, args=(ours,))
        process.start()
        assert peer.recv(100) == repr(SETTINGS).encode()
        process.join(PATIENCE)
        assert process.exitcode == 0
        process.close()


def say_and_close(sock: KeepaliveSocket) -> None:
    sock.send(repr(sock.keepalive).encode())
    sock.close()


def test_other_kinds_travel_too():
    one, other = longconn.socket.socketpair()
    here, there = multiprocessing.Pipe()
    with one, other, here, there:
        here.send(one)
        with there.recv() as copy:
            assert type(copy) is KeepaliveSocket
            copy.send(b"x")
            assert other.recv(1) == b"x"


def test_one_that_is_off_stays_off():
    here, there = multiprocessing.Pipe()
    with connected(keepalive=False) as (ours, _), here, there:
        before = options(ours)
        here.send(ours)
        with there.recv() as copy:
            assert copy.keepalive is None
            assert watch_of(copy) is None
        assert options(ours) == before


def test_plain_pickle_refuses_it_though_multiprocessing_sends_it():
    assert "multiprocessing.reduction" in sys.modules
    with KeepaliveSocket() as sock, pytest.raises(TypeError):
        pickle.dumps(sock)


LAZY = """
import sys
import longconn
assert not [name for name in sys.modules if name.startswith("multiprocessing")], "imported by us"
FIRST
from multiprocessing.reduction import ForkingPickler
assert longconn.KeepaliveSocket in ForkingPickler._extra_reducers
import socket
assert socket.socket in ForkingPickler._extra_reducers, "the stdlib's own registration stays"
import logging
assert not [each for each in sys.meta_path if type(each).__module__.startswith("longconn")], "the hooks are gone"
import pickle
sock = longconn.KeepaliveSocket()
try:
    pickle.dumps(sock)
except TypeError:
    print("fine")
sock.close()
"""


@pytest.mark.parametrize(
    "first", ["", "import multiprocessing", "import concurrent.futures.process", "import asyncio, importlib.util"]
)
def test_it_registers_when_multiprocessings_reduction_is_imported_and_not_before(first):
    assert python_says(LAZY.replace("FIRST", first)) == "fine\n"


def test_it_registers_at_once_where_that_was_imported_before():
    code = "import multiprocessing.reduction\n" + LAZY.replace("assert not [name for", "[name for").replace("FIRST", "")
    code = code.replace(', "imported by us"', "")
    assert python_says(code) == "fine\n"


def test_looking_for_the_module_without_importing_it_does_not_lose_the_registration():
    """importlib.util.find_spec() is how tools look whether something is there."""
    first = "import importlib.util; importlib.util.find_spec('multiprocessing.reduction')"
    assert python_says(LAZY.replace("FIRST", first)) == "fine\n"
