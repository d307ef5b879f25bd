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

# One way to be wrong each, in accept(), which every server calls.
WRONG = """
import socket, time, unittest, os
stdlib = socket.socket
class Fails(stdlib):
    def accept(self): raise OSError("wrong")
class Skips(stdlib):
    def accept(self): raise unittest.SkipTest("wrong")
class Crashes(stdlib):
    def accept(self): os.abort()
class Hangs(stdlib):
    def accept(self): time.sleep(3600)
class Bypasses(stdlib):
    def __new__(cls, *args, **kwargs): return stdlib(*args, **kwargs)
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUNNER), *arguments], env={**os.environ, **environment}, timeout=600 * SLACK,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.timeout(900 * SLACK)
def test_what_passes_with_the_stdlib_passes_with_keepalive_sockets(capsys: pytest.CaptureFixture[str]) -> None:
    result = run("--quick")
    with capsys.disabled():
        print("\n" + result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.timeout(600 * SLACK)
@pytest.mark.parametrize(("wrong", "outcome"), [
    ("Fails", "error: OSError: wrong"),
    ("Skips", "skipped: wrong"),
    ("Crashes", "crash: Aborted"),
    ("Hangs", "timeout: "),
    ("Bypasses", "bypassed: "),
])
def test_the_runner_sees_a_class_that(wrong: str, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    report = tmp_path / "report.json"
    result = run("--factory", f"wrong:{wrong}", "--quick", "--way", "late", "--modules", "test_asyncio.test_server",
                 "--json", str(report), PYTHONPATH=str(tmp_path), LONGCONN_TEST_SLACK=str(SLACK / 4))
    assert result.returncode == 1, result.stdout + result.stderr
    failing = json.loads(report.read_text())["reports"][0]["failing"]
    assert any(reason.startswith(outcome) for reason in failing.values()), failing
