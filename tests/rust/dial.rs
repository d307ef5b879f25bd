//! Dialling over loopback: real sockets, the engine's real thread, and no sleeps. A program of its own, whose tests take turns:
//! they count descriptors and threads, and fork.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use longconn::engine::dial::{Connected, DialConfig, dial};
use longconn::engine::fork;
use longconn::net::dial::{Failure, Target, ToItself, is_connected};
use longconn::net::resolve::LookUpError;
use longconn::net::{resolve, sys};
use longconn::proto::backoff::Why;
use socket2::{Domain, SockRef, Socket, Type};

mod dialling;
use dialling::{Outcome, at, begin, config, outcome, patience, place, sockets, turn, wait_for};

fn short() -> DialConfig {
    DialConfig { timeout: Some(Duration::from_millis(300)), ..DialConfig::default() }
}

fn listen(host: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((host, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Nobody listens there, and nobody else will: its port is bound.
fn dead() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A listener whose queue is full: the kernel drops each further SYN, as a cut path does, until someone is accepted.
struct Deaf {
    listener: Socket,
    address: SocketAddr,
    /// Those in the queue.
    queued: Vec<Socket>,
}

impl Deaf {
    fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        loop {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            if socket.connect_timeout(&address.into(), Duration::from_millis(200)).is_err() {
                return Self { listener, address, queued };
            }
            queued.push(socket);
        }
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn flags(socket: &OwnedFd) -> (bool, bool) {
    // SAFETY: fcntl without an argument on a descriptor that is open.
    let get = |what| unsafe { libc::fcntl(socket.as_raw_fd(), what) };
    (get(libc::F_GETFL) & libc::O_NONBLOCK != 0, get(libc::F_GETFD) & libc::FD_CLOEXEC != 0)
}

#[test]
fn the_connection_is_handed_over_ready_for_a_link() {
    let _turn = turn();
    for host in ["127.0.0.1", "::1"] {
        let (listener, address) = listen(host);
        let mss = DialConfig { max_segment: Some(600), ..config() };
        let Connected { socket, peer, .. } = outcome(vec![at(address)], mss).unwrap();
        assert_eq!(peer, address);
        assert_eq!(flags(&socket), (true, true));
        assert!(SockRef::from(&socket).tcp_mss().unwrap() <= 600);
        // Where the kernel has it.
        assert!(matches!(sys::rto_max_ms(socket.as_raw_fd()), Ok(1000) | Err(_)));
        let mut stream = TcpStream::from(socket);
        stream.set_nonblocking(false).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        other.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}

#[test]
fn names_and_short_forms_of_addresses_are_understood() {
    let _turn = turn();
    let (_listener, address) = listen("127.0.0.1");
    // "localhost" may be ::1 first, where nobody listens.
    for host in ["localhost", "127.1"] {
        let connected = outcome(vec![place(host, address.port())], config()).unwrap();
        assert_eq!(connected.peer, address);
    }
    let scoped = resolve::numeric("fe80::1%lo").unwrap();
    assert!(matches!(scoped, SocketAddr::V6(v6) if v6.scope_id() != 0), "{scoped}");
    assert_eq!(resolve::numeric("localhost"), None);
}

#[test]
fn who_refuses_makes_way_for_the_next_place() {
    let _turn = turn();
    let (_dead, nobody) = dead();
    let (_listener, address) = listen("127.0.0.1");
    assert_eq!(outcome(vec![at(nobody), at(address)], config()).unwrap().peer, address);
    // The winner of last time goes first, and is alone.
    let preferring = DialConfig { preferred: Some(address), ..config() };
    assert_eq!(outcome(vec![at(nobody), at(address)], preferring).unwrap().peer, address);
}

#[test]
fn a_failure_names_every_attempt_and_its_reason() {
    let _turn = turn();
    let (_first, one) = dead();
    let (_second, two) = dead();
    let error = outcome(vec![at(one), at(two)], config()).unwrap_err();
    assert_eq!((error.kind, error.why()), (Failure::Refused, Why::Refused));
    let addresses: Vec<_> = error.attempts.iter().map(|attempt| (attempt.address, attempt.errno())).collect();
    assert_eq!(addresses, [(Some(one), Some(libc::ECONNREFUSED)), (Some(two), Some(libc::ECONNREFUSED))]);
    assert_eq!(
        error.to_string(),
        format!("no connection to {one}, {two}: {one}: Connection refused; {two}: Connection refused")
    );
    let error = outcome(vec![], config()).unwrap_err();
    assert_eq!(error.to_string(), "no connection: no address was given");
}

#[test]
fn what_never_leaves_the_machine_is_told_apart() {
    let _turn = turn();
    // The kernel refuses to connect to it: class E has no route (RFC 1112), nor has a link without its scope.
    for host in ["255.255.255.255", "fe80::1"] {
        let error = outcome(vec![place(host, 9)], config()).unwrap_err();
        assert_eq!(error.kind, Failure::Local, "{error}");
        assert!(matches!(error.why(), Why::Local { .. }), "{error}");
    }
    // Somebody else refused: he is to be spared.
    let (_dead, nobody) = dead();
    let error = outcome(vec![place("255.255.255.255", 9), at(nobody)], config()).unwrap_err();
    assert_eq!(error.kind, Failure::Refused, "{error}");
}

#[test]
fn names_that_no_one_can_have_are_refused_with_their_number() {
    let _turn = turn();
    let too_long = "a".repeat(64) + ".example";
    for host in ["a\0b", &too_long, ""] {
        let error = outcome(vec![place(host, 9)], config()).unwrap_err();
        let look_up = LookUpError::within(&error.attempts[0].error).unwrap();
        assert_eq!(look_up.code, libc::EAI_NONAME, "{error}");
        assert_eq!((error.kind, error.why()), (Failure::Name { is_permanent: true }, Why::Refused));
        assert_eq!((error.attempts[0].address, error.attempts[0].errno()), (None, None));
    }
    // Who is known is tried all the same.
    let (_listener, address) = listen("127.0.0.1");
    assert_eq!(outcome(vec![place(&too_long, 9), at(address)], config()).unwrap().peer, address);
}

#[test]
fn nobody_is_waited_for_longer_than_was_asked() {
    let _turn = turn();
    let (deaf, before) = (Deaf::new(), sockets());
    let (_dead, nobody) = dead();
    let error = outcome(vec![at(nobody), at(deaf.address)], short()).unwrap_err();
    assert!(matches!(error.why(), Why::Unanswered { took } if took >= Duration::from_millis(300)), "{error:?}");
    let of = |number: usize| (error.attempts[number].address, error.attempts[number].error.kind());
    assert_eq!(of(0), (Some(nobody), ErrorKind::ConnectionRefused));
    assert_eq!(of(1), (Some(deaf.address), ErrorKind::TimedOut));
    assert_eq!((error.kind, error.attempts[1].errno()), (Failure::Unanswered, None));
    assert_eq!(sockets(), before + 1, "the dead one's own is more, and nothing else");
}

#[test]
fn a_path_that_comes_back_is_used_by_the_attempt_that_is_under_way() {
    let _turn = turn();
    let deaf = Deaf::new();
    let before = sockets();
    let (_dial, outcome) = begin(vec![at(deaf.address)], config());
    // Both sockets that an address gets.
    wait_for(|| sockets() == before + 2);
    drop((deaf.queued, deaf.listener.accept(), deaf.listener.accept()));
    let connected = outcome.recv_timeout(patience()).unwrap().unwrap();
    assert_eq!(connected.peer, deaf.address);
    drop(connected);
}

#[test]
fn one_that_is_cancelled_is_never_heard_of_again() {
    let _turn = turn();
    let deaf = Deaf::new();
    let before = sockets();
    let (dial, outcome) = begin(vec![at(deaf.address)], short());
    wait_for(|| sockets() > before);
    assert!(dial.cancel());
    wait_for(|| sockets() == before);
    // Its time would have been up before the other's, that began later.
    let (_other, others) = begin(vec![at(deaf.address)], short());
    assert!(others.recv_timeout(patience()).unwrap().is_err());
    assert!(matches!(outcome.try_recv(), Err(mpsc::TryRecvError::Disconnected)), "its callback is gone");
    assert!(!dial.cancel());
    wait_for(|| Arc::strong_count(&dial) == 1);
    // Too late.
    let (_listener, address) = listen("127.0.0.1");
    let (dial, outcome) = begin(vec![at(address)], config());
    assert!(outcome.recv_timeout(patience()).unwrap().is_ok());
    assert!(!dial.cancel());
}

#[test]
fn many_that_dial_at_once_cost_no_thread() {
    let _turn = turn();
    let deaf = Deaf::new();
    let (_listener, address) = listen("127.0.0.1");
    outcome(vec![at(address)], config()).unwrap();
    // Each has two sockets, and 1024 are the usual limit.
    let (before, all) = (sockets(), 400);
    let counted = threads();
    let dials: Vec<_> = (0..all).map(|_| begin(vec![at(deaf.address)], config())).collect();
    wait_for(|| sockets() == before + 2 * all);
    assert_eq!(threads(), counted);
    for (dial, _) in &dials {
        assert!(dial.cancel());
    }
    wait_for(|| sockets() == before);
}

#[test]
fn what_is_called_may_dial_again_and_cancel_others() {
    fn dial_again(target: Arc<Target>, left: u32, told: mpsc::Sender<SocketAddr>) {
        let again = target.clone();
        let done = move |outcome: Outcome| match left.checked_sub(1) {
            Some(left) => dial_again(again, left, told),
            None => told.send(outcome.unwrap().peer).unwrap(),
        };
        dial(target, config(), Box::new(done)).unwrap();
    }
    let _turn = turn();
    let (_listener, address) = listen("127.0.0.1");
    let (told, last) = mpsc::channel();
    dial_again(Arc::new(Target { places: vec![at(address)] }), 20, told);
    assert_eq!(last.recv_timeout(patience()).unwrap(), address);
    let deaf = Deaf::new();
    let before = sockets();
    let (other, outcome) = begin(vec![at(deaf.address)], config());
    wait_for(|| sockets() > before);
    let (told, is_cancelled) = mpsc::channel();
    let done = Box::new(move |_| told.send(other.cancel()).unwrap());
    dial(Arc::new(Target { places: vec![] }), config(), done).unwrap();
    assert!(is_cancelled.recv_timeout(patience()).unwrap());
    assert!(outcome.recv().is_err());
    wait_for(|| sockets() == before);
}

/// What a client does whose server on this machine is dead: sooner or later the kernel gives it the server's own port.
#[test]
fn nobody_is_ever_connected_to_himself() {
    let _turn = turn();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap();
    socket.connect(&address).unwrap();
    let error = is_connected(socket.as_fd()).unwrap_err();
    assert!(error.get_ref().unwrap().is::<ToItself>(), "{error}");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    drop(socket);
    // Nothing of it lingers: a server gets the port at once, without SO_REUSEADDR.
    let server = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    server.bind(&address).unwrap();
    server.listen(1).unwrap();
    assert_eq!(outcome(vec![at(address.as_socket().unwrap())], config()).unwrap().peer, address.as_socket().unwrap());
}

fn retry_a_dead_port(times: u32, port: u16) -> u32 {
    let target = Arc::new(Target { places: vec![place("127.0.0.1", port)] });
    let mut to_itself = 0;
    for attempt in 0..times {
        let (told, outcome) = mpsc::channel();
        dial(target.clone(), config(), Box::new(move |outcome| told.send(outcome).unwrap())).unwrap();
        let error = outcome.recv_timeout(patience()).unwrap().expect_err("connected to itself");
        let is_to_itself = |error: &std::io::Error| error.get_ref().is_some_and(|error| error.is::<ToItself>());
        to_itself += u32::from(error.attempts.iter().any(|attempt| is_to_itself(&attempt.error)));
        assert_eq!(error.kind, Failure::Refused, "attempt {attempt}: {error}");
    }
    to_itself
}

/// All of the issue's: LONGCONN_TEST_DEAD_PORT_RETRIES=100000 cargo test --no-default-features --test dial himself -- --nocapture
#[test]
fn a_dead_port_is_retried_many_times_and_nobody_is_connected_to_himself() {
    let _turn = turn();
    let times = std::env::var("LONGCONN_TEST_DEAD_PORT_RETRIES").ok().and_then(|times| times.parse().ok());
    let times = times.unwrap_or(10_000);
    // A port that the kernel gives to clients: connect(2) takes those of one parity first, and bind(2) of the other.
    let port = dead().1.port() ^ 1;
    println!("{} of {times} attempts were connected to themselves, and refused", retry_a_dead_port(times, port));
}

#[test]
fn a_forked_child_has_no_part_in_its_parents_dials_and_begins_its_own() {
    let _turn = turn();
    let (_listener, address) = listen("127.0.0.1");
    let deaf = Deaf::new();
    let before = sockets();
    let (ours, outcomes) = begin(vec![at(deaf.address)], config());
    wait_for(|| sockets() == before + 2);
    fork::before();
    // SAFETY: the child calls what is made for it, and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fork::after_in_child();
            assert_eq!(sockets(), before);
            assert!(ours.cancel());
            drop(ours);
            assert_eq!(outcome(vec![place("localhost", address.port())], config()).unwrap().peer, address);
            assert_eq!(sockets(), before);
            assert!(fork::shut_down(Duration::from_secs(10)));
        }));
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    fork::after_in_parent();
    let mut status = -1;
    // SAFETY: waits for the child, whose status is written to an int.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child failed");
    assert_eq!(sockets(), before + 2);
    drop((deaf.queued, deaf.listener.accept(), deaf.listener.accept()));
    assert_eq!(outcomes.recv_timeout(patience()).unwrap().unwrap().peer, deaf.address);
}
