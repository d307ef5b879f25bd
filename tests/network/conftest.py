"""Owns how the network tests run: all cases at once in the background, each test waits for its own; or why none runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cases import Campaign
from lab import reason_unavailable

HERE = Path(__file__).parent


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
    """Runs the cases of all selected tests at once; they wait, mostly, so a CPU carries a dozen."""
    selected = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = {(call.params["name"], call.params["protection"]) for call in selected if call and "protection" in call.params}
    campaign = Campaign(jobs=12 * (os.cpu_count() or 1))
    campaign.start(wanted, trace=True)
    yield campaign
    campaign.close()
