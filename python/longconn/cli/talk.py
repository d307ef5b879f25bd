"""`longconn serve` and `connect`: a netcat with heartbeats, and with sessions that outlive their connections."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console

from ..errors import AlreadyClosed, LongConnError, PeerLost
from ..heartbeat import Heartbeat
from ..links import Event, LongServer
from ..links import connect as connect_to
from .printing import said

if TYPE_CHECKING:
    import types

    from .._longconn import LongConnection

__all__ = ["connect", "serve"]

#: How often who receives looks whether it is over.
_LOOK = 0.1


class _Stopped(BaseException):
    """SIGTERM came."""


def _stop(_number: int, _frame: types.FrameType | None) -> NoReturn:
    # a second one ends the process at once
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Stopped


def _note(text: str, style: str = "") -> None:
    """Messages go to the standard output, and nothing else does."""
    console = Console(stderr=True, highlight=False)
    # A line for each where a program reads; on a terminal whole words.
    console.print(text, style=style or None, markup=False, soft_wrap=not console.is_terminal)


def _tell(connection: LongConnection, event: Event) -> None:
    _note_event(event, connection.client_id or "{}:{}".format(*connection.peer_address))


def _note_event(event: Event, who: str = "") -> None:
    what = said(event.error) if event.error else event.state
    if event.replayed is not None:
        again = f"{event.replayed or 'no'} message{' was' if event.replayed == 1 else 's were'} sent again"
        what = f"came back, {again}" if who else f"connected again, {again}"
    style = "green" if event.state == "open" else "red" if isinstance(event.error, PeerLost) else "yellow"
    _note(f"{time.strftime('%H:%M:%S', time.localtime(event.time))} {f'{who}: ' if who else ''}{what}", style)


def lines_of_input() -> Iterator[bytes]:
    """Each line of the standard input; the last may lack its end.

    Not by `sys.stdin`: a thread that still waits in it when the interpreter ends has that abort.
    """
    rest = b""
    while chunk := os.read(0, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def _print(message: bytes, *, as_is: bool = False) -> None:
    end = b"" if as_is or message.endswith(b"\n") else b"\n"
    sys.stdout.buffer.write(message + end)
    sys.stdout.buffer.flush()


def serve(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="port 0: a free one")] = "127.0.0.1:9000",
    echo: Annotated[bool, typer.Option("--echo", help="answer each message with itself")] = False,
    interval: Annotated[float, typer.Option("--interval", "-i", help="seconds between beats")] = 5.0,
    drain: Annotated[float, typer.Option("--drain", min=0, max=86400, help="seconds for the goodbyes")] = 10.0,
    retry_after: Annotated[
        float, typer.Option("--retry-after", min=0, max=300, help="seconds before which nobody is to come back")
    ] = 0.0,
    come_back_to: Annotated[
        str, typer.Option("--come-back-to", metavar="HOST:PORT", help="for clients that follow such a word")
    ] = "",
) -> None:
    """Serve messages: print what comes, send each line of the standard input to everybody.

    Who comes and goes is told on the standard error. Serves until SIGTERM or Ctrl-C. Then clients are told when and
    where to come back, once they have taken what was sent to them.
    """
    signal.signal(signal.SIGTERM, _stop)
    server = LongServer(address, heartbeat=Heartbeat(interval), when_full="raise", on_event=_tell)
    try:
        _note("listening on {}:{}".format(*server.address))
        threading.Thread(target=_broadcast_input, args=(server,), daemon=True).start()
        for connection, message in server.messages():
            if not echo:
                _print(message)
                continue
            try:
                connection.send(message)
            except LongConnError as error:  # it takes nothing, or has gone: the others go on
                _note(f"{connection.client_id or connection.peer_address}: not answered: {said(error)}")
    except (KeyboardInterrupt, _Stopped):
        _note(f"closing, within {drain:g} s")
    finally:
        server.close(drain=drain, retry_after=retry_after, come_back_to=come_back_to)


def _broadcast_input(server: LongServer) -> None:
    with suppress(LongConnError):  # it is closed
        for line in lines_of_input():
            server.broadcast(line)


def connect(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT")],
    framing: Annotated[
        Literal["longconn", "lines", "raw"], typer.Option("--framing", "-f", help="what the peer speaks")
    ] = "longconn",
    name: Annotated[str, typer.Option("--id", help="what this client calls itself")] = "",
    interval: Annotated[float, typer.Option("--interval", "-i", help="seconds between beats")] = 5.0,
    wait: Annotated[
        float, typer.Option("--wait", "-w", min=0, help="seconds of quiet after the end of the input")
    ] = 1.0,
    give_up_after: Annotated[
        float | None, typer.Option("--give-up-after", help="seconds to be without a connection; default: no end")
    ] = None,
) -> int:
    """Send each line of the standard input as a message, print each message that comes.

    A lost connection is made again, and nothing is lost on the way. Ends when the peer does, or a while after the
    input. Exit status: 1 if the peer was lost.
    """
    if framing == "longconn":
        heartbeat = Heartbeat(interval)
        conn = connect_to(address, client_id=name, heartbeat=heartbeat, give_up_after=give_up_after, on_event=_tell_own)
    else:
        conn = connect_to(address, framing=framing, on_event=_tell_own)
    conversation = _Conversation(conn, is_plain=framing != "longconn")
    threading.Thread(target=conversation.send_input, daemon=True).start()
    try:
        for message in conversation.messages(wait):
            _print(message, as_is=framing != "longconn")
    except PeerLost:
        return 1  # its event has told it
    except KeyboardInterrupt:
        conn.close(timeout=1.0)
        raise
    with suppress(PeerLost):
        conn.close(timeout=5.0)
    return 0


def _tell_own(event: Event) -> None:
    is_usual = event.state in ("open", "suspect") and event.replayed is None and not event.fresh
    if is_usual or isinstance(event.error, AlreadyClosed):
        return
    _note_event(event)


class _Conversation:
    """One thread sends what it reads, the other receives."""

    def __init__(self, conn: LongConnection, *, is_plain: bool) -> None:
        self._conn, self._is_plain = conn, is_plain
        self._sent = 0.0  # when the input ended, and everything was taken

    def send_input(self) -> None:
        with suppress(LongConnError, OSError):  # who receives is told
            for line in lines_of_input():
                self._conn.send(line if self._is_plain else line.rstrip(b"\n"))
            self._conn.flush(timeout=None)
        self._sent = time.monotonic()

    def messages(self, wait: float) -> Iterator[bytes]:
        """Each, until the peer's end or so long after the last of either side."""
        last = 0.0
        while True:
            try:
                message = self._conn.recv(timeout=_LOOK)
            except TimeoutError:
                if self._sent and time.monotonic() - max(last, self._sent) >= wait:
                    return
                continue
            except LongConnError as error:
                if isinstance(error, PeerLost):
                    raise
                return
            if not message and self._is_plain:
                return  # the end of its stream
            last = time.monotonic()
            yield message
