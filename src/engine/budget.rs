//! What all links together may hold beyond their base windows: for messages larger than a window, and for windows that
//! grew. Wishes are granted in order, and each in whole; the budget always admits one when nothing is granted. Who sits on
//! a grant while others wait is told to go.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::engine::link::Link;

/// Sixteen windows at their largest. Arbitrary, as is the time.
const BUDGET_BYTES: u64 = 256 * 1024 * 1024;
const GRANT_TIMEOUT: Duration = Duration::from_secs(30);

struct Budget {
    bytes: u64,
    grant_timeout: Duration,
    granted: u64,
    queue: VecDeque<Weak<Link>>,
}

static BUDGET: Mutex<Budget> =
    Mutex::new(Budget { bytes: BUDGET_BYTES, grant_timeout: GRANT_TIMEOUT, granted: 0, queue: VecDeque::new() });

fn lock() -> MutexGuard<'static, Budget> {
    BUDGET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For all links of the process, from the next grant on. `grant_timeout` is how long a message that others wait for may
/// get no byte, or not be taken.
pub fn set_budget(bytes: u64, grant_timeout: Duration) {
    let mut budget = lock();
    (budget.bytes, budget.grant_timeout) = (bytes, grant_timeout);
    budget.call_first();
}

/// What one link has of the budget; under its lock.
#[derive(Debug, Default)]
pub(super) struct Share {
    granted: u64,
    is_queued: bool,
    /// Since when the inbox holds so many bytes.
    unmoved: Option<(Instant, usize)>,
}

impl Share {
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.granted == 0 && !self.is_queued
    }

    /// True if `wanted` is granted; else the link stands in the queue, and is attended to when its turn has come.
    pub(super) fn ask(&mut self, wanted: u64, link: &Weak<Link>) -> bool {
        let mut budget = lock();
        let is_first = budget.queue.front().is_none_or(|first| Weak::ptr_eq(first, link));
        let fits = budget.granted == 0 || budget.granted.saturating_add(wanted) <= budget.bytes;
        if is_first && fits {
            budget.granted = budget.granted.saturating_add(wanted);
            self.granted = self.granted.saturating_add(wanted);
            self.withdraw(&mut budget, link);
            return true;
        }
        if !self.is_queued {
            self.is_queued = true;
            budget.queue.push_back(link.clone());
        }
        false
    }

    /// The link holds no more than `held` by now, and wants more or not.
    pub(super) fn settle(&mut self, held: u64, wants: bool, link: &Weak<Link>) {
        if self.granted <= held && (wants || !self.is_queued) {
            return;
        }
        let mut budget = lock();
        let given_back = self.granted.saturating_sub(held);
        self.granted -= given_back;
        budget.granted -= given_back.min(budget.granted);
        if !wants {
            self.withdraw(&mut budget, link);
        }
        if given_back > 0 {
            budget.call_first();
        }
    }

    fn withdraw(&mut self, budget: &mut Budget, link: &Weak<Link>) {
        if self.is_queued {
            self.is_queued = false;
            budget.queue.retain(|other| !Weak::ptr_eq(other, link));
            budget.call_first();
        }
    }

    /// True if others wait for what this link was granted, and its inbox has been the same for too long.
    pub(super) fn is_hoarding(&mut self, now: Instant, inbox_bytes: usize) -> bool {
        if self.granted == 0 {
            self.unmoved = None;
            return false;
        }
        match self.unmoved {
            Some((since, bytes)) if bytes == inbox_bytes => {
                let budget = lock();
                !budget.queue.is_empty() && now.saturating_duration_since(since) >= budget.grant_timeout
            }
            _ => {
                self.unmoved = Some((now, inbox_bytes));
                false
            }
        }
    }
}

impl Budget {
    /// Has the engine look after the first in the queue; it will ask again.
    fn call_first(&mut self) {
        while let Some(first) = self.queue.front() {
            if let Some(link) = first.upgrade() {
                link.ask_for_attention();
                return;
            }
            self.queue.pop_front();
        }
    }
}

/// Held over a fork; what the parent's links have is not the child's.
pub(super) struct Held(MutexGuard<'static, Budget>);

#[must_use]
pub(super) fn hold() -> Held {
    Held(lock())
}

impl Held {
    pub(super) fn release_in_child(mut self) {
        self.0.granted = 0;
        std::mem::forget(std::mem::take(&mut self.0.queue));
    }
}
