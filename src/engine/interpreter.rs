//! When the interpreter last could run: written by a thread that waits for it, read by the engine, which never does.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::proto::moment::Moment;

/// A moment's number; zero: nobody tells.
static RAN: AtomicU64 = AtomicU64::new(0);

/// The interpreter runs now.
pub fn note_ran(now: Instant) {
    RAN.store(NonZeroU64::from(Moment::from(now)).get(), Ordering::Relaxed);
}

/// Nobody will tell from here on.
pub fn forget() {
    RAN.store(0, Ordering::Relaxed);
}

#[must_use]
pub fn last_ran() -> Option<Moment> {
    NonZeroU64::new(RAN.load(Ordering::Relaxed)).map(Moment::from)
}
