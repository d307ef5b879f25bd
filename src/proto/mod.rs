//! Decisions: no clock, no socket, no thread, no Python.
#![forbid(unsafe_code)]

pub mod verdict;
