//! TLS without a network: two of them hand each other bytes, in whatever pieces, and what has arrived is told from the wire's counts.
//!
//! The certificates (tests/rust/tls) are of a CA that nobody trusts, and valid for a thousand years.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests unwrap as the tests do")]

mod usage;

use std::io::{Read, Write};
use std::sync::Arc;

use longconn::net::tls::{ClientTls, Files, Ledger, Pem, SEALED_BYTES, ServerTls, Tls};
use proptest::prelude::*;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use usage::memory_bytes;

const CA: &[u8] = include_bytes!("tls/ca.pem");
const SERVER: &[u8] = include_bytes!("tls/server.pem");

fn server() -> Tls {
    let files = Files { certificate: Some(Pem::Text(SERVER.to_vec())), ..Files::default() };
    Tls::server(&ServerTls::new(&files).unwrap()).unwrap()
}

fn client() -> Tls {
    let files = Files { ca: Some(Pem::Text(CA.to_vec())), ..Files::default() };
    Tls::client(&ClientTls::new(&files).unwrap(), "server.example").unwrap()
}

/// What `from` has to say goes to `to`, in pieces of these sizes, over and over; what that heard.
fn carry(from: &mut Tls, to: &mut Tls, pieces: &[usize]) -> Vec<u8> {
    let bytes = from.outgoing().to_vec();
    from.on_sent(bytes.len());
    let (mut rest, mut heard) = (&bytes[..], Vec::new());
    for piece in pieces.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*piece).min(rest.len()));
        to.handle_input(now, |plain| heard.extend_from_slice(plain)).unwrap();
        rest = later;
    }
    heard
}

fn shaken(pieces: &[usize]) -> (Tls, Tls) {
    let (mut client, mut server) = (client(), server());
    while !(client.is_established() && server.is_established() && server.outgoing().is_empty()) {
        assert!(!(client.outgoing().is_empty() && server.outgoing().is_empty()), "nobody has anything to say");
        carry(&mut client, &mut server, pieces);
        carry(&mut server, &mut client, pieces);
    }
    (client, server)
}

/// As where the kernel takes nothing: all is left.
fn seal(tls: &mut Tls, parts: [&[u8]; 3]) -> usize {
    tls.seal(parts, true, |_| Ok::<_, ()>(0)).0
}

/// The lengths of the records in it (RFC 8446, section 5.1).
fn records(mut bytes: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        lengths.push(length);
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty());
    lengths
}

#[test]
fn small_parts_share_a_record() {
    let (mut client, mut server) = shaken(&[usize::MAX]);
    let messages = vec![7; 240 * 68];
    assert_eq!(seal(&mut client, [b"rest of a frame", b"a beat", &messages]), 15 + 6 + messages.len());
    assert_eq!(records(client.outgoing()).len(), 1);
    assert_eq!(carry(&mut client, &mut server, &[usize::MAX]).len(), 15 + 6 + messages.len());
}

#[test]
fn no_more_is_encrypted_at_once_than_a_beat_may_wait_for() {
    let (mut client, _) = shaken(&[usize::MAX]);
    assert_eq!(seal(&mut client, [b"first", b"", &vec![0; 1 << 20]]), SEALED_BYTES);
    assert!(client.outgoing().len() < SEALED_BYTES + 1024);
}

#[test]
fn an_end_is_told_from_a_cut() {
    let (mut client, mut server) = shaken(&[usize::MAX]);
    assert!(!server.has_peer_ended());
    client.end();
    client.end();
    assert_eq!(records(client.outgoing()).len(), 1);
    carry(&mut client, &mut server, &[usize::MAX]);
    assert!(server.has_peer_ended());
    // The other way is open yet.
    assert_eq!(seal(&mut server, [b"more", b"", b""]), 4);
    assert_eq!(carry(&mut server, &mut client, &[usize::MAX]), b"more");
}

#[test]
fn what_follows_an_end_is_not_kept() {
    const FOLLOWS: usize = 32 << 20;
    let (mut client, mut server) = shaken(&[usize::MAX]);
    client.end();
    carry(&mut client, &mut server, &[usize::MAX]);
    let (bytes, before) = (vec![23; 64 * 1024], memory_bytes());
    for _ in 0..FOLLOWS / bytes.len() {
        server.handle_input(&bytes, |_| panic!("nothing is heard")).unwrap();
    }
    let grown = memory_bytes().saturating_sub(before);
    assert!(grown < FOLLOWS / 4, "{grown} bytes are kept");
}

#[test]
fn what_was_changed_on_the_way_ends_it_and_says_so() {
    let (mut client, mut server) = shaken(&[usize::MAX]);
    seal(&mut client, [b"a message", b"", b""]);
    let mut bytes = client.outgoing().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let error = server.handle_input(&bytes, |_| panic!("nothing is heard")).unwrap_err();
    assert!(error.to_string().contains("was changed on the way"), "{error}");
    assert_eq!(records(server.outgoing()).len(), 1, "an alert");
}

#[test]
fn new_keys_are_followed() {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CA).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client =
        rustls::ClientConnection::new(Arc::new(config), ServerName::try_from("server.example").unwrap()).unwrap();
    let mut server = server();
    let exchange = |client: &mut rustls::ClientConnection, server: &mut Tls| {
        let (mut bytes, mut heard) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        server.handle_input(&bytes, |plain| heard.extend_from_slice(plain)).unwrap();
        let mut answer = server.outgoing();
        while !answer.is_empty() {
            client.read_tls(&mut answer).unwrap();
            client.process_new_packets().unwrap();
        }
        let length = server.outgoing().len();
        server.on_sent(length);
        heard
    };
    while client.is_handshaking() || !server.is_established() {
        exchange(&mut client, &mut server);
    }
    for _ in 0..3 {
        client.refresh_traffic_keys().unwrap();
        client.writer().write_all(b"by new keys").unwrap();
        assert_eq!(exchange(&mut client, &mut server), b"by new keys");
        // With an answer by new keys of our own.
        assert_eq!(seal(&mut server, [b"as are these", b"", b""]), 12);
        exchange(&mut client, &mut server);
        let mut heard = [0; 12];
        client.reader().read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"as are these");
    }
}

proptest! {
    /// Pieces don't matter, in the handshake or after.
    #[test]
    fn however_it_is_cut_the_same_is_heard(
        pieces in prop::collection::vec(1usize..2000, 1..20),
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40_000), 1..8),
    ) {
        let (mut client, mut server) = shaken(&pieces);
        for message in &messages {
            prop_assert_eq!(seal(&mut client, [message, b"", b""]), message.len());
            prop_assert_eq!(&carry(&mut client, &mut server, &pieces), message);
            prop_assert_eq!(seal(&mut server, [b"", message, b""]), message.len());
            prop_assert_eq!(&carry(&mut server, &mut client, &pieces), message);
        }
    }

    /// Whatever is said is an error, or waits for more.
    #[test]
    fn nobody_breaks_it(
        start in 0usize..4,
        said in prop::collection::vec(any::<u8>(), 0..600),
        pieces in prop::collection::vec(1usize..200, 1..5),
    ) {
        // As TLS begins, so that more than the first byte is looked at.
        let heads: [&[u8]; 4] = [&[], &[22, 3, 1], &[22, 3, 3, 0, 40, 2, 0, 0, 36, 3, 3], &[21, 3, 3, 0, 2]];
        let bytes = [heads[start], &said].concat();
        for mut tls in [client(), server()] {
            let mut rest = &bytes[..];
            for piece in pieces.iter().cycle() {
                let (now, later) = rest.split_at((*piece).min(rest.len()));
                if rest.is_empty() || tls.handle_input(now, |_| {}).is_err() {
                    break;
                }
                rest = later;
            }
            prop_assert!(!tls.is_established());
        }
    }

    /// It says nothing to have arrived that hasn't, goes forward only, and knows when all has.
    #[test]
    fn what_has_arrived_is_told_from_the_wires_count(
        batches in prop::collection::vec((0usize..300, 0usize..70_000), 1..200),
        looks in prop::collection::vec(0.0f64..1.2, 1..50),
    ) {
        let mut ledger = Ledger::default();
        let (mut wire, mut plain, mut ends, mut last) = (0u64, 0u64, vec![(0u64, 0u64)], 0);
        let mut looks = looks.into_iter().cycle();
        for (overhead, bytes) in batches {
            ledger.on_overhead(overhead);
            ledger.on_sealed(bytes + 22, bytes);
            wire += (overhead + bytes + 22) as u64;
            plain += bytes as u64;
            ends.push((wire, plain));
            let acked = (wire as f64 * looks.next().unwrap_or(0.0)) as u64;
            let truth = ends.iter().rev().find(|(end, _)| *end <= acked).map_or(0, |(_, plain)| *plain);
            let told = ledger.arrived(acked);
            prop_assert!(told >= last);
            prop_assert!(told <= truth.max(last));
            last = told;
        }
        prop_assert_eq!(ledger.arrived(wire), plain);
    }
}
