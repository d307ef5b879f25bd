//! What all links of a process share: memory for large messages, descriptors, the thread. A program of its own, whose tests
//! take turns.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use longconn::engine::budget::set_budget;
use longconn::engine::link::{Attempt, Link, LinkError};
use longconn::engine::listener::{Listener, ListenerConfig};
use longconn::engine::{clock, fork};
use longconn::proto::cause::Cause;
use longconn::proto::close::{Close, CloseCode};
use longconn::proto::connection::{Config, Introduction};
use longconn::proto::frame::PREAMBLE;
use longconn::proto::handshake::{Hello, Position, Rhythm};
use longconn::proto::heartbeat::HeartbeatConfig;

const MIB: usize = 1 << 20;

fn soon() -> Option<Instant> {
    let slack = std::env::var("LONGCONN_TEST_SLACK").ok().and_then(|slack| slack.parse().ok()).unwrap_or(1.0);
    Some(clock::now() + Duration::from_secs(20).mul_f64(slack))
}

fn config() -> Arc<Config> {
    config_of(Duration::from_millis(100))
}

fn config_of(want: Duration) -> Arc<Config> {
    let limit = Some(Duration::from_secs(60).max(3 * want));
    Arc::new(Config { heartbeat: HeartbeatConfig { want, limit, ..HeartbeatConfig::default() }, ..Config::default() })
}

fn dial(listener: &Listener) -> Arc<Link> {
    dial_of(listener, config())
}

fn dial_of(listener: &Listener, config: Arc<Config>) -> Arc<Link> {
    let socket: OwnedFd = TcpStream::connect(listener.address()).unwrap().into();
    let link = Link::client(socket, None, config, Introduction::default()).unwrap();
    link.wait_open(soon()).unwrap();
    link
}

fn pair() -> (Arc<Listener>, Arc<Link>, Arc<Link>) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener =
        Listener::new(socket.into(), ListenerConfig { link: config(), ..ListenerConfig::default() }).unwrap();
    let client = dial(&listener);
    let server = listener.accept(soon()).unwrap();
    (listener, client, server)
}

fn receive(link: &Link) -> Result<usize, LinkError> {
    loop {
        if let Attempt::Done(length) = link.try_recv(<[u8]>::len)? {
            return Ok(length);
        }
        link.wait_readable(soon())?;
    }
}

/// A peer that begins a message of that length, and goes on in its own time.
fn begin_message(listener: &Listener, length: u64) -> TcpStream {
    let mut stream = TcpStream::connect(listener.address()).unwrap();
    let second = Duration::from_secs(1);
    let hello = Hello {
        least_version: 1,
        greatest_version: 1,
        rhythm: Rhythm { want: second, floor: second, limit: None },
        position: Position::start(262_144),
        largest_message: 1 << 20,
        will_resume: false,
        sets_pace: false,
        client_id: String::new(),
        token: Vec::new(),
        session: None,
    };
    let mut bytes = PREAMBLE.to_vec();
    hello.encode(&mut bytes);
    stream.write_all(&bytes).unwrap();
    stream.read_exact(&mut [0; 8 + 4 + 98]).unwrap();
    let mut bytes = vec![0, 0, 16, 6];
    bytes.extend_from_slice(&0_u64.to_be_bytes());
    bytes.extend_from_slice(&262_144_u64.to_be_bytes());
    bytes.extend_from_slice(&[0, 0x40, 0, 3]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.resize(bytes.len() + 16 * 1024 - 8, 0);
    stream.write_all(&bytes).unwrap();
    stream
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = soon().unwrap();
    while !condition() {
        assert!(clock::now() < deadline, "it doesn't come about");
        thread::yield_now();
    }
}

fn entries(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn links_that_come_and_go_leave_nothing_behind() {
    let _turn = turn();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener =
        Listener::new(socket.into(), ListenerConfig { link: config(), ..ListenerConfig::default() }).unwrap();
    let come_and_go = |count| {
        for number in 0..count {
            let client = dial(&listener);
            let server = listener.accept(soon()).unwrap();
            client.send(b"hello", soon()).unwrap();
            assert_eq!(receive(&server).unwrap(), 5);
            let (ends, other) = if number % 2 == 0 { (&client, &server) } else { (&server, &client) };
            ends.close(Close::new(CloseCode::NORMAL, ""), Duration::from_secs(5)).unwrap();
            other.wait_ended(soon()).unwrap();
            ends.wait_ended(soon()).unwrap();
            while listener.next_occurrence(Some(clock::now())).is_ok() {}
            let (client, server) = (Arc::downgrade(&client), Arc::downgrade(&server));
            // The engine lets go of it.
            wait_for(|| client.strong_count() + server.strong_count() <= 2);
        }
    };
    come_and_go(10);
    let (descriptors, threads) = (entries("/proc/self/fd"), entries("/proc/self/task"));
    come_and_go(200);
    assert_eq!((entries("/proc/self/fd"), entries("/proc/self/task")), (descriptors, threads));
    let counts = listener.counts().unwrap();
    assert_eq!((counts.opened, counts.open, counts.handshakes), (210, 0, 0));
    listener.close(&Close::new(CloseCode::NORMAL, ""), Duration::from_secs(1)).unwrap();
    listener.wait_closed(soon()).unwrap();
}

#[test]
fn the_thread_blocks_signals_and_ends_at_exit() {
    let _turn = turn();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = Listener::new(socket.into(), ListenerConfig::default()).unwrap();
    let _link = dial(&listener);
    let status_of_engine = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let mut statuses = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
        statuses.find(|status| status.starts_with("Name:\tlongconn-engine"))
    };
    // A thread gives itself its name.
    wait_for(|| status_of_engine().is_some());
    let status = status_of_engine().unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
    // All but SIGKILL and SIGSTOP, and the two that glibc keeps for itself.
    assert_eq!(u64::from_str_radix(blocked, 16).unwrap(), !(1 << 8 | 1 << 18 | 1 << 31 | 1 << 32));
    fork::before();
    assert!(status_of_engine().is_none());
    // SAFETY: the child ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fork::after_in_child();
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            let listener = Listener::new(socket.into(), ListenerConfig::default()).unwrap();
            dial(&listener);
            wait_for(|| status_of_engine().is_some());
            assert!(fork::shut_down(Duration::from_secs(10)));
            assert!(status_of_engine().is_none());
        }));
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    fork::after_in_parent();
    wait_for(|| status_of_engine().is_some());
    let mut status = -1;
    // SAFETY: waits for the child, whose status is written to an int.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child failed");
}

/// No beat and no other link comes to its help.
#[test]
fn the_engine_reads_and_writes_what_nobody_waits_for() {
    let _turn = turn();
    let rarely = config_of(Duration::from_secs(10_000));
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener =
        Listener::new(socket.into(), ListenerConfig { link: rarely.clone(), ..ListenerConfig::default() }).unwrap();
    let client = dial_of(&listener, rarely);
    let server = listener.accept(soon()).unwrap();
    let has_received = |count| wait_for(|| server.stats().unwrap().unwrap().inbox_messages == count);
    // The callers take the role of the reader, and leave.
    assert!(server.wait_readable(Some(clock::now() + Duration::from_millis(30))).is_err());
    client.send(b"for whom it may concern", soon()).unwrap();
    has_received(1);
    // A burst is written, though its sender does nothing more; and another.
    for round in 1..=3 {
        for _ in 0..5 {
            client.send(b"and more", soon()).unwrap();
        }
        has_received(1 + 5 * round);
    }
    // Whatever the program does, beats are answered.
    assert!(client.ping(soon()).unwrap() < Duration::from_secs(1));
    assert!(server.wait_readable(Some(clock::now())).is_ok());
    // What was taken is acknowledged a little later.
    while let Attempt::Done(_) = server.try_recv(<[u8]>::len).unwrap() {}
    wait_for(|| client.stats().unwrap().unwrap().untaken_messages == 0);
}

/// What the child finds; in a process that has this thread alone.
fn in_the_child(listener: Arc<Listener>, client: Arc<Link>, server: Arc<Link>) {
    assert!(matches!(client.try_send(b"x"), Err(LinkError::Forked)));
    assert!(matches!(receive(&server), Err(LinkError::Forked)));
    assert!(matches!(listener.accept(soon()), Err(LinkError::Forked)));
    assert!(matches!(client.close(Close::new(CloseCode::NORMAL, ""), Duration::ZERO), Err(LinkError::Forked)));
    drop((listener, client, server));
    let (_listener, client, server) = pair();
    client.send(b"born here", soon()).unwrap();
    assert_eq!(receive(&server).unwrap(), 9);
}

#[test]
fn a_forked_child_has_no_part_in_its_parents_links() {
    let _turn = turn();
    let (listener, client, server) = pair();
    // The forking thread has waited before: its descriptor for that isn't the child's.
    assert!(server.wait_readable(Some(clock::now() + Duration::from_millis(1))).is_err());
    fork::before();
    // SAFETY: the child calls what is made for it, and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fork::after_in_child();
            let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
            let what = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
            let kept: Vec<_> = what.map(|what| what.to_string_lossy().into_owned()).collect();
            assert!(!kept.iter().any(|what| what.contains("socket") || what.contains("eventpoll")), "{kept:?}");
            assert!(!kept.iter().any(|what| what.contains("timerfd")), "{kept:?}");
            in_the_child(listener, client, server);
        }));
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    fork::after_in_parent();
    client.send(b"through the fork", soon()).unwrap();
    assert_eq!(receive(&server).unwrap(), 16);
    let mut status = -1;
    // SAFETY: waits for the child, whose status is written to an int.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child failed");
    assert!(client.ping(soon()).is_ok());
    server.send(b"after the child", soon()).unwrap();
    assert_eq!(receive(&client).unwrap(), 15);
    listener.close(&Close::new(CloseCode::NORMAL, ""), Duration::from_secs(1)).unwrap();
    listener.wait_closed(soon()).unwrap();
    assert_eq!(client.wait_ended(soon()).unwrap().cause, Cause::Closed);
}

#[test]
fn large_messages_wait_their_turn_and_who_hoards_gives_way() {
    let _turn = turn();
    set_budget(MIB as u64, Duration::from_secs(30));
    let listen = |link| {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        Listener::new(socket.into(), ListenerConfig { link, ..ListenerConfig::default() }).unwrap()
    };
    // More than the budget in all, and each of them more than it; no beat comes to their help.
    let rarely = config_of(Duration::from_secs(10_000));
    let listener = listen(rarely.clone());
    let pairs: Vec<_> =
        (0..4).map(|_| (dial_of(&listener, rarely.clone()), listener.accept(soon()).unwrap())).collect();
    for _round in 0..3 {
        thread::scope(|scope| {
            for (client, server) in &pairs {
                scope.spawn(|| client.send(&vec![1; 3 * MIB], soon()).unwrap());
                scope.spawn(|| assert_eq!(receive(server).unwrap(), 3 * MIB));
            }
        });
    }

    // One that got it all, and sends nothing more.
    set_budget(MIB as u64, Duration::from_millis(300));
    let listener = listen(config());
    let hoarder = begin_message(&listener, 10 * MIB as u64);
    let hoarding = listener.accept(soon()).unwrap();
    let start = clock::now();
    let (client, server) = &pairs[0];
    thread::scope(|scope| {
        scope.spawn(|| client.send(&vec![2; 3 * MIB], soon()).unwrap());
        let Err(LinkError::Ended(ending)) = receive(&hoarding) else { panic!("it goes on") };
        assert_eq!(ending.close.as_ref().unwrap().code, CloseCode::TOO_SLOW);
        assert!(clock::now() - start >= Duration::from_millis(250));
        assert_eq!(receive(server).unwrap(), 3 * MIB);
    });
    drop(hoarder);
}
