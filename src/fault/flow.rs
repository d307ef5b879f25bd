//! One direction of a connection over a bad path: which bytes come out of it when, and as what.
//!
//! Bytes enter at the near end, where they wait for the narrow place, are cut into pieces and spoilt, and travel; they leave at the
//! far end in order, unless it is closed to them. Nothing is lost, doubled or reordered but by a fault that says so: TCP would see
//! to that on a real path, too, so what a cut holds back comes once it has ended.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use crate::proto::random::SplitMix;

/// How long bytes may wait for a narrow place before no more are taken, so that the sender soon feels it, and what is narrow now
/// doesn't hold back what comes when it isn't any more. Arbitrary.
const QUEUE: Duration = Duration::from_millis(100);
/// Pieces that come out of a narrow place in a second, or it is more than this wide: as fine as a timer is.
const PIECES_A_SECOND: u64 = 100;
const LARGEST_PIECE: u64 = 16 * 1024;
/// More is as good as never.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

impl Way {
    pub const BOTH: [Self; 2] = [Self::ToServer, Self::ToClient];

    /// Some of both, or neither.
    #[must_use]
    pub fn these(to_server: bool, to_client: bool) -> &'static [Self] {
        match (to_server, to_client) {
            (true, true) => &Self::BOTH,
            (true, false) => &[Self::ToServer],
            (false, true) => &[Self::ToClient],
            (false, false) => &[],
        }
    }

    #[must_use]
    pub fn back(self) -> Self {
        match self {
            Self::ToServer => Self::ToClient,
            Self::ToClient => Self::ToServer,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ToServer => "to_server",
            Self::ToClient => "to_client",
        }
    }
}

/// Whether anything leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passage {
    #[default]
    Open,
    /// What is on the way stands still; who sends is heard, as by a hung proxy.
    Stalled,
    /// Who sends isn't even heard.
    Cut,
}

/// What becomes of the rest, once so many bytes have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Stall,
    Cut,
    /// The same, and the other direction with it.
    CutBoth,
    End,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    Passage(Passage),
    /// What enters is lost for good, as no path does to TCP, but a box that speaks for both ends may.
    Lose(bool),
    /// Zero: none.
    Latency {
        delay: Duration,
        /// Up to so much more or less, a piece.
        jitter: Duration,
    },
    /// Bytes a second; `None`: as wide as can be.
    Bandwidth(Option<u64>),
    /// Pieces of so many bytes, give or take `spread`, that enter `delay` apart; 0: as they come.
    Slice {
        size: u64,
        spread: u64,
        delay: Duration,
    },
    /// One bit is flipped in each byte with this probability.
    Corrupt(f64),
    /// The same in one byte, after so many from now on.
    CorruptAt(u64),
    /// From now on.
    Limit(u64, Then),
    /// The end of the stream comes so much later.
    SlowEnd(Duration),
    /// The stream ends here, whatever its sender has still to say.
    End,
    /// All is well, and what was held back comes at once.
    Restore,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Output<'a> {
    /// In one go, as far as the receiver takes it; to be consumed.
    Bytes(&'a [u8]),
    /// FIN.
    End,
    Reset,
    /// This direction is cut from now on, and the other one is to be.
    CutBoth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    End,
    Reset,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub entered: u64,
    pub left: u64,
    /// Entered and never leave.
    pub lost: u64,
    pub corrupted: u64,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    bytes: usize,
    due: Instant,
}

#[derive(Clone, Debug)]
pub struct Flow {
    room_bytes: usize,
    random: SplitMix,
    passage: Passage,
    loses: bool,
    delay: Duration,
    jitter: Duration,
    bandwidth: Option<u64>,
    slice: Option<(u64, u64, Duration)>,
    corrupts: f64,
    /// Bytes that enter before the next one that is spoilt.
    until_corrupt: Option<u64>,
    /// Bytes that may leave before something happens.
    limit: Option<(u64, Then)>,
    slow_end: Duration,
    /// The narrow place is taken until then.
    busy_until: Option<Instant>,
    /// Of the piece that entered last: none overtakes it.
    last_due: Option<Instant>,
    pieces: VecDeque<Piece>,
    /// Of all pieces, from `head` on.
    bytes: Vec<u8>,
    head: usize,
    /// Nothing enters behind it.
    last: Option<(Last, Instant)>,
    is_over: bool,
    counts: Counts,
}

/// A time from now on that doesn't leave the clock's range.
fn later(now: Instant, wait: Duration) -> Instant {
    now + wait.min(LONGEST)
}

impl Flow {
    /// Holds so many bytes at most; `seed` is for jitter, sizes and what is spoilt.
    #[must_use]
    pub fn new(room_bytes: usize, seed: u64) -> Self {
        Self {
            room_bytes,
            random: SplitMix(seed),
            passage: Passage::Open,
            loses: false,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            bandwidth: None,
            slice: None,
            corrupts: 0.0,
            until_corrupt: None,
            limit: None,
            slow_end: Duration::ZERO,
            busy_until: None,
            last_due: None,
            pieces: VecDeque::new(),
            bytes: Vec::new(),
            head: 0,
            last: None,
            is_over: false,
            counts: Counts::default(),
        }
    }

    /// Another one under the same faults, with dice of its own. Only of one that nothing has entered.
    #[must_use]
    pub fn another(&self, seed: u64) -> Self {
        let mut other = Self { random: SplitMix(seed), ..self.clone() };
        if other.corrupts > 0.0 {
            other.until_corrupt = Some(other.next_corrupt());
        }
        other
    }

    pub fn handle_fault(&mut self, now: Instant, fault: Fault) {
        match fault {
            Fault::Passage(passage) => self.passage = passage,
            Fault::Lose(loses) => self.loses = loses,
            Fault::Latency { delay, jitter } => {
                (self.delay, self.jitter) = (delay.min(LONGEST), jitter.min(LONGEST));
            }
            Fault::Bandwidth(bandwidth) => {
                self.bandwidth = bandwidth;
                self.busy_until = None;
            }
            Fault::Slice { size, spread, delay } => {
                self.slice = (size > 0).then_some((size, spread, delay));
                self.busy_until = None;
            }
            Fault::Corrupt(probability) => {
                self.corrupts = probability;
                self.until_corrupt = (probability > 0.0).then(|| self.next_corrupt());
            }
            Fault::CorruptAt(bytes) => {
                self.corrupts = 0.0;
                self.until_corrupt = Some(bytes);
            }
            Fault::Limit(bytes, then) => self.limit = Some((bytes, then)),
            Fault::SlowEnd(delay) => self.slow_end = delay,
            Fault::End => self.end_with(now, Last::End),
            Fault::Restore => {
                let healthy = Self::new(self.room_bytes, self.random.next());
                let Self { mut pieces, bytes, head, mut last, is_over, counts, .. } = mem::replace(self, healthy);
                pieces.iter_mut().for_each(|piece| piece.due = piece.due.min(now));
                last.iter_mut().for_each(|(_, due)| *due = (*due).min(now));
                (self.pieces, self.bytes, self.head) = (pieces, bytes, head);
                (self.last, self.is_over, self.counts) = (last, is_over, counts);
            }
        }
    }

    // ---- the near end

    /// So many bytes may enter now; the rest is the sender's to keep.
    #[must_use]
    pub fn room(&self, now: Instant) -> usize {
        if self.is_closed() || self.loses {
            return self.room_bytes.max(1);
        }
        let room = self.room_bytes.saturating_sub(self.bytes.len() - self.head);
        let queued = self.busy_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let Some(left) = QUEUE.checked_sub(queued).filter(|left| !left.is_zero()) else { return 0 };
        let width = match (self.bandwidth, self.slice) {
            (Some(width), _) => (left.as_secs_f64() * width as f64).ceil(),
            (None, Some((size, _, delay))) if !delay.is_zero() => {
                (left.as_secs_f64() / delay.as_secs_f64()).ceil() * size as f64
            }
            _ => return room,
        };
        // A float beyond the range saturates.
        room.min((width as usize).max(1))
    }

    /// When there is room again that a narrow place has not got now; half of it, for each byte in turn would keep everybody awake.
    #[must_use]
    pub fn poll_room_timeout(&self, now: Instant) -> Option<Instant> {
        self.busy_until?.checked_sub(QUEUE / 2).filter(|at| *at > now && !self.is_closed())
    }

    pub fn handle_bytes(&mut self, now: Instant, mut bytes: &[u8]) {
        self.counts.entered += bytes.len() as u64;
        if self.is_closed() || self.loses {
            self.counts.lost += bytes.len() as u64;
            return;
        }
        self.compact();
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(self.next_size(bytes.len()));
            bytes = rest;
            let due = self.next_due(now, piece.len() as u64);
            self.pieces.push_back(Piece { bytes: piece.len(), due });
            let start = self.bytes.len();
            self.bytes.extend_from_slice(piece);
            self.corrupt_from(start);
        }
    }

    /// The sender has ended its stream.
    pub fn handle_end(&mut self, now: Instant) {
        if !self.is_closed() {
            self.end_with(now, Last::End);
        }
    }

    /// The sender has reset the connection.
    pub fn handle_reset(&mut self, now: Instant) {
        if !self.is_over && self.last.is_none_or(|(last, _)| last == Last::End) {
            self.end_with(now, Last::Reset);
        }
    }

    fn end_with(&mut self, now: Instant, last: Last) {
        let wait = if last == Last::End { self.slow_end } else { Duration::ZERO };
        let due = later(self.next_due(now, 0), wait);
        self.last = Some((last, due));
    }

    /// What enters from here on is lost.
    fn is_closed(&self) -> bool {
        self.is_over || self.last.is_some()
    }

    fn next_size(&mut self, available: usize) -> usize {
        let mut size = available as u64;
        if let Some((slice, spread, _)) = self.slice {
            let off = if spread == 0 { 0 } else { self.random.next() % spread.saturating_mul(2).saturating_add(1) };
            size = size.min((slice.saturating_add(off)).saturating_sub(spread).max(1));
        }
        if let Some(width) = self.bandwidth {
            size = size.min((width / PIECES_A_SECOND).clamp(1, LARGEST_PIECE));
        }
        usize::try_from(size).unwrap_or(available).min(available)
    }

    fn next_due(&mut self, now: Instant, bytes: u64) -> Instant {
        let mut entered = self.busy_until.map_or(now, |until| until.max(now));
        if let Some(width) = self.bandwidth.filter(|_| bytes > 0) {
            let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(width.max(1)));
            entered = later(entered, Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
            self.busy_until = Some(entered);
        }
        let delay = if self.jitter.is_zero() {
            self.delay
        } else {
            (self.delay + self.jitter.mul_f64(2.0 * self.random.fraction())).saturating_sub(self.jitter)
        };
        let due = later(entered, delay).max(self.last_due.unwrap_or(now));
        self.last_due = Some(due);
        if let Some((_, _, apart)) = self.slice.filter(|(_, _, apart)| bytes > 0 && !apart.is_zero()) {
            self.busy_until = Some(later(entered, apart));
        }
        due
    }

    /// How many bytes stay whole before the next one that doesn't: a geometric distribution, so that a flow costs no dice a byte.
    fn next_corrupt(&mut self) -> u64 {
        if self.corrupts >= 1.0 {
            return 0;
        }
        // Of (0, 1]; floats beyond the range saturate.
        ((1.0 - self.random.fraction()).ln() / (-self.corrupts).ln_1p()).floor() as u64
    }

    fn corrupt_from(&mut self, start: usize) {
        let mut next = start as u64;
        while let Some(wait) = self.until_corrupt {
            next = next.saturating_add(wait);
            let end = self.bytes.len() as u64;
            if next >= end {
                self.until_corrupt = Some(next - end);
                return;
            }
            self.bytes[next as usize] ^= 1 << (self.random.next() % 8);
            self.counts.corrupted += 1;
            next += 1;
            self.until_corrupt = (self.corrupts > 0.0).then(|| self.next_corrupt());
        }
    }

    // ---- the far end

    /// What leaves now. Bytes are to be consumed; the end and a reset come once, and nothing after them.
    #[must_use]
    pub fn poll(&mut self, now: Instant) -> Option<Output<'_>> {
        if self.is_over {
            return None;
        }
        if let Some((0, then)) = self.limit {
            self.limit = None;
            match then {
                Then::Stall => self.passage = Passage::Stalled,
                Then::Cut => self.passage = Passage::Cut,
                Then::CutBoth => {
                    self.passage = Passage::Cut;
                    return Some(Output::CutBoth);
                }
                Then::End => return Some(self.leave_with(Last::End)),
                Then::Reset => return Some(self.leave_with(Last::Reset)),
            }
        }
        if self.passage != Passage::Open {
            return None;
        }
        match self.pieces.front() {
            Some(piece) if piece.due <= now => {
                let most = self.limit.map_or(usize::MAX, |(most, _)| usize::try_from(most).unwrap_or(usize::MAX));
                Some(Output::Bytes(&self.bytes[self.head..self.head + piece.bytes.min(most)]))
            }
            Some(_) => None,
            None => {
                let (last, _) = self.last.filter(|(_, due)| *due <= now)?;
                Some(self.leave_with(last))
            }
        }
    }

    /// So many of the bytes have left.
    pub fn consume(&mut self, count: usize) {
        let Some(piece) = self.pieces.front_mut() else { return };
        let count = count.min(piece.bytes);
        piece.bytes -= count;
        if piece.bytes == 0 {
            self.pieces.pop_front();
        }
        self.head += count;
        self.counts.left += count as u64;
        if let Some((most, _)) = &mut self.limit {
            *most = most.saturating_sub(count as u64);
        }
        if self.pieces.is_empty() {
            // An idle flow keeps no memory.
            (self.bytes, self.head) = (Vec::new(), 0);
        }
    }

    /// When something leaves, unless it waits for its receiver.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_over || self.passage != Passage::Open {
            return None;
        }
        self.pieces.front().map(|piece| piece.due).or(self.last.map(|(_, due)| due))
    }

    fn leave_with(&mut self, last: Last) -> Output<'static> {
        self.is_over = true;
        self.counts.lost += (self.bytes.len() - self.head) as u64;
        self.pieces = VecDeque::new();
        (self.bytes, self.head) = (Vec::new(), 0);
        match last {
            Last::End => Output::End,
            Last::Reset => Output::Reset,
        }
    }

    fn compact(&mut self) {
        if self.head > self.bytes.len() / 2 {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }

    // ---- what can be seen of it

    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.passage == Passage::Cut
    }

    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Entered, and still on its way.
    #[must_use]
    pub fn held(&self) -> usize {
        self.bytes.len() - self.head
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
