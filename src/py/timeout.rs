//! The `timeout` of every call: left out, None, or seconds.

use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt};

use crate::engine::clock;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Timeout {
    /// What `settimeout` has said.
    LeftOut,
    Forever,
    After(Duration),
}

impl Timeout {
    pub(super) fn or(self, settled: Option<Duration>) -> Option<Duration> {
        match self {
            Self::LeftOut => settled,
            Self::Forever => None,
            Self::After(duration) => Some(duration),
        }
    }

    pub(super) fn deadline(self, settled: Option<Duration>) -> Option<Instant> {
        self.or(settled).and_then(|duration| clock::now().checked_add(duration))
    }
}

impl<'py> FromPyObject<'_, 'py> for Timeout {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if object.is_none() {
            return Ok(Self::Forever);
        }
        let total = intern!(object.py(), "total_seconds");
        let seconds: f64 = if object.is_instance_of::<PyBool>() {
            return Err(not_seconds(object));
        } else if object.is_instance_of::<PyFloat>() || object.is_instance_of::<PyInt>() {
            match object.extract::<f64>() {
                Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => f64::INFINITY,
                seconds => seconds?,
            }
        } else if object.hasattr(total)? {
            object.call_method0(total)?.extract()?
        } else {
            return Err(not_seconds(object));
        };
        if seconds.is_nan() || seconds < 0.0 {
            return Err(PyValueError::new_err(format!("timeout={seconds}: 0 or more seconds, or None for ever")));
        }
        Ok(Duration::try_from_secs_f64(seconds).map_or(Self::Forever, Self::After))
    }
}

fn not_seconds(object: Borrowed<'_, '_, PyAny>) -> PyErr {
    let name = object.get_type().name().map(|name| name.to_string()).unwrap_or_default();
    PyTypeError::new_err(format!("timeout: seconds as int, float or timedelta, or None for ever, not {name}"))
}
