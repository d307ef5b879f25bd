"""The package itself: what it exports, what its import costs and doesn't do, what is beside it."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import longconn
import mypy.api
import pytest
from longconn import testing
from longconn.testing import network
from peers import PACKAGE, environment, interpreters, python, python_says

PUBLIC = {name: getattr(longconn, name) for name in longconn.__all__}
PROJECT = Path(__file__).parent.parent.parent


def test_its_names_are_sorted_and_there_and_no_others():
    assert longconn.__all__ == sorted(longconn.__all__)
    public = {
        name for name, value in vars(longconn).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(longconn.__all__) - {"socket"}


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_is_documented_where_people_look(name):
    assert PUBLIC[name].__doc__
    assert inspect.ismodule(PUBLIC[name]) or PUBLIC[name].__module__.startswith("longconn")


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isclass(value)])
def test_each_public_member_of_a_class_is_documented(name):
    for member, value in vars(PUBLIC[name]).items():
        stdlib = any(member in vars(base) for base in PUBLIC[name].__mro__[1:])
        if not member.startswith("_") and not stdlib and (callable(value) or isinstance(value, property)):
            assert inspect.getdoc(getattr(PUBLIC[name], member)), f"{name}.{member}"


REFERENCE = PROJECT / "docs" / "reference.md"


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_is_in_the_reference(name):
    assert re.search(rf"`{name}\b", REFERENCE.read_text()), name


def test_the_reference_names_nothing_that_is_not_there():
    """Each row of its tables begins with a name of the package or its test kit, or a member of what the row says."""
    known = PUBLIC | {name: getattr(testing, name) for name in testing.__all__} | {"network": network}
    members = {member for value in known.values() for member in dir(value)}
    for row in re.findall(r"^\| (`.*?) \|", REFERENCE.read_text(), re.MULTILINE):
        for is_member, name in re.findall(r"`(\.?)(\w+)", row):
            assert name in (members if is_member else {*known, *members, "aio"}), row


@pytest.mark.parametrize(
    "name",
    [
        "KeepaliveSocket",
        "Keepalive",
        "Heartbeat",
        "LengthPrefixed",
        "Lines",
        "LongServer",
        "PlainHeartbeat",
        "connect",
        "exchange",
        "guard",
    ],
)
def test_the_references_signatures_are_the_real_ones(name):
    written = re.search(rf"`{name}(\(.*?\))`", REFERENCE.read_text())
    assert written
    documented = inspect.signature(eval(f"lambda {written[1][1:-1]}: None"))
    real = inspect.signature(PUBLIC[name])
    assert [(each.name, each.default) for each in documented.parameters.values()] == [
        (each.name, each.default) for each in real.parameters.values()
    ]


def test_the_class_says_where_it_is_imported_from():
    assert longconn.KeepaliveSocket.__module__ == "longconn"
    assert longconn.KeepaliveSocket.__qualname__ == "KeepaliveSocket"
    assert longconn.TcpInfo.__module__ == "longconn"


def need_distribution() -> None:
    try:
        importlib.metadata.distribution("longconn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("longconn is on the path here, but not installed")


def test_its_version_is_that_of_the_distribution():
    need_distribution()
    assert importlib.metadata.version("longconn") == longconn.__version__


def test_it_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "_longconn.pyi").exists()


def test_it_has_a_command_of_its_own():
    need_distribution()
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="longconn")
    from longconn.cli import main

    assert entry.load() is main
    command = Path(sys.executable).with_name("longconn")
    if command.exists():
        done = python(command, "explain", "60,10,6")
        assert (done.returncode, done.stderr) == (0, "")


def test_it_needs_nothing_but_python():
    need_distribution()
    requires = importlib.metadata.requires("longconn") or []
    assert [each for each in requires if "extra ==" not in each.partition(";")[2]] == []
    with (PROJECT / "pyproject.toml").open("rb") as file:
        assert "dependencies" not in tomllib.load(file)["project"]


# ---- the wheel

WHEEL = os.environ.get("LONGCONN_TEST_WHEEL")
HERE = Path(__file__).parent
from_wheel = pytest.mark.skipif(WHEEL is None, reason="from the tree here; make test runs the tests from the wheel")


@from_wheel
def test_what_is_tested_is_what_the_wheel_holds():
    assert Path(sysconfig.get_path("platlib")) / "longconn" == PACKAGE
    assert PROJECT / "python" not in [Path(entry).resolve() for entry in sys.path]
    with zipfile.ZipFile(WHEEL) as wheel:
        files = [name for name in wheel.namelist() if name.startswith("longconn/")]
        assert any(name.startswith("longconn/_longconn.") and not name.endswith(".pyi") for name in files)
        for name in files:
            assert (PACKAGE.parent / name).read_bytes() == wheel.read(name), name


@from_wheel
def test_the_programs_that_tests_start_have_it_too(tmp_path):
    code = "import longconn; print(longconn.__file__, longconn._longconn.__file__)"
    for folder in PROJECT, PROJECT / "python", tmp_path:
        # -P: what is in the current folder comes first otherwise, in a user's program too
        done = python("-P", "-c", code, cwd=folder)
        assert done.stdout.split() == [longconn.__file__, longconn._longconn.__file__]


def test_an_interpreter_that_is_missing_is_named_and_is_no_success(tmp_path):
    """The way in which the wheel is tested."""
    done = python(HERE / "run_wheel.py", tmp_path, "python3.99", tmp_path / "python")
    assert done.returncode == 1
    for name in "python3.99", str(tmp_path / "python"):
        assert re.search(rf"^{re.escape(name)} +missing", done.stdout, re.MULTILINE)


def test_an_interpreter_without_a_wheel_is_no_success(tmp_path):
    done = python(HERE / "run_wheel.py", tmp_path, sys.executable)
    assert done.returncode == 1
    assert "nothing was run" in done.stdout


# ---- the import

DEAR = ("asyncio", "ssl", "logging", "multiprocessing", "concurrent", "argparse", "subprocess", "unittest", "ctypes")


def test_its_import_brings_nothing_dear_with_it():
    said = python_says(f"import sys, longconn; print([name for name in {DEAR} if name in sys.modules])")
    assert said == "[]\n"


def test_its_import_starts_no_thread_and_opens_nothing():
    said = python_says(
        """
import os, socket
before = os.listdir("/proc/self/fd"), os.listdir("/proc/self/task")
import longconn
print(before == (os.listdir("/proc/self/fd"), os.listdir("/proc/self/task")))
sock = longconn.KeepaliveSocket()
sock.close()
print(len(os.listdir("/proc/self/task")))
"""
    )
    assert said == "True\n1\n"


def test_help_of_what_is_native_tells_what_its_stub_tells():
    stub = ast.parse((PACKAGE / "_longconn.pyi").read_text(encoding="utf-8"))
    for cls in longconn.aio.LongConnection, longconn.LongConnection, longconn._longconn.Connection, longconn.TcpInfo:
        name = "AsyncConnection" if cls is longconn.aio.LongConnection else cls.__name__
        (told,) = (each for each in stub.body if isinstance(each, ast.ClassDef) and each.name == name)
        assert inspect.getdoc(cls) == ast.get_docstring(told)
        for member in told.body:
            if isinstance(member, ast.FunctionDef) and (text := ast.get_docstring(member)):
                assert inspect.getdoc(vars(cls)[member.name]) == text, f"{name}.{member.name}"


def test_modules_that_are_imported_when_asked_for_are_there_and_listed():
    modules = ("aio", "metrics", "notebook", "testing")
    said = python_says(
        f"""
import sys, longconn
for name in {modules}:
    assert name in dir(longconn)
    assert f"longconn.{{name}}" not in sys.modules
    assert getattr(longconn, name) is sys.modules[f"longconn.{{name}}"]
"""
    )
    assert said == ""


def test_a_program_that_uses_it_type_checks(tmp_path):
    """Names of modules that are imported later included; and a misspelt one is found."""
    page = tmp_path / "page.py"
    page.write_text(
        """
import longconn

async def talk(connection: longconn.aio.LongConnection) -> bytes:
    async for event in connection.events():
        print(event.state, event.nonsense)
    async with longconn.aio.connect("gateway:9000") as other:
        return await other.recv(timeout=5.0)

def watch(server: longconn.LongServer, proxy: longconn.testing.FaultProxy) -> None:
    for connection in server:
        for event in connection.events():
            print(event.cause, event.nonsense)
    longconn.conect(proxy.address)
"""
    )
    out, _, _ = mypy.api.run(["--strict", "--no-incremental", "--config-file=", str(page)])
    wrong = re.findall(r"^.*page\.py:(\d+): error: .*\[attr-defined\]$", out, re.MULTILINE)
    assert (wrong, "Found 3 errors in 1 file" in out) == (["6", "13", "14"], True), out


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: longconn.connect("localhost:99999"), r"port 99999: 0 to 65535"),
        (lambda: longconn.connect("localhost:1", token="secret"), r"token: .*, not str"),
        (lambda: longconn.exchange("localhost:1", "hello"), r"data: .*, not str"),
        (lambda: longconn.exchange("localhost:1", b"hello", until="\n"), r"until: .*, not str"),
        (lambda: longconn.Keepalive.parse(60), r"text: .*, not int"),
    ],
)
def test_a_wrong_argument_is_named(call, named):
    with pytest.raises((TypeError, ValueError), match=named):
        call()


def test_its_import_changes_nothing_of_the_stdlibs():
    said = python_says(
        """
import socket, signal
before = dict(vars(socket)), [signal.getsignal(number) for number in signal.valid_signals()]
import longconn
print(before == (dict(vars(socket)), [signal.getsignal(number) for number in signal.valid_signals()]))
"""
    )
    assert said == "True\n"


def test_a_second_import_of_everything_is_the_same():
    said = python_says(
        """
import sys
import longconn, longconn.socket
first = longconn.KeepaliveSocket, sys.modules["longconn._longconn"]
import longconn.cli, longconn.__main__
from longconn import _longconn
print(first == (longconn.KeepaliveSocket, _longconn))
"""
    )
    assert said == "True\n"


FOUND = interpreters()


@pytest.mark.parametrize("version", FOUND)
def test_the_same_module_serves_every_python(version):
    """The stable ABI (abi3) of 3.11."""
    interpreter = FOUND[version]
    if interpreter is None:
        pytest.skip(f"no Python {version} was found on PATH or beside this one")
    code = """
import sys
from longconn import socket
with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
    peer, _ = listener.accept()
    with peer:
        ours.sendall(b"x" * 100_000)
        got = b""
        while len(got) < 100_000:
            got += peer.recv(65536)
print(sys.version_info[:2], len(got), repr(ours.keepalive))
"""
    said = python_says(code, interpreter=interpreter, env=environment(PYTHONPATH=str(PACKAGE.parent)))
    assert said == f"({version.replace('.', ', ')}) 100000 Keepalive(15, 5, 3)\n"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_another_interpreter_gets_another_environment(tmp_path):
    """It went on with the one that was there, though the help says otherwise."""
    shutil.copy(PROJECT / "Makefile", tmp_path)
    (tmp_path / "src").mkdir()
    other = tmp_path / "other-python"
    other.write_text("#!/bin/sh\necho 3-99-somewhere-else\n")
    other.chmod(0o755)

    def plan(interpreter: str | Path) -> str:
        command = ["make", "-n", ".venv/.stamps/test", f"PYTHON={interpreter}"]
        (tmp_path / "pyproject.toml").touch()
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    makes = "-m venv --clear"
    first = plan(sys.executable)
    assert makes in first
    stamps = tmp_path / ".venv/.stamps"
    stamps.mkdir(parents=True)
    for line in first.splitlines():
        if line.startswith("touch "):
            (tmp_path / line.removeprefix("touch ")).touch()
    assert makes not in plan(sys.executable)
    assert makes in plan(other)
