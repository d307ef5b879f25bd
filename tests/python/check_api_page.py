"""Whether the API page, as it was built, has every public name and each public member of the classes; `make docs`.

    python check_api_page.py site/api/index.html

A name that mkdocstrings can't see, or shows without its members, is no error to it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import longconn
from longconn import aio, metrics, notebook, testing


def members(cls: type) -> Iterator[str]:
    """Its own names, and what it has of longconn's other classes; not what it has of Python's."""
    ours = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "longconn"]
    theirs = {name for base in cls.__mro__ if base not in ours for name in dir(base)}
    for base in ours:
        yield from (name for name in vars(base) if not name.startswith("_") and name not in theirs)


def public_names() -> Iterator[str]:
    for module in longconn, aio, testing, metrics, notebook:
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.ismodule(value):
                continue
            yield f"{module.__name__}.{name}"
            if inspect.isclass(value):
                for member in members(value):
                    yield f"{module.__name__}.{name}.{member}"


def main() -> int:
    shown = set(re.findall(r' id="([\w.]+)"', Path(sys.argv[1]).read_text(encoding="utf-8")))
    missing = sorted(set(public_names()) - shown - {"longconn.aio.LongConnection.abandon"})  # its server's
    for name in missing:
        print(f"{sys.argv[1]}: {name} isn't there", file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
