"""KeepaliveSockets sent between processes by multiprocessing, registered when its reduction is imported."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

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


class _WhenImported:
    """Waits for the import of multiprocessing.reduction, which costs several milliseconds if it isn't needed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _REDUCTION:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                _register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register now, or as soon as multiprocessing can pickle sockets at all."""
    if _REDUCTION in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _WhenImported())
