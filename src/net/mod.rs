//! Sockets, and no protocol: what the kernel is asked and told.

pub mod carrier;
pub mod dial;
pub mod keepalive;
pub mod resolve;
pub mod sys;
pub mod tcp_info;
pub mod tls;
pub mod tuning;
