"""For tests of clients and servers: break their connections on purpose, and see what they are told.

With pytest the fixtures come by themselves (`pytest_longconn`); everything here works without it, too.
"""

from .clock import FakeClock
from .programs import DeadPeer, freeze, hold_gil
from .proxy import FaultConnection, FaultProxy, FlowStats, LaterFaults, ProxyEvent, SomeFaults
from .telling import Told, assert_not_told_within, assert_told_within

__all__ = [
    "DeadPeer",
    "FakeClock",
    "FaultConnection",
    "FaultProxy",
    "FlowStats",
    "LaterFaults",
    "ProxyEvent",
    "SomeFaults",
    "Told",
    "assert_not_told_within",
    "assert_told_within",
    "freeze",
    "hold_gil",
]

for _value in list(vars().values()):
    if getattr(_value, "__module__", "").startswith("longconn.testing."):
        _value.__module__ = "longconn.testing"
