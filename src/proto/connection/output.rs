//! What goes out, and what the driver is to do.

use std::mem;
use std::time::Instant;

use super::continuity::Proof;
use super::{Action, Connection, Control, Event, Phase, Slot, Transmit, Unfinished};
use crate::proto::close::Close;
use crate::proto::moment::Moment;

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

    pub(super) fn put_ack_and_beat(&mut self, now: Instant) {
        if self.session.ack_rides(now) {
            Control::put(&mut self.control, Slot::Ack, |out| self.session.encode_ack(out));
        }
        let status = self.asides.as_ref().map_or(&[][..], |asides| &asides.status);
        if let Some(supervision) = &self.supervision
            && supervision.heartbeat.is_pending()
            && let ages = self.ages(now)
            && let Some(beat) = supervision.heartbeat.pending_beat(now, ages, status)
        {
            Control::put(&mut self.control, Slot::Beat { sent_at: beat.sent_at }, |out| {
                if let Some(pace) = &supervision.pace {
                    pace.encode_want(out);
                }
                beat.encode(out);
            });
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
        let mut wants_proof = of_first > 0;
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
                wants_proof |= self.on_control_sent(now, slot);
            }
        }
        if left > 0 {
            self.session.on_sent(left);
            (behind_beat, wants_proof) = (true, true);
        }
        if let Some(supervision) = &mut self.supervision {
            if let Some(pace) = &mut supervision.pace {
                pace.on_sent(now, &supervision.heartbeat);
            }
            if wants_proof {
                supervision.sent_behind_beat = behind_beat;
                supervision.detector.on_sent(now);
            }
        }
    }

    /// True if it matters to us whether it arrives. Not of an answer where beats are rare: who has asked sees to it, and its echo
    /// would take an interval.
    fn on_control_sent(&mut self, now: Instant, slot: Slot) -> bool {
        match slot {
            Slot::Ack => self.session.on_ack_sent(),
            Slot::Beat { sent_at } => {
                if let Some(supervision) = &mut self.supervision {
                    if let Some(pace) = &mut supervision.pace {
                        pace.on_beat_sent(now, sent_at, &mut supervision.heartbeat, &mut supervision.detector);
                    }
                    let asks = supervision.heartbeat.on_sent(now, sent_at);
                    if asks {
                        if let Some(pace) = &mut supervision.pace {
                            pace.on_asked(sent_at);
                        }
                        supervision.detector.on_asked(now);
                    }
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
                    return asks || supervision.pace.is_none();
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
        true
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

    pub(super) fn next_supervision(&self) -> Option<Moment> {
        let supervision = self.supervision.as_ref()?;
        let judge = supervision.detector.poll_timeout(supervision.smoothed());
        let mut next = judge.min(supervision.heartbeat.poll_timeout());
        for other in [supervision.next_look(), self.session.poll_timeout()].into_iter().flatten() {
            next = next.min(other);
        }
        Some(next)
    }
}
