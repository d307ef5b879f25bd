//! What survives links: offsets, credit, what the peer hasn't taken yet, and what our program hasn't.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::frame::{Fields, Frame, HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES, header, put_frame, put_header};
use super::handshake::{MIN_WINDOW_BYTES, Position};

/// The window at first; it never shrinks below.
pub const BASE_WINDOW_BYTES: u64 = 256 * 1024;
pub const MAX_WINDOW_BYTES: u64 = 16 * 1024 * 1024;
/// An ACK waits for company no longer than this after a take.
const ACK_DELAY: Duration = Duration::from_millis(50);
/// A window that was grown is given back when nothing was taken for so long; arbitrary.
const SHRINK_AFTER: Duration = Duration::from_secs(10);
const TOTAL_BYTES: usize = 8;
/// An emptied buffer larger than this is given back at once, smaller ones at the next idle moment: pages that are new
/// cost more than what is written into them.
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// What was taken is moved out of a buffer only from here up.
const WORTH_MOVING_BYTES: usize = 64 * 1024;

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
}

/// Our data on its way: wire bytes, until the peer's application took them.
#[derive(Debug)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// Where in `bytes` the first byte lies that isn't taken; its offset is `taken`.
    head: usize,
    taken: u64,
    sent: u64,
    credit: u64,
    /// A frame's start at or before `sent`.
    boundary: u64,
    /// A frame's start at or before `credit`; from there is looked how far it goes.
    allowed: u64,
    messages: u64,
    largest: u64,
    /// Untaken bytes that were given up with the link.
    abandoned: usize,
}

impl Outbox {
    fn new() -> Self {
        Self {
            bytes: Vec::new(),
            head: 0,
            taken: 0,
            sent: 0,
            credit: 0,
            boundary: 0,
            allowed: 0,
            messages: 0,
            largest: 0,
            abandoned: 0,
        }
    }

    fn at(&self, offset: u64) -> usize {
        self.head + usize::try_from(offset - self.taken).unwrap_or_default()
    }

    fn end(&self) -> u64 {
        self.taken + self.untaken_bytes() as u64
    }

    /// Bytes that the peer's application isn't known to have taken.
    #[must_use]
    pub fn untaken_bytes(&self) -> usize {
        self.bytes.len() - self.head + self.abandoned
    }

    #[must_use]
    pub fn untaken_messages(&self) -> u64 {
        self.messages
    }

    #[must_use]
    pub fn is_all_sent(&self) -> bool {
        self.sent == self.end()
    }

    /// Appends one message, framed; the peer's largest message and our own bound hold.
    fn push(&mut self, message: &[u8], bound: usize) -> Result<(), SendError> {
        let length = message.len() as u64;
        if length > self.largest {
            return Err(SendError::TooLarge { length, largest: self.largest });
        }
        let buffered = self.untaken_bytes();
        let wire = usize::try_from(wire_bytes(length)).unwrap_or(usize::MAX);
        if buffered > 0 && buffered.saturating_add(wire) > bound {
            return Err(SendError::Full { buffered, bound });
        }
        self.make_room(wire);
        if message.len() <= MAX_PAYLOAD_BYTES {
            put_header(&mut self.bytes, Kind::DataEnd, message.len());
            self.bytes.extend_from_slice(message);
        } else {
            let (first, mut rest) = message.split_at(MAX_PAYLOAD_BYTES - TOTAL_BYTES);
            put_header(&mut self.bytes, Kind::DataStart, MAX_PAYLOAD_BYTES);
            self.bytes.extend_from_slice(&length.to_be_bytes());
            self.bytes.extend_from_slice(first);
            while rest.len() > MAX_PAYLOAD_BYTES {
                put_header(&mut self.bytes, Kind::Data, MAX_PAYLOAD_BYTES);
                self.bytes.extend_from_slice(&rest[..MAX_PAYLOAD_BYTES]);
                rest = &rest[MAX_PAYLOAD_BYTES..];
            }
            put_header(&mut self.bytes, Kind::DataEnd, rest.len());
            self.bytes.extend_from_slice(rest);
        }
        self.messages += 1;
        Ok(())
    }

    /// What was taken leaves when it is more than half: each byte moves once on average.
    fn make_room(&mut self, more: usize) {
        if self.head > 0 && self.bytes.len() + more > self.bytes.capacity() && self.head >= self.bytes.len() / 2 {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }

    /// The frame that starts at `offset` ends there.
    fn frame_end(&self, offset: u64) -> u64 {
        let length = header(&self.bytes[self.at(offset)..]).map_or(0, |(length, _)| length);
        offset + (HEADER_BYTES + length) as u64
    }

    /// Moves `boundary` to the last frame's start at or before `sent`.
    fn seek_boundary(&mut self) {
        if self.is_all_sent() {
            self.boundary = self.sent;
        }
        while self.boundary < self.sent {
            let end = self.frame_end(self.boundary);
            if end > self.sent {
                return;
            }
            self.boundary = end;
        }
    }

    /// The rest of a frame that was cut short.
    #[must_use]
    pub fn tail(&mut self) -> &[u8] {
        self.seek_boundary();
        if self.boundary == self.sent {
            return &[];
        }
        &self.bytes[self.at(self.sent)..self.at(self.frame_end(self.boundary))]
    }

    /// Everything unsent that credit allows, in whole frames behind the tail.
    #[must_use]
    pub fn ready(&mut self) -> &[u8] {
        let end = self.end();
        if end <= self.credit {
            self.allowed = end;
        }
        while self.allowed < end {
            let next = self.frame_end(self.allowed);
            if next > self.credit {
                break;
            }
            self.allowed = next;
        }
        &self.bytes[self.at(self.sent)..self.at(self.allowed)]
    }

    fn on_sent(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes as u64).min(self.end());
    }

    /// Nothing is sent any more; how much it was is still known.
    fn abandon(&mut self) {
        self.abandoned = self.untaken_bytes();
        self.bytes = Vec::new();
        self.head = 0;
    }

    /// Takes an acknowledgement. True if something was newly taken.
    fn handle_ack(&mut self, taken: u64, credit: u64) -> Result<bool, SessionError> {
        if taken < self.taken {
            return Err(SessionError::TakenBackwards { before: self.taken, taken });
        }
        if taken > self.sent {
            return Err(SessionError::TakenBeyondSent { taken, sent: self.sent });
        }
        if credit < self.credit {
            return Err(SessionError::CreditBackwards { before: self.credit, credit });
        }
        if taken == self.sent && credit - taken < MIN_WINDOW_BYTES {
            return Err(SessionError::WindowTooSmall { window: credit - taken });
        }
        let (mut offset, mut messages) = (self.taken, 0);
        while offset < taken {
            let is_last = self.bytes[self.at(offset)..].get(HEADER_BYTES - 1) == Some(&(Kind::DataEnd as u8));
            offset = self.frame_end(offset);
            messages += u64::from(is_last);
            if offset > taken || (offset == taken && !is_last) {
                return Err(SessionError::TakenInsideMessage { taken });
            }
        }
        let progress = taken > self.taken;
        self.head = self.at(taken);
        self.taken = taken;
        self.credit = credit;
        self.boundary = self.boundary.max(taken);
        self.messages -= messages;
        if self.head == self.bytes.len() {
            self.head = 0;
            self.bytes.clear();
            if self.bytes.capacity() > KEPT_BYTES {
                self.bytes = Vec::new();
            }
        }
        Ok(progress)
    }
}

/// What arrived and wasn't taken: for each message its header as it came, and its bytes without further headers.
#[derive(Debug)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// Where the first message lies that isn't taken, and the first that wasn't read.
    taken_at: usize,
    read_at: usize,
    /// The end of the last whole message; behind it the one that is being assembled.
    complete: usize,
    /// Bytes to come of the message begun.
    missing: u64,
    received: u64,
    taken: u64,
    read: VecDeque<u64>,
    messages: u64,
    largest: u64,
}

impl Inbox {
    fn new(largest: u64) -> Self {
        Self {
            bytes: Vec::new(),
            taken_at: 0,
            read_at: 0,
            complete: 0,
            missing: 0,
            received: 0,
            taken: 0,
            read: VecDeque::new(),
            messages: 0,
            largest,
        }
    }

    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.bytes.len() - self.taken_at
    }

    /// Whole messages that wait to be read.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    fn push(&mut self, frame: Frame<'_>, credit: u64) -> Result<(), SessionError> {
        let payload = frame.payload();
        let end = self.received.saturating_add(frame.wire.len() as u64);
        if end > credit {
            return Err(SessionError::BeyondCredit { end, credit });
        }
        match frame.kind {
            Kind::DataEnd if self.missing == 0 => {
                let length = payload.len() as u64;
                self.check_length(length)?;
                self.bytes.extend_from_slice(frame.wire);
            }
            Kind::DataStart if self.missing == 0 && payload.len() == MAX_PAYLOAD_BYTES => {
                let total = Fields(payload).u64().unwrap_or_default();
                if total <= MAX_PAYLOAD_BYTES as u64 {
                    return Err(SessionError::Fragment);
                }
                self.check_length(total)?;
                self.bytes.extend_from_slice(frame.wire);
                self.missing = total - (payload.len() - TOTAL_BYTES) as u64;
            }
            Kind::Data if payload.len() == MAX_PAYLOAD_BYTES && self.missing > payload.len() as u64 => {
                self.bytes.extend_from_slice(payload);
                self.missing -= payload.len() as u64;
            }
            Kind::DataEnd if payload.len() as u64 == self.missing => {
                self.bytes.extend_from_slice(payload);
                self.missing = 0;
            }
            _ => return Err(SessionError::Fragment),
        }
        self.received = end;
        if self.missing == 0 {
            self.complete = self.bytes.len();
            self.messages += 1;
        }
        Ok(())
    }

    fn check_length(&self, length: u64) -> Result<(), SessionError> {
        if length > self.largest {
            return Err(SessionError::MessageTooLarge { length, largest: self.largest });
        }
        Ok(())
    }

    /// Where the offset will be when the message begun is whole.
    fn end_of_begun(&self) -> Option<u64> {
        let frames = self.missing.div_ceil(MAX_PAYLOAD_BYTES as u64);
        (self.missing > 0)
            .then(|| self.received.saturating_add(self.missing).saturating_add(frames * HEADER_BYTES as u64))
    }

    /// Once it has credit; before, a length that was only claimed costs nothing.
    fn make_room_for_begun(&mut self) {
        self.bytes.reserve(usize::try_from(self.missing).unwrap_or_default());
    }

    /// The next whole message; it stays here until it is taken.
    fn read(&mut self) -> Option<&[u8]> {
        if self.messages == 0 {
            return None;
        }
        let record = &self.bytes[self.read_at..self.complete];
        let (length, kind) = header(record)?;
        let (start, length) = if kind == Kind::DataStart as u8 {
            let total = Fields(record.get(HEADER_BYTES..)?).u64()?;
            (HEADER_BYTES + TOTAL_BYTES, usize::try_from(total).ok()?)
        } else {
            (HEADER_BYTES, length)
        };
        let start = self.read_at + start;
        self.read_at = start + length;
        self.messages -= 1;
        self.read.push_back(length as u64);
        Some(&self.bytes[start..self.read_at])
    }

    /// Nothing comes any more: keeps the whole messages that the program hasn't taken, and no room for others.
    fn trim(&mut self) {
        self.bytes.truncate(self.complete);
        self.bytes.drain(..self.taken_at);
        self.bytes.shrink_to_fit();
        self.read_at -= self.taken_at;
        self.complete -= self.taken_at;
        self.taken_at = 0;
    }

    /// What the program hasn't taken it never will. How many messages it were.
    fn discard(&mut self) -> u64 {
        let count = self.messages + self.read.len() as u64;
        self.messages = 0;
        self.read = VecDeque::new();
        (self.taken_at, self.read_at) = (self.complete, self.complete);
        count
    }

    /// The oldest of what was read is taken; at most `messages`.
    fn take(&mut self, messages: usize) {
        for length in self.read.drain(..messages.min(self.read.len())) {
            let head = if length > MAX_PAYLOAD_BYTES as u64 { HEADER_BYTES + TOTAL_BYTES } else { HEADER_BYTES };
            self.taken_at += head + usize::try_from(length).unwrap_or_default();
            self.taken += wire_bytes(length);
        }
        if self.taken_at == self.bytes.len() {
            self.bytes.clear();
            if self.bytes.capacity() > KEPT_BYTES {
                self.bytes = Vec::new();
            }
            (self.taken_at, self.read_at, self.complete) = (0, 0, 0);
        } else if self.taken_at >= WORTH_MOVING_BYTES && self.taken_at >= self.bytes.len() / 2 {
            self.bytes.drain(..self.taken_at);
            self.read_at -= self.taken_at;
            self.complete -= self.taken_at;
            self.taken_at = 0;
        }
    }
}

/// When an ACK is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AckDue {
    No,
    /// With whatever goes next, or then.
    By(Instant),
    Now,
}

/// Both directions of a session's stream.
#[derive(Debug)]
pub struct Session {
    pub outbox: Outbox,
    pub inbox: Inbox,
    window: u64,
    /// As it was announced.
    credit: u64,
    acked: u64,
    ack: AckDue,
    /// The peer waits for what we take: the next ACK doesn't wait for company.
    eager: bool,
    /// The message begun wants credit up to here, which the process has yet to grant.
    extension: Option<u64>,
    growth_wanted: bool,
    /// Since when, and from where, the present window is being taken.
    measured_from: Option<(Instant, u64)>,
}

impl Session {
    /// `largest` is for what the peer may send.
    #[must_use]
    pub fn new(largest: u64) -> Self {
        Self {
            outbox: Outbox::new(),
            inbox: Inbox::new(largest),
            window: BASE_WINDOW_BYTES,
            credit: BASE_WINDOW_BYTES,
            acked: 0,
            ack: AckDue::No,
            eager: false,
            extension: None,
            growth_wanted: false,
            measured_from: None,
        }
    }

    /// What HELLO or WELCOME states.
    #[must_use]
    pub fn position(&self) -> Position {
        let Inbox { received, taken, .. } = self.inbox;
        Position { received, taken, window: self.credit - received }
    }

    /// What the peer stated when the session began. Where a session goes on, what lies behind `received` is to be
    /// sent again.
    pub fn on_peer_position(&mut self, position: Position, largest: u64) {
        self.outbox.credit = position.received + position.window;
        self.outbox.largest = largest;
    }

    /// `bound` is for what waits to be taken by the peer.
    pub fn send(&mut self, message: &[u8], bound: usize) -> Result<(), SendError> {
        self.outbox.push(message, bound)
    }

    pub fn on_sent(&mut self, bytes: usize) {
        self.outbox.on_sent(bytes);
    }

    pub fn handle_data(&mut self, frame: Frame<'_>) -> Result<(), SessionError> {
        self.inbox.push(frame, self.credit)?;
        if frame.kind == Kind::DataStart {
            self.extension = self.inbox.end_of_begun().filter(|end| *end > self.credit);
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

    /// The oldest `messages` of what was read are with the program now.
    pub fn take(&mut self, now: Instant, messages: usize, round_trip: Option<Duration>) {
        let before = self.inbox.taken;
        self.inbox.take(messages);
        if self.inbox.taken == before {
            return;
        }
        self.measure(now, before, round_trip);
        let is_due = self.inbox.taken - self.acked >= self.window / 2;
        let is_empty = self.inbox.taken_at == self.inbox.complete;
        self.ack = match self.ack {
            _ if is_due || (self.eager && is_empty) => AckDue::Now,
            AckDue::No => AckDue::By(now + ACK_DELAY),
            due => due,
        };
    }

    /// A whole window taken within two round trips: the path holds more than the window does.
    fn measure(&mut self, now: Instant, before: u64, round_trip: Option<Duration>) {
        let (since, from) = *self.measured_from.get_or_insert((now, before));
        if self.inbox.taken - from < self.window {
            return;
        }
        self.measured_from = Some((now, self.inbox.taken));
        self.growth_wanted = self.window < MAX_WINDOW_BYTES
            && round_trip.is_some_and(|round_trip| now.saturating_duration_since(since) <= 2 * round_trip);
    }

    /// Gives back what an idle session doesn't need.
    pub fn on_idle_moment(&mut self, now: Instant) {
        if self.measured_from.is_some_and(|(since, _)| now.saturating_duration_since(since) > SHRINK_AFTER) {
            self.window = BASE_WINDOW_BYTES;
            self.measured_from = None;
            self.growth_wanted = false;
        }
        if self.inbox.bytes.is_empty() {
            self.inbox.bytes = Vec::new();
            self.inbox.read = VecDeque::new();
        }
        if self.outbox.bytes.is_empty() {
            self.outbox.bytes = Vec::new();
        }
    }

    /// The link is over, and nothing goes on from here: what the peer hasn't taken is given up, and memory is kept only
    /// for what our program has yet to take.
    pub fn give_up(&mut self) {
        self.outbox.abandon();
        self.inbox.trim();
    }

    /// Our program takes nothing more. How many messages it hadn't taken.
    pub fn discard_inbox(&mut self) -> u64 {
        self.inbox.discard()
    }

    /// Memory beyond the base window that this session would like from the process's budget.
    #[must_use]
    pub fn budget_wanted(&self) -> u64 {
        match self.extension {
            Some(end) => end - self.credit,
            None if self.growth_wanted => self.window.min(MAX_WINDOW_BYTES - self.window),
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
        self.window - BASE_WINDOW_BYTES
    }

    /// What it holds of it.
    #[must_use]
    pub fn budget_held(&self) -> u64 {
        self.window.max(self.credit - self.inbox.taken) - BASE_WINDOW_BYTES
    }

    /// What was wanted is granted, in whole.
    pub fn grant_budget(&mut self) {
        if let Some(end) = self.extension.take() {
            self.credit = end;
            self.inbox.make_room_for_begun();
        } else if self.growth_wanted {
            self.window = (self.window * 2).min(MAX_WINDOW_BYTES);
            self.growth_wanted = false;
        } else {
            return;
        }
        self.ack = AckDue::Now;
    }

    /// The peer asked for an answer, or the link is new.
    pub fn on_ask(&mut self, is_first: bool) {
        self.eager = true;
        if is_first || self.inbox.taken > self.acked {
            self.ack = AckDue::Now;
        }
    }

    #[must_use]
    pub fn ack_is_urgent(&self) -> bool {
        self.ack == AckDue::Now
    }

    #[must_use]
    pub fn ack_is_pending(&self) -> bool {
        self.ack != AckDue::No
    }

    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.ack {
            AckDue::By(due) => Some(due),
            AckDue::No | AckDue::Now => None,
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|due| now >= due) {
            self.ack = AckDue::Now;
        }
    }

    /// The pending ACK, as it is now.
    pub fn encode_ack(&mut self, out: &mut Vec<u8>) {
        let grown = self.inbox.taken + self.window;
        self.credit = self.credit.max(grown);
        self.extension = self.extension.filter(|end| *end > self.credit);
        let (taken, credit) = (self.inbox.taken, self.credit);
        put_frame(out, Kind::Ack, |out| {
            out.extend_from_slice(&taken.to_be_bytes());
            out.extend_from_slice(&credit.to_be_bytes());
        });
    }

    /// It was handed to the kernel.
    pub fn on_ack_sent(&mut self) {
        if self.inbox.taken > self.acked {
            self.eager = false;
        }
        self.acked = self.inbox.taken;
        self.ack = AckDue::No;
    }

    /// What the peer takes at most, for its CLOSE.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.inbox.taken
    }

    #[must_use]
    pub fn has_message(&self) -> bool {
        self.inbox.messages > 0
    }

    /// Whole messages that the program hasn't taken, read or not.
    #[must_use]
    pub fn has_untaken(&self) -> bool {
        self.inbox.taken_at < self.inbox.complete
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
