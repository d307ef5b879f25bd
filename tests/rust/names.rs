//! Names that are found, hang, or are unknown, by a server for names of our own: each test is run again in a network and a view of
//! the files of its own. Root only; others are told that nothing was tried.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use longconn::engine::dial::{DialConfig, dial};
use longconn::engine::{clock, fork};
use longconn::net::dial::{Failure, Target};
use longconn::net::resolve::LookUpError;
use longconn::proto::backoff::Why;

mod dialling;
use dialling::{at, begin, config, outcome, place, sockets, turn, wait_for};

const INSIDE: &str = "LONGCONN_TEST_IN_NAMESPACE";
/// glibc asks once, and waits longer than any test: what hangs, hangs.
const SETTING: &str = "
    mount -t tmpfs none /mnt && cd /mnt &&
    echo 'nameserver 127.0.0.1' >resolv.conf && echo 'options timeout:30 attempts:1' >>resolv.conf &&
    echo 'hosts: files dns' >nsswitch.conf &&
    mount --bind resolv.conf /etc/resolv.conf && mount --bind nsswitch.conf /etc/nsswitch.conf &&
    ip link set lo up && exec \"$@\"";

/// True inside; outside the test of this name is run inside, and has passed.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let may_unshare = Command::new("unshare").args(["--net", "--mount", "true"]).output();
    if !may_unshare.is_ok_and(|ran| ran.status.success()) {
        eprintln!("{test}: not tried, it needs root and unshare(1)");
        return false;
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-c", SETTING, "sh"]).arg(std::env::current_exe().unwrap());
    let ran = command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    false
}

/// Answers by the name: `here` is 127.0.0.1, `both` is ::1 as well, `gone` is unknown, `broken` is the server's own failure, `late`
/// is `here` once the test says so, and nothing else is answered.
struct Server {
    address: SocketAddr,
    /// For how many look-ups of each name it was asked: for the A record.
    asked: Arc<Mutex<HashMap<String, usize>>>,
}

const RELEASE: &[u8] = b"release";

impl Server {
    fn begin() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        let address = socket.local_addr().unwrap();
        let asked: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let counts = asked.clone();
        thread::spawn(move || {
            let (mut room, mut withheld, mut is_released) = ([0; 1500], Vec::new(), false);
            loop {
                let (length, from) = socket.recv_from(&mut room).unwrap();
                if &room[..length] == RELEASE {
                    is_released = true;
                    for (reply, to) in withheld.drain(..) {
                        let reply: Vec<u8> = reply;
                        socket.send_to(&reply, to).unwrap();
                    }
                    continue;
                }
                let query = &room[..length];
                let (name, is_a) = question(query);
                if is_a {
                    *counts.lock().unwrap().entry(name.clone()).or_default() += 1;
                }
                let Some(reply) = answer(query, &name, is_a) else { continue };
                if name == "late.example" && !is_released {
                    withheld.push((reply, from));
                } else {
                    socket.send_to(&reply, from).unwrap();
                }
            }
        });
        Self { address, asked }
    }

    fn release(&self) {
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(RELEASE, self.address).unwrap();
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

/// The name in a query, and whether it is for an A record (RFC 1035, section 4.1.2).
fn question(query: &[u8]) -> (String, bool) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).to_lowercase());
        at += 1 + length;
    }
    (labels.join("."), query[at + 2] == 1)
}

fn answer(query: &[u8], name: &str, is_a: bool) -> Option<Vec<u8>> {
    let (code, record): (u8, Option<Vec<u8>>) = match name.strip_suffix(".example")? {
        "here" | "late" => (0, is_a.then(|| vec![127, 0, 0, 1])),
        "both" if is_a => (0, Some(vec![127, 0, 0, 1])),
        "both" => (0, Some([vec![0; 15], vec![1]].concat())),
        "broken" => (2, None),
        "gone" => (3, None),
        _ => return None,
    };
    let end = 12 + query[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
    let mut reply = query[..end].to_vec();
    reply[2..4].copy_from_slice(&[0x81, 0x80 | code]);
    reply[4..12].copy_from_slice(&[0, 1, 0, u8::from(record.is_some()), 0, 0, 0, 0]);
    if let Some(record) = record {
        let (kind, length) = if is_a { (1, 4) } else { (28, 16) };
        reply.extend_from_slice(&[0xC0, 12, 0, kind, 0, 1, 0, 0, 0, 0, 0, length]);
        reply.extend_from_slice(&record);
    }
    Some(reply)
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// What /proc says of each thread that looks names up.
fn resolvers() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
    statuses.filter(|status| status.starts_with("Name:\tlongconn-names")).collect()
}

#[test]
fn answers_become_addresses_or_errors_with_their_number() {
    if !is_inside("answers_become_addresses_or_errors_with_their_number") {
        return;
    }
    let _turn = turn();
    let server = Server::begin();
    let (listener, address) = listen();
    let dial = |host: &str| outcome(vec![place(host, address.port())], config());
    assert_eq!(dial("here.example").unwrap().peer, address);
    // Anew each time.
    assert_eq!(dial("here.example").unwrap().peer, address);
    assert_eq!(server.asked("here.example"), 2);
    // Nobody listens on ::1.
    assert_eq!(dial("both.example").unwrap().peer, address);
    for (host, code, is_permanent) in
        [("gone.example", libc::EAI_NONAME, true), ("broken.example", libc::EAI_AGAIN, false)]
    {
        let error = dial(host).unwrap_err();
        assert_eq!(LookUpError::within(&error.attempts[0].error).unwrap().code, code, "{error}");
        let why = if is_permanent { Why::Refused } else { Why::Local { took: error.took } };
        assert_eq!((error.kind, error.why()), (Failure::Name { is_permanent }, why));
    }
    // Who won last is tried in the place of a name that can't be looked up for now, not of one that is gone.
    let preferring = DialConfig { preferred: Some(address), ..config() };
    let dial = |host: &str| outcome(vec![place(host, address.port())], preferring.clone());
    assert_eq!(dial("broken.example").unwrap().peer, address);
    assert!(dial("gone.example").is_err());
    drop(listener);
    let error = dial("both.example").unwrap_err();
    assert_eq!((error.kind, error.attempts.len()), (Failure::Refused, 2), "{error}");
    wait_for(|| resolvers().is_empty());
}

#[test]
#[cfg_attr(longconn_portable, ignore = "glibc is not told to begin anew (`begin_names_anew`)")]
fn names_that_hang_keep_nobody_else_from_anything() {
    if !is_inside("names_that_hang_keep_nobody_else_from_anything") {
        return;
    }
    let _turn = turn();
    let _server = Server::begin();
    let (_listener, address) = listen();
    let hanging = |number: usize| place(&format!("hang-{number}.example"), address.port());
    // Another place is there, or the winner of last time.
    assert_eq!(outcome(vec![hanging(0), at(address)], config()).unwrap().peer, address);
    let preferring = DialConfig { preferred: Some(address), ..config() };
    assert_eq!(outcome(vec![hanging(0)], preferring).unwrap().peer, address);
    let short = DialConfig { timeout: Some(Duration::from_millis(200)), ..config() };
    let error = outcome(vec![hanging(0)], short).unwrap_err();
    assert_eq!(
        (error.kind, error.why()),
        (Failure::Name { is_permanent: false }, Why::Local { took: error.took }),
        "{error}"
    );
    // Never more than eight, which block all signals: all but SIGKILL and SIGSTOP, and the two that glibc keeps for itself.
    let dials: Vec<_> = (1..=20).map(|number| begin(vec![hanging(number)], config())).collect();
    let all = format!("SigBlk:\t{:016x}", !(1_u64 << 8 | 1 << 18 | 1 << 31 | 1 << 32));
    // A thread gives itself its name first.
    wait_for(|| resolvers().iter().filter(|status| status.contains(&all)).count() == 8);
    assert_eq!(outcome(vec![at(address)], config()).unwrap().peer, address);
    // Nor do they keep the process from forking; the child has eight of its own, and ends while they hang.
    assert_eq!(resolvers().len(), 8);
    fork::before();
    // SAFETY: the child calls what is made for it, and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fork::after_in_child();
            assert_eq!(resolvers().len(), 0);
            assert_eq!(outcome(vec![place("here.example", address.port())], config()).unwrap().peer, address);
            let before = sockets();
            let _dial = begin(vec![hanging(0)], config());
            // It has begun to ask.
            wait_for(|| sockets() > before);
            assert!(fork::shut_down(Duration::from_secs(10)));
            // One that has its answer ends in its own time.
            wait_for(|| resolvers().len() == 1);
        }));
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    fork::after_in_parent();
    let mut status = -1;
    // SAFETY: waits for the child, whose status is written to an int.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child failed");
    for (dial, outcome) in dials {
        assert!(dial.cancel());
        assert!(outcome.recv().is_err());
    }
}

#[test]
fn who_wants_a_name_that_waits_for_its_turn_shares_the_answer() {
    if !is_inside("who_wants_a_name_that_waits_for_its_turn_shares_the_answer") {
        return;
    }
    let _turn = turn();
    let server = Server::begin();
    let (_listener, address) = listen();
    let late = || begin(vec![place("late.example", address.port())], config());
    // A look-up that has begun isn't shared: it may hang.
    let mut dials = Vec::new();
    for begun in 1..=8 {
        dials.push(late());
        wait_for(|| server.asked("late.example") == begun);
    }
    dials.extend((0..92).map(|_| late()));
    // Nobody is looked for in vain.
    let (cancelled, _) = begin(vec![place("unwanted.example", 1)], config());
    assert!(cancelled.cancel());
    server.release();
    for (_, outcome) in dials.drain(..) {
        assert_eq!(outcome.recv().unwrap().unwrap().peer, address);
    }
    // One for all the others.
    assert_eq!(server.asked("late.example"), 9);
    assert_eq!(server.asked("unwanted.example"), 0);
}

/// The engine's thread may be kept from its work until the time is up: what has come about meanwhile counts.
#[test]
fn who_is_connected_when_a_late_engine_looks_has_won() {
    if !is_inside("who_is_connected_when_a_late_engine_looks_has_won") {
        return;
    }
    let _turn = turn();
    let server = Server::begin();
    let (listener, address) = listen();
    // A dial without places is over at once, and what it calls keeps the engine until it is told to go on.
    let keep = || {
        let (begins, has_begun) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let done = Box::new(move |_| {
            begins.send(()).unwrap();
            goes_on.recv().unwrap();
        });
        (dial(Arc::new(Target { places: vec![] }), config(), done).unwrap(), has_begun, go_on)
    };
    let (_first, has_begun, first_goes_on) = keep();
    has_begun.recv().unwrap();
    let timeout = Duration::from_millis(300);
    let (_dial, outcome) =
        begin(vec![at(address), place("late.example", 9)], DialConfig { timeout: Some(timeout), ..config() });
    let ends = clock::now() + timeout;
    let (_second, has_begun, second_goes_on) = keep();
    first_goes_on.send(()).unwrap();
    // It has begun to connect, and is kept again.
    has_begun.recv().unwrap();
    listener.accept().unwrap();
    // Word that a name was found comes before the news of sockets.
    wait_for(|| server.asked("late.example") == 1);
    server.release();
    wait_for(|| resolvers().is_empty() && clock::now() > ends);
    second_goes_on.send(()).unwrap();
    assert_eq!(outcome.recv().unwrap().unwrap().peer, address);
}
