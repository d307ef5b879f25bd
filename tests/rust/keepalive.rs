//! The kernel's keepalive, on whatever system this runs: what is set is what is read, and what isn't said stays.

#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use longconn::net::keepalive::Keepalive;
use longconn::net::sys::BorrowedSocket;

#[cfg(unix)]
fn borrow(stream: &TcpStream) -> BorrowedSocket<'_> {
    std::os::fd::AsFd::as_fd(stream)
}

#[cfg(windows)]
fn borrow(stream: &TcpStream) -> BorrowedSocket<'_> {
    std::os::windows::io::AsSocket::as_socket(stream)
}

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

fn seconds(number: u64) -> Option<Duration> {
    Some(Duration::from_secs(number))
}

#[test]
fn what_is_set_is_what_is_read() {
    let (ours, _peer) = connected();
    let wanted =
        Keepalive { enabled: Some(true), idle: seconds(7), interval: seconds(2), count: Some(5), user_timeout: None };
    wanted.apply(borrow(&ours)).unwrap();
    let now = Keepalive::of(borrow(&ours)).unwrap();
    assert_eq!(Keepalive { user_timeout: None, ..now }, wanted);
    let probing = Keepalive::probing_of(borrow(&ours)).unwrap();
    assert_eq!((probing.idle_seconds, probing.interval_seconds, probing.count.get()), (7, 2, 5));
}

#[test]
fn what_is_not_said_stays() {
    let (ours, _peer) = connected();
    let before = Keepalive::of(borrow(&ours)).unwrap();
    assert_eq!(before.enabled, Some(false));
    assert!(Keepalive::probing_of(borrow(&ours)).is_none());
    Keepalive { idle: seconds(9), ..Keepalive::default() }.apply(borrow(&ours)).unwrap();
    assert_eq!(Keepalive::of(borrow(&ours)).unwrap(), Keepalive { idle: seconds(9), ..before });
    Keepalive { enabled: Some(true), count: Some(4), ..Keepalive::default() }.apply(borrow(&ours)).unwrap();
    let wanted = Keepalive { enabled: Some(true), idle: seconds(9), count: Some(4), ..before };
    assert_eq!(Keepalive::of(borrow(&ours)).unwrap(), wanted);
    Keepalive { enabled: Some(false), ..Keepalive::default() }.apply(borrow(&ours)).unwrap();
    assert_eq!(Keepalive::of(borrow(&ours)).unwrap(), Keepalive { enabled: Some(false), ..wanted });
}

/// `TCP_USER_TIMEOUT`, or what comes near it; a system that has neither says so.
#[test]
fn the_time_that_unanswered_data_has_is_set_or_refused() {
    let (ours, _peer) = connected();
    let wanted = Keepalive { user_timeout: seconds(20), ..Keepalive::default() };
    match wanted.apply(borrow(&ours)) {
        Ok(()) => assert_eq!(Keepalive::of(borrow(&ours)).unwrap().user_timeout, seconds(20)),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::Unsupported, "{error}"),
    }
}
