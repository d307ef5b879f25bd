"""Owns how the network tests run: all cases at once, each test waits for its own; or why none runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # its modules are imported by name, as the processes they start do

from campaign import Campaign  # noqa: E402
from longconn.testing.network import reason_unavailable  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "network: needs network namespaces, by root or by a user namespace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    reason = reason_unavailable() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.network)
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"no network lab: {reason}"))


@pytest.fixture(scope="session")
def campaign(request: pytest.FixtureRequest):
    """Runs the cases of all selected tests at once, as far as they don't get in each other's way."""
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = {(each["name"], each["protection"]) for each in parameters if "protection" in each}
    campaign = Campaign()
    campaign.start(wanted, trace=True)
    yield campaign
    campaign.close()
