//! What POSIX systems have in common, and socket2 doesn't know.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Whatever a socket is known by.
pub type BorrowedSocket<'a> = BorrowedFd<'a>;

/// Quiet time before the kernel's first probe, time between probes, and how many.
pub fn probe_timings(socket: BorrowedSocket<'_>) -> io::Result<(Duration, Duration, u32)> {
    let socket = SockRef::from(&socket);
    Ok((socket.tcp_keepalive_time()?, socket.tcp_keepalive_interval()?, socket.tcp_keepalive_retries()?))
}

/// Sets what isn't `None`, and switches the probes on, as socket2 does.
pub fn set_probe_timings(
    socket: BorrowedSocket<'_>,
    idle: Option<Duration>,
    interval: Option<Duration>,
    count: Option<u32>,
) -> io::Result<()> {
    let mut timings = TcpKeepalive::new();
    if let Some(idle) = idle {
        timings = timings.with_time(idle);
    }
    if let Some(interval) = interval {
        timings = timings.with_interval(interval);
    }
    if let Some(count) = count {
        timings = timings.with_retries(count);
    }
    SockRef::from(&socket).set_tcp_keepalive(&timings)
}

/// A second descriptor of the same socket, so that it can't be closed and its number reused under us. It must
/// not live long: while it does, the owner's `close` sends no FIN.
pub fn pin(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with an integer argument; a number that isn't open gives EBADF.
    let duplicate = |least: libc::c_int| unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) };
    // Out of the way of programs that close a number and expect to get it again, as POSIX promises them; 512 fits
    // under the usual limit of 1024. Where it doesn't, any number.
    let mut copy = duplicate(512);
    if copy < 0 {
        copy = duplicate(0);
    }
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Bytes that `recv` would give at once (`SIOCINQ`, `tcp(7)`).
pub fn bytes_readable(fd: RawFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let code = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut bytes) };
    if code == 0 { Ok(usize::try_from(bytes).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// For descriptors that are made here; Linux makes them so in one call.
#[cfg(any(not(target_os = "linux"), longconn_portable))]
pub(super) fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl with integers; a number that isn't open gives EBADF.
    let code = unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether it has no borders between what was sent; false for what isn't a socket.
#[must_use]
pub fn is_stream(fd: RawFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `kind`; a number that isn't open gives EBADF.
    let code =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut length) };
    code == 0 && kind == libc::SOCK_STREAM
}

/// Waits for `POLLIN` or `POLLOUT`; `None` is for ever. False when the time is up; EINTR is an error.
pub fn wait_ready(fd: RawFd, events: libc::c_short, timeout: Option<Duration>) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // Up to the next millisecond, as CPython rounds.
    let timeout = timeout.map_or(-1, |timeout| {
        libc::c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
    });
    super::poll(&mut entry, timeout)
}

/// Blocks every signal in this thread, so that Python's handlers run where Python expects them.
pub fn block_signals() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset fills in the whole set; pthread_sigmask reads it and needs no old one.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
    }
}

/// Waits for `events` on `first`, which may be none, and for `POLLIN` on `second`; says what came on each, nothing when
/// the time is up. EINTR is an error.
pub fn wait_either(
    first: Option<BorrowedFd<'_>>,
    events: libc::c_short,
    second: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> io::Result<(libc::c_short, bool)> {
    // poll(2) passes over negative numbers.
    let mut entries = [
        libc::pollfd { fd: first.map_or(-1, |fd| fd.as_raw_fd()), events, revents: 0 },
        libc::pollfd { fd: second.as_raw_fd(), events: libc::POLLIN, revents: 0 },
    ];
    let timeout = timeout.map_or(-1, |timeout| {
        libc::c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
    });
    // SAFETY: two pollfds, which live through the call.
    let code = unsafe { libc::poll(entries.as_mut_ptr(), 2, timeout) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok((entries[0].revents, entries[1].revents != 0)) }
}

/// Since when it counts, its clock knows; zero where there is no such clock.
pub fn read_clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills in `time`.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Hands the parts to the kernel, one behind the other, as far as it takes them without waiting.
pub fn transmit_parts(fd: BorrowedFd<'_>, parts: [&[u8]; 3]) -> io::Result<usize> {
    let mut vector = parts.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
    // SAFETY: a msghdr of zeros is one without address, vector and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vector.as_mut_ptr();
    message.msg_iovlen = 3; // of a type that differs from system to system
    // SAFETY: the kernel reads the parts, and writes to neither them nor the vector, which live through the call.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, super::SEND_FLAGS) };
    usize::try_from(sent).map_err(|_| super::sending_error())
}

/// Closes a number that nobody will use any more: a forked child's copy of what is its parent's.
pub fn close_inherited(fd: RawFd) {
    // SAFETY: the caller vouches that no owner of this number is left in the process that would use or close it.
    unsafe { libc::close(fd) };
}
