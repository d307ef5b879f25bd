//! The locks, atomics and threads of the engine: std's, and loom's in their place where every interleaving is tried, for
//! one that loses a wake-up (`make loom`).
//!
//! `Arc` and `Weak` are std's everywhere, for loom's have no weak references; `PoisonError` and `TryLockError` are the
//! same for both. What only counts (how many members there are, when Python ran) is std's, too: nothing is handed over by it.

#[cfg(not(loom))]
mod which {
    pub(in crate::engine) use std::sync::atomic::{self, AtomicU8};
    pub(in crate::engine) use std::sync::{Condvar, Mutex, MutexGuard};
    pub(in crate::engine) use std::thread;

    /// Statics; loom's are made anew for each interleaving.
    macro_rules! global {
        ($($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;)*) => {
            $($(#[$attribute])* static $name: $type = $value;)*
        };
    }
    pub(in crate::engine) use global;
}

#[cfg(loom)]
mod which {
    pub(in crate::engine) use loom::sync::atomic::{self, AtomicU8};
    pub(in crate::engine) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(in crate::engine) use loom::thread;

    macro_rules! global {
        ($($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;)*) => {
            loom::lazy_static! { $($(#[$attribute])* static ref $name: $type = $value;)* }
        };
    }
    pub(in crate::engine) use global;
}

pub(super) use which::*;
