//! `fork`: our threads are stopped before, go on in the parent, and are gone in the child.
//!
//! CPython 3.12 and later warn when any thread runs at `os.fork`, a native one too; and a lock that another
//! thread holds at that moment would stay locked in the child for ever. So all threads end first, and the locks
//! are held, in one order, until both sides have begun anew.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::engine::{budget, clock, guard, interpreter, notices, reactor};

/// How long a fork waits for a callback that is running.
const PATIENCE: Duration = Duration::from_secs(1);

struct Held {
    reactor: reactor::Held,
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

/// Before the fork, in the thread that forks, detached from Python.
pub fn before() {
    let deadline = clock::now() + PATIENCE;
    guard::pause();
    reactor::pause();
    // Callbacks may guard something and so want the guard's lock: they end before it is held.
    drop(notices::stop_and_hold(deadline));
    // One order of locks everywhere: the engine and the guard post notices while they hold their own.
    let held = Held {
        reactor: reactor::hold(),
        budget: budget::hold(),
        guard: guard::hold(),
        notices: notices::stop_and_hold(deadline),
    };
    HELD.with(|slot| slot.replace(Some(held)));
}

pub fn after_in_parent() {
    if let Some(held) = HELD.with(RefCell::take) {
        held.notices.release_in_parent();
        held.guard.release_in_parent();
        drop(held.budget);
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
        held.reactor.release_in_child();
    }
}

/// At the interpreter's exit: ends all threads for good. What waits is delivered, and a callback that runs is waited
/// for: a thread that wants the interpreter when it is gone would be torn out of our frames. False if that takes
/// longer; to be called again then. Detached from Python.
#[must_use]
pub fn shut_down(patience: Duration) -> bool {
    reactor::close();
    reactor::pause();
    guard::close();
    guard::pause();
    notices::close();
    notices::has_ended(clock::now() + patience)
}
