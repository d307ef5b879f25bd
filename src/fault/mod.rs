//! What a bad path does to the bytes that cross it: decisions of the fault proxy; no clock, no socket.
#![forbid(unsafe_code)]

pub mod flow;
pub mod nat;
pub mod record;
