"""Owns the tables and figures of `make detect`: how soon each death is told, how often a living peer is accused.

The cases are those of tests/network/cases.py and link_cases.py; here each runs several times, with the faults spread
over a period of keepalive or heartbeat. Exit status 1 when a bound is broken, a cause is wrong or a living peer is
accused.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "network"))

import figures
import link_cases
from campaign import CASES, CROWD, Campaign
from cases import CONTRAST, HELD, Alive, Broken
from link_cases import PROTECTION, LinkAges, LinkAlive, LinkBroken, Told
from longconn.testing.network import reason_unavailable
from programs import COUNT, IDLE, INTERVAL, LIMIT, PROTECTIONS
from stage import PATIENCE, SLACK

Outcome = dict[str, Any]

DEAD = ["connection", "case", "seen by the program", "cause", "median", "worst", "bound"]
LIVING = ["connection", "case", "false alarms", "everything arrived"]
LINK_DEAD = ["case", "told is", "cause", "median", "worst", "bound"]
LINK_LIVING = ["case", "false alarms", "everything arrived"]
LINK_HUNG = ["case", "first reported: median", "worst", "age wrong by at most", "bound"]
RUNS: dict[type, int] = {Broken: 10, Alive: 10, LinkBroken: 5, LinkAlive: 10, LinkAges: 5}
LINK_HELD = [(name, PROTECTION) for name in link_cases.CASES]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how long a dead peer takes to be told.")
    parser.add_argument("--runs", type=int, help="runs of each case (default 10; of a broken LongConnection 5)")
    parser.add_argument("--jobs", type=int, default=CROWD, help="runs at once; they mostly wait")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases with this in `case protection`")
    parser.add_argument("--json", metavar="FILE", help="write every single outcome there")
    parser.add_argument(
        "--figures", type=Path, metavar="DIRECTORY", help="draw there (default docs/, or nowhere with --only)"
    )
    arguments = parser.parse_args()
    if reason := reason_unavailable():
        print(f"no network lab can be made here: {reason}", file=sys.stderr)
        return 2
    held, links, contrast = (
        [each for each in wanted if arguments.only in " ".join(each)] for wanted in (HELD, LINK_HELD, CONTRAST)
    )
    runs = dict.fromkeys(RUNS, arguments.runs) if arguments.runs else RUNS
    campaign = Campaign(arguments.jobs)
    campaign.start(held + links + contrast, runs=runs)
    try:
        outcomes = _collect(campaign, held + links + contrast, runs)
    finally:
        campaign.close()
    if arguments.json:
        every = [{"case": name, "protection": way, "runs": runs} for (name, way), runs in outcomes.items()]
        Path(arguments.json).write_text(json.dumps({"where": where(), "outcomes": every}, indent=1) + "\n")
    if folder := arguments.figures or (None if arguments.only else figures.DOCS):
        figures.keep("detection", _measured(held + contrast, links, outcomes), folder)
    complaints = [text for each in held + links for text in _complaints(*each, outcomes[each])]
    print("\n\n".join([where(), *_sockets(held, contrast, outcomes), *_links(links, outcomes)]))
    print("\n".join(complaints) or "Every bound held.", file=sys.stderr)
    return min(len(complaints), 1)


Outcomes = dict[tuple[str, str], list[Outcome]]


def _collect(campaign: Campaign, wanted: list[tuple[str, str]], runs: dict[type, int]) -> Outcomes:
    outcomes: Outcomes = {}
    for done, each in enumerate(wanted):
        if sys.stderr.isatty():
            print(f"\r{done} of {len(wanted)} cases", end="\r", file=sys.stderr)
        outcomes[each] = [campaign.outcome(*each, number) for number in range(runs[type(CASES[each[0]])])]
    return outcomes


def _complaints(name: str, protection: str, outcomes: list[Outcome]) -> list[str]:
    """What is wrong with a case that has to hold, a line each."""
    case, complaints = CASES[name], []
    for number, outcome in enumerate(outcomes):
        if wrong := outcome.get("failure") or case.complaint(outcome, SLACK):
            complaints.append(f"{name}, {protection}, run {number}: {wrong}")
    if isinstance(case, LinkBroken):
        for host, told in case.told.items():
            median = statistics.median_low(_times(outcomes, host))
            if told.median is not None and median > told.median * SLACK:
                complaints.append(f"{name}: {host} told after {median:.3f} s at the median, not {told.median:.3f} s")
    return complaints


def _measured(sockets: list[tuple[str, str]], links: list[tuple[str, str]], outcomes: Outcomes) -> figures.Measured:
    """What the figures show: of each case, by connection, every run."""
    by_case: dict[str, Outcome] = {}
    for name, protection in sockets:
        case, runs = CASES[name], outcomes[name, protection]
        is_broken = isinstance(case, Broken)
        record = by_case.setdefault(name, {"case": case.title} | ({"bound": case.bound} if is_broken else {}))
        seen: Callable[[Outcome], object] = (
            (lambda run: run.get("told")) if is_broken else (lambda run: bool(run.get("alarms")))
        )
        each = record.setdefault("told" if is_broken else "accused", {})
        each[PROTECTIONS[protection].title] = [seen(run) for run in runs]
    return {
        "where": where(),
        "patience": PATIENCE * SLACK,
        "sockets": [*by_case.values()],
        "links": [
            {
                "case": case.title,
                "bounds": {host: told.bound for host, told in case.told.items()},
                "told": {
                    host: [run.get("ends", {}).get(host, {}).get("told") for run in outcomes[each]]
                    for host in case.told
                },
            }
            for each in links
            if isinstance(case := CASES[each[0]], LinkBroken)
        ],
    }


def _sockets(held: list[tuple[str, str]], contrast: list[tuple[str, str]], outcomes: Outcomes) -> list[str]:
    def tables(title: str, wanted: list[tuple[str, str]]) -> list[str]:
        dead = [_row_dead(*each, outcomes[each]) for each in wanted if isinstance(CASES[each[0]], Broken)]
        living = [
            [PROTECTIONS[each[1]].title, *_row_living(each[0], outcomes[each])]
            for each in wanted
            if not isinstance(CASES[each[0]], Broken)
        ]
        return [
            *([f"{title}, a peer that dies:", table(DEAD, dead)] if dead else []),
            *([f"{title}, a peer that lives:", table(LIVING, living)] if living else []),
        ]

    if not held + contrast:
        return []
    return [
        "## Sockets",
        f"Keepalive({IDLE}, {INTERVAL}, {COUNT}, guard={LIMIT}). Seconds from the fault to the exception.",
        *tables("With longconn", held),
        *tables("For contrast, without longconn", contrast),
    ]


def _links(links: list[tuple[str, str]], outcomes: Outcomes) -> list[str]:
    dead, living, hung = [], [], []
    for each in links:
        case, runs = CASES[each[0]], outcomes[each]
        if isinstance(case, LinkBroken):
            dead += [_row_told(case.title, host, told, runs) for host, told in case.told.items()]
        elif isinstance(case, LinkAlive):
            living.append(_row_living(each[0], runs))
        elif isinstance(case, LinkAges):
            hung.append(_row_hung(case, runs))
    if not links:
        return []
    return [
        "## LongConnection and LongServer",
        "Heartbeat(1.0) on both sides, if it doesn't say otherwise; the default limit is 2.5 s. Seconds from the fault "
        "to the exception.",
        *(["A peer that dies:", table(LINK_DEAD, dead)] if dead else []),
        *(["A peer that lives:", table(LINK_LIVING, living)] if living else []),
        *(["A peer that hangs, and what `stats()` says of its age:", table(LINK_HUNG, hung)] if hung else []),
    ]


def _times(outcomes: list[Outcome], host: str) -> list[float]:
    """When the host was told, with infinity for never: as such it keeps its place in the order."""
    ends = [outcome.get("ends", {}).get(host, {}) for outcome in outcomes]
    return [float("inf") if end.get("told") is None else end["told"] for end in ends]


def _row_told(title: str, host: str, told: Told, outcomes: list[Outcome]) -> list[str]:
    times = _times(outcomes, host)
    digits = 2 if told.median is None else 4
    return [
        title,
        f"the {host}",
        _counted(outcome["ends"][host]["way"] if "ends" in outcome else "the run failed" for outcome in outcomes),
        _seconds(statistics.median_low(times), digits),
        _seconds(max(times), digits),
        f"{told.bound:.1f}" if told.median is None else f"median {told.median}",
    ]


def _row_hung(case: LinkAges, outcomes: list[Outcome]) -> list[str]:
    reported = [outcome.get("reported") or float("inf") for outcome in outcomes]
    wrong = [max(outcome["deviation"].values()) if "deviation" in outcome else float("inf") for outcome in outcomes]
    seconds = [_seconds(value) for value in (statistics.median_low(reported), max(reported), max(wrong))]
    return [case.title, *seconds, f"{case.bound:.1f}"]


def _row_dead(name: str, protection: str, outcomes: list[Outcome]) -> list[str]:
    case = CASES[name]
    assert isinstance(case, Broken)
    # Who wasn't told waited for PATIENCE at least; as infinity it keeps its place in the order.
    told = [float("inf") if outcome.get("told") is None else outcome["told"] for outcome in outcomes]
    return [
        PROTECTIONS[protection].title,
        case.title,
        _counted(outcome.get("seen", "the run failed") for outcome in outcomes),
        _counted(outcome.get("cause") or "none" for outcome in outcomes),
        _seconds(statistics.median_low(told)),
        _seconds(max(told)),
        f"{case.bound:.1f}",
    ]


def _row_living(name: str, outcomes: list[Outcome]) -> list[str]:
    accused = sum(bool(outcome.get("alarms")) for outcome in outcomes)
    whole = sum(outcome.get("whole", False) for outcome in outcomes)
    total = len(outcomes)
    return [CASES[name].title, f"{accused} of {total}", f"{whole} of {total}"]


def _seconds(value: float, digits: int = 2) -> str:
    return f"never (in {PATIENCE * SLACK:.0f})" if value == float("inf") else f"{value:.{digits}f}"


def _counted(names: Iterable[str]) -> str:
    """One name, or several with how often each was seen."""
    counted = Counter(names).most_common()
    return counted[0][0] if len(counted) == 1 else ", ".join(f"{name} ({times})" for name, times in counted)


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def where() -> str:
    kernel = ".".join(platform.release().split(".")[:2])
    return (
        f"Linux {kernel}, {platform.python_implementation()} {platform.python_version()}, "
        f"{os.cpu_count()} CPUs ({platform.machine()})."
    )


if __name__ == "__main__":
    sys.exit(main())
