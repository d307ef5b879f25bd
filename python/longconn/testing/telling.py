"""Assertions about who is told of a lost peer, when and why, whose failures tell a story."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from ..keepalive import in_seconds
from ..links import monotonic
from .proxy import FaultProxy, open_proxies

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Told", "assert_not_told_within", "assert_told_within"]

#: So long an exception is followed to what caused it.
_LONGEST_CHAIN = 20


class Told:
    """What the block of an assertion was told."""

    error: Any = None
    """The exception."""
    cause: str | None = None
    """Its `Cause`, or that of an exception that it was raised because of: libraries wrap."""
    seconds: float = 0.0
    """From the block's beginning until it was raised, with what a `FakeClock` has skipped."""


class _Telling:
    """A block that waits for something to be told, and is let go if it isn't."""

    def __init__(self, seconds: float, patience: float, proxy: FaultProxy | None) -> None:
        self._limit, self._patience = seconds, patience
        self._proxies = open_proxies() if proxy is None else [proxy]
        self._plans: list[tuple[FaultProxy, int | None]] = []
        self._told = Told()

    def __enter__(self) -> Told:
        text = f"the block has waited for {self._patience:g} s, and is let go"
        for proxy in self._proxies:
            # A client that tries again is to come to an end, too: it would hang at a cable that is still out.
            for verb, *numbers in (("restore",), ("refuse", 1.0), ("reset",)):
                plan = proxy._give(verb, "both", tuple(numbers), None, self._patience, f"{verb}(): {text}")
                self._plans.append((proxy, plan))
        self._began = monotonic()
        return self._told

    def _end(self, error: BaseException | None) -> Told:
        told = self._told
        told.error, told.seconds, told.cause = error, monotonic() - self._began, _cause_of(error)
        for proxy, plan in self._plans:
            proxy._native.cancel(plan)
        return told

    def _fail(self, expected: str, came: str) -> NoReturn:
        __tracebackhide__ = True  # pytest shows the test, not this
        story = [expected, came, *(proxy.report() for proxy in self._proxies)]
        raise AssertionError("\n".join(story)) from self._told.error


class assert_told_within(_Telling):
    """Assert that the block ends in an exception, soon, and for the right reason.

        proxy.pull_cable()
        with assert_told_within(2.6, cause="unreachable"):
            connection.recv()

    Args:
        seconds: At most, from the block's beginning; the environment's ``LONGCONN_TEST_SLACK``, a factor for slow
            machines, is applied to it.
        cause: The `Cause` that the exception has, or one that it was raised because of; or several; None: anything.
        error: The exception's class, or several.
        proxy: The proxy between; by default all that are open. If the block still waits after twice the time and a
            second more, the proxy restores, refuses and resets, so that a client that would hang ends; the test fails.

    As a context manager it gives a `Told`. On failure it raises an AssertionError with what was expected, what came and
    when, and the proxies' records.
    """

    def __init__(
        self,
        seconds: float | timedelta,
        *,
        cause: str | tuple[str, ...] | None = None,
        error: type[BaseException] | tuple[type[BaseException], ...] = OSError,
        proxy: FaultProxy | None = None,
    ) -> None:
        limit = in_seconds(seconds, "seconds") * float(os.environ.get("LONGCONN_TEST_SLACK", "1"))
        super().__init__(limit, 2 * limit + 1, proxy)
        self._causes = (cause,) if isinstance(cause, str) else cause
        self._errors = error if isinstance(error, tuple) else (error,)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool:
        __tracebackhide__ = True
        told = self._end(error)
        if error is not None and not isinstance(error, self._errors):
            return False
        because = f" with cause {' or '.join(self._causes)}" if self._causes else ""
        names = " or ".join(each.__name__ for each in self._errors)
        expected = f"expected within {self._limit:g} s: {names}{because}"
        if error is None:
            self._fail(expected, f"the block ended after {told.seconds:.3f} s, and nobody was told anything")
        if told.seconds > self._limit:
            self._fail(expected, f"it took {told.seconds:.3f} s: {_described(told)}")
        if self._causes is not None and told.cause not in self._causes:
            self._fail(expected, f"after {told.seconds:.3f} s it was {_described(told)}")
        return True


class assert_not_told_within(_Telling):
    """Assert that the block waits for at least so long, and show with it that a client hangs.

    When the time is over the proxy restores, refuses and resets, so that the block ends, in an exception or not; who
    comes afterwards is admitted.

    Args:
        seconds: From the block's beginning.
        proxy: The proxy between; by default all that are open.
    """

    def __init__(self, seconds: float | timedelta, *, proxy: FaultProxy | None = None) -> None:
        limit = in_seconds(seconds, "seconds")
        super().__init__(limit, limit, proxy)
        if not self._proxies:
            raise ValueError("assert_not_told_within: no fault proxy is open, and nothing else would end the block")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool:
        __tracebackhide__ = True
        told = self._end(error)
        if error is not None and not isinstance(error, Exception):
            return False
        if told.seconds < self._limit:
            ended = "ended well" if error is None else f"was told {_described(told)}"
            self._fail(f"expected to wait for {self._limit:g} s", f"the block {ended} after {told.seconds:.3f} s")
        for proxy in self._proxies:
            proxy.admit()
        return True


def _cause_of(error: BaseException | None) -> str | None:
    for _ in range(_LONGEST_CHAIN):
        if error is None:
            return None
        if isinstance(cause := getattr(error, "cause", None), str):
            return cause
        error = error.__cause__ or error.__context__
    return None


def _described(told: Told) -> str:
    because = "" if told.cause is None else f" (cause {told.cause})"
    return f"{type(told.error).__name__}: {told.error}{because}"
