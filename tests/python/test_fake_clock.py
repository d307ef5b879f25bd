"""`fake_clock`: minutes and days of connections in milliseconds, and what happens in them happens at its time."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any

import longconn
import pytest
from longconn import Adaptive, Backoff, Heartbeat, LongServer, PeerLost, PlainHeartbeat
from longconn.testing import FakeClock, FaultProxy, assert_told_within
from peers import PATIENCE, SLACK, let_go, listening, python_says, wait_until

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
BEAT = Heartbeat(30, limit=75)
#: What has gone by by itself, on a machine that is busy with other things.
A_WHILE = 2.0 * SLACK

Proxies = Callable[..., FaultProxy]
Servers = Callable[..., LongServer]


class Pair:
    def __init__(self, server: LongServer, proxy: FaultProxy, **options: Any) -> None:
        self.proxy = proxy
        settings = {"heartbeat": BEAT, "reconnect": False, "timeout": PATIENCE, **options}
        self.client = longconn.connect(proxy.address, **settings)
        self.server = server.accept(timeout=PATIENCE)

    def let_go(self) -> None:
        let_go(self.client)
        let_go(self.server)


@pytest.fixture
def make_pair(fake_clock: FakeClock, long_server: Servers, fault_proxy: Proxies) -> Iterator[Callable[..., Pair]]:
    pairs = []

    def make(server: dict[str, Any] | None = None, **client: Any) -> Pair:
        listener = long_server(**{"heartbeat": BEAT, "session_retention": 0, **(server or {})})
        pairs.append(Pair(listener, fault_proxy(listener), **client))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.let_go()


def loss(connection: Any) -> PeerLost:
    with pytest.raises(PeerLost) as told:
        connection.recv(timeout=0)
    return told.value


# ---- the clock


def test_it_goes_on_as_ever_but_for_what_is_skipped(fake_clock: FakeClock):
    elapsed, wall, real = fake_clock.elapsed, fake_clock.time() - time.time(), time.monotonic()
    fake_clock.advance(90 * DAY)
    fake_clock.advance(timedelta(days=10))
    assert time.monotonic() - real < PATIENCE
    assert 100 * DAY <= fake_clock.elapsed - elapsed < 100 * DAY + PATIENCE
    # What has gone by by itself needn't be skipped.
    assert 100 * DAY - PATIENCE < fake_clock.time() - time.time() - wall <= 100 * DAY + 0.001


def test_afterwards_the_time_of_day_is_told_again_and_nothing_is_skipped(long_server: Servers):
    with FakeClock() as clock:
        clock.advance(DAY)
        server = long_server()
        with longconn.connect(server.address) as connection, server.accept(timeout=PATIENCE):
            assert DAY <= connection.opened_at - time.time() + PATIENCE < DAY + 2 * PATIENCE
    with pytest.raises(ValueError, match="closed"):
        clock.advance(DAY)
    with longconn.connect(server.address) as connection, server.accept(timeout=PATIENCE) as there:
        assert abs(connection.opened_at - time.time()) < PATIENCE
        there.send(b"in real time")
        assert connection.recv(timeout=PATIENCE) == b"in real time"


def test_it_says_how_much_of_its_own_time_was_skipped():
    with FakeClock() as first:
        first.advance(HOUR)
        with FakeClock() as second:
            second.advance(MINUTE)
            numbers = [[float(each) for each in re.findall(r"[\d.]+", repr(clock))] for clock in (first, second)]
    numbers.append([float(each) for each in re.findall(r"[\d.]+", repr(first))])
    for (elapsed, skipped), least in zip(numbers, (HOUR + MINUTE, MINUTE, HOUR + MINUTE), strict=True):
        assert least - A_WHILE < skipped <= elapsed < least + PATIENCE


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e300, 101 * 365 * DAY])
def test_what_is_no_time_is_refused(fake_clock: FakeClock, seconds: float):
    before = fake_clock.time() - time.time()
    with pytest.raises(ValueError, match=r"seconds=|a hundred years|not a time"):
        fake_clock.advance(seconds)
    with pytest.raises(TypeError):
        fake_clock.advance("75")  # type: ignore[arg-type]
    assert fake_clock.time() - time.time() == pytest.approx(before, abs=0.01)


def test_a_signal_ends_it_and_the_clock_stays_where_it_has_come_to(
    make_pair: Callable[..., Pair], fake_clock: FakeClock
):
    beat = Heartbeat(0.05, limit=5)
    pair = make_pair(server={"heartbeat": beat}, heartbeat=beat)
    before = fake_clock.elapsed

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            fake_clock.advance(50 * 365 * DAY)
    finally:
        signal.signal(signal.SIGALRM, handler)
    fake_clock.advance(1)
    assert 1 < fake_clock.elapsed - before < 50 * 365 * DAY
    assert pair.client.state == "open"


def test_two_threads_may_skip_at_once(make_pair: Callable[..., Pair], fake_clock: FakeClock):
    pair = make_pair()
    took = {}

    def skip(seconds: float) -> None:
        before = fake_clock.elapsed
        fake_clock.advance(seconds)
        took[seconds] = fake_clock.elapsed - before

    threads = [threading.Thread(target=skip, args=(seconds,)) for seconds in (HOUR, 2 * HOUR, 3 * HOUR)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert all(took[seconds] >= seconds for seconds in (HOUR, 2 * HOUR, 3 * HOUR))
    assert pair.client.state == "open"
    assert pair.client.stats().beats_heard >= 3 * HOUR / 30


def test_a_forked_child_goes_on_by_itself():
    said = python_says("""
import os, longconn
from longconn.testing import FakeClock
clock = FakeClock()
beat = longconn.Heartbeat(30, limit=75)

def live(hours):
    with longconn.LongServer(("127.0.0.1", 0), heartbeat=beat) as server:
        with longconn.connect(server.address, heartbeat=beat) as client, server.accept(timeout=20):
            clock.advance(hours * 3600)
            assert client.stats().beats_heard >= hours * 100, client.stats()

live(10)
if (pid := os.fork()) == 0:
    live(5)
    os._exit(0 if clock.elapsed > 15 * 3600 else 1)
live(1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), round(clock.elapsed / 3600))
""")
    assert said.split() == ["0", "11"]


# ---- heartbeats


def test_a_dead_peer_is_lost_when_its_time_is_up_and_not_before(make_pair: Callable[..., Pair], fake_clock: FakeClock):
    pair = make_pair()
    fake_clock.advance(HOUR)
    pair.proxy.pull_cable()
    left = 75 - pair.client.stats().silence_seconds
    fake_clock.advance(left - A_WHILE)
    assert pair.client.state == "suspect"
    fake_clock.advance(A_WHILE)
    told = loss(pair.client)
    assert told.cause == "unreachable"
    assert 75 <= told.silence < 75 + A_WHILE
    fake_clock.advance(75)
    assert loss(pair.server).cause == "unreachable"


@pytest.mark.parametrize(
    ("break_it", "cause"),
    [
        (lambda proxy: proxy.pull_cable(), "unreachable"),
        (lambda proxy: proxy.forget(), "unreachable"),
        (lambda proxy: proxy.stall(), "frozen"),
    ],
    ids=["pull_cable", "forget", "stall"],
)
def test_the_cause_is_as_true_as_in_real_time(
    make_pair: Callable[..., Pair], fake_clock: FakeClock, break_it: Callable[[FaultProxy], None], cause: str
):
    pair = make_pair()
    fake_clock.advance(10 * MINUTE)
    break_it(pair.proxy)
    with assert_told_within(2 * 76, cause=cause) as told:
        fake_clock.advance(2 * 75)
        pair.client.recv(timeout=0)
    assert told.seconds >= 2 * 75


def test_a_thousand_hours_of_beats_raise_no_suspicion(make_pair: Callable[..., Pair], fake_clock: FakeClock):
    events: list[str] = []
    pair = make_pair(on_event=lambda event: events.append(event.state))
    fake_clock.advance(1000 * HOUR)
    assert pair.client.state == pair.server.state == "open"
    stats = pair.client.stats()
    assert stats.beats_heard >= 120_000
    assert stats.round_trip_smoothed_seconds < 1
    assert stats.peer_interpreter_age_seconds is None or stats.peer_interpreter_age_seconds < PATIENCE
    assert set(events) <= {"open"}


def test_a_program_that_takes_nothing_is_hung_when_its_time_is_up(
    make_pair: Callable[..., Pair], fake_clock: FakeClock
):
    pair = make_pair(heartbeat=Heartbeat(30, limit=75, application_limit=10 * MINUTE))
    pair.client.send(b"nobody takes it")
    fake_clock.advance(9 * MINUTE)
    assert pair.client.state == "open"
    assert pair.client.stats().peer_application_age_seconds > 7 * MINUTE
    fake_clock.advance(3 * MINUTE)
    assert loss(pair.client).cause == "hung"


def test_a_peer_in_another_process_beats_by_its_own_clock(fake_clock: FakeClock):
    code = """
import sys, longconn
with longconn.LongServer(("127.0.0.1", 0), heartbeat=longconn.Heartbeat(30, limit=75)) as server:
    print(server.address[1], flush=True)
    sys.stdin.read()
"""
    import subprocess
    import sys

    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            port = int(process.stdout.readline())  # type: ignore[union-attr]
            with longconn.connect(("127.0.0.1", port), heartbeat=BEAT, reconnect=False) as client:
                # It answers a suspicion, for that is a question.
                fake_clock.advance(HOUR)
                assert client.state == "open"
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
                fake_clock.advance(2 * MINUTE)
                assert loss(client).cause == "frozen"
        finally:
            process.kill()


# ---- plain peers


@contextmanager
def answering(answers: threading.Event) -> Iterator[tuple[str, int]]:
    """A server that answers PING, as long as that is wanted."""
    with listening() as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, sock.makefile("rb") as lines, suppress(ConnectionResetError):
                for line in lines:
                    if line == b"PING\n" and answers.is_set():
                        sock.sendall(b"PONG\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            thread.join(PATIENCE)


def test_a_plain_peer_s_answers_are_waited_for_and_missed(fake_clock: FakeClock):
    answers = threading.Event()
    answers.set()
    events: list[str] = []
    beat = PlainHeartbeat(30, send=b"PING", expect=b"PONG", limit=75)
    with answering(answers) as address:
        settings: dict[str, Any] = {"framing": longconn.Lines(), "heartbeat": beat}
        with longconn.connect(address, **settings, on_event=lambda event: events.append(event.state)) as connection:
            fake_clock.advance(DAY)
            stats = connection.stats()
            assert (connection.state, stats.beats_heard) == ("open", stats.beats_sent)
            assert stats.beats_heard >= DAY / 30 - 1
            assert "suspect" not in events
            answers.clear()
            fake_clock.advance(74 - connection.stats().silence_seconds)
            assert connection.state == "suspect"
            fake_clock.advance(32)
            assert loss(connection).cause == "frozen"


def test_a_plain_peer_that_was_asked_nothing_is_called_silent_and_not_frozen(
    fake_clock: FakeClock, fault_proxy: Proxies
):
    with listening() as listener:
        proxy = fault_proxy(listener)
        beat = PlainHeartbeat(30, expect=b"PONG", limit=75)
        connection = longconn.connect(proxy.address, framing=longconn.Lines(), heartbeat=beat, keepalive=False)
        peer, _ = listener.accept()
        with peer, connection:
            peer.sendall(b"PONG\n")
            wait_until(lambda: connection.stats().beats_heard == 1)
            proxy.pull_cable()
            fake_clock.advance(80)
            # The kernel's last acknowledgement is milliseconds old, by its own clock.
            assert loss(connection).cause == "silent"


# ---- calls that wait


def test_calls_that_wait_in_other_threads_time_out(make_pair: Callable[..., Pair], fake_clock: FakeClock):
    pair = make_pair()
    took: list[tuple[float, float]] = []
    begun = threading.Barrier(3)

    def wait(call: Callable[..., Any]) -> None:
        began, real = fake_clock.elapsed, time.monotonic()
        begun.wait(PATIENCE)
        with pytest.raises(TimeoutError):
            call(timeout=HOUR)
        took.append((fake_clock.elapsed - began, time.monotonic() - real))

    calls = [pair.client.recv, pair.server.recv]
    threads = [threading.Thread(target=wait, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    begun.wait(PATIENCE)
    fake_clock.advance(HOUR - A_WHILE)
    assert all(thread.is_alive() for thread in threads)
    fake_clock.advance(2 * A_WHILE)
    for thread in threads:
        thread.join(PATIENCE)
    assert len(took) == 2
    assert all(HOUR <= elapsed < HOUR + 3 * A_WHILE and real < PATIENCE for elapsed, real in took)


def test_threads_that_read_in_the_engine_s_place_are_waited_for(make_pair: Callable[..., Pair], fake_clock: FakeClock):
    events: list[str] = []
    pair = make_pair(on_event=lambda event: events.append(event.state))
    ends = pair.client, pair.server
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda end=end: got.append(end.recv(timeout=None))) for end in ends]
    for thread in threads:
        thread.start()
    fake_clock.advance(100 * HOUR)
    for end in ends:
        assert end.state == "open"
        assert end.stats().beats_heard >= 12_000
        # Whoever had been left behind would have read a beat at another's time.
        assert end.stats().round_trip_smoothed_seconds < 1
        end.send(b"still here")
    for thread in threads:
        thread.join(PATIENCE)
    assert got == 2 * [b"still here"]
    assert "suspect" not in events


def test_a_program_that_looks_each_minute_has_its_minutes(make_pair: Callable[..., Pair], fake_clock: FakeClock):
    pair = make_pair()
    looks = []

    def look() -> None:
        while not looks or looks[-1] < HOUR:
            with pytest.raises(TimeoutError):
                pair.client.recv(timeout=MINUTE)
            looks.append(fake_clock.elapsed - began)

    began = fake_clock.elapsed
    thread = threading.Thread(target=look)
    thread.start()
    fake_clock.advance(2 * HOUR)
    thread.join(PATIENCE)
    # Where the machine is slow a look begins late, at the next alarm of a beat.
    assert 30 <= len(looks) <= 60


def test_an_event_loop_goes_on_while_a_thread_skips(make_pair: Callable[..., Pair], fake_clock: FakeClock):
    from longconn import aio

    async def main() -> None:
        async with aio.serve(None, ("127.0.0.1", 0), heartbeat=BEAT) as server:
            async with aio.connect(server.address, heartbeat=BEAT) as client:
                there = await server.accept()
                waits = asyncio.create_task(client.recv(timeout=10 * HOUR))
                await asyncio.to_thread(fake_clock.advance, 9 * HOUR)
                assert client.state == there.state == "open"
                assert not waits.done()
                await there.send(b"nine hours later")
                assert await waits == b"nine hours later"
                waits = asyncio.create_task(client.recv(timeout=10 * HOUR))
                await asyncio.sleep(0)
                await asyncio.to_thread(fake_clock.advance, 11 * HOUR)
                await asyncio.wait([waits], timeout=PATIENCE)
                assert isinstance(waits.exception(), TimeoutError)
                # And where the loop itself stands still: its connections are looked after all the same.
                fake_clock.advance(HOUR)
                assert client.state == there.state == "open"
                assert client.stats().beats_heard > 20 * HOUR / 30 - 10

    asyncio.run(asyncio.wait_for(main(), 3 * PATIENCE))


# ---- sessions


def test_a_session_is_given_up_after_its_hours_and_the_attempts_come_at_their_time(
    fake_clock: FakeClock, long_server: Servers, fault_proxy: Proxies
):
    server = long_server(heartbeat=BEAT)
    proxy = fault_proxy(server)
    how = Backoff(first=MINUTE, cap=10 * MINUTE)
    settings: dict[str, Any] = {"heartbeat": BEAT, "reconnect": how, "give_up_after": 10 * HOUR}
    client = longconn.connect(proxy.address, **settings, timeout=PATIENCE)
    server.close(drain=0)
    wait_until(lambda: client.state == "reconnecting")
    fake_clock.advance(9.9 * HOUR)
    assert client.state == "reconnecting"
    fake_clock.advance(0.2 * HOUR)
    assert client.state == "closed"
    events = {event.state: event.time for event in client.events()}
    assert events["closed"] - events["reconnecting"] == pytest.approx(10 * HOUR, abs=A_WHILE)
    assert events["closed"] == pytest.approx(fake_clock.time() - 0.1 * HOUR, abs=3 * A_WHILE)
    came = [event.at for event in proxy.record if event.what == "accepted"]
    gaps = [later - earlier for earlier, later in pairwise(came[2:])]
    # Any moment within the cap: five minutes on average.
    assert 60 <= len(gaps) <= 260
    assert max(gaps) <= 10 * MINUTE + A_WHILE
    assert sum(gap > MINUTE for gap in gaps) > len(gaps) / 2
    with pytest.raises(longconn.PeerClosed, match="given up"):
        client.recv(timeout=0)


@pytest.mark.parametrize(("away", "is_kept"), [(1.9 * HOUR, True), (2.1 * HOUR, False)])
def test_a_session_is_retained_for_its_hours(
    fake_clock: FakeClock, long_server: Servers, fault_proxy: Proxies, away: float, is_kept: bool
):
    server = long_server(heartbeat=BEAT, session_retention=2 * HOUR)
    proxy = fault_proxy(server)
    how = Backoff(first=1, cap=MINUTE)
    client = longconn.connect(proxy.address, heartbeat=BEAT, reconnect=how, timeout=PATIENCE)
    there = server.accept(timeout=PATIENCE)
    client.send(b"taken")
    assert there.recv(timeout=PATIENCE) == b"taken"
    client.flush(timeout=PATIENCE)
    proxy.refuse()
    proxy.reset()
    wait_until(lambda: there.state == "reconnecting")
    client.send(b"in doubt")
    fake_clock.advance(away)
    assert there.state == ("reconnecting" if is_kept else "closed")
    proxy.restore()
    fake_clock.advance(2 * MINUTE)
    if not is_kept:
        there = server.accept(timeout=PATIENCE)
    assert there.recv(timeout=PATIENCE) == b"in doubt"
    let_go(client)
    let_go(there)


def test_an_adaptive_interval_finds_what_a_nat_of_five_minutes_bears(
    fake_clock: FakeClock, long_server: Servers, fault_proxy: Proxies
):
    server = long_server(heartbeat=Heartbeat(3600))
    proxy = fault_proxy(server)
    proxy.forget_after(300)
    adaptive = Heartbeat(Adaptive(min=30, max=1800))
    client = longconn.connect(proxy.address, heartbeat=adaptive, timeout=PATIENCE)
    fake_clock.advance(2 * DAY)
    stats = client.stats()
    assert stats.state == "open"
    assert stats.settled_seconds_ago is not None
    assert 180 <= stats.proven_interval_seconds < 300
    assert stats.send_interval_seconds == stats.proven_interval_seconds
    forgotten = sum(event.what == "forgotten" for event in proxy.record)
    assert 2 <= forgotten <= 6
    let_go(client)


# ---- fault proxies


def test_a_fault_proxy_s_plans_and_delays_are_on_the_same_clock(make_pair: Callable[..., Pair], fake_clock: FakeClock):
    pair = make_pair()
    pair.proxy.latency(20)
    pair.proxy.after(2 * HOUR).reset()
    fake_clock.advance(HOUR)
    assert 39 < pair.client.stats().round_trip_smoothed_seconds < 45
    pair.client.send(b"far away")
    fake_clock.advance(19)
    with pytest.raises(TimeoutError):
        pair.server.recv(timeout=0)
    fake_clock.advance(2)
    assert pair.server.recv(timeout=PATIENCE) == b"far away"
    fake_clock.advance(HOUR)
    assert loss(pair.client).cause == "reset"
    faults = [event.at for event in pair.proxy.record if event.what == "fault"]
    assert faults[-1] - faults[0] == pytest.approx(2 * HOUR, abs=A_WHILE)


# ---- what isn't ours


def test_the_kernel_s_clock_skips_nothing_and_so_the_guard_convicts_nobody(fake_clock: FakeClock):
    with listening() as listener, longconn.KeepaliveSocket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.keepalive = longconn.Keepalive(1, 1, 3)
        sock.settimeout(0.2)
        sock.connect(listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            sock.sendall(b"x")
            fake_clock.advance(DAY)
            real = time.monotonic()
            with pytest.raises(TimeoutError):
                sock.recv(1)
            assert time.monotonic() - real >= 0.19
            peer.sendall(b"y")
            assert sock.recv(1) == b"y"
            assert sock.lost is None
