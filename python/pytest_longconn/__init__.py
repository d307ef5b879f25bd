"""The pytest plugin of longconn: fixtures that break connections on purpose.

It is a package of its own so that a suite which doesn't use it doesn't even import longconn. Every run of pytest loads
it where longconn is installed, so it asks for nothing that an old pytest hasn't got.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest

if TYPE_CHECKING:
    from longconn import LongServer
    from longconn.testing import DeadPeer, FakeClock, FaultProxy
    from longconn.testing.network import Lab

#: Of the tests that run; a stash would be pytest 7's.
_proxies: WeakKeyDictionary[Any, list[FaultProxy]] = WeakKeyDictionary()


@pytest.hookimpl(hookwrapper=True)  # wrapper=True is of pluggy 1.2
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    outcome = yield
    report = outcome.get_result()
    if report.failed and call.when == "call":
        for proxy in _proxies.get(item, []):
            story = proxy.report()
            # the kit's own assertions have told it
            if story.partition("\n")[0] not in report.longreprtext:
                report.sections.append(("fault proxy", story))


@pytest.fixture
def fake_clock() -> Iterator[FakeClock]:
    """A `longconn.testing.FakeClock`: ``fake_clock.advance(75)`` has 75 s go by at once.

    What was skipped stays so after the test.
    """
    from longconn.testing import FakeClock

    with FakeClock() as clock:
        yield clock


@pytest.fixture
def fault_proxy(request: pytest.FixtureRequest) -> Iterator[Callable[..., FaultProxy]]:
    """``fault_proxy(upstream, **options)`` makes a `longconn.testing.FaultProxy`, which is closed after the test.

    If the test fails, what happened at the proxy is in its report.
    """
    from longconn.testing import FaultProxy

    proxies = _proxies.setdefault(request.node, [])
    with ExitStack() as stack:

        def make(upstream: Any, **options: Any) -> FaultProxy:
            proxy = stack.enter_context(FaultProxy(upstream, **options))
            proxies.append(proxy)
            return proxy

        yield make
    proxies.clear()


@pytest.fixture
def long_server() -> Iterator[Callable[..., LongServer]]:
    """``long_server(**options)`` makes a `longconn.LongServer` on a free port of loopback, closed after the test.

    It beats every 0.2 s if nothing else is said.
    """
    from longconn import Heartbeat, LongServer

    with ExitStack() as stack:

        def make(**options: Any) -> LongServer:
            server = LongServer(("127.0.0.1", 0), **{"heartbeat": Heartbeat(0.2), **options})
            stack.callback(server.close, drain=0)
            return server

        yield make


@pytest.fixture
def dead_peer() -> Iterator[DeadPeer]:
    """A `longconn.testing.DeadPeer`: its ``address`` takes connections, and nobody ever answers."""
    from longconn.testing import DeadPeer

    with DeadPeer() as peer:
        yield peer


@pytest.fixture
def freeze() -> Iterator[Callable[[Any], None]]:
    """``freeze(process)`` stops a process (SIGSTOP) until the end of the test; see `longconn.testing.freeze`."""
    from longconn import testing

    with ExitStack() as stack:

        def stop(process: Any) -> None:
            stack.enter_context(testing.freeze(process))

        yield stop


@pytest.fixture
def hold_gil() -> Callable[[float], None]:
    """``hold_gil(seconds)`` keeps every other thread from running Python; see `longconn.testing.hold_gil`."""
    from longconn import testing

    return testing.hold_gil


@pytest.fixture
def network() -> Iterator[Callable[..., Lab]]:
    """``network(**options)`` makes a `longconn.testing.network.Lab`, hosts with cables, which is gone after the test.

    The test is skipped, with the reason, where no network namespaces can be made.
    """
    from longconn.testing import network as lab

    if reason := lab.reason_unavailable():
        pytest.skip(f"no network lab: {reason}")
    with ExitStack() as stack:

        def make(**options: Any) -> Lab:
            try:
                return stack.enter_context(lab.Lab(**options))
            except lab.LabError as error:
                if lab.is_privileged():
                    raise
                pytest.skip(f"no network lab in this process: {error}")

        yield make
