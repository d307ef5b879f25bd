//! Calls the program's functions on the thread of the notices, which may still be in one when the interpreter goes.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

// pyo3 declares it "C", through which nothing may unwind.
unsafe extern "C-unwind" {
    fn PyObject_CallObject(callable: *mut ffi::PyObject, arguments: *mut ffi::PyObject) -> *mut ffi::PyObject;
}

/// Python before 3.14 ends a thread that comes back from a callback to an interpreter that is going by
/// `pthread_exit`, which unwinds the stack, and no frame of Rust may be unwound that way: the process would abort. The
/// innermost of ours stops it, and the thread stands still until the process ends, as CPython's do since 3.14.
struct StandStill;

impl Drop for StandStill {
    fn drop(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

pub(super) fn call<'py>(
    function: &Bound<'py, PyAny>,
    arguments: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error: Into<PyErr>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = function.py();
    let arguments = arguments.into_pyobject(py).map_err(Into::into)?;
    let unwinding = StandStill;
    // SAFETY: attached; a callable and a tuple. A new reference, or null with an exception set.
    let result = unsafe { PyObject_CallObject(function.as_ptr(), arguments.as_ptr()) };
    std::mem::forget(unwinding);
    // SAFETY: as above.
    unsafe { Bound::from_owned_ptr_or_err(py, result) }
}
