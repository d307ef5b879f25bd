//! How a session outlives its links: when one is lost, the client comes back with another, and both go on from there.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    Action, Beginning, Connection, Event, Introduction, Opening, Phase, ProtocolError, Role, Stats, first_kind,
};
use crate::proto::adaptive::Learning;
use crate::proto::cause::{Cause, Ending, SessionEnd};
use crate::proto::close::{Close, CloseCode};
use crate::proto::frame::{Decoder, PREAMBLE};
use crate::proto::handshake::{Credentials, HandshakeError, Hello, Position, Resumption, VERSION, Welcome};
use crate::proto::heartbeat::{BeatCounts, RoundTrip, Trip};
use crate::proto::moment::Moment;
use crate::proto::session::{BASE_WINDOW_BYTES, SessionError};

/// How long a goodbye is tried for on which nothing depends but that the peer hears it. Arbitrary.
const COURTESY: Duration = Duration::from_secs(1);

/// The first link may take as long as the program wants; a server that has lost its tongue isn't to keep others from being tried.
const RELINK_TIMEOUT: Duration = Duration::from_secs(10);

/// What goes on when a link doesn't.
#[derive(Debug, Default)]
pub(super) struct Continuity {
    pub(super) client: Option<ClientSide>,
    /// Of a client whose interval is adaptive: it outlives links, as a path does.
    pub(super) learning: Option<Box<Learning>>,
    farewell: Option<Box<Farewell>>,
}

/// What a client needs to come back.
#[derive(Debug)]
pub(super) struct ClientSide {
    client_id: Box<str>,
    token: Box<[u8]>,
    will_resume: bool,
    credentials: Option<Credentials>,
    epoch: u64,
    /// What was taken in sessions before: for the program offsets never go back.
    pub(super) taken_before: u64,
    pub(super) proof: Proof,
}

/// What a link has yet to carry before it counts as good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Proof {
    Replay(u64),
    /// The echo of a beat.
    Echo(u64),
    #[default]
    Given,
}

/// What is known of the link before, by a session that waits for another.
#[derive(Debug)]
pub(super) struct Lost {
    /// As the program was told.
    ending: Arc<Ending>,
    deadline: Option<Moment>,
    /// As they were then; `None` if it never was open.
    pub(super) stats: Option<LastStats>,
}

const _: () = assert!(size_of::<Lost>() <= 88);

/// [`Stats`] of a link that is over, in a third of the room: thousands may be kept. What is still counted isn't there.
#[derive(Debug)]
pub(super) struct LastStats {
    beats: [u32; 3],
    round_trip: [Option<Trip>; 3],
    phi: Option<f32>,
    /// In milliseconds, as intervals are on the wire: silence, both intervals, the limit.
    spans: [u32; 4],
    worst_lateness_us: u32,
    bytes: [u64; 2],
}

impl From<Stats> for LastStats {
    fn from(stats: Stats) -> Self {
        let Stats { beats, round_trip: RoundTrip { last, smoothed, least }, .. } = stats;
        let saturated = |count: u128| u32::try_from(count).unwrap_or(u32::MAX);
        let spans = [stats.silence, stats.send_interval, stats.hear_interval, stats.limit];
        Self {
            beats: [beats.sent, beats.heard, beats.late].map(|count| saturated(count.into())),
            round_trip: [last, smoothed, least].map(|trip| trip.map(Trip::from)),
            phi: stats.phi.map(|phi| phi as f32),
            spans: spans.map(|span| saturated(span.as_millis())),
            worst_lateness_us: saturated(beats.worst_lateness.as_micros()),
            bytes: [stats.bytes_sent, stats.bytes_heard],
        }
    }
}

impl LastStats {
    pub(super) fn unpacked(&self) -> Stats {
        let [sent, heard, late] = self.beats.map(u64::from);
        let [last, smoothed, least] = self.round_trip.map(|trip| trip.map(Trip::duration));
        let worst_lateness = Duration::from_micros(self.worst_lateness_us.into());
        let [silence, send_interval, hear_interval, limit] = self.spans.map(|ms| Duration::from_millis(ms.into()));
        Stats {
            beats: BeatCounts { sent, heard, late, worst_lateness },
            round_trip: RoundTrip { last, smoothed, least },
            silence,
            phi: self.phi.map(f64::from),
            send_interval,
            hear_interval,
            limit,
            bytes_sent: self.bytes[0],
            bytes_heard: self.bytes[1],
            untaken_bytes: 0,
            untaken_messages: 0,
            inbox_bytes: 0,
            inbox_messages: 0,
            learnt: None,
        }
    }
}

/// What is to be said once everything is taken.
#[derive(Debug)]
struct Farewell {
    close: Close,
    deadline: Moment,
}

/// What a HELLO says of the session that it names.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    pub resumption: Resumption,
    pub(super) position: Position,
    pub(super) largest_message: u64,
}

/// Why a session can't go on over the link that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// The client lacks what was forgotten here: another session is to begin.
    #[error("what comes next was forgotten")]
    Forgotten,
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It has ended, or its CLOSE is out; or it was never to outlive its link.
    #[error("the session is over")]
    Over,
}

impl Continuity {
    pub(super) fn of_client(introduction: Introduction, learning: Option<Box<Learning>>) -> Self {
        let Introduction { client_id, token, will_resume, .. } = introduction;
        let client = ClientSide {
            client_id: client_id.into(),
            token: token.into(),
            will_resume,
            credentials: None,
            epoch: 0,
            taken_before: 0,
            proof: Proof::default(),
        };
        Self { client: Some(client), learning, ..Self::default() }
    }
}

// ---- the client -----------------------------------------------------------------------------------------------

impl Connection {
    pub(super) fn as_client(&mut self) -> Option<&mut ClientSide> {
        self.continuity.as_mut()?.client.as_mut()
    }

    /// Says its preamble and HELLO.
    pub(super) fn introduce(&mut self) {
        let position = self.session.state_position();
        let (rhythm, largest_message) = (self.config.heartbeat.rhythm(), self.config.largest_message_bytes);
        let sets_pace = self.learning().is_some();
        let Some(client) = self.as_client() else { return };
        let session = client.credentials.map(|credentials| {
            client.epoch += 1;
            Resumption { credentials, epoch: client.epoch }
        });
        let hello = Hello {
            least_version: VERSION,
            greatest_version: VERSION,
            rhythm,
            position: if session.is_some() { position } else { Position::start(BASE_WINDOW_BYTES) },
            largest_message,
            will_resume: client.will_resume,
            sets_pace,
            client_id: client.client_id.to_string(),
            token: client.token.to_vec(),
            session,
        };
        if let Some(opening) = &mut self.opening {
            opening.names_session = session.is_some();
        }
        let first = self.first();
        first.extend_from_slice(&PREAMBLE);
        hello.encode(first);
    }

    /// A new connection to the server is there: what [`Connection::is_away`] waits for. Nothing of the one before may be read
    /// any more. `seed` is random, another one for each link.
    pub fn relink(&mut self, now: Instant, seed: u64) {
        if self.role != Role::Client || !matches!(self.phase, Phase::Away { .. }) {
            return;
        }
        self.forget_link();
        self.phase = Phase::Handshake;
        self.opening = Some(Box::new(Opening::new(now, self.config.handshake_timeout.min(RELINK_TIMEOUT), seed)));
        self.introduce();
    }

    /// What WELCOME makes of the session; `None` if it is over.
    pub(super) fn begin_or_go_on(
        &mut self,
        now: Instant,
        welcome: &Welcome,
    ) -> Result<Option<Beginning>, ProtocolError> {
        let names_session = self.opening.as_ref().is_some_and(|opening| opening.names_session);
        let was_open = self.is_reconnecting();
        let known = self.as_client().and_then(|client| client.credentials);
        let (_, taken) = self.session.sent_offsets();
        let beginning = if welcome.resumed {
            if !names_session || known.is_none_or(|known| known.id != welcome.credentials.id) {
                return Err(HandshakeError::NotAsked.into());
            }
            let sent_before = self.session.sent();
            let Some(replayed) = self.session.check_position(welcome.position)? else {
                self.lose_session(now);
                return Ok(None);
            };
            if let Some(opening) = &mut self.opening {
                opening.sent_before = sent_before;
            }
            self.session.resume(welcome.position, welcome.largest_message)?;
            self.was_taken = true;
            Beginning::Resumed { replayed }
        } else if was_open {
            let may_double = self.session.is_doubtful();
            let is_over = may_double && !self.config.resends;
            if is_over || !self.session.restart(welcome.position.window, welcome.largest_message) {
                self.lose_session(now);
                return Ok(None);
            }
            if let Some(client) = self.as_client() {
                client.taken_before += taken;
            }
            Beginning::Fresh
        } else {
            self.session.on_peer_position(welcome.position, welcome.largest_message);
            Beginning::New
        };
        if let Some(client) = self.as_client() {
            if !welcome.resumed {
                client.epoch = 0;
            }
            client.credentials = Some(welcome.credentials);
        }
        Ok(Some(beginning))
    }

    /// The server doesn't know the session, and what it had taken of it nobody can know.
    /// No link can be made any more; its driver knows why.
    pub fn distrust(&mut self, now: Instant) {
        self.note_time(now);
        if self.is_away() {
            let mut ending = Ending::new(Cause::Tls);
            ending.untaken_bytes = self.session.outbox.untaken_bytes() as u64;
            ending.session = Some(SessionEnd::GivenUp);
            self.finish(ending, None, Action::Abort);
        }
    }

    fn lose_session(&mut self, now: Instant) {
        let mut ending = self.end_of_last_link();
        ending.session = Some(SessionEnd::Forgotten);
        // The new one has no use.
        let close = Close::new(CloseCode::GOING_AWAY, "the session before was lost");
        self.session.forget_received();
        self.note_time(now);
        self.finish(ending, Some(close), Action::Close);
    }
}

// ---- the server -----------------------------------------------------------------------------------------------

impl Connection {
    /// The session that its HELLO names.
    #[must_use]
    pub fn claim(&self) -> Option<&Claim> {
        self.opening.as_ref().filter(|_| matches!(self.phase, Phase::Authenticating))?.claim.as_ref()
    }

    /// The link that said HELLO for this session becomes its link, and the one before is over: nothing of that may be read any
    /// more. `newcomer` is where it said so, and is nothing afterwards, unless this fails.
    pub fn resume(&mut self, now: Instant, newcomer: &mut Self) -> Result<(), ResumeError> {
        let Some(Claim { position, largest_message, .. }) = newcomer.claim().copied() else {
            return Err(ResumeError::Over);
        };
        let is_over = match &self.phase {
            Phase::Left { close, .. } => close.ends_session,
            phase => matches!(phase, Phase::PeerLeft { .. } | Phase::Ended { .. }),
        };
        if is_over || self.retention == 0 {
            return Err(ResumeError::Over);
        }
        let Some(replayed) = self.session.check_position(position)? else { return Err(ResumeError::Forgotten) };
        self.note_time(now);
        if !matches!(self.phase, Phase::Away { .. }) {
            let mut ending = Ending::new(Cause::Reset);
            ending.detail = Some("the peer came back over another connection".to_owned());
            self.part(now, ending, None, None);
        }
        self.forget_link();
        self.session.resume(position, largest_message)?;
        self.was_taken = true;
        mem::swap(&mut self.decoder, &mut newcomer.decoder);
        self.heard_preamble = newcomer.heard_preamble;
        self.first = newcomer.first.take();
        self.opening = newcomer.opening.take();
        (self.bytes_sent, self.bytes_heard) = (newcomer.bytes_sent, newcomer.bytes_heard);
        newcomer.phase = Phase::Ended { parting: None, action: None };
        if let Some(opening) = &mut self.opening {
            opening.replayed = Some(replayed);
        }
        let credentials = match self.opening.as_ref().and_then(|opening| opening.claim) {
            Some(claim) => claim.resumption.credentials,
            None => return Err(ResumeError::Over),
        };
        self.welcome(credentials);
        Ok(())
    }

    /// The session is over: its client has come with a HELLO that lacks what was forgotten here, or doesn't come in time.
    pub fn lose(&mut self, now: Instant, how: SessionEnd) {
        self.note_time(now);
        if self.retention > 0 && !matches!(self.phase, Phase::PeerLeft { .. } | Phase::Ended { .. }) {
            let mut ending = self.end_of_last_link();
            ending.session = Some(how);
            self.finish(ending, None, Action::Abort);
        }
    }
}

// ---- both -----------------------------------------------------------------------------------------------------

impl Connection {
    /// Its driver can't look after it any more: the link and the session are over.
    pub fn abandon(&mut self, now: Instant, detail: String) {
        self.note_time(now);
        if matches!(self.phase, Phase::PeerLeft { .. } | Phase::Ended { .. }) {
            return;
        }
        let has_session = self.is_reconnecting() || self.retention > 0;
        let session = has_session.then_some(SessionEnd::GivenUp);
        self.finish(Ending { detail: Some(detail), session, ..Ending::new(Cause::Reset) }, None, Action::Abort);
    }

    /// The link is lost, and the session waits for another.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(self.phase, Phase::Away { .. })
    }

    /// What we have said last in a session that would have gone on, for who hasn't heard it.
    #[must_use]
    pub fn last_word(&self, ending: &Ending) -> Option<Close> {
        let close = ending.close.as_ref().filter(|close| !ending.by_peer && close.ends_session)?;
        (self.retention > 0).then(|| Close { taken: self.session.taken(), ..Close::clone(close) })
    }

    /// What was not taken, either way.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.session.outbox.untaken_bytes() + self.session.inbox.buffered_bytes()
    }

    /// A link was lost that was open, and none has been since.
    #[must_use]
    pub fn is_reconnecting(&self) -> bool {
        self.lost.is_some()
    }

    /// For a session that ends without a link. What is known of the link stays, for who asks.
    fn end_of_last_link(&self) -> Ending {
        self.lost.as_ref().map_or_else(|| Ending::new(Cause::Reset), |lost| Ending::clone(&lost.ending))
    }

    /// Something that was begun, and ends the session, waits for a link.
    pub(super) fn is_leaving(&self) -> bool {
        self.continuity.as_ref().is_some_and(|continuity| continuity.farewell.is_some())
    }

    /// The session ends once everything is taken, and everything is.
    pub(super) fn is_done(&self) -> bool {
        let is_ending = match &self.phase {
            Phase::Draining { close, .. } | Phase::Leaving { close, .. } => close.ends_session,
            _ => self.is_leaving(),
        };
        is_ending && self.session.outbox.untaken_bytes() == 0
    }

    /// A session that has ended there says so again to who comes back for it.
    pub(super) fn is_end_of_ours(&self, close: &Close) -> bool {
        let (sent, (_, taken)) = (self.session.sent(), self.session.sent_offsets());
        self.is_reconnecting() && close.ends_session && !is_refusal(close) && (taken..=sent).contains(&close.taken)
    }

    /// Whether the session outlives this end of its link.
    pub(super) fn goes_on(&self, ending: &Ending) -> bool {
        let client = self.continuity.as_ref().and_then(|continuity| continuity.client.as_ref());
        let may = match (self.role, client) {
            (Role::Client, Some(client)) => {
                client.will_resume && (client.credentials.is_some() || self.is_reconnecting())
            }
            (Role::Client, None) => false,
            (Role::Server, _) => self.retention > 0,
        };
        may && match ending.cause {
            Cause::Ended
            | Cause::Reset
            | Cause::Unreachable
            | Cause::Frozen
            | Cause::Silent
            | Cause::Deaf
            | Cause::Hung => true,
            Cause::Closed | Cause::Handshake => match &ending.close {
                Some(close) => {
                    let is_for_a_while = ending.by_peer && self.role == Role::Client && is_for_a_while(close);
                    !close.ends_session || is_for_a_while
                }
                None => ending.cause == Cause::Handshake,
            },
            Cause::Refused | Cause::Tls | Cause::Protocol => false,
        }
    }

    /// The link is over: `parting` is tried once, then `action`. The session, if there is one, waits for another.
    pub(super) fn end(&mut self, now: Instant, ending: Ending, parting: Option<Close>, action: Action) {
        if self.goes_on(&ending) {
            self.part(now, ending, parting, Some(action));
        } else {
            self.learn_from_loss(now, &ending);
            self.finish(ending, parting, action);
        }
    }

    /// The link goes, the session stays.
    pub(super) fn part(&mut self, now: Instant, mut ending: Ending, parting: Option<Close>, action: Option<Action>) {
        self.learn_from_loss(now, &ending);
        let stats = self.supervision.as_ref().and_then(|_| self.stats(now)).map(LastStats::from);
        let was_open = self.supervision.is_some();
        let parting = parting.map(|close| Box::new(close.link_only()));
        let phase = mem::replace(&mut self.phase, Phase::Away { parting, action });
        ending.untaken_bytes = self.session.outbox.untaken_bytes() as u64;
        // Nobody knows of a session whose client didn't say its first word in it.
        let patience = match self.role {
            _ if !was_open => Some(self.config.handshake_timeout),
            Role::Client => self.config.give_up_after,
            Role::Server => Some(Duration::from_millis(self.retention.into())),
        };
        if let Phase::Draining { close, deadline } | Phase::Leaving { close, deadline } = phase
            && close.ends_session
        {
            self.leave_later(now, *close, deadline);
        }
        if ending.cause == Cause::Closed && ending.close.as_ref().is_some_and(|close| close.ends_session) {
            // Whatever comes next is another session; and what this one has taken is known.
            if let Some(client) = self.as_client() {
                client.credentials = None;
            }
            self.session.on_final_word();
        }
        let ending = Arc::new(ending);
        self.lost.get_or_insert_with(|| {
            let deadline = patience.map(|patience| Moment::from(now) + patience);
            Box::new(Lost { ending: ending.clone(), deadline, stats })
        });
        self.supervision = None;
        self.opening = None;
        (self.look_wanted, self.fin_wanted) = (false, false);
        self.tell(Event::Parted { ending, was_open });
    }

    /// What is left of the link before.
    fn forget_link(&mut self) {
        self.session.forget_tail();
        self.decoder = Decoder::new(first_kind(self.role));
        self.heard_preamble = false;
        (self.first, self.control) = (None, None);
        (self.offered_first, self.data_is_first) = (0, false);
        (self.bytes_sent, self.bytes_heard) = (0, 0);
        self.armed = None;
    }

    /// A new link is open. What was begun to be ended goes on with it.
    pub(super) fn take_farewell(&mut self) -> Option<(Box<Close>, Moment)> {
        self.lost = None;
        let continuity = self.continuity.as_mut()?;
        let farewell = continuity.farewell.take();
        // Who doesn't come back has no use for what it said of itself, nor for the server's secret.
        continuity.client.take_if(|client| !client.will_resume);
        if continuity.client.is_none() && continuity.learning.is_none() {
            self.continuity = None;
        }
        farewell.map(|farewell| (Box::new(farewell.close), farewell.deadline))
    }

    /// Says goodbye over the next link, if one comes in time.
    pub(super) fn leave_later(&mut self, now: Instant, close: Close, deadline: Moment) {
        let has_untaken = self.session.outbox.untaken_bytes() > 0;
        let deadline = if has_untaken { deadline } else { deadline.min(Moment::from(now) + COURTESY) };
        match &mut self.continuity.get_or_insert_default().farewell {
            Some(farewell) => farewell.deadline = farewell.deadline.min(deadline),
            none => *none = Some(Box::new(Farewell { close, deadline })),
        }
    }

    /// When a session without a link is over. Not by its retention once its client is back, and has yet to say ACK.
    pub(super) fn end_of_patience(&self) -> Option<Moment> {
        let lost = self.lost.as_ref().filter(|_| !matches!(self.phase, Phase::Welcomed)).and_then(|lost| lost.deadline);
        let farewell = self.continuity.as_ref().and_then(|continuity| Some(continuity.farewell.as_ref()?.deadline));
        lost.into_iter().chain(farewell).min()
    }

    /// True if it is over.
    pub(super) fn has_lost_patience(&mut self, now: Instant) -> bool {
        if matches!(self.phase, Phase::Left { .. } | Phase::PeerLeft { .. } | Phase::Ended { .. }) {
            return false;
        }
        let at = Moment::from(now);
        let is_over = self.end_of_patience().is_some_and(|end| at >= end);
        if let Some(continuity) = &mut self.continuity
            && continuity.farewell.as_ref().is_some_and(|farewell| at >= farewell.deadline)
            && let Some(farewell) = continuity.farewell.take()
        {
            let ending = self.closed(farewell.close);
            self.finish(ending, None, Action::Close);
            return true;
        }
        if is_over && let Some(lost) = &self.lost {
            let mut ending = Ending::clone(&lost.ending);
            ending.session = lost.stats.as_ref().map(|_| SessionEnd::GivenUp);
            self.finish(ending, None, Action::Close);
            return true;
        }
        false
    }

    /// The client doesn't try any more, for this can't heal: every attempt's reason is in `detail`.
    pub fn give_up(&mut self, now: Instant, cause: Cause, detail: String) {
        self.note_time(now);
        if matches!(self.phase, Phase::Away { .. }) {
            let ending = Ending { detail: Some(detail), session: Some(SessionEnd::GivenUp), ..Ending::new(cause) };
            self.finish(ending, None, Action::Close);
        }
    }

    /// Each message that the peer's program isn't known to have taken, in order.
    #[must_use]
    pub fn undelivered(&self) -> Vec<Vec<u8>> {
        self.session.undelivered()
    }

    /// Nobody asks for them.
    pub fn forget_undelivered(&mut self) {
        if matches!(self.phase, Phase::Ended { .. } | Phase::PeerLeft { .. }) {
            self.session.forget_sent();
        }
    }
}

/// It is about a HELLO, and not about the session that this names.
fn is_refusal(close: &Close) -> bool {
    matches!(
        close.code,
        CloseCode::PROTOCOL
            | CloseCode::VERSION
            | CloseCode::LIMIT
            | CloseCode::UNAUTHORIZED
            | CloseCode::TOO_MANY
            | CloseCode::HANDSHAKE_TIMEOUT
            | CloseCode::STALE
    )
}

/// A refusal that doesn't stand for ever, or a goodbye for a while.
fn is_for_a_while(close: &Close) -> bool {
    matches!(close.code, CloseCode::GOING_AWAY | CloseCode::TOO_MANY | CloseCode::HANDSHAKE_TIMEOUT)
}
