//! Waiting: who waits reads; and what can be waited for.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Attempt, Guard, Inner, Link, LinkError, Occurrence, ROOM, Reader};
use crate::engine::clock;
use crate::engine::hub::{Hub, Seat};
use crate::engine::waiting::{Interest, Patience, WaitError};
use crate::net::sys;
use crate::proto::cause::Ending;
use crate::proto::connection::State;
use crate::proto::placing::{HEADERS_BYTES, Placing};

/// A message from here up is received into the memory of who waits for it, and not copied.
const PLACED_BYTES: usize = 64 * 1024;
/// Shorter waits are poll's, which is exact to the millisecond; recv(2) counts in ticks of the kernel, up to 10 ms.
const PRECISE: Duration = Duration::from_millis(100);
/// What comes by the socket, as a rule, and not just now and then: for this a loop's thread reads.
const SOCKETS: Interest = Interest::READABLE.and(Interest::ROOM).and(Interest::TAKEN).and(Interest::PONG);

/// Whether recv(2) is a way to wait until then. Who is in it can't be told that time was skipped; nor can be seen who has come out of it
/// and hasn't taken the lock yet, while what lies with the kernel can.
fn may_receive_until(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_none_or(|deadline| deadline > now + PRECISE) && !clock::may_skip()
}

impl Link {
    /// Until `ready` gives something; it is asked again whenever something of `interest` has come. The first who waits is
    /// the reader.
    pub(super) fn wait<'s, T>(
        &self,
        interest: Interest,
        patience: impl Into<Patience<'s>>,
        mut ready: impl FnMut(&Self, &mut Inner, Instant) -> Option<Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        let deadline = match patience.into() {
            Patience::Until(deadline) => deadline,
            Patience::Told(seat) => return self.look(interest, seat, ready),
        };
        let mut inner = self.enter()?;
        inner.last_send = None;
        let mut now = clock::now();
        let mut has_slept = false;
        let result = loop {
            if let Some(result) = ready(self, &mut inner, now) {
                break result;
            }
            let reads = !inner.is_polled && inner.socket.is_some() && inner.core.wants_input();
            let has_time = may_receive_until(deadline, now);
            if reads && has_time && interest == Interest::READABLE {
                self.take_role(&mut inner);
                if inner.core.is_urgent() {
                    self.turn(&mut inner, now);
                }
                let received;
                (inner, now, received) = self.receive(inner, now, deadline);
                if let Err(error) = received {
                    break Err(error.into());
                }
                continue;
            }
            let has_read = reads && {
                self.take_role(&mut inner);
                inner.last_read = now.into();
                inner.read(now)
            };
            if reads || inner.core.is_urgent() {
                self.turn(&mut inner, now);
                has_slept = false;
                if let Some(result) = ready(self, &mut inner, now) {
                    break result;
                }
            }
            if has_read {
                // Others are to have a chance at the lock while a large message comes.
                drop(inner);
                inner = self.lock();
                now = clock::now();
                continue;
            }
            let slept;
            (inner, slept) = self.sleep(inner, interest, now, deadline);
            has_slept = true;
            now = clock::now();
            if inner.waiters.is_empty() {
                inner.core.set_waiting(now, false);
            }
            if let Err(error) = slept {
                break Err(error.into());
            }
        };
        if !inner.is_polled && has_slept {
            inner.last_read = now.into();
            self.set_alarm(&mut inner, now);
        }
        self.leave_unsent(&mut inner, now);
        inner.hand_over();
        result
    }

    /// The same for who is seated: one look, and another when the seat is told.
    fn look<T>(
        &self,
        interest: Interest,
        seat: &mut Seat,
        mut ready: impl FnMut(&Self, &mut Inner, Instant) -> Option<Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        let mut inner = self.try_enter()?.ok_or(LinkError::Busy)?;
        inner.waiters.leave_seat(seat);
        let now = clock::now();
        let mut result = ready(self, &mut inner, now);
        if result.is_none() {
            inner.last_send = None;
            if interest.meets(SOCKETS) && self.take_role_for(&mut inner, now, &seat.hub) || inner.core.is_urgent() {
                self.turn(&mut inner, now);
                result = ready(self, &mut inner, now);
            }
        }
        if result.is_none() {
            inner.waiters.enter_seat(interest, seat);
        }
        self.leave_unsent(&mut inner, now);
        inner.hand_over();
        result.unwrap_or(Err(LinkError::Pending))
    }

    /// A loop's thread is the reader from here on, as far as nobody else is. True if there was something to read.
    fn take_role_for(&self, inner: &mut Inner, now: Instant, hub: &Arc<Hub>) -> bool {
        if inner.is_polled || inner.is_at_hub() || !inner.core.wants_input() {
            return false;
        }
        let (Some(socket), Some(this)) = (inner.socket.clone(), self.this.upgrade()) else { return false };
        self.take_role(inner);
        if inner.reader == Reader::Engine {
            return false;
        }
        inner.last_read = now.into();
        let has_read = inner.read(now);
        // Edge-triggered, and what is left is reported at once.
        match hub.watch(socket.as_fd(), self.key, this) {
            Ok(()) => {
                inner.extras().hub = Some(hub.clone());
                // However soon the loop comes to read, somebody has to see that it does.
                self.set_alarm(inner, now);
            }
            Err(_) => self.give_role_to_engine(inner, now),
        }
        has_read
    }

    /// Who is seated waits no longer. What it was told of, somebody else is. `Busy` as in every look.
    pub fn leave_seat(&self, seat: &mut Seat) -> Result<(), LinkError> {
        if !seat.is_taken() {
            return Ok(());
        }
        let mut inner = self.try_enter()?.ok_or(LinkError::Busy)?;
        if inner.waiters.leave_seat(seat) {
            inner.hand_over();
        }
        Ok(())
    }

    /// Until nobody has the lock: for who was told that somebody is about it, detached.
    pub fn wait_lock(&self) -> Result<(), LinkError> {
        self.enter().map(drop)
    }

    /// The way of who waits for a message and for nothing else: it waits in recv(2) itself, which is one system call where
    /// reading, polling and reading again are three. Until it is back nobody else may read, or what it got would come too
    /// late; the end of the link ends it, as it does every call on the socket.
    pub(super) fn receive<'l>(
        &'l self,
        mut inner: Guard<'l>,
        now: Instant,
        deadline: Option<Instant>,
    ) -> (Guard<'l>, Instant, Result<(), WaitError>) {
        let Some(socket) = inner.socket.clone() else { return (inner, now, Ok(())) };
        if let Err(error) = inner.bound_receiving(deadline.map(|deadline| deadline.saturating_duration_since(now))) {
            return (inner, now, Err(error.into()));
        }
        inner.begin_receiving();
        drop(inner);
        let (mut inner, now, result) = ROOM.with_borrow_mut(|room| self.receive_in(&socket, room, deadline));
        self.settle_received(&mut inner, now);
        (inner, now, result)
    }

    /// Whether the caller may be the one to read the message that has begun, into its own memory; how long it is.
    pub(super) fn placeable(inner: &Inner, now: Instant, deadline: Option<Instant>) -> Option<usize> {
        // The other ways of waiting are exact, and a short message isn't worth it.
        let has_time = may_receive_until(deadline, now);
        // What is received there is read as it is on the wire.
        let may_read = !inner.is_polled && inner.socket.is_some() && !inner.is_secured();
        inner.core.begun().filter(|length| has_time && may_read && *length >= PLACED_BYTES)
    }

    /// How long the message is that [`Link::recv_in_place`] could receive now.
    pub fn begun(&self, deadline: Option<Instant>) -> Option<usize> {
        let inner = self.try_enter().ok()??;
        Self::placeable(&inner, clock::now(), deadline)
    }

    /// Receives the message that has begun, without a copy; `room` is as long as that, and written to in whole.
    /// [`Attempt::Later`] means that it has to be received the usual way.
    pub fn recv_in_place(
        &self,
        room: &mut [MaybeUninit<u8>],
        deadline: Option<Instant>,
    ) -> Result<Attempt<()>, LinkError> {
        let mut inner = self.enter()?;
        let mut now = clock::now();
        if Self::placeable(&inner, now, deadline) != Some(room.len()) {
            return Ok(Attempt::Later);
        }
        let Some(socket) = inner.socket.clone() else { return Ok(Attempt::Later) };
        inner.last_send = None;
        inner.last_read = now.into();
        self.take_role(&mut inner);
        let mut placing = inner.core.place_begun(room);
        let mut filled = placing.as_ref().map_or(0, Placing::filled);
        let mut over = None;
        // While this is being read nobody else may.
        inner.begin_receiving();
        let result = loop {
            let Some(place) = placing.take().or_else(|| inner.core.place_begun(room)) else { break Ok(Attempt::Later) };
            if place.is_complete() {
                break Ok(Attempt::Done(()));
            }
            filled = place.filled();
            if !may_receive_until(deadline, now) {
                placing = Some(place);
                break Ok(Attempt::Later);
            }
            if let Err(error) = inner.bound_receiving(deadline.map(|deadline| deadline.saturating_duration_since(now)))
            {
                placing = Some(place);
                break Err(error.into());
            }
            drop(inner);
            let mut headers = [MaybeUninit::new(0); HEADERS_BYTES];
            let got = sys::receive_waiting_parts(socket.as_fd(), place.places(room, &mut headers));
            inner = self.lock();
            now = clock::now();
            inner.last_read = now.into();
            if !inner.has_socket(&socket) {
                // It comes again, over another link; what was whole is here.
                break Ok(Attempt::Later);
            }
            match got {
                Ok(bytes @ 1..) => {
                    let (of_headers, of_content) = place.shares(bytes);
                    filled += of_content;
                    // SAFETY: the headers' room was written to when it was made, and the front of `room` by what was received.
                    let (headers, room) =
                        unsafe { (headers[..of_headers].assume_init_ref(), room[..filled].assume_init_ref()) };
                    placing = inner.core.handle_placed(now, place, headers, room);
                    inner.is_judgement_put_off = false;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => placing = Some(place),
                nothing => {
                    placing = Some(place);
                    let is_interrupted = matches!(&nothing, Err(error) if error.kind() == io::ErrorKind::Interrupted);
                    over = Some(nothing.map(|_| &[][..]));
                    break if is_interrupted { Err(LinkError::Interrupted) } else { Ok(Attempt::Later) };
                }
            }
            self.turn(&mut inner, now);
        };
        self.release_reading(&mut inner, &socket);
        inner.is_flowing = false;
        if inner.waiters.is_empty() {
            inner.core.set_waiting(now, false);
        }
        if !matches!(result, Ok(Attempt::Done(()))) {
            // SAFETY: as above.
            let room = unsafe { room[..filled].assume_init_ref() };
            inner.core.take_back(now, placing, room);
        }
        if let Some(over) = over {
            inner.digest(now, over, 0);
        }
        self.turn(&mut inner, now);
        inner.hand_over();
        result
    }

    /// Others may read again. False if the link has another socket by now, or none: what was received of that one counts no more,
    /// and what came over the other meanwhile is to be read.
    fn release_reading(&self, inner: &mut Inner, socket: &Arc<OwnedFd>) -> bool {
        (inner.is_polled, inner.is_receiving) = (false, false);
        let is_ours = inner.has_socket(socket);
        if !is_ours && inner.socket.is_some() {
            inner.is_unread = true;
            self.engine.attend(self.key);
        }
        is_ours
    }

    /// What [`Inner::begin_receiving`] has begun. Nothing follows from it before [`Link::settle_received`], which is to be
    /// called when `room` is nobody's any more: when nothing can be written, a turn reads what is left.
    pub(super) fn receive_in(
        &self,
        socket: &Arc<OwnedFd>,
        room: &mut [MaybeUninit<u8>],
        deadline: Option<Instant>,
    ) -> (Guard<'_>, Instant, Result<(), WaitError>) {
        let capacity = room.len();
        let got = sys::receive_waiting(socket.as_fd(), room);
        let (mut inner, now, is_ours) = self.end_receiving(socket);
        let result = inner.digest_waited(now, got, capacity, deadline, is_ours);
        (inner, now, result)
    }

    /// Back from recv(2); what it gave is to be digested yet.
    pub(super) fn end_receiving(&self, socket: &Arc<OwnedFd>) -> (Guard<'_>, Instant, bool) {
        let mut inner = self.lock();
        let now = clock::now();
        inner.last_read = now.into();
        let is_ours = self.release_reading(&mut inner, socket);
        if inner.waiters.is_empty() {
            inner.core.set_waiting(now, false);
        }
        (inner, now, is_ours)
    }

    /// Who takes the message at once ends with a turn, or with what is left of one.
    pub(super) fn settle_received(&self, inner: &mut Inner, now: Instant) {
        if !(inner.core.has_message() && inner.core.is_quiet() && inner.waiters.is_empty()) || inner.is_secured() {
            self.turn(inner, now);
        }
    }

    /// One sleep, with the lock given up meanwhile. Who finds nobody polling the socket does.
    pub(super) fn sleep<'l>(
        &'l self,
        mut inner: Guard<'l>,
        interest: Interest,
        now: Instant,
        deadline: Option<Instant>,
    ) -> (Guard<'l>, Result<(), WaitError>) {
        let place = match inner.waiters.enter(interest, deadline) {
            Ok(place) => place,
            Err(error) => return (inner, Err(error.into())),
        };
        inner.core.set_waiting(now, true);
        let polled = if inner.is_polled || !inner.core.wants_input() { None } else { inner.socket.clone() };
        let events = if inner.is_write_blocked { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
        inner.is_polled |= polled.is_some();
        drop(inner);
        let slept = place.sleep(polled.as_ref().map(AsFd::as_fd), events, now);
        let mut inner = self.lock();
        inner.waiters.leave(place);
        if let Some(polled) = &polled
            && inner.has_socket(polled)
        {
            inner.is_polled = false;
            if matches!(slept, Ok(came) if came & libc::POLLOUT != 0) {
                inner.is_write_blocked = false;
            }
        }
        (inner, slept.map(drop))
    }

    /// Until a message, or the end, can be received by [`Link::try_recv`], unless another thread is quicker.
    pub fn wait_readable<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<(), LinkError> {
        self.wait(Interest::READABLE, patience, |link, inner, now| {
            if inner.core.has_message() {
                link.set_alarm(inner, now);
                link.tell(inner, Interest::NOTHING);
                return Some(Ok(()));
            }
            (inner.core.is_at_end() || inner.ending.is_some()).then_some(Ok(()))
        })
    }

    /// Until the handshake is done.
    pub fn wait_open<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<(), LinkError> {
        self.wait(Interest::STATE, patience, |_, inner, _| match inner.opened_at {
            Some(_) => Some(Ok(())),
            None => inner.over().map(Err),
        })
    }

    /// Until the state is `wanted`; the end is an error, unless it is what was wanted.
    pub fn wait_state<'s>(&self, wanted: State, patience: impl Into<Patience<'s>>) -> Result<(), LinkError> {
        self.wait(Interest::STATE, patience, |_, inner, _| match inner.core.state() {
            state if state == wanted => Some(Ok(())),
            _ => inner.over().map(Err),
        })
    }

    /// Until the link has ended, and why.
    pub fn wait_ended<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<Arc<Ending>, LinkError> {
        self.wait(Interest::STATE, patience, |_, inner, _| inner.ending.clone().map(Ok))
    }

    /// The next occurrence; after the last one, the end is an error.
    pub fn next_occurrence<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<Occurrence, LinkError> {
        self.wait(Interest::EVENT, patience, |_, inner, _| match inner.next_occurrence() {
            Some(occurrence) => Some(Ok(occurrence)),
            None => inner.over().map(Err),
        })
    }
}

impl Inner {
    /// What waiting in recv(2) gave, and whether the wait goes on.
    pub(super) fn digest_waited(
        &mut self,
        now: Instant,
        got: io::Result<&[u8]>,
        capacity: usize,
        deadline: Option<Instant>,
        is_ours: bool,
    ) -> Result<(), WaitError> {
        let is_interrupted = matches!(&got, Err(error) if error.kind() == io::ErrorKind::Interrupted);
        let is_late = matches!(&got, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            && deadline.is_some_and(|deadline| now >= deadline);
        if is_ours {
            self.digest(now, got, capacity);
        }
        match (is_interrupted, is_late) {
            (true, _) => Err(WaitError::Interrupted),
            (false, true) => Err(WaitError::TimedOut),
            (false, false) => Ok(()),
        }
    }
}
