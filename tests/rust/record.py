"""Records TCP_INFO while real cables are pulled, for the tests of src/proto/verdict.rs and evidence.rs.

    .venv/bin/python tests/rust/record.py [NAME ...]        (root; writes tests/rust/recorded/NAME.csv)

The client's socket is sampled every 100 ms; `at_ms` counts from the cut, or from the start where nothing is cut.
Keepalive is 1/1/127, so that the kernel doesn't end the connection before the judge would; for the same reason the
links, `link_...`, have a limit of 30 s.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "network"))
from link_programs import descriptor_of
from longconn import Heartbeat, KeepaliveSocket, _longconn, connect
from longconn.testing.network import Lab

FIELDS = (
    "state unacked_segments probes retransmitted_segments retransmits unsent_bytes bytes_acked bytes_received "
    "segments_in data_segments_in out_of_order_segments send_window_bytes receive_window_bytes "
    "last_data_sent_ms last_data_received_ms last_ack_received_ms round_trip_us"
).split()
TCP_RTO_MAX_MS = 44
FOLDER = Path(__file__).parent / "recorded"


class Ends:
    """Both ends of a connection, and what they do meanwhile, in threads."""

    def __init__(self, lab: Lab, *, bounded: bool, room: int = 0) -> None:
        self.lab = lab
        self.over = threading.Event()
        with lab.inside("server"), socket.socket() as listener:
            # roomy at first, for the recordings in which it is taken back
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room or 128 << 10)
            listener.bind((lab.address("server"), 0))
            listener.listen()
            with lab.inside("client"):
                self.client = KeepaliveSocket(keepalive=False)
            for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 127)):
                self.client.setsockopt(socket.IPPROTO_TCP, option, value)
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.client.connect(listener.getsockname())
            self.server, _ = listener.accept()
        if bounded:
            self.client.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, 1000)

    @contextlib.contextmanager
    def doing(self, *deeds: Callable[[], object]) -> Iterator[None]:
        def again(deed: Callable[[], object]) -> None:
            with contextlib.suppress(OSError):
                while not self.over.is_set():
                    deed()

        threads = [threading.Thread(target=again, args=(deed,), daemon=True) for deed in deeds]
        for thread in threads:
            thread.start()
        yield
        self.over.set()
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in threads:
            thread.join(5)

    def fill(self) -> None:
        """Send until the peer's window is closed and stays so."""
        self.client.setblocking(False)
        stuck = 0
        while stuck < 10:
            try:
                self.client.send(b"x" * 65536)
                stuck = 0
            except BlockingIOError:
                stuck += 1
                self.over.wait(0.05)
        self.client.setblocking(True)


def record(
    name: str, seconds: float, *, cut: Callable[[Lab], None] | None, bounded: bool = True, loss: float = 0
) -> None:
    with Lab() as lab:
        ends = Ends(lab, bounded=bounded, room=4 << 20 if "taken_back" in name else 0)
        client, server, wait = ends.client, ends.server, ends.over.wait
        deeds: list[Callable[[], object]] = []
        if "slow_reader" in name:
            ends.fill()
        if "window_taken_back" in name:
            # Small pieces leave the window open, then there is no memory for what comes within it.
            for _ in range(50):
                client.send(b"x" * 10)
                wait(0.002)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
            for _ in range(4):
                client.send(b"y" * 5000)
                wait(0.1)
        if name == "slow_reader_alive_reading":
            deeds.append(lambda: (server.recv(400), wait(0.1)))
        if "sending" in name:
            deeds += [lambda: (client.send(b"x" * 100), wait(0.02)), lambda: server.recv(65536)]
        if "slow_feed" in name:
            deeds += [lambda: (server.send(b"y" * 100), wait(0.05)), lambda: client.recv(65536)]
        elif "receiving" in name:
            deeds += [lambda: (server.send(b"y" * 1000), wait(0.01)), lambda: client.recv(65536)]
        if name == "peer_fills_our_window":
            deeds.append(lambda: server.send(b"y" * 65536))
        if loss:
            lab.loss(loss)
        with ends.doing(*deeds):
            wait(1.5)
            start = time.monotonic()
            rows = []
            while (at := time.monotonic() - start) < seconds:
                if cut is not None and at >= 1:
                    cut(lab)
                    if "flight" in name:
                        client.send(b"x" * 1000)
                    cut, start = None, time.monotonic()
                    rows = [(before - 1000, row) for before, row in rows]
                    continue
                info = client.tcp_info()
                rows.append((round(at * 1000), [getattr(info, field) for field in FIELDS]))
                wait(0.1)
    write(name, FIELDS, rows)


LINK_SERVER = """
import sys
from longconn import Heartbeat, LongServer
with LongServer((sys.argv[1], 9000), heartbeat=Heartbeat(1.0, limit=30.0)) as server:
    print(flush=True)
    for message in server.accept():
        pass
"""


def record_link(name: str, *, cut: Callable[[Lab, subprocess.Popen[str]], None], pause: float | None = None) -> None:
    """A LongConnection whose client sends 1000 bytes after each `pause`, or nothing."""
    with Lab(nat="nat" in name) as lab:
        argv = [sys.executable, "-c", LINK_SERVER, lab.address("server")]
        server = lab.popen("server", argv, stdout=subprocess.PIPE, text=True)
        server.stdout.readline()
        with lab.inside("client"):
            link = connect((lab.address("server"), 9000), heartbeat=Heartbeat(1.0, limit=30.0))
        sock = socket.socket(fileno=os.dup(descriptor_of(link)))
        over = threading.Event()

        def send() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(pause):
                    link.send(bytes(1000))

        sender = threading.Thread(target=send)
        if pause is not None:
            sender.start()
        rows, start, is_cut = [], time.monotonic() + 3, False
        while (at := time.monotonic() - start) < 5:
            if at >= 0 and not is_cut:
                cut(lab, server)
                is_cut, start = True, time.monotonic()
                continue
            # What the link has written is its own count: the kernel's `bytes_sent` also counts what it couldn't send.
            stats = None
            while stats is None or stats.bytes_sent != link.stats().bytes_sent:
                stats, info = link.stats(), _longconn.tcp_info(sock.fileno())
            row = [getattr(info, field) for field in FIELDS]
            rows.append((round(at * 1000), [*row, stats.bytes_sent, stats.beats_sent]))
            over.wait(0.1)
        over.set()
        sock.close()
        with contextlib.suppress(OSError):
            link.close(timeout=0.1)
        if pause is not None:
            sender.join()
    write(name, (*FIELDS, "written_bytes", "beats_sent"), rows)


def write(name: str, fields: Iterable[str], rows: Iterable[tuple[int, list[object]]]) -> None:
    kernel = ".".join(platform.release().split(".")[:2])
    count = 0
    with open(FOLDER / f"{name}.csv", "w", encoding="ascii") as file:
        print(f"# {name}, recorded on Linux {kernel} by tests/rust/record.py", file=file)
        print(",".join(["at_ms", *fields]), file=file)
        for count, (at_ms, row) in enumerate(rows, 1):  # noqa: B007
            print(",".join(map(str, [at_ms, *row])), file=file)
    print(f"{name}: {count} samples", flush=True)


def pull(lab: Lab) -> None:
    lab.pull("server")


def pull_ours(lab: Lab) -> None:
    lab.pull("client")


def drop_ours(lab: Lab) -> None:
    lab.drop("client")


RECORDINGS: dict[str, Callable[[str], None]] = {
    "idle_alive": lambda name: record(name, 10, cut=None),
    "idle_cut": lambda name: record(name, 8, cut=pull),
    "flight_cut": lambda name: record(name, 8, cut=pull),
    "flight_cut_no_rto_max": lambda name: record(name, 8, cut=pull, bounded=False),
    "sending_cut": lambda name: record(name, 8, cut=pull),
    "sending_receiving_alive": lambda name: record(name, 8, cut=None),
    "sending_receiving_loss_2": lambda name: record(name, 20, cut=None, loss=2),
    "slow_reader_alive": lambda name: record(name, 30, cut=None),
    "slow_reader_alive_reading": lambda name: record(name, 20, cut=None),
    "slow_reader_alive_no_rto_max": lambda name: record(name, 40, cut=None, bounded=False),
    "slow_reader_cut": lambda name: record(name, 8, cut=pull),
    "slow_reader_cut_no_rto_max": lambda name: record(name, 30, cut=pull, bounded=False),
    "window_taken_back": lambda name: record(name, 20, cut=None),
    "window_taken_back_cut": lambda name: record(name, 30, cut=pull, bounded=False),
    "one_way_cut_sending_receiving": lambda name: record(name, 8, cut=drop_ours),
    "one_way_cut_receiving": lambda name: record(name, 10, cut=drop_ours),
    "one_way_cut_receiving_no_rto_max": lambda name: record(name, 10, cut=drop_ours, bounded=False),
    "one_way_cut_receiving_slow_feed": lambda name: record(name, 12, cut=drop_ours),
    "sending_own_cable_cut": lambda name: record(name, 8, cut=pull_ours),
    "receiving_slow_feed_alive": lambda name: record(name, 10, cut=None),
    "receiving_slow_feed_loss_5": lambda name: record(name, 20, cut=None, loss=5),
    "peer_fills_our_window": lambda name: record(name, 15, cut=None),
    "link_cut": lambda name: record_link(name, cut=lambda lab, _: lab.pull("server")),
    "link_sending_cut": lambda name: record_link(name, cut=lambda lab, _: lab.pull("server"), pause=0.02),
    "link_flooding_cut": lambda name: record_link(name, cut=lambda lab, _: lab.pull("server"), pause=0),
    "link_own_cable_cut": lambda name: record_link(name, cut=lambda lab, _: lab.pull("client")),
    "link_sending_own_cable_cut": lambda name: record_link(name, cut=lambda lab, _: lab.pull("client"), pause=0.02),
    "link_nat_forgot": lambda name: record_link(name, cut=lambda lab, _: lab.forget()),
    "link_power_cut": lambda name: record_link(name, cut=lambda lab, _: lab.power_off("server")),
    "link_unheard": lambda name: record_link(name, cut=lambda lab, _: lab.drop("client")),
    "link_unanswered": lambda name: record_link(name, cut=lambda lab, _: lab.drop("server")),
    "link_unanswered_sending": lambda name: record_link(name, cut=lambda lab, _: lab.drop("server"), pause=0.02),
    "link_frozen": lambda name: record_link(name, cut=lambda lab, server: lab.freeze(server)),
    "link_sending_frozen": lambda name: record_link(name, cut=lambda lab, server: lab.freeze(server), pause=0.02),
    "link_flooding_frozen": lambda name: record_link(name, cut=lambda lab, server: lab.freeze(server), pause=0),
    "link_larger_lost": lambda name: record_link(name, cut=lambda lab, _: lab.drop_larger(80, "client")),
}


def main() -> None:
    names = sys.argv[1:] or list(RECORDINGS)
    if len(names) == 1:
        return RECORDINGS[names[0]](names[0])
    # A process each: in every lab the same addresses belong to other sockets.
    processes = [subprocess.Popen([sys.executable, __file__, name]) for name in names]
    for process in processes:
        process.wait()


if __name__ == "__main__":
    main()
