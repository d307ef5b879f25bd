//! The locks, atomics and threads of the engine, and the descriptors by which it wakes and is woken: std's and the
//! system's, and in their place loom's and what stands for descriptors there, where every interleaving is tried for one
//! that loses something (`make loom`, `models`).
//!
//! `Arc` and `Weak` are std's everywhere, for loom's have no weak references; `PoisonError` and `TryLockError` are the
//! same for both. What only counts (how many members there are, when Python ran) is std's, too: nothing is handed over by it.

use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::{OnceLock, TryLockError};

#[cfg(not(loom))]
mod which {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::time::Duration;

    pub(in crate::engine) use std::sync::atomic::{self, AtomicU16};
    pub(in crate::engine) use std::sync::{Condvar, Mutex, MutexGuard};
    pub(in crate::engine) use std::thread;

    pub(in crate::engine) use crate::net::sys::{DelayedWakeup, Wakeup};

    /// Statics; loom's are made anew for each interleaving.
    macro_rules! global {
        ($($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;)*) => {
            $($(#[$attribute])* static $name: $type = $value;)*
        };
    }
    pub(in crate::engine) use global;

    /// What each thread has for itself.
    macro_rules! per_thread {
        ($($definition:tt)*) => { std::thread_local! { $($definition)* } };
    }
    pub(in crate::engine) use per_thread;

    /// As [`sys::wait_either`](crate::net::sys::wait_either).
    pub(in crate::engine) fn wait_either(
        first: Option<BorrowedFd<'_>>,
        events: libc::c_short,
        second: &Wakeup,
        timeout: Option<Duration>,
    ) -> io::Result<(libc::c_short, bool)> {
        crate::net::sys::wait_either(first, events, second.as_fd(), timeout)
    }
}

#[cfg(loom)]
mod which {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::sync::Arc;
    use std::time::Duration;

    pub(in crate::engine) use loom::sync::atomic::{self, AtomicU16};
    pub(in crate::engine) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(in crate::engine) use loom::thread;

    use crate::net::sys;

    macro_rules! global {
        ($($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;)*) => {
            loom::lazy_static! { $($(#[$attribute])* static ref $name: $type = $value;)* }
        };
    }
    pub(in crate::engine) use global;

    /// loom's, which knows nothing of constants.
    macro_rules! per_thread {
        ($(#[$attribute:meta])* static $name:ident: $type:ty = const $value:block;) => {
            loom::thread_local! { $(#[$attribute])* static $name: $type = $value; }
        };
    }
    pub(in crate::engine) use per_thread;

    /// An eventfd: as poll(2) sees it, and as an edge-triggered epoll does.
    #[derive(Clone, Debug)]
    pub(in crate::engine) struct Wakeup(Arc<Eventfd>);

    #[derive(Debug)]
    struct Eventfd {
        /// For who asks for its number.
        descriptor: sys::Wakeup,
        state: Mutex<State>,
        changed: Condvar,
    }

    #[derive(Debug, Default)]
    struct State {
        is_readable: bool,
        /// Written to since epoll last told of it.
        has_edge: bool,
    }

    impl Wakeup {
        pub(in crate::engine) fn new() -> io::Result<Self> {
            let descriptor = sys::Wakeup::new()?;
            Ok(Self(Arc::new(Eventfd { descriptor, state: Mutex::default(), changed: Condvar::new() })))
        }

        pub(in crate::engine) fn set(&self) {
            *self.lock() = State { is_readable: true, has_edge: true };
            self.0.changed.notify_all();
        }

        /// Also after a moment, in whichever order that comes.
        pub(in crate::engine) fn set_after(&self, _: Duration) {
            self.set();
        }

        /// epoll looks at the descriptor before it tells of an edge, and finds nothing.
        pub(in crate::engine) fn clear(&self) {
            *self.lock() = State::default();
        }

        /// As poll(2), without a limit.
        pub(in crate::engine) fn wait(&self) {
            let mut state = self.lock();
            while !state.is_readable {
                state = self.0.changed.wait(state).expect("nobody panics");
            }
        }

        /// As epoll_wait(2) with EPOLLET, without a limit.
        pub(in crate::engine) fn wait_for_edge(&self) {
            let mut state = self.lock();
            while !(state.is_readable && state.has_edge) {
                state = self.0.changed.wait(state).expect("nobody panics");
            }
            state.has_edge = false;
        }

        fn lock(&self) -> MutexGuard<'_, State> {
            self.0.state.lock().expect("nobody panics")
        }
    }

    impl AsFd for Wakeup {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.descriptor.as_fd()
        }
    }

    pub(in crate::engine) type DelayedWakeup = Wakeup;

    pub(in crate::engine) fn wait_either(
        _: Option<BorrowedFd<'_>>,
        _: libc::c_short,
        second: &Wakeup,
        _: Option<Duration>,
    ) -> io::Result<(libc::c_short, bool)> {
        second.wait();
        Ok((0, true))
    }
}

pub(super) use which::*;

/// Waits for a lock, and takes it from who has panicked: what it guards is consistent between any two instructions, or is
/// told to be over (`Reactor::end_all`).
#[cfg(loom)]
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a thread waits that may be attached to Python: detached, if it is.
#[cfg(not(loom))]
static WAIT_DETACHED: OnceLock<fn(&mut dyn FnMut())> = OnceLock::new();
/// So often a lock is tried before it counts as held for long. Arbitrary: whoever else has one needs a few instructions.
#[cfg(not(loom))]
const TRIES: usize = 100;

/// Over a fork some of these locks are held by who forks, and that thread may have to wait for Python meanwhile: for the GIL,
/// where another hook of the program gives it away, and without a GIL for all attached threads to be stopped. So nobody may
/// wait for them attached. To be brief is no reason to detach: to attach again can take as long as other threads compute,
/// and who asks may have a link's lock.
#[cfg(not(loom))]
#[cfg_attr(not(feature = "python"), allow(dead_code, reason = "it is Python that threads are attached to"))]
pub(crate) fn wait_detached_by(wait: fn(&mut dyn FnMut())) {
    let _ = WAIT_DETACHED.set(wait);
}

/// Waits for a lock, and takes it from who has panicked: what it guards is consistent between any two instructions, or is
/// told to be over (`Reactor::end_all`).
#[cfg(not(loom))]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    loop {
        for _ in 0..TRIES {
            match mutex.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => thread::yield_now(),
            }
        }
        match WAIT_DETACHED.get() {
            Some(wait) => wait(&mut || drop(mutex.lock())),
            None => return mutex.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}
