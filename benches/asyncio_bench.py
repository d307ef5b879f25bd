"""Owns the tables of asyncio: `longconn.aio` beside what else carries messages in event loops, asyncio's and uvloop's.

    python benches/asyncio_bench.py                  # `make bench` does, with what it compares with installed
    python benches/asyncio_bench.py --quick --rows request

It measures as `messages.py` does, with which it shares the contenders that are there already. All send and receive
with an `await` each; picows, which calls back, also has its frames put into a queue for that, as one would.

The row `crowd` is one server with 2,000 connections in one loop, a task for each, and beats each second both ways: what
its process takes of a core, and of memory for each connection with its task. The clients are in another process.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import MESSAGE, MESSAGE_BYTES, Effort, RowError, describe_machine, quietest_cpu, rows_of
from messages import (
    FULL,
    QUICK,
    Contender,
    Line,
    OnLoop,
    Picows,
    Row,
    Streams,
    Websockets,
    check,
    measure_row,
    run_contender,
    table,
)

CROWD = 2000
CROWD_ROW = "crowd"


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


class Longconn(OnLoop):
    """Its methods are called without a wrapper, as every program does."""

    def listen(self) -> int:
        self.aio = importlib.import_module("longconn.aio")
        self.server = self.run(self.start())
        return self.server.address[1]

    async def start(self) -> Any:
        return await self.aio.serve(None, ("127.0.0.1", 0))

    def accept(self) -> None:
        self.connection = self.run(self.server.accept())

    def connect(self, port: int) -> None:
        aio = importlib.import_module("longconn.aio")
        self.connection = self.run(aio.connect(("127.0.0.1", port)))

    async def async_ask(self, count: int) -> None:
        connection, reply = self.connection, b""
        for _ in range(count):
            await connection.send(MESSAGE)
            reply = await connection.recv()
        check(reply, MESSAGE)

    async def async_echo(self, count: int) -> None:
        connection = self.connection
        for _ in range(count):
            await connection.send(await connection.recv())

    async def async_give(self, count: int) -> None:
        connection = self.connection
        for _ in range(count):
            await connection.send(MESSAGE)

    async def async_take(self, count: int) -> None:
        connection = self.connection
        for _ in range(count):
            message = await connection.recv()
            if len(message) != MESSAGE_BYTES:
                raise RowError("a message was cut")
        check(message, MESSAGE)


class LongconnMany(Longconn):
    async def async_take(self, count: int) -> None:
        while count:
            messages = await self.connection.recv_many(min(count, 1000))
            count -= len(messages)
            if any(len(message) != MESSAGE_BYTES for message in messages):
                raise RowError("a message was cut")
        check(messages[-1], MESSAGE)


class PicowsAwaited(Awaited):
    def __init__(self) -> None:
        super().__init__()
        self.picows = importlib.import_module("picows")
        self.binary = binary = self.picows.WSMsgType.BINARY
        contender = self
        self.frames: deque[bytes] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.may_write = asyncio.Event()
        self.may_write.set()

        class Listener(self.picows.WSListener):  # type: ignore[name-defined, misc]
            def on_ws_connected(self, transport: Any) -> None:
                contender.accepted.set_result(transport)

            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                if frame.msg_type == binary:
                    contender.frames.append(frame.get_payload_as_bytes())
                    if contender.waiter and not contender.waiter.done():
                        contender.waiter.set_result(None)

            def pause_writing(self) -> None:
                contender.may_write.clear()

            def resume_writing(self) -> None:
                contender.may_write.set()

        self.make_listener = Listener

    listen = Picows.listen
    accept = Picows.accept
    connect = Picows.connect

    async def send(self, message: bytes) -> None:
        self.transport.send(self.binary, message)
        if not self.may_write.is_set():
            await self.may_write.wait()

    async def recv(self) -> bytes:
        while not self.frames:
            self.waiter = self.loop.create_future()
            await self.waiter
        return self.frames.popleft()


class Aiohttp(Awaited):
    def listen(self) -> int:
        web = importlib.import_module("aiohttp.web")

        async def on_request(request: Any) -> Any:
            ws = web.WebSocketResponse(compress=False)
            await ws.prepare(request)
            self.accepted.set_result(ws)
            await self.loop.create_future()

        async def start() -> Any:
            app = web.Application()
            app.router.add_get("/", on_request)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return runner.addresses[0][1]

        return self.run(start())

    def accept(self) -> None:
        self.ws = self.loop.run_until_complete(self.accepted)

    def connect(self, port: int) -> None:
        aiohttp = importlib.import_module("aiohttp")

        async def start() -> Any:
            self.session = aiohttp.ClientSession()
            return await self.session.ws_connect(f"ws://127.0.0.1:{port}/")

        self.ws = self.run(start())

    async def send(self, message: bytes) -> None:
        await self.ws.send_bytes(message)

    async def recv(self) -> bytes:
        return await self.ws.receive_bytes()


class Zmq(Awaited):
    def use(self) -> Any:
        zmq = importlib.import_module("zmq")

        async def make() -> Any:
            return importlib.import_module("zmq.asyncio").Context.instance().socket(zmq.PAIR)

        self.socket = self.run(make())
        return self.socket

    def listen(self) -> int:
        return self.use().bind_to_random_port("tcp://127.0.0.1")

    def accept(self) -> None:
        pass

    def connect(self, port: int) -> None:
        self.use().connect(f"tcp://127.0.0.1:{port}")

    async def send(self, message: bytes) -> None:
        await self.socket.send(message)

    async def recv(self) -> bytes:
        return await self.socket.recv()


OURS, OURS_MANY, STREAMS, AWAITED = "longconn.aio", "longconn.aio send, recv_many", "streams, struct", "picows, awaited"
CLASSES: dict[str, type[OnLoop]] = {
    STREAMS: Streams,
    OURS: Longconn,
    OURS_MANY: LongconnMany,
    AWAITED: PicowsAwaited,
    "picows, called back": Picows,
    "websockets": Websockets,
    "aiohttp": Aiohttp,
    "pyzmq.asyncio PAIR": Zmq,
}
LOOPS = ("asyncio", "uvloop")


def on(loop: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{name} ({loop})" for name in names)


def maker(contender: str) -> Callable[[], Contender]:
    name, _, loop = contender.removesuffix(")").rpartition(" (")
    given = CLASSES[name]
    if loop == "asyncio":
        return given
    new = importlib.import_module("uvloop").new_event_loop
    return type(given.__name__, (given,), {"new_event_loop": staticmethod(new)})


REQUESTS = tuple(name for name in CLASSES if name != OURS_MANY)
ROWS = tuple(
    row
    for loop in LOOPS
    for row in (
        Row(
            f"request_{loop}",
            f"request and response, 64 B, {loop}",
            "round trips",
            "ask",
            "echo",
            on(loop, *REQUESTS),
            (
                (*on(loop, OURS, AWAITED), 0.95),
                # Against asyncio's own, on whichever loop.
                *([(*on(loop, OURS, STREAMS), 2.5)] if loop == "asyncio" else []),
            ),
            0.02,
        ),
        Row(
            f"oneway_{loop}",
            f"one way, 64 B, {loop}",
            "messages",
            "give",
            "take",
            on(loop, *CLASSES),
            ((*on(loop, OURS, AWAITED), 3.0), (*on(loop, OURS_MANY, AWAITED), 3.0)),
            0.02,
        ),
    )
)
ROW_NAMES = (*(row.name for row in ROWS), CROWD_ROW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=rows_of(ROW_NAMES), default=list(ROW_NAMES), metavar="NAME,..", help=", ".join(ROW_NAMES)
    )
    parser.add_argument("--quick", action="store_true", help="a look in a few minutes instead of a measurement")
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


def run_worker(task: dict[str, Any]) -> None:
    row = next(row for row in ROWS if row.name == task["row"])
    run_contender(row, task["contender"], maker(task["contender"]))


def run_controller(arguments: argparse.Namespace) -> None:
    effort = QUICK if arguments.quick else FULL
    if arguments.rounds:
        effort = Effort(**{**effort.__dict__, "rounds": arguments.rounds})
    cpu = quietest_cpu() if arguments.cpu is None else arguments.cpu
    os.sched_setaffinity(0, {cpu})  # inherited by all workers
    describe_machine(cpu)
    lines: list[Line] = []
    for name in arguments.rows:
        found = measure_row(next(row for row in ROWS if row.name == name), effort, __file__)
        for line in found:
            print(f"{line.row}: {line.contender}: {line.result} {line.against}", file=sys.stderr, flush=True)
        lines.extend(found)
    print(table(lines))


if __name__ == "__main__":
    main()
