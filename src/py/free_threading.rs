//! What is different where Python has no GIL (PEP 703).
//!
//! All classes are frozen, and what changes in them is an atomic or under a lock of ours; no lock of ours is held while code
//! of Python's runs. The C functions (`fast`, `fast_messages`) use nothing borrowed but their arguments, which the caller
//! holds, and what Python keeps for ever. A bytearray that one thread changes while another sends it is sent as it was at
//! some moment, or partly the one and partly the other, as the stdlib's socket does. What had relied on the GIL: that who waits for a lock
//! of ours needs no interpreter to be stopped for (`engine::sync`), and that one thread's attaching tells of all (`pulse`).

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;

use super::fast::detached;
use crate::engine::sync;

static HAS_GIL: AtomicBool = AtomicBool::new(true);

/// As the interpreter was when the module was imported: an extension that doesn't know better may bring the GIL back later
/// on, which does no harm.
pub(super) fn has_gil() -> bool {
    HAS_GIL.load(Ordering::Relaxed)
}

pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    // Since 3.13.
    let asks = py.import("sys")?.getattr_opt("_is_gil_enabled")?;
    let has_gil = asks.map_or(Ok(true), |asks| asks.call0()?.extract())?;
    HAS_GIL.store(has_gil, Ordering::Relaxed);
    if !has_gil {
        sync::wait_detached_by(wait_detached);
    }
    Ok(())
}

/// Also for threads that aren't attached, or that Python has never heard of.
fn wait_detached(wait: &mut dyn FnMut()) {
    // SAFETY: this may be called without a thread state, and is null then (the borrowed reference isn't used).
    if unsafe { ffi::PyThreadState_GetDict() }.is_null() {
        wait();
    } else {
        // SAFETY: attached, and what is called takes a lock of ours and gives it back.
        unsafe { detached(wait) }
    }
}
