//! `LongConnection`: a link for Python. Converts, tries what doesn't wait, and detaches for the rest.

use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyException, PyResourceWarning, PyRuntimeError, PyStopIteration, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use pyo3::{PyTraverseError, PyVisit};

use super::aio::AsyncConnection;
use super::buffer::Buffer;
use super::callback::call;
use super::dial::{Places, target};
use super::errors::{ended, link_error, seconds};
use super::events::{Events, observe, time_of};
use super::hub::Hub;
use super::keepalive::{keepalive, take_over};
use super::plain::{check_framed, is_told_as_empty, receive_size};
use super::pulse;
use super::socket::bytes_of;
use super::tcp_info::TcpInfo;
use super::timeout::Timeout;
use super::tls::{self, ClientSettings, Handshaken};
use super::waiting::{Handshake, Waiting};
use crate::engine::link::{Attempt, Keeper, Link, LinkError, Reconnect};
use crate::engine::{clock, notices};
use crate::net::tls::ClientTls;
use crate::proto::adaptive::{AdaptiveConfig, Learnt, Losses, Network};
use crate::proto::backoff::BackoffConfig;
use crate::proto::cause::{Cause, Ending};
use crate::proto::close::{Close, CloseCode, FIRST_APPLICATION_CODE};
use crate::proto::connection::{Config, Introduction, State};
use crate::proto::detector::{DetectorConfig, PhiConfig};
use crate::proto::heartbeat::{HeartbeatConfig, MAX_STATUS_BYTES};

/// How long a goodbye takes at most where no timeout is set: long enough for what is under way, and an end all the same.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same when an exception leaves the `with` block.
const HASTE: Duration = Duration::from_secs(1);
/// For ever, for instants.
const AGES: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// A message up to this is copied out by who waits for it, before it has the interpreter back.
pub(super) const CARRIED_BYTES: usize = 1024;
/// Between looks at whether a signal has come, while an iterable is sent.
const SIGNAL_CHECKS: usize = 1024;

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

/// What `Heartbeat` hands over: interval, limit, is it phi, floor, threshold, window, least deviation, acceptable pause,
/// application limit, interpreter limit; seconds. And how far the interval may grow, and by which steps.
pub(super) type Rhythm =
    (f64, Option<f64>, bool, f64, f64, usize, f64, f64, Option<f64>, Option<f64>, Option<(f64, f64)>);

/// Of all connections that this process has made.
static LOSSES: OnceLock<Arc<Losses>> = OnceLock::new();

pub(super) fn config(heartbeat: Rhythm, largest_message_bytes: u64, handshake_timeout: Duration) -> PyResult<Config> {
    let (interval, limit, is_phi, floor, threshold, window, min_std, pause, application, interpreter, adaptive) =
        heartbeat;
    let want = seconds(interval)?;
    let adaptive = match adaptive {
        Some((max, step)) => Some(AdaptiveConfig { min: want, max: seconds(max)?, step }),
        None => None,
    };
    let heartbeat = HeartbeatConfig {
        want,
        adaptive,
        floor: seconds(floor)?,
        limit: limit.map(seconds).transpose()?,
        detector: if is_phi {
            let (min_std, acceptable_pause) = (seconds(min_std)?, seconds(pause)?);
            DetectorConfig::Phi(PhiConfig { threshold, window, min_std, acceptable_pause })
        } else {
            DetectorConfig::Limit
        },
        application_limit: application.map(seconds).transpose()?,
        interpreter_limit: interpreter.map(seconds).transpose()?,
    };
    heartbeat.validate().map_err(|error| PyValueError::new_err(error.to_string()))?;
    let losses = LOSSES.get_or_init(Arc::default).clone();
    Ok(Config { heartbeat, largest_message_bytes, handshake_timeout, losses, ..Config::default() })
}

/// What is known of a network: its prefix, the longest interval that was borne, for how long that has been settled, and how often it
/// has failed since; seconds.
type Kept = (String, f64, Option<f64>, u32);

fn learnt_before((prefix, proven, settled_for, failures): Kept) -> PyResult<(Network, Learnt)> {
    let prefix = prefix.parse().map_err(|_| PyValueError::new_err(format!("not an IP address: {prefix}")))?;
    let settled_for = settled_for.map(seconds).transpose()?;
    Ok((Network::of(prefix), Learnt { proven: seconds(proven)?, settled_for, failures }))
}

/// Has `keeper` called with a list of [`Kept`], on the thread of the notices.
fn keep_by(keeper: Py<PyAny>) -> Keeper {
    let keeper = Arc::new(keeper);
    Box::new(move |learnt| {
        let keeper = keeper.clone();
        let kept = move |(network, learnt): (Network, Learnt)| -> Kept {
            let settled_for = learnt.settled_for.map(|age| age.as_secs_f64());
            (network.prefix().to_string(), learnt.proven.as_secs_f64(), settled_for, learnt.failures)
        };
        notices::call(Box::new(move || {
            Python::try_attach(move |py| {
                let learnt: Vec<_> = learnt.into_iter().map(kept).collect();
                if let Err(error) = call(keeper.bind(py), (learnt,)) {
                    error.write_unraisable(py, Some(keeper.bind(py)));
                }
            });
        }));
    })
}

/// How a client comes back: to which places, the first spread, the cap and the factor of its backoff, whether it follows the
/// server's word, whether it sends again what may have been taken, when it gives up; seconds. And the kernel's probes.
pub(super) type ComingBack = (Places, f64, f64, f64, bool, bool, Option<f64>, Option<(f64, f64, u32, Option<f64>)>);

fn reconnect(
    (places, first, cap, factor, follows, _, _, probes): ComingBack,
    tls: Option<ClientTls>,
) -> PyResult<Reconnect> {
    let backoff = BackoffConfig { first: seconds(first)?, cap: seconds(cap)?, factor };
    backoff.validate().map_err(|error| PyValueError::new_err(error.to_string()))?;
    let keepalive = match probes {
        Some((idle, interval, count, user_timeout)) => {
            Some(keepalive(Some(true), Some(idle), Some(interval), Some(count), user_timeout)?)
        }
        None => None,
    };
    Ok(Reconnect { target: target(places), backoff, follows, keepalive, tls })
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

#[doc = doc!("LongConnection")]
#[pyclass(frozen, extends = Connection, module = "longconn")]
pub(super) struct LongConnection;

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

    /// Calls that don't say otherwise have no timeout.
    pub(super) fn waits_for_ever(&self) -> bool {
        f64::from_bits(self.timeout.load(Ordering::Relaxed)).is_nan()
    }

    pub(super) fn recv_one<'py>(&self, py: Python<'py>, timeout: Timeout) -> PyResult<Bound<'py, PyBytes>> {
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

    /// Waits detached; a signal's handler runs in between.
    fn wait<T: Send>(
        &self,
        py: Python<'_>,
        deadline: Option<Instant>,
        wait: impl Fn(&Link, Option<Instant>) -> Result<T, LinkError> + Sync,
    ) -> PyResult<T> {
        wait_for(py, &self.link, deadline, wait)?.map_err(|error| self.error(py, error))
    }

    /// What takes the link's lock for a moment.
    pub(super) fn ask<T: Send>(
        &self,
        py: Python<'_>,
        ask: impl Fn(&Link) -> Result<T, LinkError> + Sync,
    ) -> PyResult<T> {
        py.detach(|| ask(&self.link)).map_err(|error| self.error(py, error))
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
            LinkError::TimedOut if self.raises_when_full => super::errors::buffer_full(py, &self.link),
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

    pub(super) fn say_goodbye(&self, py: Python<'_>, close: Close, grace: Option<Duration>) -> PyResult<()> {
        self.is_closed.store(true, Ordering::Relaxed);
        let grace = grace.unwrap_or(AGES).min(AGES);
        match py.detach(|| self.link.close(close, grace)) {
            // What the parent's child drops is closed here already.
            Ok(()) | Err(LinkError::Forked) => Ok(()),
            Err(error) => Err(self.error(py, error)),
        }
    }

    fn wait_closed(&self, py: Python<'_>) -> PyResult<Option<Arc<Ending>>> {
        match wait_for(py, &self.link, None, |link, deadline| link.wait_ended(deadline))? {
            Ok(ending) => Ok(Some(ending)),
            Err(LinkError::Forked) => Ok(None),
            Err(error) => Err(self.error(py, error)),
        }
    }

    /// Says goodbye as `close` is asked to.
    pub(super) fn begin_close(&self, py: Python<'_>, code: i64, reason: &str, timeout: Timeout) -> PyResult<()> {
        let close = close_frame(code, reason)?;
        if code != 0 || !reason.is_empty() {
            check_framed(&self.link, "close() with a code or a reason")?;
        }
        self.say_goodbye(py, close, timeout.or(Some(self.settled().unwrap_or(PATIENCE))))
    }

    /// The same for a program that goes on with an exception.
    pub(super) fn leave(&self, py: Python<'_>) -> PyResult<()> {
        let grace = self.settled().unwrap_or(PATIENCE).min(HASTE);
        self.say_goodbye(py, Close::new(CloseCode::GOING_AWAY, ""), Some(grace))
    }

    /// Says goodbye for a handler that won't come back to it.
    pub(super) fn abandon(&self, py: Python<'_>, has_failed: bool) -> PyResult<()> {
        if has_failed {
            self.say_goodbye(py, Close::new(CloseCode::FAILED, "its handler has failed"), Some(HASTE))
        } else {
            self.leave(py)
        }
    }

    /// What `close` has to say to how it has ended.
    pub(super) fn judge(&self, py: Python<'_>, ending: Option<Arc<Ending>>) -> PyResult<()> {
        match ending {
            Some(ending) if !self.is_told.swap(true, Ordering::Relaxed) && ending.untaken_bytes > 0 => {
                if ending.cause != Cause::Closed || ending.by_peer {
                    // That such a peer takes nothing more is no news behind the end of its stream.
                    if self.ask(py, Link::knows_end)? {
                        return Ok(());
                    }
                    return Err(self.error(py, LinkError::Ended(ending)));
                }
                let whose = if self.link.framing().is_none() { "program had not taken" } else { "kernel had not got" };
                Err(PyTimeoutError::new_err(format!(
                    "closed, but the peer's {whose} {} bytes in time",
                    ending.untaken_bytes
                )))
            }
            _ => Ok(()),
        }
    }

    fn ending(&self, py: Python<'_>) -> Option<Arc<Ending>> {
        py.detach(|| self.link.ending()).ok().flatten()
    }
}

/// Waits on a link with the same deadline, whatever signals come.
pub(super) fn wait_for<T: Send>(
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

pub(super) fn close_frame(code: i64, reason: &str) -> PyResult<Close> {
    let code = match u16::try_from(code) {
        Ok(code @ (0 | 1)) => code,
        Ok(code) if code >= FIRST_APPLICATION_CODE => code,
        _ => {
            return Err(PyValueError::new_err(format!(
                "code={code}: 0 (normal), 1 (going away), or one of the program's own, {FIRST_APPLICATION_CODE} to 65535"
            )));
        }
    };
    if reason.len() > 1024 {
        return Err(PyValueError::new_err(format!("reason: {} bytes, at most 1024", reason.len())));
    }
    Ok(Close::new(CloseCode(code), reason))
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

fn base<'a>(connection: &'a Bound<'_, LongConnection>) -> &'a Connection {
    connection.as_super().get()
}

#[pymethods]
impl LongConnection {
    // ---- messages

    /// Send one message.
    #[pyo3(signature = (data, *, timeout = Timeout::LeftOut))]
    pub(super) fn send(
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
        size: &Bound<'py, pyo3::types::PyTuple>,
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
        if self.link.framing().is_some() {
            let (state, stats, tcp_info) =
                self.ask(py, |link| Ok((link.state()?, link.plain_stats()?, link.tcp_info()?)))?;
            let Some(stats) = stats else { return Err(PyValueError::new_err("the connection was never open")) };
            return super::plain::stats(py, state, &stats, tcp_info.as_ref());
        }
        let (connections, after_close) = self
            .ask(py, |link| Ok((link.openings()?, link.ending()?.map_or(0, |ending| ending.messages_after_close))))?;
        let (state, stats, ages, peer_ages_at, tcp_info) = self.ask(py, |link| {
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
        let told = peer_ages_at.map(|at| crate::engine::clock::now().saturating_duration_since(at));
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

/// As a socket that nobody has closed: it is said, and done.
impl Drop for Connection {
    fn drop(&mut self) {
        if !self.is_owner.load(Ordering::Relaxed) {
            return;
        }
        Python::try_attach(|py| {
            let is_over = py.detach(|| {
                let is_over = !matches!(self.link.ending(), Ok(None));
                let _ = self.link.forget();
                is_over
            });
            if is_over || self.is_closed.load(Ordering::Relaxed) {
                return;
            }
            let pending = PyErr::take(py);
            let (ours, theirs) = (self.link.local_address(), self.link.peer_address());
            let text = std::ffi::CString::new(format!("unclosed <{} {ours} -> {theirs}>", self.class_name()));
            let warned = text.map_or(Ok(()), |text| PyErr::warn(py, &py.get_type::<PyResourceWarning>(), &text, 1));
            if let Err(error) = warned {
                error.write_unraisable(py, None);
            }
            if let Some(pending) = pending {
                pending.restore(py);
            }
            // It doesn't wait; what was sent gets its chance.
            let _ = py.detach(|| self.link.close(Close::new(CloseCode::GOING_AWAY, ""), HASTE));
        });
    }
}

/// Makes a link of a connected TCP socket, which it takes over, and waits for the handshake: at once, or where there is a hub
/// by what it returns, to be awaited.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "one for each of connect's")]
#[pyo3(signature = (
    fd,
    *,
    heartbeat,
    largest_message_bytes,
    client_id,
    token,
    timeout,
    on_event,
    coming_back,
    raises_when_full,
    tls,
    handshaken,
    learnt = None,
    keeper = None,
    hub = None
))]
pub(super) fn open_link(
    py: Python<'_>,
    fd: RawFd,
    heartbeat: Rhythm,
    largest_message_bytes: u64,
    client_id: String,
    token: Vec<u8>,
    timeout: Timeout,
    on_event: Option<Py<PyAny>>,
    coming_back: Option<ComingBack>,
    raises_when_full: bool,
    tls: Option<Py<ClientSettings>>,
    handshaken: Option<Py<Handshaken>>,
    learnt: Option<Vec<Kept>>,
    keeper: Option<Py<PyAny>>,
    hub: Option<Py<Hub>>,
) -> PyResult<Py<PyAny>> {
    let socket = take_over(fd)?;
    let deadline = timeout.deadline(None);
    // The caller's deadline comes first, or the time is nobody's to choose but the peer's.
    let handshake_timeout = timeout.or(None).unwrap_or(AGES).saturating_add(HASTE).min(AGES);
    let mut config = config(heartbeat, largest_message_bytes, handshake_timeout)?;
    if let Some((.., resends, give_up_after, _)) = &coming_back {
        config.resends = *resends;
        config.give_up_after = give_up_after.map(seconds).transpose()?;
    }
    let learnt = learnt.into_iter().flatten().map(learnt_before).collect::<PyResult<_>>()?;
    let introduction = Introduction { client_id, token, will_resume: coming_back.is_some(), learnt };
    let tls = tls.map(|settings| settings.get().0.clone());
    let coming_back = coming_back.map(|how| reconnect(how, tls)).transpose()?;
    let secured = handshaken.and_then(|handshaken| handshaken.get().take());
    let link = py
        .detach(|| {
            let link = Link::client(socket, secured, Arc::new(config), introduction)?;
            if let Some(coming_back) = coming_back {
                link.set_reconnect(coming_back)?;
            }
            Ok(link)
        })
        .map_err(|error: LinkError| super::errors::listener_error(py, error))?;
    pulse::begin();
    let mut opening = Opening { link, raises_when_full, is_over: false };
    observe(py, &opening.link, on_event).map_err(|error| link_error(py, error, &opening.link, false))?;
    if let Some(keeper) = keeper {
        let keeper = keep_by(keeper);
        py.detach(|| opening.link.set_keeper(keeper)).map_err(|error| link_error(py, error, &opening.link, false))?;
    }
    if let Some(hub) = hub {
        return Waiting::of(py, &hub, Box::new(Handshake { opening, hub: hub.clone_ref(py) }), timeout.or(None));
    }
    let opened = wait_for(py, &opening.link, deadline, |link, deadline| link.wait_open(deadline))?;
    Ok(opening.settle(py, opened, None)?.into_any())
}

/// A connection whose handshake is under way; it goes with who waits for it.
pub(super) struct Opening {
    pub(super) link: Arc<Link>,
    raises_when_full: bool,
    is_over: bool,
}

impl Opening {
    /// What came of waiting for it.
    pub(super) fn settle(
        &mut self,
        py: Python<'_>,
        opened: Result<(), LinkError>,
        hub: Option<Py<Hub>>,
    ) -> PyResult<Py<Connection>> {
        self.is_over = matches!(opened, Ok(()) | Err(LinkError::Ended(_)));
        match opened {
            Ok(()) => {
                let manner = Manner { raises_when_full: self.raises_when_full, hub, ..Manner::default() };
                Connection::make(py, self.link.clone(), true, manner)
            }
            Err(LinkError::Ended(ending)) => Err(ended(py, &ending, &self.link, false).unwrap_or_else(|error| error)),
            Err(LinkError::TimedOut) => Err(PyTimeoutError::new_err(format!(
                "{} accepted the connection and did not finish the handshake in time: if it isn't a LongServer, say framing=...",
                self.link.peer_address()
            ))),
            Err(error) => Err(link_error(py, error, &self.link, false)),
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.is_over {
            Python::try_attach(|py| {
                let _ = py.detach(|| self.link.close(Close::new(CloseCode::NORMAL, ""), Duration::ZERO));
            });
        }
    }
}
