"""Metrics: what Prometheus and OpenTelemetry are given is what the objects say of themselves."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import longconn
import pytest
from longconn.metrics import Metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from peers import PATIENCE, wait_until
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def server():
    with longconn.LongServer(("127.0.0.1", 0), heartbeat=longconn.Heartbeat(0.5)) as server:
        yield server


@pytest.fixture
def client(server):
    with longconn.connect(server.address) as client:
        wait_until(lambda: server.stats().open == 1, "the server has it")
        yield client


def scraped(metrics):
    """{(name, labels): value} as Prometheus would read it."""
    registry = CollectorRegistry()
    metrics.register(registry)
    text = generate_latest(registry).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def ended(cause):
    return scraped(Metrics())["longconn_links_ended_total", ("cause", cause)]


def test_prometheus_reads_what_the_objects_say(server, client):
    client.send(b"x" * 1000)
    client.ping(timeout=PATIENCE)
    found = scraped(Metrics(gateway=server, uplink=client))
    assert found["longconn_server_connections", ("server", "gateway"), ("state", "open")] == 1
    assert found["longconn_server_opened_total", ("server", "gateway")] == 1
    assert found["longconn_connection_state", ("connection", "uplink"), ("state", "open")] == 1
    assert found["longconn_connection_state", ("connection", "uplink"), ("state", "closed")] == 0
    assert found["longconn_connection_untaken_bytes", ("connection", "uplink")] >= 1000
    assert 0 < found["longconn_connection_round_trip_seconds", ("connection", "uplink")] < PATIENCE
    assert found["longconn_connection_io_bytes_total", ("connection", "uplink"), ("direction", "sent")] > 1000
    assert found["longconn_connection_limit_seconds", ("connection", "uplink")] == pytest.approx(1.25, abs=0.5)
    for _, message in server.messages():
        assert len(message) == 1000
        break


def test_opentelemetry_reads_the_same(server, client):
    reader = InMemoryMetricReader()
    metrics = Metrics(gateway=server)
    metrics.add("uplink", client)
    metrics.instrument(MeterProvider([reader]))
    found = {
        (metric.name, *sorted(point.attributes.items())): (point.value, metric.unit)
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    assert found["longconn.server.connections", ("server", "gateway"), ("state", "open")] == (1, "{connection}")
    assert found["longconn.connection.silence", ("connection", "uplink")][1] == "s"
    assert found["longconn.links.ended", ("cause", "unreachable")][0] >= 0


def test_what_has_ended_is_counted_by_its_cause(server):
    before = ended("closed"), ended("ended"), ended("refused")
    with longconn.connect(server.address, reconnect=False):
        pass
    wait_until(lambda: ended("closed") >= before[0] + 2, "both ends have counted it")
    program = "import longconn, os, sys; conn = longconn.connect(sys.argv[1]); os._exit(0)"
    subprocess.run([sys.executable, "-c", program, "{}:{}".format(*server.address)], check=True, timeout=PATIENCE)
    wait_until(lambda: ended("ended") + ended("reset") > before[1], "the server has counted who was killed")
    # an attempt that came to nothing is no link that has ended
    assert ended("refused") == before[2]


def test_they_keep_nothing_alive_and_leave_out_what_is_gone(server):
    metrics = Metrics(gateway=server)
    client = longconn.connect(server.address)
    metrics.add("uplink", client)
    client.close()
    assert ("longconn_connection_state", ("connection", "uplink"), ("state", "closed")) in scraped(metrics)
    del client
    gc.collect()
    assert not any(("connection", "uplink") in key for key in scraped(metrics))
    metrics.remove("gateway")
    metrics.remove("gateway")
    assert not any(("server", "gateway") in key for key in scraped(metrics))


def test_what_is_neither_is_refused():
    with pytest.raises(TypeError, match="uplink: a LongServer or a LongConnection, not str"):
        Metrics(uplink="10.0.0.7")


def test_names_are_as_both_conventions_have_them(server, client):
    for name, *_ in scraped(Metrics(gateway=server, uplink=client)):
        assert re.fullmatch(r"longconn(_[a-z]+)+", name)
    provider = MeterProvider([InMemoryMetricReader()])
    Metrics(gateway=server).instrument(provider)  # which refuses names and units that aren't


def test_the_dashboard_asks_for_what_is_there(server, client):
    dashboard = json.loads((Path(longconn.__file__).parent / "dashboard.json").read_text())
    client.ping(timeout=PATIENCE)
    wait_until(lambda: client.stats().peer_interpreter_age_seconds is not None, "a beat of the server's")
    there = {name for name, *_ in scraped(Metrics(gateway=server, uplink=client))}
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"longconn_\w+", target["expr"])
    }
    assert asked
    assert asked <= there


@pytest.mark.parametrize(("package", "call"), [("prometheus_client", "register"), ("opentelemetry", "instrument")])
def test_without_the_extra_it_says_what_to_install(tmp_path, package, call):
    (tmp_path / f"{package}.py").write_text(f'raise ImportError("No module named {package}")\n')
    program = f"from longconn.metrics import Metrics\nMetrics().{call}()"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stderr.splitlines()[-1].endswith(": pip install 'longconn[metrics]'")
