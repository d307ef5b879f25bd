//! What the kernel's view of a connection says about a silence: unreachable, frozen, or nothing.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// A living kernel answers a probe at once, and a segment within a round trip; four are ample, and 60 ms more than a
/// usual delayed ACK (40 ms on Linux).
const LEAST_PATIENCE: Duration = Duration::from_millis(60);

/// What the kernel knows of our TCP connection (Linux: TCP_INFO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelView {
    /// Bytes that the engine has handed to the kernel on this connection, TLS's own included.
    pub written: u64,
    /// Of these, what the peer's kernel has acknowledged.
    pub bytes_acked: u64,
    /// Segments in flight.
    pub unacked: u32,
    /// Bytes that the kernel has not sent yet.
    pub unsent: u32,
    /// Keepalive or window probes without an answer.
    pub probes: u32,
    pub since_ack_received: Duration,
    /// What the peer lets us send; `None` where the kernel doesn't tell.
    pub send_window: Option<u32>,
}

impl KernelView {
    /// Everything that we wrote is with the peer's kernel.
    fn is_all_acked(&self) -> bool {
        self.bytes_acked >= self.written
    }
}

/// What was found out about a silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Answered,
    Unanswered,
    Unknown,
}

/// Collects the looks at one connection. Most are never suspected, so what a suspicion needs is kept apart.
#[derive(Debug, Default)]
pub struct Evidence {
    /// `bytes_acked` at the last look, and one.
    acked: Option<NonZeroU64>,
    suspicion: Option<Box<Suspicion>>,
}

#[derive(Debug)]
struct Suspicion {
    since: Instant,
    /// When the `answer` asked for was handed to the kernel.
    asked: Option<Instant>,
    /// The `written` that includes it, known at the first look after.
    answer_end: Option<u64>,
    /// At the first look: what was acknowledged, and whether something was in flight.
    first: Option<KernelView>,
    last: Option<(Instant, KernelView)>,
}

impl Evidence {
    pub fn on_suspicion(&mut self, now: Instant) {
        let (asked, answer_end, first, last) = (None, None, None, None);
        self.suspicion = Some(Box::new(Suspicion { since: now, asked, answer_end, first, last }));
    }

    pub fn on_heard(&mut self) {
        self.suspicion = None;
    }

    /// The `answer` was handed to the kernel.
    pub fn on_asked(&mut self, now: Instant) {
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.asked.get_or_insert(now);
        }
    }

    /// Takes a look; says whether something of ours is now known to have arrived, and whether everything has.
    pub fn observe(&mut self, now: Instant, view: KernelView) -> Arrived {
        let progress = self.acked.is_some_and(|acked| view.bytes_acked >= acked.get());
        self.acked = Some(NonZeroU64::MIN.saturating_add(view.bytes_acked));
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.first.get_or_insert(view);
            suspicion.last = Some((now, view));
            if suspicion.asked.is_some() {
                suspicion.answer_end.get_or_insert(view.written);
            }
        }
        match (view.is_all_acked(), progress) {
            (true, _) => Arrived::Everything,
            (false, true) => Arrived::Something,
            (false, false) => Arrived::Nothing,
        }
    }

    /// What the last look says about the silence.
    #[must_use]
    pub fn finding(&self, now: Instant, smoothed_round_trip: Duration) -> Finding {
        let Some(suspicion) = &self.suspicion else { return Finding::Unknown };
        let (Some(first), Some((looked, view))) = (&suspicion.first, &suspicion.last) else { return Finding::Unknown };
        if suspicion.answer_end.is_some_and(|end| view.bytes_acked >= end) {
            return Finding::Answered;
        }
        let patience = (4 * smoothed_round_trip).max(LEAST_PATIENCE);
        // With the answer still queued, or the window closed over it, earlier data and window probes speak for it.
        let answer_waits = suspicion.asked.is_none() || view.unsent > 0 || view.send_window == Some(0);
        let age = looked.saturating_duration_since(suspicion.since);
        let acked_since = view.bytes_acked > first.bytes_acked || view.since_ack_received < age;
        if answer_waits && view.probes == 0 && acked_since && (view.unacked == 0 || view.since_ack_received < patience)
        {
            return Finding::Answered;
        }
        let was_outstanding = first.unacked > 0 || first.probes > 0;
        let since = if was_outstanding { Some(suspicion.since) } else { suspicion.asked };
        let unanswered_for = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if (view.unacked > 0 || view.probes > 0) && unanswered_for >= patience {
            return Finding::Unanswered;
        }
        Finding::Unknown
    }
}

/// What a look shows to have arrived at the peer's kernel since the look before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    Nothing,
    Something,
    Everything,
}
