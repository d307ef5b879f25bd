//! Who a certificate is for, as programs want to know it.

use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Of a certificate that was verified; what isn't there is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The subject's.
    pub common_name: Option<String>,
    /// Subject alternative names (RFC 5280, section 4.2.1.6).
    pub dns_names: Vec<String>,
    pub uris: Vec<String>,
    pub emails: Vec<String>,
    pub addresses: Vec<String>,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
}

impl Identity {
    /// What can't be read of it is left out: it was verified, so it is known by its fingerprint all the same.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        let mut identity = Self { fingerprint: Sha256::digest(der).into(), ..Self::default() };
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return identity };
        identity.common_name =
            certificate.subject().iter_common_name().next().and_then(|name| Some(name.as_str().ok()?.to_owned()));
        let Ok(Some(names)) = certificate.subject_alternative_name() else { return identity };
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => identity.dns_names.push((*name).to_owned()),
                GeneralName::URI(uri) => identity.uris.push((*uri).to_owned()),
                GeneralName::RFC822Name(email) => identity.emails.push((*email).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string());
                    let v6 = <[u8; 16]>::try_from(*bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string());
                    identity.addresses.extend(v4.or(v6));
                }
                _ => {}
            }
        }
        identity
    }
}
