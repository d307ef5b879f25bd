"""pg8000 against a database that is gone: pytest examples/testing/test_postgres.py"""

from __future__ import annotations

import socket

import longconn
from longconn.testing import assert_not_told_within, assert_told_within
from pg8000.exceptions import InterfaceError
from pg8000.native import Connection

QUICK = longconn.Keepalive(1, 1, 3, guard=2.0)


def test_unprotected_a_query_hangs_when_the_cable_is_pulled(fault_proxy, postgres_server):
    proxy = fault_proxy(postgres_server)
    with socket.create_connection(proxy.address) as sock:
        database = Connection("me", sock=sock)
        assert database.run("select 1") == [["1"]]
        proxy.pull_cable()
        with assert_not_told_within(5.0):
            database.run("select 1")


def test_on_a_keepalive_socket_it_is_told(fault_proxy, postgres_server):
    proxy = fault_proxy(postgres_server)
    with longconn.KeepaliveSocket(keepalive=QUICK) as sock:
        sock.connect(proxy.address)
        database = Connection("me", sock=sock)
        assert database.run("select 1") == [["1"]]
        proxy.pull_cable()
        with assert_told_within(10.0, cause="unreachable", error=(InterfaceError, OSError)):
            database.run("select 1")


def test_a_guard_on_its_own_socket_does_it_too(fault_proxy, postgres_server):
    proxy = fault_proxy(postgres_server)
    with socket.create_connection(proxy.address) as sock, longconn.guard(sock, limit=2.0) as guard:
        database = Connection("me", sock=sock)
        assert database.run("select 1") == [["1"]]
        proxy.pull_cable()
        with assert_told_within(10.0, error=(InterfaceError, OSError)):
            database.run("select 1")
        assert guard.lost == "unreachable"
