"""Long-lived TCP connections that know when the other side is gone, say why, and come back.

PYTEST_DONT_REWRITE: its pytest plugin comes in the same wheel, and `longconn run -m pytest` has imported it before.
"""

import atexit as _atexit

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


def __getattr__(name: str) -> object:
    """`aio` is imported when it is asked for: asyncio takes longer than all the rest."""
    if name == "aio":
        import importlib

        return importlib.import_module("longconn.aio")
    raise AttributeError(f"module 'longconn' has no attribute {name!r}")


processes.register()
_atexit.register(_longconn.shut_down)
_longconn.register_at_fork()
# Hooks run before a fork in the reverse order of their registration, and logging's keeps its lock over the fork: ours,
# which waits for the thread that delivers log records, has to be registered after it. Until then nobody reads records.
_when_imported("logging", _longconn.logging_imported)
