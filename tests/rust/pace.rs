//! Links whose interval changes while they last: two whole machines with a middle box between them, in simulated time.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests; any instant will do as an origin")]

mod pair;

use std::time::{Duration, Instant};

use longconn::proto::adaptive::{AdaptiveConfig, Learnt, Network};
use longconn::proto::cause::Cause;
use longconn::proto::close::{Close, CloseCode};
use longconn::proto::connection::{Config, Event, Introduction, Stats};
use longconn::proto::detector::{DetectorConfig, PhiConfig};
use longconn::proto::heartbeat::{HeartbeatConfig, HeartbeatConfigError};
use proptest::prelude::*;

use self::pair::{Dice, Pair, config, ms};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const HOUR: Duration = secs(3600);
const MIN: Duration = secs(10);
const MAX: Duration = secs(600);

fn adaptive() -> Config {
    let adaptive = AdaptiveConfig { min: MIN, max: MAX, step: 1.5 };
    let heartbeat = HeartbeatConfig { want: MIN, adaptive: Some(adaptive), ..HeartbeatConfig::default() };
    heartbeat.validate().unwrap();
    Config { heartbeat, ..Config::default() }
}

/// What a box in between does with a connection that was quiet for too long.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Forgets {
    Silently,
    WithReset,
    /// Packets of one side don't pass any more, until the other has sent one.
    From(usize),
}

/// Side 0 is the client, which comes back a second after it has lost its link.
struct World {
    pair: Pair,
    configs: [Config; 2],
    timeout: Duration,
    forgets: Forgets,
    /// As far as the box has looked, and when something passed.
    written: [u64; 2],
    passed: Instant,
    drops: u32,
    longest_quiet: Duration,
    network: Network,
}

impl World {
    fn new(client: Config, server: Config, timeout: Duration, forgets: Forgets) -> Self {
        Self::seeded(client, server, timeout, forgets, 7)
    }

    fn seeded(client: Config, server: Config, timeout: Duration, forgets: Forgets, seed: u64) -> Self {
        let introduction = Introduction { will_resume: true, ..Introduction::default() };
        let pair = Pair::introduced(client.clone(), server.clone(), seed, introduction);
        let mut world = Self {
            passed: pair.now,
            pair,
            configs: [client, server],
            timeout,
            forgets,
            written: [0; 2],
            drops: 0,
            longest_quiet: Duration::ZERO,
            network: Network::of([192, 168, 1, 7].into()),
        };
        world.pair.sides[0].connection.set_network(world.network);
        world.run(ms(100));
        world
    }

    fn run(&mut self, duration: Duration) {
        let end = self.pair.now + duration;
        while self.pair.now < end {
            let goes_on = self.pair.step(end);
            self.look();
            if self.pair.sides[0].connection.is_away() {
                self.come_back();
            } else if !goes_on {
                self.pair.now = end;
            }
        }
    }

    fn come_back(&mut self) {
        self.drops += 1;
        self.pair.now += secs(1);
        let server = self.configs[1].clone();
        // HELLO is under way within.
        self.pair.relink(server, u64::from(self.drops) + 100);
        self.pair.sides[0].connection.set_network(self.network);
        for index in 0..2 {
            self.pair.turn(index);
        }
        self.written = [0, 1].map(|index| self.pair.pipes[index].written());
        self.passed = self.pair.now;
    }

    /// The box sees what was sent since it last looked.
    fn look(&mut self) {
        let now = self.pair.now;
        for index in 0..2 {
            let written = self.pair.pipes[index].written();
            if written == std::mem::replace(&mut self.written[index], written) {
                continue;
            }
            let quiet = now.saturating_duration_since(self.passed);
            self.longest_quiet = self.longest_quiet.max(quiet);
            match self.forgets {
                _ if quiet <= self.timeout => {}
                Forgets::Silently => self.pair.cut(),
                Forgets::WithReset => {
                    for pipe in &mut self.pair.pipes {
                        pipe.lose_behind(0);
                        pipe.reset(now);
                    }
                }
                Forgets::From(side) if side == index => {
                    self.pair.pipes[index].is_cut = true;
                    continue;
                }
                Forgets::From(_) => {}
            }
            if let Forgets::From(_) = self.forgets {
                self.pair.mend();
            }
            // Its acknowledgement is what passes last.
            self.passed = now + ms(20);
        }
    }

    fn stats(&self, index: usize) -> Stats {
        self.pair.sides[index].connection.stats(self.pair.now).unwrap()
    }

    fn learnt(&self) -> Learnt {
        self.pair.sides[0].connection.learning().unwrap().learnt(self.pair.now).unwrap()
    }

    fn count(&self, index: usize, wanted: fn(&Event) -> bool) -> usize {
        self.pair.sides[index].events.iter().filter(|(_, event)| wanted(event)).count()
    }
}

fn slow() -> Config {
    config(HOUR)
}

#[test]
fn what_a_box_bears_is_found_whichever_way_it_forgets() {
    for forgets in [Forgets::Silently, Forgets::WithReset] {
        for server in [slow(), adaptive()] {
            let mut world = World::new(adaptive(), server, secs(100), forgets);
            world.run(12 * HOUR);
            let Learnt { proven, settled_for, .. } = world.learnt();
            assert!((secs(65)..=secs(100)).contains(&proven) && settled_for.is_some(), "{forgets:?}: {proven:?}");
            assert_eq!(world.drops, 2, "{forgets:?}");
            for index in 0..2 {
                let stats = world.stats(index);
                assert_eq!([stats.send_interval, stats.hear_interval].map(|at| at.as_secs()), [proven.as_secs(); 2]);
            }
        }
    }
}

#[test]
fn one_direction_that_closes_earlier_sets_the_interval_and_costs_no_link() {
    for side in [0, 1] {
        let mut world = World::new(adaptive(), slow(), secs(100), Forgets::From(side));
        world.run(24 * HOUR);
        let proven = world.learnt().proven;
        assert!((secs(65)..=secs(100)).contains(&proven), "{side}: {proven:?}");
        assert_eq!(world.drops, 0, "{side}");
        // The interval has become shorter on this link, and each side counts on it.
        for index in 0..2 {
            let stats = world.stats(index);
            assert_eq!([stats.send_interval, stats.hear_interval].map(|at| at.as_secs()), [proven.as_secs(); 2]);
        }
    }
}

#[test]
fn both_sides_are_quiet_together_for_as_long_as_was_agreed_and_no_longer() {
    let mut world = World::new(adaptive(), slow(), HOUR, Forgets::Silently);
    world.run(12 * HOUR);
    assert_eq!(world.stats(0).send_interval, MAX);
    let before = [0, 1].map(|index| world.stats(index).beats.sent);
    world.longest_quiet = Duration::ZERO;
    world.run(10 * HOUR);
    assert!(world.longest_quiet >= MAX.mul_f64(0.94) && world.longest_quiet <= MAX, "{:?}", world.longest_quiet);
    for (index, before) in before.into_iter().enumerate() {
        let sent = world.stats(index).beats.sent - before;
        // 60 quiet times of 95 to 100 %, and rarely both come first.
        assert!((60..=70).contains(&sent), "{sent}");
    }
    assert_eq!(world.drops, 0);
}

#[test]
fn the_more_impatient_of_both_is_heeded_and_so_are_explicit_limits() {
    // The server wants to hear every 30 s; or wants to know after 90 s.
    for (server, longest) in [
        (config(secs(30)), secs(30)),
        (
            Config { heartbeat: HeartbeatConfig { limit: Some(secs(90)), ..slow_heartbeat(secs(45)) }, ..slow() },
            secs(45),
        ),
        (Config { heartbeat: HeartbeatConfig { floor: secs(20), ..slow_heartbeat(secs(25)) }, ..slow() }, secs(25)),
    ] {
        let mut world = World::new(adaptive(), server, HOUR, Forgets::Silently);
        world.run(6 * HOUR);
        assert_eq!(world.stats(0).send_interval, longest);
        assert_eq!(world.stats(1).send_interval, longest);
        assert_eq!(world.drops, 0);
    }
}

fn slow_heartbeat(want: Duration) -> HeartbeatConfig {
    HeartbeatConfig { want, ..HeartbeatConfig::default() }
}

#[test]
fn who_doesn_t_know_of_it_is_talked_to_at_the_least_interval() {
    // A server that doesn't follow, as one that has never heard of it: its phi has learnt a rhythm.
    let mut phi = slow();
    phi.heartbeat.detector = DetectorConfig::Phi(PhiConfig::default());
    let mut world = World::new(adaptive(), phi, HOUR, Forgets::Silently);
    world.run(HOUR);
    assert_eq!([0, 1].map(|index| world.stats(index).send_interval), [MIN; 2]);
    // It jitters as ever, and each side beats for itself.
    assert!(world.longest_quiet < MIN);
    // An adaptive server with a client that can't find out: its least is safe.
    let mut world = World::new(slow(), adaptive(), HOUR, Forgets::Silently);
    world.run(HOUR);
    assert_eq!([0, 1].map(|index| world.stats(index).send_interval), [MIN; 2]);
}

#[test]
fn no_healthy_peer_is_ever_suspected_while_the_interval_changes() {
    for (latency, is_blind) in [(ms(1), false), (ms(10), true), (ms(2000), false), (ms(2000), true)] {
        // Stalls make the interval shorter on a living link.
        let mut world = World::new(adaptive(), slow(), secs(200), Forgets::From(1));
        for pipe in &mut world.pair.pipes {
            pipe.latency = latency;
        }
        for side in &mut world.pair.sides {
            side.is_blind = is_blind;
        }
        let mut intervals = Vec::new();
        for minute in 0..(12 * 60) {
            world.run(secs(60));
            // Now and then there is something to say; whether it has arrived is asked for, if the kernel doesn't tell.
            if minute % 97 == 0 {
                world.pair.send(minute % 2, b"21.5");
            }
            intervals.push(world.stats(1).send_interval);
        }
        intervals.dedup();
        let shorter = intervals.windows(2).filter(|pair| pair[1] < pair[0]).count();
        assert!(
            intervals.len() > 6 && shorter > 0,
            "{latency:?} {is_blind} {intervals:?} {:?}",
            (world.stats(0), world.learnt())
        );
        // A peer whose beats are stalled is late for up to a twentieth of the interval.
        assert_eq!(world.drops, 0, "{latency:?} {is_blind}");
        let suspected = [0, 1].map(|index| world.count(index, |event| matches!(event, Event::Suspect { .. })));
        assert!(suspected[1] == 0 && suspected[0] <= 2, "{suspected:?}");
    }
}

#[test]
fn with_something_in_flight_a_death_is_noticed_as_soon_as_at_the_least_interval() {
    for is_blind in [false, true] {
        let mut world = World::new(adaptive(), slow(), HOUR, Forgets::Silently);
        world.run(12 * HOUR);
        assert_eq!(world.stats(0).hear_interval, MAX);
        for sender in [0, 1] {
            world.run(secs(40));
            world.pair.sides[sender].is_blind = is_blind;
            world.pair.cut();
            let cut = world.pair.now;
            world.pair.send(sender, b"into the void");
            let told = |world: &World| {
                world.pair.sides[sender].events.iter().rev().find_map(|(at, event)| match event {
                    Event::Parted { ending, .. } if *at >= cut => Some(ending.cause),
                    _ => None,
                })
            };
            while told(&world).is_none() {
                // The client stays away: what is looked at is the server.
                if sender == 0 {
                    world.run(ms(500));
                } else {
                    world.pair.run(ms(500));
                }
                assert!(
                    world.pair.now < cut + MIN * 13 / 4 + secs(2),
                    "{sender} {is_blind}: {:?}",
                    world.pair.now - cut
                );
            }
            // Nothing is heard either, so it isn't deaf.
            assert_eq!(told(&world), Some(if is_blind { Cause::Silent } else { Cause::Unreachable }));
            if sender == 0 {
                world.run(secs(1));
                while world.stats(0).hear_interval < MAX {
                    world.run(secs(60));
                }
            }
        }
    }
}

#[test]
fn a_client_that_was_suspended_learns_nothing_from_it() {
    let mut world = World::new(adaptive(), slow(), secs(1000), Forgets::Silently);
    world.run(12 * HOUR);
    let before = world.learnt();
    assert_eq!(before.proven, MAX);
    world.pair.sides[0].is_frozen = true;
    world.run(secs(550));
    let now = world.pair.now;
    world.pair.cut();
    world.pair.now = now + 10 * HOUR;
    world.pair.sides[0].is_frozen = false;
    world.run(HOUR);
    assert_eq!(world.drops, 1);
    assert_eq!(world.learnt().failures, 0);
    // The same without a suspension is a failure.
    world.run(HOUR);
    world.timeout = ms(1);
    while world.drops < 2 {
        world.run(secs(1));
    }
    world.timeout = secs(1000);
    world.run(secs(60));
    assert_eq!(world.learnt().failures, 1);
}

#[test]
fn a_link_that_is_cut_while_data_flows_teaches_nothing() {
    let mut world = World::new(adaptive(), slow(), HOUR, Forgets::Silently);
    world.run(12 * HOUR);
    for _ in 0..100 {
        world.pair.send(0, b"21.5");
        world.run(secs(2));
    }
    world.pair.cut();
    for _ in 0..100 {
        if !world.pair.sides[0].connection.is_away() {
            world.pair.send(0, b"21.5");
        }
        world.run(secs(2));
    }
    assert_eq!(world.drops, 1);
    assert_eq!((world.learnt().proven, world.learnt().failures), (MAX, 0));
    assert_eq!(world.pair.sides[1].received.len(), 200);
}

#[test]
fn what_ends_a_quiet_link_without_the_path_s_doing_teaches_nothing() {
    for way in 0..3 {
        let mut world = World::new(adaptive(), slow(), HOUR, Forgets::Silently);
        world.run(12 * HOUR);
        // Just before the next beat.
        while world.stats(0).silence < MAX.mul_f64(0.93) {
            world.run(secs(1));
        }
        let now = world.pair.now;
        match way {
            0 => {
                let close = Close::new(CloseCode::GOING_AWAY, "restart").link_only();
                let mut frame = Vec::new();
                close.encode(&mut frame);
                world.pair.sides[0].connection.handle_input(now, &frame);
            }
            1 => world.pair.sides[0].connection.handle_end(now),
            // What a load balancer says that has forgotten it, and so it is the path's.
            _ => world.pair.sides[0].connection.handle_reset(now),
        }
        world.pair.turn(0);
        world.run(secs(60));
        assert_eq!((world.drops, world.learnt().failures), (1, u32::from(way == 2)), "{way}");
    }
}

#[test]
fn a_client_that_moves_takes_up_what_it_knows_of_the_other_network() {
    let mut world = World::new(adaptive(), slow(), secs(100), Forgets::Silently);
    world.run(12 * HOUR);
    let home = world.learnt().proven;
    let (at_home, mobile) = (world.network, Network::of([100, 64, 3, 3].into()));
    let go = |world: &mut World, network, timeout| {
        (world.network, world.timeout) = (network, timeout);
        world.pair.cut();
        world.run(24 * HOUR);
    };
    go(&mut world, mobile, secs(300));
    let away = world.learnt().proven;
    assert!((secs(195)..=secs(300)).contains(&away), "{away:?}");
    let drops = world.drops;
    go(&mut world, at_home, secs(100));
    assert_eq!((world.learnt().proven, world.learnt().failures), (home, 0));
    go(&mut world, mobile, secs(300));
    assert_eq!((world.learnt().proven, world.learnt().failures), (away, 0));
    assert_eq!(world.drops, drops + 2);
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let good = adaptive().heartbeat;
    let (limit, max) = (2 * MAX - ms(1), MAX);
    let bad = HeartbeatConfig { limit: Some(limit), ..good };
    assert_eq!(bad.validate(), Err(HeartbeatConfigError::LimitBelowAdaptive { limit, max }));
    assert_eq!(HeartbeatConfig { limit: Some(2 * MAX), ..good }.validate(), Ok(()));
    let bad = HeartbeatConfig { detector: DetectorConfig::Phi(PhiConfig::default()), ..good };
    assert_eq!(bad.validate(), Err(HeartbeatConfigError::AdaptivePhi));
    let bad = HeartbeatConfig { floor: MIN + ms(1), ..good };
    assert_eq!(bad.validate(), Err(HeartbeatConfigError::FloorAboveAdaptive { floor: MIN + ms(1), min: MIN }));
}

#[test]
fn a_want_that_can_t_be_ends_a_link_that_follows_and_is_skipped_on_any_other() {
    for (client, ends) in [(adaptive(), true), (slow(), false)] {
        for payload in [&[0, 0, 0][..], &[0, 0, 0, 0], &[0xFF; 4], &[0, 0, 1, 0, 0]] {
            let mut pair = Pair::open(client.clone(), slow());
            let now = pair.now;
            let frame = [&[0, 0, payload.len() as u8, 0x80], payload].concat();
            pair.sides[1].connection.handle_input(now, &frame);
            pair.run(ms(100));
            let cause = pair.sides[1].ending().map(|ending| ending.cause);
            assert_eq!(cause, ends.then_some(Cause::Protocol), "{payload:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    /// Whenever the path is cut, both sides are told within the limit that they state, and not before something is overdue.
    #[test]
    fn the_stated_limit_holds_at_every_moment_of_an_interval_s_change(
        seed in any::<u64>(),
        run in 0_u64..20_000_000,
        latency in 1_u64..3000,
        one_way in 0_usize..3,
    ) {
        let mut world = World::seeded(adaptive(), slow(), secs(150), Forgets::From(1), seed);
        for pipe in &mut world.pair.pipes {
            pipe.latency = ms(latency);
        }
        world.run(ms(run));
        // Where it is at its most delicate: about a change.
        let mut dice = Dice::new(seed);
        let interval = world.stats(0).send_interval;
        while run % 2 == 0 && world.stats(0).send_interval == interval && world.learnt().settled_for.is_none() {
            world.pair.step(world.pair.now + HOUR);
            world.look();
        }
        world.pair.run(ms(dice.below(2 * latency + 2)));
        let limits = [0, 1].map(|index| world.stats(index).limit);
        let cut = world.pair.now;
        for (index, pipe) in world.pair.pipes.iter_mut().enumerate() {
            pipe.is_cut = one_way != index;
        }
        for _ in 0..20_000 {
            if !world.pair.step(cut + 10 * HOUR) { break; }
        }
        for (index, side) in world.pair.sides.iter().enumerate() {
            let told = side.time_of(|event| matches!(event, Event::Parted { .. })).map(|at| at - cut);
            let told = told.expect("a cut link is lost");
            // What was under way when it was cut arrives no more; a WANT heard just before may have changed the limit.
            let most = limits[index].max(MIN * 5 / 2) + 4 * ms(latency) + ms(100);
            let clear = told <= most || one_way == 1 - index;
            prop_assert!(clear, "side {index}, {one_way}: told after {told:?}, limits {limits:?}");
        }
    }
}
