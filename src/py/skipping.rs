//! Skipping time, for tests.

use std::io;
use std::sync::{Arc, Mutex};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::errors::{listener_error, os_error, seconds};
use crate::engine::clock;
use crate::engine::link::LinkError;
use crate::engine::skipping::Skipper;
use crate::engine::sync::lock;

/// What `FakeClock` stands on; none once that is closed.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct Clock(Mutex<Option<Arc<Skipper>>>);

#[pymethods]
impl Clock {
    #[new]
    fn new() -> Self {
        Self(Mutex::new(Some(Arc::new(Skipper::new()))))
    }

    fn close(&self) {
        lock(&self.0).take();
    }

    /// Of the time of day, in seconds.
    #[getter]
    fn ahead(&self) -> f64 {
        clock::ahead().as_secs_f64()
    }

    /// Has so much time go by; what is under way is really waited for at each step, `patience` at most.
    fn skip(&self, py: Python<'_>, by: f64, patience: f64) -> PyResult<()> {
        let (by, patience) = (seconds(by)?, seconds(patience)?);
        let skipper = lock(&self.0).clone().ok_or_else(|| PyValueError::new_err("this clock is closed"))?;
        let skip = py.detach(|| skipper.skip(by, patience)).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => PyValueError::new_err(error.to_string()),
            _ => os_error(&error),
        })?;
        loop {
            match py.detach(|| skip.wait()) {
                Ok(()) => return Ok(()),
                // A handler that raises ends the skipping, too.
                Err(LinkError::Interrupted) => py.check_signals()?,
                Err(error) => return Err(listener_error(py, error)),
            }
        }
    }
}

/// How far links, sessions, dials and fault proxies are ahead of the kernel's clock.
#[pyfunction]
pub(super) fn skipped() -> f64 {
    clock::skipped().as_secs_f64()
}
