//! What has occurred on all connections, for who asks and for who is told.

use std::sync::Arc;

use super::Listener;
use super::hall::{Hall, Stage};
use crate::engine::link::{Errand, Link, LinkError, Occurrence, What};
use crate::engine::waiting::{Interest, Patience};

/// Occurrences that nobody has asked for, or been told of, yet; others are dropped and counted.
pub const MAX_OCCURRENCES: usize = 10_000;

/// Told of each occurrence under locks: posts, and doesn't wait. False if it can't take more for now.
pub type Observer = Arc<dyn Fn(&Arc<Link>, &Occurrence) -> bool + Send + Sync>;

impl Listener {
    /// Who never was open is counted, and not told of: a port scanner would drown the news of those who were.
    pub(in crate::engine) fn on_occurrence(&self, link: &Arc<Link>, occurrence: Occurrence, kept_bytes: usize) {
        let mut hall = self.lock();
        let is_end = matches!(occurrence.what, What::Ended(_));
        let stage = if is_end { hall.remove(link) } else { hall.guest(link).map(|guest| guest.stage) };
        if matches!(stage, Some(Stage::Open | Stage::Away)) {
            hall.counts.expired += u64::from(stage == Some(Stage::Away) && is_end);
            hall.tell(link, occurrence);
        }
        // Events end when the last has gone.
        if is_end && hall.guests.is_empty() {
            hall.waiters.wake_all(Interest::STATE | Interest::EVENT);
        }
        let too_many = if is_end && kept_bytes > 0 {
            hall.sessions.leave_behind(link, kept_bytes, self.config.max_waiting_bytes)
        } else {
            Vec::new()
        };
        drop(hall);
        // Under the lock of one link, and so without waiting for another's.
        too_many.iter().for_each(|link| link.run(Errand::FORGETTING));
    }

    /// Has somebody told of what has occurred, as far as nobody has asked for it, and of what will.
    pub fn observe(&self, observer: Observer) {
        let mut hall = self.lock();
        for (link, occurrence) in &hall.occurrences {
            observer(link, occurrence);
        }
        hall.observer = Some(observer);
    }

    pub fn next_occurrence<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<(Arc<Link>, Occurrence), LinkError> {
        self.wait(Interest::EVENT, patience, |hall| {
            let next = hall.occurrences.pop_front()?;
            if !hall.occurrences.is_empty() {
                hall.waiters.wake_one(Interest::EVENT);
            }
            Some(next)
        })
    }
}

impl Hall {
    fn tell(&mut self, link: &Arc<Link>, occurrence: Occurrence) {
        if self.observer.as_ref().is_some_and(|observer| !observer(link, &occurrence)) {
            self.counts.occurrences_dropped += 1;
        }
        if self.occurrences.len() == MAX_OCCURRENCES {
            self.occurrences.pop_front();
            self.counts.occurrences_dropped += 1;
        }
        self.occurrences.push_back((link.clone(), occurrence));
        self.waiters.wake_one(Interest::EVENT);
    }
}
