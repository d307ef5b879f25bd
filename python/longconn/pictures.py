"""How objects show themselves in a notebook: HTML and SVG, complete in itself, for light and dark pages.

Nothing here waits: what is shown is what `stats()` says, and what `sampling` has kept. Whatever a peer has chosen
(client ids, statuses) is escaped and cut, and who has thousands of connections shows some and counts the rest. Styles
stand in attributes, for a sheet would be the whole page's; and neutral colours are the page's own, for it may be light
or dark.
"""

from __future__ import annotations

from contextlib import suppress
from html import escape
from typing import Any

from . import sampling
from .errors import LongConnError
from .keepalive import Keepalive
from .links import FRESH, LinkStats, ServerStats
from .sampling import History, Span

__all__ = ["connection", "keepalive", "proxy", "server", "timeline"]

#: Each stands out against white and against black.
GOOD, DOUBTFUL, BAD, CALM, FAINT = "#2a9d5c", "#c77f00", "#d6453d", "#4a86d9", "#8b8f98"
COLOURS = {
    "open": GOOD,
    "suspect": DOUBTFUL,
    "reconnecting": BAD,
    "closing": FAINT,
    "closed": FAINT,
    "unknown": FAINT,
    "connecting": CALM,
}
_TEXT = 64
_ROWS = 10
_CARD = (
    "display:inline-block;box-sizing:border-box;max-width:100%;min-width:22em;padding:.6em .9em;border-radius:.5em;"
    "border:1px solid rgba(128,128,128,.4);color:inherit;font:13px/1.5 system-ui,sans-serif;text-align:left"
)
_SOFT = "opacity:.7"
#: Pages have styles of their own for tables.
_TABLE = "border-collapse:collapse;margin:.3em 0;border:0;font:inherit;color:inherit"


# ---- parts


def text(value: str | bytes, most: int = _TEXT) -> str:
    """What somebody else has chosen, as HTML: cut, and with nothing in it that a page would obey."""
    if isinstance(value, bytes):
        value = value[: 4 * most + 4].decode(errors="backslashreplace")
    # Controls too, those that turn the direction of writing among them.
    plain = "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in value[: most + 1])
    return escape(plain if len(plain) <= most else plain[: most - 1] + "…")


def duration(seconds: float | None) -> str:
    """For people."""
    if seconds is None:
        return "–"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def size(count: int) -> str:
    """Bytes, for people."""
    return (
        f"{count} B"
        if count < 1024
        else f"{count / 1024:.0f} KiB"
        if count < 1 << 20
        else f"{count / (1 << 20):.1f} MiB"
    )


def _card(*parts: str) -> str:
    return f'<div style="{_CARD}">{"".join(parts)}</div>'


def _line(content: str, style: str = "") -> str:
    return f'<div style="{style}">{content}</div>'


def _code(content: str) -> str:
    return f'<code style="background:none;padding:0;color:inherit">{content}</code>'


def _dot(colour: str) -> str:
    return (
        f'<span style="display:inline-block;width:.65em;height:.65em;border-radius:50%;background:{colour};'
        'margin-right:.4em"></span>'
    )


def _head(kind: str, name: str, state: str, colour: str) -> str:
    return _line(
        f'{_dot(colour)}<b>{kind}</b> {name} <span style="float:right;margin-left:1.5em;color:{colour}">{state}</span>'
    )


def _facts(*facts: tuple[str, str]) -> str:
    items = (
        f'<span style="white-space:nowrap;margin-right:1.3em"><span style="{_SOFT}">{name}</span> {value}</span>'
        for name, value in facts
        if value
    )
    return _line(" ".join(items), "max-width:44em")


def _svg(width: float, height: float, body: str, label: str, *, fills: bool = False) -> str:
    wide = f'width="{width:g}"' if not fills else 'width="100%"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" {wide} height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" style="vertical-align:middle;max-width:100%;overflow:visible" '
        f'fill="currentColor" font-family="system-ui,sans-serif" font-size="10">{body}</svg>'
    )


def sparkline(values: list[float], width: int = 150, height: int = 22) -> str:
    """The last of these, from zero up; nothing of fewer than two."""
    values = values[-width // 2 :]
    if len(values) < 2:
        return ""
    top = max(values) or 1.0
    step = (width - 4) / (len(values) - 1)
    points = [f"{2 + step * i:.1f},{height - 2 - (height - 4) * value / top:.1f}" for i, value in enumerate(values)]
    x, _, y = points[-1].partition(",")
    body = (
        f'<polyline points="{" ".join(points)}" fill="none" stroke="{CALM}" stroke-width="1.4"/>'
        f'<circle cx="{x}" cy="{y}" r="2" fill="{CALM}"/>'
    )
    return _svg(width, height, body, f"from {duration(values[0])} to {duration(values[-1])}, most {duration(top)}")


def _level(name: str, colour: str, what: str) -> str:
    return (
        f'<td style="padding:.1em 1.4em .1em 0;border:0;background:none;text-align:left">{_dot(colour)}{name}<br>'
        f'<span style="{_SOFT};margin-left:1.05em">{what}</span></td>'
    )


def _age(name: str, age: float | None, is_told: bool) -> str:
    if age is None or not is_told:
        return _level(name, FAINT, "unknown")
    return _level(name, GOOD, "fine") if age < FRESH else _level(name, BAD, f"stuck for {duration(age)}")


def _levels(stats: LinkStats, why: str) -> str:
    """The three of docs/being-alive.md: who could still answer."""
    is_there = stats.state in ("open", "suspect", "closing")
    if stats.state == "suspect":
        path = _level("path", DOUBTFUL, f"silent for {duration(stats.silence_seconds)}")
    else:
        path = _level("path", GOOD, "alive") if is_there else _level("path", FAINT, why)
    levels = (
        path,
        _age("interpreter", stats.peer_interpreter_age_seconds, is_there),
        _age("application", stats.peer_application_age_seconds, is_there),
    )
    return f'<table style="{_TABLE}"><tr style="background:none">{"".join(levels)}</tr></table>'


def _silence(stats: LinkStats) -> str:
    """How much of the limit is used up."""
    if stats.limit_seconds is None or stats.state not in ("open", "suspect"):
        return ""
    part = min(1.0, stats.silence_seconds / stats.limit_seconds)
    body = (
        '<rect width="120" height="7" rx="3.5" opacity=".18"/>'
        f'<rect width="{max(120 * part, 3):.1f}" height="7" rx="3.5" fill="{COLOURS[stats.state]}"/>'
    )
    told = f"{duration(stats.silence_seconds)} of {duration(stats.limit_seconds)}"
    return f"{_svg(120, 7, body, told)} {told}"


# ---- objects


def connection(subject: Any) -> str:
    """A LongConnection: its state, the three levels, silence against the limit, round trips, what waits."""
    try:
        history = sampling.history(subject)
        stats = subject.stats()
        lost = subject.lost
    except (LongConnError, ValueError):  # another process's, or never open
        return _card(_line(escape(repr(subject))))
    ours, theirs = ("{}:{}".format(*each) for each in (subject.address, subject.peer_address))
    why = "" if lost is None else str(lost.value)
    state = stats.state if not why or why == stats.state else f"{stats.state}: {why}"
    head = _head(
        "LongConnection", text(subject.client_id), state, COLOURS[stats.state] if why in ("", "closed") else BAD
    )
    facts = [
        ("silence", _silence(stats)),
        (
            "round trip",
            ""
            if stats.round_trip_last_seconds is None
            else f"{sparkline(history.round_trips())} {duration(stats.round_trip_last_seconds)}, "
            f"least {duration(stats.round_trip_least_seconds)}",
        ),
    ]
    counts = [
        ("beats sent", str(stats.beats_sent)),
        ("heard", str(stats.beats_heard)),
        ("not yet taken by the peer", size(stats.untaken_bytes) if stats.untaken_bytes else ""),
        ("waiting for this program", size(stats.inbox_bytes) if stats.inbox_bytes else ""),
        # A plain peer has no session.
        ("connections of this session", str(stats.connections) if (stats.connections or 1) > 1 else ""),
    ]
    status = b""
    with suppress(LongConnError, TypeError):  # a plain peer has none
        status = subject.peer_status
    return _card(
        head,
        _line(f"{ours} → {theirs}", _SOFT),
        _levels(stats, why or "lost; being made again"),
        *(_facts(fact) for fact in facts),
        _facts(*counts),
        _facts(("peer's status", _code(text(status)) if status else "")),
    )


def server(subject: Any) -> str:
    """A LongServer: how many are here, how many are expected back, and the first of them."""
    try:
        history = sampling.history(subject)
        stats: ServerStats = subject.stats()
        here = subject.connections
    except (LongConnError, ValueError):  # closed, or another process's
        return _card(_line(escape(repr(subject))))
    is_closed = subject._closed
    numbers = [
        ("open", str(stats.open)),
        ("expected back", str(stats.waiting) if stats.waiting else ""),
        ("in the handshake", str(stats.handshakes) if stats.handshakes else ""),
        ("came in all", str(stats.accepted)),
        ("came back", str(stats.resumed) if stats.resumed else ""),
        ("didn't", str(stats.expired) if stats.expired else ""),
        ("turned away", str(turned) if (turned := stats.refused_too_many + stats.refused_unauthorized) else ""),
    ]
    rows = [row for each in here[:_ROWS] if (row := _row(history, each))]
    more = len(here) - len(rows)
    table = ""
    if rows:
        cell = "padding:.1em 1.1em .1em 0;border:0;text-align:left;font-weight:normal"
        titles = "".join(
            f'<th style="{cell};{_SOFT}">{title}</th>'
            for title in ("who is here", "address", "interpreter", "application", "silence", "round trip")
        )
        body = "".join(
            f'<tr style="background:none">{"".join(f"""<td style="{cell}">{value}</td>""" for value in row)}</tr>'
            for row in rows
        )
        table = f'<table style="{_TABLE}"><tr style="background:none">{titles}</tr>{body}</table>'
    return _card(
        _head(
            "LongServer", "{}:{}".format(*subject.address), *(("closed", FAINT) if is_closed else ("listening", GOOD))
        ),
        _facts(*numbers),
        table,
        _line(f"and {more} more", _SOFT) if more > 0 else "",
    )


def _row(history: History, each: Any) -> tuple[str, ...] | None:
    try:
        stats = each.stats()
    except (LongConnError, ValueError):  # it has gone meanwhile
        return None
    is_here = stats.state in ("open", "suspect", "closing")

    def age(value: float | None) -> str:
        if value is None or not is_here:
            return "–"
        return "fine" if value < FRESH else f'<span style="color:{BAD}">stuck for {duration(value)}</span>'

    name = text(each.client_id, 32) or '<span style="opacity:.5">unnamed</span>'
    return (
        f"{_dot(COLOURS[stats.state])}{name}{'' if stats.state == 'open' else f' ({stats.state})'}",
        "{}:{}".format(*each.peer_address),
        age(stats.peer_interpreter_age_seconds),
        age(stats.peer_application_age_seconds),
        duration(stats.silence_seconds),
        f"{sparkline(history.round_trips(hash(each)), 80, 16)} {duration(stats.round_trip_last_seconds)}",
    )


def keepalive(subject: Keepalive) -> str:
    """A Keepalive: when the program is told, case by case, and what the settings don't do."""
    told = subject.detection_time()
    cases = (
        ("idle", told.idle),
        ("data in flight", told.in_flight),
        ("slow reader", told.slow_reader),
        ("connecting", told.connecting),
    )
    top = max((value for _, value in cases if value is not None), default=1.0)
    bars, height = [], 18
    for index, (name, value) in enumerate(cases):
        y = height * index
        # By the square root, for seconds and a quarter of an hour stand side by side.
        width = 170 * (1.0 if value is None else max((value / top) ** 0.5, 0.02))
        colour = BAD if value is None or value > 300 else DOUBTFUL if value > 60 else GOOD
        bars.append(
            f'<text x="0" y="{y + 11}" font-size="11.5">{name}</text>'
            f'<rect x="90" y="{y + 3}" width="{width:.1f}" height="10" rx="2" fill="{colour}" opacity=".85"/>'
            f'<text x="{96 + width:.1f}" y="{y + 12}" font-size="11.5">'
            f"{'never' if value is None else duration(value)}</text>"
        )
    if subject.probes:
        probes = f"after {subject.idle} s of silence, each {subject.interval} s, up to {subject.count}"
    else:
        probes = "off"
    facts = [("probes", probes)]
    if subject.user_timeout is not None:
        facts.append(("TCP_USER_TIMEOUT", duration(subject.user_timeout)))
    facts.append(("guard's limit", duration(subject.guard_limit) if subject.guard_limit else "off"))
    warnings = "".join(f'<li style="margin:0">{escape(each)}</li>' for each in subject.warnings())
    return _card(
        _line(f"<b>Keepalive</b> {_code(escape(repr(subject)))}"),
        _facts(*facts),
        _line("A dead path is told at the latest after", f"{_SOFT};margin-top:.3em"),
        _svg(340, height * len(cases), "".join(bars), "seconds until told, by case"),
        f'<ul style="margin:.3em 0 0;padding-left:1.4em;max-width:44em;color:{DOUBTFUL}">{warnings}</ul>'
        if warnings
        else "",
    )


def proxy(subject: Any) -> str:
    """A FaultProxy: what is wrong with it now, who goes through it, and what happened last."""
    try:
        history = sampling.history(subject)
        history.look()
        here = subject.connections
        upstream = ", ".join("{}:{}".format(*place) for place in subject.upstream)
    except LongConnError:  # another process's
        return _card(_line(f"<b>FaultProxy</b> {'{}:{}'.format(*subject.address)}, of another process"))
    faults = [what for _, what in history.faults()]
    wrong = ""
    for what in faults:
        if is_remedy(what):
            wrong = ""
        elif not what.startswith(_MOMENTARY):
            wrong = what
    state = (text(wrong), BAD) if wrong else ("closed", FAINT) if history.is_over else ("passes everything", GOOD)
    passed = {way: sum(e.bytes for e in history.record if e.what == "forwarded" and e.direction == way) for way in WAYS}
    lost = sum(event.bytes for event in history.record if event.what == "lost")
    events = "".join(_line(_code(text(str(event), 120))) for event in history.record[-5:])
    return _card(
        _head("FaultProxy", "{}:{} → {}".format(*subject.address, text(upstream, 128)), *state),
        _facts(
            ("connections", str(len(here))),
            ("in all", str(subject.accepted)),
            ("to the server", size(passed["to_server"])),
            ("to the client", size(passed["to_client"])),
            ("lost", size(lost) if lost else ""),
            ("faults", str(len(faults)) if faults else ""),
        ),
        f'<div style="margin-top:.3em;{_SOFT};white-space:pre;overflow-x:auto;font-size:12px">{events}</div>'
        if events
        else "",
    )


WAYS = ("to_server", "to_client")


#: What is over at once: connections end of it, and the next ones know nothing of it.
_MOMENTARY = ("reset(", "end(", "half_close(", "forget(")


def is_remedy(fault: str) -> bool:
    """Whether what a proxy was ordered ends faults."""
    return fault.startswith(("restore", "resume", "admit"))


# ---- the course of time

_WIDE, _GUTTER, _STRIP = 760, 104, 9
_POINTS, MOST_FAULTS = 400, 40


class _Drawing:
    """Rows of one time axis, from top to bottom."""

    def __init__(self, begin: float, end: float) -> None:
        self.begin, self.end = begin, end
        self.parts: list[str] = []
        self.y = 0.0

    def x(self, at: float) -> float:
        at = min(max(at, self.begin), self.end)
        return _GUTTER + (_WIDE - _GUTTER - 8) * (at - self.begin) / (self.end - self.begin)

    def label(self, content: str, y: float, **attributes: object) -> None:
        attributes = {"opacity": ".75"} | attributes
        more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
        self.parts.append(f'<text x="0" y="{y:.1f}"{more}>{content}</text>')

    def title(self, content: str, note: str, colour: str = "currentColor") -> None:
        self.parts.append(
            f'<text x="0" y="{self.y + 11:.1f}" font-size="12" font-weight="600">{content}</text>'
            f'<text x="{_WIDE - 8}" y="{self.y + 11:.1f}" font-size="11" text-anchor="end" fill="{colour}">'
            f"{note}</text>"
        )
        self.y += 17

    def strip(self, name: str, spans: list[Span]) -> None:
        """States, side by side."""
        self.label(name, self.y + 8)
        for span in spans:
            if span.end < self.begin:
                continue
            left, right = self.x(span.begin), self.x(span.end)
            unknown = ' fill-opacity=".25"' if span.value == "unknown" else ""
            self.parts.append(
                f'<rect x="{left:.1f}" y="{self.y:.1f}" width="{max(right - left, 0.8):.1f}" height="{_STRIP}" '
                f'fill="{COLOURS.get(span.value, FAINT)}"{unknown}><title>{escape(span.value)}</title></rect>'
            )
        self.y += _STRIP + 5

    def ticks(self, name: str, beats: list[sampling.Beat], colour: str) -> None:
        self.label(name, self.y + 8)
        # One path for all: a minute of quick beats is hundreds.
        for is_guessed, opacity in ((False, 1.0), (True, 0.4)):
            at = [self.x(beat.at) for beat in beats if beat.is_guessed == is_guessed and beat.at >= self.begin][
                -_POINTS:
            ]
            if at:
                path = "".join(f"M{x:.1f} {self.y:.1f}v{_STRIP}" for x in at)
                self.parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="1.5" opacity="{opacity}"/>')
        self.y += _STRIP + 4

    def curve(self, name: str, points: list[tuple[float, float]], limit: float | None, height: float = 52) -> None:
        """Seconds over time, against their limit."""
        bottom = self.y + height
        top = 1.15 * max([limit or 0.0, *(value for _, value in points), 1e-3])
        self.label(name, bottom - 4)
        if limit is not None:
            y = bottom - height * limit / top
            self.parts.append(
                f'<path d="M{_GUTTER} {y:.1f}H{_WIDE - 8}" stroke="{BAD}" stroke-dasharray="4 3" fill="none"/>'
            )
            self.label(f"limit {duration(limit)}", y + 3, fill=BAD, opacity="1")
        run: list[tuple[float, float]] = []
        for point in [*points, None]:
            if point is None or (run and point[0] - run[-1][0] > sampling.GAP):
                if len(run) > 1:
                    line = " ".join(f"{self.x(at):.1f},{bottom - height * value / top:.1f}" for at, value in _thin(run))
                    first, last = self.x(run[0][0]), self.x(run[-1][0])
                    self.parts.append(
                        f'<polygon points="{first:.1f},{bottom:.1f} {line} {last:.1f},{bottom:.1f}" '
                        f'fill="{CALM}" opacity=".25"/>'
                        f'<polyline points="{line}" fill="none" stroke="{CALM}"/>'
                    )
                run = []
            if point is not None:
                run.append(point)
        self.parts.append(f'<path d="M{_GUTTER} {bottom:.1f}H{_WIDE - 8}" stroke="currentColor" opacity=".3"/>')
        self.y = bottom + 6

    def bars(self, name: str, events: list[Any], at: float) -> None:
        """What a proxy did with the bytes of one direction; *at* is when it began."""
        self.label(name, self.y + 8)
        for event in events:
            begin, end = at + event.at, at + event.until
            if end < self.begin or begin > self.end:
                continue
            left, right = self.x(begin), self.x(end)
            self.parts.append(
                f'<rect x="{left:.1f}" y="{self.y:.1f}" width="{max(right - left, 1.2):.1f}" height="{_STRIP}" '
                f'fill="{BAD if event.what == "lost" else GOOD}" opacity=".85">'
                f"<title>{event.what} {size(event.bytes)}</title></rect>"
            )
        self.y += _STRIP + 4

    def marks(self, faults: list[tuple[float, str]], top: float) -> None:
        """Faults, through all rows."""
        shown = [(at, what) for at, what in faults if self.begin <= at <= self.end][-MOST_FAULTS:]
        for index, (at, what) in enumerate(shown):
            x, y = self.x(at), top - 4 - 11 * (index % 3)
            colour = GOOD if is_remedy(what) else BAD
            side = ' text-anchor="end"' if x > _WIDE - 140 else ""
            self.parts.append(
                f'<path d="M{x:.1f} {y - 7:.1f}V{self.y:.1f}" stroke="{colour}" stroke-dasharray="2 2" fill="none"/>'
                f'<text x="{x + (-3 if side else 3):.1f}" y="{y:.1f}" fill="{colour}"{side}>{text(what, 40)}</text>'
            )

    def axis(self, origin: float) -> None:
        steps = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
        step = next((each for each in steps if (self.end - self.begin) / each <= 12), 600.0)
        number = -(-(self.begin - origin) // step)
        while (at := origin + number * step) <= self.end:
            x = self.x(at)
            self.parts.append(
                f'<path d="M{x:.1f} {self.y:.1f}v4" stroke="currentColor" opacity=".5"/>'
                f'<text x="{x:.1f}" y="{self.y + 14:.1f}" text-anchor="middle" opacity=".75">{number * step:g} s</text>'
            )
            number += 1
        self.y += 18


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """No more than can be seen; of several for one place the greatest, for that is what counts against a limit."""
    step = -(-len(points) // _POINTS)
    return [max(points[start : start + step], key=lambda point: point[1]) for start in range(0, len(points), step)]


def timeline(histories: list[History], begin: float, end: float, origin: float) -> str:
    """All on one time axis, from *begin* to *end*; times are told from *origin*. As of `longconn.links.monotonic`."""
    drawing = _Drawing(begin, max(end, begin + 1.0))
    faults = sorted(fault for each in histories for fault in each.faults())
    drawing.y = top = 36.0 if faults else 2.0
    for history in histories:
        if history.kind == "connection":
            _draw_connection(drawing, history)
        elif history.kind == "server":
            _draw_server(drawing, history)
        else:
            _draw_proxy(drawing, history)
        drawing.y += 6
    drawing.marks(faults, top)
    drawing.axis(origin)
    label = f"timeline of {', '.join(history.name for history in histories)}"
    picture = _svg(_WIDE, drawing.y, "".join(drawing.parts), label)
    return _card(picture, _line(_LEGEND, "font-size:11px"))


def _named(colour: str, name: str) -> str:
    """Of the legend; the colour as it is in the picture, and only the word soft."""
    return f'<span style="color:{colour}">■</span> <span style="{_SOFT}">{name}</span> '


_LEGEND = (
    _named(GOOD, "open")
    + _named(DOUBTFUL, "suspect")
    + _named(BAD, "lost, being made again")
    + _named(FAINT, "closed")
    + f'<span style="{_SOFT}">'
    + f"· read each {sampling.PERIOD:g} s; pale: Python couldn't run, and nothing was read</span>"
)


def _draw_connection(drawing: _Drawing, history: History) -> None:
    moments = [each for each in history.moments if isinstance(each.stats, LinkStats)]
    if not moments:
        return drawing.title(text(history.name), "nothing read yet")
    last: Any = moments[-1].stats
    drawing.title(
        f'LongConnection {text(history.name)} <tspan font-weight="400" opacity=".7">{history.place}</tspan>',
        f"{last.state}, beats {last.beats_sent} sent, {last.beats_heard} heard",
        COLOURS[last.state],
    )
    drawing.strip("state", history.states())
    drawing.ticks("beats sent", history.beats("sent"), CALM)
    drawing.ticks("beats heard", history.beats("heard"), GOOD)
    silences = [(each.at, each.stats.silence_seconds) for each in moments if each.at >= drawing.begin]  # type: ignore[union-attr]
    drawing.curve("silence", silences, last.limit_seconds)


def _draw_server(drawing: _Drawing, history: History) -> None:
    moments = [each for each in history.moments if isinstance(each.stats, ServerStats)]
    if not moments:
        return drawing.title(text(history.name), "nothing read yet")
    last: Any = moments[-1].stats
    note = f"{last.open} open, {last.waiting} expected back, {last.accepted} in all"
    drawing.title(f"LongServer {text(history.name.removeprefix('server '))}", note, GOOD if last.open else FAINT)
    clients = [each for each in history.clients().values() if each[1][-1].end >= drawing.begin]
    for name, spans in clients[-sampling.CLIENTS :]:
        drawing.strip(text(name, 16), spans)
    if last.open + last.waiting > len(clients):
        counts = [(each.at, float(each.stats.open)) for each in moments if each.at >= drawing.begin]  # type: ignore[union-attr]
        drawing.curve("open", counts, None, 32)


def _draw_proxy(drawing: _Drawing, history: History) -> None:
    last = history.record[-1].what if history.record else "nothing yet"
    drawing.title(f"FaultProxy {text(history.name.removeprefix('proxy '))}", f"last: {last}")
    for way in WAYS:
        events = [event for event in history.record if event.direction == way and event.what in ("forwarded", "lost")]
        drawing.bars(way.replace("_", " "), events[-_POINTS:], history.proxy_began)
