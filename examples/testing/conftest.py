"""Servers for each test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # servers

from servers import Postgres, Redis, Server, Web, served


@pytest.fixture
def redis_server() -> Iterator[Server]:
    with served(Redis) as server:
        yield server


@pytest.fixture
def web_server() -> Iterator[Server]:
    with served(Web) as server:
        yield server


@pytest.fixture
def postgres_server() -> Iterator[Server]:
    with served(Postgres) as server:
        yield server
