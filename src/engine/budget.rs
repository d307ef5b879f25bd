//! What all links together may hold beyond their base windows: for messages larger than a window, and for windows that
//! grew. Wishes for a message are granted in order, and each in whole; the budget always admits one when nothing is
//! granted.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use crate::engine::link::Link;

/// A quarter of a GiB: sixteen windows at their largest, or one message of 256 MiB beside others. Arbitrary.
const BUDGET_BYTES: u64 = 256 * 1024 * 1024;

struct Budget {
    granted: u64,
    queue: VecDeque<Weak<Link>>,
}

static BUDGET: Mutex<Budget> = Mutex::new(Budget { granted: 0, queue: VecDeque::new() });

fn lock() -> MutexGuard<'static, Budget> {
    BUDGET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one link has of the budget; under its lock.
#[derive(Debug, Default)]
pub(super) struct Share {
    granted: u64,
    is_queued: bool,
}

impl Share {
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.granted == 0 && !self.is_queued
    }

    /// True if `wanted` is granted; else the link stands in the queue, and is attended to when something was given back.
    pub(super) fn ask(&mut self, wanted: u64, link: &Weak<Link>) -> bool {
        let mut budget = lock();
        let is_first = match budget.queue.front() {
            None => true,
            Some(first) => Weak::ptr_eq(first, link),
        };
        let fits = budget.granted == 0 || budget.granted.saturating_add(wanted) <= BUDGET_BYTES;
        if is_first && fits {
            budget.granted = budget.granted.saturating_add(wanted);
            self.granted += wanted;
            self.withdraw(&mut budget, link);
            return true;
        }
        if !self.is_queued {
            self.is_queued = true;
            budget.queue.push_back(link.clone());
        }
        false
    }

    /// The link holds no more than `held` by now, and wants something or not.
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
        budget.call_next();
    }

    fn withdraw(&mut self, budget: &mut Budget, link: &Weak<Link>) {
        if self.is_queued {
            self.is_queued = false;
            budget.queue.retain(|other| !Weak::ptr_eq(other, link));
            budget.call_next();
        }
    }
}

impl Budget {
    /// Has the engine look after the first in the queue; it will ask again.
    fn call_next(&mut self) {
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
