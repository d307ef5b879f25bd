"""How a process ends, by what its threads are blocked in: no hang, no crash, no lost exit code, not a word.

One table: each way to end, for each call that a daemon thread may be in meanwhile.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from peers import PACKAGE, PATIENCE, environment, interpreters, python

HERE = str(Path(__file__).parent)

PRELUDE = """
import os, signal, sys, threading, time, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore", ResourceWarning)  # nothing is closed here, and that is said
import longconn
from longconn import socket
from peers import STDLIB, cut_off, wait_until_blocked

listener = socket.create_server(("127.0.0.1", 0))
sock = socket.create_connection(listener.getsockname(), timeout=60)
peer, _ = listener.accept()
server = longconn.LongServer(("127.0.0.1", 0))
ours = longconn.connect(server.address)
theirs = server.accept(timeout=60)

def in_a_thread(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread

def for_ever(function):
    while True:
        function()

def silence(connection):
    '''Nothing arrives at it any more.'''
    for number in os.listdir("/proc/self/fd"):
        try:
            copy = STDLIB(fileno=os.dup(int(number)))
        except OSError:  # it isn't a socket
            continue
        with copy:
            if copy.family == socket.AF_INET and copy.getsockname() == connection.getsockname():
                cut_off(copy)
"""

#: In a daemon thread, which never comes back from it.
CALLS: dict[str, str] = {
    "recv": "ours.recv()",
    "recv with a timeout": "ours.recv(timeout=60)",
    "recv_many": "ours.recv_many(10)",
    "the loop over messages": "next(iter(ours))",
    "send": "for_ever(lambda: ours.send(bytes(300_000)))",
    "send of much": "ours.send(bytes(10_000_000)); ours.send(bytes(10_000_000))",
    "send_many": "ours.send_many(iter(lambda: bytes(10_000), 0))",
    "flush": "ours.send(b'x'); ours.flush()",
    "ping": "silence(theirs); ours.ping()",
    "wait_for": "ours.wait_for('suspect')",
    "events": "for_ever(iter(ours.events()).__next__)",
    "close": "ours.send(b'x'); ours.close(timeout=60)",
    "LongServer.accept": "server.accept()",
    "LongServer.events": "for_ever(iter(server.events()).__next__)",
    "LongServer.messages": "other = longconn.LongServer(('127.0.0.1', 0)); next(other.messages())",
    "LongServer.close": "ours.send(b'x'); theirs.send(b'x'); server.close(drain=60)",
    "connect, to who says nothing": "longconn.connect(listener.getsockname(), timeout=60)",
    "exchange": "longconn.exchange(listener.getsockname(), b'x', timeout=60)",
    "recv of a plain peer": "longconn.connect(listener.getsockname(), framing='raw').recv(10)",
    "KeepaliveSocket.recv": "sock.settimeout(None); sock.recv(10)",
    "KeepaliveSocket.recv with a timeout": "sock.recv(10)",
    "KeepaliveSocket.recv_into": "sock.recv_into(bytearray(100_000))",
    "KeepaliveSocket.accept": "listener.accept()",
    "KeepaliveSocket.sendall": "sock.sendall(bytes(50_000_000))",
}

#: In the main thread; and the exit code.
WAYS: dict[str, tuple[str, int]] = {
    "falls off the end": ("pass", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "os._exit": ("os._exit(4)", 4),
    "os._exit in a thread": ("in_a_thread(lambda: os._exit(5)).join()", 5),
    "sys.exit in a thread, which ends that alone": ("in_a_thread(lambda: sys.exit(6)).join(); sys.exit(7)", 7),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM),
    "a fork, whose child ends by sys.exit": (
        """
        warnings.simplefilter("ignore", DeprecationWarning)  # of CPython 3.12 and later, for our own daemon thread
        child = os.fork()
        if child == 0:
            sys.exit(8)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        8,
    ),
    "a fork, whose child makes connections of its own": (
        """
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            with longconn.LongServer(("127.0.0.1", 0)) as new, longconn.connect(new.address) as client:
                client.send(b"new")
                with new.accept(timeout=60) as its_peer:
                    assert its_peer.recv(timeout=60) == b"new"
            sys.exit(9)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        9,
    ),
}

EPILOGUE = """
if __name__ == "__main__":
    wait_until_blocked(in_a_thread(block).native_id)
"""


def program(call: str, way: str) -> str:
    block = f"def block():\n    {CALLS[call]}\n"
    return PRELUDE + block + EPILOGUE + textwrap.indent(textwrap.dedent(WAYS[way][0]).strip(), "    ") + "\n"


@pytest.mark.parametrize("call", CALLS)
def test_a_process_ends_as_it_was_to(call):
    """All ways at once, each in a process of its own."""
    processes = {
        way: subprocess.Popen(
            [sys.executable, "-c", program(call, way), HERE],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for way in WAYS
    }
    outcomes = {}
    try:
        for way, process in processes.items():
            said, _ = process.communicate(timeout=PATIENCE * 3)
            outcomes[way] = (process.returncode, said)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    assert outcomes == {way: (code, "") for way, (_, code) in WAYS.items()}


def test_ctrl_c_ends_a_process_whose_threads_are_blocked():
    code = program("recv", "SIGTERM").replace("SIGTERM", "SIGINT")
    # As a job of a shell's background the tests' own would be ignored, and that is inherited.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    done = python("-c", code, HERE)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.endswith("KeyboardInterrupt\n")


PROCESSES = """
def child(call, address, results):
    if call == "new":
        with longconn.connect(address) as connection:
            connection.send(b"from the child")
            results.put(connection.recv(timeout=60))
    elif call == "old":
        try:
            ours.send(b"")
        except longconn.ForkedError:
            results.put(b"forked")
    sys.exit(11)

def serve():
    for connection, message in other.messages():
        connection.send(message)

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    import multiprocessing
    in_a_thread(ours.recv)
    other = longconn.LongServer(("127.0.0.1", 0))
    in_a_thread(serve)
    context = multiprocessing.get_context(sys.argv[2])
    results = context.SimpleQueue()
    calls = ["new", "old"] if sys.argv[2] == "fork" else ["new"]
    for call in calls:
        process = context.Process(target=child, args=(call, other.address, results))
        process.start()
        print(results.get())
        process.join()
        assert process.exitcode == 11, process.exitcode
    sys.exit(12)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessings_children_work_and_keep_their_exit_codes(method, tmp_path):
    """The parent has connections, and threads that are blocked in them."""
    script = tmp_path / "program.py"
    # A spawned child imports it, and makes connections of its own.
    script.write_text(PRELUDE.replace("sys.argv[1]", repr(HERE)) + PROCESSES.replace("sys.argv[2]", repr(method)))
    done = python(str(script))
    said = "b'from the child'\n" + ("b'forked'\n" if method == "fork" else "")
    assert (done.returncode, done.stdout, done.stderr) == (12, said, "")


SUBINTERPRETERS = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import longconn
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

CODE = '''
try:
    import longconn
except ImportError as error:
    assert "interpreter" in str(error), error
else:
    raise SystemError("imported")
'''

def run(number):
    if hasattr(interpreters, "exec"):
        failed = interpreters.exec(number, CODE)
        assert failed is None, failed.formatted
    else:
        interpreters.run_string(number, CODE)

if hasattr(interpreters, "exec"):
    made = [interpreters.create(kind) for kind in ("isolated", "legacy")]
else:
    made = [interpreters.create(isolated=isolated) for isolated in (True, False)]
for number in made:
    run(number)
    interpreters.destroy(number)
with longconn.LongServer(("127.0.0.1", 0)) as server, longconn.connect(server.address) as client:
    client.send(b"goes on")
    with server.accept(timeout=60) as peer:
        print(peer.recv(timeout=60))
"""


@pytest.mark.parametrize("version", interpreters())
def test_a_subinterpreter_is_refused_by_an_import_error_and_the_main_one_goes_on(version):
    """Those with a GIL of their own (PEP 684) and the older ones, which share it."""
    interpreter = interpreters()[version]
    if interpreter is None:
        pytest.skip(f"Python {version} isn't installed")
    env = environment(PYTHONPATH=str(PACKAGE.parent))
    done = python("-W", "ignore", "-c", SUBINTERPRETERS, HERE, interpreter=interpreter, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'goes on'\n", "")
