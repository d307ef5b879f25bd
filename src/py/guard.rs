//! The guard of one socket, for Python.

use std::os::fd::RawFd;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::callback::call;
use super::errors::{os_error, seconds};
use super::keepalive::{borrow, keepalive};
use crate::engine::guard::{self, Conviction, Judged, Plan, StartError};
use crate::proto::verdict::Cause;

/// A guarded socket.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct Watch {
    pub(super) inner: Arc<guard::Watch>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        guard::owner_dropped(&self.inner);
    }
}

/// (cause, silence and limit in seconds, judged by)
type Told = (&'static str, f64, f64, &'static str);

fn told(conviction: Conviction) -> Told {
    let cause = match conviction.cause {
        Cause::Unreachable => "unreachable",
        Cause::Deaf => "deaf",
    };
    let judged = match conviction.judged {
        Judged::ByGuard => "guard",
        Judged::ByKernel => "kernel",
    };
    (cause, conviction.silence.as_secs_f64(), conviction.limit.as_secs_f64(), judged)
}

#[pymethods]
impl Watch {
    #[getter]
    fn conviction(&self) -> Option<Told> {
        self.inner.conviction().map(told)
    }

    /// Looks now, before the next look is due.
    fn look(&self, py: Python<'_>) {
        py.detach(|| guard::look_now(&self.inner));
    }

    #[getter]
    fn looks(&self) -> u32 {
        self.inner.looks()
    }

    #[getter]
    fn is_active(&self) -> bool {
        self.inner.is_active()
    }

    #[getter]
    fn rto_max_ms(&self) -> Option<u32> {
        self.inner.rto_max_ms()
    }

    /// (host, port) of the other side, once the connection was made.
    #[getter]
    fn peer(&self) -> Option<(String, u16)> {
        self.inner.peer().map(|(host, port)| (host.to_string(), port))
    }

    #[pyo3(signature = (*, restore = false))]
    fn stop(&self, py: Python<'_>, restore: bool) {
        py.detach(|| guard::stop(&self.inner, restore));
    }

    fn disown(&self, py: Python<'_>) {
        py.detach(|| guard::disown(&self.inner));
    }
}

/// Begins to guard a descriptor. `keepalive` is (enabled, idle, interval, count) to set and to put back.
#[pyfunction]
#[pyo3(signature = (fd, limit, *, is_owned = false, may_be_unconnected = false, keepalive_options = None, on_lost = None))]
pub(super) fn watch(
    py: Python<'_>,
    fd: RawFd,
    limit: f64,
    is_owned: bool,
    may_be_unconnected: bool,
    keepalive_options: Option<(bool, f64, f64, u32)>,
    on_lost: Option<Py<PyAny>>,
) -> PyResult<Watch> {
    let limit = seconds(limit)?;
    let fd = borrow(fd)?;
    let keepalive = keepalive_options
        .map(|(enabled, idle, interval, count)| keepalive(Some(enabled), Some(idle), Some(interval), Some(count), None))
        .transpose()?;
    let plan = Plan { keepalive, is_owned, may_be_unconnected, on_lost: on_lost.map(callback) };
    py.detach(|| guard::start(fd, limit, plan)).map(|inner| Watch { inner }).map_err(|error| match error {
        StartError::System(error) => os_error(&error),
        error => PyValueError::new_err(error.to_string()),
    })
}

/// Runs on the thread of the notices; what it raises has no caller to go to.
fn callback(function: Py<PyAny>) -> Box<dyn FnOnce(Conviction) + Send> {
    Box::new(move |conviction| {
        Python::try_attach(|py| {
            if let Err(error) = call(function.bind(py), told(conviction)) {
                error.write_unraisable(py, Some(function.bind(py)));
            }
            drop(function);
        });
    })
}

#[pyfunction]
pub(super) fn has_rto_max(fd: RawFd) -> bool {
    guard::has_rto_max(fd)
}

/// The retransmission limit that a guard of `limit` seconds asks for.
#[pyfunction]
pub(super) fn rto_max_for(limit: f64) -> PyResult<f64> {
    Ok(guard::rto_max_for(seconds(limit)?).as_secs_f64())
}

#[pyfunction]
pub(super) fn pretend_no_rto_max(pretend: bool) {
    guard::pretend_no_rto_max(pretend);
}
