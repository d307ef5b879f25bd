"""Owns the proof that a dead peer is told, soon and with the right cause, and that a living one never is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cases import CASES, CONTRAST, HELD, Alive, Broken
from programs import LIMIT
from stage import SLACK

pytest.importorskip("longconn")
# The first test to ask for an outcome may wait for most of the others.
pytestmark = pytest.mark.timeout(300 * SLACK)

DEAD = [each for each in HELD if isinstance(CASES[each[0]], Broken)]
LIVING = [each for each in HELD if isinstance(CASES[each[0]], Alive)]
NEVER_TOLD = [each for each in CONTRAST if each[1] == "stdlib" and each[0] in ("cable-sending", "cable-slow-reader")]
FALSELY_TOLD = [each for each in CONTRAST if each[1] == "user-timeout" and each[0].startswith("reads")]


def _outcome(campaign: Any, name: str, protection: str) -> dict[str, Any]:
    """What the run has brought; pytest shows the samples of TCP_INFO that it took, if the test then fails."""
    if protection == "redis":
        pytest.importorskip("redis")
    outcome = campaign.outcome(name, protection)
    assert "failure" not in outcome, outcome["failure"]
    for sample in outcome.pop("samples", []):
        print(" ".join(f"{field}={value}" for field, value in sample.items()))
    print(json.dumps(outcome, indent=2))
    return outcome


@pytest.mark.parametrize(("name", "protection"), DEAD)
def test_a_dead_peer_is_told_in_time_with_its_cause(campaign, name, protection):
    case = CASES[name]
    outcome = _outcome(campaign, name, protection)
    # The bounds are those of docs/detection.md, doubled: here everything runs at once.
    assert case.complaint(outcome, 2 * SLACK) is None
    assert outcome["lost"] == case.cause
    EXPECT[protection](outcome, case)


def expect_peer_lost(outcome: dict[str, Any], case: Broken) -> None:
    assert {"PeerLost", "LongConnError", "ConnectionError"} <= set(outcome["kinds"])
    if case.cause == "reset":
        assert "ConnectionResetError" in outcome["kinds"]
    else:
        assert "TimeoutError" in outcome["kinds"]
        # The peer may have been silent before the path broke, for a second at most.
        assert outcome["told"] - 0.5 * SLACK <= outcome["silence"] <= outcome["told"] + 2.5 or case.cause == "deaf"
        # The limit of who convicted: the guard's, or the kernel's keepalive (1 + 1 * 3 s).
        assert outcome["limit"] in (LIMIT, 4)
    assert outcome["afterwards"] == ["b''", "BrokenPipeError"]


def expect_error_and_callback(outcome: dict[str, Any], case: Broken) -> None:
    """A stdlib socket raises what it always raises; the guard's handle and callback tell the rest."""
    assert outcome["seen"] in ("ConnectionResetError", "BrokenPipeError", "TimeoutError")
    assert outcome["callback"] is not None, "on_lost wasn't called"
    assert outcome["callback"] <= 2 * case.bound * SLACK
    assert outcome["callback_cause"] == case.cause


def expect_redis_error(outcome: dict[str, Any], case: Broken) -> None:
    """redis-py wraps what its socket raises; its next command makes a new connection."""
    assert outcome["seen"] in ("ConnectionError", "TimeoutError")
    assert "RedisError" in outcome["kinds"]
    assert outcome["callback_cause"] == case.cause
    assert outcome["afterwards"] == ["True"]


EXPECT = {"socket": expect_peer_lost, "guard": expect_error_and_callback, "redis": expect_redis_error}


@pytest.mark.parametrize(("name", "protection"), [("cable-idle", "kernel"), ("cable-sending-polite", "kernel")])
def test_the_kernels_own_verdict_is_peer_lost_too(campaign, name, protection):
    """Whatever its errno: after an ICMP "unreachable" the kernel ends a connection with that, not with ETIMEDOUT."""
    outcome = _outcome(campaign, name, protection)
    assert "PeerLost" in outcome["kinds"]
    assert outcome["cause"] == outcome["lost"] == "unreachable"


@pytest.mark.parametrize(("name", "protection"), LIVING)
def test_a_living_peer_raises_no_alarm(campaign, name, protection):
    outcome = _outcome(campaign, name, protection)
    assert CASES[name].complaint(outcome) is None


# The two holes that the guard closes. If these fail, the cases above prove nothing.


@pytest.mark.parametrize(("name", "protection"), NEVER_TOLD)
def test_the_stdlib_is_not_told_while_data_are_in_flight(campaign, name, protection):
    assert _outcome(campaign, name, protection)["told"] is None


@pytest.mark.parametrize(("name", "protection"), FALSELY_TOLD)
def test_a_user_timeout_kills_slow_readers(campaign, name, protection):
    assert _outcome(campaign, name, protection)["alarms"] > 0
