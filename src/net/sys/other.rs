//! Systems where the guard isn't built yet: each thing it needs is refused by name, nothing silently dropped.
//! The kernel's keepalive works wherever socket2 knows its options. Written from documentation, not tried.

use std::io;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use super::RawTcpInfo;

pub const PLATFORM: &str = std::env::consts::OS;
/// Seconds in a positive `int`, and in the 16 bits that [`crate::proto::verdict::Probing`] has for them.
pub const KEEPALIVE_SECONDS: (u64, u64) = (1, 65_535);
/// What fits into every system's option.
pub const KEEPALIVE_COUNT: (u32, u32) = (1, 127);
/// Without waiting. Apple's systems have no MSG_NOSIGNAL; the socket is told instead (`net/tuning.rs`).
#[cfg(target_vendor = "apple")]
pub const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT;
#[cfg(not(target_vendor = "apple"))]
pub const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
pub const HAS_GUARD: bool = false;

fn unsupported<T>(what: &str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, format!("{what} isn't available on {PLATFORM}")))
}

pub fn tcp_info(_: RawFd) -> io::Result<(RawTcpInfo, usize)> {
    unsupported("TCP_INFO")
}

pub fn set_deaf(_: BorrowedFd<'_>, _: bool) -> io::Result<()> {
    unsupported("SO_ATTACH_FILTER")
}

pub fn set_mute(_: BorrowedFd<'_>, _: bool) -> io::Result<()> {
    unsupported("a mute socket")
}

pub fn cookie(_: RawFd) -> io::Result<u64> {
    unsupported("SO_COOKIE")
}

pub fn socket_kind(_: RawFd) -> io::Result<(i32, i32, i32)> {
    unsupported("SO_DOMAIN")
}

pub fn is_tcp(_: RawFd) -> io::Result<bool> {
    unsupported("the guard")
}

pub fn rto_max_ms(_: RawFd) -> io::Result<u32> {
    unsupported("TCP_RTO_MAX_MS")
}

pub fn set_rto_max_ms(_: BorrowedFd<'_>, _: u32) -> io::Result<()> {
    unsupported("TCP_RTO_MAX_MS")
}

pub fn cut(_: BorrowedFd<'_>) -> io::Result<()> {
    unsupported("the guard")
}

pub fn abort(_: BorrowedFd<'_>) -> io::Result<()> {
    unsupported("the guard")
}

pub fn receive(fd: RawFd, room: &mut [MaybeUninit<u8>], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `room.len()` bytes there; a number that isn't open gives EBADF.
    let got = unsafe { libc::recv(fd, room.as_mut_ptr().cast(), room.len(), flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

pub fn transmit(fd: RawFd, data: &[u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the kernel reads `data.len()` bytes; a number that isn't open gives EBADF.
    let sent = unsafe { libc::send(fd, data.as_ptr().cast(), data.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

pub(super) fn poll(entry: &mut libc::pollfd, timeout_ms: libc::c_int) -> io::Result<bool> {
    // SAFETY: one pollfd, which lives through the call.
    let code = unsafe { libc::poll(entry, 1, timeout_ms) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code > 0) }
}

/// Wakes who polls it; it stays readable until it is cleared.
#[derive(Debug)]
pub struct Wakeup {
    reader: io::PipeReader,
    writer: io::PipeWriter,
}

impl Wakeup {
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        for fd in [reader.as_raw_fd(), writer.as_raw_fd()] {
            super::set_nonblocking(fd)?;
        }
        Ok(Self { reader, writer })
    }

    /// A full pipe is set already.
    pub fn set(&self) {
        let _ = (&self.writer).write(&[1]);
    }

    pub fn clear(&self) {
        let mut room = [0; 64];
        while matches!((&self.reader).read(&mut room), Ok(length) if length > 0) {}
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Here it comes at once.
#[derive(Debug)]
pub struct DelayedWakeup(Wakeup);

impl DelayedWakeup {
    pub fn new() -> io::Result<Self> {
        Wakeup::new().map(Self)
    }

    pub fn set_after(&self, _: Duration) {
        self.0.set();
    }

    pub fn clear(&self) {
        self.0.clear();
    }
}

impl AsFd for DelayedWakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A thread's state for names isn't handed on here.
pub fn begin_names_anew() {}

/// Unknown here; a late wake-up tells of a suspension too.
#[must_use]
pub fn time_suspended() -> Duration {
    Duration::ZERO
}

/// Random bytes fit for secrets (`getentropy(3)`, 256 at a time).
pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    for part in bytes.chunks_mut(256) {
        // SAFETY: at most `part.len()` bytes are written there.
        if unsafe { libc::getentropy(part.as_mut_ptr().cast(), part.len()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
