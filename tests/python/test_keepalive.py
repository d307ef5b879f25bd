"""Keepalive as a value: what it takes, what it refuses and how, and what it tells of itself."""

from __future__ import annotations

import copy
import math
import pickle
import socket
from datetime import timedelta
from fractions import Fraction
from typing import Any

import longconn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longconn import Applied, DetectionTime, Keepalive, KeepaliveSocket, _longconn
from longconn.keepalive import has_rto_max
from peers import OPTIONS, STDLIB, connected, environment, listening, options, python, python_says, timings

# ---- values


def test_the_defaults_are_those_of_the_documentation():
    settings = Keepalive()
    assert (settings.idle, settings.interval, settings.count) == (15, 5, 3)
    assert (settings.user_timeout, settings.guard, settings.probes) == (None, True, True)
    assert settings.guard_limit == 30.0


@pytest.mark.parametrize("seconds", [7, 7.0, timedelta(seconds=7), timedelta(milliseconds=7000)])
@pytest.mark.parametrize("name", ["idle", "interval"])
def test_whole_seconds_may_be_int_float_or_timedelta(name, seconds):
    value = getattr(Keepalive(**{name: seconds}), name)
    assert value == 7
    assert isinstance(value, int)


def test_a_user_timeout_and_a_guard_may_have_fractions_and_be_timedeltas():
    settings = Keepalive(user_timeout=timedelta(milliseconds=1500), guard=timedelta(milliseconds=2500))
    assert (settings.user_timeout, settings.guard, settings.guard_limit) == (1.5, 2.5, 2.5)


@pytest.mark.parametrize("name", Keepalive.__match_args__)
def test_it_can_not_be_changed(name):
    settings = Keepalive()
    with pytest.raises((AttributeError, TypeError)):
        setattr(settings, name, 1)
    with pytest.raises((AttributeError, TypeError)):
        delattr(settings, name)
    with pytest.raises((AttributeError, TypeError)):
        settings.other = 1  # type: ignore[attr-defined]


def test_equal_settings_are_equal_and_hash_alike():
    assert Keepalive(60, 10, 6) == Keepalive(60.0, timedelta(seconds=10), 6)
    assert hash(Keepalive(60, 10, 6)) == hash(Keepalive(60.0, 10.0, 6))
    assert Keepalive(60, 10, 6) != Keepalive(60, 10, 5)
    assert Keepalive() != (15, 5, 3, None, True, True)
    assert len({Keepalive(), Keepalive(), Keepalive(guard=False)}) == 2


def test_a_guard_of_one_second_is_not_a_guard_of_the_default_limit():
    """Though 1 equals True."""
    assert Keepalive(guard=1.0).guard_limit == 1.0
    assert Keepalive(guard=True).guard_limit == 30.0
    assert repr(Keepalive(guard=1.0)) != repr(Keepalive(guard=True))
    assert Keepalive(guard=1) != Keepalive(guard=True)


def test_it_can_be_copied_pickled_and_varied():
    settings = Keepalive(60, 10, 6, 90.5, 12.5, False)
    for twin in (copy.copy(settings), copy.deepcopy(settings), pickle.loads(pickle.dumps(settings))):
        assert twin == settings
    assert settings.replace(idle=5) == Keepalive(5, 10, 6, 90.5, 12.5, False)


@pytest.mark.parametrize(
    "settings",
    [
        Keepalive(),
        Keepalive(60, 10, 6),
        Keepalive(1, 1, 1, 0.5),
        Keepalive(guard=False),
        Keepalive(guard=1.0),
        Keepalive(guard=2.5, probes=False),
    ],
)
def test_its_repr_can_be_evaluated(settings):
    assert eval(repr(settings), {"Keepalive": Keepalive}) == settings
    assert repr(eval(repr(settings), {"Keepalive": Keepalive})) == repr(settings)


def test_its_parameters_are_the_documented_ones_in_their_order():
    assert Keepalive(60, 10, 6, 90, 30) == Keepalive(idle=60, interval=10, count=6, user_timeout=90, guard=30)


# ---- refusals


def name_of(value: object) -> str:
    return "huge" if value == HUGE else repr(value)


#: No float holds it.
HUGE = 10**400
OUT_OF_RANGE = [0.2, 0, 0.0, -1, -0.5, 1.5, math.nan, math.inf, -math.inf, 1e9, 32768, timedelta(seconds=0.5), HUGE]


@pytest.mark.parametrize("value", OUT_OF_RANGE, ids=name_of)
@pytest.mark.parametrize("name", ["idle", "interval"])
def test_seconds_out_of_range_are_refused_by_name_range_and_platform(name, value):
    with pytest.raises(ValueError, match=name) as caught:
        Keepalive(**{name: value})
    for part in ("1", "32767", "Linux"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 128, 200, 10**9])
def test_counts_out_of_range_are_refused_by_name_range_and_platform(value):
    with pytest.raises(ValueError, match="count") as caught:
        Keepalive(count=value)
    for part in (str(value), "1", "127", "Linux"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 0.0005, math.nan, math.inf, 1e9, timedelta(0)], ids=repr)
def test_a_user_timeout_out_of_range_is_refused_by_name_range_and_platform(value):
    with pytest.raises(ValueError, match="user_timeout") as caught:
        Keepalive(user_timeout=value)
    for part in ("0.001", "Linux"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [0, 0.4, -1, math.nan, math.inf, 1e9, timedelta(0), HUGE], ids=name_of)
def test_a_guard_out_of_range_is_refused_by_name_and_range(value):
    with pytest.raises(ValueError, match="guard") as caught:
        Keepalive(guard=value)
    for part in ("0.5", "604800"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [True, False, "5", None, b"5", [5], 5j, Fraction(5)], ids=repr)
@pytest.mark.parametrize("name", ["idle", "interval", "count"])
def test_what_is_no_number_of_seconds_is_a_type_error_that_names_it(name, value):
    with pytest.raises(TypeError) as caught:
        Keepalive(**{name: value})
    assert name in str(caught.value)
    assert type(value).__name__ in str(caught.value)


@pytest.mark.parametrize("value", [3.0, timedelta(seconds=3)])
def test_a_count_is_a_whole_number(value):
    with pytest.raises(TypeError):
        Keepalive(count=value)


@pytest.mark.parametrize("name", ["user_timeout", "guard"])
@pytest.mark.parametrize("value", ["5", b"5", [5], 5j])
def test_other_types_are_refused_elsewhere_too(name, value):
    with pytest.raises(TypeError) as caught:
        Keepalive(**{name: value})
    assert name in str(caught.value)


def test_a_user_timeout_is_no_bool():
    with pytest.raises(TypeError):
        Keepalive(user_timeout=True)


@pytest.mark.parametrize("value", [None, "no", 3.5])
def test_probes_is_a_bool(value):
    with pytest.raises(TypeError):
        Keepalive(probes=value)


@pytest.mark.parametrize(
    ("name", "value"), [("idle", 1), ("idle", 32767), ("interval", 32767), ("count", 127), ("count", 1)]
)
def test_the_ends_of_the_ranges_are_taken_by_the_kernel_too(name, value):
    settings = Keepalive(**{name: value})
    with connected(STDLIB) as (ours, _):
        settings.apply(ours)
        option = {"idle": "TCP_KEEPIDLE", "interval": "TCP_KEEPINTVL", "count": "TCP_KEEPCNT"}[name]
        assert options(ours)[option] == value


@given(idle=st.integers(1, 32767), interval=st.integers(1, 32767), count=st.integers(1, 127))
def test_what_is_in_range_makes_sense_of_itself(idle, interval, count):
    settings = Keepalive(idle, interval, count)
    assert settings.guard_limit == idle + interval * count
    assert Keepalive.parse(f"{idle},{interval},{count}") == settings
    times = settings.detection_time()
    assert all(time is not None and time > 0 for time in times)


# ---- presets


def test_presets_are_what_their_documentation_says():
    assert Keepalive.quick().detection_time().idle == pytest.approx(5.1, abs=0.2)
    assert 100 <= Keepalive.patient().detection_time().idle <= 130
    assert Keepalive.quick().warnings() == () if has_rto_max() else True
    assert Keepalive.patient().warnings() == () if has_rto_max() else True


@pytest.mark.parametrize("seconds", [4, 5, 30, 60, 240, 350, 350.0, timedelta(minutes=5), 65534])
def test_a_probe_goes_out_in_time_for_the_middlebox_and_two_more_fit_in(seconds):
    settings = Keepalive.nat(seconds)
    forgets_after = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    assert settings.idle + 2 * settings.interval <= forgets_after


@pytest.mark.parametrize("seconds", [0, 3, -1, math.nan, math.inf, 65536, 1e9])
def test_a_middlebox_that_can_not_be_served_is_refused(seconds):
    with pytest.raises(ValueError, match="forgets_after"):
        Keepalive.nat(seconds)


@pytest.mark.parametrize("seconds", ["350", None, True])
def test_a_middlebox_forgets_after_seconds(seconds):
    with pytest.raises(TypeError, match="forgets_after"):
        Keepalive.nat(seconds)


# ---- text


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("60,10,6", Keepalive(60, 10, 6)),
        (" 60 , 10 , 6 ", Keepalive(60, 10, 6)),
        ("60.0,10,6", Keepalive(60, 10, 6)),
        ("60,10,6,30", Keepalive(60, 10, 6, guard=30)),
        ("60,10,6,2.5", Keepalive(60, 10, 6, guard=2.5)),
        ("60,10,6,off", Keepalive(60, 10, 6, guard=False)),
        ("60,10,6,OFF", Keepalive(60, 10, 6, guard=False)),
        ("60,10,6,1", Keepalive(60, 10, 6, guard=1.0)),
        ("off", None),
        (" Off ", None),
    ],
)
def test_settings_can_be_written_as_text(text, settings):
    parsed = Keepalive.parse(text)
    assert parsed == settings
    assert repr(parsed) == repr(settings)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "60",
        "60,10",
        "60,10,6,30,1",
        "a,b,c",
        "60,10,6.5",
        "60,10,",
        ",,",
        "nan,1,1",
        "0,1,1",
        "60,10,200",
        *("1,1,1,0", "1,1,1,nan", "1,1,1,on", "60;10;6", "1e9,1,1", "inf,1,1", "0.2,1,1", "-1,1,1"),
    ],
)
def test_other_text_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"expected|takes|a limit from"):
        Keepalive.parse(text)


# ---- the process's default


def test_sockets_get_the_default_that_is_set(default):
    longconn.set_default_keepalive(Keepalive(60, 10, 6))
    assert longconn.default_keepalive() == Keepalive(60, 10, 6)
    with KeepaliveSocket() as sock:
        assert sock.keepalive == Keepalive(60, 10, 6)
        longconn.set_default_keepalive(Keepalive(30, 10, 6))
        assert sock.keepalive == Keepalive(60, 10, 6), "made before"


@pytest.mark.parametrize("value", [False])
def test_the_default_can_be_off(default, value):
    longconn.set_default_keepalive(value)
    assert longconn.default_keepalive() is None
    with connected() as (ours, _):
        assert ours.keepalive is None
        assert options(ours)["SO_KEEPALIVE"] == 0
    with connected(keepalive=Keepalive(60, 10, 6)) as (ours, _):
        assert ours.keepalive == Keepalive(60, 10, 6)


@pytest.mark.parametrize("value", [None, True])
def test_the_default_goes_back_to_what_it_was_at_first(default, value):
    longconn.set_default_keepalive(Keepalive(60, 10, 6))
    longconn.set_default_keepalive(value)
    assert longconn.default_keepalive() == Keepalive()


@pytest.mark.parametrize("value", [5, "60,10,6", (60, 10, 6), 0, 1])
def test_the_default_is_a_keepalive(value):
    with pytest.raises(TypeError):
        longconn.set_default_keepalive(value)


SHOW = "import longconn; print(repr(longconn.default_keepalive())); print(longconn.KeepaliveSocket.__name__)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("60,10,6", repr(Keepalive(60, 10, 6))),
        ("60,10,6,2.5", repr(Keepalive(60, 10, 6, guard=2.5))),
        ("60,10,6,off", repr(Keepalive(60, 10, 6, guard=False))),
        ("off", "None"),
        ("", repr(Keepalive())),
        (" ", repr(Keepalive())),
    ],
)
def test_the_environment_sets_the_default(text, shown):
    assert python_says(SHOW, env=environment(LONGCONN_KEEPALIVE=text)).splitlines()[0] == shown


@pytest.mark.parametrize("text", ["nonsense", "60,10,200", ","])
def test_nonsense_in_the_environment_is_an_error_that_names_the_variable(text):
    done = python("-c", SHOW, env=environment(LONGCONN_KEEPALIVE=text))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: ")
    assert "LONGCONN_KEEPALIVE" in last


# ---- how long things take


def test_times_are_named_and_have_an_order():
    assert DetectionTime._fields == ("idle", "in_flight", "slow_reader", "connecting")
    assert isinstance(Keepalive().detection_time(), DetectionTime)


def test_the_bounds_of_the_measured_settings_hold_what_was_asked_for():
    """Keepalive(1, 1, 3, guard=3.0): idle within 4.3 s, in flight limit + 0.5 s, slow reader limit + 1.5 s."""
    times = Keepalive(1, 1, 3, guard=3.0).detection_time()
    assert times.idle is not None
    assert 4.0 <= times.idle <= 4.3
    assert times.in_flight is not None
    assert 3.0 <= times.in_flight <= 3.5
    assert times.slow_reader is not None
    if has_rto_max():
        assert 3.0 <= times.slow_reader <= 4.5
    else:
        assert times.slow_reader > 100


def test_without_a_guard_data_in_flight_hide_a_dead_path_for_a_quarter_of_an_hour():
    times = Keepalive(1, 1, 3, guard=False).detection_time()
    assert times.idle == pytest.approx(4.1, abs=0.2)
    assert times.in_flight > 600
    assert times.slow_reader > 600


def test_without_probes_an_idle_path_is_never_seen():
    assert Keepalive(probes=False).detection_time().idle is None
    assert Keepalive(probes=False, user_timeout=10).detection_time().idle is None


def test_a_user_timeout_replaces_the_count():
    assert Keepalive(1, 1, 3, user_timeout=10, guard=False).detection_time().idle == pytest.approx(10.2, abs=0.5)
    assert Keepalive(1, 1, 3, user_timeout=1.5, guard=False).detection_time().idle == pytest.approx(2.04, abs=0.5)
    assert Keepalive(guard=False, user_timeout=3).detection_time().in_flight == pytest.approx(3.42, abs=0.2)


def test_more_patience_never_shortens_a_time():
    previous = Keepalive(1, 1, 3).detection_time()
    for settings in (Keepalive(2, 1, 3), Keepalive(2, 2, 3), Keepalive(2, 2, 4), Keepalive(30, 10, 6)):
        times = settings.detection_time()
        assert all(one <= other for one, other in zip(previous, times, strict=True))
        previous = times


# ---- what settings don't do


def test_good_settings_have_nothing_to_warn_of():
    if has_rto_max():
        assert Keepalive().warnings() == ()
    assert isinstance(Keepalive().warnings(), tuple)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Keepalive(guard=False), ("in flight", "guard")),
        (Keepalive(user_timeout=30), ("slowly", "user_timeout")),
        (Keepalive(1, 1, 3, user_timeout=10), ("count", "= 4")),
        (Keepalive(user_timeout=30, probes=False), ("user_timeout", "idle connection")),
        (Keepalive(probes=False), ("no probes", "never")),
        (Keepalive(10, 10, 3, guard=5), ("limit", "interval")),
        (Keepalive(10, 10, 1), ("count=1",)),
        (Keepalive(600, 10, 3), ("idle=600", "Keepalive.nat")),
    ],
    ids=[
        "no guard",
        "slow readers",
        "replaces count",
        "user timeout alone",
        "no probes",
        "short limit",
        "count 1",
        "NAT",
    ],
)
def test_each_trap_has_its_warning(settings, words):
    assert any(all(word in warning for word in words) for warning in settings.warnings()), settings.warnings()


def test_the_consistent_user_timeout_is_not_called_inconsistent():
    assert not any("replaces" in warning for warning in Keepalive(1, 1, 3, user_timeout=4).warnings())


def test_a_kernel_without_the_option_is_warned_of(monkeypatch):
    monkeypatch.setattr("longconn.keepalive.has_rto_max", lambda: False)
    assert any("TCP_RTO_MAX_MS" in warning for warning in Keepalive().warnings())
    assert Keepalive().detection_time().slow_reader > 100
    assert Keepalive(guard=False).warnings() != ()


# ---- in the forms that others take


def test_socket_options_are_what_the_kernel_takes():
    settings = Keepalive(60, 10, 6, user_timeout=90.5)
    with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as sock:
        for option in settings.socket_options:
            assert all(type(part) is int for part in option)
            sock.setsockopt(*option)
        assert timings(sock) == (1, 60, 10, 6)
        assert options(sock)["TCP_USER_TIMEOUT"] == 90_500
    assert Keepalive(probes=False).socket_options == [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)]


def test_socket_options_can_be_added_to_urllib3s_own():
    """HTTPConnection.default_socket_options + ours."""
    default = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    assert (default + Keepalive().socket_options)[0] == default[0]


def test_redis_takes_the_keyword_arguments():
    redis = pytest.importorskip("redis")
    settings = Keepalive(60, 10, 6)
    with listening() as listener:
        host, port = listener.getsockname()
        connection = redis.connection.Connection(host=host, port=port, **settings.redis_kwargs())
        sock = connection._connect()
        try:
            assert timings(sock) == (1, 60, 10, 6)
        finally:
            sock.close()
    redis.Redis(**settings.redis_kwargs()).close()


def test_libpq_is_told_in_its_own_words_and_units():
    assert Keepalive(60, 10, 6).libpq_kwargs() == {
        "keepalives": 1,
        "keepalives_idle": 60,
        "keepalives_interval": 10,
        "keepalives_count": 6,
    }
    assert Keepalive(60, 10, 6, user_timeout=1.5).libpq_kwargs()["tcp_user_timeout"] == 1500
    assert Keepalive(probes=False).libpq_kwargs()["keepalives"] == 0
    assert all(type(value) is int for value in Keepalive(60, 10, 6, 1.5).libpq_kwargs().values())


# ---- apply


def test_it_can_be_applied_to_a_stdlib_socket_before_it_connects():
    with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as sock:
        done = Keepalive(60, 10, 6, guard=False).apply(sock)
        assert timings(sock) == (1, 60, 10, 6)
        assert isinstance(done, Applied)
        assert done.applied == {"SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
        assert done.emulated == done.refused == {}


def test_applied_to_a_connected_socket_it_guards_too():
    with connected(STDLIB) as (ours, _):
        done = Keepalive(60, 10, 6, user_timeout=90, guard=2.5).apply(ours)
        assert options(ours)["TCP_USER_TIMEOUT"] == 90_000
        assert done.applied["TCP_USER_TIMEOUT"] == 90
        assert done.emulated == {"guard": 2.5}
        assert done.refused == {}


def test_applied_to_an_unconnected_socket_it_says_that_there_is_no_guard():
    with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as sock:
        done = Keepalive().apply(sock)
        assert "connected" in done.refused["guard"]
        assert done.emulated == {}


def test_it_can_be_applied_to_a_descriptor_by_number():
    with connected(STDLIB) as (ours, _):
        Keepalive(60, 10, 6).apply(ours.fileno())
        assert timings(ours) == (1, 60, 10, 6)


def test_applied_to_a_keepalive_socket_it_becomes_its_own():
    with connected(keepalive=False) as (ours, _):
        done = Keepalive(60, 10, 6).apply(ours)
        assert ours.keepalive == Keepalive(60, 10, 6)
        assert timings(ours) == (1, 60, 10, 6)
        assert done.emulated == {"guard": 120.0}


@pytest.mark.parametrize("cls", [STDLIB, KeepaliveSocket])
def test_where_there_is_no_guard_it_is_refused_by_name(cls, monkeypatch):
    """It was told of as done on a KeepaliveSocket, and raised on any other."""
    with connected(cls) as (ours, _):
        monkeypatch.setattr(_longconn, "HAS_GUARD", False)
        monkeypatch.setattr(_longconn, "PLATFORM", "Plan 9")
        done = Keepalive(60, 10, 6).apply(ours)
        assert "Plan 9" in done.refused["guard"]
        assert done.emulated == {}
        assert timings(ours) == (1, 60, 10, 6)


def test_applied_without_probes_it_switches_the_kernels_off():
    with connected(STDLIB) as (ours, _):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        before = options(ours)
        Keepalive(60, 10, 6, probes=False).apply(ours)
        assert options(ours) == {**before, "SO_KEEPALIVE": 0}


NOT_TCP = {
    "UDP": (socket.AF_INET, socket.SOCK_DGRAM),
    "UDP6": (socket.AF_INET6, socket.SOCK_DGRAM),
    "Unix": (socket.AF_UNIX, socket.SOCK_STREAM),
    "Unix datagrams": (socket.AF_UNIX, socket.SOCK_DGRAM),
}


@pytest.mark.parametrize("name", NOT_TCP)
@pytest.mark.parametrize("cls", [STDLIB, KeepaliveSocket])
def test_what_is_not_tcp_is_refused_by_name_and_left_untouched(name, cls):
    try:
        sock = cls(*NOT_TCP[name])
    except OSError as error:
        pytest.skip(f"this machine can't: {error}")
    with sock:
        before = sock.getsockopt(*OPTIONS["SO_KEEPALIVE"])
        with pytest.raises(ValueError, match="TCP") as caught:
            Keepalive().apply(sock)
        assert name.split()[0].removesuffix("6") in str(caught.value)
        assert sock.getsockopt(*OPTIONS["SO_KEEPALIVE"]) == before


def test_a_closed_socket_is_refused():
    for cls in (STDLIB, KeepaliveSocket):
        sock = cls()
        sock.close()
        with pytest.raises(ValueError, match="closed"):
            Keepalive().apply(sock)


@pytest.mark.parametrize("thing", [None, "sock", 1.5, object(), True])
def test_what_is_no_socket_at_all_is_a_type_error(thing):
    with pytest.raises(TypeError):
        Keepalive().apply(thing)


def test_a_number_that_is_not_open_or_no_socket_is_the_systems_error(tmp_path):
    with pytest.raises(OSError, match="Bad file descriptor"):
        Keepalive().apply(10**6)
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match="non-socket"):
        Keepalive().apply(file)


def test_what_the_system_refuses_is_told_by_name(monkeypatch):
    """No Linux refuses one of them, so one is made to."""
    real: Any = longconn._longconn.apply_keepalive

    def refusing(fd: int, **values: Any) -> None:
        if "count" in values:
            raise OSError(92, "Protocol not available")
        real(fd, **values)

    monkeypatch.setattr(longconn._longconn, "apply_keepalive", refusing)
    with STDLIB(socket.AF_INET, socket.SOCK_STREAM) as sock:
        done = Keepalive(60, 10, 6, guard=False).apply(sock)
        assert done.refused == {"TCP_KEEPCNT": "Protocol not available"}
        assert "TCP_KEEPIDLE" in done.applied
