"""Owns the table of `make detect`: how soon each kind of death is told, and how often a living peer is accused.

The cases are those of tests/network/cases.py; here each runs several times, with the faults spread over the keepalive's
period. Exit status 1 when a bound is broken, a cause is wrong or a living peer is accused.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "network"))

from cases import CASES, CONTRAST, HELD, PATIENCE, SLACK, Broken, Campaign
from lab import reason_unavailable
from programs import COUNT, IDLE, INTERVAL, LIMIT, PROTECTIONS

Outcome = dict[str, Any]

DEAD = ["connection", "case", "seen by the program", "cause", "median", "worst", "bound"]
LIVING = ["connection", "case", "false alarms", "everything arrived"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how long a dead peer takes to be told.")
    parser.add_argument("--runs", type=int, default=10, help="runs of each case (default 10)")
    parser.add_argument("--jobs", type=int, default=12 * (os.cpu_count() or 1), help="runs at once; they mostly wait")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases with this in `case protection`")
    parser.add_argument("--json", metavar="FILE", help="write every single outcome there")
    arguments = parser.parse_args()
    if reason := reason_unavailable():
        print(f"no network lab can be made here: {reason}", file=sys.stderr)
        return 2
    held, contrast = ([each for each in wanted if arguments.only in " ".join(each)] for wanted in (HELD, CONTRAST))
    campaign = Campaign(arguments.jobs)
    campaign.start(held + contrast, runs=arguments.runs)
    try:
        outcomes = _collect(campaign, held + contrast, arguments.runs)
    finally:
        campaign.close()
    complaints = [text for each in held for text in _complaints(*each, outcomes[each])]
    print(_report(held, contrast, outcomes, arguments.runs))
    print("\n".join(complaints) or "Every bound held.", file=sys.stderr)
    if arguments.json:
        every = [{"case": name, "protection": way, "runs": runs} for (name, way), runs in outcomes.items()]
        Path(arguments.json).write_text(json.dumps({"where": _where(), "outcomes": every}, indent=1) + "\n")
    return min(len(complaints), 1)


def _collect(campaign: Campaign, wanted: list[tuple[str, str]], runs: int) -> dict[tuple[str, str], list[Outcome]]:
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    for done, each in enumerate(wanted):
        if sys.stderr.isatty():
            print(f"\r{done} of {len(wanted)} cases", end="\r", file=sys.stderr)
        outcomes[each] = [campaign.outcome(*each, number) for number in range(runs)]
    return outcomes


def _complaints(name: str, protection: str, outcomes: list[Outcome]) -> list[str]:
    """What is wrong with a case that has to hold, a line each."""
    case, complaints = CASES[name], []
    for number, outcome in enumerate(outcomes):
        if "failure" in outcome:
            wrong = outcome["failure"]
        elif not isinstance(case, Broken):
            if not outcome["alarms"] and outcome["whole"]:
                continue
            wrong = f"{outcome['alarms']} alarms, everything arrived: {outcome['whole']}"
        elif outcome["told"] is None:
            wrong = "never told"
        elif outcome["cause"] != case.cause:
            wrong = f"cause {outcome['cause']}, expected {case.cause}"
        elif not case.earliest <= outcome["told"] <= case.bound * SLACK:
            wrong = f"told after {outcome['told']:.2f} s, not in {case.earliest:.2f} to {case.bound * SLACK:.2f} s"
        else:
            continue
        complaints.append(f"{name}, {protection}, run {number}: {wrong}")
    return complaints


def _report(
    held: list[tuple[str, str]],
    contrast: list[tuple[str, str]],
    outcomes: dict[tuple[str, str], list[Outcome]],
    runs: int,
) -> str:
    def tables(title: str, wanted: list[tuple[str, str]]) -> list[str]:
        dead = [_row_dead(*each, outcomes[each]) for each in wanted if isinstance(CASES[each[0]], Broken)]
        living = [_row_living(*each, outcomes[each]) for each in wanted if not isinstance(CASES[each[0]], Broken)]
        return [
            *([f"{title}, a peer that dies:", _table(DEAD, dead)] if dead else []),
            *([f"{title}, a peer that lives:", _table(LIVING, living)] if living else []),
        ]

    settings = f"Keepalive({IDLE}, {INTERVAL}, {COUNT}, guard={LIMIT}), {runs} runs of each case."
    return "\n\n".join(
        [
            _where(),
            f"{settings} Seconds from the fault to the exception.",
            *tables("With longconn", held),
            *tables("For contrast, without longconn", contrast),
        ]
    )


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


def _row_living(name: str, protection: str, outcomes: list[Outcome]) -> list[str]:
    accused = sum(bool(outcome.get("alarms")) for outcome in outcomes)
    whole = sum(outcome.get("whole", False) for outcome in outcomes)
    total = len(outcomes)
    return [PROTECTIONS[protection].title, CASES[name].title, f"{accused} of {total}", f"{whole} of {total}"]


def _seconds(value: float) -> str:
    return f"never (in {PATIENCE * SLACK:.0f})" if value == float("inf") else f"{value:.2f}"


def _counted(names: Any) -> str:
    """One name, or several with how often each was seen."""
    counted = Counter(names).most_common()
    return counted[0][0] if len(counted) == 1 else ", ".join(f"{name} ({times})" for name, times in counted)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _where() -> str:
    kernel = ".".join(platform.release().split(".")[:2])
    return (
        f"Linux {kernel}, {platform.python_implementation()} {platform.python_version()}, "
        f"{os.cpu_count()} CPUs ({platform.machine()})."
    )


if __name__ == "__main__":
    sys.exit(main())
