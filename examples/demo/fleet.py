"""Owns part two: a gateway (LongServer) and six devices, one trouble after another, and who knew what when.

Each device is a machine of its own (a namespace with its own cable, longconn.testing.network), and a process of its own
(people.py). The troubles are real; what the gateway and the devices were told they say themselves, and the times are
those of their events.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import people
from screen import WIDTH, Screen
from stage import SLACK, Lab, Loopback, Program, Stage

with contextlib.suppress(ImportError):
    from rich.table import Table
    from rich.text import Text

PEOPLE = str(Path(__file__).resolve().with_name("people.py"))
LOSS = 5  # per cent of what the modem sends
DEVICES = ("sensor", "camera", "printer", "laptop", "robot", "modem")
STATES = {"open": "green", "suspect": "yellow", "closed": "red"}


class Person(Program):
    """A program that prints JSON: the gateway, or a device."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        super().__init__(name, process)
        self.told: list[dict[str, Any]] = []

    def take(self, stream: str, data: bytes) -> None:
        super().take(stream, data)
        self.told += map(json.loads, self.lines)
        self.lines.clear()


@dataclass
class Device:
    """A device, and what is known of it."""

    name: str
    person: Person
    trouble: str = ""
    troubled_at: float = 0.0
    ages: dict[str, Any] = field(default_factory=dict)  # as the gateway last saw them
    most: dict[str, float] = field(default_factory=dict)  # the greatest of each since its trouble began
    messages: int = 0
    suspected: dict[str, Any] | None = None
    lost: dict[str, Any] | None = None  # the gateway's event
    own_loss: dict[str, Any] | None = None  # what its own program was told

    def hear(self, told: dict[str, Any]) -> None:
        """What the gateway tells of it."""
        what = told["what"]
        if what == "message":
            self.messages += 1
        elif what == "ages":
            self.ages = told
            for name in ("silence", "interpreter", "application", "untaken"):
                self.most[name] = max(self.most.get(name, 0.0), told[name] or 0.0)
        elif what == "suspect":
            self.suspected = told
        elif what == "closed":
            self.lost = told

    def begin(self, trouble: str) -> None:
        self.trouble, self.troubled_at = trouble, time.time()
        self.most.clear()
        self.suspected = None

    def after(self, told: dict[str, Any]) -> float:
        """Seconds from its trouble to what somebody was told."""
        return max(0.0, float(told["time"]) - self.troubled_at)


def show(screen: Screen, seconds: float, reason: str | None) -> bool:
    """Plays all troubles, on loopback where there is a reason for that; returns whether all came as promised."""
    place = Lab(more=DEVICES) if reason is None else Loopback()
    where = "each on a machine (namespace) of its own" if reason is None else "all on loopback"
    screen.say(f"A gateway (LongServer) and {len(DEVICES)} devices (longconn.connect), {where}", "bold")
    limit = people.HEARTBEAT.detection_time()
    screen.say(
        f"  beats each {people.INTERVAL:g} s; silence may last {limit:g} s, "
        f"a program may take nothing for {people.APPLICATION_LIMIT:g} s"
    )
    if reason is not None:
        sorry = f"A pulled cable and a bad line can't be shown here: {reason}."
        screen.say(textwrap.fill(sorry, WIDTH), "yellow")
    return _Performance(place, screen, seconds).play()


class _Performance:
    """All troubles, with the same gateway and devices."""

    def __init__(self, place: Lab | Loopback, screen: Screen, seconds: float) -> None:
        self._place, self._screen, self._seconds = place, screen, seconds
        self._stage = Stage(place, self._pumped)
        self._gateway: Person | None = None
        self._devices: dict[str, Device] = {}
        self._numbered = 0
        self._is_well = True

    def play(self) -> bool:
        with self._place, self._stage:
            self._start_all()
            self._have_modem()
            if isinstance(self._place, Lab):
                self._pull(self._place)
            self._freeze()
            self._kill()
            self._compute()
            self._hang()
            self._look_at_modem()
            self._screen.close()
        self._say_summary()
        return self._is_well

    # ---- the troubles

    def _have_modem(self) -> None:
        if isinstance(self._place, Lab):
            self._place.loss(LOSS, "modem")
            self._devices["modem"].begin(f"{LOSS} % loss, slow program")
        else:
            self._devices["modem"].begin("slow program")

    def _pull(self, lab: Lab) -> None:
        sensor = self._begin("sensor", "cable pulled", "The sensor's cable is pulled.")
        lab.pull("sensor")
        self._wait_for_loss(sensor, "unreachable")
        self._wait_for_own_loss(sensor)

    def _freeze(self) -> None:
        camera = self._begin("camera", "stopped", "The camera's program is stopped (SIGSTOP); its kernel goes on.")
        os.kill(camera.person.process.pid, signal.SIGSTOP)
        self._wait_for_loss(camera, "frozen")
        os.kill(camera.person.process.pid, signal.SIGCONT)
        self._screen.say_at(time.time() - camera.troubled_at, "-------", "it goes on (SIGCONT)", "dim")
        self._wait_for_own_loss(camera)

    def _kill(self) -> None:
        printer = self._begin("printer", "killed", "The printer's program is killed (SIGKILL).")
        printer.person.process.kill()
        self._wait_for_loss(printer, "ended", "reset")

    def _compute(self) -> None:
        laptop = self._begin(
            "laptop",
            "computes",
            f"The laptop's program computes for {people.COMPUTES:g} s in one C call, which keeps the GIL.",
        )
        os.kill(laptop.person.process.pid, signal.SIGUSR1)
        before = laptop.messages
        self._wait(lambda: laptop.lost or any(told["what"] == "computed" for told in laptop.person.told))
        self._wait(lambda: laptop.lost or laptop.messages > before + 8)  # those that have waited, and new ones
        if laptop.lost:
            self._say_alarm(laptop)
            return
        self._say_gateway(
            time.time() - laptop.troubled_at,
            f"no alarm: the laptop beats, silent for {laptop.most['silence']:.1f} s at most; it told that its Python "
            f"couldn't run for {laptop.most['interpreter']:.1f} s, and all its answers came",
            "green",
        )

    def _hang(self) -> None:
        robot = self._begin("robot", "deadlock", "The robot's program hangs (a deadlock); it goes on beating.")
        os.kill(robot.person.process.pid, signal.SIGUSR2)
        self._wait_for_loss(robot, "hung")

    def _look_at_modem(self) -> None:
        modem = self._devices["modem"]
        loses = f"loses {LOSS} % of what it sends, and " if isinstance(self._place, Lab) else ""
        self._title(f"The modem {loses}takes one message in {people.DAWDLES:g} s, all the while.")
        if modem.lost:
            self._say_alarm(modem)
            return
        self._say_gateway(
            time.time() - modem.troubled_at,
            f"no alarm: silent for {modem.most['silence']:.1f} s at most; {modem.ages['untaken']} messages wait for it",
            "green",
        )

    # ---- how they go

    def _start_all(self) -> None:
        address = self._place.address("server")

        def start(host: str, name: str, *arguments: str) -> Person:
            person: Person = self._stage.start(host, [PEOPLE, *arguments], lambda process: Person(name, process))
            return person

        self._gateway = gateway = start("server", "gateway", "gateway", address, "0")
        self._stage.wait(lambda: gateway.told, "the gateway to listen")
        port = str(gateway.told[0]["port"])
        for name in DEVICES:
            role = "slow-device" if name == "modem" else "device"
            self._devices[name] = Device(name, start(name, name, role, address, port, name))
        self._stage.wait(
            lambda: all(each.messages > 1 and each.ages for each in self._devices.values()), "all devices' messages"
        )

    def _title(self, text: str) -> None:
        self._numbered += 1
        self._screen.say(f"\n{self._numbered}. {text}", "bold")

    def _begin(self, name: str, trouble: str, title: str) -> Device:
        self._title(title)
        self._devices[name].begin(trouble)
        return self._devices[name]

    def _wait(self, is_done: Callable[[], object]) -> bool:
        deadline = time.monotonic() + max(self._seconds, 10.0) * SLACK
        while not is_done() and time.monotonic() < deadline:
            self._stage.pump(deadline)
        if not is_done():
            self._screen.say("         not told in time", "red")
            self._is_well = False
            return False
        return True

    def _wait_for_loss(self, device: Device, *causes: str) -> None:
        if not self._wait(lambda: device.lost):
            return
        assert device.lost
        self._is_well &= device.lost["cause"] in causes
        if device.suspected:
            self._say_gateway(device.after(device.suspected), f"suspects the {device.name}: silent", "yellow")
        self._say_gateway(
            device.after(device.lost), f"lost the {device.name}: {_without_address(device.lost)}", "green"
        )

    def _wait_for_own_loss(self, device: Device) -> None:
        if self._wait(lambda: device.own_loss):
            assert device.own_loss
            text = f"told: {_without_address(device.own_loss)}"
            self._screen.say_at(device.after(device.own_loss), f"{device.name:7}", text, "green")

    def _say_alarm(self, device: Device) -> None:
        assert device.lost
        self._is_well = False
        self._say_gateway(device.after(device.lost), f"false alarm: {_without_address(device.lost)}", "red")

    def _say_gateway(self, after: float, text: str, style: str) -> None:
        self._screen.say_at(after, "gateway", text, style)

    def _say_summary(self) -> None:
        self._screen.say(f"\n  {'device':9}{'trouble':26}{'the gateway knew':38}the device knew", "bold")
        for device in self._devices.values():
            if not device.trouble:
                continue
            knew, own = "no alarm", "-"
            if device.lost:
                level = f" ({device.lost['level']})" if device.lost["level"] else ""
                knew = f"after {device.after(device.lost):.1f} s: {device.lost['cause']}{level}"
            if device.own_loss:
                own = f"after {device.after(device.own_loss):.1f} s: {device.own_loss['cause']}"
            self._screen.say(f"  {device.name:9}{device.trouble:26}{knew:38}{own}".rstrip(), "green")

    # ---- what comes in, and what is drawn of it

    def _pumped(self) -> None:
        if self._gateway is not None:
            for told in self._gateway.told:
                if "of" in told:
                    self._devices[told["of"]].hear(told)
            del self._gateway.told[1:]  # the first line is its address
        for device in self._devices.values():
            for told in device.person.told:
                if told["what"] == "lost":
                    device.own_loss = told
        self._screen.show(self._draw)

    def _draw(self) -> Any:
        table = Table(title="\nWhat the gateway knows now", title_justify="left", expand=True, box=None)
        table.add_column("device", no_wrap=True)
        table.add_column("trouble", no_wrap=True, ratio=1)
        table.add_column("state", no_wrap=True, min_width=len("unreachable"))
        for name in ("silent", "round trip", "Python held up", "program held up", "untaken"):
            table.add_column(name, justify="right", max_width=8)
        for device in self._devices.values():
            ages = device.ages
            if device.lost:
                state = Text(f"{device.lost['cause']}", "bold red")
                row = ["", "", "", "", ""]
            elif ages:
                state = Text(ages["state"], STATES.get(ages["state"], ""))
                row = [
                    f"{ages['silence']:.1f} s",
                    "" if ages["round_trip"] is None else f"{ages['round_trip'] * 1e3:.1f} ms",
                    *map(_age, (ages["interpreter"], ages["application"])),
                    str(ages["untaken"]),
                ]
            else:
                continue
            table.add_row(device.name, device.trouble, state, *row)
        return table


def _age(seconds: float | None) -> Any:
    if seconds is None:
        return Text("?")
    return Text(f"{seconds:.1f} s", "yellow" if seconds > people.INTERVAL else "")


def _without_address(told: dict[str, Any]) -> str:
    """What an error says, from its cause on: the title has already said who it is."""
    return f"{told['cause']}: {told['text'].partition(': ')[2].removesuffix('; connect again')}"
