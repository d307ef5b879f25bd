//! A NAT's memory of one connection: it goes when nothing has passed for a while.

use std::time::{Duration, Instant};

/// Looks while it is idle: what the kernels say by themselves (keepalive probes) is only seen by looking.
const LOOKS: u32 = 10;

#[derive(Clone, Copy, Debug)]
pub struct Nat {
    idle: Duration,
    last_traffic: Instant,
    last_look: Instant,
    segments: Option<u64>,
}

impl Nat {
    /// Forgets a connection that was silent for `idle`.
    #[must_use]
    pub fn new(idle: Duration, last_traffic: Instant) -> Self {
        Self { idle, last_traffic, last_look: last_traffic, segments: None }
    }

    pub fn handle_traffic(&mut self, now: Instant) {
        self.last_traffic = now;
    }

    /// Both sides' kernels have sent so many segments by now, acknowledgements and probes included.
    pub fn handle_look(&mut self, now: Instant, segments: u64) {
        if self.segments.is_some_and(|before| before != segments) {
            self.last_traffic = now;
        }
        self.segments = Some(segments);
        self.last_look = now;
    }

    #[must_use]
    pub fn has_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_traffic) >= self.idle
    }

    /// When to look again.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        (self.last_traffic + self.idle).min(self.last_look + self.idle / LOOKS)
    }
}
