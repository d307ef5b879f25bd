//! Adaptive intervals against middle boxes of many kinds, in simulated time.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests; any instant will do as an origin")]

mod pair;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use longconn::proto::adaptive::{AdaptiveConfig, AdaptiveConfigError, First, Learning, Learnt, Loss, Losses, Network};

use self::pair::Dice;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const DAY: Duration = secs(86_400);
const CONFIG: AdaptiveConfig = AdaptiveConfig { min: secs(15), max: secs(7200), step: 1.25 };

fn network(address: &str) -> Network {
    Network::of(address.parse::<IpAddr>().unwrap())
}

/// What becomes of the first packet after a quiet time.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Passes,
    /// It arrives once the other side has sent something.
    Stalls,
    /// The link is dead.
    Dies,
}

/// What becomes of the first packet after so long a quiet, sent by either side.
type MiddleBox<'b> = Box<dyn FnMut(&mut Dice, Instant, Duration, First) -> Fate + 'b>;

/// A client's path through a middle box, and what its links come to. Only the learner is real: `pace.rs` has the protocol as well.
struct World<'b> {
    now: Instant,
    learning: Learning,
    losses: &'b Losses,
    network: Network,
    cap: Duration,
    dice: Dice,
    middle_box: MiddleBox<'b>,
    drops: u32,
    longest_quiet: Duration,
}

impl<'b> World<'b> {
    fn new(losses: &'b Losses, middle_box: impl FnMut(&mut Dice, Instant, Duration, First) -> Fate + 'b) -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            learning: Learning::new(now, CONFIG, &[]),
            losses,
            network: network("192.168.1.7"),
            cap: CONFIG.max,
            dice: Dice::new(3),
            middle_box: Box::new(middle_box),
            drops: 0,
            longest_quiet: Duration::ZERO,
        };
        world.learning.on_open(world.network, world.cap, false);
        world
    }

    /// Forgets whatever was quiet for longer.
    fn forgetting(losses: &'b Losses, after: Duration) -> Self {
        Self::new(losses, move |_, _, quiet, _| if quiet > after { Fate::Dies } else { Fate::Passes })
    }

    fn quiet(&mut self, quiet: Duration, first: First) {
        let heard = self.now;
        self.now += quiet;
        self.longest_quiet = self.longest_quiet.max(quiet);
        match (self.middle_box)(&mut self.dice, self.now, quiet, first) {
            Fate::Passes => self.learning.on_survived(self.now, quiet, first, self.losses),
            Fate::Stalls => self.learning.on_stalled(self.now, quiet),
            Fate::Dies => self.lose(heard, Some(quiet)),
        }
    }

    /// The link dies, and the next is open some time later.
    fn lose(&mut self, heard: Instant, quiet: Option<Duration>) {
        self.now += CONFIG.min * 3 / 2;
        self.learning.on_lost(&Loss { heard, now: self.now, quiet }, self.losses);
        self.drops += 1;
        self.now += secs(1);
        self.learning.on_open(self.network, self.cap, true);
    }

    /// One exchange of beats at the interval that holds.
    fn beat(&mut self) {
        let quiet = self.learning.interval().mul_f64(0.95 + self.dice.below(50) as f64 / 1000.0);
        let first = if self.dice.below(2) == 0 { First::Us } else { First::Peer };
        self.quiet(quiet, first);
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.beat();
        }
    }

    fn learnt(&self) -> Learnt {
        self.learning.learnt(self.now).unwrap()
    }
}

#[test]
fn the_longest_interval_of_any_fixed_timeout_is_found_within_a_step_at_the_price_of_two_links() {
    for timeout in [20, 30, 60, 120, 240, 350, 1200, 3600].map(secs) {
        let losses = Losses::new();
        let mut world = World::forgetting(&losses, timeout);
        world.run(4 * DAY);
        let Learnt { proven, settled_for, failures } = world.learnt();
        assert!(settled_for.is_some() && failures == 0, "{timeout:?}: {:?}", world.learnt());
        assert!(
            proven <= timeout && proven.max(CONFIG.min) >= timeout.mul_f64(0.9 / 1.25) - secs(1),
            "{timeout:?}: {proven:?}"
        );
        assert_eq!(world.drops, 2, "{timeout:?}");
        assert_eq!(world.learning.interval(), proven);
    }
}

#[test]
fn a_path_that_forgets_nothing_is_used_up_to_max_and_loses_no_link() {
    let losses = Losses::new();
    let mut world = World::new(&losses, |_, _, _, _| Fate::Passes);
    world.run(10 * DAY);
    assert_eq!((world.learning.interval(), world.drops), (CONFIG.max, 0));
    assert!(world.learnt().settled_for.is_some());
    // And no quiet time was longer than was allowed.
    assert!(world.longest_quiet <= CONFIG.max);
}

#[test]
fn a_path_that_bears_only_the_least_interval_keeps_it() {
    let losses = Losses::new();
    let mut world = World::forgetting(&losses, secs(16));
    world.run(DAY);
    assert_eq!((world.learning.interval(), world.drops), (CONFIG.min, 2));
}

#[test]
fn each_link_begins_with_the_least_interval_and_goes_on_with_what_was_learnt_once_it_is_calm() {
    let losses = Losses::new();
    let mut world = World::forgetting(&losses, secs(350));
    world.run(DAY);
    let learnt = world.learning.interval();
    assert!(learnt > secs(200));
    world.lose(world.now, None);
    for _ in 0..3 {
        assert_eq!(world.learning.interval(), CONFIG.min);
        world.beat();
    }
    assert_eq!(world.learning.interval(), learnt);
}

#[test]
fn a_shorter_timeout_is_noticed_after_three_links_and_learnt_anew() {
    let losses = Losses::new();
    let start = Instant::now();
    let mut world = World::new(&losses, move |_, now, quiet, _| {
        let timeout = if now < start + 2 * DAY { secs(600) } else { secs(100) };
        if quiet > timeout { Fate::Dies } else { Fate::Passes }
    });
    world.run(2 * DAY);
    assert!(world.learnt().proven >= secs(400));
    world.run(DAY);
    let proven = world.learnt().proven;
    assert!((secs(70)..=secs(100)).contains(&proven), "{proven:?}");
    // Two to find the first, three that died of the change, two to find the second.
    assert_eq!(world.drops, 7);
}

#[test]
fn a_longer_timeout_is_found_a_week_later_and_not_before() {
    let losses = Losses::new();
    let start = Instant::now();
    let mut world = World::new(&losses, move |_, now, quiet, _| {
        let timeout = if now < start + DAY { secs(100) } else { secs(1200) };
        if quiet > timeout { Fate::Dies } else { Fate::Passes }
    });
    world.run(6 * DAY);
    assert!(world.learnt().proven <= secs(100), "{:?}", world.learnt());
    world.run(4 * DAY);
    assert!(world.learnt().proven >= secs(800), "{:?}", world.learnt());
}

#[test]
fn a_direction_that_closes_earlier_than_the_other_sets_the_interval_and_costs_no_link() {
    for closed in [First::Us, First::Peer] {
        let losses = Losses::new();
        let mut world =
            World::new(
                &losses,
                move |_, _, quiet, first| {
                    if quiet > secs(100) && first == closed { Fate::Stalls } else { Fate::Passes }
                },
            );
        world.run(2 * DAY);
        let proven = world.learnt().proven;
        assert!((secs(70)..=secs(100)).contains(&proven), "{closed:?} {proven:?}");
        assert_eq!(world.drops, 0);
    }
}

#[test]
fn a_box_that_now_and_then_forgets_early_doesn_t_unsettle_what_was_learnt() {
    let losses = Losses::new();
    let mut world = World::new(&losses, |dice, _, quiet, _| {
        if quiet > secs(350) || (quiet > secs(100) && dice.below(100) == 0) { Fate::Dies } else { Fate::Passes }
    });
    world.run(2 * DAY);
    let (mut beats, start) = (0, world.now);
    while world.now < start + 5 * DAY {
        world.beat();
        beats += 1;
    }
    let mean = world.now.duration_since(start) / beats;
    assert!((secs(200)..=secs(350)).contains(&mean), "{mean:?}");
    assert!(world.drops > 5, "{}", world.drops);
}

#[test]
fn a_path_that_dies_at_the_least_interval_too_teaches_nothing() {
    let losses = Losses::new();
    // An hour of each six nothing stays open for longer than ten seconds.
    let start = Instant::now();
    let is_bad = move |now: Instant| now.duration_since(start).as_secs() % 21_600 < 3600;
    let mut world = World::new(
        &losses,
        move |_, now, quiet, _| {
            if is_bad(now) && quiet > secs(10) { Fate::Dies } else { Fate::Passes }
        },
    );
    world.run(10 * DAY);
    assert!(world.drops > 1000);
    assert_eq!(world.learnt().proven, CONFIG.max);
}

#[test]
fn a_loss_that_had_another_reason_is_no_failure() {
    let losses = Losses::new();
    let learn = || {
        let mut world = World::new(&losses, |_, _, _, _| Fate::Passes);
        world.run(secs(3600));
        world.losses = Box::leak(Box::default());
        assert!(world.learning.interval() > secs(60));
        world
    };
    let failures = |mut world: World<'_>, lose: &dyn Fn(&mut World<'_>)| {
        lose(&mut world);
        for _ in 0..3 {
            world.beat();
        }
        world.learnt().failures
    };
    let quiet = |world: &World<'_>| Some(world.learning.interval());
    // The one that counts, so that the others have something to differ from.
    assert_eq!(failures(learn(), &|world| world.lose(world.now, quiet(world))), 1);
    // Data flowed; or the reason is known, or we were paused.
    assert_eq!(failures(learn(), &|world| world.lose(world.now, None)), 0);
    assert_eq!(failures(learn(), &|world| world.lose(world.now, Some(secs(5)))), 0);
    // At the least interval, before the link was trusted with more.
    let early = |world: &mut World<'_>| {
        world.lose(world.now, None);
        world.beat();
        world.lose(world.now, Some(CONFIG.min));
    };
    assert_eq!(failures(learn(), &early), 0);
    // Other links were lost at the same time.
    let with_others = |world: &mut World<'_>| {
        let mut other = Learning::new(world.now, CONFIG, &[]);
        other.on_open(world.network, world.cap, false);
        let loss = Loss { heard: world.now, now: world.now + secs(20), quiet: None };
        other.on_lost(&loss, world.losses);
        world.lose(world.now, quiet(world));
    };
    assert_eq!(failures(learn(), &with_others), 0);
    // The next link's peer knows nothing of the session: its server restarted.
    let restart = |world: &mut World<'_>| {
        world.lose(world.now, quiet(world));
        world.learning.on_open(world.network, world.cap, false);
    };
    assert_eq!(failures(learn(), &restart), 0);
    // The next link is in another network, so it was the change that ended this one; and of neither is it a failure.
    let moves = |world: &mut World<'_>| {
        world.network = network("10.0.0.3");
        world.lose(world.now, quiet(world));
    };
    assert_eq!(failures(learn(), &moves), 0);
    let moves_back = |world: &mut World<'_>| {
        moves(world);
        world.network = network("192.168.1.7");
        world.lose(world.now, None);
    };
    assert_eq!(failures(learn(), &moves_back), 0);
    // The peer allows no more than the least interval, so there is nothing shorter to go back to.
    let at_least = |world: &mut World<'_>| {
        world.cap = CONFIG.min;
        world.lose(world.now, None);
        for _ in 0..10 {
            world.beat();
        }
        world.lose(world.now, quiet(world));
    };
    assert_eq!(failures(learn(), &at_least), 0);
}

#[test]
fn failures_that_lie_far_apart_are_forgotten() {
    let losses = Losses::new();
    let mut world = World::forgetting(&losses, secs(350));
    world.run(2 * DAY);
    let learnt = world.learnt().proven;
    for _ in 0..10 {
        world.lose(world.now, Some(learnt));
        for _ in 0..20 {
            world.beat();
        }
        // Nothing else is lost at the time of the next.
        world.losses = Box::leak(Box::default());
    }
    assert_eq!((world.learnt().proven, world.learnt().failures), (learnt, 0));
}

#[test]
fn a_fleet_that_settled_together_unlearns_together_after_some_excuses() {
    let losses = Losses::new();
    let mut timeout = secs(600);
    let mut fleet: Vec<_> = (0..5).map(|_| World::forgetting(&losses, timeout)).collect();
    for world in &mut fleet {
        world.run(2 * DAY);
        assert!(world.learnt().settled_for.is_some());
    }
    timeout = secs(100);
    let mut drops = 0;
    let now = fleet.iter().map(|world| world.now).max().unwrap();
    for world in &mut fleet {
        world.now = now;
        world.middle_box = Box::new(move |_, _, quiet, _| if quiet > timeout { Fate::Dies } else { Fate::Passes });
        drops += world.drops;
    }
    // In step, so that each dies with the others.
    for _ in 0..4000 {
        for world in &mut fleet {
            world.beat();
        }
    }
    for world in &fleet {
        let proven = world.learnt().proven;
        assert!((secs(70)..=secs(100)).contains(&proven), "{proven:?}");
    }
    let more = fleet.iter().map(|world| world.drops).sum::<u32>() - drops;
    assert!(more <= 5 * 8, "{more}");
}

#[test]
fn a_client_that_moves_between_networks_knows_each_again() {
    let losses = Losses::new();
    let (home, mobile) = (network("192.168.1.7"), network("100.64.3.3"));
    let mut world = World::new(&losses, |_, _, _, _| Fate::Passes);
    for round in 0..6 {
        for (at, timeout) in [(home, secs(3600)), (mobile, secs(130))] {
            world.middle_box = Box::new(move |_, _, quiet, _| if quiet > timeout { Fate::Dies } else { Fate::Passes });
            world.network = at;
            world.lose(world.now, Some(world.learning.interval()));
            let drops = world.drops;
            world.run(2 * DAY);
            let proven = world.learnt().proven;
            assert!(proven <= timeout && proven > timeout.mul_f64(0.7), "{proven:?}");
            assert!(round == 0 || world.drops <= drops + 2, "{}", world.drops - drops);
        }
    }
    assert_eq!(world.learning.kept(world.now).len(), 2);
}

#[test]
fn what_a_peer_allows_bounds_what_is_tried_and_not_what_was_learnt() {
    let losses = Losses::new();
    let mut world = World::new(&losses, |_, _, _, _| Fate::Passes);
    world.cap = secs(60);
    world.lose(world.now, None);
    world.run(3 * DAY);
    assert_eq!(world.learning.interval(), secs(60));
    // The path itself may bear more.
    assert_eq!(world.learnt().settled_for, None);
    world.cap = CONFIG.max;
    world.lose(world.now, None);
    world.run(6 * DAY);
    assert_eq!(world.learning.interval(), CONFIG.max);
    world.cap = CONFIG.min;
    world.lose(world.now, None);
    world.run(DAY);
    assert_eq!((world.learning.interval(), world.learnt().proven), (CONFIG.min, CONFIG.max));
}

#[test]
fn what_is_kept_is_taken_up_again_within_what_is_allowed_now() {
    let losses = Losses::new();
    let mut world = World::forgetting(&losses, secs(350));
    world.run(2 * DAY);
    let kept = world.learning.kept(world.now);
    let [(place, learnt)] = kept[..] else { panic!("{kept:?}") };
    let mut again = Learning::new(world.now, CONFIG, &kept);
    again.on_open(place, CONFIG.max, false);
    assert_eq!(again.learnt(world.now), Some(learnt));
    // The age goes on from what it was.
    assert_eq!(again.learnt(world.now + DAY).unwrap().settled_for, learnt.settled_for.map(|age| age + DAY));
    let narrow = AdaptiveConfig { max: secs(100), ..CONFIG };
    let mut other = Learning::new(world.now, narrow, &kept);
    other.on_open(place, narrow.max, false);
    assert_eq!(other.learnt(world.now), Some(Learnt { proven: secs(100), settled_for: None, failures: 0 }));
    // A doubt with which the program ends is a failure for the next.
    assert_eq!(learnt.failures, 0);
    let loss = Loss { heard: world.now, now: world.now + secs(400), quiet: Some(world.learning.interval()) };
    world.learning.on_lost(&loss, &losses);
    assert_eq!(world.learning.kept(world.now)[0].1.failures, 1);
    // No more networks than are kept, and the newest of them.
    let many: Vec<_> = (0..50).map(|number| (network(&format!("10.0.{number}.1")), learnt)).collect();
    let mut crowd = Learning::new(world.now, CONFIG, &many);
    crowd.on_open(network("10.1.0.1"), CONFIG.max, false);
    let kept = crowd.kept(world.now);
    assert_eq!((kept.len(), kept[0].0, kept[19].0), (20, network("10.0.31.1"), network("10.1.0.1")));
}

#[test]
fn a_network_is_a_prefix_of_our_own_address() {
    assert_eq!(network("192.168.1.7"), network("::ffff:192.168.1.200"));
    assert_ne!(network("192.168.1.7"), network("192.168.2.7"));
    assert_eq!(network("2001:db8:1:2::3"), network("2001:db8:1:2:ffff::"));
    assert_ne!(network("2001:db8:1:2::3"), network("2001:db8:1:3::3"));
    assert_eq!(network("2001:db8:1:2::3").prefix().to_string(), "2001:db8:1:2::");
}

#[test]
fn what_makes_no_sense_is_refused() {
    assert_eq!(CONFIG.validate(), Ok(()));
    let (min, max) = (CONFIG.min, CONFIG.max);
    let bad = AdaptiveConfig { max: min, ..CONFIG };
    assert_eq!(bad.validate(), Err(AdaptiveConfigError::Min { min, max: min }));
    let bad = AdaptiveConfig { min: Duration::ZERO, ..CONFIG };
    assert_eq!(bad.validate(), Err(AdaptiveConfigError::Min { min: Duration::ZERO, max }));
    let bad = AdaptiveConfig { max: 2 * DAY, ..CONFIG };
    assert_eq!(bad.validate(), Err(AdaptiveConfigError::Max { max: 2 * DAY }));
    for step in [1.0, 4.1, f64::NAN, f64::INFINITY] {
        assert!(matches!(AdaptiveConfig { step, ..CONFIG }.validate(), Err(AdaptiveConfigError::Step { .. })));
    }
}
