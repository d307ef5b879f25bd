//! A link whose interval changes while it lasts: the client sets the pace by WANT, the server follows, and each quiet time that
//! the path survives, or doesn't, teaches the client ([`crate::proto::adaptive`]).
//!
//! No bound is ever broken while the interval changes. TCP keeps the order, so whoever hears WANT hears what was sent before it first:
//! who sends WANT may beat more rarely at once, for the peer's patience grows with the same bytes; and it counts on more
//! beats of the peer only when the echo of a beat sent behind WANT shows that the peer has it.

use std::time::{Duration, Instant};

use super::{Connection, Event, ProtocolError, Role};
use crate::proto::adaptive::{First, Learning, Loss, Network};
use crate::proto::cause::{Cause, Ending, GivenUp};
use crate::proto::detector::Detector;
use crate::proto::frame::{Frame, Kind};
use crate::proto::handshake::Rhythm;
use crate::proto::heartbeat::{Beat, Heartbeat};

/// A beat that was under way for so much longer than the one before was held up: more than a kernel that repeats a lost packet
/// takes for the first times.
const STALLED: Duration = Duration::from_millis(1500);

/// What both sides wish now.
#[derive(Debug)]
pub(super) struct Pace {
    ours: Rhythm,
    peer: Rhythm,
    /// `sent_at` of our newest beat that asked. Behind it went answers at most, of which the peer says nothing until the next.
    asked_at: u64,
    leader: Option<Leader>,
}

/// What the side knows that sets the pace.
#[derive(Debug)]
struct Leader {
    /// Shorter is no quiet that teaches anything.
    least_quiet: Duration,
    /// Our `want` to be said with the next beat.
    next_want: Option<Duration>,
    /// `sent_at` of the beat behind a WANT, and the shorter interval that the peer keeps once it has it.
    said: Option<(u64, Duration)>,
    /// When anything was last sent or heard.
    active: Instant,
    /// We ended a quiet time; whether that got through is known by the echo of a beat whose `sent_at` is no less.
    ended_quiet: Option<(Duration, u64)>,
    /// The peer did, just now.
    peer_ended_quiet: Option<(Duration, Instant)>,
    /// `sent_at` of the peer's newest beat, and when it was heard.
    peer_beat: Option<(u64, Instant)>,
}

impl Pace {
    pub(super) fn new(now: Instant, ours: Rhythm, peer: Rhythm, leads: bool) -> Self {
        let leader = leads.then(|| Leader {
            least_quiet: ours.want - ours.want / 10,
            next_want: None,
            said: None,
            active: now,
            ended_quiet: None,
            peer_ended_quiet: None,
            peer_beat: None,
        });
        Self { ours, peer, asked_at: u64::MAX, leader }
    }

    pub(super) fn on_asked(&mut self, sent_at: u64) {
        self.asked_at = sent_at;
    }

    pub(super) fn is_proven_by(&self, beat: &Beat<'_>) -> bool {
        beat.echo >= self.asked_at
    }

    /// Says another `want`, if there is one to be said, before the beat that is written next.
    pub(super) fn encode_want(&self, out: &mut Vec<u8>) {
        if let Some(want) = self.leader.as_ref().and_then(|leader| leader.next_want) {
            Rhythm { want, ..self.ours }.encode_want(out);
        }
    }

    /// The beat of `sent_at` goes, behind WANT if there was one to be said.
    pub(super) fn on_beat_sent(
        &mut self,
        now: Instant,
        sent_at: u64,
        heartbeat: &mut Heartbeat,
        detector: &mut Detector,
    ) {
        let Some(leader) = &mut self.leader else { return };
        let Some(want) = leader.next_want.take() else { return };
        self.ours.want = want;
        let interval = self.ours.interval_of_both(&self.peer);
        heartbeat.set_interval(now, interval);
        leader.said = (interval < detector.interval()).then_some((sent_at, interval));
        if leader.said.is_none() {
            detector.set_interval(interval);
        }
    }

    pub(super) fn on_sent(&mut self, now: Instant, heartbeat: &Heartbeat) {
        let Some(leader) = &mut self.leader else { return };
        let quiet = leader.end_quiet(now, heartbeat);
        if quiet >= leader.least_quiet {
            leader.ended_quiet.get_or_insert((quiet, heartbeat.clock(now)));
        }
    }

    pub(super) fn on_heard(&mut self, now: Instant, heartbeat: &Heartbeat) {
        let Some(leader) = &mut self.leader else { return };
        let quiet = leader.end_quiet(now, heartbeat);
        leader.peer_ended_quiet = (quiet >= leader.least_quiet).then_some((quiet, now));
    }

    /// We were paused, and know nothing of how quiet it was.
    pub(super) fn on_pause(&mut self, now: Instant) {
        if let Some(leader) = &mut self.leader {
            leader.active = now;
            (leader.ended_quiet, leader.peer_ended_quiet, leader.peer_beat) = (None, None, None);
        }
    }

    /// How long it had been quiet before what wasn't answered, or, where nothing was asked, before the end.
    fn quiet_before(&self, now: Instant) -> Option<Duration> {
        let leader = self.leader.as_ref()?;
        let quiet = now.saturating_duration_since(leader.active);
        leader.ended_quiet.map(|(quiet, _)| quiet).or_else(|| (quiet >= leader.least_quiet).then_some(quiet))
    }
}

/// What a beat of the peer tells the leader.
enum Lesson {
    Survived(Duration, First),
    Stalled(Duration),
}

impl Leader {
    /// How long it was quiet. The interval is counted from beats that are sent, and the answer to one takes a round trip of it.
    fn end_quiet(&mut self, now: Instant, heartbeat: &Heartbeat) -> Duration {
        let quiet = now.saturating_duration_since(self.active);
        self.active = self.active.max(now);
        quiet + heartbeat.round_trip().least.unwrap_or_default()
    }

    fn learn(&mut self, now: Instant, beat: &Beat<'_>, heartbeat: &Heartbeat) -> Option<Lesson> {
        let before = self.peer_beat.replace((beat.sent_at, now));
        let held_up = before.map_or(Duration::ZERO, |(sent_at, heard)| {
            let meanwhile = Duration::from_micros(beat.sent_at.saturating_sub(sent_at));
            now.saturating_duration_since(heard).saturating_sub(meanwhile)
        });
        let by_peer = self.peer_ended_quiet.take().filter(|(_, heard)| *heard == now);
        if let Some((quiet, since)) = self.ended_quiet {
            // It was sent while the path was quiet, and had to wait for what we sent.
            if held_up >= STALLED && !beat.extra {
                return Some(Lesson::Stalled(quiet.saturating_sub(held_up)));
            }
            if beat.echo >= since {
                self.ended_quiet = None;
                // What ended the quiet waited for what the peer sent, or was under way no longer than ever.
                let took = Duration::from_micros(heartbeat.clock(now).saturating_sub(since).saturating_sub(beat.held));
                let is_stalled = took >= heartbeat.round_trip().least.unwrap_or_default() + STALLED;
                return Some(if is_stalled { Lesson::Stalled(quiet) } else { Lesson::Survived(quiet, First::Us) });
            }
        }
        by_peer.filter(|_| held_up < STALLED).map(|(quiet, _)| Lesson::Survived(quiet, First::Peer))
    }
}

impl Connection {
    /// The network that the link which opens next goes over.
    pub fn set_network(&mut self, network: Network) {
        if let Some(opening) = &mut self.opening {
            opening.network = Some(network);
        }
    }

    #[must_use]
    pub fn learning(&self) -> Option<&Learning> {
        self.continuity.as_ref()?.learning.as_deref()
    }

    pub(super) fn learning_mut(&mut self) -> Option<&mut Learning> {
        self.continuity.as_mut()?.learning.as_deref_mut()
    }

    /// What we wish on a link of which the client sets the pace: there an adaptive server goes along up to its longest.
    pub(super) fn rhythm(&self, is_paced: bool) -> Rhythm {
        let ours = self.config.heartbeat.rhythm();
        match self.config.heartbeat.adaptive {
            Some(adaptive) if is_paced && self.role == Role::Server => Rhythm { want: adaptive.max, ..ours },
            _ => ours,
        }
    }

    /// The longest interval that the peer and both limits allow: an explicit limit is a promise to its program.
    pub(super) fn longest_interval(&self, peer: &Rhythm) -> Duration {
        let ours = self.config.heartbeat.rhythm();
        let longest = self.config.heartbeat.adaptive.map_or(ours.want, |adaptive| adaptive.max);
        let limits = [ours.limit, peer.limit].into_iter().flatten().map(|limit| limit / 2);
        limits.fold(longest.min(peer.want), Duration::min).max(ours.want)
    }

    /// The client wants to hear at another interval from here on.
    pub(super) fn handle_want(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), ProtocolError> {
        let Some(supervision) = &mut self.supervision else { return Ok(()) };
        // Who doesn't follow doesn't know it.
        let Some(pace) = supervision.pace.as_mut().filter(|pace| pace.leader.is_none()) else { return Ok(()) };
        let malformed = ProtocolError::Malformed { kind: Kind::Want };
        pace.peer.want = Rhythm::decode_want(frame.payload()).ok_or(malformed)?;
        let interval = pace.ours.interval_of_both(&pace.peer);
        supervision.heartbeat.set_interval(now, interval);
        supervision.detector.set_interval(interval);
        Ok(())
    }

    /// The peer's beat is the answer to a quiet time, perhaps, and the sign that it has our WANT.
    pub(super) fn learn_from_beat(&mut self, now: Instant, beat: &Beat<'_>) {
        let Some(supervision) = &mut self.supervision else { return };
        let Some(leader) = supervision.pace.as_mut().and_then(|pace| pace.leader.as_mut()) else { return };
        if let Some((_, interval)) = leader.said.take_if(|(sent_at, _)| beat.echo >= *sent_at) {
            supervision.detector.set_interval(interval);
        }
        let lesson = leader.learn(now, beat, &supervision.heartbeat);
        let losses = self.config.losses.clone();
        let Some(learning) = self.learning_mut() else { return };
        let before = learning.changes();
        match lesson {
            Some(Lesson::Survived(quiet, first)) => learning.on_survived(now, quiet, first, &losses),
            Some(Lesson::Stalled(quiet)) => learning.on_stalled(now, quiet),
            None => return,
        }
        let (interval, is_known_better) = (learning.interval(), learning.changes() != before);
        if is_known_better {
            self.tell(Event::Learnt);
        }
        if let Some(supervision) = &mut self.supervision
            && let Some(pace) = &mut supervision.pace
            && let Some(leader) = &mut pace.leader
            && leader.next_want.unwrap_or(pace.ours.want) != interval
        {
            leader.next_want = Some(interval);
            supervision.heartbeat.ask(now);
        }
    }

    /// The link is lost, by its path or for another reason.
    pub(super) fn learn_from_loss(&mut self, now: Instant, ending: &Ending) {
        let is_of_path = match ending.cause {
            Cause::Unreachable | Cause::Silent | Cause::Deaf | Cause::Reset => {
                ending.given_up != Some(GivenUp::Paused) && !self.was_paused()
            }
            _ => false,
        };
        let Some(supervision) = self.supervision.as_ref().filter(|_| is_of_path) else { return };
        let heard = now.checked_sub(supervision.detector.silence(now)).unwrap_or(now);
        let quiet = supervision.pace.as_ref().and_then(|pace| pace.quiet_before(now));
        let losses = self.config.losses.clone();
        let Some(learning) = self.learning_mut() else { return };
        let before = learning.changes();
        learning.on_lost(&Loss { heard, now, quiet }, &losses);
        if learning.changes() != before {
            self.tell(Event::Learnt);
        }
    }
}
