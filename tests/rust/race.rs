//! Races of addresses in simulated time.

#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]
#![allow(clippy::disallowed_methods, reason = "any instant will do as an origin: the rest is reckoned from it")]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use longconn::proto::race::{ATTEMPT_TIMEOUT, Race};
use proptest::prelude::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn v4(number: u8) -> SocketAddr {
    (IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)), 80).into()
}

fn v6(number: u16) -> SocketAddr {
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number)), 80).into()
}

/// What comes of an attempt, so long after it began.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Fails(u64),
    Connects(u64),
    Silent,
}

/// A race, and a network that does what its script says.
struct Scene {
    t0: Instant,
    race: Race,
    /// What comes of each attempt at an address.
    fates: HashMap<SocketAddr, Fate>,
    /// When the look-ups are over, and what they found.
    names: Vec<(u64, usize, Vec<SocketAddr>)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Report {
    /// Milliseconds and addresses of all attempts.
    starts: Vec<(u64, SocketAddr)>,
    ended: u64,
    winner: Option<SocketAddr>,
}

impl Scene {
    fn new(places: usize, preferred: Option<SocketAddr>, timeout: Duration) -> Self {
        let t0 = Instant::now();
        Self { t0, race: Race::new(places, preferred, t0, timeout), fates: HashMap::new(), names: Vec::new() }
    }

    fn of(addresses: &[SocketAddr]) -> Self {
        Self::new(1, None, ATTEMPT_TIMEOUT).with_name(0, 0, addresses)
    }

    fn with_name(mut self, at: u64, place: usize, addresses: &[SocketAddr]) -> Self {
        self.names.push((at, place, addresses.to_vec()));
        self
    }

    fn with_fate(mut self, address: SocketAddr, fate: Fate) -> Self {
        self.fates.insert(address, fate);
        self
    }

    /// To the end, jumping from one moment at which something happens to the next.
    fn run(&mut self) -> Report {
        let mut starts = Vec::new();
        let mut due: Vec<(u64, usize, bool)> = Vec::new();
        let mut now = 0;
        for _step in 0..10_000 {
            let at = self.t0 + ms(now);
            for (_, place, addresses) in self.names.extract_if(.., |(time, ..)| *time <= now) {
                self.race.handle_addresses(place, addresses);
            }
            for (_, id, connects) in due.extract_if(.., |(time, ..)| *time <= now) {
                if self.race.is_over(at) {
                    break;
                }
                if connects {
                    self.race.handle_connected(id);
                } else {
                    self.race.handle_failure(at, id);
                }
            }
            while let Some(attempt) = self.race.poll_start(at) {
                starts.push((now, attempt.address));
                match self.fates.get(&attempt.address).copied().unwrap_or(Fate::Silent) {
                    // At once is while it is being made, as for a network that isn't there.
                    Fate::Fails(0) => assert_eq!(self.race.handle_failure(at, attempt.id), Some(attempt)),
                    Fate::Fails(after) => due.push((now + after, attempt.id, false)),
                    Fate::Connects(after) => due.push((now + after, attempt.id, true)),
                    Fate::Silent => {}
                }
            }
            if self.race.is_over(at) {
                return Report { starts, ended: now, winner: self.race.winner().map(|winner| winner.address) };
            }
            let wakes = self.race.poll_timeout().expect("a race that goes on has an alarm");
            let wakes = u64::try_from((wakes - self.t0).as_millis()).unwrap();
            let events = due.iter().map(|due| due.0).chain(self.names.iter().map(|name| name.0));
            let next = events.chain([wakes]).min().unwrap();
            assert!(next > now, "it doesn't rest at {now}");
            now = next;
        }
        panic!("no end is in sight");
    }
}

#[test]
fn families_alternate_a_quarter_of_a_second_apart_and_begin_with_the_one_that_was_named_first() {
    let report = Scene::of(&[v6(1), v6(2), v6(3), v4(1), v4(2)]).with_fate(v4(2), Fate::Connects(20)).run();
    assert_eq!(report.starts, [(0, v6(1)), (250, v4(1)), (500, v6(2)), (750, v4(2))]);
    assert_eq!((report.ended, report.winner), (770, Some(v4(2))));
    let report = Scene::of(&[v4(1), v4(2), v6(1)]).with_fate(v4(2), Fate::Connects(20)).run();
    assert_eq!(report.starts, [(0, v4(1)), (250, v6(1)), (500, v4(2))]);
}

#[test]
fn who_answers_before_the_others_turn_is_alone() {
    let report = Scene::of(&[v6(1), v4(1)]).with_fate(v6(1), Fate::Connects(249)).run();
    assert_eq!(report, Report { starts: vec![(0, v6(1))], ended: 249, winner: Some(v6(1)) });
}

#[test]
fn a_failure_gives_the_next_its_turn_at_once_and_isnt_tried_again() {
    let report = Scene::of(&[v6(1), v4(1), v4(2)])
        .with_fate(v6(1), Fate::Fails(0))
        .with_fate(v4(1), Fate::Fails(40))
        .with_fate(v4(2), Fate::Connects(300))
        .run();
    assert_eq!(report.starts, [(0, v6(1)), (0, v4(1)), (40, v4(2))]);
    assert_eq!((report.ended, report.winner), (340, Some(v4(2))));
    // With nobody left it is over, long before its time.
    let report = Scene::of(&[v6(1), v4(1)]).with_fate(v6(1), Fate::Fails(0)).with_fate(v4(1), Fate::Fails(3)).run();
    assert_eq!(report, Report { starts: vec![(0, v6(1)), (0, v4(1))], ended: 3, winner: None });
}

#[test]
fn who_does_not_answer_is_asked_by_two_sockets_whose_syns_take_turns() {
    let report = Scene::of(&[v4(1)]).run();
    assert_eq!(report, Report { starts: vec![(0, v4(1)), (500, v4(1))], ended: 5000, winner: None });
    let report = Scene::of(&[v4(1), v4(2)]).run();
    assert_eq!(report.starts, [(0, v4(1)), (250, v4(2)), (750, v4(2)), (1500, v4(1))]);
    // Nobody is asked a second time before all were asked once, nor together with a repeated SYN of the first time.
    let report = Scene::of(&[v4(1), v4(2), v4(3), v4(4)]).run();
    let all = [(0, v4(1)), (250, v4(2)), (500, v4(3)), (750, v4(4))];
    assert_eq!(report.starts[..4], all);
    assert_eq!(report.starts[4..], [(1250, v4(4)), (1500, v4(1)), (1750, v4(2)), (2000, v4(3))]);
}

#[test]
fn who_refuses_is_not_asked_again_while_others_are_waited_for() {
    let report = Scene::of(&[v4(1), v4(2)]).with_fate(v4(1), Fate::Fails(1)).run();
    assert_eq!(report.starts, [(0, v4(1)), (1, v4(2)), (501, v4(2))]);
    // Refused to the second socket: the first one's SYNs go on, and count.
    let mut scene = Scene::of(&[v4(1)]);
    let race = &mut scene.race;
    race.handle_addresses(0, [v4(1)]);
    let first = race.poll_start(scene.t0).unwrap();
    let second = race.poll_start(scene.t0 + ms(500)).unwrap();
    race.handle_failure(scene.t0 + ms(501), second.id);
    assert!(!race.is_over(scene.t0 + ms(501)));
    assert_eq!(race.poll_start(scene.t0 + ms(4999)), None);
    race.handle_connected(first.id);
    assert_eq!(race.winner(), Some(first));
    assert_eq!(race.poll_timeout(), None);
}

#[test]
fn the_last_winner_goes_first_if_it_is_still_an_address_of_the_peer() {
    let mut scene = Scene::new(1, Some(v4(2)), ATTEMPT_TIMEOUT).with_name(0, 0, &[v6(1), v4(1), v4(2)]);
    assert_eq!(scene.run().starts[..3], [(0, v4(2)), (250, v6(1)), (500, v4(1))]);
    let mut scene = Scene::new(1, Some(v4(9)), ATTEMPT_TIMEOUT).with_name(0, 0, &[v6(1), v4(1)]);
    assert_eq!(scene.run().starts[..2], [(0, v6(1)), (250, v4(1))]);
}

#[test]
fn places_are_raced_in_their_order_and_a_name_has_a_moment_to_be_found() {
    // The second place needs no look-up; the first one's takes 20 ms, and is waited for.
    let mut scene = Scene::new(2, None, ATTEMPT_TIMEOUT).with_name(0, 1, &[v4(2)]).with_name(20, 0, &[v4(1)]);
    assert_eq!(scene.run().starts[..2], [(20, v4(1)), (270, v4(2))]);
    // One that takes longer isn't, and joins when it is found.
    let mut scene = Scene::new(2, None, ATTEMPT_TIMEOUT).with_name(0, 1, &[v4(2)]).with_name(400, 0, &[v4(1)]);
    assert_eq!(scene.run().starts, [(50, v4(2)), (400, v4(1)), (900, v4(1)), (1550, v4(2))]);
    // The others don't wait for a name behind them.
    let mut scene = Scene::new(2, None, ATTEMPT_TIMEOUT).with_name(0, 0, &[v4(1)]).with_name(30, 1, &[v4(2)]);
    assert_eq!(scene.run().starts[..2], [(0, v4(1)), (250, v4(2))]);
    // The same address in both is one.
    let mut scene = Scene::new(2, None, ATTEMPT_TIMEOUT).with_name(0, 0, &[v4(1)]).with_name(0, 1, &[v4(1)]);
    assert_eq!(scene.run().starts, [(0, v4(1)), (500, v4(1))]);
}

#[test]
fn a_name_that_is_found_late_does_not_confuse_whose_attempt_failed() {
    let t0 = Instant::now();
    let mut race = Race::new(2, None, t0, ATTEMPT_TIMEOUT);
    race.handle_addresses(1, [v4(2)]);
    let attempt = race.poll_start(t0 + ms(50)).unwrap();
    race.handle_addresses(0, [v4(1), v6(1)]);
    race.handle_failure(t0 + ms(60), attempt.id);
    let unanswered: Vec<_> = race.unanswered().collect();
    assert_eq!(unanswered, [(0, v4(1), false), (0, v6(1), false)]);
}

#[test]
fn the_last_winner_stands_in_for_a_name_that_is_not_found_in_time() {
    let mut scene = Scene::new(1, Some(v4(1)), ATTEMPT_TIMEOUT).with_name(700, 0, &[v4(1), v4(2)]);
    assert_eq!(scene.run().starts, [(500, v4(1)), (750, v4(2)), (1250, v4(2)), (2000, v4(1))]);
    let mut scene = Scene::new(1, Some(v4(1)), ATTEMPT_TIMEOUT).with_name(9000, 0, &[]);
    let report = scene.run();
    assert_eq!((report.starts, report.ended), (vec![(500, v4(1)), (1000, v4(1))], 5000));
    assert_eq!(scene.race.places_unknown().collect::<Vec<_>>(), [0]);
}

#[test]
fn without_addresses_it_is_over_when_the_last_name_was_looked_for() {
    let mut scene = Scene::new(2, None, ATTEMPT_TIMEOUT).with_name(10, 0, &[]).with_name(700, 1, &[]);
    assert_eq!(scene.run(), Report { starts: vec![], ended: 700, winner: None });
    // Or when the time is up, and says for whom it waited.
    let mut scene = Scene::new(2, None, ms(600)).with_name(10, 0, &[]).with_name(700, 1, &[]);
    assert_eq!(scene.run(), Report { starts: vec![], ended: 600, winner: None });
    assert_eq!(scene.race.places_unknown().collect::<Vec<_>>(), [1]);
}

#[test]
fn the_time_is_up_for_those_that_were_not_tried_too() {
    let mut scene = Scene::new(1, None, ms(400)).with_name(0, 0, &[v4(1), v4(2), v4(3)]);
    assert_eq!(scene.run(), Report { starts: vec![(0, v4(1)), (250, v4(2))], ended: 400, winner: None });
    let unanswered: Vec<_> = scene.race.unanswered().collect();
    assert_eq!(unanswered, [(0, v4(1), true), (0, v4(2), true), (0, v4(3), false)]);
    assert!(Scene::new(1, None, Duration::MAX).race.poll_timeout().is_some(), "for ever is long, and doesn't panic");
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![(0..3000_u64).prop_map(Fate::Fails), (1..9000_u64).prop_map(Fate::Connects), Just(Fate::Silent)]
}

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![(0..6_u8).prop_map(v4), (0..6_u16).prop_map(v6)]
}

proptest! {
    #[test]
    fn every_race_comes_to_rest_and_keeps_the_rules(
        places in proptest::collection::vec((0..2000_u64, proptest::collection::vec(address(), 0..5)), 1..4),
        fates in proptest::collection::hash_map(address(), fate(), 0..12),
        preferred in proptest::option::of(address()),
        timeout in 1..8000_u64,
    ) {
        let mut scene = Scene::new(places.len(), preferred, ms(timeout));
        scene.fates = fates.clone();
        let mut all = Vec::new();
        for (place, (at, addresses)) in places.iter().enumerate() {
            all.extend_from_slice(addresses);
            scene = scene.with_name(*at, place, addresses);
        }
        let Report { starts, ended, winner } = scene.run();
        prop_assert!(ended <= timeout);
        let fate = |address| fates.get(&address).copied().unwrap_or(Fate::Silent);
        let mut tries: HashMap<SocketAddr, Vec<u64>> = HashMap::new();
        for &(at, address) in &starts {
            // Or the last winner, for a name that took its time.
            prop_assert!(all.contains(&address) || (Some(address) == preferred && at >= 500));
            tries.entry(address).or_default().push(at);
        }
        for (address, times) in &tries {
            prop_assert!(times.len() <= 2, "{address}: {times:?}");
            if let ([first, second], fate) = (&times[..], fate(*address)) {
                prop_assert!(second - first >= 500);
                prop_assert_eq!((second - first) % 1000, 500);
                prop_assert!(!matches!(fate, Fate::Fails(after) if first + after < *second), "{} was refused", address);
            }
        }
        // Two first attempts are a quarter of a second apart, unless one failed in between.
        let mut firsts: Vec<u64> = tries.values().map(|times| times[0]).collect();
        firsts.sort_unstable();
        let failures: Vec<u64> = starts.iter().filter_map(|&(at, address)| match fate(address) {
            Fate::Fails(after) => Some(at + after),
            _ => None,
        }).collect();
        for pair in firsts.windows(2) {
            let failed = failures.iter().any(|at| (pair[0]..=pair[1]).contains(at));
            prop_assert!(pair[1] - pair[0] >= 250 || failed, "{firsts:?}");
        }
        // Whoever connects first wins, and an early end without a winner means that everybody failed.
        let arrivals = starts.iter().filter_map(|&(at, address)| match fate(address) {
            Fate::Connects(after) => Some(at + after),
            _ => None,
        });
        match (winner, arrivals.min()) {
            (Some(winner), first) => {
                prop_assert_eq!(first, Some(ended));
                prop_assert!(matches!(fate(winner), Fate::Connects(_)));
            }
            (None, first) => {
                prop_assert!(first.is_none_or(|first| first >= ended));
                if ended < timeout {
                    prop_assert!(all.iter().all(|address| matches!(fate(*address), Fate::Fails(_))));
                    prop_assert!(all.iter().all(|address| tries.contains_key(address)));
                }
            }
        }
    }
}
