//! The core in simulated time: each rule of the protocol, and random schedules of messages, delays, stalls and cuts.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests; any instant will do as an origin")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod pair;

use std::time::{Duration, Instant};

use longconn::proto::cause::{Cause, GivenUp, Level};
use longconn::proto::close::{Close, CloseCode};
use longconn::proto::connection::{Config, Connection, Event, State};
use longconn::proto::detector::{Detector, DetectorConfig, Judgement, Phi, PhiConfig, default_limit};
use longconn::proto::evidence::{Evidence, Finding, KernelView};
use longconn::proto::handshake::Rhythm;
use longconn::proto::heartbeat::{Beat, Heartbeat, HeartbeatConfig, HeartbeatConfigError};
use longconn::proto::session::{Framed, SendError};
use pair::{Dice, Pair, config, ms};

fn one_second() -> Config {
    config(ms(1000))
}

fn open() -> Pair {
    Pair::open(one_second(), one_second())
}

fn with_limit(want: Duration, limit: Duration) -> Config {
    let mut config = config(want);
    config.heartbeat.limit = Some(limit);
    config
}

/// Between two bounds, both included.
#[track_caller]
fn assert_between(value: Duration, low: Duration, high: Duration) {
    assert!((low..=high).contains(&value), "{value:?} isn't between {low:?} and {high:?}");
}

// ---- intervals ------------------------------------------------------------------------------------------------

#[test]
fn each_side_sends_at_the_lesser_want_but_never_below_its_floor() {
    let rhythm = |want, floor| Rhythm { want: ms(want), floor: ms(floor), limit: None };
    assert_eq!(rhythm(1000, 50).interval_to(&rhythm(5000, 50)), ms(1000));
    assert_eq!(rhythm(5000, 50).interval_to(&rhythm(1000, 50)), ms(1000));
    assert_eq!(rhythm(5000, 2000).interval_to(&rhythm(1000, 50)), ms(2000));
    assert_eq!(rhythm(5000, 50).interval_to(&rhythm(1, 1)), ms(50));
}

#[test]
fn jitter_only_shortens_and_by_a_quarter_at_most() {
    let start = Instant::now();
    let mut heartbeat = Heartbeat::new(start, ms(1000), 3);
    let mut last = heartbeat.poll_timeout().instant();
    assert!(last - start < ms(1000));
    let (mut least, mut most) = (ms(2000), ms(0));
    for _ in 0..10_000 {
        heartbeat.handle_timeout(last);
        let next = heartbeat.poll_timeout().instant();
        (least, most) = (least.min(next - last), most.max(next - last));
        last = next;
    }
    assert_between(least, ms(750), ms(751));
    assert_between(most, ms(999), ms(1000));
}

#[test]
fn the_first_beat_comes_at_a_random_phase() {
    let start = Instant::now();
    let phases: Vec<Duration> =
        (0..1000).map(|seed| Heartbeat::new(start, ms(1000), seed).poll_timeout().instant() - start).collect();
    for quarter in 0..4 {
        let count = phases.iter().filter(|phase| phase.as_millis() / 250 == quarter).count();
        assert!((150..350).contains(&count), "{count} in quarter {quarter}");
    }
}

#[test]
fn the_default_limit_is_two_and_a_half_intervals_or_1100_ms_and_two_round_trips() {
    assert_eq!(default_limit(ms(1000), ms(0)), ms(2500));
    assert_eq!(default_limit(ms(1000), ms(40)), ms(2580));
    assert_eq!(default_limit(ms(100), ms(0)), ms(1100));
    assert_eq!(default_limit(ms(440), ms(10)), ms(1120));
}

#[test]
fn an_explicit_limit_under_twice_the_interval_of_the_peer_is_refused_with_both_numbers() {
    for (client, server) in
        [(with_limit(ms(1000), ms(1999)), one_second()), (one_second(), with_limit(ms(1000), ms(1999)))]
    {
        let mut pair = Pair::new(client, server);
        pair.run(ms(100));
        for side in &pair.sides {
            let ending = side.ending().unwrap();
            let close = ending.close.as_ref().unwrap();
            assert_eq!((ending.cause, close.code), (Cause::Handshake, CloseCode::LIMIT));
            assert!(close.reason.contains("1.999s") && close.reason.contains("1s"), "{}", close.reason);
        }
    }
    Pair::open(with_limit(ms(1000), ms(2000)), one_second());
}

#[test]
fn a_peer_that_wants_a_beat_every_millisecond_gets_one_every_floor() {
    let mut client = config(ms(1));
    client.heartbeat.floor = ms(1);
    let mut pair = Pair::open(client, one_second());
    pair.run(ms(10_000));
    let stats = pair.sides[1].connection.stats(pair.now).unwrap();
    assert_eq!((stats.send_interval, stats.hear_interval), (ms(50), ms(1)));
    let sent = stats.beats.sent;
    assert!((190..=280).contains(&sent), "{sent} beats in 10 s with a floor of 50 ms");
}

// ---- beats ----------------------------------------------------------------------------------------------------

#[test]
fn an_echo_minus_what_it_was_held_is_the_round_trip() {
    let mut pair = open();
    pair.pipes[0].latency = ms(30);
    pair.pipes[1].latency = ms(70);
    pair.run(ms(10_000));
    for side in &pair.sides {
        let round_trip = side.connection.stats(pair.now).unwrap().round_trip;
        assert_between(round_trip.last.unwrap(), ms(99), ms(101));
        assert_between(round_trip.least.unwrap(), ms(19), ms(101));
        assert_between(round_trip.smoothed.unwrap(), ms(50), ms(101));
    }
}

fn beat(sent_at: u64, echo: u64, held: u64) -> Beat<'static> {
    let (answer, extra) = (false, false);
    Beat { answer, extra, sent_at, echo, held, interpreter_age: None, application_age: None, status: b"" }
}

/// A heartbeat that has sent one beat at `start`, and its `sent_at`.
fn beaten(start: Instant) -> (Heartbeat, u64) {
    let mut heartbeat = Heartbeat::new(start, ms(1000), 1);
    heartbeat.ask(start);
    let sent_at = heartbeat.pending_beat(start, Default::default(), b"").unwrap().sent_at;
    assert!(heartbeat.on_sent(start, sent_at));
    (heartbeat, sent_at)
}

#[test]
fn a_round_trip_counts_only_from_a_new_echo_and_is_thrown_away_when_negative() {
    let start = Instant::now();
    let (mut heartbeat, sent_at) = beaten(start);
    let heard = heartbeat.handle_beat(start + ms(50), &beat(1, sent_at, 20_000)).unwrap();
    assert_eq!((heard.arrived, heard.round_trip), (Some(true), Some(ms(30))));
    let again = heartbeat.handle_beat(start + ms(150), &beat(2, sent_at, 20_000)).unwrap();
    assert_eq!((again.arrived, again.round_trip), (None, None));

    let (mut heartbeat, sent_at) = beaten(start);
    let negative = heartbeat.handle_beat(start + ms(50), &beat(1, sent_at, 60_000)).unwrap();
    assert_eq!((negative.arrived, negative.round_trip), (Some(true), None));
}

#[test]
fn a_round_trip_during_which_we_were_paused_is_thrown_away() {
    let start = Instant::now();
    let (mut heartbeat, sent_at) = beaten(start);
    heartbeat.on_pause(start + ms(5000));
    assert!(heartbeat.is_unheard_since_pause());
    let heard = heartbeat.handle_beat(start + ms(5001), &beat(1, sent_at, 0)).unwrap();
    assert_eq!((heard.arrived, heard.round_trip), (Some(true), None));
    assert!(heartbeat.is_unheard_since_pause());
}

#[test]
fn an_echo_of_what_was_never_sent_and_a_clock_that_runs_backwards_are_errors() {
    let start = Instant::now();
    let (mut heartbeat, sent_at) = beaten(start);
    assert!(heartbeat.handle_beat(start, &beat(9, sent_at + 1, 0)).is_err());
    assert!(heartbeat.handle_beat(start, &beat(9, 1, 0)).is_err());
    heartbeat.handle_beat(start, &beat(9, sent_at, 0)).unwrap();
    assert!(heartbeat.handle_beat(start, &beat(9, sent_at, 0)).is_err());
    assert!(heartbeat.handle_beat(start, &beat(10, 0, 0)).is_err());
}

#[test]
fn the_newer_beat_replaces_the_older_and_keeps_its_request_and_a_mere_reply_never_asks() {
    let start = Instant::now();
    let mut heartbeat = Heartbeat::new(start, ms(1000), 1);
    let asked = Beat { answer: true, extra: true, ..beat(1, 0, 0) };
    heartbeat.handle_beat(start, &asked).unwrap();
    let reply = heartbeat.pending_beat(start, Default::default(), b"").unwrap();
    assert!(!reply.answer && reply.extra);
    heartbeat.ask(start);
    heartbeat.handle_beat(start, &Beat { sent_at: 2, ..asked }).unwrap();
    let pending = heartbeat.pending_beat(start + ms(7), Default::default(), b"").unwrap();
    assert!(pending.answer && pending.extra);
    assert_eq!((pending.echo, pending.held), (2, 7000));
    heartbeat.handle_timeout(start + ms(1000));
    let periodic = heartbeat.pending_beat(start + ms(1000), Default::default(), b"").unwrap();
    assert!(periodic.answer && !periodic.extra);
    // A reply that comes upon a beat of the rhythm doesn't take it out of the rhythm.
    heartbeat.handle_beat(start, &Beat { sent_at: 3, ..asked }).unwrap();
    assert!(!heartbeat.pending_beat(start + ms(1000), Default::default(), b"").unwrap().extra);
}

#[test]
fn a_peer_that_asks_without_end_and_reads_nothing_is_owed_one_beat() {
    let mut pair = open();
    pair.kernel_bytes = 0;
    for sent_at in 1..100_000 {
        let mut bytes = Vec::new();
        Beat { answer: true, ..beat(u64::MAX / 2 + sent_at, 0, 0) }.encode(&mut bytes);
        pair.sides[0].connection.handle_input(pair.now, &bytes);
    }
    let owed = pair.sides[0].connection.poll_transmit(pair.now);
    assert!(owed.first.is_empty() && owed.data.is_empty());
    assert!(owed.control.len() < 100, "{} bytes", owed.control.len());
}

#[test]
fn ping_is_answered_after_one_round_trip() {
    let mut pair = open();
    let (start, ping) = (pair.now, pair.sides[0].connection.ping(pair.now).unwrap());
    pair.turn(0);
    pair.run(ms(21));
    let pong = pair.sides[0].time_of(|event| matches!(event, Event::Pong { .. })).unwrap();
    assert_between(pong - start, ms(20), ms(20));
    let expected = Event::Pong { ping, round_trip: Some(ms(20)) };
    assert!(pair.sides[0].events.contains(&(pong, expected)));
}

#[test]
fn status_and_ages_travel_with_each_beat() {
    let mut pair = open();
    assert!(pair.sides[0].connection.set_status(b"charging, 81 %"));
    assert!(!pair.sides[0].connection.set_status(&[0; 1025]));
    pair.sides[0].connection.set_interpreter_ran(Some(pair.now.into()));
    pair.sides[0].takes = false;
    pair.send(1, b"take me");
    pair.run(ms(10_000));
    assert_eq!(pair.sides[1].connection.peer_status(), b"charging, 81 %");
    let (heard, ages) = pair.sides[1].connection.peer_ages().unwrap();
    let told_after = ms(10_100) - (pair.now - heard);
    for age in [ages.interpreter.unwrap(), ages.application.unwrap()] {
        assert_between(age, told_after - ms(150), told_after);
    }
    let (_, ours) = pair.sides[0].connection.peer_ages().unwrap();
    assert_eq!((ours.interpreter, ours.application), (None, Some(ms(0))));
}

#[test]
fn an_application_is_as_old_as_its_last_progress_unless_it_waits_or_owes_nothing() {
    let mut pair = open();
    pair.sides[0].takes = false;
    let age = |pair: &Pair| pair.sides[0].connection.ages(pair.now).application.unwrap();
    pair.run(ms(3000));
    assert_eq!(age(&pair), ms(0), "nothing to take");
    pair.send(1, b"one");
    pair.send(1, b"two");
    pair.run(ms(3000));
    assert_eq!(age(&pair), ms(2990), "since it arrived");
    pair.sides[0].connection.read().unwrap();
    pair.sides[0].connection.take(pair.now, 1);
    pair.run(ms(500));
    assert_eq!(age(&pair), ms(500), "since the last one was taken");
    pair.sides[0].connection.set_waiting(pair.now, true);
    assert_eq!(age(&pair), ms(0), "somebody waits");
    pair.sides[0].connection.progress(pair.now);
    pair.run(ms(700));
    assert_eq!(age(&pair), ms(700), "its own word counts alone");
}

#[test]
fn hung_is_told_if_it_was_asked_for_and_says_which_level() {
    let mut watcher = one_second();
    watcher.heartbeat.application_limit = Some(ms(5000));
    let mut pair = Pair::open(one_second(), watcher);
    pair.sides[0].takes = false;
    pair.send(1, b"never taken");
    let start = pair.now;
    pair.run(ms(10_000));
    let ending = pair.sides[1].ending().unwrap();
    assert_eq!((ending.cause, ending.level), (Cause::Hung, Some(Level::Application)));
    assert_between(pair.sides[1].ended_at().unwrap() - start, ms(5000), ms(6050));
    let told = pair.sides[0].ending().unwrap();
    assert_eq!(told.close.as_ref().map(|close| close.code), Some(CloseCode::HUNG));

    let mut watcher = one_second();
    watcher.heartbeat.interpreter_limit = Some(ms(5000));
    let mut pair = Pair::open(one_second(), watcher);
    pair.sides[0].connection.set_interpreter_ran(Some(pair.now.into()));
    pair.run(ms(10_000));
    assert_eq!(pair.sides[1].ending().unwrap().level, Some(Level::Interpreter));
}

#[test]
fn a_beat_is_as_of_the_moment_when_it_is_handed_over() {
    let mut pair = open();
    pair.kernel_bytes = 0;
    pair.sides[0].connection.ping(pair.now);
    let sent_at = |bytes: &[u8]| {
        let at = bytes.len() - 4 - 33 + 1 + 4;
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    let first = sent_at(pair.sides[0].connection.poll_transmit(pair.now).control);
    let later = sent_at(pair.sides[0].connection.poll_transmit(pair.now + ms(300)).control);
    assert_eq!(later - first, 300_000);
}

// ---- judging --------------------------------------------------------------------------------------------------

#[test]
fn suspect_after_one_and_a_half_intervals_lost_at_the_limit() {
    let start = Instant::now();
    let mut detector = Detector::new(start, ms(1000), None, DetectorConfig::Limit);
    assert_eq!(detector.judge(start + ms(1499), ms(0)), Judgement::Alive);
    assert_eq!(detector.poll_timeout(ms(0)).instant(), start + ms(1500));
    assert_eq!(detector.judge(start + ms(1500), ms(0)), Judgement::Suspect);
    assert_eq!(detector.poll_timeout(ms(0)).instant(), start + ms(2500));
    assert_eq!(detector.judge(start + ms(2499), ms(0)), Judgement::Suspect);
    assert_eq!(detector.judge(start + ms(2500), ms(0)), Judgement::Lost { silence: ms(2500), limit: ms(2500) });
    assert!(detector.on_bytes(start + ms(2500)));
    assert_eq!(detector.judge(start + ms(2500), ms(0)), Judgement::Alive);
}

#[test]
fn the_second_clock_runs_from_what_is_outstanding_and_starts_anew_with_each_arrival() {
    let start = Instant::now();
    let mut detector = Detector::new(start, ms(1000), None, DetectorConfig::Limit);
    let hear = |detector: &mut Detector, at| {
        detector.on_bytes(start + ms(at));
    };
    detector.on_sent(start + ms(100));
    detector.on_sent(start + ms(900));
    hear(&mut detector, 2000);
    assert_eq!(detector.judge(start + ms(2599), ms(0)), Judgement::Alive);
    assert_eq!(detector.judge(start + ms(2600), ms(0)), Judgement::Deaf { unproven: ms(2500), limit: ms(2500) });
    detector.on_something_arrived(start + ms(2600));
    hear(&mut detector, 4500);
    assert_eq!(detector.judge(start + ms(5099), ms(0)), Judgement::Alive);
    detector.on_everything_arrived();
    hear(&mut detector, 90_000);
    assert_eq!(detector.judge(start + ms(90_000), ms(0)), Judgement::Alive);
}

#[test]
fn grace_after_a_pause_is_the_limit_or_a_second_and_four_round_trips_and_is_given_once() {
    let start = Instant::now();
    let at = |time| start + ms(time);
    let mut detector = Detector::new(start, ms(1000), Some(ms(20_000)), DetectorConfig::Limit);
    detector.on_pause(at(60_000), ms(100));
    assert_eq!(detector.judge(at(61_399), ms(100)), Judgement::Suspect);
    // A second pause before anything was heard extends nothing.
    detector.on_pause(at(61_300), ms(100));
    assert!(matches!(detector.judge(at(61_400), ms(100)), Judgement::Lost { .. }));
    detector.on_bytes(at(61_400));
    detector.on_pause(at(90_000), ms(100));
    assert!(!matches!(detector.judge(at(91_399), ms(100)), Judgement::Lost { .. }));

    let mut detector = Detector::new(start, ms(100), Some(ms(250)), DetectorConfig::Limit);
    detector.on_pause(at(60_000), ms(100));
    assert!(!matches!(detector.judge(at(60_249), ms(100)), Judgement::Lost { .. }));
    assert!(matches!(detector.judge(at(60_250), ms(100)), Judgement::Lost { .. }));
}

#[test]
fn grace_never_shortens_the_limit() {
    let start = Instant::now();
    let mut detector = Detector::new(start, ms(1000), Some(ms(20_000)), DetectorConfig::Limit);
    detector.on_pause(start + ms(1000), ms(0));
    assert_eq!(detector.judge(start + ms(19_999), ms(0)), Judgement::Suspect);
}

/// Cuts the pair at a phase, and gives how long it took each side to be told.
fn told_after(mut pair: Pair, phase: u64, cut: impl Fn(&mut Pair)) -> (Pair, [Option<Duration>; 2]) {
    pair.run(ms(20_000 + phase));
    let start = pair.now;
    cut(&mut pair);
    pair.run(ms(20_000));
    let told = [0, 1].map(|index| pair.sides[index].ended_at().map(|at| at - start));
    (pair, told)
}

#[test]
fn a_pulled_cable_is_unreachable_on_both_sides_within_the_limit_and_both_latencies() {
    for phase in (0..1000).step_by(90) {
        let (pair, told) = told_after(open(), phase, Pair::cut);
        for (side, told) in pair.sides.iter().zip(told) {
            assert_eq!(side.ending().unwrap().cause, Cause::Unreachable, "{:?}", side.ending());
            assert_eq!(side.ending().unwrap().kernel_answers, Some(false));
            assert_between(told.unwrap(), ms(1500), ms(2600));
            assert!(side.aborted);
        }
    }
}

#[test]
fn a_frozen_peer_is_frozen_for_its_kernel_answers_and_learns_that_it_was_given_up_while_paused() {
    for phase in (0..1000).step_by(90) {
        let (mut pair, told) = told_after(open(), phase, |pair| pair.sides[0].is_frozen = true);
        let ending = pair.sides[1].ending().unwrap();
        assert_eq!((ending.cause, ending.kernel_answers), (Cause::Frozen, Some(true)));
        assert_between(told[1].unwrap(), ms(1500), ms(2600));
        pair.sides[0].is_frozen = false;
        pair.run(ms(5000));
        let ending = pair.sides[0].ending().unwrap();
        assert_eq!(ending.given_up, Some(GivenUp::Paused), "{ending}");
        assert!(matches!(ending.cause, Cause::Deaf | Cause::Reset));
    }
}

#[test]
fn without_the_kernels_word_silence_is_silent() {
    let mut pair = open();
    pair.sides[0].is_blind = true;
    let (pair, _) = told_after(pair, 0, Pair::cut);
    assert_eq!(pair.sides[0].ending().unwrap().cause, Cause::Silent);
}

#[test]
fn with_one_direction_cut_the_one_who_hears_nothing_says_unreachable_and_the_other_is_deaf() {
    for phase in (0..1000).step_by(90) {
        let (pair, told) = told_after(open(), phase, |pair| pair.pipes[0].is_cut = true);
        // The server hears nothing; nor do the acknowledgements of what it sends arrive.
        let (client, server) = (pair.sides[0].ending().unwrap(), pair.sides[1].ending().unwrap());
        assert_eq!(server.cause, Cause::Unreachable);
        assert_between(told[1].unwrap(), ms(1500), ms(2600));
        assert_eq!(client.cause, Cause::Deaf, "{client}");
        assert_between(told[0].unwrap(), ms(1500), ms(3700));
    }
}

#[test]
fn a_fault_that_swallows_what_the_kernel_acknowledged_makes_deaf_and_the_peer_says_so() {
    let (pair, told) = told_after(open(), 0, |pair| pair.pipes[0].swallows = true);
    let ending = pair.sides[0].ending().unwrap();
    assert_eq!((ending.cause, ending.given_up), (Cause::Deaf, Some(GivenUp::Unheard)));
    assert_between(told[0].unwrap(), ms(1500), ms(2620));
}

/// Pairs whose beats fall at many phases.
fn seeded(server: impl Fn() -> Config) -> impl Iterator<Item = Pair> {
    (0..3000).map(move |seed| {
        let mut pair = Pair::seeded(one_second(), server(), seed);
        pair.run(ms(100));
        pair
    })
}

#[test]
fn the_second_clock_convicts_by_itself_while_the_peer_is_heard() {
    // The peer's limit is long: it is we who find out, though it goes on beating. What the kernel acknowledged before the
    // clock began is no arrival of what is outstanding now: one interval, one limit, and no more.
    for pair in seeded(|| with_limit(ms(1000), ms(60_000))) {
        let (pair, told) = told_after(pair, 300, |pair| pair.pipes[0].is_cut = true);
        let ending = pair.sides[0].ending().unwrap();
        assert_eq!((ending.cause, ending.given_up, ending.by_peer), (Cause::Deaf, None, false));
        assert_between(told[0].unwrap(), ms(2500), ms(3600));
    }
}

#[test]
fn a_peer_that_gave_us_up_by_a_mere_reset_is_known_to_have() {
    // Its limit leaves nothing to spare for round trips.
    for mut pair in seeded(one_second).chain(seeded(|| with_limit(ms(1000), ms(2500)))) {
        pair.run(ms(20_000));
        pair.pipes[0].is_cut = true;
        while !pair.sides[1].socket.is_over {
            assert!(pair.step(pair.now + ms(5000)));
        }
        // Its CLOSE stays behind what its kernel repeats, for our acknowledgements don't arrive.
        pair.sides[0].connection.handle_reset(pair.now + ms(10));
        pair.turn(0);
        let ending = pair.sides[0].ending().unwrap();
        assert_eq!((ending.cause, ending.given_up), (Cause::Reset, Some(GivenUp::Unheard)));
    }
}

#[test]
fn silence_of_any_byte_is_what_counts_not_of_beats() {
    // A slow path that brings a byte now and then, and never a whole frame.
    let mut pair = open();
    let mut bytes = Vec::new();
    Close::new(CloseCode::NORMAL, &"x".repeat(100)).encode(&mut bytes);
    pair.pipes[1].is_cut = true;
    for byte in &bytes[..100] {
        pair.run(ms(1000));
        pair.sides[0].connection.handle_input(pair.now, &[*byte]);
        pair.turn(0);
        pair.sides[0].connection.handle_kernel(pair.now, None);
        if pair.sides[0].ending().is_some() {
            break;
        }
    }
    let ending = pair.sides[0].ending().unwrap();
    assert_eq!(ending.cause, Cause::Deaf, "its silence is no cause, only that nothing of ours is echoed");
}

#[test]
fn suspicion_asks_for_an_answer_and_an_answer_ends_it() {
    let mut pair = open();
    pair.run(ms(10_000));
    pair.cut();
    while pair.sides[0].connection.state() != State::Suspect {
        assert!(pair.step(pair.now + ms(3000)));
    }
    pair.mend();
    pair.run(ms(50));
    assert_eq!(pair.sides[0].connection.state(), State::Open);
    let names: Vec<&Event> = pair.sides[0].events.iter().map(|(_, event)| event).collect();
    assert!(matches!(names[1..], [.., Event::Suspect { .. }, Event::Alive]), "{names:?}");
}

#[test]
fn our_own_pause_convicts_nobody_if_the_peer_waits_longer() {
    let mut pair = Pair::open(one_second(), with_limit(ms(1000), ms(30_000)));
    pair.run(ms(5300));
    pair.sides[0].is_frozen = true;
    pair.run(ms(10_000));
    pair.sides[0].is_frozen = false;
    pair.run(ms(60_000));
    for side in &pair.sides {
        assert!(side.ending().is_none(), "{:?}", side.ending());
    }
    assert!(pair.sides[0].connection.stats(pair.now).unwrap().round_trip.last.unwrap() < ms(21));
}

#[test]
fn the_second_clock_stands_still_while_we_are_paused() {
    let start = Instant::now();
    let mut detector = Detector::new(start, ms(1000), None, DetectorConfig::Limit);
    detector.on_sent(start);
    detector.on_pause(start + ms(60_000), ms(0));
    detector.on_bytes(start + ms(60_000));
    assert_eq!(detector.judge(start + ms(61_000), ms(0)), Judgement::Alive);
    detector.on_bytes(start + ms(62_000));
    assert!(matches!(detector.judge(start + ms(62_500), ms(0)), Judgement::Deaf { .. }));
}

#[test]
fn after_our_pause_a_peer_that_died_meanwhile_is_lost_after_the_grace() {
    let mut pair = open();
    pair.run(ms(5300));
    pair.cut();
    pair.sides[0].is_frozen = true;
    pair.sides[1].is_frozen = true;
    // It heard something just before, so that its deadline lies within the pause.
    pair.run(ms(60_000));
    pair.sides[0].is_frozen = false;
    let start = pair.now;
    pair.run(ms(10_000));
    let told = pair.sides[0].ended_at().unwrap() - start;
    assert_between(told, ms(1000), ms(1100));
    assert_eq!(pair.sides[0].ending().unwrap().cause, Cause::Unreachable);
}

#[test]
fn a_reset_says_whether_we_were_given_up() {
    let mut pair = open();
    pair.run(ms(10_000));
    pair.sides[0].connection.handle_reset(pair.now);
    pair.turn(0);
    let ending = pair.sides[0].ending().unwrap();
    assert_eq!((ending.cause, ending.given_up), (Cause::Reset, None));

    let mut pair = open();
    pair.run(ms(10_000));
    pair.pipes[0].is_cut = true;
    pair.run(ms(2400));
    pair.sides[0].connection.handle_reset(pair.now);
    pair.turn(0);
    assert_eq!(pair.sides[0].ending().unwrap().given_up, Some(GivenUp::Unheard));
}

#[test]
fn an_end_of_stream_without_close_is_ended() {
    let mut pair = open();
    pair.sides[0].connection.handle_end(pair.now);
    pair.turn(0);
    assert_eq!(pair.sides[0].ending().unwrap().cause, Cause::Ended);
}

#[test]
fn a_slow_path_with_a_queue_of_two_seconds_raises_no_alarm() {
    let mut pair = open();
    pair.run(ms(10_000));
    // The queue fills: what is sent arrives ever later, and the kernel's acknowledgements go on.
    pair.kernel_bytes = 1 << 16;
    for step in 0..400_u64 {
        while pair.sides[0].connection.send(&[0; 40_000]).is_ok() {}
        pair.turn(0);
        pair.pipes[0].latency = ms(10 + (step * 10).min(2000));
        pair.run(ms(100));
    }
    for side in &pair.sides {
        assert!(side.ending().is_none(), "{:?}", side.ending());
    }
    assert!(pair.sides[1].received.len() > 20);
}

#[test]
fn on_a_narrow_path_a_beat_that_waits_behind_data_makes_nobody_deaf_while_the_kernel_sees_progress() {
    let mut pair = open();
    pair.run(ms(10_000));
    pair.sides[1].takes = false;
    pair.pipes[0].bytes_per_second = 8000;
    pair.kernel_bytes = 1 << 16;
    for _ in 0..20 {
        pair.send(0, &[0; 10_000]);
    }
    pair.run(ms(60_000));
    for side in &pair.sides {
        assert!(side.ending().is_none(), "{}", side.ending().unwrap());
    }
    assert!(pair.sides[0].connection.stats(pair.now).unwrap().round_trip.last.unwrap() < ms(9000));
}

/// The client beats only every 20 s, and hears the server every second.
fn seldom() -> Pair {
    let mut client = one_second();
    client.heartbeat.floor = ms(20_000);
    client.heartbeat.limit = Some(ms(2500));
    let mut pair = Pair::open(client, one_second());
    pair.sides[0].is_blind = true;
    pair
}

#[test]
fn nobody_is_deaf_to_whom_nothing_is_owed() {
    let mut pair = seldom();
    pair.run(ms(500_000));
    assert!(pair.sides.iter().all(|side| side.ending().is_none()), "{:?}", pair.sides[0].ending());
}

#[test]
fn an_echo_speaks_only_for_what_was_sent_before_its_beat() {
    let mut pair = seldom();
    pair.run(ms(100_000));
    let [client, server] = &mut pair.sides;
    client.connection.ping(pair.now);
    client.connection.send(b"behind it").unwrap();
    let transmit = client.connection.poll_transmit(pair.now);
    let (beat, length) = (transmit.control.to_vec(), transmit.control.len() + transmit.data.len());
    assert_eq!((beat.len(), transmit.data.len()), (37, 13));
    client.connection.transmitted(pair.now, length);
    // The beat arrives, what is behind it doesn't.
    server.connection.handle_input(pair.now, &beat);
    pair.pipes[0].is_cut = true;
    pair.turn(1);
    let start = pair.now;
    pair.run(ms(10_000));
    assert_eq!(pair.sides[0].ending().unwrap().cause, Cause::Deaf);
    assert_between(pair.sides[0].ended_at().unwrap() - start, ms(2500), ms(2600));
}

#[test]
fn a_wake_up_that_is_late_by_more_than_a_quarter_of_the_limit_is_a_pause_of_our_own() {
    for (late_by, is_pause) in [(ms(0), false), (ms(2), true)] {
        let mut pair = open();
        pair.run(ms(10_000));
        let connection = &mut pair.sides[0].connection;
        let tolerance = connection.stats(pair.now).unwrap().limit / 4;
        let now = connection.poll_timeout().unwrap().instant() + tolerance + late_by;
        connection.handle_timeout(now);
        connection.handle_reset(now);
        let ending = std::iter::from_fn(|| connection.poll_event()).last();
        let Some(Event::Ended(ending)) = ending else { panic!("{ending:?}") };
        // Whether it may have heard nothing of us meanwhile depends on the phase.
        assert_eq!(ending.given_up == Some(GivenUp::Paused), is_pause, "{tolerance:?} and {late_by:?} late");
    }
}

#[test]
fn a_pause_is_noticed_though_much_was_heard_since_the_deadline_was_asked_for() {
    let mut pair = open();
    pair.run(ms(10_000));
    let connection = &mut pair.sides[0].connection;
    for _ in 0..10 {
        connection.handle_input(pair.now, &[0, 0, 1, 5, 7]);
    }
    assert!(connection.keeps_deadline());
    let now = pair.now + ms(60_000);
    connection.handle_timeout(now);
    assert!(!connection.keeps_deadline());
    connection.handle_reset(now);
    let ending = std::iter::from_fn(|| connection.poll_event()).last();
    let Some(Event::Ended(ending)) = ending else { panic!("{ending:?}") };
    assert_eq!(ending.given_up, Some(GivenUp::Paused));
}

#[test]
fn phi_is_fed_by_the_rhythm_alone() {
    let mut phi = one_second();
    let window = 20;
    phi.heartbeat.detector = DetectorConfig::Phi(PhiConfig { window, acceptable_pause: ms(0), ..PHI });
    let mut pair = Pair::open(phi, one_second());
    for _ in 0..600 {
        pair.sides[0].connection.ping(pair.now);
        pair.turn(0);
        pair.run(ms(50));
    }
    assert!(pair.sides[0].ending().is_none());
    let heard = pair.now - pair.sides[0].connection.stats(pair.now).unwrap().silence;
    let phi = pair.sides[0].connection.stats(heard + ms(800)).unwrap().phi.unwrap();
    assert!(phi < 1.0, "{phi}");
}

// ---- the kernel's word ----------------------------------------------------------------------------------------

fn view() -> KernelView {
    let (written, bytes_acked, since_ack_received) = (1000, 1000, ms(900));
    KernelView { written, bytes_acked, unacked: 0, unsent: 0, probes: 0, since_ack_received, send_window: Some(1) }
}

/// A suspicion at `start`, its answer out after 1 ms, and a look at 0 and at `later`.
fn finding(first: KernelView, last: KernelView, asked: bool, later: u64) -> Finding {
    let start = Instant::now();
    let mut evidence = Evidence::default();
    evidence.on_suspicion(start);
    let _ = evidence.observe(start, first);
    if asked {
        evidence.on_asked(start + ms(1));
        let _ = evidence.observe(start + ms(1), KernelView { written: first.written + 37, ..first });
    }
    let _ = evidence.observe(start + ms(later), last);
    evidence.finding(start + ms(later), ms(10))
}

#[test]
fn the_answers_acknowledgement_makes_frozen_and_its_lack_unreachable_after_four_round_trips_or_60_ms() {
    let flying = KernelView { written: 1037, unacked: 1, ..view() };
    let acked = KernelView { written: 1037, bytes_acked: 1037, ..view() };
    assert_eq!(finding(view(), acked, true, 100), Finding::Answered);
    assert_eq!(finding(view(), flying, true, 61), Finding::Unanswered);
    assert_eq!(finding(view(), flying, true, 60), Finding::Unknown);
    // Data from before the suspicion that is acknowledged now speaks of the time before it.
    let before = KernelView { bytes_acked: 900, unacked: 1, ..view() };
    assert_eq!(finding(before, KernelView { since_ack_received: ms(50), ..flying }, true, 100), Finding::Unanswered);
    assert_eq!(finding(before, before, false, 100), Finding::Unanswered);
}

#[test]
fn with_the_window_closed_a_window_probe_answered_makes_frozen_and_one_unanswered_unreachable() {
    let closed = KernelView { send_window: Some(0), unsent: 500, written: 1500, ..view() };
    assert_eq!(finding(closed, KernelView { since_ack_received: ms(30), ..closed }, false, 500), Finding::Answered);
    assert_eq!(finding(closed, closed, false, 500), Finding::Unknown);
    assert_eq!(
        finding(KernelView { probes: 1, ..closed }, KernelView { probes: 2, ..closed }, false, 500),
        Finding::Unanswered
    );
}

// ---- phi ------------------------------------------------------------------------------------------------------

const PHI: PhiConfig =
    PhiConfig { threshold: 8.0, window: 5, min_std: Duration::from_millis(100), acceptable_pause: Duration::ZERO };

#[test]
fn phi_is_what_pekkos_formula_gives() {
    let mut phi = Phi::new(PHI, ms(1000));
    // Seeded with 0.75 and 1.25: mean 1, deviation 0.25.
    assert!((phi.mean() - 1.0).abs() < 1e-12 && (phi.deviation() - 0.25).abs() < 1e-12);
    // Worked out by hand: y = (t - 1) / 0.25, e = exp(-y (1.5976 + 0.070566 y^2)).
    for (t, expected) in
        [(1.0_f64, 2.0_f64.log10()), (1.25, 0.799_51), (1.5, 1.642_83), (2.0, 4.736_69), (0.5, 0.010_00)]
    {
        let y = (t - 1.0) / 0.25;
        let e = (-y * (1.5976 + 0.070_566 * y * y)).exp();
        let pekko = if t > 1.0 { -(e / (1.0 + e)).log10() } else { -(1.0 - 1.0 / (1.0 + e)).log10() };
        let ours = phi.value(Duration::from_secs_f64(t));
        assert!((ours - pekko).abs() < 1e-9, "phi({t}) is {ours}, Pekko's {pekko}");
        assert!((ours - expected).abs() < 1e-4, "phi({t}) is {ours}, by hand {expected}");
    }
    assert!(phi.value(ms(100_000_000)).is_finite());
    // The window slides: five equal ones leave no deviation but the least.
    let start = Instant::now();
    for beat in 0..7 {
        phi.on_arrival(start + ms(400) * beat);
    }
    assert!((phi.mean() - 0.4).abs() < 1e-12 && (phi.deviation() - 0.1).abs() < 1e-9, "{phi:?}");
    let patience = phi.patience();
    assert!((phi.value(patience) - 8.0).abs() < 1e-6, "{}", phi.value(patience));
}

#[test]
fn the_interval_over_a_failure_is_not_recorded() {
    let start = Instant::now();
    let mut phi = Phi::new(PHI, ms(1000));
    phi.on_arrival(start);
    phi.on_failure();
    phi.on_arrival(start + ms(60_000));
    assert!((phi.mean() - 1.0).abs() < 1e-12);
    phi.on_arrival(start + ms(61_000));
    assert!((phi.mean() - 1.0).abs() < 1e-12);
}

#[test]
fn phi_with_pekkos_defaults_fires_at_about_four_and_a_half_seconds() {
    let mut phi = one_second();
    phi.heartbeat.detector = DetectorConfig::Phi(PhiConfig::default());
    let (pair, told) = told_after(Pair::open(phi.clone(), phi), 0, Pair::cut);
    assert_eq!(pair.sides[0].ending().unwrap().cause, Cause::Unreachable);
    for told in told {
        assert_between(told.unwrap(), ms(3500), ms(4800));
    }
}

#[test]
fn a_heartbeat_that_cannot_be_is_refused_with_its_numbers() {
    let good = HeartbeatConfig::default();
    good.validate().unwrap();
    let (limit, want) = (ms(4999), ms(5000));
    let bad = HeartbeatConfig { limit: Some(limit), ..good };
    assert_eq!(bad.validate(), Err(HeartbeatConfigError::LimitBelowInterval { limit, want }));
    let duration = ms(24 * 3600 * 1000 + 1);
    let bad = HeartbeatConfig { want: duration, ..good };
    assert_eq!(bad.validate(), Err(HeartbeatConfigError::Duration { name: "interval", duration }));
    for threshold in [0.0, f64::NAN, 101.0] {
        let detector = DetectorConfig::Phi(PhiConfig { threshold, ..PHI });
        assert!(matches!(HeartbeatConfig { detector, ..good }.validate(), Err(HeartbeatConfigError::Threshold { .. })));
    }
}

// ---- messages and credit --------------------------------------------------------------------------------------

fn messages(pair: &mut Pair, lengths: &[usize]) -> Vec<Vec<u8>> {
    lengths.iter().map(|length| (0..*length).map(|_| pair.dice.below(256) as u8).collect()).collect()
}

#[test]
fn messages_of_every_size_arrive_whole_and_in_order_however_the_stream_is_cut() {
    for (splits, places) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut pair = open();
        (pair.splits, pair.places) = (splits, places);
        let sent = messages(&mut pair, &[0, 1, 64, 16_383, 16_384, 16_385, 32_760, 32_761, 100_000, 0, 700_000]);
        for message in &sent {
            while let Err(SendError::Full { .. }) = pair.sides[0].connection.send(message) {
                pair.turn(0);
                pair.run(ms(20));
            }
            pair.turn(0);
        }
        pair.run(ms(2000));
        assert!(pair.sides[1].received == sent);
        assert_eq!(pair.sides[0].connection.untaken(), (0, 0));
    }
}

#[test]
fn a_consumer_that_takes_nothing_bounds_the_memory_of_both_and_raises_no_alarm() {
    let mut pair = open();
    pair.sides[1].takes = false;
    let mut accepted = 0;
    while pair.sides[0].connection.send(&[1; 1000]).is_ok() {
        accepted += 1;
    }
    pair.turn(0);
    pair.run(ms(60_000));
    let stats = pair.sides[1].connection.stats(pair.now).unwrap();
    assert!(stats.inbox_bytes <= 256 * 1024, "{}", stats.inbox_bytes);
    assert!(stats.inbox_bytes > 250 * 1024);
    assert!(pair.sides[0].connection.untaken().0 <= Config::default().send_buffer_bytes);
    assert!(pair.sides.iter().all(|side| side.ending().is_none()));
    pair.sides[1].takes = true;
    pair.turn(1);
    pair.run(ms(5000));
    assert_eq!(pair.sides[1].received.len(), accepted);
}

#[test]
fn a_message_larger_than_buffer_and_window_is_admitted_alone() {
    let mut pair = open();
    let message = vec![7; 5_000_000];
    pair.send(0, &message);
    assert!(matches!(pair.sides[0].connection.send(b"x"), Err(SendError::Full { .. })));
    pair.run(ms(2000));
    assert!(pair.sides[1].received == [message]);
    pair.send(0, b"x");
    let largest = 16 * 1024 * 1024;
    let too_large = vec![0; largest + 1];
    let length = too_large.len() as u64;
    let refused = SendError::TooLarge { length, largest: largest as u64 };
    assert_eq!(pair.sides[0].connection.send(&too_large), Err(refused));
}

#[test]
fn a_message_that_was_framed_before_goes_as_any_other() {
    let mut pair = open();
    let sent = messages(&mut pair, &[10, 100_000, 16_384, 32_761, 3_000_000, 5]);
    for message in &sent {
        let mut framed = Framed::new(message);
        if message.len() > Config::default().send_buffer_bytes {
            // It has to wait for what is before it, and loses nothing by that.
            let connection = &mut pair.sides[0].connection;
            assert!(matches!(connection.check_send(message.len()), Err(SendError::Full { .. })));
            assert!(matches!(connection.send_framed(&mut framed), Err(SendError::Full { .. })));
            pair.turn(0);
            pair.run(ms(2000));
        }
        pair.sides[0].connection.check_send(message.len()).unwrap();
        pair.sides[0].connection.send_framed(&mut framed).unwrap();
        if message.len() > Config::default().send_buffer_bytes {
            pair.turn(0);
            pair.run(ms(2000));
        }
    }
    pair.turn(0);
    pair.run(ms(2000));
    assert!(pair.sides[1].received == sent);
    assert_eq!(pair.sides[0].connection.untaken(), (0, 0));
}

#[test]
fn control_frames_go_behind_at_most_the_frame_that_was_begun() {
    let mut pair = open();
    let connection = &mut pair.sides[0].connection;
    let now = pair.now;
    for _ in 0..3 {
        connection.send(&[9; 16_384]).unwrap();
    }
    let all = connection.poll_transmit(now);
    assert!(all.first.is_empty() && all.control.is_empty());
    assert_eq!(all.data.len(), 3 * 16_388);
    connection.transmitted(now, 100);
    connection.ping(now);
    let cut_short = connection.poll_transmit(now);
    assert_eq!((cut_short.first.len(), cut_short.control.len(), cut_short.data.len()), (16_288, 37, 2 * 16_388));
    // The rest of the frame and a part of the beat: the beat's rest goes first, and isn't made anew.
    let rest = cut_short.control[10..].to_vec();
    connection.transmitted(now, 16_288 + 10);
    let then = connection.poll_transmit(now + ms(5));
    assert_eq!((then.first, then.control.len(), then.data.len()), (&rest[..], 0, 2 * 16_388));
}

#[test]
fn an_ack_goes_at_half_the_window_or_after_50_ms_or_a_little_later_with_anything_else() {
    let mut pair = open();
    pair.run(ms(200));
    pair.sides[1].takes = false;
    pair.send(0, b"hello");
    pair.run(ms(10));
    let server = &mut pair.sides[1].connection;
    server.read().unwrap();
    server.take(pair.now, 1);
    assert!(!server.is_urgent());
    assert!(server.poll_transmit(pair.now + ms(1) / 2).is_empty());
    assert_eq!(server.poll_transmit(pair.now + ms(1)).control.len(), 20);
    let due = server.poll_timeout().unwrap().instant();
    assert!(due <= pair.now + ms(50));
    server.handle_timeout(pair.now + ms(50));
    assert!(server.is_urgent());
    let length = server.poll_transmit(pair.now).control.len();
    server.transmitted(pair.now, length);
    pair.pipes[1].is_cut = false;
    for _ in 0..9 {
        pair.send(0, &[0; 15_000]);
    }
    pair.run(ms(10));
    let server = &mut pair.sides[1].connection;
    for taken in 1..=9 {
        server.read().unwrap();
        server.take(pair.now, 1);
        assert_eq!(server.is_urgent(), taken * 15_004 >= 128 * 1024, "{taken}");
        assert_eq!(server.poll_transmit(pair.now).is_empty(), taken == 1, "less than 16 KiB rests a moment");
    }
}

#[test]
fn an_ack_goes_after_128_kib_however_large_the_window_has_grown() {
    let mut pair = open();
    pair.pipes.iter_mut().for_each(|pipe| pipe.latency = ms(100));
    pair.kernel_bytes = 1 << 30;
    pair.run(ms(10_000));
    for _ in 0..300 {
        while pair.sides[0].connection.send(&[0; 10_000]).is_ok() {}
        pair.turn(0);
        pair.run(ms(20));
    }
    assert!(pair.sides[1].connection.budget_held() >= 256 * 1024);
    pair.run(ms(1000));
    pair.sides[1].takes = false;
    pair.send(0, &[0; 130 * 1024]);
    pair.run(ms(150));
    let server = &mut pair.sides[1].connection;
    server.read().unwrap();
    assert!(!server.is_urgent());
    server.take(pair.now, 1);
    assert!(server.is_urgent());
}

#[test]
fn the_window_grows_when_it_is_taken_within_two_round_trips_and_shrinks_when_idle() {
    let mut pair = open();
    pair.pipes[0].latency = ms(100);
    pair.pipes[1].latency = ms(100);
    pair.kernel_bytes = 1 << 30;
    pair.run(ms(10_000));
    for _ in 0..300 {
        while pair.sides[0].connection.send(&[0; 10_000]).is_ok() {}
        pair.turn(0);
        pair.run(ms(20));
    }
    let held = pair.sides[1].connection.budget_held();
    assert!(held >= 256 * 1024, "{held}");
    pair.run(ms(60_000));
    pair.send(0, b"x");
    pair.run(ms(1000));
    assert!(pair.sides[1].connection.budget_held() < held);
}

#[test]
fn who_waits_for_an_acknowledgement_gets_it_as_soon_as_everything_is_taken() {
    let mut pair = open();
    pair.run(ms(10_000));
    pair.sides[1].takes = false;
    pair.send(0, b"take me");
    pair.sides[0].connection.hurry(pair.now);
    pair.turn(0);
    pair.run(ms(300));
    let server = &mut pair.sides[1].connection;
    server.read().unwrap();
    assert!(!server.is_urgent());
    server.take(pair.now, 1);
    assert!(server.is_urgent());
}

// ---- closing --------------------------------------------------------------------------------------------------

fn is_normal(pair: &Pair, index: usize, by_peer: bool) {
    let ending = pair.sides[index].ending().unwrap();
    assert_eq!((ending.cause, ending.by_peer), (Cause::Closed, by_peer), "{ending}");
    assert_eq!(ending.close.as_ref().map(|close| close.code), Some(CloseCode::NORMAL));
}

#[test]
fn close_sends_what_was_accepted_waits_until_it_is_taken_and_both_know_why() {
    let mut pair = open();
    pair.splits = true;
    for _ in 0..50 {
        pair.send(0, &[3; 10_000]);
    }
    pair.close(0, ms(5000));
    assert_eq!(pair.sides[0].connection.send(b"late"), Err(SendError::NotOpen));
    pair.run(ms(1000));
    assert_eq!(pair.sides[1].received.len(), 50);
    is_normal(&pair, 0, false);
    is_normal(&pair, 1, true);
    assert_eq!(pair.sides[0].ending().unwrap().untaken_bytes, 0);
    assert!(pair.sides.iter().all(|side| side.socket.is_over && !side.aborted));
}

#[test]
fn a_close_whose_deadline_passes_reports_what_was_not_taken() {
    let mut pair = open();
    pair.sides[1].takes = false;
    pair.send(0, &[3; 10_000]);
    let start = pair.now;
    pair.close(0, ms(2000));
    pair.run(ms(10_000));
    is_normal(&pair, 0, false);
    assert_eq!(pair.sides[0].ending().unwrap().untaken_bytes, 10_004);
    assert_eq!(pair.sides[0].ended_at().unwrap() - start, ms(2000));
    is_normal(&pair, 1, true);
    assert_eq!(pair.sides[1].connection.read().unwrap().len(), 10_000, "the inbox is handed out after the end");
}

#[test]
fn a_close_of_the_link_alone_goes_at_once_and_at_a_frames_boundary() {
    let mut pair = open();
    pair.kernel_bytes = 5000;
    pair.send(0, &[3; 10_000]);
    pair.send(0, &[4; 10_000]);
    let close = Close::new(CloseCode::GOING_AWAY, "").link_only().coming_back(ms(250), "other:9000");
    pair.sides[0].connection.close(pair.now, close, pair.now + ms(5000));
    pair.run(ms(1000));
    assert_eq!(pair.sides[1].received.len(), 1);
    let close = pair.sides[1].ending().unwrap().close.clone().unwrap();
    assert_eq!((close.code, close.ends_session), (CloseCode::GOING_AWAY, false));
    assert_eq!((close.retry_after, &close.address[..]), (ms(250), "other:9000"));
}

#[test]
fn both_may_close_at_once() {
    let mut pair = open();
    pair.close(0, ms(2000));
    pair.close(1, ms(2000));
    pair.run(ms(5000));
    for index in 0..2 {
        is_normal(&pair, index, false);
        assert!(pair.sides[index].socket.is_over);
    }
}

#[test]
fn what_the_program_had_not_taken_when_its_close_went_it_never_takes() {
    let mut pair = open();
    pair.sides[1].takes = false;
    pair.send(0, b"read, and not taken");
    pair.send(0, b"not read");
    pair.run(ms(100));
    assert!(pair.sides[1].connection.read().is_some());
    pair.close(1, ms(2000));
    let now = pair.now;
    let closer = &mut pair.sides[1].connection;
    assert!(!closer.has_message() && closer.read().is_none());
    assert!(!closer.take(now, 1), "the peer was told that it isn't");
    pair.run(ms(1000));
    assert_eq!(pair.sides[0].ending().unwrap().untaken_bytes, 4 + 19 + 4 + 8);
    assert_eq!(pair.sides[1].ending().unwrap().messages_after_close, 2);
}

#[test]
fn who_said_close_waits_for_the_end_of_stream_no_longer_than_for_a_sign_of_life() {
    let mut pair = open();
    pair.sides[1].is_frozen = true;
    let start = pair.now;
    pair.close(0, Duration::from_secs(3600));
    pair.run(ms(60_000));
    is_normal(&pair, 0, false);
    assert!(pair.sides[0].ended_at().unwrap() - start <= ms(2600));
}

#[test]
fn a_link_that_is_over_remembers_how_much_was_not_taken() {
    let mut pair = open();
    pair.sides[1].takes = false;
    pair.send(0, &[3; 10_000]);
    pair.run(ms(100));
    pair.cut();
    pair.run(ms(10_000));
    let (accepted, taken) = pair.sides[0].connection.sent_offsets();
    pair.sides[0].connection.give_back_memory();
    assert_eq!(pair.sides[0].connection.sent_offsets(), (accepted, taken));
    assert_eq!(pair.sides[0].connection.untaken(), (10_004, 1));
    pair.sides[1].connection.give_back_memory();
    assert_eq!(pair.sides[1].connection.read().unwrap(), [3; 10_000]);
}

#[test]
fn what_a_program_has_let_go_of_is_given_back_by_the_link_as_well() {
    let mut pair = open();
    pair.sides[1].takes = false;
    pair.send(0, &[3; 10_000]);
    pair.run(ms(100));
    pair.cut();
    pair.run(ms(10_000));
    let ours = &mut pair.sides[0].connection;
    for _ in 0..2 {
        ours.forget_inbox();
        ours.give_back_memory();
    }
    assert_eq!(ours.untaken().0, 10_004);
    assert!(ours.undelivered().is_empty());
}

#[test]
fn a_close_is_no_handshake_with_the_dead() {
    let mut pair = open();
    pair.send(0, b"never taken");
    pair.cut();
    let start = pair.now;
    pair.close(0, ms(60_000));
    pair.run(ms(10_000));
    assert_eq!(pair.sides[0].ending().unwrap().cause, Cause::Unreachable);
    assert!(pair.sides[0].ended_at().unwrap() - start <= ms(2600));
}

// ---- years and schedules --------------------------------------------------------------------------------------

#[test]
fn a_year_of_heartbeats_raises_no_alarm() {
    let mut pair = Pair::open(config(ms(30_000)), config(ms(30_000)));
    pair.run(Duration::from_secs(365 * 24 * 3600));
    for side in &pair.sides {
        assert_eq!(side.connection.state(), State::Open, "{:?}", side.events);
        assert!(side.connection.stats(pair.now).unwrap().beats.sent > 1_000_000);
        assert_eq!(side.events.len(), if side.events[0].1 == side.events.last().unwrap().1 { 1 } else { 2 });
    }
}

/// Random messages, delays, stalls and cuts: what arrives is a prefix of what was sent, in order; without a fault
/// everything arrives; memory is bounded; whoever ends says why; everything comes to rest.
fn schedule(seed: u64) {
    let mut dice = Dice::new(seed);
    let wants = [100, 500, 1000, 5000];
    let mut any = || config(ms(wants[dice.below(4) as usize]));
    let mut pair = Pair::seeded(any(), any(), seed);
    pair.dice = dice.clone();
    pair.splits = dice.below(2) == 0;
    pair.places = dice.below(2) == 0;
    pair.kernel_bytes = 1000 + dice.below(1 << 18) as usize;
    for pipe in &mut pair.pipes {
        pipe.latency = Duration::from_micros(dice.below(100_000));
    }
    let (mut sent, mut has_fault) = ([Vec::new(), Vec::new()], false);
    for _ in 0..4 + dice.below(20) {
        let index = dice.below(2) as usize;
        match dice.below(12) {
            0..5 => {
                let length = match dice.below(8) {
                    0 => dice.below(60_000),
                    1 => 0,
                    _ => dice.below(200),
                };
                let number = sent[index].len();
                let message: Vec<_> = (number..number + length as usize).map(|at| (at % 251) as u8).collect();
                if pair.sides[index].connection.send(&message).is_ok() {
                    sent[index].push(message);
                    pair.turn(index);
                }
            }
            5 => pair.sides[index].takes = !pair.sides[index].takes,
            6 if dice.below(4) == 0 => {
                has_fault = true;
                pair.pipes[index].is_cut = true;
            }
            7 if dice.below(2) == 0 => pair.mend(),
            8 if dice.below(4) == 0 => {
                has_fault = true;
                pair.sides[index].is_frozen = true;
            }
            9 => pair.sides[index].is_frozen = false,
            10 if dice.below(8) == 0 => {
                has_fault = true;
                pair.close(index, ms(dice.below(3000)));
            }
            _ => {}
        }
        let pause = if dice.below(4) == 0 { 3000 } else { 100 };
        pair.run(ms(dice.below(pause)));
    }
    pair.mend();
    for index in 0..2 {
        pair.sides[index].is_frozen = false;
        pair.sides[index].takes = true;
    }
    pair.run(ms(20_000));
    for (index, sent) in sent.iter().enumerate() {
        let received = &pair.sides[1 - index].received;
        assert!(sent.starts_with(received), "seed {seed}: doubled, lost or out of order");
        let ended = pair.sides[index].ending().or(pair.sides[1 - index].ending());
        match ended {
            None => assert_eq!(received.len(), sent.len(), "seed {seed}"),
            Some(ending) => {
                assert!(has_fault, "seed {seed}: {ending}");
                assert_ne!(ending.cause, Cause::Protocol, "seed {seed}: {ending}");
                assert!(pair.sides.iter().all(|side| side.ending().is_some() && side.socket.is_over), "seed {seed}");
            }
        }
    }
}

#[test]
fn random_schedules_deliver_in_order_or_say_why_not() {
    let count = std::env::var("LONGCONN_SCHEDULES").map_or(10_000, |count| count.parse().unwrap());
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    std::thread::scope(|scope| {
        for worker in 0..workers {
            scope.spawn(move || (worker..count).step_by(workers as usize).for_each(schedule));
        }
    });
}

/// The server, fed by hand.
#[test]
fn a_server_says_nothing_to_a_stranger_and_only_its_preamble_before_hello() {
    let now = Instant::now();
    let mut server = Connection::server(now, one_second().into(), 7);
    server.handle_input(now, b"LONGCON");
    assert!(server.poll_transmit(now).is_empty());
    server.handle_input(now, b"N");
    assert_eq!(server.poll_transmit(now).first, b"LONGCONN");
}
