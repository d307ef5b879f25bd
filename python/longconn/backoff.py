"""Backoff: when a lost connection is tried again; an immutable value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .keepalive import in_seconds

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["Backoff"]

_MOST = 86400.0


@dataclass(frozen=True, slots=True, init=False)
class Backoff:
    """When a client of a `LongServer` tries to come back, and tries again.

    The first attempt after a loss goes at once, or, where the loss strikes all of a server's clients (its process
    ended, reset its connections, or said that it goes), at any moment within *first*. After the *n*-th attempt that
    somebody answered and that came to nothing the next goes at any moment within ``min(cap, first * factor ** n)``:
    full jitter, so that those who were cut at once are never in step. What a server asks for by its retry-after is
    waited for, up to 5 minutes, and spread. Attempts that nobody answers cost nobody anything: they go on until the
    path is back, a SYN or two a second; and while this machine has no network (no carrier, no route), a look twice a
    second. It starts anew only after a connection that was good: everything was sent again on it, and a beat went
    forth and back.

    Args:
        first: Seconds; above 0. int, float or timedelta.
        cap: The longest wait; at least *first*, at most 86400.
        factor: 1 to 10.

    Raises:
        ValueError: A value is out of range, or contradicts another.
        TypeError: Not a number.
    """

    first: float
    cap: float
    factor: float

    def __init__(self, first: float | timedelta = 0.1, cap: float | timedelta = 30.0, factor: float = 2.0) -> None:
        set_ = object.__setattr__
        set_(self, "first", in_seconds(first, "first"))
        set_(self, "cap", in_seconds(cap, "cap"))
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise TypeError(f"factor: a number, not {type(factor).__name__}")
        set_(self, "factor", float(factor))
        if not 0 < self.cap <= _MOST:  # nor NaN
            raise ValueError(f"cap={self.cap:g}: above 0, at most {_MOST:g} seconds")
        if not 0 < self.first <= self.cap:
            raise ValueError(f"first={self.first:g}: above 0 and at most cap={self.cap:g}")
        if not 1 <= self.factor <= 10:
            raise ValueError(f"factor={self.factor:g}: 1 to 10")


Backoff.__module__ = "longconn"
