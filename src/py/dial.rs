//! Connecting: the race of a peer's addresses, for Python.

use std::os::fd::{IntoRawFd, RawFd};
use std::sync::Arc;

use pyo3::prelude::*;

use super::errors::{listener_error, os_error};
use super::hub::Hub;
use super::timeout::Timeout;
use super::tls::{ClientSettings, Handshaken};
use super::waiting::Waiting;
use crate::engine::dial::{DialConfig, Dialling, Outcome};
use crate::engine::link::LinkError;
use crate::net::dial::{DialError, Failure, Place, Target};
use crate::net::resolve::LookUpError;
use crate::proto::cause::Cause;

/// Hosts and ports: names, or addresses in figures.
pub(super) type Places = Vec<(String, u16)>;
/// A descriptor, and what its TLS handshake came to.
type Dialled = (RawFd, Option<Handshaken>);

pub(super) fn target(places: Places) -> Arc<Target> {
    Arc::new(Target { places: places.into_iter().map(|(host, port)| Place { host, port }).collect() })
}

/// A descriptor that is connected to the first that answers, for the caller to close; and what its TLS handshake came to.
#[pyfunction]
pub(super) fn dial(
    py: Python<'_>,
    places: Places,
    timeout: Timeout,
    tls: Option<Py<ClientSettings>>,
) -> PyResult<Dialled> {
    let dialling = begin(py, places, timeout, tls.as_ref())?;
    loop {
        match py.detach(|| dialling.wait(None)) {
            Ok(outcome) => return dialled(py, outcome),
            Err(LinkError::Interrupted) => py.check_signals()?,
            Err(error) => return Err(listener_error(py, error)),
        }
    }
}

/// The same, to be awaited.
#[pyfunction]
pub(super) fn dial_async(
    py: Python<'_>,
    hub: &Bound<'_, Hub>,
    places: Places,
    timeout: Timeout,
    tls: Option<Py<ClientSettings>>,
) -> PyResult<Py<PyAny>> {
    Waiting::of(py, hub.as_unbound(), "connect()", Box::new(begin(py, places, timeout, tls.as_ref())?), None)
}

fn begin(py: Python<'_>, places: Places, timeout: Timeout, tls: Option<&Py<ClientSettings>>) -> PyResult<Dialling> {
    // None is for ever; the dialler knows of a day.
    let timeout = Some(timeout.or(None).unwrap_or(std::time::Duration::MAX));
    let tls = tls.map(|settings| settings.get().0.clone());
    let config = DialConfig { timeout, tls, ..DialConfig::default() };
    py.detach(|| Dialling::begin(target(places), config)).map_err(|error| os_error(&error))
}

pub(super) fn dialled(py: Python<'_>, outcome: Outcome) -> PyResult<Dialled> {
    match outcome {
        Ok(connected) => Ok((connected.socket.into_raw_fd(), connected.secured.map(Handshaken::new))),
        Err(error) => Err(dial_failed(py, &error).unwrap_or_else(|error| error)),
    }
}

fn dial_failed(py: Python<'_>, error: &DialError) -> PyResult<PyErr> {
    let attempts: Vec<_> = error
        .attempts
        .iter()
        .map(|attempt| {
            let text = attempt.error.to_string();
            let text = text.split(" (os error ").next().unwrap_or(&text).to_owned();
            let code =
                LookUpError::within(&attempt.error).filter(|error| error.errno.is_none()).map(|error| error.code);
            let cause = match attempt.failure() {
                Failure::Tls => Some(Cause::Tls.name()),
                _ if attempt.is_cut() => Some(Cause::Handshake.name()),
                _ => None,
            };
            (&attempt.place, attempt.address.map(|address| address.to_string()), attempt.errno(), code, text, cause)
        })
        .collect();
    let made = py.import("longconn.errors")?.getattr("dial_failed")?.call1((&error.target, attempts))?;
    Ok(PyErr::from_value(made))
}
