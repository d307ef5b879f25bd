//! Linux: the options and calls that socket2 doesn't know.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::{SockFilter, SockRef};

use super::RawTcpInfo;

/// `TCP_RTO_MAX_MS` (Linux 6.15): the longest retransmission timeout, 1000 to 120000 ms.
const TCP_RTO_MAX_MS: libc::c_int = 44;

/// `BPF_RET | BPF_K` of `linux/bpf_common.h`: keep so many bytes.
const BPF_RETURN: u16 = 0x06;

pub const PLATFORM: &str = "Linux";
/// Whole seconds, as `tcp(7)` and `net/ipv4/tcp.c` (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`) have it.
pub const KEEPALIVE_SECONDS: (u64, u64) = (1, 32767);
/// `MAX_TCP_KEEPCNT` of the kernel.
pub const KEEPALIVE_COUNT: (u32, u32) = (1, 127);
/// Without waiting, and without SIGPIPE.
pub const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
/// MSG_DONTWAIT keeps sending from waiting as well, whatever the descriptor says.
pub const HEEDS_DONTWAIT: bool = true;
/// The guard needs `TCP_INFO`, `SO_COOKIE` and an abort.
pub const HAS_GUARD: bool = true;

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

/// The smoothed round trip.
pub fn round_trip(fd: RawFd) -> io::Result<Duration> {
    tcp_info(fd).map(|(info, _)| Duration::from_micros(info.rtt.into()))
}

/// `TCP_USER_TIMEOUT` (RFC 5482), milliseconds; zero is the system's own.
pub fn user_timeout(fd: BorrowedFd<'_>) -> io::Result<Option<Duration>> {
    SockRef::from(&fd).tcp_user_timeout().map(|timeout| Some(timeout.unwrap_or_default()))
}

pub fn set_user_timeout(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    SockRef::from(&fd).set_tcp_user_timeout(Some(timeout))
}

/// How long a retransmission timeout may grow on this socket (`TCP_RTO_MAX_MS`), milliseconds.
pub fn rto_max_ms(fd: RawFd) -> io::Result<u32> {
    get_option(fd, libc::IPPROTO_TCP, TCP_RTO_MAX_MS).map(|(ms, _)| ms)
}

/// The kernel refuses what lies outside of 1000 to 120000.
pub fn set_rto_max_ms(fd: BorrowedFd<'_>, ms: u32) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, &ms)
}

/// Ends both directions at once and leaves what has arrived to be read: blocked and later calls find that, and then
/// the end.
pub fn cut(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a system call on a descriptor that is open.
    let code = unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
    cut(fd).map_err(|_| refused)
}

/// While it is deaf nothing reaches a socket, neither data nor probes nor acknowledgements, and nobody is told: a filter that drops
/// each segment before TCP sees it (`SO_ATTACH_FILTER`, `socket(7)`). It takes no rights.
pub fn set_deaf(fd: BorrowedFd<'_>, deaf: bool) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    if deaf { socket.attach_filter(&[SockFilter::new(BPF_RETURN, 0, 0, 0)]) } else { socket.detach_filter() }
}

/// While it is mute nothing that it sends over loopback arrives, neither data nor acknowledgements: it asks for a strict source route
/// (RFC 791), which hosts refuse (`accept_source_route` of ip-sysctl, off by default). New kernels want CAP_NET_RAW for that (6.18 does).
pub fn set_mute(fd: BorrowedFd<'_>, mute: bool) -> io::Result<()> {
    /// Type, length, the place of the next of its addresses, that address, and the end of the list.
    const STRICT_ROUTE: [u8; 8] = [137, 7, 4, 127, 0, 0, 1, 0];
    if mute {
        set_option(fd, libc::IPPROTO_IP, libc::IP_OPTIONS, &STRICT_ROUTE)
    } else {
        set_option(fd, libc::IPPROTO_IP, libc::IP_OPTIONS, &())
    }
}

/// `recv(2)`, but no cancellation point: as soon as a process has a second thread, glibc brackets its own with two atomic
/// operations, which a round trip on loopback feels. Nobody cancels a thread of Python's.
pub fn receive(fd: RawFd, room: &mut [MaybeUninit<u8>], flags: libc::c_int) -> io::Result<usize> {
    let nobody = std::ptr::null::<libc::c_void>();
    // SAFETY: the kernel writes at most `room.len()` bytes there; a number that isn't open gives EBADF.
    let got = unsafe { libc::syscall(libc::SYS_recvfrom, fd, room.as_mut_ptr(), room.len(), flags, nobody, nobody) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// `send(2)`, likewise.
pub fn transmit(fd: RawFd, data: &[u8], flags: libc::c_int) -> io::Result<usize> {
    let nobody = std::ptr::null::<libc::c_void>();
    // SAFETY: the kernel reads `data.len()` bytes; a number that isn't open gives EBADF.
    let sent = unsafe { libc::syscall(libc::SYS_sendto, fd, data.as_ptr(), data.len(), flags, nobody, 0) };
    usize::try_from(sent).map_err(|_| sending_error())
}

/// Why the kernel took nothing.
pub(super) fn sending_error() -> io::Error {
    io::Error::last_os_error()
}

/// `poll(2)` of one descriptor, likewise, where the kernel has it: newer architectures have only `ppoll`, which is slower.
pub(super) fn poll(entry: &mut libc::pollfd, timeout_ms: libc::c_int) -> io::Result<bool> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: one pollfd, which lives through the call.
    let code = unsafe { libc::syscall(libc::SYS_poll, std::ptr::from_mut(entry), 1, timeout_ms) };
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: as above.
    let code = unsafe { libc::poll(entry, 1, timeout_ms) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code > 0) }
}

/// Wakes who polls it; it stays readable until it is cleared (`eventfd(2)`).
#[derive(Debug)]
pub struct Wakeup(OwnedFd);

impl Wakeup {
    pub fn new() -> io::Result<Self> {
        // SAFETY: a system call with two integers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Fails only when it is set four thousand million times, and is set then.
    pub fn set(&self) {
        let one = 1_u64;
        // SAFETY: the kernel reads the eight bytes of `one`.
        unsafe { libc::syscall(libc::SYS_write, self.0.as_raw_fd(), &raw const one, size_of::<u64>()) };
    }

    pub fn clear(&self) {
        clear_counter(self.0.as_fd());
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn clear_counter(fd: BorrowedFd<'_>) {
    let mut count = 0_u64;
    // SAFETY: the kernel writes the eight bytes of `count`.
    unsafe { libc::syscall(libc::SYS_read, fd.as_raw_fd(), &raw mut count, size_of::<u64>()) };
}

/// A wake-up that comes after a while, finer than `epoll_wait`'s milliseconds (`timerfd_create(2)`).
#[derive(Debug)]
pub struct DelayedWakeup(OwnedFd);

impl DelayedWakeup {
    pub fn new() -> io::Result<Self> {
        // SAFETY: a system call with two integers.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Replaces what was set before; a delay of a second or more is cut.
    pub fn set_after(&self, delay: Duration) {
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let after =
            libc::timespec { tv_sec: 0, tv_nsec: libc::c_long::from(delay.subsec_nanos().max(1).cast_signed()) };
        let setting = libc::itimerspec { it_interval: never, it_value: after };
        // SAFETY: the kernel reads `setting`, which lives through the call, and is asked for no old one.
        unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const setting, std::ptr::null_mut()) };
    }

    pub fn clear(&self) {
        clear_counter(self.0.as_fd());
    }
}

impl AsFd for DelayedWakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// For a thread that begins in a forked child, before it looks anything up. glibc keeps a thread's state for names at its stack, and
/// hands the stacks of the parent's threads on to the child's as they are. If one of those was asking a server, the state has its
/// socket, which the parent uses too: either would take the other's answers. (A thread that ends cleans up.)
#[cfg(target_env = "gnu")]
pub fn begin_names_anew() {
    /// The beginning of `struct __res_state` (resolv.h), whose form is fixed.
    #[repr(C)]
    struct State {
        retrans: libc::c_int,
        retry: libc::c_int,
        options: libc::c_ulong,
        nscount: libc::c_int,
    }
    unsafe extern "C" {
        fn __res_state() -> *mut State;
    }
    // SAFETY: it is this thread's own and at least as long; without RES_INIT in its options the next look-up fills it in, as that of
    // a thread that has made none. The socket is left open: its number may be another's by now.
    unsafe { __res_state().write(State { retrans: 0, retry: 0, options: 0, nscount: 0 }) };
}

#[cfg(not(target_env = "gnu"))]
pub fn begin_names_anew() {}

/// A descriptor of another process, as one of ours: the same socket, not another one (`pidfd_getfd(2)`, Linux 5.6). It needs the right to
/// trace that process. While it lives, the other's `close` sends no FIN.
pub fn copy_descriptor(pid: i32, number: RawFd) -> io::Result<OwnedFd> {
    let own = |code: libc::c_long| {
        let fd = RawFd::try_from(code).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just made this descriptor, close-on-exec, and nobody else knows of it.
        Ok::<_, io::Error>(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: a system call with integers; a process that isn't there gives ESRCH.
    let process = own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: likewise; a number that isn't open there gives EBADF.
    own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

/// How long the machine was suspended since it booted: what `CLOCK_BOOTTIME` counts and `CLOCK_MONOTONIC` doesn't.
/// Two readings, hence exact to within the time between them.
#[must_use]
pub fn time_suspended() -> Duration {
    let monotonic = super::read_clock(libc::CLOCK_MONOTONIC);
    super::read_clock(libc::CLOCK_BOOTTIME).saturating_sub(monotonic)
}

/// Random bytes fit for secrets (`getrandom(2)`).
pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: the kernel writes at most `rest.len()` bytes there.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
