//! The guard's mind, on samples of connections whose cables were really pulled, and in simulated time.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests; any instant will do as an origin")]

mod recorded;

use std::num::NonZeroU8;
use std::time::{Duration, Instant};

use longconn::proto::verdict::{Cause, Judge, Probing, Sample, TcpState, Verdict};
use proptest::prelude::*;
use recorded::rows;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

// ---- recorded samples -------------------------------------------------------------------------------------------

/// Milliseconds since the cut (or the start), and the sample.
fn recording(name: &str) -> Vec<(i64, Sample)> {
    rows(name).into_iter().map(|row| (row.at_ms, row.sample())).collect()
}

fn probing(idle_seconds: u16, interval_seconds: u16, count: u8) -> Probing {
    Probing { idle_seconds, interval_seconds, count: NonZeroU8::new(count).unwrap() }
}

/// Judges a recording by the looks that the judge asks for; milliseconds since the cut, and the verdict.
fn judge(name: &str, limit: Duration) -> Option<(i64, Verdict)> {
    let rows = recording(name);
    let origin = Instant::now();
    let first = rows[0].0;
    let at = |ms: i64| origin + Duration::from_millis(u64::try_from(ms - first).unwrap());
    let mut judge = Judge::new(limit);
    judge.set_probing(Some(probing(1, 1, 127)));
    let mut due = origin;
    for (row_ms, sample) in rows {
        let now = at(row_ms);
        if now < due {
            continue;
        }
        let verdict = judge.observe(now, &sample);
        if matches!(verdict, Verdict::Dead { .. }) {
            return Some((row_ms, verdict));
        }
        due = judge.next_look(now);
    }
    None
}

#[track_caller]
fn assert_dead(name: &str, limit: Duration, expected: Cause, within: Duration) {
    let Some((after, Verdict::Dead { cause, silence, .. })) = judge(name, limit) else {
        panic!("{name}: nobody was told");
    };
    let after = ms(u64::try_from(after).unwrap());
    assert_eq!(cause, expected, "{name}");
    assert!(after <= within, "{name}: told after {after:?}, bound {within:?}");
    assert!(silence >= limit, "{name}: {silence:?}");
}

#[test]
fn living_peers_are_never_convicted() {
    for name in [
        "idle_alive",
        "sending_receiving_alive",
        "sending_receiving_loss_2",
        "slow_reader_alive",
        "slow_reader_alive_reading",
        "slow_reader_alive_no_rto_max",
        "window_taken_back",
        "peer_fills_our_window",
        "receiving_slow_feed_alive",
        "receiving_slow_feed_loss_5",
    ] {
        for limit in [ms(1000), ms(2000), ms(3000), ms(5000), ms(10_000)] {
            assert_eq!(judge(name, limit), None, "{name} with a limit of {limit:?}");
        }
    }
}

#[test]
fn data_in_flight_is_told_at_the_limit() {
    for limit in [ms(2000), ms(3000), ms(5000)] {
        assert_dead("flight_cut", limit, Cause::Unreachable, limit + ms(500));
        assert_dead("flight_cut_no_rto_max", limit, Cause::Unreachable, limit + ms(500));
        assert_dead("sending_cut", limit, Cause::Unreachable, limit + ms(500));
        // where our own machine can't send, fewer counters go on
        assert_dead("sending_own_cable_cut", limit, Cause::Unreachable, limit + ms(700));
    }
}

#[test]
fn an_idle_path_is_told_a_limit_after_the_first_probe() {
    // keepalive's idle time was 1 s, and the kernel was told not to give up; rows are 100 ms apart
    assert_dead("idle_cut", ms(3000), Cause::Unreachable, ms(4150));
    assert_dead("idle_cut", ms(5000), Cause::Unreachable, ms(6150));
}

#[test]
fn a_dead_path_behind_a_closed_window_is_told_a_probe_later() {
    assert_dead("slow_reader_cut", ms(3000), Cause::Unreachable, ms(4500));
}

#[test]
fn without_bounded_timers_it_is_told_later_and_as_surely() {
    assert_dead("slow_reader_cut_no_rto_max", ms(3000), Cause::Unreachable, ms(30_000));
    assert_dead("window_taken_back_cut", ms(3000), Cause::Unreachable, ms(30_000));
    let (after, _) = judge("slow_reader_cut_no_rto_max", ms(3000)).expect("told in the end");
    assert!(after > 4500, "told after {after} ms, sooner than the kernel probes");
}

#[test]
fn a_peer_that_is_heard_and_does_not_hear_us_is_deaf() {
    assert_dead("one_way_cut_sending_receiving", ms(3000), Cause::Deaf, ms(4500));
    assert_dead("one_way_cut_receiving", ms(3000), Cause::Deaf, ms(4500));
    assert_dead("one_way_cut_receiving_no_rto_max", ms(3000), Cause::Deaf, ms(4500));
    assert_dead("one_way_cut_receiving_slow_feed", ms(3000), Cause::Deaf, ms(4500));
}

// ---- single rules ------------------------------------------------------------------------------------------------

fn quiet() -> Sample {
    Sample {
        state: TcpState::Established,
        unacked: 0,
        probes: 0,
        total_retrans: 0,
        timeouts: 0,
        unsent: 0,
        bytes_acked: 1000,
        bytes_received: 1000,
        segments_in: 50,
        data_segments_in: 10,
        out_of_order_in: 0,
        send_window: Some(65_535),
        receive_window: Some(65_535),
        since_data_sent: ms(10_000),
        since_data_received: ms(10_000),
        since_ack_received: ms(10_000),
        round_trip: ms(20),
    }
}

/// Looks at `sample` every `every` from `from` to `to` after the origin.
fn look(judge: &mut Judge, origin: Instant, from: u64, to: u64, every: u64, sample: impl Fn(u64) -> Sample) -> Verdict {
    let mut verdict = Verdict::NotJudged;
    for at in (from..=to).step_by(usize::try_from(every).unwrap()) {
        verdict = judge.observe(origin + ms(at), &sample(at));
        if matches!(verdict, Verdict::Dead { .. }) {
            break;
        }
    }
    verdict
}

fn unanswered(at: u64) -> Sample {
    let repeats = u32::try_from(at / 500).unwrap();
    Sample { unacked: 2, total_retrans: repeats, since_data_sent: ms(at % 500), since_ack_received: ms(at), ..quiet() }
}

#[test]
fn a_gap_between_looks_starts_the_count_anew() {
    let origin = Instant::now();
    let mut judge = Judge::new(ms(3000));
    assert!(matches!(look(&mut judge, origin, 0, 2800, 200, unanswered), Verdict::Unanswered(_)));
    // we were stopped for 2 s: nobody knows what was answered meanwhile
    assert!(matches!(look(&mut judge, origin, 4800, 7600, 200, unanswered), Verdict::Unanswered(_)));
    assert!(matches!(
        look(&mut judge, origin, 7800, 7800, 200, unanswered),
        Verdict::Dead { cause: Cause::Unreachable, .. }
    ));
}

#[test]
fn nobody_is_convicted_by_one_transmission() {
    let origin = Instant::now();
    let once = |at: u64| Sample { total_retrans: 0, ..unanswered(at) };
    // a round trip longer than the limit: the kernel doesn't think that anything is overdue
    assert!(matches!(look(&mut Judge::new(ms(1000)), origin, 0, 60_000, 100, once), Verdict::Unanswered(_)));
    // one lost probe behind a closed window, the next one two minutes later
    let probe = |at: u64| Sample { probes: u32::from(at > 500), ..quiet() };
    assert!(matches!(look(&mut Judge::new(ms(3000)), origin, 0, 60_000, 300, probe), Verdict::Unanswered(_)));
}

#[test]
fn progress_between_two_looks_is_an_answer() {
    let origin = Instant::now();
    let busy = |at: u64| Sample { bytes_acked: 1000 + at, ..unanswered(at) };
    assert!(matches!(
        look(&mut Judge::new(ms(3000)), origin, 0, 60_000, 200, busy),
        Verdict::Unanswered(since) if since <= ms(200)
    ));
    // each probe is answered, only never at the moment of a look: the count falls
    let probes = |at: u64| Sample { probes: 1 + u32::try_from(at / 300 % 2).unwrap(), ..quiet() };
    assert!(!matches!(look(&mut Judge::new(ms(3000)), origin, 0, 60_000, 300, probes), Verdict::Dead { .. }));
}

#[test]
fn an_idle_path_is_not_given_up_later_than_by_the_kernel() {
    let origin = Instant::now();
    // probes at 2, 3, 4 s; the kernel gives up at 5 s, the limit would be 16 s
    let probed = |at: u64| Sample {
        probes: u32::try_from(at.saturating_sub(1000) / 1000).unwrap().min(3),
        since_ack_received: ms(at),
        since_data_received: ms(at),
        ..quiet()
    };
    let mut judge = Judge::new(ms(16_000));
    judge.set_probing(Some(probing(2, 1, 3)));
    let mut at = 0;
    let told = loop {
        let now = origin + ms(at);
        if matches!(judge.observe(now, &probed(at)), Verdict::Dead { cause: Cause::Unreachable, .. }) {
            break at;
        }
        at += u64::try_from((judge.next_look(now) - now).as_millis()).unwrap();
        assert!(at < 20_000, "the judge leaves it to the kernel");
    };
    assert_eq!(told, 5000);
}

#[test]
fn repeats_of_the_peer_convict_only_if_our_probes_stay_unanswered() {
    let origin = Instant::now();
    // A peer whose keepalive sends a byte that we have already, each second, as Windows does.
    let probing_peer = |at: u64| Sample {
        segments_in: 50 + u32::try_from(at / 1000).unwrap(),
        data_segments_in: 10 + u32::try_from(at / 1000).unwrap(),
        since_data_received: ms(at),
        ..quiet()
    };
    assert_eq!(look(&mut Judge::new(ms(3000)), origin, 0, 60_000, 200, probing_peer), Verdict::Answered);
    let deaf = |at: u64| Sample { probes: u32::from(at % 1000 > 300), ..probing_peer(at) };
    // the answer to a probe carries no data, and ends the suspicion
    let answering = |at: u64| Sample { segments_in: 50 + u32::try_from(at / 1000 + at / 1400).unwrap(), ..deaf(at) };
    assert!(!matches!(look(&mut Judge::new(ms(3000)), origin, 0, 60_000, 200, answering), Verdict::Dead { .. }));
    assert!(matches!(
        look(&mut Judge::new(ms(3000)), origin, 0, 60_000, 200, deaf),
        Verdict::Dead { cause: Cause::Deaf, .. }
    ));
    // the last data came long before: these are no retransmissions
    let late = |at: u64| Sample { since_data_received: ms(at + 5000), ..deaf(at) };
    assert!(!matches!(look(&mut Judge::new(ms(3000)), origin, 0, 60_000, 200, late), Verdict::Dead { .. }));
    // our own window is closed: the peer's probes of it carry data on some systems
    let closed = |at: u64| Sample { receive_window: Some(0), ..deaf(at) };
    assert!(!matches!(look(&mut Judge::new(ms(3000)), origin, 0, 60_000, 200, closed), Verdict::Dead { .. }));
    // segments behind a hole are new, not repeated
    let hole = |at: u64| Sample { out_of_order_in: u32::try_from(at / 1000).unwrap(), ..deaf(at) };
    assert!(!matches!(look(&mut Judge::new(ms(3000)), origin, 0, 60_000, 200, hole), Verdict::Dead { .. }));
}

#[test]
fn half_closed_connections_are_judged_and_others_are_not() {
    let origin = Instant::now();
    for number in 0..=13 {
        let state = TcpState::from_kernel(number);
        let verdict = look(&mut Judge::new(ms(3000)), origin, 0, 6000, 200, |at| Sample { state, ..unanswered(at) });
        let judged = matches!(number, 1 | 4 | 5 | 8 | 9 | 11);
        assert_eq!(matches!(verdict, Verdict::Dead { .. }), judged, "{state:?}: {verdict:?}");
        if !judged {
            assert_eq!(verdict, Verdict::NotJudged);
        }
    }
}

// ---- simulated time ----------------------------------------------------------------------------------------------

/// As much of a kernel's TCP as the guard sees: a flight with its retransmission timer, keepalive probes, and a
/// path that loses packets or is cut.
struct Kernel {
    rto_max: u64,
    round_trip: u64,
    keepalive_idle: u64,
    keepalive_interval: u64,
    loss: f64,
    cut_at: Option<u64>,
    seed: u64,
    sample: Sample,
    /// When the last segment of the flight was sent again, and the next time.
    flight: Option<(u64, u64, u64)>,
    next_probe: u64,
    answer_at: Option<u64>,
    heard_at: u64,
    sent_at: u64,
}

impl Kernel {
    fn chance(&mut self) -> f64 {
        // xorshift64: good enough to lose packets by, and the same on every machine
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A packet and its answer.
    fn transmit(&mut self, now: u64) {
        let lost = self.chance() < self.loss || self.chance() < self.loss;
        if !lost && self.cut_at.is_none_or(|cut| now + self.round_trip < cut) {
            let answer = now + self.round_trip;
            self.answer_at = Some(self.answer_at.map_or(answer, |at| at.min(answer)));
        }
    }

    fn send(&mut self, now: u64) {
        if self.flight.is_none() {
            self.sample.unacked = 1;
            self.sent_at = now;
            let rto = (2 * self.round_trip).max(200);
            self.flight = Some((now, now + rto.min(self.rto_max), rto));
            self.transmit(now);
        }
    }

    fn next_event(&self) -> u64 {
        let timer = self.flight.map_or(self.next_probe, |(_, next, _)| next);
        self.answer_at.map_or(timer, |answer| answer.min(timer))
    }

    fn run_until(&mut self, now: u64) {
        while self.next_event() <= now {
            let at = self.next_event();
            if self.answer_at == Some(at) {
                self.answer_at = None;
                self.heard_at = at;
                self.sample.segments_in += 1;
                self.sample.probes = 0;
                if self.flight.take().is_some() {
                    self.sample.unacked = 0;
                    self.sample.bytes_acked += 100;
                }
                self.next_probe = at + self.keepalive_idle;
            } else if let Some((_, _, rto)) = self.flight {
                let rto = (2 * rto).min(self.rto_max);
                self.flight = Some((at, at + rto, rto));
                self.sent_at = at;
                self.sample.total_retrans += 1;
                self.transmit(at);
            } else {
                self.sample.probes += 1;
                self.next_probe = at + self.keepalive_interval;
                self.transmit(at);
            }
        }
    }

    fn look(&self, now: u64) -> Sample {
        Sample {
            since_data_sent: ms(now - self.sent_at),
            since_ack_received: ms(now - self.heard_at),
            since_data_received: ms(now),
            round_trip: ms(self.round_trip),
            ..self.sample
        }
    }
}

fn kernel(seed: u64, round_trip: u64, rto_max: u64, loss: f64, cut_at: Option<u64>) -> Kernel {
    Kernel {
        rto_max,
        round_trip,
        keepalive_idle: 15_000,
        keepalive_interval: 5_000,
        loss,
        cut_at,
        seed: seed | 1,
        sample: quiet(),
        flight: None,
        next_probe: 15_000,
        answer_at: None,
        heard_at: 0,
        sent_at: 0,
    }
}

/// Runs guard and kernel side by side; the program sends at random times, `busy` milliseconds apart on average.
fn run(mut kernel: Kernel, limit: u64, busy: Option<u64>, until: u64) -> Option<u64> {
    let origin = Instant::now();
    let mut judge = Judge::new(ms(limit));
    let mut next_send = busy.unwrap_or(u64::MAX);
    let mut now = 0;
    while now < until {
        while next_send <= now {
            kernel.run_until(next_send);
            kernel.send(next_send);
            let spread = 2.0 * kernel.chance() * busy.unwrap_or(0) as f64;
            next_send += 1 + spread as u64;
        }
        kernel.run_until(now);
        let at = origin + ms(now);
        if matches!(judge.observe(at, &kernel.look(now)), Verdict::Dead { .. }) {
            return Some(now);
        }
        let due = judge.next_look(at);
        assert!(due > at, "the judge must rest between two looks");
        now += u64::try_from((due - at).as_millis()).unwrap().max(1);
    }
    None
}

#[test]
fn a_year_of_an_idle_connection_on_a_lossy_path_raises_no_alarm() {
    // 2 % of the packets are lost each way; 2.1 million probes
    assert_eq!(run(kernel(7, 80, 3000, 0.02, None), 30_000, None, 365 * 86_400_000), None);
}

#[test]
fn a_week_of_a_busy_connection_on_a_lossy_path_raises_no_alarm() {
    assert_eq!(run(kernel(11, 80, 3000, 0.02, None), 30_000, Some(2000), 7 * 86_400_000), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_cut_is_always_told_in_time(
        seed in any::<u64>(),
        round_trip in 1u64..400,
        limit in 2_000u64..60_000,
        cut_at in 1_000u64..200_000,
        busy in prop::option::of(50u64..5_000),
    ) {
        let rto_max = (limit / 10).max(1000);
        let told = run(kernel(seed, round_trip, rto_max, 0.0, Some(cut_at)), limit, busy, cut_at + 400_000);
        let after = told.expect("never told") - cut_at.min(told.unwrap_or(0));
        // in flight at once, or else when the next probe finds out; three probes at least
        let bound = match busy {
            Some(pause) => 2 * pause + limit + limit / 8 + 2 * round_trip + 50,
            None => 15_000 + limit.max(10_000) + limit / 8 + 2 * round_trip + 50,
        };
        prop_assert!(after <= bound, "told after {after} ms, bound {bound}");
        prop_assert!(after + round_trip >= limit, "told after {after} ms, before the limit of {limit}");
    }

    #[test]
    fn a_slow_path_is_no_dead_path(seed in any::<u64>(), round_trip in 200u64..3_000, limit in 1_000u64..5_000) {
        // the round trip may exceed the limit; the timer allows for it, as the guard sees to
        let rto_max = (4 * round_trip).max(1000);
        prop_assert_eq!(run(kernel(seed, round_trip, rto_max, 0.0, None), limit, Some(500), 3_600_000), None);
    }

    #[test]
    fn samples_of_any_kind_never_panic(
        limit in 1u64..100_000,
        looks in prop::collection::vec(any::<(u64, u32, u32, u32, u64, u64, u32, u32, u32, u8)>(), 1..50),
    ) {
        let origin = Instant::now();
        let mut judge = Judge::new(ms(limit));
        let mut now = origin;
        for (gap, unacked, probes, retrans, acked, received, segments, data, odd, state) in looks {
            now += ms(gap % 10_000);
            judge.observe(now, &Sample {
                state: TcpState::from_kernel(state % 14),
                unacked,
                probes,
                total_retrans: retrans,
                timeouts: odd,
                unsent: segments,
                bytes_acked: acked,
                bytes_received: received,
                segments_in: segments,
                data_segments_in: data,
                out_of_order_in: odd,
                send_window: Some(odd),
                receive_window: Some(segments),
                since_data_sent: ms(acked % 1_000_000),
                since_data_received: ms(received % 1_000_000),
                since_ack_received: ms(gap),
                round_trip: ms(gap % 100_000),
            });
            let _ = judge.next_look(now);
        }
    }
}
