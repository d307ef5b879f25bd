//! The Python module where the engine isn't ported to: importing it says so. A module with half of its names would say it later,
//! one by one.

use pyo3::prelude::*;

#[pymodule]
mod _longconn {
    use pyo3::exceptions::PyImportError;
    use pyo3::prelude::*;

    use crate::net::sys;

    #[pymodule_init]
    fn init(_module: &Bound<'_, PyModule>) -> PyResult<()> {
        Err(PyImportError::new_err(format!(
            "longconn doesn't run on {} yet: its native threads and its sockets need POSIX descriptors. It runs on Linux; \
             see docs/platforms.md for what is known of other systems",
            sys::PLATFORM
        )))
    }
}
