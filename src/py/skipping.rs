//! Skipping time, for tests.

use std::io;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::errors::{listener_error, os_error, seconds};
use crate::engine::clock;
use crate::engine::link::LinkError;
use crate::engine::skipping::Skipper;

/// What `FakeClock` stands on.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct Clock(Skipper);

#[pymethods]
impl Clock {
    #[new]
    fn new() -> Self {
        Self(Skipper::new())
    }

    /// Has so much time go by; what is under way is really waited for at each step, `patience` at most.
    fn skip(&self, py: Python<'_>, by: f64, patience: f64) -> PyResult<()> {
        let (by, patience) = (seconds(by)?, seconds(patience)?);
        let skip = py.detach(|| self.0.skip(by, patience)).map_err(|error| match error.kind() {
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
