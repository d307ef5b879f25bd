//! When each link wants to be looked after: one alarm a link.
//!
//! A sorted set, and not a binary heap: alarms move forward and back many times before one rings (an acknowledgement
//! that is due in 50 ms leaves with the next message), and a heap would keep each of them until its time has come.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::proto::moment::Moment;

/// Fewer alarms than this ring exactly; arbitrary.
const MANY: usize = 100;
/// A tenth of what makes a beat late.
const SLACK: Duration = Duration::from_millis(2);

/// Who has an alarm keeps the time of it, and hands it in to have it changed.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Moment, usize)>);

impl Timers {
    /// Replaces the alarm that `key` had.
    pub(super) fn set(&mut self, key: usize, alarm: &mut Option<Moment>, at: Moment) {
        if let Some(before) = alarm.replace(at) {
            if before == at {
                return;
            }
            self.0.remove(&(before, key));
        }
        self.0.insert((at, key));
    }

    pub(super) fn clear(&mut self, key: usize, alarm: Option<Moment>) {
        if let Some(at) = alarm {
            self.0.remove(&(at, key));
        }
    }

    /// When to wake up. With many alarms a little later than the first, so that several ring together: a wake-up costs as
    /// much as a beat.
    #[must_use]
    pub(super) fn next_wake_up(&self) -> Option<Instant> {
        let slack = if self.0.len() > MANY { SLACK } else { Duration::ZERO };
        self.0.first().map(|(at, _)| at.instant() + slack)
    }

    /// Takes one whose time has come; it has no alarm from here on.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<usize> {
        let &(at, _) = self.0.first()?;
        if at.instant() > now {
            return None;
        }
        self.0.pop_first().map(|(_, key)| key)
    }
}
