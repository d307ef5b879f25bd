//! What we send: wire bytes, until the peer's application took them.

use std::mem;

use super::{KEPT_BYTES, SendError, SessionError, TOTAL_BYTES, wire_bytes};
use crate::proto::frame::{HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES, header, put_header};
use crate::proto::handshake::{MIN_WINDOW_BYTES, Position};

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
    /// A frame's start at or before `sent`, or `sent` itself where the rest of a frame has no link.
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
    pub(super) fn check(&self, length: usize, bound: usize, largest: u64) -> Result<usize, SendError> {
        let length = length as u64;
        if length > largest {
            return Err(SendError::TooLarge { length, largest });
        }
        let buffered = self.untaken_bytes();
        let wire = usize::try_from(wire_bytes(length)).unwrap_or(usize::MAX);
        if buffered > 0 && buffered.saturating_add(wire) > bound {
            return Err(SendError::Full { buffered, bound });
        }
        Ok(wire)
    }

    /// Appends one message, framed.
    pub(super) fn push(&mut self, message: &[u8], bound: usize, largest: u64) -> Result<(), SendError> {
        let wire = self.check(message.len(), bound, largest)?;
        let flight = self.flight.get_or_insert_with(|| Box::new(Flight::new(self.taken)));
        flight.make_room(self.taken, wire);
        flight.push(message);
        Ok(())
    }

    /// Appends one message that was framed before, and takes it from `framed`: without a copy where nothing is before it.
    pub(super) fn push_framed(&mut self, framed: &mut Framed, bound: usize, largest: u64) -> Result<(), SendError> {
        let wire = self.check(framed.length, bound, largest)?;
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

    /// Something was handed to the kernel, and isn't known to be taken.
    pub(super) fn is_doubtful(&self) -> bool {
        self.sent() > self.taken
    }

    /// A frame that was cut short isn't finished: the link is no more that had its beginning.
    pub(super) fn forget_tail(&mut self) {
        if let Some(flight) = &mut self.flight {
            flight.boundary = flight.sent;
        }
    }

    /// The peer has said the last word about what it took.
    pub(super) fn on_final_word(&mut self) {
        let taken = self.taken;
        if let Some(flight) = &mut self.flight {
            flight.rewind(taken);
        }
    }

    /// Whether the session can go on where the peer states that it is. `None` if it lacks what was forgotten here; else how
    /// many messages go again, as a whole or in part.
    pub(super) fn check_position(&self, position: Position) -> Result<Option<u64>, SessionError> {
        let Position { received, taken, .. } = position;
        let sent = self.sent();
        if received > sent {
            return Err(SessionError::ReceivedBeyondSent { received, sent });
        }
        if received < self.taken {
            return Ok(None);
        }
        if taken < self.taken {
            return Err(SessionError::TakenBackwards { before: self.taken, taken });
        }
        let Some(flight) = &self.flight else { return Ok(Some(0)) };
        flight.count_messages(self.taken, taken)?;
        flight.count_again(taken, received, sent).map(Some)
    }

    /// The session goes on where the peer is, once that was checked.
    pub(super) fn resume(&mut self, position: Position) -> Result<(), SessionError> {
        let Position { received, taken, window } = position;
        if let Some(flight) = &mut self.flight {
            flight.on_taken(self.taken, taken)?;
            flight.rewind(received);
        }
        (self.taken, self.credit) = (taken, received + window);
        Ok(())
    }

    /// Another session begins: what wasn't taken in the one before goes from its start. False, and nothing has changed, if the
    /// peer doesn't take messages that are so large.
    #[must_use]
    pub(super) fn restart(&mut self, credit: u64, largest: u64) -> bool {
        if let Some(flight) = &mut self.flight {
            if flight.largest_message(self.taken) > largest {
                return false;
            }
            flight.bytes.drain(..flight.at(self.taken));
            flight.start = 0;
            flight.rewind(0);
        }
        (self.taken, self.credit) = (0, credit);
        true
    }

    /// Gives each message that isn't known to be taken, in order.
    pub(super) fn for_each_untaken(&self, mut show: impl FnMut(Vec<u8>)) {
        let Some(flight) = &self.flight else { return };
        let mut message = Vec::new();
        // What was given up is behind.
        let mut offset = self.taken.max(flight.start);
        while let Some((end, kind, payload)) = flight.frame(offset) {
            message.extend_from_slice(if kind == Kind::DataStart as u8 { &payload[TOTAL_BYTES..] } else { payload });
            if kind == Kind::DataEnd as u8 {
                show(mem::take(&mut message));
            }
            offset = end;
        }
    }

    /// Nothing is added any more: no room is kept for it.
    pub(super) fn trim(&mut self) {
        self.release_memory();
        if let Some(flight) = &mut self.flight {
            // What was given up is behind.
            let kept = self.taken.max(flight.start);
            flight.bytes.drain(..flight.at(kept));
            flight.bytes.shrink_to_fit();
            flight.start = kept;
        }
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

    /// The next to be sent is what starts at `offset`, where a frame does.
    fn rewind(&mut self, offset: u64) {
        (self.sent, self.boundary, self.allowed) = (offset, offset, offset);
    }

    /// The frame at `offset`: where it ends, its kind and its payload.
    fn frame(&self, offset: u64) -> Option<(u64, u8, &[u8])> {
        let at = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        let bytes = self.bytes.get(at..)?;
        let (length, kind) = header(bytes)?;
        Some((offset + (HEADER_BYTES + length) as u64, kind, bytes.get(HEADER_BYTES..HEADER_BYTES + length)?))
    }

    /// How many messages lie between two offsets, the first of which is between two messages; so must the second be.
    fn count_messages(&self, from: u64, to: u64) -> Result<u64, SessionError> {
        let (mut offset, mut messages) = (from, 0);
        while offset < to {
            let (end, kind, _) = self.frame(offset).ok_or(SessionError::TakenInsideMessage { taken: to })?;
            let is_last = kind == Kind::DataEnd as u8;
            messages += u64::from(is_last);
            if end > to || (end == to && !is_last) {
                return Err(SessionError::TakenInsideMessage { taken: to });
            }
            offset = end;
        }
        Ok(messages)
    }

    /// How many messages were sent up to `sent`, as a whole or in part, and go again from `received` on, where a frame
    /// has to end. `from` is between two messages.
    fn count_again(&self, from: u64, received: u64, sent: u64) -> Result<u64, SessionError> {
        let (mut offset, mut messages) = (from, 0);
        let mut is_inside = false;
        while offset < sent {
            let Some((end, kind, _)) = self.frame(offset) else { break };
            if offset < received && end > received {
                return Err(SessionError::ReceivedInsideFrame { received });
            }
            let is_last = kind == Kind::DataEnd as u8;
            if end > received {
                messages += u64::from(is_last);
                is_inside = !is_last;
            }
            offset = end;
        }
        Ok(messages + u64::from(is_inside))
    }

    /// The length of the largest message from `offset` on.
    fn largest_message(&self, mut offset: u64) -> u64 {
        let (mut largest, mut length) = (0, 0);
        while let Some((end, kind, payload)) = self.frame(offset) {
            length += payload.len() - if kind == Kind::DataStart as u8 { TOTAL_BYTES } else { 0 };
            if kind == Kind::DataEnd as u8 {
                largest = largest.max(mem::take(&mut length));
            }
            offset = end;
        }
        largest as u64
    }

    /// Forgets what the peer's application took since `before`, which ends with a message.
    fn on_taken(&mut self, before: u64, taken: u64) -> Result<(), SessionError> {
        self.messages -= self.count_messages(before, taken)?;
        self.boundary = self.boundary.max(taken);
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
