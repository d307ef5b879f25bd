//! What survives links: offsets, credit, what the peer hasn't taken yet, and what our program hasn't.

mod inbox;
mod outbox;

use std::mem::{self, MaybeUninit};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::codec::EncodeError;
use super::frame::{Fields, Frame, HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES, put_frame};
use super::handshake::{MIN_WINDOW_BYTES, Position};
use super::moment::Moment;
use super::placing::{Placed, Placing};

pub use inbox::Inbox;
pub use outbox::{Framed, Outbox};

/// The window at first; it never shrinks below.
pub const BASE_WINDOW_BYTES: u64 = 256 * 1024;
pub const MAX_WINDOW_BYTES: u64 = 16 * 1024 * 1024;
/// An ACK waits for company no longer than this after a take.
const ACK_DELAY: Duration = Duration::from_millis(50);
/// Nor does it go with company sooner than this, while less than that was taken: in a conversation of small messages it
/// would weigh a third of each.
const ACK_REST: Duration = Duration::from_millis(1);
const RIPE_BYTES: u64 = 16 * 1024;
/// So much that was taken is acknowledged at once: half of the least window. However large that has become, the sender's buffer
/// hasn't grown with it.
const ACK_AFTER_BYTES: u64 = BASE_WINDOW_BYTES / 2;
/// A window that was grown is given back when nothing was taken for so long; arbitrary.
const SHRINK_AFTER: Duration = Duration::from_secs(10);
const TOTAL_BYTES: usize = 8;
/// An emptied buffer larger than this is given back at once, smaller ones at the next idle moment: pages that are new
/// cost more than what is written into them.
const KEPT_BYTES: usize = 4 * 1024 * 1024;

/// What a message of `length` bytes weighs on the wire. One that fits goes in one frame; a larger one is its length
/// in eight bytes and itself, cut into full frames.
#[must_use]
pub fn wire_bytes(length: u64) -> u64 {
    let payload = MAX_PAYLOAD_BYTES as u64;
    if length <= payload {
        return length + HEADER_BYTES as u64;
    }
    let content = length.saturating_add(TOTAL_BYTES as u64);
    content.saturating_add(content.div_ceil(payload).saturating_mul(HEADER_BYTES as u64))
}

/// The peer's data or acknowledgements can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("data up to offset {end}, beyond the credit of {credit}")]
    BeyondCredit { end: u64, credit: u64 },
    #[error("a message of {length} bytes, at most {largest} are allowed")]
    MessageTooLarge { length: u64, largest: u64 },
    #[error("a fragment where none may be, or of the wrong length")]
    Fragment,
    #[error("an ACK that isn't 16 bytes")]
    AckLength,
    #[error("taken went from {before} to {taken}")]
    TakenBackwards { before: u64, taken: u64 },
    #[error("taken is {taken}, only {sent} was sent")]
    TakenBeyondSent { taken: u64, sent: u64 },
    #[error("taken is {taken}, inside a message")]
    TakenInsideMessage { taken: u64 },
    #[error("received is {received}, only {sent} was sent")]
    ReceivedBeyondSent { received: u64, sent: u64 },
    #[error("received is {received}, inside a frame")]
    ReceivedInsideFrame { received: u64 },
    #[error("credit went from {before} to {credit}")]
    CreditBackwards { before: u64, credit: u64 },
    #[error("a window of {window} bytes with everything taken")]
    WindowTooSmall { window: u64 },
}

/// Why a message can't be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("message of {length} bytes, the peer takes at most {largest}")]
    TooLarge { length: u64, largest: u64 },
    /// To be tried again when something was taken.
    #[error("{buffered} bytes wait to be taken, the bound is {bound}")]
    Full { buffered: usize, bound: usize },
    #[error("the connection isn't open")]
    NotOpen,
    /// Our end of stream is said, or about to be.
    #[error("the sending side is shut down")]
    ShutDown,
    /// It doesn't fit a plain peer's framing.
    #[error(transparent)]
    Framing(#[from] EncodeError),
}

/// Both directions of a session's stream.
#[derive(Debug)]
pub struct Session {
    pub outbox: Outbox,
    pub inbox: Inbox,
    /// As it was announced.
    credit: u64,
    window: u32,
    /// Bytes that were taken and aren't acknowledged: a window and a message at the most.
    owed: u32,
    /// The largest message that the peer takes; none is larger than these can say.
    largest: u32,
    /// An ACK is to go with whatever goes next, or then.
    ack_by: Option<Moment>,
    ack_now: bool,
    /// The peer waits for what we take: the next ACK doesn't wait for company.
    eager: bool,
    /// The message begun wants credit up to here, which the process has yet to grant.
    extension: Option<NonZeroU64>,
    growth_wanted: bool,
    /// Since when, and from where, the present window is being taken.
    measured_from: Option<(Moment, u64)>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            credit: BASE_WINDOW_BYTES,
            window: BASE_WINDOW_BYTES as u32,
            owed: 0,
            largest: 0,
            ack_by: None,
            ack_now: false,
            eager: false,
            extension: None,
            growth_wanted: false,
            measured_from: None,
        }
    }
}

impl Session {
    /// As the peer states it.
    fn set_largest(&mut self, largest: u64) {
        self.largest = u32::try_from(largest).unwrap_or(u32::MAX);
    }

    fn window(&self) -> u64 {
        self.window.into()
    }

    /// What HELLO or WELCOME states; it acknowledges, too. The link before must not be read any more.
    pub fn state_position(&mut self) -> Position {
        self.extend_credit();
        let Inbox { received, taken, .. } = self.inbox;
        (self.owed, self.ack_by, self.ack_now, self.eager) = (0, None, false, false);
        self.measured_from = None;
        Position { received, taken, window: self.credit - received }
    }

    /// What the peer stated when the session began.
    pub fn on_peer_position(&mut self, position: Position, largest: u64) {
        self.outbox.credit = position.received + position.window;
        self.set_largest(largest);
    }

    /// Whether the session can go on where the peer states that it is. `None` if it lacks what was forgotten here; else how
    /// many messages go again, as a whole or in part.
    pub fn check_position(&self, position: Position) -> Result<Option<u64>, SessionError> {
        self.outbox.check_position(position)
    }

    /// The session goes on over a new link: what lies behind the peer's `received`, and was checked, goes again.
    pub fn resume(&mut self, position: Position, largest: u64) -> Result<(), SessionError> {
        self.set_largest(largest);
        self.outbox.resume(position)
    }

    /// Another session begins, for the peer doesn't know this one: what it isn't known to have taken goes from its start.
    /// False if it doesn't take messages that are so large.
    #[must_use]
    pub fn restart(&mut self, credit: u64, largest: u64) -> bool {
        if !self.outbox.restart(credit, largest) {
            return false;
        }
        self.forget_received();
        self.set_largest(largest);
        true
    }

    /// What was received counts no more.
    pub fn forget_received(&mut self) {
        self.inbox.restart();
        let Self { outbox, inbox, .. } = mem::take(self);
        *self = Self { outbox, inbox, ..Self::default() };
    }

    /// What has yet to go waits for another link.
    pub fn forget_tail(&mut self) {
        self.outbox.forget_tail();
    }

    /// How far it was handed to the kernel.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.outbox.sent()
    }

    /// Something may have been taken that isn't known to be.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.outbox.is_doubtful()
    }

    /// The peer has said the last word about what it took.
    pub fn on_final_word(&mut self) {
        self.outbox.on_final_word();
    }

    /// Each message that the peer's application isn't known to have taken, in order.
    #[must_use]
    pub fn undelivered(&self) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        self.outbox.for_each_untaken(|message| messages.push(message));
        messages
    }

    /// `bound` is for what waits to be taken by the peer.
    pub fn send(&mut self, message: &[u8], bound: usize) -> Result<(), SendError> {
        self.outbox.push(message, bound, self.largest.into())
    }

    /// Whether a message of `length` bytes could be sent now.
    pub fn check_send(&self, length: usize, bound: usize) -> Result<(), SendError> {
        self.outbox.check(length, bound, self.largest.into()).map(drop)
    }

    /// Takes the message, unless it can't be sent now.
    pub fn send_framed(&mut self, framed: &mut Framed, bound: usize) -> Result<(), SendError> {
        self.outbox.push_framed(framed, bound, self.largest.into())
    }

    pub fn on_sent(&mut self, bytes: usize) {
        self.outbox.on_sent(bytes);
    }

    /// `largest` is what a message may have.
    pub fn handle_data(&mut self, frame: Frame<'_>, largest: u64) -> Result<(), SessionError> {
        self.inbox.push(frame, self.credit, largest)?;
        if frame.kind == Kind::DataStart {
            let end = self.inbox.end_of_begun().filter(|end| *end > self.credit);
            self.extension = end.and_then(NonZeroU64::new);
            if self.extension.is_none() {
                self.inbox.make_room_for_begun();
            }
        }
        Ok(())
    }

    /// True if the peer's application took something.
    pub fn handle_ack(&mut self, payload: &[u8]) -> Result<bool, SessionError> {
        let mut fields = Fields(payload);
        let (Some(taken), Some(credit), []) = (fields.u64(), fields.u64(), fields.0) else {
            return Err(SessionError::AckLength);
        };
        self.outbox.handle_ack(taken, credit)
    }

    pub fn read(&mut self) -> Option<&[u8]> {
        self.inbox.read()
    }

    /// The oldest of what was read are with the program now, at most `messages`. How many it were.
    pub fn take(&mut self, now: Instant, messages: usize, round_trip: Option<Duration>) -> usize {
        let before = self.inbox.taken;
        let taken = self.inbox.take(messages);
        self.on_taken(now, before, round_trip);
        taken
    }

    /// Whether a message that comes in one frame of so much payload may go to the program at once: it is allowed, and nothing is
    /// here that comes before it.
    #[must_use]
    pub fn may_pass(&self, length: usize, largest: u64) -> bool {
        let end = self.inbox.received.saturating_add((HEADER_BYTES + length) as u64);
        length <= MAX_PAYLOAD_BYTES
            && length as u64 <= largest
            && end <= self.credit
            && self.inbox.buffered_bytes() == 0
    }

    /// It came, and was taken.
    pub fn pass(&mut self, now: Instant, length: usize, round_trip: Option<Duration>) {
        let before = self.inbox.taken;
        let wire = (HEADER_BYTES + length) as u64;
        self.inbox.received += wire;
        self.inbox.taken += wire;
        self.on_taken(now, before, round_trip);
    }

    fn on_taken(&mut self, now: Instant, before: u64, round_trip: Option<Duration>) {
        if self.inbox.taken == before {
            return;
        }
        self.measure(now, before, round_trip);
        let taken = u32::try_from(self.inbox.taken - before).unwrap_or(u32::MAX);
        self.owed = self.owed.saturating_add(taken);
        let is_due = u64::from(self.owed) >= ACK_AFTER_BYTES;
        let is_empty = !self.inbox.has_untaken();
        self.ack_now |= is_due || (self.eager && is_empty);
        if !self.ack_now {
            self.ack_by.get_or_insert((now + ACK_DELAY).into());
        }
    }

    /// The message begun, if it comes next, and has credit; `begun` is there of a frame that isn't whole.
    pub(super) fn begun(&self, begun: &[u8]) -> Option<Placing> {
        if self.extension.is_some() { None } else { self.inbox.begun(begun) }
    }

    /// What came of it moves to its place in `room`.
    pub(super) fn place_begun(&mut self, begun: &[u8], room: &mut [MaybeUninit<u8>]) -> Option<Placing> {
        self.inbox.place_begun(begun, room)
    }

    /// What was read to the places that `placing` gave: all `headers`, and `room` as far as it is filled. The message is the
    /// program's once it is complete. What didn't come as foreseen is for the decoder.
    pub(super) fn handle_placed(
        &mut self,
        now: Instant,
        placing: &mut Placing,
        (headers, room): (&[u8], &[u8]),
        round_trip: Option<Duration>,
    ) -> Placed {
        let before = self.inbox.taken;
        let placed = placing.advance(headers, room, |payload| self.inbox.on_placed(payload));
        self.on_taken(now, before, round_trip);
        placed
    }

    /// What lies in `room` goes on here.
    pub fn take_back(&mut self, room: &[u8]) {
        self.inbox.take_back(room);
    }

    /// A whole window taken within two round trips: the path holds more than the window does.
    fn measure(&mut self, now: Instant, before: u64, round_trip: Option<Duration>) {
        let (since, from) = *self.measured_from.get_or_insert_with(|| (now.into(), before));
        if self.inbox.taken - from < self.window.into() {
            return;
        }
        self.measured_from = Some((now.into(), self.inbox.taken));
        self.growth_wanted = u64::from(self.window) < MAX_WINDOW_BYTES
            && round_trip.is_some_and(|round_trip| now.saturating_duration_since(since.instant()) <= 2 * round_trip);
    }

    /// Gives back what an idle session doesn't need.
    pub fn on_idle_moment(&mut self, now: Instant) {
        let since = self.measured_from.map(|(since, _)| since.instant());
        if since.is_some_and(|since| now.saturating_duration_since(since) > SHRINK_AFTER) {
            self.window = BASE_WINDOW_BYTES as u32;
            self.measured_from = None;
            self.growth_wanted = false;
        }
        self.inbox.release_memory();
        self.outbox.release_memory();
    }

    /// Nothing goes on from here: memory is kept only for what our program has yet to take, and for what the peer isn't
    /// known to have.
    pub fn give_up(&mut self) {
        self.outbox.trim();
        self.inbox.trim();
    }

    /// Nobody asks for what the peer hasn't taken.
    pub fn forget_sent(&mut self) {
        self.outbox.abandon();
    }

    /// Our program takes nothing more. How many messages it hadn't taken.
    pub fn discard_inbox(&mut self) -> u64 {
        self.inbox.discard()
    }

    /// Memory beyond the base window that this session would like from the process's budget.
    #[must_use]
    pub fn budget_wanted(&self) -> u64 {
        match self.extension {
            Some(end) => end.get() - self.credit,
            None if self.growth_wanted => self.window().min(MAX_WINDOW_BYTES - self.window()),
            None => 0,
        }
    }

    /// It is wanted for a message that has begun, which can't go on without; else for a larger window.
    #[must_use]
    pub fn budget_is_for_message(&self) -> bool {
        self.extension.is_some()
    }

    /// What the window holds of it beyond its base; the rest is held for a message.
    #[must_use]
    pub fn budget_held_by_window(&self) -> u64 {
        self.window() - BASE_WINDOW_BYTES
    }

    /// What it holds of it.
    #[must_use]
    pub fn budget_held(&self) -> u64 {
        self.window().max(self.credit - self.inbox.taken) - BASE_WINDOW_BYTES
    }

    /// What was wanted is granted, in whole.
    pub fn grant_budget(&mut self) {
        if let Some(end) = self.extension.take() {
            self.credit = end.get();
            self.inbox.make_room_for_begun();
        } else if self.growth_wanted {
            self.window = (self.window * 2).min(MAX_WINDOW_BYTES as u32);
            self.growth_wanted = false;
        } else {
            return;
        }
        self.ack_now = true;
    }

    /// The peer asked for an answer, or the link is new.
    pub fn on_ask(&mut self, is_first: bool) {
        self.eager = true;
        if is_first || self.owed > 0 {
            self.ack_now = true;
        }
    }

    #[must_use]
    pub fn ack_is_urgent(&self) -> bool {
        self.ack_now
    }

    /// An ACK goes with what is being written anyway, unless one for every message of a quick conversation would.
    #[must_use]
    pub fn ack_rides(&self, now: Instant) -> bool {
        self.ack_now
            || self
                .ack_by
                .is_some_and(|due| now + (ACK_DELAY - ACK_REST) >= due.instant() || u64::from(self.owed) >= RIPE_BYTES)
    }

    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.ack_by.filter(|_| !self.ack_now)
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|due| now >= due.instant()) {
            self.ack_now = true;
        }
    }

    /// What was taken leaves room for as much.
    fn extend_credit(&mut self) {
        self.credit = self.credit.max(self.inbox.taken + self.window());
        self.extension = self.extension.filter(|end| end.get() > self.credit);
    }

    /// The pending ACK, as it is now.
    pub fn encode_ack(&mut self, out: &mut Vec<u8>) {
        self.extend_credit();
        let (taken, credit) = (self.inbox.taken, self.credit);
        put_frame(out, Kind::Ack, |out| {
            out.extend_from_slice(&taken.to_be_bytes());
            out.extend_from_slice(&credit.to_be_bytes());
        });
    }

    /// It was handed to the kernel.
    pub fn on_ack_sent(&mut self) {
        if self.owed > 0 {
            self.eager = false;
        }
        self.owed = 0;
        (self.ack_by, self.ack_now) = (None, false);
    }

    /// What the peer takes at most, for its CLOSE.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.inbox.taken
    }

    #[must_use]
    pub fn has_message(&self) -> bool {
        self.inbox.messages() > 0
    }

    /// Whole messages that the program hasn't taken, read or not.
    #[must_use]
    pub fn has_untaken(&self) -> bool {
        self.inbox.has_untaken()
    }

    /// Offsets of what we sent: all that was accepted, and what the peer's application took of it.
    #[must_use]
    pub fn sent_offsets(&self) -> (u64, u64) {
        (self.outbox.end(), self.outbox.taken)
    }

    /// A peer's final `taken` lies between what it acknowledged and what was sent.
    pub fn handle_final_taken(&mut self, taken: u64) -> Result<(), SessionError> {
        let credit = self.outbox.credit.max(taken.saturating_add(MIN_WINDOW_BYTES));
        self.outbox.handle_ack(taken, credit).map(drop)
    }
}
