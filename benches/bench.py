"""Owns the speed table: how fast one socket class is against another, as ratios measured side by side.

    python benches/bench.py                          # longconn.KeepaliveSocket against the stdlib's socket
    python benches/bench.py --quick --rows pingpong_timeout,make_close
    python benches/bench.py --subject socket:socket  # the harness against itself: every ratio must be 1.00

How a ratio is made:

- Each class has processes of its own, so the stdlib's side never pays for our native thread (a process with a
  second thread takes a slower way through the kernel's descriptor table), and CPython's inline caches see one class.
- The two classes take turns in small slices, A B, B A, A B, ...: what disturbs the machine disturbs both. All
  processes share one CPU, so that no ratio depends on how two cores wake each other. One row can't: a thread that
  computes on the same CPU is seldom let in by the kernel while a send lasts, so that a send seldom waits for the GIL.
  It has a CPU of its own there (and a row without a bound shows the case of one CPU).
- A round is one fresh set of processes. A class's time in a round is the lower decile of its slices: slices are a few
  milliseconds, so that even on a busy machine some pass undisturbed. (Equal classes give 1.00 to 0.01 with it at a
  load of five on two cores, where the median of the slices strays by 0.1. On a quiet machine both say the same.)
  The table shows the median of the rounds, and the least and greatest of them.
- The garbage collector is off during a slice. TCP_NODELAY is set on both ends, for both classes, and both buffers are
  fixed (--buffer-bytes): left to the kernel's tuning, two equal streams differ by up to 25 %.

Ratios are speeds: time of the other class divided by time of ours, so more than 1 means that ours is faster.
Missed bounds are marked, but never change the exit status: the machine may be busy.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import platform
import re
import resource
import select
import socket as stdlib_socket
import statistics
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20
MESSAGE = b"long connections need heartbeats, short ones need only sockets.\n"
MESSAGE_BYTES = len(MESSAGE)
TIMEOUT_SECONDS = 5.0
# Two equal processes stream up to 15 % apart for as long as they live, wherever their memory happened to lie; the
# median of nine such pairs strays by 0.05, that of 27 by 0.02.
STREAM_ROUNDS = 3
# What Linux gives a receiver to begin with; with it equal streams differ by 1 %, with twice as much by 5 %.
BUFFER_BYTES = 131072
GUARD_LIMIT_SECONDS = 8.0
GUARD_CONNECTIONS = 5000
# Connections made before the first look at memory: they pay for the thread's stack and the first blocks of every table.
GUARD_WARM_UP_CONNECTIONS = 64
WORKER_PATIENCE_SECONDS = 120.0
# A closed socket with this set sends RST and leaves no TIME_WAIT: hundreds of thousands would be left by a run.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class RowError(Exception):
    """A row couldn't be measured; the text says why."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: a table for people, or a quick look."""

    rounds: int
    pairs: int
    slice_seconds: float
    guard_rounds: int
    guard_seconds: float
    import_runs: int


FULL = Effort(rounds=9, pairs=120, slice_seconds=0.003, guard_rounds=3, guard_seconds=10.0, import_runs=20)
QUICK = Effort(rounds=3, pairs=40, slice_seconds=0.003, guard_rounds=1, guard_seconds=4.0, import_runs=7)


# What the two ends do in one slice. `count` is operations: round trips, messages, or MiB.


def ping(sock: Any, count: int) -> None:
    reply = b""
    for _ in range(count):
        sock.send(MESSAGE)
        reply = sock.recv(64)
    if reply != MESSAGE:
        raise RowError(f"the echo came back as {reply!r}")


def echo(sock: Any, count: int) -> None:
    for _ in range(count):
        sock.send(sock.recv(64))


def send_messages(sock: Any, count: int) -> None:
    sent, total = 0, count * MESSAGE_BYTES
    while sent < total:
        sent += sock.send(MESSAGE)


def receive_messages(sock: Any, count: int) -> None:
    received, total = 0, count * MESSAGE_BYTES
    while received < total:
        data = sock.recv(64)
        if not data:
            raise RowError("the stream ended early")
        received += len(data)


def receive_messages_at_once(sock: Any, count: int) -> None:
    """Woken once, for all of them: the sender's time is to be its own, and not that of a reader on the same CPU."""
    total = count * MESSAGE_BYTES
    sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVLOWAT, total)
    if len(sock.recv(total)) != total:
        raise RowError("the stream ended early")


def send_stream(sock: Any, count: int) -> None:
    data = bytes(MIB)
    for _ in range(count):
        sock.sendall(data)


def receive_stream(sock: Any, count: int) -> None:
    received, total = 0, count * MIB
    while received < total:
        data = sock.recv(65536)
        if not data:
            raise RowError("the stream ended early")
        received += len(data)


def receive_stream_into(sock: Any, count: int) -> None:
    buffer = bytearray(65536)
    received, total = 0, count * MIB
    while received < total:
        size = sock.recv_into(buffer)
        if not size:
            raise RowError("the stream ended early")
        received += size


def send_times_beside_thread(sock: Any, count: int, computing_cpu: int | None) -> list[int]:
    """Nanoseconds of each send while another thread computes; the sends are apart, as heartbeats are."""
    stop: list[bool] = []

    def compute() -> None:
        if computing_cpu is not None:
            os.sched_setaffinity(0, {computing_cpu})  # of this thread alone
        number = 0
        while not stop:
            number += 1

    # The thread lives for one slice: between slices it would take the CPU that the other class is measured on.
    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    times: list[int] = []
    try:
        for _ in range(count):
            time.sleep(0.0005)
            before = time.perf_counter_ns()
            sock.send(MESSAGE)
            times.append(time.perf_counter_ns() - before)
    finally:
        stop.append(True)
        thread.join()
    return times


def send_beside_thread(sock: Any, count: int, computing_cpu: int) -> float:
    """The mean: a send that gets the GIL back at once takes microseconds, one that doesn't 5 ms; which it is for more
    than half of the stdlib's, and so their median, hangs on how fast the other CPU wakes."""
    return statistics.fmean(send_times_beside_thread(sock, count, computing_cpu))


def send_beside_thread_median(sock: Any, count: int, computing_cpu: int) -> float:
    return statistics.median(send_times_beside_thread(sock, count, computing_cpu))


def send_beside_thread_one_cpu(sock: Any, count: int) -> float:
    return statistics.fmean(send_times_beside_thread(sock, count, None))


def make_and_close(make: Callable[..., Any], count: int) -> None:
    for _ in range(count):
        make(stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM).close()


def connect_accept_close(make: Callable[..., Any], count: int) -> None:
    listener = make(stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = listener.getsockname()
    for _ in range(count):
        client = make(stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM)
        client.connect(address)
        accepted, _ = listener.accept()
        client.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, RESET_ON_CLOSE)
        client.close()
        accepted.close()
    listener.close()


@dataclass(frozen=True)
class Row:
    """One line of the table whose result is a ratio of speeds."""

    name: str
    title: str
    operation: str
    # Gets a connected socket; with `peer` None it gets the class. May return nanoseconds an operation of its own.
    client: Callable[..., float | None]
    peer: Callable[[Any, int], float | None] | None = None
    bound: float | None = None
    aim: float | None = None
    timeout: float | None = None
    # Whether the other end, in its own process, is of the class under test, too, or the stdlib's, blocking.
    peer_is_same_class: bool = False
    # The row's thread gets a CPU of its own: the client is called with its number, too.
    takes_second_cpu: bool = False
    # The other class's processes get an idle thread, as ours have: what is left is the price of the class's own code.
    other_has_thread: bool = False
    # A stream falls into step only after some MiB: short slices of equal classes differ by half.
    is_stream: bool = False
    # Fixed where a slice can't be as short as the others.
    count: int | None = None
    pairs: int | None = None


# Both ends of a ping-pong, and of one way, are of the class under test: a ratio with the stdlib at the other end would
# hide half of what the class does, for better or worse. The rows "one end" show that ratio, too, without a bound.
# Streams have the stdlib at the other end, so that each row shows one method only.
# A process with a second thread, even an idle one, pays some 3 % of a ping-pong: its locks are no longer elided and the
# kernel counts references to descriptors. Ours has the guard's. The rows with a bound include that price.
ROWS = (
    Row("pingpong_blocking", "64 B ping-pong, blocking", "round trip", ping, echo, 0.98, 1.05, None, True),
    Row(
        "pingpong_timeout", "64 B ping-pong, settimeout(5)", "round trip", ping, echo, 1.10, 1.20, TIMEOUT_SECONDS, True
    ),
    Row("pingpong_blocking_one_end", "... blocking, one end", "round trip", ping, echo),
    Row("pingpong_timeout_one_end", "... settimeout(5), one end", "round trip", ping, echo, timeout=TIMEOUT_SECONDS),
    Row(
        "pingpong_blocking_threads",
        "... blocking, an idle thread beside both",
        "round trip",
        ping,
        echo,
        peer_is_same_class=True,
        other_has_thread=True,
    ),
    Row(
        "pingpong_timeout_threads",
        "... settimeout(5), an idle thread beside both",
        "round trip",
        ping,
        echo,
        timeout=TIMEOUT_SECONDS,
        peer_is_same_class=True,
        other_has_thread=True,
    ),
    Row(
        "send_beside_thread",
        "send(64 B) beside a computing thread",
        "send",
        send_beside_thread,
        receive_messages_at_once,
        100.0,
        takes_second_cpu=True,
        count=20,
        pairs=5,
    ),
    Row(
        "send_beside_thread_median",
        "... median of the sends",
        "send",
        send_beside_thread_median,
        receive_messages_at_once,
        takes_second_cpu=True,
        count=20,
        pairs=5,
    ),
    Row(
        "send_beside_thread_one_cpu",
        "... both threads on one CPU",
        "send",
        send_beside_thread_one_cpu,
        receive_messages_at_once,
        count=20,
        pairs=5,
    ),
    Row(
        "oneway_timeout",
        "64 B one way, settimeout(5)",
        "message",
        send_messages,
        receive_messages,
        1.20,
        None,
        TIMEOUT_SECONDS,
        True,
    ),
    Row(
        "oneway_timeout_send",
        "... sending end only",
        "message",
        send_messages,
        receive_messages,
        timeout=TIMEOUT_SECONDS,
    ),
    Row(
        "oneway_timeout_recv",
        "... receiving end only",
        "message",
        receive_messages,
        send_messages,
        timeout=TIMEOUT_SECONDS,
    ),
    Row("stream_recv", "stream by recv(65536)", "MiB", receive_stream, send_stream, 0.95, is_stream=True),
    Row(
        "stream_recv_into", "stream by recv_into(64 KiB)", "MiB", receive_stream_into, send_stream, 0.95, is_stream=True
    ),
    Row("stream_sendall", "stream by sendall(1 MiB)", "MiB", send_stream, receive_stream_into, 0.95, is_stream=True),
    Row(
        "stream_recv_timeout",
        "... recv, settimeout(5)",
        "MiB",
        receive_stream,
        send_stream,
        timeout=TIMEOUT_SECONDS,
        is_stream=True,
    ),
    Row(
        "stream_recv_into_timeout",
        "... recv_into, settimeout(5)",
        "MiB",
        receive_stream_into,
        send_stream,
        timeout=TIMEOUT_SECONDS,
        is_stream=True,
    ),
    Row(
        "stream_sendall_timeout",
        "... sendall, settimeout(5)",
        "MiB",
        send_stream,
        receive_stream_into,
        timeout=TIMEOUT_SECONDS,
        is_stream=True,
    ),
    Row("make_close", "making and closing a socket", "socket", make_and_close, bound=0.70),
    Row("connect_accept_close", "connect, accept, close both", "connection", connect_accept_close),
)
GUARD_ROW, LINKS_ROW, IMPORT_ROW = "guard", "links", "import"
ROW_NAMES = (*(row.name for row in ROWS), GUARD_ROW, LINKS_ROW, IMPORT_ROW)


@dataclass
class Line:
    """One printed line, and what it was made of."""

    name: str
    title: str
    bound: str
    result: str
    spread: str
    other: str
    ours: str
    # None where there is no bound.
    met: bool | None
    details: dict[str, Any] = field(default_factory=dict)


# The worker: a process that holds one class, and does slices when told to.


def load_class(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def make_socket(make: Any, buffer_bytes: int) -> Any:
    sock = make(stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM)
    if buffer_bytes:  # before connect or listen: the window's scale is settled there
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, buffer_bytes)
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, buffer_bytes)
    return sock


def prepare_connection(sock: Any, make: Any, timeout: float | None) -> Any:
    # accept() of a plain subclass gives the stdlib's class: both ends are to be what the row says.
    if type(sock) is not make:
        sock = make(fileno=sock.detach())
    sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
    sock.settimeout(timeout)
    return sock


def start_idle_thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def run_peer(row: Row, task: dict[str, Any], orders: int, answers: int) -> None:
    """The other end: for each number it reads from the pipe `orders`, one slice of that many operations."""
    assert row.peer is not None
    if task["idle_thread"]:
        start_idle_thread()
    make = load_class(task["class"]) if row.peer_is_same_class else stdlib_socket.socket
    listener = make_socket(make, task["buffer_bytes"])
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    os.write(answers, struct.pack("Q", listener.getsockname()[1]))
    sock, _ = listener.accept()
    sock = prepare_connection(sock, make, row.timeout if row.peer_is_same_class else None)
    follow_orders(orders, answers, lambda count: row.peer(sock, count))


def follow_orders(orders: int, answers: int, run: Callable[[int], object]) -> None:
    """The other end's slices: says when it begins, and when it is done."""
    gc.disable()
    while order := os.read(orders, 8):
        os.write(answers, b"r")
        run(struct.unpack("Q", order)[0])
        os.write(answers, b"d")


def fork_peer(run: Callable[[int, int], None]) -> tuple[int, int]:
    """Runs `run(orders, answers)` in a child; returns our ends of the two pipes."""
    orders_read, orders_write = os.pipe()
    answers_read, answers_write = os.pipe()
    # Forked before the class under test is imported: each process has its own, and no thread runs yet.
    if os.fork() == 0:
        status = 1
        try:
            os.close(orders_write)
            os.close(answers_read)
            run(orders_read, answers_write)
            status = 0
        except ConnectionError:
            status = 0  # the worker went first
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            os._exit(status)
    os.close(orders_read)
    os.close(answers_write)
    return orders_write, answers_read


def run_row_worker(task: dict[str, Any]) -> None:
    row = next(row for row in ROWS if row.name == task["row"])
    if row.peer is None:
        make = subject = load_class(task["class"])
        orders = answers = -1
    else:
        orders, answers = fork_peer(lambda orders, answers: run_peer(row, task, orders, answers))
        make = load_class(task["class"])
        (port,) = struct.unpack("Q", os.read(answers, 8))
        subject = make_socket(make, task["buffer_bytes"])
        subject.connect(("127.0.0.1", port))
        subject = prepare_connection(subject, make, row.timeout)
    if task["idle_thread"]:
        start_idle_thread()
    more = (task["second_cpu"],) if row.takes_second_cpu else ()
    print(json.dumps({"class": f"{make.__module__}.{make.__qualname__}"}), flush=True)
    do_slices(orders, answers, lambda count: row.client(subject, count, *more))


def do_slices(orders: int, answers: int, run: Callable[[int], float | None]) -> None:
    """Our end's slices: for each number on stdin one, which ends when both ends have done theirs."""
    for text in sys.stdin:
        count = int(text)
        gc.collect()
        gc.disable()
        if orders >= 0:
            os.write(orders, struct.pack("Q", count))
            os.read(answers, 1)
        before = time.perf_counter_ns()
        own = run(count)
        if answers >= 0 and os.read(answers, 1) != b"d":
            raise RowError("the peer's process failed")
        elapsed = time.perf_counter_ns() - before
        gc.enable()
        print(json.dumps({"nanoseconds": elapsed / count if own is None else own, "elapsed": elapsed}), flush=True)


def unique_memory() -> int:
    """Bytes that belong to this process alone; shared pages of libraries would only add noise."""
    with open("/proc/self/smaps_rollup") as rollup:
        return sum(int(size) * 1024 for size in re.findall(r"^Private_\w+: +(\d+) kB", rollup.read(), re.MULTILINE))


def resident_memory() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def native_threads() -> dict[int, tuple[str, int, int]]:
    """Each thread but the main one: its name, nanoseconds of CPU, and how often it went to sleep."""
    threads = {}
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) == os.getpid():
            continue
        sleeps = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", (task / "status").read_text(), re.MULTILINE)
        threads[int(task.name)] = (
            (task / "comm").read_text().strip(),
            int((task / "schedstat").read_text().split()[0]),
            int(sleeps.group(1)) if sleeps else 0,
        )
    return threads


def run_guard_peer(orders: int, answers: int) -> None:
    """The other ends: for each order so many connections, accepted, or made to a port."""
    held = []
    with stdlib_socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        os.write(answers, struct.pack("Q", listener.getsockname()[1]))
        while order := os.read(orders, 16):
            count, port = struct.unpack("QQ", order)
            for _ in range(count):
                if port:
                    sock = stdlib_socket.create_connection(("127.0.0.1", port))
                else:
                    sock, _ = listener.accept()
                # this end goes first
                sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, RESET_ON_CLOSE)
                held.append(sock)


def run_guard_worker(task: dict[str, Any]) -> None:
    """Holds idle connections of one variant, and tells what they cost this process."""
    count, limit, variant = task["count"], task["limit"], task["variant"]
    raise_descriptor_limit(4 * count + 256)
    orders, answers = fork_peer(run_guard_peer)
    (port,) = struct.unpack("Q", os.read(answers, 8))
    listener_port = 0

    module_name, _, _ = task["subject"].partition(":")
    if variant == "other":
        make = load_class(task["against"])
    elif variant == "foreign":
        guard = importlib.import_module(module_name).guard
        other = load_class(task["against"])

        def make() -> Any:
            return other()
    else:
        subject = load_class(task["subject"])
        keepalive = importlib.import_module(module_name).Keepalive(guard=False if variant == "unguarded" else limit)

        def make() -> Any:
            return subject(keepalive=keepalive)

    if variant == "accepted":
        listener = make()
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        listener_port = listener.getsockname()[1]

    def connect() -> Any:
        if variant == "accepted":
            return listener.accept()[0]
        sock = make()
        sock.connect(("127.0.0.1", port))
        return (sock, guard(sock, limit=limit)) if variant == "foreign" else sock

    def settle() -> None:
        time.sleep(limit / 4)  # two samples of each connection, at least
        gc.collect()

    held: list[Any] = [None] * (count + GUARD_WARM_UP_CONNECTIONS)
    os.write(orders, struct.pack("QQ", GUARD_WARM_UP_CONNECTIONS, listener_port))
    for number in range(GUARD_WARM_UP_CONNECTIONS):
        held[number] = connect()
    settle()
    os.write(orders, struct.pack("QQ", count, listener_port))
    descriptors, unique, resident = len(os.listdir("/proc/self/fd")), unique_memory(), resident_memory()
    for number in range(GUARD_WARM_UP_CONNECTIONS, len(held)):
        held[number] = connect()
    settle()
    answer: dict[str, Any] = {
        "descriptors_each": (len(os.listdir("/proc/self/fd")) - descriptors) / count,
        "unique_bytes_each": (unique_memory() - unique) / count,
        "resident_bytes_each": (resident_memory() - resident) / count,
    }
    looks_before = [looks(sock) for sock in held]
    threads, start = native_threads(), time.monotonic()
    time.sleep(task["seconds"])
    elapsed, after = time.monotonic() - start, native_threads()
    seen = [(looks(sock) or 0) - before for sock, before in zip(held, looks_before, strict=True) if before is not None]
    answer["looks"] = [min(seen), max(seen)] if seen else None
    answer["seconds"] = elapsed
    answer["threads"] = [
        {
            "name": name,
            "cpu_percent": 100 * (nanoseconds - threads.get(number, ("", 0, 0))[1]) / (elapsed * 1e9),
            "wakes_per_second": (sleeps - threads.get(number, ("", 0, 0))[2]) / elapsed,
        }
        for number, (name, nanoseconds, sleeps) in after.items()
    ]
    answer["cpu_percent"] = sum(thread["cpu_percent"] for thread in answer["threads"])
    print(json.dumps(answer), flush=True)
    os.close(orders)


def run_links_peer(orders: int, answers: int, module_name: str) -> None:
    """The clients of a LongServer: for each order so many, to a port."""
    module = importlib.import_module(module_name)
    held = []
    while order := os.read(orders, 16):
        count, port = struct.unpack("QQ", order)
        held += [module.connect(("127.0.0.1", port), heartbeat=module.Heartbeat(1.0)) for _ in range(count)]
        os.write(answers, struct.pack("Q", len(held)))


def run_links_worker(task: dict[str, Any]) -> None:
    """A LongServer with idle connections, a beat each second both ways: what they cost this process."""
    count = task["count"]
    raise_descriptor_limit(2 * count + 256)
    module_name = task["subject"].partition(":")[0]
    orders, answers = fork_peer(lambda orders, answers: run_links_peer(orders, answers, module_name))
    module = importlib.import_module(module_name)
    with module.LongServer(("127.0.0.1", 0), heartbeat=module.Heartbeat(1.0)) as server:
        if task["variant"] == "native":
            server.messages(timeout=0)  # with which nothing of Python's is made until a connection says something

        def connect(more: int) -> list[Any]:
            os.write(orders, struct.pack("QQ", more, server.address[1]))
            accepted = [server.accept(timeout=60) for _ in range(more)] if task["variant"] == "accepted" else []
            os.read(answers, 8)
            time.sleep(3)  # some beats, with which what opening took is given back
            gc.collect()
            return accepted

        held = connect(GUARD_WARM_UP_CONNECTIONS)
        unique = unique_memory()
        held += connect(count)
        answer: dict[str, Any] = {"unique_bytes_each": (unique_memory() - unique) / count}
        threads, start = native_threads(), time.monotonic()
        time.sleep(task["seconds"])
        elapsed = time.monotonic() - start
        nanoseconds = sum(
            used - threads.get(number, ("", 0, 0))[1] for number, (_, used, _) in native_threads().items()
        )
        answer["cpu_percent"] = 100 * nanoseconds / (elapsed * 1e9)
        if task["variant"] == "accepted":
            answer["worst_lateness"] = max(conn.stats().worst_lateness_seconds for conn in held)
        print(json.dumps(answer), flush=True)
        os.close(orders)
        os._exit(0)  # thousands of goodbyes are no part of it


def looks(sock: Any) -> int | None:
    """How often the guard has looked at this socket, if it says so."""
    found: int | None = getattr(getattr(sock, "_keepalive_watch", None), "looks", None)
    return found


def raise_descriptor_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    with contextlib.suppress(ValueError, OSError):  # only root may raise the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# The controller: starts workers, lets them take turns, and makes the table.


class Worker:
    """A child process of this file, or of another that does the same, that answers lines of JSON."""

    def __init__(self, task: dict[str, Any], script: str = __file__) -> None:
        # The settings of whoever runs this must not leak into what is measured.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LONGCONN_")}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", json.dumps(task)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
        )

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], WORKER_PATIENCE_SECONDS)
        text = self.process.stdout.readline() if ready else b""
        if not text:
            self.process.kill()
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip().splitlines()
            raise RowError(said[-1] if said else "the worker ended" if ready else "the worker hangs")
        return json.loads(text)  # type: ignore[no-any-return]

    def slice(self, count: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # if it died, read() says why
            self.process.stdin.write(b"%d\n" % count)
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(WORKER_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


@contextlib.contextmanager
def workers(tasks: Sequence[dict[str, Any]], script: str = __file__) -> Iterator[list[Worker]]:
    started: list[Worker] = []
    try:
        for task in tasks:
            started.append(Worker(task, script))
        yield started
    finally:
        for worker in started:
            worker.close()


def calibrate(worker: Worker, seconds: float) -> int:
    """How many operations of this worker fill a slice."""
    count = 1
    while True:
        elapsed: float = worker.slice(count)["elapsed"] / 1e9
        if elapsed > seconds / 2:
            return max(1, round(count * seconds / elapsed))
        count *= 2


def measure_row(row: Row, subject: str, against: str, effort: Effort, conditions: dict[str, Any]) -> Line:
    if row.takes_second_cpu and conditions["second_cpu"] is None:
        raise RowError("needs a second CPU")
    tasks = [
        {"row": row.name, "class": name, "idle_thread": row.other_has_thread and number == 0, **conditions}
        for number, name in enumerate((against, subject))
    ]
    ratios, others, ours = [], [], []
    count = row.count
    longer = 8 if row.is_stream else 1
    pairs_a_round = row.pairs or effort.pairs // longer
    for _ in range(effort.rounds * (STREAM_ROUNDS if row.is_stream else 1)):
        with workers(tasks) as (other, our):
            other.read()
            our.read()
            if count is None:
                count = calibrate(other, effort.slice_seconds * longer)
            for worker in (other, our):
                worker.slice(count)  # warm up: caches, TCP's window and its buffers
            pairs = []
            for number in range(pairs_a_round):
                if number % 2:
                    our_time = our.slice(count)["nanoseconds"]
                    pairs.append((other.slice(count)["nanoseconds"], our_time))
                else:
                    other_time = other.slice(count)["nanoseconds"]
                    pairs.append((other_time, our.slice(count)["nanoseconds"]))
        others.append(typical([first for first, _ in pairs]))
        ours.append(typical([second for _, second in pairs]))
        ratios.append(others[-1] / ours[-1])
    ratio = statistics.median(ratios)
    bound = "" if row.bound is None else f"≥ {row.bound:.4g}" + ("" if row.aim is None else f" (aim {row.aim:.4g})")
    digits = 2 if ratio < 10 else 0
    return Line(
        row.name,
        row.title,
        bound,
        f"{ratio:.{digits}f}",
        f"{min(ratios):.{digits}f} to {max(ratios):.{digits}f}",
        microseconds(statistics.median(others), row.operation),
        microseconds(statistics.median(ours), row.operation),
        None if row.bound is None else ratio >= row.bound,
        {
            "unit": f"nanoseconds a {row.operation}",
            "ratio": ratio,
            "ratios": ratios,
            "other": others,
            "ours": ours,
            "operations_a_slice": count,
        },
    )


def typical(times: Sequence[float]) -> float:
    """What a slice takes undisturbed; of few long slices, which have no undisturbed one, the median."""
    return statistics.quantiles(times, n=10)[0] if len(times) > 5 else statistics.median(times)


def microseconds(nanoseconds: float, operation: str) -> str:
    value = nanoseconds / 1000
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} µs a {operation}"


def measure_guard(subject: str, against: str, effort: Effort) -> Iterator[Line]:
    """CPU and memory of idle guarded connections: three lines."""
    module = importlib.import_module(subject.partition(":")[0])
    if not hasattr(module, "Keepalive"):
        raise RowError(f"{subject} has no guard")
    if not os.path.exists("/proc/self/smaps_rollup"):
        raise RowError("only where there is /proc/self/smaps_rollup")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * GUARD_CONNECTIONS + 256 and os.geteuid() != 0:
        raise RowError(f"needs {2 * GUARD_CONNECTIONS + 256} descriptors, ulimit -Hn is {hard}")
    variants = ["other", "unguarded", "guarded", "accepted", *(["foreign"] if hasattr(module, "guard") else [])]
    answers: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for number in range(effort.guard_rounds):
        for variant in variants[number % len(variants) :] + variants[: number % len(variants)]:
            task = {
                "guard": True,
                "variant": variant,
                "subject": subject,
                "against": against,
                "count": GUARD_CONNECTIONS,
                "limit": GUARD_LIMIT_SECONDS,
                "seconds": effort.guard_seconds if variant == "guarded" else 0.5,
            }
            with workers([task]) as (worker,):
                answers[variant].append(worker.read())

    def each(variant: str) -> float:
        return statistics.median(float(answer["unique_bytes_each"]) for answer in answers[variant])

    percents = [answer["cpu_percent"] for answer in answers["guarded"]]
    percent = statistics.median(percents)
    # One look less than the period promises may have been missed by where the window begins and ends.
    counted = [answer for answer in answers["guarded"] if answer["looks"]]
    is_sampled = all(answer["looks"][0] >= int(answer["seconds"] * 8 / GUARD_LIMIT_SECONDS) - 1 for answer in counted)
    note = "looks not counted"
    if counted:
        least = min(answer["looks"][0] for answer in counted)
        most = max(answer["looks"][1] for answer in counted)
        note = f"{least} to {most} looks at each in {counted[0]['seconds']:.0f} s"
    yield Line(
        "guard_cpu",
        f"{GUARD_CONNECTIONS} guarded idle connections, limit {GUARD_LIMIT_SECONDS:.0f} s: CPU of the guard",
        "≤ 2 % of a core",
        f"{percent:.2f} %",
        f"{min(percents):.2f} to {max(percents):.2f}",
        "",
        note,
        percent <= 2 and is_sampled,
        {"answers": answers["guarded"]},
    )
    for variant, base, title in (
        ("guarded", "other", "... memory of each, more than the stdlib's socket"),
        ("guarded", "unguarded", "... memory of each, more than without a guard"),
        ("accepted", "other", "... the same, accepted by a guarded listener"),
        ("foreign", "other", "... the stdlib's socket with guard(): memory of each, more than without"),
    ):
        if variant not in answers:
            continue
        differences = [
            ours["unique_bytes_each"] - theirs["unique_bytes_each"]
            for ours, theirs in zip(answers[variant], answers[base], strict=True)
        ]
        difference = statistics.median(differences)
        has_bound = variant != "foreign"
        yield Line(
            f"guard_memory_{variant}_{base}",
            title,
            "≤ 300 B" if has_bound else "",
            f"{difference:+.0f} B",
            f"{min(differences):+.0f} to {max(differences):+.0f}",
            f"{each(base):.0f} B",
            f"{each(variant):.0f} B",
            difference <= 300 if has_bound else None,
            {variant: answers[variant], base: answers[base]},
        )


def measure_links(subject: str, effort: Effort) -> Iterator[Line]:
    """What idle connections cost a LongServer's process."""
    if not hasattr(importlib.import_module(subject.partition(":")[0]), "LongServer"):
        raise RowError(f"{subject} has no LongServer")
    answers: dict[str, list[dict[str, Any]]] = {"native": [], "accepted": []}
    for _ in range(effort.guard_rounds):
        for variant, seen in answers.items():
            task = {"links": True, "variant": variant, "subject": subject, "count": GUARD_CONNECTIONS, "seconds": 5.0}
            with workers([task]) as (worker,):
                seen.append(worker.read())
    title = f"{GUARD_CONNECTIONS} idle connections of a LongServer, a beat each second: memory of each"
    for variant, name in (("native", title), ("accepted", "... with a LongConnection object for each")):
        each = [answer["unique_bytes_each"] for answer in answers[variant]]
        typical_each = statistics.median(each)
        is_bound = variant == "native"
        yield Line(
            f"links_memory_{variant}",
            name,
            "≤ 1024 B" if is_bound else "",
            f"{typical_each:.0f} B",
            f"{min(each):.0f} to {max(each):.0f}",
            "",
            "",
            typical_each <= 1024 if is_bound else None,
            {"answers": answers[variant]},
        )
    percents = [answer["cpu_percent"] for seen in answers.values() for answer in seen]
    yield Line(
        "links_cpu",
        "... CPU of the server's native threads",
        "≤ 15 % of a core",
        f"{statistics.median(percents):.1f} %",
        f"{min(percents):.1f} to {max(percents):.1f}",
        "",
        "",
        statistics.median(percents) <= 15,
        {"answers": answers},
    )
    late = [1000 * answer["worst_lateness"] for answer in answers["accepted"]]
    yield Line(
        "links_lateness",
        "... the latest beat of all",
        "≤ 100 ms",
        f"{statistics.median(late):.0f} ms",
        f"{min(late):.0f} to {max(late):.0f}",
        "",
        "",
        statistics.median(late) <= 100,
        {"late_ms": late},
    )


def measure_import(subject: str, against: str, effort: Effort) -> Line:
    """Importing our module against the other's, in fresh interpreters, in milliseconds."""
    ours_name, other_name = subject.partition(":")[0], against.partition(":")[0]

    # An installed package has its .pyc files; without them half of the time would be the compiler's.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

    def once(name: str) -> float:
        code = f"import time; t = time.perf_counter(); import {name}; print((time.perf_counter() - t) * 1e3)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RowError(done.stderr.strip().splitlines()[-1])
        return float(done.stdout)

    once(other_name), once(ours_name)  # warm up: writes the .pyc files
    others: list[float] = []
    ours: list[float] = []
    for number in range(effort.import_runs):
        for name in (other_name, ours_name) if number % 2 else (ours_name, other_name):
            (ours if name == ours_name else others).append(once(name))
    if ours_name == other_name:
        ours, others = ours[::2], ours[1::2]
    differences = [mine - theirs for mine, theirs in zip(ours, others, strict=False)]
    # Medians of each, not of the differences: the runs aren't paired by anything but time.
    more = statistics.median(ours) - statistics.median(others)
    return Line(
        "import",
        f"import {ours_name} against import {other_name}",
        "≤ 20 ms more",
        f"{more:+.1f} ms",
        f"{min(differences):+.1f} to {max(differences):+.1f}",
        f"{statistics.median(others):.1f} ms",
        f"{statistics.median(ours):.1f} ms",
        more <= 20,
        {"other_ms": others, "ours_ms": ours},
    )


# Where it ran, and the page.


def quietest_cpu() -> int:
    """Of the CPUs that we may use, the one that was idle most in the last half second."""

    def idle() -> dict[int, int]:
        with open("/proc/stat") as stat:
            return {int(found[1]): int(text.split()[4]) for text in stat if (found := re.match(r"cpu(\d+) ", text))}

    allowed = os.sched_getaffinity(0)
    try:
        before = idle()
        time.sleep(0.5)
        after = idle()
    except OSError:
        return min(allowed)
    return max(allowed, key=lambda cpu: after.get(cpu, 0) - before.get(cpu, 0))


def python_build() -> str:
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    compiler = " ".join(str(sysconfig.get_config_var(name) or "") for name in ("PY_CORE_CFLAGS", "PY_CORE_LDFLAGS"))
    named = [
        "PGO" if "--enable-optimizations" in arguments else "no PGO",
        "LTO" if "--with-lto" in arguments or "-flto" in compiler else "no LTO",
    ]
    level = re.findall(r"-O\w", compiler)
    # Distributions may optimize by their own build rules, which configure's arguments don't show.
    return f"{' and '.join(named)} in its configure arguments, {level[-1] if level else 'unknown optimization'}"


def cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as information:
        found = re.search(r"^model name\s*:\s*(.+)$", information.read(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def describe_machine(cpu: int | None) -> dict[str, Any]:
    return {
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "pinned_to_cpu": cpu,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "python_build": python_build(),
        "load_average": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def table(lines: Sequence[Line], other: str, ours: str) -> str:
    rows = [
        ("", "bound", "result", "min to max", other, ours, ""),
        ("---", "---", "---:", "---:", "---:", "---:", "---"),
    ]
    for line in lines:
        mark = "" if line.met is None else "ok" if line.met else "**missed**"
        rows.append((line.title, line.bound, line.result, line.spread, line.other, line.ours, mark))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def run_controller(arguments: argparse.Namespace) -> None:
    effort = QUICK if arguments.quick else FULL
    if arguments.rounds:
        effort = Effort(**{**effort.__dict__, "rounds": arguments.rounds})
    for name in (arguments.against, arguments.subject):
        try:
            load_class(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise SystemExit(f"bench: can't load {name}: {error}") from None
    cpu = second_cpu = None
    if hasattr(os, "sched_setaffinity"):
        cpu = quietest_cpu() if arguments.cpu is None else arguments.cpu
        second_cpu = min(os.sched_getaffinity(0) - {cpu}, default=None)
        os.sched_setaffinity(0, {cpu})  # inherited by all workers
    conditions = {"buffer_bytes": arguments.buffer_bytes, "second_cpu": second_cpu}
    machine = describe_machine(cpu)
    lines: list[Line] = []

    def keep(line: Line) -> None:
        lines.append(line)
        print(f"{line.name}: {line.result} ({line.spread})", file=sys.stderr, flush=True)

    for name in arguments.rows:
        try:
            if name == GUARD_ROW:
                for line in measure_guard(arguments.subject, arguments.against, effort):
                    keep(line)
            elif name == LINKS_ROW:
                for line in measure_links(arguments.subject, effort):
                    keep(line)
            elif name == IMPORT_ROW:
                keep(measure_import(arguments.subject, arguments.against, effort))
            else:
                row = next(row for row in ROWS if row.name == name)
                keep(measure_row(row, arguments.subject, arguments.against, effort, conditions))
        except RowError as error:
            title = next((row.title for row in ROWS if row.name == name), name)
            keep(Line(name, title, "", "not measured", str(error).replace("|", "\\|"), "", "", None))
    print(
        f"Speed of {arguments.subject} as a ratio to {arguments.against} (more than 1: faster). "
        f"{machine['kernel']}, {machine['cpu']}, {machine['cores']} cores, all on CPU {cpu}; {machine['python']}, "
        f"{machine['python_build']}. Load when it began: {machine['load_average']:.1f}.\n"
    )
    print(table(lines, arguments.against, arguments.subject))
    missed = [line.name for line in lines if line.met is False]
    print(f"\nMissed: {', '.join(missed)}." if missed else "\nNo bound was missed.")
    if arguments.json:
        rows = [{**line.__dict__} for line in lines]
        arguments.json.write_text(
            json.dumps(
                {"machine": machine, "subject": arguments.subject, "against": arguments.against, "rows": rows}, indent=1
            )
            + "\n"
        )


def rows_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """What reads ``--rows``."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return names

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--subject", default="longconn:KeepaliveSocket", metavar="MODULE:CLASS", help="whose speed it is"
    )
    parser.add_argument("--against", default="socket:socket", metavar="MODULE:CLASS", help="what it is compared to")
    parser.add_argument(
        "--rows", type=rows_of(ROW_NAMES), default=list(ROW_NAMES), metavar="NAME,..", help=", ".join(ROW_NAMES)
    )
    parser.add_argument("--quick", action="store_true", help="a look in under a minute instead of a measurement")
    parser.add_argument("--rounds", type=int, help="rounds of each ratio")
    parser.add_argument("--cpu", type=int, help="the CPU to use; without it the quietest")
    parser.add_argument(
        "--buffer-bytes",
        type=int,
        default=BUFFER_BYTES,
        metavar="N",
        help="SO_SNDBUF and SO_RCVBUF of both ends (%(default)s); 0: as the kernel tunes them",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is None:
        run_controller(arguments)
    elif "guard" in arguments.worker:
        run_guard_worker(arguments.worker)
    elif "links" in arguments.worker:
        run_links_worker(arguments.worker)
    else:
        run_row_worker(arguments.worker)


if __name__ == "__main__":
    main()
