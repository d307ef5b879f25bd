"""Heartbeat: how often both sides tell that they live, and when silence is the end; an immutable value."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from .keepalive import in_seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from .remembering import Memory

__all__ = ["Adaptive", "Heartbeat"]

_LEAST, _MOST = 0.001, 86400.0
_LEAST_DEFAULT_LIMIT = 1.1


def check_duration(value: object, name: str, least: float = _LEAST) -> float:
    seconds = in_seconds(value, name)
    if not least <= seconds <= _MOST:  # nor NaN
        raise ValueError(f"{name}={seconds:g}: {least:g} to {_MOST:g} seconds")
    return seconds


class Adaptive:
    """An interval that grows as far as the path bears it: ``Heartbeat(interval=Adaptive(min=30, max=1800))``.

    For clients on batteries or metered links: fewer beats, and connections that stay open all the same. The client
    begins each connection with `min`, and tries longer intervals step by step while nothing else is sent. Where a NAT
    or firewall turns out to forget so quiet a connection, twice, it goes back by a margin and stays there for a week
    before it tries again. Each overshoot costs two connections, which come back as any other; sessions lose nothing.

    How soon a death is noticed: while something is in flight, nearly as with ``Heartbeat(interval=min)``. While nothing
    is, after the interval that is in force and one and a half of `min`: nobody can hear that a quiet peer is gone but
    by asking.

    In a `LongServer`'s `Heartbeat` it lets such clients go up to `max`, and is `min` for all others. A server that
    wishes to hear more often is heeded, and so is an explicit `limit` of either side: the interval never exceeds half
    of it. The client needs to come back (``reconnect``) to learn from what it loses.

    After the SmartHeartbeat of Tencent's mars.

    Args:
        min: Seconds that every path bears, at least 0.001. int, float or timedelta.
        max: The longest interval in seconds, more than `min`, at most 86400.
        step: What an interval that has been borne is multiplied by for the next to be tried, 1.01 to 4. Smaller ones
            come closer to what the path bears, and take longer.
        remember: Whether what is learnt is kept in a file: False, the default; True:
            ``$XDG_CACHE_HOME/longconn/intervals.json``; a path; or a function that gives one, called at each `connect`.
            What is kept, for each peer as it was dialled and each network of one's own (the first 24 bits of the
            address, or 64 of IPv6): the interval, since when, and how often it failed.

    Raises:
        ValueError: A value is out of range.
        TypeError: Not a number, or nothing that names a file.
    """

    __slots__ = ("max", "min", "remember", "step")
    __match_args__ = ("min", "max", "step", "remember")

    min: float
    max: float
    step: float
    remember: bool | str | os.PathLike[str] | Callable[[], str | os.PathLike[str]]

    def __init__(
        self,
        min: float | timedelta,
        max: float | timedelta,
        step: float = 1.25,
        remember: bool | str | os.PathLike[str] | Callable[[], str | os.PathLike[str]] = False,
    ) -> None:
        set_ = super().__setattr__
        set_("min", check_duration(min, "min"))
        set_("max", check_duration(max, "max"))
        if self.min >= self.max:
            raise ValueError(f"min={self.min:g} is not below max={self.max:g}: nothing could be learnt")
        if isinstance(step, bool) or not isinstance(step, int | float):
            raise TypeError(f"step: a number, not {type(step).__name__}")
        if not 1.01 <= step <= 4:  # nor NaN
            raise ValueError(f"step={step:g}: 1.01 to 4")
        set_("step", float(step))
        if not (isinstance(remember, bool | str | os.PathLike) or callable(remember)):
            raise TypeError(f"remember: a bool, a path or a function that gives one, not {type(remember).__name__}")
        set_("remember", remember)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Adaptive doesn't change: make another, with {name}=...")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("an Adaptive doesn't change")

    def _values(self) -> tuple[Any, ...]:
        return self.min, self.max, self.step, self.remember

    def __reduce__(self) -> tuple[object, ...]:
        return Adaptive, self._values()

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Adaptive) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def memory(self, places: list[tuple[str, int]]) -> Memory | None:
        """Where what is learnt of the path to a peer is kept."""
        from .remembering import Memory, default_path

        if self.remember is False:
            return None
        path = default_path() if self.remember is True else self.remember
        path = path() if callable(path) else path
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"remember: its function gave no path, but {type(path).__name__}")
        return Memory(os.fspath(path), ",".join(f"{host}:{port}" for host, port in places))

    def __repr__(self) -> str:
        parts = [f"min={self.min:g}, max={self.max:g}"]
        if self.step != 1.25:
            parts.append(f"step={self.step:g}")
        if self.remember is not False:
            parts.append(f"remember={self.remember!r}")
        return f"Adaptive({', '.join(parts)})"


class Heartbeat:
    """How often each side of a `LongConnection` tells the other that it lives, and how soon silence is the end.

    Both sides beat, each as often as the more impatient of the two wishes, by a native thread that never waits for
    Python: a busy interpreter is told from a dead peer.

    Args:
        interval: Seconds between beats that this side wishes, 0.001 to 86400. int, float or timedelta; or an
            `Adaptive`.
        limit: Silence in seconds after which the peer counts as lost; at least `interval`. None, the default: 2.5
            of the peer's intervals, at least 1.1 s, and two round trips. A limit under two of the peer's intervals is
            refused in the handshake. With an `Adaptive` interval: None, or at least twice its `max`.
        detector: ``"limit"``, or ``"phi"``: phi accrual (Hayashibara et al., 2004), which learns how regular the beats
            are and gives the peer up when its silence has become improbable.
        floor: The fastest that this side beats, whatever the peer wishes.
        threshold: phi: lost when the probability that the peer still lives is below ``10 ** -threshold``.
        window: phi: how many intervals are remembered, 2 to 100,000.
        min_std: phi: the deviation in seconds is never taken to be less.
        acceptable_pause: phi: seconds that a peer may pause beyond its rhythm.
        application_limit: Seconds without progress of the peer's program, though messages wait for it, after which it
            counts as hung. None: never, only reported.
        interpreter_limit: Seconds for which the peer's interpreter could not run after which it counts as hung.
            None: never, only reported.

    Raises:
        ValueError: A value is out of range, or contradicts another.
        TypeError: Not a number.
    """

    __slots__ = (
        "acceptable_pause",
        "application_limit",
        "detector",
        "floor",
        "interpreter_limit",
        "interval",
        "limit",
        "min_std",
        "threshold",
        "window",
    )
    __match_args__ = (
        "interval",
        "limit",
        "detector",
        "floor",
        "threshold",
        "window",
        "min_std",
        "acceptable_pause",
        "application_limit",
        "interpreter_limit",
    )

    interval: float | Adaptive
    limit: float | None
    detector: Literal["limit", "phi"]
    floor: float
    threshold: float
    window: int
    min_std: float
    acceptable_pause: float
    application_limit: float | None
    interpreter_limit: float | None

    def __init__(
        self,
        interval: float | timedelta | Adaptive = 5.0,
        limit: float | timedelta | None = None,
        detector: Literal["limit", "phi"] = "limit",
        floor: float | timedelta = 0.05,
        threshold: float = 8.0,
        window: int = 1000,
        min_std: float | timedelta = 0.1,
        acceptable_pause: float | timedelta = 3.0,
        application_limit: float | timedelta | None = None,
        interpreter_limit: float | timedelta | None = None,
    ) -> None:
        set_ = super().__setattr__
        set_("interval", interval if isinstance(interval, Adaptive) else check_duration(interval, "interval"))
        set_("limit", None if limit is None else check_duration(limit, "limit"))
        if self.limit is not None and self.limit < self.least_interval:
            raise ValueError(
                f"limit={self.limit:g} is below interval={self.least_interval:g}: no beat could come in time"
            )
        if detector not in ("limit", "phi"):
            raise ValueError(f"detector={detector!r}: 'limit' or 'phi'")
        set_("detector", detector)
        set_("floor", check_duration(floor, "floor"))
        if isinstance(self.interval, Adaptive):
            if detector == "phi":
                raise ValueError("detector='phi' learns a rhythm, and an Adaptive interval has none; take 'limit'")
            if self.limit is not None and self.limit < 2 * self.interval.max:
                raise ValueError(
                    f"limit={self.limit:g} is under twice the interval's max={self.interval.max:g}: leave it out, "
                    "and it follows the interval, or take a smaller max"
                )
            if self.floor > self.interval.min:
                raise ValueError(f"floor={self.floor:g} is above the interval's min={self.interval.min:g}")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise TypeError(f"threshold: a number, not {type(threshold).__name__}")
        if not 0 < threshold <= 100:
            raise ValueError(f"threshold={threshold:g}: above 0, at most 100")
        set_("threshold", float(threshold))
        if isinstance(window, bool) or not isinstance(window, int):
            raise TypeError(f"window: a whole number, not {type(window).__name__}")
        if not 2 <= window <= 100_000:
            raise ValueError(f"window={window}: 2 to 100000 intervals")
        set_("window", window)
        set_("min_std", check_duration(min_std, "min_std"))
        set_("acceptable_pause", check_duration(acceptable_pause, "acceptable_pause", 0.0))
        for name, value in (("application_limit", application_limit), ("interpreter_limit", interpreter_limit)):
            set_(name, None if value is None else check_duration(value, name))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Heartbeat doesn't change: make another, with replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Heartbeat doesn't change")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def __reduce__(self) -> tuple[object, ...]:
        return Heartbeat, self._values()

    def replace(self, **changes: Any) -> Heartbeat:
        """The same settings but for these."""
        return Heartbeat(**{**dict(zip(self.__match_args__, self._values(), strict=True)), **changes})

    __replace__ = replace  # for copy.replace of Python 3.13

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Heartbeat) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    # ---- presets

    @classmethod
    def quick(cls) -> Heartbeat:
        """For a local network: beats each 0.5 s, told after 1.25 s."""
        return cls(interval=0.5, limit=1.25)

    @classmethod
    def patient(cls) -> Heartbeat:
        """For paths that fail for a while and come back: beats each 15 s, told after a minute."""
        return cls(interval=15.0, limit=60.0)

    # ---- what comes of it

    @property
    def least_interval(self) -> float:
        """The interval in seconds, or the least of an `Adaptive` one."""
        return self.interval.min if isinstance(self.interval, Adaptive) else self.interval

    def detection_time(self) -> float | None:
        """Seconds of silence until a peer with the same settings is lost, round trips not counted; None for phi.

        With an `Adaptive` interval: at its longest.
        """
        if self.detector == "phi":
            return None
        interval = max(self.floor, self.least_interval)
        grown = self.interval.max - self.interval.min if isinstance(self.interval, Adaptive) else 0.0
        return max(2.5 * interval, _LEAST_DEFAULT_LIMIT) + grown if self.limit is None else self.limit

    def warnings(self) -> tuple[str, ...]:
        """What these settings don't do, though they seem to; one sentence each."""
        found = []
        limit, interval = self.detection_time(), self.least_interval
        if interval < self.floor:
            found.append(f"interval={interval:g} is below floor={self.floor:g}: this side beats each {self.floor:g} s")
        if limit is not None and self.limit is not None:
            if limit < 2 * max(self.floor, interval):
                found.append(
                    f"limit={limit:g} is under two intervals: a peer with the same settings is refused; take "
                    f"{2.5 * max(self.floor, interval):g} or more"
                )
            elif limit < 1.0:
                found.append(
                    f"limit={limit:g}: one lost packet delays a beat by up to 0.8 s, so a living peer may count as lost"
                )
        if self.detector == "phi" and self.limit is not None:
            found.append("detector='phi' judges by probability: limit counts only for what we send ourselves")
        if interval > 60:
            found.append(
                f"interval={interval:g}: many middleboxes forget a connection that is quiet for a minute or some"
            )
        for name in ("application_limit", "interpreter_limit"):
            value = getattr(self, name)
            longest = self.interval.max if isinstance(self.interval, Adaptive) else self.interval
            if value is not None and value < 2 * longest:
                found.append(f"{name}={value:g} is seen only with a beat, each {longest:g} s")
        return tuple(found)

    def __repr__(self) -> str:
        plain = Heartbeat._DEFAULTS
        parts = [
            f"interval={self.interval!r}" if isinstance(self.interval, Adaptive) else f"interval={self.interval:g}"
        ]
        parts += [
            f"{name}={value!r}"
            for name, value, default in zip(self.__match_args__[1:], self._values()[1:], plain[1:], strict=True)
            if value != default
        ]
        return f"Heartbeat({', '.join(parts)})"

    _DEFAULTS: tuple[Any, ...]


Adaptive.__module__ = Heartbeat.__module__ = "longconn"
Heartbeat._DEFAULTS = Heartbeat()._values()
