//! Linux: the options and calls that socket2 doesn't know.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// `TCP_RTO_MAX_MS` (Linux 6.15): the longest retransmission timeout, 1000 to 120000 ms.
const TCP_RTO_MAX_MS: libc::c_int = 44;

pub const PLATFORM: &str = "Linux";
/// Whole seconds, as `tcp(7)` and `net/ipv4/tcp.c` (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`) have it.
pub const KEEPALIVE_SECONDS: (u64, u64) = (1, 32767);
/// `MAX_TCP_KEEPCNT` of the kernel.
pub const KEEPALIVE_COUNT: (u32, u32) = (1, 127);
/// The guard needs `TCP_INFO`, `SO_COOKIE` and an abort.
pub const HAS_GUARD: bool = true;

/// `struct tcp_info` of `linux/tcp.h` as of Linux 6.18; older kernels fill in less of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RawTcpInfo {
    pub state: u8,
    pub ca_state: u8,
    pub retransmits: u8,
    pub probes: u8,
    pub backoff: u8,
    pub options: u8,
    pub window_scales: u8,
    pub flags: u8,
    pub rto: u32,
    pub ato: u32,
    pub snd_mss: u32,
    pub rcv_mss: u32,
    pub unacked: u32,
    pub sacked: u32,
    pub lost: u32,
    pub retrans: u32,
    pub fackets: u32,
    pub last_data_sent: u32,
    pub last_ack_sent: u32,
    pub last_data_recv: u32,
    pub last_ack_recv: u32,
    pub pmtu: u32,
    pub rcv_ssthresh: u32,
    pub rtt: u32,
    pub rttvar: u32,
    pub snd_ssthresh: u32,
    pub snd_cwnd: u32,
    pub advmss: u32,
    pub reordering: u32,
    pub rcv_rtt: u32,
    pub rcv_space: u32,
    pub total_retrans: u32,
    pub pacing_rate: u64,
    pub max_pacing_rate: u64,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub segs_out: u32,
    pub segs_in: u32,
    pub notsent_bytes: u32,
    pub min_rtt: u32,
    pub data_segs_in: u32,
    pub data_segs_out: u32,
    pub delivery_rate: u64,
    pub busy_time: u64,
    pub rwnd_limited: u64,
    pub sndbuf_limited: u64,
    pub delivered: u32,
    pub delivered_ce: u32,
    pub bytes_sent: u64,
    pub bytes_retrans: u64,
    pub dsack_dups: u32,
    pub reord_seen: u32,
    pub rcv_ooopack: u32,
    pub snd_wnd: u32,
    pub rcv_wnd: u32,
    pub rehash: u32,
}

/// Reads an option whose value is plain data; returns the length that the kernel filled in.
///
/// It takes a bare number: to read from a descriptor that was closed, or is another's by now, harms nobody, and
/// the guard tells by the cookie.
fn get_option<T: Copy + Default>(fd: RawFd, level: libc::c_int, name: libc::c_int) -> io::Result<(T, usize)> {
    let mut value = T::default();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is plain data of `length` bytes, every pattern of which is valid for the integer types
    // and structs of integers that this module asks for; the kernel writes at most `length` bytes.
    let code = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut length) };
    if code == 0 { Ok((value, length as usize)) } else { Err(io::Error::last_os_error()) }
}

fn set_option<T: Copy>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which lives through the call.
    let code = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `TCP_INFO`, and how many bytes of it this kernel knows.
pub fn tcp_info(fd: RawFd) -> io::Result<(RawTcpInfo, usize)> {
    get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO)
}

/// `SO_COOKIE`: a number no other socket of this boot has, so that a reused descriptor is told apart.
pub fn cookie(fd: RawFd) -> io::Result<u64> {
    get_option(fd, libc::SOL_SOCKET, libc::SO_COOKIE).map(|(cookie, _)| cookie)
}

/// Domain, type and protocol of a socket; the last tells TCP from MPTCP and SCTP, which are streams too.
pub fn socket_kind(fd: RawFd) -> io::Result<(i32, i32, i32)> {
    let number = |name| get_option::<libc::c_int>(fd, libc::SOL_SOCKET, name).map(|(value, _)| value);
    Ok((number(libc::SO_DOMAIN)?, number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?))
}

pub fn is_tcp(fd: RawFd) -> io::Result<bool> {
    let (domain, _, protocol) = socket_kind(fd)?;
    Ok(protocol == libc::IPPROTO_TCP && matches!(domain, libc::AF_INET | libc::AF_INET6))
}

/// How long a retransmission timeout may grow on this socket (`TCP_RTO_MAX_MS`), milliseconds.
pub fn rto_max_ms(fd: RawFd) -> io::Result<u32> {
    get_option(fd, libc::IPPROTO_TCP, TCP_RTO_MAX_MS).map(|(ms, _)| ms)
}

/// The kernel refuses what lies outside of 1000 to 120000.
pub fn set_rto_max_ms(fd: BorrowedFd<'_>, ms: u32) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, &ms)
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

/// Resets the connection at once: blocked and later calls fail, the peer gets RST.
///
/// `connect` with `AF_UNSPEC` dissolves an association (`connect(2)`); for TCP that is an abort. Where the
/// kernel refuses (some 6.5 and 6.6 say EBUSY while somebody waits in `connect`), `SO_LINGER` 0 makes the
/// owner's `close` a reset, and `shutdown` wakes who waits.
pub fn abort(fd: BorrowedFd<'_>) -> io::Result<()> {
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the address is a whole sockaddr that lives through the call.
    let code =
        unsafe { libc::connect(fd.as_raw_fd(), &raw const nobody, size_of::<libc::sockaddr>() as libc::socklen_t) };
    if code == 0 {
        return Ok(());
    }
    let refused = io::Error::last_os_error();
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger)?;
    // SAFETY: a system call on a descriptor that is open.
    let code = unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
    if code == 0 { Ok(()) } else { Err(refused) }
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
    // Up to the next millisecond, as CPython rounds; poll(2) is a little cheaper than ppoll(2).
    let timeout = timeout.map_or(-1, |timeout| {
        libc::c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
    });
    // SAFETY: one pollfd, which lives through the call.
    let code = unsafe { libc::poll(&raw mut entry, 1, timeout) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code > 0) }
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
