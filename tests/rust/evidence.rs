//! What the kernel's view says about a silence, on samples of links whose peers were really cut off or frozen.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests; any instant will do as an origin")]

mod recorded;

use std::time::{Duration, Instant};

use longconn::proto::evidence::{Arrived, Evidence, Finding, KernelView};
use recorded::{Row, rows};

const INTERVAL: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_millis(2500);

fn view(row: &Row) -> KernelView {
    let sample = row.sample();
    KernelView {
        written: row.number("written_bytes"),
        // The client's SYN counts, as the engine knows.
        bytes_acked: sample.bytes_acked - 1,
        unacked: sample.unacked,
        unsent: sample.unsent,
        probes: sample.probes,
        since_ack_received: sample.since_ack_received,
        send_window: sample.send_window,
    }
}

/// Goes through a recording as a link does that beats each second: suspicion at one and a half intervals of silence, by
/// bytes received; an answer asked for when the recorded link did that; a look at every row. What is found at the first
/// silence of `limit`, and milliseconds since the cut.
fn find(name: &str, limit: Duration) -> Option<(i64, Finding)> {
    let rows = rows(name);
    let origin = Instant::now();
    let mut evidence = Evidence::default();
    let (mut heard, mut received) = (origin, rows[0].number("bytes_received"));
    // When it is suspect: the beats that had been sent before.
    let mut suspect: Option<u64> = None;
    for pair in rows.windows(2) {
        let (before, row) = (&pair[0], &pair[1]);
        let now = origin + Duration::from_millis(u64::try_from(row.at_ms - rows[0].at_ms).unwrap());
        if row.number("bytes_received") > received {
            (heard, received, suspect) = (now, row.number("bytes_received"), None);
            evidence.on_heard();
        }
        if suspect.is_none() && now - heard >= INTERVAL * 3 / 2 {
            evidence.on_suspicion(now);
            suspect = Some(before.number("beats_sent"));
        }
        if suspect.is_some_and(|sent| row.number("beats_sent") > sent) {
            evidence.on_asked(now);
        }
        let _ = evidence.observe(now, view(row));
        if now - heard >= limit {
            return Some((row.at_ms, evidence.finding(now, row.sample().round_trip)));
        }
    }
    None
}

#[track_caller]
fn assert_found(names: &[&str], expected: Finding) {
    for name in names {
        // At a lower limit, too, evidence is there; at a higher one it stays.
        for limit in [Duration::from_millis(2000), LIMIT, Duration::from_millis(3500)] {
            let (after, finding) = find(name, limit).unwrap_or_else(|| panic!("{name} was never silent for {limit:?}"));
            assert_eq!(finding, expected, "{name}, {after} ms after the cut, limit {limit:?}");
            assert!(after > 0, "{name}: silent before the cut");
        }
    }
}

#[test]
fn a_path_that_is_cut_leaves_something_unanswered() {
    assert_found(
        &["link_cut", "link_sending_cut", "link_flooding_cut", "link_nat_forgot", "link_power_cut"],
        Finding::Unanswered,
    );
}

#[test]
fn so_does_our_own_cable_where_nothing_even_leaves_the_host() {
    assert_found(&["link_own_cable_cut", "link_sending_own_cable_cut"], Finding::Unanswered);
}

#[test]
fn so_does_a_path_with_one_direction_cut_whichever_it_is() {
    assert_found(&["link_unheard", "link_unanswered", "link_unanswered_sending"], Finding::Unanswered);
}

#[test]
fn the_kernel_of_a_frozen_program_answers_however_much_we_send() {
    assert_found(&["link_frozen", "link_sending_frozen", "link_flooding_frozen"], Finding::Answered);
}

#[test]
fn where_only_bare_acknowledgements_pass_the_peer_is_heard_and_nothing_of_ours_arrives() {
    assert_eq!(find("link_larger_lost", INTERVAL * 3 / 2), None, "the peer's beats come");
    let mut evidence = Evidence::default();
    let origin = Instant::now();
    let mut last_arrival = i64::MIN;
    for row in rows("link_larger_lost") {
        if evidence.observe(origin, view(&row)) != Arrived::Nothing {
            last_arrival = row.at_ms;
        }
    }
    // What had arrived by then was all there was, until the next beat was sent.
    assert!(last_arrival <= 1100, "something arrived {last_arrival} ms after the cut");
}
