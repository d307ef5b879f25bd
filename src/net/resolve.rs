//! Names to addresses, by getaddrinfo(3): with the machine's own files, order (RFC 6724) and servers. It blocks.

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::ptr;

/// What getaddrinfo(3) said instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookUpError {
    /// `EAI_NONAME`, `EAI_AGAIN` and so on, in this system's numbers, as `socket.gaierror` has them.
    pub code: i32,
    /// The system's, with `EAI_SYSTEM`.
    pub errno: Option<i32>,
}

impl LookUpError {
    /// The name may be found at another time: no server could be asked, or something was short.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self.code, libc::EAI_AGAIN | libc::EAI_MEMORY | libc::EAI_SYSTEM)
    }

    /// The one that is in `error`.
    #[must_use]
    pub fn within(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl std::fmt::Display for LookUpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(errno) = self.errno {
            return io::Error::from_raw_os_error(errno).fmt(f);
        }
        // SAFETY: gai_strerror gives a string that lives for ever, for any number.
        unsafe { CStr::from_ptr(libc::gai_strerror(self.code)) }.to_string_lossy().fmt(f)
    }
}

impl std::error::Error for LookUpError {}

impl From<LookUpError> for io::Error {
    fn from(error: LookUpError) -> Self {
        let kind = if error.is_temporary() { io::ErrorKind::Other } else { io::ErrorKind::NotFound };
        Self::new(kind, error)
    }
}

/// Addresses without a port; those of IPv6 with their scope.
pub type Addresses = Vec<SocketAddr>;

/// The address that `host` is itself, without asking anybody: also `fe80::1%eth0`, and the short forms of inet_aton(3).
#[must_use]
pub fn numeric(host: &str) -> Option<SocketAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some((address, 0).into());
    }
    get_addresses(host, libc::AI_NUMERICHOST).ok()?.first().copied()
}

/// In the order in which they are to be tried. It takes as long as the servers take, and can't be cancelled.
pub fn look_up(host: &str) -> Result<Addresses, LookUpError> {
    get_addresses(host, 0)
}

fn get_addresses(host: &str, flags: libc::c_int) -> Result<Addresses, LookUpError> {
    // No name has a NUL in it.
    let host = CString::new(host).map_err(|_| LookUpError { code: libc::EAI_NONAME, errno: None })?;
    // SAFETY: an addrinfo of zeros is one without wishes.
    let mut hints: libc::addrinfo = unsafe { mem::zeroed() };
    hints.ai_family = libc::AF_UNSPEC;
    hints.ai_socktype = libc::SOCK_STREAM;
    hints.ai_flags = flags;
    let mut list = ptr::null_mut();
    // SAFETY: the name ends with NUL, the hints live through the call, and the list is written on success only.
    let code = unsafe { libc::getaddrinfo(host.as_ptr(), ptr::null(), &raw const hints, &raw mut list) };
    if code != 0 {
        let errno = (code == libc::EAI_SYSTEM).then(|| io::Error::last_os_error().raw_os_error()).flatten();
        return Err(LookUpError { code, errno });
    }
    let mut addresses = Vec::new();
    let mut next = list;
    // SAFETY: getaddrinfo made a list that ends with null, and it is freed below only.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: the entry's address is of the family that it says, or null.
        addresses.extend(unsafe { address(entry) });
        next = entry.ai_next;
    }
    // SAFETY: the list is getaddrinfo's own, freed once; nothing of it is kept.
    unsafe { libc::freeaddrinfo(list) };
    Ok(addresses)
}

/// # Safety
///
/// `ai_addr` is null, or a whole address of the family `ai_family`.
unsafe fn address(entry: &libc::addrinfo) -> Option<SocketAddr> {
    match entry.ai_family {
        libc::AF_INET => {
            // SAFETY: the caller's promise; it may lie anywhere.
            let v4 = unsafe { entry.ai_addr.cast::<libc::sockaddr_in>().as_ref() }?;
            Some((Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)), 0).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { entry.ai_addr.cast::<libc::sockaddr_in6>().as_ref() }?;
            Some(SocketAddrV6::new(v6.sin6_addr.s6_addr.into(), 0, 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}
