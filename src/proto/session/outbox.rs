//! What we send: wire bytes, until the peer's application took them.

use std::mem;

use super::{KEPT_BYTES, SendError, SessionError, TOTAL_BYTES, wire_bytes};
use crate::proto::frame::{HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES, header, put_header};
use crate::proto::handshake::MIN_WINDOW_BYTES;

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
    pub(super) taken: u64,
    pub(super) credit: u64,
    pub(super) largest: u64,
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
    pub(super) fn end(&self) -> u64 {
        self.flight.as_ref().map_or(self.taken, |flight| flight.end())
    }

    pub(super) fn sent(&self) -> u64 {
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
    pub(super) fn check(&self, length: usize, bound: usize) -> Result<usize, SendError> {
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
    pub(super) fn push(&mut self, message: &[u8], bound: usize) -> Result<(), SendError> {
        let wire = self.check(message.len(), bound)?;
        let flight = self.flight.get_or_insert_with(|| Box::new(Flight::new(self.taken)));
        flight.make_room(self.taken, wire);
        flight.push(message);
        Ok(())
    }

    /// Appends one message that was framed before, and takes it from `framed`: without a copy where nothing is before it.
    pub(super) fn push_framed(&mut self, framed: &mut Framed, bound: usize) -> Result<(), SendError> {
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

    pub(super) fn on_sent(&mut self, bytes: usize) {
        if let Some(flight) = &mut self.flight {
            flight.sent = (flight.sent + bytes as u64).min(flight.end());
        }
    }

    /// Takes an acknowledgement. True if something was newly taken.
    pub(super) fn handle_ack(&mut self, taken: u64, credit: u64) -> Result<bool, SessionError> {
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

    pub(super) fn abandon(&mut self) {
        self.release_memory();
        if let Some(flight) = &mut self.flight {
            flight.abandon();
        }
    }

    pub(super) fn release_memory(&mut self) {
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

    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub(super) fn push(&mut self, message: &[u8]) {
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
    pub(super) fn abandon(&mut self) {
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
