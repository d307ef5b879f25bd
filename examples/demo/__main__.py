"""Owns `make demo`: who is told, when and why, when connections really break.

Part one is the tutorial's server and client, with the stdlib and with longconn side by side (tutorial.py). Part two is
a gateway with several devices, and one trouble after another (fleet.py). Both run in network namespaces; where these
can't be made (see `reason_unavailable()`), it says so and shows what loopback can show. Nothing is left behind: not at
Ctrl-C either.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import fleet
import tutorial
from screen import Screen
from stage import LabError, enter_unprivileged, reason_unavailable

PARTS = {"tutorial": tutorial, "fleet": fleet}
NEXT = """\
Next: `python -m longconn run SCRIPT`, or replace its `import socket` by `from longconn import socket`;
`python -m longconn explain 60,10,6` says what is noticed when, with any other settings;
examples/device_gateway.py and device.py are a LongServer and its client in a few lines."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end us as Ctrl-C does: by an exception, so that everything is cleaned up."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description="Who is told, when and why, if the cable is pulled.")
    parser.add_argument("--part", choices=PARTS, help="only this one")
    parser.add_argument("--plain", action="store_true", help="no live picture, as when stdout isn't a terminal")
    parser.add_argument("--loopback", action="store_true", help="as where no network namespaces can be made")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to wait for who isn't told")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw what was said into a picture")
    options = parser.parse_args()
    if importlib.util.find_spec("longconn") is None:
        parser.error("longconn isn't installed for this Python; `make demo` builds it and runs this")
    screen = None
    try:
        screen = Screen(is_plain=options.plain or not sys.stdout.isatty(), is_recorded=options.svg is not None)
        with ended_by_signals():
            return show(options, screen)
    except KeyboardInterrupt:
        return fail(screen, "\nstopped, and nothing is left running", 130)
    except (LabError, OSError, RuntimeError) as error:
        return fail(screen, f"demo: {error}", 1)
    finally:
        if screen is not None:
            screen.close()


def show(options: argparse.Namespace, screen: Screen) -> int:
    reason = "--loopback was asked for" if options.loopback else reason_unavailable()
    if reason is None:
        enter_unprivileged()
    status = 0
    for number, (name, part) in enumerate(PARTS.items()):
        if options.part in (None, name):
            if number and options.part is None:
                screen.say("")
            status |= not part.show(screen, options.seconds, reason)
    if options.svg is not None:
        screen.save_svg(options.svg, "make demo")
    screen.say(f"\n{NEXT}")
    return status


def fail(screen: Screen | None, text: str, status: int) -> int:
    if screen is not None:
        screen.close()
    print(text, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
