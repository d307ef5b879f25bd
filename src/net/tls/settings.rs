//! What a program says about TLS, made ready for use: at once, so that what is wrong with a file is told by its name, and not by the
//! first peer.

use std::fmt;
use std::fs;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, InconsistentKeys, RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
    version,
};

/// Newest first; what is older is broken (RFC 8996).
const VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

/// Where certificates and keys come from: a path, or PEM as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pem {
    Path(String),
    Text(Vec<u8>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Whom a client trusts; the system's roots if none.
    pub ca: Option<Pem>,
    pub certificate: Option<Pem>,
    pub key: Option<Pem>,
    /// Whose clients a server lets in; if none, it asks for no certificate.
    pub client_ca: Option<Pem>,
    pub server_name: Option<String>,
    pub alpn: Vec<Vec<u8>>,
}

/// What is wrong, with the name of the argument, and the file.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{0}")]
    Invalid(String),
    /// It could not be read.
    #[error("{what}: {path}: {error}")]
    Unreadable { what: &'static str, path: String, error: std::io::Error },
}

#[derive(Clone)]
pub struct ClientTls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) server_name: Option<String>,
}

#[derive(Clone)]
pub struct ServerTls {
    pub(super) config: Arc<ServerConfig>,
    /// Clients show certificates.
    pub knows_clients: bool,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("knows_clients", &self.knows_clients).finish_non_exhaustive()
    }
}

impl ClientTls {
    pub fn new(files: &Files) -> Result<Self, SettingsError> {
        if files.client_ca.is_some() {
            return Err(invalid("client_ca: for servers; a client's TLS(ca=...) says whom it trusts"));
        }
        if let Some(name) = &files.server_name
            && ServerName::try_from(name.as_str()).is_err()
        {
            return Err(invalid(&format!("server_name={name:?}: neither a host name nor an IP address")));
        }
        let provider = provider();
        let verifier: Arc<dyn ServerCertVerifier> = match &files.ca {
            Some(ca) => WebPkiServerVerifier::builder_with_provider(Arc::new(roots("ca", ca)?), provider.clone())
                .build()
                .map_err(|error| invalid(&format!("ca: {error}")))?,
            None => Arc::new(rustls_platform_verifier::Verifier::new(provider.clone()).map_err(|error| {
                invalid(&format!(
                    "the system's CA certificates can't be had ({error}): install them (on Debian, ca-certificates), or \
                     give TLS(ca=...)"
                ))
            })?),
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(VERSIONS)
            .map_err(|error| invalid(&error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match own(files)? {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| unusable(&error, files))?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&files.alpn);
        Ok(Self { config: Arc::new(config), server_name: files.server_name.clone() })
    }
}

impl ServerTls {
    pub fn new(files: &Files) -> Result<Self, SettingsError> {
        if files.server_name.is_some() || files.ca.is_some() {
            return Err(invalid(
                "ca, server_name: for clients; a server's TLS(client_ca=...) says whose clients it lets in",
            ));
        }
        let Some((chain, key)) = own(files)? else {
            return Err(invalid("certificate, key: a server needs both"));
        };
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(VERSIONS)
            .map_err(|error| invalid(&error.to_string()))?;
        let builder = match &files.client_ca {
            Some(ca) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots("client_ca", ca)?), provider)
                    .build()
                    .map_err(|error| invalid(&format!("client_ca: {error}")))?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| unusable(&error, files))?;
        config.alpn_protocols.clone_from(&files.alpn);
        // Returning clients show a ticket, and nothing is kept for them. Its keys are of this configuration: who was verified by
        // another, with another client_ca perhaps, is verified again.
        config.ticketer = Ticketer::new().map_err(|error| invalid(&format!("no keys for tickets: {error}")))?;
        // By these a client goes on once without asking for another: one to come back with, and one for a second connection.
        config.send_tls13_tickets = 2;
        Ok(Self { config: Arc::new(config), knows_clients: files.client_ca.is_some() })
    }
}

/// rustls' own choice, with the lesser of two good keys first: it takes a quarter less time, and 128 bits are beyond everybody's.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = default_provider();
    let is_slower = |suite: &SupportedCipherSuite| !format!("{:?}", suite.suite()).contains("AES_128_GCM");
    // Stable: TLS 1.3 stays before 1.2.
    provider.cipher_suites.sort_by_key(|suite| (suite.tls13().is_none(), is_slower(suite)));
    Arc::new(provider)
}

fn invalid(text: &str) -> SettingsError {
    SettingsError::Invalid(text.to_owned())
}

fn unusable(error: &rustls::Error, files: &Files) -> SettingsError {
    let [certificate, key] = [&files.certificate, &files.key].map(|pem| pem.as_ref().map_or_else(String::new, place));
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            invalid(&format!("key{key}: it isn't the key of the certificate{certificate}"))
        }
        rustls::Error::InvalidCertificate(_) => invalid(&format!("certificate{certificate}: {error}")),
        _ => invalid(&format!("key{key}: it can't be used: {error}")),
    }
}

/// For a text, where there is a name.
fn place(pem: &Pem) -> String {
    match pem {
        Pem::Path(path) => format!(": {path}"),
        Pem::Text(_) => String::new(),
    }
}

fn read(what: &'static str, pem: &Pem) -> Result<Vec<u8>, SettingsError> {
    match pem {
        Pem::Text(text) => Ok(text.clone()),
        Pem::Path(path) => {
            fs::read(path).map_err(|error| SettingsError::Unreadable { what, path: path.clone(), error })
        }
    }
}

fn certificates(what: &'static str, pem: &Pem) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let text = read(what, pem)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => {
            Err(invalid(&format!("{what}{}: no certificate is in it (PEM: -----BEGIN CERTIFICATE-----)", place(pem))))
        }
        Err(error) => Err(invalid(&format!("{what}{}: it isn't PEM: {error}", place(pem)))),
    }
}

fn roots(what: &'static str, pem: &Pem) -> Result<RootCertStore, SettingsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, pem)? {
        roots.add(certificate).map_err(|error| invalid(&format!("{what}{}: {error}", place(pem))))?;
    }
    Ok(roots)
}

/// This side's certificate, with those between it and the CA, and its key.
fn own(files: &Files) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, SettingsError> {
    let (certificate, key) = match (&files.certificate, &files.key) {
        (None, None) => return Ok(None),
        // Often both are in one file.
        (Some(certificate), None) => (certificate, certificate),
        (Some(certificate), Some(key)) => (certificate, key),
        (None, Some(_)) => return Err(invalid("key: it is of no use without its certificate")),
    };
    let chain = certificates("certificate", certificate)?;
    let text = read("key", key)?;
    let is_encrypted = [&b"BEGIN ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| text.windows(mark.len()).any(|window| window == *mark));
    match PrivateKeyDer::from_pem_slice(&text) {
        _ if is_encrypted => {
            let path = match key {
                Pem::Path(path) => path.replace('\'', r"'\''"),
                Pem::Text(_) => "key.pem".to_owned(),
            };
            Err(invalid(&format!(
                "key{}: it is encrypted; decrypt it first (openssl pkey -in '{path}' -out plain.pem), have only this user read it, \
                 and say key='plain.pem'",
                place(key)
            )))
        }
        Ok(key) => Ok(Some((chain, key))),
        Err(pem::Error::NoItemsFound) => {
            Err(invalid(&format!("key{}: no private key is in it (PEM: -----BEGIN PRIVATE KEY-----)", place(key))))
        }
        Err(error) => Err(invalid(&format!("key{}: it isn't PEM: {error}", place(key)))),
    }
}
