//! Sessions over loopback: connections that are cut, on purpose, by a proxy in between; real sockets, real threads.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]
#![allow(clippy::disallowed_methods, reason = "a connection is cut while others wait, for which there is no event")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use longconn::engine::clock;
use longconn::engine::link::{Attempt, Link, LinkError, Reconnect, What};
use longconn::engine::listener::{Listener, ListenerConfig};
use longconn::net::dial::{Place, Target};
use longconn::proto::backoff::BackoffConfig;
use longconn::proto::cause::{Cause, SessionEnd};
use longconn::proto::close::{Close, CloseCode};
use longconn::proto::connection::{Config, Introduction, State};
use longconn::proto::frame::PREAMBLE;
use longconn::proto::handshake::{Hello, Position, Rhythm, Welcome};

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

/// Between a client and a server: what goes through it can be cut, held up, and refused.
struct Proxy {
    address: SocketAddr,
    upstream: Arc<Mutex<SocketAddr>>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    is_closed: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
}

impl Proxy {
    fn new(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            upstream: Arc::new(Mutex::new(upstream)),
            streams: Arc::default(),
            is_closed: Arc::default(),
            accepted: Arc::default(),
        };
        let (upstream, streams) = (proxy.upstream.clone(), proxy.streams.clone());
        let (is_closed, accepted) = (proxy.is_closed.clone(), proxy.accepted.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                accepted.fetch_add(1, Ordering::SeqCst);
                let target = *upstream.lock().unwrap();
                let Ok(server) = TcpStream::connect(target) else { continue };
                if is_closed.load(Ordering::SeqCst) {
                    continue;
                }
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                streams.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    thread::spawn(move || {
                        let mut room = vec![0; 65536];
                        while let Ok(length @ 1..) = from.read(&mut room) {
                            if to.write_all(&room[..length]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        proxy
    }

    /// Both ends of everything are told that it is over.
    fn cut(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn reconnect_to(address: SocketAddr) -> Reconnect {
    let place = Place { host: address.ip().to_string(), port: address.port() };
    let backoff = BackoffConfig { first: ms(5), cap: ms(50), ..BackoffConfig::default() };
    Reconnect { target: Arc::new(Target { places: vec![place] }), backoff, follows: false, keepalive: None, tls: None }
}

fn introduction() -> Introduction {
    Introduction { client_id: "device-7".into(), will_resume: true, ..Introduction::default() }
}

fn dial(address: SocketAddr, config: Config) -> Arc<Link> {
    let socket = TcpStream::connect(address).unwrap().into();
    let link = Link::client(socket, None, Arc::new(config), introduction()).unwrap();
    link.set_reconnect(reconnect_to(address)).unwrap();
    link
}

fn listen(config: ListenerConfig) -> Arc<Listener> {
    Listener::new(TcpListener::bind("127.0.0.1:0").unwrap().into(), config).unwrap()
}

fn receive(link: &Link) -> Result<Vec<u8>, LinkError> {
    loop {
        if let Attempt::Done(message) = link.try_recv(<[u8]>::to_vec)? {
            return Ok(message);
        }
        link.wait_readable(soon())?;
    }
}

/// A client and its server, with a proxy between them.
fn trio(client: Config, server: ListenerConfig) -> (Proxy, Arc<Listener>, Arc<Link>, Arc<Link>) {
    let listener = listen(server);
    let proxy = Proxy::new(listener.address());
    let client = dial(proxy.address, client);
    client.wait_open(soon()).unwrap();
    let server = listener.accept(soon()).unwrap();
    (proxy, listener, client, server)
}

fn next(link: &Link) -> What {
    link.next_occurrence(soon()).unwrap().what
}

#[test]
fn a_session_goes_on_over_another_connection_and_both_sides_are_told() {
    let (proxy, _listener, client, server) = trio(Config::default(), ListenerConfig::default());
    client.send(b"before", soon()).unwrap();
    assert_eq!(receive(&server).unwrap(), b"before");
    proxy.cut();
    client.send(b"while it is away", soon()).unwrap();
    server.send(b"to who is away", soon()).unwrap();
    assert_eq!(receive(&server).unwrap(), b"while it is away");
    assert_eq!(receive(&client).unwrap(), b"to who is away");
    for link in [&client, &server] {
        assert!(matches!(next(link), What::Opened));
        assert!(matches!(next(link), What::Parted(ending) if matches!(ending.cause, Cause::Ended | Cause::Reset)));
        assert!(matches!(next(link), What::Resumed { .. }));
        link.flush(soon()).unwrap();
        link.ping(soon()).unwrap();
    }
}

#[test]
fn a_stream_of_messages_both_ways_survives_many_cuts() {
    const COUNT: u32 = 60_000;
    let (proxy, listener, client, server) = trio(Config::default(), ListenerConfig::default());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (sender, receiver) in [(&client, &server), (&server, &client)] {
            scope.spawn(move || {
                for number in 0..COUNT {
                    let mut message = number.to_be_bytes().to_vec();
                    message.resize(4 + (number as usize * 7919) % 900 + usize::from(number % 1000 == 0) * 300_000, 7);
                    sender.send(&message, soon()).unwrap();
                }
                sender.flush(soon()).unwrap();
            });
            let is_over = &is_over;
            scope.spawn(move || {
                for number in 0..COUNT {
                    let message = receive(receiver).unwrap();
                    assert_eq!(message[..4], number.to_be_bytes());
                    let length = 4 + (number as usize * 7919) % 900 + usize::from(number % 1000 == 0) * 300_000;
                    assert_eq!(message.len(), length);
                }
                is_over.store(true, Ordering::SeqCst);
            });
        }
        let (proxy, is_over) = (&proxy, &is_over);
        scope.spawn(move || {
            let until = soon().unwrap();
            while !is_over.load(Ordering::SeqCst) && clock::now() < until {
                thread::sleep(ms(10));
                proxy.cut();
            }
        });
    });
    let counts = listener.counts().unwrap();
    assert!(counts.resumed > 3, "{counts:?}");
    assert_eq!((counts.stale, counts.expired), (0, 0), "{counts:?}");
}

#[test]
fn who_waits_in_a_call_goes_on_waiting_over_the_next_connection() {
    let (proxy, _listener, client, server) = trio(Config::default(), ListenerConfig::default());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| receive(&client));
        let large = scope.spawn(|| {
            let mut room = Box::new_uninit_slice(8);
            server.recv_into(&mut room, soon()).map(drop)
        });
        for _ in 0..3 {
            thread::sleep(ms(30));
            proxy.cut();
        }
        thread::sleep(ms(100));
        server.send(b"at last", soon()).unwrap();
        client.send(b"as well", soon()).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), b"at last");
        large.join().unwrap().unwrap();
    });
}

#[test]
fn a_large_message_that_is_received_in_its_place_is_whole_after_a_cut() {
    let (proxy, _listener, client, server) = trio(Config::default(), ListenerConfig::default());
    let message: Vec<u8> = (0..12 << 20).map(|at: u32| (at % 251) as u8).collect();
    thread::scope(|scope| {
        scope.spawn(|| client.send(&message, soon()).unwrap());
        let received = scope.spawn(|| {
            loop {
                if let Attempt::Done(received) = server.try_recv(<[u8]>::to_vec).unwrap() {
                    return received;
                }
                if let Some(length) = server.begun(soon()) {
                    let mut room = Box::new_uninit_slice(length);
                    if server.recv_in_place(&mut room, soon()).unwrap() == Attempt::Done(()) {
                        // SAFETY: it is filled when it is done.
                        return unsafe { room.assume_init() }.into_vec();
                    }
                } else {
                    let mut none = [];
                    let _ = server.recv_into(&mut none, soon()).unwrap();
                }
            }
        });
        for _ in 0..20 {
            thread::sleep(ms(3));
            proxy.cut();
        }
        assert!(received.join().unwrap() == message);
    });
}

#[test]
fn a_session_that_nobody_comes_back_for_ends_after_its_retention() {
    let config = ListenerConfig { retention: ms(300), ..ListenerConfig::default() };
    let (proxy, listener, client, server) = trio(Config::default(), config);
    server.send(b"taken", soon()).unwrap();
    assert_eq!(receive(&client).unwrap(), b"taken");
    server.flush(soon()).unwrap();
    proxy.is_closed.store(true, Ordering::SeqCst);
    proxy.cut();
    server.send(b"one", soon()).unwrap();
    server.send(b"two", soon()).unwrap();
    let ending = server.wait_ended(soon()).unwrap();
    assert_eq!(ending.session, Some(SessionEnd::GivenUp));
    assert!(matches!(ending.cause, Cause::Ended | Cause::Reset), "{ending:?}");
    assert_eq!(server.undelivered().unwrap(), [b"one", b"two"]);
    assert!(server.stats().unwrap().is_some(), "it had a link");
    assert_eq!(listener.counts().unwrap().expired, 1);
    // It comes back too late: the server knows nothing of it, and nothing of it was lost.
    proxy.is_closed.store(false, Ordering::SeqCst);
    client.send(b"late", soon()).unwrap();
    let again = listener.accept(soon()).unwrap();
    assert_eq!(receive(&again).unwrap(), b"late");
    assert!(matches!(next(&client), What::Opened));
    assert!(matches!(next(&client), What::Parted(_)));
    assert!(matches!(next(&client), What::Fresh));
}

#[test]
fn a_server_that_has_forgotten_is_reported_or_sent_everything_again() {
    for resends in [false, true] {
        let (proxy, listener, client, server) =
            trio(Config { resends, ..Config::default() }, ListenerConfig::default());
        client.send(b"taken", soon()).unwrap();
        assert_eq!(receive(&server).unwrap(), b"taken");
        client.flush(soon()).unwrap();
        // Handed to the kernel, at least, and never taken.
        client.send(b"sent", soon()).unwrap();
        server.wait_readable(soon()).unwrap();
        let other = listen(ListenerConfig::default());
        *proxy.upstream.lock().unwrap() = other.address();
        proxy.cut();
        client.send(b"later", soon()).unwrap_or_else(|error| assert!(matches!(error, LinkError::Ended(_)), "{error}"));
        if resends {
            let again = other.accept(soon()).unwrap();
            assert_eq!(receive(&again).unwrap(), b"sent");
            assert_eq!(receive(&again).unwrap(), b"later");
        } else {
            let ending = client.wait_ended(soon()).unwrap();
            assert_eq!(ending.session, Some(SessionEnd::Forgotten));
            let undelivered = client.undelivered().unwrap();
            assert_eq!(undelivered[0], b"sent");
        }
        drop(listener);
    }
}

#[test]
fn a_server_that_goes_away_loses_nothing_and_doubles_nothing() {
    let (proxy, listener, client, server) = trio(Config::default(), ListenerConfig::default());
    client.send(b"taken", soon()).unwrap();
    assert_eq!(receive(&server).unwrap(), b"taken");
    client.send(b"not taken", soon()).unwrap();
    server.wait_readable(soon()).unwrap();
    let other = listen(ListenerConfig::default());
    *proxy.upstream.lock().unwrap() = other.address();
    listener.close(&Close::new(CloseCode::GOING_AWAY, "restart"), ms(500)).unwrap();
    listener.wait_closed(soon()).unwrap();
    let again = other.accept(soon()).unwrap();
    assert_eq!(receive(&again).unwrap(), b"not taken");
    client.send(b"goes on", soon()).unwrap();
    assert_eq!(receive(&again).unwrap(), b"goes on");
}

#[test]
fn a_goodbye_is_a_goodbye() {
    let (_proxy, listener, client, server) = trio(Config::default(), ListenerConfig::default());
    server.close(Close::new(CloseCode(0x1000), "enough"), ms(5000)).unwrap();
    let ending = client.wait_ended(soon()).unwrap();
    assert_eq!((ending.cause, ending.by_peer), (Cause::Closed, true));
    assert_eq!(server.wait_ended(soon()).unwrap().cause, Cause::Closed);
    assert_eq!(listener.counts().unwrap().open, 0);
}

#[test]
fn close_waits_for_a_connection_to_say_it_over() {
    let (proxy, _listener, client, server) = trio(Config::default(), ListenerConfig::default());
    client.send(b"last words", soon()).unwrap();
    proxy.cut();
    client.close(Close::new(CloseCode::NORMAL, "done"), ms(10_000)).unwrap();
    assert_eq!(receive(&server).unwrap(), b"last words");
    let ending = server.wait_ended(soon()).unwrap();
    assert_eq!((ending.cause, ending.close.as_ref().map(|close| close.code)), (Cause::Closed, Some(CloseCode::NORMAL)));
    assert_eq!(client.wait_ended(soon()).unwrap().untaken_bytes, 0);
}

/// Says HELLO for a session, and gives what the server says.
fn claim(address: SocketAddr, session: longconn::proto::handshake::Resumption) -> (TcpStream, Vec<u8>) {
    let hello = Hello {
        least_version: 1,
        greatest_version: 1,
        rhythm: Rhythm { want: ms(5000), floor: ms(50), limit: None },
        position: Position::start(262_144),
        largest_message: 1 << 24,
        will_resume: true,
        sets_pace: false,
        client_id: "somebody else".into(),
        token: Vec::new(),
        session: Some(session),
    };
    let mut bytes = PREAMBLE.to_vec();
    hello.encode(&mut bytes);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(ms(20_000).mul_f64(slack()))).unwrap();
    stream.write_all(&bytes).unwrap();
    let mut said = [0; 12];
    stream.read_exact(&mut said).unwrap();
    let length = usize::from(said[9]) * 256 + usize::from(said[10]);
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).unwrap();
    payload.insert(0, said[11]);
    (stream, payload)
}

#[test]
fn nobody_comes_in_with_a_wrong_secret_or_an_old_hello_and_the_good_connection_stays() {
    use longconn::proto::handshake::{Credentials, Resumption};
    let listener = listen(ListenerConfig::default());
    // A client of our own making, whose secret is known here.
    let nobody = Resumption { credentials: Credentials { id: [9; 16], secret: [9; 32] }, epoch: 1 };
    let (mut good, said) = claim(listener.address(), nobody);
    assert_eq!(said[0], 2, "an id that nobody has is no harm: the session is new");
    let welcome = Welcome::decode(&said[1..]).unwrap();
    assert!(!welcome.resumed);
    let ack = [0, 0, 16, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0];
    good.write_all(&ack).unwrap();
    let server = listener.accept(soon()).unwrap();

    let mut guessed = welcome.credentials;
    guessed.secret[31] ^= 1;
    let (_stream, said) = claim(listener.address(), Resumption { credentials: guessed, epoch: 1 });
    assert_eq!((said[0], Close::decode(&said[1..]).unwrap().code), (8, CloseCode::STALE));
    let (_stream, said) = claim(listener.address(), Resumption { credentials: welcome.credentials, epoch: 0 });
    assert_eq!((said[0], Close::decode(&said[1..]).unwrap().code), (8, CloseCode::STALE));
    assert_eq!(listener.counts().unwrap().stale, 2);

    // The good one is heard as before.
    good.write_all(b"\x00\x00\x02\x05ok").unwrap();
    assert_eq!(receive(&server).unwrap(), b"ok");
    assert_eq!(server.state().unwrap(), State::Open);

    // Who has it all comes in, and the connection before is nobody's.
    let resumption = Resumption { credentials: welcome.credentials, epoch: 1 };
    let (mut newer, said) = claim(listener.address(), resumption);
    assert!(said[0] == 2 && Welcome::decode(&said[1..]).unwrap().resumed);
    good.write_all(b"\x00\x00\x05\x05ghost").unwrap_or_default();
    newer.write_all(&[0, 0, 16, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0]).unwrap();
    newer.write_all(b"\x00\x00\x05\x05alive").unwrap();
    assert_eq!(receive(&server).unwrap(), b"alive");
    // Said again, word for word.
    let (_stream, said) = claim(listener.address(), resumption);
    assert_eq!((said[0], Close::decode(&said[1..]).unwrap().code), (8, CloseCode::STALE));
    assert_eq!(server.state().unwrap(), State::Open);
}

#[test]
fn a_session_that_has_ended_says_so_again_to_who_comes_back_for_it() {
    let (proxy, _listener, client, server) = trio(Config::default(), ListenerConfig::default());
    proxy.is_closed.store(true, Ordering::SeqCst);
    proxy.cut();
    assert!(matches!(next(&server), What::Opened));
    assert!(matches!(next(&server), What::Parted(_)));
    server.close(Close::new(CloseCode(0x1234), "moved"), ms(0)).unwrap();
    server.wait_ended(soon()).unwrap();
    proxy.is_closed.store(false, Ordering::SeqCst);
    let ending = client.wait_ended(soon()).unwrap();
    assert_eq!((ending.cause, ending.by_peer), (Cause::Closed, true), "{ending:?}");
    assert_eq!(ending.close.as_ref().unwrap().code, CloseCode(0x1234));
}

#[test]
fn sessions_that_wait_are_bounded() {
    let config = ListenerConfig { max_waiting: 2, ..ListenerConfig::default() };
    let listener = listen(config);
    let proxy = Proxy::new(listener.address());
    let clients: Vec<_> = (0..3).map(|_| dial(proxy.address, Config::default())).collect();
    let servers: Vec<_> = clients
        .iter()
        .map(|client| {
            client.wait_open(soon()).unwrap();
            listener.accept(soon()).unwrap()
        })
        .collect();
    proxy.is_closed.store(true, Ordering::SeqCst);
    proxy.cut();
    while servers.iter().all(|server| server.ending().unwrap().is_none()) {
        assert!(clock::now() < soon().unwrap());
        thread::sleep(ms(5));
    }
    assert_eq!(servers.iter().filter(|server| server.ending().unwrap().is_some()).count(), 1);
    let counts = listener.counts().unwrap();
    assert_eq!((counts.waiting, counts.open, counts.expired), (2, 0, 1));
    clients.iter().for_each(|client| client.close(Close::new(CloseCode::NORMAL, ""), ms(0)).unwrap());
}

#[test]
fn news_that_nobody_asks_for_does_not_pile_up() {
    let (proxy, _listener, client, server) = trio(Config::default(), ListenerConfig::default());
    // Two occurrences each at least, of which 64 are kept.
    for _ in 0..40 {
        proxy.cut();
        client.send(b"?", soon()).unwrap();
        assert_eq!(receive(&server).unwrap(), b"?");
        server.send(b"!", soon()).unwrap();
        assert_eq!(receive(&client).unwrap(), b"!");
    }
    for link in [&client, &server] {
        let kept = std::iter::from_fn(|| link.next_occurrence(Some(clock::now())).ok());
        assert_eq!(kept.count(), 64);
    }
}

#[test]
fn what_sessions_keep_is_bounded_before_their_end_and_after() {
    let config = ListenerConfig { max_waiting_bytes: 1000, retention: ms(100), ..ListenerConfig::default() };
    let listener = listen(config);
    let proxy = Proxy::new(listener.address());
    let mut servers = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = dial(proxy.address, Config::default());
        client.wait_open(soon()).unwrap();
        let server = listener.accept(soon()).unwrap();
        server.send(&[7; 600], soon()).unwrap();
        servers.push(server);
        clients.push(client);
    }
    proxy.is_closed.store(true, Ordering::SeqCst);
    proxy.cut();
    // Somebody asks them all the time: what is asked for just now is taken away a moment later.
    let are_over = AtomicBool::new(false);
    let endings: Result<Vec<_>, _> = thread::scope(|scope| {
        for server in &servers {
            scope.spawn(|| {
                while !are_over.load(Ordering::Relaxed) {
                    server.undelivered().unwrap();
                }
            });
        }
        let endings = servers.iter().map(|server| server.wait_ended(soon())).collect();
        are_over.store(true, Ordering::Relaxed);
        endings
    });
    let endings = endings.unwrap();
    assert!(endings.iter().all(|ending| ending.session == Some(SessionEnd::GivenUp)));
    let kept: Vec<_> = servers.iter().map(|server| server.undelivered().unwrap().len()).collect();
    assert_eq!(kept.iter().sum::<usize>(), 1, "two of 600 bytes are over the bound: {kept:?}");
    clients.iter().for_each(|client| client.close(Close::new(CloseCode::NORMAL, ""), ms(0)).unwrap());
}

#[test]
fn who_is_sent_elsewhere_goes_there_though_the_server_is_still_up() {
    let (first, other) = (listen(ListenerConfig::default()), listen(ListenerConfig::default()));
    let link = Link::client(TcpStream::connect(first.address()).unwrap().into(), None, Arc::default(), introduction())
        .unwrap();
    link.set_reconnect(Reconnect { follows: true, ..reconnect_to(first.address()) }).unwrap();
    link.wait_open(soon()).unwrap();
    let elsewhere = other.address().to_string();
    let goodbye = Close::new(CloseCode::GOING_AWAY, "too full here").coming_back(ms(1), &elsewhere);
    first.accept(soon()).unwrap().close(goodbye, ms(5000)).unwrap();
    other.accept(soon()).unwrap();
    assert_eq!(link.peer_address(), other.address());
}
