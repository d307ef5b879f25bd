//! Plain peers for Python: what is to be said about them, and links to them.

use std::os::fd::RawFd;
use std::sync::Arc;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::connection::{Connection, Manner, state_name};
use super::errors::{os_error, seconds};
use super::events::observe;
use super::hub::Hub;
use super::keepalive::take_over;
use super::pulse;
use super::tcp_info::TcpInfo;
use super::tls::Handshaken;
use crate::engine::link::{Link, LinkError};
use crate::engine::plain::PlainPeers;
use crate::net::keepalive::Keepalive;
use crate::net::sys::RawTcpInfo;
use crate::proto::codec::{ByteOrder, Framing, HeartbeatBytes, LengthPrefix, LineEnd};
use crate::proto::connection::State;
use crate::proto::plain::{PIECE_BYTES, PlainConfig, PlainHeartbeat, PlainStats};

/// "raw", "lines" or "length"; do lines end with CR LF; the prefix's size, is it little-endian, does it count itself.
type FramingSettings = (String, bool, u8, bool, bool);
/// Interval, what to send, what to swallow, is the peer expected to be heard, limit; seconds.
type Beating = (f64, Vec<u8>, Vec<Vec<u8>>, bool, Option<f64>);
/// Probes, idle, interval, count, user timeout; seconds.
type Probes = (bool, f64, f64, u32, Option<f64>);
/// Framing, largest message, heartbeat, keepalive, the guard's limit.
pub(super) type Settings = (FramingSettings, usize, Option<Beating>, Option<Probes>, Option<f64>);

pub(super) fn plain_peers(settings: Settings) -> PyResult<PlainPeers> {
    let (framing, largest_message_bytes, beating, probes, guard_limit) = settings;
    let heartbeat = beating.map(|(interval, send, swallow, is_expected, limit)| {
        let (interval, limit) = (seconds(interval)?, limit.map(seconds).transpose()?);
        PyResult::Ok(PlainHeartbeat { interval, bytes: HeartbeatBytes { send, swallow }, is_expected, limit })
    });
    let keepalive = probes.map(|(enabled, idle, interval, count, user_timeout)| {
        // Timings that aren't used may not even fit.
        let timing = |value| enabled.then(|| seconds(value)).transpose();
        PyResult::Ok(Keepalive {
            enabled: Some(enabled),
            idle: timing(idle)?,
            interval: timing(interval)?,
            count: enabled.then_some(count),
            user_timeout: user_timeout.map(seconds).transpose()?,
        })
    });
    let config = PlainConfig {
        framing: framing_of(&framing),
        largest_message_bytes,
        heartbeat: heartbeat.transpose()?,
        ..PlainConfig::default()
    };
    config.validate().map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(PlainPeers {
        config: Arc::new(config),
        keepalive: keepalive.transpose()?,
        guard_limit: guard_limit.map(seconds).transpose()?,
    })
}

fn framing_of((kind, is_crlf, size, is_little, counts_itself): &FramingSettings) -> Framing {
    match kind.as_str() {
        "raw" => Framing::Raw,
        "lines" => Framing::Lines(if *is_crlf { LineEnd::CrLf } else { LineEnd::Lf }),
        _ => {
            let byte_order = if *is_little { ByteOrder::Little } else { ByteOrder::Big };
            Framing::LengthPrefixed(LengthPrefix { size: *size, byte_order, counts_itself: *counts_itself })
        }
    }
}

/// Makes a link of a connected TCP socket, which it takes over.
#[pyfunction]
#[pyo3(signature = (fd, *, handshaken, settings, on_event, raises_when_full, hub = None))]
pub(super) fn open_plain_link(
    py: Python<'_>,
    fd: RawFd,
    handshaken: Option<Py<Handshaken>>,
    settings: Settings,
    on_event: Option<Py<PyAny>>,
    raises_when_full: bool,
    hub: Option<Py<Hub>>,
) -> PyResult<Py<Connection>> {
    let socket = take_over(fd)?;
    let peers = plain_peers(settings)?;
    let secured = handshaken.and_then(|handshaken| handshaken.get().take());
    let link = py.detach(|| Link::plain(socket, secured, &peers)).map_err(|error| os_error(&error))?;
    pulse::begin();
    let manner = Manner { raises_when_full, hub, ..Manner::default() };
    let connection = Connection::make(py, link.clone(), true, manner)?;
    observe(py, &link, on_event).map_err(|error| super::errors::link_error(py, error, &link, true))?;
    Ok(connection)
}

/// Refuses what only a peer of our own protocol could answer.
pub(super) fn check_framed(link: &Link, what: &str) -> PyResult<()> {
    if link.framing().is_none() {
        return Ok(());
    }
    Err(PyTypeError::new_err(format!(
        "{what}: a plain peer, as of framing=..., doesn't speak longconn's protocol; both sides have to be longconn's"
    )))
}

/// How much `recv` is to give: of a raw stream only.
pub(super) fn receive_size(link: &Link, arguments: &Bound<'_, PyTuple>) -> PyResult<Option<usize>> {
    let is_raw = link.framing() == Some(Framing::Raw);
    match (arguments.len(), is_raw) {
        (0, true) => Ok(Some(PIECE_BYTES)),
        (0, false) => Ok(None),
        (1, true) => match arguments.get_item(0)?.extract::<isize>().map(usize::try_from) {
            Ok(Ok(size @ 1..)) => Ok(Some(size)),
            Ok(_) => Err(PyValueError::new_err("recv(): how many bytes at the most, 1 or more")),
            Err(error) => Err(error),
        },
        (_, true) => Err(PyTypeError::new_err("recv() takes one size, and timeout by its name")),
        (_, false) => Err(PyTypeError::new_err(
            "recv() takes no size: a LongConnection receives whole messages, as they were sent; recv(n) is for \
             framing=\"raw\", and timeout goes by its name",
        )),
    }
}

/// What the end of the stream looks like to `recv`: `b""` where that is no message.
pub(super) fn is_told_as_empty(link: &Link, error: &LinkError) -> bool {
    matches!(error, LinkError::StreamEnded) && matches!(link.framing(), Some(Framing::Raw | Framing::Lines(_)))
}

/// A `LinkStats`; what only our own protocol knows is None.
pub(super) fn stats<'py>(
    py: Python<'py>,
    state: State,
    stats: &PlainStats,
    tcp_info: Option<&RawTcpInfo>,
) -> PyResult<Bound<'py, PyAny>> {
    let links = py.import("longconn.links")?.getattr("LinkStats")?;
    let fields = PyDict::new(py);
    for name in links.getattr("_fields")?.try_iter()? {
        fields.set_item(name?, py.None())?;
    }
    let number = |duration: Option<std::time::Duration>| duration.map(|duration| duration.as_secs_f64());
    fields.set_item("state", state_name(state))?;
    fields.set_item("silence_seconds", stats.silence.as_secs_f64())?;
    fields.set_item("limit_seconds", number(stats.limit))?;
    fields.set_item("send_interval_seconds", number(stats.send_interval))?;
    fields.set_item("hear_interval_seconds", number(stats.hear_interval))?;
    fields.set_item("beats_sent", stats.beats.sent)?;
    fields.set_item("beats_heard", stats.beats.heard)?;
    fields.set_item("beats_late", stats.beats.late)?;
    fields.set_item("worst_lateness_seconds", stats.beats.worst_lateness.as_secs_f64())?;
    fields.set_item("bytes_sent", stats.bytes_sent)?;
    fields.set_item("bytes_heard", stats.bytes_heard)?;
    fields.set_item("untaken_bytes", stats.unacked_bytes)?;
    fields.set_item("inbox_bytes", stats.inbox_bytes)?;
    fields.set_item("tcp_info", tcp_info.map(|info| Py::new(py, TcpInfo::new(info))).transpose()?)?;
    links.call((), Some(&fields))
}
