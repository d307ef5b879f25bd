"""Owns the proof that a session survives what breaks its links: each message arrives once and in order, or is told to be
undelivered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from session_cases import CABLES, CHAOS, KILLED, PROTECTION, SURVIVES
from stage import SLACK

pytest.importorskip("longconn")
# The first test to ask for an outcome may wait for most of the others.
pytestmark = pytest.mark.timeout(300 * SLACK)
# The bounds are those of docs/chaos.md, doubled: here everything runs at once.
ALLOWANCE = 2 * SLACK


def _check(campaign: Any, case: Any) -> None:
    """That the run has brought no complaint; pytest shows all of it, if it has."""
    outcome = campaign.outcome(case.name, PROTECTION)
    assert "failure" not in outcome, outcome["failure"]
    print(json.dumps(outcome))
    assert case.complaint(outcome, ALLOWANCE) is None


def _each(cases: list[Any]) -> Any:
    """With the parameters by which the campaign finds its cases."""
    return pytest.mark.parametrize(
        ("case", "name", "protection"),
        [pytest.param(case, case.name, PROTECTION, id=case.name) for case in cases],
    )


@_each(CHAOS)
def test_chaos_loses_and_doubles_nothing(campaign, case, name, protection):
    _check(campaign, case)


@_each(SURVIVES)
def test_what_an_old_link_still_brings_changes_nothing_and_holes_are_found(campaign, case, name, protection):
    _check(campaign, case)


@_each(CABLES)
def test_messages_come_soon_after_a_cable_is_back(campaign, case, name, protection):
    _check(campaign, case)


@_each(KILLED)
def test_who_survives_a_kill_is_told_what_was_not_taken(campaign, case, name, protection):
    _check(campaign, case)
