//! Systems where the guard isn't built yet: each thing it needs is refused by name, nothing silently dropped.
//! The kernel's keepalive works wherever socket2 knows its options.

use std::io;

pub const PLATFORM: &str = std::env::consts::OS;
/// Seconds in a positive `int`.
pub const KEEPALIVE_SECONDS: (u64, u64) = (1, i32::MAX as u64);
/// What fits into every system's option; Windows before 10 (1709) always takes 10.
pub const KEEPALIVE_COUNT: (u32, u32) = (1, 255);
pub const HAS_GUARD: bool = false;

pub fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("{what} isn't available on {PLATFORM}"))
}

pub fn block_signals() {}
