//! What arrived: messages, until our application took them.

use std::mem::{self, MaybeUninit};
use std::ops::Range;

use super::{KEPT_BYTES, SessionError, TOTAL_BYTES, wire_bytes};
use crate::proto::frame::{Fields, Frame, HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES, header};
use crate::proto::placing::Placing;

/// What was taken is moved out of a buffer only from here up.
const WORTH_MOVING_BYTES: usize = 64 * 1024;

/// What arrived and wasn't taken.
#[derive(Debug, Default)]
pub struct Inbox {
    pub(super) received: u64,
    pub(super) taken: u64,
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
    /// The oldest messages that came in a session which is no more: to take them is nobody's concern.
    orphans: u64,
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
    pub(super) fn has_untaken(&self) -> bool {
        self.stock.as_ref().is_some_and(|stock| stock.taken_at < stock.complete)
    }

    pub(super) fn push(&mut self, frame: Frame<'_>, credit: u64, largest: u64) -> Result<(), SessionError> {
        let end = self.received.saturating_add(frame.wire.len() as u64);
        if end > credit {
            return Err(SessionError::BeyondCredit { end, credit });
        }
        self.stock.get_or_insert_default().push(frame, largest)?;
        self.received = end;
        Ok(())
    }

    /// Where the offset will be when the message begun is whole.
    pub(super) fn end_of_begun(&self) -> Option<u64> {
        let missing = self.stock.as_ref().map_or(0, |stock| stock.missing);
        let frames = missing.div_ceil(MAX_PAYLOAD_BYTES as u64);
        (missing > 0).then(|| self.received.saturating_add(missing).saturating_add(frames * HEADER_BYTES as u64))
    }

    /// Once it has credit; before, a length that was only claimed costs nothing.
    pub(super) fn make_room_for_begun(&mut self) {
        if let Some(stock) = &mut self.stock {
            stock.bytes.reserve(usize::try_from(stock.missing).unwrap_or_default());
        }
    }

    /// The next whole message; it stays here until it is taken.
    pub(super) fn read(&mut self) -> Option<&[u8]> {
        self.stock.as_mut()?.read()
    }

    pub(super) fn begun(&self, begun: &[u8]) -> Option<Placing> {
        self.stock.as_ref()?.begun(begun)
    }

    pub(super) fn place_begun(&mut self, begun: &[u8], room: &mut [MaybeUninit<u8>]) -> Option<Placing> {
        self.stock.as_mut()?.place_begun(begun, room)
    }

    /// A frame of the message begun came elsewhere, with so much payload. The last one takes the message.
    pub(super) fn on_placed(&mut self, payload: usize) {
        if let Some(stock) = &mut self.stock {
            self.received = self.received.saturating_add((HEADER_BYTES + payload) as u64);
            self.taken += stock.on_placed(payload);
        }
    }

    pub(super) fn take_back(&mut self, room: &[u8]) {
        if let Some(stock) = &mut self.stock {
            stock.take_back(room);
        }
    }

    /// The oldest of what was read is taken; at most `messages`. How many it were.
    pub(super) fn take(&mut self, messages: usize) -> usize {
        let Some(stock) = &mut self.stock else { return 0 };
        let (count, bytes) = stock.take(messages);
        self.taken += bytes;
        count
    }

    /// Another session begins, without the message begun; whole ones are still the program's to take.
    pub(super) fn restart(&mut self) {
        (self.received, self.taken) = (0, 0);
        self.trim();
        if let Some(stock) = &mut self.stock {
            stock.orphans = stock.count();
        }
    }

    pub(super) fn trim(&mut self) {
        if !self.has_untaken() {
            self.stock = None;
        }
        if let Some(stock) = &mut self.stock {
            stock.trim();
        }
    }

    pub(super) fn discard(&mut self) -> u64 {
        self.stock.as_mut().map_or(0, |stock| stock.discard())
    }

    pub(super) fn release_memory(&mut self) {
        if self.buffered_bytes() == 0 {
            self.stock = None;
        }
    }
}

impl Stock {
    pub(super) fn push(&mut self, frame: Frame<'_>, largest: u64) -> Result<(), SessionError> {
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

    pub(super) fn read(&mut self) -> Option<&[u8]> {
        let message = self.message_at(self.read_at)?;
        self.read_at = message.end;
        self.messages -= 1;
        Some(&self.bytes[message])
    }

    /// Whole messages that weren't taken.
    fn count(&self) -> u64 {
        let (mut count, mut start) = (0, self.taken_at);
        while let Some(message) = self.message_at(start) {
            count += 1;
            start = message.end;
        }
        count
    }

    /// Nothing comes any more: keeps the whole messages that the program hasn't taken, and no room for others.
    pub(super) fn trim(&mut self) {
        self.bytes.truncate(self.complete);
        self.bytes.drain(..self.taken_at);
        self.bytes.shrink_to_fit();
        self.read_at -= self.taken_at;
        self.complete -= self.taken_at;
        (self.taken_at, self.missing, self.placed) = (0, 0, 0);
    }

    /// The message begun, if nothing is here but that, and `begun` of its next frame.
    pub(super) fn begun(&self, begun: &[u8]) -> Option<Placing> {
        let (total, here) = self.bytes.get(self.complete + HEADER_BYTES..)?.split_first_chunk::<TOTAL_BYTES>()?;
        let is_alone = self.missing > 0 && self.taken_at == self.complete;
        let length = usize::try_from(u64::from_be_bytes(*total)).ok().filter(|_| is_alone)?;
        Placing::new(length, self.placed + here.len(), begun)
    }

    /// What is here of it moves to its place in `room`.
    pub(super) fn place_begun(&mut self, begun: &[u8], room: &mut [MaybeUninit<u8>]) -> Option<Placing> {
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
    pub(super) fn on_placed(&mut self, payload: usize) -> u64 {
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
    pub(super) fn take_back(&mut self, room: &[u8]) {
        let placed = &room[..mem::take(&mut self.placed).min(room.len())];
        let content = (self.complete + HEADER_BYTES + TOTAL_BYTES).min(self.bytes.len());
        self.bytes.splice(content..content, placed.iter().copied());
    }

    /// What the program hasn't taken it never will. How many messages it were.
    pub(super) fn discard(&mut self) -> u64 {
        let mut count = self.messages;
        while let Some(message) = self.message_at(self.taken_at).filter(|message| message.end <= self.read_at) {
            self.taken_at = message.end;
            count += 1;
        }
        (self.messages, self.orphans) = (0, 0);
        (self.taken_at, self.read_at) = (self.complete, self.complete);
        count
    }

    /// How many were taken, and how far the offset went by it.
    pub(super) fn take(&mut self, messages: usize) -> (usize, u64) {
        let (mut count, mut taken) = (0, 0);
        while count < messages {
            let Some(message) = self.message_at(self.taken_at).filter(|message| message.end <= self.read_at) else {
                break;
            };
            match self.orphans {
                0 => taken += wire_bytes(message.len() as u64),
                _ => self.orphans -= 1,
            }
            self.taken_at = message.end;
            count += 1;
        }
        self.clear_taken();
        (count, taken)
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
