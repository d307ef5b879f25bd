//! When to beat, what was heard, and the round-trip time that follows from it.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::adaptive::{AdaptiveConfig, AdaptiveConfigError};
use super::detector::{DetectorConfig, MAX_PHI};
use super::frame::{Fields, Kind, put_frame};
use super::handshake::Rhythm;
use super::moment::{Moment, Span};
use super::random::SplitMix;

pub const MAX_STATUS_BYTES: usize = 1024;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A beat handed out later than this after it was due counts as late.
const LATE: Duration = Duration::from_millis(20);
/// Pings of ours whose echo is awaited; further ones wait for the next beat.
const MAX_PINGS: usize = 64;

const ANSWER: u8 = 1;
const EXTRA: u8 = 2;
/// An age that nobody knows.
const UNKNOWN_AGE: u32 = u32::MAX;

/// What a program wishes of its heartbeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeartbeatConfig {
    /// How often we wish to hear, and are ready to send.
    pub want: Duration,
    /// A client finds out how much more than `want` the path bears; a server lets such a client do so. `want` is its least.
    pub adaptive: Option<AdaptiveConfig>,
    /// The fastest we will send, whatever the peer wants.
    pub floor: Duration,
    /// The silence after which the peer counts as lost; `None` is the default rule.
    pub limit: Option<Duration>,
    pub detector: DetectorConfig,
    /// The peer counts as hung when its application made no progress for longer.
    pub application_limit: Option<Duration>,
    /// The peer counts as hung when its interpreter could not run for longer.
    pub interpreter_limit: Option<Duration>,
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        Self {
            want: Duration::from_secs(5),
            adaptive: None,
            floor: Duration::from_millis(50),
            limit: None,
            detector: DetectorConfig::Limit,
            application_limit: None,
            interpreter_limit: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum HeartbeatConfigError {
    #[error("{name} is {duration:?}, it must be 1 ms to 24 h")]
    Duration { name: &'static str, duration: Duration },
    #[error("limit {limit:?} is below the interval {want:?}")]
    LimitBelowInterval { limit: Duration, want: Duration },
    #[error("adaptive interval: {0}")]
    Adaptive(#[from] AdaptiveConfigError),
    #[error("limit {limit:?} is under twice the adaptive interval's max, {max:?}")]
    LimitBelowAdaptive { limit: Duration, max: Duration },
    #[error("floor {floor:?} is above the adaptive interval's min, {min:?}")]
    FloorAboveAdaptive { floor: Duration, min: Duration },
    #[error("phi learns a rhythm, and an adaptive interval has none")]
    AdaptivePhi,
    #[error("phi's threshold is {threshold}, it must be above 0 and at most {max}", max = MAX_PHI / 3.0)]
    Threshold { threshold: f64 },
    #[error("phi's window is {window}, it must be 2 to 100,000")]
    Window { window: usize },
}

impl HeartbeatConfig {
    pub fn validate(&self) -> Result<(), HeartbeatConfigError> {
        let mut durations = vec![("interval", self.want), ("floor", self.floor)];
        durations.extend(self.limit.map(|limit| ("limit", limit)));
        durations.extend(self.application_limit.map(|limit| ("application_limit", limit)));
        durations.extend(self.interpreter_limit.map(|limit| ("interpreter_limit", limit)));
        if let DetectorConfig::Phi(phi) = self.detector {
            durations.push(("min_std", phi.min_std));
            // None at all is a legal pause.
            durations.push(("acceptable_pause", phi.acceptable_pause.max(Duration::from_millis(1))));
            if !(phi.threshold > 0.0 && phi.threshold <= MAX_PHI / 3.0) {
                return Err(HeartbeatConfigError::Threshold { threshold: phi.threshold });
            }
            if !(2..=100_000).contains(&phi.window) {
                return Err(HeartbeatConfigError::Window { window: phi.window });
            }
        }
        for (name, duration) in durations {
            if !(Duration::from_millis(1)..=DAY).contains(&duration) {
                return Err(HeartbeatConfigError::Duration { name, duration });
            }
        }
        if let Some(adaptive) = &self.adaptive {
            adaptive.validate()?;
            if self.floor > adaptive.min {
                return Err(HeartbeatConfigError::FloorAboveAdaptive { floor: self.floor, min: adaptive.min });
            }
            match self.limit {
                Some(limit) if limit < 2 * adaptive.max => {
                    return Err(HeartbeatConfigError::LimitBelowAdaptive { limit, max: adaptive.max });
                }
                _ if self.detector != DetectorConfig::Limit => return Err(HeartbeatConfigError::AdaptivePhi),
                _ => {}
            }
        }
        match self.limit {
            Some(limit) if limit < self.want => {
                Err(HeartbeatConfigError::LimitBelowInterval { limit, want: self.want })
            }
            _ => Ok(()),
        }
    }

    /// Whether this client may set the pace. Phi learns a rhythm, and would take a longer interval for an end; and a client that
    /// has to beat as rarely as our floor says may be too rare for our limit.
    #[must_use]
    pub(super) fn may_follow(&self, client: &Rhythm) -> bool {
        let ours = self.rhythm();
        let interval = ours.interval_of_both(client);
        self.detector == DetectorConfig::Limit && ours.limit.is_none_or(|limit| limit >= 2 * interval)
    }

    /// As it goes on the wire, in whole milliseconds.
    #[must_use]
    pub fn rhythm(&self) -> Rhythm {
        let whole = |duration: Duration| Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX));
        Rhythm { want: whole(self.want), floor: whole(self.floor), limit: self.limit.map(whole) }
    }
}

/// One BEAT, as on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat<'a> {
    /// Beat back at once.
    pub answer: bool,
    /// It was sent beside the rhythm, as a reply or to ask.
    pub extra: bool,
    /// Microseconds from an origin of the sender's own.
    pub sent_at: u64,
    /// The newest `sent_at` heard from the peer; zero: none yet.
    pub echo: u64,
    /// Microseconds since that was heard.
    pub held: u64,
    pub interpreter_age: Option<Duration>,
    pub application_age: Option<Duration>,
    pub status: &'a [u8],
}

impl<'a> Beat<'a> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, Kind::Beat, |out| {
            out.push(if self.answer { ANSWER } else { 0 } | if self.extra { EXTRA } else { 0 });
            for number in [self.sent_at, self.echo, self.held] {
                out.extend_from_slice(&number.to_be_bytes());
            }
            for age in [self.interpreter_age, self.application_age] {
                out.extend_from_slice(&age_to_wire(age).to_be_bytes());
            }
            out.extend_from_slice(self.status);
        });
    }

    #[must_use]
    pub fn decode(payload: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(payload);
        let flags = fields.u8()?;
        let (sent_at, echo, held) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (interpreter_age, application_age) = (age_from_wire(fields.u32()?), age_from_wire(fields.u32()?));
        let status = fields.0;
        if sent_at == 0 || status.len() > MAX_STATUS_BYTES {
            return None;
        }
        let (answer, extra) = (flags & ANSWER != 0, flags & EXTRA != 0);
        Some(Self { answer, extra, sent_at, echo, held, interpreter_age, application_age, status })
    }
}

pub(super) fn age_to_wire(age: Option<Duration>) -> u32 {
    age.map_or(UNKNOWN_AGE, |age| u32::try_from(age.as_millis()).unwrap_or(UNKNOWN_AGE).min(UNKNOWN_AGE - 1))
}

pub(super) fn age_from_wire(ms: u32) -> Option<Duration> {
    (ms != UNKNOWN_AGE).then(|| Duration::from_millis(ms.into()))
}

/// The peer's beat can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeatError {
    #[error("it echoes a beat that was never sent")]
    EchoOfNothing,
    #[error("its clock runs backwards")]
    Backwards,
}

/// Round trips, as beats showed them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrip {
    pub last: Option<Duration>,
    /// After RFC 6298: an eighth of each new one.
    pub smoothed: Option<Duration>,
    pub least: Option<Duration>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BeatCounts {
    pub sent: u64,
    pub heard: u64,
    /// Of ours, handed to the kernel more than 20 ms after they were due.
    pub late: u64,
    pub worst_lateness: Duration,
}

/// What a beat of the peer brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// One of our own beats is newly known to have arrived; true if it was the newest.
    pub arrived: Option<bool>,
    pub round_trip: Option<Duration>,
}

/// One side's beats on one link.
#[derive(Debug)]
pub struct Heartbeat {
    /// How often we send.
    interval: Span,
    /// Both sides beat together, and then are quiet together: see [`Heartbeat::keep_pace`].
    keeps_pace: bool,
    random: SplitMix,
    start: Moment,
    /// `sent_at` at `start`.
    origin: u64,
    next_beat: Moment,
    pending: Option<Pending>,
    last_sent_at: u64,
    /// The newest of ours that the peer echoed.
    last_echo: u64,
    /// The peer's newest `sent_at`, and when it was heard.
    to_echo: Option<(u64, Moment)>,
    /// `sent_at` of the end of our last pause: what was sent before measures the pause.
    paused_at: u64,
    last_trip: Option<Trip>,
    smoothed_trip: Option<Trip>,
    least_trip: Option<Trip>,
    /// Enough for seven years of beats at their fastest; they stand still then.
    sent: u32,
    heard: u32,
    late: u32,
    /// In microseconds; no more than 71 minutes.
    worst_lateness_us: u32,
    /// Most programs never ask.
    pings: Option<Box<Pings>>,
}

#[derive(Debug, Default)]
struct Pings {
    last: u64,
    /// `sent_at` of the beat that carries it, and the newest ping that it answers.
    under_way: Vec<(u64, u64)>,
}

/// A round trip in microseconds, and one; up to 71 minutes, which none takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trip(NonZeroU32);

impl From<Duration> for Trip {
    fn from(duration: Duration) -> Self {
        Self(NonZeroU32::MIN.saturating_add(duration.as_micros().try_into().unwrap_or(u32::MAX)))
    }
}

impl Trip {
    pub(super) fn duration(self) -> Duration {
        Duration::from_micros(u64::from(self.0.get()) - 1)
    }
}

/// The one beat that is to be sent.
#[derive(Clone, Copy, Debug)]
struct Pending {
    due: Moment,
    answer: bool,
    extra: bool,
}

impl Heartbeat {
    /// `seed` makes origin, phase and jitter; each link wants another one.
    #[must_use]
    pub fn new(now: Instant, interval: Duration, seed: u64) -> Self {
        let mut random = SplitMix(seed);
        // Never 0, and so far from the end that half a million years fit.
        let origin = 1 + (random.next() >> 2);
        let phase = interval.mul_f64(random.fraction());
        Self {
            interval: interval.into(),
            keeps_pace: false,
            random,
            start: now.into(),
            origin,
            next_beat: (now + phase).into(),
            pending: None,
            last_sent_at: 0,
            last_echo: 0,
            to_echo: None,
            paused_at: 0,
            last_trip: None,
            smoothed_trip: None,
            least_trip: None,
            sent: 0,
            heard: 0,
            late: 0,
            worst_lateness_us: 0,
            pings: None,
        }
    }

    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval.duration()
    }

    /// Every beat asks for an answer, and the next is counted from any beat that was sent. So whoever comes first, both have beaten,
    /// and the path is quiet for an interval: a radio wakes once and not twice, and what was survived is known.
    pub(super) fn keep_pace(&mut self) {
        self.keeps_pace = true;
    }

    pub(super) fn set_interval(&mut self, now: Instant, interval: Duration) {
        self.interval = interval.into();
        self.next_beat = self.next_beat.min(Moment::from(now) + interval);
    }

    /// Jitter only shortens, so no interval is longer than was agreed. Where it is measured what an interval does, by little: who
    /// comes first is by chance, which tries both directions.
    fn next(&mut self, now: Instant) -> Moment {
        let least = if self.keeps_pace { 0.95 } else { 0.75 };
        (now + self.interval().mul_f64(least + (1.0 - least) * self.random.fraction())).into()
    }

    #[must_use]
    pub fn round_trip(&self) -> RoundTrip {
        let of = |trip: Option<Trip>| trip.map(Trip::duration);
        RoundTrip { last: of(self.last_trip), smoothed: of(self.smoothed_trip), least: of(self.least_trip) }
    }

    fn record_trip(&mut self, sample: Duration) {
        let before = self.round_trip();
        self.last_trip = Some(sample.into());
        self.smoothed_trip = Some(before.smoothed.map_or(sample, |smoothed| (smoothed * 7 + sample) / 8).into());
        self.least_trip = Some(before.least.map_or(sample, |least| least.min(sample)).into());
    }

    #[must_use]
    pub fn counts(&self) -> BeatCounts {
        BeatCounts {
            sent: self.sent.into(),
            heard: self.heard.into(),
            late: self.late.into(),
            worst_lateness: Duration::from_micros(self.worst_lateness_us.into()),
        }
    }

    /// When the peer's newest beat was heard.
    #[must_use]
    pub fn last_heard(&self) -> Option<Instant> {
        self.to_echo.map(|(_, heard)| heard.instant())
    }

    #[must_use]
    pub fn poll_timeout(&self) -> Moment {
        self.next_beat
    }

    /// Makes a beat pending if one is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if Moment::from(now) >= self.next_beat {
            let due = self.next_beat;
            self.next_beat = self.next(now);
            self.put(Pending { due, answer: self.keeps_pace, extra: false });
        }
    }

    /// Asks the peer to beat back at once.
    pub fn ask(&mut self, now: Instant) {
        self.put(Pending { due: now.into(), answer: true, extra: true });
    }

    /// Asks, and gives the number by which [`Heartbeat::handle_beat`] will say that the answer came.
    pub fn ping(&mut self, now: Instant) -> u64 {
        self.ask(now);
        let pings = self.pings.get_or_insert_default();
        pings.last += 1;
        pings.last
    }

    fn reply(&mut self, now: Instant) {
        self.put(Pending { due: now.into(), answer: false, extra: true });
    }

    /// Newer replaces older, and keeps what the older one was for.
    fn put(&mut self, newer: Pending) {
        let older = self.pending.unwrap_or(newer);
        self.pending = Some(Pending {
            due: older.due.min(newer.due),
            answer: older.answer | newer.answer,
            extra: older.extra & newer.extra,
        });
    }

    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// The pending beat's own fields as they are now, when it is about to be handed to the kernel.
    #[must_use]
    pub fn pending_beat<'a>(&self, now: Instant, ages: Ages, status: &'a [u8]) -> Option<Beat<'a>> {
        let pending = self.pending?;
        let (echo, held) = match self.to_echo {
            Some((echo, heard)) => (echo, micros(now.saturating_duration_since(heard.instant()))),
            None => (0, 0),
        };
        Some(Beat {
            answer: pending.answer,
            extra: pending.extra,
            sent_at: self.clock(now).max(self.last_sent_at + 1),
            echo,
            held,
            interpreter_age: ages.interpreter,
            application_age: ages.application,
            status,
        })
    }

    /// The beat with this `sent_at` was handed to the kernel. True if it asked for an answer.
    pub fn on_sent(&mut self, now: Instant, sent_at: u64) -> bool {
        let Some(pending) = self.pending.take() else { return false };
        self.last_sent_at = sent_at;
        if self.keeps_pace {
            self.next_beat = self.next(now);
        }
        self.sent = self.sent.saturating_add(1);
        let lateness = now.saturating_duration_since(pending.due.instant());
        if lateness > LATE {
            self.late = self.late.saturating_add(1);
        }
        self.worst_lateness_us = self.worst_lateness_us.max(lateness.as_micros().try_into().unwrap_or(u32::MAX));
        if pending.answer
            && let Some(pings) = &mut self.pings
            && pings.last > pings.under_way.last().map_or(0, |(_, ping)| *ping)
        {
            if pings.under_way.len() == MAX_PINGS {
                pings.under_way.pop();
            }
            pings.under_way.push((sent_at, pings.last));
        }
        pending.answer
    }

    /// Takes a beat of the peer.
    pub fn handle_beat(&mut self, now: Instant, beat: &Beat<'_>) -> Result<Heard, BeatError> {
        if beat.echo > self.last_sent_at || (beat.echo != 0 && beat.echo < self.origin) {
            return Err(BeatError::EchoOfNothing);
        }
        if self.to_echo.is_some_and(|(newest, _)| beat.sent_at <= newest) || beat.echo < self.last_echo {
            return Err(BeatError::Backwards);
        }
        self.heard = self.heard.saturating_add(1);
        self.to_echo = Some((beat.sent_at, now.into()));
        if beat.answer {
            self.reply(now);
        }
        if beat.echo == self.last_echo {
            return Ok(Heard { arrived: None, round_trip: None });
        }
        self.last_echo = beat.echo;
        let arrived = Some(beat.echo == self.last_sent_at);
        let there_and_back = self.clock(now).checked_sub(beat.echo).and_then(|took| took.checked_sub(beat.held));
        // What was under way while we were paused measures the pause.
        let round_trip = there_and_back.filter(|_| beat.echo >= self.paused_at).map(Duration::from_micros);
        if let Some(sample) = round_trip {
            self.record_trip(sample);
        }
        Ok(Heard { arrived, round_trip })
    }

    /// A ping whose beat is known to have arrived.
    #[must_use]
    pub fn poll_pong(&mut self) -> Option<u64> {
        let under_way = &mut self.pings.as_mut()?.under_way;
        let &(sent_at, ping) = under_way.first()?;
        if sent_at > self.last_echo {
            return None;
        }
        under_way.remove(0);
        if under_way.is_empty() {
            *under_way = Vec::new();
        }
        Some(ping)
    }

    /// We were paused, until now.
    pub fn on_pause(&mut self, now: Instant) {
        self.paused_at = self.clock(now).max(self.last_sent_at + 1);
    }

    /// Nothing that we sent since our last pause is known to have arrived.
    #[must_use]
    pub fn is_unheard_since_pause(&self) -> bool {
        self.paused_at > 0 && self.last_echo < self.paused_at
    }

    /// What `sent_at` would be.
    pub(super) fn clock(&self, now: Instant) -> u64 {
        self.origin.saturating_add(micros(now.saturating_duration_since(self.start.instant())))
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}

/// What our own program is doing; `None` where nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    pub interpreter: Option<Duration>,
    pub application: Option<Duration>,
}
