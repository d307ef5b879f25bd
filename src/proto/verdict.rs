//! Samples of TCP_INFO -> answered, unanswered, dead: the guard's mind.
//!
//! A path is dead when something of ours has been unanswered, at every look, for `limit`. What counts as
//! unanswered was measured on Linux with cables that were really pulled:
//!
//! * segments in flight (`unacked`) while `bytes_acked` stands still, or
//! * probes without an answer (`probes`): the kernel's keepalive probes on an idle connection, its window
//!   probes when the peer's window is closed. A peer that merely reads slowly answers each of them, so it is
//!   never convicted, which no socket option can promise.
//!   Nor is one that takes its window back under segments in flight, when it runs out of memory: it drops them, but
//!   answers each with an ACK that says so.
//! * The peer repeats segments that we have acknowledged, and our own probes aren't answered in between: what
//!   we send doesn't arrive, though we hear the peer. Its repeats keep every clock of the kernel fresh.
//!
//! `last_ack_received` is no judge by itself: with one direction cut, the peer's retransmissions carry ACKs.

use std::num::NonZeroU8;
use std::time::{Duration, Instant};

use super::moment::{Moment, Span};

/// Transmissions (an original and its repeats, or probes) that must all stay without an answer before anyone
/// is convicted. One or two get lost on any path; the number is the usual keepalive count.
const ATTEMPTS: u32 = 3;

/// Repeated segments that tell that our acknowledgements are lost; the first of them may hide among new data.
/// Together with a probe of ours they are as many attempts as elsewhere.
const REPEATS: u32 = 2;

/// States of a TCP connection, numbered as in Linux's `include/net/tcp_states.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    Unknown(u8),
}

impl TcpState {
    #[must_use]
    pub fn from_kernel(number: u8) -> Self {
        match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            other => Self::Unknown(other),
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynReceived => "SYN_RECV",
            Self::FinWait1 => "FIN_WAIT1",
            Self::FinWait2 => "FIN_WAIT2",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
            Self::Unknown(_) => "UNKNOWN",
        }
    }

    /// A connection that isn't made yet.
    #[must_use]
    pub fn is_opening(self) -> bool {
        matches!(self, Self::SynSent | Self::SynReceived)
    }

    /// Both kernels hold the connection and ours still owes or expects something. The half-closed states
    /// belong here: a client that has shut down its sending side and waits for the answer hangs as any other.
    #[must_use]
    pub fn is_judged(self) -> bool {
        matches!(
            self,
            Self::Established | Self::CloseWait | Self::FinWait1 | Self::FinWait2 | Self::Closing | Self::LastAck
        )
    }
}

/// What one look at a connection shows (`struct tcp_info` in `linux/tcp.h`), as far as the guard needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub state: TcpState,
    /// Segments in flight.
    pub unacked: u32,
    /// Probes without an answer: of keepalive or of a closed window.
    pub probes: u32,
    /// Segments sent again, in all.
    pub total_retrans: u32,
    /// Retransmission timeouts of this flight; they go on where our own machine can't send (`total_retrans` doesn't).
    pub timeouts: u32,
    /// Bytes accepted from the program and not sent yet: the window is closed, or nearly.
    pub unsent: u32,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub segments_in: u32,
    pub data_segments_in: u32,
    pub out_of_order_in: u32,
    /// What the peer lets us send; `None` where the kernel doesn't tell (before Linux 5.4).
    pub send_window: Option<u32>,
    /// What we let the peer send; `None` where the kernel doesn't tell (before Linux 6.2).
    pub receive_window: Option<u32>,
    pub since_data_sent: Duration,
    pub since_data_received: Duration,
    pub since_ack_received: Duration,
    pub round_trip: Duration,
}

impl Sample {
    fn is_outstanding(&self) -> bool {
        self.unacked > 0 || self.probes > 0
    }

    /// The peer has run out of memory: its window is closed over segments that it had allowed and now drops. It
    /// answers each of them, and acknowledges none.
    #[must_use]
    pub fn window_is_taken_back(&self) -> bool {
        self.unacked > 0 && self.send_window == Some(0)
    }

    /// Segments in that carried no data: an ACK and nothing else.
    fn bare_acks_in(&self) -> u32 {
        self.segments_in.wrapping_sub(self.data_segments_in)
    }

    /// How long nothing at all has been heard.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.since_ack_received.min(self.since_data_received)
    }
}

/// Why a path is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing of ours is answered, and nothing is heard.
    Unreachable,
    /// Nothing of ours arrives, though the peer is heard.
    Deaf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is owed to us.
    Answered,
    /// Something of ours has been unanswered for so long.
    Unanswered(Duration),
    Dead {
        cause: Cause,
        silence: Duration,
        /// What has passed: the judge's limit, or the kernel's patience with an idle path where that is shorter.
        limit: Duration,
    },
    /// There is no connection to be judged, now or any more.
    NotJudged,
}

/// Something of ours that is unanswered.
#[derive(Clone, Copy, Debug)]
struct Outstanding {
    since: Instant,
    /// What holds for it: the judge's limit, or less if the kernel's keepalive has less patience.
    limit: Duration,
    attempts: u32,
    bytes_acked: u64,
    probes: u32,
    /// Counted from here, for [`ATTEMPTS`].
    total_retrans: u32,
    timeouts: u32,
    probes_before: u32,
    /// `segments_in` an eighth of the limit later: what comes after that is heard in spite of the cut, what
    /// came before may have been under way.
    heard: Option<u32>,
}

/// The peer repeats itself.
#[derive(Clone, Copy, Debug)]
struct Repeats {
    count: u32,
    last: Instant,
    gap: Duration,
    /// One of our own probes has stayed without an answer meanwhile.
    probe_unanswered: bool,
}

/// The kernel's keepalive probes, in whole seconds as Linux has them; small, for every connection has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probing {
    pub idle_seconds: u16,
    pub interval_seconds: u16,
    pub count: NonZeroU8,
}

impl Probing {
    /// From the first probe to the kernel's verdict.
    fn patience(self) -> Duration {
        Duration::from_secs(u64::from(self.interval_seconds) * u64::from(self.count.get()))
    }
}

/// What the last look showed, as far as the next one needs it.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Moment,
    probes: u32,
    total_retrans: u32,
    /// The lower half: all that counts is whether it has changed.
    bytes_received: u32,
    bare_acks_in: u32,
    data_segments_in: u32,
    out_of_order_in: u32,
}

/// What speaks against a path. Most connections have nothing of the kind at most looks, and there may be many
/// thousands of them, so it is kept apart.
#[derive(Debug, Default)]
struct Suspicion {
    outstanding: Option<Outstanding>,
    repeats: Option<Repeats>,
    /// Since when `probes` has been above zero at every look.
    probing_since: Option<Instant>,
}

/// Judges one connection.
#[derive(Debug)]
pub struct Judge {
    limit: Span,
    /// The kernel's keepalive probes; `None` if it sends none.
    probing: Option<Probing>,
    last: Option<Look>,
    suspicion: Option<Box<Suspicion>>,
}

impl Judge {
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self { limit: limit.into(), probing: None, last: None, suspicion: None }
    }

    /// The kernel's keepalive, as it is set now. With it known, the time of the first probe needn't be guessed from the looks;
    /// and where the kernel would give up an idle path before `limit`, so does the judge, a moment earlier.
    pub fn set_probing(&mut self, probing: Option<Probing>) {
        self.probing = probing;
    }

    /// Forgets what was counted.
    pub fn start_anew(&mut self) {
        self.last = None;
        self.suspicion = None;
    }

    /// What the path suffers from, if it is dead, and the limit for it: for when the kernel gives up before us.
    #[must_use]
    pub fn suspected(&self) -> Option<(Cause, Duration)> {
        let suspicion = self.suspicion.as_ref()?;
        let deaf = suspicion.repeats.is_some_and(|repeats| repeats.count >= REPEATS);
        let limit = suspicion.outstanding.map_or(self.limit(), |outstanding| outstanding.limit);
        Some(if deaf { (Cause::Deaf, self.limit()) } else { (Cause::Unreachable, limit) })
    }

    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit.duration()
    }

    /// How often a healthy connection is looked at; a suspicious one twice as often.
    #[must_use]
    pub fn period(&self) -> Duration {
        period(self.limit())
    }

    /// When the next look is due, `now` being the time of the last one.
    #[must_use]
    pub fn next_look(&self, now: Instant) -> Instant {
        let Some(suspicion) = &self.suspicion else { return now + self.period() };
        let regular = now + self.period() / 2;
        match suspicion.outstanding.map(|outstanding| outstanding.since + outstanding.limit) {
            Some(verdict_due) if verdict_due > now => regular.min(verdict_due),
            _ => regular,
        }
    }

    /// Takes one sample, looked at `now`.
    pub fn observe(&mut self, now: Instant, sample: &Sample) -> Verdict {
        if !sample.state.is_judged() {
            self.start_anew();
            return Verdict::NotJudged;
        }
        // Samples that weren't taken prove nothing: after a gap (we were stopped, or the machine was) the
        // count starts anew, and wants something sent after it.
        if self.last.is_some_and(|last| now.saturating_duration_since(last.at.instant()) > 2 * self.period()) {
            self.start_anew();
        }
        let mut suspicion = self.suspicion.take().unwrap_or_default();
        suspicion.note_outstanding(now, sample, self.last, self);
        suspicion.note_repeats(now, sample, self.last, self.limit());
        let verdict = suspicion.verdict(now, sample, self.limit());
        if !suspicion.is_empty() {
            self.suspicion = Some(suspicion);
        }
        self.last = Some(Look {
            at: now.into(),
            probes: sample.probes,
            total_retrans: sample.total_retrans,
            bytes_received: sample.bytes_received as u32,
            bare_acks_in: sample.bare_acks_in(),
            data_segments_in: sample.data_segments_in,
            out_of_order_in: sample.out_of_order_in,
        });
        verdict
    }

    /// For how long, at least, what is outstanding has been so.
    fn age(&self, sample: &Sample) -> Duration {
        if sample.unacked > 0 {
            // The flight began after the last ACK, and not after the last segment was sent.
            sample.since_data_sent.min(sample.since_ack_received)
        } else if sample.unsent == 0
            && let Some(probing) = self.probing
        {
            sample.silence().saturating_sub(Duration::from_secs(probing.idle_seconds.into()))
        } else {
            Duration::ZERO
        }
    }

    /// Whether anything has come in since the last look.
    #[must_use]
    pub fn has_heard(&self, sample: &Sample) -> bool {
        self.last.is_some_and(|last| {
            sample.bare_acks_in() != last.bare_acks_in || sample.data_segments_in != last.data_segments_in
        })
    }
}

/// How often a connection is looked at, at least.
fn period(limit: Duration) -> Duration {
    limit / 8
}

impl Suspicion {
    fn is_empty(&self) -> bool {
        self.outstanding.is_none() && self.repeats.is_none() && self.probing_since.is_none()
    }

    fn note_outstanding(&mut self, now: Instant, sample: &Sample, last: Option<Look>, judge: &Judge) {
        let limit = judge.limit();
        self.probing_since = match self.probing_since {
            _ if sample.probes == 0 => None,
            Some(since) if last.is_some_and(|last| sample.probes >= last.probes) => Some(since),
            _ => Some(now),
        };
        if !sample.is_outstanding() {
            self.outstanding = None;
            return;
        }
        let (limit_here, attempts) = match judge.probing {
            Some(probing) if sample.unacked == 0 && sample.unsent == 0 && probing.patience() <= limit => {
                (probing.patience(), ATTEMPTS.min(probing.count.get().into()))
            }
            _ => (limit, ATTEMPTS),
        };
        let taken_back =
            sample.window_is_taken_back() && last.is_some_and(|last| sample.bare_acks_in() != last.bare_acks_in);
        match &mut self.outstanding {
            // A count of probes that falls has met an answer between two looks.
            Some(outstanding)
                if sample.bytes_acked == outstanding.bytes_acked
                    && sample.probes >= outstanding.probes
                    && !taken_back =>
            {
                outstanding.probes = sample.probes;
                outstanding.limit = limit_here;
                outstanding.attempts = attempts;
                if outstanding.heard.is_none() && now.saturating_duration_since(outstanding.since) >= limit / 8 {
                    outstanding.heard = Some(sample.segments_in);
                }
            }
            _ => {
                let age = match last {
                    None => Duration::ZERO,
                    Some(last) => judge.age(sample).min(now.saturating_duration_since(last.at.instant())),
                };
                // What was sent again before an answer is no attempt after it.
                let (total_retrans, timeouts, probes_before) = match last {
                    Some(last) if self.outstanding.is_none() => (last.total_retrans, 0, last.probes),
                    Some(last) if sample.probes < last.probes => (sample.total_retrans, sample.timeouts, 0),
                    _ => (sample.total_retrans, sample.timeouts, sample.probes),
                };
                let since = now.checked_sub(age).unwrap_or(now);
                self.outstanding = Some(Outstanding {
                    since,
                    limit: limit_here,
                    attempts,
                    bytes_acked: sample.bytes_acked,
                    probes: sample.probes,
                    total_retrans,
                    timeouts,
                    probes_before,
                    heard: None,
                });
            }
        }
    }

    fn note_repeats(&mut self, now: Instant, sample: &Sample, last: Option<Look>, limit: Duration) {
        let Some(last) = last else { return };
        // With our window closed some systems probe it with a byte of data: a repeat that means nothing.
        let progress = sample.bytes_received as u32 != last.bytes_received;
        // Nor is a peer deaf that answers: a repeat carries data, the answer to a probe doesn't.
        let answered = sample.bare_acks_in() != last.bare_acks_in;
        if progress || answered || sample.receive_window.is_none_or(|window| window == 0) {
            self.repeats = None;
            return;
        }
        // Segments out of order fill the room behind a hole: they are new.
        let arrived = sample.data_segments_in.wrapping_sub(last.data_segments_in);
        let repeated = arrived.saturating_sub(sample.out_of_order_in.wrapping_sub(last.out_of_order_in));
        match &mut self.repeats {
            // A peer whose acknowledgement is missing repeats soon; what comes long after the last data is a
            // keepalive probe that carries a byte, as some systems send it.
            None if repeated > 0 && sample.since_data_received < limit => {
                self.repeats =
                    Some(Repeats { count: repeated, last: now, gap: Duration::ZERO, probe_unanswered: false });
            }
            None => {}
            Some(repeats) if repeated > 0 => {
                repeats.count = repeats.count.saturating_add(repeated);
                repeats.gap = now.saturating_duration_since(repeats.last);
                repeats.last = now;
            }
            // The retransmission timer doubles; a peer that is silent for longer has got our ACK. What is known of
            // the last gap is known to within a period.
            Some(repeats) => {
                let quiet = now.saturating_duration_since(repeats.last);
                let next = if repeats.gap.is_zero() { limit } else { (repeats.gap + period(limit)) * 5 / 2 };
                if quiet > next {
                    self.repeats = None;
                }
            }
        }
        // A living kernel answers a probe at once; four round trips, at least 60 ms, are ample. A receiver's round
        // trip may be that of a first SYN that got lost, never measured again; and a late answer still counts.
        let patience = (4 * sample.round_trip).max(Duration::from_millis(60)).min(period(limit));
        if let (Some(repeats), Some(since)) = (&mut self.repeats, self.probing_since)
            && now.saturating_duration_since(since) >= patience
        {
            repeats.probe_unanswered = true;
        }
    }

    fn verdict(&self, now: Instant, sample: &Sample, limit: Duration) -> Verdict {
        if let Some(repeats) = self.repeats {
            // What acknowledged the last new data didn't arrive, nor did anything after it.
            let silence = sample.since_data_received;
            if silence >= limit && repeats.count >= REPEATS && repeats.probe_unanswered {
                return Verdict::Dead { cause: Cause::Deaf, silence, limit };
            }
        }
        let Some(outstanding) = self.outstanding else { return Verdict::Answered };
        let unanswered = now.saturating_duration_since(outstanding.since);
        // A flight's first transmission is an attempt that no counter shows.
        let repeated = sample
            .total_retrans
            .wrapping_sub(outstanding.total_retrans)
            .max(sample.timeouts.saturating_sub(outstanding.timeouts));
        let probed = sample.probes.saturating_sub(outstanding.probes_before);
        let attempts = probed.max(if sample.unacked > 0 { repeated.saturating_add(1) } else { 0 });
        if unanswered < outstanding.limit || attempts < outstanding.attempts {
            return Verdict::Unanswered(unanswered);
        }
        let limit = outstanding.limit;
        let deaf = outstanding.heard.is_some_and(|heard| sample.segments_in != heard);
        if deaf {
            Verdict::Dead { cause: Cause::Deaf, silence: unanswered, limit }
        } else {
            Verdict::Dead { cause: Cause::Unreachable, silence: sample.silence().max(unanswered), limit }
        }
    }
}
