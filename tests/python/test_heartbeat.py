"""Heartbeat and Adaptive: values that say what they mean, and refuse what can't be."""

from __future__ import annotations

import copy
import datetime
import pickle

import pytest
from longconn import Adaptive, Heartbeat


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
        {"interval": Adaptive(30, 600), "detector": "phi"},
        {"interval": Adaptive(30, 600), "limit": 1199},
        {"interval": Adaptive(0.04, 600)},
    ],
)
def test_what_contradicts_is_refused(arguments):
    with pytest.raises(ValueError, match="=" if "limit" not in arguments else "below|under twice"):
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
        (Heartbeat(Adaptive(30, 600)), 645.0),
        (Heartbeat(Adaptive(0.1, 600)), 601.0),
        (Heartbeat(Adaptive(30, 600), limit=1200), 1200.0),
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
        (Heartbeat(Adaptive(30, 600), application_limit=1000), "application_limit"),
    ],
)
def test_it_warns_of_what_does_not_do_what_it_seems_to(beat, word):
    (said,) = beat.warnings()
    assert word in said


def test_an_adaptive_interval_is_a_value(tmp_path):
    adaptive = Adaptive(30, 600.0, remember=tmp_path)
    assert adaptive == Adaptive(min=datetime.timedelta(seconds=30), max=600, step=1.25, remember=tmp_path)
    assert hash(adaptive) == hash(Adaptive(30, 600, remember=tmp_path))
    assert adaptive != Adaptive(30, 600)
    assert adaptive != 30
    assert pickle.loads(pickle.dumps(adaptive)) == copy.copy(adaptive) == adaptive
    assert repr(Adaptive(30, 600)) == "Adaptive(min=30, max=600)"
    for value in (Adaptive(0.5, 7.25, 2, "x"), Adaptive(30, 600, remember=True)):
        assert eval(repr(value)) == value
    beat = Heartbeat(Adaptive(30, 600))
    assert eval(repr(beat)) == beat
    assert pickle.loads(pickle.dumps(beat)) == beat
    assert (beat.least_interval, Heartbeat(7).least_interval) == (30.0, 7.0)
    assert beat.warnings() == ()
    for change in (lambda: setattr(adaptive, "min", 2), lambda: delattr(adaptive, "max")):
        with pytest.raises(AttributeError, match="change"):
            change()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((0, 10), "min"),
        ((1, 86401), "max"),
        ((10, 10), "below"),
        ((11, 10), "below"),
        ((1, float("nan")), "max"),
        ((1, 10, 1.0), "step"),
        ((1, 10, 4.5), "step"),
        ((1, 10, float("nan")), "step"),
    ],
)
def test_an_adaptive_interval_that_can_t_be_is_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        Adaptive(*arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("1", 10), "min"),
        ((1, None), "max"),
        ((1, 10, "2"), "step"),
        ((1, 10, True), "step"),
        ((1, 10, 2, 3), "remember"),
    ],
)
def test_what_is_no_adaptive_interval_is_named(arguments, complaint):
    with pytest.raises(TypeError, match=complaint):
        Adaptive(*arguments)
