//! What a connection measures and counts, as a `LinkStats`.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::{Connection, state_name};
use crate::engine::clock;
use crate::py::plain;
use crate::py::tcp_info::TcpInfo;

pub(super) fn stats<'py>(py: Python<'py>, connection: &Connection) -> PyResult<Bound<'py, PyAny>> {
    if connection.link.framing().is_some() {
        let (state, stats, tcp_info) =
            connection.ask(py, |link| Ok((link.state()?, link.plain_stats()?, link.tcp_info()?)))?;
        let Some(stats) = stats else { return Err(PyValueError::new_err("the connection was never open")) };
        return plain::stats(py, state, &stats, tcp_info.as_ref());
    }
    let (connections, after_close) = connection
        .ask(py, |link| Ok((link.openings()?, link.ending()?.map_or(0, |ending| ending.messages_after_close))))?;
    let (state, stats, ages, peer_ages_at, tcp_info) = connection.ask(py, |link| {
        let ages = link.peer_ages()?;
        let (ages, told_at) = (ages.map(|(_, ages)| ages), ages.map(|(at, _)| at));
        Ok((link.state()?, link.stats()?, ages, told_at, link.tcp_info()?))
    })?;
    let Some(stats) = stats else { return Err(PyValueError::new_err("the connection was never open")) };
    let number = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
    let fields = PyDict::new(py);
    fields.set_item("state", state_name(state))?;
    fields.set_item("silence_seconds", stats.silence.as_secs_f64())?;
    fields.set_item("limit_seconds", stats.limit.as_secs_f64())?;
    fields.set_item("phi", stats.phi)?;
    fields.set_item("send_interval_seconds", stats.send_interval.as_secs_f64())?;
    fields.set_item("hear_interval_seconds", stats.hear_interval.as_secs_f64())?;
    fields.set_item("round_trip_last_seconds", number(stats.round_trip.last))?;
    fields.set_item("round_trip_smoothed_seconds", number(stats.round_trip.smoothed))?;
    fields.set_item("round_trip_least_seconds", number(stats.round_trip.least))?;
    fields.set_item("beats_sent", stats.beats.sent)?;
    fields.set_item("beats_heard", stats.beats.heard)?;
    fields.set_item("beats_late", stats.beats.late)?;
    fields.set_item("worst_lateness_seconds", stats.beats.worst_lateness.as_secs_f64())?;
    fields.set_item("bytes_sent", stats.bytes_sent)?;
    fields.set_item("bytes_heard", stats.bytes_heard)?;
    fields.set_item("untaken_bytes", stats.untaken_bytes)?;
    fields.set_item("untaken_messages", stats.untaken_messages)?;
    fields.set_item("inbox_bytes", stats.inbox_bytes)?;
    fields.set_item("inbox_messages", stats.inbox_messages)?;
    fields.set_item("peer_interpreter_age_seconds", number(ages.and_then(|ages| ages.interpreter)))?;
    fields.set_item("peer_application_age_seconds", number(ages.and_then(|ages| ages.application)))?;
    let told = peer_ages_at.map(|at| clock::now().saturating_duration_since(at));
    fields.set_item("peer_ages_told_seconds_ago", number(told))?;
    fields.set_item("tcp_info", tcp_info.map(|info| Py::new(py, TcpInfo::new(&info))).transpose()?)?;
    fields.set_item("connections", connections)?;
    fields.set_item("messages_after_close", after_close)?;
    if let Some(learnt) = stats.learnt {
        fields.set_item("proven_interval_seconds", learnt.proven.as_secs_f64())?;
        fields.set_item("settled_seconds_ago", number(learnt.settled_for))?;
    }
    py.import("longconn.links")?.getattr("LinkStats")?.call((), Some(&fields))
}
