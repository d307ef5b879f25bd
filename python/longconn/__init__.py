"""Long-lived TCP connections that know when the other side is gone, say why, and come back.

One line changes in a script that uses sockets, and a dead peer ends in an exception instead of a hang:

    from longconn import socket

With both ends in hand, messages, and sessions that outlive their connections:

    with longconn.LongServer("0.0.0.0:9000") as server:
        for connection, message in server.messages():
            connection.send(b"got " + message, timeout=0)

    with longconn.connect("gateway.example:9000", client_id="device-7") as gateway:
        gateway.send(b"21.5")
        print(gateway.recv())

For anybody's TCP socket there is `guard`, for asyncio `longconn.aio`, for tests `longconn.testing`, for notebooks
`longconn.notebook`, for Prometheus and OpenTelemetry `longconn.metrics`.
"""

import atexit as _atexit
import typing as _typing

from . import _longconn, processes, socket
from ._longconn import LongConnection, TcpInfo
from .backoff import Backoff
from .errors import (
    AlreadyClosed,
    BufferFull,
    Cause,
    ConnectFailed,
    ForkedError,
    HandshakeRejected,
    LongConnError,
    MessageTooLarge,
    PeerClosed,
    PeerLost,
    PeerReset,
    PeerTimedOut,
    ProtocolError,
    SessionLost,
)
from .framing import LengthPrefixed, Lines, PlainHeartbeat
from .guarding import Guard, guard
from .heartbeat import Adaptive, Heartbeat
from .imports import when_imported as _when_imported
from .installing import install, uninstall
from .keepalive import Applied, DetectionTime, Keepalive, default_keepalive, set_default_keepalive
from .keepalive_socket import KeepaliveSocket
from .links import Broadcast, Event, LinkStats, LongServer, ServerStats, connect
from .short import exchange
from .tls import TLS, Identity, TLSInfo

__all__ = [  # noqa: RUF022  one that is an acronym is a name like the others
    "Adaptive",
    "AlreadyClosed",
    "Applied",
    "Backoff",
    "Broadcast",
    "BufferFull",
    "Cause",
    "ConnectFailed",
    "DetectionTime",
    "Event",
    "ForkedError",
    "Guard",
    "HandshakeRejected",
    "Heartbeat",
    "Identity",
    "Keepalive",
    "KeepaliveSocket",
    "LengthPrefixed",
    "Lines",
    "LinkStats",
    "LongConnError",
    "LongConnection",
    "LongServer",
    "MessageTooLarge",
    "PeerClosed",
    "PeerLost",
    "PeerReset",
    "PeerTimedOut",
    "PlainHeartbeat",
    "ProtocolError",
    "ServerStats",
    "SessionLost",
    "TLS",
    "TLSInfo",
    "TcpInfo",
    "connect",
    "default_keepalive",
    "exchange",
    "guard",
    "install",
    "set_default_keepalive",
    "socket",
    "uninstall",
]
__version__ = "0.1.0"
_LATER = ("aio", "metrics", "notebook", "testing")


if _typing.TYPE_CHECKING:
    from . import aio as aio
    from . import metrics as metrics
    from . import notebook as notebook
    from . import testing as testing
else:
    # not for type checkers, which would take any name for one of the package's

    def __getattr__(name: str) -> object:
        """These modules are imported when they are asked for: asyncio alone takes longer than all the rest."""
        if name in _LATER:
            import importlib

            return importlib.import_module(f"longconn.{name}")
        raise AttributeError(f"module 'longconn' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})


processes.register()
_atexit.register(_longconn.shut_down)
_longconn.register_at_fork()
# Hooks run before a fork in the reverse order of their registration, and logging's keeps its lock over the fork: ours,
# which waits for the thread that delivers log records, has to be registered after it. Until then nobody reads records.
_when_imported("logging", _longconn.logging_imported)
