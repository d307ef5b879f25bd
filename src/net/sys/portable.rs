//! What isn't Linux: descriptors that wake, sockets, and the kernel's keepalive are there; the guard is refused by name, for it
//! needs to know what of ours is unacknowledged and how many probes are unanswered, and no other system tells both.

use std::io;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Type};

use super::RawTcpInfo;

#[cfg(target_vendor = "apple")]
mod apple;
#[cfg(target_vendor = "apple")]
pub use apple::*;

#[cfg(not(target_vendor = "apple"))]
mod bsd;
#[cfg(not(target_vendor = "apple"))]
pub use bsd::*;

/// Seconds in a positive `int`, and in the 16 bits that [`crate::proto::verdict::Probing`] has for them.
pub const KEEPALIVE_SECONDS: (u64, u64) = (1, 65_535);
/// What fits into every system's option.
pub const KEEPALIVE_COUNT: (u32, u32) = (1, 127);
pub const HAS_GUARD: bool = false;

fn unsupported<T>(what: &str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, format!("{what} isn't available on {PLATFORM}")))
}

pub fn tcp_info(_: RawFd) -> io::Result<(RawTcpInfo, usize)> {
    unsupported("TCP_INFO")
}

pub fn copy_descriptor(_: i32, _: RawFd) -> io::Result<OwnedFd> {
    unsupported("pidfd_getfd")
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

/// Domain, type and protocol of a socket. macOS doesn't tell the protocol, and has one for streams over IP; where there is
/// SCTP too, its kernel refuses TCP's options.
pub fn socket_kind(fd: RawFd) -> io::Result<(i32, i32, i32)> {
    // SAFETY: a number that isn't open gives EBADF, which is told.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let socket = SockRef::from(&fd);
    let (domain, kind) = (socket.local_addr()?.domain(), socket.r#type()?);
    let is_tcp = matches!(domain, Domain::IPV4 | Domain::IPV6) && kind == Type::STREAM;
    Ok((domain.into(), kind.into(), if is_tcp { Protocol::TCP.into() } else { 0 }))
}

pub fn is_tcp(fd: RawFd) -> io::Result<bool> {
    Ok(socket_kind(fd)?.2 == libc::IPPROTO_TCP)
}

pub fn rto_max_ms(_: RawFd) -> io::Result<u32> {
    unsupported("TCP_RTO_MAX_MS")
}

pub fn set_rto_max_ms(_: BorrowedFd<'_>, _: u32) -> io::Result<()> {
    unsupported("TCP_RTO_MAX_MS")
}

/// Ends both directions at once and leaves what has arrived to be read.
pub fn cut(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).shutdown(std::net::Shutdown::Both)
}

/// The owner's `close` resets the connection: `connect` with `AF_UNSPEC`, which does so at once, is EISCONN for TCP in BSD's
/// `soconnect`, and a `shutdown` would tell the peer of an orderly end.
pub fn abort(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).set_linger(Some(Duration::ZERO))
}

pub fn receive(fd: RawFd, room: &mut [MaybeUninit<u8>], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `room.len()` bytes there; a number that isn't open gives EBADF.
    let got = unsafe { libc::recv(fd, room.as_mut_ptr().cast(), room.len(), flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

pub fn transmit(fd: RawFd, data: &[u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the kernel reads `data.len()` bytes; a number that isn't open gives EBADF.
    let sent = unsafe { libc::send(fd, data.as_ptr().cast(), data.len(), flags) };
    usize::try_from(sent).map_err(|_| sending_error())
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
