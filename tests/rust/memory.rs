//! What idle links cost, and sessions whose clients are away: alone in its process, for all that it uses is counted.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

mod usage;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use longconn::engine::clock;
use longconn::engine::link::{Link, LinkError};
use longconn::engine::listener::{Listener, ListenerConfig};
use longconn::proto::connection::{Config, Introduction};
use longconn::proto::frame::{Kind, PREAMBLE};
use longconn::proto::handshake::{Hello, Position, Rhythm, VERSION};
use longconn::proto::heartbeat::HeartbeatConfig;
use longconn::proto::session::BASE_WINDOW_BYTES;

/// One at a time: they share a process, and what it uses.
static TURN: Mutex<()> = Mutex::new(());

fn soon() -> Option<Instant> {
    let slack = std::env::var("LONGCONN_TEST_SLACK").ok().and_then(|slack| slack.parse().ok()).unwrap_or(1.0);
    Some(clock::now() + Duration::from_secs(20).mul_f64(slack))
}

fn listen(config: ListenerConfig) -> Arc<Listener> {
    Listener::new(TcpListener::bind("127.0.0.1:0").unwrap().into(), config).unwrap()
}

/// A client that would come back, and its server.
fn pair(listener: &Listener, config: &Arc<Config>) -> [Arc<Link>; 2] {
    let socket = TcpStream::connect(listener.address()).unwrap().into();
    let introduction = Introduction { will_resume: true, ..Introduction::default() };
    let client = Link::client(socket, None, config.clone(), introduction).unwrap();
    client.wait_open(soon()).unwrap();
    [client, listener.accept(soon()).unwrap()]
}

/// Some beats later everything that opening took is given back.
fn settle(link: &Link) {
    let done = clock::now() + Duration::from_secs(1);
    while !matches!(link.wait_readable(Some(done)), Err(LinkError::TimedOut)) {}
}

/// What `measure` gives once nothing is under way: on a machine that is busy with other things beats come late, each with memory
/// of its own, and it takes longer.
fn at_rest(link: &Link, measure: impl Fn() -> usize) -> usize {
    let mut least = usize::MAX;
    for _ in 0..10 {
        settle(link);
        least = least.min(measure());
        if least <= 1024 {
            break;
        }
    }
    least
}

#[test]
fn an_idle_link_costs_at_most_a_kibibyte() {
    const LINKS: usize = 1000;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let heartbeat = HeartbeatConfig { want: Duration::from_millis(200), ..HeartbeatConfig::default() };
    let config = Arc::new(Config { heartbeat, ..Config::default() });
    let listener = listen(ListenerConfig { link: config.clone(), ..ListenerConfig::default() });
    let open = |count: usize| -> Vec<Arc<Link>> { (0..count).flat_map(|_| pair(&listener, &config)).collect() };
    // The first start the engine, and fill what it keeps for itself.
    let first = open(100);
    settle(&first[0]);
    let before = usage::memory_bytes();
    let links = open(LINKS);
    let each = at_rest(&links[0], || usage::memory_bytes().saturating_sub(before) / links.len());
    println!("{each} bytes a link");
    assert!((300..=1024).contains(&each), "{each} bytes a link");
}

/// One that says by hand what it has to, and then nothing for an hour.
fn quiet_client(address: SocketAddr) -> TcpStream {
    const HOUR: Duration = Duration::from_secs(3600);
    let hello = Hello {
        least_version: VERSION,
        greatest_version: VERSION,
        rhythm: Rhythm { want: HOUR, floor: HOUR, limit: Some(10 * HOUR) },
        position: Position::start(BASE_WINDOW_BYTES),
        largest_message: 1024,
        will_resume: true,
        sets_pace: false,
        client_id: "device-7".into(),
        token: Vec::new(),
        session: None,
    };
    let mut says = PREAMBLE.to_vec();
    hello.encode(&mut says);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&says).unwrap();
    let mut preamble_and_header = [0; PREAMBLE.len() + 4];
    stream.read_exact(&mut preamble_and_header).unwrap();
    let [.., high, middle, low, kind] = preamble_and_header;
    assert_eq!(kind, Kind::Welcome as u8);
    let mut welcome = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
    stream.read_exact(&mut welcome).unwrap();
    let mut ack = vec![0, 0, 16, Kind::Ack as u8];
    ack.extend([0, BASE_WINDOW_BYTES].map(u64::to_be_bytes).concat());
    stream.write_all(&ack).unwrap();
    stream
}

#[test]
fn a_session_whose_client_is_away_costs_at_most_a_kibibyte() {
    const SESSIONS: usize = 5000;
    /// So many are connected at once.
    const BATCH: usize = 250;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let listener = listen(ListenerConfig { retention: Duration::from_secs(3600), ..ListenerConfig::default() });
    let config = Arc::new(Config::default());
    // Its beats tell the time.
    let [clock_side, _other] = pair(&listener, &config);
    // Whose program keeps no list of them: the listener does.
    let lose = |count: usize| {
        for _ in 0..count / BATCH {
            let waiting = listener.counts().unwrap().waiting + BATCH;
            let streams: Vec<_> = (0..BATCH).map(|_| quiet_client(listener.address())).collect();
            streams.iter().for_each(|_| drop(listener.accept(soon()).unwrap()));
            drop(streams);
            let deadline = soon().unwrap();
            // It reads its events, as a server with many clients does; a session is counted a moment after it has told.
            while listener.counts().unwrap().waiting < waiting {
                let _ = listener.next_occurrence(Some(clock::now() + Duration::from_millis(10)));
                assert!(clock::now() < deadline, "{:?}", listener.counts());
            }
            while listener.next_occurrence(Some(clock::now())).is_ok() {}
        }
    };
    lose(BATCH);
    settle(&clock_side);
    let before = usage::memory_bytes();
    lose(SESSIONS);
    let each = at_rest(&clock_side, || usage::memory_bytes().saturating_sub(before) / SESSIONS);
    println!("{each} bytes a session");
    assert_eq!(listener.counts().unwrap().waiting, SESSIONS + BATCH);
    assert!((300..=1024).contains(&each), "{each} bytes a session");
}
