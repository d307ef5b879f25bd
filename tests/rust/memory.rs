//! What idle links cost: alone in its process, for all that it uses is counted.

#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

mod usage;

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use longconn::engine::clock;
use longconn::engine::link::{Link, LinkError};
use longconn::engine::listener::{Listener, ListenerConfig};
use longconn::proto::connection::{Config, Introduction};
use longconn::proto::heartbeat::HeartbeatConfig;

#[test]
fn an_idle_link_costs_at_most_a_kibibyte() {
    const LINKS: usize = 1000;
    let slack = std::env::var("LONGCONN_TEST_SLACK").ok().and_then(|slack| slack.parse().ok()).unwrap_or(1.0);
    let soon = || Some(clock::now() + Duration::from_secs(20).mul_f64(slack));
    let heartbeat = HeartbeatConfig { want: Duration::from_millis(200), ..HeartbeatConfig::default() };
    let config = Arc::new(Config { heartbeat, ..Config::default() });
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener =
        Listener::new(socket.into(), ListenerConfig { link: config.clone(), ..ListenerConfig::default() }).unwrap();
    let open = |count: usize| -> Vec<Arc<Link>> {
        (0..count)
            .flat_map(|_| {
                let socket = TcpStream::connect(listener.address()).unwrap().into();
                let client = Link::client(socket, config.clone(), Introduction::default()).unwrap();
                client.wait_open(soon()).unwrap();
                [client, listener.accept(soon()).unwrap()]
            })
            .collect()
    };
    // Some beats later everything that opening took is given back.
    let settle = |links: &[Arc<Link>]| {
        let done = clock::now() + Duration::from_secs(1);
        while !matches!(links[0].wait_readable(Some(done)), Err(LinkError::TimedOut)) {}
    };
    // The first start the engine, and fill what it keeps for itself.
    let first = open(100);
    settle(&first);
    let before = usage::memory_bytes();
    let links = open(LINKS);
    settle(&links);
    let each = usage::memory_bytes().saturating_sub(before) / links.len();
    assert!((300..=1024).contains(&each), "{each} bytes a link");
}
