//! The end of a connection: how it is said, how long it may take, and what is said of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pyo3::exceptions::{PyResourceWarning, PyTimeoutError, PyValueError};
use pyo3::prelude::*;

use super::{Connection, wait_for};
use crate::engine::link::{Link, LinkError};
use crate::proto::cause::{Cause, Ending};
use crate::proto::close::{Close, CloseCode, FIRST_APPLICATION_CODE};
use crate::py::plain::check_framed;
use crate::py::timeout::Timeout;

/// How long a goodbye takes at most where no timeout is set: long enough for what is under way, and an end all the same.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The same when an exception leaves the `with` block.
pub(super) const HASTE: Duration = Duration::from_secs(1);
/// For ever, for instants.
pub(super) const AGES: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

impl Connection {
    /// Says goodbye as `close` is asked to.
    pub(in crate::py) fn begin_close(&self, py: Python<'_>, code: i64, reason: &str, timeout: Timeout) -> PyResult<()> {
        let close = close_frame(code, reason)?;
        if code != 0 || !reason.is_empty() {
            check_framed(&self.link, "close() with a code or a reason")?;
        }
        self.say_goodbye(py, close, timeout.or(Some(self.settled().unwrap_or(PATIENCE))))
    }

    /// The same for a program that goes on with an exception.
    pub(in crate::py) fn leave(&self, py: Python<'_>) -> PyResult<()> {
        let grace = self.settled().unwrap_or(PATIENCE).min(HASTE);
        self.say_goodbye(py, Close::new(CloseCode::GOING_AWAY, ""), Some(grace))
    }

    /// Says goodbye for a handler that won't come back to it.
    pub(in crate::py) fn abandon(&self, py: Python<'_>, has_failed: bool) -> PyResult<()> {
        if has_failed {
            self.say_goodbye(py, Close::new(CloseCode::FAILED, "its handler has failed"), Some(HASTE))
        } else {
            self.leave(py)
        }
    }

    pub(super) fn say_goodbye(&self, py: Python<'_>, close: Close, grace: Option<Duration>) -> PyResult<()> {
        self.is_closed.store(true, Ordering::Relaxed);
        let grace = grace.unwrap_or(AGES).min(AGES);
        match py.detach(|| self.link.close(close, grace)) {
            // What the parent's child drops is closed here already.
            Ok(()) | Err(LinkError::Forked) => Ok(()),
            Err(error) => Err(self.error(py, error)),
        }
    }

    pub(super) fn wait_closed(&self, py: Python<'_>) -> PyResult<Option<Arc<Ending>>> {
        match wait_for(py, &self.link, None, |link, deadline| link.wait_ended(deadline))? {
            Ok(ending) => Ok(Some(ending)),
            Err(LinkError::Forked) => Ok(None),
            Err(error) => Err(self.error(py, error)),
        }
    }

    /// What `close` has to say to how it has ended.
    pub(in crate::py) fn judge(&self, py: Python<'_>, ending: Option<Arc<Ending>>) -> PyResult<()> {
        match ending {
            Some(ending) if !self.is_told.swap(true, Ordering::Relaxed) && ending.untaken_bytes > 0 => {
                if ending.cause != Cause::Closed || ending.by_peer {
                    // That such a peer takes nothing more is no news behind the end of its stream.
                    if self.ask(py, Link::knows_end)? {
                        return Ok(());
                    }
                    return Err(self.error(py, LinkError::Ended(ending)));
                }
                let whose = if self.link.framing().is_none() { "program had not taken" } else { "kernel had not got" };
                Err(PyTimeoutError::new_err(format!(
                    "closed, but the peer's {whose} {} bytes in time",
                    ending.untaken_bytes
                )))
            }
            _ => Ok(()),
        }
    }
}

/// As a socket that nobody has closed: it is said, and done.
impl Drop for Connection {
    fn drop(&mut self) {
        if !self.is_owner.load(Ordering::Relaxed) {
            return;
        }
        Python::try_attach(|py| {
            let is_over = py.detach(|| {
                let is_over = !matches!(self.link.ending(), Ok(None));
                let _ = self.link.forget();
                is_over
            });
            if is_over || self.is_closed.load(Ordering::Relaxed) {
                return;
            }
            let pending = PyErr::take(py);
            let (ours, theirs) = (self.link.local_address(), self.link.peer_address());
            let text = std::ffi::CString::new(format!("unclosed <{} {ours} -> {theirs}>", self.class_name()));
            let warned = text.map_or(Ok(()), |text| PyErr::warn(py, &py.get_type::<PyResourceWarning>(), &text, 1));
            if let Err(error) = warned {
                error.write_unraisable(py, None);
            }
            if let Some(pending) = pending {
                pending.restore(py);
            }
            // It doesn't wait; what was sent gets its chance.
            let _ = py.detach(|| self.link.close(Close::new(CloseCode::GOING_AWAY, ""), HASTE));
        });
    }
}

pub(in crate::py) fn close_frame(code: i64, reason: &str) -> PyResult<Close> {
    let code = match u16::try_from(code) {
        Ok(code @ (0 | 1)) => code,
        Ok(code) if code >= FIRST_APPLICATION_CODE => code,
        _ => {
            return Err(PyValueError::new_err(format!(
                "code={code}: 0 (normal), 1 (going away), or one of the program's own, {FIRST_APPLICATION_CODE} to 65535"
            )));
        }
    };
    if reason.len() > 1024 {
        return Err(PyValueError::new_err(format!("reason: {} bytes, at most 1024", reason.len())));
    }
    Ok(Close::new(CloseCode(code), reason))
}
