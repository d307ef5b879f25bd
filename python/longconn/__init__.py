"""Long-lived TCP connections that know when the other side is gone, say why, and come back."""

import atexit as _atexit

from . import _longconn, processes, socket
from ._longconn import TcpInfo
from .errors import Cause, LongConnError, MessageTooLarge, PeerLost, PeerReset, PeerTimedOut
from .guarding import Guard, guard
from .installing import install, uninstall
from .keepalive import Applied, DetectionTime, Keepalive, default_keepalive, set_default_keepalive
from .keepalive_socket import KeepaliveSocket
from .short import exchange

__all__ = [
    "Applied",
    "Cause",
    "DetectionTime",
    "Guard",
    "Keepalive",
    "KeepaliveSocket",
    "LongConnError",
    "MessageTooLarge",
    "PeerLost",
    "PeerReset",
    "PeerTimedOut",
    "TcpInfo",
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
_atexit.register(_longconn.shut_down)
_longconn.register_at_fork()
