//! A LongConnection whose verbs are awaited, in the event loop that it belongs to; and what a server's loop awaits.

use std::sync::Mutex;

use pyo3::exceptions::{PyException, PyStopAsyncIteration};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::connection::{Connection, count_to_receive, state_to_wait_for};
use super::errors::{link_error, listener_error};
use super::events::event;
use super::plain::{check_framed, is_told_as_empty, receive_size};
use super::server::{Server, carry_out, introduction, judge};
use super::timeout::Timeout;
use super::waiting::{Look, OnLink, OnServer, SendMany, Waiting, look};
use crate::engine::hub::Seat;
use crate::engine::link::{Link, LinkError, Ping};
use crate::engine::listener::Client;
use crate::engine::sync::lock;
use crate::engine::waiting::Interest;

#[doc = doc!("AsyncConnection")]
#[pyclass(frozen, extends = Connection, name = "LongConnection", module = "longconn.aio")]
pub(super) struct AsyncConnection;

/// What has a timeout that isn't left out, or the settled one.
fn wait_on(
    slf: &Bound<'_, AsyncConnection>,
    name: &'static str,
    timeout: Timeout,
    look: impl FnMut(Python<'_>, &Connection, &mut Seat) -> PyResult<Look> + Send + Sync + 'static,
) -> PyResult<Py<PyAny>> {
    let connection = slf.as_super();
    let timeout = timeout.or(connection.get().settled());
    wait_on_for(slf, name, timeout, look)
}

fn wait_on_for(
    slf: &Bound<'_, AsyncConnection>,
    name: &'static str,
    timeout: Option<std::time::Duration>,
    look: impl FnMut(Python<'_>, &Connection, &mut Seat) -> PyResult<Look> + Send + Sync + 'static,
) -> PyResult<Py<PyAny>> {
    let connection = slf.as_super().clone();
    let hub = connection.get().hub()?;
    Waiting::of(slf.py(), hub, name, Box::new(OnLink { connection: connection.clone().unbind(), look }), timeout)
}

#[pymethods]
impl AsyncConnection {
    #[doc = doc!("AsyncConnection.send")]
    #[pyo3(signature = (data, *, timeout = Timeout::LeftOut))]
    fn send(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>, timeout: Timeout) -> PyResult<Waiting> {
        Waiting::to_send(slf.as_super(), data, timeout)
    }

    #[doc = doc!("AsyncConnection.sendall")]
    #[pyo3(signature = (data, *, timeout = Timeout::LeftOut))]
    fn sendall(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>, timeout: Timeout) -> PyResult<Waiting> {
        Waiting::to_send(slf.as_super(), data, timeout)
    }

    #[doc = doc!("AsyncConnection.send_many")]
    #[pyo3(signature = (messages, *, timeout = Timeout::LeftOut))]
    fn send_many(slf: &Bound<'_, Self>, messages: &Bound<'_, PyAny>, timeout: Timeout) -> PyResult<Py<PyAny>> {
        let connection = slf.as_super().clone();
        let messages = messages.try_iter()?.unbind();
        let operation = SendMany { connection: connection.clone().unbind(), messages, next: None, count: 0 };
        let this = connection.get();
        Waiting::of(slf.py(), this.hub()?, "send_many()", Box::new(operation), timeout.or(this.settled()))
    }

    #[doc = doc!("AsyncConnection.recv")]
    #[pyo3(signature = (*size, timeout = Timeout::LeftOut), text_signature = "($self, /, *size, timeout=...)")]
    fn recv(slf: &Bound<'_, Self>, size: &Bound<'_, PyTuple>, timeout: Timeout) -> PyResult<Py<PyAny>> {
        match receive_size(&slf.as_super().get().link, size)? {
            None => Ok(Py::new(slf.py(), Waiting::to_recv(slf.as_super(), timeout)?)?.into_any()),
            Some(size) => wait_on(slf, "recv()", timeout, move |py, this, seat| {
                let received = this.link.recv_some_seated(size, seat, |bytes| PyBytes::new(py, bytes));
                match received {
                    Err(error) if is_told_as_empty(&this.link, &error) => {
                        Ok(Look::Done(PyBytes::new(py, b"").into_any().unbind()))
                    }
                    received => look(received.map(|bytes| bytes.into_any().unbind()), |error| this.error(py, error)),
                }
            }),
        }
    }

    #[doc = doc!("AsyncConnection.recv_many")]
    #[pyo3(signature = (max_messages, *, timeout = Timeout::LeftOut))]
    fn recv_many(slf: &Bound<'_, Self>, max_messages: isize, timeout: Timeout) -> PyResult<Py<PyAny>> {
        let most = count_to_receive(max_messages)?;
        wait_on(slf, "recv_many()", timeout, move |py, this, seat| {
            let mut messages = Vec::new();
            let received = this.link.recv_many_seated(most, seat, |message| messages.push(PyBytes::new(py, message)));
            match received {
                Err(error) if is_told_as_empty(&this.link, &error) => {
                    Ok(Look::Done(PyList::empty(py).into_any().unbind()))
                }
                Ok(_) => Ok(Look::Done(PyList::new(py, messages)?.into_any().unbind())),
                Err(error) => look(Err(error), |error| this.error(py, error)),
            }
        })
    }

    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __anext__(slf: &Bound<'_, Self>) -> PyResult<Waiting> {
        Waiting::to_next(slf.as_super())
    }

    #[doc = doc!("AsyncConnection.flush")]
    #[pyo3(signature = (*, timeout = Timeout::LeftOut))]
    fn flush(slf: &Bound<'_, Self>, timeout: Timeout) -> PyResult<Py<PyAny>> {
        let mut end = None;
        wait_on(slf, "flush()", timeout, move |py, this, seat| {
            let end = match end {
                Some(end) => end,
                None => *end.insert(this.ask(py, Link::begin_flush)?),
            };
            look(this.link.wait_taken(end, seat).map(|()| py.None()), |error| this.error(py, error))
        })
    }

    #[doc = doc!("AsyncConnection.ping")]
    #[pyo3(signature = (*, timeout = Timeout::LeftOut))]
    fn ping(slf: &Bound<'_, Self>, timeout: Timeout) -> PyResult<Py<PyAny>> {
        check_framed(&slf.as_super().get().link, "ping()")?;
        let mut ping: Option<Ping> = None;
        wait_on(slf, "ping()", timeout, move |py, this, seat| {
            let ping = match &mut ping {
                Some(ping) => ping,
                none => none.insert(this.ask(py, Link::begin_ping)?),
            };
            let round_trip = match this.link.wait_pong(ping, seat) {
                Ok(round_trip) => Ok(round_trip.as_secs_f64().into_pyobject(py)?.into_any().unbind()),
                Err(error) => Err(error),
            };
            look(round_trip, |error| this.error(py, error))
        })
    }

    #[doc = doc!("AsyncConnection.wait_for")]
    #[pyo3(signature = (state, *, timeout = Timeout::LeftOut))]
    fn wait_for(slf: &Bound<'_, Self>, state: &str, timeout: Timeout) -> PyResult<Py<PyAny>> {
        let wanted = state_to_wait_for(state)?;
        wait_on(slf, "wait_for()", timeout, move |py, this, seat| {
            look(this.link.wait_state(wanted, seat).map(|()| py.None()), |error| this.error(py, error))
        })
    }

    #[doc = doc!("AsyncConnection.events")]
    fn events(slf: &Bound<'_, Self>) -> AsyncEvents {
        AsyncEvents { source: Source::Connection(slf.clone().unbind()) }
    }

    #[doc = doc!("AsyncConnection.close")]
    #[pyo3(signature = (code = 0, reason = "", *, timeout = Timeout::LeftOut))]
    fn close(slf: &Bound<'_, Self>, code: i64, reason: &str, timeout: Timeout) -> PyResult<Py<PyAny>> {
        let reason = reason.to_owned();
        let mut is_begun = false;
        wait_on_for(slf, "close()", None, move |py, this, seat| {
            if !std::mem::replace(&mut is_begun, true) {
                this.begin_close(py, code, &reason, timeout)?;
            }
            match this.link.wait_ended(seat) {
                Ok(ending) => this.judge(py, Some(ending)).map(|()| Look::Done(py.None())),
                // The parent's child has nothing to wait for.
                Err(LinkError::Forked) => Ok(Look::Done(py.None())),
                Err(error) => look(Err(error), |error| this.error(py, error)),
            }
        })
    }

    #[doc = doc!("AsyncConnection.abandon")]
    #[pyo3(signature = (*, has_failed))]
    fn abandon(slf: &Bound<'_, Self>, has_failed: bool) -> PyResult<()> {
        slf.as_super().get().abandon(slf.py(), has_failed)
    }

    fn __aenter__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let entered = slf.clone().unbind();
        wait_on_for(slf, "__aenter__()", None, move |py, _, _| Ok(Look::Done(entered.clone_ref(py).into_any())))
    }

    fn __aexit__(
        slf: &Bound<'_, Self>,
        kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        if kind.is_none() {
            return Self::close(slf, 0, "", Timeout::LeftOut);
        }
        let mut is_begun = false;
        wait_on_for(slf, "__aexit__()", None, move |py, this, seat| {
            if !std::mem::replace(&mut is_begun, true) {
                this.leave(py)?;
            }
            // The exception says more than what closing comes to.
            match look(this.link.wait_ended(seat).map(|_| py.None()), |error| this.error(py, error)) {
                Err(error) if error.is_instance_of::<PyException>(py) => Ok(Look::Done(py.None())),
                looked => looked,
            }
        })
    }
}

enum Source {
    Connection(Py<AsyncConnection>),
    Server(Py<Server>),
}

/// An asynchronous iterator of `Event`, or of pairs of a connection and an `Event`.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct AsyncEvents {
    source: Source,
}

#[pymethods]
impl AsyncEvents {
    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __anext__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match &self.source {
            Source::Connection(connection) => {
                wait_on_for(connection.bind(py), "the next event", None, |py, this, seat| {
                    match this.link.next_occurrence(seat) {
                        Ok(occurrence) => Ok(Look::Done(event(py, &this.link, &occurrence)?.unbind())),
                        Err(LinkError::Ended(_)) => Err(PyStopAsyncIteration::new_err(())),
                        Err(error) => look(Err(error), |error| link_error(py, error, &this.link, true)),
                    }
                })
            }
            Source::Server(server) => {
                wait_on_server(server.bind(py), "the next event", Interest::EVENT, |py, server, seat| {
                    let this = server.get();
                    match this.listener.next_occurrence(seat) {
                        Ok((link, occurrence)) => {
                            let event = event(py, &link, &occurrence)?;
                            let told = (this.door.show(py, link)?, event).into_pyobject(py)?;
                            Ok(Look::Done(told.into_any().unbind()))
                        }
                        Err(error) => at_end(py, error),
                    }
                })
            }
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match &self.source {
            Source::Connection(connection) => visit.call(connection),
            Source::Server(server) => visit.call(server),
        }
    }
}

/// Pairs of a connection and its message, of all connections of a server.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct AsyncMessages {
    server: Py<Server>,
}

#[pymethods]
impl AsyncMessages {
    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __anext__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        wait_on_server(self.server.bind(py), "the next message", Interest::READABLE, |py, server, seat| {
            let this = server.get();
            loop {
                if let Some((link, message)) = this.next_in_batch(py).map_err(|error| listener_error(py, error))? {
                    let told = (this.door.show(py, link)?, message).into_pyobject(py)?;
                    return Ok(Look::Done(told.into_any().unbind()));
                }
                this.confirm_rest(py);
                match this.listener.wait_messages(&mut *seat) {
                    Ok(()) => {}
                    Err(error) => return at_end(py, error),
                }
            }
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.server)
    }
}

fn at_end(py: Python<'_>, error: LinkError) -> PyResult<Look> {
    match error {
        LinkError::Closed => Err(PyStopAsyncIteration::new_err(())),
        error => look(Err(error), |error| listener_error(py, error)),
    }
}

fn wait_on_server(
    server: &Bound<'_, Server>,
    name: &'static str,
    interest: Interest,
    look: impl FnMut(Python<'_>, &Py<Server>, &mut Seat) -> PyResult<Look> + Send + Sync + 'static,
) -> PyResult<Py<PyAny>> {
    let operation = OnServer { server: server.clone().unbind(), interest, look };
    Waiting::of(server.py(), server.get().hub()?, name, Box::new(operation), None)
}

// ---- what `Server` has of it: the verbs of a server that belongs to an event loop

pub(super) fn accept(server: &Bound<'_, Server>) -> PyResult<Py<PyAny>> {
    wait_on_server(server, "accept()", Interest::ACCEPTABLE, |py, server, seat| {
        let this = server.get();
        match this.listener.accept(seat) {
            Ok(link) => Ok(Look::Done(this.door.make(py, link, true)?.into_any())),
            Err(error) => look(Err(error), |error| listener_error(py, error)),
        }
    })
}

pub(super) fn messages(server: Bound<'_, Server>) -> AsyncMessages {
    AsyncMessages { server: server.unbind() }
}

pub(super) fn events(server: Bound<'_, Server>) -> AsyncEvents {
    AsyncEvents { source: Source::Server(server.unbind()) }
}

/// Until everyone is gone, once that was begun.
pub(super) fn wait_closed(server: &Bound<'_, Server>) -> PyResult<Py<PyAny>> {
    wait_on_server(server, "close()", Interest::STATE, |py, server, seat| {
        let this = server.get();
        let closed = match this.listener.wait_closed(seat) {
            // In a forked child its descriptor is closed already.
            Err(LinkError::Forked) => Ok(()),
            closed => closed,
        };
        if matches!(closed, Ok(())) {
            this.let_go();
        }
        look(closed.map(|()| py.None()), |error| listener_error(py, error))
    })
}

/// The next client that the program is to decide about.
pub(super) fn next_client(server: &Bound<'_, Server>) -> PyResult<Py<PyAny>> {
    wait_on_server(server, "the next client", Interest::HELLO, |py, server, seat| {
        match server.get().listener.next_client(seat) {
            Ok(client) => {
                let visitor = Visitor { server: server.clone_ref(py), client: Mutex::new(Some(client)) };
                Ok(Look::Done(Py::new(py, visitor)?.into_any()))
            }
            Err(error) => look(Err(error), |error| listener_error(py, error)),
        }
    })
}

/// A client that waits for the program's decision; who is dropped without one goes on waiting until its time is up.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct Visitor {
    server: Py<Server>,
    client: Mutex<Option<Client>>,
}

#[pymethods]
impl Visitor {
    /// What `authenticate` is called with: client id, token, address, and of clients that show certificates whose.
    #[getter]
    fn introduction<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        // Code of Python's runs for it: not under the lock.
        let told = lock(&self.client).as_ref().map(|client| (client.link().clone(), client.hello.clone()));
        told.map(|(link, hello)| introduction(py, &link, &hello, &self.server.get().door)).transpose()
    }

    /// By what `authenticate` has returned.
    fn decide(&self, py: Python<'_>, answer: Bound<'_, PyAny>) {
        let client = lock(&self.client).take();
        if let Some(client) = client {
            let decision = judge(py, &client, &self.server.get().door, Ok(answer));
            py.detach(|| carry_out(client, decision));
        }
    }

    fn refuse(&self, py: Python<'_>, reason: String) {
        let client = lock(&self.client).take();
        if let Some(client) = client {
            py.detach(|| carry_out(client, Err(reason)));
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.server)
    }
}
