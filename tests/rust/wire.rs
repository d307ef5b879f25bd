//! Bytes: what is encoded is decoded, any split gives the same frames, and nothing that comes breaks anything.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests; any instant will do as an origin")]

mod pair;

use std::time::{Duration, Instant};

use longconn::proto::cause::{Cause, Ending};
use longconn::proto::close::{Close, CloseCode};
use longconn::proto::connection::{Beginning, Connection, Event, Introduction, IntroductionError};
use longconn::proto::frame::{Decoder, FrameError, Kind, MAX_PAYLOAD_BYTES, PREAMBLE};
use longconn::proto::handshake::{Credentials, HandshakeError, Hello, Position, Resumption, Rhythm, VERSION, Welcome};
use longconn::proto::heartbeat::Beat;
use longconn::proto::session::wire_bytes;
use pair::{CREDENTIALS, Pair, config, ms};
use proptest::prelude::*;

/// Kind and payload of every frame.
fn decode(first: Kind, chunks: &[&[u8]]) -> Result<Vec<(Kind, Vec<u8>)>, FrameError> {
    let mut decoder = Decoder::new(first);
    let mut frames = Vec::new();
    for chunk in chunks {
        let mut input = *chunk;
        if !decoder.preamble(&mut input)? {
            continue;
        }
        while let Some(frame) = decoder.next(&mut input)? {
            frames.push((frame.kind, frame.payload().to_vec()));
        }
    }
    Ok(frames)
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[length[1], length[2], length[3], kind], payload].concat()
}

fn rhythm() -> impl Strategy<Value = Rhythm> {
    let day = 24 * 3600 * 1000_u64;
    (1..=day, 1..=day, prop::option::of(1..=day)).prop_map(|(want, floor, limit)| Rhythm {
        want: ms(want),
        floor: ms(floor),
        limit: limit.map(ms),
    })
}

fn position() -> impl Strategy<Value = Position> {
    (0..u64::MAX / 4, 0..u64::MAX / 4, 65_536..u64::MAX / 4).prop_map(|(taken, more, window)| Position {
        received: taken + more,
        taken,
        window,
    })
}

prop_compose! {
    fn credentials()(id in any::<[u8; 16]>(), secret in any::<[u8; 32]>()) -> Credentials {
        Credentials { id, secret }
    }
}

prop_compose! {
    fn hello()(
        rhythm in rhythm(),
        stated in position(),
        largest_message in any::<u64>(),
        will_resume in any::<bool>(),
        sets_pace in any::<bool>(),
        client_id in "\\PC{0,60}",
        token in prop::collection::vec(any::<u8>(), 0..3072),
        session in prop::option::of((credentials(), any::<u64>())),
    ) -> Hello {
        let session = session.map(|(credentials, epoch)| Resumption { credentials, epoch });
        let position = if session.is_some() { stated } else { Position::start(stated.window) };
        Hello {
            least_version: 1,
            greatest_version: 3,
            rhythm,
            position,
            largest_message,
            will_resume,
            sets_pace,
            client_id,
            token,
            session,
        }
    }
}

prop_compose! {
    fn welcome()(
        rhythm in rhythm(),
        stated in position(),
        largest_message in any::<u64>(),
        credentials in credentials(),
        resumed in any::<bool>(),
        follows in any::<bool>(),
        retention in any::<u32>(),
    ) -> Welcome {
        let position = if resumed { stated } else { Position::start(stated.window) };
        let retention = ms(retention.into());
        Welcome { version: VERSION, rhythm, position, largest_message, credentials, resumed, follows, retention }
    }
}

/// A payload and the kind that it belongs to.
fn some_frame() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let payload = || prop::collection::vec(any::<u8>(), 0..300);
    prop_oneof![(3_u8..=8, payload()), (0x80_u8..=0xFF, payload())]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_hello_decodes_to_what_was_encoded(hello in hello()) {
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        prop_assert_eq!(Hello::decode(&bytes[4..]).unwrap(), hello);
    }

    #[test]
    fn a_welcome_decodes_to_what_was_encoded(welcome in welcome()) {
        let mut bytes = Vec::new();
        welcome.encode(&mut bytes);
        prop_assert_eq!(Welcome::decode(&bytes[4..]).unwrap(), welcome);
    }

    #[test]
    fn a_close_decodes_to_what_was_encoded(
        code in any::<u16>(),
        ends_session in any::<bool>(),
        taken in any::<u64>(),
        retry_after in any::<u32>(),
        address in "\\PC{0,60}",
        reason in "\\PC{0,200}",
    ) {
        let retry_after = ms(retry_after.into());
        let close = Close { code: CloseCode(code), ends_session, taken, retry_after, address, reason };
        let mut bytes = Vec::new();
        close.encode(&mut bytes);
        prop_assert_eq!(Close::decode(&bytes[4..]).unwrap(), close);
    }

    #[test]
    fn a_beat_decodes_to_what_was_encoded(
        flags in any::<(bool, bool)>(),
        times in (1..=u64::MAX, any::<u64>(), any::<u64>()),
        ages in prop::option::of(0..u64::from(u32::MAX)),
        status in prop::collection::vec(any::<u8>(), 0..1024),
    ) {
        let beat = Beat {
            answer: flags.0,
            extra: flags.1,
            sent_at: times.0,
            echo: times.1,
            held: times.2,
            interpreter_age: ages.map(ms),
            application_age: None,
            status: &status,
        };
        let mut bytes = Vec::new();
        beat.encode(&mut bytes);
        prop_assert_eq!(Beat::decode(&bytes[4..]).unwrap(), beat);
    }

    #[test]
    fn any_split_of_the_stream_gives_the_same_frames(
        frames in prop::collection::vec(some_frame(), 0..20),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut stream = [&PREAMBLE[..], &frame(1, b"hello")].concat();
        let mut expected = vec![(Kind::Hello, b"hello".to_vec())];
        for (number, payload) in frames {
            stream.extend(frame(number, &payload));
            expected.extend(Kind::from_wire(number).map(|kind| (kind, payload)));
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.push(0);
        cuts.push(stream.len());
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
        prop_assert_eq!(decode(Kind::Hello, &chunks).unwrap(), expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_after_an_end_nothing_more_is_said(
        as_client in any::<bool>(),
        opens in 0..3_u8,
        pieces in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..100),
                (0_u8..12, prop::collection::vec(any::<u8>(), 0..100)).prop_map(|(kind, payload)| frame(kind, &payload)),
                (prop::collection::vec(0..3_u8, 0..40)).prop_map(|payload| frame(6, &payload)),
            ],
            0..20,
        ),
    ) {
        let mut pair = Pair::new(config(ms(1000)), config(ms(1000)));
        let index = usize::from(!as_client);
        if opens == 2 {
            pair.run(ms(100));
        }
        let connection = &mut pair.sides[index].connection;
        if opens == 1 {
            connection.handle_input(pair.now, &PREAMBLE);
        }
        for piece in pieces {
            connection.handle_input(pair.now, &piece);
            connection.handle_timeout(pair.now);
        }
        pair.turn(index);
        let ends = pair.sides[index].events.iter().filter(|(_, event)| matches!(event, Event::Ended(_))).count();
        prop_assert!(ends <= 1);
        if ends == 1 {
            prop_assert!(pair.sides[index].connection.poll_transmit(pair.now).is_empty());
        }
    }
}

// ---- strangers ------------------------------------------------------------------------------------------------

/// What a fresh client and a fresh server make of `said`.
fn meets(said: &[u8]) -> [(Ending, Vec<u8>); 2] {
    let now = Instant::now();
    let mut client = Connection::client(now, config(ms(1000)).into(), 7, Introduction::default()).unwrap();
    let greeting = client.poll_transmit(now).first.len();
    client.transmitted(now, greeting);
    [client, Connection::server(now, config(ms(1000)).into(), 7)].map(|mut connection| {
        connection.handle_input(now, said);
        let transmit = connection.poll_transmit(now);
        let answer = [transmit.first, transmit.control, transmit.data].concat();
        let Some(Event::Ended(ending)) = connection.poll_event() else { panic!("{said:?} was borne") };
        (*ending, answer)
    })
}

#[test]
fn http_and_tls_are_shown_as_what_they_said_and_get_no_answer() {
    for (said, shown) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "not a longconn peer: it said b'HTTP/1.1 400"),
        (b"\x16\x03\x01\x02\x00\x01", "it said b'\\x16\\x03\\x01\\x02\\x00\\x01'"),
        (b"LONGSTORY", "it said b'LONGSTORY'; to talk with any TCP program say framing=..."),
    ] {
        for (ending, answer) in meets(said) {
            assert_eq!(ending.cause, Cause::Protocol);
            assert!(ending.to_string().contains(shown), "{ending}");
            assert!(answer.is_empty());
        }
    }
}

#[test]
fn a_first_frame_of_16_mib_is_refused_before_a_byte_of_it_is_kept() {
    for kind in [1, 2] {
        let header = [&PREAMBLE[..], &[0xFF, 0xFF, 0xFF, kind]].concat();
        for (ending, _) in meets(&header) {
            assert_eq!(ending.cause, Cause::Protocol, "{ending}");
        }
    }
    let mut decoder = Decoder::new(Kind::Hello);
    let oversized = [&PREAMBLE[..], &[0xFF, 0xFF, 0xFF, 1]].concat();
    let mut input = &oversized[..];
    decoder.preamble(&mut input).unwrap();
    let (length, limit) = (0xFF_FFFF, 4096);
    assert_eq!(decoder.next(&mut input), Err(FrameError::TooLarge { kind: Kind::Hello, length, limit }));
}

#[test]
fn no_frame_but_hello_or_close_may_come_first() {
    for kind in [3, 4, 5, 6, 7, 0x80] {
        let stream = [&PREAMBLE[..], &frame(kind, b"12345678")].concat();
        assert_eq!(decode(Kind::Hello, &[&stream]), Err(FrameError::BeforeHandshake { kind }));
    }
}

#[test]
fn kinds_from_0x80_up_are_skipped_unknown_ones_below_are_not() {
    let start = [&PREAMBLE[..], &frame(1, b"")].concat();
    let stream = [&start[..], &frame(0x81, &[0; MAX_PAYLOAD_BYTES]), &frame(0xFF, b""), &frame(7, b"beat")].concat();
    assert_eq!(decode(Kind::Hello, &[&stream]).unwrap()[1..], [(Kind::Beat, b"beat".to_vec())]);
    for kind in [0, 9, 0x7F] {
        let stream = [&start[..], &frame(kind, b"")].concat();
        assert_eq!(decode(Kind::Hello, &[&stream]), Err(FrameError::UnknownKind { kind }));
    }
    let stream = [&start[..], &[0, 0x40, 1, 0x81]].concat();
    let length = MAX_PAYLOAD_BYTES + 1;
    assert_eq!(decode(Kind::Hello, &[&stream]), Err(FrameError::IgnorableTooLarge { kind: 0x81, length }));
}

#[test]
fn silence_and_one_byte_a_minute_end_with_the_handshake_timeout() {
    for trickle in [false, true] {
        let start = Instant::now();
        let mut server = Connection::server(start, config(ms(1000)).into(), 7);
        assert_eq!(server.poll_timeout(), Some((start + ms(10_000)).into()));
        if trickle {
            server.handle_input(start + ms(5000), &PREAMBLE);
            assert_eq!(server.poll_timeout(), Some((start + ms(10_000)).into()));
        }
        server.handle_timeout(start + ms(10_000));
        let transmit = server.poll_transmit(start + ms(10_000));
        // Only who said the preamble is told why.
        assert_eq!(transmit.is_empty(), !trickle);
        let Some(Event::Ended(ending)) = server.poll_event() else { panic!("it waits for ever") };
        assert_eq!(ending.cause, Cause::Handshake);
    }
}

fn a_hello() -> Hello {
    Hello {
        least_version: 1,
        greatest_version: 1,
        rhythm: Rhythm { want: ms(1000), floor: ms(50), limit: None },
        position: Position::start(256 * 1024),
        largest_message: 16 * 1024 * 1024,
        will_resume: false,
        sets_pace: false,
        client_id: "dev-7".into(),
        token: b"secret".to_vec(),
        session: None,
    }
}

#[test]
fn durations_of_zero_or_over_a_day_and_small_windows_are_errors_and_a_limit_of_zero_is_the_default_rule() {
    let decoded = |change: fn(&mut Hello)| {
        let mut hello = a_hello();
        change(&mut hello);
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        Hello::decode(&bytes[4..])
    };
    assert_eq!(decoded(|hello| hello.rhythm.limit = Some(Duration::ZERO)).unwrap(), a_hello());
    let day = Duration::from_secs(24 * 3600);
    decoded(|hello| hello.rhythm.want = Duration::from_secs(24 * 3600)).unwrap();
    type Change = fn(&mut Hello);
    let bad: [(Change, &str, Duration); 5] = [
        (|hello| hello.rhythm.want = Duration::ZERO, "want", Duration::ZERO),
        (|hello| hello.rhythm.floor = Duration::ZERO, "floor", Duration::ZERO),
        (|hello| hello.rhythm.want = ms(24 * 3600 * 1000 + 1), "want", day + ms(1)),
        (|hello| hello.rhythm.floor = ms(24 * 3600 * 1000 + 1), "floor", day + ms(1)),
        (|hello| hello.rhythm.limit = Some(ms(24 * 3600 * 1000 + 1)), "limit", day + ms(1)),
    ];
    for (change, name, duration) in bad {
        assert_eq!(decoded(change), Err(HandshakeError::Duration { name, duration }));
    }
    assert_eq!(decoded(|hello| hello.position.window = 65_535), Err(HandshakeError::Window { window: 65_535 }));
    let versions = HandshakeError::Versions { least: 2, greatest: 9 };
    assert_eq!(decoded(|hello| (hello.least_version, hello.greatest_version) = (2, 9)), Err(versions));
}

#[test]
fn a_client_of_another_version_is_told_so() {
    let mut bytes = PREAMBLE.to_vec();
    Hello { least_version: 2, greatest_version: 3, ..a_hello() }.encode(&mut bytes);
    let now = Instant::now();
    let mut server = Connection::server(now, config(ms(1000)).into(), 7);
    server.handle_input(now, &bytes);
    let transmit = server.poll_transmit(now);
    assert_eq!(transmit.first, PREAMBLE);
    assert_eq!(Close::decode(&transmit.control[4..]).unwrap().code, CloseCode::VERSION);
}

#[test]
fn the_program_may_refuse_a_token() {
    let mut bytes = PREAMBLE.to_vec();
    a_hello().encode(&mut bytes);
    let now = Instant::now();
    let mut server = Connection::server(now, config(ms(1000)).into(), 7);
    server.handle_input(now, &bytes);
    let Some(Event::Hello(hello)) = server.poll_event() else { panic!("no HELLO") };
    assert_eq!((&hello.client_id[..], &hello.token[..]), ("dev-7", &b"secret"[..]));
    assert!(!format!("{hello:?}").contains("115, 101"), "a token isn't shown");
    assert_eq!(server.poll_transmit(now).first, PREAMBLE, "nothing is said before the program decided");
    server.refuse(now, Close::new(CloseCode::UNAUTHORIZED, "unknown token"));
    assert_eq!(Close::decode(&server.poll_transmit(now).control[4..]).unwrap().code, CloseCode::UNAUTHORIZED);
}

#[test]
fn an_introduction_that_does_not_fit_hello_is_refused_and_one_that_just_does_is_sent() {
    let introduction = |id: usize, token: usize| Introduction {
        client_id: "x".repeat(id),
        token: vec![0; token],
        ..Introduction::default()
    };
    let now = Instant::now();
    let client = |id, token| Connection::client(now, config(ms(1000)).into(), 7, introduction(id, token));
    assert_eq!(client(256, 0).unwrap_err(), IntroductionError::ClientId { length: 256 });
    assert_eq!(client(0, 3073).unwrap_err(), IntroductionError::Token { length: 3073 });
    let mut largest = client(255, 3072).unwrap();
    let said = decode(Kind::Hello, &[largest.poll_transmit(now).first]).unwrap();
    let hello = Hello::decode(&said[0].1).unwrap();
    assert_eq!((hello.client_id.len(), hello.token.len()), (255, 3072));
}

// ---- liars ----------------------------------------------------------------------------------------------------

/// What an open server makes of a frame; 100 messages of 10 bytes were sent to the client and none is taken.
fn server_hears(bytes: &[u8]) -> Option<Ending> {
    let mut pair = Pair::open(config(ms(1000)), config(ms(1000)));
    pair.sides[0].takes = false;
    for _ in 0..100 {
        pair.send(1, &[0; 10]);
    }
    pair.sides[1].connection.handle_input(pair.now, bytes);
    pair.turn(1);
    pair.sides[1].ending().cloned()
}

fn ack(taken: u64, credit: u64) -> Vec<u8> {
    frame(6, &[taken.to_be_bytes(), credit.to_be_bytes()].concat())
}

#[test]
fn offsets_that_lie_end_the_link_with_a_cause_that_names_it() {
    let window = 256 * 1024;
    assert_eq!(server_hears(&ack(14 * 5, window)), None);
    let mut fragments = frame(3, &[&100_000_u64.to_be_bytes()[..], &[0; 16_376]].concat());
    for _ in 0..2 {
        fragments.extend(frame(4, &[0; 16_384]));
    }
    assert_eq!(server_hears(&fragments), None);
    for (bytes, named) in [
        (ack(1400 + 14, window), "taken is 1414, only 1400 was sent"),
        (ack(13, window), "taken is 13, inside a message"),
        (ack(0, window - 1), "credit went from 262144 to 262143"),
        ([ack(28, window), ack(14, window)].concat(), "taken went from 28 to 14"),
        (frame(6, &[0; 15]), "an ACK that isn't 16 bytes"),
        (frame(4, b""), "a fragment"),
        (frame(4, b"x"), "a fragment"),
        (frame(3, &[&100_000_u64.to_be_bytes()[..], &[0; 100]].concat()), "a fragment"),
        (frame(3, &[&16_384_u64.to_be_bytes()[..], &[0; 16_376]].concat()), "a fragment"),
        (frame(3, &[&u64::MAX.to_be_bytes()[..], &[0; 16_376]].concat()), "at most 16777216"),
        ([&fragments[..], &frame(5, b"")].concat(), "a fragment"),
        ([&fragments[..], &frame(3, &[0; 16_384])].concat(), "a fragment"),
        (frame(7, &[0; 33]), "Beat is malformed"),
        (frame(7, &[[0; 8].as_slice(), &[1; 25 + 1025]].concat()), "Beat is malformed"),
        (frame(1, b""), "Hello where it may not be"),
        (frame(2, b""), "Welcome where it may not be"),
        (frame(8, b"x"), "Close is malformed"),
    ] {
        let ending = server_hears(&bytes).unwrap_or_else(|| panic!("{named}: was borne"));
        assert_eq!(ending.cause, Cause::Protocol);
        assert!(ending.to_string().contains(named), "{ending}, not {named}");
    }
}

#[test]
fn taken_ends_with_a_message_and_not_with_a_fragment() {
    let mut pair = Pair::open(config(ms(1000)), config(ms(1000)));
    pair.sides[0].takes = false;
    pair.send(1, &[0; 40_000]);
    pair.sides[1].connection.handle_input(pair.now, &ack(16_388, 256 * 1024));
    pair.turn(1);
    assert!(pair.sides[1].ending().unwrap().to_string().contains("taken is 16388, inside a message"));
}

#[test]
fn what_hello_says_of_a_session_is_void_in_a_new_one() {
    let session = Some(Resumption { credentials: CREDENTIALS, epoch: 1 });
    let position = Position { received: 5000, taken: 4000, window: 1 << 20 };
    let mut bytes = PREAMBLE.to_vec();
    Hello { session, position, ..a_hello() }.encode(&mut bytes);
    let now = Instant::now();
    let mut server = Connection::server(now, config(ms(1000)).into(), 7);
    server.handle_input(now, &bytes);
    let Some(Event::Hello(hello)) = server.poll_event() else { panic!("no HELLO") };
    assert_eq!(hello.session, session);
    server.accept(CREDENTIALS, ms(0));
    server.handle_input(now, &ack(0, 100_000));
    assert!(matches!(server.poll_event(), Some(Event::Opened(Beginning::New))));
}

#[test]
fn more_than_the_credit_is_an_error_before_it_is_kept() {
    let mut pair = Pair::open(config(ms(1000)), config(ms(1000)));
    pair.sides[1].takes = false;
    let message = frame(5, &[0; 16_384]);
    for _ in 0..15 {
        pair.sides[1].connection.handle_input(pair.now, &message);
    }
    pair.turn(1);
    assert!(pair.sides[1].ending().is_none());
    pair.sides[1].connection.handle_input(pair.now, &message);
    pair.turn(1);
    assert!(pair.sides[1].ending().unwrap().to_string().contains("beyond the credit of 262144"));
}

#[test]
fn a_small_message_that_comes_alone_passes_and_leaves_what_reading_and_taking_it_would() {
    for length in [0, 1, 64, 16_384] {
        let message = vec![7; length];
        let bytes = frame(5, &message);
        let states = [true, false].map(|passes| {
            let mut pair = Pair::open(config(ms(1000)), config(ms(1000)));
            let connection = &mut pair.sides[1].connection;
            let start = connection.poll_timeout().unwrap().instant();
            for round in 0..10 {
                let now = pair.now + ms(round);
                if passes {
                    assert!(connection.handle_message(now, &bytes) == Some(&message[..]));
                } else {
                    connection.handle_input(now, &bytes);
                    assert!(connection.read() == Some(&message[..]));
                    assert!(connection.take(now, 1));
                }
            }
            let now = pair.now + ms(40);
            let (timeout, ages) = (connection.poll_timeout().unwrap().instant() - start, connection.ages(now));
            connection.handle_timeout(now + ms(40));
            let said = connection.poll_transmit(now + ms(40)).control.to_vec();
            (timeout, ages, connection.is_urgent(), said, connection.stats(now).unwrap())
        });
        assert_eq!(states[0], states[1], "{length} bytes");
        assert!(states[0].3.starts_with(&[0, 0, 16, 6]), "no ACK: {:?}", states[0].3);
    }
}

#[test]
fn what_is_not_a_small_message_alone_does_not_pass_and_nothing_of_it_was_heard() {
    let message = frame(5, b"hello");
    let opened = || Pair::open(config(ms(1000)), config(ms(1000)));
    let with = |prepare: &dyn Fn(&mut Pair)| {
        let mut pair = opened();
        pair.sides[1].takes = false;
        prepare(&mut pair);
        pair
    };
    let heard = |bytes: &[u8]| {
        let bytes = bytes.to_vec();
        with(&move |pair| pair.sides[1].connection.handle_input(pair.now, &bytes))
    };
    let mut small = config(ms(1000));
    small.largest_message_bytes = 4;
    let full = frame(5, &[0; 16_384]);
    let exhausted = with(&|pair| {
        for _ in 0..15 {
            assert!(pair.sides[1].connection.handle_message(pair.now, &full).is_some());
        }
    });
    for (case, mut pair, bytes) in [
        ("half of one", opened(), message[..8].to_vec()),
        ("one and a half", opened(), [&message[..], &message[..6]].concat()),
        ("two", opened(), message.repeat(2)),
        ("an ACK", opened(), ack(0, 256 * 1024)),
        ("with an ACK", opened(), [ack(0, 256 * 1024), message.clone()].concat()),
        ("too large", Pair::open(config(ms(1000)), small), message.clone()),
        ("longer than a frame may be", opened(), frame(5, &[0; 16_385])),
        ("behind half a header", heard(&[0]), message.clone()),
        ("behind one that waits", heard(&message), message.clone()),
        (
            "inside a longer one",
            heard(&frame(3, &[&16_385_u64.to_be_bytes()[..], &[0; 16_376]].concat())),
            frame(5, &[0; 9]),
        ),
        ("beyond the credit", exhausted, full.clone()),
        ("before the handshake", Pair::new(config(ms(1000)), config(ms(1000))), message.clone()),
        (
            "behind our CLOSE",
            with(&|pair| {
                pair.sides[1].connection.close(pair.now, Close::new(CloseCode::NORMAL, ""), pair.now + ms(1000))
            }),
            message.clone(),
        ),
        ("after the end", with(&|pair| pair.sides[1].connection.handle_end(pair.now)), message.clone()),
    ] {
        let connection = &mut pair.sides[1].connection;
        let before = format!("{connection:?}");
        assert_eq!(connection.handle_message(pair.now + ms(10), &bytes), None, "{case}");
        assert_eq!(format!("{connection:?}"), before, "{case}");
    }
}

// ---- SPEC.md --------------------------------------------------------------------------------------------------

#[test]
fn a_message_weighs_what_the_specification_says() {
    assert_eq!(wire_bytes(0), 4);
    assert_eq!(wire_bytes(16_384), 16_388);
    assert_eq!(wire_bytes(16_385), 16_385 + 8 + 2 * 4);
    assert_eq!(wire_bytes(2 * 16_384 - 8), 2 * 16_388);
    assert_eq!(wire_bytes(2 * 16_384 - 7), 2 * 16_384 - 7 + 8 + 3 * 4);
}

/// The blocks of hexadecimal in docs/SPEC.md, by the title in their first line.
fn example(title: &str) -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/SPEC.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, block) = text.split_once(&format!("```hex {title}\n")).unwrap_or_else(|| panic!("no example {title}"));
    let (block, _) = block.split_once("```").unwrap();
    let digits: String =
        block.lines().flat_map(|line| line.split('#').next().unwrap().chars()).filter(|c| !c.is_whitespace()).collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn the_examples_of_the_specification_are_what_the_encoder_makes() {
    let mut bytes = PREAMBLE.to_vec();
    a_hello().encode(&mut bytes);
    assert_eq!(bytes, example("client"));

    let welcome = Welcome {
        version: VERSION,
        rhythm: Rhythm { want: ms(5000), floor: ms(50), limit: Some(ms(15_000)) },
        position: Position::start(256 * 1024),
        largest_message: 16 * 1024 * 1024,
        credentials: CREDENTIALS,
        resumed: false,
        follows: false,
        retention: ms(60_000),
    };
    let mut bytes = PREAMBLE.to_vec();
    welcome.encode(&mut bytes);
    assert_eq!(bytes, example("server"));

    let mut pair = Pair::open(config(ms(1000)), config(ms(1000)));
    let connection = &mut pair.sides[0].connection;
    connection.send(b"hello").unwrap();
    connection.send(b"").unwrap();
    assert_eq!(connection.poll_transmit(pair.now).data, example("messages"));
    assert_eq!(ack(9, 262_153), example("ack"));

    let beat = Beat {
        answer: true,
        extra: true,
        sent_at: 1_000_001,
        echo: 77,
        held: 2500,
        interpreter_age: Some(ms(100)),
        application_age: None,
        status: b"ok",
    };
    let mut bytes = Vec::new();
    beat.encode(&mut bytes);
    assert_eq!(bytes, example("beat"));

    let beat = Beat {
        extra: false,
        sent_at: 1_000_002,
        echo: 78,
        held: 2501,
        application_age: Some(Duration::ZERO),
        status: b"",
        ..beat
    };
    let mut bytes = Vec::new();
    Rhythm { want: ms(90_000), floor: ms(50), limit: None }.encode_want(&mut bytes);
    beat.encode(&mut bytes);
    assert_eq!(bytes, example("want"));

    let close = Close::new(CloseCode::GOING_AWAY, "restart").coming_back(ms(2000), "b:9000");
    let mut bytes = Vec::new();
    Close { taken: 9, ..close }.encode(&mut bytes);
    assert_eq!(bytes, example("close"));
}
