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
import contextlib
import gc
import importlib
import json
import os
import resource
import statistics
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import MESSAGE, MESSAGE_BYTES, Effort, RowError, describe_machine, fork_peer, quietest_cpu, rows_of, workers
from messages import (
    FULL,
    QUICK,
    Awaited,
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


async def serve_aiohttp(on_request: Callable[[Any], Any], **options: Any) -> Any:
    """Returns what is to be kept, for the server goes with it, and knows its port."""
    web = importlib.import_module("aiohttp.web")
    app = web.Application()
    app.router.add_get("/", on_request)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, **options).start()
    return runner


class Aiohttp(Awaited):
    def listen(self) -> int:
        web = importlib.import_module("aiohttp.web")

        async def on_request(request: Any) -> Any:
            ws = web.WebSocketResponse(compress=False)
            await ws.prepare(request)
            self.accepted.set_result(ws)
            await self.loop.create_future()

        self.runner = self.run(serve_aiohttp(on_request))
        return self.runner.addresses[0][1]

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


# The crowd: each makes a server whose connections have a task each, and clients for it in another process.


def private_bytes() -> int:
    """Memory that is this process's alone."""
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


class Crowd:
    async def serve(self) -> int:
        """Returns the port."""
        raise NotImplementedError

    async def connect(self, port: int) -> Any:
        raise NotImplementedError


class LongconnCrowd(Crowd):
    async def serve(self) -> int:
        longconn, aio = importlib.import_module("longconn"), importlib.import_module("longconn.aio")

        async def handler(connection: Any) -> None:
            async for _ in connection:
                pass

        self.server = await aio.serve(handler, ("127.0.0.1", 0), heartbeat=longconn.Heartbeat(1.0))
        return self.server.address[1]

    async def connect(self, port: int) -> Any:
        longconn, aio = importlib.import_module("longconn"), importlib.import_module("longconn.aio")
        return await aio.connect(("127.0.0.1", port), heartbeat=longconn.Heartbeat(1.0), reconnect=False, timeout=60)


class WebsocketsCrowd(Crowd):
    async def serve(self) -> int:
        async def handler(connection: Any) -> None:
            async for _ in connection:
                pass

        serve = importlib.import_module("websockets.asyncio.server").serve
        self.server = await serve(
            handler, "127.0.0.1", 0, compression=None, ping_interval=1, ping_timeout=20, open_timeout=60
        )
        return next(iter(self.server.sockets)).getsockname()[1]

    async def connect(self, port: int) -> Any:
        connect = importlib.import_module("websockets.asyncio.client").connect
        return await connect(
            f"ws://127.0.0.1:{port}", compression=None, ping_interval=1, ping_timeout=20, open_timeout=60
        )


class AiohttpCrowd(Crowd):
    async def serve(self) -> int:
        web = importlib.import_module("aiohttp.web")

        async def on_request(request: Any) -> Any:
            ws = web.WebSocketResponse(compress=False, heartbeat=1)
            await ws.prepare(request)
            async for _ in ws:
                pass
            return ws

        self.runner = await serve_aiohttp(on_request, backlog=4096)
        return self.runner.addresses[0][1]

    async def connect(self, port: int) -> Any:
        aiohttp = importlib.import_module("aiohttp")
        if not hasattr(self, "session"):
            self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        ws = await self.session.ws_connect(f"ws://127.0.0.1:{port}/", heartbeat=1)
        # It answers the server's pings only while somebody receives.
        return ws, asyncio.ensure_future(ws.receive())


class PicowsCrowd(Crowd):
    """Its listener has a queue, which a task awaits."""

    async def serve(self) -> int:
        picows = importlib.import_module("picows")
        tasks = self.tasks = set()

        class Listener(picows.WSListener):  # type: ignore[name-defined, misc]
            def on_ws_connected(self, transport: Any) -> None:
                self.queue: asyncio.Queue[bytes] = asyncio.Queue()
                tasks.add(asyncio.get_running_loop().create_task(self.work()))

            async def work(self) -> None:
                while True:
                    await self.queue.get()

            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                if frame.msg_type == picows.WSMsgType.BINARY:
                    self.queue.put_nowait(frame.get_payload_as_bytes())

        self.server = await picows.ws_create_server(lambda _: Listener(), "127.0.0.1", 0, **self.beating(picows))
        return self.server.sockets[0].getsockname()[1]

    def beating(self, picows: Any) -> dict[str, Any]:
        return {
            "enable_auto_ping": True,
            "auto_ping_idle_timeout": 1,
            "auto_ping_reply_timeout": 1,
            "auto_ping_strategy": picows.WSAutoPingStrategy.PING_PERIODICALLY,
        }

    async def connect(self, port: int) -> Any:
        picows = importlib.import_module("picows")
        return await picows.ws_connect(picows.WSListener, f"ws://127.0.0.1:{port}", **self.beating(picows))


CROWDS: dict[str, type[Crowd]] = {
    OURS: LongconnCrowd,
    "websockets": WebsocketsCrowd,
    "aiohttp": AiohttpCrowd,
    "picows, awaited": PicowsCrowd,
}


def new_event_loop(loop: str) -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop() if loop == "asyncio" else importlib.import_module("uvloop").new_event_loop()


def run_crowd_worker(task: dict[str, Any]) -> None:
    """The server; the clients are its child."""
    crowd, seconds = CROWDS[task["contender"]](), task["seconds"]
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

    def run_clients(orders: int, answers: int) -> None:
        async def connect() -> None:
            (port,) = struct.unpack("Q", os.read(orders, 8))
            connections = []
            while len(connections) < CROWD:
                connections += await asyncio.gather(*(crowd.connect(port) for _ in range(50)))
            os.write(answers, b"r")
            await asyncio.get_running_loop().run_in_executor(None, os.read, orders, 8)  # until the server has gone
            os._exit(0)

        with asyncio.Runner(loop_factory=lambda: new_event_loop(task["loop"])) as runner:
            runner.run(connect())

    orders, answers = fork_peer(run_clients)

    async def serve() -> None:
        port = await crowd.serve()
        gc.collect()
        before = private_bytes()
        os.write(orders, struct.pack("Q", port))
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(None, os.read, answers, 1) != b"r":
            raise RowError("the clients' process failed")
        await asyncio.sleep(3)
        gc.collect()
        memory = (private_bytes() - before) / CROWD
        times, began = os.times(), time.monotonic()
        await asyncio.sleep(seconds)
        used, took = os.times(), time.monotonic() - began
        cpu = (used.user + used.system - times.user - times.system) / took
        tasks = len(asyncio.all_tasks())
        if tasks < CROWD:
            raise RowError(f"only {tasks} tasks are left")
        print(json.dumps({"cpu": cpu, "memory": memory, "tasks": tasks}), flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        loop = new_event_loop(task["loop"])
        loop.run_until_complete(serve())
    os._exit(0)


def measure_crowd(effort: Effort) -> list[Line]:
    lines = []
    seconds = effort.guard_seconds * 2
    for loop in LOOPS:
        for contender in CROWDS:
            answers: list[dict[str, Any]] = []
            title = f"{CROWD:,} connections, a beat each second, {loop}"
            try:
                for _ in range(1 if effort.rounds < FULL.rounds else 3):
                    task = {"row": CROWD_ROW, "contender": contender, "loop": loop, "seconds": seconds}
                    with workers([task], __file__) as (worker,):
                        answers.append(worker.read())
            except RowError as error:
                lines.append(Line(CROWD_ROW, title, contender, "not measured", str(error), "", None, {}))
                continue
            cpu = statistics.median(answer["cpu"] for answer in answers)
            memory = statistics.median(answer["memory"] for answer in answers)
            least_tasks = min(answer["tasks"] for answer in answers)
            is_ours = contender == OURS
            lines.append(
                Line(
                    CROWD_ROW,
                    title,
                    f"{contender} ({loop})",
                    f"{100 * cpu:.1f} % of a core, {memory / 1024:.2f} KiB each",
                    f"{least_tasks} tasks",
                    "≤ 6 %, ≤ 4 KiB" if is_ours else "",
                    (cpu <= 0.06 and memory <= 4096) if is_ours else None,
                    {"answers": answers},
                )
            )
    return lines


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
    if task["row"] == CROWD_ROW:
        run_crowd_worker(task)
    row = next(row for row in ROWS if row.name == task["row"])
    run_contender(row, task["contender"], maker(task["contender"]))


def run_controller(arguments: argparse.Namespace) -> None:
    effort = QUICK if arguments.quick else FULL
    if arguments.rounds:
        effort = Effort(**{**effort.__dict__, "rounds": arguments.rounds})
    cpu = quietest_cpu() if arguments.cpu is None else arguments.cpu
    os.sched_setaffinity(0, {cpu})  # inherited by all workers
    machine = describe_machine(cpu)
    lines: list[Line] = []
    for name in arguments.rows:
        if name == CROWD_ROW:
            found = measure_crowd(effort)
        else:
            found = measure_row(next(row for row in ROWS if row.name == name), effort, __file__)
        for line in found:
            print(f"{line.row}: {line.contender}: {line.result} {line.against}", file=sys.stderr, flush=True)
        lines.extend(found)
    print(
        f"asyncio. {machine['kernel']}, {machine['cpu']}, {machine['cores']} cores, all on CPU {cpu}; "
        f"{machine['python']}, {machine['python_build']}. Load when it began: {machine['load_average']:.1f}.\n"
    )
    print(table(lines))
    missed = [f"{line.row} ({line.contender})" for line in lines if line.met is False]
    print(f"\nMissed: {', '.join(missed)}." if missed else "\nNo bound was missed.")
    if arguments.json:
        rows = [dict(line.__dict__) for line in lines]
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
