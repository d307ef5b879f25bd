"""Owns what holds for every test here: nothing is left behind, and nothing of the process is changed."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.pop("LONGCONN_KEEPALIVE", None)  # before longconn is imported: it is the default's
sys.path.insert(0, str(Path(__file__).parent))  # peers

import longconn
from peers import PATIENCE, native_threads, open_descriptors, wait_until

if not sys.platform.startswith("linux"):  # most look into /proc, or break connections as only Linux lets them
    ours = Path(__file__).parent.glob("test_*.py")
    collect_ignore = [path.name for path in ours if path.name != "test_everywhere.py"]


def state() -> tuple[object, ...]:
    """What tests change now and then."""
    hooks = sys.unraisablehook, threading.excepthook
    return socket.socket, socket.getdefaulttimeout(), longconn.default_keepalive(), *hooks


@pytest.fixture(autouse=True)
def _the_process_stays_as_it_was() -> Iterator[None]:
    before = state()
    yield
    assert state() == before


def running() -> set[threading.Thread]:
    """Python's threads, without the stand-ins that it makes for native threads which run Python code, as ours does."""
    return {thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}


@pytest.fixture(scope="session")
def _the_engine_has_begun() -> None:
    """Its descriptors, and those by which this thread is woken, stay for as long as the process."""
    with longconn.LongServer(("127.0.0.1", 0)) as server, longconn.connect(server.address) as client:
        with server.accept(timeout=PATIENCE):
            client.shutdown(socket.SHUT_WR)


@pytest.fixture(autouse=True, scope="session")
def _what_programs_write_is_no_matter_of_taste() -> Iterator[None]:
    """What the environment asks of rich, typer, argparse and mypy: colours, widths. pytest has heeded it already."""
    asked = "FORCE_COLOR NO_COLOR PY_COLORS MYPY_FORCE_COLOR TTY_COMPATIBLE GITHUB_ACTIONS COLUMNS LINES"
    with pytest.MonkeyPatch.context() as patch:
        for name in asked.split():
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left_behind(_the_engine_has_begun: None) -> Iterator[None]:
    """Threads, descriptors, and sockets that nobody has closed."""
    gc.collect()
    threads, descriptors = running(), open_descriptors()
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)  # pytest's unraisable hook makes a failure of it
        gc.collect()
    wait_until(lambda: running() <= threads, "threads end")
    wait_until(lambda: open_descriptors() <= descriptors, "descriptors are closed")
    ours = [name for name in native_threads() if name.startswith("longconn")]
    assert len(ours) == len(set(ours)), f"a native thread of each kind at most: {ours}"


@pytest.fixture
def default() -> Iterator[None]:
    """For tests that set the process's default."""
    yield
    longconn.set_default_keepalive(None)
