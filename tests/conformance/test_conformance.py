"""The quick part of the conformance run, and that its runner sees what it must see."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().with_name("runner.py")
SLACK = float(os.environ.get("LONGCONN_TEST_SLACK", "1.0"))

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runner needs Linux: prctl, namespaces, epoll"),
    pytest.mark.skipif(
        importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_socket") is None,
        reason="this interpreter has no CPython tests (on Debian: apt install libpython3-testsuite)",
    ),
]

# One way to be wrong each; the tests of selectors ask every socket for its descriptor.
WRONG = """
import socket, time, unittest, os
stdlib = socket.socket
def is_first():
    try:
        return open(__file__ + ".called", "x").close() is None
    except FileExistsError:
        return False
class Fails(stdlib):
    def fileno(self): raise OSError("wrong")
class Skips(stdlib):
    def fileno(self): raise unittest.SkipTest("wrong")
class Crashes(stdlib):
    def fileno(self): return os.abort() if is_first() else super().fileno()
class Hangs(stdlib):
    def fileno(self): return time.sleep(3600) if is_first() else super().fileno()
class Bypasses(stdlib):
    def __new__(cls, *args, **kwargs): return stdlib(*args, **kwargs)
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUNNER), *arguments],
        env={**os.environ, **environment},
        timeout=600 * SLACK,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(900 * SLACK)
def test_what_passes_with_the_stdlib_passes_with_keepalive_sockets(capsys: pytest.CaptureFixture[str]) -> None:
    result = run("--quick")
    with capsys.disabled():
        print("\n" + result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.timeout(600 * SLACK)
@pytest.mark.parametrize(
    ("wrong", "found", "outcome", "count"),
    [
        ("Fails", "failing", "error: OSError: wrong", 10),
        ("Skips", "failing", "skipped: wrong", 10),
        ("Crashes", "failing", "crash: Aborted", 1),
        ("Hangs", "flaky", "timeout: ", 1),  # only the first time: a crash is not forgiven, but a hang is tried again
        ("Bypasses", "failing", "bypassed: ", 10),
    ],
)
def test_the_runner_sees_a_class_that(wrong: str, found: str, outcome: str, count: int, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    file = tmp_path / "report.json"
    result = run(
        *("--factory", f"wrong:{wrong}", "--quick", "--way", "late", "--modules", "test_selectors"),
        *("--json", str(file)),
        PYTHONPATH=str(tmp_path),
    )
    report = json.loads(file.read_text())["reports"][0]
    reasons = [reason for reason in report[found].values() if reason.startswith(outcome)]
    assert len(reasons) >= count if count > 1 else len(report[found]) == len(reasons) == count, report
    assert result.returncode == (found == "failing"), result.stdout + result.stderr
