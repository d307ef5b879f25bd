"""A peer in plain Python, written from docs/SPEC.md alone: what that page says is enough to talk to longconn.

One thread, no longconn: whoever calls `recv`, `flush` or `run` moves it forward, and in between it is silent. Its
session outlives its links: `come_back` takes another socket.
"""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

PREAMBLE = b"LONGCONN"
HELLO, WELCOME, DATA_START, DATA, DATA_END, ACK, BEAT, CLOSE = range(1, 9)
LONGEST = {HELLO: 4096, WELCOME: 1024, ACK: 16, BEAT: 33 + 1024}
PIECE = 16384
WINDOW = 1 << 18
LARGEST = 1 << 24
RETENTION = 60_000  # milliseconds
NORMAL, GOING_AWAY, PROTOCOL, LIMIT, STALE = 0, 1, 4, 6, 10
NAMES_SESSION, WILL_RESUME = 1, 2


class Violation(Exception):
    """The other side broke a rule."""


class Closed(Exception):
    """The other side said CLOSE: code, reason, final taken, whether the session ends."""


class PlainPeer:
    def __init__(
        self,
        sock: socket.socket,
        *,
        is_client: bool,
        comes_back: bool = False,
        want: int = 1000,
        floor: int = 50,
        limit: int = 0,
    ):
        self.is_client, self.comes_back = is_client, comes_back
        self.rhythm = (want, floor, limit)  # milliseconds
        self.status = b""
        self.session: tuple[bytes, bytes] | None = None  # id and secret
        self.epoch = 0
        self.is_resumed = False  # by the newest handshake
        # what we send
        self.queue: deque[bytes] = deque()  # data frames that wait for credit
        self.untaken: deque[tuple[int, bytes]] = deque()  # those that were sent, and where each ends
        self.sent = self.credit = self.their_taken = 0
        self.ends = [0]  # offsets at which our messages end, from what was taken on
        # what we hear
        self.received = self.taken = self.granted = 0
        self.pieces: list[bytes] | None = None
        self.missing = 0
        self.inbox: deque[tuple[int | None, bytes]] = deque()  # the end's offset, None of a lost session; the message
        self.client_id, self.token = "", b""
        self.begin_link(sock)

    def begin_link(self, sock: socket.socket) -> None:
        """What is of a link and not of the session."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.buffer = b""
        self.heard_preamble = False
        self.expected = WELCOME if self.is_client else HELLO
        self.is_open = False
        self.closed: Closed | None = None
        # beats
        self.origin = random.getrandbits(40) + 1 - time.monotonic_ns() // 1000
        self.sent_at = self.echoed = self.heard_sent_at = 0
        self.our_beats: set[int] = set()
        self.heard_at = 0
        self.next_beat = float("inf")
        self.round_trip: float | None = None
        self.peer_status = b""
        self.peer_ages = (0xFFFFFFFF, 0xFFFFFFFF)
        self.beats_heard = 0

    # ---- the handshake

    def say_hello(self, client_id: str = "", token: bytes = b"") -> None:
        self.client_id, self.token = client_id, token
        self.granted = max(self.granted, WINDOW)
        name = client_id.encode()
        flags = (NAMES_SESSION if self.session else 0) | (WILL_RESUME if self.comes_back else 0)
        window = self.granted - self.received
        payload = struct.pack("!BBIIIQQBB", 1, 1, *self.rhythm, window, LARGEST, flags, len(name)) + name
        payload += struct.pack("!H", len(token)) + token
        if self.session:
            self.epoch += 1
            payload += b"".join(self.session) + struct.pack("!QQQ", self.epoch, self.received, self.taken)
        self.sock.sendall(PREAMBLE + self.frame(HELLO, payload))
        self.run(lambda: self.is_open)

    def wait_for_hello(self) -> None:
        self.run(lambda: self.is_open)

    def come_back(self, sock: socket.socket) -> None:
        """Goes on with the session over another link."""
        self.begin_link(sock)
        if self.is_client:
            self.say_hello(self.client_id, self.token)
        else:
            self.wait_for_hello()

    def on_hello(self, payload: bytes) -> None:
        least, greatest, want, floor, limit, window, self.largest, flags, length = struct.unpack_from(
            "!BBIIIQQBB", payload
        )
        require(least <= 1 <= greatest and want and floor, "HELLO")
        self.client_id = payload[32 : 32 + length].decode()
        (count,) = struct.unpack_from("!H", payload, 32 + length)
        self.token = payload[34 + length : 34 + length + count]
        require(len(self.token) == count, "HELLO: the token is cut")
        self.agree(want, floor)
        for ours, theirs in ((self.rhythm[2], self.their_interval), (limit, self.interval)):
            if ours and ours < 2 * theirs:
                self.close(LIMIT, f"limit {ours} ms, interval {theirs} ms")
                raise Violation("limit")
        self.is_resumed = False
        if flags & NAMES_SESSION:
            claimed = payload[34 + length + count :][:48]
            epoch, received, taken = struct.unpack_from("!QQQ", payload, 34 + length + count + 48)
            if self.session and claimed[:16] == self.session[0]:
                if claimed[16:] != self.session[1] or epoch <= self.epoch:
                    self.say_close(STALE, "not yours")
                    raise Violation("stale")
                self.epoch, self.is_resumed = epoch, True
                self.go_on(received, taken, window)
        if not self.is_resumed:
            self.begin_anew()
            self.session, self.epoch = (os.urandom(16), os.urandom(32)), 0
            self.credit = 0 if flags & NAMES_SESSION else window
        assert self.session
        self.granted = max(self.granted, WINDOW)
        position = self.granted - self.received
        payload = struct.pack("!BBIIIQQ", 1, self.is_resumed, *self.rhythm, position, LARGEST) + b"".join(self.session)
        kept = RETENTION if flags & WILL_RESUME and self.comes_back else 0
        self.sock.sendall(self.frame(WELCOME, payload + struct.pack("!QQI", self.received, self.taken, kept)))

    def on_welcome(self, payload: bytes) -> None:
        version, flags, want, floor, _limit, window, self.largest = struct.unpack_from("!BBIIIQQ", payload)
        session = payload[30:46], payload[46:78]
        received, taken, _kept = struct.unpack_from("!QQI", payload, 78)
        require(version == 1 and want and floor and (window >= 65536 or taken < received), "WELCOME")
        self.is_resumed = bool(flags & 1)
        if self.is_resumed:
            require(session == self.session, "WELCOME to another session")
            self.go_on(received, taken, window)
        else:
            require(received == taken == 0, "WELCOME: a new session begins at 0")
            self.begin_anew()
            self.session, self.epoch, self.credit = session, 0, window
        self.agree(want, floor)
        self.acknowledge()
        self.begin()

    def go_on(self, received: int, taken: int, window: int) -> None:
        """From where the other side is."""
        frames = [self.their_taken, *(end for end, _ in self.untaken)]
        require(received in frames and taken in self.ends and taken <= received, f"position {received}, {taken}")
        require(taken < received or window >= 65536, f"window {window}")
        self.forget(taken)
        again = [frame for end, frame in self.untaken if end > received]
        self.untaken = deque(each for each in self.untaken if each[0] <= received)
        self.queue.extendleft(reversed(again))
        self.sent, self.credit = received, received + window

    def begin_anew(self) -> None:
        """In a new session, with what isn't known to be taken."""
        self.queue.extendleft(reversed([frame for _, frame in self.untaken]))
        self.untaken.clear()
        self.ends = [end - self.their_taken for end in self.ends]
        self.sent = self.their_taken = 0
        self.received = self.taken = 0
        self.granted = WINDOW
        self.pieces = None
        self.inbox = deque((None, message) for _, message in self.inbox)

    def agree(self, want: int, floor: int) -> None:
        self.interval = max(self.rhythm[1], min(self.rhythm[0], want))
        self.their_interval = max(floor, min(self.rhythm[0], want))

    def begin(self) -> None:
        self.is_open = True
        self.pump()
        self.next_beat = time.monotonic() + random.random() * self.interval / 1000

    # ---- frames

    @staticmethod
    def frame(kind: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind]) + payload

    def handle(self, received: bytes) -> None:
        self.buffer += received
        if self.expected and not self.buffer.startswith(PREAMBLE[: len(self.buffer)]) and not self.heard_preamble:
            raise Violation(f"not a longconn peer: {self.buffer[:20]!r}")
        if not self.heard_preamble:
            if len(self.buffer) < len(PREAMBLE):
                return
            self.buffer = self.buffer[len(PREAMBLE) :]
            self.heard_preamble = True
            if not self.is_client:
                self.sock.sendall(PREAMBLE)
        while len(self.buffer) >= 4 and self.closed is None:
            length, kind = int.from_bytes(self.buffer[:3], "big"), self.buffer[3]
            require(kind in range(HELLO, CLOSE + 1) or kind >= 0x80, f"kind {kind:#x}")
            require(length <= LONGEST.get(kind, PIECE), f"{length} bytes in kind {kind}")
            if len(self.buffer) < 4 + length:
                return
            payload, self.buffer = self.buffer[4 : 4 + length], self.buffer[4 + length :]
            self.handle_frame(kind, payload)

    def handle_frame(self, kind: int, payload: bytes) -> None:
        if kind == CLOSE:
            code, flags, taken, _retry, length = struct.unpack_from("!HBQIH", payload)
            (count,) = struct.unpack_from("!H", payload, 17 + length)
            self.closed = Closed(code, payload[19 + length : 19 + length + count].decode(), taken, bool(flags & 1))
        elif self.expected:
            require(kind == self.expected, f"kind {kind} where {self.expected} must come")
            self.expected = {HELLO: ACK}.get(kind, 0)
            {HELLO: self.on_hello, WELCOME: self.on_welcome, ACK: self.on_ack}[kind](payload)
            if kind == ACK:
                self.begin()
        elif kind == ACK:
            self.on_ack(payload)
        elif kind == BEAT:
            self.on_beat(payload)
        elif kind in (DATA_START, DATA, DATA_END):
            self.on_data(kind, payload)
        else:
            require(kind >= 0x80, f"kind {kind} after the handshake")

    # ---- messages

    def on_data(self, kind: int, payload: bytes) -> None:
        self.received += 4 + len(payload)
        require(self.received <= self.granted, "beyond the credit")
        if kind == DATA_START:
            require(self.pieces is None and len(payload) == PIECE, "DATA_START")
            (length,) = struct.unpack_from("!Q", payload)
            require(PIECE < length <= LARGEST, f"a message of {length} bytes")
            self.pieces, self.missing = [payload[8:]], length - (PIECE - 8)
            pieces = -(-(8 + length) // PIECE)
            end = self.received - PIECE - 4 + 8 + length + 4 * pieces
            if end > self.granted:
                self.granted = end
                self.acknowledge()
            return
        if self.pieces is None:
            require(kind == DATA_END, "DATA outside of a message")
            self.inbox.append((self.received, payload))
            return
        require(len(payload) == min(self.missing, PIECE) and payload != b"", "a piece of the wrong size")
        self.pieces.append(payload)
        self.missing -= len(payload)
        require((self.missing == 0) == (kind == DATA_END), "the last piece")
        if kind == DATA_END:
            self.inbox.append((self.received, b"".join(self.pieces)))
            self.pieces = None

    def acknowledge(self) -> None:
        self.granted = max(self.granted, self.taken + WINDOW)
        self.sock.sendall(self.frame(ACK, struct.pack("!QQ", self.taken, self.granted)))

    def on_ack(self, payload: bytes) -> None:
        require(len(payload) == 16, "ACK")
        taken, credit = struct.unpack("!QQ", payload)
        require(self.their_taken <= taken <= self.sent and taken in self.ends, f"taken {taken}")
        require(credit >= self.credit and (taken < self.sent or credit - taken >= 65536), f"credit {credit}")
        self.credit = credit
        self.forget(taken)
        if self.is_open:
            self.pump()

    def forget(self, taken: int) -> None:
        self.their_taken = taken
        self.ends = [end for end in self.ends if end >= taken]
        self.untaken = deque(each for each in self.untaken if each[0] > taken)

    def send(self, message: bytes) -> None:
        """Sends what the credit allows; the rest goes as soon as it does, or there is a link."""
        if len(message) <= PIECE:
            frames = [self.frame(DATA_END, message)]
        else:
            stream = struct.pack("!Q", len(message)) + message
            cut = [stream[at : at + PIECE] for at in range(0, len(stream), PIECE)]
            kinds = [DATA_START] + [DATA] * (len(cut) - 2) + [DATA_END]
            frames = [self.frame(kind, piece) for kind, piece in zip(kinds, cut, strict=True)]
        self.ends.append(self.sent + sum(map(len, self.queue)) + sum(map(len, frames)))
        self.queue.extend(frames)
        if self.is_open:
            self.pump()

    def pump(self) -> None:
        while frame := self.next_frame():
            self.sock.sendall(frame)

    def next_frame(self) -> bytes | None:
        if not self.queue or self.sent + len(self.queue[0]) > self.credit:
            return None
        frame = self.queue.popleft()
        self.sent += len(frame)
        self.untaken.append((self.sent, frame))
        return frame

    def recv(self, timeout: float = 20.0) -> bytes:
        self.run(lambda: self.inbox, timeout)
        end, message = self.inbox.popleft()
        if end is not None:
            self.taken = end
            if self.is_open:
                self.acknowledge()
        return message

    def flush(self, timeout: float = 20.0) -> None:
        self.run(lambda: not self.queue and self.their_taken == self.sent, timeout)

    # ---- beats

    def beat(self, *, answer: bool = False, extra: bool = False) -> None:
        now = time.monotonic_ns() // 1000 + self.origin
        self.sent_at = max(now, self.sent_at + 1)
        self.our_beats.add(self.sent_at)
        held = now - self.heard_at if self.heard_sent_at else 0
        numbers = (answer | extra << 1, self.sent_at, self.heard_sent_at, held, 0, 0xFFFFFFFF)
        self.sock.sendall(self.frame(BEAT, struct.pack("!BQQQII", *numbers) + self.status))

    def on_beat(self, payload: bytes) -> None:
        require(len(payload) >= 33, "BEAT")
        flags, sent_at, echo, held, *ages = struct.unpack_from("!BQQQII", payload)
        require(sent_at > self.heard_sent_at, "sent_at doesn't grow")
        require((echo == 0 and not self.echoed) or (echo in self.our_beats and echo >= self.echoed), f"echo {echo}")
        now = time.monotonic_ns() // 1000 + self.origin
        if echo > self.echoed:
            self.echoed = echo
            self.round_trip = (now - echo - held) / 1e6
        self.heard_sent_at, self.heard_at = sent_at, now
        self.peer_status, self.peer_ages = payload[33:], tuple(ages)
        self.beats_heard += 1
        if flags & 1:
            self.beat(extra=True)

    # ---- moving forward

    def run(self, until: Callable[[], object], timeout: float = 20.0) -> None:
        """Reads and beats until something holds; raises what the other side does instead."""
        deadline = time.monotonic() + timeout
        while not until():
            if self.closed is not None:
                raise self.closed
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError
            if now >= self.next_beat:
                self.beat()
                self.next_beat = now + self.interval / 1000 * random.uniform(0.75, 1.0)
            wait = min(deadline, self.next_beat) - now
            if select.select([self.sock], [], [], max(0.0, wait))[0]:
                received = self.sock.recv(1 << 16)
                if not received:
                    raise EOFError("the stream ended without CLOSE")
                try:
                    self.handle(received)
                except Violation as violation:
                    if self.heard_preamble:
                        self.say_close(PROTOCOL, str(violation))
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.sock.close()
                    raise

    # ---- the end

    def cut(self) -> None:
        """The link breaks; a frame that is under way is cut short."""
        if frame := self.next_frame():
            self.sock.sendall(frame[: random.randrange(len(frame))])
        self.is_open = False
        self.sock.close()

    def say_close(self, code: int, reason: str, *, ends_session: bool = True, retry_after: int = 0) -> None:
        text = reason.encode()
        taken = 0 if self.expected else self.taken
        numbers = code, ends_session, taken, retry_after, 0, len(text)
        self.sock.sendall(self.frame(CLOSE, struct.pack("!HBQIHH", *numbers) + text))

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """CLOSE, FIN, and then until the other side's FIN."""
        if self.closed is None:
            self.say_close(code, reason)
        self.sock.shutdown(socket.SHUT_WR)
        self.sock.settimeout(20.0)
        while self.sock.recv(1 << 16):
            pass
        self.sock.close()


def require(condition: object, what: str) -> None:
    if not condition:
        raise Violation(what)
