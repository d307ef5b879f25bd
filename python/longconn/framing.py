"""Plain peers, which don't speak longconn's protocol: how their messages are told apart, and their own heartbeats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from . import _longconn
from .heartbeat import Heartbeat, check_duration
from .keepalive import Keepalive, default_keepalive

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

__all__ = ["LengthPrefixed", "Lines", "PlainHeartbeat"]


class _Value:
    """What doesn't change; its fields are the arguments that it was made of."""

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} doesn't change: make another, with {name}=...")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} doesn't change")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self._values()

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        fields = zip(self.__match_args__, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields)})"


class Lines(_Value):
    r"""Messages are lines; ``framing="lines"`` is ``Lines()``.

    Any line that ends with ``\n`` is received, with its end, as ``readline`` gives it; the last one of the stream may
    have none.

    Args:
        end: What is put behind a line that is sent without an end: ``b"\n"`` or ``b"\r\n"``.

    Raises:
        ValueError: It is neither.
    """

    __slots__ = ("end",)
    __match_args__ = ("end",)

    end: bytes

    def __init__(self, end: bytes = b"\n") -> None:
        if end not in (b"\n", b"\r\n"):
            raise ValueError(rf"end={end!r}: b'\n' or b'\r\n'")
        self._set(end=end)


class LengthPrefixed(_Value):
    """Before each message goes its length, as a number.

    Args:
        size: Bytes of the number, 1 to 8.
        byteorder: ``"big"``, as networks have it, or ``"little"``.
        includes_prefix: The number counts its own bytes, too.

    Raises:
        ValueError, TypeError: An argument is no good.
    """

    __slots__ = ("byteorder", "includes_prefix", "size")
    __match_args__ = ("size", "byteorder", "includes_prefix")

    size: int
    byteorder: Literal["big", "little"]
    includes_prefix: bool

    def __init__(
        self, size: int = 4, byteorder: Literal["big", "little"] = "big", includes_prefix: bool = False
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"size: a whole number, not {type(size).__name__}")
        if not 1 <= size <= 8:
            raise ValueError(f"size={size}: 1 to 8 bytes")
        if byteorder not in ("big", "little"):
            raise ValueError(f"byteorder={byteorder!r}: 'big' or 'little'")
        if not isinstance(includes_prefix, bool):
            raise TypeError(f"includes_prefix: True or False, not {type(includes_prefix).__name__}")
        self._set(size=size, byteorder=byteorder, includes_prefix=includes_prefix)


Framing: TypeAlias = Literal["raw", "lines"] | Lines | LengthPrefixed


def _messages(value: object, name: str) -> tuple[bytes, ...]:
    one_or_more = (value,) if isinstance(value, bytes | bytearray | memoryview) else value
    try:
        messages = tuple(bytes(memoryview(each)) for each in one_or_more)  # type: ignore[attr-defined]
    except TypeError:
        raise TypeError(f"{name}: bytes, or several of them, not {type(value).__name__}") from None
    if not all(messages):
        raise ValueError(f"{name}: an empty message tells nothing")
    return messages


class PlainHeartbeat(_Value):
    r"""The heartbeat that a plain peer's own protocol has: what to send, and what to expect of the peer.

    All are messages as the framing has them: without a length prefix, and with or without the end of their line.

    Args:
        interval: Seconds, 0.001 to 86400: how often ours is sent, whatever else is, and the peer's is to be heard. int,
            float or timedelta.
        send: What is sent; empty, the default: nothing.
        expect: The peer's heartbeats, its own or its answers to ours: one message or several. They aren't given to the
            program; and if there are any, a peer of which no byte is heard for `limit` counts as lost.
        swallow: More messages that aren't given to the program, and don't have to come.
        limit: Silence in seconds after which the peer counts as lost, at least `interval`; any byte ends a silence.
            None: 2.5 intervals, at least 1.1 s, if anything is expected, and else for ever. On a raw stream nothing can
            be swallowed, for nobody knows where it begins and ends, but a limit can be set.

    Raises:
        ValueError: A value is out of range, or nothing comes of all this.
        TypeError: Not a number, or not bytes.
    """

    __slots__ = ("expect", "interval", "limit", "send", "swallow")
    __match_args__ = ("interval", "send", "expect", "swallow", "limit")

    interval: float
    send: bytes
    expect: tuple[bytes, ...]
    swallow: tuple[bytes, ...]
    limit: float | None

    def __init__(
        self,
        interval: float | timedelta = 5.0,
        send: bytes = b"",
        expect: bytes | Iterable[bytes] = (),
        swallow: bytes | Iterable[bytes] = (),
        limit: float | timedelta | None = None,
    ) -> None:
        try:
            send = bytes(memoryview(send))
        except TypeError:
            raise TypeError(f"send: bytes, not {type(send).__name__}") from None
        self._set(
            interval=check_duration(interval, "interval"),
            send=send,
            expect=_messages(expect, "expect"),
            swallow=_messages(swallow, "swallow"),
            limit=None if limit is None else check_duration(limit, "limit"),
        )
        if self.limit is not None and self.limit < self.interval:
            raise ValueError(
                f"limit={self.limit:g} is below interval={self.interval:g}: no heartbeat could come in time"
            )
        if not (self.send or self.expect or self.swallow or self.limit):
            raise ValueError("nothing to send, to expect or to swallow, and no limit: say one of them, or no heartbeat")


def plain_settings(
    framing: object, heartbeat: object, keepalive: object, largest_message_bytes: int
) -> tuple[Any, ...] | None:
    """What the native side wants to know of plain peers; None if they aren't plain."""
    kind: tuple[object, ...]
    if framing is None:
        if isinstance(heartbeat, PlainHeartbeat):
            raise TypeError("heartbeat: a PlainHeartbeat is for plain peers; say framing= as well")
        return None
    if framing == "raw":
        kind = ("raw", False, 0, False, False)
    elif framing == "lines" or isinstance(framing, Lines):
        crlf = isinstance(framing, Lines) and framing.end == b"\r\n"
        kind = ("lines", crlf, 0, False, False)
    elif isinstance(framing, LengthPrefixed):
        kind = ("length", False, framing.size, framing.byteorder == "little", framing.includes_prefix)
    elif isinstance(framing, str):
        raise ValueError(f"framing={framing!r}: 'raw', 'lines', a Lines or a LengthPrefixed")
    else:
        raise TypeError(f"framing: 'raw', 'lines', a Lines or a LengthPrefixed, not {type(framing).__name__}")
    beating = None
    if isinstance(heartbeat, Heartbeat):
        raise TypeError(
            "heartbeat: a plain peer doesn't beat as longconn does; take a PlainHeartbeat(send=..., expect=...)"
        )
    if heartbeat is not None:
        if not isinstance(heartbeat, PlainHeartbeat):
            raise TypeError(f"heartbeat: a PlainHeartbeat or None, not {type(heartbeat).__name__}")
        swallow = [*heartbeat.expect, *heartbeat.swallow]
        if framing == "raw" and swallow:
            raise ValueError("framing='raw': where a message begins nobody knows, so none can be expected; set a limit")
        is_expected = bool(heartbeat.expect) or heartbeat.limit is not None
        beating = (heartbeat.interval, heartbeat.send, swallow, is_expected, heartbeat.limit)
    if keepalive is None:
        keepalive = default_keepalive() or False
    if keepalive is False:
        return kind, largest_message_bytes, beating, None, None
    if not isinstance(keepalive, Keepalive):
        raise TypeError(
            f"keepalive: a Keepalive, None for the default or False for none, not {type(keepalive).__name__}"
        )
    probes = (keepalive.probes, keepalive.idle, keepalive.interval, keepalive.count, keepalive.user_timeout)
    return kind, largest_message_bytes, beating, probes, keepalive.guard_limit if _longconn.HAS_GUARD else None


for _class in (LengthPrefixed, Lines, PlainHeartbeat):
    _class.__module__ = "longconn"
