//! When each link wants to be looked after: one alarm a link.
//!
//! A sorted set, and not a binary heap: alarms move forward and back many times before one rings (an acknowledgement
//! that is due in 50 ms leaves with the next message), and a heap would keep each of them until its time has come.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::proto::moment::Moment;

/// Fewer alarms than this ring exactly; arbitrary.
const MANY: usize = 100;
/// A tenth of what makes a beat late.
const SLACK: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
pub(super) struct Timers {
    sorted: BTreeSet<(Moment, usize)>,
    of: HashMap<usize, Moment>,
}

impl Timers {
    /// Replaces the alarm that `key` had.
    pub(super) fn set(&mut self, key: usize, at: Instant) {
        let at = Moment::from(at);
        if let Some(before) = self.of.insert(key, at) {
            if before == at {
                return;
            }
            self.sorted.remove(&(before, key));
        }
        self.sorted.insert((at, key));
    }

    pub(super) fn clear(&mut self, key: usize) {
        if let Some(before) = self.of.remove(&key) {
            self.sorted.remove(&(before, key));
        }
    }

    /// When to wake up. With many alarms a little later than the first, so that several ring together: a wake-up costs as
    /// much as a beat.
    #[must_use]
    pub(super) fn next_wake_up(&self) -> Option<Instant> {
        let slack = if self.sorted.len() > MANY { SLACK } else { Duration::ZERO };
        self.sorted.first().map(|(at, _)| at.instant() + slack)
    }

    /// Takes one whose time has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<usize> {
        let &(at, key) = self.sorted.first()?;
        if at.instant() > now {
            return None;
        }
        self.clear(key);
        Some(key)
    }
}
