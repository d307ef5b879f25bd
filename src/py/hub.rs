//! The hub of an event loop, for Python; and the tickets of its tasks, which are futures as far as a task asks.

use std::mem;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyDict, PyWeakrefMethods, PyWeakrefReference};
use pyo3::{PyTraverseError, PyVisit};
use slab::Slab;

use super::errors::os_error;
use crate::engine::hub::{self as engine, Seat};
use crate::engine::sync::lock;

/// Awaits that were over at once, before the loop has its turn all the same: whoever receives as fast as messages come would else
/// keep it from everyone. Arbitrary; a turn costs what twenty of them do.
const TURN: u32 = 512;

/// Of one event loop, which watches its descriptor and calls `run` when that is readable.
#[pyclass(frozen, weakref, module = "longconn._longconn")]
pub(super) struct Hub {
    shared: Arc<engine::Hub>,
    /// It has us, by what it watches, and not every loop can be cleared of that.
    event_loop: Py<PyWeakrefReference>,
    /// Of those who wait, by the tokens of their seats.
    tickets: Mutex<Slab<Py<Ticket>>>,
    /// How many awaits were over at once since the loop had its turn.
    spent: AtomicU32,
}

impl Hub {
    /// A seat for who is going to wait.
    pub(super) fn seat(slf: &Bound<'_, Self>) -> PyResult<(Seat, Py<Ticket>)> {
        let this = slf.get();
        let ticket = Py::new(slf.py(), Ticket::new(slf.clone().unbind()))?;
        let token = lock(&this.tickets).insert(ticket.clone_ref(slf.py()));
        Ok((Seat::new(this.shared.clone(), token), ticket))
    }

    pub(super) fn give_back(&self, seat: &Seat) {
        let ticket = lock(&self.tickets).try_remove(seat.token());
        drop(ticket);
    }

    /// Whether the loop is to have its turn before the next await may be over.
    pub(super) fn is_due(&self) -> bool {
        let is_due = self.spent.fetch_add(1, Ordering::Relaxed) >= TURN;
        if is_due {
            self.spent.store(0, Ordering::Relaxed);
        }
        is_due
    }

    pub(super) fn event_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let event_loop = self.event_loop.bind(py).upgrade();
        event_loop.ok_or_else(|| PyRuntimeError::new_err("the event loop that this belongs to is gone"))
    }
}

#[pymethods]
impl Hub {
    #[new]
    fn new(event_loop: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self {
            shared: engine::Hub::new().map_err(|error| os_error(&error))?,
            event_loop: PyWeakrefReference::new(event_loop)?.unbind(),
            tickets: Mutex::default(),
            spent: AtomicU32::new(0),
        })
    }

    /// None when it is gone.
    #[getter(event_loop)]
    fn get_event_loop<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.event_loop.bind(py).upgrade()
    }

    /// What the loop is to watch.
    fn fileno(&self) -> RawFd {
        self.shared.descriptor().unwrap_or(-1)
    }

    /// To be called by the loop when that is readable.
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let mut tokens = Vec::new();
        self.spent.store(0, Ordering::Relaxed);
        let outcome = self.shared.run(&mut tokens);
        let mut called = Vec::new();
        {
            let tickets = lock(&self.tickets);
            called.extend(tokens.iter().filter_map(|token| tickets.get(*token)).map(|ticket| ticket.clone_ref(py)));
        }
        match called.as_slice() {
            // A future would have its task called in the loop's next turn; one that is alone need not wait for that, which is
            // a quarter of a round trip.
            [ticket] => {
                Ticket::resolve(ticket.bind(py), Word::Come, None, When::Now)?;
            }
            tickets => {
                for ticket in tickets {
                    Ticket::resolve(ticket.bind(py), Word::Come, None, When::Soon)?;
                }
            }
        }
        outcome.map_err(|error| os_error(&error))
    }

    /// In a forked child: closes our copies of the descriptors.
    fn close_in_child(&self) {
        self.shared.close_in_child();
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Held for a few instructions, attached.
        let Ok(tickets) = self.tickets.try_lock() else { return Ok(()) };
        tickets.iter().try_for_each(|(_, ticket)| visit.call(ticket))
    }

    fn __clear__(&self) {
        let tickets = mem::take(&mut *lock(&self.tickets));
        drop(tickets);
    }
}

/// What a ticket's owner has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// It is worth another look.
    Come,
    /// The time is up.
    Late,
    Cancelled,
}

enum When {
    /// The loop is calling.
    Now,
    /// Somebody else is; the loop calls in its next turn.
    Soon,
}

/// What a task waits for: as much of `asyncio.Future` as a task asks for (`Task.__step` in asyncio/tasks.py), and no more, for it is made
/// for each wait.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct Ticket {
    hub: Py<Hub>,
    is_blocking: AtomicBool,
    told: Mutex<Told>,
}

/// Nothing of it is dropped, nor called, under its lock.
#[derive(Default)]
struct Told {
    word: Option<Word>,
    /// With the context to call it in.
    callback: Option<(Py<PyAny>, Option<Py<PyAny>>)>,
    message: Option<Py<PyAny>>,
}

impl Ticket {
    fn new(hub: Py<Hub>) -> Self {
        Self { hub, is_blocking: AtomicBool::new(true), told: Mutex::default() }
    }

    /// What it was told, once; it may be waited for again.
    pub(super) fn reuse(&self) -> Option<Word> {
        self.is_blocking.store(true, Ordering::Relaxed);
        lock(&self.told).word.take()
    }

    fn word(&self) -> Option<Word> {
        lock(&self.told).word
    }

    fn resolve(slf: &Bound<'_, Self>, word: Word, message: Option<Py<PyAny>>, when: When) -> PyResult<bool> {
        let mut told = lock(&slf.get().told);
        if told.word.is_some() {
            return Ok(false);
        }
        told.word = Some(word);
        let before = mem::replace(&mut told.message, message);
        let callback = told.callback.take();
        drop(told);
        drop(before);
        if let Some((callback, context)) = callback {
            // Tasks in Python are there where a loop may be run within a step of one (nest_asyncio): the loop's call of us, in
            // its context, must not be around that.
            let is_native = callback.bind(slf.py()).is_instance_of::<PyCFunction>();
            let when = if is_native { when } else { When::Soon };
            Self::call(slf, &callback, context.as_ref(), when)?;
        }
        Ok(true)
    }

    fn call(slf: &Bound<'_, Self>, callback: &Py<PyAny>, context: Option<&Py<PyAny>>, when: When) -> PyResult<()> {
        let py = slf.py();
        match (when, context) {
            (When::Now, Some(context)) => {
                context.bind(py).call_method1(intern!(py, "run"), (callback, slf))?;
            }
            (When::Now, None) => {
                callback.bind(py).call1((slf,))?;
            }
            (When::Soon, context) => {
                let event_loop = slf.get().hub.get().event_loop(py)?;
                let keywords = PyDict::new(py);
                keywords.set_item(intern!(py, "context"), context)?;
                event_loop.call_method(intern!(py, "call_soon"), (callback, slf), Some(&keywords))?;
            }
        }
        Ok(())
    }
}

#[pymethods]
impl Ticket {
    #[getter(_asyncio_future_blocking)]
    fn is_blocking(&self) -> bool {
        self.is_blocking.load(Ordering::Relaxed)
    }

    #[setter(_asyncio_future_blocking)]
    fn set_blocking(&self, is_blocking: bool) {
        self.is_blocking.store(is_blocking, Ordering::Relaxed);
    }

    fn get_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.hub.get().event_loop(py)
    }

    #[pyo3(signature = (callback, /, *, context = None))]
    fn add_done_callback(slf: &Bound<'_, Self>, callback: Py<PyAny>, context: Option<Py<PyAny>>) -> PyResult<()> {
        let mut told = lock(&slf.get().told);
        if told.word.is_some() {
            drop(told);
            return Self::call(slf, &callback, context.as_ref(), When::Soon);
        }
        let before = told.callback.replace((callback, context));
        drop(told);
        drop(before);
        Ok(())
    }

    fn remove_done_callback(&self, _callback: &Bound<'_, PyAny>) -> usize {
        let callback = lock(&self.told).callback.take();
        usize::from(callback.is_some())
    }

    #[pyo3(signature = (msg = None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Py<PyAny>>) -> PyResult<bool> {
        Self::resolve(slf, Word::Cancelled, msg, When::Soon)
    }

    fn cancelled(&self) -> bool {
        self.word() == Some(Word::Cancelled)
    }

    fn done(&self) -> bool {
        self.word().is_some()
    }

    fn result(&self, py: Python<'_>) -> PyResult<()> {
        let told = lock(&self.told);
        if told.word != Some(Word::Cancelled) {
            return Ok(());
        }
        let message = told.message.as_ref().map(|message| message.clone_ref(py));
        drop(told);
        static CANCELLED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let class = CANCELLED.import(py, "asyncio", "CancelledError")?;
        Err(PyErr::from_value(match message {
            Some(message) => class.call1((message,))?,
            None => class.call0()?,
        }))
    }

    /// Called by the loop when the time is up.
    fn expire(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::resolve(slf, Word::Late, None, When::Now).map(drop)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.hub)?;
        // Held for a few instructions, attached.
        let Ok(told) = self.told.try_lock() else { return Ok(()) };
        visit.call(&told.message)?;
        if let Some((callback, context)) = &told.callback {
            visit.call(callback)?;
            visit.call(context)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let callback = lock(&self.told).callback.take();
        drop(callback);
    }
}
