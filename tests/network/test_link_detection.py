"""Owns the proof that both sides of a LongConnection are told of a dead peer, soon and why; that a living one is left
alone; and that a hung one is known to be hung."""

from __future__ import annotations

import json
from typing import Any

import pytest
from link_cases import AGES, ALIVE, ALIVE_TLS, BROKEN, BROKEN_TLS, PROTECTION
from stage import SLACK

pytest.importorskip("longconn")
# The longest case takes 110 s, and begins when those that want quiet are over.
pytestmark = pytest.mark.timeout(300 * SLACK)
# The bounds are those of docs/detection.md, doubled: here everything runs at once.
ALLOWANCE = 2 * SLACK


def _outcome(campaign: Any, case: Any) -> dict[str, Any]:
    """What the run has brought; pytest shows the samples of TCP_INFO that it took, if the test then fails."""
    outcome = campaign.outcome(case.name, PROTECTION)
    assert "failure" not in outcome, outcome["failure"]
    for sample in outcome.pop("samples", []):
        print(" ".join(f"{field}={value}" for field, value in sample.items()))
    print(json.dumps(outcome, indent=2))
    return outcome


def _each(cases: list[Any]) -> Any:
    """With the parameters by which the campaign finds its cases."""
    return pytest.mark.parametrize(
        ("case", "name", "protection"),
        [pytest.param(case, case.name, PROTECTION, id=case.name) for case in cases],
    )


@_each([*BROKEN, *BROKEN_TLS])
def test_each_side_that_survives_is_told_in_time_and_why(campaign, case, name, protection):
    outcome = _outcome(campaign, case)
    assert case.complaint(outcome, ALLOWANCE) is None
    for report in outcome["ends"].values():
        expect_peer_lost(report)


def expect_peer_lost(report: dict[str, Any]) -> None:
    """The error's attributes fit its cause and each other."""
    cause = report["cause"]
    assert {"PeerLost", "LongConnError", "ConnectionError"} <= set(report["kinds"])
    assert ("ConnectionResetError" in report["kinds"]) == (cause == "reset")
    assert report["kernel_answers"] == {"unreachable": False, "frozen": True, "hung": True}.get(
        cause, report["kernel_answers"]
    )
    assert report["level"] in {
        "unreachable": ("path",),
        "frozen": ("interpreter",),
        "deaf": ("path",),
        "hung": ("interpreter", "application"),
    }.get(cause, (None,))
    if cause in ("unreachable", "frozen", "silent"):
        assert report["silence"] >= report["limit"]
        # Two round trips are part of a limit that wasn't set.
        assert report["limit"] >= (report["limit_was"] or 2.5)


@_each([*ALIVE, *ALIVE_TLS])
def test_a_living_peer_is_not_given_up_and_everything_arrives(campaign, case, name, protection):
    assert case.complaint(_outcome(campaign, case)) is None


@_each(AGES)
def test_a_hung_peer_is_known_to_hang_since_when_and_at_which_level(campaign, case, name, protection):
    assert case.complaint(_outcome(campaign, case), ALLOWANCE) is None
