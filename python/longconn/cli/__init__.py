"""The command line: `longconn`, also `python -m longconn`.

`run` and `explain` need nothing but Python; the rest needs the extra ``cli`` (typer and rich), and says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from . import bare

__all__ = ["main"]

SUMMARY = "Long-lived TCP connections that know when the other side is gone."
#: What the extra brings; `app.py` has each of them.
OTHERS = ("ping", "probe", "serve", "connect", "chaos", "watch", "doctor")
EXTRA = "pip install 'longconn[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in bare.COMMANDS:
        return bare.main(words, SUMMARY)
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        if words and words[0] in OTHERS:
            print(f"longconn {words[0]} needs the packages typer and rich: {EXTRA}", file=sys.stderr)
            return 2
        return bare.main(words, SUMMARY, f"{', '.join(OTHERS)} come with the extra 'cli': {EXTRA}")
    from .app import run

    if not words:
        # it was called wrongly: the help is no output of it
        with redirect_stdout(sys.stderr):
            run(["--help"])
        return 2
    return run(words)
