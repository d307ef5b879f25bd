//! Sockets, and no protocol: what the kernel is asked and told.

#[cfg(unix)]
pub mod carrier;
#[cfg(unix)]
pub mod dial;
pub mod keepalive;
#[cfg(unix)]
pub mod resolve;
#[cfg(unix)]
pub mod sys;
#[cfg(unix)]
pub mod tcp_info;
#[cfg(unix)]
pub mod tls;
#[cfg(unix)]
pub mod tuning;

#[cfg(windows)]
#[path = "sys/windows.rs"]
pub mod sys;
