//! Errors of the system as Python's, `errno` kept.

use std::io;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

/// `OSError` picks the subclass by the number; the text is `strerror`'s, as the stdlib has it.
pub(super) fn os_error(error: &io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => {
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_owned();
            PyOSError::new_err((number, text))
        }
        None => PyOSError::new_err(error.to_string()),
    }
}

/// A number of seconds that Python's caller has checked.
pub(super) fn seconds(value: f64) -> PyResult<std::time::Duration> {
    std::time::Duration::try_from_secs_f64(value)
        .map_err(|_| pyo3::exceptions::PyValueError::new_err(format!("not a time in seconds: {value}")))
}
