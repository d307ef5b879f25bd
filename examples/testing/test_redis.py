"""redis-py against a server that is gone: pytest examples/testing/test_redis.py"""

from __future__ import annotations

from collections.abc import Iterator

import longconn
import pytest
import redis
from longconn.testing import assert_not_told_within, assert_told_within
from redis.backoff import NoBackoff
from redis.retry import Retry

QUICK = longconn.Keepalive(1, 1, 3, guard=2.0)


def client(proxy, **options) -> redis.Redis:
    host, port = proxy.address
    # A worker that waits for jobs wants no timeout. Retries would only try the same cable again.
    return redis.Redis(host, port, socket_timeout=None, retry=Retry(NoBackoff(), 0), **options)


@pytest.fixture
def protected() -> Iterator[dict]:
    """What a program does once, at its start: its sockets are guarded, and redis-py's own timings aren't in the way."""
    longconn.set_default_keepalive(QUICK)
    with longconn.install():
        yield QUICK.redis_kwargs()
    longconn.set_default_keepalive(None)


def test_unprotected_a_blocking_read_hangs_when_the_cable_is_pulled(fault_proxy, redis_server):
    proxy = fault_proxy(redis_server)
    with client(proxy) as worker:
        assert worker.ping()
        proxy.after(0.2).pull_cable()
        with assert_not_told_within(5.0):
            worker.blpop("jobs")


def test_protected_it_is_told(fault_proxy, redis_server, protected):
    proxy = fault_proxy(redis_server)
    with client(proxy, **protected) as worker:
        assert worker.ping()
        proxy.after(0.2).pull_cable()
        with assert_told_within(10.0, cause="unreachable", error=redis.RedisError):
            worker.blpop("jobs")


def test_protected_a_slow_path_is_left_alone(fault_proxy, redis_server, protected):
    proxy = fault_proxy(redis_server)
    proxy.latency(0.3, jitter=0.1)
    with client(proxy, **protected) as worker:
        assert worker.ping()


def test_a_reset_is_survived_by_its_own_retries(fault_proxy, redis_server):
    proxy = fault_proxy(redis_server)
    host, port = proxy.address
    with redis.Redis(host, port, retry=Retry(NoBackoff(), 1)) as worker:
        assert worker.ping()
        proxy.reset()
        assert worker.ping()
        assert proxy.accepted == 2
