//! Threads that wait for something on a link or a listener, each woken on exactly what it waits for.

use std::cell::RefCell;
use std::io;
use std::ops::BitOr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::fork;
use crate::engine::sync::{self, Wakeup, per_thread};

/// What somebody waits for: a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(u8);

impl Interest {
    pub const NOTHING: Self = Self(0);
    /// A message, or the end.
    pub const READABLE: Self = Self(1);
    /// Room for a message.
    pub const ROOM: Self = Self(2);
    /// The peer's application took something.
    pub const TAKEN: Self = Self(4);
    pub const STATE: Self = Self(8);
    pub const PONG: Self = Self(16);
    pub const EVENT: Self = Self(32);
    /// On a listener: a connection to accept.
    pub const ACCEPTABLE: Self = Self(64);
    /// On a listener: a client to decide about.
    pub const HELLO: Self = Self(128);

    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Interest {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why a wait ended without what was waited for.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    #[error("the time is up")]
    TimedOut,
    /// By a signal: its handler is to run, then the wait may go on with the same deadline.
    #[error("interrupted by a signal")]
    Interrupted,
    #[error(transparent)]
    System(#[from] io::Error),
}

per_thread! {
    /// A thread waits at one place at a time, so one descriptor a thread is enough for any number of links. It is the
    /// child's own after a fork, for both would be woken by the parent's.
    static OWN: RefCell<Option<(u32, Arc<Wakeup>)>> = const { RefCell::new(None) };
}

fn own_wakeup() -> io::Result<Arc<Wakeup>> {
    OWN.with(|own| match &mut *own.borrow_mut() {
        Some((generation, wakeup)) if *generation == fork::generation() => Ok(wakeup.clone()),
        own => {
            let wakeup = Arc::new(Wakeup::new()?);
            *own = Some((fork::generation(), wakeup.clone()));
            Ok(wakeup)
        }
    })
}

#[derive(Debug)]
struct Waiter {
    interest: Interest,
    wakeup: Arc<Wakeup>,
    is_signalled: bool,
}

/// Those who wait; under the lock of what they wait for.
#[derive(Debug, Default)]
pub struct Waiters(
    /// Mostly nobody does.
    #[allow(clippy::box_collection, reason = "one word on each of thousands of links")]
    Option<Box<Vec<Waiter>>>,
);

impl Waiters {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn all(&mut self) -> &mut [Waiter] {
        self.0.as_deref_mut().map_or(&mut [], Vec::as_mut_slice)
    }

    /// Takes the calling thread in. What it is to poll while nobody holds the lock.
    pub fn enter(&mut self, interest: Interest) -> io::Result<Place> {
        let wakeup = own_wakeup()?;
        self.0.get_or_insert_default().push(Waiter { interest, wakeup: wakeup.clone(), is_signalled: false });
        Ok(Place(wakeup))
    }

    /// The calling thread doesn't wait any more.
    pub fn leave(&mut self, place: Place) {
        let Some(waiters) = &mut self.0 else { return };
        let Some(index) = waiters.iter().position(|waiter| Arc::ptr_eq(&waiter.wakeup, &place.0)) else { return };
        if waiters.remove(index).is_signalled {
            place.0.clear();
        }
        if waiters.is_empty() {
            self.0 = None;
        }
    }

    /// Wakes all who wait for any of this.
    pub fn wake_all(&mut self, what: Interest) {
        for waiter in self.all().iter_mut().filter(|waiter| waiter.interest.meets(what)) {
            waiter.signal();
        }
    }

    /// Wakes one who waits for this, unless one was woken and hasn't come yet.
    pub fn wake_one(&mut self, what: Interest) {
        let mut who = self.all().iter_mut().filter(|waiter| waiter.interest.meets(what));
        if let Some(first) = who.next()
            && !first.is_signalled
            && who.all(|other| !other.is_signalled)
        {
            first.signal();
        }
    }

    /// Wakes any one, whatever it waits for, unless one was woken and hasn't come yet.
    pub fn wake_any(&mut self) {
        let waiters = self.all();
        if waiters.iter().all(|waiter| !waiter.is_signalled)
            && let Some(first) = waiters.first_mut()
        {
            first.signal();
        }
    }

    pub fn wake_everyone(&mut self) {
        self.all().iter_mut().for_each(Waiter::signal);
    }
}

impl Waiter {
    fn signal(&mut self) {
        if !self.is_signalled {
            self.is_signalled = true;
            self.wakeup.set();
        }
    }
}

/// A waiting thread's place in the list.
#[derive(Debug)]
pub struct Place(Arc<Wakeup>);

impl Place {
    /// Sleeps until it is woken, `events` come on `fd`, or the deadline has passed; gives what came on `fd`. Spurious
    /// wake-ups happen.
    pub fn sleep(
        &self,
        fd: Option<BorrowedFd<'_>>,
        events: libc::c_short,
        now: Instant,
        deadline: Option<Instant>,
    ) -> Result<libc::c_short, WaitError> {
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(now));
        if timeout == Some(Duration::ZERO) {
            return Err(WaitError::TimedOut);
        }
        match sync::wait_either(fd, events, &self.0, timeout) {
            Ok((came, _)) => Ok(came),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(WaitError::Interrupted),
            Err(error) => Err(error.into()),
        }
    }
}
