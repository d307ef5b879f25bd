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

use std::collections::VecDeque;
use std::mem::{self, MaybeUninit};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::continuity::{Continuity, Lost, Proof};
use super::cause::{Cause, Ending, GivenUp, Level, SessionEnd};
use super::close::{Close, CloseCode};
use super::detector::{Detector, Judgement};
use super::evidence::{Arrived, Evidence, Finding, KernelView};
use super::frame::{Decoder, Frame, FrameError, HEADER_BYTES, Kind, PREAMBLE, header};
use super::handshake::{
    Credentials, HandshakeError, Hello, MAX_CLIENT_ID_BYTES, MAX_TOKEN_BYTES, Position, Rhythm, VERSION, Welcome,
    check_limits,
};
use super::heartbeat::{
    Ages, Beat, BeatCounts, BeatError, Heartbeat, HeartbeatConfig, MAX_STATUS_BYTES, RoundTrip, age_from_wire,
    age_to_wire,
};
use super::moment::Moment;
use super::placing::{Placed, Placing};
use super::session::{Framed, SendError, Session, SessionError};

pub use self::continuity::{Claim, ResumeError};

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

    /// While there is doubt the kernel is asked now and then: of a suspect, and when an echo is overdue.
    fn next_look(&self) -> Option<Moment> {
        let limit = self.limit();
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
const _: () = assert!(size_of::<Connection>() <= 304 && size_of::<Supervision>() <= 232);

// ---- making one -----------------------------------------------------------------------------------------------

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
        let mut connection = Self::new(now, config, seed, Role::Client);
        connection.continuity = Some(Box::new(Continuity::of_client(introduction)));
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

// ---- input ----------------------------------------------------------------------------------------------------

impl Connection {
    /// Bytes that the peer sent.
    pub fn handle_input(&mut self, now: Instant, input: &[u8]) {
        if self.hear(now, input.len()) {
            self.handle_stream(now, input);
        }
    }

    /// What [`Connection::handle_input`], [`Connection::read`] and [`Connection::take`] do with a whole message in one frame, and
    /// nothing else, where none waits before it: in a conversation that is every one. `None`: nothing was done.
    pub fn handle_message<'i>(&mut self, now: Instant, input: &'i [u8]) -> Option<&'i [u8]> {
        let (length, kind) = header(input)?;
        let message = input.get(HEADER_BYTES..).filter(|rest| rest.len() == length && kind == Kind::DataEnd as u8)?;
        let is_next = matches!(self.phase, Phase::Open) && self.decoder.begun() == Some(&[]);
        if !(is_next && self.session.may_pass(length, self.config.largest_message_bytes)) {
            return None;
        }
        self.hear(now, input.len());
        let round_trip = self.supervision.as_ref().and_then(|supervision| supervision.heartbeat.round_trip().smoothed);
        self.session.pass(now, length, round_trip);
        if !self.tells_progress {
            self.last_progress = now.into();
        }
        Some(message)
    }

    /// So many bytes came. False if nobody wants to know what they say.
    fn hear(&mut self, now: Instant, bytes: usize) -> bool {
        self.note_time(now);
        if bytes == 0 || matches!(self.phase, Phase::PeerLeft { .. } | Phase::Away { .. } | Phase::Ended { .. }) {
            return false;
        }
        self.bytes_heard += bytes as u64;
        if let Some(supervision) = &mut self.supervision
            && supervision.detector.on_bytes(now)
        {
            supervision.evidence.on_heard();
            self.tell(Event::Alive);
        }
        true
    }

    fn handle_stream(&mut self, now: Instant, mut input: &[u8]) {
        // The decoder gives out frames that lie in its own buffer, so it is set aside meanwhile.
        let mut decoder = mem::replace(&mut self.decoder, Decoder::new(Kind::Hello));
        if let Err(error) = self.decode(now, &mut decoder, &mut input) {
            self.fail(now, &error);
        }
        if !matches!(self.phase, Phase::Away { .. }) {
            self.decoder = decoder;
        }
    }

    /// How long the message is that has begun, if it is the next to be taken and can be assembled in its place
    /// ([`Connection::place_begun`]).
    #[must_use]
    pub fn begun(&self) -> Option<usize> {
        self.is_supervised().then_some(())?;
        self.session.begun(self.decoder.begun()?).map(|placing| placing.length())
    }

    /// What came of the message begun moves to the front of `room`, which is as long as the message. From here on whoever reads
    /// puts what comes to [`Placing::places`], and tells by [`Connection::handle_placed`]; until the message is complete, or
    /// [`Connection::take_back`] was called, nothing else may be read. `None` while something comes that isn't of this message.
    pub fn place_begun(&mut self, room: &mut [MaybeUninit<u8>]) -> Option<Placing> {
        self.begun().filter(|length| *length == room.len())?;
        let placing = self.session.place_begun(self.decoder.begun()?, room)?;
        self.decoder.forget_begun();
        Some(placing)
    }

    /// What came to the places that `placing` gave: `headers`, and `room` as far as it is filled now. A complete message is with
    /// the program. Gives the placing back to go on with; without one, [`Connection::place_begun`] may give another.
    pub fn handle_placed(
        &mut self,
        now: Instant,
        mut placing: Placing,
        headers: &[u8],
        room: &[u8],
    ) -> Option<Placing> {
        self.hear(now, headers.len() + room.len() - placing.filled()).then_some(())?;
        if !self.is_supervised() {
            self.session.take_back(room);
            let stream = placing.into_stream(headers, room);
            self.handle_stream(now, &stream);
            return None;
        }
        let round_trip = self.supervision.as_ref().and_then(|supervision| supervision.heartbeat.round_trip().smoothed);
        match self.session.handle_placed(now, &mut placing, (headers, room), round_trip) {
            Placed::AsForeseen => {
                if placing.is_complete() && !self.tells_progress {
                    self.last_progress = now.into();
                }
                Some(placing)
            }
            Placed::Otherwise(stream) => {
                self.handle_stream(now, &stream);
                None
            }
        }
    }

    /// The message is to be assembled here again; `room` is what was filled of it.
    pub fn take_back(&mut self, now: Instant, placing: Option<Placing>, room: &[u8]) {
        self.session.take_back(room);
        if let Some(placing) = placing {
            let begun = placing.into_stream(&[], room);
            self.handle_stream(now, &begun);
        }
    }

    fn decode(&mut self, now: Instant, decoder: &mut Decoder, input: &mut &[u8]) -> Result<(), ProtocolError> {
        if matches!(self.phase, Phase::Handshake) {
            if !decoder.preamble(input)? {
                return Ok(());
            }
            if !self.heard_preamble && self.role == Role::Server {
                self.first().extend_from_slice(&PREAMBLE);
            }
            self.heard_preamble = true;
        }
        while let Some(frame) = decoder.next(input)? {
            self.handle_frame(now, frame)?;
            if matches!(self.phase, Phase::PeerLeft { .. } | Phase::Away { .. } | Phase::Ended { .. }) {
                break;
            }
        }
        Ok(())
    }

    fn handle_frame(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), ProtocolError> {
        let kind = frame.kind;
        match (&self.phase, kind) {
            (
                Phase::Open | Phase::Draining { .. } | Phase::Leaving { .. },
                Kind::DataStart | Kind::Data | Kind::DataEnd,
            ) => {
                let was_idle = !self.session.has_untaken();
                self.session.handle_data(frame, self.config.largest_message_bytes)?;
                if was_idle && self.session.has_untaken() && !self.tells_progress {
                    self.last_progress = now.into();
                }
                Ok(())
            }
            (_, Kind::Close) => self.handle_close(now, frame),
            (Phase::Handshake, Kind::Hello) if self.role == Role::Server => self.handle_hello(now, frame),
            (Phase::Handshake, Kind::Welcome) if self.role == Role::Client => self.handle_welcome(now, frame),
            (Phase::Welcomed, Kind::Ack) => {
                self.session.handle_ack(frame.payload())?;
                let beginning = match self.opening.as_ref().and_then(|opening| opening.replayed) {
                    Some(replayed) => Beginning::Resumed { replayed },
                    None => Beginning::New,
                };
                self.open(now, beginning);
                Ok(())
            }
            (Phase::Open | Phase::Draining { .. } | Phase::Leaving { .. } | Phase::Left { .. }, Kind::Ack) => {
                if self.session.handle_ack(frame.payload())? {
                    self.was_taken = true;
                    if let Some(supervision) = &mut self.supervision {
                        supervision.detector.on_something_arrived(now);
                    }
                    self.advance_closing(now);
                }
                Ok(())
            }
            (Phase::Open | Phase::Draining { .. } | Phase::Leaving { .. }, Kind::Beat) => self.handle_beat(now, frame),
            (Phase::Left { .. }, Kind::Beat | Kind::DataStart | Kind::Data) => Ok(()),
            (Phase::Left { .. }, Kind::DataEnd) => {
                self.count_unwanted(1);
                Ok(())
            }
            _ => Err(ProtocolError::Unexpected { kind }),
        }
    }

    fn handle_hello(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), ProtocolError> {
        let hello = match Hello::decode(frame.payload()) {
            Ok(hello) => hello,
            Err(error @ HandshakeError::Versions { .. }) => {
                let close = Close::new(CloseCode::VERSION, &format!("version {VERSION} only"));
                self.reject(now, close, error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if let Err(close) = check_limits(&self.config.heartbeat.rhythm(), &hello.rhythm) {
            let detail = close.reason.clone();
            self.reject(now, close, detail);
            return Ok(());
        }
        self.note_peer(hello.rhythm);
        if let Some(opening) = &mut self.opening {
            opening.will_resume = hello.will_resume;
            let (position, largest_message) = (hello.position, hello.largest_message);
            opening.claim = hello.session.map(|resumption| Claim { resumption, position, largest_message });
        }
        // What HELLO says of a session that it names is void in a new one; the client's first ACK opens the window.
        let window = if hello.session.is_some() { 0 } else { hello.position.window };
        self.session.on_peer_position(Position::start(window), hello.largest_message);
        self.phase = Phase::Authenticating;
        self.last_progress = now.into();
        self.tell(Event::Hello(Box::new(hello)));
        Ok(())
    }

    fn handle_welcome(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), ProtocolError> {
        let welcome = Welcome::decode(frame.payload())?;
        self.note_peer(welcome.rhythm);
        if let Some(beginning) = self.begin_or_go_on(now, &welcome)? {
            self.session.on_ask(true);
            self.open(now, beginning);
        }
        Ok(())
    }

    fn note_peer(&mut self, rhythm: Rhythm) {
        if let Some(opening) = &mut self.opening {
            opening.peer = Some(rhythm);
        }
    }

    fn open(&mut self, now: Instant, beginning: Beginning) {
        let Some(opening) = self.opening.take() else { return };
        let Opening { seed, peer: Some(peer), sent_before, .. } = *opening else { return };
        let ours = self.config.heartbeat.rhythm();
        self.supervision = Some(Box::new(Supervision {
            heartbeat: Heartbeat::new(now, ours.interval_to(&peer), seed),
            detector: Detector::new(now, peer.interval_to(&ours), ours.limit, self.config.heartbeat.detector),
            evidence: Evidence::default(),
            last_look: None,
            sent_behind_beat: false,
            peer_interpreter_age: age_to_wire(None),
            peer_application_age: age_to_wire(None),
        }));
        self.last_progress = now.into();
        if let Some(client) = self.as_client() {
            client.proof = Proof::Replay(sent_before);
        }
        // Whether the new link is good is known a round trip after the replay, and not some intervals later.
        if beginning != Beginning::New
            && let Some(supervision) = &mut self.supervision
        {
            supervision.heartbeat.ask(now);
        }
        self.tell(Event::Opened(beginning));
        self.phase = match self.take_farewell() {
            Some((close, deadline)) => Phase::Draining { close, deadline },
            None => Phase::Open,
        };
        self.advance_closing(now);
    }

    fn handle_beat(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), ProtocolError> {
        let beat = Beat::decode(frame.payload()).ok_or(ProtocolError::Malformed { kind: Kind::Beat })?;
        let Some(supervision) = &mut self.supervision else { return Ok(()) };
        let heard = supervision.heartbeat.handle_beat(now, &beat)?;
        match heard.arrived {
            Some(true) if !supervision.sent_behind_beat => supervision.detector.on_everything_arrived(),
            Some(_) => supervision.detector.on_something_arrived(now),
            None => {}
        }
        if !beat.extra {
            supervision.detector.on_periodic_beat(now);
        }
        let ages = Ages { interpreter: beat.interpreter_age, application: beat.application_age };
        supervision.peer_interpreter_age = age_to_wire(ages.interpreter);
        supervision.peer_application_age = age_to_wire(ages.application);
        if self.asides.as_ref().map_or(&[][..], |asides| &asides.peer_status) != beat.status {
            self.asides.get_or_insert_default().peer_status = beat.status.into();
        }
        while let Some(ping) = supervision.heartbeat.poll_pong() {
            self.events.get_or_insert_default().push_back(Event::Pong { ping, round_trip: heard.round_trip });
        }
        if beat.answer {
            self.session.on_ask(false);
        }
        let HeartbeatConfig { interpreter_limit, application_limit, .. } = self.config.heartbeat;
        for (level, age, limit) in [
            (Level::Interpreter, ages.interpreter, interpreter_limit),
            (Level::Application, ages.application, application_limit),
        ] {
            if let (Some(age), Some(limit)) = (age, limit)
                && age > limit
            {
                let mut ending = Ending::new(Cause::Hung);
                (ending.silence, ending.limit, ending.level) = (age, Some(limit), Some(level));
                ending.kernel_answers = Some(true);
                let reason = format!("{} made no progress for {age:?}", level.name());
                self.end(now, ending, Some(Close::new(CloseCode::HUNG, &reason)), Action::Abort);
                return Ok(());
            }
        }
        if let Some(client) = self.as_client()
            && matches!(client.proof, Proof::Echo(sent_at) if beat.echo >= sent_at)
        {
            client.proof = Proof::Given;
            self.tell(Event::Proven);
        }
        Ok(())
    }

    fn handle_close(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), ProtocolError> {
        let close = Close::decode(frame.payload()).ok_or(ProtocolError::Malformed { kind: Kind::Close })?;
        let in_session = self.supervision.is_some() || self.is_end_of_ours(&close);
        if in_session {
            self.session.handle_final_taken(close.taken)?;
        }
        let has_left = matches!(self.phase, Phase::Left { .. });
        let ours = match &self.phase {
            Phase::Left { close, .. } if close.ends_session => Some(Close::clone(close)),
            _ => None,
        };
        let mut ending = Ending::new(match close.code {
            _ if !in_session => Cause::Handshake,
            CloseCode::NOT_HEARD => Cause::Deaf,
            _ => Cause::Closed,
        });
        if ending.cause == Cause::Deaf {
            ending.given_up = Some(if self.was_paused() { GivenUp::Paused } else { GivenUp::Unheard });
            ending.level = Some(Level::Path);
        }
        let closes_session = close.ends_session;
        let lost = if close.code == CloseCode::STALE { SessionEnd::Forgotten } else { SessionEnd::GivenUp };
        ending.by_peer = ours.is_none();
        ending.close = Some(Box::new(close));
        // What was begun is not finished: who reads CLOSE sends nothing more.
        self.first = None;
        let is_over = ours.is_some() || (ending.cause == Cause::Closed && closes_session && self.is_done());
        if !is_over && self.goes_on(&ending) {
            self.part(now, ending, None, Some(Action::Close));
            return Ok(());
        }
        if !in_session && self.is_reconnecting() {
            ending.session = Some(lost);
        }
        if let Some(close) = ours {
            ending.cause = Cause::Closed;
            ending.given_up = None;
            ending.close = Some(Box::new(close));
        }
        self.fin_wanted |= !has_left;
        self.phase = Phase::PeerLeft { deadline: (now + LINGER).into() };
        self.announce(ending);
        Ok(())
    }

    /// The peer's end of stream.
    pub fn handle_end(&mut self, now: Instant) {
        self.note_time(now);
        let ending = match &self.phase {
            Phase::Handshake | Phase::Authenticating | Phase::Welcomed => {
                let mut ending = Ending::new(Cause::Handshake);
                ending.detail = Some("the peer ended the connection before the handshake was done".to_owned());
                ending
            }
            Phase::Open | Phase::Draining { .. } | Phase::Leaving { .. } => Ending::new(Cause::Ended),
            Phase::Left { close, .. } => self.closed(Close::clone(close)),
            Phase::PeerLeft { .. } => {
                self.phase = Phase::Ended { parting: None, action: Some(Action::Close) };
                return;
            }
            Phase::Away { .. } | Phase::Ended { .. } => return,
        };
        self.end(now, ending, None, Action::Close);
    }

    /// The kernel says that the connection was reset, or gave it up.
    pub fn handle_reset(&mut self, now: Instant) {
        self.note_time(now);
        let ending = match &self.phase {
            Phase::Handshake | Phase::Authenticating | Phase::Welcomed => {
                let mut ending = Ending::new(Cause::Handshake);
                ending.detail = Some("the connection was reset before the handshake was done".to_owned());
                ending
            }
            Phase::Left { close, .. } => self.closed(Close::clone(close)),
            Phase::Away { .. } => return,
            Phase::PeerLeft { .. } | Phase::Ended { .. } => {
                self.phase = Phase::Ended { parting: None, action: Some(Action::Close) };
                return;
            }
            Phase::Open | Phase::Draining { .. } | Phase::Leaving { .. } => {
                let mut ending = Ending::new(Cause::Reset);
                if self.was_paused() {
                    ending.given_up = Some(GivenUp::Paused);
                } else if self.is_unheard(now) {
                    ending.given_up = Some(GivenUp::Unheard);
                }
                ending
            }
        };
        self.end(now, ending, None, Action::Close);
    }

    /// The link ended for a reason that only the driver knows: TLS, an error of the system.
    pub fn handle_failure(&mut self, now: Instant, cause: Cause, detail: String) {
        self.note_time(now);
        if matches!(self.phase, Phase::PeerLeft { .. } | Phase::Away { .. } | Phase::Ended { .. }) {
            return;
        }
        let is_opening = self.supervision.is_none();
        let mut ending = Ending::new(if is_opening && self.is_reconnecting() { Cause::Handshake } else { cause });
        ending.detail = Some(detail);
        self.end(now, ending, None, Action::Abort);
    }

    /// The answer to [`Action::Look`]; `None` where the kernel can't tell.
    pub fn handle_kernel(&mut self, now: Instant, view: Option<KernelView>) {
        let Some(supervision) = &mut self.supervision else { return };
        // Only from the second look of an outstanding time on there is something to compare with: what was acknowledged
        // between an earlier look and its beginning is known to have arrived, and no arrival of what is outstanding now.
        let earlier = supervision.last_look.replace(now.into());
        let is_comparable = earlier
            .zip(supervision.detector.unproven(now))
            .is_some_and(|(earlier, unproven)| now.saturating_duration_since(earlier.instant()) <= unproven);
        match view.map(|view| supervision.evidence.observe(now, view)) {
            Some(Arrived::Everything) => supervision.detector.on_everything_arrived(),
            Some(Arrived::Something) if is_comparable => supervision.detector.on_something_arrived(now),
            Some(Arrived::Something | Arrived::Nothing) | None => {}
        }
        self.supervise(now);
    }

    /// We, or the whole machine, were paused until now: the driver's clocks say so.
    pub fn handle_pause(&mut self, now: Instant) {
        self.armed = None;
        let Some(supervision) = &mut self.supervision else { return };
        let smoothed = supervision.smoothed();
        supervision.heartbeat.on_pause(now);
        supervision.heartbeat.ask(now);
        supervision.detector.on_pause(now, smoothed);
    }

    /// A deadline passed. Everything that the kernel held was read before.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.note_time(now);
        let has_link = !matches!(self.phase, Phase::Away { .. });
        if self.has_lost_patience(now) || !has_link {
            return;
        }
        match &self.phase {
            Phase::Handshake | Phase::Authenticating | Phase::Welcomed => {
                if self.opening.as_ref().is_some_and(|opening| now >= opening.deadline) {
                    let detail = format!("not done within {:?}", self.config.handshake_timeout);
                    self.reject(now, Close::new(CloseCode::HANDSHAKE_TIMEOUT, &detail).link_only(), detail);
                }
                return;
            }
            Phase::Leaving { close, deadline } | Phase::Left { close, deadline } if now >= deadline.instant() => {
                let parting = matches!(self.phase, Phase::Leaving { .. }).then(|| Close::clone(close));
                let ending = self.closed(Close::clone(close));
                self.end(now, ending, parting, Action::Close);
                return;
            }
            Phase::PeerLeft { deadline } if now >= deadline.instant() => {
                self.phase = Phase::Ended { parting: None, action: Some(Action::Close) };
                return;
            }
            Phase::Left { .. } | Phase::PeerLeft { .. } | Phase::Away { .. } | Phase::Ended { .. } => return,
            Phase::Open | Phase::Draining { .. } | Phase::Leaving { .. } => {}
        }
        self.session.handle_timeout(now);
        if let Some(supervision) = &mut self.supervision {
            let at = Moment::from(now);
            if at >= supervision.heartbeat.poll_timeout() {
                self.session.on_idle_moment(now);
                self.decoder.release_memory();
            }
            supervision.heartbeat.handle_timeout(now);
            if supervision.next_look().is_some_and(|look| at >= look) {
                self.look_wanted = true;
            }
        }
        self.supervise(now);
        self.advance_closing(now);
    }

    /// Compares what was heard with what is allowed; verdicts only after a look at the same moment.
    fn supervise(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Open | Phase::Draining { .. } | Phase::Leaving { .. }) {
            return;
        }
        let Some(supervision) = &mut self.supervision else { return };
        let smoothed = supervision.smoothed();
        let was_suspect = supervision.detector.suspect_since().is_some();
        let judgement = supervision.detector.judge(now, smoothed);
        let has_looked = supervision.last_look == Some(now.into());
        let ending = match judgement {
            Judgement::Alive => return,
            Judgement::Suspect => {
                if !was_suspect {
                    supervision.heartbeat.ask(now);
                    supervision.evidence.on_suspicion(now);
                    self.look_wanted = true;
                    let silence = supervision.detector.silence(now);
                    self.tell(Event::Suspect { silence });
                }
                return;
            }
            Judgement::Lost { .. } | Judgement::Deaf { .. } if !has_looked => {
                self.look_wanted = true;
                return;
            }
            Judgement::Lost { silence, limit } => {
                let (cause, kernel_answers, level) = match supervision.evidence.finding(now, smoothed) {
                    Finding::Answered => (Cause::Frozen, Some(true), Some(Level::Interpreter)),
                    Finding::Unanswered => (Cause::Unreachable, Some(false), Some(Level::Path)),
                    Finding::Unknown => (Cause::Silent, None, None),
                };
                Ending { silence, limit: Some(limit), kernel_answers, level, ..Ending::new(cause) }
            }
            Judgement::Deaf { unproven, limit } => Ending {
                silence: unproven,
                limit: Some(limit),
                kernel_answers: Some(false),
                level: Some(Level::Path),
                ..Ending::new(Cause::Deaf)
            },
        };
        let mut close = Close::new(CloseCode::NOT_HEARD, &ending.to_string());
        close.ends_session = false;
        self.end(now, ending, Some(close), Action::Abort);
    }

    /// A wake-up that comes too late is a pause of our own.
    fn note_time(&mut self, now: Instant) {
        let Some(armed) = self.armed.map(Moment::instant) else { return };
        if now <= armed + PAUSE {
            return;
        }
        self.armed = None;
        let limit = self.supervision.as_ref().map_or(Duration::ZERO, |supervision| supervision.limit());
        if now > armed + PAUSE.max(limit / 4) {
            self.handle_pause(now);
        }
    }
}

// ---- verbs ----------------------------------------------------------------------------------------------------

impl Connection {
    /// The server's program takes the client that said HELLO, with a session that is new. It is kept for `retention` where it has
    /// no link, if the client comes back for it.
    pub fn accept(&mut self, credentials: Credentials, retention: Duration) {
        if !matches!(self.phase, Phase::Authenticating) {
            return;
        }
        let will_resume = self.opening.as_ref().is_some_and(|opening| opening.will_resume);
        if will_resume {
            self.retention = u32::try_from(retention.as_millis()).unwrap_or(u32::MAX);
        }
        self.welcome(credentials);
    }

    fn welcome(&mut self, credentials: Credentials) {
        let welcome = Welcome {
            version: VERSION,
            rhythm: self.config.heartbeat.rhythm(),
            position: self.session.state_position(),
            largest_message: self.config.largest_message_bytes,
            credentials,
            resumed: self.opening.as_ref().is_some_and(|opening| opening.replayed.is_some()),
            retention: Duration::from_millis(self.retention.into()),
        };
        welcome.encode(self.first());
        self.phase = Phase::Welcomed;
    }

    /// The server's program, or its driver, refuses a client that isn't open yet. A server that hasn't heard a
    /// preamble goes without a word.
    pub fn refuse(&mut self, now: Instant, close: Close) {
        if matches!(self.phase, Phase::Handshake | Phase::Authenticating | Phase::Welcomed) {
            let detail = close.reason.clone();
            self.reject(now, close, detail);
        }
    }

    /// Messages are accepted: they wait for a link, if there is none.
    fn may_send(&self) -> bool {
        match self.phase {
            Phase::Open => true,
            Phase::Leaving { ref close, .. } | Phase::Left { ref close, .. } => {
                !close.ends_session && !self.is_leaving()
            }
            Phase::Handshake | Phase::Welcomed | Phase::Away { .. } => self.is_reconnecting() && !self.is_leaving(),
            _ => false,
        }
    }

    /// Appends a message to what is to be sent.
    pub fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        if !self.may_send() {
            return Err(SendError::NotOpen);
        }
        self.session.send(message, self.config.send_buffer_bytes)
    }

    /// Whether a message of `length` bytes could be sent now.
    pub fn check_send(&self, length: usize) -> Result<(), SendError> {
        if !self.may_send() {
            return Err(SendError::NotOpen);
        }
        self.session.check_send(length, self.config.send_buffer_bytes)
    }

    /// As [`Connection::send`]; the message is taken from `framed` unless that fails.
    pub fn send_framed(&mut self, framed: &mut Framed) -> Result<(), SendError> {
        if !self.may_send() {
            return Err(SendError::NotOpen);
        }
        self.session.send_framed(framed, self.config.send_buffer_bytes)
    }

    /// The next whole message. It weighs on the window until it is taken.
    pub fn read(&mut self) -> Option<&[u8]> {
        self.session.read()
    }

    /// The oldest `messages` of those that were read are with the program. False if it was too late for that: our CLOSE
    /// had said that they aren't.
    pub fn take(&mut self, now: Instant, messages: usize) -> bool {
        let round_trip = self.supervision.as_ref().and_then(|supervision| supervision.heartbeat.round_trip().smoothed);
        let taken = self.session.take(now, messages, round_trip);
        if !self.tells_progress {
            self.last_progress = now.into();
        }
        if matches!(self.phase, Phase::Ended { parting: None, .. }) && !self.session.has_untaken() {
            self.give_back_memory();
        }
        taken > 0
    }

    /// The link is over, and its driver has done what was to be done.
    pub fn give_back_memory(&mut self) {
        self.session.give_up();
        self.decoder.release_memory();
        (self.first, self.control) = (None, None);
    }

    /// The program is done with the link: what it hasn't taken of a link that is over it never will.
    pub fn forget_inbox(&mut self) {
        if matches!(self.phase, Phase::PeerLeft { .. } | Phase::Ended { parting: None, .. }) {
            self.session.discard_inbox();
            self.session.give_up();
            self.session.forget_sent();
        }
    }

    /// Asks the peer to beat back at once; [`Event::Pong`] will bear the number.
    pub fn ping(&mut self, now: Instant) -> Option<u64> {
        self.is_supervised().then_some(())?;
        Some(self.supervision.as_mut()?.heartbeat.ping(now))
    }

    /// Asks the peer not to be slow with its acknowledgement: somebody waits for it.
    pub fn hurry(&mut self, now: Instant) {
        if self.is_supervised()
            && self.session.outbox.untaken_bytes() > 0
            && let Some(supervision) = &mut self.supervision
        {
            supervision.heartbeat.ask(now);
        }
    }

    /// What our beats tell the peer; at most 1024 bytes. False if it is longer, and nothing was changed.
    #[must_use]
    pub fn set_status(&mut self, status: &[u8]) -> bool {
        if status.len() > MAX_STATUS_BYTES {
            return false;
        }
        self.asides.get_or_insert_default().status = status.into();
        true
    }

    /// The program says that it goes forward; from the first time on nothing else counts.
    pub fn progress(&mut self, now: Instant) {
        self.tells_progress = true;
        self.last_progress = now.into();
    }

    /// Whether somebody waits in a blocking call.
    pub fn set_waiting(&mut self, now: Instant, is_waiting: bool) {
        if self.is_waiting && !is_waiting && !self.tells_progress {
            self.last_progress = now.into();
        }
        self.is_waiting = is_waiting;
    }

    /// When the interpreter is known to have run; `None` where nobody can know.
    pub fn set_interpreter_ran(&mut self, at: Option<Moment>) {
        self.interpreter_ran = at;
    }

    /// What was wanted of the process's budget ([`Connection::budget_wanted`]) is granted.
    pub fn grant_budget(&mut self) {
        self.session.grant_budget();
    }

    /// Says goodbye. If the session ends, what was accepted before is sent and taken first, until the deadline; if
    /// only the link does, CLOSE goes at the next frame boundary.
    pub fn close(&mut self, now: Instant, close: Close, deadline: Instant) {
        let deadline = Moment::from(deadline);
        let is_reconnecting = self.is_reconnecting();
        match &mut self.phase {
            Phase::Handshake | Phase::Welcomed | Phase::Away { .. } if is_reconnecting => {
                if close.ends_session {
                    self.leave_later(now, close, deadline);
                }
            }
            Phase::Handshake | Phase::Authenticating | Phase::Welcomed => {
                let ending = self.closed(close.clone());
                // The session that it names isn't the one that ends.
                let parting = self.may_say_close().then(|| close.link_only());
                self.finish(ending, parting, Action::Close);
            }
            Phase::Open if close.ends_session => {
                self.phase = Phase::Draining { close: Box::new(close), deadline };
                self.hurry(now);
                self.advance_closing(now);
            }
            Phase::Open => self.phase = Phase::Leaving { close: Box::new(close), deadline },
            // Only the link goes as yet.
            Phase::Leaving { close: before, .. } | Phase::Left { close: before, .. }
                if close.ends_session && !before.ends_session =>
            {
                self.leave_later(now, close, deadline);
            }
            Phase::Draining { deadline: before, .. }
            | Phase::Leaving { deadline: before, .. }
            | Phase::Left { deadline: before, .. } => *before = deadline.min(*before),
            Phase::PeerLeft { .. } | Phase::Away { .. } | Phase::Ended { .. } => {}
        }
    }

    /// Says goodbye at the next frame boundary, whatever hasn't been taken.
    pub fn leave(&mut self, now: Instant, close: Close, deadline: Instant) {
        let replaces = match self.phase {
            Phase::Open => true,
            Phase::Draining { .. } => close.ends_session,
            _ => false,
        };
        if replaces {
            self.phase = Phase::Leaving { close: Box::new(close), deadline: deadline.into() };
        } else {
            self.close(now, close, deadline);
        }
    }

    fn advance_closing(&mut self, now: Instant) {
        let Phase::Draining { close, deadline } = &self.phase else { return };
        let is_over = now >= deadline.instant();
        if self.session.outbox.untaken_bytes() > 0 && !is_over {
            return;
        }
        let (close, deadline) = (close.clone(), *deadline);
        if is_over {
            let ending = self.closed(Close::clone(&close));
            self.finish(ending, Some(*close), Action::Close);
        } else {
            self.phase = Phase::Leaving { close, deadline };
        }
    }

    fn closed(&self, close: Close) -> Ending {
        Ending { close: Some(Box::new(close)), ..Ending::new(Cause::Closed) }
    }

    /// A server says nothing, not even CLOSE, to who hasn't said the preamble.
    fn may_say_close(&self) -> bool {
        self.role == Role::Client || self.heard_preamble
    }

    /// The handshake fails by our will.
    fn reject(&mut self, now: Instant, close: Close, detail: String) {
        let mut ending = Ending::new(Cause::Handshake);
        ending.detail = Some(detail);
        ending.close = Some(Box::new(close.clone()));
        let parting = self.may_say_close().then_some(close);
        self.end(now, ending, parting, Action::Close);
    }

    /// The peer broke a rule.
    fn fail(&mut self, now: Instant, error: &ProtocolError) {
        let detail = error.to_string();
        // Whoever isn't one of us understands no CLOSE.
        let is_stranger = matches!(error, ProtocolError::Frame(FrameError::NotLongconn { .. }));
        let parting = (!is_stranger).then(|| Close::new(CloseCode::PROTOCOL, &detail));
        let ending = Ending { detail: Some(detail), ..Ending::new(Cause::Protocol) };
        self.end(now, ending, parting, Action::Abort);
    }

    /// The link is over, and the session with it: `parting` is tried once, then `action`.
    fn finish(&mut self, ending: Ending, parting: Option<Close>, action: Action) {
        self.phase = Phase::Ended { parting: parting.map(Box::new), action: Some(action) };
        self.look_wanted = false;
        self.fin_wanted = false;
        self.announce(ending);
    }

    fn announce(&mut self, mut ending: Ending) {
        if ending.cause == Cause::Closed && !ending.by_peer {
            self.discard_inbox();
        }
        ending.untaken_bytes = self.session.outbox.untaken_bytes() as u64;
        ending.messages_after_close = self.asides.as_ref().map_or(0, |asides| asides.messages_after_close);
        self.tell(Event::Ended(Box::new(ending)));
    }

    /// Our CLOSE has told the peer what our program took, and that is final.
    fn discard_inbox(&mut self) {
        let count = self.session.discard_inbox();
        self.count_unwanted(count);
    }

    fn count_unwanted(&mut self, messages: u64) {
        if messages > 0 {
            self.asides.get_or_insert_default().messages_after_close += messages;
        }
    }

    /// How long we wait for the peer's FIN after our CLOSE. It has nothing else left to say, so silence is no life any
    /// more, and its limit holds.
    fn farewell(&self) -> Duration {
        self.supervision.as_ref().map_or(LINGER, |supervision| supervision.limit().max(LINGER))
    }

    /// We were paused, and nothing that we sent since is known to have arrived.
    fn was_paused(&self) -> bool {
        self.supervision.as_ref().is_some_and(|supervision| supervision.heartbeat.is_unheard_since_pause())
    }

    /// An echo is overdue. It comes after an interval and a round trip at the latest; and a peer that gives us up by the
    /// default rule has heard nothing for two and a half, of which what it should have heard is outstanding for one and
    /// a half at least. Between the two.
    fn is_unheard(&self, now: Instant) -> bool {
        let Some(supervision) = &self.supervision else { return false };
        let overdue = supervision.detector.interval() * 5 / 4 + supervision.smoothed();
        supervision.detector.unproven(now).is_some_and(|unproven| unproven >= overdue)
    }

    fn is_supervised(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Draining { .. } | Phase::Leaving { .. })
    }
}

// ---- output ---------------------------------------------------------------------------------------------------

impl Connection {
    /// What is to be handed to the kernel now. The contents of beats and acknowledgements are as of `now`, so what
    /// isn't handed over is asked for again.
    #[must_use]
    pub fn poll_transmit(&mut self, now: Instant) -> Transmit<'_> {
        self.control = None;
        let taken = self.session.taken();
        // Who is refused because its session has ended is told what that one took.
        let put_close = |close: &Close, control: &mut Option<Box<Control>>| {
            Control::put(control, Slot::Close, |out| {
                Close { taken: taken.max(close.taken), ..close.clone() }.encode(out)
            });
        };
        let mut sends_data = false;
        match &self.phase {
            Phase::Handshake | Phase::Authenticating | Phase::Welcomed => {}
            Phase::Open | Phase::Draining { .. } => {
                sends_data = true;
                self.put_ack_and_beat(now);
            }
            Phase::Leaving { close, .. } => {
                put_close(close, &mut self.control);
            }
            Phase::Away { parting: Some(close), .. } | Phase::Ended { parting: Some(close), .. } => {
                put_close(close, &mut self.control);
            }
            Phase::Left { .. } => {}
            Phase::PeerLeft { .. } | Phase::Away { parting: None, .. } | Phase::Ended { parting: None, .. } => {
                return Transmit { first: &[], control: &[], data: &[] };
            }
        }
        let tail = self.session.outbox.tail().len();
        let ready = self.session.outbox.ready();
        let (rest_of_frame, data) = ready.split_at(if self.control.is_none() && sends_data { 0 } else { tail });
        self.data_is_first = self.first.is_none();
        let first = self.first.as_ref().map_or(rest_of_frame, |first| &first.bytes[first.written..]);
        self.offered_first = u32::try_from(first.len()).unwrap_or(u32::MAX);
        let control = self.control.as_ref().map_or(&[][..], |control| &control.bytes);
        Transmit { first, control, data: if sends_data { data } else { &[] } }
    }

    fn put_ack_and_beat(&mut self, now: Instant) {
        if self.session.ack_rides(now) {
            Control::put(&mut self.control, Slot::Ack, |out| self.session.encode_ack(out));
        }
        let status = self.asides.as_ref().map_or(&[][..], |asides| &asides.status);
        if let Some(supervision) = &self.supervision
            && supervision.heartbeat.is_pending()
            && let ages = self.ages(now)
            && let Some(beat) = supervision.heartbeat.pending_beat(now, ages, status)
        {
            Control::put(&mut self.control, Slot::Beat { sent_at: beat.sent_at }, |out| beat.encode(out));
        }
    }

    /// The kernel took so many bytes of what [`Connection::poll_transmit`] gave; once for each poll.
    pub fn transmitted(&mut self, now: Instant, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.bytes_sent += bytes as u64;
        let mut left = bytes;
        let of_first = left.min(self.offered_first as usize);
        left -= of_first;
        if self.data_is_first {
            self.session.on_sent(of_first);
        } else if let Some(first) = &mut self.first {
            first.written += of_first;
            if first.written == first.bytes.len() {
                self.first = None;
            }
        }
        let mut behind_beat = of_first > 0 && self.data_is_first;
        if let Some(control) = self.control.take() {
            let mut start = 0;
            for (slot, length) in control.slots.into_iter().flatten() {
                if left == 0 {
                    break;
                }
                let written = left.min(length);
                left -= written;
                if written < length {
                    let bytes = control.bytes[start + written..start + length].to_vec();
                    self.first = Some(Box::new(Unfinished { bytes, written: 0 }));
                }
                start += length;
                behind_beat = !matches!(slot, Slot::Beat { .. });
                self.on_control_sent(now, slot);
            }
        }
        if left > 0 {
            self.session.on_sent(left);
            behind_beat = true;
        }
        if let Some(supervision) = &mut self.supervision {
            supervision.sent_behind_beat = behind_beat;
            supervision.detector.on_sent(now);
        }
    }

    fn on_control_sent(&mut self, now: Instant, slot: Slot) {
        match slot {
            Slot::Ack => self.session.on_ack_sent(),
            Slot::Beat { sent_at } => {
                if let Some(supervision) = &mut self.supervision {
                    let asks = supervision.heartbeat.on_sent(now, sent_at);
                    let sent = self.session.sent();
                    if let Some(client) = self.continuity.as_mut().and_then(|continuity| continuity.client.as_mut())
                        && matches!(client.proof, Proof::Replay(end) if sent >= end)
                    {
                        client.proof = Proof::Echo(sent_at);
                    }
                    if asks && supervision.detector.suspect_since().is_some() {
                        supervision.evidence.on_asked(now);
                        self.look_wanted = true;
                    }
                }
            }
            Slot::Close => match mem::replace(&mut self.phase, Phase::Handshake) {
                Phase::Leaving { close, deadline } => {
                    self.fin_wanted = true;
                    if close.ends_session {
                        self.discard_inbox();
                    }
                    self.phase = Phase::Left { close, deadline: deadline.min(Moment::from(now) + self.farewell()) };
                }
                Phase::Away { action, .. } => self.phase = Phase::Away { parting: None, action },
                Phase::Ended { action, .. } => self.phase = Phase::Ended { parting: None, action },
                other => self.phase = other,
            },
        }
    }

    /// Whether something should be written now, rather than go with what is written next.
    #[must_use]
    pub fn is_urgent(&mut self) -> bool {
        let has_beat = self.supervision.as_ref().is_some_and(|supervision| supervision.heartbeat.is_pending());
        match self.phase {
            Phase::Handshake | Phase::Authenticating | Phase::Welcomed | Phase::Left { .. } => self.first.is_some(),
            Phase::Open | Phase::Draining { .. } => {
                has_beat
                    || self.session.ack_is_urgent()
                    || self.first.is_some()
                    || (self.has_unsent() && !self.session.outbox.ready().is_empty())
            }
            Phase::Leaving { .. } => true,
            Phase::Away { ref parting, .. } | Phase::Ended { ref parting, .. } => parting.is_some(),
            Phase::PeerLeft { .. } => false,
        }
    }

    /// What was accepted goes on only when more is heard of the peer, or the kernel has room again.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        self.session.outbox.has_unsent()
    }

    /// Nothing of a turn is left to be done but to write what is urgent, to tell that something was taken, and to ask for
    /// the next deadline.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        matches!(self.phase, Phase::Open)
            && self.events.is_none()
            && !self.look_wanted
            && !self.fin_wanted
            && self.session.budget_wanted() == 0
    }

    /// What the driver is to do next, after one attempt at transmitting.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        if mem::take(&mut self.look_wanted) {
            return Some(Action::Look);
        }
        if self.fin_wanted && self.first.is_none() {
            self.fin_wanted = false;
            return Some(Action::ShutdownWrite);
        }
        match &mut self.phase {
            Phase::Away { parting, action } | Phase::Ended { parting, action } => {
                *parting = None;
                action.take()
            }
            _ => None,
        }
    }

    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        if mem::take(&mut self.was_taken) {
            return Some(Event::Taken);
        }
        let event = self.events.as_mut()?.pop_front();
        if event.is_none() {
            self.events = None;
        }
        event
    }

    /// When [`Connection::handle_timeout`] is to be called; `None`: never. It is remembered as when we shall wake.
    #[must_use]
    pub fn poll_timeout(&mut self) -> Option<Moment> {
        self.armed = match &self.phase {
            Phase::Handshake | Phase::Authenticating | Phase::Welcomed => {
                let opening = self.opening.as_ref().map(|opening| opening.deadline.into());
                opening.into_iter().chain(self.end_of_patience()).min()
            }
            Phase::Away { .. } => self.end_of_patience(),
            Phase::Left { deadline, .. } | Phase::PeerLeft { deadline } => Some(*deadline),
            Phase::Ended { .. } => None,
            Phase::Open => self.next_supervision(),
            Phase::Draining { deadline, .. } | Phase::Leaving { deadline, .. } => {
                Some(self.next_supervision().map_or(*deadline, |next| next.min(*deadline)))
            }
        };
        self.armed
    }

    /// What [`Connection::poll_timeout`] gave last may stand for some milliseconds: what has come up since lies later. An
    /// acknowledgement waits for 50 ms, a look for an eighth of the limit; a beat that was asked for is urgent.
    #[must_use]
    pub fn keeps_deadline(&self) -> bool {
        matches!(self.phase, Phase::Open) && self.armed.is_some()
    }

    fn next_supervision(&self) -> Option<Moment> {
        let supervision = self.supervision.as_ref()?;
        let judge = supervision.detector.poll_timeout(supervision.smoothed());
        let mut next = judge.min(supervision.heartbeat.poll_timeout());
        for other in [supervision.next_look(), self.session.poll_timeout()].into_iter().flatten() {
            next = next.min(other);
        }
        Some(next)
    }
}

// ---- what is known --------------------------------------------------------------------------------------------

/// What was counted on a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stats {
    pub beats: BeatCounts,
    pub round_trip: RoundTrip,
    pub silence: Duration,
    pub phi: Option<f64>,
    pub send_interval: Duration,
    pub hear_interval: Duration,
    pub limit: Duration,
    pub bytes_sent: u64,
    pub bytes_heard: u64,
    pub untaken_bytes: usize,
    pub untaken_messages: u64,
    pub inbox_bytes: usize,
    pub inbox_messages: u64,
}

impl Connection {
    #[must_use]
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Handshake | Phase::Welcomed | Phase::Away { .. } if self.is_reconnecting() => {
                if self.is_leaving() {
                    State::Closing
                } else {
                    State::Reconnecting
                }
            }
            Phase::Handshake | Phase::Authenticating | Phase::Welcomed | Phase::Away { .. } => State::Connecting,
            Phase::Open => match &self.supervision {
                Some(supervision) if supervision.detector.suspect_since().is_some() => State::Suspect,
                _ => State::Open,
            },
            Phase::Draining { .. } | Phase::Leaving { .. } | Phase::Left { .. } => State::Closing,
            Phase::PeerLeft { .. } | Phase::Ended { .. } => State::Closed,
        }
    }

    #[must_use]
    pub fn has_message(&self) -> bool {
        self.session.has_message()
    }

    /// How long the message is that [`Connection::read`] would give.
    #[must_use]
    pub fn next_length(&self) -> Option<usize> {
        self.session.inbox.next_length()
    }

    /// Bytes and messages that the peer's application isn't known to have taken.
    #[must_use]
    pub fn untaken(&self) -> (usize, u64) {
        (self.session.outbox.untaken_bytes(), self.session.outbox.untaken_messages())
    }

    /// Up to where messages were accepted, and the peer's application is known to have taken them. Neither ever goes back.
    #[must_use]
    pub fn sent_offsets(&self) -> (u64, u64) {
        let client = self.continuity.as_ref().and_then(|continuity| continuity.client.as_ref());
        let before = client.map_or(0, |client| client.taken_before);
        let (accepted, taken) = self.session.sent_offsets();
        (before + accepted, before + taken)
    }

    /// Up to where our program took what the peer sent: final once our CLOSE is out, or the peer's is in.
    #[must_use]
    pub fn taken_offset(&self) -> u64 {
        self.session.taken()
    }

    /// Bytes of this link that the kernel took.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    #[must_use]
    pub fn status(&self) -> &[u8] {
        self.asides.as_ref().map_or(&[], |asides| &asides.status)
    }

    #[must_use]
    pub fn peer_status(&self) -> &[u8] {
        self.asides.as_ref().map_or(&[], |asides| &asides.peer_status)
    }

    /// The ages that the peer told, and when.
    #[must_use]
    pub fn peer_ages(&self) -> Option<(Instant, Ages)> {
        let supervision = self.supervision.as_ref()?;
        let heard = supervision.heartbeat.last_heard()?;
        let interpreter = age_from_wire(supervision.peer_interpreter_age);
        let application = age_from_wire(supervision.peer_application_age);
        Some((heard, Ages { interpreter, application }))
    }

    /// How old our own interpreter's and application's last sign is.
    #[must_use]
    pub fn ages(&self, now: Instant) -> Ages {
        let since = |at: Moment| now.saturating_duration_since(at.instant());
        let is_idle = !self.tells_progress && (self.is_waiting || !self.session.has_untaken());
        Ages {
            interpreter: self.interpreter_ran.map(since),
            application: Some(if is_idle { Duration::ZERO } else { since(self.last_progress) }),
        }
    }

    #[must_use]
    pub fn budget_wanted(&self) -> u64 {
        self.session.budget_wanted()
    }

    #[must_use]
    pub fn budget_is_for_message(&self) -> bool {
        self.session.budget_is_for_message()
    }

    #[must_use]
    pub fn budget_held_by_window(&self) -> u64 {
        self.session.budget_held_by_window()
    }

    #[must_use]
    pub fn budget_held(&self) -> u64 {
        self.session.budget_held()
    }

    /// `None` before the first link is open; without one, as they were when it was lost.
    #[must_use]
    pub fn stats(&self, now: Instant) -> Option<Stats> {
        let (untaken_bytes, untaken_messages) = self.untaken();
        let (inbox_bytes, inbox_messages) = (self.session.inbox.buffered_bytes(), self.session.inbox.messages());
        let Some(supervision) = &self.supervision else {
            let stats = self.lost.as_ref()?.stats.as_ref()?.unpacked();
            return Some(Stats { untaken_bytes, untaken_messages, inbox_bytes, inbox_messages, ..stats });
        };
        Some(Stats {
            beats: supervision.heartbeat.counts(),
            round_trip: supervision.heartbeat.round_trip(),
            silence: supervision.detector.silence(now),
            phi: supervision.detector.phi(now),
            send_interval: supervision.heartbeat.interval(),
            hear_interval: supervision.detector.interval(),
            limit: supervision.limit(),
            bytes_sent: self.bytes_sent,
            bytes_heard: self.bytes_heard,
            untaken_bytes,
            untaken_messages,
            inbox_bytes,
            inbox_messages,
        })
    }
}
