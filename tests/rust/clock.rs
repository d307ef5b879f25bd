//! Time that is skipped: over loopback, with real sockets and threads; alone in its process, whose one clock it is.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use longconn::engine::link::{Link, LinkError, Reconnect, What};
use longconn::engine::listener::{Listener, ListenerConfig};
use longconn::engine::proxy::{Order, Proxy, ProxyConfig, Whom};
use longconn::engine::skipping::Skipper;
use longconn::engine::{clock, interpreter};
use longconn::fault::flow::{Fault, Passage, Way};
use longconn::net::dial::{Place, Target};
use longconn::proto::backoff::BackoffConfig;
use longconn::proto::cause::{Cause, Ending, SessionEnd};
use longconn::proto::connection::{Config, Introduction, State};
use longconn::proto::heartbeat::HeartbeatConfig;

const HOUR: Duration = Duration::from_secs(3600);

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One at a time: what one skips, all skip.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn slack() -> f64 {
    std::env::var("LONGCONN_TEST_SLACK").ok().and_then(|slack| slack.parse().ok()).unwrap_or(1.0)
}

/// In which anything must have happened, really.
fn patience() -> Duration {
    s(20).mul_f64(slack())
}

fn soon() -> Option<Instant> {
    Some(clock::now() + patience())
}

/// All that is under way here is done in an instant, but on a busy machine.
fn skip(by: Duration) {
    Skipper::new().skip(by, Duration::from_millis(100).mul_f64(slack())).unwrap().wait().unwrap();
}

fn config(want: Duration, limit: Duration) -> Config {
    Config {
        heartbeat: HeartbeatConfig { want, limit: Some(limit), ..HeartbeatConfig::default() },
        ..Config::default()
    }
}

fn listen(config: ListenerConfig) -> Arc<Listener> {
    Listener::new(TcpListener::bind("127.0.0.1:0").unwrap().into(), config).unwrap()
}

fn target(address: SocketAddr) -> Arc<Target> {
    Arc::new(Target { places: vec![Place { host: address.ip().to_string(), port: address.port() }] })
}

/// A client and its server; on a path that can be cut.
fn pair(config: Config) -> (Arc<Listener>, Arc<Proxy>, Arc<Link>, Arc<Link>) {
    let link = Arc::new(config.clone());
    let listener = listen(ListenerConfig { link, retention: HOUR, ..ListenerConfig::default() });
    let (proxy, client, server) = through_proxy(&listener, config);
    (listener, proxy, client, server)
}

fn through_proxy(listener: &Listener, config: Config) -> (Arc<Proxy>, Arc<Link>, Arc<Link>) {
    let settings = ProxyConfig { room_bytes: 1 << 16, seed: 1, captured_bytes: 0 };
    let proxy = Proxy::new("127.0.0.1:0".parse().unwrap(), target(listener.address()), &settings).unwrap();
    let socket = TcpStream::connect(proxy.address()).unwrap().into();
    let introduction = Introduction { will_resume: true, ..Introduction::default() };
    let client = Link::client(socket, None, Arc::new(config), introduction).unwrap();
    client.wait_open(soon()).unwrap();
    let server = listener.accept(soon()).unwrap();
    (proxy, client, server)
}

fn reconnect_to(proxy: &Proxy) -> Reconnect {
    let backoff = BackoffConfig { first: s(1), cap: s(300), ..BackoffConfig::default() };
    Reconnect { target: target(proxy.address()), backoff, follows: false, keepalive: None, tls: None }
}

fn pull_cable(proxy: &Proxy) {
    proxy.order(&Order::Fault(&Way::BOTH, Fault::Passage(Passage::Cut)), Whom::All, "").unwrap();
}

fn loss(link: &Link) -> Option<Arc<Ending>> {
    loop {
        match link.next_occurrence(Some(clock::now())) {
            Ok(occurrence) => {
                if let What::Parted(ending) | What::Ended(ending) = occurrence.what {
                    return Some(ending);
                }
            }
            Err(LinkError::TimedOut) => return None,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_clock_is_ahead_by_what_was_skipped_and_the_kernels_is_not() {
    let _turn = turn();
    interpreter::note_ran();
    let (now, real, skipped) = (clock::now(), clock::real(), clock::skipped());
    skip(HOUR);
    // What has passed by itself needn't be skipped.
    assert!((HOUR - patience()..=HOUR).contains(&(clock::skipped() - skipped)));
    assert!(clock::now() >= now + HOUR);
    assert!(clock::real() < real + patience());
    // Python has had no chance to run meanwhile.
    let ran = interpreter::last_ran().unwrap().instant();
    assert!(clock::now() - ran < patience());
    interpreter::forget();
}

#[test]
fn a_dead_peer_is_lost_when_its_time_is_up_and_not_before() {
    let _turn = turn();
    let (_listener, proxy, client, server) = pair(config(s(30), s(75)));
    skip(HOUR);
    pull_cable(&proxy);
    let cut = clock::now();
    let mut lost = None;
    for second in 0..75 {
        skip(s(1));
        lost = loss(&client);
        if lost.is_some() {
            // The last beat before the cut is an interval old at most.
            assert!(second >= 44, "lost after {second} s");
            break;
        }
        assert!(matches!(client.state().unwrap(), State::Open | State::Suspect));
    }
    let lost = lost.expect("its silence is longer than its limit");
    assert_eq!(lost.cause, Cause::Unreachable, "{lost}");
    assert!((s(75)..s(76)).contains(&lost.silence), "{lost}");
    assert!(clock::now() - cut < s(76));
    skip(s(75));
    assert_eq!(loss(&server).unwrap().cause, Cause::Unreachable);
}

#[test]
fn a_thousand_hours_of_beats_raise_no_suspicion() {
    let _turn = turn();
    let (_listener, _proxy, client, server) = pair(config(s(30), s(75)));
    skip(1000 * HOUR);
    for link in [&client, &server] {
        assert_eq!(link.state().unwrap(), State::Open);
        let stats = link.stats().unwrap().unwrap();
        assert!(stats.beats.heard >= 120_000, "{stats:?}");
        assert!(stats.round_trip.smoothed.unwrap() < s(1), "{stats:?}");
        assert!(matches!(link.next_occurrence(Some(clock::now())).unwrap().what, What::Opened));
        let next = link.next_occurrence(Some(clock::now()));
        assert!(matches!(next, Err(LinkError::TimedOut)), "{next:?}");
    }
}

#[test]
fn who_waits_until_a_time_that_is_skipped_waits_no_longer() {
    let _turn = turn();
    let _skipper = Skipper::new();
    let (listener, _proxy, client, _server) = pair(config(s(30), s(75)));
    let (told, tells) = mpsc::channel();
    // The one in the links' way of waiting, the other in the listener's.
    let (said, begun) = mpsc::channel();
    for who in 0..2 {
        let (listener, client, told, said) = (listener.clone(), client.clone(), told.clone(), said.clone());
        thread::spawn(move || {
            let (began, real) = (clock::now(), clock::real());
            said.send(()).unwrap();
            let until = Some(began + HOUR);
            let outcome = if who == 0 { client.wait_readable(until) } else { listener.accept(until).map(drop) };
            told.send((outcome, clock::now() - began, clock::real() - real)).unwrap();
        });
        begun.recv_timeout(patience()).unwrap();
    }
    skip(HOUR - s(60));
    assert!(tells.try_recv().is_err());
    skip(s(61));
    for _ in 0..2 {
        let (outcome, took, really) = tells.recv_timeout(patience()).unwrap();
        assert!(matches!(outcome, Err(LinkError::TimedOut)), "{outcome:?}");
        assert!(took >= HOUR && really < HOUR, "{took:?}, really {really:?}");
    }
}

#[test]
fn two_may_skip_at_once_and_each_gets_as_far_as_it_wanted() {
    let _turn = turn();
    let (_listener, _proxy, client, _server) = pair(config(s(30), s(75)));
    let skippers = [HOUR, 3 * HOUR].map(|by| {
        thread::spawn(move || {
            let before = clock::now();
            skip(by);
            assert!(clock::now() >= before + by);
        })
    });
    let before = clock::skipped();
    skippers.into_iter().for_each(|skipper| skipper.join().unwrap());
    assert!(clock::skipped() - before <= 4 * HOUR);
    assert_eq!(client.state().unwrap(), State::Open);
}

#[test]
fn who_gives_up_skipping_leaves_the_clock_where_it_is() {
    let _turn = turn();
    let (_listener, _proxy, client, _server) = pair(config(s(1), s(5)));
    let before = clock::skipped();
    drop(Skipper::new().skip(100_000 * HOUR, s(1)).unwrap());
    skip(HOUR);
    assert!(clock::skipped() - before < 50_000 * HOUR);
    assert_eq!(client.state().unwrap(), State::Open);
}

#[test]
fn more_than_a_hundred_years_are_refused() {
    let _turn = turn();
    let before = clock::skipped();
    let skipper = Skipper::new();
    assert!(skipper.skip(100 * 366 * 24 * HOUR, s(1)).is_err());
    assert!(skipper.skip(Duration::MAX, s(1)).is_err());
    assert_eq!(clock::skipped(), before);
}

#[test]
fn a_session_is_given_up_and_forgotten_when_its_time_is_up() {
    let _turn = turn();
    let (listener, proxy, client, server) = pair(Config { give_up_after: Some(HOUR), ..config(s(30), s(75)) });
    client.set_reconnect(reconnect_to(&proxy)).unwrap();
    proxy.close().unwrap();
    for link in [&client, &server] {
        link.wait_state(State::Reconnecting, soon()).unwrap();
    }
    skip(HOUR - s(10));
    for link in [&client, &server] {
        assert_eq!(link.state().unwrap(), State::Reconnecting);
    }
    skip(s(20));
    assert_eq!(client.wait_ended(soon()).unwrap().session, Some(SessionEnd::GivenUp));
    server.wait_ended(soon()).unwrap();
    drop(listener);
}

#[test]
fn a_night_without_a_network_passes_and_the_client_comes_back() {
    let _turn = turn();
    let listener = listen(ListenerConfig {
        link: Arc::new(config(s(30), s(75))),
        retention: 24 * HOUR,
        ..ListenerConfig::default()
    });
    let (proxy, client, server) = through_proxy(&listener, config(s(30), s(75)));
    client.set_reconnect(reconnect_to(&proxy)).unwrap();
    pull_cable(&proxy);
    skip(12 * HOUR);
    for link in [&client, &server] {
        assert_eq!(link.state().unwrap(), State::Reconnecting);
    }
    proxy.order(&Order::Restore(&Way::BOTH), Whom::All, "").unwrap();
    skip(s(60));
    for link in [&client, &server] {
        assert_eq!(link.state().unwrap(), State::Open);
    }
}
