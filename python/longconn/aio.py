"""LongConnection and LongServer for asyncio: the same engine and the same objects, with verbs to be awaited.

They work in every event loop that has ``add_reader``: asyncio's and uvloop's. What is made in a loop belongs to it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import socket
import weakref
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from . import _longconn, links
from ._longconn import AsyncConnection as LongConnection
from .errors import LongConnError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator
    from datetime import timedelta
    from types import TracebackType
    from typing import Literal, Unpack

    from .backoff import Backoff
    from .framing import Framing, PlainHeartbeat
    from .heartbeat import Heartbeat
    from .keepalive import Keepalive
    from .links import Event
    from .tls import TLS

__all__ = ["ConnectOptions", "LongConnection", "LongServer", "ServeOptions", "connect", "serve"]

_hubs: weakref.WeakValueDictionary[int, _longconn.Hub] = weakref.WeakValueDictionary()


def _hub() -> _longconn.Hub:
    """The running loop's, which the loop keeps."""
    loop = asyncio.get_running_loop()
    hub = _hubs.get(id(loop))
    if hub is None or hub.event_loop is not loop:
        hub = _longconn.Hub(loop)
        loop.add_reader(hub.fileno(), hub.run)
        _hubs[id(loop)] = hub
    return hub


def _after_in_child() -> None:
    for hub in list(_hubs.values()):
        hub.close_in_child()
    _hubs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)


class ConnectOptions(TypedDict, total=False):
    """What `connect` may be told; as of `longconn.connect`."""

    framing: Framing | None
    heartbeat: Heartbeat | PlainHeartbeat | None
    timeout: float | timedelta | None
    client_id: str
    token: bytes
    largest_message_bytes: int
    keepalive: Keepalive | Literal[False] | None
    reconnect: Backoff | bool
    give_up_after: float | timedelta | None
    on_session_lost: Literal["raise", "resend"]
    follow: bool
    when_full: Literal["wait", "raise"]
    on_event: Callable[[Event], object] | None
    tls: TLS | bool | None


def connect(address: Any, **options: Unpack[ConnectOptions]) -> _Beginning[LongConnection]:
    """Connect to a `LongServer`, of this module's or longconn's own, or to any TCP program.

    ``conn = await connect(...)``, or ``async with connect(...) as conn``, which closes it. Cancelled meanwhile, nothing
    is left of it.

    Args:
        address: As of `longconn.connect`.
        options: All others of `longconn.connect`, with the same defaults and errors. ``on_event`` is called on
            longconn's own thread, not in the loop; `LongConnection.events` is told in the loop.
    """
    return _Beginning(_connect(address, options))


async def _connect(address: Any, options: ConnectOptions) -> LongConnection:
    plan = links.plan_of(address, **{**(links.connect.__kwdefaults__ or {}), **options})
    hub = _hub()
    opened = plan.open(await _longconn.dial_async(hub, plan.places, plan.seconds_left(), plan.security), hub=hub)
    connection: LongConnection = opened if plan.plain is not None else await opened
    return connection


_Entered = TypeVar("_Entered", bound="LongConnection | LongServer")


class _Beginning(Coroutine[Any, Any, _Entered]):
    """A connection or a server that is about to be: to be awaited, once, or entered, which closes it in the end."""

    def __init__(self, coroutine: Coroutine[Any, Any, _Entered]) -> None:
        self._coroutine = coroutine
        self._entered: _Entered | None = None

    def send(self, value: Any) -> Any:
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, _Entered]:
        steps: Generator[Any, Any, _Entered] = self._coroutine.__await__()
        return steps

    async def __aenter__(self) -> _Entered:
        self._entered = await self
        return self._entered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._entered is not None:
            await self._entered.__aexit__(kind, error, traceback)


class ServeOptions(TypedDict, total=False):
    """What `serve` may be told; as of `longconn.LongServer`."""

    framing: Framing | None
    heartbeat: Heartbeat | PlainHeartbeat | None
    max_connections: int
    max_connections_per_address: int | None
    authenticate: Callable[..., object] | None
    handshake_timeout: float | timedelta
    max_handshakes: int
    largest_message_bytes: int
    keepalive: Keepalive | Literal[False] | None
    session_retention: float | timedelta
    max_waiting_sessions: int
    max_waiting_bytes: int
    when_full: Literal["wait", "raise"]
    backlog: int
    reuse_port: bool
    on_event: Callable[[LongConnection, Event], object] | None
    tls: TLS | None


def serve(
    handler: Callable[[LongConnection], Awaitable[object]] | None,
    address: Any,
    *,
    max_tasks: int | None = None,
    **options: Unpack[ServeOptions],
) -> _Beginning[LongServer]:
    """Take connections, and have a task of its own serve each.

    ``server = await serve(...)``, or ``async with serve(...) as server``, which closes it.

    A connection is closed when its handler returns. What a handler raises goes to the loop's exception handler
    (`loop.set_exception_handler`), and its connection is closed with code 12 (failed); that its own connection has
    ended is no news, and isn't reported.

    Args:
        handler: Called with each connection, in a new task. None: there are no tasks; the messages of all connections
            come by `LongServer.messages`, or connections by `LongServer.accept`.
        address: As of `longconn.LongServer`.
        max_tasks: Tasks at the most; None: ``max_connections``. Clients that come when there are so many are welcome,
            up to ``max_connections``, and wait until a task ends: what they send is kept as for a program that doesn't
            receive.
        options: All others of `longconn.LongServer`, with the same defaults and errors. ``authenticate`` may be a
            coroutine function: then it runs in the loop, for several clients at once, each for ``handshake_timeout`` at
            the most. Else it runs, as ``on_event`` does, on longconn's own thread.
    """
    return _Beginning(_serve(handler, address, max_tasks, options))


async def _serve(
    handler: Callable[[LongConnection], Awaitable[object]] | None,
    address: Any,
    max_tasks: int | None,
    options: ServeOptions,
) -> LongServer:
    if handler is not None and not callable(handler):
        raise TypeError(f"handler: a coroutine function or None, not {type(handler).__name__}")
    if max_tasks is not None and (isinstance(max_tasks, bool) or not isinstance(max_tasks, int)):
        raise TypeError(f"max_tasks: a whole number or None, not {type(max_tasks).__name__}")
    if max_tasks is not None and max_tasks < 1:
        raise ValueError(f"max_tasks={max_tasks}: 1 or more")
    given: dict[str, Any] = {**(links.LongServer.__init__.__kwdefaults__ or {}), **options}
    reuse_port = given.pop("reuse_port")
    settings = links.server_settings(**given)
    decide = given["authenticate"]
    if not _is_coroutine_function(decide):
        decide = None
    host, port = links.place_to_listen(address)
    found = await asyncio.get_running_loop().getaddrinfo(host or None, port, type=socket.SOCK_STREAM)
    fd = links.listen(str(found[0][4][0]), port, given["backlog"], reuse_port)
    if decide is not None:
        settings["authenticate"] = None
    server = _longconn.listen(fd, **settings, hub=_hub(), decides_in_loop=decide is not None)
    return LongServer(server, handler, max_tasks or settings["max_connections"], decide, settings)


def _is_coroutine_function(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isfunction(function) or inspect.ismethod(function):
        return inspect.iscoroutinefunction(function)
    return inspect.iscoroutinefunction(type(function).__call__) if callable(function) else False


class LongServer(links.BaseServer[LongConnection]):
    """What `serve` gives: takes connections, each supervised by heartbeats in both directions."""

    __slots__ = ("_decide", "_ended", "_handler", "_handshakes", "_loop", "_room", "_tasks", "_timeout")
    _name = "longconn.aio.LongServer"

    def __init__(
        self,
        server: _longconn.Server,
        handler: Callable[[LongConnection], Awaitable[object]] | None,
        max_tasks: int,
        decide: Callable[..., Awaitable[object]] | None,
        settings: dict[str, Any],
    ) -> None:
        self._server = server
        self._closed = False
        self._handler = handler
        self._decide = decide
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._room = asyncio.Semaphore(max_tasks)
        self._handshakes = asyncio.Semaphore(settings["max_handshakes"])
        self._timeout: float = settings["handshake_timeout"]
        self._tasks: set[asyncio.Task[None]] = set()
        if handler is not None:
            self._begin(self._accept(), "accepts")
        if decide is not None:
            self._begin(self._admit(), "decides about clients")

    def _begin(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name=f"longconn: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self) -> None:
        while True:
            await self._room.acquire()
            try:
                connection = await self._server.accept_async()
            except LongConnError:  # the server is closed, or another process's
                return
            who = connection.client_id or "{}:{}".format(*connection.peer_address)
            self._begin(self._serve_one(connection), f"serves {who}").add_done_callback(lambda _: self._room.release())

    async def _serve_one(self, connection: LongConnection) -> None:
        assert self._handler is not None
        try:
            await self._handler(connection)
            await connection.close()
        except Exception as error:
            # that its own connection has ended is no news
            if not (isinstance(error, LongConnError) and connection.lost is not None):
                connection.abandon(has_failed=True)
                self._report("a handler has failed, and its connection is closed", error, connection)
        except BaseException:
            connection.abandon(has_failed=False)
            raise

    async def _admit(self) -> None:
        while True:
            await self._handshakes.acquire()
            try:
                visitor = await self._server.next_client()
            except LongConnError:
                return
            self._begin(self._ask(visitor), "authenticates").add_done_callback(lambda _: self._handshakes.release())

    async def _ask(self, visitor: _longconn.Visitor) -> None:
        assert self._decide is not None
        introduction = visitor.introduction
        if introduction is None:
            return
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._decide(*introduction)
        except PermissionError as error:
            visitor.refuse(str(error))
        except Exception as error:
            self._report("authenticate could not decide", error, None)
            visitor.refuse("the server could not decide")
        else:
            visitor.decide(answer)

    def _report(self, message: str, error: Exception, connection: LongConnection | None) -> None:
        context: dict[str, Any] = {"message": f"{self!r}: {message}", "exception": error}
        if connection is not None:
            context["connection"] = connection
        # Without "task": from 3.12 on the handler would be run in that task's context, in which we are already.
        self._loop.call_exception_handler(context)

    async def accept(self) -> LongConnection:
        """Wait for the next client that has finished its handshake; the connection is the caller's to close.

        Raises:
            AlreadyClosed: The server is closed.
            RuntimeError: Its connections go to its handler, or come with their `messages()`.
        """
        if self._handler is not None:
            raise RuntimeError("accept(): this server's connections go to its handler; serve(None, ...) for accept()")
        return await self._server.accept_async()

    def messages(self) -> AsyncIterator[tuple[LongConnection, bytes]]:
        """(connection, message) of all connections, as they come; ends when the server is closed.

        Several tasks may iterate at once. A message counts as taken, for the peer's `flush`, once it is handed out.

        Raises:
            RuntimeError: The server's connections go to its handler, or come by `accept()`.
        """
        if self._handler is not None:
            raise RuntimeError("messages(): this server's connections go to its handler; serve(None, ...) for messages")
        return self._server.messages_async()

    def events(self) -> AsyncIterator[tuple[LongConnection, Event]]:
        """(connection, event) of all connections, as of `longconn.LongServer.events`."""
        return self._server.events_async()

    async def serve_forever(self) -> None:
        """Wait until the server is closed. Cancelled, it closes the server."""
        try:
            await self._ended.wait()
        except asyncio.CancelledError:
            await self.close(drain=1.0)
            raise

    async def close(
        self,
        *,
        drain: float | timedelta = 10.0,
        code: int = 1,
        reason: str = "the server is closing",
        retry_after: float | timedelta = 0.0,
        come_back_to: str = "",
    ) -> None:
        """Take nobody any more, tell everyone why, wait until they are gone, and cancel the handlers that still run.

        The arguments are those of `longconn.LongServer.close`. Cancelled, it cancels the handlers at once.
        """
        self._server.begin_close(*links.closing(drain, code, reason, retry_after, come_back_to))
        self._closed = True
        try:
            await self._server.wait_closed()
        finally:
            mine = asyncio.current_task()
            tasks = [task for task in self._tasks if task is not mine]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            self._ended.set()

    async def __aenter__(self) -> LongServer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close(drain=10.0 if error is None else 1.0)
