//! `fork`: our threads are stopped before, go on in the parent, and are gone in the child.
//!
//! CPython 3.12 and later warn when any thread runs at `os.fork`, a native one too; and a lock that another
//! thread holds at that moment would stay locked in the child for ever. So all threads end first, and the locks
//! are held, in one order, until both sides have begun anew.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::engine::{budget, clock, guard, interpreter, notices, reactor, resolver};

/// How long a fork waits for a callback that is running.
const PATIENCE: Duration = Duration::from_secs(1);

struct Held {
    reactor: reactor::Held,
    resolver: resolver::Held,
    budget: budget::Held,
    guard: guard::Held,
    notices: notices::Held,
}

/// How many forks lie between the first process and this one: what was made under another number is dead here.
static GENERATION: AtomicU32 = AtomicU32::new(0);

#[inline]
#[must_use]
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// This thread has done all that before its fork: the hooks may be registered twice.
#[must_use]
pub fn is_held() -> bool {
    HELD.with_borrow(Option::is_some)
}

/// Before the fork, in a thread that Python doesn't know.
pub fn before() {
    let deadline = patience();
    while !try_hold(deadline) {
        rest(deadline);
    }
}

/// Until when a fork waits for a callback.
#[must_use]
pub fn patience() -> Instant {
    clock::real() + PATIENCE
}

/// Ends all threads, in the thread that is going to fork, detached from Python.
pub fn rest(deadline: Instant) {
    guard::pause();
    reactor::pause();
    resolver::pause(deadline);
    notices::pause(deadline);
}

/// Takes the locks that are held over the fork, if all threads rest and nobody else has one; to be called after [`rest`],
/// attached to Python. Whoever holds the interpreter may take these locks, so none is kept by who waits for it.
#[must_use]
pub fn try_hold(deadline: Instant) -> bool {
    let held = (|| {
        Some(Held {
            reactor: reactor::try_hold()?,
            resolver: resolver::try_hold()?,
            budget: budget::try_hold()?,
            guard: guard::try_hold()?,
            notices: notices::try_hold(deadline)?,
        })
    })();
    let is_held = held.is_some();
    if is_held {
        HELD.with(|slot| slot.replace(held));
    }
    is_held
}

pub fn after_in_parent() {
    if let Some(held) = HELD.with(RefCell::take) {
        held.notices.release_in_parent();
        held.guard.release_in_parent();
        drop(held.budget);
        held.resolver.release_in_parent();
        held.reactor.release_in_parent();
    }
}

pub fn after_in_child() {
    if let Some(held) = HELD.with(RefCell::take) {
        GENERATION.fetch_add(1, Ordering::Relaxed);
        interpreter::forget();
        held.notices.release_in_child();
        held.guard.release_in_child();
        held.budget.release_in_child();
        held.resolver.release_in_child();
        held.reactor.release_in_child();
    }
}

/// At the interpreter's exit: ends all threads for good. What waits is delivered, and a callback that runs is waited
/// for: a thread that wants the interpreter when it is gone is torn out of our frames, which ends the process. False if
/// that takes longer; to be called again then. Detached from Python.
#[must_use]
pub fn shut_down(patience: Duration) -> bool {
    reactor::close();
    resolver::close();
    reactor::pause();
    guard::close();
    guard::pause();
    notices::close();
    notices::has_ended(clock::real() + patience)
}
