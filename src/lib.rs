//! longconn: long-lived TCP connections that know when the other side is gone.
//!
//! Arrows point one way: `py` -> `engine` -> `fault`, `proto`, `net`. `proto` decides and touches nothing;
//! `fault` decides what a bad path does to bytes, likewise; `net` knows sockets and no protocol; `engine` owns the native thread and
//! the clock; `py` converts.

#[cfg(unix)]
pub mod engine;
pub mod fault;
pub mod net;
pub mod proto;

#[cfg(all(feature = "python", unix))]
mod py;
#[cfg(all(feature = "python", not(unix)))]
mod unported;
