//! Hooks for `os.register_at_fork` and `atexit`.

use pyo3::prelude::*;

use crate::engine::fork;

#[pyfunction]
pub(super) fn before_fork(py: Python<'_>) {
    py.detach(fork::before);
}

#[pyfunction]
pub(super) fn after_in_parent() {
    fork::after_in_parent();
}

#[pyfunction]
pub(super) fn after_in_child() {
    fork::after_in_child();
}

#[pyfunction]
pub(super) fn shut_down(py: Python<'_>) {
    py.detach(fork::shut_down);
}
