//! Where the bytes of a message that has begun lie in the stream, for who reads them straight into their place.
//!
//! A message's form follows from its length, so what comes is foreseen: the rest of a payload, then a header of four bytes and
//! a payload, again and again. Where another frame comes instead, what was read behind it lies in wrong places: it is
//! gathered, and goes the usual way.

use std::iter;
use std::mem::{self, MaybeUninit};

use super::frame::{HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES, header_bytes};

/// Frames for one read: half a megabyte.
const MOST_FRAMES: usize = 32;
/// Room for the headers of one read.
pub const HEADERS_BYTES: usize = MOST_FRAMES * HEADER_BYTES;

/// How far a message has come that is assembled elsewhere.
#[derive(Debug)]
pub struct Placing {
    length: usize,
    /// Bytes in their place.
    filled: usize,
    /// The payload of the frame begun, and how much of it is to come; nothing at a frame's boundary.
    payload: usize,
    left: usize,
    /// What there is of the header of the next frame.
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
}

/// What comes, in this order.
enum Piece {
    Content(usize),
    Header(usize),
}

/// What came of what was foreseen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Placed {
    /// All of it, in whole or in part.
    AsForeseen,
    /// Another frame came; here it is, with all that was read behind it.
    Otherwise(Vec<u8>),
}

impl Placing {
    /// `filled` bytes of `length` have come, in whole frames, and `begun` is there of the next one, whose content is to follow
    /// them. `None` if that is another frame.
    pub(super) fn new(length: usize, filled: usize, begun: &[u8]) -> Option<Self> {
        let mut placing = Self { length, filled, payload: 0, left: 0, header: [0; HEADER_BYTES], header_bytes: 0 };
        let (header, content) = begun.split_at(begun.len().min(HEADER_BYTES));
        placing.take_header(header);
        if header.len() == HEADER_BYTES {
            placing.begin_frame()?;
            placing.left = placing.payload.checked_sub(content.len())?;
            placing.filled += content.len();
        }
        Some(placing)
    }

    /// The frame behind so much content.
    fn next(&self, at: usize) -> (Kind, usize) {
        let rest = self.length - at;
        if rest > MAX_PAYLOAD_BYTES { (Kind::Data, MAX_PAYLOAD_BYTES) } else { (Kind::DataEnd, rest) }
    }

    fn take_header(&mut self, bytes: &[u8]) {
        self.header[self.header_bytes..][..bytes.len()].copy_from_slice(bytes);
        self.header_bytes += bytes.len();
    }

    /// `None` if the header that is there is another's.
    fn begin_frame(&mut self) -> Option<()> {
        let (kind, payload) = self.next(self.filled);
        (self.header == header_bytes(kind, payload)).then_some(())?;
        (self.payload, self.left, self.header_bytes) = (payload, payload, 0);
        Some(())
    }

    fn pieces(&self) -> impl Iterator<Item = Piece> {
        let (mut at, mut content, mut header) = (self.filled, self.left, HEADER_BYTES - self.header_bytes);
        iter::from_fn(move || {
            if content > 0 {
                at += content;
                return Some(Piece::Content(mem::take(&mut content)));
            }
            (at < self.length).then(|| {
                (_, content) = self.next(at);
                Piece::Header(mem::replace(&mut header, HEADER_BYTES))
            })
        })
    }

    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Bytes in their place: so many at the front of the room.
    #[must_use]
    pub fn filled(&self) -> usize {
        self.filled
    }

    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.filled == self.length
    }

    /// Where what comes next is to be read to; `room` is the message's, and as long.
    pub fn places<'r>(
        &self,
        room: &'r mut [MaybeUninit<u8>],
        headers: &'r mut [MaybeUninit<u8>; HEADERS_BYTES],
    ) -> Vec<&'r mut [MaybeUninit<u8>]> {
        let mut room = room.get_mut(self.filled..).unwrap_or_default();
        let mut headers = headers.as_mut_slice();
        let mut places = Vec::with_capacity(2 * MOST_FRAMES + 1);
        for piece in self.pieces() {
            let (from, length) = match piece {
                Piece::Content(length) => (&mut room, length),
                Piece::Header(length) => (&mut headers, length),
            };
            let Some((place, rest)) = mem::take(from).split_at_mut_checked(length) else { break };
            *from = rest;
            places.push(place);
        }
        places
    }

    /// How much of `bytes` that were read to these places is headers, and how much content.
    #[must_use]
    pub fn shares(&self, bytes: usize) -> (usize, usize) {
        let (mut of_headers, mut of_content) = (0, 0);
        for piece in self.pieces() {
            let left = bytes - of_headers - of_content;
            if left == 0 {
                break;
            }
            match piece {
                Piece::Content(length) => of_content += length.min(left),
                Piece::Header(length) => of_headers += length.min(left),
            }
        }
        (of_headers, of_content)
    }

    /// Takes note of what was read: all `headers`, and `room` as far as it is filled now. `on_frame` gets the payload's length
    /// of each frame that is whole.
    pub(super) fn advance(&mut self, mut headers: &[u8], room: &[u8], mut on_frame: impl FnMut(usize)) -> Placed {
        loop {
            if self.left > 0 {
                let came = self.left.min(room.len() - self.filled);
                self.filled += came;
                self.left -= came;
                if self.left > 0 {
                    return Placed::AsForeseen;
                }
                on_frame(self.payload);
            }
            if self.is_complete() {
                return Placed::AsForeseen;
            }
            let (head, rest) = headers.split_at(headers.len().min(HEADER_BYTES - self.header_bytes));
            self.take_header(head);
            headers = rest;
            if self.header_bytes < HEADER_BYTES {
                return Placed::AsForeseen;
            }
            if self.begin_frame().is_none() {
                let stream = self.gather(headers, room);
                self.header_bytes = 0;
                return Placed::Otherwise(stream);
            }
        }
    }

    /// What was read and isn't taken note of, as it came, behind what there is of a header.
    fn gather<'b>(&self, mut headers: &'b [u8], room: &'b [u8]) -> Vec<u8> {
        let mut content = room.get(self.filled..).unwrap_or_default();
        let mut stream = self.header[..self.header_bytes].to_vec();
        for piece in self.pieces() {
            let (from, length) = match piece {
                Piece::Content(length) => (&mut content, length),
                Piece::Header(length) => (&mut headers, length),
            };
            let (piece, rest) = from.split_at(from.len().min(length));
            stream.extend_from_slice(piece);
            *from = rest;
        }
        stream
    }

    /// What is there of the frame that isn't whole, as it came, with what was read and not taken note of behind it.
    pub(super) fn into_stream(self, headers: &[u8], room: &[u8]) -> Vec<u8> {
        let rest = self.gather(headers, room);
        if self.left == 0 {
            return rest;
        }
        let (kind, payload) = self.next(self.whole());
        let mut stream = header_bytes(kind, payload).to_vec();
        stream.extend_from_slice(&room[self.whole()..self.filled]);
        stream.extend_from_slice(&rest);
        stream
    }

    /// The content of whole frames.
    pub(super) fn whole(&self) -> usize {
        self.filled - (self.payload - self.left) * usize::from(self.left > 0)
    }
}
