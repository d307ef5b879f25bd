"""Log records: they come from the native side, by the logging module, and only where the program asks for them."""

from __future__ import annotations

import ctypes
import logging
import threading
from pathlib import Path

import longconn
import pytest
from longconn import Keepalive
from peers import PATIENCE, STDLIB, connected, cut_off, python, wait_until

HERE = Path(__file__).parent

LOSE = """
import sys
sys.path.insert(0, sys.argv[1])
import longconn
from peers import QUICK, connected, cut_off, wait_until
with connected(keepalive=QUICK) as (ours, peer):
    cut_off(peer)
    ours.send(b"into the void")
    try:
        ours.recv(1)
    except longconn.PeerLost as error:
        print(error.cause)
"""


def lose_one() -> int:
    """Returns the descriptor's number, once the callback was called, before which all records were delivered."""
    told = threading.Event()
    with connected(STDLIB) as (theirs, peer):
        longconn.guard(theirs, limit=0.5, on_lost=lambda error: told.set())
        cut_off(peer)
        theirs.send(b"into the void")
        assert told.wait(PATIENCE)
        return theirs.fileno()


def test_a_verdict_is_a_warning_with_the_details(caplog):
    caplog.set_level(logging.DEBUG, "longconn")
    fd = lose_one()
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert record.name == "longconn.guard"
    text = record.getMessage()
    for part in (f"fd {fd}", "peer lost", "limit 0.5 s"):
        assert part in text
    assert record.thread != threading.get_ident()


def test_suspicions_are_debug_records(caplog):
    caplog.set_level(logging.DEBUG, "longconn")
    lose_one()
    assert [each for each in caplog.records if each.levelno == logging.DEBUG]


def test_a_level_that_the_program_sets_counts_at_once(caplog):
    logger = logging.getLogger("longconn.guard")
    before = logger.level
    try:
        logger.setLevel(logging.CRITICAL)
        lose_one()
        logger.setLevel(logging.WARNING)
        lose_one()
        assert {each.levelno for each in caplog.records} == {logging.WARNING}
        assert len(caplog.records) == 1
    finally:
        logger.setLevel(before)


def test_nothing_is_said_on_stderr_unless_the_program_asks():
    done = python("-W", "error", "-c", LOSE, str(HERE))
    assert (done.returncode, done.stdout, done.stderr) == (0, "unreachable\n", "")
    done = python("-W", "error", "-c", "import logging\n" + LOSE, str(HERE))
    assert (done.returncode, done.stdout, done.stderr) == (0, "unreachable\n", "")


def test_it_is_said_on_stderr_where_the_program_asks():
    done = python("-W", "error", "-c", "import logging; logging.basicConfig(level=logging.DEBUG)\n" + LOSE, str(HERE))
    assert (done.returncode, done.stdout) == (0, "unreachable\n")
    assert "WARNING:longconn.guard:" in done.stderr


def test_what_is_logged_last_is_written_before_the_interpreter_ends():
    """Nothing waits between the verdict and the end of the program."""
    code = "import logging; logging.basicConfig()\n" + LOSE
    for _ in range(2):
        assert "peer lost" in python("-c", code, str(HERE)).stderr


def test_the_package_has_a_null_handler_once_it_logs():
    lose_one()
    logger = logging.getLogger("longconn")
    # tests before this one have logged too
    assert len([each for each in logger.handlers if isinstance(each, logging.NullHandler)]) == 1


def test_a_handler_that_raises_harms_nobody(monkeypatch):
    """logging reports it by itself (raiseExceptions); the guard goes on."""
    monkeypatch.setattr(logging, "raiseExceptions", False)

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                self.handleError(record)

    class Worse(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise ZeroDivisionError

    logger = logging.getLogger("longconn.guard")
    for handler in (Broken(), Worse()):
        logger.addHandler(handler)
        try:
            lose_one()
        finally:
            logger.removeHandler(handler)
    lose_one()


def test_the_guard_does_not_wait_until_a_handler_has_written():
    """Python can't run for a second: the verdict falls, and its record comes afterwards."""
    sleep_with_the_gil = ctypes.PyDLL(None).usleep
    records: list[logging.LogRecord] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Collecting()
    logger = logging.getLogger("longconn.guard")
    logger.addHandler(handler)
    try:
        with connected(keepalive=Keepalive(1, 1, 3, guard=0.5)) as (ours, peer):
            cut_off(peer)
            ours.send(b"into the void")
            sleep_with_the_gil(1_000_000)
            assert ours.lost == "unreachable"
            with pytest.raises(longconn.PeerLost) as caught:
                ours.recv(1)
            assert caught.value.silence < 0.9
        wait_until(lambda: [each for each in records if each.levelno == logging.WARNING])
    finally:
        logger.removeHandler(handler)
