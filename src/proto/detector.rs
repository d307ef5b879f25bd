//! Silence -> alive, suspect, lost: by a fixed limit, or by phi accrual. The second clock, for what we send, too.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::moment::{Moment, Span};

/// Grace after a pause of our own, beside four round trips (DESIGN 5).
const GRACE: Duration = Duration::from_secs(1);
/// Phi has no end; exp() would underflow near 745. Far beyond any threshold that makes sense.
pub const MAX_PHI: f64 = 300.0;

/// How silence is turned into a verdict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DetectorConfig {
    /// Lost after `limit`.
    Limit,
    /// Lost when phi, the improbability of the silence, reaches `threshold`.
    Phi(PhiConfig),
}

/// The phi accrual failure detector, as Pekko has it (after Hayashibara et al., 2004).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PhiConfig {
    pub threshold: f64,
    /// Intervals remembered.
    pub window: usize,
    /// The deviation is never taken to be less.
    pub min_std: Duration,
    pub acceptable_pause: Duration,
}

impl Default for PhiConfig {
    /// Those of Pekko's cluster.
    fn default() -> Self {
        Self {
            threshold: 8.0,
            window: 1000,
            min_std: Duration::from_millis(100),
            acceptable_pause: Duration::from_secs(3),
        }
    }
}

/// The limit by the default rule: two and a half intervals, at least 1.1 s (a retransmission after one lost packet
/// takes up to 0.8 s on a clean path), and two smoothed round trips.
#[must_use]
pub fn default_limit(interval: Duration, smoothed_round_trip: Duration) -> Duration {
    (interval * 5 / 2).max(Duration::from_millis(1100)) + 2 * smoothed_round_trip
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Alive,
    Suspect,
    /// Nothing was heard for so long, against this limit.
    Lost {
        silence: Duration,
        limit: Duration,
    },
    /// Nothing of ours has arrived for so long, though the peer is heard.
    Deaf {
        unproven: Duration,
        limit: Duration,
    },
}

/// An interval that has grown keeps a path open; what is allowed beyond it stays as it was.
#[derive(Debug)]
struct Growth {
    /// The interval when the link opened.
    base: Duration,
    /// Since when the peer owes an answer.
    asked_since: Option<Moment>,
}

#[derive(Debug)]
pub struct Detector {
    /// The peer's effective interval.
    interval: Span,
    /// Where the interval may grow.
    growth: Option<Box<Growth>>,
    explicit_limit: Option<Span>,
    phi: Option<Box<Phi>>,
    last_heard: Moment,
    suspect_since: Option<Moment>,
    /// Since when something of ours is outstanding and nothing of ours is known to have arrived.
    unproven_since: Option<Moment>,
    /// No verdict before: we were paused, and the peer is owed a chance to be heard.
    grace_until: Option<Moment>,
}

impl Detector {
    /// For a peer that sends every `interval`, heard right now.
    #[must_use]
    pub fn new(now: Instant, interval: Duration, limit: Option<Duration>, config: DetectorConfig) -> Self {
        let phi = match config {
            DetectorConfig::Limit => None,
            DetectorConfig::Phi(config) => Some(Box::new(Phi::new(config, interval))),
        };
        Self {
            interval: interval.into(),
            growth: None,
            explicit_limit: limit.map(Span::from),
            phi,
            last_heard: now.into(),
            suspect_since: None,
            unproven_since: None,
            grace_until: None,
        }
    }

    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval.duration()
    }

    /// The interval may change, and the peer answers at once when it is asked to.
    pub fn allow_growth(&mut self) {
        self.growth = Some(Box::new(Growth { base: self.interval(), asked_since: None }));
    }

    /// From now on the peer sends every `interval`.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval.into();
    }

    fn base(&self) -> Duration {
        self.growth.as_ref().map_or_else(|| self.interval(), |growth| growth.base)
    }

    fn asked_since(&self) -> Option<Moment> {
        self.growth.as_ref()?.asked_since
    }

    /// Of silence, where nothing is owed but the peer's next beat.
    #[must_use]
    pub fn limit(&self, smoothed_round_trip: Duration) -> Duration {
        let grown = self.interval().saturating_sub(self.base());
        self.answer_limit(smoothed_round_trip) + if self.explicit_limit.is_some() { Duration::ZERO } else { grown }
    }

    /// Of what the peer owes at once: an answer, or a sign that something of ours has arrived.
    #[must_use]
    pub fn answer_limit(&self, smoothed_round_trip: Duration) -> Duration {
        self.explicit_limit.map_or_else(|| default_limit(self.base(), smoothed_round_trip), Span::duration)
    }

    /// How long an echo is under way at most, from a peer that answers at its next beat.
    #[must_use]
    pub fn overdue(&self) -> Duration {
        self.interval() + self.base() / 4
    }

    #[must_use]
    pub fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_heard.instant())
    }

    #[must_use]
    pub fn suspect_since(&self) -> Option<Moment> {
        self.suspect_since
    }

    /// Since when something of ours is outstanding and nothing of ours is known to have arrived.
    #[must_use]
    pub fn unproven_since(&self) -> Option<Moment> {
        self.unproven_since
    }

    #[must_use]
    pub fn unproven(&self, now: Instant) -> Option<Duration> {
        self.unproven_since.map(|since| now.saturating_duration_since(since.instant()))
    }

    #[must_use]
    pub fn phi(&self, now: Instant) -> Option<f64> {
        self.phi.as_ref().map(|phi| phi.value(self.silence(now)))
    }

    /// Any byte is life. True if the peer was suspect until now.
    pub fn on_bytes(&mut self, now: Instant) -> bool {
        self.last_heard = self.last_heard.max(now.into());
        if let Some(growth) = &mut self.growth {
            growth.asked_since = None;
        }
        self.grace_until = None;
        self.suspect_since.take().is_some()
    }

    /// A beat that belongs to the peer's rhythm came.
    pub fn on_periodic_beat(&mut self, now: Instant) {
        if let Some(phi) = &mut self.phi {
            phi.on_arrival(now);
        }
    }

    /// Bytes of ours were handed to the kernel.
    pub fn on_sent(&mut self, now: Instant) {
        self.unproven_since.get_or_insert_with(|| now.into());
    }

    /// The peer was asked to beat at once.
    pub fn on_asked(&mut self, now: Instant) {
        if let Some(growth) = &mut self.growth {
            growth.asked_since.get_or_insert_with(|| now.into());
        }
    }

    /// Something of ours is outstanding, and the peer, whose next beat may be far off, wasn't asked about it.
    #[must_use]
    pub fn should_ask(&self) -> bool {
        self.unproven_since.is_some() && self.growth.as_ref().is_some_and(|growth| growth.asked_since.is_none())
    }

    /// Something of ours is known to have arrived, but not everything.
    pub fn on_something_arrived(&mut self, now: Instant) {
        if self.unproven_since.is_some() {
            self.unproven_since = Some(now.into());
        }
    }

    pub fn on_everything_arrived(&mut self) {
        self.unproven_since = None;
    }

    /// We ourselves were paused, until now. The grace is given once, until a byte is heard: else a machine that
    /// stutters would never convict anybody.
    pub fn on_pause(&mut self, now: Instant, smoothed_round_trip: Duration) {
        if self.grace_until.is_none() {
            let grace = self.answer_limit(smoothed_round_trip).min(GRACE + 4 * smoothed_round_trip);
            self.grace_until = Some((now + grace).into());
        }
        // While we were paused nobody could tell us what had arrived.
        if self.unproven_since.is_some() {
            self.unproven_since = Some(now.into());
        }
        if let Some(asked) = self.growth.as_mut().and_then(|growth| growth.asked_since.as_mut()) {
            *asked = now.into();
        }
        if let Some(phi) = &mut self.phi {
            phi.on_failure();
        }
    }

    /// A verdict is due: it is given after the kernel was looked at.
    #[must_use]
    pub fn judge(&mut self, now: Instant, smoothed_round_trip: Duration) -> Judgement {
        let at = Moment::from(now);
        if at >= self.lost_at(smoothed_round_trip) {
            let limit = self.silence(self.silent_at(smoothed_round_trip).instant());
            return Judgement::Lost { silence: self.silence(now), limit };
        }
        if self.suspect_since.is_none() && at >= self.suspect_at() {
            self.suspect_since = Some(now.into());
            if let Some(phi) = &mut self.phi {
                phi.on_failure();
            }
        }
        if self.suspect_since.is_some() {
            return Judgement::Suspect;
        }
        match self.deaf_at(smoothed_round_trip) {
            Some(deaf_at) if at >= deaf_at => {
                let (unproven, limit) =
                    (self.unproven(now).unwrap_or_default(), self.patience_for_proof(smoothed_round_trip));
                Judgement::Deaf { unproven, limit }
            }
            _ => Judgement::Alive,
        }
    }

    /// When [`Detector::judge`] is to be asked next.
    #[must_use]
    pub fn poll_timeout(&self, smoothed_round_trip: Duration) -> Moment {
        let lost_at = self.lost_at(smoothed_round_trip);
        if self.suspect_since.is_some() {
            return lost_at;
        }
        let deaf_at = self.deaf_at(smoothed_round_trip).unwrap_or(lost_at);
        lost_at.min(deaf_at).min(self.suspect_at())
    }

    fn suspect_at(&self) -> Moment {
        let base = self.base();
        let silent = self.last_heard + (self.interval() + base / 2);
        self.asked_since().map_or(silent, |asked| silent.min(asked + base * 3 / 2))
    }

    /// When the silence is longer than is borne. Where the interval hasn't grown, who is asked is allowed no less than who isn't.
    fn silent_at(&self, smoothed_round_trip: Duration) -> Moment {
        let patience = match &self.phi {
            Some(phi) => phi.patience(),
            None => self.limit(smoothed_round_trip),
        };
        let silent = self.last_heard + patience;
        self.asked_since().map_or(silent, |asked| silent.min(asked + self.patience_for_proof(smoothed_round_trip)))
    }

    fn patience_for_proof(&self, smoothed_round_trip: Duration) -> Duration {
        match &self.phi {
            Some(phi) => phi.patience(),
            None => self.answer_limit(smoothed_round_trip),
        }
    }

    fn lost_at(&self, smoothed_round_trip: Duration) -> Moment {
        self.after_grace(self.silent_at(smoothed_round_trip))
    }

    /// Deaf is a peer that is heard; a suspect is judged by its silence, which takes no longer.
    fn deaf_at(&self, smoothed_round_trip: Duration) -> Option<Moment> {
        let since = self.unproven_since.filter(|_| self.suspect_since.is_none())?;
        Some(self.after_grace(since + self.patience_for_proof(smoothed_round_trip)))
    }

    fn after_grace(&self, due: Moment) -> Moment {
        self.grace_until.map_or(due, |grace| due.max(grace))
    }
}

/// How improbable a silence is, from the intervals between the peer's periodic beats.
#[derive(Debug)]
pub struct Phi {
    config: PhiConfig,
    /// Seconds, oldest first.
    intervals: VecDeque<f64>,
    mean: f64,
    /// Sum of squared differences from the mean (Welford): a sum of squares minus a square would go negative.
    squares: f64,
    last_arrival: Option<Instant>,
    /// Deviations beyond the mean at which phi reaches the threshold.
    deviations: f64,
}

impl Phi {
    /// Seeded with two samples about the interval that is expected: a quarter less, a quarter more.
    #[must_use]
    pub fn new(config: PhiConfig, interval: Duration) -> Self {
        let mut phi = Self {
            config,
            intervals: VecDeque::new(),
            mean: 0.0,
            squares: 0.0,
            last_arrival: None,
            deviations: deviations_at(config.threshold),
        };
        let expected = interval.as_secs_f64();
        phi.record(expected * 0.75);
        phi.record(expected * 1.25);
        phi
    }

    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The deviation that is reckoned with, in seconds.
    #[must_use]
    pub fn deviation(&self) -> f64 {
        let variance = self.squares.max(0.0) / self.intervals.len().max(1) as f64;
        variance.sqrt().max(self.config.min_std.as_secs_f64())
    }

    pub fn on_arrival(&mut self, now: Instant) {
        if let Some(last) = self.last_arrival {
            self.record(now.saturating_duration_since(last).as_secs_f64());
        }
        self.last_arrival = Some(now);
    }

    /// The interval that spans a failure, or a pause of ours, isn't recorded.
    pub fn on_failure(&mut self) {
        self.last_arrival = None;
    }

    /// -log10 of the probability that a beat comes later than after `silence`.
    #[must_use]
    pub fn value(&self, silence: Duration) -> f64 {
        let expected = self.mean + self.config.acceptable_pause.as_secs_f64();
        phi_of((silence.as_secs_f64() - expected) / self.deviation())
    }

    /// The silence at which the threshold is reached.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let seconds = self.mean + self.config.acceptable_pause.as_secs_f64() + self.deviations * self.deviation();
        Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX).min(Duration::from_secs(1 << 32))
    }

    /// Welford's update, by which the oldest sample can also leave.
    fn record(&mut self, interval: f64) {
        if self.intervals.len() < self.config.window.max(2) {
            self.intervals.push_back(interval);
            let difference = interval - self.mean;
            self.mean += difference / self.intervals.len() as f64;
            self.squares += difference * (interval - self.mean);
        } else if let Some(oldest) = self.intervals.pop_front() {
            self.intervals.push_back(interval);
            let old_mean = self.mean;
            self.mean += (interval - oldest) / self.intervals.len() as f64;
            self.squares += (interval - oldest) * (interval - self.mean + oldest - old_mean);
        }
    }
}

/// The logistic approximation to the normal distribution's tail that Akka and Pekko use. With x = y (1.5976 +
/// 0.070566 y^2), both of their branches are log10(1 + exp(x)), which for large x is x / ln 10 without an overflow.
fn phi_of(y: f64) -> f64 {
    let x = y * (1.5976 + 0.070_566 * y * y);
    let phi = if x > 30.0 { x } else { x.exp().ln_1p() } / std::f64::consts::LN_10;
    phi.min(MAX_PHI)
}

/// The inverse of [`phi_of`], which grows with y: halving an interval 60 times leaves less than 1e-15.
fn deviations_at(threshold: f64) -> f64 {
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if phi_of(middle) < threshold { low = middle } else { high = middle }
    }
    high
}
