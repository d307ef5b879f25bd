"""`longconn serve`: a LongServer that answers each message with itself and says who comes and goes."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, NoReturn

from .errors import LongConnError
from .heartbeat import Heartbeat
from .links import Event, LongServer

if TYPE_CHECKING:
    import types

    from ._longconn import LongConnection

__all__ = ["serve"]


class _Stopped(BaseException):
    """SIGTERM came."""


def _stop(_number: int, _frame: types.FrameType | None) -> NoReturn:
    # a second one ends the process at once
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Stopped


def _tell(connection: LongConnection, event: Event) -> None:
    who = connection.client_id or "{}:{}".format(*connection.peer_address)
    what = str(event.error) if event.error else event.state
    if event.replayed is not None:
        what = f"came back, {event.replayed} messages were sent again"
    print(f"{time.strftime('%H:%M:%S', time.localtime(event.time))} {who}: {what}", flush=True)


def serve(address: str, *, interval: float, drain: float, retry_after: float, come_back_to: str) -> int:
    """Serve until SIGTERM or Ctrl-C; then clients are told when and where to come back."""
    for seconds, option, most in ((drain, "--drain", 86400), (retry_after, "--retry-after", 300)):
        if not 0 <= seconds <= most:  # nor NaN
            raise ValueError(f"{option} {seconds:g}: 0 to {most} seconds")
    signal.signal(signal.SIGTERM, _stop)
    server = LongServer(address, heartbeat=Heartbeat(interval), when_full="raise", on_event=_tell)
    try:
        print("listening on {}:{}".format(*server.address), flush=True)
        for connection, message in server.messages():
            try:
                connection.send(message)
            except LongConnError as error:  # it takes nothing, or has gone: the others go on
                print(f"{connection.client_id or connection.peer_address}: not answered: {error}", flush=True)
    except (KeyboardInterrupt, _Stopped):
        print(f"closing, within {drain:g} s", flush=True)
    finally:
        server.close(drain=drain, retry_after=retry_after, come_back_to=come_back_to)
    return 0
