"""Owns the proof that a session survives what breaks its links: each message arrives once and in order, or is told to
be undelivered."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from typing import Any

import pytest
from longconn.testing.network import Lab, is_privileged
from session_cases import CABLES, CHAOS, CROWDS, KILLED, PROTECTION, SURVIVES
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


@_each(CROWDS)
def test_a_crowd_that_is_cut_at_once_comes_back_spread_and_loses_nothing(campaign, case, name, protection):
    _check(campaign, case)


CONNECT = """
import sys, longconn
try:
    longconn.connect((sys.argv[1], 8083))
except longconn.ConnectFailed as error:
    print(error.errno)
"""


@pytest.fixture
def lab():
    if not is_privileged():
        pytest.skip("makes a lab in the test process itself, which takes root")
    with Lab() as lab:
        yield lab


def connecting(lab: Lab, to: str) -> str:
    """What becomes of an attempt of the client's, to where nobody listens."""
    argv = [sys.executable, "-c", CONNECT, to]
    return lab.popen("client", argv, stdout=subprocess.PIPE, text=True).communicate(timeout=60 * SLACK)[0].strip()


def test_who_has_no_carrier_does_not_send_the_kernel_looking_for_the_gateway(lab):
    """It would look for 3 s, and then answer EHOSTUNREACH."""
    lab.pull("client")
    assert connecting(lab, lab.address("server")) == str(errno.ENETDOWN)
    assert lab._run("client", "ip", "neighbour") == ""
    lab.plug("client")
    assert connecting(lab, lab.address("server")) == str(errno.ECONNREFUSED)


def test_without_a_carrier_ones_own_addresses_are_there(lab):
    lab.pull("client")
    assert connecting(lab, lab.address("client")) == str(errno.ECONNREFUSED)
    assert connecting(lab, "127.0.0.1") == str(errno.ECONNREFUSED)


def test_a_route_that_has_other_interfaces_is_tried(lab):
    """Which of them a connection takes isn't known before."""
    lab.pull("client")
    wiring = "link add other type veth peer name end\nlink set end up\nlink set other up\n"
    wiring += "address add 10.99.0.2/24 dev other\n"
    hops = f"nexthop via {lab.gateway('client')} dev eth0 weight 100 nexthop via 10.99.0.1 dev other"
    lab._run("client", "ip", "-batch", "-", stdin=f"{wiring}route replace default {hops}\n")
    # By either, in vain: nobody answers.
    assert connecting(lab, lab.address("server")) != str(errno.ENETDOWN)
