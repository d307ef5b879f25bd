"""Small servers to test clients against, so that these examples and the pages of docs/ need none that is installed."""

from __future__ import annotations

import http.server
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    #: Called when a client is left to wait for an answer that doesn't come.
    on_wait: Callable[[], object] | None = None

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections break here all the time."""


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def leave_waiting(self) -> None:
        if self.server.on_wait:
            self.server.on_wait()


@contextmanager
def served(handler: type[socketserver.BaseRequestHandler]) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Redis(Handler):
    """Just enough of Redis: answers to PING and HELLO, none to BLPOP while the list is empty, and OK to the rest."""

    ANSWERS: ClassVar = {b"PING": b"+PONG\r\n", b"HELLO": b"%1\r\n$5\r\nproto\r\n:3\r\n"}

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length + 2)[:-2])
            if words[0] == b"BLPOP":
                self.leave_waiting()
            else:
                self.wfile.write(self.ANSWERS.get(words[0], b"+OK\r\n"))


class Web(http.server.BaseHTTPRequestHandler):
    """An answer of 100,000 bytes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(bytes(100_000))

    def log_message(self, *_: object) -> None:
        pass


#: What a client may ask first, instead of beginning: TLS, or GSSAPI's encryption.
ENCRYPTIONS = {struct.pack("!i", 80877103), struct.pack("!i", 80877104)}


class Postgres(Handler):
    """Just enough of PostgreSQL's protocol: whoever comes is let in, each query is answered by one row, '1', and
    pg_sleep by none."""

    def say(self, kind: bytes, body: bytes) -> None:
        self.wfile.write(kind + struct.pack("!i", len(body) + 4) + body)

    def hear(self) -> bytes:
        (length,) = struct.unpack("!i", self.rfile.read(4))
        return self.rfile.read(length - 4)

    def handle(self) -> None:
        while self.hear() in ENCRYPTIONS:
            self.wfile.write(b"N")
        self.say(b"R", struct.pack("!i", 0))  # AuthenticationOk
        self.say(b"Z", b"I")  # ReadyForQuery
        while kind := self.rfile.read(1):
            query = self.hear()
            if kind == b"Q" and b"pg_sleep" in query:
                self.leave_waiting()
            elif kind == b"Q":
                self.say(b"T", struct.pack("!h", 1) + b"answer\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0))
                self.say(b"D", struct.pack("!hi", 1, 1) + b"1")
                self.say(b"C", b"SELECT 1\0")
                self.say(b"Z", b"I")
