//! TLS between a socket and what reads and writes it: bytes in and bytes out, by rustls. No system call of a connection is made here.
//!
//! rustls' unbuffered way is used, so that an idle connection holds no buffers: what was received is decrypted where the thread keeps
//! its room, and only a record that hasn't come in whole, or ciphertext that the kernel didn't take, is kept.

mod identity;
mod settings;
mod trouble;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
};
use rustls::{CommonState, HandshakeKind, ProtocolVersion};

pub use identity::Identity;
pub use settings::{ClientTls, Files, Pem, ServerTls, SettingsError};
pub use trouble::TlsError;
use trouble::{Side, explain};

/// Plaintext that is encrypted in one go: five records at their largest, for a burst of small messages is 64 KiB of them, and their
/// headers. What is encrypted can't be overtaken any more, so a beat waits behind at most this.
pub const SEALED_BYTES: usize = 80 * 1024;
/// What a record adds, at most (RFC 8446, section 5.2), for each of these, and room for what rustls puts before them.
const SEALED_ROOM: usize = SEALED_BYTES + 5 * (5 + 256) + 1024;
/// What tells who doesn't speak TLS from who does.
const HEAD_BYTES: usize = 16;

thread_local! {
    /// Where a thread decrypts.
    static CLEARED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Where it encrypts, with what is encrypted together.
    static SEALED: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// "TLSv1.2" or "TLSv1.3".
    pub version: &'static str,
    pub cipher: String,
    pub alpn: Option<Vec<u8>>,
    /// By a ticket of an earlier connection, without certificates.
    pub is_resumed: bool,
    /// The peer's certificate (DER), if it has shown one.
    pub certificate: Option<Vec<u8>>,
}

/// One connection's TLS.
pub struct Tls {
    half: Half,
    /// Whom the client asked for.
    name: String,
    /// A record that hasn't come in whole.
    incoming: Vec<u8>,
    /// Ciphertext that the kernel hasn't taken.
    outgoing: Vec<u8>,
    /// Plaintext that came with the end of the handshake.
    early: Vec<u8>,
    /// The first that was received, until something of it was understood.
    head: Option<Vec<u8>>,
    is_established: bool,
    has_peer_ended: bool,
    has_ended: bool,
    has_failed: bool,
    /// The end of our stream goes behind what is left to be sent.
    pub is_ending: bool,
    ledger: Ledger,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("is_established", &self.is_established).finish_non_exhaustive()
    }
}

#[allow(clippy::large_enum_variant, reason = "it is boxed with what is around it")]
enum Half {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// The one call that both halves have each for itself.
trait Records {
    type Data;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    /// rustls has something to say by itself.
    fn has_to_say(&self) -> bool;
}

impl Records for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }

    fn has_to_say(&self) -> bool {
        self.wants_write()
    }
}

impl Records for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }

    fn has_to_say(&self) -> bool {
        self.wants_write()
    }
}

impl Tls {
    /// For a client that connects to `host`; has its first flight to say.
    pub fn client(settings: &ClientTls, host: &str) -> Result<Self, TlsError> {
        let name = settings.server_name.as_deref().unwrap_or(host);
        let server_name = ServerName::try_from(name)
            .map_err(|_| {
                TlsError(format!("{name:?} is no name that a certificate can be for: say TLS(server_name=...)"))
            })?
            .to_owned();
        let connection = UnbufferedClientConnection::new(settings.config.clone(), server_name)
            .map_err(|error| explain(&error, Side::Client, name, None))?;
        let mut tls = Self::new(Half::Client(connection), name.to_owned());
        tls.handle_input(&[], |_| {})?;
        Ok(tls)
    }

    /// For who has accepted.
    pub fn server(settings: &ServerTls) -> Result<Self, TlsError> {
        let connection = UnbufferedServerConnection::new(settings.config.clone())
            .map_err(|error| explain(&error, Side::Server, "", None))?;
        Ok(Self::new(Half::Server(connection), String::new()))
    }

    fn new(half: Half, name: String) -> Self {
        Self {
            half,
            name,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            early: Vec::new(),
            head: Some(Vec::new()),
            is_established: false,
            has_peer_ended: false,
            has_ended: false,
            has_failed: false,
            is_ending: false,
            ledger: Ledger::default(),
        }
    }

    /// What was received. `heard` is given the plaintext, record by record, also of what comes before an error; with that there may
    /// be an alert to say.
    pub fn handle_input(&mut self, input: &[u8], mut heard: impl FnMut(&[u8])) -> Result<(), TlsError> {
        // What follows the end is to be ignored (RFC 8446, section 6.1), and rustls would leave it where it is.
        if self.has_failed || self.has_peer_ended {
            return Ok(());
        }
        if let Some(head) = &mut self.head {
            head.extend(input.iter().take(HEAD_BYTES - head.len()));
        }
        let before = self.outgoing.len();
        let passed = CLEARED.with_borrow_mut(|room| {
            room.clear();
            room.extend_from_slice(&self.incoming);
            room.extend_from_slice(input);
            let outgoing = &mut self.outgoing;
            let (used, passed) = match &mut self.half {
                Half::Client(client) => pass(client, room, outgoing, &mut heard),
                Half::Server(server) => pass(server, room, outgoing, &mut heard),
            };
            self.incoming = room[used..].to_vec();
            passed
        });
        self.ledger.on_overhead(self.outgoing.len() - before);
        match passed {
            Ok(Passed { is_established, is_ended }) => {
                if is_ended {
                    (self.has_peer_ended, self.incoming) = (true, Vec::new());
                }
                if is_established && !self.is_established {
                    (self.is_established, self.head) = (true, None);
                }
                Ok(())
            }
            Err(error) => {
                self.has_failed = true;
                self.incoming = Vec::new();
                let side = if matches!(self.half, Half::Client(_)) { Side::Client } else { Side::Server };
                Err(explain(&error, side, &self.name, self.head.as_deref()))
            }
        }
    }

    /// Keeps what came with the end of the handshake for who goes on.
    pub fn handle_input_early(&mut self, input: &[u8]) -> Result<(), TlsError> {
        let mut early = std::mem::take(&mut self.early);
        let handled = self.handle_input(input, |bytes| early.extend_from_slice(bytes));
        self.early = early;
        handled
    }

    pub fn take_early(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.early)
    }

    /// Both sides have what they need, and messages may be sent.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.is_established
    }

    /// The peer has said close_notify: it wasn't cut short.
    #[must_use]
    pub fn has_peer_ended(&self) -> bool {
        self.has_peer_ended
    }

    /// Encrypts the parts together, as far as [`SEALED_BYTES`] go; hands the records to `send`, which says how much of them the
    /// kernel took, and keeps the rest. How much of the parts it were, and what came of sending.
    pub fn seal<E>(
        &mut self,
        parts: [&[u8]; 3],
        counts: bool,
        send: impl FnOnce(&[u8]) -> Result<usize, E>,
    ) -> (usize, Result<bool, E>) {
        if self.has_failed {
            return (0, Ok(true));
        }
        SEALED.with_borrow_mut(|(joined, sealed)| {
            let plain = match parts {
                [part, [], []] | [[], part, []] | [[], [], part] => &part[..part.len().min(SEALED_BYTES)],
                parts => {
                    joined.clear();
                    for part in parts {
                        joined.extend_from_slice(&part[..part.len().min(SEALED_BYTES - joined.len())]);
                    }
                    &joined[..]
                }
            };
            if sealed.len() < SEALED_ROOM {
                sealed.resize(SEALED_ROOM, 0);
            }
            let bytes = &mut self.incoming;
            let (outgoing, encrypt) =
                (&mut self.outgoing, |traffic: &mut dyn Writes, room: &mut [u8]| traffic.encrypt(plain, room));
            let length = match &mut self.half {
                Half::Client(client) => write(client, bytes, outgoing, sealed, encrypt),
                Half::Server(server) => write(server, bytes, outgoing, sealed, encrypt),
            };
            // Its keys are spent, which takes 2^24 records and no KeyUpdate: the link can't go on.
            let Some(length) = length else { return (0, Ok(true)) };
            if counts {
                self.ledger.on_sealed(outgoing.len() + length, plain.len());
            } else {
                self.ledger.on_overhead(outgoing.len() + length);
            }
            if !outgoing.is_empty() {
                outgoing.extend_from_slice(&sealed[..length]);
                return (plain.len(), Ok(true));
            }
            match send(&sealed[..length]) {
                Ok(taken) => {
                    outgoing.extend_from_slice(&sealed[taken..length]);
                    (plain.len(), Ok(taken == length))
                }
                Err(error) => {
                    outgoing.extend_from_slice(&sealed[..length]);
                    (plain.len(), Err(error))
                }
            }
        })
    }

    /// Nothing more of ours will come: close_notify.
    pub fn end(&mut self) {
        if self.has_ended || self.has_failed || !self.is_established {
            return;
        }
        self.has_ended = true;
        let mut room = [0; 64];
        let before = self.outgoing.len();
        let (bytes, outgoing) = (&mut self.incoming, &mut self.outgoing);
        let goodbye = |traffic: &mut dyn Writes, room: &mut [u8]| traffic.end(room);
        let mut room = &mut room[..];
        let length = match &mut self.half {
            Half::Client(client) => write(client, bytes, outgoing, &mut room, goodbye),
            Half::Server(server) => write(server, bytes, outgoing, &mut room, goodbye),
        };
        outgoing.extend_from_slice(&room[..length.unwrap_or(0)]);
        self.ledger.on_overhead(self.outgoing.len() - before);
    }

    /// What the kernel is to take before anything else.
    #[must_use]
    pub fn outgoing(&self) -> &[u8] {
        &self.outgoing
    }

    pub fn on_sent(&mut self, bytes: usize) {
        self.outgoing.drain(..bytes);
        if self.outgoing.is_empty() {
            self.outgoing = Vec::new();
        }
    }

    /// Bytes of the wire that were made, those that the kernel hasn't taken included.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.ledger.wire
    }

    /// How many bytes of plaintext have arrived, if so many of the wire have; of who has them counted.
    pub fn arrived(&mut self, wire_bytes: u64) -> u64 {
        self.ledger.arrived(wire_bytes)
    }

    /// `None` before the handshake is done.
    #[must_use]
    pub fn agreed(&self) -> Option<Agreed> {
        let state: &CommonState = match &self.half {
            Half::Client(client) => client,
            Half::Server(server) => server,
        };
        if !self.is_established {
            return None;
        }
        Some(Agreed {
            version: if state.protocol_version()? == ProtocolVersion::TLSv1_3 { "TLSv1.3" } else { "TLSv1.2" },
            cipher: format!("{:?}", state.negotiated_cipher_suite()?.suite()),
            alpn: state.alpn_protocol().map(<[u8]>::to_vec),
            is_resumed: state.handshake_kind() == Some(HandshakeKind::Resumed),
            certificate: state.peer_certificates().and_then(|chain| Some(chain.first()?.to_vec())),
        })
    }
}

struct Passed {
    is_established: bool,
    is_ended: bool,
}

/// Has rustls take what can be taken of `bytes`; how many it took, and what it came to. After an error rustls has an alert to say
/// yet.
fn pass<R: Records>(
    records: &mut R,
    bytes: &mut [u8],
    outgoing: &mut Vec<u8>,
    heard: &mut dyn FnMut(&[u8]),
) -> (usize, Result<Passed, rustls::Error>) {
    let (mut used, mut is_ended, mut failed) = (0, false, None);
    loop {
        let UnbufferedStatus { mut discard, state, .. } = records.process(&mut bytes[used..]);
        let reached = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    match record {
                        Ok(record) => {
                            discard += record.discard;
                            heard(record.payload);
                        }
                        Err(error) => failed = Some(error),
                    }
                }
                None
            }
            Ok(ConnectionState::EncodeTlsData(mut message)) => {
                encode(outgoing, |room| message.encode(room));
                None
            }
            // It goes before everything else.
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                transmit.done();
                None
            }
            Ok(ConnectionState::PeerClosed) => {
                is_ended = true;
                None
            }
            Ok(ConnectionState::WriteTraffic(_) | ConnectionState::Closed) => Some(true),
            // Early data isn't allowed by any configuration of ours.
            Ok(_) => Some(false),
            Err(error) => {
                failed.get_or_insert(error);
                None
            }
        };
        used += discard;
        // It isn't to look at what was received any more, for what it knows of that is no longer so: only its alert is fetched.
        if failed.is_some() && records.has_to_say() {
            continue;
        }
        if let Some(is_established) = reached.or(failed.as_ref().map(|_| false)) {
            return (used, failed.map_or(Ok(Passed { is_established, is_ended }), Err));
        }
    }
}

fn encode(outgoing: &mut Vec<u8>, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
    let start = outgoing.len();
    while let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size, .. })) =
        encode(&mut outgoing[start..]).map(|length| outgoing.truncate(start + length))
    {
        outgoing.resize(start + required_size, 0);
    }
}

/// What can be written once the handshake is done.
trait Writes {
    fn encrypt(&mut self, plain: &[u8], room: &mut [u8]) -> Result<usize, EncryptError>;
    fn end(&mut self, room: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<Data> Writes for WriteTraffic<'_, Data> {
    fn encrypt(&mut self, plain: &[u8], room: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::encrypt(self, plain, room)
    }

    fn end(&mut self, room: &mut [u8]) -> Result<usize, EncryptError> {
        self.queue_close_notify(room)
    }
}

/// Makes records at the front of `room`; what rustls had to say by itself goes to `outgoing`, which is sent before. `None`: none can
/// be made any more.
fn write<R: Records, Room: AsMut<[u8]>>(
    records: &mut R,
    bytes: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
    room: &mut Room,
    mut make: impl FnMut(&mut dyn Writes, &mut [u8]) -> Result<usize, EncryptError>,
) -> Option<usize> {
    loop {
        let UnbufferedStatus { discard, state, .. } = records.process(bytes);
        let made = match state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => Some(make(&mut traffic, room.as_mut()).ok()),
            Ok(ConnectionState::EncodeTlsData(mut message)) => {
                encode(outgoing, |room| message.encode(room));
                None
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                transmit.done();
                None
            }
            Ok(ConnectionState::PeerClosed) => None,
            _ => Some(None),
        };
        bytes.drain(..discard);
        if let Some(made) = made {
            return made;
        }
    }
}

/// Which bytes of plaintext have arrived, told from the bytes of the wire: records have headers and tags, and some carry no plaintext.
/// It errs on the side of what hasn't arrived yet.
#[derive(Debug, Default)]
pub struct Ledger {
    wire: u64,
    plain: u64,
    arrived: u64,
    /// Ends of what was encrypted together: of the wire, and of the plaintext.
    ends: VecDeque<(u64, u64)>,
}

/// Ends that are remembered; then every other is forgotten.
const MOST_ENDS: usize = 32;

impl Ledger {
    /// Bytes of the wire without plaintext of the link's.
    pub fn on_overhead(&mut self, wire_bytes: usize) {
        self.wire += wire_bytes as u64;
    }

    pub fn on_sealed(&mut self, wire_bytes: usize, plain_bytes: usize) {
        self.wire += wire_bytes as u64;
        self.plain += plain_bytes as u64;
        if self.ends.len() == MOST_ENDS {
            // Each second stays, and the last.
            let mut is_kept = self.ends.len() % 2 == 1;
            self.ends.retain(|_| {
                is_kept = !is_kept;
                !is_kept
            });
        }
        self.ends.push_back((self.wire, self.plain));
    }

    pub fn arrived(&mut self, wire_bytes: u64) -> u64 {
        while let Some((wire, plain)) = self.ends.front()
            && *wire <= wire_bytes
        {
            self.arrived = *plain;
            self.ends.pop_front();
        }
        self.arrived
    }
}
