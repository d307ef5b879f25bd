//! Messages: how callers send and receive them, at once where that is possible.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Attempt, INLINE_BYTES, Inner, Link, LinkError, Ping, Reader};
use crate::engine::clock;
use crate::engine::hub::Seat;
use crate::engine::waiting::{Interest, Patience};
use crate::net::sys;
use crate::proto::close::Close;
use crate::proto::connection::{Connection, State};
use crate::proto::core::Core;
use crate::proto::frame::{HEADER_BYTES, MAX_PAYLOAD_BYTES};
use crate::proto::moment::Moment;
use crate::proto::session::{Framed, SendError};

/// What tells that a message has begun that may be received in its place: its first frame.
const FIRST_BYTES: usize = HEADER_BYTES + MAX_PAYLOAD_BYTES;
/// A message from here up is copied before it is sent, without the lock; smaller ones take half a millisecond.
const LARGE_BYTES: usize = 4 * 1024 * 1024;
/// Who has appended so much writes it: some hundred small messages for one system call.
const BURST_BYTES: u32 = 64 * 1024;
/// Messages closer than this come back to back: some 20 us, and what writing the first takes.
const BURST_GAP: Duration = Duration::from_micros(30);

impl Link {
    /// One attempt, for who holds the interpreter: [`Attempt::Later`] means to call [`Link::send`], detached.
    pub fn try_send(&self, message: &[u8]) -> Result<Attempt<()>, LinkError> {
        if message.len() > INLINE_BYTES {
            return Ok(Attempt::Later);
        }
        let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
        self.push(&mut inner, message)
    }

    /// Accepts the message, and waits for room where there is none.
    pub fn send<'s>(&self, message: &[u8], patience: impl Into<Patience<'s>>) -> Result<(), LinkError> {
        self.check_process()?;
        let patience = patience.into();
        if message.len() >= LARGE_BYTES && self.framing.is_none() {
            return self.send_large(message, patience);
        }
        if matches!(patience, Patience::Until(_))
            && let Attempt::Done(()) = self.push(&mut self.lock(), message)?
        {
            return Ok(());
        }
        self.wait(Interest::ROOM, patience, |link, inner, _| match link.push(inner, message) {
            Ok(Attempt::Done(())) => Some(Ok(())),
            Ok(Attempt::Later) => None,
            Err(error) => Some(Err(error)),
        })
    }

    /// A hundred megabytes are copied in a tenth of a second, which isn't to be a beat's delay: so without the lock, once there is
    /// room for them.
    fn send_large(&self, message: &[u8], mut patience: Patience<'_>) -> Result<(), LinkError> {
        let accepted = |inner: &mut Inner, attempt| match inner.accepted(attempt) {
            Ok(Attempt::Done(())) => Some(Ok(())),
            Ok(Attempt::Later) => None,
            Err(error) => Some(Err(error)),
        };
        self.wait(Interest::ROOM, patience.again(), |_, inner, _| {
            let attempt = inner.framed().and_then(|core| core.check_send(message.len()));
            accepted(inner, attempt)
        })?;
        let mut framed = Framed::new(message);
        self.wait(Interest::ROOM, patience, |_, inner, _| {
            let attempt = inner.framed().and_then(|core| core.send_framed(&mut framed));
            accepted(inner, attempt)
        })?;
        let mut inner = self.lock();
        let now = clock::now();
        self.turn(&mut inner, now);
        self.leave_unsent(&mut inner, now);
        Ok(())
    }

    pub(super) fn push(&self, inner: &mut Inner, message: &[u8]) -> Result<Attempt<()>, LinkError> {
        let attempt = inner.core.send(message);
        if inner.accepted(attempt)? == Attempt::Later {
            return Ok(Attempt::Later);
        }
        let now = clock::now();
        let is_burst = inner.last_send.is_some_and(|last| Moment::from(now) < last + BURST_GAP);
        inner.burst_bytes = inner.burst_bytes.saturating_add(u32::try_from(message.len()).unwrap_or(u32::MAX));
        inner.last_send = Some(now.into());
        if is_burst && inner.burst_bytes < BURST_BYTES {
            if !inner.is_flush_coming {
                inner.is_flush_coming = true;
                self.engine.attend_soon(self.key);
            }
            return Ok(Attempt::Done(()));
        }
        self.turn(inner, now);
        self.leave_unsent(inner, now);
        Ok(Attempt::Done(()))
    }

    /// Accepts the message if there is room; `None` where that isn't the reason.
    pub(in crate::engine) fn send_if_room(&self, message: &[u8]) -> Result<(), Option<SendError>> {
        let mut inner = self.enter().map_err(|_| None)?;
        inner.core.send(message).map_err(Some)?;
        let now = clock::now();
        self.turn(&mut inner, now);
        self.leave_unsent(&mut inner, now);
        Ok(())
    }

    /// Takes one message, if one is there; `take` makes of it what the caller wants, under the lock. For who holds the
    /// interpreter: `take` must not run any of its code. The end is an error, once nothing more is there.
    pub fn try_recv<T>(&self, take: impl FnOnce(&[u8]) -> T) -> Result<Attempt<T>, LinkError> {
        let mut take = Some(take);
        let mut taken = None;
        match self.try_recv_many(1, |message| {
            if let Some(take) = take.take() {
                taken = Some(take(message));
            }
        })? {
            Attempt::Done(_) => Ok(taken.map_or(Attempt::Later, Attempt::Done)),
            Attempt::Later => Ok(Attempt::Later),
        }
    }

    /// Waits for one message and copies it to the front of `room`; says how long it is. [`Attempt::Later`] means that it
    /// is longer than that, and still there.
    pub fn recv_into(
        &self,
        room: &mut [MaybeUninit<u8>],
        deadline: Option<Instant>,
    ) -> Result<Attempt<usize>, LinkError> {
        self.wait(Interest::READABLE, deadline, |link, inner, now| link.take_into(inner, now, room, deadline))
    }

    pub(super) fn take_into(
        &self,
        inner: &mut Inner,
        now: Instant,
        room: &mut [MaybeUninit<u8>],
        deadline: Option<Instant>,
    ) -> Option<Result<Attempt<usize>, LinkError>> {
        let Some(length) = inner.core.next_length() else {
            return inner.over().map(Err).or_else(|| Self::placeable(inner, now, deadline).map(|_| Ok(Attempt::Later)));
        };
        if length > room.len() {
            self.set_alarm(inner, now);
            self.tell(inner, Interest::NOTHING);
            return Some(Ok(Attempt::Later));
        }
        let count = inner.read_messages(1, |message| {
            room[..length].write_copy_of_slice(message);
        });
        self.take(inner, now, count);
        Some(Ok(Attempt::Done(length)))
    }

    /// As [`Link::try_recv`], and if there is nothing and the caller may be who waits in recv(2), it has begun to: it must
    /// detach and call [`Receiving::finish`].
    pub fn try_recv_or_begin<T>(
        &self,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<Attempt<Result<T, Receiving<'_>>>, LinkError> {
        {
            let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
            // What isn't so simple goes the long way, as does who reads much.
            if self.framing.is_none()
                && !inner.core.has_message()
                && inner.reader == Reader::Callers
                && !(inner.is_polled || inner.is_watched || inner.is_flowing)
                && inner.receive_timeout.is_none()
                && !clock::may_skip()
                && !inner.core.is_urgent()
                && let Some(socket) = inner.socket.clone()
            {
                inner.last_send = None;
                inner.begin_receiving();
                return Ok(Attempt::Done(Err(Receiving { link: self, socket })));
            }
        }
        Ok(self.try_recv(take)?.map(Ok))
    }

    /// The same for all that are there, `most` at the most; says how many it were.
    pub fn try_recv_many(&self, most: usize, take: impl FnMut(&[u8])) -> Result<Attempt<usize>, LinkError> {
        let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
        // While callers read anyway and there is much to read, this saves the way through a wait. Others of a loop are to
        // have their turn.
        let reads = inner.is_flowing && inner.reader == Reader::Callers && !(inner.is_polled || inner.is_at_hub());
        if reads && !inner.core.has_message() && inner.core.begun().is_none() {
            let now = clock::now();
            inner.last_read = now.into();
            inner.read(now);
            self.turn(&mut inner, now);
        }
        self.take_many(&mut inner, most, take).map_or(Ok(Attempt::Later), |count| count.map(Attempt::Done))
    }

    fn take_many(&self, inner: &mut Inner, most: usize, take: impl FnMut(&[u8])) -> Option<Result<usize, LinkError>> {
        let count = inner.read_messages(most, take);
        if count == 0 {
            return inner.dried_up().map(Err);
        }
        self.take(inner, clock::now(), count);
        Some(Ok(count))
    }

    /// The same for `most` bytes of a raw stream.
    pub fn try_recv_some<T>(&self, most: usize, take: impl FnOnce(&[u8]) -> T) -> Result<Attempt<T>, LinkError> {
        let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
        self.take_some(&mut inner, most, take).map_or(Ok(Attempt::Later), |taken| taken.map(Attempt::Done))
    }

    fn take_some<T>(
        &self,
        inner: &mut Inner,
        most: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Option<Result<T, LinkError>> {
        let Some(taken) = inner.core.read_at_most(most).map(take) else { return inner.dried_up().map(Err) };
        self.take(inner, clock::now(), 1);
        Some(Ok(taken))
    }

    /// As [`Link::try_recv_many`], for who is seated.
    pub fn recv_many_seated(
        &self,
        most: usize,
        seat: &mut Seat,
        mut take: impl FnMut(&[u8]),
    ) -> Result<usize, LinkError> {
        self.wait(Interest::READABLE, seat, |link, inner, _| link.take_many(inner, most, &mut take))
    }

    /// As [`Link::try_recv_some`], for who is seated.
    pub fn recv_some_seated<T>(
        &self,
        most: usize,
        seat: &mut Seat,
        mut take: impl FnMut(&[u8]) -> T,
    ) -> Result<T, LinkError> {
        self.wait(Interest::READABLE, seat, |link, inner, _| link.take_some(inner, most, &mut take))
    }

    /// Gives messages out that stay the peer's concern until [`Link::confirm`]: a crash in between loses none silently.
    pub fn try_peek_many(&self, most: usize, show: impl FnMut(&[u8])) -> Result<Attempt<usize>, LinkError> {
        let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
        let count = inner.read_messages(most, show);
        if count == 0 {
            return inner.dried_up().map_or(Ok(Attempt::Later), Err);
        }
        self.tell(&mut inner, Interest::NOTHING);
        Ok(Attempt::Done(count))
    }

    /// The oldest `count` of the messages shown are with the program now.
    pub fn confirm(&self, count: usize) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        self.take(&mut inner, clock::now(), count);
        Ok(())
    }

    /// The same for who holds the interpreter. False if it is too late: this side has closed the link, and told the peer
    /// that its program didn't take them.
    pub fn try_confirm(&self, count: usize) -> Result<Attempt<bool>, LinkError> {
        let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
        Ok(Attempt::Done(self.take(&mut inner, clock::now(), count)))
    }

    pub(super) fn take(&self, inner: &mut Inner, now: Instant, count: usize) -> bool {
        let is_taken = inner.core.take(now, count);
        self.on_taken(inner, now);
        is_taken
    }

    /// What follows when the program has taken something.
    fn on_taken(&self, inner: &mut Inner, now: Instant) {
        inner.last_send = None;
        if inner.is_held_back && inner.core.wants_input() {
            inner.is_held_back = false;
            self.engine.attend(self.key);
        }
        if inner.core.is_urgent() || inner.share.is_some() {
            self.turn(inner, now);
        } else {
            self.set_alarm(inner, now);
            self.tell(inner, Interest::NOTHING);
        }
    }

    /// Until the peer's application took everything that was accepted before this call; of a plain peer, until its kernel
    /// did.
    pub fn flush(&self, deadline: Option<Instant>) -> Result<(), LinkError> {
        let end = self.begin_flush()?;
        self.wait_taken(end, deadline)
    }

    /// The offset that [`Link::wait_taken`] is to wait for; the peer is asked not to be slow with its acknowledgement.
    pub fn begin_flush(&self) -> Result<u64, LinkError> {
        let mut inner = self.enter()?;
        let (accepted, taken) = inner.core.sent_offsets();
        if taken < accepted {
            let now = clock::now();
            inner.core.hurry(now);
            self.turn(&mut inner, now);
        }
        Ok(accepted)
    }

    /// Until the peer's application took everything up to this offset.
    pub fn wait_taken<'s>(&self, end: u64, patience: impl Into<Patience<'s>>) -> Result<(), LinkError> {
        self.wait(Interest::TAKEN, patience, |_, inner, _| {
            let (_, taken) = inner.core.sent_offsets();
            if taken >= end { Some(Ok(())) } else { inner.over().map(Err) }
        })
    }

    /// The round trip of a beat that the peer answers at once.
    pub fn ping(&self, deadline: Option<Instant>) -> Result<Duration, LinkError> {
        let mut ping = self.begin_ping()?;
        self.wait_pong(&mut ping, deadline)
    }

    /// Asks; for [`Link::wait_pong`].
    pub fn begin_ping(&self) -> Result<Ping, LinkError> {
        let mut inner = self.enter()?;
        if let Some(error) = inner.over() {
            return Err(error);
        }
        let at = clock::now();
        let opening = inner.openings;
        let Some(number) = inner.core.ping(at) else {
            return match inner.core.state() {
                // Once there is another link.
                State::Reconnecting => Ok(Ping { number: 0, at, opening: opening.wrapping_sub(1) }),
                state => Err(LinkError::NotOpen(state)),
            };
        };
        self.turn(&mut inner, at);
        Ok(Ping { number, at, opening })
    }

    /// Until the peer has answered; the round trip.
    pub fn wait_pong<'s>(&self, ping: &mut Ping, patience: impl Into<Patience<'s>>) -> Result<Duration, LinkError> {
        self.wait(Interest::PONG, patience, |link, inner, now| {
            if ping.opening != inner.openings
                && let Some(number) = inner.core.ping(now)
            {
                // The one before was asked on a link that is lost.
                *ping = Ping { number, at: now, opening: inner.openings };
                link.turn(inner, now);
            }
            match inner.extras.as_ref().and_then(|extras| extras.last_pong) {
                Some((answered, round_trip)) if ping.opening == inner.openings && answered >= ping.number => {
                    Some(Ok(round_trip.unwrap_or(now.saturating_duration_since(ping.at))))
                }
                _ => inner.over().map(Err),
            }
        })
    }

    /// Begins to say goodbye; [`Link::wait_ended`] tells when it is done, which is within `grace`.
    pub fn close(&self, close: Close, grace: Duration) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        let now = clock::now();
        inner.core.close(now, close, now + grace);
        self.turn(&mut inner, now);
        inner.waiters.wake_all(Interest::STATE | Interest::ROOM);
        Ok(())
    }

    /// Says goodbye at once, whatever hasn't been taken.
    pub(in crate::engine) fn leave(&self, close: Close, grace: Duration) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        let now = clock::now();
        inner.core.leave(now, close, now + grace);
        self.turn(&mut inner, now);
        inner.waiters.wake_all(Interest::STATE | Interest::ROOM);
        Ok(())
    }

    /// Ends our stream to a plain peer, behind what was sent before; it is heard further.
    pub fn shut_down_sending(&self) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        inner.over().map_or(Ok(()), Err)?;
        inner.core.shut_down_sending();
        self.turn(&mut inner, clock::now());
        Ok(())
    }

    pub(super) fn forget_undelivered(&self, inner: &mut Inner) {
        if let Core::Framed(core) = &mut inner.core
            && core.untaken().0 > 0
        {
            core.forget_undelivered();
            log::warn!(
                target: "longconn.link",
                "{}: what was not delivered is forgotten: nobody has asked for it, and others need the memory",
                self.peer_address()
            );
        }
    }

    /// The program knows of the link no more. Its listener may, for long, so of a link that is over nothing is kept but
    /// what can be told of it.
    pub fn forget(&self) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        inner.core.forget_inbox();
        if let Some(extras) = &mut inner.extras {
            extras.notification = None;
        }
        Ok(())
    }

    /// The listener's, or the program's, word about a client that said HELLO.
    pub(in crate::engine) fn decide(&self, decide: impl FnOnce(&mut Connection)) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        if let Core::Framed(core) = &mut inner.core {
            decide(core);
        }
        self.turn(&mut inner, clock::now());
        Ok(())
    }
}

/// A wait for a message that has begun, and isn't bounded.
#[must_use = "nobody else reads until it is finished"]
pub struct Receiving<'l> {
    link: &'l Link,
    socket: Arc<OwnedFd>,
}

impl Receiving<'_> {
    /// Waits, and takes one message as [`Link::recv_into`] does; [`Attempt::Later`] if that has to go on.
    pub fn finish(self, room: &mut [MaybeUninit<u8>]) -> Result<Attempt<usize>, LinkError> {
        let Self { link, socket } = self;
        let mut read = [MaybeUninit::uninit(); FIRST_BYTES];
        let got = sys::receive_waiting(socket.as_fd(), &mut read);
        let (mut inner, now, is_ours) = link.end_receiving(&socket);
        if let Ok(bytes) = got
            && is_ours
            && !inner.is_secured()
            && bytes.len() <= HEADER_BYTES + room.len()
            && let Some(message) = inner.core.handle_message(now, bytes)
        {
            let length = message.len();
            room[..length].write_copy_of_slice(message);
            inner.on_received(bytes.len(), FIRST_BYTES);
            if inner.core.is_quiet() && inner.waiters.is_empty() {
                link.on_taken(&mut inner, now);
            } else {
                link.turn(&mut inner, now);
                inner.hand_over();
            }
            return Ok(Attempt::Done(length));
        }
        let received = inner.digest_waited(now, got, FIRST_BYTES, None, is_ours);
        link.settle_received(&mut inner, now);
        let result = match received {
            Ok(()) => link.take_into(&mut inner, now, room, None).unwrap_or(Ok(Attempt::Later)),
            Err(error) => Err(error.into()),
        };
        inner.hand_over();
        result
    }
}

impl Inner {
    pub(super) fn read_messages(&mut self, most: usize, mut show: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < most
            && let Some(message) = self.core.read()
        {
            show(message);
            count += 1;
        }
        count
    }
}
