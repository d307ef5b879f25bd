//! POSIX systems that nobody has looked at more closely. Compiled for FreeBSD; run only on Linux, by `--cfg longconn_portable`.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use super::unsupported;

pub const PLATFORM: &str = std::env::consts::OS;
/// Without waiting, and without SIGPIPE.
pub const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
/// POSIX has no MSG_DONTWAIT: nothing is relied on.
pub const HEEDS_DONTWAIT: bool = false;

/// Why the kernel took nothing.
pub(in crate::net::sys) fn sending_error() -> io::Error {
    io::Error::last_os_error()
}

pub fn round_trip(_: RawFd) -> io::Result<Duration> {
    unsupported("TCP_INFO")
}

/// There is none.
pub fn user_timeout(_: BorrowedFd<'_>) -> io::Result<Option<Duration>> {
    Ok(None)
}

pub fn set_user_timeout(_: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    if timeout.is_zero() { Ok(()) } else { unsupported("TCP_USER_TIMEOUT") }
}

/// Unknown here; a late wake-up tells of a suspension too.
#[must_use]
pub fn time_suspended() -> Duration {
    Duration::ZERO
}
