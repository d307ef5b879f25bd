"""Heartbeat: how often both sides tell that they live, and when silence is the end; an immutable value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .keepalive import in_seconds

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["Heartbeat"]

_LEAST, _MOST = 0.001, 86400.0
_LEAST_DEFAULT_LIMIT = 1.1


def check_duration(value: object, name: str, least: float = _LEAST) -> float:
    seconds = in_seconds(value, name)
    if not least <= seconds <= _MOST:  # nor NaN
        raise ValueError(f"{name}={seconds:g}: {least:g} to {_MOST:g} seconds")
    return seconds


class Heartbeat:
    """How often each side of a `LongConnection` tells the other that it lives, and how soon silence is the end.

    Both sides beat, each as often as the more impatient of the two wishes, by a native thread that never waits for
    Python: a busy interpreter is told from a dead peer.

    Args:
        interval: Seconds between beats that this side wishes, 0.001 to 86400. int, float or timedelta.
        limit: Silence in seconds after which the peer counts as lost; at least `interval`. None, the default: 2.5
            of the peer's intervals, at least 1.1 s, and two round trips. A limit under two of the peer's intervals is
            refused in the handshake.
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

    interval: float
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
        interval: float | timedelta = 5.0,
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
        set_("interval", check_duration(interval, "interval"))
        set_("limit", None if limit is None else check_duration(limit, "limit"))
        if self.limit is not None and self.limit < self.interval:
            raise ValueError(f"limit={self.limit:g} is below interval={self.interval:g}: no beat could come in time")
        if detector not in ("limit", "phi"):
            raise ValueError(f"detector={detector!r}: 'limit' or 'phi'")
        set_("detector", detector)
        set_("floor", check_duration(floor, "floor"))
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

    def detection_time(self) -> float | None:
        """Seconds of silence until a peer with the same settings is lost, round trips not counted; None for phi."""
        if self.detector == "phi":
            return None
        interval = max(self.floor, self.interval)
        return max(2.5 * interval, _LEAST_DEFAULT_LIMIT) if self.limit is None else self.limit

    def warnings(self) -> tuple[str, ...]:
        """What these settings don't do, though they seem to; one sentence each."""
        found = []
        limit = self.detection_time()
        if self.interval < self.floor:
            found.append(
                f"interval={self.interval:g} is below floor={self.floor:g}: this side beats each {self.floor:g} s"
            )
        if limit is not None and self.limit is not None:
            if limit < 2 * max(self.floor, self.interval):
                found.append(
                    f"limit={limit:g} is under two intervals: a peer with the same settings is refused; take "
                    f"{2.5 * max(self.floor, self.interval):g} or more"
                )
            elif limit < 1.0:
                found.append(
                    f"limit={limit:g}: one lost packet delays a beat by up to 0.8 s, so a living peer may count as lost"
                )
        if self.detector == "phi" and self.limit is not None:
            found.append("detector='phi' judges by probability: limit counts only for what we send ourselves")
        if self.interval > 60:
            found.append(
                f"interval={self.interval:g}: many middleboxes forget a connection that is quiet for a minute or some"
            )
        for name in ("application_limit", "interpreter_limit"):
            value = getattr(self, name)
            if value is not None and value < 2 * self.interval:
                found.append(f"{name}={value:g} is seen only with a beat, each {self.interval:g} s")
        return tuple(found)

    def __repr__(self) -> str:
        plain = Heartbeat._DEFAULTS
        parts = [f"interval={self.interval:g}"]
        parts += [
            f"{name}={value!r}"
            for name, value, default in zip(self.__match_args__[1:], self._values()[1:], plain[1:], strict=True)
            if value != default
        ]
        return f"Heartbeat({', '.join(parts)})"

    _DEFAULTS: tuple[Any, ...]


Heartbeat.__module__ = "longconn"
Heartbeat._DEFAULTS = Heartbeat()._values()
