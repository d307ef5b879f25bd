//! What a server knows of its sessions beside their links: what proves that one is a client's own, which have ended, and which
//! wait for their clients.
//!
//! A session's id says where it is kept, and its secret follows from the id and a key of the server's, so that a session needs
//! no more memory for them than a number.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::engine::link::Link;
use crate::net::sys;
use crate::proto::close::Close;
use crate::proto::handshake::Credentials;
use crate::proto::moment::Moment;

/// Ended sessions that are remembered, each with its goodbye; the oldest are forgotten. Arbitrary.
const MAX_ENDED: usize = 10_000;

pub(super) struct Sessions {
    /// A block of the hash, so that it is used as it is.
    key: [u8; 64],
    /// This server's, and no other's: an id of before a restart isn't taken for one of ours.
    salt: [u8; 4],
    ended: HashMap<[u8; 16], Goodbye>,
    ended_in_order: VecDeque<([u8; 16], Moment)>,
    /// Those without a link, the oldest first, and what each keeps.
    away: VecDeque<(Arc<Link>, usize)>,
    away_bytes: usize,
    /// Connections that are over, and what each has left that wasn't delivered.
    left: VecDeque<(Weak<Link>, usize)>,
    left_bytes: usize,
}

struct Goodbye {
    secret: [u8; 32],
    close: Close,
}

impl Sessions {
    pub(super) fn new() -> io::Result<Self> {
        let (mut key, mut salt) = ([0; 64], [0; 4]);
        sys::fill_random(&mut key)?;
        sys::fill_random(&mut salt)?;
        Ok(Self {
            key,
            salt,
            ended: HashMap::new(),
            ended_in_order: VecDeque::new(),
            away: VecDeque::new(),
            away_bytes: 0,
            left: VecDeque::new(),
            left_bytes: 0,
        })
    }

    /// Of the session at `place`; `nonce` tells it from others that were there before.
    pub(super) fn credentials(&self, place: u32, nonce: u64) -> Credentials {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&self.salt);
        id[4..8].copy_from_slice(&place.to_be_bytes());
        id[8..].copy_from_slice(&nonce.to_be_bytes());
        Credentials { id, secret: self.secret(&id) }
    }

    fn secret(&self, id: &[u8; 16]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new(&self.key.into());
        mac.update(id);
        mac.finalize().into_bytes().into()
    }

    /// Where the session would be that has this id.
    pub(super) fn place(&self, id: &[u8; 16]) -> Option<usize> {
        let [salt @ .., _, _, _, _, _, _, _, _, _, _, _, _] = id;
        let place = u32::from_be_bytes([id[4], id[5], id[6], id[7]]);
        (salt == &self.salt).then_some(place as usize)
    }

    // ---- those that have ended

    /// Keeps the last word for who comes back without having heard it.
    pub(super) fn remember(&mut self, now: Instant, credentials: &Credentials, close: Close, retention: Duration) {
        while let Some((id, until)) = self.ended_in_order.front().copied()
            && (until <= now.into() || self.ended_in_order.len() >= MAX_ENDED)
        {
            self.ended_in_order.pop_front();
            self.ended.remove(&id);
        }
        self.ended.insert(credentials.id, Goodbye { secret: credentials.secret, close });
        self.ended_in_order.push_back((credentials.id, Moment::from(now) + retention));
    }

    /// The last word in a session, for its own client.
    pub(super) fn last_word(&self, claimed: &Credentials) -> Option<Close> {
        let goodbye = self.ended.get(&claimed.id)?;
        let credentials = Credentials { id: claimed.id, secret: goodbye.secret };
        credentials.has_secret(&claimed.secret).then(|| goodbye.close.clone())
    }

    // ---- those without a link

    /// Its client has lost its link, and keeps so much; those that are one too many.
    pub(super) fn park(&mut self, link: Arc<Link>, bytes: usize, most: usize, most_bytes: usize) -> Vec<Arc<Link>> {
        self.unpark(&link);
        self.away.push_back((link, bytes));
        self.away_bytes += bytes;
        let mut evicted = Vec::new();
        while (self.away.len() > most || self.away_bytes > most_bytes)
            && let Some((link, bytes)) = self.away.pop_front()
        {
            self.away_bytes -= bytes;
            evicted.push(link);
        }
        evicted
    }

    pub(super) fn unpark(&mut self, link: &Arc<Link>) {
        if let Some(index) = self.away.iter().position(|(other, _)| Arc::ptr_eq(other, link))
            && let Some((_, bytes)) = self.away.remove(index)
        {
            self.away_bytes -= bytes;
        }
    }

    // ---- what is left of those that are over

    /// It is over, and keeps so much for who asks what wasn't delivered; those that are to forget it, for there is too much.
    pub(super) fn leave_behind(&mut self, link: &Arc<Link>, bytes: usize, most_bytes: usize) -> Vec<Arc<Link>> {
        self.left.push_back((Arc::downgrade(link), bytes));
        self.left_bytes += bytes;
        let mut oldest = Vec::new();
        while let Some((link, bytes)) = self.left.front()
            && (self.left_bytes > most_bytes || link.strong_count() == 0)
        {
            self.left_bytes -= bytes;
            oldest.extend(link.upgrade());
            self.left.pop_front();
        }
        oldest.retain(|other| !Arc::ptr_eq(other, link));
        oldest
    }

    pub(super) fn away(&self) -> (usize, usize) {
        (self.away.len(), self.away_bytes)
    }
}
