"""Adaptive intervals: what a program sees of them, and the file in which what was learnt is kept."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import longconn
import pytest
from longconn import Adaptive, Heartbeat
from longconn.remembering import Memory, default_path

SLACK = float(os.environ.get("LONGCONN_TEST_SLACK", "1"))
PEER = [("device-7.example", 9000)]


def memory(path: Path, peer: str = "device-7.example:9000") -> Memory:
    return Memory(str(path), peer)


def wait_until(condition, seconds: float = 60.0):
    deadline = time.monotonic() + seconds * SLACK
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


# ---- on a connection


def test_the_interval_grows_to_max_on_a_path_that_bears_it_and_the_next_connection_knows(tmp_path, fake_clock):
    kept = tmp_path / "not there yet" / "intervals.json"
    adaptive = Adaptive(30, 1800, step=2, remember=kept)
    with longconn.LongServer(("127.0.0.1", 0), heartbeat=Heartbeat(3600)) as server:
        with longconn.connect(server.address, heartbeat=Heartbeat(adaptive)) as conn:
            first = conn.stats()
            assert (first.send_interval_seconds, first.hear_interval_seconds) == (30, 30)
            assert (first.proven_interval_seconds, first.settled_seconds_ago) == (30, None)
            fake_clock.advance(12 * 3600)
            stats = conn.stats()
            assert stats.settled_seconds_ago is not None
            assert stats.proven_interval_seconds == stats.send_interval_seconds == stats.hear_interval_seconds == 1800
            # What is allowed beyond the interval is what the least one had.
            assert 1800 + 45 <= stats.limit_seconds <= 1800 + 45 + 1.0
            there = server.accept(timeout=10)
            assert (there.stats().send_interval_seconds, there.stats().proven_interval_seconds) == (1800, None)
            wait_until(lambda: kept.exists() and json.loads(kept.read_text())["networks"][0]["settled"])
        (entry,) = json.loads(kept.read_text())["networks"]
        host, port = server.address
        assert (entry["peer"], entry["network"], entry["interval"]) == (f"{host}:{port}", "127.0.0.0", 1800)
        with longconn.connect(server.address, heartbeat=Heartbeat(adaptive)) as conn:
            assert conn.stats().send_interval_seconds == 30
            assert conn.stats().proven_interval_seconds == 1800
            assert conn.stats().settled_seconds_ago >= 0
            fake_clock.advance(600)
            assert conn.stats().send_interval_seconds == 1800


def test_a_server_s_own_wish_is_heeded_and_an_adaptive_server_is_careful_with_all_others():
    adaptive = Heartbeat(Adaptive(0.1, 5.0, step=2))
    with longconn.LongServer(("127.0.0.1", 0), heartbeat=Heartbeat(0.15)) as server:
        with longconn.connect(server.address, heartbeat=adaptive) as conn:
            wait_until(lambda: conn.stats().send_interval_seconds == 0.15)
            wait_until(lambda: conn.stats().beats_heard > 20)
            assert conn.stats().send_interval_seconds == 0.15
    with longconn.LongServer(("127.0.0.1", 0), heartbeat=adaptive) as server:
        with longconn.connect(server.address, heartbeat=Heartbeat(60)) as conn:
            assert conn.stats().send_interval_seconds == 0.1
            assert conn.stats().proven_interval_seconds is None
        with longconn.connect(server.address, heartbeat=adaptive) as conn:
            wait_until(lambda: conn.stats().send_interval_seconds > 0.3)


# ---- the file


def test_it_is_where_the_program_says_or_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == str(tmp_path / "longconn" / "intervals.json")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_path() == str(tmp_path / "home" / ".cache" / "longconn" / "intervals.json")
    path = tmp_path / "x.json"
    for remember, expected in ((path, path), (str(path), path), (lambda: path, path), (True, Path(default_path()))):
        assert Adaptive(1, 10, remember=remember).memory(PEER).path == str(expected)
    assert Adaptive(1, 10).memory(PEER) is None
    with pytest.raises(TypeError, match="path"):
        Adaptive(1, 10, remember=lambda: 7).memory(PEER)


def test_what_is_saved_is_loaded_by_its_peer_only_and_grows_older(tmp_path, monkeypatch):
    kept = memory(tmp_path / "x.json")
    assert kept.load() == []
    learnt = [("10.0.0.0", 97.25, None, 1), ("2001:db8::", 600.0, 3600.0, 0)]
    kept.save(learnt)
    (first, second) = kept.load()
    assert first == learnt[0]
    assert (second[0], second[1], second[3]) == ("2001:db8::", 600.0, 0)
    assert second[2] == pytest.approx(3600, abs=60 * SLACK)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86400)
    assert kept.load()[1][2] == pytest.approx(90000, abs=60 * SLACK)
    # A clock that was set back makes nothing younger than it can be.
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    assert kept.load()[1][2] == 0.0
    assert memory(tmp_path / "x.json", "other.example:9000").load() == []
    # Another peer's stay, and of one's own only those that were learnt anew are replaced.
    memory(tmp_path / "x.json", "other.example:9000").save([("10.0.0.0", 5.0, None, 0)])
    kept.save([("10.0.0.0", 120.0, None, 0)])
    assert [entry[:2] for entry in kept.load()] == [("2001:db8::", 600.0), ("10.0.0.0", 120.0)]
    assert [entry[:2] for entry in memory(tmp_path / "x.json", "other.example:9000").load()] == [("10.0.0.0", 5.0)]


def test_the_file_is_bounded_and_the_oldest_go(tmp_path):
    kept = memory(tmp_path / "x.json")
    for number in range(120):
        kept.save([(f"10.0.{number}.0", 30.0, None, 0)])
    networks = [entry[0] for entry in kept.load()]
    assert networks == [f"10.0.{number}.0" for number in range(20, 120)]


SOUND = {"peer": "device-7.example:9000", "network": "10.0.0.0", "interval": 97.0, "settled": None, "failures": 0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1}',
        '{"version": 1, "networks": {}}',
        '{"version": 2, "networks": [' + json.dumps(SOUND) + "]}",
        "[" * 100_000,
        "\x00" * 5000,
        '{"version": 1, "networks": [' + json.dumps(SOUND) + "]}" + " " * (2 << 20) + "x",
    ],
    ids=lambda text: text[:20] or "empty",
)
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    kept = memory(path)
    loaded = kept.load()
    assert loaded in ([], [("10.0.0.0", 97.0, None, 0)])
    kept.save([("10.0.9.0", 30.0, None, 0)])
    assert kept.load()[-1] == ("10.0.9.0", 30.0, None, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"peer": 7},
        {"network": "nowhere"},
        {"network": 7},
        {"network": None},
        {"network": "fe80::%eth0"},
        {"interval": "97"},
        {"interval": float("nan")},
        {"interval": -1},
        {"interval": True},
        {"settled": "yesterday"},
        {"settled": float("inf")},
        {"failures": -1},
        {"failures": 1.5},
        {"failures": 10**30},
    ],
    ids=str,
)
def test_entries_without_sense_are_skipped_and_the_others_kept(tmp_path, change):
    path = tmp_path / "x.json"
    good = {**SOUND, "network": "10.0.1.0"}
    missing = {name: value for name, value in SOUND.items() if name not in change}
    path.write_text(json.dumps({"version": 1, "networks": [{**SOUND, **change}, missing, 7, good]}))
    assert memory(path).load() == [("10.0.1.0", 97.0, None, 0)]
    # And what a program would be given is taken.
    with longconn.LongServer(("127.0.0.1", 0)) as server:
        peer = f"{server.address[0]}:{server.address[1]}"
        path.write_text(
            json.dumps({"version": 1, "networks": [{**SOUND, **change, "peer": peer}, {**good, "peer": peer}]})
        )
        with longconn.connect(server.address, heartbeat=Heartbeat(Adaptive(1, 10, remember=path))) as conn:
            assert conn.stats().send_interval_seconds == 1.0


def test_a_file_that_can_t_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    kept = memory(path)
    kept.save([("10.0.0.0", 97.0, None, 0)])
    before = path.read_text()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="space"):
        kept.save([("10.0.0.0", 120.0, None, 0)])
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["x.json"]
