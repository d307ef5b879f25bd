"""requests against a server that goes silent in the middle of its answer: pytest examples/testing/test_requests.py"""

from __future__ import annotations

import longconn
import pytest
import requests
from longconn.testing import assert_not_told_within, assert_told_within


def url(proxy) -> str:
    return "http://{}:{}/".format(*proxy.address)


def test_unprotected_a_download_hangs_when_the_cable_is_pulled_in_its_middle(fault_proxy, web_server):
    proxy = fault_proxy(web_server)
    proxy.pull_cable_after(50_000, "to_client")
    with assert_not_told_within(5.0):
        requests.get(url(proxy))


def test_protected_it_is_told(fault_proxy, web_server):
    proxy = fault_proxy(web_server)
    proxy.pull_cable_after(50_000, "to_client")
    longconn.set_default_keepalive(longconn.Keepalive(1, 1, 3, guard=2.0))
    try:
        with longconn.install(), assert_told_within(15.0, cause="unreachable", error=requests.RequestException):
            requests.get(url(proxy))
    finally:
        longconn.set_default_keepalive(None)


def test_a_server_that_hangs_but_whose_kernel_answers_takes_a_timeout(fault_proxy, web_server):
    """No keepalive can see it: the path is fine. The timeout of requests is for each read, not for the whole."""
    proxy = fault_proxy(web_server)
    proxy.stall_after(50_000, "to_client")
    with assert_told_within(10.0, error=requests.ConnectionError) as told:
        requests.get(url(proxy), timeout=1.0)
    assert "timed out" in str(told.error)


def test_a_truncated_answer_is_found_out(fault_proxy, web_server):
    proxy = fault_proxy(web_server)
    proxy.end_after(50_000, "to_client")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(url(proxy), timeout=20.0)
