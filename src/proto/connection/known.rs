//! What can be asked.

use std::time::{Duration, Instant};

use super::{Connection, Phase, State};
use crate::proto::adaptive::Learnt;
use crate::proto::heartbeat::{Ages, BeatCounts, RoundTrip, age_from_wire};
use crate::proto::moment::Moment;

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
    /// Of an adaptive client: what the path that it is on, or was on last, is known to bear.
    pub learnt: Option<Learnt>,
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
        let learnt = self.learning().and_then(|learning| learning.learnt(now));
        let Some(supervision) = &self.supervision else {
            let stats = self.lost.as_ref()?.stats.as_ref()?.unpacked();
            return Some(Stats { untaken_bytes, untaken_messages, inbox_bytes, inbox_messages, learnt, ..stats });
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
            learnt,
        })
    }
}
