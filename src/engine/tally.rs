//! How many links have ended, by cause, since the process began: what a program's metrics want to know, whoever else is told.

// Counters that nobody waits for: loom's have nothing to find here, and can't be static.
use std::sync::atomic::{AtomicU64, Ordering};

use crate::proto::cause::Cause;

static ENDED: [AtomicU64; Cause::ALL.len()] = [const { AtomicU64::new(0) }; Cause::ALL.len()];

pub(super) fn count_end(cause: Cause) {
    let place = Cause::ALL.iter().position(|each| *each == cause);
    if let Some(count) = place.and_then(|place| ENDED.get(place)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// By links of this process and, in a forked child, of its parent's before the fork.
pub fn ended() -> impl Iterator<Item = (Cause, u64)> {
    Cause::ALL.into_iter().zip(ENDED.iter().map(|count| count.load(Ordering::Relaxed)))
}
