"""The stdlib's names; the class, and what makes sockets, are ours."""

from typing import Any

from .keepalive_socket import KeepaliveSocket as KeepaliveSocket

socket = KeepaliveSocket

def create_connection(
    address: tuple[str | None, int],
    timeout: float | None = ...,
    source_address: Any | None = None,
    *,
    all_errors: bool = False,
) -> KeepaliveSocket: ...
def create_server(
    address: Any,
    *,
    family: int = ...,
    backlog: int | None = None,
    reuse_port: bool = False,
    dualstack_ipv6: bool = False,
) -> KeepaliveSocket: ...
def fromfd(fd: Any, family: int, type: int, proto: int = 0) -> KeepaliveSocket: ...
def socketpair(
    family: int | None = None, type: int = ..., proto: int = 0
) -> tuple[KeepaliveSocket, KeepaliveSocket]: ...

# last, for a type checker keeps what it has met first
from socket import *  # type: ignore[assignment]  # noqa: E402, F403
from socket import __all__ as __all__  # noqa: E402
