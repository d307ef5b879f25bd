//! Who is here: each guest with its stage, what is counted of them, and who stands in line.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use slab::Slab;
use socket2::Socket;

use super::Counts;
use super::occurrences::Observer;
use super::sessions::Sessions;
use crate::engine::link::{Link, Occurrence};
use crate::engine::waiting::{Interest, Waiters};
use crate::proto::close::Close;
use crate::proto::handshake::{Credentials, Hello, Resumption};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Handshake,
    /// Told to go, and counted as that.
    Refused,
    /// Welcome, and counted.
    Admitted,
    Open,
    /// Its session waits for it.
    Away,
}

pub(super) struct Guest {
    pub(super) link: Arc<Link>,
    pub(super) stage: Stage,
    /// Tells its session from others that had the same place; and the newest HELLO of it.
    pub(super) nonce: u64,
    pub(super) epoch: u64,
}

pub(super) struct Hall {
    pub(super) sessions: Sessions,
    /// Shared with who accepts at the moment; none once the listener is closed.
    pub(super) socket: Option<Arc<Socket>>,
    /// A link knows its own number in it.
    pub(super) guests: Slab<Guest>,
    /// Who hasn't finished its TLS handshake, by their keys.
    pub(super) newcomers: HashSet<usize>,
    pub(super) admitted_of: HashMap<IpAddr, usize>,
    pub(super) handshakes: usize,
    pub(super) admitted: usize,
    pub(super) to_decide: VecDeque<(Arc<Link>, Box<Hello>)>,
    pub(super) to_accept: VecDeque<Arc<Link>>,
    pub(super) with_messages: VecDeque<Arc<Link>>,
    /// Called for each client to decide about, under its link's lock: posts, and doesn't wait.
    pub(super) herald: Option<Arc<dyn Fn() + Send + Sync>>,
    /// How often it was called and [`super::Listener::answer_call`] wasn't.
    pub(super) calls: usize,
    /// Called for each occurrence, likewise.
    pub(super) observer: Option<Observer>,
    pub(super) occurrences: VecDeque<(Arc<Link>, Occurrence)>,
    pub(super) counts: Counts,
    pub(super) waiters: Waiters,
    /// The engine's thread has panicked.
    pub(super) is_lost: bool,
}

/// What a HELLO names.
pub(super) enum Standing {
    Unknown,
    Stale,
    Known(Arc<Link>),
    Ended(Close),
}

impl Hall {
    pub(super) fn new(sessions: Sessions) -> Self {
        Self {
            sessions,
            socket: None,
            guests: Slab::new(),
            newcomers: HashSet::new(),
            admitted_of: HashMap::new(),
            handshakes: 0,
            admitted: 0,
            to_decide: VecDeque::new(),
            to_accept: VecDeque::new(),
            with_messages: VecDeque::new(),
            herald: None,
            calls: 0,
            observer: None,
            occurrences: VecDeque::new(),
            counts: Counts::default(),
            waiters: Waiters::default(),
            is_lost: false,
        }
    }

    /// `None` if it has gone; its number may be another's by now.
    pub(super) fn guest(&mut self, link: &Arc<Link>) -> Option<&mut Guest> {
        self.guests.get_mut(link.guest_number()).filter(|guest| Arc::ptr_eq(&guest.link, link))
    }

    /// A program that accepts nobody, or not soon enough, is not to run out of places for those who are here: who went unseen
    /// leaves. Its peer knows that nothing was taken; a plain one has gone by a reset, or can't be reached.
    pub(super) fn forget_who_left_unseen(&mut self) {
        let Self { to_accept, guests, .. } = self;
        to_accept.retain(|link| guests.get(link.guest_number()).is_some_and(|guest| Arc::ptr_eq(&guest.link, link)));
    }

    pub(super) fn strike_out(&mut self, link: &Arc<Link>) -> Option<Guest> {
        self.guest(link)?;
        Some(self.guests.remove(link.guest_number()))
    }

    pub(super) fn refuse_stale(&mut self, link: &Arc<Link>) {
        self.counts.stale += 1;
        self.refuse(link);
        log::warn!(
            target: "longconn.link",
            "{}: refused: it claims a session that isn't its own, or says an old HELLO again", link.peer_address()
        );
    }

    pub(super) fn refuse(&mut self, link: &Arc<Link>) {
        if let Some(guest) = self.guest(link) {
            guest.stage = Stage::Refused;
        }
    }

    pub(super) fn remove(&mut self, link: &Arc<Link>) -> Option<Stage> {
        let Guest { stage, .. } = self.strike_out(link)?;
        if !matches!(stage, Stage::Open | Stage::Away) {
            self.handshakes -= 1;
            self.counts.failed += u64::from(stage != Stage::Refused);
            self.to_decide.retain(|(other, _)| !Arc::ptr_eq(other, link));
        }
        if matches!(stage, Stage::Admitted | Stage::Open) {
            self.uncount(link);
        }
        if stage == Stage::Away {
            self.sessions.unpark(link);
        }
        Some(stage)
    }

    pub(super) fn count(&mut self, link: &Link) {
        self.admitted += 1;
        *self.admitted_of.entry(link.peer_address().ip().to_canonical()).or_insert(0) += 1;
    }

    pub(super) fn uncount(&mut self, link: &Link) {
        self.admitted -= 1;
        let address = link.peer_address().ip().to_canonical();
        if let Some(count) = self.admitted_of.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.admitted_of.remove(&address);
            }
        }
    }

    /// Where the session of a guest is that has proved that it is its client's.
    pub(super) fn find(&self, claim: &Resumption) -> Standing {
        if let Some(close) = self.sessions.last_word(&claim.credentials) {
            return Standing::Ended(close);
        }
        let Some(guest) = self.sessions.place(&claim.credentials.id).and_then(|place| self.guests.get(place)) else {
            return Standing::Unknown;
        };
        let credentials = self.credentials(&guest.link, guest.nonce);
        match guest.stage {
            Stage::Admitted | Stage::Open | Stage::Away if credentials.id == claim.credentials.id => {
                if claim.is_good(&credentials, guest.epoch) {
                    Standing::Known(guest.link.clone())
                } else {
                    Standing::Stale
                }
            }
            _ => Standing::Unknown,
        }
    }

    pub(super) fn credentials(&self, link: &Link, nonce: u64) -> Credentials {
        self.sessions.credentials(u32::try_from(link.guest_number()).unwrap_or(u32::MAX), nonce)
    }

    /// Nothing that was waited for will come any more.
    pub(super) fn is_over_for(&self, interest: Interest) -> bool {
        let has_more = interest.meets(Interest::STATE) || (interest.meets(Interest::EVENT) && !self.guests.is_empty());
        self.socket.is_none() && !has_more
    }
}
