"""Draws the figures of docs/ from what the benches have measured: docs/NAME.json becomes one or two docs/NAME*.svg.

    python benches/figures.py [detection] [chaos] [comparison]

`make detect`, `make chaos` and `make compare` keep what they measured and draw it; this draws it again. The same data
give the same bytes, with the same matplotlib. A figure is light or dark as its reader's system is.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import statistics
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from longconn.pictures import BAD, CALM, DOUBTFUL, FAINT, GOOD
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["FIGURES", "draw", "keep"]

Measured = dict[str, Any]

DOCS = Path(__file__).parent.parent / "docs"
#: A fourth that stands out against white and against black.
VIOLET = "#9a6dd7"
# Stand-ins that `_svg` replaces, for matplotlib knows no colour that depends on the page.
INK, PAPER = "#010203", "#fcfdfe"
_STYLE = (
    "<style>.figure{color:#1f2328;--paper:#ffffff}"
    "@media(prefers-color-scheme:dark){.figure{color:#d8dee4;--paper:#161b22}}</style>"
)
_SETTINGS = {
    "svg.hashsalt": "longconn",  # else ids are by chance
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9.0,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    **dict.fromkeys(
        ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color", "xtick.color", "ytick.color"), INK
    ),
}


def keep(name: str, measured: Measured, folder: Path = DOCS) -> None:
    """Keeps what was measured, and draws it."""
    # A line for each list of numbers: readable, and what has changed shows.
    text = re.sub(
        r"\[\s+([^][{}]*?)\s+\]", lambda list_: f"[{' '.join(list_[1].split())}]", json.dumps(measured, indent=1)
    )
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    draw(name, folder)


def draw(name: str, folder: Path = DOCS) -> None:
    """Draws what was kept under this name."""
    measured = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    for figure, (title, drawn) in FIGURES[name].items():
        with matplotlib.rc_context(_SETTINGS):
            (folder / f"{figure}.svg").write_text(_svg(drawn(measured), title), encoding="utf-8")


def _svg(figure: Figure, title: str) -> str:
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue().replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    head, _, body = text[text.index("<svg") :].partition(">")
    return f'{head} class="figure" role="img"><title>{escape(title)}</title>{_STYLE}{body}'.rstrip() + "\n"


# ---- parts


def _sheet(
    height: float, rows: Sequence[float] = (1,), columns: Sequence[float] = (1,), width: float = 10, **more: Any
) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(
        len(rows), len(columns), squeeze=False, gridspec_kw={"height_ratios": rows, "width_ratios": columns}, **more
    )
    return figure, axes


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """A row for each, from the top, with every second one shaded."""
    for row in range(0, len(names), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=INK, alpha=0.045, linewidth=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.grid(axis="x", color=INK, alpha=0.14, linewidth=0.6)


def _runs(axes: Axes, row: float, seconds: Sequence[float | None], colour: str, never: float) -> None:
    """Each run a dot; a cross, at *never*, if nobody was told."""
    told = [each for each in seconds if each is not None]
    if told:  # nothing would have its place at the origin
        axes.plot(
            told, [row] * len(told), "o", color=colour, alpha=0.75, markersize=4.2, markeredgewidth=0, clip_on=False
        )
    untold = len(seconds) - len(told)
    if untold:
        axes.plot([never], [row], "x", color=colour, markersize=5.5, markeredgewidth=1.8, clip_on=False)
        if told:
            text = f"{untold} of {len(seconds)}"
            axes.annotate(
                text, (never, row), (6, 0), textcoords="offset points", color=colour, va="center", fontsize=7.5
            )


def _never(axes: Axes, begin: float, end: float, text: str) -> None:
    """Where the crosses stand, to the right of all seconds."""
    axes.axvspan(begin, end, color=BAD, alpha=0.1, linewidth=0)
    axes.text((begin + end) / 2, 1.0, text, transform=axes.get_xaxis_transform(), color=BAD, ha="center", va="bottom")


def _accused(axes: Axes, row: float, accused: Sequence[bool], colour: str, step: float) -> None:
    """Each run a ring; a disc, if somebody who lives was called dead."""
    for run, is_accused in enumerate(accused):
        axes.plot(
            [step * (run + 0.5)],
            [row],
            "o",
            markersize=5.5,
            markeredgecolor=colour,
            markerfacecolor=colour if is_accused else "none",
            clip_on=False,
        )
    text = f"{sum(accused)} of {len(accused)}"
    axes.text(
        step * (len(accused) + 0.5), row, text, color=colour, va="center", weight="bold" if any(accused) else None
    )


def _bound(axes: Axes, row: float, seconds: float, half: float) -> None:
    axes.plot([seconds] * 2, [row - half, row + half], color=INK, alpha=0.55, linewidth=1.2)


def _legend(where: Any, names: dict[str, str], bound: str = "", **more: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", markersize=5, label=name)
        for name, colour in names.items()
    ]
    if bound:
        handles.append(
            Line2D(
                [], [], color=INK, alpha=0.55, marker="|", linestyle="", markersize=10, markeredgewidth=1.2, label=bound
            )
        )
    where.legend(handles=handles, ncols=len(handles), handletextpad=0.2, columnspacing=1.6, **more)


def _sorts(count: int, height: float = 0.6) -> list[float]:
    """Where in a row the dots of each sort stand."""
    return [(index - (count - 1) / 2) * height / max(count - 1, 1) for index in range(count)]


# ---- make detect


def detection(measured: Measured) -> Figure:
    """KeepaliveSocket beside what people write today, in the cases that were measured of both."""
    ours, *others = names = {
        "KeepaliveSocket": ("longconn's KeepaliveSocket", CALM),
        "stdlib, SO_KEEPALIVE 1/1/3": ("kernel keepalive 1/1/3", DOUBTFUL),
        "stdlib, SO_KEEPALIVE 1/1/3, TCP_USER_TIMEOUT 3 s": ("... and TCP_USER_TIMEOUT 3 s", VIOLET),
    }
    sockets = measured["sockets"]
    told = [case for case in sockets if "told" in case and ours in case["told"] and case["told"].keys() & {*others}]
    alive = [case for case in sockets if "accused" in case and case["accused"].keys() & {*others}]
    seconds = [each for case in told for name in names for each in case["told"].get(name, []) if each is not None]
    most = max(max(seconds, default=0.0), *(case["bound"] for case in told)) if told else 1.0
    begin, never, end = most * 1.04, most * 1.11, most * 1.18
    figure, axes = _sheet(
        1.3 + 0.44 * (len(told) + 1.25 * len(alive)), (max(len(told), 1), 1.25 * len(alive) or 1), width=8.6
    )
    above, below = axes[:, 0]
    _rows(above, [_folded(case["case"]) for case in told])
    for row, case in enumerate(told):
        _bound(above, row, case["bound"], 0.4)
        for (name, (_, colour)), at in zip(names.items(), _sorts(3), strict=True):
            _runs(above, row + at, case["told"].get(name, []), colour, never)
    above.set_xlim(-0.01 * end, end)
    above.set_xticks([tick for tick in above.get_xticks() if 0 <= tick < begin])
    _never(above, begin, end, f"not in {measured['patience']:g} s")
    above.set_title("A peer that is gone: seconds until the program is told, each dot a run", pad=14)
    _rows(below, [_folded(case["case"]) for case in alive])
    below.grid(visible=False)
    for row, case in enumerate(alive):
        for (name, (_, colour)), at in zip(names.items(), _sorts(3), strict=True):
            if name in case["accused"]:
                _accused(below, row + at, case["accused"][name], colour, end / 60)
    below.set_xlim(-0.01 * end, end)
    below.set_xticks([])
    below.spines["bottom"].set_visible(False)
    below.set_title("A peer that lives: runs in which it was called dead are filled")
    _legend(figure, dict(names.values()), "the bound", loc="outside lower center")
    return figure


def detection_links(measured: Measured) -> Figure:
    """LongConnection and LongServer."""
    names = {"client": CALM, "server": VIOLET}
    links = [case for case in measured["links"] if not case["case"].endswith(", TLS")]  # as without it
    most = max((each or 0.0 for case in links for end in case["told"].values() for each in end), default=1.0)
    most = max(most, *(bound for case in links for bound in case["bounds"].values())) if links else most
    is_untold = any(each is None for case in links for end in case["told"].values() for each in end)
    figure, axes = _sheet(1.1 + 0.3 * len(links), width=8.6)
    (only,) = axes[0]
    _rows(only, [_folded(case["case"], 46) for case in links])
    only.tick_params(axis="y", labelsize=7.5)
    for row, case in enumerate(links):
        ends = [end for end in names if end in case["told"]]
        for end, at in zip(ends, _sorts(len(ends), 0.34) if len(ends) > 1 else [0.0], strict=True):
            _bound(only, row + at, case["bounds"][end], 0.17)
            _runs(only, row + at, case["told"][end], names[end], most * 1.1)
    only.set_xlim(-0.01 * most, most * (1.17 if is_untold else 1.03))
    if is_untold:
        _never(only, most * 1.03, most * 1.17, f"not in {measured['patience']:g} s")
    only.set_title("Seconds until a program is told, each dot a run", pad=14 if is_untold else 6)
    titles = {f"the {end}'s program": colour for end, colour in names.items()}
    _legend(figure, titles, "the bound", loc="outside upper right")
    return figure


def _folded(text: str, most: int = 38) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, most))


# ---- make chaos


def chaos(measured: Measured) -> Figure:
    """Silences under faults of all kinds, and after a cable is back."""
    faults, cables = measured["faults"], measured["cables"]
    figure, axes = _sheet(0.9 + 0.29 * len(faults), columns=(1.25, 1))
    left, right = axes[0]
    _rows(left, [fault["fault"] for fault in faults])
    for row, fault in enumerate(faults):
        _runs(left, row, fault["seconds"], CALM, 0)
        if fault["seconds"]:
            _bound(left, row, statistics.median(fault["seconds"]), 0.36)
    left.set_xlim(left=0)
    left.set_title("Seconds without a message, of both ends", loc="left")
    _rows(right, [cable["case"] for cable in cables])
    for row, cable in enumerate(cables):
        _runs(right, row, cable["seconds"], GOOD, 0)
        _bound(right, row, statistics.median(cable["seconds"]), 0.36)
    right.axvline(measured["cable_bound"], color=BAD, linestyle="--", linewidth=1)
    _named(right, measured["cable_bound"], "the bound", BAD, "right")
    right.set_xlim(0, measured["cable_bound"] * 1.05)
    right.set_title("A cable is back: seconds")
    _legend(figure, {"a fault": CALM, "a run": GOOD}, "median", loc="outside lower center")
    return figure


def chaos_crowd(measured: Measured) -> Figure:
    """How a crowd comes back: what its server's host saw, and what the dice of the backoff promise."""
    crowds = measured["crowds"]
    figure, axes = _sheet(0.6 + 2.1 * len(crowds), [1] * len(crowds), sharex=True)
    for each, crowd in zip(axes[:, 0], crowds, strict=True):
        step = crowd["bin"]
        edges = [step * number for number in range(len(crowd["seen"]) + 1)]
        each.bar(edges[:-1], crowd["seen"], step * 0.9, align="edge", color=CALM, alpha=0.75, linewidth=0)
        meant = crowd["meant"]
        each.stairs(meant, edges[: len(meant) + 1], color=DOUBTFUL, linewidth=1.6, baseline=None)
        back = crowd["down"] + crowd["all_back"]
        each.axvline(crowd["down"], color=GOOD, linewidth=1.4)
        each.axvline(back, color=GOOD, linewidth=1.4, linestyle=":")
        _named(each, crowd["down"], "the server is back", GOOD)
        _named(each, back, "all clients are back", GOOD, "right")
        each.grid(axis="y", color=INK, alpha=0.14, linewidth=0.6)
        each.set_xlim(left=0)
        each.set_title(_capital(crowd["case"]))
    axes[-1, 0].set_xlabel("seconds since the server went")
    figure.supylabel(f"attempts to connect in {crowds[0]['bin']:g} s", fontsize=9, color=INK)
    _legend(figure, {"seen": CALM, "by the backoff's dice": DOUBTFUL}, loc="outside lower right")
    return figure


def _named(axes: Axes, at: float, text: str, colour: str, ha: str = "left") -> None:
    """What the line there is."""
    axes.annotate(
        text,
        (at, 1.0),
        (4 if ha == "left" else -4, 0),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        color=colour,
        ha=ha,
        va="top",
        fontsize=8,
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# ---- make compare


def comparison(measured: Measured) -> Figure:
    """A column for each fault, a row for each library."""
    libraries, cases, patience = measured["libraries"], measured["cases"], measured["patience"]
    figure, axes = _sheet(1.1 + 0.33 * len(libraries), columns=[1] * len(cases), sharey=True)
    names = [library["name"] for library in libraries]
    for column, (each, case) in enumerate(zip(axes[0], cases, strict=True)):
        _rows(each, names)
        each.set_title(_folded(case["case"], 12), fontsize=8.5, loc="center", pad=16)
        each.tick_params(axis="x", labelsize=7.5)
        for row, library in enumerate(libraries):
            colour = CALM if library["is_ours"] else FAINT
            seconds = library["seconds"][column]
            if case["is_alive"]:
                told = [each is not None for each in seconds]
                _accused(each, row, told, BAD if any(told) else colour, patience / 8)
            else:
                _runs(each, row, seconds, colour, patience * 1.15)
        each.set_xlim(0, patience * 1.3)
        if case["is_alive"]:
            each.set_xticks([])
            each.spines["bottom"].set_visible(False)
        else:
            _never(each, patience * 1.02, patience * 1.3, "")
            each.set_xticks([0, 5, 10])
    for label, library in zip(axes[0, 0].get_yticklabels(), libraries, strict=True):
        label.set_fontweight("bold" if library["is_ours"] else "normal")
    figure.suptitle(
        f"Seconds until the program is told, each dot a run; a cross: not in {patience:g} s. "
        "Last: a living peer, filled if it was called dead",
        fontsize=9.5,
        x=0.01,
        ha="left",
    )
    return figure


#: Of each name the figures, their titles, and who draws them.
FIGURES: dict[str, dict[str, tuple[str, Callable[[Measured], Figure]]]] = {
    "detection": {
        "detection": ("How soon a dead peer is told, and how often a living one is accused", detection),
        "detection-links": ("How soon a LongConnection and a LongServer are told", detection_links),
    },
    "chaos": {
        "chaos": ("How long sessions are silent under faults", chaos),
        "chaos-crowd": ("How a crowd of clients comes back", chaos_crowd),
    },
    "comparison": {"comparison": ("Who is told by which library, and when", comparison)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the figures of docs/ anew, from the JSON beside them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="one of " + ", ".join(FIGURES))
    parser.add_argument("--folder", type=Path, default=DOCS, help="where the JSON is (default docs/)")
    arguments = parser.parse_args()
    measured = [name for name in FIGURES if (arguments.folder / f"{name}.json").exists()]
    for name in arguments.names:
        if name not in FIGURES:
            parser.error(f"{name!r}: one of {', '.join(FIGURES)}")
        if name not in measured:
            parser.error(f"{name!r}: nothing was measured yet, {arguments.folder / name}.json isn't there")
    for name in arguments.names or measured:
        draw(name, arguments.folder)


if __name__ == "__main__":
    main()
