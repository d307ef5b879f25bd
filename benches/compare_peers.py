"""The two programs of `make compare`, once for each library, as its documentation would have one write them.

    python compare_peers.py LIBRARY server|client HOST PORT idle|sending

A heartbeat each second, and a limit of two to three, where the library has them. The client says "ready" once it is
connected, waits for messages, and says "told" and by what as soon as the library tells it that the connection is lost;
"sending" also sends a message each 0.2 s. The server answers nothing, but for heartbeats. What it says on its standard
input it does: "hold" holds the interpreter in one C call for 8 s.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

EVERY = 0.2
HOLDS = 8.0


def say(*words: object) -> None:
    print(*words, flush=True)


def told(error: object) -> None:
    kind = type(error).__name__ if isinstance(error, BaseException) else str(error)
    say("told", kind, str(error).replace("\n", " "))
    time.sleep(0.2)
    import os

    os._exit(0)


def obey() -> None:
    """What the other side's interpreter is to suffer."""

    def listen() -> None:
        for line in sys.stdin:
            if line.strip() == "hold":
                # PyDLL keeps the GIL during the call
                ctypes.PyDLL(None).usleep(int(HOLDS * 1e6))

    threading.Thread(target=listen, daemon=True).start()


# ---- sockets


def socket_server(host: str, port: int, prepare: Callable[[socket.socket], None]) -> None:
    listener = socket.create_server((host, port))
    say("listening")
    while True:
        sock, _ = listener.accept()
        prepare(sock)
        threading.Thread(target=swallow, args=(sock,), daemon=True).start()


def swallow(sock: socket.socket) -> None:
    with suppress(OSError):
        while sock.recv(65536):
            pass


def socket_client(host: str, port: int, how: str, prepare: Callable[[socket.socket], None]) -> None:
    sock = socket.create_connection((host, port))
    prepare(sock)
    use(sock, how)


def use(sock: socket.socket, how: str) -> None:
    say("ready")
    if how == "sending":

        def send() -> None:
            try:
                while True:
                    sock.sendall(b"x" * 64)
                    time.sleep(EVERY)
            except OSError as error:
                told(error)

        threading.Thread(target=send, daemon=True).start()
    try:
        while sock.recv(65536):
            pass
    except OSError as error:
        told(error)
    told("end of stream")


def keepalive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def with_user_timeout(sock: socket.socket) -> None:
    keepalive(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000)


def nothing(_: socket.socket) -> None:
    pass


def guarded_client(host: str, port: int, how: str) -> None:
    import longconn
    from longconn import socket as ours

    longconn.set_default_keepalive(longconn.Keepalive(1, 1, 3, guard=3.0))
    use(ours.create_connection((host, port)), how)


# ---- longconn


def long_server(host: str, port: int) -> None:
    import longconn

    with longconn.LongServer((host, port), heartbeat=longconn.Heartbeat(1.0)) as server:
        say("listening")
        for _ in server.messages():
            pass


def long_client(host: str, port: int, how: str) -> None:
    import longconn

    conn = longconn.connect((host, port), heartbeat=longconn.Heartbeat(1.0), reconnect=False)
    say("ready")
    if how == "sending":

        def send() -> None:
            with suppress(longconn.LongConnError):
                while True:
                    conn.send(b"x" * 64)
                    time.sleep(EVERY)

        threading.Thread(target=send, daemon=True).start()
    try:
        for _ in conn:
            pass
    except longconn.LongConnError as error:
        told(error)
    told("closed")


# ---- websockets


async def websockets_server(host: str, port: int) -> None:
    from websockets.asyncio.server import serve

    async def handle(connection: object) -> None:
        with suppress(Exception):
            async for _ in connection:  # type: ignore[attr-defined]
                pass

    async with serve(handle, host, port, ping_interval=1, ping_timeout=2):
        say("listening")
        await asyncio.get_running_loop().create_future()


async def websockets_client(host: str, port: int, how: str) -> None:
    from websockets.asyncio.client import connect

    async with connect(f"ws://{host}:{port}", ping_interval=1, ping_timeout=2, proxy=None) as connection:
        say("ready")
        sender = asyncio.create_task(repeat(lambda: connection.send(b"x" * 64))) if how == "sending" else None
        try:
            async for _ in connection:
                pass
        except Exception as error:
            told(error)
        told(f"end of messages ({sender})")


async def repeat(send: Callable[[], object]) -> None:
    with suppress(Exception):
        while True:
            await send()  # type: ignore[misc]
            await asyncio.sleep(EVERY)


# ---- aiohttp


async def aiohttp_server(host: str, port: int) -> None:
    from aiohttp import web

    async def handle(request: web.Request) -> web.WebSocketResponse:
        connection = web.WebSocketResponse(heartbeat=2.0)  # it waits half of that for the answer
        await connection.prepare(request)
        async for _ in connection:
            pass
        return connection

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    say("listening")
    await asyncio.get_running_loop().create_future()


async def aiohttp_client(host: str, port: int, how: str) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"http://{host}:{port}/", heartbeat=2.0) as connection:
            say("ready")
            sender = asyncio.create_task(repeat(lambda: connection.send_bytes(b"x" * 64))) if how == "sending" else None
            try:
                async for message in connection:
                    if message.type is aiohttp.WSMsgType.ERROR:
                        told(connection.exception() or "error")
            except Exception as error:
                told(error)
            told(connection.exception() or f"end of messages ({sender})")


# ---- pyzmq


def zmq_socket(kind: int):  # type: ignore[no-untyped-def]
    import zmq

    sock = zmq.Context.instance().socket(kind)
    sock.setsockopt(zmq.HEARTBEAT_IVL, 1000)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, 2000)
    sock.setsockopt(zmq.HEARTBEAT_TTL, 3000)
    sock.setsockopt(zmq.LINGER, 0)
    return sock


def zmq_server(host: str, port: int) -> None:
    import zmq

    sock = zmq_socket(zmq.PAIR)
    sock.bind(f"tcp://{host}:{port}")
    say("listening")
    while True:
        sock.recv()


def zmq_client(host: str, port: int, how: str) -> None:
    import zmq
    from zmq.utils.monitor import recv_monitor_message

    sock = zmq_socket(zmq.PAIR)
    monitor = sock.get_monitor_socket()
    sock.connect(f"tcp://{host}:{port}")

    def send() -> None:
        while True:
            with suppress(zmq.ZMQError):
                sock.send(b"x" * 64, zmq.NOBLOCK)
            time.sleep(EVERY)

    while True:
        event = recv_monitor_message(monitor)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            say("ready")
            if how == "sending":
                threading.Thread(target=send, daemon=True).start()
        elif event == zmq.EVENT_DISCONNECTED:
            told("DISCONNECTED")  # its monitor is how it tells


SERVERS: dict[str, Callable[[str, int], object]] = {
    "socket": lambda host, port: socket_server(host, port, nothing),
    "keepalive": lambda host, port: socket_server(host, port, keepalive),
    "user-timeout": lambda host, port: socket_server(host, port, with_user_timeout),
    "guard": lambda host, port: socket_server(host, port, nothing),
    "longconn": long_server,
    "websockets": lambda host, port: asyncio.run(websockets_server(host, port)),
    "aiohttp": lambda host, port: asyncio.run(aiohttp_server(host, port)),
    "pyzmq": zmq_server,
}
CLIENTS: dict[str, Callable[[str, int, str], object]] = {
    "socket": lambda host, port, how: socket_client(host, port, how, nothing),
    "keepalive": lambda host, port, how: socket_client(host, port, how, keepalive),
    "user-timeout": lambda host, port, how: socket_client(host, port, how, with_user_timeout),
    "guard": guarded_client,
    "longconn": long_client,
    "websockets": lambda host, port, how: asyncio.run(websockets_client(host, port, how)),
    "aiohttp": lambda host, port, how: asyncio.run(aiohttp_client(host, port, how)),
    "pyzmq": zmq_client,
}


def main() -> None:
    library, role, host, port, how = sys.argv[1:]
    obey()
    if role == "server":
        SERVERS[library](host, int(port))
    else:
        CLIENTS[library](host, int(port), how)


if __name__ == "__main__":
    main()
