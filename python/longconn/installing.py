"""Puts KeepaliveSocket in the place of the stdlib's class for a whole process."""

from __future__ import annotations

import socket
import sys

from .keepalive_socket import KeepaliveSocket

__all__ = ["Installed", "install", "uninstall"]

#: What each `install` has found in the class's place.
_found: list[type[socket.socket]] = []


class Installed:
    """What `install` returns: a context manager that uninstalls at its end.

    Attributes:
        too_late_for: Modules that were imported before and have derived classes of the stdlib's socket: with
            ``ssl`` among them, ``SSLSocket`` isn't a KeepaliveSocket. What it wraps is guarded all the same.
    """

    def __init__(self) -> None:
        self.too_late_for = tuple(name for name in ("ssl", "asyncio") if name in sys.modules)

    def __enter__(self) -> Installed:
        return self

    def __exit__(self, *exception: object) -> None:
        uninstall()

    def __repr__(self) -> str:
        return f"<longconn.install(): socket.socket is {socket.socket!r}>"


def install() -> Installed:
    """Make ``socket.socket`` a KeepaliveSocket for the whole process, in Jupyter, pytest, gunicorn and elsewhere.

    ``socket.create_connection``, ``create_server``, ``socketpair``, ``fromfd``, and all libraries make
    KeepaliveSockets from now on. What holds the class already (``from socket import socket``) keeps it. A child
    process has it too if it was forked; one that multiprocessing has spawned has not: call `install` in the
    main module, outside of ``if __name__ == "__main__"``, and the child calls it too.

    Calls nest: `uninstall` is due as often.
    """
    installed = Installed()
    _found.append(socket.socket)
    socket.socket = KeepaliveSocket  # type: ignore[misc]
    return installed


def uninstall() -> None:
    """Undo one `install`: what it has found is back, the stdlib's class or another's; sockets stay what they are."""
    if not _found:
        return
    before = _found.pop()
    if socket.socket is KeepaliveSocket:  # and not somebody's who came after us
        socket.socket = before  # type: ignore[misc]
