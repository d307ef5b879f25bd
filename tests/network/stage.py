"""Owns the stage of a case: a lab with both ends running in it, and who looks on from outside."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

from longconn.testing.network import HOSTS, Lab, LabError

SLACK = float(os.environ.get("LONGCONN_TEST_SLACK", "1"))
# How long we wait to be told before we write down "never". Far above every bound, and arbitrary.
PATIENCE = 20.0


class Stage:
    """A lab with both ends running in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.processes: dict[str, BaseProcess] = {}
        self.links: dict[str, Connection] = {}

    def start(self, **ends: tuple[object, ...]) -> None:
        """Starts `server=` and `client=`, each a function that runs there and its arguments; a `router=` between them
        is what the client then connects to."""
        self._start("server", self.lab.address("server"), *ends["server"])
        self.hear("server", 20 * SLACK)  # "listening"
        if "router" in ends:
            self._start("router", self.lab.gateway("client"), *ends["router"])
            self.hear("router", 20 * SLACK)
        self._start(
            "client", self.lab.gateway("client") if "router" in ends else self.lab.address("server"), *ends["client"]
        )
        self.links["client"].send("listening")

    def _start(self, place: str, address: str, target: Any, *arguments: object) -> None:
        """By fork, before anything here has threads: a child starts in a millisecond and needs no arguments in text."""
        forking = multiprocessing.get_context("fork")
        self.links[place], link = forking.Pipe()
        self.processes[place] = forking.Process(target=target, args=(link, place, address, *arguments), daemon=True)
        with self.lab.inside(place):
            self.processes[place].start()
        link.close()

    def restart(self, target: Any, *arguments: object) -> None:
        """Starts a server in the place of the one that has ended, as a supervisor does."""
        self.processes["server"].join()
        self._start("server", self.lab.address("server"), target, *arguments)
        self.hear("server", 20 * SLACK)  # "listening"

    def hear(self, host: str, within: float) -> Any:
        """The next word of that end."""
        if not self.links[host].poll(within):
            raise LabError(f"the {host} says nothing for {within:.0f} s")
        try:
            return self.links[host].recv()
        except EOFError:
            raise LabError(f"the {host}'s process has ended") from None

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()


# ---- what breaks it


def pull(host: str) -> Callable[[Stage], object]:
    return lambda stage: stage.lab.pull(host)


def drop(*senders: str) -> Callable[[Stage], object]:
    return lambda stage: stage.lab.drop(*senders)


def forget(stage: Stage) -> None:
    stage.lab.forget()


def kill(host: str) -> Callable[[Stage], object]:
    return lambda stage: stage.processes[host].kill()


def freeze_for(seconds: float, host: str) -> Callable[[Stage], None]:
    """The program has a second before, to get going."""

    def freeze(stage: Stage) -> None:
        pid = stage.processes[host].pid
        assert pid
        time.sleep(1)
        stage.lab.freeze(pid)
        time.sleep(seconds)
        stage.lab.thaw(pid)

    return freeze


# ---- who looks on


class Witness:
    """Sees when the first FIN or RST comes to a host: by the kernel's time stamp, on a socket of packet(7)."""

    # Classic BPF (bpf(2), <linux/bpf_common.h>), on packets from their IP header on: TCP with FIN or RST.
    FILTER: ClassVar = [
        (0x30, 0, 0, 9),  # A = protocol
        (0x15, 0, 4, socket.IPPROTO_TCP),
        (0xB1, 0, 0, 0),  # X = length of the IP header
        (0x50, 0, 0, 13),  # A = TCP's flags
        (0x45, 0, 1, 0x01 | 0x04),
        (0x06, 0, 0, 0xFFFF),  # keep it
        (0x06, 0, 0, 0),  # don't
    ]

    def __init__(self, lab: Lab, host: str) -> None:
        ip, attach_filter, self._time_stamps = 0x0800, 26, 35  # ETH_P_IP, SO_ATTACH_FILTER, SO_TIMESTAMPNS
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in self.FILTER))
        with lab.inside(host):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ip))
        program = struct.pack("HP", len(self.FILTER), ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, attach_filter, program)
        self._socket.setsockopt(socket.SOL_SOCKET, self._time_stamps, 1)
        self._socket.setblocking(False)

    def moment(self) -> float | None:
        """As of `time.monotonic()`; None if there was none yet."""
        while True:
            try:
                _, ancillary, _, address = self._socket.recvmsg(64, 64)
            except BlockingIOError:
                return None
            if address[2] != socket.PACKET_OUTGOING:
                seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
                return seconds + nanoseconds / 1e9 - time.time() + time.monotonic()

    def close(self) -> None:
        self._socket.close()


class Sampler:
    """Reads TCP_INFO of another process's socket ten times a second while the block runs.

    By a duplicate of its descriptor (pidfd_getfd(2)), so that the other process takes no part in it.
    """

    # Name, offset and form in struct tcp_info, <linux/tcp.h>.
    FIELDS: ClassVar = {
        "state": (0, "B"),
        "retransmits": (2, "B"),
        "probes": (3, "B"),
        "backoff": (4, "B"),
        "unacked": (24, "I"),
        "last_data_recv": (52, "I"),
        "last_ack_recv": (56, "I"),
        "bytes_acked": (120, "Q"),
        "bytes_received": (128, "Q"),
        "segs_out": (136, "I"),
        "segs_in": (140, "I"),
        "notsent": (144, "I"),
        "data_segs_in": (152, "I"),
        "rcv_ooopack": (224, "I"),
        "rcv_wnd": (232, "I"),
    }

    def __init__(self, pid: int | None, descriptor: int | None) -> None:
        self.samples: list[dict[str, float]] = []
        self._process = pid
        self._descriptor = descriptor
        self._enough = threading.Event()

    def __enter__(self) -> Sampler:
        if self._descriptor is not None:
            assert self._process
            process = os.pidfd_open(self._process)
            duplicate = ctypes.CDLL(None, use_errno=True).syscall(438, process, self._descriptor, 0)
            os.close(process)
            if duplicate < 0:
                raise LabError(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
            self._thread = threading.Thread(target=self._sample, args=(socket.socket(fileno=duplicate),))
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            self._enough.set()
            self._thread.join()

    def _sample(self, sock: socket.socket) -> None:
        start = time.monotonic()
        with sock:
            while not self._enough.wait(0.1):
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                fields = {name: struct.unpack_from(form, info, at)[0] for name, (at, form) in self.FIELDS.items()}
                self.samples.append({"at": round(time.monotonic() - start, 2)} | fields)


def hear_out(
    stage: Stage, disturb: Callable[[Stage], object], phase: float, within: float, trace: bool
) -> dict[str, Any]:
    """Disturbs two living ends that have been started, and hears from each how it went."""
    descriptors = {host: stage.hear(host, 20 * SLACK) for host in HOSTS}
    time.sleep(phase)
    reports: dict[str, dict[str, Any]] = {}
    with Sampler(stage.processes["client"].pid, descriptors["client"] if trace else None) as sampler:
        disturb(stage)
        for host in HOSTS:
            reports[host] = stage.hear(host, within)
    alarms = sum(bool(report["errors"] or report["lost"]) for report in reports.values())
    client, server = reports["client"], reports["server"]
    whole = (client["sent"], server["sent"]) == (server["received"], client["received"])
    return {"alarms": alarms, "whole": whole, "ends": reports, "samples": sampler.samples}
