"""`longconn run` and `longconn explain`, which need nothing but Python."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
import types
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import BuiltinImporter, SourceFileLoader
from typing import Any, NoReturn

from .. import __version__, _longconn
from ..installing import install
from ..keepalive import Keepalive, check_limit, default_keepalive, has_rto_max, set_default_keepalive
from .printing import duration

__all__ = ["COMMANDS", "interrupted", "main"]

COMMANDS = ("run", "explain")


def main(arguments: Sequence[str], summary: str, others: str = "") -> int:
    """Run one of these; returns the exit status. *others* is for the help."""
    parser = argparse.ArgumentParser(prog="longconn", description=summary, epilog=others or None)
    parser.add_argument("--version", action="version", version=f"longconn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run a script, or a module with -m, with KeepaliveSocket in the place of socket.socket",
        usage="longconn run [--keepalive IDLE,INTERVAL,COUNT] [--guard SECONDS] (SCRIPT | -m MODULE) [ARGUMENT ...]",
        description="Runs an unmodified Python script whose sockets notice a dead peer. A child process that was "
        "forked has them too; one that multiprocessing has spawned has not, unless the script calls "
        "longconn.install().",
    )
    run.add_argument("--keepalive", metavar="IDLE,INTERVAL,COUNT", help="seconds, seconds and probes, or 'off'")
    run.add_argument("--guard", metavar="SECONDS", help="the guard's limit, or 'off'; default: idle + interval * count")
    run.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    run.add_argument("script", metavar="SCRIPT", help="a file, a directory or archive with __main__.py, or - for stdin")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    run.set_defaults(command=_run)

    explain = commands.add_parser("explain", help="say when a dead peer is noticed, and what isn't seen")
    explain.add_argument(
        "settings",
        metavar="IDLE,INTERVAL,COUNT[,GUARD]",
        nargs="?",
        help="as in 60,10,6 or 60,10,6,30; left out: what sockets get if nothing is said",
    )
    explain.set_defaults(command=_explain)

    options = parser.parse_args(arguments)
    status: int = options.command(parser, options)
    return status


# ---- run ------------------------------------------------------------------------------------------------------


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Keepalive | None:
    try:
        settings = default_keepalive() if options.keepalive is None else Keepalive.parse(options.keepalive)
        if options.guard is not None:
            guard = False if options.guard == "off" else check_limit(_number("--guard", options.guard))
            # no kernel probes without keepalive: what is in flight is guarded all the same
            base = settings or Keepalive(probes=False)
            settings = base.replace(guard=guard)
    except ValueError as error:
        parser.error(str(error))
    return settings


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} {text!r}: seconds, or off") from None


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    set_default_keepalive(_settings(parser, options) or False)
    late = install().too_late_for
    if late:
        print(
            f"longconn run: too late for {', '.join(late)}, imported before the script by something that runs at "
            "Python's start: their own classes of sockets stay the stdlib's",
            file=sys.stderr,
        )
    # pytest, if that is run, would warn that its plugin's distribution was imported before it could rewrite asserts
    package = sys.modules[__package__.partition(".")[0]]
    package.__doc__ = f"{package.__doc__}\nPYTEST_DONT_REWRITE"
    sys.argv = [options.script, *options.arguments]
    if options.module:
        return _run_module(options.script)
    return _run_script(options.script)


def _run_module(name: str) -> int:
    import runpy

    sys.path[0] = os.getcwd()
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit:
        raise
    except BaseException as error:
        return _died(error, lambda path: path == "<frozen runpy>" or path == __file__)
    return 0


def _run_script(name: str) -> int:
    """What `python script.py` does: the same names, the same traceback, the same exit status."""
    # multiprocessing's spawned children look the script up in this module
    main_module = types.ModuleType("__main__")
    loader: Any
    if name == "-":
        path, source, loader = "<stdin>", sys.stdin.buffer.read(), BuiltinImporter
        sys.path[0] = ""
    else:
        # as Python does, without resolving anything: tracebacks show it
        path = os.path.join(os.getcwd(), name)
        if _can_be_imported_from(path):
            return _run_main_of(path, main_module)
        try:
            with open(path, "rb") as file:
                source = file.read()
        except OSError as error:
            print(f"longconn run: can't open file {path!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
            return 2
        loader = SourceFileLoader("__main__", path)
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    main_module.__file__ = path
    main_module.__loader__ = loader
    # what a script finds among its names
    main_module.__dict__.update(__builtins__=__builtins__, __cached__=None, __annotations__={})
    sys.modules["__main__"] = main_module
    try:
        exec(compile(source, path, "exec", dont_inherit=True), main_module.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        return _died(error, lambda path: path == __file__)
    return 0


def _can_be_imported_from(path: str) -> bool:
    """A directory or an archive: something that could stand in sys.path."""
    for hook in sys.path_hooks:
        with suppress(ImportError):
            hook(path)
            return True
    return False


def _run_main_of(path: str, main_module: types.ModuleType) -> int:
    """Its module `__main__`, in the way of the interpreter itself."""
    import runpy

    sys.path[0] = path
    sys.modules["__main__"] = main_module
    try:
        runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]
    except SystemExit:
        raise
    except BaseException as error:
        return _died(error, lambda path: path == "<frozen runpy>" or path == __file__)
    return 0


def _died(error: BaseException, is_ours: object) -> int:
    """Report as the interpreter does, without our frames."""
    trace = error.__traceback__
    while trace is not None and is_ours(trace.tb_frame.f_code.co_filename):  # type: ignore[operator]
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)
    if isinstance(error, KeyboardInterrupt):
        interrupted()
    return 1


def interrupted() -> NoReturn:
    """End as a program does that Ctrl-C has ended, so that the shell knows."""
    import atexit
    import threading

    with suppress(KeyboardInterrupt):  # of who won't wait for them
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    raise SystemExit(130)


# ---- explain ----------------------------------------------------------------------------------------------------


def _time(seconds: float | None) -> str:
    return "never" if seconds is None else f"within {duration(seconds)}"


def _explain(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        settings = default_keepalive() if options.settings is None else Keepalive.parse(options.settings)
    except ValueError as error:
        parser.error(str(error))
    if settings is None:
        print("keepalive off: a peer that is cut off is never noticed while this side only waits")
        return 0
    with_guard, without = settings.detection_time(), settings.replace(guard=False).detection_time()
    print(f"{settings!r} on {_longconn.PLATFORM}\n")
    times = f"{settings.count} time{'s' * (settings.count != 1)}"
    probes = f"after {duration(settings.idle)} of silence, every {duration(settings.interval)}, {times}"
    print(f"  the kernel probes {probes}")
    limit = settings.guard_limit
    print(
        "  the guard is off\n" if limit is None else f"  the guard convicts after {duration(limit)} without an answer\n"
    )
    cases = {
        "idle": "while this side only waits",
        "in_flight": "with data in flight",
        "slow_reader": "behind a reader that is slow",
        "connecting": "while connecting",
    }
    print(f"  {'A dead peer is noticed':<32}{'with longconn':<22}by the kernel alone")
    for case, text in cases.items():
        print(f"  {text:<32}{_time(getattr(with_guard, case)):<22}{_time(getattr(without, case))}")
    print("\n  A living peer that reads slowly is " + ("killed" if settings.user_timeout else "never reported") + ".")
    print("  A peer whose program hangs isn't seen, for its kernel answers:")
    print("  that takes a heartbeat of the program's.")
    if limit is not None and _longconn.HAS_GUARD:
        print(f"  TCP_RTO_MAX_MS (Linux 6.15): {'yes' if has_rto_max() else 'no'}")
    for warning in settings.warnings():
        lines = textwrap.wrap(f"Note: {warning}.", 76, break_on_hyphens=False)
        print("\n" + textwrap.indent("\n".join(lines), "  "))
    return 0
