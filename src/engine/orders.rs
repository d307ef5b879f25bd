//! What the engine's thread is told by others, and when it is woken for it.

use std::io;
use std::mem;
use std::sync::TryLockError;
use std::time::Duration;

use crate::engine::sync::{self, DelayedWakeup, Mutex, MutexGuard, Wakeup};

/// How long the last messages of a burst may wait for company. Arbitrary: ten round trips on loopback.
const BURST_DELAY: Duration = Duration::from_micros(100);

struct Given<T> {
    urgent: Vec<T>,
    /// Whom to attend to shortly, in company.
    soon: Vec<usize>,
    /// The thread was woken and hasn't taken the orders yet.
    is_woken: bool,
    is_stopping: bool,
    /// There is no thread, nor ever will be.
    is_over: bool,
}

pub(super) struct Orders<T> {
    given: Mutex<Given<T>>,
    /// Both are the thread's to wait for, and to clear when it has heard of them; it takes the orders after that.
    pub(super) wakeup: Wakeup,
    pub(super) soon: DelayedWakeup,
}

impl<T> Orders<T> {
    pub(super) fn new() -> io::Result<Self> {
        let given = Given { urgent: Vec::new(), soon: Vec::new(), is_woken: false, is_stopping: false, is_over: false };
        Ok(Self { given: Mutex::new(given), wakeup: Wakeup::new()?, soon: DelayedWakeup::new()? })
    }

    fn lock(&self) -> MutexGuard<'_, Given<T>> {
        sync::lock(&self.given)
    }

    /// Its own orders the thread takes before it sleeps: no need to wake it. Given back when nobody will take it.
    pub(super) fn give(&self, order: T, is_own: bool) -> Result<(), T> {
        let mut given = self.lock();
        if given.is_over {
            return Err(order);
        }
        given.urgent.push(order);
        let wakes = !given.is_woken && !is_own;
        given.is_woken |= wakes;
        drop(given);
        if wakes {
            self.wakeup.set();
        }
        Ok(())
    }

    /// Wakes the thread for this after a moment, so that more can come together meanwhile.
    pub(super) fn give_soon(&self, key: usize) {
        let mut given = self.lock();
        given.soon.push(key);
        if given.soon.len() == 1 {
            self.soon.set_after(BURST_DELAY);
        }
    }

    pub(super) fn stop(&self) {
        self.lock().is_stopping = true;
        self.wakeup.set();
    }

    /// All that were given, the urgent ones first.
    pub(super) fn take(&self) -> (Vec<T>, Vec<usize>) {
        let mut given = self.lock();
        given.is_woken = false;
        (mem::take(&mut given.urgent), mem::take(&mut given.soon))
    }

    /// True once for each [`Orders::stop`].
    pub(super) fn is_to_stop(&self) -> bool {
        mem::take(&mut self.lock().is_stopping)
    }

    /// Nor anything that it is to do shortly.
    pub(super) fn are_none(&self) -> bool {
        let given = self.lock();
        given.urgent.is_empty() && given.soon.is_empty()
    }

    /// There is nothing that the thread has to do before it sleeps.
    pub(super) fn may_sleep(&self) -> bool {
        self.lock().urgent.is_empty()
    }

    /// The thread is gone: what it hasn't carried out; no more is taken.
    pub(super) fn end(&self) -> Vec<T> {
        let mut given = self.lock();
        given.is_over = true;
        mem::take(&mut given.urgent)
    }

    /// In a forked child: none if some thread of the parent had the lock.
    pub(super) fn take_in_child(&self) -> Vec<T> {
        match self.given.try_lock() {
            Ok(mut given) => mem::take(&mut given.urgent),
            Err(TryLockError::Poisoned(poisoned)) => mem::take(&mut poisoned.into_inner().urgent),
            Err(TryLockError::WouldBlock) => Vec::new(),
        }
    }
}
