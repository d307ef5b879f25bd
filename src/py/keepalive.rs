//! The kernel's keepalive options of a descriptor.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::errors::{os_error, seconds};
use crate::net::keepalive::Keepalive;

/// A descriptor that Python's caller says is open; -1 is what closed sockets answer.
pub(super) fn borrow<'a>(fd: RawFd) -> PyResult<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("file descriptor {fd}: the socket is closed")));
    }
    // SAFETY: not -1. The caller holds the socket during the call; should another thread close it meanwhile,
    // the kernel answers EBADF, as it does the stdlib's own calls.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A socket's descriptor that Python's caller has detached from its object, to be ours from here on.
pub(super) fn take_over(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err("no socket"));
    }
    // SAFETY: the caller has detached it from its socket object, so nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn keepalive(
    enabled: Option<bool>,
    idle: Option<f64>,
    interval: Option<f64>,
    count: Option<u32>,
    user_timeout: Option<f64>,
) -> PyResult<Keepalive> {
    Ok(Keepalive {
        enabled,
        idle: idle.map(seconds).transpose()?,
        interval: interval.map(seconds).transpose()?,
        count,
        user_timeout: user_timeout.map(seconds).transpose()?,
    })
}

#[pyfunction]
#[pyo3(signature = (fd, *, enabled = None, idle = None, interval = None, count = None, user_timeout = None))]
pub(super) fn apply_keepalive(
    fd: RawFd,
    enabled: Option<bool>,
    idle: Option<f64>,
    interval: Option<f64>,
    count: Option<u32>,
    user_timeout: Option<f64>,
) -> PyResult<()> {
    keepalive(enabled, idle, interval, count, user_timeout)?.apply(borrow(fd)?).map_err(|e| os_error(&e))
}

/// (enabled, idle, interval, count, `user_timeout`), durations in seconds; `user_timeout` 0 is the system's own.
type Options = (Option<bool>, Option<f64>, Option<f64>, Option<u32>, Option<f64>);

#[pyfunction]
pub(super) fn keepalive_of(fd: RawFd) -> PyResult<Options> {
    let now = Keepalive::of(borrow(fd)?).map_err(|e| os_error(&e))?;
    let seconds = |value: Option<std::time::Duration>| value.map(|value| value.as_secs_f64());
    Ok((now.enabled, seconds(now.idle), seconds(now.interval), now.count, seconds(now.user_timeout)))
}

/// (domain, type, protocol)
#[pyfunction]
pub(super) fn socket_kind(fd: RawFd) -> PyResult<(i32, i32, i32)> {
    borrow(fd)?;
    crate::net::sys::socket_kind(fd).map_err(|e| os_error(&e))
}
