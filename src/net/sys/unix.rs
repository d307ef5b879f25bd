//! What POSIX systems have in common, and socket2 doesn't know.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

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
