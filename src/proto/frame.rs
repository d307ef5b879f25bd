//! Bytes <-> frames, with limits that hold before anything is buffered. The layouts are in docs/SPEC.md.

use std::fmt;

/// What each side opens with.
pub const PREAMBLE: [u8; 8] = *b"LONGCONN";
pub const HEADER_BYTES: usize = 4;
/// The largest payload of any frame, and the payload of every fragment of a message but its last.
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024;
/// Who doesn't know a kind from here up skips it.
const FIRST_IGNORABLE_KIND: u8 = 0x80;
/// How much of what a stranger said is kept to be shown.
const SHOWN_BYTES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Hello = 1,
    Welcome = 2,
    DataStart = 3,
    Data = 4,
    DataEnd = 5,
    Ack = 6,
    Beat = 7,
    Close = 8,
    /// Ignorable, so that it may be new.
    Want = FIRST_IGNORABLE_KIND,
}

impl Kind {
    #[must_use]
    pub fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::DataStart,
            4 => Self::Data,
            5 => Self::DataEnd,
            6 => Self::Ack,
            7 => Self::Beat,
            8 => Self::Close,
            FIRST_IGNORABLE_KIND => Self::Want,
            _ => return None,
        })
    }

    #[must_use]
    pub fn max_payload_bytes(self) -> usize {
        match self {
            Self::Hello => 4 * 1024,
            Self::Welcome => 1024,
            _ => MAX_PAYLOAD_BYTES,
        }
    }
}

/// A whole frame, header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: Kind,
    pub wire: &'a [u8],
}

impl<'a> Frame<'a> {
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.wire.get(HEADER_BYTES..).unwrap_or_default()
    }
}

/// What the peer said isn't a frame, or not one that may come here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("not a longconn peer: it said {}{}", Shown(said), hint(said))]
    NotLongconn { said: Vec<u8> },
    #[error("unknown frame kind {kind:#04x}")]
    UnknownKind { kind: u8 },
    #[error("frame kind {kind:#04x} came before the handshake")]
    BeforeHandshake { kind: u8 },
    #[error("{kind:?} of {length} bytes, at most {limit} are allowed")]
    TooLarge { kind: Kind, length: usize, limit: usize },
    #[error("ignorable frame kind {kind:#04x} of {length} bytes, at most {MAX_PAYLOAD_BYTES} are allowed")]
    IgnorableTooLarge { kind: u8, length: usize },
}

/// Bytes as Python shows them.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "b'{}'", self.0.escape_ascii())
    }
}

/// What to do. A record of TLS begins so (RFC 8446, section 5.1).
fn hint(said: &[u8]) -> &'static str {
    match said {
        [20..=23, 3, ..] => ", which is TLS: both sides have to be told of it (tls=...), or neither",
        _ => "; to talk with any TCP program say framing=...",
    }
}

/// The length and the kind of the frame that `bytes` starts with, if its header is there.
#[must_use]
pub(super) fn header(bytes: &[u8]) -> Option<(usize, u8)> {
    let &[high, middle, low, kind, ..] = bytes else { return None };
    Some((u32::from_be_bytes([0, high, middle, low]) as usize, kind))
}

/// Appends one frame, its payload written by `payload`.
pub(super) fn put_frame(out: &mut Vec<u8>, kind: Kind, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put_header(out, kind, 0);
    payload(out);
    let length = out.len() - start - HEADER_BYTES;
    debug_assert!(length <= kind.max_payload_bytes());
    out[start..start + HEADER_BYTES].copy_from_slice(&header_bytes(kind, length));
}

pub(super) fn put_header(out: &mut Vec<u8>, kind: Kind, length: usize) {
    out.extend_from_slice(&header_bytes(kind, length));
}

pub(super) fn header_bytes(kind: Kind, length: usize) -> [u8; HEADER_BYTES] {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [length[1], length[2], length[3], kind as u8]
}

/// Cuts what the peer says into frames, however it is split. Holds at most one frame that isn't whole yet.
#[derive(Debug)]
pub struct Decoder {
    /// What there is of a frame, or of the preamble, that isn't whole in one input.
    buffer: Vec<u8>,
    /// The buffer's frame was given out; it is cleared at the next call.
    given_out: bool,
    /// Bytes to come of a frame that nobody wants.
    skipping: u32,
    preamble_seen: bool,
    /// The only kind, beside CLOSE, that may come first; `None` once it came.
    first: Option<Kind>,
}

impl Decoder {
    #[must_use]
    pub fn new(first: Kind) -> Self {
        Self { buffer: Vec::new(), given_out: false, skipping: 0, preamble_seen: false, first: Some(first) }
    }

    /// Eats the preamble from the front of `input`; true once it is there, whole.
    pub fn preamble(&mut self, input: &mut &[u8]) -> Result<bool, FrameError> {
        if self.preamble_seen {
            return Ok(true);
        }
        let (head, rest) = input.split_at(input.len().min(PREAMBLE.len() - self.buffer.len()));
        self.buffer.extend_from_slice(head);
        if !PREAMBLE.starts_with(&self.buffer) {
            let mut said = std::mem::take(&mut self.buffer);
            said.extend(rest.iter().take(SHOWN_BYTES - said.len()));
            return Err(FrameError::NotLongconn { said });
        }
        *input = rest;
        self.preamble_seen = self.buffer.len() == PREAMBLE.len();
        if self.preamble_seen {
            self.buffer.clear();
        }
        Ok(self.preamble_seen)
    }

    /// The next whole frame. `None`: everything of `input` was eaten, and more is needed. To be called only after
    /// the preamble was seen.
    pub fn next<'d, 'i: 'd>(&'d mut self, input: &mut &'i [u8]) -> Result<Option<Frame<'d>>, FrameError> {
        if self.given_out {
            self.given_out = false;
            self.buffer.clear();
        }
        loop {
            if self.skipping > 0 {
                let skipped = input.len().min(self.skipping as usize);
                *input = &input[skipped..];
                self.skipping -= skipped as u32;
            }
            if !self.buffer.is_empty() {
                self.fill(HEADER_BYTES, input);
            }
            let at_front = if self.buffer.is_empty() { *input } else { &self.buffer };
            let Some((length, number)) = header(at_front) else {
                self.buffer.extend_from_slice(input);
                *input = &[];
                return Ok(None);
            };
            let Some(kind) = self.admit(length, number)? else {
                if self.buffer.is_empty() {
                    *input = &input[HEADER_BYTES..];
                }
                self.buffer.clear();
                self.skipping = length as u32;
                continue;
            };
            let whole = HEADER_BYTES + length;
            if self.buffer.is_empty()
                && let Some((wire, rest)) = input.split_at_checked(whole)
            {
                *input = rest;
                self.first = None;
                return Ok(Some(Frame { kind, wire }));
            }
            self.fill(whole, input);
            if self.buffer.len() < whole {
                return Ok(None);
            }
            self.given_out = true;
            self.first = None;
            return Ok(Some(Frame { kind, wire: &self.buffer }));
        }
    }

    /// True if the peer has begun a frame, or the preamble, and not finished it.
    #[must_use]
    pub fn is_inside_frame(&self) -> bool {
        self.skipping > 0 || !(self.buffer.is_empty() || self.given_out)
    }

    /// What there is of a frame that isn't whole; `None` where that is being skipped.
    pub(super) fn begun(&self) -> Option<&[u8]> {
        match (self.skipping, self.given_out) {
            (0, true) => Some(&[]),
            (0, false) => Some(&self.buffer),
            _ => None,
        }
    }

    /// Somebody else has taken over what [`Decoder::begun`] gave.
    pub(super) fn forget_begun(&mut self) {
        self.given_out = false;
        self.buffer.clear();
    }

    /// Gives memory back that isn't in use.
    pub fn release_memory(&mut self) {
        if !self.is_inside_frame() {
            self.given_out = false;
            self.buffer = Vec::new();
        }
    }

    /// The kind, if the frame may come; `None` if it is to be skipped.
    fn admit(&self, length: usize, number: u8) -> Result<Option<Kind>, FrameError> {
        let kind = Kind::from_wire(number);
        if let Some(first) = self.first
            && kind != Some(first)
            && kind != Some(Kind::Close)
        {
            return Err(FrameError::BeforeHandshake { kind: number });
        }
        match kind {
            Some(kind) if length > kind.max_payload_bytes() => {
                Err(FrameError::TooLarge { kind, length, limit: kind.max_payload_bytes() })
            }
            Some(kind) => Ok(Some(kind)),
            None if number < FIRST_IGNORABLE_KIND => Err(FrameError::UnknownKind { kind: number }),
            None if length > MAX_PAYLOAD_BYTES => Err(FrameError::IgnorableTooLarge { kind: number, length }),
            None => Ok(None),
        }
    }

    /// Moves bytes from `input` until the buffer holds `wanted`, as far as they are there.
    fn fill(&mut self, wanted: usize, input: &mut &[u8]) {
        let (head, rest) = input.split_at(input.len().min(wanted.saturating_sub(self.buffer.len())));
        self.buffer.extend_from_slice(head);
        *input = rest;
    }
}

/// A payload, read field by field from its front.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    pub(super) fn text(&mut self, length: usize) -> Option<&'a str> {
        std::str::from_utf8(self.bytes(length)?).ok()
    }

    /// What is left must be whole type-length-values: a type and a length of two bytes each, and so many bytes.
    pub(super) fn skip_extensions(mut self) -> Option<()> {
        while !self.0.is_empty() {
            let _type = self.u16()?;
            let length = self.u16()?;
            self.bytes(length.into())?;
        }
        Some(())
    }
}
