//! The one place that reads the clock; everything else is handed `now`.
//!
//! There are two readings. [`now`] is the clock of links, sessions, dials and fault proxies, and tests can have it skip time
//! (`skipping.rs`). [`real`] is the kernel's, for what is judged by the kernel's own ages (the guard), what waits for the
//! system or for Python (forks, callbacks), and what measures work.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use crate::net::sys;

/// More than this in all is refused. Arbitrary, and far from where a `Moment` or the 64 bits below end.
const MOST: Duration = Duration::from_secs(100 * 365 * 86400);
/// A kernel's ages are exact to a tick: ten milliseconds where it has a hundred a second.
const TICK: Duration = Duration::from_millis(10);
/// Steps that are remembered, so that the kernel's ages can be told in our time: more than lie in the round trips that a verdict asks about,
/// but where thousands of links beat in one process. There an acknowledgement may look younger than it is.
const STEPS: usize = 256;

/// Nanoseconds. Whoever is handed something by a thread that has skipped time is so by a lock or a descriptor, and so doesn't
/// read an older value.
static SKIPPED: AtomicU64 = AtomicU64::new(0);
/// Of those who may have it skip time; and what had been skipped before the first of them.
static SKIPPERS: AtomicUsize = AtomicUsize::new(0);
static SKIPPED_BEFORE: AtomicU64 = AtomicU64::new(0);
/// When time was skipped, really, and how much had been before; the oldest first.
static LAST_STEPS: Mutex<VecDeque<(Instant, Duration)>> = Mutex::new(VecDeque::new());

#[must_use]
pub fn now() -> Instant {
    match SKIPPED.load(Ordering::Relaxed) {
        0 => real(),
        skipped => real() + Duration::from_nanos(skipped),
    }
}

/// The kernel's clock, which skips nothing.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the place that the rule names")]
pub fn real() -> Instant {
    Instant::now()
}

/// How far [`now`] is ahead.
#[must_use]
pub fn skipped() -> Duration {
    Duration::from_nanos(SKIPPED.load(Ordering::Relaxed))
}

/// How far the times of day are ahead that programs are told: by what was skipped since somebody may. Once nobody may any more, what
/// happens is again told by the time of day.
#[must_use]
pub fn ahead() -> Duration {
    if !may_skip() {
        return Duration::ZERO;
    }
    skipped().saturating_sub(Duration::from_nanos(SKIPPED_BEFORE.load(Ordering::Relaxed)))
}

/// How long the machine has been suspended since it booted: `Instant` stands still meanwhile.
#[must_use]
pub fn suspended() -> Duration {
    sys::time_suspended()
}

/// Nobody is to begin to wait where he can't be told that time was skipped.
#[must_use]
pub fn may_skip() -> bool {
    SKIPPERS.load(Ordering::Relaxed) > 0
}

pub(super) fn add_skipper() {
    if SKIPPERS.fetch_add(1, Ordering::Relaxed) == 0 {
        SKIPPED_BEFORE.store(SKIPPED.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

pub(super) fn remove_skipper() {
    SKIPPERS.fetch_sub(1, Ordering::Relaxed);
}

/// Whether so much more may be skipped.
#[must_use]
pub(super) fn has_room_for(by: Duration) -> bool {
    skipped().checked_add(by).is_some_and(|sum| sum <= MOST)
}

/// To be called by one thread alone.
pub(super) fn skip(by: Duration) {
    let before = skipped();
    let after = (before + by).min(MOST);
    if let Some(mut steps) = last_steps() {
        if steps.len() == STEPS {
            steps.pop_front();
        }
        steps.push_back((real(), before));
    }
    SKIPPED.store(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// What the kernel says was so long ago, in our time: what was skipped since is added, of what is remembered. Within a tick it was longer
/// ago, in doubt, for what is young counts as an answer.
#[must_use]
pub(super) fn age(of_kernel: Duration) -> Duration {
    let skipped = skipped();
    if skipped.is_zero() {
        return of_kernel;
    }
    let Some(steps) = last_steps() else { return of_kernel };
    let Some(at) = real().checked_sub(of_kernel + TICK) else { return of_kernel };
    let later = steps.partition_point(|(when, _)| *when < at);
    of_kernel + steps.get(later).map_or(Duration::ZERO, |(_, before)| skipped.saturating_sub(*before))
}

/// None while another thread is about it, for a few instructions: held over a fork it would have to be taken there, too.
fn last_steps() -> Option<MutexGuard<'static, VecDeque<(Instant, Duration)>>> {
    match LAST_STEPS.try_lock() {
        Ok(steps) => Some(steps),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
