//! One link to a plain peer: composes framing, heartbeat bytes, silence and the end of each direction. No clock, no
//! socket.
//!
//! The driver's turn is the one of `connection`, with two things more: it reads only while [`Plain::wants_input`], for
//! nothing but its window tells a plain peer to wait; and whoever watches the path reports by [`Plain::handle_verdict`].
//!
//! What a plain peer's program has taken nobody can know. The word `taken` stands for what its kernel has acknowledged.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cause::{Cause, Ending, Level};
use super::close::{Close, CloseCode};
use super::codec::{Codec, CodecConfigError, EncodeError, Framing, HeartbeatBytes};
use super::connection::{Action, Event, PAUSE, State, Transmit};
use super::detector::{Detector, DetectorConfig, Judgement};
use super::evidence::{Evidence, Finding, KernelView};
use super::heartbeat::BeatCounts;
use super::session::SendError;
use super::verdict;

/// With so much that the program hasn't taken nothing more is read, once there is a whole message.
const INBOX_BYTES: usize = 256 * 1024;
/// What `recv` gives at most of a raw stream where nobody says how much.
pub const PIECE_BYTES: usize = 64 * 1024;
/// Who waits for acknowledgements looks again after this, and then after twice as long each time; while some come, no
/// later than an ACK is usually delayed.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const BUSY_LOOK: Duration = Duration::from_millis(40);
const LAST_LOOK: Duration = Duration::from_millis(500);
/// Empty buffers are given back when nothing has come or gone for so long. Arbitrary.
const TIDY_AFTER: Duration = Duration::from_secs(1);
/// Ours that are handed to the kernel later than this after they were due count as late.
const LATE: Duration = Duration::from_millis(20);

/// The heartbeat of the peer's own protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainHeartbeat {
    /// How often we send ours, and how often the peer is heard.
    pub interval: Duration,
    pub bytes: HeartbeatBytes,
    /// Whether the peer has to be heard at all; any byte of it counts.
    pub is_expected: bool,
    /// The silence after which it counts as lost; `None` is the default rule.
    pub limit: Option<Duration>,
}

/// What holds for a plain link from its beginning; all links of a server share one.
#[derive(Clone, Debug)]
pub struct PlainConfig {
    pub framing: Framing,
    /// Of a raw stream nobody knows what a message is, and this doesn't count.
    pub largest_message_bytes: usize,
    /// For what the kernel hasn't taken; a single message may be larger.
    pub send_buffer_bytes: usize,
    pub heartbeat: Option<PlainHeartbeat>,
}

impl Default for PlainConfig {
    fn default() -> Self {
        Self {
            framing: Framing::Raw,
            largest_message_bytes: 16 * 1024 * 1024,
            send_buffer_bytes: 1024 * 1024,
            heartbeat: None,
        }
    }
}

impl PlainConfig {
    fn codec(&self) -> Result<Codec, CodecConfigError> {
        let bytes = self.heartbeat.as_ref().map(|heartbeat| heartbeat.bytes.clone());
        let largest = if self.framing == Framing::Raw { usize::MAX } else { self.largest_message_bytes };
        Codec::new(self.framing, largest, bytes.unwrap_or_default())
    }

    pub fn validate(&self) -> Result<(), CodecConfigError> {
        self.codec().map(drop)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The program has closed: what it sent before goes out, then our end of stream.
    Closing {
        deadline: Instant,
    },
    Ended {
        action: Option<Action>,
    },
}

/// Our end of stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    NotYet,
    /// It goes out behind what was accepted before.
    Wanted,
    Sent,
}

/// How the end of the peer's stream is told among messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOfStream {
    /// As an empty message, which no other can be.
    AsEmpty,
    /// Not at all: an empty message is one like others.
    Untold,
}

#[derive(Debug)]
struct Beating {
    next: Instant,
    /// The newest of ours: when it was due, and where in our stream it ends; it isn't with the kernel yet.
    pending: Option<(Instant, u64)>,
    /// The newest of ours that was handed over, and the oldest that isn't known to have arrived; likewise.
    asked: Option<(Instant, u64)>,
    unacked: Option<(Instant, u64)>,
    counts: BeatCounts,
    silence: Option<Silence>,
}

/// Judges the peer's silence.
#[derive(Debug)]
struct Silence {
    detector: Detector,
    evidence: Evidence,
    last_look: Option<Instant>,
    /// When the peer's kernel was last seen to have acknowledged something new.
    last_progress: Instant,
    /// A verdict was put off, for what we ask hadn't arrived.
    is_put_off: bool,
}

impl Silence {
    fn limit(&self) -> Duration {
        self.detector.limit(Duration::ZERO)
    }

    /// A suspect's kernel is asked now and then.
    fn next_look(&self) -> Option<Instant> {
        let since = self.detector.suspect_since()?.instant();
        Some(self.last_look.map_or(since, |last| since.max(last + self.limit() / 8)))
    }
}

#[derive(Debug)]
pub struct Plain {
    config: Arc<PlainConfig>,
    codec: Codec,
    has_message: bool,
    /// What the peer sent doesn't fit the framing; the end of its stream is no end then.
    is_garbled: bool,
    phase: Phase,
    /// The program has closed it, whatever else has ended it before.
    is_closed: bool,
    fin: Fin,
    /// The peer's end of stream was heard, and told among messages.
    heard_end: bool,
    told_end: bool,
    /// How much the program had said when it learned of that, however it was told.
    end_known_at: Option<u64>,
    was_held_back: bool,
    /// What the kernel hasn't taken.
    outgoing: Vec<u8>,
    outgoing_head: usize,
    /// Offsets in our stream: up to where it was accepted, handed to the kernel, acknowledged.
    accepted: u64,
    /// The end of the program's own last message in it; behind that are only heartbeats.
    said: u64,
    written: u64,
    acked: u64,
    was_full: bool,
    bytes_heard: u64,
    last_heard: Instant,
    beating: Option<Box<Beating>>,
    events: VecDeque<Event>,
    look_wanted: bool,
    /// The look is for a verdict, so everything that the kernel held was read.
    is_verdict_due: bool,
    /// Somebody waits for acknowledgements: the next look, and the pause behind it.
    watch: Option<(Instant, Duration)>,
    tidy_at: Option<Instant>,
    last_traffic: Instant,
    /// The deadline that was given out last.
    armed: Option<Instant>,
}

// ---- making one -----------------------------------------------------------------------------------------------

impl Plain {
    pub fn new(now: Instant, config: Arc<PlainConfig>) -> Result<Self, CodecConfigError> {
        let beating = config.heartbeat.as_ref().map(|heartbeat| {
            let silence = heartbeat.is_expected.then(|| Silence {
                detector: Detector::new(now, heartbeat.interval, heartbeat.limit, DetectorConfig::Limit),
                evidence: Evidence::default(),
                last_look: None,
                last_progress: now,
                is_put_off: false,
            });
            let next = now + heartbeat.interval;
            Box::new(Beating {
                next,
                pending: None,
                asked: None,
                unacked: None,
                counts: BeatCounts::default(),
                silence,
            })
        });
        Ok(Self {
            codec: config.codec()?,
            config,
            has_message: false,
            is_garbled: false,
            phase: Phase::Open,
            is_closed: false,
            fin: Fin::NotYet,
            heard_end: false,
            told_end: false,
            end_known_at: None,
            was_held_back: false,
            outgoing: Vec::new(),
            outgoing_head: 0,
            accepted: 0,
            said: 0,
            written: 0,
            acked: 0,
            was_full: false,
            bytes_heard: 0,
            last_heard: now,
            beating,
            events: VecDeque::from([Event::Connected]),
            look_wanted: false,
            is_verdict_due: false,
            watch: None,
            tidy_at: None,
            last_traffic: now,
            armed: None,
        })
    }
}

// ---- input ----------------------------------------------------------------------------------------------------

impl Plain {
    /// Bytes that the peer sent.
    pub fn handle_input(&mut self, now: Instant, input: &[u8]) {
        self.note_time(now);
        if input.is_empty() || self.is_over() {
            return;
        }
        self.bytes_heard += input.len() as u64;
        self.note_traffic(now);
        self.hear(now);
        // Who has closed wants nothing more, and reads so that its own last bytes aren't lost by a reset.
        if self.phase != Phase::Open {
            return;
        }
        self.codec.handle_input(input);
        self.find_message();
        self.was_held_back |= self.is_held_back();
    }

    fn hear(&mut self, now: Instant) {
        self.last_heard = now;
        let Some(Beating { silence: Some(silence), .. }) = self.beating.as_deref_mut() else { return };
        silence.is_put_off = false;
        if silence.detector.on_bytes(now) {
            silence.evidence.on_heard();
            self.events.push_back(Event::Alive);
        }
    }

    fn find_message(&mut self) {
        match self.codec.has_message() {
            Ok(has_message) => self.has_message = has_message,
            Err(error) => {
                self.has_message = false;
                self.is_garbled = true;
                // What was read of a link that is over already may still show that.
                if !self.is_over() {
                    let detail = Some(error.to_string());
                    self.end(Ending { detail, ..Ending::new(Cause::Protocol) }, Action::Abort);
                }
            }
        }
        if let Some(beating) = &mut self.beating {
            beating.counts.heard = self.codec.heartbeats_heard();
        }
    }

    /// The peer's end of stream; it may be told again and again.
    pub fn handle_end(&mut self, now: Instant) {
        self.note_time(now);
        if self.is_over() || mem::replace(&mut self.heard_end, true) {
            return;
        }
        if self.phase == Phase::Open {
            self.codec.handle_end();
            self.find_message();
        }
        if self.is_parting() {
            self.watch_acks();
        }
    }

    /// The connection was reset after the peer's end of stream: it takes nothing more of us.
    pub fn handle_reset_after_end(&mut self, now: Instant) {
        self.heard_end |= !self.is_over();
        let detail = Some("it answers what is sent to it by a reset".to_owned());
        self.fail(now, Ending { detail, ..Ending::new(Cause::Ended) }, Action::Close);
    }

    /// The kernel says that the connection was reset.
    pub fn handle_reset(&mut self, now: Instant) {
        self.fail(now, Ending::new(Cause::Reset), Action::Close);
    }

    /// The link ended for a reason that only the driver knows.
    pub fn handle_failure(&mut self, now: Instant, cause: Cause, detail: String) {
        self.fail(now, Ending { detail: Some(detail), ..Ending::new(cause) }, Action::Abort);
    }

    /// The guard has convicted the path.
    pub fn handle_verdict(&mut self, now: Instant, cause: verdict::Cause, silence: Duration, limit: Duration) {
        let cause = match cause {
            verdict::Cause::Unreachable => Cause::Unreachable,
            verdict::Cause::Deaf => Cause::Deaf,
        };
        let (kernel_answers, level) = (Some(false), Some(Level::Path));
        let ending = Ending { silence, limit: Some(limit), kernel_answers, level, ..Ending::new(cause) };
        self.fail(now, ending, Action::Abort);
    }

    fn fail(&mut self, now: Instant, ending: Ending, action: Action) {
        self.note_time(now);
        if !self.is_over() {
            self.end(ending, action);
        }
    }

    /// The answer to [`Action::Look`]; where the kernel can't tell, what it took counts as acknowledged.
    pub fn handle_kernel(&mut self, now: Instant, view: Option<KernelView>) {
        let acked = view.map_or(self.written, |view| view.bytes_acked.min(self.written));
        let has_progress = acked > self.acked;
        self.acked = self.acked.max(acked);
        if let Some(beating) = &mut self.beating {
            let still = |question: &(Instant, u64)| question.1 > acked;
            beating.unacked = beating.unacked.filter(still).or(beating.asked.filter(still)).or(beating.pending);
        }
        if let Some(Beating { silence: Some(silence), .. }) = self.beating.as_deref_mut() {
            silence.last_look = Some(now);
            if has_progress {
                silence.last_progress = now;
            }
            if let Some(view) = view {
                let _ = silence.evidence.observe(now, view);
            }
        }
        // Who waits for what was sent before waits for no more, though others go on sending.
        if self.watch.is_some() && (has_progress || self.acked == self.accepted) {
            self.events.push_back(Event::Taken);
        }
        // Our end of stream is a segment in flight as any other.
        let is_all_acked = view.is_none_or(|view| view.unacked == 0 && view.unsent == 0);
        self.watch = match (self.watch, self.phase) {
            (None, _) => None,
            (Some(_), _) if self.acked == self.accepted && !self.is_parting() => None,
            (Some((_, pause)), _) if has_progress => Some((now + pause.min(BUSY_LOOK), pause.min(BUSY_LOOK))),
            (Some((_, pause)), _) => Some((now + pause, (pause * 2).min(LAST_LOOK))),
        };
        match self.phase {
            // Nothing is in flight, and not everything has arrived: a reset has emptied the queue.
            _ if self.is_parting() && is_all_acked && self.acked < self.written => {
                if self.heard_end {
                    self.handle_reset_after_end(now)
                } else {
                    self.handle_reset(now)
                }
            }
            _ if self.is_parting() && self.fin == Fin::Sent && is_all_acked => self.end_closed(Action::Close),
            // Half a message, and our end of stream behind it, would look like a whole one.
            Phase::Closing { deadline } if now >= deadline => {
                self.end_closed(if self.fin == Fin::Sent { Action::Close } else { Action::Abort });
            }
            _ if mem::take(&mut self.is_verdict_due) => self.supervise(now),
            _ => {}
        }
    }

    /// The connection has failed, which is told next: this is how far our stream had come.
    pub fn note_arrived(&mut self, view: KernelView) {
        self.acked = self.acked.max(view.bytes_acked.min(self.written));
    }

    /// We, or the whole machine, were paused until now: the driver's clocks say so.
    pub fn handle_pause(&mut self, now: Instant) {
        self.armed = None;
        let Some(beating) = &mut self.beating else { return };
        beating.next = now;
        if let Some(silence) = &mut beating.silence {
            silence.detector.on_pause(now, Duration::ZERO);
        }
    }

    /// A deadline passed. Everything that the kernel held was read before, unless nothing is to be read.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.note_time(now);
        if self.is_over() {
            return;
        }
        if self.tidy_at.is_some_and(|at| now >= at) {
            self.tidy(now);
        }
        if self.watch.is_some_and(|(at, _)| now >= at) {
            self.look_wanted = true;
        }
        match self.phase {
            Phase::Closing { deadline } => self.look_wanted |= now >= deadline,
            _ => {
                self.beat(now);
                self.supervise(now);
            }
        }
    }

    fn beat(&mut self, now: Instant) {
        if self.fin != Fin::NotYet {
            return;
        }
        let (Some(beating), Some(heartbeat)) = (&mut self.beating, &self.config.heartbeat) else { return };
        if now < beating.next {
            return;
        }
        let due = beating.next;
        let is_in_time = now < due + heartbeat.interval;
        beating.next = (if is_in_time { due } else { now }) + heartbeat.interval;
        // One that waits behind much data is enough.
        if heartbeat.bytes.send.is_empty() || beating.pending.is_some() {
            return;
        }
        let before = self.outgoing.len();
        // It fits: that was tried when the codec was made.
        let _ = self.codec.encode_heartbeat(&mut self.outgoing);
        self.accepted += (self.outgoing.len() - before) as u64;
        beating.pending = Some((due, self.accepted));
        beating.unacked = beating.unacked.or(beating.pending);
    }

    /// Compares what was heard with what is allowed; a verdict only after a look at the same moment.
    fn supervise(&mut self, now: Instant) {
        if !self.is_silence_judged() {
            return;
        }
        let Some(beating) = self.beating.as_deref_mut() else { return };
        let unacked_since = beating.unacked.map(|(due, _)| due);
        let Some(silence) = &mut beating.silence else { return };
        let was_suspect = silence.detector.suspect_since().is_some();
        match silence.detector.judge(now, Duration::ZERO) {
            Judgement::Suspect if !was_suspect => {
                silence.evidence.on_suspicion(now);
                self.look_wanted = true;
                self.events.push_back(Event::Suspect { silence: silence.detector.silence(now) });
            }
            Judgement::Suspect => self.look_wanted |= silence.next_look().is_some_and(|at| now >= at),
            Judgement::Lost { .. } if silence.last_look != Some(now) => {
                self.look_wanted = true;
                self.is_verdict_due = true;
            }
            Judgement::Lost { silence: lasted, limit } => {
                // What we asked an interval ago is still under way behind our own data, which goes forward, so it can't be
                // answered yet; or it has only just arrived.
                let interval = silence.detector.interval();
                let is_under_way = unacked_since.is_some_and(|since| now >= since + interval);
                let patience = match (is_under_way, silence.is_put_off) {
                    (true, _) => limit,
                    (false, true) => limit / 4,
                    (false, false) => Duration::ZERO,
                };
                if now.saturating_duration_since(silence.last_progress) < patience {
                    silence.is_put_off = true;
                    return;
                }
                let (cause, kernel_answers, level) = match silence.evidence.finding(now, Duration::ZERO) {
                    Finding::Answered => (Cause::Frozen, Some(true), Some(Level::Application)),
                    Finding::Unanswered => (Cause::Unreachable, Some(false), Some(Level::Path)),
                    Finding::Unknown => (Cause::Silent, None, None),
                };
                let ending =
                    Ending { silence: lasted, limit: Some(limit), kernel_answers, level, ..Ending::new(cause) };
                self.end(ending, Action::Abort);
            }
            // Whether what we send arrives is the guard's to judge.
            Judgement::Alive | Judgement::Deaf { .. } => {}
        }
    }

    /// Not while nothing is read, for what would be heard may lie with the kernel; nor of a peer that has said all, or that
    /// we ask nothing more.
    fn is_silence_judged(&self) -> bool {
        let asks = self.config.heartbeat.as_ref().is_some_and(|heartbeat| !heartbeat.bytes.send.is_empty());
        self.phase == Phase::Open && self.wants_input() && !(asks && self.fin != Fin::NotYet)
    }

    /// A wake-up that comes too late is a pause of our own.
    fn note_time(&mut self, now: Instant) {
        let Some(armed) = self.armed.take() else { return };
        let silence = self.beating.as_ref().and_then(|beating| beating.silence.as_ref());
        let limit = silence.map_or(Duration::ZERO, Silence::limit);
        if now > armed + PAUSE.max(limit / 4) {
            self.handle_pause(now);
        }
    }

    fn note_traffic(&mut self, now: Instant) {
        self.last_traffic = now;
        self.tidy_at.get_or_insert(now + TIDY_AFTER);
    }

    fn tidy(&mut self, now: Instant) {
        let due = self.last_traffic + TIDY_AFTER;
        self.tidy_at = (due > now).then_some(due);
        if self.tidy_at.is_none() {
            self.codec.release_memory();
            if self.outgoing.is_empty() {
                self.outgoing = Vec::new();
            }
        }
    }

    fn end(&mut self, mut ending: Ending, action: Action) {
        self.phase = Phase::Ended { action: Some(action) };
        self.look_wanted = false;
        ending.untaken_bytes = self.untaken_bytes();
        self.events.push_back(Event::Ended(Box::new(ending)));
    }

    /// Both directions have ended, or the program has closed and its time is up.
    fn end_closed(&mut self, action: Action) {
        let close = Some(Box::new(Close::new(CloseCode::NORMAL, "")));
        self.end(Ending { close, ..Ending::new(Cause::Closed) }, action);
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }
}

// ---- verbs ----------------------------------------------------------------------------------------------------

impl Plain {
    /// Appends a message to what is to be sent.
    pub fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        match (self.phase, self.fin) {
            (Phase::Open, Fin::NotYet) => {}
            (Phase::Open, _) => return Err(SendError::ShutDown),
            _ => return Err(SendError::NotOpen),
        }
        let (buffered, bound) = (self.unwritten_bytes(), self.config.send_buffer_bytes);
        if buffered > 0 && buffered + message.len() > bound {
            self.was_full = true;
            return Err(SendError::Full { buffered, bound });
        }
        let before = self.outgoing.len();
        self.codec.encode(message, &mut self.outgoing).map_err(|error| match error {
            EncodeError::TooLarge { length, largest } => SendError::TooLarge { length: length as u64, largest },
            error => error.into(),
        })?;
        self.accepted += (self.outgoing.len() - before) as u64;
        self.said = self.accepted;
        Ok(())
    }

    /// The next message, or what is there of a raw stream, `at_most` bytes. An error behind it is an event.
    pub fn read(&mut self, at_most: usize) -> Option<&[u8]> {
        if !self.has_message {
            return None;
        }
        let range = self.codec.take(at_most).ok()??;
        self.find_message();
        Some(self.codec.bytes(range))
    }

    /// What was read is with the program. False if that has closed the link before.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.was_held_back && !self.is_held_back() {
            self.was_held_back = false;
            // Until now nobody listened.
            self.hear(now);
        }
        if self.is_over() && !self.has_message {
            self.give_back_memory();
        }
        !self.is_closed
    }

    /// The link is over, and its driver has done what was to be done: nothing is sent any more, and memory is kept only for
    /// what our program has yet to take.
    pub fn give_back_memory(&mut self) {
        (self.outgoing, self.outgoing_head) = (Vec::new(), 0);
        if self.has_message {
            self.codec.trim();
        } else {
            self.codec.discard();
        }
    }

    /// The program is done with the link: what it hasn't taken of a link that is over it never will.
    pub fn forget_inbox(&mut self) {
        if self.is_over() {
            self.discard_inbox();
        }
    }

    fn discard_inbox(&mut self) {
        self.has_message = false;
        self.codec.discard();
    }

    /// The end of the peer's stream, once everything before it was read; it is given out once.
    pub fn take_end(&mut self) -> Option<EndOfStream> {
        if !self.has_end_to_tell() {
            return None;
        }
        self.told_end = true;
        self.tell_end();
        Some(match self.config.framing {
            Framing::Raw | Framing::Lines(_) => EndOfStream::AsEmpty,
            Framing::LengthPrefixed(_) => EndOfStream::Untold,
        })
    }

    /// The program is told that nothing more comes, as who receives.
    pub fn tell_end(&mut self) {
        self.end_known_at = Some(self.said);
    }

    /// Somebody waits until what was sent is acknowledged: [`Event::Taken`].
    pub fn hurry(&mut self) {
        if !self.is_over() && self.acked < self.accepted {
            self.watch_acks();
        }
    }

    fn watch_acks(&mut self) {
        self.look_wanted = true;
        // The first look is now, whatever `now` is.
        self.watch = Some((self.last_traffic, FIRST_LOOK));
    }

    /// Sends nothing more: our end of stream goes out behind what was accepted before, and the peer is heard further.
    pub fn shut_down_sending(&mut self) {
        if self.phase == Phase::Open && self.fin == Fin::NotYet {
            self.fin = Fin::Wanted;
        }
    }

    /// Sends what was accepted before, and our end of stream, until the deadline. What the program hasn't taken it never
    /// will.
    pub fn close(&mut self, deadline: Instant) {
        self.is_closed = true;
        self.discard_inbox();
        match &mut self.phase {
            Phase::Open => {
                self.phase = Phase::Closing { deadline };
                if self.fin == Fin::NotYet {
                    self.fin = Fin::Wanted;
                }
                self.watch_acks();
            }
            Phase::Closing { deadline: before } => *before = deadline.min(*before),
            Phase::Ended { .. } => {}
        }
    }
}

// ---- output ---------------------------------------------------------------------------------------------------

impl Plain {
    /// What is to be handed to the kernel now.
    #[must_use]
    pub fn poll_transmit(&self) -> Transmit<'_> {
        let data = if self.is_over() { &[][..] } else { &self.outgoing[self.outgoing_head..] };
        Transmit { first: &[], control: &[], data }
    }

    /// The kernel took so many bytes of it.
    pub fn transmitted(&mut self, now: Instant, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.note_traffic(now);
        self.written += bytes as u64;
        self.outgoing_head += bytes;
        if self.outgoing_head == self.outgoing.len() {
            self.outgoing.clear();
            self.outgoing_head = 0;
        } else if self.outgoing_head >= self.outgoing.len() / 2 {
            self.outgoing.drain(..self.outgoing_head);
            self.outgoing_head = 0;
        }
        if self.was_full && self.unwritten_bytes() <= self.config.send_buffer_bytes / 2 {
            self.was_full = false;
            self.events.push_back(Event::Taken);
        }
        if let Some(beating) = self.beating.as_deref_mut()
            && let Some((due, end)) = beating.pending
            && end <= self.written
        {
            beating.pending = None;
            beating.asked = Some((due, end));
            let lateness = now.saturating_duration_since(due);
            beating.counts.sent += 1;
            beating.counts.late += u64::from(lateness > LATE);
            beating.counts.worst_lateness = beating.counts.worst_lateness.max(lateness);
            if let Some(silence) = &mut beating.silence
                && silence.detector.suspect_since().is_some()
            {
                silence.evidence.on_asked(now);
                self.look_wanted = true;
            }
        }
    }

    /// Whether a turn has something to do now.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        match self.phase {
            Phase::Ended { action } => action.is_some() || !self.events.is_empty(),
            Phase::Open | Phase::Closing { .. } => {
                self.unwritten_bytes() > 0 || self.fin == Fin::Wanted || self.look_wanted || !self.events.is_empty()
            }
        }
    }

    /// What the driver is to do next, after one attempt at transmitting.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        if self.fin == Fin::Wanted && self.unwritten_bytes() == 0 && !self.is_over() {
            self.fin = Fin::Sent;
            if self.is_parting() {
                self.watch_acks();
            }
            return Some(Action::ShutdownWrite);
        }
        if mem::take(&mut self.look_wanted) {
            return Some(Action::Look);
        }
        match &mut self.phase {
            Phase::Ended { action } => action.take(),
            Phase::Open | Phase::Closing { .. } => None,
        }
    }

    /// Nothing is left to be done but to have what was sent acknowledged: the program has closed, or both streams have
    /// ended.
    fn is_parting(&self) -> bool {
        match self.phase {
            Phase::Open => self.heard_end && self.fin == Fin::Sent,
            Phase::Closing { .. } => true,
            Phase::Ended { .. } => false,
        }
    }

    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if self.events.is_empty() && self.events.capacity() > 0 {
            self.events = VecDeque::new();
        }
        event
    }

    /// When [`Plain::handle_timeout`] is to be called; `None`: never. It is remembered as when we shall wake.
    #[must_use]
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let watch = self.watch.map(|(at, _)| at);
        self.armed = match self.phase {
            Phase::Ended { .. } => None,
            Phase::Closing { deadline } => Some(watch.map_or(deadline, |at| deadline.min(at))),
            Phase::Open => {
                let (mut beat, mut judge) = (None, None);
                if let (Some(beating), Some(heartbeat)) = (&self.beating, &self.config.heartbeat) {
                    if !heartbeat.bytes.send.is_empty() && self.fin == Fin::NotYet {
                        beat = Some(beating.next);
                    }
                    if let Some(silence) = beating.silence.as_ref().filter(|_| self.is_silence_judged()) {
                        let due = silence.detector.poll_timeout(Duration::ZERO).instant();
                        // A verdict that was looked into since it is due was put off, to the next look.
                        let due = silence.last_look.is_none_or(|last| last < due).then_some(due);
                        judge = due.into_iter().chain(silence.next_look()).min();
                    }
                }
                [watch, beat, judge, self.tidy_at].into_iter().flatten().min()
            }
        };
        self.armed
    }
}

// ---- what is known --------------------------------------------------------------------------------------------

/// What was counted on a plain link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainStats {
    pub beats: BeatCounts,
    pub silence: Duration,
    /// Between our heartbeats, if we send any.
    pub send_interval: Option<Duration>,
    /// The same of the peer's, and the silence after which it is lost, if it is judged.
    pub hear_interval: Option<Duration>,
    pub limit: Option<Duration>,
    pub bytes_sent: u64,
    pub bytes_heard: u64,
    /// As of the last look.
    pub unacked_bytes: u64,
    pub inbox_bytes: usize,
}

impl Plain {
    #[must_use]
    pub fn state(&self) -> State {
        let silence = self.beating.as_ref().and_then(|beating| beating.silence.as_ref());
        match self.phase {
            Phase::Open if silence.is_some_and(|silence| silence.detector.suspect_since().is_some()) => State::Suspect,
            Phase::Open => State::Open,
            Phase::Closing { .. } => State::Closing,
            Phase::Ended { .. } => State::Closed,
        }
    }

    /// Our newest heartbeat was handed over, and nothing has been heard since.
    #[must_use]
    pub fn is_owed(&self, now: Instant) -> bool {
        self.beating.as_ref().is_some_and(|beating| {
            let (silence, asked) = (beating.silence.as_ref(), beating.asked);
            silence
                .zip(asked)
                .is_some_and(|(silence, (due, _))| silence.detector.silence(now) >= now.saturating_duration_since(due))
        })
    }

    #[must_use]
    pub fn framing(&self) -> Framing {
        self.config.framing
    }

    #[must_use]
    pub fn has_message(&self) -> bool {
        self.has_message
    }

    /// Everything that the peer has sent was read, up to the end of its stream; not once the program has closed.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.heard_end && !self.has_message && !self.is_closed && !self.is_garbled
    }

    /// The program has been told of the end of the peer's stream, and has said nothing since.
    #[must_use]
    pub fn knows_end(&self) -> bool {
        self.end_known_at == Some(self.said)
    }

    /// The end of the stream is to be told among messages.
    #[must_use]
    pub fn has_end_to_tell(&self) -> bool {
        self.is_at_end() && !self.told_end
    }

    /// More is to be read from the socket.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.heard_end && !self.is_held_back()
    }

    fn is_held_back(&self) -> bool {
        self.phase == Phase::Open && self.has_message && self.codec.buffered_bytes() >= INBOX_BYTES
    }

    fn unwritten_bytes(&self) -> usize {
        self.outgoing.len() - self.outgoing_head
    }

    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.written
    }

    fn untaken_bytes(&self) -> u64 {
        self.said.saturating_sub(self.acked)
    }

    /// Where in our stream the program's messages end, and what was acknowledged.
    #[must_use]
    pub fn sent_offsets(&self) -> (u64, u64) {
        (self.said, self.acked)
    }

    #[must_use]
    pub fn stats(&self, now: Instant) -> PlainStats {
        let beating = self.beating.as_deref();
        let heartbeat = self.config.heartbeat.as_ref();
        let sends = heartbeat.filter(|heartbeat| !heartbeat.bytes.send.is_empty());
        let silence = beating.and_then(|beating| beating.silence.as_ref());
        PlainStats {
            beats: beating.map(|beating| beating.counts).unwrap_or_default(),
            silence: now.saturating_duration_since(self.last_heard),
            send_interval: sends.map(|heartbeat| heartbeat.interval),
            hear_interval: silence.map(|silence| silence.detector.interval()),
            limit: silence.map(Silence::limit),
            bytes_sent: self.written,
            bytes_heard: self.bytes_heard,
            unacked_bytes: self.untaken_bytes(),
            inbox_bytes: self.codec.buffered_bytes(),
        }
    }
}
