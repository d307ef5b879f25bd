//! How the kernel is to treat a link: quick to send, and, where we judge its silence, quick to recover and slow to give up.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Protocol, SockRef, Socket, Type};

use crate::net::sys;

/// What the kernel takes unsent, so that a beat doesn't queue behind megabytes; several times what a fast path holds
/// between two wake-ups of ours.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 128 * 1024;
/// What the kernel takes for `TCP_RTO_MAX_MS`.
const RTO_MAX_MS: (u32, u32) = (1000, 120_000);
/// A cut that a generous limit lets pass must not be ended by the kernel, whose patience a low `TCP_RTO_MAX_MS` cuts to
/// 15 s (FACTS 1).
const LEAST_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// For a new link.
pub fn prepare(fd: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_vendor = "apple")]
    socket.set_nosigpipe(true)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok(())
}

/// After a cut the kernel tries again within a second, or four round trips where the path is slow: below its round trip
/// every segment would be sent again for nothing. Gives the bound, where the kernel has one.
pub fn bound_retransmissions(fd: BorrowedFd<'_>, round_trip: Duration) -> Option<u32> {
    let ms = u32::try_from((4 * round_trip).as_millis()).unwrap_or(u32::MAX).clamp(RTO_MAX_MS.0, RTO_MAX_MS.1);
    sys::set_rto_max_ms(fd, ms).is_ok().then_some(ms)
}

/// What dialling has bounded is as of any new socket again: of a plain peer the bound is its guard's to set, and without one the
/// kernel's patience is the administrator's.
pub fn unbound_retransmissions(fd: BorrowedFd<'_>) {
    let domain = SockRef::from(&fd).local_addr().map(|address| address.domain());
    let fresh = domain.and_then(|domain| Socket::new(domain, Type::STREAM, Some(Protocol::TCP)));
    if let Ok(ms) = fresh.and_then(|fresh| sys::rto_max_ms(fresh.as_raw_fd())) {
        let _ = sys::set_rto_max_ms(fd, ms);
    }
}

/// What `round_trip` asks for, if `bound` doesn't fit it any more; down only when it is twice too large.
#[must_use]
pub fn fits(bound_ms: u32, round_trip: Duration) -> bool {
    let wanted = u32::try_from((4 * round_trip).as_millis()).unwrap_or(u32::MAX).clamp(RTO_MAX_MS.0, RTO_MAX_MS.1);
    (wanted..=wanted.saturating_mul(2)).contains(&bound_ms)
}

/// The kernel isn't to give up before `limit` has.
pub fn set_patience(fd: BorrowedFd<'_>, limit: Duration) {
    let timeout = (2 * limit).max(LEAST_USER_TIMEOUT);
    #[cfg(target_os = "linux")]
    if let Err(error) = SockRef::from(&fd).set_tcp_user_timeout(Some(timeout)) {
        log::debug!(target: "longconn.engine", "fd {}: TCP_USER_TIMEOUT was refused: {error}", fd.as_raw_fd());
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (fd.as_raw_fd(), timeout);
}
