//! Framings for plain peers, which don't speak our protocol: raw bytes, lines, length-prefixed messages; and the
//! heartbeat bytes of the protocol at hand: what to send, what to swallow.

use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    Big,
    Little,
}

/// The bytes that end a line that we send; what we receive ends with `\n` in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnd {
    Lf,
    CrLf,
}

impl LineEnd {
    fn bytes(self) -> &'static [u8] {
        match self {
            Self::Lf => b"\n",
            Self::CrLf => b"\r\n",
        }
    }
}

/// The number before each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthPrefix {
    /// Bytes of the number, 1 to 8.
    pub size: u8,
    pub byte_order: ByteOrder,
    /// The number counts its own bytes, too.
    pub counts_itself: bool,
}

impl LengthPrefix {
    fn bytes(self) -> usize {
        usize::from(self.size)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Raw,
    /// A line is received with its end; the last one of a stream may have none.
    Lines(LineEnd),
    LengthPrefixed(LengthPrefix),
}

/// What keeps a plain connection alive. Both are messages as the framing has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatBytes {
    /// Sent every interval, between messages; empty: nothing.
    pub send: Vec<u8>,
    /// Messages that are counted as heartbeats and not given to the program: the peer's own, and its answers to ours.
    pub swallow: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecConfigError {
    #[error("a length prefix of {size} bytes, it must be 1 to 8")]
    PrefixSize { size: u8 },
    /// Where a message begins and ends in a raw stream nobody knows.
    #[error("a raw stream has no messages that could be swallowed")]
    SwallowRaw,
    #[error("the heartbeat can't be sent: {0}")]
    Heartbeat(#[from] EncodeError),
}

/// The caller's message doesn't fit the framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("message of {length} bytes, the largest is {largest}")]
    TooLarge { length: usize, largest: u64 },
    #[error("a line end at byte {at}, inside the line")]
    LineEndInside { at: usize },
}

/// The peer's bytes don't fit the framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("a message of {length} bytes or more, at most {largest} are allowed")]
    TooLarge { length: u64, largest: usize },
    #[error("a length of {length}, less than its own {size} bytes")]
    LengthTooSmall { length: u64, size: usize },
    #[error("the stream ended inside a message, {missing} bytes short")]
    Cut { missing: u64 },
}

/// Cuts a plain peer's stream into messages.
#[derive(Debug)]
pub struct Codec {
    framing: Framing,
    largest: usize,
    heartbeat: HeartbeatBytes,
    buffer: Vec<u8>,
    /// Where the next message begins, and up to where no line end was found.
    head: usize,
    searched: usize,
    /// The next message, once it is known to be whole: how long its prefix is, and itself. A raw stream has none.
    found: Option<(usize, usize)>,
    has_ended: bool,
    heartbeats_heard: u64,
}

impl Codec {
    pub fn new(
        framing: Framing,
        largest_message_bytes: usize,
        heartbeat: HeartbeatBytes,
    ) -> Result<Self, CodecConfigError> {
        if let Framing::LengthPrefixed(prefix) = framing
            && !(1..=8).contains(&prefix.size)
        {
            return Err(CodecConfigError::PrefixSize { size: prefix.size });
        }
        if framing == Framing::Raw && !heartbeat.swallow.is_empty() {
            return Err(CodecConfigError::SwallowRaw);
        }
        let codec = Self {
            framing,
            largest: largest_message_bytes,
            heartbeat,
            buffer: Vec::new(),
            head: 0,
            searched: 0,
            found: None,
            has_ended: false,
            heartbeats_heard: 0,
        };
        codec.encode_heartbeat(&mut Vec::new())?;
        Ok(codec)
    }

    /// Appends a message as it goes on the wire. A line gets its end if it has none.
    pub fn encode(&self, message: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let length = message.len();
        if length > self.largest {
            return Err(EncodeError::TooLarge { length, largest: self.largest as u64 });
        }
        match self.framing {
            Framing::Raw => out.extend_from_slice(message),
            Framing::Lines(end) => {
                let at = message.iter().position(|byte| *byte == b'\n');
                if let Some(at) = at.filter(|at| at + 1 < length) {
                    return Err(EncodeError::LineEndInside { at });
                }
                out.extend_from_slice(message);
                if at.is_none() {
                    out.extend_from_slice(end.bytes());
                }
            }
            Framing::LengthPrefixed(prefix) => {
                let number = length as u64 + if prefix.counts_itself { prefix.bytes() as u64 } else { 0 };
                let largest = u64::MAX >> (64 - 8 * prefix.bytes());
                if number > largest {
                    return Err(EncodeError::TooLarge { length, largest });
                }
                match prefix.byte_order {
                    ByteOrder::Big => out.extend_from_slice(&number.to_be_bytes()[8 - prefix.bytes()..]),
                    ByteOrder::Little => out.extend_from_slice(&number.to_le_bytes()[..prefix.bytes()]),
                }
                out.extend_from_slice(message);
            }
        }
        Ok(())
    }

    /// Appends the heartbeat as it goes on the wire, if there is one.
    pub fn encode_heartbeat(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if self.heartbeat.send.is_empty() { Ok(()) } else { self.encode(&self.heartbeat.send, out) }
    }

    /// Bytes that the peer sent.
    pub fn handle_input(&mut self, input: &[u8]) {
        if self.head > 0 && self.head >= self.buffer.len() / 2 {
            self.buffer.drain(..self.head);
            self.searched = self.searched.saturating_sub(self.head);
            self.head = 0;
        }
        self.buffer.extend_from_slice(input);
    }

    /// The peer's end of stream.
    pub fn handle_end(&mut self) {
        self.has_ended = true;
    }

    /// Bytes that wait to be read.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len() - self.head
    }

    /// Heartbeats that were swallowed.
    #[must_use]
    pub fn heartbeats_heard(&self) -> u64 {
        self.heartbeats_heard
    }

    /// Whether a message can be read. Heartbeats before it are swallowed.
    pub fn has_message(&mut self) -> Result<bool, DecodeError> {
        while self.found.is_none() {
            let found = match self.framing {
                Framing::Raw => return Ok(self.buffered_bytes() > 0),
                Framing::Lines(_) => self.find_line()?,
                Framing::LengthPrefixed(prefix) => self.find_prefixed(prefix)?,
            };
            let Some((prefix, length)) = found else { return Ok(false) };
            let start = self.head + prefix;
            if self.is_heartbeat(start..start + length) {
                self.heartbeats_heard += 1;
                self.pass(start + length);
            } else {
                self.found = found;
            }
        }
        Ok(true)
    }

    /// Takes the next message, of a raw stream at most `at_most` bytes; [`Codec::bytes`] has it until more comes in.
    /// `None`: more is needed, or the stream is over.
    pub fn take(&mut self, at_most: usize) -> Result<Option<Range<usize>>, DecodeError> {
        if !self.has_message()? {
            return Ok(None);
        }
        let (prefix, length) = self.found.take().unwrap_or_else(|| (0, self.buffered_bytes().min(at_most)));
        let start = self.head + prefix;
        self.pass(start + length);
        Ok(Some(start..start + length))
    }

    #[must_use]
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// [`Codec::take`] and [`Codec::bytes`] in one.
    pub fn read(&mut self, at_most: usize) -> Result<Option<&[u8]>, DecodeError> {
        Ok(self.take(at_most)?.map(|range| self.bytes(range)))
    }

    /// Gives an empty buffer back.
    pub fn release_memory(&mut self) {
        if self.buffered_bytes() == 0 {
            self.discard();
        }
    }

    /// Nothing more comes in: no room is kept for it.
    pub fn trim(&mut self) {
        self.buffer.drain(..self.head);
        self.buffer.shrink_to_fit();
        self.searched = self.searched.saturating_sub(self.head);
        self.head = 0;
    }

    /// What waits to be read never will be.
    pub fn discard(&mut self) {
        self.buffer = Vec::new();
        self.head = 0;
        self.searched = 0;
        self.found = None;
    }

    fn pass(&mut self, end: usize) {
        self.head = end;
        self.searched = end;
    }

    /// A line is compared without its end.
    fn is_heartbeat(&self, range: Range<usize>) -> bool {
        let bare = |message: &'_ [u8]| -> usize {
            match self.framing {
                Framing::Lines(_) => message.trim_ascii_end().len(),
                Framing::Raw | Framing::LengthPrefixed(_) => message.len(),
            }
        };
        let message = &self.buffer[range];
        let message = &message[..bare(message)];
        self.heartbeat.swallow.iter().any(|swallow| swallow[..bare(swallow)] == *message)
    }

    fn find_line(&mut self) -> Result<Option<(usize, usize)>, DecodeError> {
        let from = self.searched.max(self.head);
        let end = self.buffer[from..].iter().position(|byte| *byte == b'\n').map(|at| from + at + 1);
        self.searched = self.buffer.len();
        let length = end.unwrap_or(self.buffer.len()) - self.head;
        if length > self.largest {
            return Err(DecodeError::TooLarge { length: length as u64, largest: self.largest });
        }
        // What a stream ends with is a line, too.
        Ok((end.is_some() || (self.has_ended && length > 0)).then_some((0, length)))
    }

    fn find_prefixed(&self, prefix: LengthPrefix) -> Result<Option<(usize, usize)>, DecodeError> {
        let buffered = &self.buffer[self.head..];
        let Some(number) = buffered.get(..prefix.bytes()) else {
            return self.wait_for(prefix.bytes() as u64);
        };
        let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        let number = match prefix.byte_order {
            ByteOrder::Big => number.iter().fold(0, fold),
            ByteOrder::Little => number.iter().rev().fold(0, fold),
        };
        let own = if prefix.counts_itself { prefix.bytes() as u64 } else { 0 };
        let Some(length) = number.checked_sub(own) else {
            return Err(DecodeError::LengthTooSmall { length: number, size: prefix.bytes() });
        };
        if length > self.largest as u64 {
            return Err(DecodeError::TooLarge { length, largest: self.largest });
        }
        let whole = length + prefix.bytes() as u64;
        if (buffered.len() as u64) < whole {
            return self.wait_for(whole);
        }
        Ok(Some((prefix.bytes(), usize::try_from(length).unwrap_or_default())))
    }

    /// More is needed, which the end of the stream makes impossible; an end between messages is fine.
    fn wait_for(&self, whole: u64) -> Result<Option<(usize, usize)>, DecodeError> {
        let buffered = self.buffered_bytes() as u64;
        if self.has_ended && buffered > 0 {
            return Err(DecodeError::Cut { missing: whole - buffered });
        }
        Ok(None)
    }
}
