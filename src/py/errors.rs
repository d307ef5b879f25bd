//! Errors as Python's: the system's, `errno` kept, and the ends of links.

use std::io;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::engine::link::{Link, LinkError};
use crate::proto::cause::{Cause, Ending, GivenUp, Level};
use crate::proto::connection::State;

/// `OSError` picks the subclass by the number; the text is `strerror`'s, as the stdlib has it.
pub(super) fn os_error(error: &io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => {
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_owned();
            PyOSError::new_err((number, text))
        }
        None => PyOSError::new_err(error.to_string()),
    }
}

/// A number of seconds that Python's caller has checked.
pub(super) fn seconds(value: f64) -> PyResult<std::time::Duration> {
    std::time::Duration::try_from_secs_f64(value)
        .map_err(|_| pyo3::exceptions::PyValueError::new_err(format!("not a time in seconds: {value}")))
}

/// What a call on a link came to. `was_open`: its handshake had been finished.
pub(super) fn link_error(py: Python<'_>, error: LinkError, link: &Link, was_open: bool) -> PyErr {
    match error {
        LinkError::Ended(ending) => ended(py, &ending, link, was_open).unwrap_or_else(|error| error),
        LinkError::StreamEnded => {
            let detail = Some("it may still be sent to".to_owned());
            let ending = Ending { detail, ..Ending::new(Cause::Ended) };
            ended(py, &ending, link, true).unwrap_or_else(|error| error)
        }
        error => listener_error(py, error),
    }
}

/// The same where no link in particular is meant.
pub(super) fn listener_error(py: Python<'_>, error: LinkError) -> PyErr {
    let ours = |name: &str, text: String| {
        let made = error_class(py, name).and_then(|class| class.call1((text,)));
        made.map_or_else(|error| error, PyErr::from_value)
    };
    let closed = |text: &str| {
        let made = error_class(py, "AlreadyClosed").and_then(|class| class.call1((libc::EBADF, text)));
        made.map_or_else(|error| error, PyErr::from_value)
    };
    match error {
        LinkError::TimedOut => PyTimeoutError::new_err("timed out"),
        LinkError::Forked => ours(
            "ForkedError",
            "this belongs to the process that forked this one; make a new connection or server here".into(),
        ),
        error @ LinkError::TooLarge { .. } => ours("MessageTooLarge", error.to_string()),
        LinkError::NotOpen(State::Connecting) => PyValueError::new_err("the connection isn't open yet"),
        LinkError::NotOpen(_) => closed("this side has closed the connection; connect again"),
        LinkError::Closed => closed("this server is closed"),
        LinkError::ShutDown => os_error(&io::Error::from_raw_os_error(libc::EPIPE)),
        error @ (LinkError::Introduction(_) | LinkError::Framing(_)) => PyValueError::new_err(error.to_string()),
        LinkError::System(error) => os_error(&error),
        // Ended has a link; Interrupted doesn't come this far.
        error => PyRuntimeError::new_err(error.to_string()),
    }
}

/// There is no room for a message, and the program doesn't want to wait for it.
pub(super) fn buffer_full(py: Python<'_>, link: &Link) -> PyErr {
    let text = match link.framing() {
        None => {
            let untaken = py.detach(|| link.unacknowledged()).unwrap_or_default();
            format!("no room: {untaken} messages wait for the peer's program to take them")
        }
        Some(_) => "no room: the peer's kernel takes nothing more for now".to_owned(),
    };
    let made = error_class(py, "BufferFull").and_then(|class| class.call1((libc::EAGAIN, text)));
    made.map_or_else(|error| error, PyErr::from_value)
}

pub(super) fn error_class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("longconn.errors")?.getattr(name)
}

/// The end of a link with which its session ends, if it has one.
pub(super) fn ended(py: Python<'_>, ending: &Ending, link: &Link, was_open: bool) -> PyResult<PyErr> {
    let messages = py.detach(|| link.undelivered()).unwrap_or_default();
    let more = PyDict::new(py);
    // Or it was to come back, and was not let in any more.
    more.set_item("is_session", ending.session.is_some() || (was_open && ending.cause == Cause::Handshake))?;
    more.set_item("undelivered", PyList::new(py, messages.iter().map(|message| PyBytes::new(py, message)))?)?;
    link_ended(py, ending, link, was_open, &more)
}

/// The end of a link whose session waits for another.
pub(super) fn parted(py: Python<'_>, ending: &Ending, link: &Link) -> PyResult<PyErr> {
    let more = PyDict::new(py);
    more.set_item("goes_on", true)?;
    link_ended(py, ending, link, true, &more)
}

fn link_ended(
    py: Python<'_>,
    ending: &Ending,
    link: &Link,
    was_open: bool,
    more: &Bound<'_, PyDict>,
) -> PyResult<PyErr> {
    let address = link.peer_address();
    let close = ending.close.as_ref();
    let facts = (
        ending.cause.name(),
        ending.to_string(),
        (address.ip().to_string(), address.port()),
        ending.by_peer,
        ending.silence.as_secs_f64(),
        ending.limit.map(|limit| limit.as_secs_f64()),
        ending.level.map(Level::name),
        ending.kernel_answers,
        ending.given_up.map(GivenUp::name),
        close.map(|close| close.code.0),
        close.map_or("", |close| &close.reason),
        was_open,
    );
    let made = error_class(py, "link_ended")?.call(facts, Some(more))?;
    Ok(PyErr::from_value(made))
}
