//! The one place that reads the clock; everything else is handed `now`.

use std::time::Instant;

#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the place that the rule names")]
pub fn now() -> Instant {
    Instant::now()
}
