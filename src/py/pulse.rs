//! An expendable thread that attaches now and then, so that beats can tell whether Python runs.
//!
//! It lives while the engine has links or listeners. Who holds its lock never waits for Python, so it may be taken attached.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pyo3::prelude::*;

use super::free_threading;
use crate::engine::{interpreter, reactor, sync};
use crate::net::sys;

const PERIOD: Duration = Duration::from_millis(100);
/// Periods without a link after which it ends. Arbitrary.
const IDLE_PERIODS: u32 = 20;

struct Pulse {
    thread: Option<JoinHandle<()>>,
    is_running: bool,
    is_stopping: bool,
    /// None is started until a fork is over, or ever again.
    is_held: bool,
}

static PULSE: Mutex<Pulse> = Mutex::new(Pulse { thread: None, is_running: false, is_stopping: false, is_held: false });
static CHANGED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Pulse> {
    sync::lock(&PULSE)
}

/// To be called by who makes a link or a listener, attached.
pub(super) fn begin() {
    // Without a GIL each thread runs or hangs for itself, and whether this one can attach says nothing: the age is unknown.
    if !free_threading::has_gil() {
        return;
    }
    let mut pulse = lock();
    if pulse.is_running || pulse.is_held {
        return;
    }
    interpreter::note_ran();
    pulse.is_stopping = false;
    // Without memory for a thread the age is unknown.
    pulse.thread = thread::Builder::new().name("longconn-pulse".into()).spawn(run).ok();
    pulse.is_running = pulse.thread.is_some();
}

fn run() {
    sys::block_signals();
    let mut idle_periods = 0;
    let mut pulse = lock();
    while !pulse.is_stopping && idle_periods < IDLE_PERIODS {
        let (held, waited) = CHANGED.wait_timeout(pulse, PERIOD).unwrap_or_else(PoisonError::into_inner);
        pulse = held;
        if pulse.is_stopping || !waited.timed_out() {
            continue;
        }
        drop(pulse);
        // None: the interpreter is going.
        let ran = Python::try_attach(|_| interpreter::note_ran());
        pulse = lock();
        if ran.is_none() {
            break;
        }
        idle_periods = if reactor::members() > 0 { 0 } else { idle_periods + 1 };
    }
    interpreter::forget();
    pulse.is_running = false;
}

/// Ends it and waits for that; detached, for it may be waiting for the interpreter.
pub(super) fn pause() {
    let mut pulse = lock();
    pulse.is_held = true;
    pulse.is_stopping = true;
    let thread = pulse.thread.take();
    drop(pulse);
    CHANGED.notify_all();
    if let Some(thread) = thread {
        let _ = thread.join();
    }
}

pub(super) fn after_in_parent() {
    lock().is_held = false;
    if reactor::members() > 0 {
        begin();
    }
}

pub(super) fn after_in_child() {
    lock().is_held = false;
}
