"""Owns the table of messages: LongConnection beside what else carries messages over TCP, in one run.

    python benches/messages.py                       # `make bench` does, with what it compares with installed
    python benches/messages.py --quick --rows request

As in `bench.py`, which this builds on: each contender has two processes of its own, all share one CPU, they take turns
in small slices, and a contender's time in a round is the lower decile of its slices; the table shows the median of the
rounds. A slice ends when the other end has counted the last message, and seen that each is as long as it has to be.

- Nagle is off everywhere, websockets don't compress, everything else is as each library has it by default.
- The stdlib frames as one does by hand: four bytes of length, `struct`, and a loop about `recv` for each of the two
  parts. `makefile` is the same with a buffered reader, which is quicker where messages come close together.
- picows calls back and is driven from its callback, as it is meant to be; the others are called.

Missed bounds are marked, but never change the exit status: the machine may be busy.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import importlib
import itertools
import json
import os
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import (
    MESSAGE,
    MESSAGE_BYTES,
    MIB,
    Effort,
    RowError,
    calibrate,
    describe_machine,
    do_slices,
    follow_orders,
    fork_peer,
    quietest_cpu,
    rows_of,
    typical,
    workers,
)

FULL = Effort(rounds=7, pairs=60, slice_seconds=0.005, guard_rounds=0, guard_seconds=10.0, import_runs=0)
QUICK = Effort(rounds=2, pairs=20, slice_seconds=0.005, guard_rounds=0, guard_seconds=2.0, import_runs=0)
LARGE = bytes(range(256)) * (MIB // 256)
HEADER = struct.Struct("!I")
BEAT_SECONDS = 0.1


def check(message: bytes, expected: bytes) -> None:
    if message != expected:
        raise RowError(f"{len(message)} bytes came that aren't what was sent")


# The contenders: each has both ends. `ask` and `echo` are one side each of requests and responses, `give` and `take` of
# one way, `give_large` and `take_large` of messages of 1 MiB.


class Contender:
    def listen(self) -> int:
        """Returns the port."""
        raise NotImplementedError

    def accept(self) -> None:
        raise NotImplementedError

    def connect(self, port: int) -> None:
        raise NotImplementedError


class Stdlib(Contender):
    def listen(self) -> int:
        self.listener = socket.create_server(("127.0.0.1", 0))
        return self.listener.getsockname()[1]

    def accept(self) -> None:
        self.use(self.listener.accept()[0])

    def connect(self, port: int) -> None:
        self.use(socket.create_connection(("127.0.0.1", port)))

    def use(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def recv_exactly(self, size: int) -> bytes:
        data = self.sock.recv(size)
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def recv(self) -> bytes:
        (size,) = HEADER.unpack(self.recv_exactly(4))
        return self.recv_exactly(size)

    def send(self, message: bytes) -> None:
        self.sock.sendall(HEADER.pack(len(message)) + message)

    def ask(self, count: int) -> None:
        reply = b""
        for _ in range(count):
            self.send(MESSAGE)
            reply = self.recv()
        check(reply, MESSAGE)

    def echo(self, count: int) -> None:
        for _ in range(count):
            self.send(self.recv())

    def give(self, count: int) -> None:
        for _ in range(count):
            self.send(MESSAGE)

    def take(self, count: int) -> None:
        for _ in range(count):
            message = self.recv()
            if len(message) != MESSAGE_BYTES:
                raise RowError("a message was cut")
        check(message, MESSAGE)

    def give_large(self, count: int) -> None:
        for _ in range(count):
            self.sock.sendall(LARGE)

    def take_large(self, count: int) -> None:
        """Into the same place each time, which no message that is handed out could be: the best that can be had."""
        buffer = bytearray(MIB)
        view = memoryview(buffer)
        for _ in range(count):
            received = 0
            while received < MIB:
                received += self.sock.recv_into(view[received:]) or sys.exit("the stream ended early")
        check(buffer, LARGE)


class StdlibMakefile(Stdlib):
    def use(self, sock: socket.socket) -> None:
        super().use(sock)
        self.file = sock.makefile("rb")

    def recv_exactly(self, size: int) -> bytes:
        return self.file.read(size)


class StdlibNewBytes(Stdlib):
    def take_large(self, count: int) -> None:
        """A `bytes` of its own for each, as a program gets that keeps it."""
        for _ in range(count):
            message = self.sock.recv(MIB, socket.MSG_WAITALL)
            if len(message) != MIB:
                raise RowError("a message was cut")
        check(message, LARGE)


class Longconn(Contender):
    """`send` and `recv`, which get one message; many are received by `recv_many`."""

    def listen(self) -> int:
        self.server = importlib.import_module("longconn").LongServer(("127.0.0.1", 0))
        return self.server.address[1]

    def accept(self) -> None:
        self.conn = self.server.accept()

    def connect(self, port: int) -> None:
        self.conn = importlib.import_module("longconn").connect(("127.0.0.1", port))

    def ask(self, count: int) -> None:
        conn, reply = self.conn, b""
        for _ in range(count):
            conn.send(MESSAGE)
            reply = conn.recv()
        check(reply, MESSAGE)

    def echo(self, count: int) -> None:
        conn = self.conn
        for _ in range(count):
            conn.send(conn.recv())

    def give(self, count: int) -> None:
        conn = self.conn
        for _ in range(count):
            conn.send(MESSAGE)

    def take(self, count: int) -> None:
        while count:
            messages = self.conn.recv_many(count)
            if any(len(message) != MESSAGE_BYTES for message in messages):
                raise RowError("a message was cut")
            count -= len(messages)
        check(messages[-1], MESSAGE)

    def give_large(self, count: int) -> None:
        for _ in range(count):
            self.conn.send(LARGE)

    def take_large(self, count: int) -> None:
        for _ in range(count):
            message = self.conn.recv()
            if len(message) != MIB:
                raise RowError("a message was cut")
        check(message, LARGE)


class LongconnSendMany(Longconn):
    def give(self, count: int) -> None:
        self.conn.send_many(itertools.repeat(MESSAGE, count))


class LongconnOneByOne(Longconn):
    def take(self, count: int) -> None:
        conn = self.conn
        for _ in range(count):
            message = conn.recv()
            if len(message) != MESSAGE_BYTES:
                raise RowError("a message was cut")
        check(message, MESSAGE)


@functools.cache
def certificates() -> tuple[bytes, bytes, bytes]:
    """Of a CA, of a server, and the server's key: PEM. Both processes have to have the same."""
    trustme = importlib.import_module("trustme")
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    return authority.cert_pem.bytes(), leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()


class LongconnTLS(Longconn):
    def listen(self) -> int:
        longconn = importlib.import_module("longconn")
        _, certificate, key = certificates()
        self.server = longconn.LongServer(("127.0.0.1", 0), tls=longconn.TLS(certificate=certificate, key=key))
        return self.server.address[1]

    def connect(self, port: int) -> None:
        longconn = importlib.import_module("longconn")
        self.conn = longconn.connect(("127.0.0.1", port), tls=longconn.TLS(ca=certificates()[0]))


class LongconnSendManyTLS(LongconnTLS, LongconnSendMany):
    pass


class StdlibTLS(Stdlib):
    def accept(self) -> None:
        ssl = importlib.import_module("ssl")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _, certificate, key = certificates()
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificate + key)
            file.flush()
            context.load_cert_chain(file.name)
        super().accept()
        self.sock = context.wrap_socket(self.sock, server_side=True)

    def connect(self, port: int) -> None:
        ssl = importlib.import_module("ssl")
        super().connect(port)
        context = ssl.create_default_context(cadata=certificates()[0].decode())
        self.sock = context.wrap_socket(self.sock, server_hostname="127.0.0.1")


class Zmq(Contender):
    def __init__(self) -> None:
        self.zmq = importlib.import_module("zmq")
        self.sock = self.zmq.Context().socket(self.zmq.PAIR)

    def listen(self) -> int:
        return self.sock.bind_to_random_port("tcp://127.0.0.1")

    def accept(self) -> None:
        pass

    def connect(self, port: int) -> None:
        self.sock.connect(f"tcp://127.0.0.1:{port}")

    def ask(self, count: int) -> None:
        sock, reply = self.sock, b""
        for _ in range(count):
            sock.send(MESSAGE)
            reply = sock.recv()
        check(reply, MESSAGE)

    def echo(self, count: int) -> None:
        for _ in range(count):
            self.sock.send(self.sock.recv())

    def give(self, count: int) -> None:
        for _ in range(count):
            self.sock.send(MESSAGE)

    def take(self, count: int) -> None:
        for _ in range(count):
            message = self.sock.recv()
            if len(message) != MESSAGE_BYTES:
                raise RowError("a message was cut")
        check(message, MESSAGE)

    def give_large(self, count: int) -> None:
        for _ in range(count):
            self.sock.send(LARGE)

    def take_large(self, count: int) -> None:
        for _ in range(count):
            message = self.sock.recv()
            if len(message) != MIB:
                raise RowError("a message was cut")
        check(message, LARGE)


class OnLoop(Contender):
    """What lives on an event loop, which runs during slices only."""

    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = staticmethod(asyncio.new_event_loop)

    def __init__(self) -> None:
        self.loop = self.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.accepted: asyncio.Future[Any] = self.loop.create_future()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def __getattr__(self, name: str) -> Callable[[int], None]:
        """`ask` runs `async_ask`, and so on."""
        coroutine = getattr(type(self), f"async_{name}")
        return lambda count: self.run(coroutine(self, count))


class Awaited(OnLoop):
    """What has `send` and `recv` to be awaited."""

    async def send(self, message: bytes) -> None:
        raise NotImplementedError

    async def recv(self) -> bytes:
        raise NotImplementedError

    async def async_ask(self, count: int) -> None:
        reply = b""
        for _ in range(count):
            await self.send(MESSAGE)
            reply = await self.recv()
        check(reply, MESSAGE)

    async def async_echo(self, count: int) -> None:
        for _ in range(count):
            await self.send(await self.recv())

    async def async_give(self, count: int) -> None:
        for _ in range(count):
            await self.send(MESSAGE)

    async def async_take(self, count: int) -> None:
        for _ in range(count):
            message = await self.recv()
            if len(message) != MESSAGE_BYTES:
                raise RowError("a message was cut")
        check(message, MESSAGE)


class Streams(Awaited):
    def listen(self) -> int:
        async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.accepted.set_result((reader, writer))

        server = self.run(asyncio.start_server(on_connection, "127.0.0.1", 0))
        return server.sockets[0].getsockname()[1]

    def accept(self) -> None:
        self.reader, self.writer = self.loop.run_until_complete(self.accepted)

    def connect(self, port: int) -> None:
        self.reader, self.writer = self.run(asyncio.open_connection("127.0.0.1", port))

    async def recv(self) -> bytes:
        (size,) = HEADER.unpack(await self.reader.readexactly(4))
        return await self.reader.readexactly(size)

    async def send(self, message: bytes) -> None:
        self.writer.write(HEADER.pack(len(message)) + message)
        await self.writer.drain()


class Websockets(OnLoop):
    def listen(self) -> int:
        serve = importlib.import_module("websockets.asyncio.server").serve

        async def on_connection(connection: Any) -> None:
            self.accepted.set_result(connection)
            await connection.wait_closed()

        async def start() -> Any:
            return await serve(on_connection, "127.0.0.1", 0, compression=None)

        return next(iter(self.run(start()).sockets)).getsockname()[1]

    def accept(self) -> None:
        self.connection = self.loop.run_until_complete(self.accepted)

    def connect(self, port: int) -> None:
        connect = importlib.import_module("websockets.asyncio.client").connect

        async def start() -> Any:
            return await connect(f"ws://127.0.0.1:{port}", compression=None)

        self.connection = self.run(start())

    async def async_ask(self, count: int) -> None:
        reply = b""
        for _ in range(count):
            await self.connection.send(MESSAGE)
            reply = await self.connection.recv()
        check(reply, MESSAGE)

    async def async_echo(self, count: int) -> None:
        for _ in range(count):
            await self.connection.send(await self.connection.recv())

    async def async_give(self, count: int) -> None:
        for _ in range(count):
            await self.connection.send(MESSAGE)

    async def async_take(self, count: int) -> None:
        for _ in range(count):
            message = await self.connection.recv()
            if len(message) != MESSAGE_BYTES:
                raise RowError("a message was cut")
        check(message, MESSAGE)


class Picows(OnLoop):
    def __init__(self) -> None:
        super().__init__()
        self.picows = importlib.import_module("picows")
        contender, binary = self, self.picows.WSMsgType.BINARY
        # What came between slices, and what is done with what comes in one.
        self.left = 0
        self.done: asyncio.Future[None] | None = None
        self.is_echoing = self.is_asking = False
        self.may_write = asyncio.Event()
        self.may_write.set()

        class Listener(self.picows.WSListener):  # type: ignore[name-defined, misc]
            def on_ws_connected(self, transport: Any) -> None:
                contender.accepted.set_result(transport)

            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                if frame.msg_type != binary:
                    return
                message = frame.get_payload_as_bytes()
                if len(message) != MESSAGE_BYTES:
                    raise RowError("a message was cut")
                contender.left -= 1
                if contender.is_echoing or (contender.is_asking and contender.left):
                    transport.send(binary, message)
                if not contender.left and contender.done:
                    contender.done.set_result(None)

            def pause_writing(self) -> None:
                contender.may_write.clear()

            def resume_writing(self) -> None:
                contender.may_write.set()

        self.make_listener = Listener

    def listen(self) -> int:
        server = self.run(self.picows.ws_create_server(lambda _: self.make_listener(), "127.0.0.1", 0))
        return server.sockets[0].getsockname()[1]

    def accept(self) -> None:
        self.transport = self.loop.run_until_complete(self.accepted)

    def connect(self, port: int) -> None:
        self.transport, _ = self.run(self.picows.ws_connect(self.make_listener, f"ws://127.0.0.1:{port}"))

    async def all_came(self, count: int) -> None:
        self.left += count  # some may have come already, and have made it negative
        if self.left:
            self.done = self.loop.create_future()
            await self.done
            self.done = None

    async def async_ask(self, count: int) -> None:
        self.is_asking = True
        self.transport.send(self.picows.WSMsgType.BINARY, MESSAGE)
        await self.all_came(count)

    async def async_echo(self, count: int) -> None:
        self.is_echoing = True
        await self.all_came(count)

    async def async_give(self, count: int) -> None:
        binary = self.picows.WSMsgType.BINARY
        for _ in range(count):
            self.transport.send(binary, MESSAGE)
            if not self.may_write.is_set():
                await self.may_write.wait()

    async def async_take(self, count: int) -> None:
        await self.all_came(count)


STDLIB, MAKEFILE, ZMQ, OURS = "stdlib, struct", "stdlib, struct, makefile", "pyzmq PAIR", "longconn"
OURS_MANY, OURS_SINGLY = "longconn send_many, recv_many", "longconn send, recv"
OURS_SEND = "longconn send, recv_many"
OURS_TLS, OURS_SEND_TLS, OURS_MANY_TLS = "longconn, TLS", f"{OURS_SEND}, TLS", f"{OURS_MANY}, TLS"
STDLIB_TLS, STDLIB_LARGE_TLS = "stdlib ssl, struct", "stdlib ssl, sendall, recv_into"
STDLIB_LARGE, STDLIB_BYTES = "stdlib sendall, recv_into", "stdlib sendall, recv of new bytes"
MAKERS: dict[str, Callable[[], Contender]] = {
    STDLIB: Stdlib,
    STDLIB_LARGE: Stdlib,
    STDLIB_BYTES: StdlibNewBytes,
    MAKEFILE: StdlibMakefile,
    OURS: Longconn,
    OURS_SEND: Longconn,
    OURS_MANY: LongconnSendMany,
    OURS_SINGLY: LongconnOneByOne,
    OURS_TLS: LongconnTLS,
    OURS_SEND_TLS: LongconnTLS,
    OURS_MANY_TLS: LongconnSendManyTLS,
    STDLIB_TLS: StdlibTLS,
    STDLIB_LARGE_TLS: StdlibTLS,
    ZMQ: Zmq,
    "asyncio streams, struct": Streams,
    "websockets": Websockets,
    "picows": Picows,
}


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    unit: str
    client: str
    peer: str
    # The first is what the others are compared with.
    contenders: tuple[str, ...]
    # Who, against whom, at least how often as quick.
    bounds: tuple[tuple[str, str, float], ...]
    slice_seconds: float


LIBRARIES = ("asyncio streams, struct", "websockets", "picows")
ROWS = (
    Row(
        "request",
        "request and response, 64 B",
        "round trips",
        "ask",
        "echo",
        (STDLIB, MAKEFILE, OURS, ZMQ, *LIBRARIES),
        ((OURS, STDLIB, 1.15),),
        0.005,
    ),
    Row(
        "oneway",
        "one way, 64 B",
        "messages",
        "give",
        "take",
        (STDLIB, MAKEFILE, OURS_SEND, OURS_MANY, OURS_SINGLY, ZMQ, *LIBRARIES),
        ((OURS_SEND, STDLIB, 10.0), (OURS_MANY, STDLIB, 10.0), (OURS_SEND, ZMQ, 3.0), (OURS_MANY, ZMQ, 3.0)),
        0.02,
    ),
    Row(
        "large",
        "one way, 1 MiB",
        "MiB",
        "give_large",
        "take_large",
        (STDLIB_LARGE, STDLIB_BYTES, OURS, ZMQ),
        ((OURS, STDLIB_LARGE, 0.9),),
        0.04,
    ),
    Row(
        "tls_request",
        "request and response, 64 B, TLS 1.3",
        "round trips",
        "ask",
        "echo",
        (OURS, OURS_TLS, STDLIB_TLS),
        ((OURS_TLS, STDLIB_TLS, 1.0),),
        0.005,
    ),
    Row(
        "tls_oneway",
        "one way, 64 B, TLS 1.3",
        "messages",
        "give",
        "take",
        (OURS_SEND, OURS_SEND_TLS, OURS_MANY, OURS_MANY_TLS, STDLIB_TLS),
        ((OURS_SEND_TLS, OURS_SEND, 0.75), (OURS_MANY_TLS, OURS_MANY, 0.75)),
        0.02,
    ),
    Row(
        "tls_large",
        "one way, 1 MiB, TLS 1.3",
        "MiB",
        "give_large",
        "take_large",
        (OURS, OURS_TLS, STDLIB_LARGE_TLS),
        (),
        0.04,
    ),
)
BULK_ROW, GIL_ROW = "beats_beside_bulk", "beats_without_gil"
ROW_NAMES = (*(row.name for row in ROWS), BULK_ROW, GIL_ROW)


def run_worker(task: dict[str, Any]) -> None:
    if task["row"] == BULK_ROW:
        run_bulk_worker(task)
        return
    if task["row"] == GIL_ROW:
        run_gil_worker(task)
        return
    run_contender(next(row for row in ROWS if row.name == task["row"]), task["contender"], MAKERS[task["contender"]])


def run_contender(row: Row, contender: str, make: Callable[[], Contender]) -> None:
    def run_peer(orders: int, answers: int) -> None:
        peer = make()
        os.write(answers, struct.pack("Q", peer.listen()))
        peer.accept()
        follow_orders(orders, answers, getattr(peer, row.peer))

    if row.name.startswith("tls"):
        certificates()
    orders, answers = fork_peer(run_peer)
    client = make()
    (port,) = struct.unpack("Q", os.read(answers, 8))
    client.connect(port)
    print(json.dumps({"contender": contender}), flush=True)
    do_slices(orders, answers, getattr(client, row.client))
    os._exit(0)  # however a library likes to end


# Beats, while other things go on.


def serve_longconn(orders: int, answers: int) -> None:
    """Takes all that comes, and counts it."""
    longconn = importlib.import_module("longconn")
    with longconn.LongServer(("127.0.0.1", 0), heartbeat=longconn.Heartbeat(interval=BEAT_SECONDS)) as server:
        os.write(answers, struct.pack("Q", server.address[1]))
        total = 0
        for message in server.accept():
            total += len(message)
        os.write(answers, struct.pack("Q", total))


def run_bulk_worker(task: dict[str, Any]) -> None:
    """Sends so many MiB, and pings meanwhile: each is a beat that the peer answers at once, and goes the same way."""
    orders, answers = fork_peer(serve_longconn)
    longconn = importlib.import_module("longconn")
    (port,) = struct.unpack("Q", os.read(answers, 8))
    round_trips: list[float] = []
    with longconn.connect(("127.0.0.1", port), heartbeat=longconn.Heartbeat(interval=BEAT_SECONDS)) as conn:
        over = threading.Event()

        def ping() -> None:
            while not over.wait(0.01):
                round_trips.append(conn.ping(timeout=30))

        pinging = threading.Thread(target=ping)
        pinging.start()
        before = time.monotonic()
        for _ in range(task["mib"]):
            conn.send(LARGE)
        conn.flush()
        seconds = time.monotonic() - before
        over.set()
        pinging.join()
        stats = conn.stats()
    (total,) = struct.unpack("Q", os.read(answers, 8))
    if total != task["mib"] * MIB:
        raise RowError(f"{total} bytes came")
    os.close(orders)
    answer = {
        "round_trips": sorted(round_trips),
        "seconds": seconds,
        "worst_lateness": stats.worst_lateness_seconds,
        "beats": stats.beats_sent,
    }
    print(json.dumps(answer), flush=True)


def relay(orders: int, answers: int) -> None:
    """Stands between, and tells when something came from the client: nothing but beats, while nobody sends."""
    (port,) = struct.unpack("Q", os.read(orders, 8))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(("127.0.0.1", port)) as server:
        os.write(answers, struct.pack("Q", listener.getsockname()[1]))
        client, _ = listener.accept()

        def backwards() -> None:
            while data := server.recv(65536):
                client.sendall(data)

        threading.Thread(target=backwards, daemon=True).start()
        while data := client.recv(65536):
            os.write(answers, struct.pack("d", time.monotonic()))
            server.sendall(data)


def run_gil_worker(task: dict[str, Any]) -> None:
    server_orders, server_answers = fork_peer(serve_longconn)
    port = os.read(server_answers, 8)
    orders, answers = fork_peer(relay)
    os.write(orders, port)
    longconn = importlib.import_module("longconn")
    (port,) = struct.unpack("Q", os.read(answers, 8))
    count = 1_000_000
    before = time.monotonic()
    sum(range(count))
    count = round(count * task["seconds"] / (time.monotonic() - before))
    with longconn.connect(("127.0.0.1", port), heartbeat=longconn.Heartbeat(interval=BEAT_SECONDS)) as conn:
        time.sleep(5 * BEAT_SECONDS)
        begin = time.monotonic()
        sum(range(count))  # one call of C, which gives the interpreter to nobody
        end = time.monotonic()
        stats = conn.stats()
        is_open = conn.state == "open"
    os.close(orders)
    os.close(server_orders)
    with open(answers, "rb") as answers_file:
        times = [at for (at,) in struct.iter_unpack("d", answers_file.read())]
    times = [at for at in times if begin <= at <= end]
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
    if len(gaps) < 10 or not is_open:
        raise RowError(f"{len(times)} beats came")
    answer = {
        "seconds": end - begin,
        # Jitter only shortens: no two beats should be further apart than this.
        "late": [max(0.0, gap - BEAT_SECONDS) for gap in gaps],
        "worst_lateness": stats.worst_lateness_seconds,
    }
    print(json.dumps(answer), flush=True)


# The controller.


@dataclass
class Line:
    row: str
    title: str
    contender: str
    result: str
    against: str
    bound: str
    met: bool | None
    details: dict[str, Any]


def measure_row(row: Row, effort: Effort, script: str = __file__) -> list[Line]:
    contenders, problems = [], {}
    times: dict[str, list[float]] = {}
    for contender in row.contenders:
        # One that isn't installed, or doesn't work here, shall not keep the others from the table.
        try:
            with workers([{"row": row.name, "contender": contender}], script) as (worker,):
                worker.read()
                worker.slice(1)
            contenders.append(contender)
            times[contender] = []
        except RowError as error:
            problems[contender] = str(error)
    counts: dict[str, int] = {}
    for _ in range(effort.rounds):
        tasks = [{"row": row.name, "contender": contender} for contender in contenders]
        with workers(tasks, script) as started:
            slices: list[list[float]] = [[] for _ in started]
            for contender, worker in zip(contenders, started, strict=True):
                worker.read()
                # Each fills its own slice: what is ten times as quick would else be measured in a tenth of the time.
                if contender not in counts:
                    # A disturbance would make them too short for good, and each has a fixed cost.
                    counts[contender] = max(calibrate(worker, row.slice_seconds) for _ in range(5))
                worker.slice(counts[contender])
            order = list(range(len(started)))
            for number in range(effort.pairs):
                for index in order if number % 2 else reversed(order):
                    slices[index].append(started[index].slice(counts[contenders[index]])["nanoseconds"])
        for contender, measured in zip(contenders, slices, strict=True):
            times[contender].append(typical(measured))
    lines = []
    for contender in row.contenders:
        if contender in problems:
            lines.append(Line(row.name, row.title, contender, "not measured", problems[contender], "", None, {}))
            continue
        median = statistics.median(times[contender])
        result = f"{1e9 / median:,.0f} {row.unit}/s"
        if row.client == "ask":
            result += f" ({median / 1000:.1f} µs)"
        others = [against for who, against, _ in row.bounds if who == contender and against in times]
        if contender != row.contenders[0] and row.contenders[0] not in others and row.contenders[0] in times:
            others.insert(0, row.contenders[0])
        parts, bounds, met = [], [], []
        ratios: dict[str, list[float]] = {}
        for other in others:
            ratios[other] = [theirs / mine for theirs, mine in zip(times[other], times[contender], strict=True)]
            ratio = statistics.median(ratios[other])
            parts.append(f"{ratio:.2f} x {other} ({min(ratios[other]):.2f} to {max(ratios[other]):.2f})")
            for who, against, bound in row.bounds:
                if (who, against) == (contender, other):
                    bounds.append(f"≥ {bound:g}")
                    met.append(ratio >= bound)
        lines.append(
            Line(
                row.name,
                row.title,
                contender,
                result,
                "; ".join(parts),
                "; ".join(bounds),
                all(met) if met else None,
                {"nanoseconds": times[contender], "ratios": ratios, "count": counts[contender]},
            )
        )
    return lines


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def measure_bulk(effort: Effort) -> list[Line]:
    is_full = effort.guard_seconds == FULL.guard_seconds
    mib = 1024 if is_full else 128
    answers = []
    for _ in range(3 if is_full else 1):
        with workers([{"row": BULK_ROW, "mib": mib}], __file__) as (worker,):
            answers.append(worker.read())
    worst = max(answer["round_trips"][-1] for answer in answers)
    middle = statistics.median(answer["round_trips"][len(answer["round_trips"]) // 2] for answer in answers)
    late = max(answer["worst_lateness"] for answer in answers)
    title = f"beats while {mib} MiB go the same way"
    rate = statistics.median(mib / answer["seconds"] for answer in answers)
    count = sum(len(answer["round_trips"]) for answer in answers)
    return [
        Line(
            BULK_ROW,
            title,
            OURS,
            f"worst round trip {worst * 1000:.1f} ms (median {middle * 1000:.1f}, of {count})",
            f"{rate:,.0f} MiB/s; handed to the kernel at most {late * 1000:.1f} ms late",
            "≤ 50 ms",
            worst <= 0.05 and late <= 0.05,
            {"answers": answers},
        )
    ]


def measure_gil(effort: Effort) -> list[Line]:
    with workers([{"row": GIL_ROW, "seconds": effort.guard_seconds}], __file__) as (worker,):
        answer = worker.read()
    late = answer["late"]
    p99 = percentile(late, 99)
    return [
        Line(
            GIL_ROW,
            f"beats each {BEAT_SECONDS * 1000:.0f} ms while a C call holds the GIL for {answer['seconds']:.1f} s",
            OURS,
            f"99 % at most {p99 * 1000:.1f} ms late (worst {max(late) * 1000:.1f}, of {len(late) + 1})",
            f"handed to the kernel at most {answer['worst_lateness'] * 1000:.1f} ms late",
            "≤ 20 ms",
            p99 <= 0.02,
            answer,
        )
    ]


def table(lines: list[Line]) -> str:
    rows = [("", "who", "result", "against", "bound", ""), ("---", "---", "---:", "---", "---", "---")]
    for line in lines:
        mark = "" if line.met is None else "ok" if line.met else "**missed**"
        cells = (line.title, line.contender, line.result, line.against, line.bound, mark)
        rows.append(tuple(cell.replace("|", "\\|") for cell in cells))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def run_controller(arguments: argparse.Namespace) -> None:
    effort = QUICK if arguments.quick else FULL
    if arguments.rounds:
        effort = Effort(**{**effort.__dict__, "rounds": arguments.rounds})
    cpu = None
    if hasattr(os, "sched_setaffinity"):
        cpu = quietest_cpu() if arguments.cpu is None else arguments.cpu
        os.sched_setaffinity(0, {cpu})  # inherited by all workers
    machine = describe_machine(cpu)
    special: dict[str, Callable[[Effort], list[Line]]] = {BULK_ROW: measure_bulk, GIL_ROW: measure_gil}
    lines: list[Line] = []
    for name in arguments.rows:
        try:
            if name in special:
                found = special[name](effort)
            else:
                found = measure_row(next(row for row in ROWS if row.name == name), effort)
        except RowError as error:
            found = [Line(name, name, "", "not measured", str(error), "", None, {})]
        for line in found:
            print(f"{line.row}: {line.contender}: {line.result} {line.against}", file=sys.stderr, flush=True)
        lines.extend(found)
    print(
        f"Messages. {machine['kernel']}, {machine['cpu']}, {machine['cores']} cores, all on CPU {cpu}; "
        f"{machine['python']}, {machine['python_build']}. Load when it began: {machine['load_average']:.1f}.\n"
    )
    print(table(lines))
    missed = [f"{line.row} ({line.contender})" for line in lines if line.met is False]
    print(f"\nMissed: {', '.join(missed)}." if missed else "\nNo bound was missed.")
    if arguments.json:
        rows = [dict(line.__dict__) for line in lines]
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=rows_of(ROW_NAMES), default=list(ROW_NAMES), metavar="NAME,..", help=", ".join(ROW_NAMES)
    )
    parser.add_argument("--quick", action="store_true", help="a look in under a minute instead of a measurement")
    parser.add_argument("--rounds", type=int, help="rounds of each row")
    parser.add_argument("--cpu", type=int, help="the CPU to use; without it the quietest")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is None:
        run_controller(arguments)
    else:
        gc.collect()
        run_worker(arguments.worker)


if __name__ == "__main__":
    main()
