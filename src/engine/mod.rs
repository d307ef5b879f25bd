//! The native threads: they own the clock, never attach to Python, and block all signals.

pub mod clock;
pub mod fork;
pub mod guard;
pub mod notices;
