//! What follows from each input: the turn, under the lock; and what the state under it knows of itself.

use std::io;
use std::iter;
use std::mem;
use std::net::Shutdown;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, TryLockError, Weak};
use std::time::{Duration, Instant};

use mio::Interest as Readiness;
use socket2::SockRef;

use super::attend::PARTING;
use super::{
    Attempt, CHUNK_BYTES, Extras, Guard, Inner, Keeper, Link, LinkError, Notification, Observer, Occurrence, ROOM,
    Reader, TURN_BYTES, Untold, What,
};
use crate::engine::budget::Wish;
use crate::engine::listener::going_away;
use crate::engine::sync;
use crate::engine::waiting::Interest;
use crate::engine::{clock, fork, interpreter, tally};
use crate::net::{sys, tcp_info, tuning};
use crate::proto::cause::{Cause, SessionEnd};
use crate::proto::close::{Close, CloseCode};
use crate::proto::connection::{Action, Beginning, Connection, Event, State, Stats, Transmit};
use crate::proto::core::Core;
use crate::proto::evidence::KernelView;
use crate::proto::moment::Moment;
use crate::proto::session::SendError;

/// Who read so much at once will find more: dozens of small messages. Less is one side of a conversation.
const MUCH_BYTES: usize = 4 * 1024;
/// Parts up to this together are copied and go by send(2): sendmsg(2) takes 0.3 us more, of a round trip of 16.
const JOINED_BYTES: usize = 512;
/// Chunks that are read of a connection that is over, where the program has fallen behind: more than any kernel keeps.
const LAST_CHUNKS: usize = 256;
/// Occurrences that nobody has asked for yet; older ones are dropped.
const MAX_OCCURRENCES: usize = 64;
/// How long callers keep the reader's role without reading.
const STICKY: Duration = Duration::from_millis(5);

impl Link {
    pub(super) fn lock(&self) -> Guard<'_> {
        Guard { link: self, inner: Some(sync::lock(&self.inner)) }
    }

    pub(super) fn try_lock(&self) -> Option<Guard<'_>> {
        let inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Guard { link: self, inner: Some(inner) })
    }

    /// After a fork the lock isn't to be touched.
    pub(super) fn enter(&self) -> Result<Guard<'_>, LinkError> {
        self.check_process()?;
        Ok(self.lock())
    }

    pub(super) fn try_enter(&self) -> Result<Option<Guard<'_>>, LinkError> {
        self.check_process()?;
        Ok(self.try_lock())
    }

    pub(super) fn check_process(&self) -> Result<(), LinkError> {
        if self.generation == fork::generation() { Ok(()) } else { Err(LinkError::Forked) }
    }

    /// What the core's contract asks for after any input or verb.
    pub(super) fn turn(&self, inner: &mut Inner, now: Instant) {
        inner.core.set_interpreter_ran(interpreter::last_ran());
        let mut news = Interest::NOTHING;
        let mut room = TURN_BYTES;
        loop {
            loop {
                self.transmit(inner, now, &mut room);
                match inner.core.poll_action() {
                    Some(Action::Look) => {
                        let view = inner.kernel_view();
                        inner.core.handle_kernel(now, view);
                    }
                    Some(Action::ShutdownWrite) => {
                        if inner.is_secured() {
                            self.end_secured(inner, now, &mut room);
                        } else if let Some(socket) = &inner.socket {
                            // It fails when the connection is gone, which reading tells.
                            let _ = SockRef::from(socket).shutdown(Shutdown::Write);
                        }
                    }
                    Some(Action::Abort) => self.give_up(inner, true),
                    Some(Action::Close) => self.give_up(inner, false),
                    None => break,
                }
            }
            let Some(event) = inner.core.poll_event() else { break };
            news = news | self.on_event(inner, now, event);
        }
        self.ask_budget(inner, now, &mut room);
        self.set_alarm(inner, now);
        self.tell(inner, news);
    }

    pub(super) fn transmit(&self, inner: &mut Inner, now: Instant, room: &mut usize) {
        if inner.is_secured() {
            return self.transmit_secured(inner, now, room);
        }
        while !inner.is_write_blocked && inner.core.is_urgent() {
            let Some(socket) = &inner.socket else { return };
            if *room == 0 {
                self.engine.attend(self.key);
                return;
            }
            let Transmit { first, control, data } = inner.core.poll_transmit(now);
            let data = &data[..data.len().min(CHUNK_BYTES)];
            let offered = first.len() + control.len() + data.len();
            let done = match (first, control, data) {
                ([], [], []) => return,
                (part, [], []) | ([], part, []) | ([], [], part) => {
                    sys::transmit(socket.as_raw_fd(), part, sys::SEND_FLAGS)
                }
                (first, control, data) if offered <= JOINED_BYTES => {
                    let mut room = [0; JOINED_BYTES];
                    let mut end = 0;
                    for part in [first, control, data] {
                        room[end..end + part.len()].copy_from_slice(part);
                        end += part.len();
                    }
                    sys::transmit(socket.as_raw_fd(), &room[..end], sys::SEND_FLAGS)
                }
                parts => sys::transmit_parts(socket.as_fd(), parts.into()),
            };
            let is_all = data.len() < CHUNK_BYTES;
            match done {
                Ok(length) => {
                    inner.core.transmitted(now, length);
                    inner.is_write_blocked = length < offered;
                    inner.burst_bytes = 0;
                    *room = room.saturating_sub(length);
                    if is_all && length == offered {
                        return;
                    }
                    self.watch_blocked(inner);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        inner.is_write_blocked = true;
                        self.watch_blocked(inner);
                    }
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        inner.is_write_blocked = true;
                        self.on_write_error(inner, now, error);
                        return;
                    }
                },
            }
        }
    }

    /// While callers read, the engine has the socket in its epoll only to be told that it can be written to again.
    pub(super) fn watch_blocked(&self, inner: &mut Inner) {
        if inner.is_watched || !inner.is_write_blocked {
            return;
        }
        let Some(socket) = &inner.socket else { return };
        match self.engine.watch(socket.as_fd(), self.key, Readiness::WRITABLE) {
            Ok(()) => inner.is_watched = true,
            // Without memory for it now; another attempt at writing in a moment.
            Err(_) => {
                inner.is_write_blocked = false;
                self.engine.attend_soon(self.key);
            }
        }
    }

    /// What the peer said before, perhaps CLOSE, can still be read, and says more than the error; at the end of it the error
    /// counts.
    pub(super) fn on_write_error(&self, inner: &mut Inner, now: Instant, error: io::Error) {
        inner.extras().write_error = Some(error);
        inner.read_to_the_end(now);
    }

    pub(super) fn on_event(&self, inner: &mut Inner, now: Instant, event: Event) -> Interest {
        let listener = self.listener.as_ref().and_then(Weak::upgrade);
        match event {
            Event::Connected => {
                if let (Some(listener), Some(this)) = (&listener, self.this.upgrade())
                    && let Err(close) = listener.on_connected(&this)
                {
                    inner.core.close(now, close, now);
                    return Interest::NOTHING;
                }
                self.record(inner, now, What::Opened)
            }
            Event::Hello(hello) => {
                inner.client_id = hello.client_id.as_str().into();
                if let Core::Framed(core) = &mut inner.core {
                    match (listener, self.this.upgrade()) {
                        (Some(listener), Some(this)) => listener.on_hello(&this, hello, core),
                        _ => core.refuse(now, going_away()),
                    }
                }
                Interest::NOTHING
            }
            Event::Opened(beginning) => {
                let is_first = inner.opened_at.is_none();
                inner.opened_at.get_or_insert(now.into());
                inner.openings = inner.openings.wrapping_add(1);
                if let Some(extras) = &mut inner.extras {
                    extras.last_pong = None;
                }
                inner.stop_expecting_answers();
                if let (Some(socket), Some(stats)) = (&inner.socket, inner.core.stats(now)) {
                    tuning::set_patience(socket.as_fd(), stats.limit);
                }
                if let (Some(listener), Some(this)) = (&listener, self.this.upgrade()) {
                    listener.on_opened(&this, is_first);
                }
                let what = match beginning {
                    _ if is_first => What::Opened,
                    Beginning::Resumed { replayed } => What::Resumed { replayed },
                    Beginning::New | Beginning::Fresh => What::Fresh,
                };
                self.record(inner, now, what) | Interest::ROOM | Interest::PONG
            }
            Event::Parted { ending, was_open } => {
                self.plan_comeback(inner, now, &ending, was_open);
                if !was_open {
                    log::debug!(target: "longconn.link", "{}: an attempt failed: {ending}", self.peer_address());
                    return Interest::NOTHING;
                }
                let news = self.record(inner, now, What::Parted(ending));
                if let (Some(listener), Some(this)) = (&listener, self.this.upgrade()) {
                    listener.on_parted(&this, inner.core.kept_bytes());
                }
                news
            }
            Event::Proven => {
                inner.on_proven();
                Interest::NOTHING
            }
            Event::Suspect { silence } => self.record(inner, now, What::Suspect { silence }),
            Event::Alive => self.record(inner, now, What::Alive),
            Event::Pong { ping, round_trip } => {
                inner.extras().last_pong = Some((ping, round_trip));
                Interest::PONG
            }
            Event::Taken => Interest::TAKEN | Interest::ROOM,
            Event::Learnt => {
                let keeper = inner.extras.as_ref().and_then(|extras| extras.keeper.as_ref());
                if let (Some(keeper), Core::Framed(core)) = (keeper, &inner.core)
                    && let Some(learning) = core.learning()
                {
                    keeper(learning.kept(now));
                }
                Interest::NOTHING
            }
            Event::Ended(ending) => {
                let mut ending = *ending;
                let last_attempt = inner.stay_away();
                if ending.session == Some(SessionEnd::GivenUp) {
                    ending.detail = last_attempt.or(ending.detail);
                }
                let ending = Arc::new(ending);
                if let (Some(listener), Some(this)) = (&listener, self.this.upgrade())
                    && let Core::Framed(core) = &inner.core
                    && let Some(close) = core.last_word(&ending)
                {
                    listener.on_last_word(&this, close);
                }
                inner.ending = Some(ending.clone());
                inner.waiters.wake_everyone();
                self.record(inner, now, What::Ended(ending))
            }
        }
    }

    pub(super) fn record(&self, inner: &mut Inner, at: Instant, what: What) -> Interest {
        let occurrence = Occurrence { at: at.into(), what };
        self.log(&occurrence);
        // A session that is given up had lost its link before.
        if let What::Parted(ending) | What::Ended(ending) = &occurrence.what
            && ending.session.is_none()
        {
            tally::count_end(ending.cause);
        }
        if let Some(observer) = inner.extras.as_ref().and_then(|extras| extras.observer.as_ref()) {
            observer(&occurrence);
        }
        if let (Some(listener), Some(this)) = (self.listener.as_ref().and_then(Weak::upgrade), self.this.upgrade()) {
            listener.on_occurrence(&this, occurrence.clone(), inner.core.kept_bytes());
        }
        inner.keep(occurrence);
        Interest::STATE | Interest::EVENT
    }

    pub(super) fn log(&self, occurrence: &Occurrence) {
        match &occurrence.what {
            What::Opened => log::debug!(target: "longconn.link", "{}: open", self.peer_address()),
            What::Suspect { silence } => {
                log::debug!(target: "longconn.link", "{}: suspect, nothing heard for {silence:.2?}", self.peer_address());
            }
            What::Alive => log::debug!(target: "longconn.link", "{}: heard again", self.peer_address()),
            What::Resumed { replayed } => {
                log::info!(target: "longconn.link", "{}: goes on, {replayed} messages went again", self.peer_address());
            }
            What::Fresh => log::info!(target: "longconn.link", "{}: goes on in a new session", self.peer_address()),
            What::Parted(ending) => {
                log::warn!(target: "longconn.link", "{}: {ending}; the session waits", self.peer_address());
            }
            What::Ended(ending) if matches!(ending.cause, Cause::Closed | Cause::Handshake | Cause::Protocol) => {
                log::debug!(target: "longconn.link", "{}: {ending}", self.peer_address());
            }
            What::Ended(ending) => log::warn!(target: "longconn.link", "{}: {ending}", self.peer_address()),
        }
    }

    /// Has somebody told of what has occurred, as far as nobody has asked for it, and of what will.
    pub fn observe(&self, observer: Observer) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        inner.opening().iter().for_each(|occurrence| observer(occurrence));
        iter::successors(inner.untold.as_deref(), |untold| untold.next.as_deref())
            .for_each(|untold| observer(&untold.occurrence));
        inner.extras().observer = Some(observer);
        Ok(())
    }

    /// Has what the client learns of its paths kept.
    pub fn set_keeper(&self, keeper: Keeper) -> Result<(), LinkError> {
        self.enter()?.extras().keeper = Some(keeper);
        Ok(())
    }

    /// Memory beyond the window is the process's to grant.
    pub(super) fn ask_budget(&self, inner: &mut Inner, now: Instant, room: &mut usize) {
        let is_over = inner.socket.is_none();
        let wish = match inner.core.budget_wanted() {
            0 => Wish::Nothing,
            _ if is_over => Wish::Nothing,
            bytes if inner.core.budget_is_for_message() => Wish::Message(bytes),
            bytes => Wish::Window(bytes),
        };
        if let Some(share) = &mut inner.share {
            let window = inner.core.budget_held_by_window();
            let message = inner.core.budget_held().saturating_sub(window);
            let (message, window) = if is_over { (0, 0) } else { (message, window) };
            share.settle(message, window, wish, &self.this);
        }
        if !matches!(wish, Wish::Nothing) && inner.share.get_or_insert_default().ask(wish, &self.this) {
            inner.core.grant_budget();
            self.transmit(inner, now, room);
        }
        if inner.share.as_ref().is_some_and(|share| share.is_empty()) {
            inner.share = None;
        }
    }

    /// The engine is woken only for an alarm that is earlier than what it has; it asks again when one rings.
    pub(super) fn set_alarm(&self, inner: &mut Inner, now: Instant) {
        // In a conversation one rings every few milliseconds, and the deadlines are reckoned with then, not for each message.
        if inner.reader == Reader::Callers
            && inner.alarm.is_some_and(|alarm| alarm <= inner.role_returns())
            && inner.core.keeps_deadline()
        {
            return;
        }
        let is_kept = inner.socket.is_some() || inner.core.is_away();
        inner.deadline = if is_kept { inner.core.poll_timeout() } else { None };
        // Who waits keeps the role; but whoever has just read soon goes on, and would wake the engine for this then.
        let return_of_role = Some(inner.role_returns())
            .filter(|returns| inner.reader == Reader::Callers && (!inner.is_polled || Moment::from(now) < *returns));
        let others = return_of_role.into_iter().chain(inner.next_attempt());
        let Some(next) = inner.deadline.into_iter().chain(others).min() else { return };
        if inner.alarm.is_none_or(|alarm| next < alarm) {
            inner.alarm = Some(next);
            self.engine.set_alarm(self.key, next);
        }
    }

    /// Wakes who waits for what has come.
    pub(super) fn tell(&self, inner: &mut Inner, news: Interest) {
        let is_readable = inner.core.has_message() || inner.core.is_at_end();
        if let Some(notification) = inner.extras.as_mut().and_then(|extras| extras.notification.as_mut()) {
            notification.show(is_readable || inner.ending.is_some());
        }
        if is_readable
            && inner.core.has_news()
            && !inner.is_listed
            && let Some(listener) = self.listener.as_ref().and_then(Weak::upgrade)
            && listener.lists_messages()
            && let Some(this) = self.this.upgrade()
        {
            inner.is_listed = true;
            listener.on_readable(this);
        }
        if inner.waiters.is_empty() {
            return;
        }
        inner.waiters.wake_all(news);
        if is_readable {
            inner.waiters.wake_one(Interest::READABLE);
        }
    }

    /// The link is over: for the kernel with RST, or in order. Its session may wait for another.
    pub(super) fn give_up(&self, inner: &mut Inner, aborts: bool) {
        if let Some(extras) = &mut inner.extras {
            extras.path_watch = None;
        }
        if inner.is_secured() && !aborts {
            inner.say_goodbye();
        }
        self.detach(inner, aborts);
        if inner.core.is_away() {
            return;
        }
        self.engine.release(self.key);
        inner.core.give_back_memory();
        inner.waiters.wake_everyone();
    }
}

impl Inner {
    /// It is this link's, and no earlier one's.
    pub(super) fn has_socket(&self, socket: &Arc<OwnedFd>) -> bool {
        self.socket.as_ref().is_some_and(|ours| Arc::ptr_eq(ours, socket))
    }

    pub(super) fn extras(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    /// A loop's thread reads it.
    pub(super) fn is_at_hub(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.hub.is_some())
    }

    /// When callers that have read, and don't wait, lose the reader's role.
    pub(super) fn role_returns(&self) -> Moment {
        self.last_read + STICKY
    }

    /// The opening, if nobody has asked for it.
    pub(super) fn opening(&self) -> Option<Occurrence> {
        let at = self.opened_at.filter(|_| self.is_opening_untold)?;
        Some(Occurrence { at, what: What::Opened })
    }

    /// For who will ask.
    pub(super) fn keep(&mut self, occurrence: Occurrence) {
        if matches!(occurrence.what, What::Opened) {
            self.is_opening_untold = true;
            return;
        }
        // The opening is the oldest, and goes first.
        let (mut end, mut count) = (&mut self.untold, 1 + usize::from(self.is_opening_untold));
        while let Some(untold) = end {
            (end, count) = (&mut untold.next, count + 1);
        }
        *end = Some(Box::new(Untold { occurrence, next: None }));
        if count > MAX_OCCURRENCES && !mem::take(&mut self.is_opening_untold) {
            self.next_untold();
        }
    }

    pub(super) fn next_occurrence(&mut self) -> Option<Occurrence> {
        if let Some(opening) = self.opening() {
            self.is_opening_untold = false;
            return Some(opening);
        }
        self.next_untold()
    }

    fn next_untold(&mut self) -> Option<Occurrence> {
        let Untold { occurrence, next } = *self.untold.take()?;
        self.untold = next;
        Some(occurrence)
    }

    /// Reads what is there, into the core, unless that wants nothing. True if something came.
    pub(super) fn read(&mut self, now: Instant) -> bool {
        self.core.wants_input() && self.read_anyway(now)
    }

    pub(super) fn read_anyway(&mut self, now: Instant) -> bool {
        if self.is_receiving {
            return false;
        }
        let Some(socket) = self.socket.clone() else { return false };
        ROOM.with_borrow_mut(|room| {
            let capacity = room.len();
            self.digest(now, sys::receive_now(socket.as_fd(), room), capacity)
        })
    }

    /// What reading gave. True if it was something.
    pub(super) fn digest(&mut self, now: Instant, got: io::Result<&[u8]>, capacity: usize) -> bool {
        match got {
            Ok([]) => {
                match self.extras.as_mut().and_then(|extras| extras.write_error.take()) {
                    Some(error) => self.on_error(now, &error),
                    None if self.is_convicted(now) => {}
                    None if self.is_secured() => self.handle_secured_end(now),
                    None => self.core.handle_end(now),
                }
                return false;
            }
            Ok(bytes) => {
                if self.is_secured() {
                    self.handle_secured_input(now, bytes);
                } else {
                    self.core.handle_input(now, bytes);
                }
                self.on_received(bytes.len(), capacity);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_unread = false;
                self.is_flowing = false;
                return false;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.on_error(now, &error),
        }
        true
    }

    /// So many bytes came to where there was room for `capacity`.
    pub(super) fn on_received(&mut self, bytes: usize, capacity: usize) {
        self.is_unread = bytes == capacity;
        self.is_flowing = bytes >= MUCH_BYTES;
        self.is_judgement_put_off = false;
    }

    /// How long recv(2) waits: whole milliseconds, rounded up; at most 49 days, after which the caller waits again. Who always
    /// waits equally long pays for it once.
    pub(super) fn bound_receiving(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let whole =
            |timeout: Duration| NonZeroU32::MIN.saturating_add(timeout.as_millis().try_into().unwrap_or(u32::MAX));
        let wanted = timeout.map(whole);
        if wanted != self.receive_timeout
            && let Some(socket) = &self.socket
        {
            SockRef::from(socket).set_read_timeout(wanted.map(|ms| Duration::from_millis(ms.get().into())))?;
            self.receive_timeout = wanted;
        }
        Ok(())
    }

    /// Until there is nothing more; a peer that says more than a turn's worth is heard anyway.
    pub(super) fn read_all(&mut self, now: Instant) {
        for _ in 0..TURN_BYTES / CHUNK_BYTES {
            if !self.read(now) {
                return;
            }
        }
    }

    /// The connection is over, whether the program has taken what it held or not: the rest, and the reason behind it.
    pub(super) fn read_to_the_end(&mut self, now: Instant) {
        for _ in 0..LAST_CHUNKS {
            if self.core.state() == State::Closed || !self.read_anyway(now) {
                return;
            }
        }
    }

    /// Where the end of the stream was read, reading tells of nothing that comes behind it.
    pub(super) fn hear_reset_behind_end(&mut self, now: Instant) {
        if self.core.state() != State::Closed
            && let Some(socket) = &self.socket
            && let Ok(Some(error)) = SockRef::from(socket).take_error()
        {
            self.on_error(now, &error);
        }
    }

    /// The guard has cut the connection, or the kernel has while the guard was about to.
    pub(super) fn is_convicted(&mut self, now: Instant) -> bool {
        let Some(conviction) = self.extras.as_ref().and_then(|extras| extras.path_watch.as_ref()?.conviction()) else {
            return false;
        };
        self.core.handle_verdict(now, conviction.cause, conviction.silence, conviction.limit);
        true
    }

    pub(super) fn on_error(&mut self, now: Instant, error: &io::Error) {
        // One of our own kind has said itself what it took.
        let view = self.kernel_view();
        if let (Core::Plain(plain), Some(view)) = (&mut self.core, view) {
            plain.note_arrived(view);
        }
        if self.is_convicted(now) {
            return;
        }
        match error.raw_os_error() {
            // An RST that came after the peer's FIN (tcp_reset in net/ipv4/tcp_input.c): its process had ended.
            Some(libc::EPIPE) => self.core.handle_reset_after_end(now),
            Some(libc::ECONNRESET | libc::ECONNABORTED | libc::ENOTCONN) => self.core.handle_reset(now),
            Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN) => {
                self.core.handle_failure(now, Cause::Unreachable, format!("the kernel gave it up: {error}"));
            }
            _ => self.core.handle_failure(now, Cause::Reset, error.to_string()),
        }
    }

    /// A path that turned out slower or quicker.
    pub(super) fn follow_round_trip(&mut self, stats: &Stats) {
        if let (Some(socket), Some(bound), Some(smoothed)) = (&self.socket, self.rto_max_ms, stats.round_trip.smoothed)
            && !tuning::fits(bound.get(), smoothed)
        {
            self.rto_max_ms = tuning::bound_retransmissions(socket.as_fd(), smoothed).and_then(NonZeroU32::new);
        }
    }

    /// Others wait for memory that was granted to a message which doesn't come, or isn't taken.
    pub(super) fn give_way(&mut self, now: Instant, stats: &Stats) {
        if self.share.as_mut().is_some_and(|share| share.is_hoarding(now, stats.inbox_bytes)) {
            let close = Close::new(CloseCode::TOO_SLOW, "memory was granted for a message that doesn't come");
            self.core.leave(now, close, now + PARTING);
        }
    }

    pub(super) fn kernel_view(&mut self) -> Option<KernelView> {
        let sample = tcp_info::sample(self.socket.as_ref()?.as_raw_fd()).ok()?;
        let view = KernelView {
            written: self.core.bytes_sent(),
            bytes_acked: sample.bytes_acked.saturating_sub(self.acked_before.into()),
            unacked: sample.unacked,
            unsent: sample.unsent,
            probes: sample.probes,
            since_ack_received: clock::age(sample.since_ack_received),
            send_window: sample.send_window,
        };
        Some(if self.is_secured() { self.cleared(view) } else { view })
    }

    pub(super) fn framed(&mut self) -> Result<&mut Connection, SendError> {
        match &mut self.core {
            Core::Framed(connection) => Ok(connection),
            Core::Plain(_) => Err(SendError::NotOpen),
        }
    }

    /// What the core said to a message.
    pub(super) fn accepted(&self, attempt: Result<(), SendError>) -> Result<Attempt<()>, LinkError> {
        match attempt {
            Ok(()) => Ok(Attempt::Done(())),
            Err(SendError::Full { .. }) => Ok(Attempt::Later),
            Err(SendError::TooLarge { length, largest }) => Err(LinkError::TooLarge { length, largest }),
            Err(SendError::ShutDown) => Err(LinkError::ShutDown),
            Err(SendError::Framing(error)) => Err(error.into()),
            Err(SendError::NotOpen) => Err(self.over().unwrap_or_else(|| LinkError::NotOpen(self.core.state()))),
        }
    }

    /// Why nothing more will come.
    pub(super) fn over(&self) -> Option<LinkError> {
        self.ending.clone().map(LinkError::Ended)
    }

    /// The same for who receives: the end of a plain peer's stream stays its end, whatever becomes of the link.
    pub(super) fn dried_up(&mut self) -> Option<LinkError> {
        if self.core.is_at_end() {
            self.core.tell_end();
            return Some(LinkError::StreamEnded);
        }
        self.over()
    }
}

impl Inner {
    /// From here on nobody else reads, until the caller is back from recv(2).
    pub(super) fn begin_receiving(&mut self) {
        self.is_polled = true;
        self.is_receiving = true;
        self.core.set_waiting(self.last_read.instant(), true);
    }

    /// Another that sleeps has to read now, or has something to take; and if none does, the engine has.
    pub(super) fn hand_over(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        if !self.is_polled {
            self.waiters.wake_any();
        }
        if self.core.has_message() {
            self.waiters.wake_one(Interest::READABLE);
        }
    }
}

impl Notification {
    pub(in crate::engine) fn show(&mut self, should_be_set: bool) {
        match (self.is_set, should_be_set) {
            (false, true) => self.wakeup.set(),
            (true, false) => self.wakeup.clear(),
            _ => {}
        }
        self.is_set = should_be_set;
    }
}
