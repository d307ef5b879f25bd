"""Takes the pictures of docs/ that show programs: each command of the shell, and a notebook's timeline that goes on.

    python benches/pictures.py [NAME ...]

Real programs on real connections: servers and fault proxies on loopback, and for `probe` a NAT in the network lab
(root). A command runs in a pseudo terminal, and what that shows is kept as docs/pictures/NAME.svg. The notebook runs in
JupyterLab, in a headless Chromium, and is docs/notebook.png.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import functools
import itertools
import json
import os
import platform
import pty
import re
import selectors
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import longconn
import nbformat
import pyte
from longconn.testing import FaultProxy
from longconn.testing.network import Lab, reason_unavailable
from rich.console import Console
from rich.style import Style
from rich.text import Text
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.wait import WebDriverWait

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "demo"))

from screen import keep_svg

COLUMNS, LINES = 100, 60
END_OF_INPUT = "\x04"  # Ctrl-D
PATIENCE = 60 * float(os.environ.get("LONGCONN_TEST_SLACK", "1"))
ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
LONGCONN = [sys.executable, "-m", "longconn"]


class _Screen(pyte.Screen):
    """With the faint letters that pyte leaves out."""

    def select_graphic_rendition(self, *attributes: int) -> None:
        super().select_graphic_rendition(*attributes)
        if attributes[:1] == (2,):
            super().select_graphic_rendition(90)


class Terminal:
    """A pseudo terminal of fixed size, the programs that run in it one after the other, and what it shows."""

    def __init__(self, columns: int = COLUMNS) -> None:
        self._columns = columns
        self._screen = _Screen(columns, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, shown: str, words: list[str], popen: Callable[..., Any] = subprocess.Popen, **options: Any) -> None:
        """Start these words, behind a prompt and what is *shown* as typed."""
        self._stream.feed(b"\x1b[32m$\x1b[0m \x1b[1m" + shown.encode() + b"\x1b[0m\r\n")
        environment = {name: each for name, each in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        environment |= {"TERM": "xterm-256color", "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8"}
        ends = dict.fromkeys(("stdin", "stdout", "stderr"), self._slave)
        self.process = popen(words, env=environment, **ends, **options)

    def type(self, line: str) -> None:
        """What somebody types, which the terminal echoes."""
        os.write(self._master, line.encode() + b"\n")

    def see(self, text: str, times: int = 1) -> None:
        """Wait until it is there so many times.

        Raises:
            RuntimeError: It doesn't come.
        """
        deadline = time.monotonic() + PATIENCE
        while sum(line.count(text) for line in self.lines()) < times:
            if not self._take(0.1) and (time.monotonic() > deadline or self.process.poll() is not None):
                raise RuntimeError(f"{text!r} isn't there:\n" + "\n".join(self.lines()).rstrip())

    def lines(self) -> list[str]:
        """What it shows now."""
        return [line.rstrip() for line in self._screen.display]

    def look(self) -> None:
        """Take what has come meanwhile."""
        while self._take(0.1):
            pass

    def end(self, number: int | None = None) -> int:
        """Wait for the program's end, after this signal if there is one; returns its exit status."""
        assert self.process is not None
        if number is not None:
            self.process.send_signal(number)
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            self._take(0.1)
        while self._take(0.1):
            pass
        return self.process.wait(PATIENCE)

    def _take(self, seconds: float) -> bool:
        """What the program writes, if it does so within *seconds*."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._master, selectors.EVENT_READ)
            if not selector.select(seconds):
                return False
        self._stream.feed(os.read(self._master, 65536))
        return True

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def keep(self, name: str) -> None:
        """What it shows now, without the empty lines at the end, as docs/pictures/NAME.svg."""
        lines = [_line(self._screen.buffer[row], self._columns) for row in range(LINES)]
        while lines and not lines[-1].plain:
            lines.pop()
        with open(os.devnull, "w") as nowhere:
            console = Console(
                file=nowhere, record=True, width=self._columns, force_terminal=True, color_system="truecolor"
            )
            for line in lines:
                console.print(line, no_wrap=True, overflow="crop", highlight=False)
        keep_svg(console, PICTURES / f"{name}.svg", "longconn")


def _line(cells: Any, columns: int) -> Text:
    line = Text()
    # A picture has an element for each part.
    for style, part in itertools.groupby((cells[column] for column in range(columns)), _style):
        line.append("".join(cell.data for cell in part), style)
    line.rstrip()
    release = platform.release()
    if (at := line.plain.find(release)) >= 0:  # the rest of the kernel's name is this machine's
        line = Text.assemble(line[:at], ".".join(release.split(".")[:2]), line[at + len(release) :])
    return line


def _style(cell: Any) -> Style:
    foreground, background = _colour(cell.fg), _colour(cell.bg)
    return Style(color=foreground, bgcolor=background, bold=cell.bold, italic=cell.italics, reverse=cell.reverse)


def _colour(name: str) -> str | None:
    """pyte's names of the sixteen, and its hexadecimal others, as rich has them."""
    if name == "default":
        return None
    name = name.replace("brown", "yellow").replace("bright", "bright_")
    return f"#{name}" if len(name) == 6 and all(each in "0123456789abcdef" for each in name) else name


# ---- what they show


def take_help() -> None:
    with Terminal() as terminal:
        terminal.run("longconn --help", [*LONGCONN, "--help"])
        terminal.end()
        terminal.keep("help")


def take_explain() -> None:
    with Terminal() as terminal:
        terminal.run("longconn explain 60,10,6", [*LONGCONN, "explain", "60,10,6"])
        terminal.end()
        terminal.keep("explain")


def take_doctor() -> None:
    with Terminal() as terminal:
        terminal.run("longconn doctor", [*LONGCONN, "doctor"])
        terminal.end()
        terminal.keep("doctor")


CLIENT = """\
import socket

client = socket.create_connection(("127.0.0.1", {port}))
print("waiting for", client.getpeername(), flush=True)
try:
    client.recv(1024)
except OSError as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""


def take_run() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        FaultProxy(server.getsockname()) as proxy,
        tempfile.TemporaryDirectory() as folder,
        Terminal() as terminal,
    ):
        Path(folder, "client.py").write_text(CLIENT.format(port=proxy.address[1]), encoding="utf-8")
        terminal.run("cat client.py", ["cat", "client.py"], cwd=folder)
        terminal.end()
        words = ["run", "--keepalive", "1,1,3", "client.py"]
        terminal.run(shlex.join(["longconn", *words]), [*LONGCONN, *words], cwd=folder)
        terminal.see("waiting for")
        proxy.wait_for("accepted")
        proxy.pull_cable()
        terminal.end()
        terminal.keep("run")


#: Takes every message; holds the GIL for so many seconds, in one call into C, when it is told to.
HOLDING = """
import ctypes, sys, threading
import longconn
server = longconn.LongServer(("127.0.0.1", 0), heartbeat=longconn.Heartbeat(0.5))
threading.Thread(target=lambda: [None for _ in server.messages()], daemon=True).start()
print(*server.address, flush=True)
for line in sys.stdin:
    ctypes.PyDLL(None).sleep(int(line))
"""


def take_ping() -> None:
    with program(HOLDING) as (server, address), Terminal() as terminal:
        words = ["ping", address, "--count", "6"]
        terminal.run(shlex.join(["longconn", *words]), [*LONGCONN, *words])
        terminal.see("beat 2 ")
        print("3", file=server.stdin, flush=True)
        terminal.end()
        terminal.keep("ping")


def take_talk() -> None:
    """`serve` and `connect`: one conversation, from both sides, over a cable that is pulled meanwhile."""
    with Terminal() as left, Terminal() as right:
        words = ["serve", "127.0.0.1:0", "--interval", "0.5"]
        left.run(shlex.join(["longconn", *words]), [*LONGCONN, *words])
        left.see("listening on")
        with FaultProxy(next(line.split()[-1] for line in left.lines() if line.startswith("listening"))) as proxy:
            words = ["connect", "{}:{}".format(*proxy.address), "--id", "device-7", "--interval", "0.5"]
            right.run(shlex.join(["longconn", *words]), [*LONGCONN, *words])
            left.see("device-7: open")
            right.type("21.5 degrees")
            left.see("21.5 degrees")
            left.type("thank you")
            right.see("thank you")
            proxy.pull_cable()
            right.type("21.7 degrees")
            right.see("nothing heard")
            right.type("21.9 degrees")
            proxy.restore()
            right.see("sent again")
            left.see("21.9 degrees")
            right.type(END_OF_INPUT)
            right.end()
            left.see("device-7: ", 4)
            left.end(signal.SIGINT)
        left.keep("serve")
        right.keep("connect")


def take_chaos() -> None:
    with longconn.LongServer(("127.0.0.1", 0), heartbeat=longconn.Heartbeat(0.5)) as server, Terminal() as terminal:
        orders = [
            word for order in ("latency 0.05 jitter=0.02", "3 pull_cable", "6 restore") for word in ("--order", order)
        ]
        words = ["chaos", "{}:{}".format(*server.address), *orders]
        terminal.run(shlex.join(["longconn", *words]), [*LONGCONN, *words])
        terminal.see("listening on")
        threading.Thread(target=lambda: [None for _ in server.messages()], daemon=True).start()
        address = next(line.split()[-1] for line in terminal.lines() if line.startswith("listening on"))
        with longconn.connect(address, heartbeat=longconn.Heartbeat(0.5)) as client:
            client.send(b"21.5")
            terminal.see("restore(")
            terminal.see("accepted", 2)
            client.send(b"21.7")
            time.sleep(1)
            terminal.look()
            terminal.end(signal.SIGINT)
        terminal.keep("chaos")


#: Connections of all kinds to one server.
CLIENTS = """
import socket, sys, time
import longconn
place = (sys.argv[1], int(sys.argv[2]))
kept = [socket.create_connection(place) for _ in range(3)]
kept[1].setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
for option, value in ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
    kept[2].setsockopt(socket.IPPROTO_TCP, option, value)
kept[2].setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
kept.append(longconn.KeepaliveSocket(keepalive=longconn.Keepalive(15, 5, 3)))
kept[3].connect(place)
print("connected", flush=True)
sys.stdin.read()
"""


def take_watch() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, program(CLIENTS, *server.getsockname()) as (client, _):
        with Terminal() as terminal:
            terminal.run(f"longconn watch {client.pid}", [*LONGCONN, "watch", str(client.pid)])
            terminal.see("4 connections")
            time.sleep(2.5)  # so that it has drawn itself over
            terminal.look()
            terminal.keep("watch")
            terminal.end(signal.SIGINT)


FORGETS_AFTER = 10
LISTENER = """
import socket
listener = socket.create_server(("", 9000), backlog=64)
print("listening", flush=True)
kept = []
while True:
    kept.append(listener.accept())
"""


def take_probe() -> None:
    """Behind a NAT that forgets, which takes the network lab."""
    if reason := reason_unavailable():
        raise RuntimeError(f"probe's picture takes the network lab: {reason}")
    with Lab(nat=True) as lab, Terminal() as terminal:
        lab.forget_after(FORGETS_AFTER)
        server = lab.popen("server", [sys.executable, "-c", LISTENER], stdout=subprocess.PIPE)
        server.stdout.readline()
        words = ["probe", f"{lab.address('server')}:9000", "--least", "4"]
        terminal.run(shlex.join(["longconn", *words]), [*LONGCONN, *words], functools.partial(lab.popen, "client"))
        terminal.end()
        terminal.keep("probe")


CELLS = (
    """\
import time
import longconn
from longconn.notebook import watch
from longconn.testing import FaultProxy

heartbeat = longconn.Heartbeat(0.5)
server = longconn.LongServer(("127.0.0.1", 0), heartbeat=heartbeat)
network = FaultProxy(server)
client = longconn.connect(network.address, client_id="device-7", heartbeat=heartbeat)""",
    "watch(client, server, network, window=12)",
    """\
time.sleep(4)
network.pull_cable()
time.sleep(3)
network.restore()
time.sleep(10)""",
)
WIDTH, HEIGHT, SCALE = 1000, 1000, 1.5
THEMES = {"notebook": "JupyterLab Light", "notebook-dark": "JupyterLab Dark"}


def take_notebook() -> None:
    for name, theme in THEMES.items():
        with (
            tempfile.TemporaryDirectory() as folder,
            _lab(Path(folder), theme) as page,
            _browser(Path(folder)) as browser,
        ):
            browser.get(page)
            kernel = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
            _wait(browser, f"return {kernel}?.status == 'idle'", "the notebook's kernel")
            browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
            _wait(
                browser,
                "return document.querySelector('svg[aria-label^=timeline]')?.textContent.includes('restore')",
                "the timeline",
            )
            time.sleep(3)  # some beats of the next connection, while the last cell goes on
            box = browser.execute_script("""
                const cells = [...document.querySelectorAll('.jp-Cell')].map(each => each.getBoundingClientRect());
                const last = cells[cells.length - 1];
                return {x: cells[0].x, y: cells[0].y, width: last.right - cells[0].x, height: last.bottom - cells[0].y};
            """)
            taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": box | {"scale": SCALE}})
            (PICTURES.parent / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


def _wait(browser: WebDriver, script: str, what: str) -> None:
    WebDriverWait(browser, PATIENCE).until(lambda browser: browser.execute_script(script), f"{what} isn't there")


@contextlib.contextmanager
def _lab(folder: Path, theme: str) -> Iterator[str]:
    """JupyterLab with the notebook, nobody's settings, and nothing to fetch; the page of it."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }  # it would ask
    nbformat.write(notebook, folder / "cable.ipynb")
    for name, settings in {
        "themes": {"theme": theme},
        "notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        path = folder / "settings" / "@jupyterlab" / "apputils-extension" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings), encoding="utf-8")
    words = ["-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--expose-app-in-browser"]
    words += [
        "--LabApp.extension_manager=readonly",
        "--IdentityProvider.token=pictures",
        f"--ServerApp.root_dir={folder}",
    ]
    words += ["--allow-root"] * (os.geteuid() == 0)
    environment = {
        name: str(folder / name) for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        place = next(found[1] for line in process.stderr if (found := re.search(r"(http://127.0.0.1:\d+)/lab", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # else it waits for who reads it
        yield f"{place}/doc/tree/cable.ipynb?token=pictures"
    finally:
        process.terminate()  # and its kernel with it
        process.wait(PATIENCE)


@contextlib.contextmanager
def _browser(folder: Path) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-background-networking",
        "disable-component-update",
    ):
        options.add_argument(f"--{word}")
    for word in ("disable-sync", "no-first-run", f"user-data-dir={folder}/profile", f"window-size={WIDTH},{HEIGHT}"):
        options.add_argument(f"--{word}")
    # Named, so that selenium looks for none.
    browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


@contextlib.contextmanager
def program(source: str, *words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python program beside, and the address, or what else it has told first."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, ":".join(process.stdout.readline().split())
    finally:
        process.kill()
        process.communicate()


TAKEN = {
    "help": take_help,
    "explain": take_explain,
    "doctor": take_doctor,
    "run": take_run,
    "ping": take_ping,
    "talk": take_talk,
    "chaos": take_chaos,
    "watch": take_watch,
    "probe": take_probe,
    "notebook": take_notebook,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures of docs/ anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of " + ", ".join(TAKEN))
    for name in parser.parse_args().names or TAKEN:
        print(name, file=sys.stderr, flush=True)
        TAKEN[name]()


if __name__ == "__main__":
    main()
