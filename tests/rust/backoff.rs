//! How long attempts wait, by dice whose seeds are fixed.

#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::time::Duration;

use longconn::proto::backoff::{Backoff, BackoffConfig, BackoffConfigError, Why};
use proptest::prelude::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const FIVE_SECONDS: Why = Why::Unanswered { took: Duration::from_secs(5) };

fn proven() -> Backoff {
    let mut backoff = Backoff::new(BackoffConfig::default());
    backoff.on_proven();
    backoff
}

/// Numbers of xorshift64*, whose high bits are good.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

#[test]
fn a_link_lost_alone_is_tried_again_at_once_and_then_within_bounds_that_grow_to_the_cap() {
    let mut backoff = proven();
    assert_eq!(backoff.next(Why::Lost, u64::MAX), Duration::ZERO);
    for bound in [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
        let longest = backoff.next(Why::Refused, u64::MAX);
        assert!(longest <= ms(bound) && longest > ms(bound - 1), "{longest:?}, {bound}");
    }
    assert_eq!(backoff.next(Why::Refused, 0), Duration::ZERO);
    assert_eq!(backoff.failed_attempts(), 11);
}

#[test]
fn a_loss_that_strikes_many_is_spread_from_the_first_attempt_on() {
    let longest = proven().next(Why::LostWithOthers, u64::MAX);
    assert!(longest <= ms(100) && longest > ms(99), "{longest:?}");
    assert_eq!(proven().next(Why::LostWithOthers, 1 << 63), ms(50));
}

#[test]
fn only_a_proven_link_begins_anew() {
    let mut backoff = proven();
    let _ = backoff.next(Why::Lost, 0);
    for attempts in 1..=5 {
        // Connected, and lost before anything came of it: no attempt goes at once.
        let why = if attempts % 2 == 0 { Why::Lost } else { Why::LostWithOthers };
        assert_eq!(backoff.next(why, 1 << 63), ms(50 << attempts));
        assert_eq!(backoff.failed_attempts(), attempts);
    }
    backoff.on_proven();
    assert_eq!(backoff.failed_attempts(), 0);
    assert_eq!(backoff.next(Why::Lost, u64::MAX), Duration::ZERO);
    assert_eq!(backoff.next(Why::Refused, 1 << 63), ms(100));
}

#[test]
fn one_that_never_had_a_link_counts_its_first_failure() {
    let mut backoff = Backoff::new(BackoffConfig::default());
    assert_eq!(backoff.next(Why::Refused, 1 << 63), ms(100));
}

#[test]
fn what_cost_the_server_nothing_does_not_lengthen_the_wait_whatever_the_cap() {
    let config = BackoffConfig { cap: Duration::from_secs(86_400), factor: 10.0, ..BackoffConfig::default() };
    let mut backoff = Backoff::new(config);
    for random in [0, 1 << 63, u64::MAX] {
        for _ in 0..1000 {
            assert_eq!(backoff.next(Why::Local { took: ms(0) }, random), ms(500));
            assert_eq!(backoff.next(Why::Local { took: ms(200) }, random), ms(300));
            assert_eq!(backoff.next(Why::Local { took: ms(3000) }, random), ms(0));
            assert_eq!(backoff.next(FIVE_SECONDS, random), Duration::ZERO);
        }
    }
    assert_eq!(backoff.failed_attempts(), 0);
    assert_eq!(backoff.next(Why::Refused, 1 << 63), ms(500));
}

#[test]
fn attempts_that_were_given_little_time_begin_no_closer_than_a_second() {
    let mut backoff = Backoff::new(BackoffConfig::default());
    assert_eq!(backoff.next(Why::Unanswered { took: ms(10) }, 7), ms(990));
    assert_eq!(backoff.next(Why::Unanswered { took: Duration::ZERO }, 7), ms(1000));
    assert_eq!(backoff.next(Why::Unanswered { took: ms(1000) }, 7), Duration::ZERO);
}

#[test]
fn what_the_server_asks_for_is_a_minimum_and_has_a_limit() {
    let asked = Why::RetryAfter(Duration::from_secs(8));
    assert_eq!(proven().next(asked, 0), Duration::from_secs(8));
    assert_eq!(proven().next(asked, 1 << 63), Duration::from_secs(12));
    let longest = proven().next(Why::RetryAfter(Duration::MAX), u64::MAX);
    assert!(longest <= Duration::from_secs(600) && longest > Duration::from_secs(599), "{longest:?}");
    // Its own backoff holds beside it: a server that says "at once" again and again doesn't end it.
    let mut backoff = proven();
    let _ = backoff.next(Why::RetryAfter(Duration::ZERO), 0);
    for _ in 0..20 {
        let _ = backoff.next(Why::RetryAfter(Duration::ZERO), 0);
    }
    assert_eq!(backoff.next(Why::RetryAfter(ms(1)), 1 << 63), Duration::from_secs(15));
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let valid = BackoffConfig::default();
    assert_eq!(valid.validate(), Ok(()));
    let second = Duration::from_secs(1);
    let day = Duration::from_secs(86_400);
    assert_eq!(BackoffConfig { first: day, cap: day, factor: 1.0 }.validate(), Ok(()));
    assert_eq!(
        BackoffConfig { first: Duration::ZERO, ..valid }.validate(),
        Err(BackoffConfigError::First { first: Duration::ZERO, cap: valid.cap })
    );
    assert_eq!(
        BackoffConfig { first: second, cap: ms(999), factor: 2.0 }.validate(),
        Err(BackoffConfigError::First { first: second, cap: ms(999) })
    );
    let cap = day + Duration::from_nanos(1);
    assert_eq!(BackoffConfig { cap, ..valid }.validate(), Err(BackoffConfigError::Cap { cap }));
    for factor in [0.99, 10.01, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -2.0] {
        assert!(matches!(BackoffConfig { factor, ..valid }.validate(), Err(BackoffConfigError::Factor { .. })));
    }
}

/// When each of 1,000 clients makes its attempts, all cut at the same moment by a server that stays away for `away`.
fn attempts(away: Duration, why: Why, seed: u64) -> Vec<Vec<Duration>> {
    let mut dice = Dice(seed);
    let client = |dice: &mut Dice| {
        let mut backoff = proven();
        let (mut at, mut why, mut attempts) = (Duration::ZERO, why, Vec::new());
        loop {
            at += backoff.next(why, dice.next());
            attempts.push(at);
            if at >= away {
                return attempts;
            }
            why = Why::Refused;
        }
    };
    (0..1000).map(|_| client(&mut dice)).collect()
}

/// Chi-squared against an even spread, over the degrees of freedom: near 1 if it is even.
fn unevenness(counts: &[u64]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let squares: f64 = counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum();
    squares / (counts.len() - 1) as f64
}

fn histogram(times: impl Iterator<Item = Duration>, from: Duration, bin: Duration, bins: usize) -> Vec<u64> {
    let mut counts = vec![0; bins];
    for time in times {
        if let Some(bin) = time.checked_sub(from).map(|time| (time.as_nanos() / bin.as_nanos()) as usize)
            && bin < bins
        {
            counts[bin] += 1;
        }
    }
    counts
}

#[test]
fn a_thousand_clients_cut_at_once_are_spread_at_first_and_never_in_step_at_the_cap() {
    for seed in 1..=20 {
        let clients = attempts(Duration::from_secs(600), Why::LostWithOthers, seed);
        // The first attempts fill the first tenth of a second evenly. Twice the even spread's value would come about by
        // chance once in 10,000 trials.
        let firsts = histogram(clients.iter().map(|client| client[0]), Duration::ZERO, ms(5), 20);
        assert_eq!(firsts.iter().sum::<u64>(), 1000);
        assert!(unevenness(&firsts) < 2.5, "seed {seed}: {firsts:?}");
        // At the cap all of it is used: once a client in 15 s on average, at any moment alike.
        let late = histogram(clients.iter().flatten().copied(), Duration::from_secs(120), Duration::from_secs(1), 480);
        let (least, most) = (late.iter().min().unwrap(), late.iter().max().unwrap());
        let mean = late.iter().sum::<u64>() as f64 / late.len() as f64;
        assert!((mean - 1000.0 / 15.0).abs() < 2.0, "seed {seed}: {mean}");
        assert!(unevenness(&late) < 1.5, "seed {seed}: {least} to {most} a second");
        assert!(*most < 120, "seed {seed}: {most} in one second");
    }
}

#[test]
fn the_waits_at_the_cap_are_even_over_the_whole_of_it() {
    let mut dice = Dice(2);
    let mut backoff = Backoff::new(BackoffConfig::default());
    for _ in 0..9 {
        let _ = backoff.next(Why::Refused, dice.next());
    }
    let waits = (0..10_000).map(|_| backoff.next(Why::Refused, dice.next()));
    let counts = histogram(waits, Duration::ZERO, Duration::from_secs(1), 30);
    assert_eq!(counts.iter().sum::<u64>(), 10_000);
    assert!(unevenness(&counts) < 2.0, "{counts:?}");
}

fn why() -> impl Strategy<Value = Why> {
    prop_oneof![
        Just(Why::Lost),
        Just(Why::LostWithOthers),
        Just(Why::Refused),
        (0..5000_u64).prop_map(|took| Why::Local { took: ms(took) }),
        any::<u32>().prop_map(|ms| Why::Unanswered { took: Duration::from_millis(ms.into()) }),
        any::<u32>().prop_map(|ms| Why::RetryAfter(Duration::from_millis(ms.into()))),
    ]
}

fn config() -> impl Strategy<Value = BackoffConfig> {
    (1..=86_400_000_u64, 0.0..=1.0, 1.0..=10.0).prop_map(|(cap, part, factor)| {
        let cap = ms(cap);
        BackoffConfig { first: cap.mul_f64(part).max(Duration::from_nanos(1)), cap, factor }
    })
}

proptest! {
    #[test]
    fn no_history_makes_a_wait_longer_than_its_bound(
        config in config(),
        history in proptest::collection::vec((why(), any::<u64>(), any::<bool>()), 0..300),
    ) {
        prop_assert_eq!(config.validate(), Ok(()));
        let mut backoff = Backoff::new(config);
        for (why, random, proves) in history {
            if proves {
                backoff.on_proven();
            }
            let wait = backoff.next(why, random);
            match why {
                Why::Lost | Why::LostWithOthers | Why::Refused => prop_assert!(wait <= config.cap),
                Why::Local { took } => prop_assert_eq!(wait, ms(500).saturating_sub(took)),
                Why::Unanswered { took } => prop_assert_eq!(wait, ms(1000).saturating_sub(took)),
                Why::RetryAfter(asked) => {
                    let asked = asked.min(Duration::from_secs(300));
                    prop_assert!(wait >= asked && wait <= (2 * asked).max(config.cap));
                }
            }
        }
    }
}
