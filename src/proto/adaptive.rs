//! How long a path may be quiet: the longest interval between beats that whatever lies in between still bears.
//!
//! After Tencent mars' SmartHeartbeat: begin with the least, count what is survived, step up, step back by a margin upon failure,
//! settle, and try again days later. What differs, and why:
//!
//! - Counted are quiet times that were really there, and for either side that ended them: a beat of the one keeps the path open for
//!   the other, and some middle boxes bear less in one direction.
//! - A link that died in silence proves nothing by itself. It is a doubt, which becomes a failure once the next link has beaten at the
//!   least interval for a while: a path that doesn't bear that either, a server that restarted, a network that was left or that
//!   others lost too had another reason.
//! - What was learnt is kept for each network, and a success forgives failures; in mars two in a lifetime would unsettle.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::moment::Moment;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Steeper would overshoot by more than it learns. Arbitrary.
const MOST_STEP: f64 = 4.0;
/// Beats forth and back on a link, at the least interval, before it is trusted with a longer one (mars: 3).
const CALM: u32 = 3;
/// Quiet times survived, of either direction, before a longer one is tried. mars: 5, of any.
const ENOUGH: u32 = 3;
/// Failures that settle what was being tried (mars: 2): one may be a middle box short of memory.
const CONVINCING: u32 = 2;
/// Failures that unsettle (mars: 2): to learn anew takes hours.
const UNSETTLING: u32 = 3;
/// Quiet times survived that make failures forgotten. Arbitrary: so a box that forgets one in a hundred early is borne.
const FORGIVING: u32 = 10;
/// So often in a row a failure is put down to what befell other links at the same time. A fleet that settled together also dies
/// together when a middle box has become stricter.
const MOST_EXCUSES: u32 = 2;
/// Settled for so long, a longer one is tried (mars: at least a day, and then on a certain day of the week).
const RETRY_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// As mars has it; the least used goes.
const MOST_NETWORKS: usize = 20;

/// What a program allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptiveConfig {
    /// What every path is believed to bear.
    pub min: Duration,
    pub max: Duration,
    /// What an interval that has been borne is multiplied by for the next to be tried.
    pub step: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum AdaptiveConfigError {
    #[error("min is {min:?}, it must be at least 1 ms and less than max, {max:?}")]
    Min { min: Duration, max: Duration },
    #[error("max is {max:?}, it must be at most 24 h")]
    Max { max: Duration },
    #[error("step is {step}, it must be 1.01 to {MOST_STEP}")]
    Step { step: f64 },
}

impl AdaptiveConfig {
    pub fn validate(&self) -> Result<(), AdaptiveConfigError> {
        let Self { min, max, step } = *self;
        if max > DAY {
            return Err(AdaptiveConfigError::Max { max });
        }
        if min < Duration::from_millis(1) || min >= max {
            return Err(AdaptiveConfigError::Min { min, max });
        }
        // Nor NaN.
        if !(1.01..=MOST_STEP).contains(&step) {
            return Err(AdaptiveConfigError::Step { step });
        }
        Ok(())
    }
}

/// Where we are, as far as our own address tells: its first 24 bits, or 64 of IPv6. Two networks behind the same private prefix
/// are taken for one; what was learnt in the other is then unlearnt here, at the price of two links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(IpAddr);

impl Network {
    /// Where nobody says which one it is, it is always the same.
    pub const UNKNOWN: Self = Self(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

    #[must_use]
    pub fn of(ours: IpAddr) -> Self {
        Self(match ours.to_canonical() {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & (u32::MAX << 8)).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        })
    }

    #[must_use]
    pub fn prefix(&self) -> IpAddr {
        self.0
    }
}

/// Who ended a quiet time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    Us,
    Peer,
}

/// What is known of a network, to be shown and to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learnt {
    /// The longest interval that the path has borne.
    pub proven: Duration,
    /// Since when nothing longer is tried; `None`: it is.
    pub settled_for: Option<Duration>,
    /// Of the interval that is tried, or settled on.
    pub failures: u32,
}

/// How a link was lost that had no goodbye.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// When the peer was last heard.
    pub heard: Instant,
    pub now: Instant,
    /// How long the path had been quiet before what was not answered; `None`: it wasn't, or the reason is known to be another.
    pub quiet: Option<Duration>,
}

/// Losses of all links of a process, the newest of them: many at once have one reason.
#[derive(Debug)]
pub struct Losses {
    at: [AtomicU64; 32],
    next: AtomicUsize,
}

impl Default for Losses {
    fn default() -> Self {
        Self::new()
    }
}

impl Losses {
    #[must_use]
    pub const fn new() -> Self {
        Self { at: [const { AtomicU64::new(0) }; 32], next: AtomicUsize::new(0) }
    }

    fn note(&self, now: Instant) {
        let slot = self.next.fetch_add(1, Ordering::Relaxed) % self.at.len();
        self.at[slot].store(NonZeroU64::from(Moment::from(now)).get(), Ordering::Relaxed);
    }

    fn count(&self, from: Moment, to: Moment) -> usize {
        let times = self.at.iter().filter_map(|at| NonZeroU64::new(at.load(Ordering::Relaxed)));
        times.map(Moment::from).filter(|at| (from..=to).contains(at)).count()
    }
}

/// What is known of one network.
#[derive(Clone, Copy, Debug)]
struct State {
    proven: Duration,
    /// When, and how long before that.
    settled: Option<(Instant, Duration)>,
    failures: u32,
    excuses: u32,
    /// At the interval that holds: by whom the quiet was ended.
    survived: [u32; 2],
    /// Since the last failure.
    good: u32,
}

impl State {
    fn new(proven: Duration) -> Self {
        Self { proven, settled: None, failures: 0, excuses: 0, survived: [0; 2], good: 0 }
    }

    fn settle(&mut self, now: Instant) {
        self.settled = Some((now, Duration::ZERO));
        (self.failures, self.survived) = (0, [0; 2]);
    }

    fn settled_for(&self, now: Instant) -> Option<Duration> {
        self.settled.map(|(at, before)| now.saturating_duration_since(at).saturating_add(before))
    }

    fn fail(&mut self, now: Instant, config: &AdaptiveConfig) {
        self.failures += 1;
        (self.good, self.survived) = (0, [0; 2]);
        let is_settled = self.settled.is_some();
        if self.failures < if is_settled { UNSETTLING } else { CONVINCING } {
            return;
        }
        if is_settled {
            // What was borne isn't any more: the path has changed, and nothing is known of it.
            *self = Self::new(config.min);
        } else {
            self.proven = nine_tenths(self.proven).max(config.min);
            self.settle(now);
        }
    }

    fn learnt(&self, now: Instant) -> Learnt {
        Learnt { proven: self.proven, settled_for: self.settled_for(now), failures: self.failures }
    }
}

/// The margin: of an interval to step back to, and of a quiet time, which jitter and a round trip shorten.
fn nine_tenths(interval: Duration) -> Duration {
    interval - interval / 10
}

/// A link died after a quiet time, and may have died of it.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    network: Network,
    from: Instant,
    to: Instant,
    /// What is in [`Losses`] of our own.
    noted: usize,
}

/// What one client has learnt of the networks that it was in, and how far its present link is trusted.
#[derive(Debug)]
pub struct Learning {
    config: AdaptiveConfig,
    /// The present one last.
    networks: Vec<(Network, State)>,
    doubt: Option<Doubt>,
    /// Exchanges on the present link.
    calm: u32,
    /// The longest interval that its peer and the limits allow.
    cap: Duration,
    /// Grows whenever something is known that is worth keeping.
    changes: u64,
}

impl Learning {
    /// With what was kept from before: the most recently used last.
    #[must_use]
    pub fn new(now: Instant, config: AdaptiveConfig, kept: &[(Network, Learnt)]) -> Self {
        let state = |learnt: &Learnt| {
            let proven = learnt.proven.clamp(config.min, config.max);
            // What settled under another `max`, or `min`, hasn't under these.
            let settled = learnt.settled_for.filter(|_| proven == learnt.proven);
            let most = if settled.is_some() { UNSETTLING } else { CONVINCING } - 1;
            let failures = learnt.failures.min(most);
            State { settled: settled.map(|before| (now, before)), failures, ..State::new(proven) }
        };
        let mut networks: Vec<(Network, State)> = Vec::new();
        for (network, learnt) in &kept[kept.len().saturating_sub(MOST_NETWORKS)..] {
            networks.retain(|(known, _)| known != network);
            networks.push((*network, state(learnt)));
        }
        Self { config, networks, doubt: None, calm: 0, cap: config.min, changes: 0 }
    }

    /// A link is open, at the least interval. `cap` is the longest interval that may be agreed on it; `is_known`: the peer knows
    /// the session, so it hasn't restarted.
    pub fn on_open(&mut self, network: Network, cap: Duration, is_known: bool) {
        (self.calm, self.cap) = (0, cap);
        let state = match self.networks.iter().position(|(known, _)| *known == network) {
            Some(index) => self.networks.remove(index).1,
            None => State::new(self.config.min),
        };
        self.networks.push((network, state));
        if self.networks.len() > MOST_NETWORKS {
            self.networks.remove(0);
        }
        self.doubt = self.doubt.take().filter(|doubt| is_known && doubt.network == network);
    }

    fn state(&self) -> Option<&State> {
        self.networks.last().map(|(_, state)| state)
    }

    /// Beyond what is proven, and what is proven where nothing more can be tried.
    fn tried(&self, state: &State) -> Duration {
        let proven = state.proven.min(self.cap);
        if state.settled.is_some() { proven } else { proven.mul_f64(self.config.step).min(self.cap) }
    }

    /// The interval that the present link is to have now.
    #[must_use]
    pub fn interval(&self) -> Duration {
        match self.state() {
            Some(state) if self.calm >= CALM => self.tried(state).max(self.config.min),
            _ => self.config.min,
        }
    }

    /// The path was quiet for so long, and then a beat went forth and back, or came in time.
    pub fn on_survived(&mut self, now: Instant, quiet: Duration, first: First, losses: &Losses) {
        if self.calm < CALM {
            self.calm += 1;
            if self.calm == CALM {
                self.resolve_doubt(now, losses);
            }
            return;
        }
        let (config, cap, interval) = (self.config, self.cap, self.interval());
        let Some((_, state)) = self.networks.last_mut() else { return };
        if quiet < nine_tenths(interval) {
            return;
        }
        state.survived[first as usize] += 1;
        state.good += 1;
        if state.good >= FORGIVING {
            (state.failures, state.excuses) = (0, 0);
        }
        if state.settled.is_some() {
            if state.proven < config.max && state.settled_for(now).is_some_and(|since| since >= RETRY_AFTER) {
                *state = State::new(state.proven);
                self.changes += 1;
            }
        } else if state.survived.iter().all(|survived| *survived >= ENOUGH) {
            if interval > state.proven {
                *state = State { excuses: state.excuses, good: state.good, ..State::new(interval) };
                self.changes += 1;
            }
            if state.proven >= config.max.min(cap) && cap >= config.max {
                state.settle(now);
                self.changes += 1;
            }
        }
    }

    /// The peer's beat was sent after a quiet time of so long, and came only when we had sent something ourselves: the path had
    /// closed in that direction.
    pub fn on_stalled(&mut self, now: Instant, quiet: Duration) {
        if self.may_blame(quiet) {
            let config = self.config;
            if let Some((_, state)) = self.networks.last_mut() {
                state.fail(now, &config);
                self.changes += 1;
            }
        }
    }

    /// A quiet time as long as what is proven, at an interval above the least, may be the reason of what followed.
    fn may_blame(&self, quiet: Duration) -> bool {
        let proven = self.state().map_or(self.config.max, |state| state.proven.min(self.cap));
        self.interval() > self.config.min && quiet >= nine_tenths(proven)
    }

    /// The link is lost.
    pub fn on_lost(&mut self, loss: &Loss, losses: &Losses) {
        let Loss { heard, now, quiet } = *loss;
        let is_doubtful = quiet.is_some_and(|quiet| self.may_blame(quiet));
        let is_trying = self.state().is_some_and(|state| self.interval() > state.proven);
        // Who overshoots says nothing about the others' links.
        let noted = usize::from(!(is_doubtful && is_trying));
        if noted > 0 {
            losses.note(now);
        }
        let network = self.networks.last().map(|(network, _)| *network).filter(|_| is_doubtful);
        self.doubt = network.map(|network| Doubt { network, from: heard, to: now, noted });
        self.changes += u64::from(self.doubt.is_some());
    }

    /// The least interval is borne, so it was the longer one that wasn't.
    fn resolve_doubt(&mut self, now: Instant, losses: &Losses) {
        let Some(doubt) = self.doubt.take() else { return };
        let config = self.config;
        let Some((_, state)) = self.networks.last_mut() else { return };
        // Others notice within their own limits.
        let until = Moment::from(doubt.to) + config.min * 5 / 2;
        let others = losses.count(doubt.from.into(), until).saturating_sub(doubt.noted);
        if others > 0 && state.excuses < MOST_EXCUSES {
            state.excuses += 1;
        } else {
            state.fail(now, &config);
        }
        self.changes += 1;
    }

    /// Grows whenever [`Learning::kept`] has become another.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// What is known of the present network.
    #[must_use]
    pub fn learnt(&self, now: Instant) -> Option<Learnt> {
        self.state().map(|state| state.learnt(now))
    }

    /// What is worth keeping, the most recently used last. A doubt that nothing will resolve counts as a failure: the program may end
    /// before it comes back.
    #[must_use]
    pub fn kept(&self, now: Instant) -> Vec<(Network, Learnt)> {
        let mut networks = self.networks.clone();
        if let Some(doubt) = self.doubt
            && let Some((_, state)) = networks.iter_mut().find(|(network, _)| *network == doubt.network)
        {
            state.fail(now, &self.config);
        }
        networks.into_iter().map(|(network, state)| (network, state.learnt(now))).collect()
    }
}
