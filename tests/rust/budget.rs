//! The process's memory for messages that are larger than a window; a program of its own, for the budget is one.

#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use longconn::engine::budget::set_budget;
use longconn::engine::clock;
use longconn::engine::link::{Attempt, Link, LinkError};
use longconn::engine::listener::{Listener, ListenerConfig};
use longconn::proto::close::CloseCode;
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
    let want = Duration::from_millis(100);
    let limit = Some(Duration::from_secs(60));
    Arc::new(Config { heartbeat: HeartbeatConfig { want, limit, ..HeartbeatConfig::default() }, ..Config::default() })
}

fn dial(listener: &Listener) -> Arc<Link> {
    let socket: OwnedFd = TcpStream::connect(listener.address()).unwrap().into();
    let link = Link::client(socket, config(), Introduction::default()).unwrap();
    link.wait_open(soon()).unwrap();
    link
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

#[test]
fn large_messages_wait_their_turn_and_who_hoards_gives_way() {
    set_budget(MIB as u64, Duration::from_millis(300));
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener =
        Listener::new(socket.into(), ListenerConfig { link: config(), ..ListenerConfig::default() }).unwrap();

    // More than the budget in all, and each of them more than it.
    let pairs: Vec<_> = (0..4).map(|_| (dial(&listener), listener.accept(soon()).unwrap())).collect();
    for _round in 0..3 {
        thread::scope(|scope| {
            for (client, server) in &pairs {
                scope.spawn(|| client.send(&vec![1; 3 * MIB], soon()).unwrap());
                scope.spawn(|| assert_eq!(receive(server).unwrap(), 3 * MIB));
            }
        });
    }

    // One that got it all, and sends nothing more.
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
