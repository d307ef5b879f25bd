//! Why TLS failed, for people: which side, what, and what to do.

use std::io;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

/// It is of no use to try again before something was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub(super) String);

impl TlsError {
    #[must_use]
    pub fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self)
    }

    #[must_use]
    pub fn within(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// Who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// `head` is what the peer said first, if nothing of that was understood yet.
pub(super) fn explain(error: &Error, side: Side, name: &str, head: Option<&[u8]>) -> TlsError {
    let peer = match side {
        Side::Client => "server",
        Side::Server => "client",
    };
    // A record of handshake or alert (RFC 8446, section 5.1) begins so.
    let is_tls = head.is_none_or(|head| matches!(head, [] | [20..=23, 3, ..]));
    let text = match error {
        _ if !is_tls => {
            let said = head.unwrap_or_default().escape_ascii();
            match side {
                Side::Client => format!(
                    "the server doesn't speak TLS: it said b'{said}'; connect without tls, or to its port for TLS"
                ),
                Side::Server => format!("the client doesn't speak TLS: it said b'{said}'; it has to connect with TLS"),
            }
        }
        Error::InvalidCertificate(error) => certificate(error, side, name),
        Error::AlertReceived(alert) => format!("the {peer} says: {}", alert_meaning(*alert, side)),
        Error::NoCertificatesPresented => {
            "the client has shown no certificate, and this server asks for one (client_ca); it has to connect with \
             TLS(certificate=..., key=...)"
                .into()
        }
        Error::NoApplicationProtocol => format!("the {peer} speaks none of our application protocols (alpn)"),
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            // Clients of TLS 1.1 have none, those of 1.2 always do (RFC 5246, section 7.4.1.4.1).
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => {
            format!("the {peer} speaks neither TLS 1.2 nor 1.3: what is older isn't safe any more, so have it updated")
        }
        Error::PeerIncompatible(what) => {
            format!("the {peer} and this side have no way of encryption in common ({what:?}); have the {peer} updated")
        }
        Error::DecryptError => format!("what the {peer} sent was changed on the way, or isn't its own"),
        Error::PeerMisbehaved(what) => format!("the {peer} broke the rules of TLS ({what:?})"),
        Error::InvalidMessage(what) => format!("the {peer} said what isn't TLS ({what:?})"),
        error => error.to_string(),
    };
    TlsError(text)
}

fn certificate(error: &CertificateError, side: Side, name: &str) -> String {
    let whose = match side {
        Side::Client => "the server's certificate",
        Side::Server => "the client's certificate",
    };
    let clock = "or set this machine's clock, if it is wrong";
    match error {
        CertificateError::ExpiredContext { time, not_after } => {
            format!("{whose} expired {} ago: have it renewed, {clock}", distance(*not_after, *time))
        }
        CertificateError::Expired => format!("{whose} has expired: have it renewed, {clock}"),
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("{whose} is not valid before {} from now: wait, {clock}", distance(*time, *not_before))
        }
        CertificateError::NotValidYet => format!("{whose} is not valid yet: wait, {clock}"),
        CertificateError::NotValidForNameContext { presented, .. } => {
            let presented = if presented.is_empty() { "no name".into() } else { names(presented) };
            format!(
                "{whose} is for another: asked for {name}, it is for {presented}; connect by that name, or say \
                 TLS(server_name=...)"
            )
        }
        CertificateError::NotValidForName => format!("{whose} isn't for {name}"),
        CertificateError::UnknownIssuer => match side {
            Side::Client => {
                format!(
                    "{whose} was issued by nobody whom this side trusts: give the certificate of its CA as TLS(ca=...)"
                )
            }
            Side::Server => {
                format!("{whose} was issued by nobody whom this side trusts: it has to be of one of client_ca")
            }
        },
        CertificateError::Revoked => format!("{whose} was revoked: have another issued"),
        CertificateError::BadSignature => {
            format!(
                "{whose}, or its use, isn't signed by whom it says: the key and the certificate don't belong together"
            )
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("{whose} was issued for another purpose (extended key usage): have one issued for this")
        }
        error => format!("{whose} is no good: {error}"),
    }
}

/// As webpki presents them: `DnsName("a.example")`, `IpAddress(127.0.0.1)`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| match name.split_once('(') {
        Some((_, rest)) => rest.trim_end_matches(')').trim_matches('"').to_owned(),
        None => name.clone(),
    };
    presented.iter().map(bare).collect::<Vec<_>>().join(", ")
}

fn distance(from: UnixTime, to: UnixTime) -> String {
    let seconds = to.as_secs().saturating_sub(from.as_secs());
    match seconds {
        0..120 => format!("{:?}", Duration::from_secs(seconds)),
        120..7200 => format!("{} minutes", seconds / 60),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}

/// RFC 8446, section 6.2.
fn alert_meaning(alert: AlertDescription, side: Side) -> String {
    let ours = match side {
        Side::Client => "TLS(certificate=..., key=...)",
        Side::Server => "the certificate",
    };
    match alert {
        AlertDescription::CertificateRequired => {
            format!("certificate required: it lets in only who shows one; connect with {ours}")
        }
        AlertDescription::UnknownCA => match side {
            Side::Client => format!(
                "unknown CA: our certificate was issued by nobody whom it trusts; have one issued by its CA, for {ours}"
            ),
            Side::Server => {
                "unknown CA: it doesn't trust who issued our certificate; it has to connect with TLS(ca=...), or \
                             the certificates in between are missing from ours"
                    .into()
            }
        },
        AlertDescription::CertificateExpired => "certificate expired: have ours renewed, or its clock is wrong".into(),
        AlertDescription::BadCertificate => {
            "bad certificate: ours isn't good enough for it; it knows why (another name, perhaps)".into()
        }
        AlertDescription::CertificateUnknown => {
            "certificate unknown: ours isn't good enough for it; it knows why".into()
        }
        AlertDescription::CertificateRevoked => "certificate revoked: have another issued".into(),
        AlertDescription::UnsupportedCertificate => {
            "unsupported certificate: ours is of a kind that it can't use".into()
        }
        AlertDescription::AccessDenied => "access denied".into(),
        AlertDescription::ProtocolVersion => {
            "protocol version: it speaks neither TLS 1.2 nor 1.3, or only others".into()
        }
        AlertDescription::HandshakeFailure => {
            "handshake failure: no way of encryption in common, or it wants a certificate".into()
        }
        AlertDescription::InsufficientSecurity => "insufficient security: it wants another way of encryption".into(),
        AlertDescription::NoApplicationProtocol => "no application protocol: it speaks none of ours (alpn)".into(),
        AlertDescription::UnrecognisedName => "unrecognised name: it isn't the server that was asked for".into(),
        AlertDescription::DecryptError => "decrypt error: a signature or the handshake's end was wrong".into(),
        alert => format!("{alert:?}"),
    }
}
