//! Dials, and waiting for what comes of them; for several programs of tests.

#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use longconn::engine::clock;
use longconn::engine::dial::{Connected, Dial, DialConfig, dial};
use longconn::net::dial::{DialError, Place, Target};

pub(crate) type Outcome = Result<Connected, DialError>;

fn slack() -> f64 {
    std::env::var("LONGCONN_TEST_SLACK").ok().and_then(|slack| slack.parse().ok()).unwrap_or(1.0)
}

pub(crate) fn patience() -> Duration {
    Duration::from_secs(20).mul_f64(slack())
}

pub(crate) fn config() -> DialConfig {
    DialConfig { timeout: Some(patience()), ..DialConfig::default() }
}

pub(crate) fn place(host: &str, port: u16) -> Place {
    Place { host: host.into(), port }
}

pub(crate) fn at(address: SocketAddr) -> Place {
    place(&address.ip().to_string(), address.port())
}

pub(crate) fn begin(places: Vec<Place>, config: DialConfig) -> (Arc<Dial>, Receiver<Outcome>) {
    let (told, outcome) = mpsc::channel();
    let done = Box::new(move |outcome| told.send(outcome).unwrap());
    (dial(Arc::new(Target { places }), config, done).unwrap(), outcome)
}

pub(crate) fn outcome(places: Vec<Place>, config: DialConfig) -> Outcome {
    begin(places, config).1.recv_timeout(patience()).unwrap()
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = clock::now() + patience();
    while !condition() {
        assert!(clock::now() < deadline, "it doesn't come about");
        thread::yield_now();
    }
}

pub(crate) fn sockets() -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let what = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    what.filter(|what| what.to_string_lossy().starts_with("socket:")).count()
}
