"""Long-lived TCP connections that know when the other side is gone, say why, and come back."""

from . import processes, socket
from ._longconn import LongConnection, TcpInfo
from .errors import (
    AlreadyClosed,
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
)
from .guarding import Guard, guard
from .heartbeat import Heartbeat
from .installing import install, uninstall
from .keepalive import Applied, DetectionTime, Keepalive, default_keepalive, set_default_keepalive
from .keepalive_socket import KeepaliveSocket
from .links import Broadcast, Event, LinkStats, LongServer, ServerStats, connect
from .short import exchange

__all__ = [
    "AlreadyClosed",
    "Applied",
    "Broadcast",
    "Cause",
    "ConnectFailed",
    "DetectionTime",
    "Event",
    "ForkedError",
    "Guard",
    "HandshakeRejected",
    "Heartbeat",
    "Keepalive",
    "KeepaliveSocket",
    "LinkStats",
    "LongConnError",
    "LongConnection",
    "LongServer",
    "MessageTooLarge",
    "PeerClosed",
    "PeerLost",
    "PeerReset",
    "PeerTimedOut",
    "ProtocolError",
    "ServerStats",
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

processes.register()
