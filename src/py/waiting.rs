//! What the verbs of an event loop's objects return: to be awaited, or to be made a task of.
//!
//! Nothing is done before it is awaited, and what it gives is taken under the lock in the very step that gives it. So cancelling
//! it, at any moment, neither loses nor doubles a message.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use pyo3::exceptions::{
    PyBaseException, PyRuntimeError, PyRuntimeWarning, PyStopAsyncIteration, PyStopIteration, PyTimeoutError,
};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::buffer::Buffer;
use super::connection::{Connection, Opening};
use super::dial::dialled;
use super::errors::listener_error;
use super::hub::{Hub, Ticket, Word};
use super::plain::is_told_as_empty;
use super::server::Server;
use super::timeout::Timeout;
use crate::engine::clock;
use crate::engine::dial::Dialling;
use crate::engine::hub::Seat;
use crate::engine::link::{Attempt, INLINE_BYTES, Link, LinkError};
use crate::engine::waiting::Interest;

/// What one look came to.
pub(super) enum Look {
    Done(Py<PyAny>),
    /// The seat is told when it is worth another.
    Pending,
    /// Somebody has the lock for a moment.
    Busy,
}

/// For who is seated: an error is Python's, unless it only says to look again.
pub(super) fn look(result: Result<Py<PyAny>, LinkError>, error: impl FnOnce(LinkError) -> PyErr) -> PyResult<Look> {
    match result {
        Ok(value) => Ok(Look::Done(value)),
        Err(LinkError::Pending) => Ok(Look::Pending),
        Err(LinkError::Busy) => Ok(Look::Busy),
        Err(other) => Err(error(other)),
    }
}

/// What is awaited.
pub(super) trait Operation: Send + Sync {
    fn look(&mut self, py: Python<'_>, seat: &mut Seat) -> PyResult<Look>;
    /// It is over, or given up: the seat is free. False where somebody has the lock for a moment.
    fn leave(&self, seat: &mut Seat) -> bool;
    /// Until whoever has the lock is done with it; called detached.
    fn wait_lock(&self) {}
    fn late(&mut self, _py: Python<'_>) -> PyErr {
        PyTimeoutError::new_err("timed out")
    }
    fn traverse(&self, _visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        Ok(())
    }
}

/// What is awaited most has no box of its own.
enum What {
    Recv(Py<Connection>),
    /// The same for `async for`.
    Next(Py<Connection>),
    Send(Py<Connection>, Py<PyAny>),
    Other(Box<dyn Operation>),
    /// It was awaited, or closed.
    Nothing,
}

/// A coroutine (`collections.abc.Coroutine`), for a task to drive.
#[pyclass(frozen, freelist = 32, module = "longconn._longconn")]
pub(super) struct Waiting {
    /// The method's, for who doesn't await it.
    name: &'static str,
    /// Who steps it has it for the whole step, code of Python's included, as a coroutine runs for one caller at a time. Nobody waits for
    /// this lock.
    course: Mutex<Course>,
}

struct Course {
    hub: Py<Hub>,
    what: What,
    timeout: Option<Duration>,
    /// By the engine's clock, on which time may be skipped; the loop's timer knows nothing of that.
    deadline: Option<Instant>,
    seated: Option<(Seat, Py<Ticket>)>,
    timer: Option<Py<PyAny>>,
    is_begun: bool,
}

impl Waiting {
    fn new(hub: Py<Hub>, name: &'static str, what: What, timeout: Option<Duration>) -> Self {
        let course = Course { hub, what, timeout, deadline: None, seated: None, timer: None, is_begun: false };
        Self { name, course: Mutex::new(course) }
    }

    pub(super) fn of(
        py: Python<'_>,
        hub: &Py<Hub>,
        name: &'static str,
        operation: Box<dyn Operation>,
        timeout: Option<Duration>,
    ) -> PyResult<Py<PyAny>> {
        Ok(Py::new(py, Self::new(hub.clone_ref(py), name, What::Other(operation), timeout))?.into_any())
    }

    pub(super) fn to_recv(connection: &Bound<'_, Connection>, timeout: Timeout) -> PyResult<Self> {
        let this = connection.get();
        let what = What::Recv(connection.clone().unbind());
        Ok(Self::new(this.hub()?.clone_ref(connection.py()), "recv()", what, timeout.or(this.settled())))
    }

    pub(super) fn to_next(connection: &Bound<'_, Connection>) -> PyResult<Self> {
        let this = connection.get();
        let what = What::Next(connection.clone().unbind());
        Ok(Self::new(this.hub()?.clone_ref(connection.py()), "the next message", what, this.settled()))
    }

    pub(super) fn to_send(
        connection: &Bound<'_, Connection>,
        data: &Bound<'_, PyAny>,
        timeout: Timeout,
    ) -> PyResult<Self> {
        let this = connection.get();
        let what = What::Send(connection.clone().unbind(), data.clone().unbind());
        Ok(Self::new(this.hub()?.clone_ref(connection.py()), "send()", what, timeout.or(this.settled())))
    }

    /// By one caller at a time.
    fn enter(&self) -> PyResult<MutexGuard<'_, Course>> {
        match self.course.try_lock() {
            Ok(course) => Ok(course),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(PyRuntimeError::new_err(format!("{} is being awaited already", self.name)))
            }
        }
    }

    fn step(&self, py: Python<'_>) -> PyResult<Step> {
        self.enter()?.step(py)
    }

    fn give_up(&self, py: Python<'_>) -> PyResult<()> {
        let mut course = self.enter()?;
        course.is_begun = true;
        course.settle(py);
        Ok(())
    }
}

impl Course {
    /// What is to be yielded, or what it came to.
    fn step(&mut self, py: Python<'_>) -> PyResult<Step> {
        if matches!(self.what, What::Nothing) {
            return Err(PyRuntimeError::new_err("it was awaited already; call the method again"));
        }
        if !std::mem::replace(&mut self.is_begun, true) && self.hub.get().is_due() {
            // The loop has its turn, and comes back.
            return Ok(Step::Yield(py.None()));
        }
        let is_late = match &self.seated {
            Some((_, ticket)) => {
                let word = ticket.get().reuse();
                word == Some(Word::Late) || self.deadline.is_some_and(|deadline| clock::now() >= deadline)
            }
            None => false,
        };
        match self.look(py) {
            Ok(Some(value)) => {
                self.settle(py);
                Ok(Step::End(value))
            }
            Ok(None) if is_late || self.timeout.is_some_and(|timeout| timeout.is_zero()) => {
                let error = self.late(py);
                self.settle(py);
                Err(error)
            }
            Ok(None) => self.wait(py).inspect_err(|_| self.settle(py)),
            Err(error) => {
                self.settle(py);
                Err(error)
            }
        }
    }

    /// `None`: not yet, and the seat will be told.
    fn look(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        loop {
            let seat = self.seated.as_mut().map(|(seat, _)| seat);
            let is_seated = seat.is_some();
            match self.what.look(py, seat)? {
                Look::Done(value) => return Ok(Some(value)),
                Look::Pending if is_seated => return Ok(None),
                Look::Pending => {
                    let (mut seat, ticket) = Hub::seat(self.hub.bind(py))?;
                    if clock::may_skip() {
                        self.deadline = self.timeout.and_then(|timeout| clock::now().checked_add(timeout));
                        seat.deadline = self.deadline;
                    }
                    self.seated = Some((seat, ticket));
                }
                Look::Busy => py.detach(|| self.what.wait_lock()),
            }
        }
    }

    fn wait(&mut self, py: Python<'_>) -> PyResult<Step> {
        let Some((_, ticket)) = &self.seated else { return Ok(Step::Yield(py.None())) };
        if let Some(timeout) = self.timeout
            && self.timer.is_none()
        {
            let expire = ticket.getattr(py, intern!(py, "expire"))?;
            let event_loop = self.hub.get().event_loop(py)?;
            self.timer =
                Some(event_loop.call_method1(intern!(py, "call_later"), (timeout.as_secs_f64(), expire))?.unbind());
        }
        Ok(Step::Yield(ticket.clone_ref(py).into_any()))
    }

    fn late(&mut self, py: Python<'_>) -> PyErr {
        match &mut self.what {
            What::Other(operation) => operation.late(py),
            What::Send(connection, _) if connection.get().raises_when_full => {
                super::errors::buffer_full(py, &connection.get().link)
            }
            _ => PyTimeoutError::new_err("timed out"),
        }
    }

    /// It is over: nothing of it is left anywhere.
    fn settle(&mut self, py: Python<'_>) {
        if let Some((mut seat, ticket)) = self.seated.take() {
            while seat.is_taken() && !self.what.leave(&mut seat) {
                py.detach(|| self.what.wait_lock());
            }
            self.hub.get().give_back(&seat);
            drop(ticket);
        }
        if let Some(timer) = self.timer.take() {
            // It has rung, perhaps.
            let _ = timer.call_method0(py, intern!(py, "cancel"));
        }
        self.what = What::Nothing;
    }
}

enum Step {
    Yield(Py<PyAny>),
    End(Py<PyAny>),
}

/// StopIteration with this value. A tuple would be taken for the arguments of the exception.
fn stop(py: Python<'_>, value: Py<PyAny>) -> PyErr {
    if value.bind(py).is_instance_of::<PyTuple>() {
        PyStopIteration::new_err((value,))
    } else {
        PyStopIteration::new_err(value)
    }
}

impl What {
    /// Without a seat it is an attempt, which may be pending for less than a good reason.
    fn look(&mut self, py: Python<'_>, seat: Option<&mut Seat>) -> PyResult<Look> {
        match self {
            Self::Recv(connection) => {
                let this = connection.get();
                match receive(py, &this.link, seat) {
                    Err(error) if is_told_as_empty(&this.link, &error) => {
                        Ok(Look::Done(PyBytes::new(py, b"").into_any().unbind()))
                    }
                    received => look(received, |error| this.error(py, error)),
                }
            }
            Self::Next(connection) => {
                let this = connection.get();
                match receive(py, &this.link, seat) {
                    Err(error) if this.ends_iteration(&error) => Err(PyStopAsyncIteration::new_err(())),
                    received => look(received, |error| this.error(py, error)),
                }
            }
            Self::Send(connection, data) => send(py, connection.get(), data, seat),
            Self::Other(operation) => seat.map_or(Ok(Look::Pending), |seat| operation.look(py, seat)),
            Self::Nothing => Ok(Look::Pending),
        }
    }

    fn link(&self) -> Option<&Link> {
        match self {
            Self::Recv(connection) | Self::Next(connection) | Self::Send(connection, _) => Some(&connection.get().link),
            Self::Other(_) | Self::Nothing => None,
        }
    }

    fn leave(&self, seat: &mut Seat) -> bool {
        match self {
            Self::Other(operation) => operation.leave(seat),
            _ => self.link().is_none_or(|link| has_left(link, seat)),
        }
    }

    fn wait_lock(&self) {
        match self {
            Self::Other(operation) => operation.wait_lock(),
            _ => {
                let _ = self.link().map(Link::wait_lock);
            }
        }
    }
}

/// After a fork there is nothing to leave.
pub(super) fn has_left(link: &Link, seat: &mut Seat) -> bool {
    !matches!(link.leave_seat(seat), Err(LinkError::Busy))
}

fn receive(py: Python<'_>, link: &Link, seat: Option<&mut Seat>) -> Result<Py<PyAny>, LinkError> {
    let received = match seat {
        None => link.try_recv(|message| PyBytes::new(py, message)).and_then(|attempt| match attempt {
            Attempt::Done(message) => Ok(message),
            Attempt::Later => Err(LinkError::Pending),
        }),
        Some(seat) => {
            let mut taken = None;
            link.recv_many_seated(1, seat, |message| taken = Some(PyBytes::new(py, message)))
                .and_then(|_| taken.ok_or(LinkError::Pending))
        }
    };
    received.map(|message| message.into_any().unbind())
}

/// `data` becomes another object where others may write to it while it waits.
pub(super) fn send(py: Python<'_>, this: &Connection, data: &mut Py<PyAny>, seat: Option<&mut Seat>) -> PyResult<Look> {
    let mut buffer = Buffer::readable(data.bind(py))?;
    let Some(seat) = seat else {
        return match this.link.try_send(buffer.bytes()) {
            Ok(Attempt::Done(())) => Ok(Look::Done(py.None())),
            Ok(Attempt::Later) => Ok(Look::Pending),
            Err(error) => Err(this.error(py, error)),
        };
    };
    if !buffer.is_readonly() {
        *data = PyBytes::new(py, buffer.bytes()).into_any().unbind();
        buffer = Buffer::readable(data.bind(py))?;
    }
    let bytes = buffer.bytes();
    let sent = if bytes.len() <= INLINE_BYTES {
        this.link.send(bytes, seat)
    } else {
        py.detach(|| this.link.send(bytes, seat))
    };
    match sent {
        Err(LinkError::Pending) if this.raises_when_full => Err(super::errors::buffer_full(py, &this.link)),
        sent => look(sent.map(|()| py.None()), |error| this.error(py, error)),
    }
}

#[pymethods]
impl Waiting {
    fn __await__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self.step(py)? {
            Step::Yield(value) => Ok(Some(value)),
            // Which is what the interpreter makes of an end without an exception.
            Step::End(value) if value.is_none(py) => Ok(None),
            Step::End(value) => Err(stop(py, value)),
        }
    }

    fn send(&self, py: Python<'_>, _value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        match self.step(py)? {
            Step::Yield(value) => Ok(value),
            Step::End(value) => Err(stop(py, value)),
        }
    }

    /// Given up: by a cancellation, or whatever it is.
    #[pyo3(signature = (kind, value = None, traceback = None, /))]
    fn throw(
        &self,
        py: Python<'_>,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.give_up(py)?;
        let error = match value {
            Some(value) if value.is_instance_of::<PyBaseException>() => value,
            Some(value) => kind.call1((value,))?,
            None if kind.is_instance_of::<PyBaseException>() => kind,
            None => kind.call0()?,
        };
        let error = PyErr::from_value(error);
        if let Some(traceback) = traceback {
            error.set_traceback(py, traceback.cast_into().ok());
        }
        Err(error)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.give_up(py)
    }

    fn __repr__(&self) -> String {
        let is_over = self.course.try_lock().is_ok_and(|course| matches!(course.what, What::Nothing));
        format!("<longconn.aio {}>", if is_over { "call, which is over" } else { self.name })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Who steps it has what is in it.
        let Ok(course) = self.course.try_lock() else { return Ok(()) };
        visit.call(&course.hub)?;
        visit.call(&course.timer)?;
        if let Some((_, ticket)) = &course.seated {
            visit.call(ticket)?;
        }
        match &course.what {
            What::Recv(connection) | What::Next(connection) => visit.call(connection),
            What::Send(connection, data) => {
                visit.call(connection)?;
                visit.call(data)
            }
            What::Other(operation) => operation.traverse(&visit),
            What::Nothing => Ok(()),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let name = self.name;
        let course = self.course.get_mut().unwrap_or_else(PoisonError::into_inner);
        if matches!(course.what, What::Nothing) {
            return;
        }
        Python::try_attach(|py| {
            let pending = PyErr::take(py);
            if !course.is_begun {
                let text = std::ffi::CString::new(format!("{name} was never awaited, so nothing was done"));
                let warned = text.map_or(Ok(()), |text| PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &text, 1));
                if let Err(error) = warned {
                    error.write_unraisable(py, None);
                }
            }
            course.settle(py);
            if let Some(pending) = pending {
                pending.restore(py);
            }
        });
    }
}

// ---- what is awaited less often -------------------------------------------------------------------------------

/// A wait on a connection's link, of what needs no more than its look.
pub(super) struct OnLink<F> {
    pub(super) connection: Py<Connection>,
    pub(super) look: F,
}

impl<F> Operation for OnLink<F>
where
    F: FnMut(Python<'_>, &Connection, &mut Seat) -> PyResult<Look> + Send + Sync,
{
    fn look(&mut self, py: Python<'_>, seat: &mut Seat) -> PyResult<Look> {
        (self.look)(py, self.connection.get(), seat)
    }

    fn leave(&self, seat: &mut Seat) -> bool {
        has_left(&self.connection.get().link, seat)
    }

    fn wait_lock(&self) {
        let _ = self.connection.get().link.wait_lock();
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.connection)
    }
}

/// The same on a server's listener.
pub(super) struct OnServer<F> {
    pub(super) server: Py<Server>,
    pub(super) interest: Interest,
    pub(super) look: F,
}

impl<F> Operation for OnServer<F>
where
    F: FnMut(Python<'_>, &Py<Server>, &mut Seat) -> PyResult<Look> + Send + Sync,
{
    fn look(&mut self, py: Python<'_>, seat: &mut Seat) -> PyResult<Look> {
        (self.look)(py, &self.server, seat)
    }

    fn leave(&self, seat: &mut Seat) -> bool {
        // After a fork there is nothing to leave.
        let _ = self.server.get().listener.leave_seat(self.interest, seat);
        true
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.server)
    }
}

/// `send_many`: goes on where it was.
pub(super) struct SendMany {
    pub(super) connection: Py<Connection>,
    pub(super) messages: Py<PyIterator>,
    pub(super) next: Option<Py<PyAny>>,
    pub(super) count: usize,
}

impl Operation for SendMany {
    fn look(&mut self, py: Python<'_>, seat: &mut Seat) -> PyResult<Look> {
        let this = self.connection.get();
        loop {
            let mut message = match self.next.take() {
                Some(message) => message,
                None => match self.messages.bind(py).clone().next() {
                    Some(message) => message?.unbind(),
                    None => return Ok(Look::Done(self.count.into_pyobject(py)?.into_any().unbind())),
                },
            };
            let mut looked = send(py, this, &mut message, None)?;
            if matches!(looked, Look::Pending) {
                looked = send(py, this, &mut message, Some(seat))?;
            }
            match looked {
                Look::Done(_) => self.count += 1,
                other => {
                    self.next = Some(message);
                    return Ok(other);
                }
            }
        }
    }

    fn leave(&self, seat: &mut Seat) -> bool {
        has_left(&self.connection.get().link, seat)
    }

    fn wait_lock(&self) {
        let _ = self.connection.get().link.wait_lock();
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.connection)?;
        visit.call(&self.messages)
    }
}

/// A connection's handshake; who gives it up closes it.
pub(super) struct Handshake {
    pub(super) opening: Opening,
    pub(super) hub: Py<Hub>,
}

impl Operation for Handshake {
    fn look(&mut self, py: Python<'_>, seat: &mut Seat) -> PyResult<Look> {
        match self.opening.link.wait_open(seat) {
            Err(LinkError::Pending) => Ok(Look::Pending),
            Err(LinkError::Busy) => Ok(Look::Busy),
            opened => Ok(Look::Done(self.opening.settle(py, opened, Some(self.hub.clone_ref(py)))?.into_any())),
        }
    }

    fn leave(&self, seat: &mut Seat) -> bool {
        has_left(&self.opening.link, seat)
    }

    fn wait_lock(&self) {
        let _ = self.opening.link.wait_lock();
    }

    fn late(&mut self, py: Python<'_>) -> PyErr {
        match self.opening.settle(py, Err(LinkError::TimedOut), None) {
            Err(error) => error,
            Ok(_) => PyTimeoutError::new_err("timed out"),
        }
    }
}

impl Operation for Dialling {
    fn look(&mut self, py: Python<'_>, seat: &mut Seat) -> PyResult<Look> {
        match self.wait(seat) {
            Err(LinkError::Pending) => Ok(Look::Pending),
            Err(error) => Err(listener_error(py, error)),
            Ok(outcome) => Ok(Look::Done(dialled(py, outcome)?.into_pyobject(py)?.into_any().unbind())),
        }
    }

    fn leave(&self, seat: &mut Seat) -> bool {
        self.leave_seat(seat);
        true
    }
}
