//! A LongConnection whose verbs wait, each in the thread that calls it.

use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;
use std::time::Instant;

use pyo3::exceptions::{PyException, PyStopIteration};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use super::{Connection, count_to_receive, state_to_wait_for};
use crate::engine::clock;
use crate::engine::link::{Attempt, Link, LinkError};
use crate::py::buffer::Buffer;
use crate::py::errors::buffer_full;
use crate::py::events::Events;
use crate::py::plain::{check_framed, is_told_as_empty, receive_size};
use crate::py::socket::bytes_of;
use crate::py::timeout::Timeout;

/// A message up to this is copied out by who waits for it, before it has the interpreter back.
pub(in crate::py) const CARRIED_BYTES: usize = 1024;
/// Between looks at whether a signal has come, while an iterable is sent.
const SIGNAL_CHECKS: usize = 1024;

#[doc = doc!("LongConnection")]
#[pyclass(frozen, extends = Connection, module = "longconn")]
pub(in crate::py) struct LongConnection;

fn base<'a>(connection: &'a Bound<'_, LongConnection>) -> &'a Connection {
    connection.as_super().get()
}

#[pymethods]
impl LongConnection {
    // ---- messages

    /// Send one message.
    #[pyo3(signature = (data, *, timeout = Timeout::LeftOut))]
    pub(in crate::py) fn send(
        slf: &Bound<'_, Self>,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        timeout: Timeout,
    ) -> PyResult<()> {
        base(slf).push(py, data, &mut Deadline::Later(timeout))
    }

    #[doc = doc!("LongConnection.sendall")]
    #[pyo3(signature = (data, *, timeout = Timeout::LeftOut))]
    fn sendall(slf: &Bound<'_, Self>, py: Python<'_>, data: &Bound<'_, PyAny>, timeout: Timeout) -> PyResult<()> {
        base(slf).push(py, data, &mut Deadline::Later(timeout))
    }

    #[doc = doc!("LongConnection.send_many")]
    #[pyo3(signature = (messages, *, timeout = Timeout::LeftOut))]
    fn send_many(
        slf: &Bound<'_, Self>,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        timeout: Timeout,
    ) -> PyResult<usize> {
        let mut deadline = Deadline::Later(timeout);
        let mut count = 0;
        for message in messages.try_iter()? {
            base(slf).push(py, &message?, &mut deadline)?;
            count += 1;
            if count % SIGNAL_CHECKS == 0 {
                py.check_signals()?;
            }
        }
        Ok(count)
    }

    #[doc = doc!("LongConnection.recv")]
    #[pyo3(signature = (*size, timeout = Timeout::LeftOut), text_signature = "($self, /, *size, timeout=...)")]
    fn recv<'py>(
        slf: &Bound<'py, Self>,
        py: Python<'py>,
        size: &Bound<'py, PyTuple>,
        timeout: Timeout,
    ) -> PyResult<Bound<'py, PyBytes>> {
        match receive_size(&base(slf).link, size)? {
            None => base(slf).recv_one(py, timeout),
            Some(size) => {
                let take = |link: &Link| link.try_recv_some(size, |bytes| PyBytes::new(py, bytes));
                base(slf).told(py, base(slf).take(py, timeout, take)?)
            }
        }
    }

    #[doc = doc!("LongConnection.recv_many")]
    #[pyo3(signature = (max_messages, *, timeout = Timeout::LeftOut))]
    fn recv_many<'py>(
        slf: &Bound<'py, Self>,
        py: Python<'py>,
        max_messages: isize,
        timeout: Timeout,
    ) -> PyResult<Bound<'py, PyList>> {
        let most = count_to_receive(max_messages)?;
        let mut messages = Vec::new();
        match base(slf)
            .take(py, timeout, |link| link.try_recv_many(most, |message| messages.push(PyBytes::new(py, message))))?
        {
            Err(error) if is_told_as_empty(&base(slf).link, &error) => {}
            received => drop(received.map_err(|error| base(slf).error(py, error))?),
        }
        PyList::new(py, messages)
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__<'py>(slf: &Bound<'py, Self>, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let this = base(slf);
        this.receive(py, Timeout::LeftOut)?.map_err(|error| {
            if this.ends_iteration(&error) { PyStopIteration::new_err(()) } else { this.error(py, error) }
        })
    }

    #[doc = doc!("LongConnection.flush")]
    #[pyo3(signature = (*, timeout = Timeout::LeftOut))]
    fn flush(slf: &Bound<'_, Self>, py: Python<'_>, timeout: Timeout) -> PyResult<()> {
        let deadline = base(slf).deadline(timeout);
        // Once for a whole call, however many signals interrupt it.
        let end = base(slf).ask(py, Link::begin_flush)?;
        base(slf).wait(py, deadline, |link, deadline| link.wait_taken(end, deadline))
    }

    #[doc = doc!("LongConnection.ping")]
    #[pyo3(signature = (*, timeout = Timeout::LeftOut))]
    fn ping(slf: &Bound<'_, Self>, py: Python<'_>, timeout: Timeout) -> PyResult<f64> {
        check_framed(&base(slf).link, "ping()")?;
        let deadline = base(slf).deadline(timeout);
        // Once for a whole call, as in `flush`.
        let ping = base(slf).ask(py, Link::begin_ping)?;
        Ok(base(slf).wait(py, deadline, |link, deadline| link.wait_pong(&mut { ping }, deadline))?.as_secs_f64())
    }

    #[doc = doc!("LongConnection.wait_for")]
    #[pyo3(signature = (state, *, timeout = Timeout::LeftOut))]
    fn wait_for(slf: &Bound<'_, Self>, py: Python<'_>, state: &str, timeout: Timeout) -> PyResult<()> {
        let wanted = state_to_wait_for(state)?;
        base(slf).wait(py, base(slf).deadline(timeout), |link, deadline| link.wait_state(wanted, deadline))
    }

    #[doc = doc!("LongConnection.events")]
    fn events(slf: &Bound<'_, Self>) -> Events {
        Events::of_link(slf.as_super().clone().unbind())
    }

    #[doc = doc!("LongConnection.fileno")]
    fn fileno(slf: &Bound<'_, Self>, py: Python<'_>) -> PyResult<RawFd> {
        base(slf).ask(py, Link::notification)
    }

    #[doc = doc!("LongConnection.close")]
    #[pyo3(signature = (code = 0, reason = "", *, timeout = Timeout::LeftOut))]
    fn close(slf: &Bound<'_, Self>, py: Python<'_>, code: i64, reason: &str, timeout: Timeout) -> PyResult<()> {
        let this = base(slf);
        this.begin_close(py, code, reason, timeout)?;
        let ending = this.wait_closed(py)?;
        this.judge(py, ending)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(
        slf: &Bound<'_, Self>,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if kind.is_none() {
            return Self::close(slf, py, 0, "", Timeout::LeftOut);
        }
        let this = base(slf);
        this.leave(py)?;
        // The exception says more than what closing comes to.
        match this.wait_closed(py) {
            Err(error) if !error.is_instance_of::<PyException>(py) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Connection {
    /// Calls that don't say otherwise have no timeout.
    pub(in crate::py) fn waits_for_ever(&self) -> bool {
        f64::from_bits(self.timeout.load(Ordering::Relaxed)).is_nan()
    }

    pub(in crate::py) fn recv_one<'py>(&self, py: Python<'py>, timeout: Timeout) -> PyResult<Bound<'py, PyBytes>> {
        self.told(py, self.receive(py, timeout)?)
    }

    /// What was received, as `recv` tells it.
    fn told<'py>(
        &self,
        py: Python<'py>,
        received: Result<Bound<'py, PyBytes>, LinkError>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        match received {
            Err(error) if is_told_as_empty(&self.link, &error) => Ok(PyBytes::new(py, b"")),
            received => received.map_err(|error| self.error(py, error)),
        }
    }

    /// Waits detached; a signal's handler runs in between.
    fn wait<T: Send>(
        &self,
        py: Python<'_>,
        deadline: Option<Instant>,
        wait: impl Fn(&Link, Option<Instant>) -> Result<T, LinkError> + Sync,
    ) -> PyResult<T> {
        wait_for(py, &self.link, deadline, wait)?.map_err(|error| self.error(py, error))
    }

    fn push(&self, py: Python<'_>, data: &Bound<'_, PyAny>, deadline: &mut Deadline) -> PyResult<()> {
        let buffer = Buffer::readable(data)?;
        match self.link.try_send(buffer.bytes()) {
            Ok(Attempt::Done(())) => return Ok(()),
            Ok(Attempt::Later) => {}
            Err(error) => return Err(self.error(py, error)),
        }
        let deadline = if self.raises_when_full { Some(clock::now()) } else { deadline.begin(self) };
        if buffer.is_readonly() {
            let bytes = buffer.bytes();
            return self.full(py, wait_for(py, &self.link, deadline, |link, deadline| link.send(bytes, deadline))?);
        }
        // Others may write to it once we are detached.
        let bytes = buffer.bytes().to_vec();
        self.full(py, wait_for(py, &self.link, deadline, |link, deadline| link.send(&bytes, deadline))?)
    }

    /// What came of a message, where the program may want to be told at once that there is no room.
    fn full(&self, py: Python<'_>, sent: Result<(), LinkError>) -> PyResult<()> {
        sent.map_err(|error| match error {
            LinkError::TimedOut if self.raises_when_full => buffer_full(py, &self.link),
            error => self.error(py, error),
        })
    }

    /// `take` runs under the link's lock; it is tried until it has given something.
    fn take<T>(
        &self,
        py: Python<'_>,
        timeout: Timeout,
        mut take: impl FnMut(&Link) -> Result<Attempt<T>, LinkError>,
    ) -> PyResult<Result<T, LinkError>> {
        let mut deadline = Deadline::Later(timeout);
        loop {
            match take(&self.link) {
                Ok(Attempt::Done(taken)) => return Ok(Ok(taken)),
                Ok(Attempt::Later) => {}
                Err(error) => return Ok(Err(error)),
            }
            let deadline = deadline.begin(self);
            if let Err(error) = wait_for(py, &self.link, deadline, |link, deadline| link.wait_readable(deadline))? {
                return Ok(Err(error));
            }
        }
    }

    fn receive<'py>(&self, py: Python<'py>, timeout: Timeout) -> PyResult<Result<Bound<'py, PyBytes>, LinkError>> {
        if self.link.framing().is_some() {
            return self.take(py, timeout, |link| link.try_recv(|message| PyBytes::new(py, message)));
        }
        let mut deadline = Deadline::Later(timeout);
        // Who waits brings a small message along: to take the lock for it once more would be felt.
        let mut room = [MaybeUninit::uninit(); CARRIED_BYTES];
        loop {
            let take = |message: &[u8]| PyBytes::new(py, message);
            let attempt = if timeout == Timeout::Forever || (timeout == Timeout::LeftOut && self.waits_for_ever()) {
                self.link.try_recv_or_begin(take)
            } else {
                self.link.try_recv(take).map(|attempt| attempt.map(Ok))
            };
            let carried = match attempt {
                Ok(Attempt::Done(Ok(message))) => return Ok(Ok(message)),
                Ok(Attempt::Done(Err(receiving))) => py.detach(|| receiving.finish(&mut room)),
                Ok(Attempt::Later) => {
                    let deadline = deadline.begin(self);
                    match self.link.begun(deadline) {
                        Some(length) => match self.receive_in_place(py, length, deadline)? {
                            Ok(Attempt::Done(message)) => return Ok(Ok(message)),
                            Ok(Attempt::Later) => Ok(Attempt::Later),
                            Err(error) => Err(error),
                        },
                        None => py.detach(|| self.link.recv_into(&mut room, deadline)),
                    }
                }
                Err(error) => return Ok(Err(error)),
            };
            match carried {
                Ok(Attempt::Done(length)) => {
                    // SAFETY: so many bytes were copied to its front.
                    return Ok(Ok(PyBytes::new(py, unsafe { room[..length].assume_init_ref() })));
                }
                Ok(Attempt::Later) => {}
                Err(LinkError::Interrupted) => py.check_signals()?,
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// The message that has begun, received into the object that it becomes.
    fn receive_in_place<'py>(
        &self,
        py: Python<'py>,
        length: usize,
        deadline: Option<Instant>,
    ) -> PyResult<Result<Attempt<Bound<'py, PyBytes>>, LinkError>> {
        let mut received = Ok(Attempt::Later);
        let message = bytes_of(py, length, |room| {
            received = py.detach(|| self.link.recv_in_place(room, deadline));
            Ok(if matches!(received, Ok(Attempt::Done(()))) { length } else { 0 })
        })?;
        Ok(received.map(|attempt| attempt.map(|()| message)))
    }
}

/// Waits on a link with the same deadline, whatever signals come.
pub(in crate::py) fn wait_for<T: Send>(
    py: Python<'_>,
    link: &Link,
    deadline: Option<Instant>,
    wait: impl Fn(&Link, Option<Instant>) -> Result<T, LinkError> + Sync,
) -> PyResult<Result<T, LinkError>> {
    loop {
        match py.detach(|| wait(link, deadline)) {
            Err(LinkError::Interrupted) => py.check_signals()?,
            other => return Ok(other),
        }
    }
}

/// One for a whole call; the clock is read only if it has to wait.
enum Deadline {
    Later(Timeout),
    At(Option<Instant>),
}

impl Deadline {
    fn begin(&mut self, connection: &Connection) -> Option<Instant> {
        if let Self::Later(timeout) = self {
            *self = Self::At(connection.deadline(*timeout));
        }
        match self {
            Self::At(deadline) => *deadline,
            Self::Later(_) => None,
        }
    }
}
