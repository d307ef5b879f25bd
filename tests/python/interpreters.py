"""Owns which Pythons there are to run the tests on: where each supported one is, or that it is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: CPython's versions; with a "t" those without a GIL, for which a wheel of their own is built.
SUPPORTED = ("3.11", "3.12", "3.13", "3.14", "3.14t")

#: Version managers' stand-ins fail here if no version is behind them.
ASK = """
import json, platform, sys, sysconfig
free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
kind, version, minor = platform.python_implementation(), platform.python_version(), sys.version_info[:2]
print(json.dumps([kind, version, minor, free, sys.executable]))
"""


@dataclass(frozen=True)
class Interpreter:
    """One that has answered."""

    #: Where it really is, not a version manager's stand-in.
    path: str
    #: As "3.14.0".
    version: str
    minor: tuple[int, int]
    is_free_threaded: bool

    @property
    def name(self) -> str:
        """As :data:`SUPPORTED` has it."""
        return f"{self.minor[0]}.{self.minor[1]}{'t' if self.is_free_threaded else ''}"

    def __str__(self) -> str:
        return f"CPython {self.version}{', free-threaded' if self.is_free_threaded else ''}"


def ask(command: str) -> Interpreter | None:
    """Who answers at ``command``, a path or a name on PATH; nobody, or not CPython: None."""
    try:
        done = subprocess.run([command, "-I", "-c", ASK], capture_output=True, text=True, check=False)
    except OSError:
        return None
    if done.returncode:
        return None
    implementation, version, (major, minor), is_free_threaded, path = json.loads(done.stdout)
    if implementation != "CPython":
        return None
    return Interpreter(path or command, version, (major, minor), is_free_threaded)


def candidates(name: str) -> Iterator[str]:
    """Where a version may be: on PATH, among pyenv's, beside this one."""
    if on_path := shutil.which(f"python{name}"):
        yield on_path
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for folder in dict.fromkeys([pyenv / "versions", Path(sys.base_prefix).parent]):
        found = folder.glob(f"*{name.rstrip('t')}*/bin/python{name}")
        # the latest first
        yield from map(str, sorted(found, key=lambda path: [*map(int, re.findall(r"\d+", str(path)))], reverse=True))


def find(name: str) -> Interpreter | None:
    """The first of a version that answers."""
    answers = (ask(candidate) for candidate in candidates(name))
    return next((each for each in answers if each and each.name == name), None)


def every() -> dict[str, Interpreter | None]:
    """Each supported version, and where it is."""
    return {name: find(name) for name in SUPPORTED}
