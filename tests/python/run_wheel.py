"""Runs the Python suite from a wheel, in a clean environment for each interpreter, and says in a table how it went.

    make test-pythons                                          each CPython that is found
    make test-pythons PYTHONS="python3.12 python3.13" TESTS="tests/python/test_fork.py"

Nothing is imported from the tree: the environment has the wheel, what the tests need, and nothing else. An interpreter
that isn't found is named as missing; one that was asked for by name and isn't found counts as a failure. A
free-threaded one gets its own wheel, which is built if it isn't there, for there is no stable ABI for it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from interpreters import Interpreter, ask, every, find

PROJECT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENTS = PROJECT / ".venvs"


@dataclass
class Outcome:
    """What came of one interpreter: one row of the table."""

    interpreter: str
    #: The wheel's name, or why there was no run.
    wheel: str
    passed: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    #: The end was bad though no test failed by itself, or nothing could be run.
    trouble: str | None = None

    @property
    def is_good(self) -> bool:
        return self.trouble is None and self.failed == 0


def run(*command: str | Path) -> None:
    subprocess.run([*map(str, command)], cwd=PROJECT, check=True)


def wheel_for(interpreter: Interpreter, folder: Path) -> Path:
    """The one that fits; a free-threaded interpreter's is built."""
    tag = f"cp{interpreter.name.replace('.', '')}"
    abi = tag if interpreter.is_free_threaded else "abi3"
    pattern = f"longconn-*-{abi}-*.whl"
    if interpreter.is_free_threaded and not any(folder.glob(pattern)):
        run(sys.executable, "-m", "maturin", "build", "--release", "--interpreter", interpreter.path, "--out", folder)
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"one wheel for {abi} is expected in {folder}, and there are {len(found)}")
    return found[0]


def make_environment(interpreter: Interpreter, wheel: Path) -> Path:
    """A clean one with the wheel; its Python."""
    place = ENVIRONMENTS / f"{interpreter.name}-{interpreter.version}"
    run(interpreter.path, "-m", "venv", "--clear", "--without-pip", place)
    python = place / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    # this environment's pip, which is recent enough for groups
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel, "--group", "test")
    return python


def test(interpreter: Interpreter, folder: Path, arguments: list[str]) -> Outcome:
    outcome = Outcome(str(interpreter), "no wheel")
    try:
        wheel = wheel_for(interpreter, folder)
        outcome.wheel = wheel.name
        python = make_environment(interpreter, wheel)
    except (subprocess.CalledProcessError, ValueError) as error:
        outcome.trouble = f"nothing was run: {error}"
        return outcome
    print(f"\n{interpreter} ({interpreter.path}), {wheel.name}", flush=True)
    # Nothing of the caller's Python: the tree may be on its path.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ["LONGCONN_TEST_WHEEL"] = str(wheel.resolve())
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        command = [python, "-m", "pytest", f"--junit-xml={report}", *arguments]
        begin = time.monotonic()
        code = subprocess.run(command, cwd=PROJECT, env=environ, check=False).returncode
        outcome.seconds = time.monotonic() - begin
        if report.exists():
            count(report, outcome)
    if code and not outcome.failed:
        outcome.trouble = f"pytest ended with {code}"
    elif not outcome.passed:
        outcome.trouble = "no test passed"
    return outcome


def count(report: Path, outcome: Outcome) -> None:
    """From pytest's report; an error before or after a test counts as a failure."""
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
        elif skipped is not None:
            outcome.skipped[skipped.get("message") or "no reason"] += 1
        else:
            outcome.passed += 1


def table(outcomes: list[Outcome]) -> str:
    rows = [("interpreter", "wheel", "passed", "failed", "skipped", "seconds")]
    for each in outcomes:
        numbers = each.passed, each.failed, each.skipped.total(), round(each.seconds)
        rows.append((each.interpreter, each.wheel, *map(str, numbers)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    for each in outcomes:
        if each.trouble:
            lines.append(f"{each.interpreter}: {each.trouble}")
        lines += [f"{each.interpreter}: {number} skipped: {why}" for why, number in each.skipped.most_common()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the Python suite from the wheel in a folder.")
    parser.add_argument("folder", type=Path, help="where the wheel is, as make wheel leaves it")
    parser.add_argument("interpreters", nargs="*", help="paths, or names on PATH; else each CPython that is found")
    parser.add_argument("--pytest", default="", metavar="ARGUMENTS", help="what to run, and how")
    options = parser.parse_args()
    if options.interpreters:
        found = {name: ask(name) or find(name.removeprefix("python")) for name in options.interpreters}
        missing = [Outcome(name, "missing", trouble="no CPython answers to that") for name in found if not found[name]]
    else:
        found = every()
        missing = [Outcome(f"CPython {name}", "missing") for name in found if not found[name]]
    arguments = shlex.split(options.pytest)
    outcomes = [test(each, options.folder, arguments) for each in found.values() if each]
    print(f"\n{table(outcomes + missing)}")
    return 0 if outcomes and all(each.is_good for each in outcomes + missing) else 1


if __name__ == "__main__":
    sys.exit(main())
