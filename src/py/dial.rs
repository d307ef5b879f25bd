//! Connecting: the race of a peer's addresses, for Python.

use std::os::fd::{IntoRawFd, RawFd};
use std::sync::Arc;

use pyo3::prelude::*;

use super::errors::os_error;
use super::timeout::Timeout;
use super::tls::{ClientSettings, Handshaken};
use crate::engine::dial::{DialConfig, Dialling};
use crate::engine::waiting::WaitError;
use crate::net::dial::{DialError, Failure, Place, Target};
use crate::net::resolve::LookUpError;
use crate::proto::cause::Cause;

/// Hosts and ports: names, or addresses in figures.
pub(super) type Places = Vec<(String, u16)>;

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
) -> PyResult<(RawFd, Option<Handshaken>)> {
    // None is for ever; the dialler knows of a day.
    let timeout = Some(timeout.or(None).unwrap_or(std::time::Duration::MAX));
    let tls = tls.map(|settings| settings.get().0.clone());
    let config = DialConfig { timeout, tls, ..DialConfig::default() };
    let dialling = py.detach(|| Dialling::begin(target(places), config)).map_err(|error| os_error(&error))?;
    loop {
        match py.detach(|| dialling.wait()) {
            Ok(Ok(connected)) => {
                return Ok((connected.socket.into_raw_fd(), connected.secured.map(Handshaken::new)));
            }
            Ok(Err(error)) => return Err(dial_failed(py, &error).unwrap_or_else(|error| error)),
            Err(WaitError::System(error)) => return Err(os_error(&error)),
            Err(_) => py.check_signals()?,
        }
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
