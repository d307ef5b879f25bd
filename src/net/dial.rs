//! One attempt to connect, and what it says when none of them came to anything.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::net::resolve::LookUpError;
use crate::net::tls::TlsError;
use crate::net::{carrier, sys, tuning};
use crate::proto::backoff::Why;

/// A peer, as the program names it: all of its places are tried, each looked up anew each time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub places: Vec<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// A name, or an address in figures.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// As it is displayed.
impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = inner.unwrap_or(host);
        if host.is_empty() || (inner.is_none() && host.contains(':')) {
            return Err(());
        }
        Ok(Self { host: host.to_owned(), port: port.parse().map_err(drop)? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, place) in self.places.iter().enumerate() {
            write!(f, "{}{place}", if number == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// For what an attempt to connect failed, as the backoff wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Somebody answered, and said no.
    Refused,
    /// Somebody was asked and didn't answer.
    Unanswered,
    /// Nobody was asked: no network, no route, no address, no more descriptors.
    Local,
    /// Somebody answered, and can't be trusted, or doesn't trust us: trying again doesn't help.
    Tls,
    /// No name was found; for good (`EAI_NONAME`), or for now.
    Name { is_permanent: bool },
}

/// An address, or a name, and what became of it.
#[derive(Debug)]
pub struct FailedAttempt {
    pub place: String,
    /// None if the name wasn't found.
    pub address: Option<SocketAddr>,
    /// With the system's number, or with a [`LookUpError`] or [`ToItself`] in it; of the kind `TimedOut` and without a number if
    /// it was we who didn't wait any longer.
    pub error: io::Error,
}

impl FailedAttempt {
    /// The system's number, if it is of the system's making.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        let inner = || {
            let inner = self.error.get_ref()?;
            if inner.is::<ToItself>() {
                Some(libc::ECONNREFUSED)
            } else if self.is_cut() {
                Some(libc::ECONNRESET)
            } else {
                LookUpError::within(&self.error)?.errno
            }
        };
        self.error.raw_os_error().or_else(inner)
    }

    /// It stood, and ended in the TLS handshake.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.error.get_ref().is_some_and(|error| error.is::<CutInHandshake>())
    }

    #[must_use]
    pub fn failure(&self) -> Failure {
        if TlsError::within(&self.error).is_some() {
            return Failure::Tls;
        }
        if let Some(error) = LookUpError::within(&self.error) {
            return Failure::Name { is_permanent: !error.is_temporary() };
        }
        match self.errno() {
            // It was waited for.
            None if self.address.is_none() => Failure::Name { is_permanent: false },
            None | Some(libc::ETIMEDOUT) => Failure::Unanswered,
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::EADDRNOTAVAIL
                | libc::EAFNOSUPPORT
                | libc::EACCES
                | libc::EPERM
                | libc::EINVAL
                | libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM,
            ) => Failure::Local,
            Some(_) => Failure::Refused,
        }
    }
}

impl fmt::Display for FailedAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, address, error } = self;
        write!(f, "{place}")?;
        if let Some(address) = address.filter(|address| address.to_string() != *place) {
            write!(f, " at {address}")?;
        }
        // The number is for programs, which have it.
        let text = error.to_string();
        write!(f, ": {}", text.split(" (os error ").next().unwrap_or(&text))
    }
}

/// No address of the target could be connected to.
#[derive(Debug)]
pub struct DialError {
    pub target: String,
    /// As they failed, one an address or name.
    pub attempts: Vec<FailedAttempt>,
    pub kind: Failure,
    pub took: Duration,
}

impl DialError {
    /// Of a kind that all attempts together have. Who refused is asked again with care, even if a family has no route; an attempt that
    /// waited for somebody took its time, and only the next finds out whether the path is back, whoever else refused.
    #[must_use]
    pub fn new(target: String, attempts: Vec<FailedAttempt>, took: Duration) -> Self {
        let has = |failure| attempts.iter().any(|attempt| attempt.failure() == failure);
        let ranking = [
            Failure::Unanswered,
            Failure::Refused,
            Failure::Local,
            Failure::Name { is_permanent: false },
            Failure::Tls,
        ];
        let kind = ranking.into_iter().find(|&failure| has(failure)).unwrap_or(Failure::Name { is_permanent: true });
        Self { target, attempts, kind, took }
    }

    /// For the backoff.
    #[must_use]
    pub fn why(&self) -> Why {
        match self.kind {
            Failure::Unanswered => Why::Unanswered { took: self.took },
            Failure::Local | Failure::Name { is_permanent: false } => Why::Local { took: self.took },
            // A server for names had work with it.
            Failure::Refused | Failure::Tls | Failure::Name { is_permanent: true } => Why::Refused,
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts.is_empty() {
            return f.write_str("no connection: no address was given");
        }
        write!(f, "no connection to {}: ", self.target)?;
        for (number, attempt) in self.attempts.iter().enumerate() {
            write!(f, "{}{attempt}", if number == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for DialError {}

/// Nobody listened on a port of this machine from which the kernel takes those for clients, and the socket got that very port: both
/// SYNs crossed (RFC 9293, section 3.5), and it was its own peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody listens there: the socket was connected to itself")]
pub struct ToItself;

/// The peer's end of stream, or its reset, in a TLS handshake. It may be on its way out, so another attempt may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection was cut in the TLS handshake: the peer went away, or doesn't speak TLS there")]
pub struct CutInHandshake;

/// Begins to connect, without waiting. With `max_segment` no larger segments go either way (`TCP_MAXSEG`, 88 to 32767 on Linux).
pub fn begin(address: SocketAddr, max_segment: Option<u16>) -> io::Result<OwnedFd> {
    if carrier::is_out(address.ip()) {
        return Err(io::Error::from_raw_os_error(libc::ENETDOWN));
    }
    // socket2 makes it close-on-exec.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(bytes) = max_segment {
        socket.set_tcp_mss(bytes.into())?;
    }
    // Before, so that a SYN is repeated each second too.
    let _ = tuning::bound_retransmissions(socket.as_fd(), Duration::ZERO);
    match socket.connect(&SockAddr::from(address)) {
        Ok(()) => Ok(socket.into()),
        // EINTR too: connect(2) goes on without us.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR)) => Ok(socket.into()),
        Err(error) => Err(error),
    }
}

/// Whether the connection stands by now.
pub fn is_connected(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let socket = SockRef::from(&fd);
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    let peer = match socket.peer_addr() {
        Ok(peer) => peer,
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => return Ok(false),
        Err(error) => return Err(error),
    };
    if socket.local_addr()?.as_socket() == peer.as_socket() {
        // A close would leave the port in TIME_WAIT, and the server that may come back without it.
        let _ = sys::abort(fd);
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, ToItself));
    }
    Ok(true)
}
