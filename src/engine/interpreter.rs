//! When the interpreter last could run: written by a thread that waits for it, read by the engine, which never does.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::clock;
use crate::proto::moment::Moment;

/// A moment's number, as of [`clock::real`]; zero: nobody tells.
static RAN: AtomicU64 = AtomicU64::new(0);

/// The interpreter runs now.
pub fn note_ran() {
    RAN.store(NonZeroU64::from(Moment::from(clock::real())).get(), Ordering::Relaxed);
}

/// Nobody will tell from here on.
pub fn forget() {
    RAN.store(0, Ordering::Relaxed);
}

/// As of [`clock::now`], as long ago as it really is: while time is skipped Python has no chance to run.
#[must_use]
pub fn last_ran() -> Option<Moment> {
    NonZeroU64::new(RAN.load(Ordering::Relaxed)).map(|ran| Moment::from(ran) + clock::skipped())
}
