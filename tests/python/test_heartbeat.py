"""Heartbeat: a value that says what it means, and refuses what can't be."""

from __future__ import annotations

import copy
import datetime
import pickle

import pytest
from longconn import Heartbeat


def test_it_is_a_value():
    beat = Heartbeat(1.0, limit=3)
    assert beat == Heartbeat(interval=datetime.timedelta(seconds=1), limit=3.0)
    assert hash(beat) == hash(Heartbeat(1, 3))
    assert beat != Heartbeat(1.0)
    assert beat != "Heartbeat"
    assert pickle.loads(pickle.dumps(beat)) == copy.copy(beat) == beat
    assert beat.replace(limit=None) == Heartbeat(1.0)
    assert repr(beat) == "Heartbeat(interval=1, limit=3.0)"
    assert eval(repr(Heartbeat(2, detector="phi", threshold=12))) == Heartbeat(2, detector="phi", threshold=12)
    for change in (lambda: setattr(beat, "interval", 2), lambda: delattr(beat, "limit"), lambda: setattr(beat, "x", 1)):
        with pytest.raises(AttributeError, match="change"):
            change()


@pytest.mark.parametrize("name", ["interval", "limit", "floor", "min_std", "application_limit", "interpreter_limit"])
@pytest.mark.parametrize("value", [0, -1, 86401, float("nan"), float("inf"), 10**400])
def test_durations_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        Heartbeat(**{name: value})


@pytest.mark.parametrize("name", ["interval", "limit", "floor", "min_std", "acceptable_pause", "threshold", "window"])
@pytest.mark.parametrize("value", ["1", b"1", True, [], object()])
def test_what_is_no_number_is_named(name, value):
    with pytest.raises(TypeError, match=name):
        Heartbeat(**{name: value})


@pytest.mark.parametrize(
    "arguments",
    [
        {"interval": 2, "limit": 1},
        {"detector": "psi"},
        {"detector": None},
        {"threshold": 0},
        {"threshold": 101},
        {"threshold": float("nan")},
        {"window": 1},
        {"window": 100_001},
        {"acceptable_pause": -0.1},
    ],
)
def test_what_contradicts_is_refused(arguments):
    with pytest.raises(ValueError, match="=" if "limit" not in arguments else "below"):
        Heartbeat(**arguments)


@pytest.mark.parametrize(
    ("beat", "seconds"),
    [
        (Heartbeat(), 12.5),
        (Heartbeat(0.1), 1.1),
        (Heartbeat(0.01, floor=1.0), 2.5),
        (Heartbeat(1, limit=7), 7.0),
        (Heartbeat.quick(), 1.25),
        (Heartbeat.patient(), 60.0),
        (Heartbeat(detector="phi"), None),
    ],
)
def test_it_tells_how_soon_it_notices(beat, seconds):
    assert beat.detection_time() == seconds


@pytest.mark.parametrize("beat", [Heartbeat(), Heartbeat.quick(), Heartbeat.patient(), Heartbeat(detector="phi")])
def test_presets_have_nothing_to_warn_of(beat):
    assert beat.warnings() == ()


@pytest.mark.parametrize(
    ("beat", "word"),
    [
        (Heartbeat(0.01), "floor"),
        (Heartbeat(1.0, limit=1.5), "refused"),
        (Heartbeat(0.1, limit=0.3), "lost packet"),
        (Heartbeat(detector="phi", limit=20), "phi"),
        (Heartbeat(120), "middleboxes"),
        (Heartbeat(5, application_limit=2), "application_limit"),
    ],
)
def test_it_warns_of_what_does_not_do_what_it_seems_to(beat, word):
    (said,) = beat.warnings()
    assert word in said
