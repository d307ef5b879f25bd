//! Hooks for `os.register_at_fork` and `atexit`.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::pulse;
use crate::engine::fork;

/// Has the hooks run at each fork; more than once does no harm, and they run first after the last time.
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

#[pyfunction]
pub(super) fn before_fork(py: Python<'_>) {
    if fork::is_held() {
        return;
    }
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

/// How long the exit waits for a callback that runs. One that never ends must not keep the process for ever.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between looks for Ctrl-C, which ends the wait.
const STEP: Duration = Duration::from_millis(50);

#[pyfunction]
pub(super) fn shut_down(py: Python<'_>) -> PyResult<()> {
    py.detach(pulse::pause);
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        if py.detach(|| fork::shut_down(STEP)) {
            break;
        }
        py.check_signals()?;
    }
    Ok(())
}
