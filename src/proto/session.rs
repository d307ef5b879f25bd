//! What survives links: offsets, credit, what the peer hasn't taken yet, and what our program hasn't.

use std::mem::{self, MaybeUninit};
use std::num::NonZeroU64;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::codec::EncodeError;
use super::frame::{Fields, Frame, HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES, header, put_frame, put_header};
use super::handshake::{MIN_WINDOW_BYTES, Position};
use super::moment::Moment;
use super::placing::{Placed, Placing};

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
    /// Our end of stream is said, or about to be.
    #[error("the sending side is shut down")]
    ShutDown,
    /// It doesn't fit a plain peer's framing.
    #[error(transparent)]
    Framing(#[from] EncodeError),
}

/// A message as it goes on the wire, made before there is room for it: who copies a large one keeps nobody waiting meanwhile.
#[derive(Debug)]
pub struct Framed {
    bytes: Vec<u8>,
    length: usize,
}

impl Framed {
    #[must_use]
    pub fn new(message: &[u8]) -> Self {
        let length = message.len();
        let mut bytes = Vec::with_capacity(usize::try_from(wire_bytes(length as u64)).unwrap_or_default());
        put_message(&mut bytes, message);
        Self { bytes, length }
    }
}

fn put_message(out: &mut Vec<u8>, message: &[u8]) {
    if message.len() <= MAX_PAYLOAD_BYTES {
        put_header(out, Kind::DataEnd, message.len());
        out.extend_from_slice(message);
        return;
    }
    let (first, mut rest) = message.split_at(MAX_PAYLOAD_BYTES - TOTAL_BYTES);
    put_header(out, Kind::DataStart, MAX_PAYLOAD_BYTES);
    out.extend_from_slice(&(message.len() as u64).to_be_bytes());
    out.extend_from_slice(first);
    while rest.len() > MAX_PAYLOAD_BYTES {
        put_header(out, Kind::Data, MAX_PAYLOAD_BYTES);
        out.extend_from_slice(&rest[..MAX_PAYLOAD_BYTES]);
        rest = &rest[MAX_PAYLOAD_BYTES..];
    }
    put_header(out, Kind::DataEnd, rest.len());
    out.extend_from_slice(rest);
}

/// Our data on its way: wire bytes, until the peer's application took them.
#[derive(Debug, Default)]
pub struct Outbox {
    taken: u64,
    credit: u64,
    largest: u64,
    /// `None` while nothing is on its way, or soon after.
    flight: Option<Box<Flight>>,
}

/// What an idle session doesn't have, kept apart from what it does. Without one everything accepted was taken.
#[derive(Debug)]
struct Flight {
    bytes: Vec<u8>,
    /// The offset of the first of `bytes`; what was taken lies there a while longer.
    start: u64,
    sent: u64,
    /// A frame's start at or before `sent`.
    boundary: u64,
    /// A frame's start at or before `credit`; from there is looked how far it goes.
    allowed: u64,
    messages: u64,
}

impl Outbox {
    /// The offset behind all that was accepted.
    fn end(&self) -> u64 {
        self.flight.as_ref().map_or(self.taken, |flight| flight.end())
    }

    fn sent(&self) -> u64 {
        self.flight.as_ref().map_or(self.taken, |flight| flight.sent)
    }

    /// Something that was accepted waits for credit, or for the kernel to take it.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        self.sent() < self.end()
    }

    /// Bytes that the peer's application isn't known to have taken.
    #[must_use]
    pub fn untaken_bytes(&self) -> usize {
        usize::try_from(self.end() - self.taken).unwrap_or(usize::MAX)
    }

    #[must_use]
    pub fn untaken_messages(&self) -> u64 {
        self.flight.as_ref().map_or(0, |flight| flight.messages)
    }

    /// Whether a message of `length` bytes can be appended: the peer's largest message and our own `bound` hold. Gives what it
    /// weighs.
    fn check(&self, length: usize, bound: usize) -> Result<usize, SendError> {
        let length = length as u64;
        if length > self.largest {
            return Err(SendError::TooLarge { length, largest: self.largest });
        }
        let buffered = self.untaken_bytes();
        let wire = usize::try_from(wire_bytes(length)).unwrap_or(usize::MAX);
        if buffered > 0 && buffered.saturating_add(wire) > bound {
            return Err(SendError::Full { buffered, bound });
        }
        Ok(wire)
    }

    /// Appends one message, framed.
    fn push(&mut self, message: &[u8], bound: usize) -> Result<(), SendError> {
        let wire = self.check(message.len(), bound)?;
        let flight = self.flight.get_or_insert_with(|| Box::new(Flight::new(self.taken)));
        flight.make_room(self.taken, wire);
        flight.push(message);
        Ok(())
    }

    /// Appends one message that was framed before, and takes it from `framed`: without a copy where nothing is before it.
    fn push_framed(&mut self, framed: &mut Framed, bound: usize) -> Result<(), SendError> {
        let wire = self.check(framed.length, bound)?;
        let is_alone = self.untaken_bytes() == 0;
        let flight = self.flight.get_or_insert_with(|| Box::new(Flight::new(self.taken)));
        let bytes = mem::take(&mut framed.bytes);
        if is_alone {
            **flight = Flight { bytes, messages: 1, ..Flight::new(self.taken) };
        } else {
            flight.make_room(self.taken, wire);
            flight.bytes.extend_from_slice(&bytes);
            flight.messages += 1;
        }
        Ok(())
    }

    /// The rest of a frame that was cut short.
    #[must_use]
    pub fn tail(&mut self) -> &[u8] {
        self.flight.as_mut().map_or(&[], |flight| flight.tail())
    }

    /// Everything unsent that credit allows, in whole frames behind the tail.
    #[must_use]
    pub fn ready(&mut self) -> &[u8] {
        let credit = self.credit;
        self.flight.as_mut().map_or(&[], |flight| flight.ready(credit))
    }

    fn on_sent(&mut self, bytes: usize) {
        if let Some(flight) = &mut self.flight {
            flight.sent = (flight.sent + bytes as u64).min(flight.end());
        }
    }

    /// Takes an acknowledgement. True if something was newly taken.
    fn handle_ack(&mut self, taken: u64, credit: u64) -> Result<bool, SessionError> {
        let sent = self.sent();
        if taken < self.taken {
            return Err(SessionError::TakenBackwards { before: self.taken, taken });
        }
        if taken > sent {
            return Err(SessionError::TakenBeyondSent { taken, sent });
        }
        if credit < self.credit {
            return Err(SessionError::CreditBackwards { before: self.credit, credit });
        }
        if taken == sent && credit - taken < MIN_WINDOW_BYTES {
            return Err(SessionError::WindowTooSmall { window: credit - taken });
        }
        if let Some(flight) = &mut self.flight {
            flight.on_taken(self.taken, taken)?;
        }
        let progress = taken > self.taken;
        self.taken = taken;
        self.credit = credit;
        Ok(progress)
    }

    fn abandon(&mut self) {
        self.release_memory();
        if let Some(flight) = &mut self.flight {
            flight.abandon();
        }
    }

    fn release_memory(&mut self) {
        if self.untaken_bytes() == 0 {
            self.flight = None;
        }
    }
}

impl Flight {
    fn new(offset: u64) -> Self {
        Self { bytes: Vec::new(), start: offset, sent: offset, boundary: offset, allowed: offset, messages: 0 }
    }

    fn at(&self, offset: u64) -> usize {
        usize::try_from(offset - self.start).unwrap_or_default()
    }

    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn push(&mut self, message: &[u8]) {
        put_message(&mut self.bytes, message);
        self.messages += 1;
    }

    /// What was taken leaves when it is more than half: each byte moves once on average.
    fn make_room(&mut self, taken: u64, more: usize) {
        let head = self.at(taken);
        if head > 0 && self.bytes.len() + more > self.bytes.capacity() && head >= self.bytes.len() / 2 {
            self.bytes.drain(..head);
            self.start = taken;
        }
    }

    /// The frame that starts at `offset` ends there.
    fn frame_end(&self, offset: u64) -> u64 {
        let length = header(&self.bytes[self.at(offset)..]).map_or(0, |(length, _)| length);
        offset + (HEADER_BYTES + length) as u64
    }

    /// Moves `boundary` to the last frame's start at or before `sent`.
    fn seek_boundary(&mut self) {
        if self.sent == self.end() {
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

    fn tail(&mut self) -> &[u8] {
        self.seek_boundary();
        if self.boundary == self.sent {
            return &[];
        }
        &self.bytes[self.at(self.sent)..self.at(self.frame_end(self.boundary))]
    }

    fn ready(&mut self, credit: u64) -> &[u8] {
        let end = self.end();
        if end <= credit {
            self.allowed = end;
        }
        while self.allowed < end {
            let next = self.frame_end(self.allowed);
            if next > credit {
                break;
            }
            self.allowed = next;
        }
        &self.bytes[self.at(self.sent)..self.at(self.allowed)]
    }

    /// Nothing is sent any more; how much it was is still known.
    fn abandon(&mut self) {
        let end = self.end();
        (self.start, self.sent, self.boundary, self.allowed) = (end, end, end, end);
        self.bytes = Vec::new();
    }

    /// Forgets what the peer's application took since `before`, which ends with a message.
    fn on_taken(&mut self, before: u64, taken: u64) -> Result<(), SessionError> {
        let (mut offset, mut messages) = (before, 0);
        while offset < taken {
            let is_last = self.bytes[self.at(offset)..].get(HEADER_BYTES - 1) == Some(&(Kind::DataEnd as u8));
            offset = self.frame_end(offset);
            messages += u64::from(is_last);
            if offset > taken || (offset == taken && !is_last) {
                return Err(SessionError::TakenInsideMessage { taken });
            }
        }
        self.boundary = self.boundary.max(taken);
        self.messages -= messages;
        if taken == self.end() {
            self.start = taken;
            self.bytes.clear();
            if self.bytes.capacity() > KEPT_BYTES {
                self.bytes = Vec::new();
            }
        }
        Ok(())
    }
}

/// What arrived and wasn't taken.
#[derive(Debug, Default)]
pub struct Inbox {
    received: u64,
    taken: u64,
    /// `None` while nothing is here, or soon after.
    stock: Option<Box<Stock>>,
}

/// For each message its header as it came, and its bytes without further headers.
#[derive(Debug, Default)]
struct Stock {
    bytes: Vec<u8>,
    /// Where the first message lies that isn't taken, and the first that wasn't read.
    taken_at: usize,
    read_at: usize,
    /// The end of the last whole message; behind it the one that is being assembled.
    complete: usize,
    /// Bytes to come of the message begun.
    missing: u64,
    /// Whole ones that weren't read.
    messages: u64,
    /// Of the message begun, what came first and lies in its place elsewhere.
    placed: usize,
}

impl Inbox {
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.stock.as_ref().map_or(0, |stock| stock.bytes.len() - stock.taken_at + stock.placed)
    }

    /// Whole messages that wait to be read.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.stock.as_ref().map_or(0, |stock| stock.messages)
    }

    /// Of the next whole message that wasn't read.
    #[must_use]
    pub fn next_length(&self) -> Option<usize> {
        let stock = self.stock.as_ref()?;
        stock.message_at(stock.read_at).map(|message| message.len())
    }

    /// Whole messages are here that weren't taken, read or not.
    fn has_untaken(&self) -> bool {
        self.stock.as_ref().is_some_and(|stock| stock.taken_at < stock.complete)
    }

    fn push(&mut self, frame: Frame<'_>, credit: u64, largest: u64) -> Result<(), SessionError> {
        let end = self.received.saturating_add(frame.wire.len() as u64);
        if end > credit {
            return Err(SessionError::BeyondCredit { end, credit });
        }
        self.stock.get_or_insert_default().push(frame, largest)?;
        self.received = end;
        Ok(())
    }

    /// Where the offset will be when the message begun is whole.
    fn end_of_begun(&self) -> Option<u64> {
        let missing = self.stock.as_ref().map_or(0, |stock| stock.missing);
        let frames = missing.div_ceil(MAX_PAYLOAD_BYTES as u64);
        (missing > 0).then(|| self.received.saturating_add(missing).saturating_add(frames * HEADER_BYTES as u64))
    }

    /// Once it has credit; before, a length that was only claimed costs nothing.
    fn make_room_for_begun(&mut self) {
        if let Some(stock) = &mut self.stock {
            stock.bytes.reserve(usize::try_from(stock.missing).unwrap_or_default());
        }
    }

    /// The next whole message; it stays here until it is taken.
    fn read(&mut self) -> Option<&[u8]> {
        self.stock.as_mut()?.read()
    }

    fn begun(&self, begun: &[u8]) -> Option<Placing> {
        self.stock.as_ref()?.begun(begun)
    }

    fn place_begun(&mut self, begun: &[u8], room: &mut [MaybeUninit<u8>]) -> Option<Placing> {
        self.stock.as_mut()?.place_begun(begun, room)
    }

    /// A frame of the message begun came elsewhere, with so much payload. The last one takes the message.
    fn on_placed(&mut self, payload: usize) {
        if let Some(stock) = &mut self.stock {
            self.received = self.received.saturating_add((HEADER_BYTES + payload) as u64);
            self.taken += stock.on_placed(payload);
        }
    }

    fn take_back(&mut self, room: &[u8]) {
        if let Some(stock) = &mut self.stock {
            stock.take_back(room);
        }
    }

    /// The oldest of what was read is taken; at most `messages`.
    fn take(&mut self, messages: usize) {
        if let Some(stock) = &mut self.stock {
            self.taken += stock.take(messages);
        }
    }

    fn trim(&mut self) {
        if !self.has_untaken() {
            self.stock = None;
        }
        if let Some(stock) = &mut self.stock {
            stock.trim();
        }
    }

    fn discard(&mut self) -> u64 {
        self.stock.as_mut().map_or(0, |stock| stock.discard())
    }

    fn release_memory(&mut self) {
        if self.buffered_bytes() == 0 {
            self.stock = None;
        }
    }
}

impl Stock {
    fn push(&mut self, frame: Frame<'_>, largest: u64) -> Result<(), SessionError> {
        let payload = frame.payload();
        let check_length = |length| match length {
            length if length > largest => Err(SessionError::MessageTooLarge { length, largest }),
            _ => Ok(()),
        };
        match frame.kind {
            Kind::DataEnd if self.missing == 0 => {
                check_length(payload.len() as u64)?;
                self.bytes.extend_from_slice(frame.wire);
            }
            Kind::DataStart if self.missing == 0 && payload.len() == MAX_PAYLOAD_BYTES => {
                let total = Fields(payload).u64().unwrap_or_default();
                if total <= MAX_PAYLOAD_BYTES as u64 {
                    return Err(SessionError::Fragment);
                }
                check_length(total)?;
                self.bytes.extend_from_slice(frame.wire);
                self.missing = total - (payload.len() - TOTAL_BYTES) as u64;
            }
            Kind::Data if payload.len() == MAX_PAYLOAD_BYTES && self.missing > payload.len() as u64 => {
                self.bytes.extend_from_slice(payload);
                self.missing -= payload.len() as u64;
            }
            Kind::DataEnd if payload.len() as u64 == self.missing => {
                debug_assert!(self.placed == 0, "its last frame comes to where the others are");
                self.bytes.extend_from_slice(payload);
                self.missing = 0;
            }
            _ => return Err(SessionError::Fragment),
        }
        if self.missing == 0 {
            self.complete = self.bytes.len();
            self.messages += 1;
        }
        Ok(())
    }

    /// Where the content of the whole message lies whose header is at `start`.
    fn message_at(&self, start: usize) -> Option<Range<usize>> {
        let record = self.bytes.get(start..self.complete)?;
        let (length, kind) = header(record)?;
        let (head, length) = if kind == Kind::DataStart as u8 {
            let total = Fields(record.get(HEADER_BYTES..)?).u64()?;
            (HEADER_BYTES + TOTAL_BYTES, usize::try_from(total).ok()?)
        } else {
            (HEADER_BYTES, length)
        };
        Some(start + head..start + head + length)
    }

    fn read(&mut self) -> Option<&[u8]> {
        let message = self.message_at(self.read_at)?;
        self.read_at = message.end;
        self.messages -= 1;
        Some(&self.bytes[message])
    }

    /// Nothing comes any more: keeps the whole messages that the program hasn't taken, and no room for others.
    fn trim(&mut self) {
        self.bytes.truncate(self.complete);
        self.bytes.drain(..self.taken_at);
        self.bytes.shrink_to_fit();
        self.read_at -= self.taken_at;
        self.complete -= self.taken_at;
        (self.taken_at, self.missing, self.placed) = (0, 0, 0);
    }

    /// The message begun, if nothing is here but that, and `begun` of its next frame.
    fn begun(&self, begun: &[u8]) -> Option<Placing> {
        let (total, here) = self.bytes.get(self.complete + HEADER_BYTES..)?.split_first_chunk::<TOTAL_BYTES>()?;
        let is_alone = self.missing > 0 && self.taken_at == self.complete;
        let length = usize::try_from(u64::from_be_bytes(*total)).ok().filter(|_| is_alone)?;
        Placing::new(length, self.placed + here.len(), begun)
    }

    /// What is here of it moves to its place in `room`.
    fn place_begun(&mut self, begun: &[u8], room: &mut [MaybeUninit<u8>]) -> Option<Placing> {
        let placing = self.begun(begun)?;
        let content = self.complete + HEADER_BYTES + TOTAL_BYTES;
        let (here, payload) = (self.bytes.get(content..)?, begun.get(HEADER_BYTES..).unwrap_or_default());
        let room = room.get_mut(self.placed..placing.filled())?;
        let (whole, part) = room.split_at_mut_checked(here.len())?;
        whole.write_copy_of_slice(here);
        part.write_copy_of_slice(payload);
        self.placed += here.len();
        self.bytes.truncate(content);
        Some(placing)
    }

    /// How far the offset went by it: not at all, or by the whole message.
    fn on_placed(&mut self, payload: usize) -> u64 {
        self.placed += payload;
        self.missing = self.missing.saturating_sub(payload as u64);
        if self.missing > 0 {
            return 0;
        }
        let length = mem::take(&mut self.placed);
        self.bytes.truncate(self.complete);
        self.clear_taken();
        wire_bytes(length as u64)
    }

    /// It goes on here.
    fn take_back(&mut self, room: &[u8]) {
        let placed = &room[..mem::take(&mut self.placed).min(room.len())];
        let content = (self.complete + HEADER_BYTES + TOTAL_BYTES).min(self.bytes.len());
        self.bytes.splice(content..content, placed.iter().copied());
    }

    /// What the program hasn't taken it never will. How many messages it were.
    fn discard(&mut self) -> u64 {
        let mut count = self.messages;
        while let Some(message) = self.message_at(self.taken_at).filter(|message| message.end <= self.read_at) {
            self.taken_at = message.end;
            count += 1;
        }
        self.messages = 0;
        (self.taken_at, self.read_at) = (self.complete, self.complete);
        count
    }

    /// How far the offset went by it.
    fn take(&mut self, messages: usize) -> u64 {
        let mut taken = 0;
        for _ in 0..messages {
            let Some(message) = self.message_at(self.taken_at).filter(|message| message.end <= self.read_at) else {
                break;
            };
            taken += wire_bytes(message.len() as u64);
            self.taken_at = message.end;
        }
        self.clear_taken();
        taken
    }

    /// Gives back the room of what was taken.
    fn clear_taken(&mut self) {
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
    By(Moment),
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
}

impl Session {
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

    /// Whether a message of `length` bytes could be sent now.
    pub fn check_send(&self, length: usize, bound: usize) -> Result<(), SendError> {
        self.outbox.check(length, bound).map(drop)
    }

    /// Takes the message, unless it can't be sent now.
    pub fn send_framed(&mut self, framed: &mut Framed, bound: usize) -> Result<(), SendError> {
        self.outbox.push_framed(framed, bound)
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

    /// The oldest `messages` of what was read are with the program now.
    pub fn take(&mut self, now: Instant, messages: usize, round_trip: Option<Duration>) {
        let before = self.inbox.taken;
        self.inbox.take(messages);
        self.on_taken(now, before, round_trip);
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
        let is_due = self.inbox.taken - self.acked >= ACK_AFTER_BYTES;
        let is_empty = !self.inbox.has_untaken();
        self.ack = match self.ack {
            _ if is_due || (self.eager && is_empty) => AckDue::Now,
            AckDue::No => AckDue::By((now + ACK_DELAY).into()),
            due => due,
        };
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
        if self.inbox.taken - from < self.window {
            return;
        }
        self.measured_from = Some((now.into(), self.inbox.taken));
        self.growth_wanted = self.window < MAX_WINDOW_BYTES
            && round_trip.is_some_and(|round_trip| now.saturating_duration_since(since.instant()) <= 2 * round_trip);
    }

    /// Gives back what an idle session doesn't need.
    pub fn on_idle_moment(&mut self, now: Instant) {
        let since = self.measured_from.map(|(since, _)| since.instant());
        if since.is_some_and(|since| now.saturating_duration_since(since) > SHRINK_AFTER) {
            self.window = BASE_WINDOW_BYTES;
            self.measured_from = None;
            self.growth_wanted = false;
        }
        self.inbox.release_memory();
        self.outbox.release_memory();
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
            Some(end) => end.get() - self.credit,
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
            self.credit = end.get();
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

    /// An ACK goes with what is being written anyway, unless one for every message of a quick conversation would.
    #[must_use]
    pub fn ack_rides(&self, now: Instant) -> bool {
        match self.ack {
            AckDue::No => false,
            AckDue::Now => true,
            AckDue::By(due) => {
                now + (ACK_DELAY - ACK_REST) >= due.instant() || self.inbox.taken - self.acked >= RIPE_BYTES
            }
        }
    }

    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        match self.ack {
            AckDue::By(due) => Some(due),
            AckDue::No | AckDue::Now => None,
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|due| now >= due.instant()) {
            self.ack = AckDue::Now;
        }
    }

    /// The pending ACK, as it is now.
    pub fn encode_ack(&mut self, out: &mut Vec<u8>) {
        let grown = self.inbox.taken + self.window;
        self.credit = self.credit.max(grown);
        self.extension = self.extension.filter(|end| end.get() > self.credit);
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
