//! TCP_INFO as values with units: a [`Sample`] for the guard's mind.

use std::io;
use std::mem::offset_of;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::net::sys::{self, RawTcpInfo};
use crate::proto::verdict::{Sample, TcpState};

/// One look at a connection.
pub fn sample(fd: RawFd) -> io::Result<Sample> {
    let (info, length) = sys::tcp_info(fd)?;
    let ms = |value: u32| Duration::from_millis(value.into());
    Ok(Sample {
        state: TcpState::from_kernel(info.state),
        unacked: info.unacked,
        probes: info.probes.into(),
        total_retrans: info.total_retrans,
        timeouts: info.retransmits.into(),
        unsent: info.notsent_bytes,
        bytes_acked: info.bytes_acked,
        bytes_received: info.bytes_received,
        segments_in: info.segs_in,
        data_segments_in: info.data_segs_in,
        out_of_order_in: info.rcv_ooopack,
        send_window: (length >= offset_of!(RawTcpInfo, snd_wnd) + 4).then_some(info.snd_wnd),
        receive_window: (length >= offset_of!(RawTcpInfo, rcv_wnd) + 4).then_some(info.rcv_wnd),
        since_data_sent: ms(info.last_data_sent),
        since_data_received: ms(info.last_data_recv),
        since_ack_received: ms(info.last_ack_recv),
        round_trip: Duration::from_micros(info.rtt.into()),
    })
}
