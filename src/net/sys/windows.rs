//! Windows: the kernel's keepalive, by its own options of ws2ipdef.h. All else of `net` and the engine need POSIX descriptors.
//! Written from Microsoft's documentation ("IPPROTO_TCP socket options").

use std::io;
use std::os::windows::io::AsRawSocket;
use std::time::Duration;

use socket2::SockRef;
use windows_sys::Win32::Networking::WinSock::{
    IPPROTO_TCP, SOCKET, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_MAXRT, getsockopt, setsockopt,
};

pub use std::os::windows::io::BorrowedSocket;

pub const PLATFORM: &str = "Windows";

/// All options here are 32 bits long.
const LENGTH: i32 = 4;

fn option(socket: BorrowedSocket<'_>, name: i32) -> io::Result<i32> {
    let (mut value, mut length) = (0_i32, LENGTH);
    // SAFETY: Winsock writes at most `length` bytes into `value`; it was started when the socket was made.
    let code = unsafe { getsockopt(raw(socket), IPPROTO_TCP, name, (&raw mut value).cast(), &raw mut length) };
    if code == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn set_option(socket: BorrowedSocket<'_>, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which lives through the call.
    let code = unsafe { setsockopt(raw(socket), IPPROTO_TCP, name, (&raw const value).cast(), LENGTH) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn raw(socket: BorrowedSocket<'_>) -> SOCKET {
    socket.as_raw_socket() as SOCKET
}

fn seconds(value: i32) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

/// Up to the next second.
fn whole_seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).unwrap_or(i32::MAX)
}

/// Quiet time before the kernel's first probe, time between probes, and how many (Windows 10 1709; older ones refuse the options,
/// and have only `SIO_KEEPALIVE_VALS`, which can't be read and counts to 10 whatever is wanted).
pub fn probe_timings(socket: BorrowedSocket<'_>) -> io::Result<(Duration, Duration, u32)> {
    let count = option(socket, TCP_KEEPCNT)?;
    Ok((
        seconds(option(socket, TCP_KEEPIDLE)?),
        seconds(option(socket, TCP_KEEPINTVL)?),
        u32::try_from(count).unwrap_or(0),
    ))
}

/// Sets what isn't `None`, and switches the probes on. One by one: socket2 takes `SIO_KEEPALIVE_VALS`, which sets both times, and
/// to zero the one that isn't said.
pub fn set_probe_timings(
    socket: BorrowedSocket<'_>,
    idle: Option<Duration>,
    interval: Option<Duration>,
    count: Option<u32>,
) -> io::Result<()> {
    SockRef::from(&socket).set_keepalive(true)?;
    if let Some(idle) = idle {
        set_option(socket, TCP_KEEPIDLE, whole_seconds(idle))?;
    }
    if let Some(interval) = interval {
        set_option(socket, TCP_KEEPINTVL, whole_seconds(interval))?;
    }
    if let Some(count) = count {
        set_option(socket, TCP_KEEPCNT, i32::try_from(count).unwrap_or(i32::MAX))?;
    }
    Ok(())
}

/// `TCP_MAXRT`, how long one segment is sent again, whole seconds; none where it is for ever.
pub fn user_timeout(socket: BorrowedSocket<'_>) -> io::Result<Option<Duration>> {
    option(socket, TCP_MAXRT).map(|value| u64::try_from(value).ok().map(Duration::from_secs))
}

/// Up to the next second. Which value is the system's own isn't documented, so zero is refused.
pub fn set_user_timeout(socket: BorrowedSocket<'_>, timeout: Duration) -> io::Result<()> {
    if timeout.is_zero() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "TCP_MAXRT has no value for the system's own"));
    }
    set_option(socket, TCP_MAXRT, whole_seconds(timeout))
}
