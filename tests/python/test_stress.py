"""Many threads at one connection, one server, one guard, one socket, one of each other kind, and forks: what a race can
break, they break.

On an interpreter without a GIL (PEP 703) the threads really run at once; on others they change places where a call
waits, or gives the GIL away. Every message and byte carries its number, so that a lost, doubled or torn one shows.
LONGCONN_STRESS_SECONDS (2) is how long each test keeps at it.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import longconn
import pytest
import trustme
from longconn import aio
from longconn.metrics import Metrics
from longconn.testing import FaultProxy
from peers import PATIENCE, QUICK, STDLIB, connected, let_go, native_threads, python_says

SECONDS = float(os.environ.get("LONGCONN_STRESS_SECONDS", "2"))
THREADS = 4
HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
#: What a call may say when another thread has closed the object under it.
CLOSED = (longconn.AlreadyClosed, longconn.PeerClosed, longconn.SessionLost, longconn.PeerLost)

pytestmark = pytest.mark.timeout(60 + 60 * PATIENCE / 20)


@contextmanager
def crowd(*jobs: Callable[[threading.Event], None]) -> Iterator[threading.Event]:
    """Runs all jobs at once, each in a thread, until the block is left and they have ended; raises what one raised."""
    over, begin, raised = threading.Event(), threading.Barrier(len(jobs) + 1), []

    def run(job: Callable[[threading.Event], None]) -> None:
        begin.wait()
        try:
            job(over)
        except BaseException as error:
            raised.append(error)
            over.set()

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        begin.wait()
        yield over
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
        sys.setswitchinterval(interval)
    if raised:
        raise raised[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def message(sender: int, number: int) -> bytes:
    """Of any size, and it shows when a part of it is another's."""
    head = f"{sender} {number} ".encode()
    return head + bytes([number % 251]) * random.choice((0, 1, 40, 1000, 70_000))


def number_of(data: bytes) -> tuple[int, int]:
    sender, number, rest = bytes(data).split(b" ", 2)
    assert rest.strip(bytes([int(number) % 251])) == b"", "torn"
    return int(sender), int(number)


def ask_everything(connection: longconn.LongConnection) -> None:
    """What can be asked, and set, at any time."""
    connection.status = os.urandom(8)
    connection.settimeout(random.choice((None, PATIENCE)))
    connection.progress()
    assert connection.fileno() >= 0
    seen = (repr(connection), connection.state, connection.stats(), connection.peer_status, connection.unacknowledged)
    assert all(part is not None for part in seen)
    assert connection.lost is None


def test_many_threads_on_one_connection_and_each_message_arrives_once_and_whole():
    sent: Counter[tuple[int, int]] = Counter()
    received: Counter[tuple[int, int]] = Counter()
    lock = threading.Lock()
    ended: list[int] = []
    with longconn.LongServer(("127.0.0.1", 0)) as server, longconn.connect(server.address) as ours:
        theirs = server.accept(timeout=PATIENCE)

        def send(sender: int) -> Callable[[threading.Event], None]:
            def job(over: threading.Event) -> None:
                for number in range(1_000_000):
                    if over.is_set():
                        break
                    data: Any = message(sender, number)
                    ours.send(data if number % 3 else bytearray(data))
                    with lock:
                        sent[sender, number] += 1
                ended.append(sender)

            return job

        def receive(over: threading.Event) -> None:
            while len(ended) < THREADS:  # who sends may wait for room
                with suppress(TimeoutError):
                    data = theirs.recv(timeout=0.05)
                    with lock:
                        received[number_of(data)] += 1

        def ask(over: threading.Event) -> None:
            while not over.is_set():
                ask_everything(ours)
                ask_everything(theirs)
                assert ours.ping(timeout=PATIENCE) >= 0

        with crowd(*map(send, range(THREADS)), *[receive] * THREADS, ask):
            time.sleep(SECONDS)
        while sum(received.values()) < sum(sent.values()):
            received[number_of(theirs.recv(timeout=PATIENCE))] += 1
        assert received == sent
        assert sent
        ours.flush(timeout=PATIENCE)
        theirs.close()


def test_many_threads_wait_on_one_connection_while_others_close_it():
    until = time.monotonic() + SECONDS
    with longconn.LongServer(("127.0.0.1", 0)) as server:
        while time.monotonic() < until:
            ours = longconn.connect(server.address)
            theirs = server.accept(timeout=PATIENCE)
            told: list[str] = []

            def wait(call: Callable[[], Any], told: list[str] = told) -> Callable[[threading.Event], None]:
                def job(over: threading.Event) -> None:
                    try:
                        while True:
                            call()
                    except CLOSED as error:
                        told.append(type(error).__name__)

                return job

            def watch(over: threading.Event, ours: longconn.LongConnection = ours) -> None:
                for event in ours.events():
                    assert event.state

            def close(over: threading.Event, ours: Any = ours, theirs: Any = theirs) -> None:
                time.sleep(random.random() / 100)
                let_go(random.choice((ours, theirs)))

            calls = (
                ours.recv,
                lambda ours=ours: ours.send(b"x" * 1000),
                lambda ours=ours: ours.wait_for("suspect"),
                lambda ours=ours: (ours.send(b""), ours.flush()),  # alone it has nothing to wait for, in the end
                lambda ours=ours: ours.ping(),
            )
            with crowd(*map(wait, calls), watch, close, close):
                pass
            assert len(told) == len(calls)
            let_go(ours)
            let_go(theirs)


def test_many_threads_on_one_server():
    answered: Counter[int] = Counter()
    lock = threading.Lock()
    happened: list[str] = []
    with longconn.LongServer(("127.0.0.1", 0), on_event=lambda _, event: happened.append(event.state)) as server:

        def serve(over: threading.Event) -> None:
            while not over.is_set():
                with suppress(TimeoutError):
                    for connection, data in server.messages(timeout=0.05):
                        with suppress(*CLOSED):
                            connection.send(data)

        def ask(over: threading.Event) -> None:
            while not over.is_set():
                with longconn.connect(server.address) as client:
                    for number in range(random.randrange(20)):
                        data = b"%d " % number + b"q" * random.choice((0, 100, 70_000))
                        client.send(data)
                        while (answer := client.recv(timeout=PATIENCE)) == b"to all":
                            pass
                        assert answer == data
                        with lock:
                            answered[number] += 1

        def look(over: threading.Event) -> None:
            while not over.is_set():
                server.broadcast(b"to all")
                for connection in server.connections:
                    assert repr(connection)
                assert server.stats().open >= 0

        def listen(over: threading.Event) -> None:
            for _, event in server.events():
                assert event.state
                if over.is_set():
                    return

        with crowd(serve, serve, look, listen, *[ask] * THREADS) as over:
            time.sleep(SECONDS)
            over.set()
            with longconn.connect(server.address):  # for who waits for an event
                pass
    assert answered[0]
    assert "open" in happened


def test_many_threads_on_one_guard():
    with connected(STDLIB) as (ours, _):
        guard = longconn.guard(ours, limit=60)

        def ask(over: threading.Event) -> None:
            while not over.is_set():
                assert guard.lost is None
                assert repr(guard)

        def stop_and_start(over: threading.Event) -> None:
            while not over.is_set():
                longconn.guard(ours, limit=random.choice((30, 60)), on_lost=print).stop()

        with crowd(ask, ask, *[stop_and_start] * THREADS):
            time.sleep(SECONDS)
        guard.stop()


def test_many_threads_on_one_socket():
    size, sent, received = 8, [0], [0]
    lock = threading.Lock()
    with connected(keepalive=QUICK) as (ours, peer):
        ours.settimeout(0.05)

        def send(over: threading.Event) -> None:
            while not over.is_set():
                with suppress(TimeoutError):
                    count = ours.send(random.choice((b"x" * size, bytearray(size), memoryview(bytes(size)))))
                    with lock:
                        sent[0] += count

        def echo() -> None:
            while data := peer.recv(65536):
                peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)

        def receive(over: threading.Event) -> None:
            room = bytearray(4096)
            while not over.is_set():
                with suppress(TimeoutError):
                    count = random.choice((lambda: len(ours.recv(4096)), lambda: ours.recv_into(room)))()
                    with lock:
                        received[0] += count

        def change(over: threading.Event) -> None:
            while not over.is_set():
                ours.settimeout(random.choice((0.05, 0.1)))
                ours.keepalive = random.choice((QUICK, longconn.Keepalive(60, 10, 6), QUICK))
                assert ours.lost is None
                assert ours.fileno() >= 0
                with ours.dup():
                    pass

        echoing = threading.Thread(target=echo)
        echoing.start()
        with crowd(change, *[send] * THREADS, *[receive] * THREADS):
            time.sleep(SECONDS)
        ours.settimeout(PATIENCE)
        ours.shutdown(socket.SHUT_WR)
        while data := ours.recv(65536):
            received[0] += len(data)
        echoing.join()
        assert received == sent


@contextmanager
def loop_in_a_thread() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs coroutines in an event loop of another thread's, and waits for what they return."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()


def test_many_threads_at_what_an_event_loop_has():
    """Awaiting is the loop's; asking isn't, and nobody may be told anything but the truth or that it isn't his turn."""
    received = [0]
    cancelled: list[bool] = []

    async def begin() -> tuple[aio.LongServer, aio.LongConnection, aio.LongConnection]:
        server = await aio.serve(None, ("127.0.0.1", 0))
        return server, await aio.connect(server.address), await server.accept()

    async def end(server: aio.LongServer, ours: aio.LongConnection) -> None:
        await ours.close()
        await server.close(drain=0)

    async def talk(ours: aio.LongConnection, theirs: aio.LongConnection, until: float) -> None:
        while time.monotonic() < until:
            data = message(0, received[0])
            sending = asyncio.ensure_future(ours.send(data))
            assert number_of(await theirs.recv()) == (0, received[0])
            await sending
            received[0] += 1

    with loop_in_a_thread() as run:
        server, ours, theirs = run(begin())
        shared: list[Any] = [None, None]

        def renew() -> None:
            waiting: Any = ours.wait_for("suspect", timeout=None)  # a timer is the loop's to set
            ticket = None
            while ticket is None:  # the loop may be due its turn
                ticket = next(waiting)
            shared[:] = waiting, ticket

        def step(over: threading.Event) -> None:
            while not over.is_set():
                waiting, ticket = shared
                assert repr(waiting).startswith("<longconn.aio ")
                try:
                    random.choice((waiting.__next__, waiting.close))()
                except RuntimeError as error:
                    if "awaited already" not in str(error):
                        raise
                ticket.add_done_callback(nothing)
                ticket.remove_done_callback(nothing)
                ticket.done()
                with suppress(asyncio.CancelledError):
                    ticket.result()

        def cancel(over: threading.Event) -> None:
            while not over.is_set():
                renew()
                cancelled.append(shared[1].cancel("enough"))

        def ask(over: threading.Event) -> None:
            while not over.is_set():
                for connection in (ours, theirs, *server.connections):
                    connection.status = os.urandom(8)
                    connection.settimeout(random.choice((None, PATIENCE)))
                    connection.progress()
                    assert repr(connection)
                    assert connection.stats()
                    assert connection.state == "open"
                    assert connection.lost is None
                assert server.stats().open == 1

        renew()
        with crowd(*[step] * 2, *[cancel] * 2, *[ask] * 2):
            run(talk(ours, theirs, time.monotonic() + SECONDS))
        shared[0].close()
        run(end(server, ours))
    assert received[0]
    assert any(cancelled)


def nothing(_ticket: object) -> None:
    """What a ticket calls."""


def test_many_threads_with_one_tls_configuration():
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    certificate = b"".join(each.bytes() for each in leaf.cert_chain_pems)
    ours = longconn.TLS(certificate=certificate, key=leaf.private_key_pem.bytes())
    theirs = longconn.TLS(ca=authority.cert_pem.bytes())
    answered = [0]
    lock = threading.Lock()
    with longconn.LongServer(("127.0.0.1", 0), tls=ours) as server:
        common = longconn.connect(server.address, tls=theirs)

        def serve(over: threading.Event) -> None:
            while not over.is_set():
                with suppress(TimeoutError):
                    for connection, data in server.messages(timeout=0.05):
                        assert connection.tls is not None
                        with suppress(*CLOSED):
                            connection.send(data)

        def come_and_go(over: threading.Event) -> None:
            while not over.is_set():
                with longconn.connect(server.address, tls=theirs) as client:
                    for number in range(random.randrange(1, 5)):
                        data = message(0, number)
                        client.send(data)
                        assert client.recv(timeout=PATIENCE) == data
                        with lock:
                            answered[0] += 1

        def talk(over: threading.Event) -> None:
            while not over.is_set():
                common.send(message(1, 1))
                assert number_of(common.recv(timeout=PATIENCE)) == (1, 1)

        def look(over: threading.Event) -> None:
            while not over.is_set():
                server.reload_tls(ours)
                told = common.tls
                assert told is not None
                assert told.peer is not None
                assert repr(theirs)
                assert server.stats().failed_handshakes == 0

        with crowd(serve, serve, look, talk, talk, *[come_and_go] * THREADS):
            time.sleep(SECONDS)
        let_go(common)
    assert answered[0]


def connect_through(proxy: FaultProxy) -> longconn.LongConnection:
    while True:
        with suppress(longconn.LongConnError):  # it was reset before its handshake was done, or began
            return longconn.connect(proxy.address, reconnect=longconn.Backoff(first=0.01, cap=0.05))


def test_many_threads_on_one_fault_proxy():
    echoed = [0]
    lock = threading.Lock()
    ended: list[None] = []
    with longconn.LongServer(("127.0.0.1", 0)) as server:
        with FaultProxy(server.address, capture_bytes=100) as proxy:

            def serve(over: threading.Event) -> None:
                while len(ended) < THREADS:
                    with suppress(TimeoutError):
                        for connection, data in server.messages(timeout=0.05):
                            with suppress(*CLOSED):
                                connection.send(data)

            def talk(over: threading.Event) -> None:
                """Resets and all: what comes back is what was sent, in order."""
                try:
                    with connect_through(proxy) as client:
                        for number in range(1_000_000):
                            if over.is_set():
                                break
                            data = message(0, number)
                            client.send(data)
                            assert client.recv(timeout=PATIENCE) == data
                            with lock:
                                echoed[0] += 1
                finally:
                    ended.append(None)  # or who serves would go on for ever

            def order(over: threading.Event) -> None:
                try:
                    while not over.is_set():
                        where = random.choice((proxy, proxy.after(0.001), *proxy.connections))
                        random.choice(
                            (
                                lambda where=where: where.latency(0.001),
                                lambda where=where: where.slice(1000),
                                lambda where=where: where.stall(),
                                lambda where=where: where.pull_cable(),
                                lambda where=where: where.reset(),
                            )
                        )()
                        time.sleep(random.random() / 100)
                        proxy.cancel()
                        proxy.restore()
                        proxy.upstream = server.address
                finally:
                    proxy.cancel()
                    proxy.restore()

            def look(over: threading.Event) -> None:
                while not over.is_set():
                    assert repr(proxy)
                    assert proxy.report()
                    for connection in proxy.connections:
                        flow = connection.to_server
                        assert flow.left + flow.held <= flow.entered
                    assert len(proxy.captured(1, "to_server")) <= 100
                    assert proxy.accepted >= 0

            with crowd(serve, serve, look, order, order, *[talk] * THREADS):
                time.sleep(SECONDS)
    assert echoed[0]


def test_many_threads_on_one_collector_of_metrics():
    prometheus = pytest.importorskip("prometheus_client", reason="the extra isn't installed")
    with longconn.LongServer(("127.0.0.1", 0)) as server, longconn.connect(server.address) as ours:
        metrics = Metrics(server=server)

        def change(over: threading.Event) -> None:
            while not over.is_set():
                metrics.add("ours", ours)
                metrics.remove("ours")

        def collect(over: threading.Event) -> None:
            registry = prometheus.CollectorRegistry()
            metrics.register(registry)
            while not over.is_set():
                assert b'server="server"' in prometheus.generate_latest(registry)

        with crowd(change, change, collect, collect):
            time.sleep(SECONDS)


FORKS = """
import os, random, threading, time, warnings
import longconn

warnings.simplefilter("ignore", DeprecationWarning)  # of CPython 3.12 and later: Python's own threads run
longconn.set_default_keepalive(longconn.Keepalive(1, 1, 3, guard=60))
over = threading.Event()
server = longconn.LongServer(("127.0.0.1", 0), on_event=lambda *_: None)
ours = longconn.connect(server.address, on_event=lambda _: None)

def echo():
    for connection, message in server.messages():
        connection.send(message)

def talk():
    while not over.is_set():
        ours.send(b"x" * random.choice((1, 1000, 100_000)))
        ours.recv()

def come_and_go():
    while not over.is_set():
        with longconn.connect(server.address):
            pass

def guard():
    while not over.is_set():
        with longconn.socket.create_connection(server.address) as sock:
            assert sock.lost is None

threading.Thread(target=echo, daemon=True).start()
threads = [threading.Thread(target=job) for job in (talk, talk, come_and_go, guard)]
for thread in threads:
    thread.start()
until = time.monotonic() + {seconds}
forks = 0
while time.monotonic() < until or forks < 5:
    child = os.fork()
    if child == 0:
        try:
            ours.send(b"")
        except longconn.ForkedError:
            with longconn.LongServer(("127.0.0.1", 0)) as new, longconn.connect(new.address) as connection:
                connection.send(b"new")
                peer = new.accept(timeout=60)
                os._exit(7 if peer.recv(timeout=60) == b"new" else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    forks += 1
over.set()
for thread in threads:
    thread.join()
print("fine", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("seconds", [SECONDS])
def test_forks_while_many_threads_are_at_it(seconds):
    assert python_says(FORKS.format(seconds=seconds)) == "fine\n"


def test_without_a_gil_nobody_claims_to_know_when_python_ran():
    with longconn.LongServer(("127.0.0.1", 0)) as server, longconn.connect(server.address) as ours:
        theirs = server.accept(timeout=PATIENCE)
        assert theirs.ping(timeout=PATIENCE) >= 0
        assert ours.ping(timeout=PATIENCE) >= 0
        age = ours.stats().peer_interpreter_age_seconds
        assert (age is not None) is HAS_GIL
        assert ("longconn-pulse" in native_threads()) is HAS_GIL
        theirs.close()


def test_the_module_leaves_the_gil_as_it_is():
    assert python_says("import sys, longconn; print(getattr(sys, '_is_gil_enabled', lambda: True)())") == f"{HAS_GIL}\n"
