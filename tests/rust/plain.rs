//! Plain peers in simulated time: silence, heartbeat bytes, the end of each direction, and what waits for acknowledgements.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use longconn::proto::cause::{Cause, Ending, Level};
use longconn::proto::codec::{ByteOrder, Framing, HeartbeatBytes, LengthPrefix, LineEnd};
use longconn::proto::connection::{Action, Event, State};
use longconn::proto::evidence::KernelView;
use longconn::proto::plain::{EndOfStream, PIECE_BYTES, Plain, PlainConfig, PlainHeartbeat};
use longconn::proto::session::SendError;
use longconn::proto::verdict;
use proptest::prelude::*;

const LINES: Framing = Framing::Lines(LineEnd::Lf);
const PREFIXED: Framing =
    Framing::LengthPrefixed(LengthPrefix { size: 1, byte_order: ByteOrder::Big, counts_itself: false });

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What the peer's kernel does with what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    /// Acknowledges at once.
    Answers,
    /// The cable is pulled.
    Cut,
    /// Has reset the connection, and ours has thrown away what was in flight; nobody has told us yet.
    Reset,
    /// So many bytes a second get through.
    Narrow(u64),
}

/// One link, its clock, and a driver that does what the contract says.
struct World {
    now: Instant,
    plain: Plain,
    kernel: Kernel,
    /// Bytes that our kernel takes before the others are acknowledged.
    buffer: u64,
    written: Vec<u8>,
    acked: u64,
    acked_at: Instant,
    last_ack: Instant,
    fin_sent: bool,
    looks: u32,
    events: Vec<(Duration, Event)>,
    start: Instant,
    action: Option<Action>,
}

impl World {
    fn new(config: PlainConfig) -> Self {
        let now = Instant::now(); // any origin will do
        let plain = Plain::new(now, Arc::new(config)).unwrap();
        let mut world = Self {
            now,
            plain,
            kernel: Kernel::Answers,
            buffer: 1 << 20,
            written: Vec::new(),
            acked: 0,
            acked_at: now,
            last_ack: now,
            fin_sent: false,
            looks: 0,
            events: Vec::new(),
            start: now,
            action: None,
        };
        world.turn();
        world
    }

    fn framed(framing: Framing) -> Self {
        Self::new(PlainConfig { framing, ..PlainConfig::default() })
    }

    fn beating(heartbeat: PlainHeartbeat) -> Self {
        Self::new(PlainConfig { framing: LINES, heartbeat: Some(heartbeat), ..PlainConfig::default() })
    }

    fn acknowledge(&mut self) {
        let (all, before) = (self.written.len() as u64, self.acked);
        match self.kernel {
            Kernel::Answers => self.acked = all,
            Kernel::Cut | Kernel::Reset => {}
            Kernel::Narrow(rate) => {
                let through = (self.now - self.acked_at).as_millis() as u64 * rate / 1000;
                self.acked = (self.acked + through).min(all);
            }
        }
        self.acked_at = self.now;
        if self.acked > before {
            self.last_ack = self.now;
        }
    }

    fn view(&self) -> KernelView {
        let all = self.written.len() as u64;
        let is_all_acked =
            self.kernel == Kernel::Reset || self.acked == all && !(self.fin_sent && self.kernel == Kernel::Cut);
        KernelView {
            written: all,
            bytes_acked: self.acked,
            unacked: u32::from(!is_all_acked),
            unsent: 0,
            probes: 0,
            since_ack_received: self.now - self.last_ack,
            send_window: Some(65536),
        }
    }

    fn turn(&mut self) {
        self.acknowledge();
        for _ in 0..100 {
            let room = self.buffer - (self.written.len() as u64 - self.acked);
            let data = self.plain.poll_transmit().data;
            let taken = data.len().min(room as usize);
            self.written.extend_from_slice(&data[..taken]);
            self.plain.transmitted(self.now, taken);
            let action = self.plain.poll_action();
            match action {
                Some(Action::Look) => {
                    self.looks += 1;
                    let view = self.view();
                    self.plain.handle_kernel(self.now, Some(view));
                }
                Some(Action::ShutdownWrite) => self.fin_sent = true,
                Some(Action::Abort | Action::Close) => self.action = action,
                None => {}
            }
            let event = self.plain.poll_event();
            if action.is_none() && event.is_none() {
                return;
            }
            self.events.extend(event.map(|event| (self.now - self.start, event)));
        }
        panic!("it never rests");
    }

    fn hear(&mut self, input: &[u8]) {
        self.plain.handle_input(self.now, input);
        self.turn();
    }

    fn hear_end(&mut self) {
        self.plain.handle_end(self.now);
        self.turn();
    }

    /// Jumps from deadline to deadline.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        for _ in 0..1_000_000 {
            match self.plain.poll_timeout() {
                Some(at) if at <= end => {
                    self.now = self.now.max(at);
                    self.plain.handle_timeout(self.now);
                    self.turn();
                }
                _ => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("it never rests");
    }

    fn read(&mut self) -> Option<Vec<u8>> {
        let message = self.plain.read(PIECE_BYTES).map(<[u8]>::to_vec);
        self.plain.take(self.now);
        self.turn();
        message
    }

    fn ending(&self) -> Option<(Duration, Ending)> {
        let mut endings = self.events.iter().filter_map(|(at, event)| match event {
            Event::Ended(ending) => Some((*at, (**ending).clone())),
            _ => None,
        });
        let ending = endings.next();
        assert_eq!(endings.count(), 0, "a link ends once");
        ending
    }
}

fn heartbeat(send: &[u8], limit: u64) -> PlainHeartbeat {
    let bytes = HeartbeatBytes { send: send.to_vec(), swallow: vec![b"PONG".to_vec()] };
    PlainHeartbeat { interval: ms(1000), bytes, is_expected: limit > 0, limit: Some(ms(limit)) }
}

// ---- heartbeats -----------------------------------------------------------------------------------------------

#[test]
fn ours_go_out_each_interval_whatever_else_does() {
    let mut world = World::beating(heartbeat(b"PING", 0));
    world.run(ms(1500));
    world.plain.send(b"data").unwrap();
    world.turn();
    world.run(ms(1500));
    assert_eq!(world.written, b"PING\ndata\nPING\nPING\n");
    let stats = world.plain.stats(world.now);
    assert_eq!((stats.beats.sent, stats.beats.late), (3, 0));
    assert_eq!((stats.send_interval, stats.hear_interval, stats.limit), (Some(ms(1000)), None, None));
    assert_eq!(world.looks, 0, "nobody wants to know");
}

#[test]
fn a_year_of_heartbeats_loses_nobody() {
    let mut world = World::beating(PlainHeartbeat { interval: ms(30_000), ..heartbeat(b"PING", 75_000) });
    for _ in 0..365 * 24 * 120 {
        world.run(ms(30_000));
        world.hear(b"PONG\n");
        world.written.clear();
        world.acked = 0;
    }
    assert_eq!(world.plain.state(), State::Open);
    assert_eq!(world.plain.stats(world.now).beats.heard, 365 * 24 * 120);
    assert!(world.events.iter().all(|(_, event)| *event == Event::Connected), "{:?}", world.events.get(1));
}

#[test]
fn silence_is_suspect_and_then_the_end_and_the_kernel_tells_whose_fault_it_is() {
    for (kernel, cause, kernel_answers, level) in [
        (Kernel::Answers, Cause::Frozen, true, Level::Application),
        (Kernel::Cut, Cause::Unreachable, false, Level::Path),
    ] {
        let mut world = World::beating(heartbeat(b"PING", 3000));
        world.hear(b"PONG\n");
        world.kernel = kernel;
        world.run(ms(2999));
        assert_eq!(world.plain.state(), State::Suspect);
        assert_eq!(world.events[1], (ms(1500), Event::Suspect { silence: ms(1500) }));
        world.run(ms(1));
        let (at, ending) = world.ending().unwrap();
        assert_eq!(at, ms(3000));
        assert_eq!((ending.cause, ending.kernel_answers, ending.level), (cause, Some(kernel_answers), Some(level)));
        assert_eq!((ending.silence, ending.limit), (ms(3000), Some(ms(3000))));
        assert_eq!(world.action, Some(Action::Abort));
        assert_eq!(world.plain.poll_timeout(), None);
    }
}

#[test]
fn a_silence_that_nobody_was_asked_in_tells_nothing() {
    let mut world = World::beating(heartbeat(b"", 3000));
    world.run(ms(3000));
    let (_, ending) = world.ending().unwrap();
    assert_eq!((ending.cause, ending.kernel_answers), (Cause::Silent, None));
}

#[test]
fn any_byte_ends_a_suspicion() {
    let mut world = World::beating(heartbeat(b"", 3000));
    world.run(ms(2000));
    world.hear(b"x");
    assert_eq!(world.plain.state(), State::Open);
    assert_eq!(world.events.last(), Some(&(ms(2000), Event::Alive)));
    world.run(ms(2999));
    assert!(world.ending().is_none());
    world.run(ms(1));
    assert!(world.ending().is_some());
}

#[test]
fn without_a_limit_two_and_a_half_intervals_are() {
    let mut world = World::beating(PlainHeartbeat { limit: None, ..heartbeat(b"PING", 1) });
    world.run(ms(2499));
    assert!(world.ending().is_none());
    world.run(ms(1));
    assert_eq!(world.ending().unwrap().1.limit, Some(ms(2500)));
}

/// What we ask waits behind our own data on a narrow path: the peer can't have answered it.
#[test]
fn a_question_that_is_under_way_is_waited_for() {
    let mut world = World::beating(heartbeat(b"PING", 2500));
    world.kernel = Kernel::Narrow(100_000);
    world.plain.send(&[b'x'; 2_000_000]).unwrap();
    world.turn();
    world.run(ms(20_000));
    assert!(world.ending().is_none(), "{:?}", world.ending());
    world.hear(b"PONG\n");
    assert!(!world.plain.poll_transmit().data.is_empty() || world.acked < 2_000_010);
    // Once it doesn't go forward any more, the limit holds.
    world.kernel = Kernel::Cut;
    world.run(ms(2500 + 2500 / 8));
    let (_, ending) = world.ending().unwrap();
    assert_eq!(ending.cause, Cause::Unreachable);
}

#[test]
fn a_question_that_has_arrived_is_waited_for_a_little_and_no_longer() {
    let mut world = World::beating(heartbeat(b"PING", 2500));
    world.kernel = Kernel::Narrow(100_000);
    world.plain.send(&[b'x'; 400_000]).unwrap();
    world.turn();
    world.run(ms(3500));
    assert!(world.ending().is_none());
    world.kernel = Kernel::Answers;
    world.run(ms(2500));
    let (at, ending) = world.ending().unwrap();
    assert_eq!(ending.cause, Cause::Frozen);
    assert!(at > ms(3500) + ms(2500 / 4), "{at:?}");
}

#[test]
fn only_one_heartbeat_waits_behind_much_data() {
    let mut world = World::beating(heartbeat(b"PING", 0));
    world.kernel = Kernel::Cut;
    world.buffer = 100;
    world.plain.send(&[b'x'; 1000]).unwrap();
    world.turn();
    world.run(ms(60_000));
    assert_eq!(world.plain.poll_transmit().data.len(), 901 + 5);
    world.buffer = 1 << 20;
    world.turn();
    let stats = world.plain.stats(world.now);
    assert_eq!((stats.beats.sent, stats.beats.late), (1, 1));
    assert_eq!(stats.beats.worst_lateness, ms(59_000));
}

#[test]
fn after_a_pause_of_our_own_the_peer_gets_a_chance_to_be_heard() {
    let mut world = World::beating(heartbeat(b"PING", 3000));
    world.hear(b"PONG\n");
    world.run(ms(900));
    let _ = world.plain.poll_timeout();
    // Stopped, and continued ten seconds later.
    world.now += ms(10_000);
    world.plain.handle_timeout(world.now);
    world.turn();
    assert!(world.ending().is_none());
    assert_eq!(world.written, b"PING\n");
    world.run(ms(999));
    assert!(world.ending().is_none());
    world.run(ms(1));
    assert_eq!(world.ending().unwrap().1.cause, Cause::Frozen);
}

#[test]
fn nobody_is_judged_who_isnt_read_or_isnt_asked() {
    // The program takes nothing, so the answers lie with the kernel.
    let mut world = World::beating(heartbeat(b"PING", 3000));
    let much = vec![b'\n'; 300_000];
    world.hear(&much);
    assert!(!world.plain.wants_input());
    world.run(ms(60_000));
    assert!(world.ending().is_none());
    while world.read().is_some() {}
    assert!(world.plain.wants_input());
    world.run(ms(2999));
    assert!(world.ending().is_none());
    world.run(ms(1));
    assert!(world.ending().is_some());

    // The peer has said all; and we ask no more.
    let mut world = World::beating(heartbeat(b"PING", 3000));
    world.hear_end();
    world.run(ms(60_000));
    assert_eq!(world.plain.state(), State::Open);
    let mut world = World::beating(heartbeat(b"PING", 3000));
    world.plain.shut_down_sending();
    world.turn();
    world.run(ms(60_000));
    assert_eq!(world.plain.state(), State::Open);
    assert_eq!(world.written, b"");
}

// ---- what comes in --------------------------------------------------------------------------------------------

#[test]
fn only_the_program_makes_room() {
    let mut world = World::framed(Framing::Raw);
    world.hear(&[0; 256 * 1024 - 1]);
    assert!(world.plain.wants_input());
    world.hear(&[0; 1000]);
    assert!(!world.plain.wants_input());
    assert_eq!(world.read().unwrap().len(), PIECE_BYTES);
    assert!(world.plain.wants_input());

    // A message larger than that is read on, up to the largest.
    let mut world = World::framed(LINES);
    world.hear(&[b'x'; 1_000_000]);
    assert!(world.plain.wants_input());
    world.hear(b"\nnext");
    assert!(!world.plain.wants_input());
    assert_eq!(world.read().unwrap().len(), 1_000_001);
    assert!(world.plain.wants_input());
}

#[test]
fn messages_are_read_before_what_is_wrong_behind_them() {
    let mut world = World::new(PlainConfig { framing: LINES, largest_message_bytes: 10, ..PlainConfig::default() });
    world.hear(b"one\ntwo\nand this is too much");
    assert!(world.ending().is_none());
    assert_eq!(world.read().unwrap(), b"one\n");
    assert!(world.ending().is_none());
    assert_eq!(world.read().unwrap(), b"two\n");
    let (_, ending) = world.ending().unwrap();
    assert_eq!(ending.cause, Cause::Protocol);
    assert!(ending.detail.unwrap().contains("at most 10"));
    assert_eq!(world.action, Some(Action::Abort));
    assert!(!world.plain.is_at_end());
}

#[test]
fn a_link_that_is_over_does_not_end_again_for_what_is_wrong_with_the_rest() {
    let mut world = World::new(PlainConfig { framing: LINES, largest_message_bytes: 10, ..PlainConfig::default() });
    world.hear(b"one\nand this is too much");
    world.plain.handle_reset(world.now);
    world.turn();
    assert_eq!(world.read().unwrap(), b"one\n");
    assert_eq!(world.read(), None);
    assert_eq!(world.ending().unwrap().1.cause, Cause::Reset);
    assert!(!world.plain.is_at_end());
}

#[test]
fn the_end_of_the_stream_is_told_once_and_stays() {
    for (framing, told) in
        [(LINES, EndOfStream::AsEmpty), (Framing::Raw, EndOfStream::AsEmpty), (PREFIXED, EndOfStream::Untold)]
    {
        let mut world = World::framed(framing);
        world.hear(b"\x01\n");
        world.hear_end();
        world.hear_end();
        assert!(!world.plain.is_at_end());
        assert_eq!(world.plain.take_end(), None);
        assert!(world.read().is_some());
        assert!(world.plain.is_at_end());
        assert_eq!(world.plain.take_end(), Some(told));
        assert_eq!(world.plain.take_end(), None);
        assert!(world.plain.is_at_end());
        assert_eq!(world.plain.state(), State::Open);
        world.plain.send(b"answer").unwrap();
        // An RST now is the peer's goodbye, and what was read stays read.
        world.plain.handle_reset_after_end(world.now);
        world.turn();
        assert_eq!(world.ending().unwrap().1.cause, Cause::Ended);
        assert!(world.plain.is_at_end());
    }
}

#[test]
fn an_end_inside_a_message_is_an_error() {
    let mut world = World::framed(PREFIXED);
    world.hear(b"\x01a\x05half");
    world.hear_end();
    assert_eq!(world.read().unwrap(), b"a");
    let (_, ending) = world.ending().unwrap();
    assert_eq!(ending.detail.unwrap(), "the stream ended inside a message, 1 bytes short");
}

// ---- what goes out, and the end -------------------------------------------------------------------------------

#[test]
fn what_doesnt_fit_waits_for_the_kernel() {
    let mut world = World::new(PlainConfig { send_buffer_bytes: 1000, ..PlainConfig::default() });
    world.kernel = Kernel::Cut;
    world.buffer = 10;
    world.plain.send(&[b'x'; 5000]).unwrap();
    world.turn();
    assert_eq!(world.plain.send(b"y"), Err(SendError::Full { buffered: 4990, bound: 1000 }));
    world.buffer = 4000;
    world.turn();
    assert_eq!(world.plain.send(b"y"), Err(SendError::Full { buffered: 1000, bound: 1000 }));
    assert_eq!(world.events.len(), 1, "still no room");
    world.buffer = 4500;
    world.turn();
    assert_eq!(world.events.last().unwrap().1, Event::Taken);
    world.plain.send(b"y").unwrap();
}

#[test]
fn who_waits_for_acknowledgements_looks_often_and_then_seldom() {
    let mut world = World::framed(Framing::Raw);
    world.kernel = Kernel::Cut;
    world.plain.send(b"x").unwrap();
    world.turn();
    assert_eq!(world.looks, 0);
    world.plain.hurry();
    world.turn();
    assert_eq!(world.looks, 1);
    world.run(ms(60_000));
    assert!((60..140).contains(&world.looks), "{} looks in a minute", world.looks);
    world.kernel = Kernel::Answers;
    world.run(ms(500));
    assert_eq!(world.events.last().unwrap().1, Event::Taken);
    assert_eq!(world.plain.sent_offsets(), (1, 1));
    let looks = world.looks;
    world.run(ms(60_000));
    assert_eq!(world.looks, looks, "nobody waits any more");
}

#[test]
fn who_waits_for_acknowledgements_waits_for_those_of_what_was_sent_before() {
    let mut world = World::framed(Framing::Raw);
    world.kernel = Kernel::Narrow(10_000);
    world.plain.send(&[b'x'; 1000]).unwrap();
    let (end, _) = world.plain.sent_offsets();
    world.plain.hurry();
    world.turn();
    for _ in 0..20 {
        // others go on sending
        world.plain.send(&[b'y'; 1000]).unwrap();
        world.run(ms(20));
        world.turn();
        assert!(world.plain.sent_offsets().1 < world.plain.sent_offsets().0);
    }
    let told = world.events.iter().filter(|(_, event)| *event == Event::Taken).count();
    assert!(told > 0 && world.plain.sent_offsets().1 >= end);
}

#[test]
fn closing_sends_everything_then_the_end_and_waits_for_the_peers_kernel() {
    let mut world = World::framed(Framing::Raw);
    world.kernel = Kernel::Narrow(1_000_000);
    world.buffer = 100_000;
    world.plain.send(&[b'x'; 500_000]).unwrap();
    world.plain.close(world.now + ms(10_000));
    world.turn();
    assert_eq!(world.plain.state(), State::Closing);
    assert_eq!(world.plain.send(b"more"), Err(SendError::NotOpen));
    for _ in 0..20 {
        assert_eq!(world.fin_sent, world.written.len() == 500_000);
        world.run(ms(50));
        world.turn();
    }
    let (_, ending) = world.ending().unwrap();
    assert_eq!((ending.cause, ending.by_peer, ending.untaken_bytes), (Cause::Closed, false, 0));
    assert_eq!(world.action, Some(Action::Close));
}

#[test]
fn a_close_whose_time_is_up_resets_what_would_look_whole() {
    let mut world = World::framed(Framing::Raw);
    world.kernel = Kernel::Cut;
    world.buffer = 100;
    world.plain.send(&[b'x'; 150]).unwrap();
    world.plain.close(world.now + ms(1000));
    world.turn();
    world.run(ms(1000));
    assert_eq!(world.action, Some(Action::Abort));
    assert_eq!(world.ending().unwrap().1.untaken_bytes, 150);

    // All of it is with our kernel, which goes on trying.
    let mut world = World::framed(Framing::Raw);
    world.kernel = Kernel::Cut;
    world.plain.send(&[b'x'; 150]).unwrap();
    world.plain.close(world.now + ms(1000));
    world.turn();
    assert!(world.fin_sent);
    world.run(ms(1000));
    assert_eq!(world.action, Some(Action::Close));
    assert_eq!(world.ending().unwrap().1.untaken_bytes, 150);
}

#[test]
fn a_close_of_what_was_reset_meanwhile_is_no_orderly_end() {
    for (has_ended, cause) in [(false, Cause::Reset), (true, Cause::Ended)] {
        let mut world = World::framed(Framing::Raw);
        world.kernel = Kernel::Reset;
        if has_ended {
            world.hear_end();
        }
        world.plain.send(b"lost").unwrap();
        world.plain.close(world.now + ms(10_000));
        world.turn();
        world.run(ms(100));
        let (_, ending) = world.ending().unwrap();
        assert_eq!((ending.cause, ending.untaken_bytes), (cause, 4));
    }
}

#[test]
fn what_the_program_had_not_taken_when_it_closed_it_never_takes() {
    let mut world = World::framed(LINES);
    world.hear(b"one\ntwo\nthree\nhalf");
    assert_eq!(world.plain.read(PIECE_BYTES).unwrap(), b"one\n");
    assert!(world.plain.take(world.now));
    assert_eq!(world.plain.read(PIECE_BYTES).unwrap(), b"two\n");
    world.plain.close(world.now + ms(1000));
    assert!(!world.plain.take(world.now), "it has closed before");
    assert!(!world.plain.has_message() && world.read().is_none());
    world.turn();
    assert_eq!(world.ending().unwrap().1.cause, Cause::Closed);
    assert_eq!(world.plain.stats(world.now).inbox_bytes, 0);
}

#[test]
fn a_link_that_is_over_remembers_how_much_did_not_arrive_and_gives_out_what_did() {
    let mut world = World::framed(LINES);
    world.kernel = Kernel::Cut;
    world.buffer = 100;
    world.plain.send(&[b'x'; 1000]).unwrap();
    world.turn();
    world.hear(b"one\ntwo\nhalf");
    assert_eq!(world.plain.read(PIECE_BYTES).unwrap(), b"one\n");
    // Of what our kernel has, some had arrived since anybody looked.
    world.acked = 60;
    let view = world.view();
    world.plain.note_arrived(view);
    world.plain.handle_reset(world.now);
    world.turn();
    assert_eq!(world.ending().unwrap().1.untaken_bytes, 1001 - 60);
    world.plain.give_back_memory();
    assert_eq!(world.plain.stats(world.now).unacked_bytes, 1001 - 60);
    assert_eq!(world.read().unwrap(), b"two\n");
    assert_eq!((world.read(), world.plain.stats(world.now).inbox_bytes), (None, 0));
}

#[test]
fn two_ends_of_stream_end_the_link_whoever_is_first() {
    for is_ours_first in [true, false] {
        let mut world = World::framed(Framing::Raw);
        for turn in [is_ours_first, !is_ours_first] {
            assert_eq!(world.plain.state(), State::Open);
            if turn {
                world.plain.shut_down_sending();
                world.turn();
                assert!(world.fin_sent);
                let refused = if is_ours_first { SendError::ShutDown } else { SendError::NotOpen };
                assert_eq!(world.plain.send(b"x"), Err(refused));
            } else {
                world.hear_end();
            }
        }
        let (_, ending) = world.ending().unwrap();
        assert_eq!(ending.cause, Cause::Closed);
        assert_eq!(world.action, Some(Action::Close));
        assert!(world.plain.is_at_end());
    }
}

#[test]
fn the_guards_verdict_ends_it() {
    let mut world = World::framed(Framing::Raw);
    world.hear(b"x");
    world.plain.handle_verdict(world.now, verdict::Cause::Unreachable, ms(3100), ms(3000));
    world.turn();
    let (_, ending) = world.ending().unwrap();
    assert_eq!((ending.cause, ending.silence, ending.limit), (Cause::Unreachable, ms(3100), Some(ms(3000))));
    assert_eq!(world.read().unwrap(), b"x");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4000, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: it rests, it ends once, and nothing is read or written twice.
    #[test]
    fn any_order_of_things_is_borne(
        framing in prop_oneof![Just(LINES), Just(Framing::Raw), Just(PREFIXED)],
        is_expected in any::<bool>(),
        steps in prop::collection::vec((0..13_u8, 0..400_u64), 0..60),
    ) {
        let swallow = if framing == Framing::Raw { vec![] } else { vec![b"PONG".to_vec()] };
        let bytes = HeartbeatBytes { send: b"PING".to_vec(), swallow };
        let heartbeat = PlainHeartbeat { interval: ms(100), bytes, is_expected, limit: Some(ms(300)) };
        let mut world = World::new(PlainConfig {
            framing,
            largest_message_bytes: 100,
            send_buffer_bytes: 2000,
            heartbeat: Some(heartbeat),
        });
        let mut is_closed = false;
        for (step, size) in steps {
            // Of the other kind none is a line's end, and a message of that length is too large.
            let bytes = vec![if size % 4 == 0 { b'x' } else { b'\n' }; size as usize];
            match step {
                0 | 1 => world.run(ms(size)),
                2 => world.hear(&bytes),
                3 => drop(world.read()),
                4 => world.kernel = Kernel::Cut,
                5 => world.kernel = Kernel::Answers,
                6 => drop(world.plain.send(if framing == LINES { b"line" } else { &bytes[..bytes.len().min(100)] })),
                7 => world.plain.hurry(),
                8 => world.now += ms(size * 10),
                9 if size < 40 => world.hear_end(),
                10 if size < 40 => world.plain.shut_down_sending(),
                11 if size < 40 => {
                    world.plain.close(world.now + ms(size * 10));
                    is_closed = true;
                }
                12 if size < 40 => world.plain.handle_reset(world.now),
                _ => {}
            }
            world.turn();
            prop_assert_eq!(world.plain.state() == State::Closed, world.ending().is_some());
            prop_assert_eq!(world.action.is_some(), world.ending().is_some());
        }
        world.run(ms(10_000));
        if is_closed {
            prop_assert_eq!(world.plain.state(), State::Closed);
        }
    }
}
