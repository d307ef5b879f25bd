"""Owns the proof that the lab's faults are real: a test that finds a dead peer in a lab is worth what the lab is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from longconn.testing import network as lab_module
from longconn.testing.network import TRIALS, Lab, LabError, Pair, clean, enter_unprivileged, reason_unavailable

PYTHON = [sys.executable, "-I", "-S"]


@pytest.fixture(scope="session")
def checks():
    """`lab.py check` as the user we are, and in a user namespace; both at once, for they wait a lot."""
    argv = [*PYTHON, lab_module.__file__, "check"]
    processes = {
        mode: subprocess.Popen(argv + options, stdout=subprocess.PIPE, text=True)
        for mode, options in {"as we are": [], "unprivileged": ["--unprivileged"]}.items()
    }
    return {mode: process.communicate()[0].splitlines() for mode, process in processes.items()}


@pytest.fixture
def privileged() -> None:
    if not lab_module.is_privileged():
        pytest.skip("makes a lab in the test process itself, which takes root")


@pytest.fixture(scope="session")
def refusal() -> str:
    """What unshare(1) says where the kernel makes no user namespace even for us: in a chroot, in many containers."""
    return subprocess.run(["unshare", "--user", "true"], capture_output=True, text=True, check=False).stderr.strip()


@pytest.mark.parametrize("mode", ["as we are", "unprivileged"])
@pytest.mark.parametrize("fault", TRIALS)
def test_a_fault_does_what_it_says(checks, refusal, mode, fault):
    if mode == "unprivileged" and refusal:
        pytest.skip(f"no user namespaces here: {refusal}")
    (line,) = [line for line in checks[mode] if line[7:].startswith(fault)]
    assert line.startswith("works"), line


def test_a_closed_lab_leaves_no_process_no_descriptor_and_no_namespace(privileged):
    descriptors = len(os.listdir("/proc/self/fd"))
    home = os.stat("/proc/thread-self/ns/net").st_ino
    with Lab() as lab:
        # A shell whose child outlives it: the lab ends both.
        shell = lab.popen("client", ["sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"], stdout=subprocess.PIPE)
        child = int(shell.stdout.readline())
        assert {shell.pid, child} == set(lab.pids())
        namespaces = {os.stat(lab.path(place)).st_ino for place in ("client", "server", "router")}
        assert len(namespaces | {home}) == 4
    assert shell.returncode == -signal.SIGKILL
    assert lab_module._namespace_of(child) not in namespaces
    assert os.stat("/proc/thread-self/ns/net").st_ino == home
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_killed_owner_leaves_processes_that_clean_ends(privileged):
    owner_program = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from network import Lab\n"
        "lab = Lab().__enter__(); left = lab.popen('server', ['sleep', '1000'], stdout=-3, stderr=-3)\n"  # -3: DEVNULL
        "print(left.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    argv = [*PYTHON, "-c", owner_program, os.path.dirname(lab_module.__file__)]
    left = int(subprocess.run(argv, capture_output=True, text=True).stdout)
    assert lab_module._namespace_of(left)
    with Lab() as lab:
        living = lab.popen("client", ["sleep", "1000"])
        ended = clean()
        assert left in ended
        assert living.pid not in ended
        assert living.poll() is None


def test_two_labs_have_the_same_addresses_and_never_meet(privileged):
    with Lab() as one, Lab() as other, Pair(one) as first, Pair(other) as second:
        assert first.server.getsockname()[0] == second.server.getsockname()[0]
        one.pull("server")
        assert second.arriving() == {"client", "server"}
        assert first.arriving() == set()


def test_only_the_thread_that_asks_is_inside(privileged):
    def namespace(into: list[int]) -> None:
        into.append(os.stat("/proc/thread-self/ns/net").st_ino)

    with Lab() as lab:
        seen: list[int] = []
        entered, looked = threading.Event(), threading.Event()

        def beside() -> None:
            entered.wait()
            namespace(seen)
            looked.set()

        threading.Thread(target=beside).start()
        with lab.inside("client"):
            entered.set()
            looked.wait()
            namespace(seen)
        namespace(seen)
    outside, inside, back = seen
    assert outside == back != inside


def test_an_error_inside_brings_the_thread_home(privileged):
    home = os.stat("/proc/thread-self/ns/net").st_ino
    with Lab() as lab, pytest.raises(KeyError), lab.inside("server"):
        raise KeyError
    assert os.stat("/proc/thread-self/ns/net").st_ino == home


def test_a_mute_router_says_nothing_and_a_polite_one_says_unreachable(privileged):
    """Seen by a datagram to a host that has lost its cable; a UDP socket that asks is told of every ICMP error."""
    ip_recverr = 11  # <linux/in.h>
    told = {}
    for polite in (False, True):
        with Lab(polite=polite) as lab:
            lab.pull("server")
            with lab.inside("client"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.IPPROTO_IP, ip_recverr, 1)
                sock.connect((lab.address("server"), 9))
                sock.settimeout(1)
                sock.send(b"x")
                try:
                    sock.recv(1)
                except OSError as error:
                    told[polite] = type(error)
    assert told == {False: TimeoutError, True: OSError}


def test_faults_add_up_and_end_one_by_one(privileged):
    with Lab() as lab, Pair(lab) as pair:
        lab.drop("client")
        lab.loss(100, "server")
        assert pair.arriving() == set()
        lab.loss(0)
        assert pair.arrives("server", within=10)
        assert not pair.arrives("client")
        lab.undrop()
        assert pair.arrives("client", within=10)


def test_more_hosts_have_cables_and_losses_of_their_own(privileged):
    with Lab(more=("camera",)) as lab:
        with lab.inside("server"), socket.create_server((lab.address("server"), 0)) as listener:
            with lab.inside("camera"), socket.create_connection(listener.getsockname(), timeout=10) as camera:
                assert camera.getsockname()[0] == lab.address("camera")
        with Pair(lab) as pair:
            lab.pull("camera")
            lab.drop("camera")
            assert pair.arriving() == {"client", "server"}


def test_misuse_is_refused_in_words(privileged):
    with pytest.raises(LabError, match="nat=False"):
        Lab(nat=True, more=("camera",))
    with Lab() as lab:
        with pytest.raises(LabError, match="nat=True"):
            lab.forget()
        with pytest.raises(ValueError, match="no such host: a"):
            lab.drop("a")


def test_the_reason_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(lab_module, "_tool", lambda name: None if name == "nft" else name)
    assert reason_unavailable.__wrapped__() == "`nft` isn't installed (package nftables)"


def test_a_process_with_threads_is_told_why_it_is_too_late(monkeypatch):
    monkeypatch.setattr(lab_module, "is_privileged", lambda: False)
    stay = threading.Event()
    thread = threading.Thread(target=stay.wait)
    thread.start()
    try:
        with pytest.raises(LabError, match="more than one thread"):
            enter_unprivileged()
    finally:
        stay.set()
        thread.join()
