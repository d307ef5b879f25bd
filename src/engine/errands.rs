//! What is left to be done by who has a lock, so that the engine never waits for one, and nothing stays undone.

use std::sync::atomic::Ordering;

use crate::engine::sync::AtomicU16;
use crate::engine::sync::atomic::fence;

/// A set of up to sixteen errands, beside the lock of what they are about.
pub(super) struct Errands(AtomicU16);

impl Errands {
    pub(super) fn none() -> Self {
        Self(AtomicU16::new(0))
    }

    /// For who has the lock next.
    pub(super) fn leave(&self, errand: u16) {
        self.0.fetch_or(errand, Ordering::SeqCst);
    }

    /// The lock, and what is to be done under it: this errand and all that were left. None while somebody else has it, who
    /// is to ask [`Errands::are_left`] once it is given back.
    pub(super) fn begin<G>(&self, errand: u16, try_lock: impl Fn() -> Option<G>) -> Option<(G, u16)> {
        let taken = try_lock().or_else(|| {
            self.leave(errand);
            // Who gave the lock back before that can't have seen it.
            fence(Ordering::SeqCst);
            try_lock()
        });
        taken.map(|guard| (guard, errand | self.0.swap(0, Ordering::SeqCst)))
    }

    /// To be asked by who has just given the lock back.
    pub(super) fn are_left(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::SeqCst) != 0
    }
}
