"""How objects show themselves: what the pictures say is what the objects say, and nothing of a peer's gets through."""

from __future__ import annotations

import gc
import html.parser
import re
import threading
import weakref
from itertools import groupby

import longconn
import pytest
from longconn import aio, notebook, pictures, sampling
from longconn.testing import FaultProxy, hold_gil
from peers import PATIENCE, python_says, wait_until

QUICK = longconn.Heartbeat(0.2)
EVIL = "<script>alert('x')</script>\u202e&"


@pytest.fixture
def server():
    with longconn.LongServer(("127.0.0.1", 0), heartbeat=QUICK) as server:
        yield server


@pytest.fixture
def pair(server):
    with longconn.connect(server.address, client_id="device-7", heartbeat=QUICK) as client:
        with server.accept(timeout=PATIENCE) as connection:
            yield client, connection


class Page(html.parser.HTMLParser):
    """What a browser would make of it: which elements there are, and its words."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes += attributes
        if tag != "br":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words += f" {data}"

    def says(self, what: str) -> bool:
        return " ".join(what.split()) in " ".join(self.words.split())


def page(subject) -> Page:
    shown = Page(subject if isinstance(subject, str) else subject._repr_html_())
    assert shown.open == [], "each element is closed"
    # Complete in itself, for light and dark: no sheet of the whole page's, no script, nothing from elsewhere.
    assert shown.elements.isdisjoint({"script", "style", "link", "img", "iframe", "object"})
    assert not [name for name, _ in shown.attributes if name.startswith("on") or name in ("src", "href")]
    assert not re.search(r"(color|fill):\s*(black|white|#000|#fff)", str(shown.attributes))
    return shown


# ---- what they say


def test_a_connection_shows_its_state_and_its_levels(pair):
    client, _ = pair
    wait_until(lambda: client.stats().peer_interpreter_age_seconds is not None, "a beat has come")
    wait_until(lambda: client.stats().round_trip_last_seconds is not None, "an echo has come")
    shown = page(client)
    for what in ("LongConnection device-7", "open", "path alive", "application fine", "round trip", "of 1.1 s"):
        assert shown.says(what), what
    assert shown.says("{}:{} → {}:{}".format(*client.address, *client.peer_address))


def test_a_sparkline_comes_with_the_samples(pair):
    client, _ = pair
    assert "polyline" not in page(client).elements
    wait_until(lambda: "polyline" in page(client).elements, "round trips have been read")


def test_a_connection_that_is_lost_says_why(server):
    with FaultProxy(server) as proxy:
        client = longconn.connect(proxy.address, heartbeat=QUICK, reconnect=False)
        proxy.stall()
        client_is_told(client)
        shown = page(client)
    assert shown.says("closed: frozen")
    assert shown.says("path frozen")
    assert shown.says("interpreter unknown")


def client_is_told(client):
    with pytest.raises(longconn.PeerLost):
        client.recv(timeout=PATIENCE)


def test_a_connection_that_is_made_again_says_so(server):
    with FaultProxy(server) as proxy, longconn.connect(proxy.address, heartbeat=QUICK) as client:
        proxy.pull_cable()
        client.wait_for("reconnecting", timeout=PATIENCE)
        shown = page(client)
        proxy.restore()
        client.wait_for("open", timeout=PATIENCE)
        assert page(client).says("connections of this session 2")
    assert shown.says("path lost; being made again")


def test_a_server_shows_who_is_here_and_how_many_more(server):
    clients = [longconn.connect(server.address, client_id=f"device-{n}", heartbeat=QUICK) for n in range(13)]
    try:
        wait_until(lambda: server.stats().open == 13, "all are here")
        shown = page(server)
        assert shown.says("open 13")
        assert shown.says("and 3 more")
        assert len(re.findall(r"device-\d+", shown.words)) == 10
    finally:
        for client in clients:
            client.close()
    server.close()
    assert page(server).says("closed")


def test_a_plain_connection_has_no_levels_that_nobody_told(server):
    with longconn.LongServer(("127.0.0.1", 0), framing="lines") as plain:
        with longconn.connect(plain.address, framing="lines") as client:
            shown = page(client)
            assert shown.says("path alive")
            assert shown.says("interpreter unknown")
            course = notebook.timeline(client, plain)
            wait_until(lambda: len(sampling.history(client).moments) >= 3, "it is read")
            assert page(course).says("LongConnection")
            assert sampling.history(client).beats("sent") == []
            assert len(course.plot().axes) == 2


def test_a_connection_of_an_event_loop_shows_itself_too():
    import asyncio

    async def show() -> tuple[Page, Page]:
        async with aio.serve(lambda connection: connection.recv(), ("127.0.0.1", 0)) as server:
            async with aio.connect(server.address, client_id="device-7") as client:
                return page(client), page(server)

    client, server = asyncio.run(show())
    assert client.says("LongConnection device-7")
    assert server.says("LongServer")


@pytest.mark.parametrize(
    ("keepalive", "words"),
    [
        (
            longconn.Keepalive(1, 1, 3),
            ["Keepalive(1, 1, 3)", "after 1 s of silence, each 1 s, up to 3", "guard's limit 4 s"],
        ),
        (longconn.Keepalive(probes=False), ["probes off", "idle never", "no probes: with nothing in flight"]),
        (
            longconn.Keepalive(60, 10, 6, guard=False),
            ["guard's limit off", "keepalive is suspended while data is in flight"],
        ),
    ],
)
def test_settings_show_when_a_program_is_told(keepalive, words):
    shown = page(keepalive)
    for what in words:
        assert shown.says(what), what


def test_a_proxy_shows_what_is_wrong_with_it(server):
    with FaultProxy(server) as proxy:
        assert page(proxy).says("passes everything")
        proxy.pull_cable()
        proxy.latency(0.1)
        assert page(proxy).says("latency(0.1, jitter=0.0, direction='both')")
        proxy.reset()  # over at once
        assert page(proxy).says("latency(0.1, jitter=0.0, direction='both')")
        proxy.restore()
        assert page(proxy).says("passes everything")
        assert page(proxy).says("faults 4")
    assert page(proxy).says("closed")


# ---- what a peer has chosen


def test_nothing_of_a_peers_is_obeyed(server):
    with longconn.connect(server.address, client_id=EVIL, heartbeat=QUICK) as client:
        with server.accept(timeout=PATIENCE) as connection:
            client.status = EVIL.encode() + b"\xff\x00"
            wait_until(lambda: connection.peer_status, "the status has come")
            course = notebook.timeline(client, connection, server)
            for shown in (page(connection), page(server), page(course)):
                assert shown.says("<script>alert")
                assert "\u202e" not in shown.words
            assert page(connection).says(r"\xff")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain", "plain"),
        ("a" * 100, "a" * 63 + "…"),
        ("<&\"'>", "&lt;&amp;&quot;&#x27;&gt;"),
        ("\u202eabc\x1b[0m\n", "\\u202eabc\\u001b[0m\\u000a"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"\xe4\xb8\xad", "中"),
    ],
)
def test_what_somebody_else_has_chosen_is_cut_and_escaped(given, shown):
    assert pictures.text(given) == shown


def test_the_longest_names_and_statuses_make_no_large_picture(server):
    with longconn.connect(server.address, client_id="&" * 255, heartbeat=QUICK) as client:
        client.status = b"<" * 1024
        with server.accept(timeout=PATIENCE) as connection:
            wait_until(lambda: connection.peer_status, "the status has come")
            assert len(connection._repr_html_()) < 8000


# ---- timelines


def test_a_timeline_knows_beats_states_and_faults(server):
    with FaultProxy(server) as proxy:
        backoff = longconn.Backoff(first=0.05, cap=0.2)
        client = longconn.connect(proxy.address, client_id="device-7", heartbeat=QUICK, reconnect=backoff)
        course = notebook.timeline(client, server, proxy)
        history = sampling.history(client)
        wait_until(lambda: client.stats().beats_heard >= 3, "beats have come")
        proxy.pull_cable()
        client.wait_for("reconnecting", timeout=PATIENCE)
        wait_until(lambda: history.states()[-1].value == "reconnecting", "the loss was read")
        proxy.restore()
        client.wait_for("open", timeout=PATIENCE)
        wait_until(lambda: history.states()[-1].value == "open", "the return was read")
        assert not course.is_over
        stats = client.stats()
        wait_until(lambda: client.stats().beats_sent > stats.beats_sent, "beats are sent on the new connection")
        client.close()
        wait_until(lambda: history.is_over, "the end was read")
    server.close()
    wait_until(lambda: course.is_over, "all have ended")
    # On a slow machine it may be suspect, or not read, in between.
    states = [span.value for span in history.states() if span.value not in ("unknown", "suspect")]
    in_order = [value for value, _ in groupby(states)]
    assert (in_order[:3], in_order[-1]) == (["open", "reconnecting", "open"], "closed")
    assert history.beats("heard")
    assert [what for _, what in sampling.history(proxy).faults()] == ["pull_cable()", "restore('both')"]
    shown = page(course)
    for what in ("LongConnection device-7", "beats sent", "limit 1.1 s", "pull_cable()", "FaultProxy", "LongServer"):
        assert shown.says(what), what


def test_beats_in_a_gap_are_counted_and_said_to_be_guessed(pair):
    client, _ = pair
    history = sampling.history(client)
    wait_until(lambda: len(history.moments) >= 3, "it is read")
    hold_gil(1.5)  # nothing is read meanwhile, and the beats go on
    wait_until(lambda: "unknown" in [span.value for span in history.states()], "the gap was seen")
    sent = history.beats("sent")
    assert len([beat for beat in sent if beat.is_guessed]) >= 3
    moments = history.moments
    assert len(sent) == moments[-1].stats.beats_sent - moments[0].stats.beats_sent


def test_a_long_record_is_not_read_each_time(server):
    with FaultProxy(server) as proxy:
        history = sampling.History(proxy)
        for _ in range(sampling._LONG_RECORD + 1):
            proxy.restore()
        history.look()
        assert len(history.record) == sampling._LONG_RECORD + 1
        proxy.restore()
        history.look()
        assert len(history.record) == sampling._LONG_RECORD + 1
    history.look()  # what was last isn't missed
    assert len(history.record) == sampling._LONG_RECORD + 2
    assert history.is_over


def moment(at: float, **fields) -> sampling.Moment:
    blank = dict.fromkeys(longconn.LinkStats._fields, 0) | {"state": "open", "connections": 1}
    return sampling.Moment(at, longconn.LinkStats(**(blank | fields)))


def read(pair, *moments: sampling.Moment) -> sampling.History:
    history = sampling.History(pair[0])
    history._moments.extend(moments)
    return history


def test_beats_are_counted_anew_on_the_next_connection(pair):
    history = read(pair, moment(0.0, beats_sent=7), moment(0.1, beats_sent=8), moment(0.2, beats_sent=2, connections=2))
    assert [(round(beat.at, 3), beat.is_guessed) for beat in history.beats("sent")] == [
        (0.1, False),
        (0.15, True),
        (0.2, True),
    ]


def test_states_follow_each_other_and_a_gap_is_unknown(pair):
    history = read(
        pair, moment(0.0), moment(0.1), moment(0.2, state="suspect"), moment(5.0), moment(5.1, state="closed")
    )
    assert [tuple(span) for span in history.states()] == [
        (0.0, 0.2, "open"),
        (0.2, 0.2, "suspect"),
        (0.2, 5.0, "unknown"),
        (5.0, 5.1, "open"),
        (5.1, float("inf"), "closed"),
    ]


def test_a_long_course_makes_no_large_picture(pair):
    history = read(
        pair,
        *(moment(n / 10, beats_sent=n, beats_heard=n, silence_seconds=n % 7, limit_seconds=9) for n in range(3000)),
    )
    picture = pictures.timeline([history], 0.0, 300.0, 0.0)
    page(picture)
    assert len(picture) < 40_000


def test_of_a_crowd_the_counts_are_drawn(pair, server):
    stats = server.stats()._replace(open=5000)
    history = sampling.History(server)
    history._moments.clear()
    history._moments.extend(sampling.Moment(n / 10, stats) for n in range(10))
    assert page(pictures.timeline([history], 0.0, 1.0, 0.0)).says("5000 open")
    assert sampling._clients(server, stats) == ()


@pytest.mark.parametrize("subject", [1, None, "connection", longconn.Keepalive()])
def test_a_timeline_is_of_what_has_one(subject):
    with pytest.raises(TypeError, match="LongConnection"):
        notebook.timeline(subject)
    with pytest.raises(TypeError, match="nothing to show"):
        notebook.timeline()


def test_a_figure_has_a_row_for_each():
    """In a process of its own, for matplotlib keeps its fonts' files open."""
    code = """
import io, time
import longconn
from longconn.notebook import timeline
from longconn.testing import FaultProxy
heartbeat = longconn.Heartbeat(0.2)
with longconn.LongServer(("127.0.0.1", 0), heartbeat=heartbeat) as server, FaultProxy(server) as proxy:
    with longconn.connect(proxy.address, heartbeat=heartbeat) as client, server.accept() as connection:
        course = timeline(client, connection, server, proxy)
        proxy.latency(0.01)
        time.sleep(0.5)
    figure = course.plot()
figure.savefig(picture := io.BytesIO())
print(len(figure.axes), [axes.get_ylabel() for axes in figure.axes])
print([text.get_text() for text in figure.axes[0].texts])
print(figure._repr_png_()[:4], picture.getvalue()[:4])
"""
    assert python_says(code).splitlines() == [
        r"4 ['silence', 'silence', 'server:\nwho is here', 'proxy']",
        """["latency(0.01, jitter=0.0, direction='both')"]""",
        r"b'\x89PNG' b'\x89PNG'",
    ]


# ---- what it costs


def samplers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "longconn-sampler"]


def test_nothing_is_kept_alive_and_the_thread_ends_with_the_last(server):
    client = longconn.connect(server.address, heartbeat=QUICK)
    course = notebook.timeline(client)
    assert len(samplers()) == 1
    reference = weakref.ref(client)
    client.close()
    del client
    gc.collect()
    wait_until(lambda: reference() is None, "it is gone")
    wait_until(lambda: course.is_over, "that was noticed")
    wait_until(lambda: not samplers(), "the thread has ended")
    with longconn.connect(server.address, heartbeat=QUICK) as another:
        history = sampling.history(another)
        wait_until(lambda: len(history.moments) >= 2, "the next is read all the same")


def test_a_thread_that_was_late_for_a_fork_is_followed_by_another():
    sampler, begun, released = sampling._Sampler(), threading.Event(), threading.Event()
    looks: list[None] = []

    def look() -> bool:
        looks.append(None)
        begun.set()
        return released.wait(PATIENCE)

    sampler.tell(look)
    assert begun.wait(PATIENCE)
    thread = sampler._thread
    sampler.end()  # gives it two seconds, which it doesn't keep
    assert thread is not None
    assert thread.is_alive()
    released.set()
    thread.join(PATIENCE)
    before = len(looks)
    sampler.go_on()
    wait_until(lambda: len(looks) > before, "it goes on")
    sampler.end()


def test_what_was_only_shown_is_read_for_some_minutes(pair):
    client, _ = pair
    history = sampling.history(client)
    assert 200 < history.until - history.moments[0].at < 400
    sampling.history(client, is_watched=True)
    assert history.until == float("inf")


def test_importing_longconn_imports_none_of_it():
    names = ("longconn.pictures", "longconn.sampling", "longconn.notebook", "IPython", "matplotlib", "html")
    code = f"import sys, longconn; print([name for name in {names} if name in sys.modules])"
    assert python_says(code) == "[]\n"


def test_the_thread_has_ended_when_the_interpreter_is_taken_down():
    """It came back from native code into one that was gone, now and then, and the program was aborted."""
    code = """
import atexit, sys, threading, time
atexit.register(lambda: print([each.name for each in threading.enumerate()]))
import longconn
with longconn.LongServer(("127.0.0.1", 0)) as server, longconn.connect(server.address) as client:
    client._repr_html_()
    atexit.register(lambda: print("longconn-sampler" in [each.name for each in threading.enumerate()]))
    sys.exit()
"""
    assert python_says(code) == "True\n['MainThread']\n"


FORK = """
import os, time
import longconn
from longconn import sampling

def reads(client):
    history = sampling.history(client)
    many = len(history.moments) + 2
    deadline = time.monotonic() + 20
    while len(history.moments) < many:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return True

with longconn.LongServer(("127.0.0.1", 0)) as server, longconn.connect(server.address) as client:
    reads(client)
    pid = os.fork()  # an error on 3.12 and later if any thread runs
    if not pid:
        status = 1
        try:
            assert "of the process that forked this one" in client._repr_html_()
            with longconn.LongServer(("127.0.0.1", 0)) as another, longconn.connect(another.address) as own:
                status = 0 if reads(own) else 2
        finally:
            os._exit(status)
    print(os.waitpid(pid, 0)[1], reads(client))
"""


def test_both_sides_of_a_fork_go_on():
    assert python_says(FORK) == "0 True\n"


# ---- where there is no notebook


def test_watch_outside_a_notebook_says_what_to_do_instead(pair):
    with pytest.raises(RuntimeError, match=r"timeline\(\).plot\(\)"):
        notebook.watch(pair[0])


@pytest.mark.parametrize(("call", "missing"), [("watch(client)", "IPython"), ("timeline(client).plot()", "matplotlib")])
def test_without_the_extra_it_is_named(call, missing):
    code = f"""
import sys
sys.modules[{missing!r}] = None
import longconn
from longconn.notebook import timeline, watch
with longconn.LongServer(("127.0.0.1", 0)) as server, longconn.connect(server.address) as client:
    try:
        {call}
    except ImportError as error:
        print(error)
"""
    assert "pip install 'longconn[notebook]'" in python_says(code)
