//! What all links together may hold beyond their base windows: for messages larger than a window, and for windows that
//! grew. Messages are granted theirs in order, each in whole, and one always is when none other has a grant, for it
//! can't go on without. Windows grow only into what nobody waits for. Who sits on a message's grant while others wait is
//! told to go.

use std::collections::VecDeque;
use std::sync::{TryLockError, Weak};
use std::time::{Duration, Instant};

use crate::engine::link::Link;
use crate::engine::sync::{self, Mutex, MutexGuard, global};

/// Sixteen windows at their largest. Arbitrary, as is the time.
const BUDGET_BYTES: u64 = 256 * 1024 * 1024;
const GRANT_TIMEOUT: Duration = Duration::from_secs(30);

struct Budget {
    bytes: u64,
    grant_timeout: Duration,
    /// Granted.
    messages: u64,
    windows: u64,
    /// Those whose messages wait.
    queue: VecDeque<Weak<Link>>,
}

global! {
    static BUDGET: Mutex<Budget> = Mutex::new(Budget {
        bytes: BUDGET_BYTES,
        grant_timeout: GRANT_TIMEOUT,
        messages: 0,
        windows: 0,
        queue: VecDeque::new(),
    });
}

fn lock() -> MutexGuard<'static, Budget> {
    sync::lock(&BUDGET)
}

/// For all links of the process, from the next grant on. `grant_timeout` is how long a message that others wait for may
/// get no byte, or not be taken.
pub fn set_budget(bytes: u64, grant_timeout: Duration) {
    let mut budget = lock();
    (budget.bytes, budget.grant_timeout) = (bytes, grant_timeout);
    budget.call_first();
}

/// What one link wants of the budget.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wish {
    Nothing,
    Message(u64),
    Window(u64),
}

/// What one link has of the budget; under its lock.
#[derive(Debug, Default)]
pub(super) struct Share {
    message: u64,
    window: u64,
    is_queued: bool,
    /// Since when the inbox holds so many bytes.
    unmoved: Option<(Instant, usize)>,
}

impl Share {
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.message == 0 && self.window == 0 && !self.is_queued
    }

    /// True if it is granted. A message that isn't stands in the queue, and its link is attended to when its turn has come.
    pub(super) fn ask(&mut self, wish: Wish, link: &Weak<Link>) -> bool {
        let mut budget = lock();
        match wish {
            Wish::Nothing => false,
            Wish::Window(bytes) => {
                let is_granted = budget.queue.is_empty() && budget.fits(bytes);
                if is_granted {
                    self.window += bytes;
                    budget.windows += bytes;
                }
                is_granted
            }
            Wish::Message(bytes) => {
                let is_first = budget.queue.front().is_none_or(|first| Weak::ptr_eq(first, link));
                if is_first && (budget.messages == 0 || budget.fits(bytes)) {
                    self.message = self.message.saturating_add(bytes);
                    budget.messages = budget.messages.saturating_add(bytes);
                    self.withdraw(&mut budget, link);
                    return true;
                }
                if !self.is_queued {
                    self.is_queued = true;
                    budget.queue.push_back(link.clone());
                }
                false
            }
        }
    }

    /// The link holds no more than this by now.
    pub(super) fn settle(&mut self, message: u64, window: u64, wish: Wish, link: &Weak<Link>) {
        let waits = matches!(wish, Wish::Message(_));
        if self.message <= message && self.window <= window && (waits || !self.is_queued) {
            return;
        }
        let mut budget = lock();
        let of_message = self.message.saturating_sub(message);
        let of_window = self.window.saturating_sub(window);
        self.message -= of_message;
        self.window -= of_window;
        budget.messages = budget.messages.saturating_sub(of_message);
        budget.windows = budget.windows.saturating_sub(of_window);
        if !waits {
            self.withdraw(&mut budget, link);
        }
        if of_message > 0 || of_window > 0 {
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

    /// True if others wait for what this link was granted for a message, and its inbox has been the same for too long.
    pub(super) fn is_hoarding(&mut self, now: Instant, inbox_bytes: usize) -> bool {
        if self.message == 0 {
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
    fn fits(&self, bytes: u64) -> bool {
        self.messages.saturating_add(self.windows).saturating_add(bytes) <= self.bytes
    }

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

/// `None` while somebody is about it.
#[must_use]
pub(super) fn try_hold() -> Option<Held> {
    match BUDGET.try_lock() {
        Ok(budget) => Some(Held(budget)),
        Err(TryLockError::Poisoned(poisoned)) => Some(Held(poisoned.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl Held {
    pub(super) fn release_in_child(mut self) {
        (self.0.messages, self.0.windows) = (0, 0);
        std::mem::forget(std::mem::take(&mut self.0.queue));
    }
}
