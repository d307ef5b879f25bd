//! When to try again: how long each attempt to come back waits. No clock, and no dice of its own: who calls throws them.

use std::time::Duration;

/// What [`BackoffConfig::first`] and [`BackoffConfig::cap`] may be at most.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Steeper is no exponential backoff any more, but a long wait after the second failure. Arbitrary.
const MOST_FACTOR: f64 = 10.0;
/// A server that wants more than this to pass is not believed: it may be a mistake of units.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(5 * 60);
/// Between the beginnings of attempts that never left this machine's network: they cost nobody anything, and the network may be
/// back at any moment.
const LOCAL_PACE: Duration = Duration::from_millis(500);
/// Between the beginnings of attempts that nobody answered, if they were given less time than this.
const UNANSWERED_PACE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackoffConfig {
    /// How far the first attempts are spread when many peers were lost at once, and what grows from there.
    pub first: Duration,
    /// No attempt waits longer, unless the server asks for it.
    pub cap: Duration,
    /// What each failed attempt multiplies the spread by.
    pub factor: f64,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), cap: Duration::from_secs(30), factor: 2.0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum BackoffConfigError {
    #[error("first is {first:?}, it must be above 0 and at most the cap, {cap:?}")]
    First { first: Duration, cap: Duration },
    #[error("cap is {cap:?}, it must be at most 24 h")]
    Cap { cap: Duration },
    #[error("factor is {factor}, it must be 1 to {MOST_FACTOR}")]
    Factor { factor: f64 },
}

impl BackoffConfig {
    pub fn validate(&self) -> Result<(), BackoffConfigError> {
        let Self { first, cap, factor } = *self;
        if cap > DAY {
            return Err(BackoffConfigError::Cap { cap });
        }
        if first.is_zero() || first > cap {
            return Err(BackoffConfigError::First { first, cap });
        }
        // Nor NaN.
        if !(1.0..=MOST_FACTOR).contains(&factor) {
            return Err(BackoffConfigError::Factor { factor });
        }
        Ok(())
    }
}

/// What an attempt follows upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A link was lost, and as far as can be seen no other with it: silence.
    Lost,
    /// A link was lost in a way that strikes all of a server's clients at once: its process ended, it reset the connection, it
    /// said that it goes away.
    LostWithOthers,
    /// The last attempt failed, and somebody had work with it: refused, or the handshake failed.
    Refused,
    /// Nobody answered the last attempt, which was given so much time.
    Unanswered { took: Duration },
    /// The last attempt never left this machine's network: it has none, no route, no address, no server for names. To find
    /// that out took so long: a gateway that doesn't answer is looked for, for 3 s.
    Local { took: Duration },
    /// The server said, by CLOSE or in refusing, that nobody is to come back earlier.
    RetryAfter(Duration),
}

/// Full jitter within the cap (Brooker, "Exponential Backoff And Jitter", AWS 2015): the bound grows, and the attempt comes at any
/// moment within it. Jitter that is added to a delay which has reached the cap would keep those who were cut at once in step.
#[derive(Debug)]
pub struct Backoff {
    config: BackoffConfig,
    failed_attempts: u32,
    /// The link that was made last was more than a connection.
    is_proven: bool,
}

impl Backoff {
    /// For a configuration that is valid.
    #[must_use]
    pub fn new(config: BackoffConfig) -> Self {
        Self { config, failed_attempts: 0, is_proven: false }
    }

    /// A beat sent after the replay was echoed. A mere connection proves nothing: a server that accepts and falls over is
    /// not to be hammered.
    pub fn on_proven(&mut self) {
        self.failed_attempts = 0;
        self.is_proven = true;
    }

    /// The link that was made last was good; until its loss is reported by [`Backoff::next`].
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// Those that somebody had work with, since the last proven link; one that was lost unproven is one of them.
    #[must_use]
    pub fn failed_attempts(&self) -> u32 {
        self.failed_attempts
    }

    /// How long from now the next attempt begins; `random` is any number, another one each time.
    #[must_use]
    pub fn next(&mut self, why: Why, random: u64) -> Duration {
        let fraction = (random >> 11) as f64 / (1_u64 << 53) as f64;
        match why {
            Why::Local { took } => LOCAL_PACE.saturating_sub(took),
            // It took its time, and within it the kernel's own pace bounded what was sent. A wait would only delay the
            // moment at which a path that is back is used.
            Why::Unanswered { took } => UNANSWERED_PACE.saturating_sub(took),
            Why::Lost if self.is_proven => {
                self.is_proven = false;
                Duration::ZERO
            }
            Why::Lost | Why::LostWithOthers | Why::Refused => self.count_and_spread(fraction),
            Why::RetryAfter(least) => {
                // Spread behind what was asked for, never before it.
                let asked = least.min(MOST_RETRY_AFTER).mul_f64(1.0 + fraction);
                self.count_and_spread(fraction).max(asked)
            }
        }
    }

    fn count_and_spread(&mut self, fraction: f64) -> Duration {
        if !std::mem::take(&mut self.is_proven) {
            self.failed_attempts = self.failed_attempts.saturating_add(1);
        }
        let BackoffConfig { first, cap, factor } = self.config;
        // It may be infinite, and is cut then.
        let grown = first.as_secs_f64() * factor.powf(self.failed_attempts.into());
        Duration::from_secs_f64(grown.min(cap.as_secs_f64()) * fraction)
    }
}
