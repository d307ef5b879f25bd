"""Decides how much of a drop-in for ``socket.socket`` a class is, by CPython's own tests of sockets and what uses them.

    python tests/conformance/runner.py [--quick] [--way late,early,script] [--modules ssl,asyncio] [--json FILE]

Only tests that pass with the stdlib's class in the same environment count.  Of those, one that is failed, skipped,
hung, crashed or not reached with the class is failed; so is one that makes sockets with the stdlib but passes without a
single instance of the class: it *bypassed* it.  (Not in the way ``script``, where the libraries rightly keep the
stdlib's class; there a module is bypassed when none of its tests makes an instance.)  Failing tests are run again with
both classes: one that then passes twice is flaky, and listed; one that then fails with the stdlib too tells nothing.
A crash is never forgiven.

The exit status is 0 when every one of the baseline's passes passes with the class, 1 when not, and 2 when a module
could not be run with the stdlib, or none.  It uses the interpreter it is started with.  LONGCONN_TEST_SLACK multiplies
the time limits.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().with_name("worker.py")
SLACK = float(os.environ.get("LONGCONN_TEST_SLACK", "1.0"))
BASELINE_LIMIT = 60.0 * SLACK  # seconds for a test with the stdlib
TEST_LIMIT = 8.0 * SLACK  # seconds that a test may take beyond four times what it took with the stdlib
RECHECK, RECHECK_HANGING = 40, 3  # where more tests of a module fail or hang, it isn't flakiness
SHOWN = 20  # tests by name of a module that failed; --json holds all
WAYS = ("late", "early", "script")

# Wants a socket that asyncio has made itself to be of the script's class: no class can be that in this way.
ASKS_FOR_THE_CLASS = re.compile("test_create_server_trsock")

# Module under ``test``; the ways it is run in by default: (l)ate always, (e)arly where SSLSocket is made, (s)cript
# where the tests make sockets themselves, capitals in the quick set too; pattern of the test ids of the full set, and
# of the quick one (None: left out), which does without what waits for timeouts.
ALL = ""
# fmt: off
MODULES: list[tuple[str, str, str, str | None]] = [
    # never vsock: it goes by way of the hypervisor and knows no namespaces
    ("test_socket", "LS", "^(?!.*VSOCK)",
     "^(?!.*(VSOCK|UDPLITE|SendfileUsing|CreateServerFunctional|NetworkConnectionBehaviour|[Ii]nterrupted|AfterTimeout"
     "|TCPCloser))"),
    ("test_ssl", "LES", ALL,
     r"BasicSocketTests|SSLErrorTests|SimpleBackgroundTests\.test_connect|ThreadedTests\.test_(echo|recv_send|starttls"
     "|socketserver|nonblocking_send|server_accept|sendfile|getpeercert)"),
    ("test_asyncio.test_sock_lowlevel", "LS", ALL, "EPoll"),
    ("test_asyncio.test_streams", "L", ALL, ALL),
    ("test_asyncio.test_server", "Ls", ALL, ALL),
    ("test_asyncio.test_selector_events", "L", ALL, ALL),
    ("test_asyncio.test_unix_events", "Ls", ALL, ALL),
    ("test_asyncio.test_events", "Ls", "EPoll", "EPoll"),
    ("test_asyncio.test_sendfile", "LEs", "EPoll", "EPoll"),
    ("test_asyncio.test_ssl", "les", ALL, None),
    ("test_selectors", "Ls", ALL, "^(?=.*Epoll)(?!.*(above_fd_setsize|interrupt|timeout))"),
    ("test_socketserver", "Ls", ALL, ALL),
    ("test_timeout", "ls", ALL, None),
    ("test_httplib", "Le", ALL, ALL),
    ("test_httpservers", "L", "^(?!.*CGI)", "^(?!.*CGI)"),
    ("test_urllib2_localnet", "L", ALL, ALL),
    ("test_xmlrpc", "L", ALL, "HTTPTestCase|ServerTestCase"),
    ("test_logging", "l", "Socket|Datagram|SysLog|HTTPHandler|SMTPHandler|UnixS|UnixD|IPv6", None),
    ("test_ftplib", "Les", ALL, "^(?!.*(IPv6|TLS))"),
    ("test_smtplib", "Ls", ALL, "SMTPSimTests|GeneralTests"),
    ("test_poplib", "Le", ALL, "TestPOP3Class"),
    ("test_imaplib", "L", ALL, r"NewIMAPTests\.(?!.*timeout)"),
    # connections and sockets sent between processes; by fork, so that the children keep the class
    ("test_multiprocessing_fork", "Ls", "Listener|TestConnection|TestPickl|TestWait|RemoteManager|OtherTest",
     "WithProcessesTest(PicklingConnections|Listener)"),
]
# fmt: on


@dataclasses.dataclass
class Test:
    """What became of one test, and how many sockets of either class it made."""

    outcome: str  # passed, failed, error, skipped, timeout, crash, missing or bypassed
    reason: str = ""
    ours: int = 0
    stdlib: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class ModuleRun:
    """All the chosen tests of a module, run with one class."""

    status: str = "ran"  # or absent, skipped, error
    reason: str = ""
    tests: dict[str, Test] = dataclasses.field(default_factory=dict)
    fixtures: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: set[str] = dataclasses.field(default_factory=set)

    def outcome(self, name: str) -> Test:
        """The test's, or why it has none: the set-up of its class or module failed, or time was up."""
        if name in self.tests:
            return self.tests[name]
        for fixture, reason in self.fixtures.items():
            if name.startswith(fixture.partition("(")[2].rstrip(")")):
                return Test("missing", f"{fixture}: {reason}")
        return Test("missing", self.reason or "never started")


@dataclasses.dataclass(frozen=True)
class Task:
    """A module to be compared in one way."""

    way: str
    module: str
    select: str


@dataclasses.dataclass
class Report:
    """How the class did in one task."""

    way: str
    module: str
    status: str = "ran"
    reason: str = ""
    baseline: int = 0
    passed: int = 0
    made_sockets: int = 0
    through_class: int = 0
    failing: dict[str, str] = dataclasses.field(default_factory=dict)
    flaky: dict[str, str] = dataclasses.field(default_factory=dict)
    excused: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        if self.status != "ran":
            return f"{self.way:7} {self.module:34} {self.status}: {self.reason}"
        return (
            f"{self.way:7} {self.module:34} {self.baseline:8} {self.passed:7} "
            f"{self.through_class:8}/{self.made_sockets:<5} {self.seconds:7.0f}"
        )


HEAD = f"{'way':7} {'module':34} baseline  passed  through/sockets  seconds"


def hang_or_crash(log: str, status: int) -> tuple[str, str]:
    """Why a worker ended inside a test, from the stacks that faulthandler wrote: the outcome and the reason."""
    outcome, sign = ("timeout", "Timeout (") if "Timeout (" in log else ("crash", "Fatal Python error: ")
    if sign not in log:
        return outcome, f"status {status}, it wrote: {log.strip()[-200:]}"
    what, *stacks = re.split(r"\n+(?=Thread|Current thread)", log.rpartition(sign)[2])
    places = []
    for stack in stacks:
        frames = [
            f"{name} ({Path(file).name}:{line})"
            for file, line, name in re.findall(r'File "([^"]+)", line (\d+) in (\S+)', stack)
        ]
        in_test = next((place for place in frames if "(test_" in place), None)
        places += [" < ".join(dict.fromkeys([frames[0], in_test]))] if in_test else []
    return outcome, f"{what.partition(chr(10))[0].rstrip('!)')} in {'; '.join(places[:3]) or 'no test'}"


def run_worker(job: dict[str, object], wait: float) -> tuple[list[dict[str, Any]], int | None, str]:
    """Starts one worker; returns its events, its exit status (None: out of time) and what it wrote."""
    with tempfile.TemporaryDirectory(prefix="conf-", ignore_cleanup_errors=True) as directory:
        here = Path(directory)
        (here / "tmp").mkdir()
        (here / "events").touch()
        with open(here / "log", "wb") as log:
            process = subprocess.Popen(
                # -P: the names in this directory are no modules for the tests; a session of its own: see killpg
                [sys.executable, "-P", "-X", "faulthandler", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=here / "tmp",
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(here / "tmp")},
            )
        status: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(json.dumps({**job, "events": str(here / "events")}).encode(), timeout=wait)
                status = process.returncode
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with it what its tests left running
            process.wait()
        lines = (here / "events").read_text().splitlines()
        return [json.loads(line) for line in lines], status, (here / "log").read_text(errors="replace")


def run_module(
    task: Task,
    factory: str | None,
    limit: float,
    *,
    only: Iterable[str] | None = None,
    limits: dict[str, float] | None = None,
) -> ModuleRun:
    """Runs a module's tests within *limit* seconds; after a hang or a crash a new worker goes on with the next test."""
    run, deadline, finished = ModuleRun(), time.monotonic() + limit, False
    job = {
        "way": task.way,
        "module": task.module,
        "select": task.select,
        "factory": factory,
        "only": None if only is None else list(only),
        "limits": limits or {},
        "limit": BASELINE_LIMIT,
    }
    while not finished:
        current: str | None = None
        last: str | None = None
        events, status, log = run_worker({**job, "done": list(run.tests)}, max(0.1, deadline - time.monotonic()))
        for event in events:
            match event.pop("event"):
                case "start":
                    current = event["id"]
                case "end":
                    last, current = event.pop("id"), None
                    run.tests[last] = Test(**event)
                case "fixture":
                    run.fixtures[event["id"]] = event["reason"]
                case "module":
                    run.status, run.reason = event["status"], event["reason"]
                case "note":
                    run.notes.add(event["text"])
                case "finished":
                    finished = True
        if status is None:
            run.reason, finished = f"the module's {limit:.0f} s were up", True
            if current is not None:
                run.tests[current] = Test("timeout", run.reason)
        elif current is not None:
            run.tests[current] = Test(*hang_or_crash(log, status))
        elif not finished and last is not None:
            outcome, reason = hang_or_crash(log, status)
            run.tests[last] = Test(outcome, f"after its end: {reason}")
        elif not finished:
            run.status, finished = "error", True
            run.reason = f"the worker ended before any test, {status}: {log.strip().rpartition(chr(10))[2][:300]}"
    return run


def compare(task: Task, factory: str, base: ModuleRun, limit: float) -> Report:
    """Runs the tests that pass with the stdlib with the class, sorts out the flaky ones and counts."""
    begun = time.monotonic()
    report = Report(task.way, task.module, base.status, base.reason, notes=sorted(base.notes))
    if base.status == "ran" and base.reason:
        report.notes.append(f"{task.module} with the stdlib: {base.reason}")
    passes = {name: test for name, test in base.tests.items() if test.outcome == "passed"}
    if task.way == "script" and any(map(ASKS_FOR_THE_CLASS.search, passes)):
        passes = {name: test for name, test in passes.items() if not ASKS_FOR_THE_CLASS.search(name)}
        report.notes.append(
            f"not in a script: {ASKS_FOR_THE_CLASS.pattern}, which asks for the class of asyncio's socket"
        )
    if not passes:
        return report
    limits = {name: TEST_LIMIT + 4 * test.seconds for name, test in passes.items()}
    run = run_module(task, factory, limit, only=passes, limits=limits)
    report.status, report.reason = "ran", run.reason  # whatever befell it: each test without a result is a failure
    outcomes = {name: run.outcome(name) for name in passes}

    failing = [name for name, test in outcomes.items() if test.outcome not in ("passed", "crash")]
    hanging = sum(outcomes[name].outcome == "timeout" for name in failing)
    if run.status == "ran" and 0 < len(failing) <= RECHECK and hanging <= RECHECK_HANGING:
        twice = [run_module(task, factory, limit, only=failing, limits=limits) for _ in range(2)]
        for name in failing:
            if all(again.outcome(name).outcome == "passed" for again in twice):
                report.flaky[name] = f"{outcomes[name].outcome}: {outcomes[name].reason}"
                outcomes[name] = twice[0].tests[name]
        still = [name for name in failing if outcomes[name].outcome != "passed"]
        if still:
            check = run_module(task, None, limit, only=still)
            report.excused = {
                name: check.tests[name].reason
                for name in still
                if name in check.tests and check.tests[name].outcome != "passed"
            }
            for name in report.excused:
                del outcomes[name]

    sockets = {name for name in outcomes if passes[name].stdlib}
    past = {name for name in sockets if outcomes[name].outcome == "passed" and not outcomes[name].ours}
    if task.way != "script" or not any(test.ours for test in outcomes.values()):
        for name in past:
            outcomes[name] = Test("bypassed", "made sockets with the stdlib, none of the class")
    report.failing = {
        name: f"{test.outcome}: {test.reason}" for name, test in outcomes.items() if test.outcome != "passed"
    }
    report.baseline, report.passed = len(outcomes), len(outcomes) - len(report.failing)
    report.made_sockets = len(sockets)
    report.through_class = sum(outcomes[name].outcome == "passed" and outcomes[name].ours > 0 for name in sockets)
    report.seconds = round(time.monotonic() - begun, 1)
    return report


def plan(ways: list[str], *, quick: bool, modules: list[str]) -> list[Task]:
    """What is to be run: with *modules* (parts of names) those in all *ways*, else as MODULES says."""
    tasks = []
    for way in ways:
        for module, letters, full, short in MODULES:
            named = any(part in module for part in modules)
            select = short if quick and (short is not None or not named) else full
            default = way[0].upper() in letters if quick else way[0] in letters.lower()
            if select is not None and (named if modules else default):
                tasks.append(Task(way, module, select))
    return tasks


def run_all(tasks: list[Task], factory: str, jobs: int, limit: float) -> list[Report]:
    """Runs the tasks, *jobs* at a time; the baselines come first in the queue, so who waits for one can't starve it."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        baselines: dict[Task, concurrent.futures.Future[ModuleRun]] = {}

        def baseline_of(task: Task) -> Task:
            # In the place of itself, early or late, the stdlib's class is just itself.
            return task if task.way == "script" else dataclasses.replace(task, way="late")

        for task in map(baseline_of, tasks):
            if task not in baselines:
                baselines[task] = pool.submit(run_module, task, None, max(limit, 300 * SLACK))

        def compared(task: Task) -> Report:
            return compare(task, factory, baselines[baseline_of(task)].result(), limit)

        waiting = [pool.submit(compared, task) for task in tasks]
        try:
            for done in concurrent.futures.as_completed(waiting):
                print(done.result().line(), file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            os._exit(130)  # and not wait for the workers: they end with us
        return [done.result() for done in waiting]


def show(reports: list[Report], ways: list[str]) -> None:
    print(HEAD)
    for way in ways:
        rows = [report for report in reports if report.way == way]
        for report in rows:
            print(report.line())
        if rows:
            total = Report(way, "TOTAL")
            for name in ("baseline", "passed", "made_sockets", "through_class", "seconds"):
                setattr(total, name, sum(getattr(report, name) for report in rows))
            print(total.line())
    for title in ("failing", "flaky", "excused"):
        for report in reports:
            tests = getattr(report, title)
            for name, reason in list(tests.items())[:SHOWN]:
                print(title.upper(), report.way, f"{name}: {reason}".replace("\n", " "))
            if len(tests) > SHOWN:
                print(title.upper(), report.way, f"{report.module}: {len(tests) - SHOWN} more")
    for note in sorted({note for report in reports for note in report.notes}):
        print("NOTE", note)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--factory", default="longconn:KeepaliveSocket", metavar="MODULE:CLASS", help="the class")
    parser.add_argument("--quick", action="store_true", help="a subset for every day")
    parser.add_argument("--way", default=",".join(WAYS), help="late, early, script, or some of them with commas")
    parser.add_argument("--modules", default="", help="parts of module names, with commas: those, in all the ways")
    parser.add_argument(
        "--jobs", type=int, default=2 * (os.cpu_count() or 1), help="workers at a time; most tests sleep"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the report there too")
    options = parser.parse_args()
    ways = options.way.split(",")
    if not set(ways) <= set(WAYS):
        parser.error(f"--way knows {', '.join(WAYS)}")
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_socket") is None:
        print(f"{sys.executable} has no CPython tests (on Debian: apt install libpython3-testsuite)", file=sys.stderr)
        return 2

    tasks = plan(ways, quick=options.quick, modules=[part for part in options.modules.split(",") if part])
    reports = run_all(tasks, options.factory, options.jobs, (60 if options.quick else 240) * SLACK)
    show(reports, ways)
    if options.json:
        fields = {"python": sys.version.split()[0], "factory": options.factory, "quick": options.quick}
        options.json.write_text(json.dumps({**fields, "reports": list(map(vars, reports))}, indent=1) + "\n")
    baseline, passed = (sum(getattr(report, name) for report in reports) for name in ("baseline", "passed"))
    # Rounded down: 100.0 % is all of them.
    print(f"{passed} of {baseline} of the baseline's passes: {passed * 1000 // max(1, baseline) / 10} %")
    broken = any(report.status == "error" for report in reports)  # with the stdlib, that is
    return 2 if broken or baseline == 0 else int(passed != baseline)


if __name__ == "__main__":
    sys.exit(main())
