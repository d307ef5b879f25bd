"""The stdlib's module `socket`, name by name, with KeepaliveSocket in the place of its class.

Enums, exceptions and constants are the stdlib's own objects. The functions that make sockets run the stdlib's
own code, only that they find KeepaliveSocket under the name ``socket``, as this module has it.
"""

import socket as _stdlib
import types as _types

from .keepalive_socket import KeepaliveSocket

globals().update(
    {_name: _value for _name, _value in vars(_stdlib).items() if not (_name.startswith("__") and _name.endswith("__"))}
)
__all__ = [*_stdlib.__all__]

socket = KeepaliveSocket


def _with_our_names(function: _types.FunctionType) -> _types.FunctionType:
    copy = _types.FunctionType(
        function.__code__, globals(), function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__doc__ = function.__doc__
    return copy


for _name in ("create_connection", "create_server", "fromfd", "fromshare", "socketpair", "_fallback_socketpair"):
    if hasattr(_stdlib, _name):
        globals()[_name] = _with_our_names(getattr(_stdlib, _name))
