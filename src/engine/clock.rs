//! The one place that reads the clock; everything else is handed `now`.

use std::time::{Duration, Instant};

use crate::net::sys;

#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the place that the rule names")]
pub fn now() -> Instant {
    Instant::now()
}

/// How long the machine has been suspended since it booted: `Instant` stands still meanwhile.
#[must_use]
pub fn suspended() -> Duration {
    sys::time_suspended()
}
