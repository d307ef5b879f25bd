//! When each link wants to be looked after: one alarm a link.
//!
//! A heap that knows where each alarm is: alarms move forward and back many times before one rings (an acknowledgement
//! that is due in 50 ms leaves with the next message), and a heap that doesn't would keep each of them until its time has
//! come. A sorted set costs each of many thousand links twice as much.

use std::time::{Duration, Instant};

use crate::proto::moment::Moment;

/// Fewer alarms than this ring exactly; arbitrary.
const MANY: usize = 100;
/// A tenth of what makes a beat late.
const SLACK: Duration = Duration::from_millis(2);
/// Children of a node: four lie side by side in one line of the processor's cache.
const CHILDREN: usize = 4;
const NOWHERE: u32 = u32::MAX;

/// Of those who sit in places ([`Seats`](super::seats::Seats)), which are small numbers.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// None is earlier than its parent's.
    heap: Vec<(Moment, u32)>,
    /// Of each place, where its alarm is in the heap.
    positions: Vec<u32>,
}

impl Timers {
    /// Replaces the alarm that `place` had.
    pub(super) fn set(&mut self, place: usize, at: Moment) {
        if self.positions.len() <= place {
            self.positions.resize(place + 1, NOWHERE);
        }
        let mut index = self.positions[place] as usize;
        if index == NOWHERE as usize {
            index = self.heap.len();
            self.heap.push((at, as_number(place)));
        }
        self.heap[index].0 = at;
        self.settle(index);
    }

    pub(super) fn clear(&mut self, place: usize) {
        if let Some(index) = self.positions.get(place).copied().filter(|index| *index != NOWHERE) {
            self.remove(index as usize);
        }
    }

    /// When to wake up. With many alarms a little later than the first, so that several ring together: a wake-up costs as
    /// much as a beat.
    #[must_use]
    pub(super) fn next_wake_up(&self) -> Option<Instant> {
        let slack = if self.heap.len() > MANY { SLACK } else { Duration::ZERO };
        self.heap.first().map(|(at, _)| at.instant() + slack)
    }

    /// Takes one whose time has come; it has no alarm from here on.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<usize> {
        let &(at, place) = self.heap.first()?;
        if at.instant() > now {
            return None;
        }
        self.remove(0);
        Some(place as usize)
    }

    fn remove(&mut self, index: usize) {
        let (_, place) = self.heap.swap_remove(index);
        self.positions[place as usize] = NOWHERE;
        if index < self.heap.len() {
            self.settle(index);
        }
    }

    /// Moves the alarm that is new at `index` to where it belongs.
    fn settle(&mut self, mut index: usize) {
        let moving = self.heap[index];
        while index > 0 && moving.0 < self.heap[(index - 1) / CHILDREN].0 {
            let parent = (index - 1) / CHILDREN;
            self.put(index, self.heap[parent]);
            index = parent;
        }
        loop {
            let children = CHILDREN * index + 1..(CHILDREN * (index + 1) + 1).min(self.heap.len());
            let Some(first) = children.min_by_key(|child| self.heap[*child].0) else { break };
            if self.heap[first].0 >= moving.0 {
                break;
            }
            self.put(index, self.heap[first]);
            index = first;
        }
        self.put(index, moving);
    }

    fn put(&mut self, index: usize, alarm: (Moment, u32)) {
        self.heap[index] = alarm;
        self.positions[alarm.1 as usize] = as_number(index);
    }
}

/// There are fewer than descriptors.
fn as_number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(NOWHERE)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use super::Timers;
    use crate::proto::moment::Moment;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any origin will do")]
    fn alarms_ring_in_order_however_they_were_moved_and_cleared() {
        const PLACES: u64 = 200;
        let t0 = Instant::now();
        let at = |ms: u64| t0 + Duration::from_millis(ms);
        let (mut timers, mut expected) = (Timers::default(), BTreeMap::new());
        let mut random = 1_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for now in 0..20_000 {
            let place = next(PLACES);
            match next(4) {
                0 => {
                    timers.clear(usize::try_from(place).unwrap_or(usize::MAX));
                    expected.remove(&place);
                }
                _ => {
                    let due = now + next(2000);
                    timers.set(usize::try_from(place).unwrap_or(usize::MAX), Moment::from(at(due)));
                    expected.insert(place, due);
                }
            }
            let first = expected.values().min().copied();
            assert!(timers.next_wake_up().map(Moment::from) >= first.map(|due| Moment::from(at(due))));
            while let Some(place) = timers.pop_due(at(now)) {
                let due = expected.remove(&(place as u64));
                assert!(due.is_some_and(|due| due <= now), "{place} rang at {now}, its alarm was {due:?}");
            }
            assert!(expected.values().all(|due| *due > now), "something hasn't rung at {now}");
        }
    }
}
