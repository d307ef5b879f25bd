//! What the engine costs beside plain sockets with the same framing, in one run: `taskset -c 0 cargo bench --bench engine`.
//! Both sides are threads of one process, so on one CPU they share it, as two processes would.

#![allow(clippy::unwrap_used, reason = "a benchmark")]

#[path = "../tests/rust/usage.rs"]
mod usage;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use longconn::engine::clock;
use longconn::engine::link::{Attempt, Link, Reconnect};
use longconn::engine::listener::{Listener, ListenerConfig};
use longconn::net::dial::{Place, Target};
use longconn::proto::backoff::BackoffConfig;
use longconn::proto::connection::{Config, Introduction, State};
use longconn::proto::heartbeat::HeartbeatConfig;

use usage::{cpu_time, memory_bytes};

const SMALL: usize = 64;

fn soon() -> Option<Instant> {
    Some(clock::now() + Duration::from_secs(60))
}

fn pair() -> (Arc<Listener>, Arc<Link>, Arc<Link>) {
    let heartbeat = HeartbeatConfig { want: Duration::from_secs(1), ..HeartbeatConfig::default() };
    let config = Arc::new(Config { heartbeat, ..Config::default() });
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener =
        Listener::new(socket.into(), ListenerConfig { link: config.clone(), ..ListenerConfig::default() }).unwrap();
    let socket: OwnedFd = TcpStream::connect(listener.address()).unwrap().into();
    let client = Link::client(socket, None, config, Introduction::default()).unwrap();
    client.wait_open(soon()).unwrap();
    let server = listener.accept(soon()).unwrap();
    (listener, client, server)
}

/// As a binding does: one attempt, then the wait.
fn send(link: &Link, message: &[u8]) {
    if link.try_send(message).unwrap() == Attempt::Later {
        link.send(message, soon()).unwrap();
    }
}

fn receive(link: &Link) -> usize {
    loop {
        if let Attempt::Done(length) = link.try_recv(<[u8]>::len).unwrap() {
            return length;
        }
        link.wait_readable(soon()).unwrap();
    }
}

fn plain_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

fn send_plain(mut stream: &TcpStream, frame: &[u8]) {
    stream.write_all(frame).unwrap();
}

fn receive_plain(mut stream: &TcpStream, room: &mut [u8]) {
    let mut header = [0; 4];
    stream.read_exact(&mut header).unwrap();
    let length = u32::from_be_bytes(header) as usize;
    stream.read_exact(&mut room[..length]).unwrap();
}

fn time(count: usize, body: impl FnOnce()) -> f64 {
    let start = clock::now();
    body();
    (clock::now() - start).as_secs_f64() / count as f64
}

fn round_trips(count: usize) {
    let (_listener, client, server) = pair();
    let ours = time(count, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..count {
                    let length = receive(&server);
                    send(&server, &[0; SMALL][..length]);
                }
            });
            for _ in 0..count {
                send(&client, &[0; SMALL]);
                receive(&client);
            }
        });
    });
    let (client, server) = plain_pair();
    let mut frame = [0; SMALL + 4];
    frame[3] = SMALL as u8;
    let plain = time(count, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut room = [0; SMALL];
                for _ in 0..count {
                    receive_plain(&server, &mut room);
                    send_plain(&server, &frame);
                }
            });
            let mut room = [0; SMALL];
            for _ in 0..count {
                send_plain(&client, &frame);
                receive_plain(&client, &mut room);
            }
        });
    });
    println!("round trip:    {:8.2} us, plain sockets {:8.2} us", ours * 1e6, plain * 1e6);
}

fn one_way(size: usize, count: usize) {
    let (_listener, client, server) = pair();
    let message = vec![7; size];
    let ours = time(count, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..count {
                    send(&client, &message);
                }
            });
            for _ in 0..count {
                assert_eq!(receive(&server), size);
            }
        });
    });
    let (client, server) = plain_pair();
    let mut frame = u32::try_from(size).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(&message);
    let plain = time(count, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..count {
                    send_plain(&client, &frame);
                }
            });
            let mut room = vec![0; size];
            for _ in 0..count {
                receive_plain(&server, &mut room);
            }
        });
    });
    let rate = |seconds: f64| format!("{:10.0} a second, {:7.1} MB/s", 1.0 / seconds, size as f64 / seconds / 1e6);
    println!("one way {size:8}: {}; plain sockets {}", rate(ours), rate(plain));
}

/// A ping each 20 ms while data flows as fast as it goes, the same way.
fn pings_beside_data(total: usize) {
    let (_listener, client, server) = pair();
    let size = 1 << 20;
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for _ in 0..total / size {
                send(&client, &vec![0; size]);
            }
        });
        scope.spawn(|| {
            for _ in 0..total / size {
                receive(&server);
            }
        });
        let mut trips = Vec::new();
        while !sender.is_finished() {
            let start = clock::now();
            client.ping(soon()).unwrap();
            trips.push(clock::now() - start);
        }
        trips.sort();
        let at = |share: f64| trips[((trips.len() - 1) as f64 * share) as usize];
        println!(
            "{} pings beside {} MB: median {:?}, 99 % {:?}, worst {:?}",
            trips.len(),
            total >> 20,
            at(0.5),
            at(0.99),
            at(1.0)
        );
        println!("beats: {:?}", client.stats().unwrap().unwrap().beats);
    });
}

/// What idle links cost the side that is here.
fn report_idle(side: &str, before: usize, links: &[Arc<Link>]) {
    let wait = |time| while links[0].wait_state(State::Closed, Some(time)).is_ok() {};
    wait(clock::now() + Duration::from_millis(2500));
    let memory = memory_bytes().saturating_sub(before) / links.len();
    let (start, cpu) = (clock::now(), cpu_time());
    wait(start + Duration::from_secs(5));
    let share = (cpu_time() - cpu).as_secs_f64() / (clock::now() - start).as_secs_f64();
    let beats = links.iter().map(|link| link.stats().unwrap().unwrap().beats);
    let (late, worst) =
        beats.fold((0, Duration::ZERO), |(late, worst), beats| (late + beats.late, worst.max(beats.worst_lateness)));
    println!(
        "{side}: {} idle links, a beat each second: {:.1} % of a core, {memory} bytes a link; {late} beats late, worst {worst:?}",
        links.len(),
        share * 100.0
    );
}

/// Links that start the engine and fill what it keeps for itself: they aren't counted.
const FIRST: usize = 100;

/// The client's process: so many links to that address.
fn idle_clients(count: usize, address: &str) {
    let heartbeat = HeartbeatConfig { want: Duration::from_secs(1), ..HeartbeatConfig::default() };
    let config = Arc::new(Config { heartbeat, ..Config::default() });
    let open = |_| {
        let socket: OwnedFd = TcpStream::connect(address).unwrap().into();
        let link = Link::client(socket, None, config.clone(), Introduction::default()).unwrap();
        link.wait_open(soon()).unwrap();
        link
    };
    let _first: Vec<_> = (0..FIRST).map(open).collect();
    let before = memory_bytes();
    let links: Vec<_> = (0..count).map(open).collect();
    report_idle("clients", before, &links);
}

fn idle(count: usize) {
    let heartbeat = HeartbeatConfig { want: Duration::from_secs(1), ..HeartbeatConfig::default() };
    let link = Arc::new(Config { heartbeat, ..Config::default() });
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = Listener::new(socket.into(), ListenerConfig { link, ..ListenerConfig::default() }).unwrap();
    let program = std::env::current_exe().unwrap();
    let arguments = ["clients".to_owned(), count.to_string(), listener.address().to_string()];
    let mut clients = std::process::Command::new(program).args(arguments).spawn().unwrap();
    let accept = |_| listener.accept(soon()).unwrap();
    let _first: Vec<_> = (0..FIRST).map(accept).collect();
    let before = memory_bytes();
    let links: Vec<_> = (0..count).map(accept).collect();
    report_idle("server", before, &links);
    clients.wait().unwrap();
}

/// From a new connection to the first message that was sent again over it: a relay between the two cuts what it carries, and
/// looks at the clock when it has accepted; the server's program when it has the message.
fn resumes(count: usize) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = Listener::new(socket.into(), ListenerConfig::default()).unwrap();
    let address = listener.address();
    let relay = TcpListener::bind("127.0.0.1:0").unwrap();
    let relay_address = relay.local_addr().unwrap();
    let (accepted, arrivals) = mpsc::channel();
    thread::spawn(move || {
        for client in relay.incoming().flatten() {
            let at = clock::now();
            let server = TcpStream::connect(address).unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let cut = [client.try_clone().unwrap(), server.try_clone().unwrap()];
            if accepted.send((at, cut)).is_err() {
                return;
            }
            for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
                thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
        }
    });
    let introduction = Introduction { will_resume: true, ..Introduction::default() };
    let socket: OwnedFd = TcpStream::connect(relay_address).unwrap().into();
    let client = Link::client(socket, None, Arc::default(), introduction).unwrap();
    let place = Place { host: "127.0.0.1".into(), port: relay_address.port() };
    let target = Arc::new(Target { places: vec![place] });
    client
        .set_reconnect(Reconnect {
            target,
            backoff: BackoffConfig::default(),
            follows: false,
            keepalive: None,
            tls: None,
        })
        .unwrap();
    client.wait_open(soon()).unwrap();
    let server = listener.accept(soon()).unwrap();
    let mut times = Vec::new();
    let (_, mut cut) = arrivals.recv().unwrap();
    for _ in 0..count {
        // Handed to the kernel, and received, perhaps, and not by the program: it goes again, unless it has come.
        for stream in &cut {
            let _ = stream.shutdown(Shutdown::Both);
        }
        client.send(&[7; SMALL], soon()).unwrap();
        let at;
        (at, cut) = arrivals.recv().unwrap();
        assert_eq!(receive(&server), SMALL);
        times.push(clock::now().saturating_duration_since(at));
        // So that the connection counts as good, and the next attempt goes at once.
        client.ping(soon()).unwrap();
    }
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "a session goes on: {:.2} ms from the new connection to the first message, median of {count}; {:.2} ms at the \
         99th percentile (bound: median of 5 ms)",
        at(0.5),
        at(0.99)
    );
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["clients", count, address] => idle_clients(count.parse().unwrap(), address),
        ["idle", count] => idle(count.parse().unwrap()),
        ["resumes", count] => resumes(count.parse().unwrap()),
        _ => {
            round_trips(50_000);
            one_way(SMALL, 3_000_000);
            one_way(16 * 1024, 100_000);
            one_way(1 << 20, 1000);
            pings_beside_data(1 << 30);
            resumes(300);
            idle(1000);
        }
    }
}
