//! Hooks for `os.register_at_fork` and `atexit`.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::engine::fork;

/// Has the hooks run at each fork; more than once does no harm.
#[pyfunction]
pub(super) fn register_at_fork(py: Python<'_>) -> PyResult<()> {
    let ours = py.import("longconn._longconn")?;
    let hooks = PyDict::new(py);
    for (when, hook) in
        [("before", "before_fork"), ("after_in_parent", "after_in_parent"), ("after_in_child", "after_in_child")]
    {
        hooks.set_item(when, ours.getattr(hook)?)?;
    }
    py.import("os")?.call_method("register_at_fork", (), Some(&hooks)).map(drop)
}

/// To be called before anything that posts a log record.
///
/// Hooks run before a fork in the reverse order of their registration, and `logging`'s keeps its lock over the fork. Ours
/// waits for the thread that delivers records, so it has to run first, and so is registered anew after `logging`; that is
/// imported here, and not by that thread in the middle of a fork. Not when we are imported: it takes as long as all else.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    if fork::is_prepared() {
        return Ok(());
    }
    // A fork meanwhile would leave the child half an import, with its lock.
    py.detach(fork::begin_preparing);
    let done = py.import("logging").and_then(|_| register_at_fork(py));
    py.detach(|| fork::end_preparing(done.is_ok()));
    done
}

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

/// How long the exit waits for a callback that runs. One that never ends must not keep the process for ever.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between looks for Ctrl-C, which ends the wait.
const STEP: Duration = Duration::from_millis(50);

#[pyfunction]
pub(super) fn shut_down(py: Python<'_>) -> PyResult<()> {
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        if py.detach(|| fork::shut_down(STEP)) {
            break;
        }
        py.check_signals()?;
    }
    Ok(())
}
