"""Runs the Python of a page of the documentation, as a reader would; ends with status 1 and the reason if one fails.

    python run_page.py PAGE

What holds for a fenced block that begins with ```python:

- Its first line ``# name.py`` makes it a program of its own, which is started before the rest and runs until the page's
  end; then it is ended by Ctrl-C. It must not fail. A program called ``test_...py`` is run by pytest, to its end; so is
  one that doesn't listen and says what it prints run to its end, before the next is started.
- All others run one after the other, as in one interpreter; on a page that calls ``watch`` of `longconn.notebook`, as
  the cells of a notebook.
- ``print(...)  # prints: text`` must print that, in a program too; ``...`` in the text stands for anything.

Host names that end in ``.example``, 10.0.0.7 and 0.0.0.0 become loopback, and ports become free ones, so that two
pages, and whatever else runs on this machine, don't meet. If no program of the page listens at a port of
`STAND_INS`, such a server does. The cable of examples/testing's is pulled when a client is left to wait for an answer,
by ``blpop`` or ``pg_sleep``. fullchain.pem and privkey.pem are there, of a CA that this process trusts, and the key
once more as encrypted.pem, with the password KEY_PASSWORD.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import longconn
from longconn.testing import FaultProxy

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/testing"

PATIENCE = 20 * float(os.environ.get("LONGCONN_TEST_SLACK", "1"))
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOST = re.compile(r"\b[\w-]+\.example\b|\b10\.0\.0\.7\b|\b0\.0\.0\.0\b")
PROGRAM = re.compile(r"# (\w+\.py)\b")
WATCHES = re.compile(r"^from longconn\.notebook import .*\bwatch\b", re.MULTILINE)
PRINTS = re.compile(r"# prints: (.*)$", re.MULTILINE)


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """(line, source) of each."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, found[1]


def contradiction(source: str, said: str) -> str | None:
    """How what was printed differs from what the source says that it prints."""
    expected, lines = PRINTS.findall(source), said.splitlines()
    if expected and len(expected) != len(lines):
        return f"says that it prints {len(expected)} lines, and it printed {lines}"
    for pattern, line in zip(expected, lines, strict=False):
        if not re.fullmatch(re.escape(pattern).replace(re.escape("..."), ".*"), line):
            return f"says that it prints {pattern!r}, and it printed {line!r}"
    return None


def listens(source: str, port: int) -> bool:
    return re.search(rf"(?:LongServer|create_server|serve)\(\s*(?:\w+, )?\(.*, {port}\)", source) is not None


def free_port() -> int:
    """None that the kernel gives to clients (ip_local_port_range): one of those could have it before the page does."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def wait_for_listener(port: int) -> None:
    """Until the kernel has one, by proc(5)'s list: a connection to try it would be one more to the program."""
    place, listening = f"0100007F:{port:04X}", "0A"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        if any(row[1] == place and row[3] == listening for row in rows):
            return
        time.sleep(0.01)
    raise TimeoutError(f"nobody listens at port {port}")


def serve_messages(port: int) -> None:
    with longconn.LongServer(("127.0.0.1", port)) as server:
        for connection, message in server.messages():
            with contextlib.suppress(longconn.LongConnError):
                connection.send(b"got " + message)


def serve_bytes(port: int) -> None:
    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"hello\r\n")
            while data := connection.recv(65536):
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def behind_a_cable(name: str) -> Callable[[int], None]:
    """One of examples/testing, by name."""

    def serve(port: int) -> None:
        sys.path.insert(0, str(EXAMPLES))
        import servers

        with servers.served(getattr(servers, name)) as server, FaultProxy(server, port=port) as proxy:
            server.on_wait = proxy.pull_cable
            threading.Event().wait()

    return serve


#: By the port that pages give them.
STAND_INS = {
    "9000": serve_messages,
    "8083": serve_bytes,
    "8080": behind_a_cable("Web"),
    "6379": behind_a_cable("Redis"),
    "5432": behind_a_cable("Postgres"),
}


def make_certificate(directory: Path) -> None:
    """For loopback, as certbot would leave it, of a CA that this process trusts; and its key with a password."""
    import trustme
    from cryptography.hazmat.primitives import serialization

    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(directory / "privkey.pem")
    os.environ["KEY_PASSWORD"] = "secret"
    encrypted = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(os.environ["KEY_PASSWORD"].encode()),
    )
    (directory / "encrypted.pem").write_bytes(encrypted)
    for pem in leaf.cert_chain_pems:
        pem.write_to_path(directory / "fullchain.pem", append=True)
    authority.cert_pem.write_to_path(directory / "authority.pem")
    os.environ["SSL_CERT_FILE"] = str(directory / "authority.pem")


class Program:
    """A block that runs in a process of its own, as in a terminal of its own."""

    def __init__(self, path: Path, source: str) -> None:
        self._path, self._source = path, source
        self._said, self._errors = path.with_suffix(".out"), path.with_suffix(".err")
        path.write_text(source, encoding="utf-8")
        argv = [sys.executable, "-u", "-W", "error", str(path)]
        if path.name.startswith("test_"):
            argv[2:4] = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
        with self._said.open("w") as said, self._errors.open("w") as errors:
            self._process = subprocess.Popen(argv, cwd=path.parent, stdout=said, stderr=errors)

    def wait(self) -> None:
        self._process.wait(PATIENCE * 2)

    def end(self) -> str | None:
        """By Ctrl-C, once what it says that it prints has had time to come; returns what was wrong with it."""
        deadline = time.monotonic() + PATIENCE
        while complaint := contradiction(self._source, self._said.read_text(encoding="utf-8")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        ran_on = self._process.poll() is None
        if ran_on:
            self._process.send_signal(signal.SIGINT)
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return f"{self._path.name} isn't ended by Ctrl-C"
        errors = self._errors.read_text(encoding="utf-8")
        if status and not (ran_on and errors.rstrip().endswith("KeyboardInterrupt")):
            return f"{self._path.name} ended with {status}:\n{self._said.read_text(encoding='utf-8')}{errors}"
        return complaint and f"{self._path.name} {complaint}"


class Page:
    """A page at work."""

    def __init__(self, path: Path, directory: Path) -> None:
        self._path, self._directory = path, directory
        self._ports: dict[str, int] = {}
        self._programs: list[Program] = []

    def run(self) -> None:
        sources = [(line, self._on_loopback(source)) for line, source in blocks(self._path)]
        for name, port in self._ports.items():
            if not any(listens(source, port) for _, source in sources):
                threading.Thread(target=STAND_INS[name], args=(port,), daemon=True).start()
                wait_for_listener(port)
        if any("fullchain.pem" in source for _, source in sources):
            make_certificate(self._directory)
        lines = [(line, source) for line, source in sources if not PROGRAM.match(source)]
        names: dict[str, object] = {"__name__": "__main__"}
        try:
            for _, source in sources:
                if program := PROGRAM.match(source):
                    self._start(program[1], source)
            if any(WATCHES.search(source) for _, source in lines):
                self._execute_in_a_notebook([source for _, source in lines])
            else:
                for line, source in lines:
                    self._execute(line, source, names)
        finally:
            self._end_programs()

    def _on_loopback(self, source: str) -> str:
        def port(found: re.Match[str]) -> str:
            number = found[0]
            return str(self._ports.setdefault(number, free_port()))

        return re.sub(rf"\b(?:{'|'.join(STAND_INS)})\b", port, HOST.sub("127.0.0.1", source))

    def _start(self, name: str, source: str) -> None:
        program = Program(self._directory / name, source)
        self._programs.append(program)
        ports = [number for number in self._ports.values() if listens(source, number)]
        for number in ports:
            wait_for_listener(number)
        if name.startswith("test_") or (PRINTS.search(source) and not ports):
            program.wait()

    def _execute(self, line_number: int, source: str, names: dict[str, object]) -> None:
        said = io.StringIO()
        # At the block's place in the page, so that a traceback names the line there.
        code = compile("\n" * line_number + source, str(self._path), "exec")
        with contextlib.redirect_stdout(said):
            exec(code, names)
        if complaint := contradiction(source, said.getvalue()):
            raise AssertionError(f"{self._path}:{line_number} {complaint}")

    def _execute_in_a_notebook(self, sources: list[str]) -> None:
        import nbformat
        from run_notebook import execute, said

        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        nbformat.write(notebook, self._directory / "page.ipynb")
        for cell in execute(self._directory / "page.ipynb").cells:
            if complaint := contradiction(cell.source, said(cell)):
                raise AssertionError(f"{self._path}: {cell.source!r} {complaint}")

    def _end_programs(self) -> None:
        if complaints := [each for program in self._programs if (each := program.end())]:
            raise AssertionError(f"{self._path}: " + "\n".join(complaints))


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, and what it starts, ignores it
    with tempfile.TemporaryDirectory() as directory:
        path = Path(sys.argv[1]).resolve()
        os.chdir(directory)
        try:
            Page(path, Path(directory)).run()
        except Exception:
            traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
