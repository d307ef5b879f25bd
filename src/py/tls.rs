//! TLS for Python: what a program says about it, made ready; and what both sides agreed on.

use std::sync::Mutex;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

use super::errors::os_error;
use crate::engine::handshake::Secured;
use crate::engine::sync::lock;
use crate::net::tls::{Agreed, ClientTls, Files, Identity, Pem, ServerTls, SettingsError};

/// PEM as it is, or the path of a file with it.
pub(super) struct Source(Pem);

impl FromPyObject<'_, '_> for Source {
    type Error = PyErr;

    fn extract(source: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if let Ok(text) = source.cast::<PyBytes>() {
            return Ok(Self(Pem::Text(text.as_bytes().to_vec())));
        }
        Ok(Self(Pem::Path(source.cast::<PyString>()?.to_str()?.to_owned())))
    }
}

/// `TLS`'s: ca, certificate, key, client CA, server name, ALPN.
pub(super) type Settings =
    (Option<Source>, Option<Source>, Option<Source>, Option<Source>, Option<String>, Vec<Vec<u8>>);

fn files((ca, certificate, key, client_ca, server_name, alpn): Settings) -> Files {
    let pem = |source: Option<Source>| source.map(|Source(pem)| pem);
    Files { ca: pem(ca), certificate: pem(certificate), key: pem(key), client_ca: pem(client_ca), server_name, alpn }
}

fn settings_error(py: Python<'_>, error: SettingsError) -> PyErr {
    match error {
        SettingsError::Unreadable { what, path, error } => {
            let raised = os_error(&error);
            // With its name, as open() has it.
            let _ = raised.value(py).setattr("filename", path);
            let _ = raised.value(py).call_method1("add_note", (format!("TLS({what}=...)"),));
            raised
        }
        error => PyValueError::new_err(error.to_string()),
    }
}

/// A client's settings, ready for use.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct ClientSettings(pub(super) ClientTls);

/// A server's.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct ServerSettings(pub(super) ServerTls);

/// What the dialler hands over beside the descriptor, for the link that is made of it.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct Handshaken(Mutex<Option<Secured>>);

impl Handshaken {
    pub(super) fn new(secured: Secured) -> Self {
        Self(Mutex::new(Some(secured)))
    }

    pub(super) fn take(&self) -> Option<Secured> {
        lock(&self.0).take()
    }
}

/// Reads and checks them all.
#[pyfunction]
pub(super) fn client_tls(py: Python<'_>, settings: Settings) -> PyResult<ClientSettings> {
    let files = files(settings);
    py.detach(|| ClientTls::new(&files)).map(ClientSettings).map_err(|error| settings_error(py, error))
}

/// Reads and checks them all.
#[pyfunction]
pub(super) fn server_tls(py: Python<'_>, settings: Settings) -> PyResult<ServerSettings> {
    let files = files(settings);
    py.detach(|| ServerTls::new(&files)).map(ServerSettings).map_err(|error| settings_error(py, error))
}

/// A `TLSInfo`.
pub(super) fn info<'py>(py: Python<'py>, agreed: &Agreed) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("version", agreed.version)?;
    fields.set_item("cipher", &agreed.cipher)?;
    fields.set_item("alpn", agreed.alpn.as_ref().map(|alpn| String::from_utf8_lossy(alpn).into_owned()))?;
    fields.set_item("resumed", agreed.is_resumed)?;
    fields.set_item("peer", agreed.certificate.as_ref().map(|der| identity(py, der)).transpose()?)?;
    py.import("longconn.tls")?.getattr("TLSInfo")?.call((), Some(&fields))
}

/// An `Identity`.
pub(super) fn identity<'py>(py: Python<'py>, der: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let identity = Identity::of(der);
    let fields = PyDict::new(py);
    fields.set_item("common_name", identity.common_name)?;
    fields.set_item("dns_names", PyTuple::new(py, identity.dns_names)?)?;
    fields.set_item("uris", PyTuple::new(py, identity.uris)?)?;
    fields.set_item("emails", PyTuple::new(py, identity.emails)?)?;
    fields.set_item("addresses", PyTuple::new(py, identity.addresses)?)?;
    let hex: String = identity.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    fields.set_item("fingerprint", hex)?;
    fields.set_item("der", PyBytes::new(py, der))?;
    py.import("longconn.tls")?.getattr("Identity")?.call((), Some(&fields))
}
