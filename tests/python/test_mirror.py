"""The stdlib's module under our name, our class under the stdlib's: longconn.socket, install, the command line."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import longconn
import pytest
from longconn import Keepalive, KeepaliveSocket
from longconn import socket as mirror
from peers import (
    PATIENCE,
    STDLIB,
    connected,
    environment,
    python,
    python_says,
    timings,
    wait_until_blocked,
)

MAKERS = ("create_connection", "create_server", "fromfd", "fromshare", "socketpair")
PUBLIC = [name for name in dir(socket) if not name.startswith("_")]


# ---- the mirror


def test_every_public_name_is_there():
    assert [name for name in PUBLIC if not hasattr(mirror, name)] == []
    assert set(socket.__all__) == set(mirror.__all__)
    assert [name for name in mirror.__all__ if not hasattr(mirror, name)] == []


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ("socket", *MAKERS)])
def test_every_other_name_is_the_same_object(name):
    assert getattr(mirror, name) is getattr(socket, name)


def test_a_star_import_brings_what_the_stdlibs_brings():
    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    exec("from socket import *", theirs)
    exec("from longconn.socket import *", ours)
    assert set(theirs) == set(ours)
    assert ours["socket"] is KeepaliveSocket


def test_the_class_has_its_place():
    assert mirror.socket is longconn.KeepaliveSocket
    assert mirror.socket is not socket.socket
    assert issubclass(mirror.socket, socket.socket)
    assert mirror.error is OSError
    assert mirror.timeout is TimeoutError


def test_one_changed_import_line_is_enough():
    from longconn import socket

    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    assert type(sock) is KeepaliveSocket
    sock.close()


def test_functions_that_make_sockets_make_ours():
    with mirror.create_server(("127.0.0.1", 0)) as listener:
        assert type(listener) is KeepaliveSocket
        assert timings(listener) == (1, 15, 5, 3)
        with mirror.create_connection(listener.getsockname(), timeout=5) as ours:
            assert type(ours) is KeepaliveSocket
            assert ours.gettimeout() == 5
            accepted, _ = listener.accept()
            with accepted, mirror.fromfd(ours.fileno(), socket.AF_INET, socket.SOCK_STREAM) as copy:
                assert type(accepted) is type(copy) is KeepaliveSocket
    for pair in (mirror.socketpair(), mirror.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)):
        for each in pair:
            assert type(each) is KeepaliveSocket
            each.close()


def test_the_functions_look_like_the_stdlibs():
    import inspect

    for name in MAKERS:
        if hasattr(socket, name):
            ours, theirs = getattr(mirror, name), getattr(socket, name)
            assert ours is not theirs
            assert inspect.signature(ours) == inspect.signature(theirs)
            assert (ours.__name__, ours.__doc__) == (theirs.__name__, theirs.__doc__)


def test_the_functions_take_the_stdlibs_arguments_and_raise_its_errors():
    with mirror.create_server(("127.0.0.1", 0), backlog=1, reuse_port=False) as listener:
        address = listener.getsockname()
        with mirror.create_connection(address, 5.0, ("127.0.0.1", 0)) as sock:
            assert sock.getpeername() == address
    with pytest.raises(ConnectionRefusedError):
        mirror.create_connection(address)
    with pytest.raises(ExceptionGroup):
        mirror.create_connection(address, all_errors=True)
    with pytest.raises(socket.gaierror):
        mirror.create_connection(("name.invalid", 80))
    with pytest.raises(ValueError, match="dualstack"):
        mirror.create_server(("::1", 0), dualstack_ipv6=True)


def test_the_stdlibs_own_module_is_left_alone():
    """The import alone changes nothing for anybody."""
    assert socket.socket is STDLIB
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert type(listener) is STDLIB


# ---- install


def test_install_changes_what_the_stdlib_makes_and_uninstall_changes_it_back():
    installed = longconn.install()
    try:
        assert socket.socket is KeepaliveSocket
        with socket.create_server(("127.0.0.1", 0)) as listener:
            assert type(listener) is KeepaliveSocket
            with socket.create_connection(listener.getsockname()) as ours:
                assert type(ours) is KeepaliveSocket
                assert timings(ours) == (1, 15, 5, 3)
        one, other = socket.socketpair()
        with one, other:
            assert type(one) is type(other) is KeepaliveSocket
        assert "KeepaliveSocket" in repr(installed)
    finally:
        longconn.uninstall()
    assert socket.socket is STDLIB
    assert socket.create_server.__globals__["socket"] is STDLIB


def test_install_is_a_context_manager():
    with longconn.install():
        assert socket.socket is KeepaliveSocket
    assert socket.socket is STDLIB
    with pytest.raises(ZeroDivisionError), longconn.install():
        _ = 1 / 0
    assert socket.socket is STDLIB


def test_installs_nest():
    with longconn.install():
        with longconn.install():
            assert socket.socket is KeepaliveSocket
        assert socket.socket is KeepaliveSocket
        longconn.install()
        longconn.uninstall()
        assert socket.socket is KeepaliveSocket
    assert socket.socket is STDLIB


def test_uninstalling_too_often_does_nothing():
    longconn.uninstall()
    assert socket.socket is STDLIB
    with longconn.install():
        assert socket.socket is KeepaliveSocket
    assert socket.socket is STDLIB


def test_somebody_elses_class_in_that_place_is_not_thrown_out():
    class Other(STDLIB):
        pass

    longconn.install()
    socket.socket = Other  # type: ignore[misc]
    try:
        longconn.uninstall()
        assert socket.socket is Other
    finally:
        socket.socket = STDLIB  # type: ignore[misc]


def test_uninstall_puts_back_what_was_there(monkeypatch):
    """PySocks and pytest-socket put classes of their own there."""

    class First(STDLIB):
        pass

    class Second(First):
        pass

    monkeypatch.setattr(socket, "socket", First)
    with longconn.install():
        assert socket.socket is KeepaliveSocket
        with longconn.install():
            assert socket.socket is KeepaliveSocket
        assert socket.socket is KeepaliveSocket
        monkeypatch.setattr(socket, "socket", Second)
        with longconn.install():
            assert socket.socket is KeepaliveSocket
        assert socket.socket is Second
        socket.socket = KeepaliveSocket  # type: ignore[misc]
    assert socket.socket is First
    longconn.uninstall()
    assert socket.socket is First


def test_our_class_works_while_it_is_installed():
    """Its base must not be looked up by the name that it has taken."""
    with longconn.install(), connected(keepalive=Keepalive(60, 10, 6)) as (ours, peer):
        ours.send(b"x")
        assert peer.recv(1) == b"x"
        with ours.dup() as copy:
            assert copy.keepalive == Keepalive(60, 10, 6)
        assert "KeepaliveSocket" in repr(ours)


def test_installing_says_for_whom_it_came_too_late():
    code = "import longconn; print(longconn.install().too_late_for)"
    assert python_says(code) == "()\n"
    assert "ssl" in python_says("import ssl; " + code)
    assert "asyncio" in python_says("import asyncio; " + code)


def test_installed_early_it_is_the_base_of_ssls_class():
    code = "import longconn; longconn.install(); import ssl; print(issubclass(ssl.SSLSocket, longconn.KeepaliveSocket))"
    assert python_says(code) == "True\n"


def test_a_forked_child_has_it_too():
    said = python_says(
        """
import longconn, os, socket
longconn.install()
if os.fork() == 0:
    print(socket.socket.__name__, flush=True)
    os._exit(0)
os.wait()
"""
    )
    assert said == "KeepaliveSocket\n"


def test_a_spawned_child_has_it_where_the_main_module_installs_it(tmp_path):
    """As the documentation of install says."""
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(
            """
            import multiprocessing, socket
            import longconn
            longconn.install()

            def child():
                print(socket.socket.__name__, flush=True)

            if __name__ == "__main__":
                process = multiprocessing.get_context("spawn").Process(target=child)
                process.start()
                process.join()
            """
        )
    )
    done = python(path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "KeepaliveSocket\n", "")


# ---- longconn run: what `python script.py` does


def script(tmp_path: Path, code: str, name: str = "script.py") -> Path:
    path = tmp_path / name
    path.write_text(textwrap.dedent(code))
    return path


def run(*arguments: str | os.PathLike[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return python("-m", "longconn", "run", *arguments, **kwargs)


SCRIPTS: dict[str, str] = {
    "ends": "print('fine')",
    "raises": """
        def inner():
            raise RuntimeError("in the script")
        def outer():
            inner()
        outer()
    """,
    "raises from another": """
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise KeyError("second") from error
    """,
    "raises a group": "raise ExceptionGroup('many', [ValueError(1), TypeError(2)])",
    "does not compile": "def broken(:\n    pass\n",
    "has a syntax error in what it imports": "import broken_module",
    "exits 0": "import sys; sys.exit(0)",
    "exits 3": "import sys; sys.exit(3)",
    "exits None": "import sys; sys.exit()",
    "exits with text": "import sys; sys.exit('that is why')",
    "exits at once": "import os; os._exit(5)",
    "exits by a thread": """
        import threading, time
        threading.Thread(target=lambda: (time.sleep(0.05), print("late"))).start()
    """,
    "raises in a thread": """
        import threading
        def inner():
            raise RuntimeError("in a thread")
        thread = threading.Thread(target=inner, name="mine")
        thread.start()
        thread.join()
    """,
    "runs things at exit": "import atexit; atexit.register(print, 'at exit'); print('first')",
    "raises at exit": """
        import atexit
        atexit.register(print, "at exit")
        raise RuntimeError("first")
    """,
    "has a hook of its own": """
        import sys
        sys.excepthook = lambda kind, error, trace: print("hook", kind.__name__, error)
        raise RuntimeError("for the hook")
    """,
    "shows its arguments": "import sys; print(sys.argv[1:], sys.flags.optimize)",
    "shows its names": """
        import sys
        print(__name__, __file__, sys.argv[0], __spec__, __doc__, __package__)
        print(sys.modules["__main__"].__dict__ is globals(), sys.path[0])
        print(sorted(name for name in globals() if name != "__annotations__"))
        print(type(__loader__), __loader__.name, __loader__.path, __loader__.get_source("__main__")[:7])
    """,
    "has a docstring": '"""What it is."""\nprint(__doc__)',
    "has annotations": "def function(number: int) -> str: ...\nprint(function.__annotations__)",
    "has annotations of its own": "number: int = 5\nprint(__annotations__)",
    "imports a neighbour": "import neighbour; print(neighbour.__name__)",
    "imports itself as main": "import __main__; print(__main__.__file__)",
    "pickles its own class": """
        import pickle
        class Own:
            pass
        print(type(pickle.loads(pickle.dumps(Own()))) is Own, Own.__module__)
    """,
    "has an encoding": "# -*- coding: latin-1 -*-\nprint('gr\xfc\xdfe' == 'gr\\xfc\\xdfe')",
    "says something on stderr": "import sys; print('there', file=sys.stderr)",
    "reads stdin": "print(input())",
    "starts with a line for the shell": "#!/usr/bin/env python3\nprint('fine')",
    "uses exit": "exit(4)",
    "leaves by a closed stdout": "import os, sys; print('x'); sys.stdout.flush(); os.close(1)",
    "warns": "import warnings; warnings.warn('careful')",
    "inspects its frames": "import sys, inspect; print(inspect.stack()[0].function, sys._getframe().f_code.co_name)",
    "raises a stopped iteration": "next(iter(()))",
    "is interrupted by itself": "raise KeyboardInterrupt('by itself')",
    "spawns": """
        import multiprocessing
        def child(number):
            print("child", number, flush=True)
        if __name__ == "__main__":
            process = multiprocessing.get_context("spawn").Process(target=child, args=(5,))
            process.start()
            process.join()
            print(process.exitcode)
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_does_what_it_does_with_python(tmp_path, name):
    """Its output, its traceback without frames of ours, its exit status."""
    code = textwrap.dedent(SCRIPTS[name])
    path = tmp_path / "script.py"
    path.write_bytes(code.encode("latin-1"))
    (tmp_path / "neighbour.py").write_text("")
    (tmp_path / "broken_module.py").write_text("def broken(:\n")
    arguments = ["one", "--two", "-m", "--", "--guard", "x"]
    theirs = python(path, *arguments, input="line\n")
    ours = run(path, *arguments, input="line\n")
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


SHOWS = """
    import os, sys
    print(__name__, globals().get("__file__"), sys.argv, sys.path[0], __package__, getattr(__spec__, "name", None))
    print(sorted(name for name in globals() if name != "__annotations__"), getattr(__loader__, "__name__", "") )
    print(sys.modules["__main__"].__dict__ is globals())
    import threading
    def later():
        threading.main_thread().join()
        import neighbour
        print("later", neighbour.__name__, __name__)
    threading.Thread(target=later).start()
    os.chdir("/")
    def function():
        raise RuntimeError("in the script")
    function()
"""


@pytest.mark.parametrize("path", ["script.py", "./script.py", "../program/script.py", "link.py"])
def test_a_script_by_a_relative_path_does_what_it_does_with_python(tmp_path, path):
    """Its name is absolute, so that tracebacks find the source wherever the program has gone."""
    program = tmp_path / "program"
    program.mkdir()
    script(program, SHOWS)
    (program / "neighbour.py").write_text("")
    (program / "link.py").symlink_to(program / "script.py")
    theirs, ours = python(path, "one", cwd=program), run(path, "one", cwd=program)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert "in the script" in ours.stderr


@pytest.mark.parametrize("kind", ["directory", "zip", "missing in directory"])
def test_a_directory_or_archive_does_what_it_does_with_python(tmp_path, kind):
    directory = tmp_path / "program"
    directory.mkdir()
    (directory / "neighbour.py").write_text("")
    if kind != "missing in directory":
        script(directory, SHOWS, "__main__.py")
    path = "program"
    if kind == "zip":
        path = Path(shutil.make_archive(str(tmp_path / "program"), "zip", directory)).name
    theirs, ours = python(path, "one", cwd=tmp_path), run(path, "one", cwd=tmp_path)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert without_runpy(ours.stderr) == without_runpy(theirs.stderr)


def test_a_script_from_stdin_does_what_it_does_with_python(tmp_path):
    (tmp_path / "neighbour.py").write_text("")
    code = textwrap.dedent(SHOWS)
    theirs, ours = (way("-", "one", cwd=tmp_path, input=code) for way in (python, run))
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert "<stdin>" in ours.stderr
    assert ours.stderr.splitlines()[-1] == theirs.stderr.splitlines()[-1]
    assert "cli.py" not in ours.stderr


@pytest.mark.parametrize("what", ["missing.py", "secret.py"])
def test_a_script_that_can_not_be_read_ends_with_status_2(tmp_path, what):
    if what == "secret.py":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        (tmp_path / what).write_text("")
        (tmp_path / what).chmod(0)
    done = run(tmp_path / what)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert str(tmp_path / what) in done.stderr


def test_a_missing_script_is_told_as_python_tells_it(tmp_path):
    theirs, ours = python(tmp_path / "missing.py"), run(tmp_path / "missing.py")
    assert ours.returncode == theirs.returncode == 2
    message = theirs.stderr.partition(": ")[2].strip()  # without the interpreter's name
    assert message in ours.stderr


def test_a_script_makes_keepalive_sockets(tmp_path):
    path = script(
        tmp_path,
        """
        import socket
        from socket import socket as early
        import ssl, asyncio
        print(socket.socket.__name__, early.__name__, ssl.SSLSocket.__mro__[1].__name__)
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        print(type(listener).__name__, type(client).__name__, client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        print(client.keepalive)
        for each in (listener, client):
            each.close()
        """,
    )
    done = run(path)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "KeepaliveSocket KeepaliveSocket KeepaliveSocket",
        "KeepaliveSocket KeepaliveSocket 1",
        repr(Keepalive()),
    ]


SHOW = "import longconn; print(repr(longconn.default_keepalive()))"


@pytest.mark.parametrize(
    ("arguments", "variable", "settings"),
    [
        ([], None, Keepalive()),
        ([], "40,20,4", Keepalive(40, 20, 4)),
        (["--keepalive", "60,10,6"], None, Keepalive(60, 10, 6)),
        (["--keepalive=60,10,6"], "40,20,4", Keepalive(60, 10, 6)),
        (["--keepalive", "60,10,6,30"], None, Keepalive(60, 10, 6, guard=30)),
        (["--keepalive", "off"], None, None),
        (["--guard", "3"], None, Keepalive(guard=3)),
        (["--guard", "2.5", "--keepalive", "60,10,6"], None, Keepalive(60, 10, 6, guard=2.5)),
        (["--guard", "off"], None, Keepalive(guard=False)),
        (["--keepalive", "off", "--guard", "3"], None, Keepalive(guard=3, probes=False)),
        (["--guard", "3"], "40,20,4", Keepalive(40, 20, 4, guard=3)),
        (["--guard", "3"], "off", Keepalive(guard=3, probes=False)),
    ],
)
def test_options_set_the_default_of_the_scripts_sockets(tmp_path, arguments, variable, settings):
    env = environment() if variable is None else environment(LONGCONN_KEEPALIVE=variable)
    done = run(*arguments, script(tmp_path, SHOW), env=env)
    assert (done.stdout, done.stderr) == (f"{settings!r}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keepalive", "nonsense"], "'nonsense': expected"),
        (["--keepalive", "60,10,200"], "count=200"),
        (["--keepalive", "0.2,1,1"], "idle=0.2"),
        (["--keepalive", ""], "'': expected"),
        (["--guard", "nonsense"], "guard"),
        (["--guard", "0.1"], "guard=0.1"),
        (["--guard", "nan"], "guard=nan"),
        (["--guard", "-1"], "guard=-1"),
        (["--guard", "1e9"], "guard=1e+09"),
        (["--unknown"], "--unknown"),
    ],
)
def test_bad_options_end_with_status_2_and_say_which(tmp_path, arguments, words):
    done = run(*arguments, script(tmp_path, "print('it ran')"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("longconn")
    assert words in last


def test_no_script_at_all_is_a_usage_error():
    for arguments in (["run"], [], ["unknown"], ["run", "-m"]):
        done = python("-m", "longconn", *arguments)
        assert done.returncode == 2
        assert "usage: longconn" in done.stderr.lower()


@pytest.mark.parametrize("command", ["run", "explain"])
def test_nonsense_in_the_environment_is_an_error_that_names_the_variable(tmp_path, command):
    arguments = [script(tmp_path, "print('it ran')")] if command == "run" else []
    done = python("-m", "longconn", command, *arguments, env=environment(LONGCONN_KEEPALIVE="nonsense"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert "LONGCONN_KEEPALIVE" in done.stderr.splitlines()[-1]


def test_nonsense_in_the_environment_is_none_where_the_settings_are_given(tmp_path):
    env = environment(LONGCONN_KEEPALIVE="nonsense")
    path = script(tmp_path, "import longconn; print(longconn.default_keepalive())")
    done = run("--keepalive", "1,1,3", path, env=env)
    assert (done.returncode, done.stdout) == (0, "Keepalive(1, 1, 3)\n")
    assert python("-m", "longconn", "explain", "1,1,3", env=env).returncode == 0


def test_help_is_there_for_people():
    for arguments in (["--help"], ["run", "--help"], ["explain", "--help"]):
        done = python("-m", "longconn", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.lower().lstrip().startswith("usage: longconn")


# ---- modules

MODULES = {
    "ends": "print(__name__, __file__, __spec__.name, __package__)",
    "shows its arguments": "import sys; print(sys.argv[1:], sys.path[0] == __import__('os').getcwd())",
    "raises": SCRIPTS["raises"],
    "exits 3": "import sys; sys.exit(3)",
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_does_what_it_does_with_python(tmp_path, name):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    script(package, MODULES[name], "__main__.py")
    script(package, MODULES[name], "module.py")
    for module in ("package", "package.module"):
        theirs = python("-m", module, "one", "--two", cwd=tmp_path)
        ours = run("-m", module, "one", "--two", cwd=tmp_path)
        assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
        assert without_runpy(ours.stderr) == without_runpy(theirs.stderr)


def without_runpy(stderr: str) -> list[str]:
    """Python itself shows the frames of its runpy, as of 3.11."""
    return [line for line in stderr.splitlines() if "<frozen runpy>" not in line]


def test_a_missing_module_ends_with_a_message(tmp_path):
    theirs, ours = python("-m", "missing_module", cwd=tmp_path), run("-m", "missing_module", cwd=tmp_path)
    assert ours.returncode == theirs.returncode == 1
    assert "missing_module" in ours.stderr
    assert "Traceback" not in ours.stderr


def test_pytest_can_be_run_so(tmp_path):
    """What install is for: a whole program that is somebody else's."""
    script(
        tmp_path,
        """
        import socket
        def test_it():
            assert socket.socket.__name__ == "KeepaliveSocket"
        """,
        "test_of_somebody.py",
    )
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


# ---- Ctrl-C

WAITS = """
    import socket
    listener = socket.create_server(("127.0.0.1", 0))
    print("ready", flush=True)
    listener.accept()
"""


@pytest.mark.parametrize("way", ["python", "run", "run -m"])
def test_ctrl_c_ends_a_script_as_it_ends_python(tmp_path, way):
    """By the signal, so that a shell that runs it in a loop stops too; with the script's own traceback."""
    path = script(tmp_path, WAITS)
    arguments = {
        "python": [path],
        "run": ["-m", "longconn", "run", path],
        "run -m": ["-m", "longconn", "run", "-m", "script"],
    }
    with subprocess.Popen(
        [sys.executable, *map(str, arguments[way])],
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # an interactive shell's children have it so; ours may have inherited that it is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as it:
        try:
            assert it.stdout.readline() == "ready\n"
            wait_until_blocked(it.pid, it.pid)
            it.send_signal(signal.SIGINT)
            _, stderr = it.communicate(timeout=PATIENCE)
        finally:
            it.kill()
    assert it.returncode == -signal.SIGINT
    lines = stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "KeyboardInterrupt"
    assert str(path) in lines[1]
    assert "cli.py" not in stderr


def test_what_runs_at_exit_runs_after_ctrl_c_too(tmp_path):
    path = script(tmp_path, "import atexit; atexit.register(print, 'at exit'); raise KeyboardInterrupt")
    theirs, ours = python(path), run(path)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


def test_after_ctrl_c_too_threads_are_waited_for(tmp_path):
    path = script(
        tmp_path,
        """
        import atexit, threading
        atexit.register(print, "at exit")
        def work():
            threading.main_thread().join()
            print("worked")
        threading.Thread(target=work).start()
        raise KeyboardInterrupt
        """,
    )
    theirs, ours = python(path), run(path)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert "worked" in ours.stdout


# ---- too late


def test_it_says_so_if_it_came_too_late(tmp_path):
    path = script(tmp_path, "print('it ran')")
    done = python("-c", "import ssl; from longconn.cli import main; main(['run', __import__('sys').argv[1]])", path)
    assert (done.returncode, done.stdout) == (0, "it ran\n")
    assert "too late" in done.stderr
    assert "ssl" in done.stderr


# ---- explain


def test_explain_prints_for_people_what_settings_do():
    done = python("-m", "longconn", "explain", "60,10,6")
    assert (done.returncode, done.stderr) == (0, "")
    times = Keepalive(60, 10, 6).detection_time()
    for part in ("Keepalive(60, 10, 6)", "only waits", "slow", "60 s", f"{times.in_flight / 60:.3g} min"):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_explain_prints_the_warnings():
    done = python("-m", "longconn", "explain", "600,10,1,off")
    assert done.returncode == 0
    for warning in Keepalive(600, 10, 1, guard=False).warnings():
        assert warning in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_explain_without_arguments_explains_the_default():
    assert repr(Keepalive()) in python("-m", "longconn", "explain").stdout
    said = python("-m", "longconn", "explain", env=environment(LONGCONN_KEEPALIVE="40,20,4")).stdout
    assert repr(Keepalive(40, 20, 4)) in said


def test_explain_explains_off():
    done = python("-m", "longconn", "explain", "off")
    assert done.returncode == 0
    assert "off" in done.stdout


@pytest.mark.parametrize("text", ["nonsense", "0.2,1,1", "60,10,200", "60"])
def test_explain_refuses_nonsense_with_status_2(text):
    done = python("-m", "longconn", "explain", text)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
