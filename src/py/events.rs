//! What happened to links, one after the other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;

use super::callback::call;
use super::connection::{Connection, state_name};
use super::errors::{ended, link_error, listener_error, parted};
use super::server::{Door, Server, wait_for_listener};
use crate::engine::link::{Link, LinkError, Occurrence, What};
use crate::engine::listener::MAX_OCCURRENCES;
use crate::engine::sync::lock;
use crate::engine::{clock, notices, tally};
use crate::proto::connection::State;

enum Source {
    Link(Py<Connection>),
    Server(Py<Server>),
}

/// An iterator of `Event`, or of pairs of a connection and an `Event`.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct Events {
    source: Source,
}

impl Events {
    pub(super) fn of_link(connection: Py<Connection>) -> Self {
        Self { source: Source::Link(connection) }
    }

    pub(super) fn of_server(server: Py<Server>) -> Self {
        Self { source: Source::Server(server) }
    }
}

#[pymethods]
impl Events {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.source {
            Source::Link(connection) => {
                let link = &connection.get().link;
                match super::connection::wait_for(py, link, None, |link, deadline| link.next_occurrence(deadline))? {
                    Ok(occurrence) => event(py, link, &occurrence),
                    Err(LinkError::Ended(_)) => Err(PyStopIteration::new_err(())),
                    Err(error) => Err(link_error(py, error, link, true)),
                }
            }
            Source::Server(server) => {
                let server = server.get();
                match wait_for_listener(py, &server.listener, None, |listener, deadline| {
                    listener.next_occurrence(deadline)
                })? {
                    Ok((link, occurrence)) => {
                        let event = event(py, &link, &occurrence)?;
                        let connection = server.door.show(py, link)?;
                        Ok((connection, event).into_pyobject(py)?.into_any())
                    }
                    Err(LinkError::Closed) => Err(PyStopIteration::new_err(())),
                    Err(error) => Err(listener_error(py, error)),
                }
            }
        }
    }
}

/// The program's function, as long as there is something to tell it. It may lead back to who has it, so it goes with the
/// last event; nobody could find that circle.
pub(super) type Callback = Mutex<Option<Arc<Py<PyAny>>>>;

/// Has the program's function told of what happens to a link.
pub(super) fn observe(py: Python<'_>, link: &Arc<Link>, on_event: Option<Py<PyAny>>) -> Result<(), LinkError> {
    if on_event.is_none() {
        return Ok(());
    }
    let (callback, this) = (Mutex::new(on_event.map(Arc::new)), Arc::downgrade(link));
    py.detach(|| link.observe(Arc::new(move |occurrence| tell(&callback, &this, occurrence))))
}

/// Runs on the thread of the notices; what it raises has no caller to go to.
fn tell(callback: &Callback, link: &Weak<Link>, occurrence: &Occurrence) {
    let mut callback = lock(callback);
    let function = if matches!(occurrence.what, What::Ended(_)) { callback.take() } else { callback.clone() };
    let (Some(function), Some(link)) = (function, link.upgrade()) else { return };
    let occurrence = occurrence.clone();
    notices::call(Box::new(move || {
        Python::try_attach(move |py| {
            let called = event(py, &link, &occurrence).and_then(|event| call(function.bind(py), (event,)));
            if let Err(error) = called {
                error.write_unraisable(py, Some(function.bind(py)));
            }
        });
    }));
}

/// The same for a server's, which is told whose event it is. False if too many wait already.
pub(super) fn tell_of(server: &Weak<Door>, waiting: &Arc<AtomicUsize>, link: &Arc<Link>, what: &Occurrence) -> bool {
    let Some(function) = server.upgrade().and_then(|door| lock(&door.on_event).clone()) else { return true };
    if waiting.load(Ordering::Relaxed) >= MAX_OCCURRENCES {
        return false;
    }
    waiting.fetch_add(1, Ordering::Relaxed);
    let (server, waiting, link, occurrence) = (server.clone(), waiting.clone(), link.clone(), what.clone());
    notices::call(Box::new(move || {
        waiting.fetch_sub(1, Ordering::Relaxed);
        Python::try_attach(move |py| {
            let Some(door) = server.upgrade() else { return };
            let called =
                event(py, &link, &occurrence).and_then(|event| call(function.bind(py), (door.show(py, link)?, event)));
            if let Err(error) = called {
                error.write_unraisable(py, Some(function.bind(py)));
            }
        });
    }));
    true
}

/// As of Python's `time.time()`, and of what a test has skipped: however late it is asked, it is the same.
pub(super) fn time_of(py: Python<'_>, at: Instant) -> PyResult<f64> {
    let ago = clock::now().saturating_duration_since(at).as_secs_f64();
    Ok(py.import("time")?.call_method0("time")?.extract::<f64>()? + clock::ahead().as_secs_f64() - ago)
}

pub(super) fn event<'py>(py: Python<'py>, link: &Arc<Link>, occurrence: &Occurrence) -> PyResult<Bound<'py, PyAny>> {
    let time = time_of(py, occurrence.at.instant())?;
    let mut replayed = None;
    let (state, error) = match &occurrence.what {
        What::Opened | What::Alive | What::Fresh => (State::Open, None),
        What::Resumed { replayed: messages } => {
            replayed = Some(*messages);
            (State::Open, None)
        }
        What::Suspect { .. } => (State::Suspect, None),
        What::Parted(ending) => {
            (State::Reconnecting, Some((ending.cause.name(), parted(py, ending, link)?.into_value(py))))
        }
        What::Ended(ending) => {
            let was_open = py.detach(|| link.was_open()).is_ok_and(|was_open| was_open);
            (State::Closed, Some((ending.cause.name(), ended(py, ending, link, was_open)?.into_value(py))))
        }
    };
    let is_fresh = matches!(occurrence.what, What::Fresh);
    let links = py.import("longconn.links")?;
    let (cause, error) = match error {
        Some((cause, error)) => (Some(links.getattr("Cause")?.call1((cause,))?), Some(error)),
        None => (None, None),
    };
    links.getattr("Event")?.call1((time, state_name(state), cause, error, replayed, is_fresh))
}

/// How many links of this process have ended, by cause.
#[pyfunction]
pub(super) fn ended_links() -> std::collections::HashMap<&'static str, u64> {
    tally::ended().map(|(cause, count)| (cause.name(), count)).collect()
}
