//! `fork`: our threads are stopped before, go on in the parent, and are gone in the child.
//!
//! CPython 3.12 and later warn when any thread runs at `os.fork`, a native one too; and a lock that another
//! thread holds at that moment would stay locked in the child for ever. So all threads end first, and the locks
//! are held, in one order, until both sides have begun anew.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::engine::{clock, guard, notices};

/// How long a fork waits for a callback that is running.
const PATIENCE: Duration = Duration::from_secs(1);

struct Held {
    preparing: MutexGuard<'static, bool>,
    guard: guard::Held,
    notices: notices::Held,
}

/// Somebody prepares the interpreter for our threads, which a fork must not interrupt.
static PREPARING: Mutex<bool> = Mutex::new(false);
static ENDED: Condvar = Condvar::new();
static IS_PREPARED: AtomicBool = AtomicBool::new(false);

fn preparing() -> MutexGuard<'static, bool> {
    PREPARING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[must_use]
pub fn is_prepared() -> bool {
    IS_PREPARED.load(Ordering::Acquire)
}

/// Waits for whoever is at it; detached from Python, as the end.
pub fn begin_preparing() {
    let mut is_under_way = preparing();
    while *is_under_way {
        is_under_way = ENDED.wait(is_under_way).unwrap_or_else(PoisonError::into_inner);
    }
    *is_under_way = true;
}

pub fn end_preparing(is_done: bool) {
    IS_PREPARED.store(is_done, Ordering::Release);
    *preparing() = false;
    ENDED.notify_all();
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Before the fork, in the thread that forks, detached from Python; a second call for the same fork does nothing.
pub fn before() {
    if HELD.with_borrow(Option::is_some) {
        return;
    }
    let deadline = clock::now() + PATIENCE;
    let mut preparing = preparing();
    while *preparing {
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            break;
        }
        preparing = ENDED.wait_timeout(preparing, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    guard::pause();
    // Callbacks may guard something and so want the guard's lock: they end before it is held.
    drop(notices::stop_and_hold(deadline));
    // One order of locks everywhere: the guard posts notices while it holds its own.
    let held = Held { preparing, guard: guard::hold(), notices: notices::stop_and_hold(deadline) };
    HELD.with(|slot| slot.replace(Some(held)));
}

pub fn after_in_parent() {
    if let Some(held) = HELD.with(RefCell::take) {
        held.notices.release_in_parent();
        held.guard.release_in_parent();
    }
}

pub fn after_in_child() {
    if let Some(mut held) = HELD.with(RefCell::take) {
        *held.preparing = false; // whoever was at it isn't here
        held.notices.release_in_child();
        held.guard.release_in_child();
    }
}

/// At the interpreter's exit: ends all threads for good. What waits is delivered, and a callback that runs is waited
/// for: a thread that wants the interpreter when it is gone is torn out of our frames, which ends the process. False if
/// that takes longer; to be called again then. Detached from Python.
#[must_use]
pub fn shut_down(patience: Duration) -> bool {
    guard::close();
    guard::pause();
    notices::close();
    notices::has_ended(clock::now() + patience)
}
