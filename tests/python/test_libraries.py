"""Libraries that are built on sockets: they take a KeepaliveSocket, put in the place of the stdlib's late or early.

Late: the libraries hold the stdlib's class already. Early: the whole file runs once more in a process that
`longconn run` has started, so that even ssl is derived from KeepaliveSocket.
"""

from __future__ import annotations

import asyncio
import http.client
import http.server
import importlib
import multiprocessing.connection
import os
import select
import selectors
import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
import urllib.request
import xmlrpc.client
import xmlrpc.server
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import longconn
import pytest
import trustme
from longconn import Keepalive, KeepaliveSocket, PeerLost
from peers import (
    OPTIONS,
    PATIENCE,
    QUICK,
    SLACK,
    STDLIB,
    connected,
    cut_off,
    environment,
    listening,
    options,
    python,
    reset,
    timings,
    wait_until,
    watch_of,
)

EARLY = socket.socket is KeepaliveSocket
DEFAULT = (1, 15, 5, 3)


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with nullcontext() if EARLY else longconn.install():
        yield


@contextmanager
def serving(serve: Callable[[socket.socket], Any]) -> Iterator[tuple[str, int]]:
    """A server of one connection, on the stdlib's class, in a thread."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(PATIENCE)
                serve(sock)
        except BaseException as error:
            failures.append(error)

    with listening() as listener:
        listener.settimeout(PATIENCE)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            thread.join(PATIENCE * 2)
    assert failures == []


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


# ---- ssl


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def tls_echo(server_context: ssl.SSLContext) -> Iterator[tuple[str, int]]:
    def serve(sock: socket.socket) -> None:
        with server_context.wrap_socket(sock, server_side=True) as secure:
            echo(secure)
            secure.unwrap()

    with serving(serve) as address:
        yield address


def check_echo(secure: ssl.SSLSocket) -> None:
    """By one thread: OpenSSL takes no two at once on one connection, and CPython 3.13.0 lets them."""
    for _ in range(20):
        data = os.urandom(15_000)
        secure.sendall(data)
        got = bytearray()
        while len(got) < len(data):
            got += secure.recv(65536)
        assert got == data
    secure.unwrap()


WHEN = pytest.mark.parametrize("when", ["before", "after"])


def wrap(when: str, sock: socket.socket, context: ssl.SSLContext, address: tuple[str, int]) -> ssl.SSLSocket:
    """Before or after it was connected."""
    if when == "after":
        sock.connect(address)
        return context.wrap_socket(sock, server_hostname="localhost")
    secure = context.wrap_socket(sock, server_hostname="localhost")
    secure.connect(address)
    return secure


@WHEN
@pytest.mark.parametrize("timeout", [None, PATIENCE], ids=["blocking", "with a timeout"])
def test_ssl_wraps_it_before_and_after_connecting(tls_echo, client_context, when, timeout):
    sock = KeepaliveSocket()
    sock.settimeout(timeout)
    with wrap(when, sock, client_context, tls_echo) as secure:
        assert isinstance(secure, KeepaliveSocket) == EARLY
        assert sock.fileno() == -1
        assert secure.gettimeout() == timeout
        assert timings(secure) == DEFAULT
        check_echo(secure)


@WHEN
def test_ssl_keeps_the_settings(tls_echo, client_context, when):
    sock = KeepaliveSocket(keepalive=Keepalive(60, 10, 6))
    with wrap(when, sock, client_context, tls_echo) as secure:
        assert timings(secure) == (1, 60, 10, 6)
        if EARLY:
            assert secure.keepalive == Keepalive(60, 10, 6)
        check_echo(secure)


@WHEN
def test_ssl_keeps_what_the_program_has_set_itself(tls_echo, client_context, when):
    sock = KeepaliveSocket(keepalive=Keepalive(60, 10, 6))
    sock.setsockopt(*OPTIONS["TCP_KEEPIDLE"], 77)
    with wrap(when, sock, client_context, tls_echo) as secure:
        assert timings(secure) == (1, 77, 10, 6)
        if EARLY:
            assert secure.keepalive == Keepalive(77, 10, 6)
        check_echo(secure)


@WHEN
def test_ssl_keeps_it_off(tls_echo, client_context, when):
    sock = KeepaliveSocket(keepalive=False)
    with STDLIB() as untouched:
        before = options(untouched)
    with wrap(when, sock, client_context, tls_echo) as secure:
        assert options(secure) == before
        if EARLY:
            assert secure.keepalive is None
        check_echo(secure)


@WHEN
def test_under_ssl_the_guard_goes_on_and_nobody_hangs(server_context, client_context, when):
    """What the program sees is ssl's: by default it takes an abort for the end of the stream."""
    with listening() as listener, ExitStack() as stack:
        accepted: list[socket.socket] = []

        def serve() -> None:
            sock, _ = listener.accept()
            accepted.append(stack.enter_context(server_context.wrap_socket(sock, server_side=True)))

        thread = threading.Thread(target=serve)
        thread.start()
        sock = KeepaliveSocket(keepalive=QUICK)
        with wrap(when, sock, client_context, listener.getsockname()) as secure:
            thread.join(PATIENCE)
            # what the server says after the handshake (session tickets) has arrived and been answered
            wait_until(lambda: longconn._longconn.tcp_info(accepted[0].fileno()).unacked_segments == 0)
            cut_off(accepted[0])
            secure.send(b"into the void")
            began = time.monotonic()
            with suppress(ssl.SSLError, ConnectionError):
                assert secure.recv(10) == b""
            assert time.monotonic() - began < 0.5 + 0.5 + SLACK
            if EARLY:
                assert secure.lost == "unreachable"


def test_ssl_wraps_accepted_sockets_and_listeners(server_context, client_context):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert type(listener) is KeepaliveSocket
        with server_context.wrap_socket(listener, server_side=True) as secure_listener:

            def serve() -> None:
                secure, _ = secure_listener.accept()
                with secure:
                    assert timings(secure) == DEFAULT
                    secure.sendall(secure.recv(100))

            thread = threading.Thread(target=serve)
            thread.start()
            with socket.create_connection(secure_listener.getsockname()) as sock:
                with client_context.wrap_socket(sock, server_hostname="localhost") as secure:
                    secure.sendall(b"there")
                    assert secure.recv(100) == b"there"
            thread.join(PATIENCE)


def test_an_expired_timeout_under_ssl_is_the_plain_one(tls_echo, client_context):
    with (
        socket.create_connection(tls_echo) as sock,
        client_context.wrap_socket(sock, server_hostname="localhost") as it,
    ):
        it.settimeout(0.05)
        with pytest.raises(TimeoutError) as caught:
            it.recv(1)
        assert type(caught.value) is TimeoutError
        it.settimeout(PATIENCE)
        check_echo(it)


def test_a_file_over_ssl_reads_lines(tls_echo, client_context):
    with (
        socket.create_connection(tls_echo) as sock,
        client_context.wrap_socket(sock, server_hostname="localhost") as it,
    ):
        with it.makefile("rwb") as file:
            file.write(b"one\ntwo\n")
            file.flush()
            assert [file.readline(), file.readline()] == [b"one\n", b"two\n"]
        it.unwrap()


# ---- asyncio


def run(program: Callable[[], Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await program()

    return asyncio.run(limited())


def underlying(writer: asyncio.StreamWriter) -> socket.socket:
    return writer.get_extra_info("socket")._sock


async def echo_async(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_asyncios_streams_run_on_it(server_context, client_context, secure):
    async def program() -> None:
        server = await asyncio.start_server(echo_async, "127.0.0.1", 0, ssl=server_context if secure else None)
        async with server:
            reader, writer = await asyncio.open_connection(
                *server.sockets[0].getsockname(),
                ssl=client_context if secure else None,
                server_hostname="localhost" if secure else None,
            )
            assert type(underlying(writer)) is KeepaliveSocket
            assert timings(underlying(writer)) == DEFAULT
            data = os.urandom(1_000_000)
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            writer.close()
            await writer.wait_closed()

    run(program)


def test_asyncio_takes_a_socket_with_its_own_settings():
    async def program() -> None:
        with listening() as listener:
            sock = KeepaliveSocket(keepalive=Keepalive(60, 10, 6))
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
            reader, writer = await asyncio.open_connection(sock=sock)
            assert timings(underlying(writer)) == (1, 60, 10, 6)
            peer, _ = listener.accept()
            peer.sendall(b"line\n")
            assert await reader.readline() == b"line\n"
            peer.close()
            writer.close()
            await writer.wait_closed()

    run(program)


def test_asyncios_own_calls_on_sockets_work(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(300_000))

    async def program() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as ours:
            listener.setblocking(False)
            ours.setblocking(False)
            connecting = asyncio.ensure_future(loop.sock_connect(ours, listener.getsockname()))
            accepted, _ = await loop.sock_accept(listener)
            await connecting
            with accepted:
                assert type(accepted) is KeepaliveSocket
                await loop.sock_sendall(ours, b"there")
                assert await loop.sock_recv(accepted, 100) == b"there"
                buffer = bytearray(10)
                await loop.sock_sendall(accepted, b"back")
                assert await loop.sock_recv_into(ours, buffer) == 4
                with path.open("rb") as file:
                    sending = asyncio.ensure_future(loop.sock_sendfile(ours, file))
                    got = bytearray()
                    while len(got) < 300_000:
                        got += await loop.sock_recv(accepted, 65536)
                    assert await sending == 300_000
                    assert got == path.read_bytes()

    run(program)


def test_asyncio_tells_a_reader_that_the_peer_is_lost():
    async def program() -> None:
        with listening() as listener:
            sock = KeepaliveSocket(keepalive=QUICK)
            sock.connect(listener.getsockname())
            sock.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=sock)
            peer, _ = listener.accept()
            with peer:
                cut_off(peer)
                writer.write(b"into the void")
                with pytest.raises(PeerLost) as caught:
                    await reader.read(1)
                assert caught.value.cause == "unreachable"
                assert sock.lost == "unreachable"
                writer.close()
                with pytest.raises(PeerLost):
                    await writer.wait_closed()

    run(program)


@pytest.mark.parametrize("how", ["reset", "cut off"])
def test_asyncio_tells_a_protocol_that_the_peer_is_lost(how):
    class Protocol(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost = asyncio.get_running_loop().create_future()

        def connection_lost(self, error: Exception | None) -> None:
            self.lost.set_result(error)

    async def program() -> None:
        with listening() as listener:
            longconn.set_default_keepalive(QUICK)
            try:
                transport, protocol = await asyncio.get_running_loop().create_connection(
                    Protocol, *listener.getsockname()
                )
            finally:
                longconn.set_default_keepalive(None)
            peer, _ = listener.accept()
            with peer:
                if how == "reset":
                    reset(peer)
                else:
                    cut_off(peer)
                    transport.write(b"into the void")
                error = await protocol.lost
                assert isinstance(error, PeerLost)
                assert error.cause == {"reset": "reset", "cut off": "unreachable"}[how]

    run(program)


def test_asyncios_datagrams_run_on_it():
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: Any) -> None:
            self.transport.sendto(data.upper(), address)

    async def program() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Echo, ("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.setblocking(False)
            ours.sendto(b"there", transport.get_extra_info("sockname"))
            assert await loop.sock_recv(ours, 100) == b"THERE"
        transport.close()
        await asyncio.sleep(0)

    run(program)


# ---- selectors

SELECTORS = [
    getattr(selectors, name)
    for name in ("SelectSelector", "PollSelector", "EpollSelector", "KqueueSelector", "DevpollSelector")
    if hasattr(selectors, name)
]


@pytest.mark.parametrize("cls", SELECTORS)
def test_selectors_take_it(cls):
    with connected() as (ours, peer), cls() as selector:
        ours.setblocking(False)
        selector.register(ours, selectors.EVENT_READ | selectors.EVENT_WRITE, "data")
        assert selector.get_key(ours).fileobj is ours
        assert [events for _, events in selector.select(PATIENCE)] == [selectors.EVENT_WRITE]
        selector.modify(ours, selectors.EVENT_READ)
        assert selector.select(0) == []
        peer.send(b"x")
        (key, events), *_ = selector.select(PATIENCE)
        assert (key.fileobj, events, ours.recv(10)) == (ours, selectors.EVENT_READ, b"x")
        selector.unregister(ours)


def test_select_and_poll_take_it_and_wake_up_when_the_peer_is_lost():
    with connected(keepalive=QUICK) as (ours, peer):
        ours.setblocking(False)
        assert select.select([ours], [ours], [ours], PATIENCE) == ([], [ours], [])
        cut_off(peer)
        ours.send(b"into the void")
        poll = select.poll()
        poll.register(ours, select.POLLIN)
        assert poll.poll(PATIENCE * 1000)
        assert select.select([ours], [], [], PATIENCE)[0] == [ours]
        with pytest.raises(PeerLost):
            ours.recv(1)


# ---- the stdlib's servers and clients


class Upper(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.server.kinds.append(type(self.request))  # type: ignore[attr-defined]
        self.wfile.write(self.rfile.readline().upper())


@contextmanager
def in_background(server: socketserver.BaseServer) -> Iterator[Any]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(PATIENCE)


@pytest.mark.parametrize("cls", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_socketservers_of_tcp_run_on_it(cls):
    with in_background(cls(("127.0.0.1", 0), Upper)) as server:
        server.kinds = []
        assert type(server.socket) is KeepaliveSocket
        for _ in range(3):
            with socket.create_connection(server.server_address) as sock, sock.makefile("rwb") as file:
                file.write(b"line\n")
                file.flush()
                assert file.read() == b"LINE\n"
        assert server.kinds == [KeepaliveSocket] * 3


def test_socketservers_of_unix_sockets_and_datagrams_run_on_it(tmp_path):
    with in_background(socketserver.UnixStreamServer(str(tmp_path / "socket"), Upper)) as server:
        server.kinds = []
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(server.server_address)
            sock.sendall(b"line\n")
            assert sock.recv(100) == b"LINE\n"

    class UpperDatagram(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.read().upper())

    with in_background(socketserver.UDPServer(("127.0.0.1", 0), UpperDatagram)) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.sendto(b"there", server.server_address)
            assert sock.recv(100) == b"THERE"


def test_socketservers_that_fork_run_on_it_without_a_warning():
    with socketserver.ForkingTCPServer(("127.0.0.1", 0), Upper) as server:
        server.kinds = []  # type: ignore[attr-defined]
        with socket.create_connection(server.server_address) as sock:
            sock.sendall(b"line\n")
            server.handle_request()
            with sock.makefile("rb") as file:
                assert file.read() == b"LINE\n"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(b"got " + self.path.encode())

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_http_runs_on_it_at_both_ends():
    with in_background(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        connection = http.client.HTTPConnection(*server.server_address, timeout=PATIENCE)
        for path in ("/one", "/two"):
            connection.request("GET", path)
            assert connection.getresponse().read() == b"got " + path.encode()
        assert type(connection.sock) is KeepaliveSocket
        assert timings(connection.sock) == DEFAULT
        body = os.urandom(500_000)
        connection.request("POST", "/", body)
        assert connection.getresponse().read() == body
        connection.close()
        with urllib.request.urlopen("http://{}:{}/three".format(*server.server_address), timeout=PATIENCE) as response:
            assert response.read() == b"got /three"


def test_https_runs_on_it_at_both_ends(server_context, client_context):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = server_context.wrap_socket(server.socket, server_side=True)
    with in_background(server):
        connection = http.client.HTTPSConnection(
            "localhost", server.server_address[1], context=client_context, timeout=PATIENCE
        )
        connection.request("GET", "/secure")
        assert connection.getresponse().read() == b"got /secure"
        assert timings(connection.sock) == DEFAULT
        connection.close()


def test_an_http_client_is_told_that_the_peer_is_lost():
    """In the middle of an answer, which must not look whole."""

    def serve(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"half an answer")  # its end would be the end of the stream
        begun.wait(PATIENCE)
        cut_off(sock)
        cut.set()
        told.wait(PATIENCE)

    begun, cut, told = threading.Event(), threading.Event(), threading.Event()
    with serving(serve) as address:
        connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
        connection.connect()
        sock = connection.sock
        sock.keepalive = QUICK
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.read(5) == b"half "
        begun.set()
        assert cut.wait(PATIENCE)
        sock.send(b"into the void")  # or the kernel's first probe would have to be waited for
        try:
            with pytest.raises(PeerLost):
                response.read()
        finally:
            told.set()
            connection.close()
            response.close()


def test_xmlrpc_runs_on_it():
    server = xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False)
    server.register_function(lambda one, other: one + other, "add")
    with in_background(server):
        with xmlrpc.client.ServerProxy("http://{}:{}".format(*server.server_address)) as proxy:
            assert proxy.add(2, 3) == 5


def test_multiprocessings_connections_run_on_it():
    with multiprocessing.connection.Listener(("127.0.0.1", 0), authkey=b"key") as listener:
        answers: list[object] = []

        def talk() -> None:
            with multiprocessing.connection.Client(listener.address, authkey=b"key") as client:
                client.send({"number": 5})
                answers.append(client.recv())

        thread = threading.Thread(target=talk)
        thread.start()
        with listener.accept() as connection:
            assert connection.recv() == {"number": 5}
            connection.send("there")
            thread.join(PATIENCE)
        assert answers == ["there"]


# ---- others' libraries


def fresh(name: str) -> Any:
    """Imported anew, so that it finds our class in the stdlib's place."""
    old = sys.modules.pop(name, None)
    try:
        return importlib.import_module(name)
    finally:
        sys.modules.pop(name, None)
        if old is not None:
            sys.modules[name] = old


def socks5(sock: socket.socket) -> None:
    """As much of RFC 1928 as a client needs that connects to an IPv4 address; then what it says is echoed."""
    version, count = sock.recv(2, socket.MSG_WAITALL)
    sock.recv(count, socket.MSG_WAITALL)
    sock.sendall(bytes([version, 0]))
    _, _, _, kind = sock.recv(4, socket.MSG_WAITALL)
    assert kind == 1
    sock.recv(6, socket.MSG_WAITALL)
    sock.sendall(bytes([5, 0, 0, 1, 127, 0, 0, 1]) + struct.pack(">H", 8083))
    echo(sock)


def test_pysocks_derives_its_class_from_it():
    socks = fresh("socks")
    assert issubclass(socks.socksocket, KeepaliveSocket)
    with serving(socks5) as address, socks.socksocket() as sock:
        sock.set_proxy(socks.SOCKS5, *address)
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", 8083))
        assert timings(sock) == DEFAULT
        assert sock.keepalive == Keepalive()
        sock.sendall(b"there")
        assert sock.recv(100) == b"there"
        sock.keepalive = Keepalive(60, 10, 6)
        assert timings(sock) == (1, 60, 10, 6)
        with sock.makefile("rwb") as file:
            file.write(b"line\n")
            file.flush()
            assert file.readline() == b"line\n"
    with serving(socks5) as address:
        with socks.create_connection(
            ("127.0.0.1", 8083), proxy_type=socks.SOCKS5, proxy_addr=address[0], proxy_port=address[1]
        ) as sock:
            sock.sendall(b"there")
            assert sock.recv(100) == b"there"


def test_pysocks_sockets_can_be_duplicated():
    """Its constructor takes no argument `keepalive`, as most that were written for the stdlib don't."""
    socks = fresh("socks")
    with listening() as listener, socks.socksocket() as sock:
        sock.setsockopt(*OPTIONS["TCP_KEEPIDLE"], 77)
        sock.connect(listener.getsockname())
        with sock.dup() as copy:
            assert type(copy) is socks.socksocket
            assert timings(copy) == (1, 77, 5, 3)


def test_pysocks_under_ssl(server_context, client_context):
    socks = fresh("socks")

    def serve(sock: socket.socket) -> None:
        with server_context.wrap_socket(sock, server_side=True) as secure:
            echo(secure)
            secure.unwrap()

    with serving(serve) as address:
        sock = socks.socksocket()
        sock.connect(address)
        with client_context.wrap_socket(sock, server_hostname="localhost") as secure:
            assert timings(secure) == DEFAULT
            check_echo(secure)


def test_redis_runs_on_it():
    redis = pytest.importorskip("redis")

    def serve(sock: socket.socket) -> None:
        while commands := sock.recv(65536):
            sock.sendall(b"+OK\r\n" * commands.count(b"*"))

    with serving(serve) as (host, port):
        client = redis.Redis(host, port, protocol=2, single_connection_client=True)
        try:
            client.set("key", "value")
            sock = client.connection._sock
            assert type(sock) is KeepaliveSocket
            assert timings(sock)[0] == 1  # it has wishes of its own for the rest
            assert watch_of(sock).is_active
        finally:
            client.close()


# ---- early


@pytest.mark.skipif(EARLY, reason="this is that process")
def test_all_this_works_installed_early_too():
    here = Path(__file__)
    done = python(
        *("-m", "longconn", "run", "-m", "pytest", "-q", "-p", "no:cacheprovider", here),
        env=environment(),
        cwd=here.parent.parent.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "too late" not in done.stderr


# ---- aiohttp


@asynccontextmanager
async def asked_by_aiohttp(settings: Keepalive) -> AsyncIterator[tuple[Any, asyncio.StreamWriter]]:
    """The task that waits for an answer, and whom the answer is to come from."""
    import aiohttp

    asked: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set_result(writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        connector = aiohttp.TCPConnector(socket_factory=settings.socket_factory)
        async with aiohttp.ClientSession(connector=connector) as session:
            answer = asyncio.create_task(session.post(f"http://{host}:{port}/"))  # a GET would be tried again
            writer = await asked
            yield answer, writer
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def test_aiohttps_connections_have_the_settings_of_the_factory():
    async def main() -> None:
        async with asked_by_aiohttp(Keepalive(60, 10, 6)) as (answer, writer):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi")
            response = await answer
            assert timings(response.connection.transport.get_extra_info("socket")) == (1, 60, 10, 6)
            writer.write(b"ne")
            assert await response.text() == "fine"

    asyncio.run(main())


def test_aiohttps_users_are_told_of_a_dead_peer():
    import aiohttp

    async def main() -> None:
        async with asked_by_aiohttp(QUICK) as (answer, writer):
            cut_off(writer.get_extra_info("socket"))
            with pytest.raises(aiohttp.ClientOSError, match="unreachable"):
                await asyncio.wait_for(answer, PATIENCE)

    asyncio.run(main())


def test_a_socket_of_the_factory_is_as_event_loops_want_it():
    info = socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)[0]
    with Keepalive(60, 10, 6).socket_factory(info) as sock:
        assert type(sock) is KeepaliveSocket
        assert sock.keepalive == Keepalive(60, 10, 6)
        assert sock.gettimeout() == 0
    info = socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_DGRAM)[0]
    with pytest.raises(ValueError, match="UDP"):
        Keepalive(60, 10, 6).socket_factory(info)
