//! However a stream is split, it gives the same frames and the same error; no payload's decoder panics; and what
//! decodes is encoded to something that decodes to the same.
//!
//! `cargo fuzz run -s none decoder` works on the stable toolchain.

#![no_main]

use libfuzzer_sys::fuzz_target;
use longconn::proto::close::Close;
use longconn::proto::frame::{Decoder, FrameError, Kind, PREAMBLE};
use longconn::proto::handshake::{Hello, Welcome};
use longconn::proto::heartbeat::Beat;

type Frames = Vec<(Kind, Vec<u8>)>;

fn frames(first: Kind, stream: &[u8], chunk: usize) -> (Frames, Option<FrameError>) {
    let mut decoder = Decoder::new(first);
    let mut frames = Vec::new();
    let mut preamble = &PREAMBLE[..];
    assert_eq!(decoder.preamble(&mut preamble), Ok(true));
    for mut input in stream.chunks(chunk) {
        loop {
            match decoder.next(&mut input) {
                Ok(Some(frame)) => frames.push((frame.kind, frame.payload().to_vec())),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((&chunk, stream)) = data.split_first() else { return };
    let first = if chunk & 1 == 0 { Kind::Hello } else { Kind::Welcome };
    let whole = frames(first, stream, stream.len().max(1));
    assert_eq!(whole, frames(first, stream, usize::from(chunk).max(1)));
    let mut again = Vec::new();
    for (kind, payload) in whole.0 {
        again.clear();
        match kind {
            Kind::Hello => {
                if let Ok(hello) = Hello::decode(&payload) {
                    hello.encode(&mut again);
                    assert_eq!(Hello::decode(&again[4..]), Ok(hello));
                }
            }
            Kind::Welcome => {
                if let Ok(welcome) = Welcome::decode(&payload) {
                    welcome.encode(&mut again);
                    assert_eq!(Welcome::decode(&again[4..]), Ok(welcome));
                }
            }
            Kind::Beat => {
                if let Some(beat) = Beat::decode(&payload) {
                    beat.encode(&mut again);
                    assert_eq!(Beat::decode(&again[4..]), Some(beat));
                }
            }
            Kind::Close => {
                if let Some(close) = Close::decode(&payload) {
                    close.encode(&mut again);
                    let decoded = Close::decode(&again[4..]);
                    assert!(decoded.is_some_and(|decoded| decoded.code == close.code && decoded.taken == close.taken));
                }
            }
            Kind::DataStart | Kind::Data | Kind::DataEnd | Kind::Ack => {}
        }
    }
});
