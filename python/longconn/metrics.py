"""What longconn has measured, for Prometheus and for OpenTelemetry; the extra ``metrics`` brings both.

    metrics = Metrics(gateway=server, uplink=conn)
    metrics.register()      # with prometheus_client's registry
    metrics.instrument()    # OpenTelemetry's instruments, of the global meter provider

Nothing runs between two scrapes, and nothing is kept: what connections and servers know of themselves anyway is read
when somebody asks. ``longconn/dashboard.json`` is a dashboard for Grafana.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from . import _longconn
from .errors import ForkedError, LongConnError
from .links import LinkStats, LongServer, ServerStats

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

__all__ = ["Metrics"]

STATES = ("open", "suspect", "reconnecting", "closing", "closed")


class _Measure(NamedTuple):
    """One instrument: its name as OpenTelemetry has it, and what it shows of a subject."""

    name: str
    kind: Literal["gauge", "counter"]
    unit: str
    """As of UCUM: ``s``, ``By``, ``{connection}``."""
    description: str
    values: Callable[[Any], Iterable[tuple[Mapping[str, str], float]]]
    """(attributes, value) of each; none where it isn't known."""

    @property
    def metric_name(self) -> str:
        """As Prometheus has it; it puts _total behind counters by itself."""
        unit = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        return self.name.replace(".", "_") + unit


def _one(attribute: str) -> Callable[[Any], Iterator[tuple[Mapping[str, str], float]]]:
    def values(stats: Any) -> Iterator[tuple[Mapping[str, str], float]]:
        value = getattr(stats, attribute)
        if value is not None:
            yield {}, value

    return values


def _many(label: str, **attributes: str) -> Callable[[Any], Iterator[tuple[Mapping[str, str], float]]]:
    def values(stats: Any) -> Iterator[tuple[Mapping[str, str], float]]:
        for value, attribute in attributes.items():
            yield {label: value}, getattr(stats, attribute)

    return values


def _states(stats: LinkStats) -> Iterator[tuple[Mapping[str, str], float]]:
    for state in STATES:
        yield {"state": state}, float(stats.state == state)


def _causes(ended: Mapping[str, int]) -> Iterator[tuple[Mapping[str, str], float]]:
    for cause, count in ended.items():
        yield {"cause": cause}, count


_PROCESS = (
    _Measure(
        "longconn.links.ended",
        "counter",
        "{link}",
        "Connections of this process that have ended, by cause; those of sessions that went on too.",
        _causes,
    ),
)
_CONNECTION = (
    _Measure("longconn.connection.state", "gauge", "1", "1 for the state in which the connection is.", _states),
    _Measure("longconn.connection.silence", "gauge", "s", "Since the last byte was heard.", _one("silence_seconds")),
    _Measure(
        "longconn.connection.limit",
        "gauge",
        "s",
        "The silence after which the peer counts as lost.",
        _one("limit_seconds"),
    ),
    _Measure(
        "longconn.connection.round_trip",
        "gauge",
        "s",
        "Round trip of beats, smoothed.",
        _one("round_trip_smoothed_seconds"),
    ),
    _Measure(
        "longconn.connection.peer.interpreter.age",
        "gauge",
        "s",
        "How long the peer's interpreter had not been able to run when it beat last.",
        _one("peer_interpreter_age_seconds"),
    ),
    _Measure(
        "longconn.connection.peer.application.age",
        "gauge",
        "s",
        "How long the peer's program had made no progress when it beat last.",
        _one("peer_application_age_seconds"),
    ),
    _Measure(
        "longconn.connection.links",
        "counter",
        "{link}",
        "Connections of the session, one after another.",
        _one("connections"),
    ),
    _Measure(
        "longconn.connection.beats",
        "counter",
        "{beat}",
        "Beats of the present connection.",
        _many("direction", sent="beats_sent", heard="beats_heard"),
    ),
    _Measure(
        "longconn.connection.beats.late",
        "counter",
        "{beat}",
        "Beats of ours that were more than 20 ms late.",
        _one("beats_late"),
    ),
    _Measure(
        "longconn.connection.io",
        "counter",
        "By",
        "Bytes of the present connection, beats and headers included.",
        _many("direction", sent="bytes_sent", heard="bytes_heard"),
    ),
    _Measure(
        "longconn.connection.untaken",
        "gauge",
        "By",
        "Sent, or waiting to be sent, and not known to be taken by the peer's program.",
        _one("untaken_bytes"),
    ),
    _Measure(
        "longconn.connection.inbox", "gauge", "By", "Received, and not taken by this program.", _one("inbox_bytes")
    ),
)
_SERVER = (
    _Measure(
        "longconn.server.connections",
        "gauge",
        "{connection}",
        "Connections as they are now: open, in the handshake, or lost with a session that waits.",
        _many("state", open="open", handshake="handshakes", waiting="waiting"),
    ),
    _Measure("longconn.server.accepted", "counter", "{connection}", "TCP connections, in all.", _one("accepted")),
    _Measure(
        "longconn.server.opened", "counter", "{connection}", "Of these, finished their handshake.", _one("opened")
    ),
    _Measure(
        "longconn.server.refused",
        "counter",
        "{connection}",
        "Clients that were turned away, by reason.",
        _many(
            "reason",
            too_many="refused_too_many",
            unauthorized="refused_unauthorized",
            stale="refused_stale",
            crowded_out="crowded_out",
            failed_handshake="failed_handshakes",
        ),
    ),
    _Measure(
        "longconn.server.out_of_resources",
        "counter",
        "{time}",
        "Clients that were reset for want of descriptors, and times that none could be accepted for want of memory.",
        _one("out_of_resources"),
    ),
    _Measure(
        "longconn.server.sessions",
        "counter",
        "{session}",
        "Sessions that went on over another connection, or ended without their client having come back.",
        _many("outcome", resumed="resumed", expired="expired"),
    ),
    _Measure(
        "longconn.server.waiting",
        "gauge",
        "By",
        "What sessions keep whose client is away: not taken, by either side.",
        _one("waiting_bytes"),
    ),
    _Measure(
        "longconn.server.events.dropped",
        "counter",
        "{event}",
        "Events that found too many others waiting.",
        _one("events_dropped"),
    ),
)
_ALL = (*_PROCESS, *_SERVER, *_CONNECTION)


class Metrics:
    """Servers and connections under names of yours, as metrics.

    Args:
        subjects: ``name=server`` or ``name=connection``; they are not kept alive, and one that is gone is left out.

    Raises:
        TypeError: Neither a `LongServer` nor a `LongConnection`.
    """

    def __init__(self, **subjects: LongServer | _longconn.LongConnection) -> None:
        self._subjects: dict[str, weakref.ref[Any]] = {}
        self._lock = threading.Lock()
        for name, subject in subjects.items():
            self.add(name, subject)

    def add(self, name: str, subject: LongServer | _longconn.LongConnection) -> None:
        """One more, or another under the same name."""
        if not isinstance(subject, LongServer | _longconn.LongConnection):
            raise TypeError(f"{name}: a LongServer or a LongConnection, not {type(subject).__name__}")
        with self._lock:
            self._subjects[name] = weakref.ref(subject)

    def remove(self, name: str) -> None:
        """No longer; nothing happens if there is none of this name."""
        with self._lock:
            self._subjects.pop(name, None)

    def _stats(self) -> Iterator[tuple[str, ServerStats | LinkStats]]:
        with self._lock:
            for name in [name for name, reference in self._subjects.items() if reference() is None]:
                del self._subjects[name]
            subjects = {name: reference() for name, reference in self._subjects.items()}
        for name, subject in subjects.items():
            if subject is None:
                continue
            try:
                yield name, subject.stats()
            except (ForkedError, LongConnError, ValueError):  # it is another process's, or was never open
                continue

    def _read(self, measures: Iterable[_Measure]) -> Iterator[tuple[_Measure, list[tuple[dict[str, str], float]]]]:
        """Each measure with the values of all subjects that have it."""
        stats = list(self._stats())
        for measure in measures:
            if measure in _PROCESS:
                subjects: list[tuple[dict[str, str], Any]] = [({}, _longconn.ended_links())]
            else:
                kind, cls = ("server", ServerStats) if measure in _SERVER else ("connection", LinkStats)
                subjects = [({kind: name}, each) for name, each in stats if isinstance(each, cls)]
            yield (
                measure,
                [
                    ({**whose, **attributes}, float(value))
                    for whose, each in subjects
                    for attributes, value in measure.values(each)
                ],
            )

    # ---- Prometheus

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks a collector for."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for measure, values in self._read(_ALL):
            if not values:
                continue
            labels = list(values[0][0])
            family: Any = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
            metric = family(measure.metric_name, measure.description, labels=labels)
            for attributes, value in values:
                metric.add_metric([attributes[label] for label in labels], value)
            yield metric

    def register(self, registry: CollectorRegistry | None = None) -> None:
        """Have a registry of prometheus_client ask for them; None is its default one.

        Raises:
            ImportError: prometheus_client isn't installed: ``pip install 'longconn[metrics]'``.
        """
        try:
            from prometheus_client import REGISTRY
        except ImportError as error:
            raise ImportError(f"{error}: pip install 'longconn[metrics]'", name=error.name) from None
        (REGISTRY if registry is None else registry).register(self)

    def describe(self) -> list[Metric]:
        """Nothing is read for the registration's sake."""
        return []

    # ---- OpenTelemetry

    def instrument(self, provider: MeterProvider | None = None) -> None:
        """Make observable instruments; None is the global meter provider.

        Raises:
            ImportError: opentelemetry isn't installed: ``pip install 'longconn[metrics]'``.
        """
        try:
            from opentelemetry.metrics import get_meter_provider
        except ImportError as error:
            raise ImportError(f"{error}: pip install 'longconn[metrics]'", name=error.name) from None
        from . import __version__

        meter = (get_meter_provider() if provider is None else provider).get_meter("longconn", __version__)
        for measure in _ALL:
            make = meter.create_observable_counter if measure.kind == "counter" else meter.create_observable_gauge
            callbacks = [self._observer(measure)]
            make(measure.name, callbacks=callbacks, unit=measure.unit, description=measure.description)

    def _observer(self, measure: _Measure) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            ((_, values),) = self._read([measure])
            return [Observation(value, attributes) for attributes, value in values]

        return observe
