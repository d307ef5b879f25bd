"""KeepaliveSockets sent between processes by multiprocessing, registered when its reduction is imported."""

from __future__ import annotations

import sys
from typing import Any

from .imports import when_imported
from .keepalive import Keepalive
from .keepalive_socket import KeepaliveSocket

_REDUCTION = "multiprocessing.reduction"


def _rebuild(
    handle: Any, family: int, kind: int, proto: int, settings: Keepalive | None, chosen: dict[str, int] | None
) -> KeepaliveSocket:
    sock = KeepaliveSocket(family, kind, proto, handle.detach(), keepalive=False)
    sock._keepalive_settings = settings
    sock._keepalive_chosen = chosen
    sock._keepalive_adopt()
    return sock


def _reduce(sock: KeepaliveSocket) -> tuple[Any, tuple[Any, ...]]:
    from multiprocessing.reduction import DupFd

    return _rebuild, (
        DupFd(sock.fileno()),
        sock.family,
        sock.type,
        sock.proto,
        sock._keepalive_settings,
        sock._keepalive_chosen,
    )


def _register() -> None:
    # pickled by exact type, hence not by the stdlib's own registration
    sys.modules[_REDUCTION].register(KeepaliveSocket, _reduce)


def register() -> None:
    """Register now, or as soon as multiprocessing can pickle sockets at all: its import costs several milliseconds."""
    when_imported(_REDUCTION, _register)
