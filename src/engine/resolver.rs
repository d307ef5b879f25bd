//! The threads that look names up: expendable, for getaddrinfo(3) blocks as long as it likes and can't be cancelled.
//!
//! They start when there is something to look up and end when there is nothing more. They never attach to Python, so nothing has
//! to wait for them, at exit neither. No other lock of ours is taken while theirs is held, but the notices'.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::{PoisonError, TryLockError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::engine::dial::Dial;
use crate::engine::sync::{self, Condvar, Mutex, MutexGuard, global};
use crate::engine::{clock, fork};
use crate::net::{resolve, sys};

/// More than that hang at once only where every server for names is gone, and the rest waits for its turn.
const MOST_THREADS: usize = 8;
/// How long a fork waits for them: long enough for an answer from a cache. One that takes longer waits for the network, and there
/// getaddrinfo holds none of the locks that a child would find locked.
const PATIENCE: Duration = Duration::from_millis(100);

/// One name, for all who wanted it before its turn came.
struct LookUp {
    host: String,
    /// With the number of the place that each has it for.
    callers: Vec<(Weak<Dial>, usize)>,
}

struct Queue {
    waiting: VecDeque<LookUp>,
    /// That haven't come to their end.
    threads: usize,
    /// Of these, and of some that have.
    handles: Vec<JoinHandle<()>>,
    /// No thread begins until a fork is over.
    paused: bool,
    /// Nor ever again.
    closed: bool,
}

global! {
    static QUEUE: Mutex<Queue> =
        Mutex::new(Queue { waiting: VecDeque::new(), threads: 0, handles: Vec::new(), paused: false, closed: false });
    /// A thread has ended.
    static CHANGED: Condvar = Condvar::new();
}

fn lock() -> MutexGuard<'static, Queue> {
    sync::lock(&QUEUE)
}

/// Has `dial` told what addresses the host has; it is an error if there is no thread for that. Who comes while the same name waits for
/// its turn shares the answer. A look-up that has begun isn't shared: it may hang, and its question may be older than the network
/// that has come back.
pub(super) fn look_up(host: &str, dial: Weak<Dial>, place: usize) -> io::Result<()> {
    let mut queue = lock();
    if let Some(other) = queue.waiting.iter_mut().find(|other| other.host == host) {
        other.callers.push((dial, place));
        return Ok(());
    }
    queue.waiting.push_back(LookUp { host: host.to_owned(), callers: vec![(dial, place)] });
    let started = queue.start();
    if queue.threads == 0 && !queue.paused { started.inspect_err(|_| drop(queue.waiting.pop_back())) } else { Ok(()) }
}

impl Queue {
    /// One more thread, if it is wanted: each that runs is busy.
    fn start(&mut self) -> io::Result<()> {
        if self.paused || self.closed || self.waiting.is_empty() || self.threads >= MOST_THREADS {
            return Ok(());
        }
        let thread = thread::Builder::new().name("longconn-names".into()).spawn(run)?;
        self.threads += 1;
        self.handles.retain(|thread| !thread.is_finished());
        self.handles.push(thread);
        Ok(())
    }

    fn next(&mut self) -> Option<LookUp> {
        if self.paused || self.closed { None } else { self.waiting.pop_front() }
    }
}

fn run() {
    sys::block_signals();
    if fork::generation() > 0 {
        sys::begin_names_anew();
    }
    let mut queue = lock();
    while let Some(LookUp { host, callers }) = queue.next() {
        drop(queue);
        // Servers are not asked for who has gone meanwhile.
        if callers.iter().any(|(dial, _)| dial.upgrade().is_some_and(|dial| dial.wants_names())) {
            let found = resolve::look_up(&host);
            for dial_and_place in callers {
                if let (Some(dial), place) = (dial_and_place.0.upgrade(), dial_and_place.1) {
                    dial.on_names(place, found.clone());
                }
            }
        }
        queue = lock();
    }
    queue.threads -= 1;
    drop(queue);
    CHANGED.notify_all();
}

/// Has the threads end, and waits a moment for it. None begins until a fork is over.
pub(super) fn pause(deadline: Instant) {
    let deadline = deadline.min(clock::real() + PATIENCE);
    let mut queue = lock();
    queue.paused = true;
    while queue.threads > 0 {
        let left = deadline.saturating_duration_since(clock::real());
        if left.is_zero() {
            return;
        }
        queue = CHANGED.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    let handles = mem::take(&mut queue.handles);
    drop(queue);
    for thread in handles {
        let _ = thread.join();
    }
}

/// No thread is started from here on, and none is waited for.
pub(super) fn close() {
    let mut queue = lock();
    queue.closed = true;
    let waiting = mem::take(&mut queue.waiting);
    drop(queue);
    // The last of a dial may go with it, and what its end is to call.
    drop(waiting);
}

/// The queue, held over a fork.
pub(super) struct Held(MutexGuard<'static, Queue>);

/// `None` while somebody is about it. A thread that hangs doesn't keep the process from forking.
#[must_use]
pub(super) fn try_hold() -> Option<Held> {
    let queue = match QUEUE.try_lock() {
        Ok(queue) => queue,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    queue.paused.then_some(Held(queue))
}

impl Held {
    pub(super) fn release_in_parent(mut self) {
        self.0.paused = false;
        for _ in 0..self.0.waiting.len() {
            if let Err(error) = self.0.start() {
                log::error!(target: "longconn.engine", "no thread to look names up after a fork: {error}");
                return;
            }
        }
    }

    /// The threads are the parent's, and who waits for them too.
    pub(super) fn release_in_child(mut self) {
        mem::forget((mem::take(&mut self.0.waiting), mem::take(&mut self.0.handles)));
        self.0.threads = 0;
        self.0.paused = false;
    }
}
