//! HELLO and WELCOME: what both sides agree on.

use std::fmt;
use std::time::Duration;

use super::close::{Close, CloseCode};
use super::frame::{Fields, Kind, put_frame};

pub const VERSION: u8 = 1;
/// The least window that a side may open to a peer of which it has taken everything.
pub const MIN_WINDOW_BYTES: u64 = 64 * 1024;
pub const MAX_CLIENT_ID_BYTES: usize = 255;
/// Together with everything else it fits HELLO's 4 KiB.
pub const MAX_TOKEN_BYTES: usize = 3072;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const HAS_SESSION: u8 = 1;
const WILL_RESUME: u8 = 2;
const SETS_PACE: u8 = 4;
const RESUMED: u8 = 1;
const FOLLOWS: u8 = 2;

/// What a side wishes, as it is on the wire: whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// How often I wish to hear.
    pub want: Duration,
    /// The fastest I will send.
    pub floor: Duration,
    /// The silence after which I count the peer as lost; `None` is the default rule.
    pub limit: Option<Duration>,
}

impl Rhythm {
    /// How often I send to `peer`.
    #[must_use]
    pub fn interval_to(&self, peer: &Self) -> Duration {
        self.floor.max(self.want.min(peer.want))
    }

    /// Where the client sets the pace both sides beat at one interval, for they beat together.
    #[must_use]
    pub(super) fn interval_of_both(&self, peer: &Self) -> Duration {
        self.interval_to(peer).max(peer.floor)
    }

    /// An explicit limit under twice the interval at which the peer sends would convict it on one late beat.
    fn check_limit(&self, peer: &Self) -> Result<(), (Duration, Duration)> {
        let interval = peer.interval_to(self);
        match self.limit {
            Some(limit) if limit < 2 * interval => Err((limit, interval)),
            _ => Ok(()),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for duration in [self.want, self.floor, self.limit.unwrap_or_default()] {
            let ms = u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
            out.extend_from_slice(&ms.to_be_bytes());
        }
    }

    /// WANT: another `want` from here on, and so another interval both ways.
    pub fn encode_want(&self, out: &mut Vec<u8>) {
        let ms = u32::try_from(self.want.as_millis()).unwrap_or(u32::MAX);
        put_frame(out, Kind::Want, |out| out.extend_from_slice(&ms.to_be_bytes()));
    }

    #[must_use]
    pub(super) fn decode_want(payload: &[u8]) -> Option<Duration> {
        let want = Duration::from_millis(u32::from_be_bytes(payload.try_into().ok()?).into());
        (Duration::from_millis(1)..=DAY).contains(&want).then_some(want)
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, HandshakeError> {
        let mut ms = || fields.u32().map(|ms| Duration::from_millis(ms.into())).ok_or(HandshakeError::Truncated);
        let (want, floor, limit) = (ms()?, ms()?, ms()?);
        for (name, duration) in [("want", want), ("floor", floor)] {
            if duration.is_zero() {
                return Err(HandshakeError::Duration { name, duration });
            }
        }
        for (name, duration) in [("want", want), ("floor", floor), ("limit", limit)] {
            if duration > DAY {
                return Err(HandshakeError::Duration { name, duration });
            }
        }
        Ok(Self { want, floor, limit: Some(limit).filter(|limit| !limit.is_zero()) })
    }
}

/// 16 bytes that name a session, 32 that prove that it is one's own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    pub id: [u8; 16],
    pub secret: [u8; 32],
}

impl Credentials {
    /// Compares secrets in a time that doesn't depend on them.
    #[must_use]
    pub fn has_secret(&self, secret: &[u8; 32]) -> bool {
        self.secret.iter().zip(secret).fold(0, |difference, (ours, theirs)| difference | (ours ^ theirs)) == 0
    }
}

/// The secret isn't shown, not even to a debugger's log.
impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Credentials").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The three numbers that replace all earlier ones when a session goes on over a new link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The end of the last complete data frame received.
    pub received: u64,
    /// What the application took.
    pub taken: u64,
    /// Credit beyond `received`.
    pub window: u64,
}

impl Position {
    /// A session's beginning.
    #[must_use]
    pub fn start(window: u64) -> Self {
        Self { received: 0, taken: 0, window }
    }

    fn check(&self) -> Result<(), HandshakeError> {
        let Self { received, taken, window } = *self;
        if taken > received || received.checked_add(window).is_none() {
            return Err(HandshakeError::Offsets { received, taken, window });
        }
        if taken == received && window < MIN_WINDOW_BYTES {
            return Err(HandshakeError::Window { window });
        }
        Ok(())
    }
}

/// A session that the client has and wishes to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumption {
    pub credentials: Credentials,
    /// Grows with every HELLO of the session.
    pub epoch: u64,
}

impl Resumption {
    /// Whether the session's client says it, and for the first time; `epoch` is of its last HELLO.
    #[must_use]
    pub fn is_good(&self, credentials: &Credentials, epoch: u64) -> bool {
        self.credentials.id == credentials.id && credentials.has_secret(&self.credentials.secret) && self.epoch > epoch
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    pub least_version: u8,
    pub greatest_version: u8,
    pub rhythm: Rhythm,
    pub position: Position,
    pub largest_message: u64,
    /// The client will come back for its session if the link breaks.
    pub will_resume: bool,
    /// The client may change its `want` while the link lasts, if the server follows.
    pub sets_pace: bool,
    pub client_id: String,
    pub token: Vec<u8>,
    pub session: Option<Resumption>,
}

/// The token isn't shown.
impl fmt::Debug for Hello {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Hello")
            .field("versions", &(self.least_version..=self.greatest_version))
            .field("rhythm", &self.rhythm)
            .field("position", &self.position)
            .field("largest_message", &self.largest_message)
            .field("will_resume", &self.will_resume)
            .field("sets_pace", &self.sets_pace)
            .field("client_id", &self.client_id)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// The peer's HELLO or WELCOME can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("it ends too early")]
    Truncated,
    #[error("{name} is {duration:?}, it must be above zero and at most 24 h")]
    Duration { name: &'static str, duration: Duration },
    #[error("received {received}, taken {taken} and window {window} contradict each other")]
    Offsets { received: u64, taken: u64, window: u64 },
    #[error("a window of {window} bytes, at least {MIN_WINDOW_BYTES} must be open")]
    Window { window: u64 },
    #[error("the client id isn't UTF-8")]
    ClientId,
    #[error("a token of {length} bytes, at most {MAX_TOKEN_BYTES} are allowed")]
    Token { length: usize },
    #[error("versions {least} to {greatest}")]
    Versions { least: u8, greatest: u8 },
    #[error("resumed a session that wasn't asked for")]
    NotAsked,
}

impl Hello {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, Kind::Hello, |out| {
            out.push(self.least_version);
            out.push(self.greatest_version);
            self.rhythm.encode(out);
            out.extend_from_slice(&self.position.window.to_be_bytes());
            out.extend_from_slice(&self.largest_message.to_be_bytes());
            let has_session = if self.session.is_some() { HAS_SESSION } else { 0 };
            let will_resume = if self.will_resume { WILL_RESUME } else { 0 };
            out.push(has_session | will_resume | if self.sets_pace { SETS_PACE } else { 0 });
            out.push(u8::try_from(self.client_id.len()).unwrap_or_default());
            out.extend_from_slice(self.client_id.as_bytes());
            out.extend_from_slice(&u16::try_from(self.token.len()).unwrap_or_default().to_be_bytes());
            out.extend_from_slice(&self.token);
            if let Some(session) = &self.session {
                out.extend_from_slice(&session.credentials.id);
                out.extend_from_slice(&session.credentials.secret);
                for number in [session.epoch, self.position.received, self.position.taken] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
            }
        });
    }

    pub fn decode(payload: &[u8]) -> Result<Self, HandshakeError> {
        let mut fields = Fields(payload);
        let truncated = || HandshakeError::Truncated;
        let least_version = fields.u8().ok_or_else(truncated)?;
        let greatest_version = fields.u8().ok_or_else(truncated)?;
        // Nothing behind the versions is promised to be the same in another one.
        if !(least_version..=greatest_version).contains(&VERSION) {
            return Err(HandshakeError::Versions { least: least_version, greatest: greatest_version });
        }
        let rhythm = Rhythm::decode(&mut fields)?;
        let window = fields.u64().ok_or_else(truncated)?;
        let largest_message = fields.u64().ok_or_else(truncated)?;
        let flags = fields.u8().ok_or_else(truncated)?;
        let length = fields.u8().ok_or_else(truncated)?;
        let client_id = fields.bytes(length.into()).ok_or_else(truncated)?;
        let client_id = std::str::from_utf8(client_id).map_err(|_| HandshakeError::ClientId)?.to_owned();
        let length = fields.u16().ok_or_else(truncated)?.into();
        if length > MAX_TOKEN_BYTES {
            return Err(HandshakeError::Token { length });
        }
        let token = fields.bytes(length).ok_or_else(truncated)?.to_vec();
        let mut position = Position::start(window);
        let mut session = None;
        if flags & HAS_SESSION != 0 {
            let id = fields.array().ok_or_else(truncated)?;
            let secret = fields.array().ok_or_else(truncated)?;
            let epoch = fields.u64().ok_or_else(truncated)?;
            position.received = fields.u64().ok_or_else(truncated)?;
            position.taken = fields.u64().ok_or_else(truncated)?;
            session = Some(Resumption { credentials: Credentials { id, secret }, epoch });
        }
        position.check()?;
        fields.skip_extensions().ok_or_else(truncated)?;
        let (will_resume, sets_pace) = (flags & WILL_RESUME != 0, flags & SETS_PACE != 0);
        Ok(Self {
            least_version,
            greatest_version,
            rhythm,
            position,
            largest_message,
            will_resume,
            sets_pace,
            client_id,
            token,
            session,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub version: u8,
    pub rhythm: Rhythm,
    pub position: Position,
    pub largest_message: u64,
    pub credentials: Credentials,
    /// The session that HELLO named goes on; else it is a new one.
    pub resumed: bool,
    /// The server heeds the client's WANT.
    pub follows: bool,
    /// How long the server keeps the session without a link.
    pub retention: Duration,
}

impl Welcome {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, Kind::Welcome, |out| {
            out.push(self.version);
            out.push(if self.resumed { RESUMED } else { 0 } | if self.follows { FOLLOWS } else { 0 });
            self.rhythm.encode(out);
            out.extend_from_slice(&self.position.window.to_be_bytes());
            out.extend_from_slice(&self.largest_message.to_be_bytes());
            out.extend_from_slice(&self.credentials.id);
            out.extend_from_slice(&self.credentials.secret);
            out.extend_from_slice(&self.position.received.to_be_bytes());
            out.extend_from_slice(&self.position.taken.to_be_bytes());
            out.extend_from_slice(&u32::try_from(self.retention.as_millis()).unwrap_or(u32::MAX).to_be_bytes());
        });
    }

    pub fn decode(payload: &[u8]) -> Result<Self, HandshakeError> {
        let mut fields = Fields(payload);
        let truncated = || HandshakeError::Truncated;
        let version = fields.u8().ok_or_else(truncated)?;
        if version != VERSION {
            return Err(HandshakeError::Versions { least: version, greatest: version });
        }
        let flags = fields.u8().ok_or_else(truncated)?;
        let (resumed, follows) = (flags & RESUMED != 0, flags & FOLLOWS != 0);
        let rhythm = Rhythm::decode(&mut fields)?;
        let window = fields.u64().ok_or_else(truncated)?;
        let largest_message = fields.u64().ok_or_else(truncated)?;
        let id = fields.array().ok_or_else(truncated)?;
        let secret = fields.array().ok_or_else(truncated)?;
        let received = fields.u64().ok_or_else(truncated)?;
        let taken = fields.u64().ok_or_else(truncated)?;
        let retention = Duration::from_millis(fields.u32().ok_or_else(truncated)?.into());
        fields.skip_extensions().ok_or_else(truncated)?;
        let position = Position { received, taken, window };
        position.check()?;
        if !resumed && received != 0 {
            return Err(HandshakeError::Offsets { received, taken, window });
        }
        let credentials = Credentials { id, secret };
        Ok(Self { version, rhythm, position, largest_message, credentials, resumed, follows, retention })
    }
}

/// Both limits, checked before WELCOME; the refusal names both numbers.
pub fn check_limits(server: &Rhythm, client: &Rhythm) -> Result<(), Close> {
    for (who, side, peer) in [("server", server, client), ("client", client, server)] {
        if let Err((limit, interval)) = side.check_limit(peer) {
            let reason =
                format!("the {who}'s limit is {limit:?}, less than twice the interval {interval:?} it hears at");
            return Err(Close::new(CloseCode::LIMIT, &reason));
        }
    }
    Ok(())
}
