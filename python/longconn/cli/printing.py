"""How the commands write things, each in one way."""

from __future__ import annotations

from ..errors import LongConnError

__all__ = ["duration", "milliseconds", "said"]


def said(error: BaseException) -> str:
    """An error's own words; of longconn's, which tell all in words, without the number in front."""
    words = getattr(error, "strerror", None) if isinstance(error, LongConnError) else None
    return words or str(error)


def milliseconds(seconds: float) -> str:
    """A round trip."""
    return f"{seconds * 1000:.2f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def duration(seconds: float | None) -> str:
    """From milliseconds to hours, in the unit that people would say; None is never."""
    if seconds is None:
        return "never"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
