//! What a bad path does to bytes, in simulated time.

#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]
#![allow(clippy::disallowed_methods, reason = "any origin will do")]

use std::time::{Duration, Instant};

use longconn::fault::flow::{Fault, Flow, Output, Passage, Then, Way};
use longconn::fault::nat::Nat;
use longconn::fault::record::{Entry, MAX_ENTRIES, Record, What};
use proptest::prelude::*;

const ROOM: usize = 4096;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A flow with a sender that has all its bytes ready from the start, or at its times, and a receiver.
struct Path {
    flow: Flow,
    start: Instant,
    now: Instant,
    /// What is still to be sent, from `sent` on, as far as it is ready by then.
    data: Vec<u8>,
    sent: usize,
    ready: Vec<(Duration, usize)>,
    /// So many bytes are taken at a time.
    gulp: usize,
    received: Vec<u8>,
    /// When how many had entered, and left.
    entries: Vec<(Duration, usize)>,
    exits: Vec<(Duration, usize)>,
    end: Option<&'static str>,
    most_held: usize,
}

impl Path {
    fn new(data: Vec<u8>) -> Self {
        let start = Instant::now();
        Self {
            flow: Flow::new(ROOM, 1),
            start,
            now: start,
            ready: vec![(Duration::ZERO, data.len())],
            data,
            sent: 0,
            gulp: usize::MAX,
            received: Vec::new(),
            entries: Vec::new(),
            exits: Vec::new(),
            end: None,
            most_held: 0,
        }
    }

    fn under(mut self, faults: &[Fault]) -> Self {
        faults.iter().for_each(|fault| self.flow.handle_fault(self.now, *fault));
        self
    }

    fn since(&self) -> Duration {
        self.now - self.start
    }

    /// All that happens at this moment.
    fn settle(&mut self) {
        loop {
            let mut rests = true;
            while let Some(output) = self.flow.poll(self.now) {
                rests = false;
                match output {
                    Output::Bytes(bytes) => {
                        let count = bytes.len().min(self.gulp);
                        self.received.extend_from_slice(&bytes[..count]);
                        self.flow.consume(count);
                        self.exits.push((self.since(), self.received.len()));
                    }
                    Output::End => self.end = Some("end"),
                    Output::Reset => self.end = Some("reset"),
                    Output::CutBoth => self.end = Some("cut both"),
                }
            }
            let since = self.since();
            let ready: usize = self.ready.iter().filter(|(at, _)| *at <= since).map(|(_, count)| count).sum();
            let count = self.flow.room(self.now).min(ready - self.sent);
            if count > 0 {
                rests = false;
                self.flow.handle_bytes(self.now, &self.data[self.sent..self.sent + count]);
                self.sent += count;
                self.entries.push((self.since(), self.sent));
                self.most_held = self.most_held.max(self.flow.held());
            }
            if rests {
                return;
            }
        }
    }

    /// Jumps from one moment at which something happens to the next.
    fn run_until(&mut self, until: Duration) {
        for _ in 0..1_000_000 {
            self.settle();
            let of_sender = self.ready.iter().map(|(at, _)| self.start + *at);
            let wakes = [self.flow.poll_timeout(), self.flow.poll_room_timeout(self.now)];
            let next = wakes.into_iter().flatten().chain(of_sender).filter(|at| *at > self.now).min();
            match next.filter(|at| *at <= self.start + until) {
                Some(at) => self.now = at,
                None => {
                    self.now = self.start + until;
                    return self.settle();
                }
            }
        }
        panic!("it never rests");
    }

    /// When so many bytes had come out.
    fn left_at(&self, count: usize) -> Duration {
        self.exits.iter().find(|(_, left)| *left >= count).unwrap().0
    }

    fn entered_at(&self, count: usize) -> Duration {
        self.entries.iter().find(|(_, entered)| *entered >= count).unwrap().0
    }
}

fn numbered(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index % 251) as u8).collect()
}

#[test]
fn without_faults_bytes_leave_when_they_enter() {
    let mut path = Path::new(numbered(100_000));
    path.run_until(Duration::ZERO);
    assert_eq!(path.received, path.data);
    assert!(path.most_held <= ROOM);
}

#[test]
fn latency_is_exact() {
    let mut path = Path::new(numbered(3)).under(&[Fault::Latency { delay: ms(200), jitter: ms(0) }]);
    path.ready = vec![(ms(0), 1), (ms(50), 2)];
    path.run_until(ms(1000));
    assert_eq!(path.exits, [(ms(200), 1), (ms(250), 3)]);
}

#[test]
fn bandwidth_is_exact_and_felt_by_the_sender() {
    let mut path = Path::new(numbered(10_000)).under(&[Fault::Bandwidth(Some(1000))]);
    path.run_until(ms(20_000));
    for (at, left) in &path.exits {
        assert_eq!(*at, ms(*left as u64), "{left} bytes at a thousand a second");
    }
    assert_eq!(path.received, path.data);
    // A tenth of a second's bytes wait, and the rest is the sender's.
    assert!(path.most_held <= 110, "{}", path.most_held);
}

#[test]
fn a_wider_path_is_wider_at_once() {
    let mut path = Path::new(numbered(10_000)).under(&[Fault::Bandwidth(Some(100))]);
    path.run_until(ms(1000));
    assert_eq!(path.received.len(), 100);
    path.flow.handle_fault(path.now, Fault::Bandwidth(None));
    path.run_until(ms(1200));
    assert_eq!(path.received, path.data);
}

#[test]
fn slices_have_their_size_and_set_out_apart() {
    let slice = Fault::Slice { size: 3, spread: 0, delay: ms(10) };
    let mut path = Path::new(numbered(9)).under(&[slice]);
    path.run_until(ms(1000));
    assert_eq!(path.exits, [(ms(0), 3), (ms(10), 6), (ms(20), 9)]);
}

#[test]
fn slices_vary_by_their_spread() {
    let mut path = Path::new(numbered(4000)).under(&[Fault::Slice { size: 10, spread: 4, delay: ms(0) }]);
    path.run_until(ms(1000));
    let mut sizes: Vec<_> = path.exits.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    // The last of what was read at once is what was left of it.
    sizes.retain(|size| *size >= 6);
    assert!(sizes.len() > 200);
    assert_eq!((sizes.iter().min(), sizes.iter().max()), (Some(&6), Some(&14)));
}

#[test]
fn the_end_of_a_stream_comes_last_and_as_late_as_is_wished() {
    let mut path = Path::new(numbered(10));
    path = path.under(&[Fault::Latency { delay: ms(100), jitter: ms(0) }, Fault::SlowEnd(ms(500))]);
    path.settle();
    path.flow.handle_end(path.now);
    path.run_until(ms(599));
    assert_eq!((path.received.len(), path.end), (10, None));
    path.run_until(ms(600));
    assert_eq!(path.end, Some("end"));
}

#[test]
fn what_is_said_behind_the_end_is_lost_and_counted() {
    let mut path = Path::new(numbered(10));
    path.settle();
    path.flow.handle_fault(path.now, Fault::End);
    path.flow.handle_bytes(path.now, b"more");
    path.settle();
    assert_eq!((path.received.len(), path.end, path.flow.counts().lost), (10, Some("end"), 4));
}

#[test]
fn a_reset_is_held_back_by_a_stalled_path() {
    let mut path = Path::new(Vec::new()).under(&[Fault::Passage(Passage::Stalled)]);
    path.flow.handle_reset(path.now);
    path.run_until(ms(1000));
    assert_eq!(path.end, None);
    path.flow.handle_fault(path.now, Fault::Restore);
    path.settle();
    assert_eq!(path.end, Some("reset"));
}

#[test]
fn a_restored_path_gives_up_at_once_what_was_on_its_way() {
    let mut path = Path::new(numbered(50)).under(&[Fault::Latency { delay: ms(60_000), jitter: ms(0) }]);
    path.run_until(ms(10));
    assert_eq!(path.received.len(), 0);
    path.flow.handle_fault(path.now, Fault::Restore);
    path.settle();
    assert_eq!((path.received.len(), path.flow.held()), (50, 0));
}

#[test]
fn one_byte_is_corrupted_by_one_bit_where_it_was_wished() {
    let mut path = Path::new(vec![0; 9000]).under(&[Fault::CorruptAt(5000)]);
    path.run_until(ms(0));
    let spoilt: Vec<_> = path.received.iter().enumerate().filter(|(_, byte)| **byte != 0).collect();
    assert_eq!(spoilt.len(), 1);
    assert_eq!((spoilt[0].0, spoilt[0].1.count_ones()), (5000, 1));
}

#[test]
fn as_many_bytes_are_corrupted_as_chance_wants() {
    let count = 200_000;
    let mut path = Path::new(vec![0; count]).under(&[Fault::Corrupt(0.01)]);
    path.run_until(ms(0));
    let spoilt = path.received.iter().filter(|byte| byte.count_ones() == 1).count();
    assert_eq!(spoilt, path.received.iter().filter(|byte| **byte != 0).count());
    assert_eq!(spoilt as u64, path.flow.counts().corrupted);
    // Six standard deviations of a binomial of 200,000 at 0.01.
    assert!((1733..=2267).contains(&spoilt), "{spoilt}");
    let mut path = Path::new(vec![0; 100]).under(&[Fault::Corrupt(1.0)]);
    path.settle();
    assert!(path.received.iter().all(|byte| *byte != 0));
}

#[test]
fn another_flow_begins_with_the_same_faults_and_nothing_else() {
    let flow = Path::new(Vec::new()).under(&[Fault::Limit(3, Then::End), Fault::Bandwidth(Some(1000))]).flow;
    let mut path = Path::new(numbered(10));
    path.flow = flow.another(7);
    path.run_until(ms(100));
    // A piece is ten bytes, a hundredth of a second's.
    assert_eq!((path.left_at(3), path.received.len(), path.end), (ms(10), 3, Some("end")));
}

#[test]
fn absurd_settings_neither_panic_nor_pass() {
    let mut path = Path::new(numbered(10)).under(&[
        Fault::Latency { delay: Duration::MAX, jitter: Duration::MAX },
        Fault::Bandwidth(Some(u64::MAX)),
        Fault::Slice { size: u64::MAX, spread: u64::MAX, delay: Duration::MAX },
        Fault::Corrupt(f64::MIN_POSITIVE),
        Fault::SlowEnd(Duration::MAX),
    ]);
    path.settle();
    path.flow.handle_end(path.now);
    path.run_until(ms(100));
    assert_eq!(path.end, None);
}

fn any_fault() -> impl Strategy<Value = Fault> {
    let passage = prop_oneof![Just(Passage::Open), Just(Passage::Stalled), Just(Passage::Cut)];
    prop_oneof![
        passage.prop_map(Fault::Passage),
        (0..300_u64, 0..300_u64).prop_map(|(delay, jitter)| Fault::Latency { delay: ms(delay), jitter: ms(jitter) }),
        proptest::option::of(1..100_000_u64).prop_map(Fault::Bandwidth),
        (0..50_u64, 0..60_u64, 0..3_u64).prop_map(|(size, spread, delay)| Fault::Slice {
            size,
            spread,
            delay: ms(delay)
        }),
        (0..3000_u64, prop_oneof![Just(Then::Stall), Just(Then::Cut)])
            .prop_map(|(count, then)| Fault::Limit(count, then)),
        (0..300_u64).prop_map(|delay| Fault::SlowEnd(ms(delay))),
        Just(Fault::Restore),
    ]
}

proptest! {
    #[test]
    fn nothing_is_lost_doubled_or_reordered_by_faults_that_dont_say_so(
        parts in proptest::collection::vec((0..2000_u64, 0..2000_usize), 0..12),
        faults in proptest::collection::vec((0..2000_u64, any_fault()), 0..12),
        gulp in 1..3000_usize,
    ) {
        let mut path = Path::new(numbered(parts.iter().map(|(_, count)| count).sum()));
        path.ready = parts.iter().map(|(at, count)| (ms(*at), *count)).collect();
        path.gulp = gulp;
        let mut faults = faults;
        faults.sort_by_key(|(at, _)| *at);
        for (at, fault) in faults {
            path.run_until(ms(at));
            prop_assert!(path.data.starts_with(&path.received));
            path.flow.handle_fault(path.now, fault);
        }
        path.run_until(ms(2000));
        path.flow.handle_fault(path.now, Fault::Restore);
        path.settle();
        path.flow.handle_end(path.now);
        path.settle();
        prop_assert_eq!(&path.received, &path.data);
        prop_assert_eq!(path.end, Some("end"));
        prop_assert!(path.most_held <= ROOM);
        let counts = path.flow.counts();
        prop_assert_eq!((counts.entered, counts.left), (path.data.len() as u64, path.data.len() as u64));
        prop_assert_eq!((counts.lost, counts.corrupted, path.flow.held()), (0, 0, 0));
    }

    #[test]
    fn jitter_stays_within_its_bounds_and_keeps_the_order(
        parts in proptest::collection::vec((0..2000_u64, 1..100_usize), 1..12),
        delay in 0..300_u64,
        jitter in 0..400_u64,
        seed in any::<u64>(),
    ) {
        let mut path = Path::new(numbered(parts.iter().map(|(_, count)| count).sum()));
        path.ready = parts.iter().map(|(at, count)| (ms(*at), *count)).collect();
        path.flow = Flow::new(ROOM, seed);
        let mut path = path.under(&[Fault::Latency { delay: ms(delay), jitter: ms(jitter) }]);
        path.run_until(ms(3000));
        prop_assert_eq!(&path.received, &path.data);
        for count in 1..=path.data.len() {
            let took = path.left_at(count) - path.entered_at(count);
            prop_assert!(took <= ms(delay + jitter), "{:?}", took);
            prop_assert!(took + ms(jitter) >= ms(delay), "{:?}", took);
        }
    }

    #[test]
    fn a_narrow_path_is_never_wider_and_no_narrower(width in 1..5_000_000_u64, count in 1..20_000_usize) {
        let count = count.min(usize::try_from(width).unwrap() * 20);
        let mut path = Path::new(numbered(count)).under(&[Fault::Bandwidth(Some(width))]);
        path.run_until(ms(40_000));
        prop_assert_eq!(&path.received, &path.data);
        for (at, left) in &path.exits {
            prop_assert!(*left as f64 <= at.as_secs_f64() * width as f64 + 1e-3, "{} by {:?}", left, at);
        }
        let took = path.left_at(count).as_secs_f64();
        // Each piece's time is a whole number of nanoseconds.
        prop_assert!(took <= count as f64 / width as f64 + 1e-9 * count as f64, "{took}");
    }

    #[test]
    fn exactly_as_many_bytes_pass_as_were_granted_however_they_are_cut(
        granted in 0..5000_u64,
        parts in proptest::collection::vec(1..1500_usize, 1..8),
        gulp in 1..2000_usize,
        then in prop_oneof![Just(Then::Stall), Just(Then::Cut), Just(Then::CutBoth), Just(Then::End), Just(Then::Reset)],
    ) {
        let mut path = Path::new(numbered(parts.iter().sum()));
        path.gulp = gulp;
        path.ready = parts.iter().enumerate().map(|(index, count)| (ms(index as u64), *count)).collect();
        let mut path = path.under(&[Fault::Limit(granted, then)]);
        path.run_until(ms(100));
        let passed = path.data.len().min(usize::try_from(granted).unwrap());
        prop_assert_eq!(&path.received, &path.data[..passed]);
        let has_come = path.data.len() as u64 >= granted;
        let end = match then {
            Then::End if has_come => Some("end"),
            Then::Reset if has_come => Some("reset"),
            Then::CutBoth if has_come => Some("cut both"),
            _ => None,
        };
        prop_assert_eq!(path.end, end);
        prop_assert_eq!(path.flow.is_cut(), has_come && matches!(then, Then::Cut | Then::CutBoth));
    }
}

// ---- a NAT's memory

#[test]
fn a_nat_forgets_after_silence_and_not_before() {
    let start = Instant::now();
    let mut nat = Nat::new(ms(1000), start);
    nat.handle_traffic(start + ms(700));
    assert!(!nat.has_forgotten(start + ms(1699)));
    assert!(nat.has_forgotten(start + ms(1700)));
}

/// Looks when it wants to; segments come at these times.
fn forgotten_at(idle: Duration, segments: &[u64]) -> Duration {
    let start = Instant::now();
    let (mut nat, mut now) = (Nat::new(idle, start), start);
    for _ in 0..1000 {
        assert!(nat.poll_timeout() > now, "it looks and looks");
        now = nat.poll_timeout();
        let so_far = segments.iter().filter(|at| start + ms(**at) <= now).count();
        nat.handle_look(now, so_far as u64);
        if nat.has_forgotten(now) {
            return now - start;
        }
    }
    panic!("it never forgets");
}

#[test]
fn what_kernels_say_by_themselves_counts_within_a_tenth() {
    assert_eq!(forgotten_at(ms(1000), &[]), ms(1000));
    let at = forgotten_at(ms(1000), &[500, 1400, 2300]);
    assert!((ms(3300)..=ms(3400)).contains(&at), "{at:?}");
    // Too late.
    assert_eq!(forgotten_at(ms(1000), &[1001]), ms(1000));
}

// ---- the record

fn bytes(at: Instant, connection: u64, way: Way, bytes: u64) -> Entry {
    Entry { bytes, ..Entry::new(at, What::Forwarded, Some(connection), Some(way)) }
}

#[test]
fn bytes_that_follow_each_other_are_one_entry_until_something_else_happens() {
    let (start, mut record) = (Instant::now(), Record::default());
    for step in 0..10 {
        record.note(bytes(start + ms(step), 1, Way::ToServer, 3));
        record.note(bytes(start + ms(step), 1, Way::ToClient, 5));
        record.note(bytes(start + ms(step), 2, Way::ToServer, 7));
    }
    record.note(Entry::new(start + ms(20), What::Fault, None, None));
    record.note(bytes(start + ms(30), 1, Way::ToServer, 3));
    record.note(Entry::new(start + ms(40), What::Ended, Some(2), Some(Way::ToServer)));
    record.note(bytes(start + ms(50), 1, Way::ToServer, 4));
    record.note(bytes(start + ms(2000), 1, Way::ToServer, 4));
    let sizes: Vec<_> = record.entries().map(|entry| (entry.connection, entry.bytes)).collect();
    assert_eq!(
        sizes,
        [(Some(1), 30), (Some(1), 50), (Some(2), 70), (None, 0), (Some(1), 7), (Some(2), 0), (Some(1), 4)]
    );
}

#[test]
fn the_record_is_bounded_and_counts_what_it_drops() {
    let (start, mut record) = (Instant::now(), Record::default());
    for number in 0..MAX_ENTRIES as u64 + 5 {
        record.note(Entry::new(start, What::Accepted, Some(number), None));
    }
    assert_eq!((record.entries().count(), record.dropped()), (MAX_ENTRIES, 5));
    assert_eq!(record.entries().next().unwrap().connection, Some(5));
}
