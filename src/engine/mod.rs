//! The native threads: they own the clock, never attach to Python, and block all signals.

pub mod budget;
pub mod clock;
pub mod dial;
pub mod fork;
pub mod guard;
pub mod interpreter;
pub mod link;
pub mod listener;
pub mod notices;
pub mod plain;
pub mod proxy;
pub mod reactor;
mod resolver;
mod seats;
mod sessions;
mod timers;
pub mod waiting;
