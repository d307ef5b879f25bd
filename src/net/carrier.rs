//! Whether the cable is out: what would go to an address leaves by an interface that has no carrier, as far as the kernel knows.

use std::net::IpAddr;

/// A SYN that leaves by such an interface isn't only in vain: it makes the kernel look for the gateway's hardware address, and
/// until it gives up, 3 s later, it looks once a second (`mcast_solicit`, `retrans_time_ms`; arp(7)). So the path would be used up to
/// a second after the cable is back. False where it can't be told.
#[cfg(target_os = "linux")]
#[must_use]
pub fn is_out(towards: IpAddr) -> bool {
    linux::is_running(towards) == Some(false)
}

#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn is_out(_: IpAddr) -> bool {
    false
}

/// rtnetlink(7), and `linux/rtnetlink.h`. The kernel answers before `send` is back.
#[cfg(target_os = "linux")]
mod linux {
    use std::mem::MaybeUninit;
    use std::net::IpAddr;
    use std::os::fd::AsFd;

    use socket2::{Domain, Protocol, Socket, Type};

    use crate::net::sys;

    /// `struct nlmsghdr`, `rtmsg`, `ifinfomsg`, `rtattr`.
    const HEADER: usize = 16;
    const ROUTE: usize = 12;
    const ATTRIBUTE: usize = 4;
    /// The route as it stands in the table, and not what comes of it for one packet (Linux 4.13): one with several interfaces, of
    /// which another connection may take another, has no `RTA_OIF`.
    const FIB_MATCH: u32 = 0x2000;

    pub(super) fn is_running(towards: IpAddr) -> Option<bool> {
        let socket =
            Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), Some(Protocol::from(libc::NETLINK_ROUTE)));
        let socket = socket.ok()?;
        let flags = interface_flags(&socket, interface_towards(&socket, towards)?)?;
        Some(flags & libc::IFF_RUNNING.cast_unsigned() != 0)
    }

    /// The number of the interface that the kernel's routes choose; none if that isn't sure, or it is this machine's own address.
    fn interface_towards(socket: &Socket, address: IpAddr) -> Option<u32> {
        let (family, octets) = match address {
            IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
            // It stands on each interface, and whose is meant its scope says.
            IpAddr::V6(address) if address.is_unicast_link_local() => return None,
            IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
        };
        let length = u8::try_from(octets.len()).ok()?;
        let mut route = vec![0; ROUTE];
        (route[0], route[1]) = (u8::try_from(family).ok()?, 8 * length);
        route[8..].copy_from_slice(&FIB_MATCH.to_ne_bytes());
        route.extend(u16::try_from(ATTRIBUTE).ok()?.checked_add(length.into())?.to_ne_bytes());
        route.extend(libc::RTA_DST.to_ne_bytes());
        route.extend(octets);
        let mut room = [MaybeUninit::uninit(); 1024];
        let answer = ask(socket, libc::RTM_GETROUTE, libc::RTM_NEWROUTE, &route, &mut room)?;
        if answer.get(7) != Some(&libc::RTN_UNICAST) {
            return None;
        }
        let mut attributes = answer.get(ROUTE..)?;
        loop {
            let (length, kind) = (number16(attributes, 0)?, number16(attributes, 2)?);
            if kind == libc::RTA_OIF {
                return number32(attributes, ATTRIBUTE);
            }
            // Each begins at a multiple of four; one of no length would never end.
            attributes = attributes.get(usize::from(length).max(ATTRIBUTE).next_multiple_of(4)..)?;
        }
    }

    fn interface_flags(socket: &Socket, number: u32) -> Option<u32> {
        let mut interface = [0; 16];
        interface[4..8].copy_from_slice(&number.to_ne_bytes());
        // What doesn't fit (statistics) isn't wanted.
        let mut room = [MaybeUninit::uninit(); 1024];
        let answer = ask(socket, libc::RTM_GETLINK, libc::RTM_NEWLINK, &interface, &mut room)?;
        number32(answer, 8)
    }

    /// The body of the answer.
    fn ask<'r>(
        socket: &Socket,
        kind: u16,
        answer: u16,
        body: &[u8],
        room: &'r mut [MaybeUninit<u8>],
    ) -> Option<&'r [u8]> {
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(u32::try_from(HEADER + body.len()).ok()?.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(u16::try_from(libc::NLM_F_REQUEST).ok()?.to_ne_bytes());
        message.extend([0; 8]); // a number in a sequence, and whose it is
        message.extend(body);
        socket.send(&message).ok()?;
        let got = sys::receive_now(socket.as_fd(), room).ok()?;
        (number16(got, 4)? == answer).then(|| &got[HEADER..])
    }

    fn number16(bytes: &[u8], at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
    }

    fn number32(bytes: &[u8], at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    }
}
