//! Whatever comes to either side of a TLS connection, in whatever pieces: bytes of anybody's, or a real conversation that is flipped,
//! cut, replayed or sent back to who said it. Nothing panics, no call goes on for ever, what is held is bounded, and what a side
//! hears is the beginning of what the other has said.
//!
//! Keys are new each time, so what is found may need several runs to be found again.
//!
//! `cargo fuzz run -O -s none tls` works on the stable toolchain; without `-O` an assertion of rustls's is in the way (Cargo.toml).

#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicIsize, Ordering};

use libfuzzer_sys::fuzz_target;
use longconn::net::tls::{ClientTls, Files, Pem, ServerTls, Tls};

/// What Rust has allocated; libFuzzer's own isn't Rust's.
struct Counting;
static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

// SAFETY: the system's allocator does it all, and is told what it asked to be told.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as our caller has promised us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: likewise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Given to a side at once: as much as the engine reads.
const CHUNK: usize = 64 * 1024;
/// What two sides may hold together, besides ciphertext that waits to be sent: a record each that hasn't come in whole, messages of
/// the handshake, keys, certificates, tickets, and the thread's room for what it decrypts and encrypts.
const HELD_BYTES: isize = 1 << 20;
const MOST_OPERATIONS: usize = 200;

static CLIENT: LazyLock<ClientTls> = LazyLock::new(|| {
    let ca = Some(Pem::Text(include_bytes!("../../tests/rust/tls/ca.pem").to_vec()));
    ClientTls::new(&Files { ca, ..Files::default() }).expect("a CA")
});
static SERVER: LazyLock<ServerTls> = LazyLock::new(|| {
    let certificate = Some(Pem::Text(include_bytes!("../../tests/rust/tls/server.pem").to_vec()));
    ServerTls::new(&Files { certificate, ..Files::default() }).expect("a certificate and its key")
});

struct Side {
    tls: Tls,
    /// On its way to the other.
    wire: Vec<u8>,
    /// All that was ever on its way.
    said: Vec<u8>,
    /// Plaintext, of its own and of the other's.
    sealed: Vec<u8>,
    heard: Vec<u8>,
    has_failed: bool,
}

impl Side {
    fn new(tls: Tls) -> Self {
        Self { tls, wire: Vec::new(), said: Vec::new(), sealed: Vec::new(), heard: Vec::new(), has_failed: false }
    }

    fn speak(&mut self) {
        let bytes = self.tls.outgoing().to_vec();
        self.tls.on_sent(bytes.len());
        self.wire.extend_from_slice(&bytes);
        self.said.extend_from_slice(&bytes);
    }

    fn hear(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(CHUNK) {
            let (before, heard) = (self.heard.len(), &mut self.heard);
            let outcome = self.tls.handle_input(piece, |plain| heard.extend_from_slice(plain));
            if self.has_failed {
                assert_eq!((outcome.is_ok(), self.heard.len()), (true, before), "it is over, and takes nothing in");
            }
            self.has_failed |= outcome.is_err();
        }
    }

    fn seal(&mut self, length: usize) {
        if self.tls.is_established() {
            let message: Vec<_> = (0..length).map(|at| (self.sealed.len() + at) as u8).collect();
            let (taken, _) = self.tls.seal([&message, b"", b""], true, |_| Ok::<_, ()>(0));
            self.sealed.extend_from_slice(&message[..taken]);
        }
    }
}

/// As much of one's words as there is, to the other, in pieces of such a size.
fn carry(sides: &mut [Side; 2], from: usize, most: usize, piece: usize) {
    sides[from].speak();
    let most = most.min(sides[from].wire.len());
    let bytes: Vec<_> = sides[from].wire.drain(..most).collect();
    bytes.chunks(piece.max(1)).for_each(|piece| sides[1 - from].hear(piece));
}

fn run(sides: &mut [Side; 2], mut script: &[u8]) {
    for _ in 0..MOST_OPERATIONS {
        let [operation, argument, rest @ ..] = script else { break };
        script = rest;
        let (index, argument) = (usize::from(operation & 1), usize::from(*argument));
        match operation >> 1 {
            0..24 => {
                for _ in 0..argument % 8 {
                    carry(sides, index, usize::MAX, usize::MAX);
                    carry(sides, 1 - index, usize::MAX, usize::MAX);
                }
            }
            24..40 => carry(sides, index, argument * 4, 1 + argument % 50),
            40..64 => sides[index].seal(argument * 300),
            64..76 => sides[index].speak(),
            76..88 => {
                let wire = &mut sides[index].wire;
                if let Some(byte) = wire.len().checked_sub(1).and_then(|last| wire.get_mut((argument * 7).min(last))) {
                    *byte ^= 1 << (argument % 8);
                }
            }
            88..96 => {
                let wire = &mut sides[index].wire;
                let start = (argument * 5).min(wire.len());
                let end = (start + argument).min(wire.len());
                wire.drain(start..end);
            }
            96..104 => {
                // Its own, or the other's.
                let said = &sides[if argument & 1 == 0 { index } else { 1 - index }].said;
                let start = (argument * 11).min(said.len());
                let again = said[start..said.len().min(start + 4096)].to_vec();
                sides[index].wire.extend_from_slice(&again);
            }
            104..116 => {
                let (now, later) = script.split_at(argument.min(script.len()));
                script = later;
                sides[index].wire.extend_from_slice(now);
            }
            116..122 => sides[index].tls.end(),
            _ => sides[index].hear(&[]),
        }
        for [one, other] in [[0, 1], [1, 0]] {
            assert!(sides[one].sealed.starts_with(&sides[other].heard), "something was heard that nobody has said");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let (client, server) = (&*CLIENT, &*SERVER);
    let before = ALLOCATED.load(Ordering::Relaxed);
    let client = Side::new(Tls::client(client, "server.example").expect("a name"));
    let mut sides = [client, Side::new(Tls::server(server).expect("a server"))];
    run(&mut sides, data);
    sides.iter_mut().for_each(Side::speak);
    // Of what both sides have in hand now, all the rest is ours.
    let tls = sides.map(|side| side.tls);
    let held = ALLOCATED.load(Ordering::Relaxed) - before;
    assert!(held < HELD_BYTES, "{held} bytes are held");
    drop(tls);
});
