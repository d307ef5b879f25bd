//! What comes: bytes, ends, the kernel's answers, and time.

use std::mem::{self, MaybeUninit};
use std::time::{Duration, Instant};

use super::continuity::{Claim, Proof};
use super::pace::Pace;
use super::{Action, Beginning, Connection, Event, LINGER, Opening, PAUSE, Phase, ProtocolError, Role, Supervision};
use crate::proto::adaptive::Network;
use crate::proto::cause::{Cause, Ending, GivenUp, Level, SessionEnd};
use crate::proto::close::{Close, CloseCode};
use crate::proto::detector::{Detector, Judgement};
use crate::proto::evidence::{Arrived, Evidence, Finding, KernelView};
use crate::proto::frame::{Decoder, Frame, HEADER_BYTES, Kind, PREAMBLE, header};
use crate::proto::handshake::{HandshakeError, Hello, Position, Rhythm, VERSION, Welcome, check_limits};
use crate::proto::heartbeat::{Ages, Beat, Heartbeat, HeartbeatConfig, age_to_wire};
use crate::proto::moment::Moment;
use crate::proto::placing::{Placed, Placing};

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
    pub(super) fn hear(&mut self, now: Instant, bytes: usize) -> bool {
        self.note_time(now);
        if bytes == 0 || matches!(self.phase, Phase::PeerLeft { .. } | Phase::Away { .. } | Phase::Ended { .. }) {
            return false;
        }
        self.bytes_heard += bytes as u64;
        if let Some(supervision) = &mut self.supervision {
            if let Some(pace) = &mut supervision.pace {
                pace.on_heard(now, &supervision.heartbeat);
            }
            if supervision.detector.on_bytes(now) {
                supervision.evidence.on_heard();
                self.tell(Event::Alive);
            }
        }
        true
    }

    pub(super) fn handle_stream(&mut self, now: Instant, mut input: &[u8]) {
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

    pub(super) fn decode(
        &mut self,
        now: Instant,
        decoder: &mut Decoder,
        input: &mut &[u8],
    ) -> Result<(), ProtocolError> {
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

    pub(super) fn handle_frame(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), ProtocolError> {
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
            (Phase::Open | Phase::Draining { .. } | Phase::Leaving { .. }, Kind::Want) => self.handle_want(now, frame),
            (Phase::Left { .. }, Kind::Beat | Kind::Want | Kind::DataStart | Kind::Data) => Ok(()),
            (Phase::Left { .. }, Kind::DataEnd) => {
                self.count_unwanted(1);
                Ok(())
            }
            _ => Err(ProtocolError::Unexpected { kind }),
        }
    }

    pub(super) fn handle_hello(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), ProtocolError> {
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
            opening.is_paced = hello.sets_pace && self.config.heartbeat.may_follow(&hello.rhythm);
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

    pub(super) fn handle_welcome(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), ProtocolError> {
        let welcome = Welcome::decode(frame.payload())?;
        self.note_peer(welcome.rhythm);
        let is_paced = welcome.follows && self.learning().is_some();
        if let Some(opening) = &mut self.opening {
            opening.is_paced = is_paced;
        }
        if let Some(beginning) = self.begin_or_go_on(now, &welcome)? {
            self.session.on_ask(true);
            self.open(now, beginning);
        }
        Ok(())
    }

    pub(super) fn note_peer(&mut self, rhythm: Rhythm) {
        if let Some(opening) = &mut self.opening {
            opening.peer = Some(rhythm);
        }
    }

    pub(super) fn open(&mut self, now: Instant, beginning: Beginning) {
        let Some(opening) = self.opening.take() else { return };
        let Opening { seed, peer: Some(peer), sent_before, is_paced, network, .. } = *opening else { return };
        let ours = self.rhythm(is_paced);
        let intervals = [ours.interval_to(&peer), peer.interval_to(&ours)];
        let [interval, peer_interval] = if is_paced { [ours.interval_of_both(&peer); 2] } else { intervals };
        let mut heartbeat = Heartbeat::new(now, interval, seed);
        let mut detector = Detector::new(now, peer_interval, ours.limit, self.config.heartbeat.detector);
        let mut pace = None;
        if is_paced {
            detector.allow_growth();
            heartbeat.keep_pace();
            pace = Some(Box::new(Pace::new(now, ours, peer, self.role == Role::Client)));
            let longest = self.longest_interval(&peer);
            if let Some(learning) = self.learning_mut() {
                let network = network.unwrap_or(Network::UNKNOWN);
                learning.on_open(network, longest, matches!(beginning, Beginning::Resumed { .. }));
            }
        }
        self.supervision = Some(Box::new(Supervision {
            heartbeat,
            detector,
            evidence: Evidence::default(),
            pace,
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

    pub(super) fn handle_beat(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), ProtocolError> {
        let beat = Beat::decode(frame.payload()).ok_or(ProtocolError::Malformed { kind: Kind::Beat })?;
        let Some(supervision) = &mut self.supervision else { return Ok(()) };
        let heard = supervision.heartbeat.handle_beat(now, &beat)?;
        let arrived = match &supervision.pace {
            Some(pace) => heard.arrived.map(|is_newest| is_newest || pace.is_proven_by(&beat)),
            None => heard.arrived,
        };
        match arrived {
            Some(true) if !supervision.sent_behind_beat => supervision.detector.on_everything_arrived(),
            Some(_) => supervision.detector.on_something_arrived(now),
            None => {}
        }
        if !beat.extra {
            supervision.detector.on_periodic_beat(now);
        }
        self.learn_from_beat(now, &beat);
        let Some(supervision) = &mut self.supervision else { return Ok(()) };
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

    pub(super) fn handle_close(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), ProtocolError> {
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
        // Who isn't trusted now won't be the next time.
        let is_passing = is_opening && self.is_reconnecting() && cause != Cause::Tls;
        let mut ending = Ending::new(if is_passing { Cause::Handshake } else { cause });
        ending.detail = Some(detail);
        // A reset could overtake the alert that says why.
        let action = if cause == Cause::Tls { Action::Close } else { Action::Abort };
        self.end(now, ending, None, action);
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
        // Its next beat may be far off.
        if supervision.detector.should_ask() {
            supervision.heartbeat.ask(now);
        }
        self.supervise(now);
    }

    /// We, or the whole machine, were paused until now: the driver's clocks say so.
    pub fn handle_pause(&mut self, now: Instant) {
        self.armed = None;
        let Some(supervision) = &mut self.supervision else { return };
        let smoothed = supervision.smoothed();
        if let Some(pace) = &mut supervision.pace {
            pace.on_pause(now);
        }
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
    pub(super) fn supervise(&mut self, now: Instant) {
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
    pub(super) fn note_time(&mut self, now: Instant) {
        let Some(armed) = self.armed.map(Moment::instant) else { return };
        if now <= armed + PAUSE {
            return;
        }
        self.armed = None;
        let limit = self.supervision.as_ref().map_or(Duration::ZERO, |supervision| supervision.answer_limit());
        if now > armed + PAUSE.max(limit / 4) {
            self.handle_pause(now);
        }
    }
}
