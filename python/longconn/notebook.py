"""Timelines of connections, servers and fault proxies, in a notebook and as figures; by the extra ``notebook``.

    watch(conn, proxy)             # a picture that goes on while other cells run
    timeline(conn, proxy).plot()   # a figure of matplotlib's

Beats sent and heard, silence against the limit, and states are read every 0.1 s; what comes and goes in between isn't
seen, and while Python can't run, nothing is. A proxy's faults are drawn when they happened, by its own record.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from . import pictures, sampling
from .links import LinkStats, ServerStats, monotonic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ._longconn import LongConnection
    from .links import LongServer

__all__ = ["Timeline", "Watch", "timeline", "watch"]

EXTRA = "pip install 'longconn[notebook]'"
#: Seconds between two pictures of `watch`; arbitrary: smooth enough to follow, and a few per cent of a core.
REDRAW = 0.3


def timeline(*subjects: Any) -> Timeline:
    """What happened to these on one time axis, from when the first of them was first shown or asked for here.

    Args:
        subjects: LongConnections, LongServers and FaultProxies, asyncio's too. They are not kept alive.

    Raises:
        TypeError: Something else, or nothing.
    """
    return Timeline(*subjects)


def watch(*subjects: LongConnection | LongServer | Any, window: float = 60.0) -> Watch:
    """Show a timeline below this cell that goes on while other cells run, until all have ended, or `Watch.stop`.

    Args:
        subjects: As of `timeline`.
        window: Seconds that are shown at once; the newest.

    Raises:
        ImportError: IPython isn't installed.
        RuntimeError: This isn't a notebook.
        TypeError, ValueError: An argument is no good.
    """
    return Watch(*subjects, window=window)


class Timeline:
    """The course of time of connections, servers and fault proxies; made by `timeline`."""

    def __init__(self, *subjects: Any) -> None:
        if not subjects:
            raise TypeError("nothing to show: timeline(conn), or several connections, servers and fault proxies")
        self._histories = [sampling.history(subject, is_watched=True) for subject in subjects]

    @property
    def is_over(self) -> bool:
        """All of them have ended: nothing will be added."""
        return all(history.is_over for history in self._histories)

    def _range(self) -> tuple[float, float]:
        """From the first look to the last, or to now."""
        begins = [history.began for history in self._histories if history.began is not None]
        ends = [moments[-1].at for history in self._histories if (moments := history.moments)]
        begin = min(begins, default=monotonic())
        # A little more than the last look: the end is to be seen.
        return begin, max(ends, default=begin) + 0.5 if self.is_over else monotonic()

    def _repr_html_(self) -> str:
        begin, end = self._range()
        return pictures.timeline(self._histories, begin, end, begin)

    def plot(self) -> Figure:
        """Draw all of it as a figure, which a notebook shows, and ``savefig`` saves.

        Raises:
            ImportError: matplotlib isn't installed: ``pip install 'longconn[notebook]'``.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(f"{error}: {EXTRA}", name=error.name) from None
        begin, end = self._range()
        heights = [2.2 if history.kind == "connection" else 1.2 for history in self._histories]

        # Not pyplot's, which would keep each figure; so it has to show itself.
        figure = Figure(figsize=(9, 0.7 + sum(heights)), layout="constrained")
        figure.__dict__["_repr_png_"] = partial(_png, figure)
        rows: Any = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
        faults = [(at - begin, what) for each in self._histories for at, what in each.faults()]
        for axes, history in zip(rows[:, 0], self._histories, strict=True):
            _DRAWN[history.kind](axes, history, begin)
            for at, what in faults:
                colour = pictures.GOOD if pictures.is_remedy(what) else pictures.BAD
                axes.axvline(at, color=colour, linestyle=":", linewidth=1.2)
            axes.spines[["top", "right"]].set_visible(False)
        for index, (at, what) in enumerate(faults[: pictures.MOST_FAULTS]):
            where = rows[0, 0].get_xaxis_transform()
            rows[0, 0].text(at, 1.12 + 0.11 * (index % 3), what, transform=where, fontsize=8)
        rows[-1, 0].set_xlabel("seconds")
        rows[-1, 0].set_xlim(0, max(end - begin, 1.0))
        return figure


def _png(figure: Figure) -> bytes:
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    return picture.getvalue()


def _plot_connection(axes: Axes, history: sampling.History, begin: float) -> None:
    moments = [each for each in history.moments if isinstance(each.stats, LinkStats)]
    stats: list[Any] = [each.stats for each in moments]
    times = [each.at - begin for each in moments]
    limit = next((each.limit_seconds for each in reversed(stats) if each.limit_seconds is not None), None)
    top = 1.1 * max([limit or 0.0, *(each.silence_seconds for each in stats), 1e-3])
    # A gap isn't a line from one side to the other.
    silences = [
        float("nan") if late else each.silence_seconds for each, late in zip(stats, _gaps(moments), strict=True)
    ]
    axes.fill_between(times, silences, color=pictures.CALM, alpha=0.25, linewidth=0)
    axes.plot(times, silences, color=pictures.CALM, linewidth=1)
    ticks = {0.0: "0"}
    if limit is not None:
        axes.axhline(limit, color=pictures.BAD, linestyle="--", linewidth=1)
        ticks[limit] = f"limit {pictures.duration(limit)}"
    # Below the curve, in parts of its height.
    _plot_spans(axes, history.states(), begin, -0.2 * top, 0.1 * top)
    ticks[-0.15 * top] = "state"
    for direction, colour, y in (("sent", pictures.CALM, -0.32 * top), ("heard", pictures.GOOD, -0.45 * top)):
        beats = history.beats(direction)  # type: ignore[arg-type]
        for is_guessed, alpha in ((False, 1.0), (True, 0.4)):
            at = [beat.at - begin for beat in beats if beat.is_guessed == is_guessed]
            axes.plot(at, [y] * len(at), "|", color=colour, alpha=alpha, markersize=6)
        ticks[y] = f"beats {direction}"
    axes.set_ylim(-0.53 * top, top)
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=8)
    axes.set_title(f"{history.name[:24]}  {history.place}", fontsize=8, loc="right", y=0.98)
    axes.set_ylabel("silence", fontsize=9)


def _plot_server(axes: Axes, history: sampling.History, begin: float) -> None:
    clients = list(history.clients().values())
    for row, (_, spans) in enumerate(clients):
        _plot_spans(axes, spans, begin, row - 0.3, 0.6)
    if clients:
        axes.set_yticks(range(len(clients)), [name[:16] for name, _ in clients], fontsize=8)
        axes.set_ylim(-0.6, max(len(clients), 3) - 0.4)
    else:
        moments = [each for each in history.moments if isinstance(each.stats, ServerStats)]
        counts: list[Any] = [each.stats for each in moments]
        axes.step(
            [each.at - begin for each in moments], [each.open for each in counts], color=pictures.GOOD, where="post"
        )
    axes.set_ylabel("server:\nwho is here", fontsize=9)


def _plot_proxy(axes: Axes, history: sampling.History, begin: float) -> None:
    began = history.proxy_began - begin
    for row, way in enumerate(pictures.WAYS):
        for what, colour in (("forwarded", pictures.GOOD), ("lost", pictures.BAD)):
            events = [event for event in history.record if event.direction == way and event.what == what]
            spans = [(began + event.at, max(event.until - event.at, 0.02)) for event in events]
            axes.broken_barh(spans, (-row - 0.3, 0.6), color=colour)
    axes.set_yticks([0, -1], [way.replace("_", " ") for way in pictures.WAYS], fontsize=8)
    axes.set_ylim(-1.6, 0.6)
    axes.set_ylabel("proxy", fontsize=9)


_DRAWN = {"connection": _plot_connection, "server": _plot_server, "proxy": _plot_proxy}


def _plot_spans(axes: Axes, spans: list[sampling.Span], begin: float, y: float, height: float) -> None:
    for span in spans:
        alpha = 0.25 if span.value == "unknown" else 1.0
        colour = pictures.COLOURS.get(span.value, pictures.FAINT)
        end = min(span.end - begin, 1e9)  # infinity can't be drawn; the axis cuts it
        axes.broken_barh(
            [(span.begin - begin, end - (span.begin - begin))], (y, height), color=colour, alpha=alpha, linewidth=0
        )


def _gaps(moments: list[sampling.Moment]) -> list[bool]:
    """Of each, whether it is the first behind a gap."""
    return [False, *(after.at - before.at > sampling.GAP for before, after in pairwise(moments))]


class Watch(Timeline):
    """A timeline that goes on by itself; made by `watch`.

    It ends with the last of what it shows. Showing it in another cell shows it there, too.
    """

    def __init__(self, *subjects: Any, window: float = 60.0) -> None:
        if not 1 <= window <= 3600:  # nor NaN
            raise ValueError(f"window={window:g}: 1 to 3600 seconds")
        shell = _shell()
        super().__init__(*subjects)
        self._window = window
        # Nothing is drawn behind the picture that stays.
        self._pen = threading.Lock()
        self._is_stopped = False
        self._redraws_at = 0.0
        self._cell = shell.execution_count
        self._handles: list[Any] = []
        self._show()
        sampling.tell(self._redraw)

    @property
    def is_running(self) -> bool:
        """The picture still goes on."""
        return not self._is_stopped

    def stop(self) -> None:
        """Leave the picture as it is now."""
        with self._pen:
            if not self._is_stopped:
                self._is_stopped = True
                self._draw()

    def _picture(self) -> str:
        begin, end = self._range()
        return pictures.timeline(self._histories, max(begin, end - self._window), end, begin)

    def _show(self) -> None:
        from IPython.display import HTML, display

        self._handles.append(display(HTML(self._picture()), display_id=True))  # type: ignore[no-untyped-call]

    def _draw(self) -> None:
        from IPython.display import HTML

        picture = HTML(self._picture())  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.update(picture)

    def _redraw(self) -> bool:
        """On the sampler's thread; False when it has ended.

        What a thread shows ipykernel sends in the name of the cell that runs; an update finds its place by the
        display's id all the same.
        """
        now = time.monotonic()
        with self._pen:
            if not self._is_stopped and (now >= self._redraws_at or self.is_over):
                self._redraws_at = now + REDRAW
                self._is_stopped = self.is_over
                with suppress(Exception):  # the kernel is going down, or its front end's socket is gone
                    self._draw()
            return not self._is_stopped

    def _ipython_display_(self) -> None:
        # As the value of the cell that made it, it is there already.
        if _shell().execution_count != self._cell:
            self._show()


def _shell() -> Any:
    """IPython's, of a notebook.

    Raises:
        ImportError, RuntimeError: There is none.
    """
    try:
        from IPython import get_ipython
    except ImportError as error:
        raise ImportError(f"{error}: {EXTRA}", name=error.name) from None
    shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        raise RuntimeError(
            "watch() draws below a notebook's cell, and this is no notebook; timeline().plot() works anywhere"
        )
    return shell
