"""Assertions about who is told of a lost peer, when and why, whose failures tell a story."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..keepalive import in_seconds
from .proxy import FaultProxy, open_proxies

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Told", "assert_told_within"]


class Told:
    """What the block of `assert_told_within` was told."""

    error: Any = None
    """The exception."""
    seconds: float = 0.0
    """From the block's beginning until it was raised."""


class assert_told_within:
    """Assert that the block ends in an exception, soon, and for the right reason.

        proxy.pull_cable()
        with assert_told_within(2.6, cause="unreachable"):
            connection.recv()

    Args:
        seconds: At most, from the block's beginning; the environment's ``LONGCONN_TEST_SLACK``, a factor for slow
            machines, is applied to it.
        cause: What the exception's ``cause`` has to be (a `Cause`, or its text), or one of several; None: anything.
        error: The exception's class, or several.
        proxy: The proxy between; by default all that are open. If the block still waits after twice the time and a
            second more, the proxy resets its connections, so that a client that would hang ends, and the test fails.

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
        self._limit = in_seconds(seconds, "seconds") * float(os.environ.get("LONGCONN_TEST_SLACK", "1"))
        self._causes = (cause,) if isinstance(cause, str) else cause
        self._errors = error if isinstance(error, tuple) else (error,)
        self._proxies = open_proxies() if proxy is None else [proxy]
        self._plans: list[tuple[FaultProxy, int | None]] = []
        self._told = Told()

    def __enter__(self) -> Told:
        patience = 2 * self._limit + 1
        for proxy in self._proxies:
            text = f"reset(): the test has waited {patience:g} s for somebody to be told"
            self._plans.append((proxy, proxy._give("reset", "both", (), None, patience, text)))
        self._began = time.monotonic()
        return self._told

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool:
        took = self._told.seconds = time.monotonic() - self._began
        for proxy, plan in self._plans:
            proxy._native.cancel(plan)
        if error is not None and not isinstance(error, self._errors):
            return False
        self._told.error = error
        if error is None:
            self._fail(f"the block ended after {took:.3f} s, and nobody was told anything", None)
        if took > self._limit:
            self._fail(f"it took {took:.3f} s: {_described(error)}", error)
        if self._causes is not None and getattr(error, "cause", None) not in self._causes:
            self._fail(f"after {took:.3f} s it was {_described(error)}", error)
        return True

    def _fail(self, came: str, error: BaseException | None) -> None:
        names = " or ".join(each.__name__ for each in self._errors)
        because = f" with cause {' or '.join(self._causes)}" if self._causes else ""
        story = [f"expected within {self._limit:g} s: {names}{because}", came]
        story += [proxy.report() for proxy in self._proxies]
        raise AssertionError("\n".join(story)) from error


def _described(error: BaseException | None) -> str:
    cause = getattr(error, "cause", None)
    because = "" if cause is None else f" (cause {cause})"
    return f"{type(error).__name__}: {error}{because}"
