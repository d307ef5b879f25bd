//! Who waits for something on a link or a listener, each woken on exactly what it waits for: threads that sleep, and those of
//! an event loop, who are sent word of it.

use std::cell::RefCell;
use std::io;
use std::mem;
use std::ops::BitOr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::fork;
use crate::engine::hub::{Hub, Seat};
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

impl Interest {
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOr for Interest {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.and(other)
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

/// How somebody waits.
pub enum Patience<'s> {
    /// The calling thread sleeps, until then at the most.
    Until(Option<Instant>),
    /// It doesn't: word is sent to the seat when it is worth another try, and nothing waits for a lock either.
    Told(&'s mut Seat),
}

impl Patience<'_> {
    /// For one wait of several.
    pub fn again(&mut self) -> Patience<'_> {
        match self {
            Self::Until(deadline) => Patience::Until(*deadline),
            Self::Told(seat) => Patience::Told(seat),
        }
    }
}

impl From<Option<Instant>> for Patience<'_> {
    fn from(deadline: Option<Instant>) -> Self {
        Self::Until(deadline)
    }
}

impl<'s> From<&'s mut Seat> for Patience<'s> {
    fn from(seat: &'s mut Seat) -> Self {
        Self::Told(seat)
    }
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

struct Waiter {
    interest: Interest,
    who: Who,
    /// When its time is up. It sees to that by itself, unless time is skipped.
    deadline: Option<Instant>,
    is_signalled: bool,
}

enum Who {
    Thread(Arc<Wakeup>),
    Seated(Arc<Hub>, usize),
}

/// Those who wait; under the lock of what they wait for.
#[derive(Default)]
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
    pub fn enter(&mut self, interest: Interest, deadline: Option<Instant>) -> io::Result<Place> {
        let wakeup = own_wakeup()?;
        self.push(Waiter { interest, who: Who::Thread(wakeup.clone()), deadline, is_signalled: false });
        Ok(Place { wakeup, deadline })
    }

    /// Takes in who is sent word.
    pub fn enter_seat(&mut self, interest: Interest, seat: &mut Seat) {
        let who = Who::Seated(seat.hub.clone(), seat.token);
        self.push(Waiter { interest, who, deadline: seat.deadline, is_signalled: false });
        seat.is_taken = true;
    }

    fn push(&mut self, waiter: Waiter) {
        let waiters = self.0.get_or_insert_default();
        // Mostly one, on thousands of links; a vector begins with four.
        waiters.reserve_exact(1);
        waiters.push(waiter);
    }

    /// The calling thread doesn't wait any more.
    pub fn leave(&mut self, place: Place) {
        if self.remove(|who| matches!(who, Who::Thread(wakeup) if Arc::ptr_eq(wakeup, &place.wakeup))) {
            place.wakeup.clear();
        }
    }

    /// Who was sent word, or was to be, doesn't wait any more. True if it was.
    pub fn leave_seat(&mut self, seat: &mut Seat) -> bool {
        mem::take(&mut seat.is_taken)
            && self.remove(|who| matches!(who, Who::Seated(hub, token) if seat.is_at(hub, *token)))
    }

    /// Whether who has gone was signalled.
    fn remove(&mut self, is_meant: impl Fn(&Who) -> bool) -> bool {
        let Some(waiters) = &mut self.0 else { return false };
        let Some(index) = waiters.iter().position(|waiter| is_meant(&waiter.who)) else { return false };
        let was_signalled = waiters.remove(index).is_signalled;
        if waiters.is_empty() {
            self.0 = None;
        }
        was_signalled
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

    /// Wakes any one thread, whatever it waits for, unless one was woken and hasn't come yet. Who is seated can't take its
    /// place: it polls nothing.
    pub fn wake_any(&mut self) {
        let mut threads = self.all().iter_mut().filter(|waiter| matches!(waiter.who, Who::Thread(_)));
        if let Some(first) = threads.next()
            && !first.is_signalled
            && threads.all(|other| !other.is_signalled)
        {
            first.signal();
        }
    }

    pub fn wake_everyone(&mut self) {
        self.all().iter_mut().for_each(Waiter::signal);
    }

    /// Time was skipped: wakes those whose time is up. When that of the next is; true while somebody was woken and hasn't come yet.
    pub(super) fn wake_overdue(&mut self, now: Instant) -> (Option<Instant>, bool) {
        let waiters = self.all();
        waiters.iter_mut().filter(|waiter| waiter.deadline.is_some_and(|at| at <= now)).for_each(Waiter::signal);
        let others = waiters.iter().filter(|waiter| !waiter.is_signalled);
        (others.filter_map(|waiter| waiter.deadline).min(), waiters.iter().any(|waiter| waiter.is_signalled))
    }
}

impl Waiter {
    fn signal(&mut self) {
        if !self.is_signalled {
            self.is_signalled = true;
            match &self.who {
                Who::Thread(wakeup) => wakeup.set(),
                Who::Seated(hub, token) => hub.signal(*token),
            }
        }
    }
}

/// A waiting thread's place in the list.
#[derive(Debug)]
pub struct Place {
    wakeup: Arc<Wakeup>,
    deadline: Option<Instant>,
}

impl Place {
    /// Sleeps until it is woken, `events` come on `fd`, or the deadline has passed; gives what came on `fd`. Spurious
    /// wake-ups happen.
    pub fn sleep(
        &self,
        fd: Option<BorrowedFd<'_>>,
        events: libc::c_short,
        now: Instant,
    ) -> Result<libc::c_short, WaitError> {
        let timeout = self.deadline.map(|deadline| deadline.saturating_duration_since(now));
        if timeout == Some(Duration::ZERO) {
            return Err(WaitError::TimedOut);
        }
        match sync::wait_either(fd, events, &self.wakeup, timeout) {
            Ok((came, _)) => Ok(came),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(WaitError::Interrupted),
            Err(error) => Err(error.into()),
        }
    }
}
