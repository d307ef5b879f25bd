//! What Python is to be told: log records and callbacks wait here for a thread that may wait for Python.
//!
//! The guard must never wait for the interpreter, so it only posts. A thread of its own takes the notices and
//! runs them; it starts with the first notice.
//!
//! The locks are std's: on Linux a futex each, without a table that all locks of the process share, so that a
//! fork at the wrong moment leaves nothing locked in the child (parking_lot's table of waiting threads would).

use std::collections::VecDeque;
use std::sync::{OnceLock, PoisonError, TryLockError};
use std::time::Instant;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::engine::clock;
use crate::engine::sync::thread::{self, JoinHandle};
use crate::engine::sync::{self, Condvar, Mutex, MutexGuard, global};
use crate::net::sys;

/// Log records that may wait; arbitrary, but a program that takes none for so long reads no log either. Callbacks need
/// no bound: there is at most one for each guarded socket, and none may be lost.
const MAX_LOG_LINES: usize = if cfg!(loom) { 1 } else { 10_000 };

/// A log record that owns its text.
#[derive(Debug)]
pub struct LogLine {
    pub level: Level,
    pub target: String,
    pub text: String,
}

enum Notice {
    Log(LogLine),
    Call(Box<dyn FnOnce() + Send>),
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Notice>,
    log_lines: usize,
    dropped: u64,
    thread: Option<JoinHandle<()>>,
    /// A thread whose generation has passed ends as soon as it has delivered the notice that it is at.
    generation: u64,
    running: bool,
    /// No thread begins until a fork is over.
    paused: bool,
    /// The interpreter is on its way out: no thread is started any more, and the last delivers all that waits.
    closed: bool,
}

global! {
    static QUEUE: Mutex<Queue> = Mutex::new(Queue {
        waiting: VecDeque::new(),
        log_lines: 0,
        dropped: 0,
        thread: None,
        generation: 0,
        running: false,
        paused: false,
        closed: false,
    });
    static CHANGED: Condvar = Condvar::new();
}
static SINK: OnceLock<fn(LogLine)> = OnceLock::new();

fn lock() -> MutexGuard<'static, Queue> {
    sync::lock(&QUEUE)
}

/// Makes the global `log` logger ours: it only queues. `sink` gets the records, on the thread of the notices.
pub fn collect_log(sink: fn(LogLine)) {
    if SINK.set(sink).is_ok() && log::set_logger(&QueueLogger).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}

struct QueueLogger;

impl Log for QueueLogger {
    /// What rustls says of each handshake would drown the rest, and what its verifier calls an error is told as the connection's.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !metadata.target().starts_with("rustls")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        post(Notice::Log(LogLine {
            level: record.level(),
            target: record.target().to_owned(),
            text: record.args().to_string(),
        }));
    }

    fn flush(&self) {}
}

/// Has `callback` run soon, on the thread of the notices.
pub fn call(callback: Box<dyn FnOnce() + Send>) {
    post(Notice::Call(callback));
}

fn post(notice: Notice) {
    let mut queue = lock();
    if matches!(notice, Notice::Log(_)) {
        if queue.log_lines >= MAX_LOG_LINES {
            queue.dropped += 1;
            return;
        }
        queue.log_lines += 1;
    }
    queue.waiting.push_back(notice);
    start_if_needed(&mut queue);
    drop(queue);
    CHANGED.notify_all();
}

fn start_if_needed(queue: &mut Queue) {
    if !queue.running && !queue.paused && !queue.closed && !queue.waiting.is_empty() {
        let generation = queue.generation;
        let thread = thread::Builder::new().name("longconn-notices".into());
        // Without memory for a thread the notices wait for the next try.
        queue.thread = thread.spawn(move || run(generation)).ok();
        queue.running = queue.thread.is_some();
    }
}

fn run(generation: u64) {
    sys::block_signals();
    let mut queue = lock();
    loop {
        let is_over = queue.generation != generation;
        let next = if is_over && !queue.closed { None } else { queue.waiting.pop_front() };
        if let Some(notice) = next {
            queue.log_lines -= usize::from(matches!(notice, Notice::Log(_)));
            let dropped = std::mem::take(&mut queue.dropped);
            drop(queue);
            if dropped > 0 {
                deliver(Notice::Log(LogLine {
                    level: Level::Warn,
                    target: module_path!().into(),
                    text: format!("{dropped} log records were dropped: too many were waiting"),
                }));
            }
            deliver(notice);
            queue = lock();
        } else if is_over {
            queue.running = false;
            CHANGED.notify_all();
            return;
        } else {
            queue = CHANGED.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn deliver(notice: Notice) {
    match notice {
        Notice::Log(line) => {
            if let Some(sink) = SINK.get() {
                sink(line);
            }
        }
        Notice::Call(callback) => callback(),
    }
}

/// The queue, held over a fork.
pub struct Held(MutexGuard<'static, Queue>);

impl Queue {
    /// Its thread has ended; or it is the caller's, or has a callback that takes too long, and can't be waited for.
    fn is_at_rest(&self, deadline: Instant) -> bool {
        let is_ours = |thread: &JoinHandle<()>| thread.thread().id() == thread::current().id();
        match &self.thread {
            None => true,
            Some(thread) => is_ours(thread) || (self.running && clock::real() >= deadline),
        }
    }
}

/// Lets the thread finish the notice that it is at, and end; no other begins until a fork is over. Gives up at the
/// deadline, when a callback takes so long, and at once when the caller is that thread. To be called detached: callbacks
/// need the interpreter.
pub fn pause(deadline: Instant) {
    let mut queue = lock();
    queue.generation += 1;
    queue.paused = true;
    CHANGED.notify_all();
    while !queue.is_at_rest(deadline) {
        if !queue.running
            && let Some(thread) = queue.thread.take()
        {
            drop(queue);
            let _ = thread.join();
            queue = lock();
            continue;
        }
        let left = deadline.saturating_duration_since(clock::real());
        queue = CHANGED.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Keeps everybody from the queue over a fork; `None` while somebody is about it.
#[must_use]
pub fn try_hold(deadline: Instant) -> Option<Held> {
    let queue = match QUEUE.try_lock() {
        Ok(queue) => queue,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    (queue.paused && queue.is_at_rest(deadline)).then_some(Held(queue))
}

/// No thread is started from here on; what waits is delivered.
pub fn close() {
    lock().closed = true;
}

/// True once the thread has ended, or if the caller is that thread.
#[must_use]
pub fn has_ended(deadline: Instant) -> bool {
    pause(deadline);
    let queue = lock();
    !queue.running || queue.thread.as_ref().is_some_and(|thread| thread.thread().id() == thread::current().id())
}

impl Held {
    pub fn release_in_parent(mut self) {
        self.0.paused = false;
        start_if_needed(&mut self.0);
    }

    /// The parent delivers what waits; the child has no thread.
    pub fn release_in_child(mut self) {
        std::mem::forget(std::mem::take(&mut self.0.waiting)); // callbacks may hold objects of Python
        std::mem::forget(self.0.thread.take());
        self.0.running = false;
        self.0.paused = false;
        self.0.log_lines = 0;
        self.0.dropped = 0;
    }
}

/// As `engine::models`.
#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use log::Log;

    use super::super::models::explore;
    use super::{LogLine, QueueLogger, SINK, call, close, has_ended, lock, pause, try_hold};
    use crate::engine::clock;
    use crate::engine::sync::thread;

    /// Longer than any model runs.
    const AGES: Duration = Duration::from_secs(1_000_000);

    fn finish() {
        close();
        assert!(has_ended(clock::real() + AGES));
    }

    /// Fails when `post` doesn't look whether a thread is needed, when `release_in_parent` starts none for what came meanwhile,
    /// and when a pause doesn't wait for the callback that runs.
    #[test]
    fn each_callback_runs_once_whether_a_fork_comes_between_or_not() {
        explore(|| {
            let runs = Arc::new(AtomicU64::new(0));
            let program = {
                let runs = runs.clone();
                thread::spawn(move || {
                    for which in [1, 256] {
                        let runs = runs.clone();
                        call(Box::new(move || {
                            runs.fetch_add(which, Ordering::Relaxed);
                        }));
                    }
                })
            };
            let deadline = clock::real() + AGES;
            let (held, before) = loop {
                pause(deadline);
                let before = runs.load(Ordering::Relaxed);
                if let Some(held) = try_hold(deadline) {
                    break (held, before);
                }
            };
            assert_eq!(runs.load(Ordering::Relaxed), before, "a callback runs over the fork");
            held.release_in_parent();
            program.join().expect("it doesn't panic");
            finish();
            assert_eq!(runs.load(Ordering::Relaxed), 257);
        });
    }

    /// Fails when a drop isn't counted, and when the count is told and kept.
    #[test]
    fn each_log_record_is_delivered_or_counted_as_dropped() {
        static DELIVERED: AtomicU64 = AtomicU64::new(0);
        static REPORTED: AtomicU64 = AtomicU64::new(0);
        fn sink(line: LogLine) {
            match line.text.split_once(' ') {
                Some((dropped, _)) => REPORTED.fetch_add(dropped.parse().expect("a number"), Ordering::Relaxed),
                None => DELIVERED.fetch_add(1, Ordering::Relaxed),
            };
        }
        let _ = SINK.set(sink);
        explore(|| {
            for count in [&DELIVERED, &REPORTED] {
                count.store(0, Ordering::Relaxed);
            }
            let log = || QueueLogger.log(&log::Record::builder().args(format_args!("record")).build());
            let other = thread::spawn(move || log());
            log();
            log();
            other.join().expect("it doesn't panic");
            finish();
            let [delivered, reported] = [&DELIVERED, &REPORTED].map(|count| count.load(Ordering::Relaxed));
            let left = lock().dropped;
            assert_eq!(delivered + reported + left, 3);
        });
    }
}
