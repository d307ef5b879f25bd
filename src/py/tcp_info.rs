//! TCP_INFO for people: units in the names.

use std::os::fd::{IntoRawFd, RawFd};

use pyo3::prelude::*;

use super::errors::os_error;
use super::keepalive::borrow;
use crate::net::sys;
use crate::proto::verdict::TcpState;

macro_rules! tcp_info {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $value:expr;)*) => {
        #[doc = doc!("TcpInfo")]
        #[pyclass(frozen, get_all, eq, module = "longconn")]
        #[derive(Debug, PartialEq)]
        pub(super) struct TcpInfo { $($(#[$doc])* pub(super) $name: $type,)* }

        impl TcpInfo {
            pub(super) fn new(info: &sys::RawTcpInfo) -> Self {
                Self { $($name: $value(info),)* }
            }

            /// Field names and their values, in order.
            fn fields<'py>(&self, py: Python<'py>) -> PyResult<Vec<(&'static str, Bound<'py, PyAny>)>> {
                use pyo3::IntoPyObjectExt;
                Ok(vec![$((stringify!($name), (&self.$name).into_bound_py_any(py)?),)*])
            }
        }
    };
}

tcp_info! {
    state: &'static str = |i: &sys::RawTcpInfo| TcpState::from_kernel(i.state).name();
    retransmits: u8 = |i: &sys::RawTcpInfo| i.retransmits;
    probes: u8 = |i: &sys::RawTcpInfo| i.probes;
    backoff: u8 = |i: &sys::RawTcpInfo| i.backoff;
    retransmission_timeout_us: u32 = |i: &sys::RawTcpInfo| i.rto;
    round_trip_us: u32 = |i: &sys::RawTcpInfo| i.rtt;
    round_trip_variation_us: u32 = |i: &sys::RawTcpInfo| i.rttvar;
    least_round_trip_us: u32 = |i: &sys::RawTcpInfo| i.min_rtt;
    last_data_sent_ms: u32 = |i: &sys::RawTcpInfo| i.last_data_sent;
    last_data_received_ms: u32 = |i: &sys::RawTcpInfo| i.last_data_recv;
    last_ack_received_ms: u32 = |i: &sys::RawTcpInfo| i.last_ack_recv;
    unacked_segments: u32 = |i: &sys::RawTcpInfo| i.unacked;
    lost_segments: u32 = |i: &sys::RawTcpInfo| i.lost;
    retransmitted_segments: u32 = |i: &sys::RawTcpInfo| i.total_retrans;
    segments_in: u32 = |i: &sys::RawTcpInfo| i.segs_in;
    segments_out: u32 = |i: &sys::RawTcpInfo| i.segs_out;
    data_segments_in: u32 = |i: &sys::RawTcpInfo| i.data_segs_in;
    data_segments_out: u32 = |i: &sys::RawTcpInfo| i.data_segs_out;
    out_of_order_segments: u32 = |i: &sys::RawTcpInfo| i.rcv_ooopack;
    bytes_acked: u64 = |i: &sys::RawTcpInfo| i.bytes_acked;
    bytes_received: u64 = |i: &sys::RawTcpInfo| i.bytes_received;
    bytes_sent: u64 = |i: &sys::RawTcpInfo| i.bytes_sent;
    bytes_retransmitted: u64 = |i: &sys::RawTcpInfo| i.bytes_retrans;
    unsent_bytes: u32 = |i: &sys::RawTcpInfo| i.notsent_bytes;
    send_window_bytes: u32 = |i: &sys::RawTcpInfo| i.snd_wnd;
    receive_window_bytes: u32 = |i: &sys::RawTcpInfo| i.rcv_wnd;
    congestion_window_segments: u32 = |i: &sys::RawTcpInfo| i.snd_cwnd;
    send_segment_bytes: u32 = |i: &sys::RawTcpInfo| i.snd_mss;
    receive_segment_bytes: u32 = |i: &sys::RawTcpInfo| i.rcv_mss;
    path_mtu_bytes: u32 = |i: &sys::RawTcpInfo| i.pmtu;
    delivery_rate_bytes_per_second: u64 = |i: &sys::RawTcpInfo| i.delivery_rate;
}

#[pymethods]
impl TcpInfo {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let mut text = String::from("TcpInfo(");
        for (index, (name, value)) in self.fields(py)?.into_iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            text += &format!("{separator}{name}={}", value.repr()?);
        }
        Ok(text + ")")
    }

    /// All fields, by name.
    fn _asdict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, pyo3::types::PyDict>> {
        let all = pyo3::types::PyDict::new(py);
        for (name, value) in self.fields(py)? {
            all.set_item(name, value)?;
        }
        Ok(all)
    }
}

#[pyfunction]
pub(super) fn tcp_info(fd: RawFd) -> PyResult<TcpInfo> {
    borrow(fd)?;
    sys::tcp_info(fd).map(|(info, _)| TcpInfo::new(&info)).map_err(|e| os_error(&e))
}

/// A descriptor of another process, as one of ours, to be closed soon: while it is open, the other's `close` sends no FIN.
#[pyfunction]
pub(super) fn copy_descriptor(pid: i32, fd: RawFd) -> PyResult<RawFd> {
    sys::copy_descriptor(pid, fd).map(IntoRawFd::into_raw_fd).map_err(|e| os_error(&e))
}
