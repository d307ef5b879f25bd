//! When the interpreter last could run: written by a thread that waits for it, read by the engine, which never does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::engine::clock;

/// Microseconds since the clock's origin, plus one; zero: nobody tells.
static RAN: AtomicU64 = AtomicU64::new(0);

/// The interpreter runs now.
pub fn note_ran(now: Instant) {
    let micros = now.saturating_duration_since(clock::origin()).as_micros();
    RAN.store(u64::try_from(micros).unwrap_or(u64::MAX - 1) + 1, Ordering::Relaxed);
}

/// Nobody will tell from here on.
pub fn forget() {
    RAN.store(0, Ordering::Relaxed);
}

#[must_use]
pub fn last_ran() -> Option<Instant> {
    match RAN.load(Ordering::Relaxed) {
        0 => None,
        micros => Some(clock::origin() + Duration::from_micros(micros - 1)),
    }
}
