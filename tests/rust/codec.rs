//! Plain peers' framings: what goes out comes back however it is cut, and what can't be is refused by name.

#![allow(clippy::unwrap_used, reason = "tests")]

use longconn::proto::codec::{
    ByteOrder, Codec, CodecConfigError, DecodeError, EncodeError, Framing, HeartbeatBytes, LengthPrefix, LineEnd,
};
use proptest::prelude::*;

const fn prefixed(size: u8, byte_order: ByteOrder, counts_itself: bool) -> Framing {
    Framing::LengthPrefixed(LengthPrefix { size, byte_order, counts_itself })
}

fn codec(framing: Framing) -> Codec {
    Codec::new(framing, 1000, HeartbeatBytes::default()).unwrap()
}

fn encoded(framing: Framing, message: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    codec(framing).encode(message, &mut out).map(|()| out)
}

#[test]
fn each_framing_has_its_bytes() {
    assert_eq!(encoded(Framing::Raw, b"a\nb").unwrap(), b"a\nb");
    assert_eq!(encoded(Framing::Lines(LineEnd::Lf), b"PING").unwrap(), b"PING\n");
    assert_eq!(encoded(Framing::Lines(LineEnd::CrLf), b"PING").unwrap(), b"PING\r\n");
    assert_eq!(encoded(Framing::Lines(LineEnd::CrLf), b"PING\r\n").unwrap(), b"PING\r\n");
    assert_eq!(encoded(Framing::Lines(LineEnd::Lf), b"a\nb"), Err(EncodeError::LineEndInside { at: 1 }));
    assert_eq!(encoded(prefixed(4, ByteOrder::Big, false), b"abc").unwrap(), b"\0\0\0\x03abc");
    assert_eq!(encoded(prefixed(2, ByteOrder::Little, true), b"abc").unwrap(), b"\x05\0abc");
    let too_large = EncodeError::TooLarge { length: 256, largest: 255 };
    assert_eq!(encoded(prefixed(1, ByteOrder::Big, false), &[0; 256]), Err(too_large));
    let too_large = EncodeError::TooLarge { length: 1001, largest: 1000 };
    assert_eq!(encoded(Framing::Raw, &[0; 1001]), Err(too_large));
}

#[test]
fn a_raw_stream_is_read_in_pieces_of_at_most_what_was_asked_for() {
    let mut codec = codec(Framing::Raw);
    codec.handle_input(b"abcdef");
    assert_eq!(codec.read(4).unwrap(), Some(&b"abcd"[..]));
    assert_eq!(codec.read(4).unwrap(), Some(&b"ef"[..]));
    assert_eq!(codec.read(4).unwrap(), None);
}

#[test]
fn a_last_line_without_an_end_is_a_line_and_a_message_cut_short_is_an_error() {
    let mut lines = codec(Framing::Lines(LineEnd::Lf));
    lines.handle_input(b"one\r\ntw");
    assert_eq!(lines.read(0).unwrap(), Some(&b"one\r\n"[..]));
    assert_eq!(lines.read(0).unwrap(), None);
    lines.handle_end();
    assert_eq!(lines.read(0).unwrap(), Some(&b"tw"[..]));
    assert_eq!(lines.read(0).unwrap(), None);

    let mut codec = codec(prefixed(4, ByteOrder::Big, false));
    codec.handle_input(b"\0\0\0\x03a");
    assert_eq!(codec.read(0).unwrap(), None);
    codec.handle_end();
    assert_eq!(codec.read(0), Err(DecodeError::Cut { missing: 2 }));
}

#[test]
fn what_is_too_large_is_refused_before_it_is_there() {
    let largest = 1000;
    let mut line = codec(Framing::Lines(LineEnd::Lf));
    line.handle_input(&[b'x'; 1001]);
    assert_eq!(line.read(0), Err(DecodeError::TooLarge { length: 1001, largest }));
    let mut prefix = codec(prefixed(8, ByteOrder::Big, false));
    prefix.handle_input(&[0xFF; 8]);
    assert_eq!(prefix.read(0), Err(DecodeError::TooLarge { length: u64::MAX, largest }));
    let mut own = codec(prefixed(4, ByteOrder::Big, true));
    own.handle_input(&[0, 0, 0, 3]);
    assert_eq!(own.read(0), Err(DecodeError::LengthTooSmall { length: 3, size: 4 }));
}

#[test]
fn heartbeats_of_the_peer_are_swallowed_and_counted() {
    let heartbeat = HeartbeatBytes { send: b"PING".to_vec(), swallow: vec![b"+PONG".to_vec()] };
    let mut codec = Codec::new(Framing::Lines(LineEnd::CrLf), 1000, heartbeat.clone()).unwrap();
    let mut out = Vec::new();
    codec.encode_heartbeat(&mut out).unwrap();
    assert_eq!(out, b"PING\r\n");
    codec.handle_input(b"+PONG\r\n+OK\r\n+PONG\r\n+PONGS\r\n");
    assert_eq!(codec.read(0).unwrap(), Some(&b"+OK\r\n"[..]));
    assert_eq!(codec.read(0).unwrap(), Some(&b"+PONGS\r\n"[..]));
    assert_eq!(codec.heartbeats_heard(), 2);
    assert_eq!(Codec::new(Framing::Raw, 1000, heartbeat).unwrap_err(), CodecConfigError::SwallowRaw);
    let size = 9;
    let none = HeartbeatBytes::default();
    let refused = Codec::new(prefixed(size, ByteOrder::Big, false), 1000, none).unwrap_err();
    assert_eq!(refused, CodecConfigError::PrefixSize { size });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_out_comes_back_however_it_is_cut(
        framing in prop_oneof![
            Just(Framing::Lines(LineEnd::Lf)),
            (1..=8_u8, any::<bool>(), any::<bool>()).prop_map(|(size, is_big, counts_itself)| {
                prefixed(size, if is_big { ByteOrder::Big } else { ByteOrder::Little }, counts_itself)
            }),
        ],
        texts in prop::collection::vec("[a-z]{0,200}", 0..20),
        chunk in 1..100_usize,
    ) {
        let mut codec = codec(framing);
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for text in texts {
            let line = if matches!(framing, Framing::Lines(_)) { format!("{text}\n") } else { text };
            codec.encode(line.as_bytes(), &mut stream).unwrap();
            expected.push(line.into_bytes());
        }
        let mut got = Vec::new();
        for chunk in stream.chunks(chunk) {
            codec.handle_input(chunk);
            while let Some(message) = codec.read(0).unwrap() {
                got.push(message.to_vec());
            }
        }
        prop_assert_eq!(got, expected);
        prop_assert_eq!(codec.buffered_bytes(), 0);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        size in 1..=8_u8,
        counts_itself in any::<bool>(),
        input in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        for framing in [prefixed(size, ByteOrder::Big, counts_itself), Framing::Lines(LineEnd::Lf), Framing::Raw] {
            let mut codec = codec(framing);
            codec.handle_input(&input);
            codec.handle_end();
            while let Ok(Some(_)) = codec.read(7) {}
        }
    }
}
