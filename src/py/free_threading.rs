//! What is different where Python has no GIL (PEP 703).
//!
//! All classes are frozen, and what changes in them is an atomic or under a lock of ours; no lock of ours is held while code
//! of Python's runs, but that of a coroutine while it is stepped (`waiting`), for which nobody waits. The C functions (`fast`, `fast_messages`) use nothing borrowed but their arguments, which the caller
//! holds, and what Python keeps for ever. A bytearray that one thread changes while another sends it is sent as it was at
//! some moment, or partly the one and partly the other, as the stdlib's socket does. What had relied on the GIL: that one
//! thread's attaching tells of all (`pulse`); and that who waits for a lock of ours keeps nobody from anything (`engine::sync`), which
//! wasn't quite true with it either.

use std::sync::OnceLock;
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
    if let Some(current) = find_current() {
        let _ = CURRENT.set(current);
        sync::wait_detached_by(wait_detached);
    }
    Ok(())
}

/// The state of the thread that is attached, or null; to be called by any thread.
type Current = unsafe extern "C" fn() -> *mut ffi::PyThreadState;
static CURRENT: OnceLock<Current> = OnceLock::new();

/// Not in the stable ABI, but in each CPython, by one of these names (the second was given it in 3.13).
fn find_current() -> Option<Current> {
    [c"_PyThreadState_UncheckedGet", c"PyThreadState_GetUnchecked"].into_iter().find_map(|name| {
        // SAFETY: a C string; the answer is null or the address of that function, whose type this is.
        unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
            std::mem::transmute::<*mut libc::c_void, Option<Current>>(found)
        }
    })
}

/// 3.11 gives the same state to all threads, that of whoever has the GIL: so it is compared with our own.
fn is_attached() -> bool {
    // SAFETY: both may be called by any thread, also by one that Python has never heard of.
    CURRENT.get().is_some_and(|current| unsafe {
        let ours = ffi::PyGILState_GetThisThreadState();
        !ours.is_null() && current() == ours
    })
}

fn wait_detached(wait: &mut dyn FnMut()) {
    if is_attached() {
        // SAFETY: attached, and what is called takes a lock of ours and gives it back.
        unsafe { detached(wait) }
    } else {
        wait();
    }
}
