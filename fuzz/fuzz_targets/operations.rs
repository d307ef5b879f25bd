//! Whatever two programs do, whatever happens to the links between them, and whatever one of them says that isn't in
//! the protocol: nothing panics, both machines rest, memory keeps its bound, what arrives is what was sent and in
//! order, and a session ends once.
//!
//! `cargo fuzz run -s none operations` works on the stable toolchain.

#![no_main]

#[path = "../../tests/rust/pair.rs"]
mod pair;

use libfuzzer_sys::fuzz_target;
use longconn::proto::close::{Close, CloseCode};
use longconn::proto::connection::{Connection, Event, Introduction};
use pair::{Dice, Pair, Side, config, ms};

fuzz_target!(|data: &[u8]| {
    let Some((&seed, script)) = data.split_first() else { return };
    let mut pair = Pair::new(config(ms(200)), config(ms(1000)));
    if seed & 4 == 0 {
        let introduction = Introduction { will_resume: true, ..Introduction::default() };
        let client = Connection::client(pair.now, config(ms(200)).into(), 7, introduction).expect("it is short");
        pair.sides[0] = Side::new(client);
    }
    pair.dice = Dice::new(seed.into());
    pair.splits = seed & 1 == 0;
    pair.places = seed & 2 == 0;
    pair.kernel_bytes = 1 << (8 + seed % 16);
    let mut sent: [Vec<Vec<u8>>; 2] = Default::default();
    let mut is_honest = true;
    let bound = config(ms(200)).send_buffer_bytes;
    for pair_of_bytes in script.chunks_exact(2).take(300) {
        let (operation, argument) = (pair_of_bytes[0], u64::from(pair_of_bytes[1]));
        let index = usize::from(operation & 1);
        let now = pair.now;
        match operation >> 1 {
            0..20 => {
                let length = if operation >> 1 == 0 { argument * 500 } else { argument };
                let message = vec![argument as u8; length as usize];
                if pair.sides[index].connection.send(&message).is_ok() {
                    sent[index].push(message);
                }
            }
            20..40 => pair.run(ms(argument)),
            40..50 => pair.run(ms(argument * 50)),
            50..55 => pair.sides[index].takes ^= true,
            55..58 => pair.pipes[index].is_cut ^= true,
            58..61 => pair.sides[index].is_frozen ^= true,
            61..63 => pair.pipes[index].latency = ms(argument),
            63..66 => drop(pair.sides[index].connection.ping(now)),
            66..69 => pair.sides[index].connection.hurry(now),
            69..71 => pair.sides[index].connection.progress(now),
            71..73 => pair.sides[index].connection.set_waiting(now, argument & 1 == 0),
            73..75 => drop(pair.sides[index].connection.set_status(&vec![7; argument as usize * 8])),
            75..77 => pair.sides[index].connection.handle_pause(now),
            77..79 => {
                let close = Close::new(CloseCode(argument as u16), "fuzzed");
                let close = if argument & 1 == 0 { close } else { close.link_only() };
                pair.sides[index].connection.close(now, close, now + ms(argument * 10));
            }
            79 => pair.sides[index].connection.handle_end(now),
            80 => pair.sides[index].connection.handle_reset(now),
            81 => pair.sides[index].connection.handle_kernel(now, None),
            82 => pair.sides[index].connection.handle_timeout(now),
            83..90 => pair.relink(config(ms(1000)), argument),
            90 => pair.sides[index].connection.forget_inbox(),
            91 => pair.sides[index].connection.forget_undelivered(),
            92 => drop(pair.sides[index].connection.undelivered()),
            // As the engine does when it has done what was to be done.
            93 if pair.sides[index].socket.is_over && !pair.sides[index].connection.is_away() => {
                pair.sides[index].connection.give_back_memory();
            }
            _ => {
                is_honest = false;
                pair.sides[index].take_back(now);
                pair.sides[index].connection.handle_input(now, &[0, 0, argument as u8 & 31, operation & 15]);
            }
        }
        pair.turn(index);
        for side in &pair.sides {
            let Some(stats) = side.connection.stats(pair.now) else { continue };
            assert!(stats.inbox_bytes <= 16 << 20, "{stats:?}");
            assert!(stats.untaken_bytes <= bound, "{stats:?}");
        }
    }
    pair.mend();
    for side in &mut pair.sides {
        side.is_frozen = false;
        side.takes = true;
    }
    pair.run(ms(30_000));
    for (index, sent) in sent.iter().enumerate() {
        let other = &pair.sides[1 - index];
        assert!(!is_honest || sent.starts_with(&other.received));
        let ends = other.events.iter().filter(|(_, event)| matches!(event, Event::Ended(_))).count();
        assert!(ends <= 1, "{:?}", other.events);
    }
});
