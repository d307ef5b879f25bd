//! Decisions: no clock, no socket, no thread, no Python.
#![forbid(unsafe_code)]

pub mod adaptive;
pub mod backoff;
pub mod cause;
pub mod close;
pub mod codec;
pub mod connection;
pub mod core;
pub mod detector;
pub mod evidence;
pub mod frame;
pub mod handshake;
pub mod heartbeat;
pub mod moment;
pub mod placing;
pub mod plain;
pub mod race;
pub mod random;
pub mod session;
pub mod verdict;
