"""Owns docs/chaos.md and its figures, as `make chaos` writes them: what sessions survive, in the network lab.

The cases are those of tests/network/session_cases.py; the chaos is the long one, and cables are pulled several times.
Exit status 1 when a message was lost or came twice, memory grew, or a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "network"))

import figures
from campaign import CASES, Campaign
from detect import table, where
from link_programs import OVER_TLS
from longconn.testing.network import HOSTS, reason_unavailable
from session_cases import CABLES, CROWDS, FLAT, KILLED, LONG_CHAOS, PROTECTION, SURVIVES, Chaos
from stage import SLACK

Outcome = dict[str, Any]

PAGE = Path(__file__).parent.parent / "docs" / "chaos.md"
# Seconds of a bar of the crowd's figure.
BIN = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description="Break the links of sessions, for a quarter of an hour.")
    parser.add_argument("--runs", type=int, default=10, help="of each case with a cable or a kill (default 10)")
    parser.add_argument("--seed", type=int, help="of the chaos; left out, another one each time")
    parser.add_argument("--json", metavar="FILE", help="write every single outcome there")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases with this in them; writes no page")
    parser.add_argument("--tls", action="store_true", help="all of it over TLS; writes no page")
    arguments = parser.parse_args()
    if reason := reason_unavailable():
        print(f"no network lab can be made here: {reason}", file=sys.stderr)
        return 2
    if arguments.tls:
        os.environ[OVER_TLS] = "1"
    if arguments.seed is not None:
        os.environ[Chaos.SEED] = str(arguments.seed)
    runs = dict.fromkeys([*CABLES, *KILLED, *SURVIVES], arguments.runs) | dict.fromkeys([*CROWDS, LONG_CHAOS], 1)
    outcomes: dict[str, list[Outcome]] = {}
    # One kind after the other: who computes would have part in what the others take.
    for cases in ([*CABLES], [*KILLED, *SURVIVES], [*CROWDS], [LONG_CHAOS]):
        wanted = [case for case in cases if arguments.only in case.name]
        campaign = Campaign()
        for case in wanted:
            campaign.start([(case.name, PROTECTION)], runs={type(case): runs[case]})
        for case in wanted:
            outcomes[case.name] = [campaign.outcome(case.name, PROTECTION, run) for run in range(runs[case])]
            print(f"{case.name}: {runs[case]} runs", file=sys.stderr, flush=True)
        campaign.close()
    complaints = [
        f"{name}, run {number}: {wrong}"
        for name, results in outcomes.items()
        for number, outcome in enumerate(results)
        if (wrong := outcome.get("failure") or CASES[name].complaint(outcome, SLACK))
    ]
    print("\n".join(complaints) or "Every bound held.", file=sys.stderr)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(outcomes) + "\n")
    # A machine that does other things as well may miss a bound of time: the page shows it.
    is_page = not arguments.only and not arguments.tls
    if is_page and all("failure" not in outcome for results in outcomes.values() for outcome in results):
        figures.keep("chaos", _measured(outcomes))
        PAGE.write_text("\n\n".join(_page(outcomes, complaints)) + "\n")
    return min(len(complaints), 1)


def _measured(outcomes: dict[str, list[Outcome]]) -> figures.Measured:
    """What the figures show."""
    return {
        "where": where(),
        "faults": [
            {"fault": kind, "seconds": told["gaps"]} for kind, told in outcomes[LONG_CHAOS.name][0]["faults"].items()
        ],
        "cable_bound": CABLES[0].bound,
        "cables": [{"case": case.title, "seconds": _after(outcomes[case.name])} for case in CABLES],
        "crowds": [_counted(case, outcomes[case.name][0]) for case in CROWDS],
    }


def _after(runs: list[Outcome]) -> list[float]:
    """Of each run, the end to which it took longer."""
    return [max(end["after"] for end in outcome["ends"].values()) for outcome in runs]


def _counted(case: Any, outcome: Outcome) -> Outcome:
    """Attempts of a crowd in each bin, and as many as the dice promise while the server is down."""
    attempts, down, dice = outcome["attempts"], outcome["down"], 10

    def in_bins(moments: list[float], most: float) -> list[int]:
        counts = Counter(int(at / BIN) for at in moments)
        return [counts[number] for number in range(int(most / BIN))]

    meant = in_bins(case.expected(down, dice), down)
    return {
        "case": case.title,
        "bin": BIN,
        "down": down,
        "all_back": outcome["all_back"],
        "seen": in_bins(attempts, max(attempts) + BIN),
        "meant": [round(times / dice) for times in meant],
    }


def _page(outcomes: dict[str, list[Outcome]], complaints: list[str]) -> Iterator[str]:
    yield "# Sessions under chaos"
    yield (
        "What sessions survive, as `make chaos` measured it and wrote it here, in the network lab of the test kit: "
        "two hosts and a router between them, namespaces of one machine. Shorter forms are in the test suite."
    )
    yield where()
    if complaints:
        yield "**Not everything held in this run:**\n\n" + "\n".join(f"- {complaint}" for complaint in complaints)
    yield "![Every silence under each kind of fault, and every run of a cable that is back](chaos.svg)"
    yield "(Drawn from `chaos.json`, which the run has kept beside this page.)"
    yield from _chaos(outcomes[LONG_CHAOS.name][0])
    yield from _cables(outcomes)
    yield from _others(outcomes)
    yield "## Crowds"
    yield "![Attempts to connect, each half second, and what the backoff promises](chaos-crowd.svg)"
    for case in CROWDS:
        yield from _crowd(case, outcomes[case.name][0])


def _chaos(outcome: Outcome) -> Iterator[str]:
    ends = outcome["ends"]
    faults = sum(told["faults"] for told in outcome["faults"].values())
    yield "## Faults of all kinds"
    yield (
        f"{faults} faults in {outcome['took']:.0f} s, while both ends sent each other {ends['client']['sent']:,} and "
        f"{ends['server']['sent']:,} numbered messages: each arrived once and in order. Heartbeat(0.25), so the limit "
        f"is 1.1 s; the client sits behind a NAT. Seed {outcome['seed']} "
        "(`.venv/bin/python benches/chaos.py --seed ...`). A time without a message, at either end, is from the last "
        "one before the fault to the first one after; where the next fault struck before that, it counts as several in "
        "a row."
    )
    rows = [
        [kind, str(told["faults"] or ""), f"{told['median']:.2f}", f"{told['longest']:.2f}"]
        for kind, told in outcome["faults"].items()
    ]
    yield table(["fault", "times", "seconds without a message: median", "longest"], rows)
    rows = []
    for host in HOSTS:
        causes = Counter(cause for _, state, cause, *_ in ends[host]["events"] if state == "reconnecting")
        replayed = sum(replayed or 0 for *_, replayed, _ in ends[host]["events"])
        memory = outcome["memory"][host]
        rows.append(
            [
                f"the {host}",
                str(ends[host]["connections"]),
                ", ".join(f"{cause} {times}" for cause, times in causes.most_common()),
                f"{replayed:,}",
                ", ".join(f"{memory[third]:.1f}" for third in ("first", "middle", "last", "most")),
            ]
        )
    columns = ["end", "connections", "lost for", "messages sent again", "MiB: first, middle, last third, most"]
    yield table(columns, rows)
    yield (
        "Memory is the resident set of a process, Python included, after each fault; of thirds, medians. The last "
        f"third may be {FLAT:.0f} MiB above the first."
    )


def _cables(outcomes: dict[str, list[Outcome]]) -> Iterator[str]:
    yield "## A cable is back"
    yield (
        "Both ends send 100 messages a second, Heartbeat(1.0). Seconds from the cable's return to the next message, at "
        f"the end to which that took longer. {len(outcomes[CABLES[0].name])} runs each; the bound is 1."
    )
    rows = []
    for case in CABLES:
        after = _after(outcomes[case.name])
        rows.append([case.title, f"{statistics.median(after):.3f}", f"{max(after):.3f}"])
    yield table(["case", "median", "worst"], rows)


def _others(outcomes: dict[str, list[Outcome]]) -> Iterator[str]:
    yield "## Killed, thawed, late, swallowed"
    yield (
        f"{len(outcomes[KILLED[0].name])} runs each. Each message arrived once and in order, over so many connections; "
        "or, where a process was killed, the other side's `SessionLost.undelivered` held each that wasn't taken, and "
        "beyond these only some whose ACK was not due yet or under way."
    )
    rows = []
    for case in SURVIVES:
        connections = sorted({outcome["ends"]["client"]["connections"] for outcome in outcomes[case.name]})
        rows.append([case.title, " or ".join(map(str, connections)) + " connections"])
    for case in KILLED:
        doubtful = [outcome["doubtful"] for outcome in outcomes[case.name]]
        messages = max(each["messages"] for each in doubtful)
        age = max(each["age"] for each in doubtful)
        rows.append([case.title, f"at most {messages} taken and not known to be, for {age * 1000:.0f} ms"])
    yield table(["case", "seen"], rows)


def _crowd(case: Any, outcome: Outcome) -> Iterator[str]:
    yield f"### {case.title[:1].upper()}{case.title[1:]}"
    yield (
        f"Backoff({case.first}, {case.cap:g}). The figure has attempts to connect as the server's host saw them (SYN), "
        "in each half second, and what the backoff says, by dice. All were back "
        f"{outcome['all_back']:.1f} s after the server. Of {sum(outcome['taken'].values()):,} messages "
        f"{outcome['taken'].get('0', 0)} were lost, and "
        f"{sum(times for number, times in outcome['taken'].items() if number not in '01')} came twice. "
        f"(`.venv/bin/python benches/chaos.py --only {case.name}` does it again.)"
    )


if __name__ == "__main__":
    sys.exit(main())
