//! Points and lengths of time in half the room that `Instant` and `Duration` take, for what each of many thousand idle
//! connections keeps. Exact to the nanosecond, and no clock: instants go in and come out again.

use std::num::NonZeroU64;
use std::ops::Add;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The number of [`ORIGIN`]: in the middle, so that 292 years fit on either side of it.
const MIDDLE: u64 = 1 << 63;
/// Any instant will do that stays the same: the first that was asked about.
static ORIGIN: OnceLock<Instant> = OnceLock::new();

/// A point in time, in nanoseconds; what lies beyond 292 years is moved there. An `Option` of it is no larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(NonZeroU64);

impl From<Instant> for Moment {
    fn from(at: Instant) -> Self {
        let origin = *ORIGIN.get_or_init(|| at);
        let number = match at.checked_duration_since(origin) {
            Some(later) => MIDDLE.saturating_add(nanoseconds(later)),
            None => MIDDLE.saturating_sub(nanoseconds(origin.saturating_duration_since(at))),
        };
        Self(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }
}

impl Moment {
    #[must_use]
    pub fn instant(self) -> Instant {
        let number = self.0.get();
        let origin = *ORIGIN.get().expect("a moment is made of an instant, which has set it");
        let at = match number.checked_sub(MIDDLE) {
            Some(later) => origin.checked_add(Duration::from_nanos(later)),
            None => origin.checked_sub(Duration::from_nanos(MIDDLE - number)),
        };
        at.unwrap_or(origin)
    }

    /// To a whole multiple of `step`, counted from where no one knows.
    #[must_use]
    pub fn rounded_down(self, step: Duration) -> Self {
        let number = self.0.get();
        Self(NonZeroU64::new(number - number % nanoseconds(step).max(1)).unwrap_or(self.0))
    }
}

/// For what is kept in an atomic.
impl From<Moment> for NonZeroU64 {
    fn from(at: Moment) -> Self {
        at.0
    }
}

impl From<NonZeroU64> for Moment {
    fn from(number: NonZeroU64) -> Self {
        Self(number)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(duration)))
    }
}

/// A length of time, up to 584 years; longer ones are cut. An `Option` of it is no larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(
    /// Nanoseconds, and one.
    NonZeroU64,
);

impl Span {
    pub const ZERO: Self = Self(NonZeroU64::MIN);

    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_nanos(self.0.get() - 1)
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(NonZeroU64::MIN.saturating_add(nanoseconds(duration)))
    }
}

impl Default for Span {
    fn default() -> Self {
        Self::ZERO
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    // In 64 bits: deadlines are reckoned with for each message.
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into())
}
