//! What the program does, and how a link comes to its end.

use std::time::{Duration, Instant};

use super::{Action, Connection, Event, LINGER, Phase, ProtocolError, Role};
use crate::proto::cause::{Cause, Ending};
use crate::proto::close::{Close, CloseCode};
use crate::proto::frame::FrameError;
use crate::proto::handshake::{Credentials, VERSION, Welcome};
use crate::proto::heartbeat::MAX_STATUS_BYTES;
use crate::proto::moment::Moment;
use crate::proto::session::{Framed, SendError};

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

    pub(super) fn welcome(&mut self, credentials: Credentials) {
        let is_paced = self.opening.as_ref().is_some_and(|opening| opening.is_paced);
        let welcome = Welcome {
            version: VERSION,
            rhythm: self.rhythm(is_paced),
            position: self.session.state_position(),
            largest_message: self.config.largest_message_bytes,
            credentials,
            resumed: self.opening.as_ref().is_some_and(|opening| opening.replayed.is_some()),
            follows: is_paced,
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
    pub(super) fn may_send(&self) -> bool {
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

    pub(super) fn advance_closing(&mut self, now: Instant) {
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

    pub(super) fn closed(&self, close: Close) -> Ending {
        Ending { close: Some(Box::new(close)), ..Ending::new(Cause::Closed) }
    }

    /// A server says nothing, not even CLOSE, to who hasn't said the preamble.
    pub(super) fn may_say_close(&self) -> bool {
        self.role == Role::Client || self.heard_preamble
    }

    /// The handshake fails by our will.
    pub(super) fn reject(&mut self, now: Instant, close: Close, detail: String) {
        let mut ending = Ending::new(Cause::Handshake);
        ending.detail = Some(detail);
        ending.close = Some(Box::new(close.clone()));
        let parting = self.may_say_close().then_some(close);
        self.end(now, ending, parting, Action::Close);
    }

    /// The peer broke a rule.
    pub(super) fn fail(&mut self, now: Instant, error: &ProtocolError) {
        let detail = error.to_string();
        // Whoever isn't one of us understands no CLOSE.
        let is_stranger = matches!(error, ProtocolError::Frame(FrameError::NotLongconn { .. }));
        let parting = (!is_stranger).then(|| Close::new(CloseCode::PROTOCOL, &detail));
        let ending = Ending { detail: Some(detail), ..Ending::new(Cause::Protocol) };
        self.end(now, ending, parting, Action::Abort);
    }

    /// The link is over, and the session with it: `parting` is tried once, then `action`.
    pub(super) fn finish(&mut self, ending: Ending, parting: Option<Close>, action: Action) {
        self.phase = Phase::Ended { parting: parting.map(Box::new), action: Some(action) };
        self.look_wanted = false;
        self.fin_wanted = false;
        self.announce(ending);
    }

    pub(super) fn announce(&mut self, mut ending: Ending) {
        if ending.cause == Cause::Closed && !ending.by_peer {
            self.discard_inbox();
        }
        ending.untaken_bytes = self.session.outbox.untaken_bytes() as u64;
        ending.messages_after_close = self.asides.as_ref().map_or(0, |asides| asides.messages_after_close);
        self.tell(Event::Ended(Box::new(ending)));
    }

    /// Our CLOSE has told the peer what our program took, and that is final.
    pub(super) fn discard_inbox(&mut self) {
        let count = self.session.discard_inbox();
        self.count_unwanted(count);
    }

    pub(super) fn count_unwanted(&mut self, messages: u64) {
        if messages > 0 {
            self.asides.get_or_insert_default().messages_after_close += messages;
        }
    }

    /// How long we wait for the peer's FIN after our CLOSE. It has nothing else left to say, so silence is no life any
    /// more, and its limit holds.
    pub(super) fn farewell(&self) -> Duration {
        self.supervision.as_ref().map_or(LINGER, |supervision| supervision.answer_limit().max(LINGER))
    }

    /// We were paused, and nothing that we sent since is known to have arrived.
    pub(super) fn was_paused(&self) -> bool {
        self.supervision.as_ref().is_some_and(|supervision| supervision.heartbeat.is_unheard_since_pause())
    }

    /// An echo is overdue. It comes after an interval and a round trip at the latest; and a peer that gives us up by the
    /// default rule has heard nothing for two and a half, of which what it should have heard is outstanding for one and
    /// a half at least. Between the two.
    pub(super) fn is_unheard(&self, now: Instant) -> bool {
        let Some(supervision) = &self.supervision else { return false };
        let overdue = supervision.detector.overdue() + supervision.smoothed();
        supervision.detector.unproven(now).is_some_and(|unproven| unproven >= overdue)
    }

    pub(super) fn is_supervised(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Draining { .. } | Phase::Leaving { .. })
    }
}
