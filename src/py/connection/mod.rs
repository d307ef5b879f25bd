//! A link for Python: what its two LongConnections have in common, that of threads (`blocking.rs`) and that of event loops (`aio.rs`).
//! Converts, tries what doesn't wait, and detaches for the rest.

mod blocking;
mod closing;
mod opening;
mod stats;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use pyo3::{PyTraverseError, PyVisit};

use super::aio::AsyncConnection;
use super::buffer::Buffer;
use super::errors::link_error;
use super::events::time_of;
use super::hub::Hub;
use super::plain::check_framed;
use super::timeout::Timeout;
use super::tls;
use crate::engine::link::{Link, LinkError};
use crate::proto::cause::{Cause, Ending};
use crate::proto::close::{Close, CloseCode};
use crate::proto::connection::State;
use crate::proto::heartbeat::MAX_STATUS_BYTES;

use closing::PATIENCE;

pub(super) use blocking::{CARRIED_BYTES, LongConnection, wait_for};
pub(super) use closing::close_frame;
pub(super) use opening::{Opening, Rhythm, config, open_link};

pub(super) const STATES: [(State, &str); 6] = [
    (State::Connecting, "connecting"),
    (State::Open, "open"),
    (State::Suspect, "suspect"),
    (State::Reconnecting, "reconnecting"),
    (State::Closing, "closing"),
    (State::Closed, "closed"),
];

pub(super) fn state_name(state: State) -> &'static str {
    STATES.iter().find(|(each, _)| *each == state).map_or("", |(_, name)| name)
}

#[doc = doc!("Connection")]
#[pyclass(frozen, subclass, weakref, module = "longconn._longconn")]
pub(super) struct Connection {
    pub(super) link: Arc<Link>,
    /// Of `settimeout`: seconds as bits; NaN is for ever.
    timeout: AtomicU64,
    /// The end of this object is the end of the connection.
    is_owner: AtomicBool,
    /// The program has begun to close it.
    is_closed: AtomicBool,
    /// A call has told the program of the end.
    is_told: AtomicBool,
    /// What `authenticate` has made of the client.
    principal: Option<Py<PyAny>>,
    /// Where there is no room, `send` doesn't wait.
    pub(super) raises_when_full: bool,
    /// Of the event loop that it belongs to.
    hub: Option<Py<Hub>>,
}

/// How Python has a connection, besides its link.
#[derive(Default)]
pub(super) struct Manner {
    pub(super) principal: Option<Py<PyAny>>,
    pub(super) raises_when_full: bool,
    pub(super) hub: Option<Py<Hub>>,
}

impl Connection {
    /// A LongConnection, or that of an event loop. The end of its owner's object is its end.
    pub(super) fn make(py: Python<'_>, link: Arc<Link>, is_owner: bool, manner: Manner) -> PyResult<Py<Self>> {
        let is_of_loop = manner.hub.is_some();
        let base = PyClassInitializer::from(Self::new(link, is_owner, manner));
        Ok(if is_of_loop {
            Bound::new(py, base.add_subclass(AsyncConnection))?.into_super().unbind()
        } else {
            Bound::new(py, base.add_subclass(LongConnection))?.into_super().unbind()
        })
    }

    fn new(link: Arc<Link>, is_owner: bool, Manner { principal, raises_when_full, hub }: Manner) -> Self {
        Self {
            hub,
            raises_when_full,
            link,
            timeout: AtomicU64::new(f64::NAN.to_bits()),
            is_owner: AtomicBool::new(is_owner),
            is_closed: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
            principal,
        }
    }

    pub(super) fn settled(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(f64::from_bits(self.timeout.load(Ordering::Relaxed))).ok()
    }

    fn deadline(&self, timeout: Timeout) -> Option<Instant> {
        timeout.deadline(self.settled())
    }

    /// Of the loop that it belongs to; only an [`AsyncConnection`] has one, and each has.
    pub(super) fn hub(&self) -> PyResult<&Py<Hub>> {
        self.hub.as_ref().ok_or_else(|| PyRuntimeError::new_err("this connection belongs to no event loop"))
    }

    fn class_name(&self) -> &'static str {
        if self.hub.is_some() { "longconn.aio.LongConnection" } else { "longconn.LongConnection" }
    }

    /// The same as an error or as the quiet end of an iteration.
    pub(super) fn ends_iteration(&self, error: &LinkError) -> bool {
        match error {
            LinkError::StreamEnded => true,
            LinkError::Ended(ending) if is_normal(ending) => {
                self.is_told.store(true, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }

    pub(super) fn error(&self, py: Python<'_>, error: LinkError) -> PyErr {
        if matches!(error, LinkError::Ended(_)) {
            self.is_told.store(true, Ordering::Relaxed);
        }
        link_error(py, error, &self.link, true)
    }

    /// What takes the link's lock for a moment.
    pub(super) fn ask<T: Send>(
        &self,
        py: Python<'_>,
        ask: impl Fn(&Link) -> Result<T, LinkError> + Sync,
    ) -> PyResult<T> {
        py.detach(|| ask(&self.link)).map_err(|error| self.error(py, error))
    }

    fn ending(&self, py: Python<'_>) -> Option<Arc<Ending>> {
        py.detach(|| self.link.ending()).ok().flatten()
    }
}

/// What `wait_for` may be asked for: a connection is given out when it is open, so connecting is past.
pub(super) fn state_to_wait_for(state: &str) -> PyResult<State> {
    let to_come = STATES.iter().filter(|(each, _)| *each != State::Connecting);
    match to_come.clone().find(|(_, name)| *name == state) {
        Some((wanted, _)) => Ok(*wanted),
        None => {
            let names = to_come.map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
            Err(PyValueError::new_err(format!("state={state:?}: one of {names}")))
        }
    }
}

pub(super) fn count_to_receive(max_messages: isize) -> PyResult<usize> {
    match usize::try_from(max_messages) {
        Ok(most @ 1..) => Ok(most),
        _ => Err(PyValueError::new_err(format!("max_messages={max_messages}: 1 or more"))),
    }
}

#[pymethods]
impl Connection {
    #[doc = doc!("Connection.settimeout")]
    #[pyo3(signature = (timeout, /))]
    fn settimeout(&self, timeout: Timeout) {
        let seconds = timeout.or(None).map_or(f64::NAN, |duration| duration.as_secs_f64());
        self.timeout.store(seconds.to_bits(), Ordering::Relaxed);
    }

    #[doc = doc!("Connection.gettimeout")]
    fn gettimeout(&self) -> Option<f64> {
        self.settled().map(|duration| duration.as_secs_f64())
    }

    #[doc = doc!("Connection.getpeername")]
    fn getpeername(&self) -> (String, u16) {
        pair(self.link.peer_address())
    }

    #[doc = doc!("Connection.getsockname")]
    fn getsockname(&self) -> (String, u16) {
        pair(self.link.local_address())
    }

    #[doc = doc!("Connection.address")]
    #[getter]
    fn address(&self) -> (String, u16) {
        self.getsockname()
    }

    #[doc = doc!("Connection.peer_address")]
    #[getter]
    fn peer_address(&self) -> (String, u16) {
        self.getpeername()
    }

    #[doc = doc!("Connection.client_id")]
    #[getter]
    fn client_id(&self, py: Python<'_>) -> PyResult<String> {
        self.ask(py, Link::client_id)
    }

    #[doc = doc!("Connection.principal")]
    #[getter]
    fn principal(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.principal.as_ref().map(|principal| principal.clone_ref(py))
    }

    #[doc = doc!("Connection.tls")]
    #[getter]
    fn tls<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.ask(py, Link::agreed)?.map(|agreed| tls::info(py, &agreed)).transpose()
    }

    #[doc = doc!("Connection.opened_at")]
    #[getter]
    fn opened_at(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        self.ask(py, Link::opened_at)?.map(|at| time_of(py, at)).transpose()
    }

    #[doc = doc!("Connection.state")]
    #[getter]
    fn state(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.ask(py, Link::state).map(state_name)
    }

    #[doc = doc!("Connection.lost")]
    #[getter]
    fn lost<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(ending) = self.ask(py, Link::ending)? else { return Ok(None) };
        py.import("longconn.errors")?.getattr("Cause")?.call1((ending.cause.name(),)).map(Some)
    }

    #[doc = doc!("Connection.status")]
    #[getter]
    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        check_framed(&self.link, "status")?;
        Ok(PyBytes::new(py, &self.ask(py, Link::status)?))
    }

    #[setter]
    fn set_status(&self, py: Python<'_>, status: &Bound<'_, PyAny>) -> PyResult<()> {
        check_framed(&self.link, "status")?;
        let status = Buffer::readable(status)?.bytes().to_vec();
        if self.ask(py, |link| link.set_status(&status))? {
            return Ok(());
        }
        Err(PyValueError::new_err(format!("status: {} bytes, at most {MAX_STATUS_BYTES}", status.len())))
    }

    #[doc = doc!("Connection.peer_status")]
    #[getter]
    fn peer_status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        check_framed(&self.link, "peer_status")?;
        Ok(PyBytes::new(py, &self.ask(py, Link::peer_status)?))
    }

    #[doc = doc!("Connection.progress")]
    fn progress(&self, py: Python<'_>) -> PyResult<()> {
        check_framed(&self.link, "progress()")?;
        self.ask(py, Link::progress)
    }

    #[doc = doc!("Connection.unacknowledged")]
    #[getter]
    fn unacknowledged(&self, py: Python<'_>) -> PyResult<u64> {
        check_framed(&self.link, "unacknowledged")?;
        self.ask(py, Link::unacknowledged)
    }

    #[doc = doc!("Connection.undelivered")]
    #[getter]
    fn undelivered<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        check_framed(&self.link, "undelivered")?;
        let messages = self.ask(py, Link::undelivered)?;
        PyList::new(py, messages.iter().map(|message| PyBytes::new(py, message)))
    }

    #[doc = doc!("Connection.stats")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        stats::stats(py, self)
    }

    // ---- the end

    #[doc = doc!("Connection.shutdown")]
    #[pyo3(signature = (how, /))]
    fn shutdown(&self, py: Python<'_>, how: i32) -> PyResult<()> {
        match how {
            libc::SHUT_WR if self.link.framing().is_some() => self.ask(py, Link::shut_down_sending),
            libc::SHUT_WR | libc::SHUT_RDWR => {
                self.say_goodbye(py, Close::new(CloseCode::NORMAL, ""), Some(self.settled().unwrap_or(PATIENCE)))
            }
            libc::SHUT_RD => Err(PyValueError::new_err(
                "SHUT_RD: a LongConnection always receives, for what tells that the peer lives comes the same way; \
                 close() it",
            )),
            _ => Err(PyValueError::new_err(format!("how={how}: socket.SHUT_WR"))),
        }
    }

    /// A principal may well know its connection.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.principal)?;
        visit.call(&self.hub)
    }

    fn __eq__(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.link, &other.link)
    }

    fn __hash__(&self) -> usize {
        self.link.key()
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let (ours, theirs) = (self.link.local_address(), self.link.peer_address());
        let state = match py.detach(|| self.link.state()) {
            Ok(state) => state_name(state),
            Err(_) => "of the process that forked this one",
        };
        let why = match self.ending(py) {
            Some(ending) if ending.cause != Cause::Closed => format!(": {}", ending.cause.name()),
            _ => String::new(),
        };
        format!("<{} {ours} -> {theirs}, {state}{why}>", self.class_name())
    }

    /// For notebooks.
    fn _repr_html_(slf: Bound<'_, Self>) -> PyResult<Bound<'_, PyAny>> {
        slf.py().import("longconn.pictures")?.getattr("connection")?.call1((slf,))
    }
}

fn is_normal(ending: &Ending) -> bool {
    ending.cause == Cause::Closed && ending.close.as_ref().is_some_and(|close| close.code == CloseCode::NORMAL)
}

pub(super) fn pair(address: std::net::SocketAddr) -> (String, u16) {
    (address.ip().to_string(), address.port())
}
