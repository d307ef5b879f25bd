"""The fault proxy: between any client and any server, and as bad as a path can be."""

from __future__ import annotations

import time
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .. import _longconn
from ..errors import ForkedError
from ..keepalive import in_seconds
from ..links import _places, _whole

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["FaultConnection", "FaultProxy", "FlowStats", "LaterFaults", "ProxyEvent", "SomeFaults"]

Direction = Literal["both", "to_server", "to_client"]

_DAY = 86400.0
_MANY = (1 << 53) - 1  # bytes; as exact as a float
#: Whose record a failed assertion tells.
_open: weakref.WeakSet[FaultProxy] = weakref.WeakSet()


class ProxyEvent(NamedTuple):
    """Something that happened at a proxy."""

    at: float
    """Seconds since the proxy began."""
    until: float
    """Later than `at` for bytes that came in several parts, none of them more than a second after the one before."""
    what: str
    """``"accepted"``, ``"connected"`` (with the server), ``"failed"`` (to do that), ``"refused"``, ``"forwarded"``,
    ``"lost"`` (bytes that nobody gets), ``"ended"`` (FIN), ``"reset"``, ``"forgotten"``, ``"closed"``, ``"fault"``."""
    connection: int | None
    """Connections are numbered from 1; None: all of them."""
    direction: str | None
    """``"to_server"``, ``"to_client"``, or None."""
    bytes: int
    detail: str
    """For people."""

    def __str__(self) -> str:
        who = "all" if self.connection is None else f"#{self.connection}"
        direction = {"to_server": "to the server", "to_client": "to the client"}.get(self.direction or "", "")
        size = f"{self.bytes} bytes" if self.bytes else ""
        until = f"(until {self.until:.3f} s)" if self.until >= self.at + 0.001 else ""
        words = [self.what, size, direction, until, self.detail]
        return f"{self.at:9.3f} s  {who:>4}  {' '.join(word for word in words if word)}"


class FlowStats(NamedTuple):
    """What was counted of one direction of a connection, in bytes."""

    entered: int
    """Taken from the sender."""
    left: int
    """Handed to the receiver's side."""
    lost: int
    """Entered and never to leave."""
    corrupted: int
    held: int
    """Entered and on the way, now."""


def _number(value: object, name: str, least: int = 0) -> float:
    return float(_whole(value, name, least, _MANY))


def _share(value: object) -> float:
    if isinstance(value, int | float) and 0 <= value <= 1:  # nor NaN
        return float(value)
    raise ValueError(f"share={value!r}: 0 to 1")


def _limit(count: object) -> float:
    return float("inf") if count is None else _number(count, "count")


def _seconds(value: object, name: str) -> float:
    seconds = in_seconds(value, name)
    if not 0 <= seconds <= _DAY:  # nor NaN
        raise ValueError(f"{name}={seconds:g}: 0 to {_DAY:g} seconds")
    return seconds


class _Faults:
    """What can go wrong with connections. Each takes effect before the call returns, and lasts until `restore()`.

    ``direction`` is ``"both"``, ``"to_server"`` or ``"to_client"``.
    """

    def _order(self, verb: str, direction: str, *numbers: float, text: str = "") -> None:
        raise NotImplementedError

    # ---- silence

    def pull_cable(self) -> None:
        """Nothing passes in either direction, and nobody is told: what `drop()` does, both ways."""
        self._order("cut", "both", text="pull_cable()")

    def drop(self, direction: Direction = "both") -> None:
        """Nothing of who sends in this direction arrives any more, neither bytes nor acknowledgements.

        On Linux not even the proxy's kernel hears it: bytes stay unacknowledged and are repeated, keepalive probes stay
        unanswered, a FIN comes late and a RST never, as with a pulled cable. New connections aren't answered. What was
        sent meanwhile comes after `restore()` or `resume()`, when the retransmission timer of the sender's kernel rings
        again, which has doubled each time. Elsewhere the proxy's kernel acknowledges until its buffer is full.

        With one direction cut, whoever isn't heard still gets what the other one sends, until its acknowledgements are
        missed, which are lost too: after some segments the rest waits. The other one sees less of it than on a real
        path: what it sends is acknowledged, by the proxy's kernel.
        """
        self._order("cut", direction, text=f"drop({direction!r})")

    def stall(self, direction: Direction = "both") -> None:
        """Bytes stand still on the way, but kernels go on answering: a hung proxy or load balancer, a stopped program.

        The proxy takes what its buffer holds, and then closes its window. What it holds comes after `restore()`.
        """
        self._order("stall", direction, text=f"stall({direction!r})")

    def resume(self, direction: Direction = "both") -> None:
        """End `pull_cable`, `drop` and `stall`, and no other fault. What the proxy has held back comes at once."""
        self._order("open", direction, text=f"resume({direction!r})")

    def lose(self, direction: Direction = "both", *, loses: bool = True) -> None:
        """Bytes that come from now on are acknowledged and thrown away, until ``lose(loses=False)``.

        No path does this to TCP, but a box that speaks for both ends may. The stream has a hole then.
        """
        self._order("lose", direction, float(loses), text=f"lose({direction!r}, loses={loses})")

    def forget(self, *, resets: bool = False) -> None:
        """A NAT or firewall loses its table now: these connections never pass anything again, new ones do.

        Each costs the proxy two descriptors until it is closed, for without them the kernel would answer by RST.

        Args:
            resets: Who sends anything is answered by RST, instead of by nothing.
        """
        self._order("forget", "both", float(resets), text=f"forget(resets={resets})")

    def forget_after(self, idle: float | timedelta | None, *, resets: bool = False) -> None:
        """Forget each connection that was silent in both directions for *idle* seconds, as a NAT does; None: never.

        On Linux what kernels say by themselves, keepalive probes above all, counts as well; silence is known to a tenth
        of *idle* then.
        """
        seconds = float("inf") if idle is None else _seconds(idle, "idle")
        self._order("forget_after", "both", seconds, float(resets), text=f"forget_after({idle}, resets={resets})")

    # ---- ends

    def expire(self, age: float | timedelta | None, *, resets: bool = False) -> None:
        """End each connection *age* seconds after it was accepted, as load balancers do (FIN to both); None: never.

        Who is older already ends now.

        Args:
            resets: By RST instead of FIN.
        """
        seconds = float("inf") if age is None else _seconds(age, "age")
        self._order("expire", "both", seconds, float(resets), text=f"expire({age}, resets={resets})")

    def reset(self, direction: Direction = "both") -> None:
        """RST, in the other one's name: ``"to_client"`` tells the client only; the server learns it when it sends."""
        self._order("reset", direction, text=f"reset({direction!r})")

    def end(self) -> None:
        """FIN to both, as if both programs had ended; what they send afterwards is answered by RST."""
        self._order("end", "both", text="end()")

    def half_close(self, direction: Direction) -> None:
        """FIN in one direction, behind what is on the way; what is sent after it is lost. The other one goes on."""
        self._order("half_close", direction, text=f"half_close({direction!r})")

    def slow_end(self, delay: float | timedelta, direction: Direction = "both") -> None:
        """A FIN comes *delay* seconds after what was sent before it."""
        self._order("slow_end", direction, _seconds(delay, "delay"), text=f"slow_end({delay}, {direction!r})")

    # ---- in the middle of something

    def stall_after(self, count: int | None, direction: Direction = "both") -> None:
        """`stall`, once *count* bytes more have passed in this direction; of a new connection, the first *count*.

        Of the faults after so many bytes a direction has one, the newest; None: none.
        """
        self._order("stall_after", direction, _limit(count), text=f"stall_after({count}, {direction!r})")

    def pull_cable_after(self, count: int | None, direction: Direction = "both") -> None:
        """`pull_cable`, likewise: nothing passes any more in either direction."""
        self._order("cut_both_after", direction, _limit(count), text=f"pull_cable_after({count}, {direction!r})")

    def drop_after(self, count: int | None, direction: Direction = "both") -> None:
        """`drop`, likewise."""
        self._order("cut_after", direction, _limit(count), text=f"drop_after({count}, {direction!r})")

    def end_after(self, count: int | None, direction: Direction = "both") -> None:
        """`half_close`, likewise: a truncated answer that looks whole."""
        self._order("end_after", direction, _limit(count), text=f"end_after({count}, {direction!r})")

    def reset_after(self, count: int | None, direction: Direction = "both") -> None:
        """`reset` to who receives in this direction, likewise."""
        self._order("reset_after", direction, _limit(count), text=f"reset_after({count}, {direction!r})")

    # ---- a bad path

    def latency(
        self, delay: float | timedelta, *, jitter: float | timedelta = 0.0, direction: Direction = "both"
    ) -> None:
        """Bytes take *delay* seconds in this direction, up to *jitter* more or less, in order. 0: none."""
        numbers = _seconds(delay, "delay"), _seconds(jitter, "jitter")
        self._order("latency", direction, *numbers, text=f"latency({delay}, jitter={jitter}, direction={direction!r})")

    def bandwidth(self, bytes_per_second: int | None, direction: Direction = "both") -> None:
        """No more bytes a second pass in this direction; None: as many as can. Senders feel it by their window."""
        width = 0.0 if bytes_per_second is None else _number(bytes_per_second, "bytes_per_second", 1)
        self._order("bandwidth", direction, width, text=f"bandwidth({bytes_per_second}, {direction!r})")

    def slice(
        self, size: int | None, *, spread: int = 0, delay: float | timedelta = 0.0, direction: Direction = "both"
    ) -> None:
        """What passes is cut into pieces of *size* bytes, give or take *spread*, that set out *delay* seconds apart.

        Without a delay the receiver's kernel may put several together again. None ends it.
        """
        numbers = (
            0.0 if size is None else _number(size, "size", 1),
            _number(spread, "spread"),
            _seconds(delay, "delay"),
        )
        text = f"slice({size}, spread={spread}, delay={delay}, direction={direction!r})"
        self._order("slice", direction, *numbers, text=text)

    def corrupt(self, probability: float = 0.0, *, at: int | None = None, direction: Direction = "both") -> None:
        """One bit is flipped in each byte with this probability, or in the one that comes after *at* more; 0: none."""
        if at is not None:
            self._order("corrupt_at", direction, _number(at, "at"), text=f"corrupt(at={at}, direction={direction!r})")
            return
        if not 0 <= probability <= 1:  # nor NaN
            raise ValueError(f"probability={probability}: 0 to 1")
        text = f"corrupt({probability}, direction={direction!r})"
        self._order("corrupt", direction, float(probability), text=text)

    # ---- and well again

    def restore(self, direction: Direction = "both") -> None:
        """End every fault in this direction; both ways, also those that belong to none. What the proxy has held back
        comes at once.

        What was lost, ended, reset or forgotten stays so; what is planned (`after`) still happens.
        """
        self._order("restore", direction, text=f"restore({direction!r})")


class _ProxyFaults(_Faults):
    """Those that aren't one connection's."""

    def refuse(self) -> None:
        """New connections are refused, as if no server were there; those that are there stay."""
        self._order("refuse", "both", 1.0, text="refuse()")

    def admit(self) -> None:
        """End `refuse`."""
        self._order("refuse", "both", 0.0, text="admit()")

    def limit_connections(self, most: int | None) -> None:
        """Reset who comes while *most* connections are there; None: no limit."""
        count = float("inf") if most is None else _number(most, "most")
        self._order("limit_connections", "both", count, text=f"limit_connections({most})")


class SomeFaults(_Faults):
    """What is to go wrong with a share of the connections: see `FaultProxy.some`."""

    def __init__(self, proxy: FaultProxy, share: float, after: float | None = None) -> None:
        self._proxy, self._share, self._after = proxy, _share(share), after

    def _order(self, verb: str, direction: str, *numbers: float, text: str = "") -> None:
        text = f"some({self._share:g}).{text}"
        self._proxy._give(verb, direction, numbers, None, self._after, text, self._share)


class LaterFaults(_ProxyFaults):
    """What is to go wrong later: see `FaultProxy.after`."""

    def __init__(self, proxy: FaultProxy, seconds: float) -> None:
        self._proxy, self._seconds = proxy, seconds

    def some(self, share: float) -> SomeFaults:
        """Likewise, with a share of the connections: see `FaultProxy.some`."""
        return SomeFaults(self._proxy, share, self._seconds)

    def _order(self, verb: str, direction: str, *numbers: float, text: str = "") -> None:
        self._proxy._give(verb, direction, numbers, None, self._seconds, text)


class FaultConnection(_Faults):
    """One connection through a proxy, for faults of its own."""

    def __init__(self, proxy: FaultProxy, number: int, client: tuple[str, int]) -> None:
        self._proxy = proxy
        self.number = number
        """Its number in the proxy's record, from 1."""
        self.client_address = client
        """(host, port) of the client, as the proxy sees it."""

    def _order(self, verb: str, direction: str, *numbers: float, text: str = "") -> None:
        self._proxy._give(verb, direction, numbers, self.number, None, text)

    @property
    def is_open(self) -> bool:
        """At least one side is still connected to the proxy."""
        return self._look() is not None

    @property
    def to_server(self) -> FlowStats:
        """What was counted of this direction; zeros once the connection is over."""
        return self._stats(4)

    @property
    def to_client(self) -> FlowStats:
        """Likewise."""
        return self._stats(5)

    def _look(self) -> tuple[Any, ...] | None:
        return next((each for each in self._proxy._native.connections() if each[0] == self.number), None)

    def _stats(self, index: int) -> FlowStats:
        glimpse = self._look()
        return FlowStats(0, 0, 0, 0, 0) if glimpse is None else FlowStats(*glimpse[index])

    def __repr__(self) -> str:
        glimpse = self._look()
        client = "{}:{}".format(*self.client_address)
        if glimpse is None:
            return f"<FaultConnection #{self.number} of {client}, closed>"
        _, _, is_connected, is_forgotten, to_server, to_client = glimpse
        state = "forgotten" if is_forgotten else "open" if is_connected else "not connected to the server"
        passed = f"{to_server[1]} bytes to the server, {to_client[1]} to the client"
        return f"<FaultConnection #{self.number} of {client}, {state}, {passed}>"


def address_of(upstream: Any) -> Any:
    """Of what listens: an address, or something that has one."""
    for name in ("address", "server_address"):  # LongServer, socketserver
        if (address := getattr(upstream, name, None)) is not None:
            return address
    return upstream.getsockname() if hasattr(upstream, "getsockname") else upstream


class FaultProxy(_ProxyFaults):
    """Listens on loopback, forwards to a server, and breaks what passes, on purpose.

    It runs on longconn's native thread: no Python runs for a byte, and none is needed for a fault that is planned, so a
    client may hold the GIL or wait in the same thread. Anybody's client and server can be at its ends.

    Args:
        upstream: The server: ``(host, port)``, ``"host:port"``, or an object that listens (a LongServer, a socket, a
            server of `socketserver`). It is connected to when a client comes.
        host: An IP address to listen at.
        port: 0 takes a free one, which `address` tells.
        buffer_bytes: What each direction of a connection holds at most. The sender keeps the rest: its window closes.
        seed: For everything that chance decides (jitter, sizes, what is corrupted).
        capture_bytes: What is kept of what each side says, from the beginning of each connection on: see `captured`.

    Raises:
        OSError: The address can't be had; ``errno`` is kept.
    """

    def __init__(
        self,
        upstream: Any,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        buffer_bytes: int = 256 * 1024,
        seed: int = 0,
        capture_bytes: int = 0,
    ) -> None:
        keeps = _whole(capture_bytes, "capture_bytes", 0, 1 << 30)
        room = _whole(buffer_bytes, "buffer_bytes", 1, 1 << 30)
        _whole(port, "port", 0, 65535)
        self._upstream = _places(address_of(upstream))
        dice = _whole(seed, "seed", 0, (1 << 64) - 1)
        self._native = _longconn.Proxy((host, port), self._upstream, room, dice, keeps)
        self._closed = False
        _open.add(self)

    def _order(self, verb: str, direction: str, *numbers: float, text: str = "") -> None:
        self._give(verb, direction, numbers, None, None, text)

    def _give(
        self,
        verb: str,
        direction: str,
        numbers: tuple[float, ...],
        connection: int | None,
        after: float | None,
        text: str,
        share: float | None = None,
    ) -> int | None:
        return self._native.order((verb, direction, list(numbers)), connection, share, after, text)

    def some(self, share: float) -> SomeFaults:
        """What is called on the result befalls each connection with this probability: ``proxy.some(0.3).latency(2)``.

        Those that are there, and those that come, until `restore()` or the same fault for all. Chance decides of each
        fault anew (*seed*); what strikes once, like `reset`, strikes those that are there.
        """
        return SomeFaults(self, share)

    # ---- who is here

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) for clients."""
        return self._native.address

    @property
    def upstream(self) -> list[tuple[str, int]]:
        """Where new connections lead; settable at any time, to what the constructor takes."""
        return self._upstream

    @upstream.setter
    def upstream(self, upstream: Any) -> None:
        places = _places(address_of(upstream))
        self._native.set_upstream(places)
        self._upstream = places

    @property
    def connections(self) -> list[FaultConnection]:
        """Those that are there, for faults of their own; the oldest first."""
        return [FaultConnection(self, number, client) for number, client, *_ in self._native.connections()]

    @property
    def accepted(self) -> int:
        """How many connections there were."""
        return self._native.accepted()

    # ---- when, and what happened

    def after(self, seconds: float | timedelta) -> LaterFaults:
        """What is called on the result happens in *seconds*: ``proxy.after(2.0).pull_cable()``.

        By the native thread, whatever Python does meanwhile; to the connections that are there then.
        """
        return LaterFaults(self, _seconds(seconds, "seconds"))

    def cancel(self) -> None:
        """Nothing that was planned by `after` happens."""
        self._native.cancel(None)

    @property
    def record(self) -> list[ProxyEvent]:
        """What happened, in order: the newest 10,000 events."""
        return [ProxyEvent(*entry) for entry in self._native.record()[0]]

    def captured(self, connection: int, direction: Literal["to_server", "to_client"]) -> bytes:
        """What was said in this direction of a connection (by its number), over or not: the first ``capture_bytes``."""
        return self._native.captured(connection, direction)

    def report(self) -> str:
        """The record for people, and what is there now."""
        entries, dropped = self._native.record()
        host, port = self.address
        lines = [f"fault proxy {host}:{port} -> {', '.join(f'{host}:{port}' for host, port in self._upstream)}"]
        if dropped:
            lines.append(f"  ({dropped} older events are gone)")
        lines += [f"  {ProxyEvent(*entry)}" for entry in entries]
        lines += [f"  {self._native.now():9.3f} s   now  {each!r}" for each in self.connections]
        return "\n".join(lines)

    def wait_for(self, what: str, *, count: int = 1, timeout: float | timedelta = 10.0) -> list[ProxyEvent]:
        """Wait until the record has *count* events of this kind (`ProxyEvent.what`); the events.

        Raises:
            TimeoutError: Not within *timeout* seconds; its text tells the record.
        """
        deadline = time.monotonic() + _seconds(timeout, "timeout")
        while len(found := [event for event in self.record if event.what == what]) < count:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{len(found)} of {count} times {what!r} within {timeout} s\n{self.report()}")
            time.sleep(0.005)
        return found

    # ---- life

    @property
    def is_closed(self) -> bool:
        """`close` was called."""
        return self not in _open

    def close(self) -> None:
        """Reset what is there, and stop listening. Closing twice is fine; the record stays."""
        self._native.close()
        self._closed = True
        _open.discard(self)

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            try:
                import warnings

                self._native.accepted()
            except ImportError:
                return  # so late in the interpreter's exit nobody is warned any more
            except ForkedError:
                return  # it is another process's to close
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)
            self._native.close()

    def __repr__(self) -> str:
        host, port = self.address
        if self._closed:
            return f"<FaultProxy {host}:{port}, closed>"
        try:
            there = len(self._native.connections())
        except ForkedError:
            return f"<FaultProxy {host}:{port}, of the process that forked this one>"
        return f"<FaultProxy {host}:{port}, {there} connections>"

    def _repr_html_(self) -> str:
        from .. import pictures

        return pictures.proxy(self)


def open_proxies() -> list[FaultProxy]:
    """Those that aren't closed."""
    return list(_open)
