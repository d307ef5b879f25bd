"""What adaptive intervals have learnt of networks, kept in a small file for the next run."""

from __future__ import annotations

import os
import time
from typing import Any

# What is known of a network: its prefix, the longest interval borne, for how long that is settled, and failures since.
Kept = tuple[str, float, float | None, int]

_VERSION = 1
# The least recently used goes. More networks than a device meets in a year, and 20 kB.
_MOST_ENTRIES = 100
_MOST_BYTES = 1 << 20


def default_path() -> str:
    """``$XDG_CACHE_HOME/longconn/intervals.json``, or in ``~/.cache`` where it isn't set (XDG Base Directory)."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored, says the specification.
    if not os.path.isabs(cache):
        cache = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "longconn", "intervals.json")


class Memory:
    """The entries of one peer in such a file."""

    def __init__(self, path: str, peer: str) -> None:
        self.path, self._peer = path, peer

    def load(self) -> list[Kept]:
        """What is known, the most recently used network last; nothing if there is no such file, or no sense in it."""
        now = time.time()
        mine = [entry for entry in self._read() if entry["peer"] == self._peer]
        return [
            (
                entry["network"],
                entry["interval"],
                # A clock that was set back makes nothing older than it is.
                None if entry["settled"] is None else max(0.0, now - entry["settled"]),
                entry["failures"],
            )
            for entry in mine
        ]

    def save(self, learnt: list[Kept]) -> None:
        """Puts these in the place of what is there of the same networks. The file is replaced whole or not at all.

        Two processes that save at the same moment may lose what one of them has learnt since it last saved; it will
        save again.
        """
        import json
        import tempfile

        now = time.time()
        networks = {prefix for prefix, *_ in learnt}
        entries = [
            entry for entry in self._read() if (entry["peer"], entry["network"] in networks) != (self._peer, True)
        ]
        for prefix, interval, settled_for, failures in learnt:
            settled = None if settled_for is None else now - settled_for
            entries.append(
                {
                    "peer": self._peer,
                    "network": prefix,
                    "interval": round(interval, 3),
                    "settled": settled,
                    "failures": failures,
                }
            )
        text = json.dumps({"version": _VERSION, "networks": entries[-_MOST_ENTRIES:]}, indent=1)
        folder = os.path.dirname(self.path) or "."
        os.makedirs(folder, mode=0o700, exist_ok=True)
        number, new = tempfile.mkstemp(prefix=".intervals-", dir=folder)
        try:
            with open(number, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(new, self.path)
        except BaseException:
            os.unlink(new)
            raise

    def _read(self) -> list[dict[str, Any]]:
        """The entries that make sense, oldest first: a file may be cut short, of another version, or a joke."""
        import json

        try:
            with open(self.path, encoding="utf-8") as file:
                text = file.read(_MOST_BYTES)
            stored = json.loads(text)
        except (OSError, ValueError, RecursionError):
            return []
        if not isinstance(stored, dict) or stored.get("version") != _VERSION:
            return []
        entries = stored.get("networks")
        return [entry for entry in entries if _is_sound(entry)][-_MOST_ENTRIES:] if isinstance(entries, list) else []


def _is_sound(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    import ipaddress

    try:
        ipaddress.ip_address(entry["network"])
        failures, settled = entry["failures"], entry["settled"]
        return (
            isinstance(entry["peer"], str)
            and isinstance(entry["network"], str)
            and "%" not in entry["network"]  # a scope, which is no prefix's
            and _is_number(entry["interval"], 0.001, 86400)
            and (settled is None or _is_number(settled, 0, 1e12))
            and isinstance(failures, int)
            and 0 <= failures <= 1000
        )
    except (KeyError, ValueError):
        return False


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
