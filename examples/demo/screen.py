"""Owns what is seen: lines, a live picture below them where there is a terminal, and the lines as an SVG."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from rich.console import Console
    from rich.live import Live
except ImportError:  # then there is no live picture; the plain lines say the same
    Console = None  # type: ignore[assignment, misc]

__all__ = ["WIDTH", "Screen", "keep_svg"]

WIDTH = 100  # of the plain lines, as README shows them


class Screen:
    """Plain lines, and a live picture below them where stdout is a terminal and rich is installed.

    Args:
        is_plain: No live picture, no colours.
        is_recorded: The lines are kept for `save_svg`, which needs rich.
    """

    def __init__(self, *, is_plain: bool, is_recorded: bool = False) -> None:
        self._console = None if is_plain or Console is None else Console(highlight=False)
        self._width = WIDTH if self._console is None else min(WIDTH, self._console.width)
        self._live: Live | None = None
        self._record = None
        if is_recorded:
            if Console is None:
                raise RuntimeError("an SVG needs rich: pip install rich")
            # Its own console: what the live picture draws over itself is no part of the record.
            self._record = Console(
                file=io.StringIO(), record=True, width=WIDTH + 2, force_terminal=True, highlight=False
            )

    def say(self, text: str, style: str = "") -> None:
        if self._record is not None:
            self._record.print(text, style=style or None, markup=False)
        if self._console is None:
            print(text, flush=True)
        else:  # above the live picture, if there is one
            self._console.print(text, style=style or None, markup=False, soft_wrap=True)

    def say_at(self, after: float, who: str, text: str, style: str) -> None:
        """Something that came so many seconds after something broke."""
        head = f"{after:6.1f} s  {who}  "
        lines = textwrap.wrap(text, max(self._width - len(head), 20), break_long_words=False, break_on_hyphens=False)
        self.say(head + ("\n" + " " * len(head)).join(lines), style)

    def show(self, draw: Callable[[], Any]) -> None:
        """Draws the live picture anew, as `draw` makes it of rich's parts; where nobody sees it, it isn't called."""
        if self._console is None:
            return
        if self._live is None:  # drawn by us and not by rich's thread: we fork, and move between namespaces
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(draw(), refresh=True)

    def close(self) -> None:
        """Ends the live picture; the lines stay."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def save_svg(self, path: Path, title: str) -> None:
        assert self._record is not None
        keep_svg(self._record, path, title)


def keep_svg(console: Console, path: Path, title: str) -> None:
    """What the console has recorded, as a picture of a terminal."""
    svg = console.export_svg(title=title)
    # rich has the picture load its font from the net, which no page should do for a picture.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    path.write_text(svg + "\n", encoding="utf-8")
