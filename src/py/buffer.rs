//! Bytes-like arguments as the stdlib's socket takes them: anything that offers simple, contiguous bytes.
//!
//! pyo3's `PyBuffer<u8>` wants the format `u8`; `send(array("i", ...))` works with the stdlib.

use std::mem::MaybeUninit;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;

/// A buffer that Python lends us until we drop it, attached.
pub(super) struct Buffer<'py> {
    view: ffi::Py_buffer,
    _py: Python<'py>,
}

impl<'py> Buffer<'py> {
    fn lend(object: &Bound<'py, PyAny>, flags: std::ffi::c_int) -> PyResult<Self> {
        let mut view = MaybeUninit::<ffi::Py_buffer>::uninit();
        // SAFETY: attached; `view` is filled in if and only if the call returns 0.
        if unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), view.as_mut_ptr(), flags) } != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        // SAFETY: see above.
        Ok(Self { view: unsafe { view.assume_init() }, _py: object.py() })
    }

    /// To read from (`y*`).
    pub(super) fn readable(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        Self::lend(object, ffi::PyBUF_SIMPLE)
    }

    /// To write to (`w*`); `function` is for the message, which is the stdlib's.
    pub(super) fn writable(object: &Bound<'py, PyAny>, function: &str) -> PyResult<Self> {
        Self::lend(object, ffi::PyBUF_WRITABLE).map_err(|_| {
            let name = object.get_type().name().map(|name| name.to_string()).unwrap_or_default();
            PyTypeError::new_err(format!("{function}() argument 1 must be read-write bytes-like object, not {name}"))
        })
    }

    pub(super) fn len(&self) -> usize {
        usize::try_from(self.view.len).unwrap_or(0)
    }

    /// Nobody writes to it while we have it.
    pub(super) fn is_readonly(&self) -> bool {
        self.view.readonly != 0
    }

    pub(super) fn bytes(&self) -> &[u8] {
        if self.len() == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps `len` bytes at `buf` until the buffer is released. Another thread may write
        // to them while the kernel reads, as with the stdlib; we only pass the address on.
        unsafe { std::slice::from_raw_parts(self.view.buf.cast(), self.len()) }
    }

    pub(super) fn room(&mut self) -> &mut [MaybeUninit<u8>] {
        if self.len() == 0 {
            return &mut [];
        }
        // SAFETY: as above, and the exporter has said that the bytes may be written.
        unsafe { std::slice::from_raw_parts_mut(self.view.buf.cast(), self.len()) }
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: attached, as `_py` shows; the view came from PyObject_GetBuffer and is released once.
        unsafe { ffi::PyBuffer_Release(&raw mut self.view) }
    }
}
