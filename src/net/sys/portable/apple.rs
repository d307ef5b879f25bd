//! macOS and its kin. Written from the manual pages and from XNU's source, compiled, and not run.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use crate::net::sys;

/// `TCP_RXT_CONNDROPTIME` of `netinet/tcp.h`: how long one segment is sent again before the connection is dropped, whole seconds.
const TCP_RXT_CONNDROPTIME: libc::c_int = 0x80;

pub const PLATFORM: &str = "macOS";
/// There is no MSG_NOSIGNAL that all releases have; the socket is told instead (`net/tuning.rs`).
pub const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT;
/// Receiving heeds MSG_DONTWAIT, sending doesn't (`sosendcheck` in `bsd/kern/uipc_socket.c` asks the socket alone).
pub const HEEDS_DONTWAIT: bool = false;

/// Why the kernel took nothing. For a moment while a connection is torn down it says EPROTOTYPE, and EPIPE afterwards.
pub(in crate::net::sys) fn sending_error() -> io::Error {
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EPROTOTYPE) { io::Error::from_raw_os_error(libc::EPIPE) } else { error }
}

/// The smoothed round trip (`TCP_CONNECTION_INFO`), in whole milliseconds.
pub fn round_trip(fd: RawFd) -> io::Result<Duration> {
    let mut info = MaybeUninit::<libc::tcp_connection_info>::zeroed();
    let mut length = size_of::<libc::tcp_connection_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes there; a number that isn't open gives EBADF.
    let code = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_CONNECTION_INFO, info.as_mut_ptr().cast(), &raw mut length)
    };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: integers, which were zero before.
    Ok(Duration::from_millis(unsafe { info.assume_init() }.tcpi_srtt.into()))
}

/// What comes near `TCP_USER_TIMEOUT`: it counts from the first retransmission too, and zero is the system's own. It leaves a closed
/// window alone, which has another timer (`tcp_timers` in `bsd/netinet/tcp_timer.c`), and while one connects
/// `TCP_CONNECTIONTIMEOUT` counts in its place.
pub fn user_timeout(fd: BorrowedFd<'_>) -> io::Result<Option<Duration>> {
    let mut seconds: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `seconds`.
    let code = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RXT_CONNDROPTIME,
            (&raw mut seconds).cast(),
            &raw mut length,
        )
    };
    if code == 0 {
        Ok(Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Up to the next second.
pub fn set_user_timeout(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
    let seconds = libc::c_int::try_from(seconds).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer and the length describe `seconds`, which lives through the call.
    let code = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RXT_CONNDROPTIME,
            (&raw const seconds).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How long the machine was suspended since it booted: what `CLOCK_MONOTONIC_RAW` counts and `CLOCK_UPTIME_RAW`, the clock of
/// `Instant`, doesn't (`clock_gettime(3)`). Two readings, hence exact to within the time between them.
#[must_use]
pub fn time_suspended() -> Duration {
    let awake = sys::read_clock(libc::CLOCK_UPTIME_RAW);
    sys::read_clock(libc::CLOCK_MONOTONIC_RAW).saturating_sub(awake)
}
