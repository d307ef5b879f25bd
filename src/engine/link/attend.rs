//! What the engine does for a link: hears of its socket, rings its alarm, and takes the reader's role back.

use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::Interest as Readiness;
use mio::event::Event as Ready;

use super::{BOTH, CHUNK_BYTES, Errand, Inner, Link, Reader, TURN_BYTES};
use crate::engine::clock;
use crate::engine::reactor::PANICKED;
use crate::engine::skipping::Stir;
use crate::net::sys;
use crate::proto::cause::{Cause, Ending};
use crate::proto::connection::State;
use crate::proto::moment::Moment;

impl Link {
    pub(in crate::engine) fn on_ready(&self, ready: &Ready) {
        let mut errand = Errand(0);
        let is_broken = ready.is_error() || ready.is_write_closed();
        for (is_so, what) in [
            (ready.is_writable(), Errand::WRITABLE),
            (ready.is_readable(), Errand::READABLE),
            (ready.is_read_closed() || is_broken, Errand::TO_THE_END),
            (is_broken, Errand::BROKEN),
        ] {
            if is_so {
                errand = Errand(errand.0 | what.0);
            }
        }
        self.run(errand);
    }

    /// For a hub: reads once, without having heard that there is something. True if there was.
    pub(in crate::engine) fn read_unasked(&self) -> bool {
        let Some(mut inner) = self.try_lock() else { return false };
        if !inner.is_at_hub() {
            return false;
        }
        let now = clock::now();
        let has_read = inner.read(now);
        if has_read {
            inner.last_read = now.into();
            self.turn(&mut inner, now);
            self.leave_unsent(&mut inner, now);
        }
        has_read
    }

    /// Has the errand done: now, or, while somebody else has the lock, by who that is. So nobody who is slow with one link
    /// delays the others.
    pub(in crate::engine) fn run(&self, errand: Errand) {
        if let Some((mut inner, all)) = self.errands.begin(errand.0, || self.try_lock()) {
            self.do_errand(&mut inner, Errand(all));
        }
    }

    pub(super) fn do_errand(&self, inner: &mut Inner, errand: Errand) {
        let now = clock::now();
        if errand.has(Errand::WRITABLE) {
            inner.is_write_blocked = false;
        }
        if errand.has(Errand::ATTENTION) {
            inner.is_flush_coming = false;
        }
        let is_for_engine = errand.has(Errand::READABLE) || (errand.has(Errand::ATTENTION) && inner.is_unread);
        if errand.has(Errand::BROKEN) && self.framing.is_some() {
            // However much the program has to take yet: the end is told now.
            inner.read_to_the_end(now);
            inner.hear_reset_behind_end(now);
        } else if (is_for_engine && (inner.reader == Reader::Engine || inner.is_at_hub())) || errand.has(Errand::BROKEN)
        {
            if inner.is_at_hub() && errand.has(Errand::READABLE) {
                inner.last_read = now.into();
            }
            self.read_for_engine(inner, now, errand.has(Errand::TO_THE_END) || inner.is_unread);
        }
        if errand.has(Errand::SUSPENSION) {
            inner.read_all(now);
            inner.core.handle_pause(now);
        }
        if errand.has(Errand::DELIVERY) {
            self.take_deliveries(inner, now);
        }
        if errand.has(Errand::FORGETTING) {
            self.forget_undelivered(inner);
        }
        if errand.has(Errand::ALARM) {
            self.on_alarm(inner, now);
            self.come_back(inner, now);
        }
        self.turn(inner, now);
        self.leave_unsent(inner, now);
    }

    /// Edge-triggered: until there is nothing more, or others are to have their turn. Less than what there was room for is
    /// all there was (epoll(7)), but for an end of stream, which is `to_the_end`.
    pub(super) fn read_for_engine(&self, inner: &mut Inner, now: Instant, to_the_end: bool) {
        inner.is_unread = true;
        for _ in 0..TURN_BYTES / CHUNK_BYTES {
            if !inner.core.wants_input() {
                // Even if the last read was a short one: the end of the stream may lie behind it.
                inner.is_unread = true;
                inner.is_held_back = true;
                return;
            }
            if !inner.read(now) || (!inner.is_unread && !to_the_end) {
                inner.is_unread = false;
                return;
            }
        }
        inner.is_unread = true;
        self.engine.attend(self.key);
    }

    pub(super) fn on_alarm(&self, inner: &mut Inner, now: Instant) {
        inner.alarm = None;
        if inner.reader == Reader::Callers && !inner.is_polled && Moment::from(now) >= inner.role_returns() {
            self.give_role_to_engine(inner, now);
        }
        let Some(deadline) = inner.deadline.map(Moment::instant).filter(|deadline| now >= *deadline) else { return };
        // What the kernel holds is heard before it is judged. What the engine reads itself was read just now, unless it is
        // late.
        let is_late = now > deadline + LATE;
        let is_judged = is_late || inner.core.state() != State::Open;
        if inner.is_receiving && is_judged && !mem::replace(&mut inner.is_judgement_put_off, true) {
            // A caller reads, and may have something that it hasn't handed over yet.
            let again = Moment::from(now) + LATE;
            inner.alarm = Some(again);
            self.engine.set_alarm(self.key, again);
            return;
        }
        inner.is_judgement_put_off = false;
        if inner.reader == Reader::Callers || inner.is_unread || is_judged {
            inner.read_all(now);
        }
        inner.core.handle_timeout(now);
        if let Some(stats) = inner.core.stats(now) {
            inner.follow_round_trip(&stats);
            inner.give_way(now, &stats);
        }
    }

    pub(super) fn give_role_to_engine(&self, inner: &mut Inner, now: Instant) {
        let Some(socket) = &inner.socket else { return };
        let watched = if inner.is_watched {
            self.engine.rewatch(socket.as_fd(), self.key, BOTH)
        } else {
            self.engine.watch(socket.as_fd(), self.key, BOTH)
        };
        match watched {
            Ok(()) => {
                (inner.reader, inner.is_watched) = (Reader::Engine, true);
                let socket = socket.clone();
                self.leave_hub(inner, &socket);
            }
            // Without memory for it now; again in a moment.
            Err(_) => inner.last_read = now.into(),
        }
    }

    /// The loop's thread doesn't read it any more.
    pub(super) fn leave_hub(&self, inner: &mut Inner, socket: &OwnedFd) {
        if let Some(hub) = inner.extras.as_mut().and_then(|extras| extras.hub.take()) {
            hub.unwatch(socket.as_fd(), self.key);
        }
    }

    /// A caller goes away, and what it has sent waits for the peer's acknowledgements: who is to read them if not the engine?
    pub(super) fn leave_unsent(&self, inner: &mut Inner, now: Instant) {
        let is_read = inner.is_polled || (inner.is_at_hub() && !inner.waiters.is_empty());
        if inner.reader == Reader::Callers && !is_read && inner.core.has_unsent() {
            self.give_role_to_engine(inner, now);
        }
    }

    /// The socket leaves the engine's epoll, if it may: each packet would call on that, too, which is 0.6 us a message.
    pub(super) fn take_role(&self, inner: &mut Inner) {
        let Some(socket) = &inner.socket else { return };
        if inner.is_watched && !inner.is_write_blocked {
            self.engine.unwatch(socket.as_fd());
            inner.is_watched = false;
        } else if inner.reader == Reader::Engine
            && self.engine.rewatch(socket.as_fd(), self.key, Readiness::WRITABLE).is_err()
        {
            return;
        }
        if inner.reader == Reader::Engine {
            inner.reader = Reader::Callers;
            inner.is_unread = false;
        }
    }

    /// Before time is skipped: whether something is under way that only real time brings.
    pub(in crate::engine) fn stir(&self) -> Stir {
        let Some(mut inner) = self.try_lock() else { return Stir { is_astir: true, next_deadline: None } };
        let now = clock::now();
        let (next_deadline, is_waking) = inner.waiters.wake_overdue(now);
        let is_astir = is_waking
            || self.errands.are_left()
            || inner.socket.as_ref().is_some_and(|socket| {
                // What the engine reads it would have been told of.
                let has_unread = || sys::bytes_readable(socket.as_raw_fd()).is_ok_and(|bytes| bytes > 0);
                inner.core.is_owed(now) || inner.reader == Reader::Callers && inner.core.wants_input() && has_unread()
            });
        Stir { is_astir, next_deadline }
    }

    /// The budget has something for it, perhaps.
    pub(in crate::engine) fn ask_for_attention(&self) {
        self.engine.attend(self.key);
    }

    /// Nobody looks after it any more. Of its session nothing goes on, for what was half done when the engine's thread
    /// panicked isn't known.
    pub(in crate::engine) fn on_engine_lost(&self) {
        let mut inner = self.lock();
        let now = clock::now();
        inner.stay_away();
        inner.core.abandon(now, PANICKED.into());
        self.turn(&mut inner, now);
        drop(inner);
        self.end_without_core();
    }

    #[cfg(test)]
    pub(in crate::engine) fn panic_with_lock(&self) {
        let _inner = self.lock();
        self.errands.leave(Errand::ATTENTION.0);
        panic!("as the test wants it");
    }

    /// Where the core can't say that it is over.
    pub(in crate::engine) fn end_without_core(&self) {
        let mut inner = self.lock();
        if inner.ending.is_none() {
            self.detach(&mut inner, true);
            inner.ending = Some(Arc::new(Ending { detail: Some(PANICKED.into()), ..Ending::new(Cause::Reset) }));
            inner.waiters.wake_everyone();
        }
    }

    /// In a forked child: our copy of the descriptor goes, without a word.
    pub(in crate::engine) fn close_in_child(&self) {
        let number = self.number.swap(-1, Ordering::Relaxed);
        if number >= 0 {
            sys::close_inherited(number);
        }
    }
}

/// How long who was told to give way may take to go. Arbitrary.
pub(super) const PARTING: Duration = Duration::from_secs(1);
/// An alarm later than this is preceded by a read.
pub(in crate::engine) const LATE: Duration = Duration::from_millis(10);
