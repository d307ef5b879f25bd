"""longconn.aio: what its verbs do and raise, in asyncio's loop and in uvloop's; that cancelling them, at each await,
neither loses nor doubles anything; and that the loop may be late, or gone, or one of several."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import random
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import longconn
import pytest
from longconn import Backoff, Cause, Heartbeat, LongServer, aio, links
from longconn.testing import FaultProxy
from peers import PATIENCE, SLACK, let_go, listening, open_descriptors, python_says

with contextlib.suppress(ImportError):
    # libuv keeps a pipe of its own from the first loop on
    with asyncio.Runner(loop_factory=importlib.import_module("uvloop").new_event_loop) as _runner:
        _runner.run(asyncio.sleep(0))

Run = Callable[[Coroutine[Any, Any, Any]], Any]
SOON = Backoff(first=0.01, cap=0.05)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    return pytest.importorskip("uvloop", reason="there is no uvloop for this Python").new_event_loop


@pytest.fixture(params=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return loop_factory(request.param)


@pytest.fixture
def run(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    """Runs a test's coroutine in a loop of its own; nothing is left in it, and nothing was reported to it."""

    def run(main: Coroutine[Any, Any, Any], debug: bool = False) -> Any:
        reports: list[dict[str, Any]] = []

        async def bounded() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
            async with asyncio.timeout(PATIENCE):
                result = await main
            assert asyncio.all_tasks() <= {asyncio.current_task()}
            return result

        with asyncio.Runner(loop_factory=new_loop, debug=debug) as runner:
            result = runner.run(bounded())
        assert not reports
        return result

    return run


@contextlib.asynccontextmanager
async def pair(
    heartbeat: Heartbeat | None = None, **options: Any
) -> AsyncIterator[tuple[aio.LongConnection, aio.LongConnection]]:
    """A client, and the server's connection with it."""
    async with aio.serve(None, ("127.0.0.1", 0), heartbeat=heartbeat) as server:
        async with aio.connect(server.address, heartbeat=heartbeat, **options) as client:
            ours = await server.accept()
            try:
                yield client, ours
            finally:
                with contextlib.suppress(longconn.LongConnError, TimeoutError):
                    await ours.close(timeout=0)
                with contextlib.suppress(longconn.LongConnError, TimeoutError):
                    await client.close(timeout=0)


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def is_waiting(task: asyncio.Task[Any]) -> None:
    """It has done what it can, and waits for longconn."""
    await until(lambda: type(task._fut_waiter).__name__ == "Ticket")  # type: ignore[attr-defined]


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# ---- what the verbs do


def test_messages_go_both_ways_in_order(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            for number in range(100):
                await client.send(b"%d" % number)
            assert await client.send_many(b"%d" % number for number in range(100, 200)) == 100
            received = [await ours.recv() for _ in range(150)]
            while len(received) < 200:
                received += await ours.recv_many(7)
            assert received == [b"%d" % number for number in range(200)]
            await client.flush()
            assert client.unacknowledged == 0
            await ours.sendall(bytearray(b"back"))
            assert await client.recv() == b"back"
            assert 0 < await client.ping() < PATIENCE

    run(main())


def test_empty_and_large_messages(run: Run) -> None:
    sizes = [0, 1, 16_384, 16_385, 100_000, 3_000_000, 5_000_000]

    async def main() -> None:
        async with pair() as (client, ours):
            async with asyncio.TaskGroup() as group:
                group.create_task(client.send_many(os.urandom(1) * size for size in sizes))
                for size in sizes:
                    message = await ours.recv()
                    assert (len(message), len(set(message))) == (size, min(size, 1))

    run(main())


def test_a_large_message_of_a_buffer_that_is_written_to_while_it_waits_is_as_it_was(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            await fill(client)
            data = bytearray(b"a" * 100_000)
            task = asyncio.create_task(client.send(data))
            await is_waiting(task)
            data[:] = b"b" * len(data)
            while (message := await ours.recv())[:1] == b"x":
                pass
            assert message == b"a" * 100_000
            await task

    run(main())


def test_iteration_ends_when_the_peer_closes(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            await client.send_many([b"1", b"2"])

            async def close() -> None:
                await client.close()

            closing = asyncio.create_task(close())
            assert [message async for message in ours] == [b"1", b"2"]
            await closing
            assert (ours.state, ours.lost) == ("closed", Cause.CLOSED)
            with pytest.raises(longconn.PeerClosed):
                await ours.recv()
            with pytest.raises(longconn.AlreadyClosed):
                await client.send(b"more")

    run(main())


def test_timeouts_leave_the_connection_usable(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            for timeout in (0, 0.01):
                with pytest.raises(TimeoutError, match="timed out"):
                    await client.recv(timeout=timeout)
            client.settimeout(0.01)
            with pytest.raises(TimeoutError):
                await client.recv()
            with pytest.raises(TimeoutError):
                await anext(client)
            client.settimeout(None)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await client.recv()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.recv(), 0.01)
            with pytest.raises(TimeoutError):
                await client.wait_for("reconnecting", timeout=0.01)
            await ours.send(b"late")
            assert await client.recv(timeout=PATIENCE) == b"late"

    run(main())


def test_a_verb_is_a_coroutine_of_its_own(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            assert inspect.isawaitable(client.recv) is False
            waiting = client.recv()
            assert asyncio.iscoroutine(waiting)
            waiting.close()
            task = asyncio.create_task(client.send(b"1"))
            await asyncio.gather(task, client.send(b"2"), client.flush(timeout=PATIENCE), ours.recv(), ours.recv())
            await client.send(b"3")
            assert await asyncio.wait_for(ours.recv(), PATIENCE) == b"3"
            waiting = client.send(b"3")
            await waiting
            with pytest.raises(RuntimeError, match="awaited already"):
                await waiting

    run(main())


def test_what_is_being_awaited_says_what_it_is_and_nobody_else_can_await_it(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            seen: list[str] = []

            def messages() -> Iterator[bytes]:
                seen.append(repr(waiting))  # as a debugger's thread may ask
                for again in (waiting.close, lambda: waiting.send(None), lambda: waiting.throw(KeyError)):
                    with pytest.raises(RuntimeError, match="being awaited already"):
                        again()
                yield b"1"

            waiting: Any = client.send_many(messages())
            assert await waiting == 1
            assert seen == ["<longconn.aio send_many()>"]
            assert repr(waiting) == "<longconn.aio call, which is over>"
            assert await ours.recv() == b"1"

    run(main())


def test_a_cancellations_message_may_ask_the_ticket_when_it_goes(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, _):
            asked: list[bool] = []

            class Message:
                def __del__(self) -> None:
                    asked.append(ticket.done())

            waiting: Any = client.wait_for("suspect")
            ticket = waiting.send(None)
            assert ticket.cancel(Message())
            assert waiting.send(None) is ticket
            assert ticket.cancel()
            assert asked == [True]
            waiting.close()

    run(main())


def test_who_forgets_to_await_is_told_and_nothing_was_sent(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            with pytest.warns(RuntimeWarning, match=r"send\(\) was never awaited"):
                client.send(b"lost")
            await client.send(b"sent")
            assert await ours.recv() == b"sent"

    run(main())


def test_each_property_is_that_of_the_connection_of_threads(run: Run) -> None:
    async def main() -> None:
        async with pair(client_id="device-7") as (client, ours):
            assert (client.address, client.peer_address) == (ours.peer_address, ours.address)
            assert (client.getsockname(), client.getpeername()) == (client.address, client.peer_address)
            assert (ours.client_id, ours.principal, client.state, client.lost) == ("device-7", None, "open", None)
            client.status = b"fine"
            await client.ping()
            await until(lambda: ours.peer_status == b"fine")
            client.progress()
            assert client.stats().state == "open"
            assert "longconn.aio.LongConnection" in repr(client)
            assert client == client
            assert client != ours
            assert len({client, ours}) == 2

    run(main())
    verbs = {name for name in vars(longconn.LongConnection) if not name.startswith("_")} - {"fileno"}
    assert verbs <= {name for name in dir(aio.LongConnection) if not name.startswith("_")}


def test_events_come_in_the_loop(run: Run) -> None:
    async def main() -> None:
        async with aio.serve(None, ("127.0.0.1", 0)) as server:
            events = server.events()
            async with aio.connect(server.address) as client:
                ours = await server.accept()
                assert (await anext(client.events())).state == "open"
                who, event = await anext(events)
                assert (who, event.state) == (ours, "open")
            rest = [event.state async for event in client.events()]
            assert rest == ["closed"]
            await ours.close()
            assert (await anext(events))[1].state == "closed"
        with pytest.raises(StopAsyncIteration):
            await anext(events)

    run(main())


def test_what_connect_raises(run: Run) -> None:
    async def main() -> None:
        with listening() as listener:
            address = listener.getsockname()
            with pytest.raises(TimeoutError, match=r"did not finish the handshake in time.*framing"):
                await aio.connect(address, timeout=0.05)
        with pytest.raises(longconn.ConnectFailed):
            await aio.connect(address)
        with pytest.raises(socket.gaierror):
            await aio.connect("nowhere.invalid:1")
        with pytest.raises(ValueError, match="timeout"):
            await aio.connect(address, timeout=0)
        with pytest.raises(TypeError, match="nonsense"):
            await aio.connect(address, nonsense=1)  # type: ignore[call-arg]

        async def refuse(*_: Any) -> bool:
            return False

        async with aio.serve(None, ("127.0.0.1", 0), authenticate=refuse) as server:
            with pytest.raises(longconn.HandshakeRejected):
                await aio.connect(server.address)

    run(main())


def test_options_are_those_of_the_calls_for_threads() -> None:
    assert aio.ConnectOptions.__annotations__.keys() == links.connect.__kwdefaults__.keys()
    assert aio.ServeOptions.__annotations__.keys() == links.LongServer.__init__.__kwdefaults__.keys()


def test_plain_peers(run: Run) -> None:
    async def main() -> None:
        async with aio.serve(None, ("127.0.0.1", 0), framing="lines") as server:
            async with aio.connect(server.address, framing="lines") as client:
                ours = await server.accept()
                await client.send(b"hello\n")
                assert await ours.recv() == b"hello\n"
                client.shutdown(socket.SHUT_WR)
                assert await ours.recv() == b""
                assert await ours.recv_many(3) == []
                assert [line async for line in ours] == []
                await ours.send(b"bye\n")
                assert await client.recv() == b"bye\n"
                with pytest.raises(TypeError, match="plain peer"):
                    await client.ping()
                await ours.close()
        async with aio.serve(None, ("127.0.0.1", 0), framing="raw") as server:
            async with aio.connect(server.address, framing="raw") as client:
                ours = await server.accept()
                await client.send(b"hello")
                assert (await ours.recv(2)) + (await ours.recv(3)) == b"hello"
                task = asyncio.create_task(ours.recv(100))
                await is_waiting(task)
                await client.send(b"more")
                assert await task == b"more"
                await client.close()
                await ours.close()

    run(main())


def test_send_waits_for_room_or_raises(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            count = await fill(client)
            with pytest.raises(TimeoutError):
                await client.send(b"x" * 60_000, timeout=0.01)
            task = asyncio.create_task(client.send(b"the last"))
            await asyncio.sleep(0.01)
            for _ in range(count):
                assert (await ours.recv())[:1] == b"x"
            await task
            assert await ours.recv() == b"the last"
        async with pair(when_full="raise") as (client, _):
            with pytest.raises(longconn.BufferFull):
                await fill(client)

    run(main())


async def fill(connection: aio.LongConnection) -> int:
    """Until there is no room for what is as long; how many it were."""
    count = 0
    with contextlib.suppress(TimeoutError):
        while True:
            await connection.send(b"x" * 60_000, timeout=0.2)
            count += 1
    return count


# ---- cancelling


@pytest.mark.parametrize(
    "verb", ["recv", "recv_many", "anext", "wait_for", "flush", "ping", "send", "send_many", "events"]
)
def test_a_cancelled_call_has_done_nothing_and_the_connection_goes_on(run: Run, verb: str) -> None:
    async def main() -> None:
        with listening() as silent:
            del silent
        async with pair() as (client, ours):
            if verb in ("send", "send_many"):
                count = await fill(client)
            if verb == "flush":
                await client.send(b"untaken")
            if verb == "events":
                await anext(client.events())
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "recv": client.recv,
                "recv_many": lambda: client.recv_many(10),
                "anext": lambda: anext(client),
                "wait_for": lambda: client.wait_for("closed"),
                "flush": client.flush,
                "ping": client.ping,
                "send": lambda: client.send(b"y" * 60_000),
                "send_many": lambda: client.send_many([b"y" * 60_000]),
                "events": lambda: anext(client.events()),
            }

            async def call() -> Any:
                return await calls[verb]()

            task = asyncio.create_task(call())
            await asyncio.sleep(0)  # begun
            if verb == "ping":  # which may have been answered meanwhile
                task.cancel()
                await asyncio.wait([task])
            else:
                await cancelled(task)
            # Before its first step.
            await cancelled(asyncio.create_task(call()))
            if verb in ("send", "send_many"):
                for _ in range(count):
                    assert (await ours.recv())[:1] == b"x"
                with pytest.raises(TimeoutError):
                    await ours.recv(timeout=0.05)
            elif verb == "flush":
                assert await ours.recv() == b"untaken"
                await client.flush()
            await ours.send(b"after")
            assert await client.recv() == b"after"
            await client.ping()

    run(main())


def test_cancelling_connect_leaves_nothing(run: Run) -> None:
    async def main() -> None:
        with listening() as listener:
            listener.settimeout(PATIENCE)
            # In the handshake: nobody answers it.
            task = asyncio.ensure_future(aio.connect(listener.getsockname()))
            peer, _ = await asyncio.to_thread(listener.accept)
            with peer:
                await is_waiting(task)
                await cancelled(task)
                peer.settimeout(PATIENCE)
                while await asyncio.to_thread(peer.recv, 4096):
                    pass  # until the end: it was closed
            descriptors = open_descriptors()
            # While it dials: the backlog is full, so that nobody is accepted.
            with contextlib.ExitStack() as stack:
                full = stack.enter_context(listening())
                full.listen(0)
                for _ in range(4):
                    sock = stack.enter_context(socket.socket())
                    sock.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        sock.connect(full.getsockname())
                task = asyncio.ensure_future(aio.connect(full.getsockname()))
                await is_waiting(task)
                await asyncio.sleep(0.02)
                await cancelled(task)
            await until(lambda: open_descriptors() <= descriptors)

    run(main())


def test_cancelling_what_a_server_awaits(run: Run) -> None:
    async def main() -> None:
        async with aio.serve(None, ("127.0.0.1", 0)) as server:
            task = asyncio.create_task(server.accept())
            await is_waiting(task)
            await cancelled(task)
            async with aio.connect(server.address) as client:
                ours = await server.accept()
                await client.send(b"1")
                assert await ours.recv() == b"1"
                await ours.close()
        async with aio.serve(None, ("127.0.0.1", 0)) as server:
            messages = server.messages()
            task = asyncio.ensure_future(anext(messages))
            await is_waiting(task)
            await cancelled(task)
            async with aio.connect(server.address) as client:
                await client.send(b"1")
                assert (await anext(messages))[1] == b"1"
                events = server.events()
                await anext(events)
                task = asyncio.ensure_future(anext(events))
                await is_waiting(task)
                await cancelled(task)

    run(main())


def test_cancelling_a_close_ends_the_connection_all_the_same(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            await client.send(b"untaken")
            task = asyncio.create_task(client.close())
            await is_waiting(task)
            await cancelled(task)
            assert client.state == "closing"
            assert await ours.recv() == b"untaken"
            await client.wait_for("closed")

    run(main())


def test_a_server_whose_close_is_cancelled_cancels_its_handlers_at_once(run: Run) -> None:
    over: list[str] = []

    async def handler(connection: aio.LongConnection) -> None:
        try:
            await connection.send(b"untaken")
            await asyncio.sleep(3600)
        finally:
            over.append("over")

    async def main() -> None:
        server = await aio.serve(handler, ("127.0.0.1", 0))
        client = await aio.connect(server.address, reconnect=False)
        await until(lambda: client.stats().inbox_messages == 1)
        async with client:
            task = asyncio.create_task(server.close(drain=3600))
            await asyncio.sleep(0.05)
            await cancelled(task)
            assert over == ["over"]
            await client.close(timeout=0)

    run(main())


def test_a_message_that_came_in_the_very_turn_of_the_cancellation_is_the_next_ones(run: Run) -> None:
    """The wake-up has been sent, and what it was for isn't taken yet."""

    async def main() -> None:
        async with pair(Heartbeat(60)) as (client, ours):  # the next beat would help out
            for verb in (client.recv, lambda: client.recv_many(10), lambda: anext(client)):
                first = asyncio.ensure_future(verb())
                second = asyncio.ensure_future(client.recv())
                await is_waiting(first)
                await is_waiting(second)
                await ours.send(b"for the second")
                time.sleep(0.02)  # it is there, and both would be told when the loop has its turn
                first.cancel()
                assert await second == b"for the second"
                with pytest.raises(asyncio.CancelledError):
                    await first

    run(main())


@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_cancellations_and_each_message_comes_once_and_in_order(run: Run, seed: int) -> None:
    count = 6000
    chance = random.Random(seed)
    received: list[bytes] = []
    cancellations = 0

    async def take(connection: aio.LongConnection, turn: asyncio.Lock) -> None:
        # What is received is noted in the same step; a cancellation can only come before it.
        way = chance.randrange(3)
        if way == 0:
            received.append(await connection.recv())
        elif way == 1:
            received.extend(await connection.recv_many(chance.randrange(1, 4)))
        else:
            received.append(await anext(connection))

    async def give(connection: aio.LongConnection) -> None:
        for number in range(count):
            while True:
                task = asyncio.create_task(connection.send(b"%d" % number))
                if chance.random() < 0.2:
                    for _ in range(chance.randrange(2)):
                        await asyncio.sleep(0)
                    task.cancel()
                try:
                    await task
                    break
                except asyncio.CancelledError:
                    continue  # so it was not sent
            if chance.random() < 0.3:
                await asyncio.sleep(0)
            if chance.random() < 0.002:
                await asyncio.sleep(0.006)  # the engine has the reader's role again

    async def main() -> None:
        nonlocal cancellations
        async with pair() as (client, ours):
            giving = asyncio.create_task(give(ours))
            turn = asyncio.Lock()
            while len(received) < count:
                task = asyncio.create_task(take(client, turn))
                if chance.random() < 0.5:
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    cancellations += task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await giving
            with pytest.raises(TimeoutError):
                await client.recv(timeout=0.01)

    run(main())
    assert received == [b"%d" % number for number in range(count)]
    assert cancellations > count / 20


def test_several_tasks_share_what_comes(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            received: list[bytes] = []

            async def take() -> None:
                async for message in client:
                    received.append(message)

            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(take())
                await asyncio.sleep(0)
                for number in range(1000):
                    await ours.send(b"%d" % number)
                    if number % 50 == 0:
                        await asyncio.sleep(0.001)
                await ours.close()
            assert sorted(received, key=int) == [b"%d" % number for number in range(1000)]

    run(main())


def test_who_is_cancelled_after_it_was_woken_wakes_another(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            for _ in range(100):
                tasks = [asyncio.ensure_future(client.recv()) for _ in range(4)]
                for task in tasks:
                    await is_waiting(task)
                await ours.send(b"one")
                await asyncio.sleep(random.choice([0, 0, 0.0001]))
                tasks[0].cancel()
                done = {task for task in tasks[1:] if not task.cancelled()}
                first, _ = await asyncio.wait(tasks, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
                while not [task for task in first if not task.cancelled()]:
                    first, _ = await asyncio.wait(done, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
                    assert first
                assert [task.result() for task in first if not task.cancelled()] == [b"one"]
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    run(main())


# ---- the loop


def test_who_receives_as_fast_as_messages_come_leaves_others_their_turn(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            other = asyncio.create_task(others())
            await client.send_many([b"x"] * 20_000)
            await ours.recv()
            turns = 0
            for _ in range(10_000):
                await ours.recv()
            assert turns >= 10
            await cancelled(other)

    run(main())


@pytest.mark.parametrize("heartbeat", [Heartbeat(0.1, limit=1.0), Heartbeat(3600.0)], ids=["quick", "slow"])
def test_a_blocked_loop_misses_no_beat_and_answers_pings(run: Run, heartbeat: Heartbeat) -> None:
    """The engine reads when the loop is late, and beats whatever the loop does."""

    async def main() -> None:
        with LongServer(("127.0.0.1", 0), heartbeat=heartbeat) as server:
            client = await aio.connect(server.address, heartbeat=heartbeat)
            async with client:
                with server.accept(timeout=PATIENCE) as ours:
                    await asyncio.sleep(0.1)  # whatever the handshake has left to do
                    receiving = asyncio.create_task(client.recv())
                    await asyncio.sleep(0)  # not longer: the loop's thread has just become the reader
                    round_trips: list[float] = []

                    def ping() -> None:
                        for _ in range(20):
                            round_trips.append(ours.ping(timeout=PATIENCE))
                            time.sleep(0.02)
                        ours.send(b"while it was blocked")

                    thread = threading.Thread(target=ping)
                    thread.start()
                    beats = ours.stats().beats_heard
                    time.sleep(2.5 * SLACK)  # the loop's thread; far beyond the limit
                    assert not thread.is_alive()
                    assert len(round_trips) == 20
                    # Each ping is answered by one.
                    assert ours.stats().beats_heard - beats > (30 if heartbeat.interval < 1 else 19)
                    assert (ours.state, client.state) == ("open", "open")
                    assert await receiving == b"while it was blocked"

    run(main())


def test_beats_of_connections_that_wait_do_not_wake_the_loop(run: Run) -> None:
    async def main() -> None:
        async with pair(heartbeat=Heartbeat(0.05)) as (client, ours):
            tasks = [asyncio.ensure_future(each.recv()) for each in (client, ours)]
            await asyncio.sleep(0.2)  # the engine has the reader's role
            loop, hub, calls = asyncio.get_running_loop(), aio._hub(), 0

            def run_hub() -> None:
                nonlocal calls
                calls += 1
                hub.run()

            loop.add_reader(hub.fileno(), run_hub)
            heard = client.stats().beats_heard
            await until(lambda: client.stats().beats_heard >= heard + 10)
            assert calls == 0
            await client.send(b"x")
            assert await tasks[1] == b"x"
            assert calls > 0
            await cancelled(tasks[0])

    run(main())


def test_a_connection_that_comes_back_is_awaited_as_if_nothing_had_been(run: Run) -> None:
    async def main() -> None:
        async with aio.serve(None, ("127.0.0.1", 0)) as server:
            proxy = FaultProxy(server)
            try:
                async with aio.connect(proxy.address, reconnect=SOON) as client:
                    ours = await server.accept()
                    for number in range(10):
                        receiving = asyncio.create_task(client.recv())
                        theirs = asyncio.create_task(ours.recv())
                        await is_waiting(receiving)
                        await is_waiting(theirs)
                        proxy.end()
                        await client.send(b"c%d" % number)
                        await ours.send(b"s%d" % number)
                        assert (await receiving, await theirs) == (b"s%d" % number, b"c%d" % number)
                        await client.ping()
                    assert client.stats().connections > 5
                    await client.close()
                await ours.close()
            finally:
                proxy.close()

    run(main())


def test_several_loops_in_several_threads(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    problems: list[BaseException] = []

    async def talk(address: tuple[str, int]) -> None:
        async with aio.connect(address) as client:
            for number in range(300):
                await client.send(b"%d" % number)
                assert await client.recv() == b"%d" % number

    async def main(address: tuple[str, int]) -> None:
        await asyncio.gather(*(talk(address) for _ in range(5)))

    def work(address: tuple[str, int]) -> None:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(main(address))
        except BaseException as error:
            problems.append(error)

    async def echo(connection: aio.LongConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def serve() -> None:
        async with aio.serve(echo, ("127.0.0.1", 0)) as server:
            threads = [threading.Thread(target=work, args=(server.address,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            await asyncio.to_thread(lambda: [thread.join(PATIENCE) for thread in threads])

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve())
    assert not problems


def test_a_connection_belongs_to_its_loop(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with LongServer(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
        first, second = (asyncio.Runner(loop_factory=new_loop) for _ in range(2))
        stack.callback(first.close)
        stack.callback(second.close)

        async def receive(connection: aio.LongConnection) -> bytes:
            return await connection.recv()

        async def connect() -> aio.LongConnection:
            return await aio.connect(server.address)

        connection = first.run(connect())
        with server.accept(timeout=PATIENCE) as ours:
            with pytest.raises(RuntimeError, match="loop"):
                second.run(receive(connection))
            ours.send(b"at home")
            assert first.run(receive(connection)) == b"at home"

            async def close() -> None:
                await connection.close()

            first.run(close())


def test_outside_of_a_loop_there_is_nothing_to_connect_with() -> None:
    connecting = aio.connect("127.0.0.1:1")
    with pytest.raises(RuntimeError, match="loop"):
        connecting.send(None)


@pytest.mark.parametrize("waits", [False, True])
def test_a_loop_that_is_closed_early_neither_hangs_nor_crashes(
    new_loop: Callable[[], asyncio.AbstractEventLoop], waits: bool
) -> None:
    with LongServer(("127.0.0.1", 0)) as server:
        loop = new_loop()

        async def connect() -> aio.LongConnection:
            return await aio.connect(server.address)

        connection = loop.run_until_complete(connect())
        ours = server.accept(timeout=PATIENCE)
        if waits:
            task = loop.create_task(connection.recv())
            loop.run_until_complete(asyncio.sleep(0.01))
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
            del task
        loop.close()
        ours.send(b"to nobody")
        ours.ping(timeout=PATIENCE)  # the engine answers
        kept = [connection]
        del connection
        with pytest.warns(ResourceWarning, match=r"unclosed <longconn\.aio\.LongConnection"):
            kept.clear()
        let_go(ours)


def test_in_debug_mode_all_is_the_same(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            for _ in range(20):
                await client.send(b"ping")
                assert await ours.recv() == b"ping"
            task = asyncio.create_task(client.recv())
            await is_waiting(task)
            assert "recv" in repr(task) or "Waiting" in repr(task)
            await cancelled(task)

    run(main(), debug=True)  # type: ignore[call-arg]


def test_in_pythons_own_tasks_all_is_the_same(run: Run) -> None:
    """As where a debugger, or what lets loops be nested, puts them in the place of C's."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, work, **rest: asyncio.tasks._PyTask(work, loop=loop, **rest))  # type: ignore[attr-defined]
        async with pair() as (client, ours):
            task = asyncio.ensure_future(client.recv())
            await is_waiting(task)
            await ours.send(b"x")
            assert await task == b"x"
            task = asyncio.ensure_future(client.recv())
            await is_waiting(task)
            await cancelled(task)

    run(main())


def test_a_loop_may_be_run_within_a_step_of_one_of_its_tasks() -> None:
    """As nest_asyncio does it, which lets notebooks call `asyncio.run` in a running loop; uvloop's can't be nested."""

    async def main() -> bytes:
        loop: Any = asyncio.get_running_loop()
        async with pair() as (client, ours):
            receiving = [asyncio.ensure_future(client.recv()) for _ in range(2)]
            sending = asyncio.ensure_future(client.send(b"to be answered"))
            await ours.recv()
            await sending
            answering = asyncio.ensure_future(ours.send_many([b"1", b"2"]))
            me = asyncio.current_task()
            asyncio.tasks._leave_task(loop, me)  # type: ignore[attr-defined]
            end = time.monotonic() + PATIENCE
            while not all(task.done() for task in [answering, *receiving]) and time.monotonic() < end:
                loop._run_once()
            asyncio.tasks._enter_task(loop, me)  # type: ignore[attr-defined]
            return b"".join(sorted(task.result() for task in receiving))

    def task_factory(loop: Any, work: Any, **rest: Any) -> Any:
        return asyncio.tasks._PyTask(work, loop=loop, **rest)  # type: ignore[attr-defined]

    with asyncio.Runner() as runner:
        runner.get_loop().set_task_factory(task_factory)
        assert runner.run(main()) == b"12"


def test_ctrl_c_ends_asyncio_run() -> None:
    says = python_says(
        """
import asyncio, os, signal, threading
from longconn import aio

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in a shell's background ignores it

async def echo(connection):
    async for message in connection:
        await connection.send(message)

async def main():
    async with aio.serve(echo, "127.0.0.1:0") as server, aio.connect(server.address) as client:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            await client.send(b"x")
            await client.recv()

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""
    )
    assert says.strip() == "interrupted"


def test_a_child_of_a_fork_leaves_the_parents_loop_alone(run: Run) -> None:
    async def main() -> None:
        async with pair() as (client, ours):
            receiving = asyncio.create_task(client.recv())
            await is_waiting(receiving)
            number = aio._hub().fileno()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # other tests' threads
                process = os.fork()
            if process == 0:
                status = 1
                try:
                    waiting = client.send(b"from the child")
                    with contextlib.suppress(longconn.ForkedError):
                        waiting.send(None)
                    with contextlib.suppress(longconn.ForkedError):
                        client.stats()
                        os._exit(2)
                    with contextlib.suppress(OSError):
                        os.fstat(number)
                        os._exit(3)
                    asyncio.events._set_running_loop(None)

                    async def anew() -> None:
                        async with pair() as (mine, theirs):
                            await mine.send(b"x")
                            assert await theirs.recv() == b"x"

                    asyncio.run(anew())
                    status = 0
                finally:
                    os._exit(status)
            _, code = await asyncio.to_thread(os.waitpid, process, 0)
            assert os.waitstatus_to_exitcode(code) == 0
            await ours.send(b"still here")
            assert await receiving == b"still here"
            await client.ping()

    run(main())


# ---- servers


def test_each_connection_has_a_task_of_its_own_and_no_more_than_max_tasks(run: Run) -> None:
    async def main() -> None:
        present = most = 0

        async def handler(connection: aio.LongConnection) -> None:
            nonlocal present, most
            present += 1
            most = max(most, present)
            async for message in connection:
                await connection.send(message)
            present -= 1

        async with aio.serve(handler, ("127.0.0.1", 0), max_tasks=2) as server:

            async def talk(number: int) -> None:
                async with aio.connect(server.address, client_id=str(number)) as client:
                    await client.send(b"%d" % number)
                    assert await client.recv() == b"%d" % number

            await asyncio.gather(*(talk(number) for number in range(10)))
            assert most == 2
            assert server.stats().opened == 10
            with pytest.raises(RuntimeError, match="handler"):
                await server.accept()
            with pytest.raises(RuntimeError, match="handler"):
                server.messages()

    run(main())


def test_what_a_handler_raises_is_reported_and_its_client_told(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    reports: list[dict[str, Any]] = []

    async def handler(connection: aio.LongConnection) -> None:
        await connection.recv()
        raise ZeroDivisionError("a bug")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        async with aio.serve(handler, ("127.0.0.1", 0)) as server:
            client = await aio.connect(server.address)
            await client.send(b"x")
            with pytest.raises(longconn.PeerClosed, match="handler has failed") as caught:
                await client.recv()
            assert caught.value.code == 12
            # One whose client goes away isn't worth a report.
            other = await aio.connect(server.address, reconnect=False)
            await other.close()
            await until(lambda: server.stats().open == 0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    (report,) = reports
    assert isinstance(report["exception"], ZeroDivisionError)
    assert isinstance(report["connection"], aio.LongConnection)


def test_handlers_that_outlast_the_drain_are_cancelled(run: Run) -> None:
    async def main() -> None:
        outcome: list[str] = []

        async def handler(connection: aio.LongConnection) -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                outcome.append("cancelled")
                raise

        server = await aio.serve(handler, ("127.0.0.1", 0))
        client = await aio.connect(server.address, reconnect=False)
        await until(lambda: len(server._tasks) == 2)
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        await server.close(drain=0.1, code=0)
        await closing
        assert outcome == ["cancelled"]
        assert [message async for message in client] == []
        await client.close()

    run(main())


def test_messages_of_all_connections_come_in_one_loop(run: Run) -> None:
    async def main() -> None:
        async with aio.serve(None, ("127.0.0.1", 0)) as server:
            received: dict[str, list[bytes]] = {}

            async def take() -> None:
                async for connection, message in server.messages():
                    assert isinstance(connection, aio.LongConnection)
                    received.setdefault(connection.client_id, []).append(message)
                    await connection.send(message)

            taking = asyncio.create_task(take())

            async def talk(number: int) -> None:
                async with aio.connect(server.address, client_id=str(number)) as client:
                    for each in range(50):
                        await client.send(b"%d" % each)
                    assert [await client.recv() for _ in range(50)] == [b"%d" % each for each in range(50)]

            await asyncio.gather(*(talk(number) for number in range(10)))
            assert received == {str(number): [b"%d" % each for each in range(50)] for number in range(10)}
            client = await aio.connect(server.address)
            await until(lambda: len(server.connections) == 1)
            assert server.broadcast(b"to all").sent == 1
            assert await client.recv() == b"to all"
            with pytest.raises(RuntimeError, match="messages"):
                await server.accept()
            await client.close()
            await server.close()
            await taking

    run(main())


def test_authenticate_may_be_a_coroutine_and_asks_several_at_once(run: Run) -> None:
    async def main() -> None:
        together = asyncio.Barrier(3)

        async def authenticate(client_id: str, token: bytes, address: tuple[str, int]) -> object:
            async with asyncio.timeout(PATIENCE):
                await together.wait()
            if token != b"secret":
                raise PermissionError("wrong token")
            return {"name": client_id}

        async with aio.serve(None, ("127.0.0.1", 0), authenticate=authenticate) as server:
            results = await asyncio.gather(
                *(
                    aio.connect(server.address, client_id=token.decode(), token=token)
                    for token in (b"secret", b"", b"x")
                ),
                return_exceptions=True,
            )
            client = results[0]
            assert isinstance(client, aio.LongConnection)
            for refusal in results[1:]:
                assert isinstance(refusal, longconn.HandshakeRejected)
                assert "wrong token" in str(refusal)
            ours = await server.accept()
            assert ours.principal == {"name": "secret"}
            await client.close()
            await ours.close()

    run(main())


def test_an_authenticate_that_fails_refuses_and_is_reported(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    reports: list[dict[str, Any]] = []

    async def authenticate(*_: object) -> object:
        raise ZeroDivisionError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        async with aio.serve(None, ("127.0.0.1", 0), authenticate=authenticate) as server:
            with pytest.raises(longconn.HandshakeRejected, match="could not decide"):
                await aio.connect(server.address)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]


def test_a_plain_authenticate_runs_on_longconns_thread(run: Run) -> None:
    threads: list[int] = []

    def authenticate(client_id: str, token: bytes, address: tuple[str, int]) -> bool:
        threads.append(threading.get_ident())
        return True

    async def main() -> None:
        async with aio.serve(None, ("127.0.0.1", 0), authenticate=authenticate) as server:
            async with aio.connect(server.address):
                await (await server.accept()).close()

    run(main())
    assert threads
    assert threads[0] != threading.get_ident()


def test_who_cancels_serve_forever_closes_the_server(run: Run) -> None:
    async def main() -> None:
        server = await aio.serve(None, ("127.0.0.1", 0))
        task = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0.01)
        await cancelled(task)
        with pytest.raises(longconn.AlreadyClosed):
            await server.accept()
        assert "closed" in repr(server)

    run(main())


def test_what_serve_is_told_must_make_sense(run: Run) -> None:
    async def main() -> None:
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="max_tasks"):
                await aio.serve(None, "127.0.0.1:0", max_tasks=wrong)
        with pytest.raises(TypeError, match="max_tasks"):
            await aio.serve(None, "127.0.0.1:0", max_tasks=True)
        with pytest.raises(TypeError, match="handler"):
            await aio.serve("no", "127.0.0.1:0")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="authenticate"):
            await aio.serve(None, "127.0.0.1:0", framing="raw", authenticate=lambda *_: True)

    run(main())
