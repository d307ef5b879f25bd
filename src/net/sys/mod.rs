//! What differs between systems, behind one set of names.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::{MaybeUninitSlice, SockRef};

mod unix;
pub use unix::*;

// With `--cfg longconn_portable` Linux takes what is written for the others: so that is tried, where it can be.
#[cfg(all(target_os = "linux", not(longconn_portable)))]
mod linux;
#[cfg(all(target_os = "linux", not(longconn_portable)))]
pub use linux::*;

#[cfg(any(not(target_os = "linux"), longconn_portable))]
mod portable;
#[cfg(any(not(target_os = "linux"), longconn_portable))]
pub use portable::*;

/// Reads what is there, without waiting; none at the end of the stream.
pub fn receive_now<'r>(fd: BorrowedFd<'_>, room: &'r mut [MaybeUninit<u8>]) -> io::Result<&'r [u8]> {
    receive_into(fd, room, libc::MSG_DONTWAIT)
}

/// How a link's socket is to be: where MSG_DONTWAIT keeps only some calls from waiting, none may.
pub fn set_link_mode(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).set_nonblocking(!HEEDS_DONTWAIT)
}

/// Waits for something, as long as a link's `SO_RCVTIMEO` says; `WouldBlock` when that is over.
pub fn receive_waiting<'r>(fd: BorrowedFd<'_>, room: &'r mut [MaybeUninit<u8>]) -> io::Result<&'r [u8]> {
    wait_to_receive(fd)?;
    receive_into(fd, room, 0)
}

/// The same, to several places, one behind the other; how many bytes it were.
pub fn receive_waiting_parts(fd: BorrowedFd<'_>, places: Vec<&mut [MaybeUninit<u8>]>) -> io::Result<usize> {
    let mut places: Vec<_> = places.into_iter().map(MaybeUninitSlice::new).collect();
    wait_to_receive(fd)?;
    SockRef::from(&fd).recv_vectored(&mut places).map(|(length, _)| length)
}

/// What recv(2) does itself on a socket that blocks.
fn wait_to_receive(fd: BorrowedFd<'_>) -> io::Result<()> {
    if HEEDS_DONTWAIT || wait_ready(fd.as_raw_fd(), libc::POLLIN, SockRef::from(&fd).read_timeout()?)? {
        Ok(())
    } else {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

fn receive_into<'r>(fd: BorrowedFd<'_>, room: &'r mut [MaybeUninit<u8>], flags: libc::c_int) -> io::Result<&'r [u8]> {
    let length = receive(fd.as_raw_fd(), room, flags)?;
    // SAFETY: the kernel has written the first `length` bytes.
    Ok(unsafe { room[..length].assume_init_ref() })
}

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
