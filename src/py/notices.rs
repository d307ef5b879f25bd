//! Log records of the native side, handed to Python's `logging` on the thread of the notices.

use std::sync::atomic::{AtomicBool, Ordering};

use log::{Log, Record};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3_log::{Caching, Logger};

use crate::engine::notices::{self, LogLine};

static LOGGER: PyOnceLock<Logger> = PyOnceLock::new();
/// `logging` is imported, by the program: we never do it, for our thread could be at it when another forks. Until it is,
/// nobody can have asked for records.
static HAS_READERS: AtomicBool = AtomicBool::new(false);

pub(super) fn collect() {
    notices::collect_log(deliver);
}

/// To be called when the program has imported `logging`.
#[pyfunction]
pub(super) fn logging_imported(py: Python<'_>) -> PyResult<()> {
    super::fork::register_at_fork(py)?;
    HAS_READERS.store(true, Ordering::Release);
    Ok(())
}

/// A warning from the Python side.
#[pyfunction]
pub(super) fn warn(py: Python<'_>, text: &str) {
    // Never attached: over a fork the queue's lock is held by a thread that comes back to Python first.
    py.detach(|| log::warn!(target: "longconn", "{text}"));
}

/// Nothing is cached, so that a level set by the program counts at once; records are few.
fn deliver(line: LogLine) {
    if !HAS_READERS.load(Ordering::Acquire) {
        return;
    }
    // None: the interpreter is going, and nobody reads this any more
    Python::try_attach(|py| {
        let logger = LOGGER.get_or_try_init(py, || {
            // A library stays quiet unless the program asks (logging HOWTO, "Configuring Logging for a Library").
            let logging = py.import("logging")?;
            logging
                .call_method1("getLogger", ("longconn",))?
                .call_method1("addHandler", (logging.call_method0("NullHandler")?,))?;
            Logger::new(py, Caching::Nothing)
        });
        match logger {
            Ok(logger) => logger.log(
                &Record::builder().level(line.level).target(&line.target).args(format_args!("{}", line.text)).build(),
            ),
            Err(error) => error.write_unraisable(py, None),
        }
    });
}
