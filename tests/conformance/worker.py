"""Runs one of CPython's test modules in this process, with or without the class in the place of ``socket.socket``.

Started by runner.py, with a job as JSON on stdin; appends one JSON object a line to the file the job names.  Whoever
reads that file can tell a crash from a hang and from an end: a test that started and has no end was running when the
process died, and a hanging test is ended by faulthandler, which says so on stderr and needs neither GIL nor signal.
"""

from __future__ import annotations

import collections
import faulthandler
import functools
import importlib
import importlib.util
import json
import os
import re
import sys
import types
import warnings
from typing import Any

# Imported before the class comes into play, late and in a script.
LIBRARIES = """ssl asyncio asyncio.selector_events asyncio.unix_events http.client http.server ftplib smtplib poplib
    imaplib socketserver selectors xmlrpc.client xmlrpc.server urllib.request logging.handlers concurrent.futures
    multiprocessing.connection multiprocessing.reduction multiprocessing.managers multiprocessing.resource_sharer
    test.support.socket_helper test.support.threading_helper""".split()
FIXTURE_LIMIT = 90.0  # seconds; setUpModule and the imports may take longer than a test


def enter_private_network() -> None:
    """Moves this process into a network namespace with nothing but ``lo``, as root or by a user namespace."""
    import _socket
    import ctypes
    import fcntl
    import struct

    clone_newuser, clone_newnet, siocsifflags, iff_up = 0x10000000, 0x40000000, 0x8914, 1
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(clone_newnet) != 0:
        # A root without the right to do that may not map itself either (CAP_SETFCAP, user_namespaces(7)).
        if uid == 0 or libc.unshare(clone_newuser | clone_newnet) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        for name, text in ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    fcntl.ioctl(control.fileno(), siocsifflags, struct.pack("16sh14x", b"lo", iff_up))
    control.close()


def end_with_parent() -> None:
    """Has the kernel kill this process when the runner dies (prctl(2), PR_SET_PDEATHSIG): it leaves nothing behind."""
    import ctypes

    ctypes.CDLL(None).prctl(1, 9)


class Instances:
    """Counts the sockets made: of the class under test, and of the stdlib's own.

    It hooks ``__init__``; what is made without it, by C or Rust, is not seen, so both counts are lower bounds.
    """

    def __init__(self, stdlib: Any, ours: Any) -> None:
        self.ours = self.stdlib = 0
        stdlib_init = stdlib.__init__

        @functools.wraps(stdlib_init)
        def count_stdlib(this: object, *args: Any, **kwargs: Any) -> None:
            if ours not in type(this).__mro__:
                self.stdlib += 1
            stdlib_init(this, *args, **kwargs)

        if ours is not None:
            ours_init = ours.__init__

            @functools.wraps(ours_init)
            def count_ours(this: object, *args: Any, **kwargs: Any) -> None:
                self.ours += 1
                ours_init(this, *args, **kwargs)

            ours.__init__ = count_ours
        stdlib.__init__ = count_stdlib


def mirror_of(cls: type) -> types.ModuleType:
    """A module like ``socket`` whose ``socket`` is *cls*: its functions look names up in it, all else is the same."""
    import socket

    mirror = types.ModuleType("socket", socket.__doc__)
    for name, value in vars(socket).items():
        if isinstance(value, types.FunctionType) and value.__module__ == "socket":
            copy = types.FunctionType(value.__code__, vars(mirror), name, value.__defaults__, value.__closure__)
            copy.__kwdefaults__ = value.__kwdefaults__
            setattr(mirror, name, copy)
        else:
            setattr(mirror, name, value)
    mirror.socket = cls  # type: ignore[attr-defined]
    return mirror


def put_in_place(way: str, factory: str | None) -> Instances:
    """Puts the class *factory* (``package:Class``; None: the stdlib's own) where tests and libraries find it.

    ``late``: at run time; ``ssl.SSLSocket`` stays a child of the stdlib's class.  ``early``: before ``ssl`` and
    ``asyncio`` are imported, so that their classes are made on top of it.  ``script``: only what is imported from now
    on sees it, as a script with ``from longconn import socket``; the libraries keep the stdlib's class.

    A package with ``install()`` and a module ``socket`` is asked to do it itself; for another the names are replaced.
    """
    import socket

    if way != "early":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            for name in LIBRARIES:
                importlib.import_module(name)
    package: Any = None
    ours: Any = None
    if factory is not None:
        package_name, _, class_name = factory.partition(":")
        package = importlib.import_module(package_name)
        ours = getattr(package, class_name)
    instances = Instances(socket.socket, ours)
    if way == "script":
        own = importlib.util.find_spec(f"{package_name}.socket") if hasattr(package, "__path__") else None
        mirror = importlib.import_module(own.name) if own else mirror_of(ours or socket.socket)
        sys.modules["socket"] = mirror
    elif ours is not None:
        if way == "early" and not {"ssl", "asyncio"}.isdisjoint(sys.modules):
            raise RuntimeError(f"{factory} imports ssl or asyncio: it comes too late to be early")
        if hasattr(package, "install"):
            package.install()
        else:
            socket.socket = ours  # type: ignore[misc]
    if ours is not None and sys.modules["socket"].socket is not ours:
        raise RuntimeError(f"socket.socket is {sys.modules['socket'].socket}, not {ours}")
    return instances


def load_tests(name: str) -> list[Any]:
    """The tests of a module under ``test``, as a flat list."""
    import unittest

    if name.startswith("test_multiprocessing_"):
        # Some installations lack these modules, which are only stubs that call for their tests.
        import test._test_multiprocessing as tests

        module = types.ModuleType(f"test.{name}")
        options = {"only_type": None} if sys.version_info >= (3, 13) else {}
        tests.install_tests_in_module_dict(vars(module), name.rpartition("_")[2], **options)
        sys.modules[module.__name__] = module
    else:
        module = importlib.import_module(f"test.{name}")
    flat: list[Any] = []
    nodes: list[Any] = [unittest.defaultTestLoader.loadTestsFromModule(module)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, unittest.TestSuite):
            nodes.extend(reversed(list(node)))
        else:
            flat.append(node)
    return flat


def one_line(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> str:
    """As ``Error: message @ file:line in function``."""
    import traceback

    text = next(iter("".join(traceback.format_exception_only(kind, error)).strip().splitlines()), str(kind))
    frames = [frame for frame in traceback.extract_tb(trace) if "/unittest/" not in frame.filename]
    where = f" @ {os.path.basename(frames[-1].filename)}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return text[:240] + where


def main() -> None:
    job = json.load(sys.stdin)
    process = os.getpid()
    events = os.open(job["events"], os.O_WRONLY | os.O_APPEND)

    def emit(event: str, **fields: Any) -> None:
        if os.getpid() == process:  # not from a child that a test forked
            os.write(events, json.dumps({"event": event, **fields}).encode() + b"\n")

    def watch(limit: float) -> None:
        faulthandler.dump_traceback_later(limit, exit=True, file=2)

    private = True
    try:
        enter_private_network()
    except OSError as error:
        private = False
        emit("note", text=f"no private network namespace ({error}): the tests share this machine's loopback")
    end_with_parent()
    watch(FIXTURE_LIMIT)  # only now: its thread would keep us from making a user namespace
    instances = put_in_place(job["way"], job["factory"])

    import time
    import unittest

    from test import support

    # As regrtest's default: no hogs, no internet.  What these two call network is loopback.
    loopback_only = private and job["module"] in ("test_socketserver", "test_timeout")
    support.use_resources = ["network"] if loopback_only else []
    support.verbose = 0

    class Recorder(unittest.TestResult):
        def __init__(self) -> None:
            super().__init__()
            self.begin()  # Python 3.12.1 does not start tests that are skipped by a decorator

        def begin(self) -> None:
            self.outcome, self.reason = "passed", ""
            self.before = instances.ours, instances.stdlib, time.monotonic()

        def startTest(self, test: Any) -> None:
            super().startTest(test)
            watch(job["limits"].get(test.conformance_id, job["limit"]))
            emit("start", id=test.conformance_id)
            self.begin()

        def stopTest(self, test: Any) -> None:
            super().stopTest(test)
            ours, stdlib, begun = self.before
            emit(
                "end",
                id=test.conformance_id,
                outcome=self.outcome,
                reason=self.reason,
                ours=instances.ours - ours,
                stdlib=instances.stdlib - stdlib,
                seconds=round(time.monotonic() - begun, 2),
            )
            watch(FIXTURE_LIMIT)
            self.begin()

        def note(self, test: Any, outcome: str, reason: str) -> None:
            if not hasattr(test, "conformance_id"):  # setUpClass or setUpModule
                emit("fixture", id=str(test), reason=f"{outcome}: {reason}")
            elif self.outcome not in ("failed", "error"):
                self.outcome, self.reason = outcome, reason

        def addFailure(self, test: Any, err: Any) -> None:
            self.note(test, "failed", one_line(*err))

        def addError(self, test: Any, err: Any) -> None:
            self.note(test, "error", one_line(*err))

        def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
            if err is not None:
                self.note(test, "failed" if issubclass(err[0], test.failureException) else "error", one_line(*err))

        def addSkip(self, test: Any, reason: str) -> None:
            self.note(test, "skipped", str(reason)[:240])

        def addExpectedFailure(self, test: Any, err: Any) -> None:
            self.note(test, "skipped", "an expected failure")

        def addUnexpectedSuccess(self, test: Any) -> None:
            self.note(test, "failed", "an unexpected success")

    try:
        tests = load_tests(job["module"])
    except ModuleNotFoundError as error:
        emit("module", status="absent" if error.name == f"test.{job['module']}" else "error", reason=str(error))
    except unittest.SkipTest as skip:
        emit("module", status="skipped", reason=str(skip))
    except Exception as error:
        emit("module", status="error", reason=f"import: {one_line(type(error), error, error.__traceback__)}")
    else:
        wanted, done = re.compile(job["select"]), set(job["done"])
        only = None if job["only"] is None else set(job["only"])
        seen: collections.Counter[str] = collections.Counter()
        chosen = []
        for test in tests:
            name = test.id()
            seen[name] += 1
            if seen[name] > 1:
                name = f"{name}#{seen[name]}"
            if wanted.search(name) and name not in done and (only is None or name in only):
                test.conformance_id = name
                chosen.append(test)
        unittest.TestSuite(chosen).run(Recorder())
    emit("finished")
    os._exit(0)  # a thread that a broken test left must not hold us


if __name__ == "__main__":
    main()
