//! One session, over one link after another: composes frames, handshake, heartbeat, detector and offsets. No clock, no
//! socket.
//!
//! The driver's turn, after every `handle_*` and every verb:
//!
//! 1. [`Connection::poll_transmit`], write what it gives, [`Connection::transmitted`]; until it gives nothing or the
//!    kernel takes no more.
//! 2. [`Connection::poll_action`] until `None`, doing each; a [`Action::Look`] is answered by
//!    [`Connection::handle_kernel`] in the same turn, with the same `now`.
//! 3. [`Connection::poll_event`] until `None`.
//! 4. Sleep until [`Connection::poll_timeout`]; it is remembered, so that a late wake-up is noticed.
//!
//! [`Connection::handle_timeout`] gives verdicts, so everything that the kernel holds is read first (until EAGAIN) and
//! given to [`Connection::handle_input`].
//!
//! After [`Event::Parted`] the link is over, once its actions are done, and the session waits: a client for its driver to
//! give it another ([`Connection::relink`]), a server for its client to come ([`Connection::resume`]).

mod continuity;
mod input;
mod known;
mod output;
mod pace;
mod verbs;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::continuity::{Continuity, Lost};
use self::pace::Pace;
use super::adaptive::{Learning, Learnt, Losses, Network};
use super::cause::Ending;
use super::close::Close;
use super::detector::Detector;
use super::evidence::Evidence;
use super::frame::{Decoder, FrameError, Kind};
use super::handshake::{HandshakeError, Hello, MAX_CLIENT_ID_BYTES, MAX_TOKEN_BYTES, Rhythm};
use super::heartbeat::{BeatError, Heartbeat, HeartbeatConfig};
use super::moment::Moment;
use super::session::{Session, SessionError};

pub use self::continuity::{Claim, ResumeError};
pub use self::known::Stats;

/// Waking up later than this is a pause of our own, as is a quarter of the limit (DESIGN 5).
pub(super) const PAUSE: Duration = Duration::from_millis(50);
/// How long we wait for the peer's FIN after its CLOSE; it has nothing left to say. Arbitrary.
const LINGER: Duration = Duration::from_secs(2);

/// What holds for a link from its beginning; all links of a server share one.
#[derive(Clone, Debug)]
pub struct Config {
    pub heartbeat: HeartbeatConfig,
    /// The largest message that we take.
    pub largest_message_bytes: u64,
    /// For what the peer hasn't taken; a single message may be larger.
    pub send_buffer_bytes: usize,
    pub handshake_timeout: Duration,
    /// Where the server has lost the session, what may have been taken is sent again, rather than reported.
    pub resends: bool,
    /// How long a client's session waits for a link; `None`: for ever.
    pub give_up_after: Option<Duration>,
    /// Of all links of the process, where there are several configurations.
    pub losses: Arc<Losses>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: HeartbeatConfig::default(),
            largest_message_bytes: 16 * 1024 * 1024,
            // Two messages of 1 MiB with their headers: one is taken while the other comes.
            send_buffer_bytes: 2 * 1024 * 1024 + 64 * 1024,
            handshake_timeout: Duration::from_secs(10),
            resends: false,
            give_up_after: None,
            losses: Arc::default(),
        }
    }
}

/// What a client says of itself.
#[derive(Clone, Debug, Default)]
pub struct Introduction {
    pub client_id: String,
    pub token: Vec<u8>,
    /// It comes back when its link breaks: its driver does what [`Event::Parted`] asks for.
    pub will_resume: bool,
    /// What it has learnt before, if its interval is adaptive; the most recently used network last.
    pub learnt: Vec<(Network, Learnt)>,
}

/// The client's introduction doesn't fit HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntroductionError {
    #[error("a client id of {length} bytes, at most {MAX_CLIENT_ID_BYTES} are allowed")]
    ClientId { length: usize },
    #[error("a token of {length} bytes, at most {MAX_TOKEN_BYTES} are allowed")]
    Token { length: usize },
}

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the kernel, and answer by [`Connection::handle_kernel`].
    Look,
    /// Send FIN, and go on reading.
    ShutdownWrite,
    /// Reset the connection and forget it.
    Abort,
    /// Close it in an orderly way: nothing is left to be read.
    Close,
}

/// What the program is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// There is a plain peer, with whom nothing has to be agreed on.
    Connected,
    /// A client said who it is: to be answered by [`Connection::accept`] or [`Connection::refuse`].
    Hello(Box<Hello>),
    /// There is a link.
    Opened(Beginning),
    /// The link is lost, or an attempt at another has failed where none `was_open`. The session goes on when there is another.
    Parted {
        ending: Arc<Ending>,
        was_open: bool,
    },
    /// The link has carried everything that had to go again, and a beat forth and back.
    Proven,
    Suspect {
        silence: Duration,
    },
    /// The suspect was heard.
    Alive,
    /// The ping of this number was answered.
    Pong {
        ping: u64,
        round_trip: Option<Duration>,
    },
    /// The peer's application took something of ours.
    Taken,
    /// What the path bears is known better than before: [`Connection::learning`].
    Learnt,
    Ended(Box<Ending>),
}

/// What a link that opens means for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    New,
    /// It goes on; so many messages go again, as a whole or in part.
    Resumed {
        replayed: u64,
    },
    /// The server knew nothing of the one before; what it wasn't known to have taken goes in this one.
    Fresh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Connecting,
    Open,
    Suspect,
    /// A link was lost, and the session waits for another.
    Reconnecting,
    Closing,
    Closed,
}

/// The peer broke a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("BEAT: {0}")]
    Beat(#[from] BeatError),
    #[error("{kind:?} where it may not be")]
    Unexpected { kind: Kind },
    #[error("{kind:?} is malformed")]
    Malformed { kind: Kind },
}

/// What is to be handed to the kernel: all three, in this order.
#[derive(Debug)]
pub struct Transmit<'a> {
    /// The rest of a frame that was cut short, or the handshake.
    pub first: &'a [u8],
    pub control: &'a [u8],
    pub data: &'a [u8],
}

impl Transmit<'_> {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.control.is_empty() && self.data.is_empty()
    }
}

#[derive(Debug)]
enum Phase {
    /// The client waits for WELCOME, the server for HELLO.
    Handshake,
    /// The server's program decides about a HELLO.
    Authenticating,
    /// The server waits for the client's first ACK.
    Welcomed,
    Open,
    /// Data accepted before is being taken; then `close` goes.
    Draining {
        close: Box<Close>,
        deadline: Moment,
    },
    /// `close` goes at the next frame boundary.
    Leaving {
        close: Box<Close>,
        deadline: Moment,
    },
    /// CLOSE is out, we wait for the peer's FIN.
    Left {
        close: Box<Close>,
        deadline: Moment,
    },
    /// The peer said CLOSE: nothing more but FIN.
    PeerLeft {
        deadline: Moment,
    },
    /// The session has no link. `parting` is tried once on the one that it had before `action`.
    Away {
        parting: Option<Box<Close>>,
        action: Option<Action>,
    },
    /// Over. `parting` is tried once before `action`.
    Ended {
        parting: Option<Box<Close>>,
        action: Option<Action>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

/// What is in the control lane, in order.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Ack,
    Beat { sent_at: u64 },
    Close,
}

/// Frames that go before data, as they were at the last poll.
#[derive(Debug)]
struct Control {
    bytes: Vec<u8>,
    /// An ACK and a BEAT, or a CLOSE, each with its length.
    slots: [Option<(Slot, usize)>; 2],
}

impl Control {
    fn put(lane: &mut Option<Box<Self>>, slot: Slot, encode: impl FnOnce(&mut Vec<u8>)) {
        let Self { bytes, slots } =
            lane.get_or_insert_with(|| Box::new(Self { bytes: Vec::with_capacity(64), slots: [None; 2] })).as_mut();
        let before = bytes.len();
        encode(bytes);
        if let Some(free) = slots.iter_mut().find(|slot| slot.is_none()) {
            *free = Some((slot, bytes.len() - before));
        }
    }
}

/// Bytes that go before everything else.
#[derive(Debug, Default)]
struct Unfinished {
    bytes: Vec<u8>,
    written: usize,
}

/// What most links don't have.
#[derive(Debug, Default)]
struct Asides {
    /// What the two programs say of themselves.
    status: Box<[u8]>,
    peer_status: Box<[u8]>,
    /// That nobody will take.
    messages_after_close: u64,
}

/// What a link needs only until it is open.
#[derive(Debug)]
struct Opening {
    seed: u64,
    deadline: Instant,
    /// What the peer wishes.
    peer: Option<Rhythm>,
    /// What a client's HELLO says of a session that it names.
    claim: Option<Claim>,
    /// A client will come back.
    will_resume: bool,
    /// The client sets the pace, and the server follows.
    is_paced: bool,
    /// Where a client is.
    network: Option<Network>,
    /// Our HELLO names one.
    names_session: bool,
    /// The session goes on, and so many messages go again.
    replayed: Option<u64>,
    /// How far the link before had come.
    sent_before: u64,
}

impl Opening {
    fn new(now: Instant, timeout: Duration, seed: u64) -> Self {
        let deadline = now + timeout;
        Self {
            seed,
            deadline,
            peer: None,
            claim: None,
            will_resume: false,
            is_paced: false,
            network: None,
            names_session: false,
            replayed: None,
            sent_before: 0,
        }
    }
}

fn first_kind(role: Role) -> Kind {
    match role {
        Role::Client => Kind::Welcome,
        Role::Server => Kind::Hello,
    }
}

/// What supervision knows, once the link is open.
#[derive(Debug)]
struct Supervision {
    heartbeat: Heartbeat,
    detector: Detector,
    evidence: Evidence,
    /// Where the interval may change.
    pace: Option<Box<Pace>>,
    last_look: Option<Moment>,
    /// Something went out behind the newest beat, so that its echo doesn't speak for everything.
    sent_behind_beat: bool,
    /// As they were on the wire, with the newest beat.
    peer_interpreter_age: u32,
    peer_application_age: u32,
}

impl Supervision {
    fn smoothed(&self) -> Duration {
        self.heartbeat.round_trip().smoothed.unwrap_or_default()
    }

    fn limit(&self) -> Duration {
        self.detector.limit(self.smoothed())
    }

    /// For what the peer owes at once.
    fn answer_limit(&self) -> Duration {
        self.detector.answer_limit(self.smoothed())
    }

    /// While there is doubt the kernel is asked now and then: of a suspect, and when an echo is overdue.
    fn next_look(&self) -> Option<Moment> {
        let limit = self.answer_limit();
        let doubt = match (self.detector.suspect_since(), self.detector.unproven_since()) {
            (Some(since), _) => since,
            (None, Some(since)) => since + limit / 4,
            (None, None) => return None,
        };
        Some(self.last_look.map_or(doubt, |last| doubt.max(last + limit / 8)))
    }
}

/// There may be many thousands, and most are idle at most times: what an idle one doesn't have is behind a pointer, and
/// times are kept small.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    config: Arc<Config>,
    phase: Phase,
    decoder: Decoder,
    heard_preamble: bool,
    session: Session,
    /// What a client needs to come back, and what is to be said by who has lost its link.
    continuity: Option<Box<Continuity>>,
    opening: Option<Box<Opening>>,
    /// A session that waits for another link has none, and thousands may wait.
    supervision: Option<Box<Supervision>>,
    /// Since a link was lost that was open, or its first came to nothing; until one is open.
    lost: Option<Box<Lost>>,
    /// The handshake, or the rest of a control frame that was cut short.
    first: Option<Box<Unfinished>>,
    control: Option<Box<Control>>,
    /// How much of `first` and of data was offered at the last poll; data that finishes a frame counts as first.
    offered_first: u32,
    data_is_first: bool,
    /// In their order, but for [`Event::Taken`], which comes with nearly every ACK.
    #[allow(clippy::box_collection, reason = "mostly there are none")]
    events: Option<Box<VecDeque<Event>>>,
    was_taken: bool,
    look_wanted: bool,
    fin_wanted: bool,
    /// The deadline that was given out last.
    armed: Option<Moment>,
    asides: Option<Box<Asides>>,
    /// Somebody waits in a blocking call.
    is_waiting: bool,
    /// The program tells of its progress itself.
    tells_progress: bool,
    last_progress: Moment,
    interpreter_ran: Option<Moment>,
    /// How long a server keeps the session without a link, in milliseconds; zero: it ends with its link.
    retention: u32,
    bytes_sent: u64,
    bytes_heard: u64,
}

/// Thousands of them idle in one process.
const _: () = assert!(size_of::<Connection>() <= 288 && size_of::<Supervision>() <= 248);

impl Connection {
    /// The side that connected: says its preamble and HELLO at once. `seed` is random, another one for each link: for
    /// the beats' origin, phase and jitter.
    pub fn client(
        now: Instant,
        config: Arc<Config>,
        seed: u64,
        introduction: Introduction,
    ) -> Result<Self, IntroductionError> {
        let length = introduction.client_id.len();
        if length > MAX_CLIENT_ID_BYTES {
            return Err(IntroductionError::ClientId { length });
        }
        let length = introduction.token.len();
        if length > MAX_TOKEN_BYTES {
            return Err(IntroductionError::Token { length });
        }
        let adaptive = config.heartbeat.adaptive;
        let learning = adaptive.map(|adaptive| Box::new(Learning::new(now, adaptive, &introduction.learnt)));
        let mut connection = Self::new(now, config, seed, Role::Client);
        connection.continuity = Some(Box::new(Continuity::of_client(introduction, learning)));
        connection.introduce();
        Ok(connection)
    }

    /// The side that accepted: says nothing until it has heard a preamble.
    #[must_use]
    pub fn server(now: Instant, config: Arc<Config>, seed: u64) -> Self {
        Self::new(now, config, seed, Role::Server)
    }

    fn new(now: Instant, config: Arc<Config>, seed: u64, role: Role) -> Self {
        Self {
            role,
            phase: Phase::Handshake,
            decoder: Decoder::new(first_kind(role)),
            heard_preamble: false,
            session: Session::default(),
            continuity: None,
            opening: Some(Box::new(Opening::new(now, config.handshake_timeout, seed))),
            supervision: None,
            lost: None,
            config,
            first: None,
            control: None,
            offered_first: 0,
            data_is_first: false,
            events: None,
            was_taken: false,
            look_wanted: false,
            fin_wanted: false,
            armed: None,
            asides: None,
            is_waiting: false,
            tells_progress: false,
            last_progress: now.into(),
            interpreter_ran: None,
            retention: 0,
            bytes_sent: 0,
            bytes_heard: 0,
        }
    }

    fn first(&mut self) -> &mut Vec<u8> {
        &mut self.first.get_or_insert_default().bytes
    }

    fn tell(&mut self, event: Event) {
        self.events.get_or_insert_default().push_back(event);
    }
}
