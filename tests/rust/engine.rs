//! Links and listeners over loopback: real sockets, real threads, and no sleeps; each wait has a generous deadline.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use longconn::engine::clock;
use longconn::engine::link::{Attempt, Link, LinkError, What};
use longconn::engine::listener::{Listener, ListenerConfig};
use longconn::proto::cause::{Cause, Ending};
use longconn::proto::close::{Close, CloseCode};
use longconn::proto::connection::{Config, Introduction, State};
use longconn::proto::frame::PREAMBLE;
use longconn::proto::handshake::{Hello, Position, Rhythm, Welcome};
use longconn::proto::heartbeat::HeartbeatConfig;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn slack() -> f64 {
    std::env::var("LONGCONN_TEST_SLACK").ok().and_then(|slack| slack.parse().ok()).unwrap_or(1.0)
}

/// By when anything must have happened.
fn soon() -> Option<Instant> {
    Some(clock::now() + ms(20_000).mul_f64(slack()))
}

fn config(want: Duration) -> Config {
    Config { heartbeat: HeartbeatConfig { want, ..HeartbeatConfig::default() }, ..Config::default() }
}

fn listen(config: ListenerConfig) -> Arc<Listener> {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    Listener::new(socket.into(), config).unwrap()
}

fn dial(address: SocketAddr, config: Config) -> Arc<Link> {
    let socket: OwnedFd = TcpStream::connect(address).unwrap().into();
    let introduction = Introduction { client_id: "device-7".into(), ..Introduction::default() };
    Link::client(socket, None, Arc::new(config), introduction).unwrap()
}

fn pair_of(client: Config, server: Config) -> (Arc<Listener>, Arc<Link>, Arc<Link>) {
    let listener = listen(ListenerConfig { link: Arc::new(server), ..ListenerConfig::default() });
    let client = dial(listener.address(), client);
    client.wait_open(soon()).unwrap();
    let server = listener.accept(soon()).unwrap();
    (listener, client, server)
}

fn pair() -> (Arc<Listener>, Arc<Link>, Arc<Link>) {
    pair_of(Config::default(), Config::default())
}

fn receive(link: &Link) -> Result<Vec<u8>, LinkError> {
    loop {
        if let Attempt::Done(message) = link.try_recv(<[u8]>::to_vec)? {
            return Ok(message);
        }
        link.wait_readable(soon())?;
    }
}

fn ended(link: &Link) -> Arc<Ending> {
    link.wait_ended(soon()).unwrap()
}

/// Sends until there is no room; says how many it took.
fn fill(link: &Link, message: &[u8]) -> usize {
    let mut sent = 0;
    loop {
        match link.send(message, Some(clock::now() + ms(30))) {
            Ok(()) => sent += 1,
            Err(LinkError::TimedOut) => return sent,
            Err(error) => panic!("{error}"),
        }
    }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 ^ seed).collect()
}

// ---- messages -------------------------------------------------------------------------------------------------

#[test]
fn both_sides_agree_and_talk() {
    let (_listener, client, server) = pair();
    client.send(b"hello", soon()).unwrap();
    assert_eq!(receive(&server).unwrap(), b"hello");
    server.send(b"", soon()).unwrap();
    server.send(b"world", soon()).unwrap();
    assert_eq!(receive(&client).unwrap(), b"");
    assert_eq!(receive(&client).unwrap(), b"world");
    assert_eq!(server.client_id().unwrap(), "device-7");
    assert!(client.opened_at().unwrap().is_some() && server.opened_at().unwrap().is_some());
    assert_eq!(client.peer_address(), server.local_address());
    assert!(matches!(client.next_occurrence(soon()).unwrap().what, What::Opened));
}

#[test]
fn messages_of_all_sizes_arrive_whole_both_ways() {
    let large = Config { largest_message_bytes: 32 << 20, ..Config::default() };
    let (_listener, client, server) = pair_of(large.clone(), large);
    let sizes = [0, 1, 100, 16_383, 16_384, 16_385, 32_768, 65_536, 262_144, 1 << 20, 5_000_000, 20 << 20];
    thread::scope(|scope| {
        for link in [&client, &server] {
            scope.spawn(move || {
                for (seed, size) in sizes.into_iter().enumerate() {
                    link.send(&pattern(size, seed as u8), soon()).unwrap();
                }
            });
            scope.spawn(move || {
                for (seed, size) in sizes.into_iter().enumerate() {
                    assert!(receive(link).unwrap() == pattern(size, seed as u8), "message of {size} bytes");
                }
            });
        }
    });
}

#[test]
fn two_hundred_thousand_small_messages_keep_order_and_count() {
    const COUNT: u32 = 200_000;
    let (_listener, client, server) = pair();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..COUNT {
                client.send(&number.to_be_bytes(), soon()).unwrap();
            }
        });
        let mut expected = 0;
        while expected < COUNT {
            server.wait_readable(soon()).unwrap();
            let _ = server
                .try_recv_many(1000, |message| {
                    assert_eq!(message, expected.to_be_bytes());
                    expected += 1;
                })
                .unwrap();
        }
    });
    client.flush(soon()).unwrap();
    assert!(matches!(server.try_recv(<[u8]>::len), Ok(Attempt::Later)));
}

#[test]
fn who_holds_the_interpreter_is_never_kept() {
    let (_listener, client, server) = pair();
    assert_eq!(client.try_send(b"now").unwrap(), Attempt::Done(()));
    assert_eq!(client.try_send(&[0; 17 * 1024]).unwrap(), Attempt::Later);
    assert_eq!(receive(&server).unwrap(), b"now");
    assert_eq!(server.try_recv(<[u8]>::to_vec).unwrap(), Attempt::Later);
}

#[test]
fn a_full_buffer_makes_the_sender_wait_and_taking_lets_it_go_on() {
    let (_listener, client, server) = pair();
    let message = [7; 16 * 1024];
    let sent = fill(&client, &message);
    assert!(sent >= 32, "{sent}");
    thread::scope(|scope| {
        let waits = scope.spawn(|| client.send(&message, soon()));
        for _ in 0..=sent {
            assert_eq!(receive(&server).unwrap(), message);
        }
        waits.join().unwrap().unwrap();
    });
}

#[test]
fn a_message_over_the_peers_limit_is_refused_and_the_link_goes_on() {
    let small = Config { largest_message_bytes: 1000, ..Config::default() };
    let (_listener, client, server) = pair_of(Config::default(), small);
    let error = client.send(&[0; 1001], soon()).unwrap_err();
    assert!(matches!(error, LinkError::TooLarge { length: 1001, largest: 1000 }), "{error}");
    client.send(&[1; 1000], soon()).unwrap();
    assert_eq!(receive(&server).unwrap(), [1; 1000]);
}

#[test]
fn a_conversation_leaves_a_lone_pair_of_messages_no_time_to_wait() {
    let (_listener, client, server) = pair();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                let (first, second) = (receive(&server).unwrap(), receive(&server).unwrap());
                server.send(&first, soon()).unwrap();
                server.send(&second, soon()).unwrap();
            }
        });
        let start = clock::now();
        for number in 0..2000_u32 {
            client.send(&number.to_be_bytes(), soon()).unwrap();
            client.send(b"second", soon()).unwrap();
            assert_eq!(receive(&client).unwrap(), number.to_be_bytes());
            assert_eq!(receive(&client).unwrap(), b"second");
        }
        println!("two messages there and back: {:?}", (clock::now() - start) / 2000);
    });
}

/// The rest of a message waits for the peer's acknowledgements, and who has sent it doesn't read them: with the engine it takes
/// a millisecond or two, and if callers kept the reader's role, each time as long as they keep it, which is 5 ms.
#[test]
fn what_a_sender_leaves_behind_goes_on_without_it() {
    let (_listener, client, server) = pair();
    let message = pattern(2 << 20, 3);
    let (arrived, arrival) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..50 {
                // The client is in recv(2) by now, mostly: so callers have the reader's role.
                pass(&server, ms(3));
                server.send(b"go on", soon()).unwrap();
                assert!(receive(&server).unwrap() == message);
                arrived.send(clock::now()).unwrap();
            }
        });
        let mut quick = 0;
        for _ in 0..50 {
            assert_eq!(receive(&client).unwrap(), b"go on");
            let start = clock::now();
            client.send(&message, soon()).unwrap();
            quick += u32::from(arrival.recv().unwrap().saturating_duration_since(start) < ms(5));
        }
        // A busy machine makes some slow; some are quick anyway, when the engine had the role.
        assert!(quick >= 8, "{quick}");
    });
}

#[test]
fn large_messages_of_several_threads_arrive_whole() {
    let (_listener, client, server) = pair();
    thread::scope(|scope| {
        for seed in 0..3 {
            let client = &client;
            scope.spawn(move || {
                for length in [5_000_000, 10, 4_194_304, 100_000] {
                    client.send(&pattern(length, seed), soon()).unwrap();
                }
            });
        }
        for _ in 0..12 {
            let message = receive(&server).unwrap();
            assert!((0..3).any(|seed| message == pattern(message.len(), seed)));
        }
    });
}

#[test]
fn flush_returns_when_the_peers_application_took_everything() {
    let (_listener, client, server) = pair();
    client.flush(soon()).unwrap();
    client.send(b"take me", soon()).unwrap();
    assert!(matches!(client.flush(Some(clock::now() + ms(50))), Err(LinkError::TimedOut)));
    thread::scope(|scope| {
        let flushed = scope.spawn(|| client.flush(soon()));
        assert_eq!(receive(&server).unwrap(), b"take me");
        flushed.join().unwrap().unwrap();
    });
}

#[test]
fn what_was_shown_is_not_taken_before_it_is_confirmed() {
    let (_listener, client, server) = pair();
    client.send(b"one", soon()).unwrap();
    client.send(b"two", soon()).unwrap();
    let mut shown = Vec::new();
    while shown.len() < 2 {
        server.wait_readable(soon()).unwrap();
        let _ = server.try_peek_many(10, |message| shown.push(message.to_vec())).unwrap();
    }
    assert_eq!(shown, [b"one", b"two"]);
    server.confirm(1).unwrap();
    assert!(matches!(client.flush(Some(clock::now() + ms(100))), Err(LinkError::TimedOut)));
    server.confirm(1).unwrap();
    client.flush(soon()).unwrap();
}

#[test]
fn a_ping_measures_the_path_while_the_peers_program_does_nothing() {
    let (_listener, client, _server) = pair();
    for _ in 0..100 {
        let round_trip = client.ping(soon()).unwrap();
        assert!(round_trip < ms(1000).mul_f64(slack()), "{round_trip:?}");
    }
    println!("ping: {:?}", client.stats().unwrap().unwrap().round_trip);
}

#[test]
fn several_threads_share_a_link() {
    const EACH: usize = 20_000;
    let (_listener, client, server) = pair();
    thread::scope(|scope| {
        for thread in 0..4_u8 {
            let client = &client;
            scope.spawn(move || {
                for number in 0..EACH as u32 {
                    let mut message = [thread; 5];
                    message[1..].copy_from_slice(&number.to_be_bytes());
                    client.send(&message, soon()).unwrap();
                }
            });
        }
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut got = Vec::new();
                    loop {
                        match receive(&server) {
                            Ok(message) => got.push(message),
                            Err(LinkError::Ended(_)) => return got,
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while server.stats().unwrap().unwrap().bytes_heard < (4 * EACH * 9) as u64 {
                thread::yield_now();
            }
            client.close(Close::new(CloseCode::NORMAL, "all sent"), ms(10_000)).unwrap();
        });
        let mut all: Vec<_> = readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 4 * EACH);
    });
}

#[test]
fn the_notification_is_readable_exactly_while_something_can_be_received() {
    let (_listener, client, server) = pair();
    let notification = server.notification().unwrap();
    let readable = |timeout| longconn::net::sys::wait_ready(notification, libc::POLLIN, Some(timeout)).unwrap();
    assert!(!readable(ms(1)));
    client.send(b"a", soon()).unwrap();
    assert!(readable(ms(10_000)));
    assert_eq!(receive(&server).unwrap(), b"a");
    assert!(!readable(ms(1)));
    client.close(Close::new(CloseCode::NORMAL, ""), ms(1000)).unwrap();
    assert!(readable(ms(10_000)));
    assert!(matches!(receive(&server), Err(LinkError::Ended(_))));
    assert!(readable(ms(1)));
}

/// Numbers without pattern (xorshift, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Whatever threads do to a link at the same time: each message arrives once, in order, and nobody hangs.
#[test]
fn many_threads_do_anything_to_a_link() {
    const COUNT: u64 = 5000;
    let (_listener, client, server) = pair_of(config(ms(50)), config(ms(50)));
    let may_time_out = |result: Result<(), LinkError>| match result {
        Ok(()) | Err(LinkError::TimedOut) => {}
        Err(error) => panic!("{error}"),
    };
    let is_done = AtomicU32::new(0);
    thread::scope(|scope| {
        for (ours, theirs, seed) in [(&client, &server, 1), (&server, &client, 2)] {
            let is_done = &is_done;
            scope.spawn(move || {
                let mut dice = Dice(seed);
                for number in 0..COUNT {
                    let size = [8, 8, 8, 64, 1000, 20_000, 300_000][dice.below(7) as usize];
                    let mut message = vec![0; size];
                    message[..8].copy_from_slice(&number.to_be_bytes());
                    if ours.try_send(&message).unwrap() == Attempt::Later {
                        ours.send(&message, soon()).unwrap();
                    }
                }
                ours.flush(soon()).unwrap();
            });
            scope.spawn(move || {
                let mut dice = Dice(seed + 2);
                let mut expected = 0_u64;
                while expected < COUNT {
                    let check = |message: &[u8]| {
                        assert_eq!(message[..8], expected.to_be_bytes());
                        expected += 1;
                    };
                    let most = 1 + dice.below(50) as usize;
                    if theirs.try_recv_many(most, check).unwrap() == Attempt::Later {
                        may_time_out(theirs.wait_readable(Some(clock::now() + ms(dice.below(8)))));
                    }
                }
                is_done.fetch_add(1, Ordering::Relaxed);
            });
            for other in 0..2 {
                scope.spawn(move || {
                    let mut dice = Dice(seed * 100 + other);
                    while is_done.load(Ordering::Relaxed) < 2 {
                        let briefly = Some(clock::now() + ms(dice.below(10)));
                        match dice.below(6) {
                            0 => may_time_out(ours.ping(briefly).map(drop)),
                            1 => may_time_out(ours.flush(briefly)),
                            2 => may_time_out(ours.wait_state(State::Closed, briefly)),
                            3 => may_time_out(ours.next_occurrence(briefly).map(drop)),
                            4 => assert!(ours.set_status(b"busy").unwrap()),
                            _ => drop(ours.stats().unwrap()),
                        }
                    }
                });
            }
        }
    });
    assert_eq!(client.state().unwrap(), State::Open);
}

// ---- the end --------------------------------------------------------------------------------------------------

#[test]
fn a_close_tells_why_after_the_last_message() {
    let (_listener, client, server) = pair();
    client.send(b"last words", soon()).unwrap();
    client.close(Close::new(CloseCode(0x1234), "bye"), ms(20_000)).unwrap();
    assert!(matches!(client.send(b"more", soon()), Err(LinkError::NotOpen(State::Closing))));
    assert_eq!(receive(&server).unwrap(), b"last words");
    let Err(LinkError::Ended(ending)) = receive(&server) else { panic!("it goes on") };
    let close = ending.close.as_ref().unwrap();
    assert_eq!((ending.cause, ending.by_peer, close.code.0, &close.reason[..]), (Cause::Closed, true, 0x1234, "bye"));
    let ending = ended(&client);
    assert_eq!((ending.cause, ending.by_peer, ending.untaken_bytes), (Cause::Closed, false, 0));
}

#[test]
fn the_end_wakes_everyone_who_waits() {
    let (_listener, client, server) = pair();
    fill(&client, &[0; 16 * 1024]);
    let barrier = Barrier::new(6);
    thread::scope(|scope| {
        let wait = |body: fn(&Link) -> Result<(), LinkError>| {
            let (client, barrier) = (&client, &barrier);
            scope.spawn(move || {
                barrier.wait();
                body(client)
            })
        };
        let waiting = [
            wait(|link| receive(link).map(drop)),
            wait(|link| receive(link).map(drop)),
            wait(|link| link.send(&[0; 16 * 1024], soon())),
            wait(|link| link.flush(soon())),
            wait(|link| link.wait_state(State::Suspect, soon())),
        ];
        barrier.wait();
        server.close(Close::new(CloseCode::GOING_AWAY, "restart").link_only(), ms(1000)).unwrap();
        for waiting in waiting {
            let error = waiting.join().unwrap().unwrap_err();
            assert!(matches!(error, LinkError::Ended(_)), "{error}");
        }
    });
}

#[test]
fn waits_end_at_their_deadline_and_the_link_goes_on() {
    let (_listener, client, server) = pair();
    let start = clock::now();
    let error = client.wait_readable(Some(start + ms(50))).unwrap_err();
    assert!(matches!(error, LinkError::TimedOut), "{error}");
    assert!(clock::now() - start >= ms(50));
    assert!(matches!(client.wait_readable(Some(start)), Err(LinkError::TimedOut)));
    server.send(b"still here", soon()).unwrap();
    assert_eq!(receive(&client).unwrap(), b"still here");
}

/// The last of these frames, if it is CLOSE.
fn last_close(mut frames: &[u8]) -> Option<Close> {
    loop {
        let &[high, middle, low, kind, ref rest @ ..] = frames else { return None };
        let (payload, behind) = rest.split_at(u32::from_be_bytes([0, high, middle, low]) as usize);
        if behind.is_empty() {
            return Close::decode(payload).filter(|_| kind == 8);
        }
        frames = behind;
    }
}

/// A peer that shakes hands and nothing more.
fn raw_peer(stream: &mut TcpStream, limit: Option<Duration>) {
    let rhythm = Rhythm { want: ms(5000), floor: ms(50), limit };
    let hello = Hello {
        least_version: 1,
        greatest_version: 1,
        rhythm,
        position: Position::start(262_144),
        largest_message: 1 << 20,
        will_resume: false,
        sets_pace: false,
        client_id: "raw".into(),
        token: Vec::new(),
        session: None,
    };
    let mut bytes = PREAMBLE.to_vec();
    hello.encode(&mut bytes);
    stream.write_all(&bytes).unwrap();
    let mut welcome = [0; 8 + 4 + 98];
    stream.read_exact(&mut welcome).unwrap();
    assert_eq!(welcome[..8], PREAMBLE);
    Welcome::decode(&welcome[12..]).unwrap();
    let mut ack = vec![0, 0, 16, 6];
    ack.extend_from_slice(&0_u64.to_be_bytes());
    ack.extend_from_slice(&262_144_u64.to_be_bytes());
    stream.write_all(&ack).unwrap();
}

fn server_of_raw(config: Config) -> (Arc<Listener>, TcpStream, Arc<Link>) {
    let listener = listen(ListenerConfig { link: Arc::new(config), ..ListenerConfig::default() });
    let mut stream = TcpStream::connect(listener.address()).unwrap();
    raw_peer(&mut stream, None);
    let link = listener.accept(soon()).unwrap();
    (listener, stream, link)
}

#[test]
fn a_peer_that_is_killed_ends_or_resets() {
    let (_listener, stream, link) = server_of_raw(Config::default());
    drop(stream); // with the ACK of ours unread, hence by RST
    assert!(matches!(ended(&link).cause, Cause::Ended | Cause::Reset));

    let (_listener, stream, link) = server_of_raw(Config::default());
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(ended(&link).cause, Cause::Ended);

    let (_listener, stream, link) = server_of_raw(Config::default());
    thread::scope(|scope| {
        let waits = scope.spawn(|| receive(&link));
        longconn::net::sys::abort(std::os::fd::AsFd::as_fd(&stream)).unwrap();
        drop(stream); // at the latest then
        let Err(LinkError::Ended(ending)) = waits.join().unwrap() else { panic!("it goes on") };
        assert_eq!(ending.cause, Cause::Reset);
    });
}

#[test]
fn a_close_ends_all_waits_though_the_end_of_stream_is_late() {
    let (_listener, mut stream, link) = server_of_raw(Config::default());
    let (_other_listener, idle, _other) = pair();
    link.send(b"nobody takes this", soon()).unwrap();
    thread::scope(|scope| {
        let waiting = [
            scope.spawn(|| receive(&link).map(drop)),
            scope.spawn(|| receive(&link).map(drop)),
            scope.spawn(|| link.flush(soon())),
            scope.spawn(|| link.ping(soon()).map(drop)),
        ];
        pass(&idle, ms(30));
        let start = clock::now();
        let mut close = Vec::new();
        Close::new(CloseCode::GOING_AWAY, "soon").encode(&mut close);
        stream.write_all(&close).unwrap();
        for waiting in waiting {
            let error = waiting.join().unwrap().unwrap_err();
            assert!(matches!(&error, LinkError::Ended(ending) if ending.untaken_bytes > 0), "{error}");
        }
        // Our own patience with its end of stream is 2 s.
        assert!(clock::now() - start < ms(1500));
    });
    // It is told the end of ours.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
}

#[test]
#[cfg_attr(longconn_portable, ignore = "it takes TCP_INFO to tell frozen from silent")]
fn a_peer_that_says_nothing_more_is_lost_within_the_limit() {
    let heartbeat = HeartbeatConfig { want: ms(200), limit: Some(ms(500)), ..HeartbeatConfig::default() };
    let listener = listen(ListenerConfig {
        link: Arc::new(Config { heartbeat, ..Config::default() }),
        ..ListenerConfig::default()
    });
    let mut stream = TcpStream::connect(listener.address()).unwrap();
    raw_peer(&mut stream, None);
    let link = listener.accept(soon()).unwrap();
    let start = clock::now();
    thread::scope(|scope| {
        let waits = scope.spawn(|| receive(&link));
        link.wait_state(State::Suspect, soon()).unwrap();
        let Err(LinkError::Ended(ending)) = waits.join().unwrap() else { panic!("it goes on") };
        let took = clock::now() - start;
        // Its kernel answers, and nobody behind it.
        assert_eq!((ending.cause, ending.kernel_answers), (Cause::Frozen, Some(true)), "{ending}");
        assert!(ending.silence >= ms(500), "{ending}");
        // The limit, and the grace that follows a pause of our own, should the machine be busy.
        assert!(took < ms(2000).mul_f64(slack()), "{took:?}");
        println!("{ending}; told after {took:?}");
    });
    // It was told, and reset.
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(last_close(&rest).unwrap().code, CloseCode::NOT_HEARD);
    let mut occurrences = Vec::new();
    while let Ok(occurrence) = link.next_occurrence(soon()) {
        occurrences.push(occurrence.what);
    }
    assert!(matches!(occurrences[..], [What::Opened, What::Suspect { .. }, What::Ended(_)]), "{occurrences:?}");
}

#[test]
fn who_receives_hears_for_those_who_wait_for_something_else() {
    let (_listener, client, server) = pair_of(config(ms(10_000_000)), config(ms(10_000_000)));
    let (_other_listener, idle, _other) = pair();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&client));
        pass(&idle, ms(30));
        let filled = fill(&client, &[0; 16 * 1024]);
        let sender = scope.spawn(|| client.send(&[0; 16 * 1024], soon()));
        let flusher = scope.spawn(|| client.flush(soon()));
        let pinger = scope.spawn(|| client.ping(soon()));
        pass(&idle, ms(30));
        let start = clock::now();
        for _ in 0..=filled {
            receive(&server).unwrap();
        }
        sender.join().unwrap().unwrap();
        flusher.join().unwrap().unwrap();
        pinger.join().unwrap().unwrap();
        assert!(clock::now() - start < ms(5000).mul_f64(slack()));
        server.send(b"for you", soon()).unwrap();
        assert_eq!(receiver.join().unwrap().unwrap(), b"for you");
    });
}

#[test]
fn a_close_that_the_peer_ignores_ends_who_receives_at_its_deadline() {
    let (_listener, _stream, link) = server_of_raw(Config::default());
    let (_other_listener, idle, _other) = pair();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&link));
        pass(&idle, ms(30));
        let start = clock::now();
        link.close(Close::new(CloseCode::NORMAL, ""), ms(200)).unwrap();
        let Err(LinkError::Ended(ending)) = receiver.join().unwrap() else { panic!("it goes on") };
        assert_eq!((ending.cause, ending.by_peer), (Cause::Closed, false));
        let took = clock::now() - start;
        assert!(took >= ms(200) && took < ms(2000).mul_f64(slack()), "{took:?}");
    });
}

/// Waits without sleeping, on a link where nothing comes.
fn pass(idle: &Link, time: Duration) {
    assert!(matches!(idle.wait_readable(Some(clock::now() + time)), Err(LinkError::TimedOut)));
}

#[test]
fn the_readers_role_changes_hands_and_no_message_waits_unseen() {
    const COUNT: u32 = 400;
    let (_listener, client, server) = pair();
    let (_other_listener, idle, other_idle) = pair();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..COUNT {
                client.send(&number.to_be_bytes(), soon()).unwrap();
                pass(&idle, ms(u64::from(number * 7 % 13)));
            }
        });
        let late = scope.spawn(|| {
            // One that waits beside, without being the one that reads.
            while server.stats().unwrap().unwrap().bytes_heard < u64::from(COUNT) * 8 {
                match server.wait_state(State::Closed, Some(clock::now() + ms(3))) {
                    Err(LinkError::TimedOut) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        let mut expected = 0;
        let mut worst = Duration::ZERO;
        while expected < COUNT {
            let start = clock::now();
            match server.wait_readable(Some(start + ms(1 + u64::from(expected * 5 % 11)))) {
                Ok(()) => {}
                // Nobody reads for a while: the engine has to.
                Err(LinkError::TimedOut) => pass(&other_idle, ms(u64::from(expected * 3 % 17))),
                Err(error) => panic!("{error}"),
            }
            while let Attempt::Done(message) = server.try_recv(<[u8]>::to_vec).unwrap() {
                assert_eq!(message, expected.to_be_bytes());
                expected += 1;
            }
            worst = worst.max(clock::now() - start);
        }
        late.join().unwrap();
        assert!(worst < ms(1000).mul_f64(slack()), "{worst:?}");
    });
}

/// The one that polls the socket waits for something else, and for long.
#[test]
fn whoever_reads_wakes_those_for_whom_something_came() {
    let (_listener, client, server) = pair_of(config(ms(10_000_000)), config(ms(10_000_000)));
    let (_other_listener, idle, _other) = pair();
    thread::scope(|scope| {
        let reader = scope.spawn(|| client.wait_state(State::Suspect, soon()));
        pass(&idle, ms(30));
        let receiver = scope.spawn(|| receive(&client));
        let filled = fill(&client, &[0; 16 * 1024]);
        let sender = scope.spawn(|| client.send(&[0; 16 * 1024], soon()));
        let flusher = scope.spawn(|| client.flush(soon()));
        pass(&idle, ms(30));
        let start = clock::now();
        server.send(b"for you", soon()).unwrap();
        assert_eq!(receiver.join().unwrap().unwrap(), b"for you");
        for _ in 0..filled {
            receive(&server).unwrap();
        }
        sender.join().unwrap().unwrap();
        receive(&server).unwrap();
        flusher.join().unwrap().unwrap();
        assert!(clock::now() - start < ms(5000).mul_f64(slack()));
        assert!(!reader.is_finished());
        client.close(Close::new(CloseCode::NORMAL, ""), ms(1000)).unwrap();
        assert!(matches!(reader.join().unwrap(), Err(LinkError::Ended(_))));
    });
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn a_signal_interrupts_the_wait_and_the_wait_goes_on() {
    let (listener, client, server) = pair();
    // SAFETY: the handler only counts; without SA_RESTART the system call ends with EINTR.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = count_signal as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
    let until_interrupted = |wait: &(dyn Fn() -> Result<(), LinkError> + Sync)| {
        let interrupted = AtomicBool::new(false);
        let (tell, who) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            let interrupted = &interrupted;
            let waits = scope.spawn(move || {
                // SAFETY: asks for the calling thread.
                tell.send(unsafe { libc::pthread_self() }).unwrap();
                let result = wait();
                interrupted.store(true, Ordering::Relaxed);
                result
            });
            let thread = who.recv().unwrap();
            wait_for(|| {
                // SAFETY: the thread isn't joined yet.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                interrupted.load(Ordering::Relaxed)
            });
            let error = waits.join().unwrap().unwrap_err();
            assert!(matches!(error, LinkError::Interrupted), "{error}");
        });
    };
    until_interrupted(&|| client.wait_readable(soon()));
    until_interrupted(&|| listener.accept(soon()).map(drop));
    assert!(SIGNALS.load(Ordering::Relaxed) > 0);
    server.send(b"after the handler", soon()).unwrap();
    assert_eq!(receive(&client).unwrap(), b"after the handler");
}

// ---- strangers ------------------------------------------------------------------------------------------------

/// What the server says to a client that says `bytes`, until the end, or the reset.
fn answer_to(listener: &Listener, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(listener.address()).unwrap();
    stream.set_read_timeout(Some(ms(20_000).mul_f64(slack()))).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut room = [0; 1000];
    loop {
        match stream.read(&mut room) {
            Ok(0) => return answer,
            Ok(length) => answer.extend_from_slice(&room[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return answer,
            Err(error) => panic!("{error}"),
        }
    }
}

fn close_code(answer: &[u8]) -> u16 {
    let close = answer.strip_prefix(&PREAMBLE).expect("a preamble");
    assert_eq!(close[3], 8, "{close:?}");
    Close::decode(&close[4..]).unwrap().code.0
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = soon().unwrap();
    while !condition() {
        assert!(clock::now() < deadline, "it doesn't come about");
        thread::yield_now();
    }
}

#[test]
fn strangers_are_sent_away_and_counted() {
    let listener = listen(ListenerConfig::default());
    assert_eq!(answer_to(&listener, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), b"");
    assert_eq!(answer_to(&listener, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), b"");
    let mut oversized = PREAMBLE.to_vec();
    oversized.extend_from_slice(&[0xff, 0xff, 0xff, 1]);
    assert_eq!(close_code(&answer_to(&listener, &oversized)), CloseCode::PROTOCOL.0);
    let mut wrong_first = PREAMBLE.to_vec();
    wrong_first.extend_from_slice(&[0, 0, 5, 5, b'h', b'e', b'l', b'l', b'o']);
    assert_eq!(close_code(&answer_to(&listener, &wrong_first)), CloseCode::PROTOCOL.0);
    wait_for(|| listener.counts().unwrap().failed == 4);
    assert_eq!(listener.counts().unwrap().handshakes, 0);
    let client = dial(listener.address(), Config::default());
    client.wait_open(soon()).unwrap();
}

#[test]
fn a_client_that_meets_a_stranger_says_what_it_heard() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = dial(socket.local_addr().unwrap(), Config::default());
    let (mut stream, _) = socket.accept().unwrap();
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    let Err(LinkError::Ended(ending)) = client.wait_open(soon()) else { panic!("it opened") };
    assert_eq!(ending.cause, Cause::Protocol);
    assert!(ending.detail.as_ref().unwrap().contains("b'HTTP/1.1 400"), "{ending}");
}

#[test]
fn silence_in_the_handshake_has_an_end() {
    let link = Config { handshake_timeout: ms(100), ..Config::default() };
    let listener = listen(ListenerConfig { link: Arc::new(link), ..ListenerConfig::default() });
    assert_eq!(answer_to(&listener, b""), b"");
    assert_eq!(answer_to(&listener, b"LONG"), b"");
    assert_eq!(close_code(&answer_to(&listener, &PREAMBLE)), CloseCode::HANDSHAKE_TIMEOUT.0);
    wait_for(|| listener.counts().unwrap().failed == 3);
}

#[test]
fn the_program_decides_who_may_come() {
    let listener = listen(ListenerConfig { asks: true, ..ListenerConfig::default() });
    let dial = |token: &[u8]| {
        let socket: OwnedFd = TcpStream::connect(listener.address()).unwrap().into();
        let introduction = Introduction { token: token.to_vec(), ..Introduction::default() };
        Link::client(socket, None, Arc::default(), introduction).unwrap()
    };
    let (good, bad) = (dial(b"good"), dial(b"bad"));
    for _ in 0..2 {
        let client = listener.next_client(soon()).unwrap();
        if client.hello.token == b"good" {
            client.accept().unwrap();
        } else {
            client.refuse(Close::new(CloseCode::UNAUTHORIZED, "who are you?")).unwrap();
        }
    }
    good.wait_open(soon()).unwrap();
    let Err(LinkError::Ended(ending)) = bad.wait_open(soon()) else { panic!("it opened") };
    assert_eq!(ending.cause, Cause::Handshake);
    let close = ending.close.as_ref().unwrap();
    assert_eq!((close.code, &close.reason[..]), (CloseCode::UNAUTHORIZED, "who are you?"));
    listener.accept(soon()).unwrap();
    wait_for(|| listener.counts().unwrap().handshakes == 0);
    let counts = listener.counts().unwrap();
    assert_eq!((counts.refused, counts.failed, counts.opened), (1, 0, 1));
}

#[test]
fn those_who_go_undecided_leave_no_calls_behind() {
    let listener = listen(ListenerConfig { asks: true, ..ListenerConfig::default() });
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    listener.tell_of_clients(Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    for failed in 1..=20 {
        drop(dial(listener.address(), Config::default()).close(Close::new(CloseCode::NORMAL, ""), ms(0)));
        wait_for(|| listener.counts().unwrap().failed == failed);
    }
    // The calls of those who have gone are answered for who is here.
    let before = calls.load(Ordering::SeqCst);
    assert!(before <= 2, "{before} calls");
    let client = dial(listener.address(), Config::default());
    wait_for(|| listener.counts().unwrap().handshakes == 1);
    let mut asked = None;
    wait_for(|| {
        asked = asked.take().or_else(|| (calls.load(Ordering::SeqCst) > 0).then(|| listener.answer_call()).flatten());
        asked.is_some()
    });
    asked.unwrap().accept().unwrap();
    client.wait_open(soon()).unwrap();
    let after = calls.load(Ordering::SeqCst);
    let next = dial(listener.address(), Config::default());
    wait_for(|| calls.load(Ordering::SeqCst) == after.max(before) + 1);
    listener.answer_call().unwrap().accept().unwrap();
    next.wait_open(soon()).unwrap();
}

#[test]
fn too_many_connections_are_refused_with_the_reason() {
    let listener = listen(ListenerConfig { max_connections: 2, ..ListenerConfig::default() });
    let first = dial(listener.address(), Config::default());
    first.wait_open(soon()).unwrap();
    let second = dial(listener.address(), Config::default());
    second.wait_open(soon()).unwrap();
    let third = dial(listener.address(), Config::default());
    let Err(LinkError::Ended(ending)) = third.wait_open(soon()) else { panic!("it opened") };
    assert_eq!(ending.close.as_ref().unwrap().code, CloseCode::TOO_MANY);
    for _ in 0..2 {
        listener.accept(soon()).unwrap();
    }
    first.close(Close::new(CloseCode::NORMAL, ""), ms(1000)).unwrap();
    ended(&first);
    wait_for(|| listener.counts().unwrap().open == 1);
    dial(listener.address(), Config::default()).wait_open(soon()).unwrap();
    assert_eq!(listener.counts().unwrap().too_many, 1);

    let listener = listen(ListenerConfig { max_per_address: 1, ..ListenerConfig::default() });
    dial(listener.address(), Config::default()).wait_open(soon()).unwrap();
    assert!(dial(listener.address(), Config::default()).wait_open(soon()).is_err());

    let listener = listen(ListenerConfig { max_handshakes: 3, ..ListenerConfig::default() });
    let silent: Vec<_> = (0..3).map(|_| TcpStream::connect(listener.address()).unwrap()).collect();
    assert_eq!(answer_to(&listener, b""), b"");
    assert_eq!(listener.counts().unwrap().crowded_out, 1);
    drop(silent);
    wait_for(|| listener.counts().unwrap().handshakes == 0);
    dial(listener.address(), Config::default()).wait_open(soon()).unwrap();
}

#[test]
fn connections_that_nobody_accepts_are_bounded_though_they_are_over() {
    let listener = listen(ListenerConfig { max_connections: 3, ..ListenerConfig::default() });
    let leave = |client: Arc<Link>| {
        client.wait_open(soon()).unwrap();
        client.close(Close::new(CloseCode::NORMAL, "").link_only(), ms(1000)).unwrap();
        ended(&client);
    };
    for opened in 1..=3 {
        leave(dial(listener.address(), Config::default()));
        wait_for(|| listener.counts().unwrap().opened == opened && listener.counts().unwrap().open == 0);
    }
    // Those who are here have the places of those who went unseen.
    let here: Vec<_> = (0..3).map(|_| dial(listener.address(), Config::default())).collect();
    for link in &here {
        link.wait_open(soon()).unwrap();
    }
    let refused = dial(listener.address(), Config::default());
    let Err(LinkError::Ended(ending)) = refused.wait_open(soon()) else { panic!("it opened") };
    assert_eq!(ending.close.as_ref().unwrap().code, CloseCode::TOO_MANY);
    for _ in &here {
        assert_eq!(listener.accept(soon()).unwrap().state().unwrap(), State::Open);
    }
    assert!(matches!(listener.accept(Some(clock::now())), Err(LinkError::TimedOut)));
}

// ---- many -----------------------------------------------------------------------------------------------------

#[test]
fn one_loop_serves_all_links_and_none_starves() {
    const CLIENTS: usize = 20;
    const EACH: u32 = 500;
    let listener = listen(ListenerConfig::default());
    listener.list_messages().unwrap();
    let clients: Vec<_> = (0..CLIENTS).map(|_| dial(listener.address(), Config::default())).collect();
    thread::scope(|scope| {
        for client in &clients {
            scope.spawn(move || {
                client.wait_open(soon()).unwrap();
                for number in 0..EACH {
                    client.send(&number.to_be_bytes(), soon()).unwrap();
                }
                for number in 0..EACH {
                    assert_eq!(receive(client).unwrap(), number.to_be_bytes());
                }
            });
        }
        let mut served = 0;
        while served < CLIENTS * EACH as usize {
            listener.wait_messages(soon()).unwrap();
            let mut batch = Vec::new();
            let _ = listener.try_messages(256, |link, message| batch.push((link.clone(), message.to_vec()))).unwrap();
            for (link, message) in batch {
                link.confirm(1).unwrap();
                link.send(&message, soon()).unwrap();
                served += 1;
            }
        }
    });
    assert_eq!(listener.broadcast(b"to all", false).unwrap().sent, CLIENTS);
    for client in &clients {
        assert_eq!(receive(client).unwrap(), b"to all");
    }
    listener.close(&Close::new(CloseCode::GOING_AWAY, "done"), ms(5000)).unwrap();
    listener.wait_closed(soon()).unwrap();
    for client in &clients {
        assert_eq!(ended(client).close.as_ref().unwrap().reason, "done");
    }
    assert!(matches!(listener.accept(soon()), Err(LinkError::Closed)));
    let error = TcpStream::connect(listener.address()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn who_comes_and_goes_is_told() {
    let listener = listen(ListenerConfig::default());
    let client = dial(listener.address(), Config::default());
    let (link, occurrence) = listener.next_occurrence(soon()).unwrap();
    assert!(matches!(occurrence.what, What::Opened));
    client.close(Close::new(CloseCode::NORMAL, "enough"), ms(1000)).unwrap();
    let (same, occurrence) = listener.next_occurrence(soon()).unwrap();
    assert!(Arc::ptr_eq(&link, &same));
    let What::Ended(ending) = occurrence.what else { panic!("{occurrence:?}") };
    assert_eq!(ending.close.as_ref().unwrap().reason, "enough");
}
