//! The native threads: they own the clock, never attach to Python, and block all signals.

mod accepting;
pub mod budget;
pub mod clock;
pub mod dial;
mod errands;
pub mod fork;
pub mod guard;
pub mod handshake;
pub mod hub;
pub mod interpreter;
pub mod link;
pub mod listener;
#[cfg(all(test, loom))]
mod models;
pub mod notices;
mod orders;
pub mod plain;
pub mod proxy;
pub mod reactor;
mod resolver;
mod seats;
pub mod skipping;
pub(crate) mod sync;
pub mod tally;
mod timers;
pub mod waiting;
