//! Hooks for `os.register_at_fork` and `atexit`.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use super::pulse;
use crate::engine::fork;

/// To be called before anything that starts a native thread.
///
/// Hooks run before a fork in the reverse of the order in which they were registered, and `logging` has one that keeps
/// its lock over the fork. Ours waits for the thread that delivers log records, so it must run first: hence `logging` is
/// imported before, and not by that thread, perhaps in the middle of a fork.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    static DONE: PyOnceLock<()> = PyOnceLock::new();
    DONE.get_or_try_init(py, || {
        py.import("logging")?;
        let ours = py.import("longconn._longconn")?;
        let hooks = PyDict::new(py);
        hooks.set_item("before", ours.getattr("before_fork")?)?;
        hooks.set_item("after_in_parent", ours.getattr("after_in_parent")?)?;
        hooks.set_item("after_in_child", ours.getattr("after_in_child")?)?;
        py.import("os")?.call_method("register_at_fork", (), Some(&hooks))?;
        py.import("atexit")?.call_method1("register", (ours.getattr("shut_down")?,))?;
        Ok(())
    })
    .copied()
}

#[pyfunction]
pub(super) fn before_fork(py: Python<'_>) {
    let deadline = fork::patience();
    loop {
        py.detach(|| {
            pulse::pause();
            fork::rest(deadline);
        });
        // Attached: another thread may be waiting for one of these locks and have the interpreter.
        if fork::try_hold(deadline) {
            return;
        }
    }
}

#[pyfunction]
pub(super) fn after_in_parent() {
    fork::after_in_parent();
    pulse::after_in_parent();
}

#[pyfunction]
pub(super) fn after_in_child() {
    fork::after_in_child();
    pulse::after_in_child();
}

/// Ctrl-C ends the wait for a callback.
#[pyfunction]
pub(super) fn shut_down(py: Python<'_>) -> PyResult<()> {
    py.detach(pulse::pause);
    while !py.detach(|| fork::shut_down(Duration::from_millis(50))) {
        py.check_signals()?;
    }
    Ok(())
}
