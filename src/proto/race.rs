//! Which of a peer's addresses is tried when, until the first connection stands: RFC 8305 ("Happy Eyeballs"), and for paths that
//! are cut and come back. No clock, no socket.
//!
//! Who drives it hands in what it knows (`handle_*`), makes each attempt that [`Race::poll_start`] hands out, and comes again by
//! [`Race::poll_timeout`]. When the race is over it closes what is still under way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// "Connection Attempt Delay" (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// "Resolution Delay" (RFC 8305, section 3), here for names that stand before others in the caller's list.
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// How long a name is looked for before the last winner stands in for it: longer than servers that are there take. Those of a
/// network that was away and is back are asked again after 5 s only (resolv.conf(5), "timeout").
const STAND_IN_DELAY: Duration = Duration::from_millis(500);
/// How long all addresses have to answer before each gets a second attempt. The kernel repeats a SYN each second, where it can be
/// told to, so the two sockets' take turns and a path that is back is asked within half a second.
const SECOND_ATTEMPT: Duration = Duration::from_millis(500);
/// Between a socket's SYNs.
const SYN_INTERVAL: Duration = Duration::from_secs(1);
/// A race that isn't told otherwise ends after this; arbitrary. Most paths answer within a second, and what the next race
/// finds out is new: names are looked up again.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Arbitrary, and far from where an `Instant` ends.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// To be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Counts from zero.
    pub id: usize,
    /// Whose address it is, as its place was numbered in the caller's list.
    pub place: usize,
    pub address: SocketAddr,
}

#[derive(Debug)]
struct Entrant {
    place: usize,
    address: SocketAddr,
    first_start: Option<Instant>,
    has_second: bool,
    /// It gave an answer, or can't be asked: it isn't tried again.
    has_failed: bool,
}

#[derive(Debug)]
pub struct Race {
    /// Of places that are listed first, first; within one as the look-up ordered them (RFC 6724).
    entrants: Vec<Entrant>,
    /// Which entrant each attempt is of, if it is under way.
    attempts: Vec<Option<usize>>,
    /// Whether each place's addresses are still being looked up.
    looks_up: Vec<bool>,
    preferred: Option<SocketAddr>,
    /// When the preferred address is tried though no look-up has named it.
    stands_in_at: Option<Instant>,
    /// Of the last address that had its first attempt.
    last_was_ipv6: Option<bool>,
    /// No first attempt comes before.
    next_start: Instant,
    waits_for_names_until: Instant,
    ends_at: Instant,
    winner: Option<Attempt>,
}

impl Race {
    /// For so many places, whose addresses come by [`Race::handle_addresses`]. `preferred` goes first if it is among them: the winner
    /// of a race before this one (RFC 8305, section 8). Where a name isn't found in time it is tried all the same.
    #[must_use]
    pub fn new(places: usize, preferred: Option<SocketAddr>, now: Instant, timeout: Duration) -> Self {
        Self {
            entrants: Vec::new(),
            attempts: Vec::new(),
            looks_up: vec![true; places],
            preferred,
            stands_in_at: preferred.map(|_| now + STAND_IN_DELAY),
            last_was_ipv6: None,
            next_start: now,
            waits_for_names_until: now + RESOLUTION_DELAY,
            ends_at: now + timeout.min(LONGEST),
            winner: None,
        }
    }

    /// The look-up of a place is over; it found none if it failed.
    pub fn handle_addresses(&mut self, place: usize, addresses: impl IntoIterator<Item = SocketAddr>) {
        if let Some(looks_up) = self.looks_up.get_mut(place) {
            *looks_up = false;
        }
        for address in addresses {
            self.enter(place, address);
        }
    }

    fn enter(&mut self, place: usize, address: SocketAddr) {
        if self.entrants.iter().any(|entrant| entrant.address == address) {
            return;
        }
        let at = self.entrants.partition_point(|entrant| entrant.place <= place);
        // The attempts' numbers move with their entrants.
        for entrant in self.attempts.iter_mut().flatten().filter(|entrant| **entrant >= at) {
            *entrant += 1;
        }
        let entrant = Entrant { place, address, first_start: None, has_second: false, has_failed: false };
        self.entrants.insert(at, entrant);
    }

    /// The attempt was refused or couldn't be made; the next address has its turn at once.
    /// Gives the attempt, if it was under way.
    pub fn handle_failure(&mut self, now: Instant, id: usize) -> Option<Attempt> {
        let entrant = self.attempts.get_mut(id).and_then(Option::take)?;
        let Entrant { place, address, .. } = self.entrants[entrant];
        self.entrants[entrant].has_failed = true;
        self.next_start = self.next_start.min(now);
        Some(Attempt { id, place, address })
    }

    /// The attempt's connection stands, and TLS comes yet: another to the same address would only be work for the server. Its place.
    pub fn handle_answered(&mut self, id: usize) -> Option<usize> {
        let entrant = self.attempts.get(id).copied().flatten()?;
        self.entrants[entrant].has_second = true;
        Some(self.entrants[entrant].place)
    }

    /// The attempt won; what else is under way is to be closed.
    pub fn handle_connected(&mut self, id: usize) {
        if let Some(&Some(entrant)) = self.attempts.get(id) {
            let Entrant { place, address, .. } = self.entrants[entrant];
            self.winner = Some(Attempt { id, place, address });
        }
    }

    /// Call it until there is none, after any input and when the time of [`Race::poll_timeout`] has come.
    #[must_use]
    pub fn poll_start(&mut self, now: Instant) -> Option<Attempt> {
        if self.is_over(now) {
            return None;
        }
        if self.stands_in_at().is_some_and(|at| at <= now) {
            self.stands_in_at = None;
            let place = self.places_unknown().next();
            if let (Some(place), Some(address)) = (place, self.preferred) {
                self.enter(place, address);
            }
        }
        let (_, number) = self.next().filter(|&(at, _)| at <= now)?;
        let entrant = &mut self.entrants[number];
        if entrant.first_start.is_some() {
            entrant.has_second = true;
        } else {
            entrant.first_start = Some(now);
            self.last_was_ipv6 = Some(entrant.address.is_ipv6());
            self.next_start = now + STAGGER;
        }
        self.attempts.push(Some(number));
        Some(Attempt { id: self.attempts.len() - 1, place: entrant.place, address: entrant.address })
    }

    /// When to come again, if nothing happens before; none once it is won or nobody is left.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.winner.is_some() || self.is_exhausted() {
            return None;
        }
        let next = self.next().map(|(at, _)| at);
        [next, self.stands_in_at()].into_iter().flatten().chain([self.ends_at]).min()
    }

    /// Won, or out of time, or nobody is left who could answer.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        self.winner.is_some() || now >= self.ends_at || self.is_exhausted()
    }

    #[must_use]
    pub fn winner(&self) -> Option<Attempt> {
        self.winner
    }

    /// Places whose names are still being looked up.
    pub fn places_unknown(&self) -> impl Iterator<Item = usize> {
        self.looks_up.iter().enumerate().filter_map(|(place, looks_up)| looks_up.then_some(place))
    }

    /// Places and addresses that haven't answered, and whether they were asked.
    pub fn unanswered(&self) -> impl Iterator<Item = (usize, SocketAddr, bool)> {
        let left = self.entrants.iter().filter(|entrant| !entrant.has_failed);
        left.map(|entrant| (entrant.place, entrant.address, entrant.first_start.is_some()))
    }

    fn stands_in_at(&self) -> Option<Instant> {
        self.stands_in_at.filter(|_| self.looks_up.contains(&true))
    }

    fn is_exhausted(&self) -> bool {
        !self.looks_up.contains(&true)
            && self.attempts.iter().all(Option::is_none)
            && self.entrants.iter().all(|entrant| entrant.first_start.is_some())
    }

    /// Who has the next turn, and when.
    fn next(&self) -> Option<(Instant, usize)> {
        self.next_first().or_else(|| self.next_second())
    }

    /// The families alternate (RFC 8305, section 4), so that a family that is broken on the way costs one delay, not one an
    /// address.
    fn next_first(&self) -> Option<(Instant, usize)> {
        let untried = || self.entrants.iter().enumerate().filter(|(_, entrant)| entrant.first_start.is_none());
        let (number, entrant) = untried()
            .find(|(_, entrant)| Some(entrant.address) == self.preferred)
            .or_else(|| untried().find(|(_, entrant)| self.last_was_ipv6 != Some(entrant.address.is_ipv6())))
            .or_else(|| untried().next())?;
        let is_preceded = self.places_unknown().any(|place| place < entrant.place);
        let at = if is_preceded { self.next_start.max(self.waits_for_names_until) } else { self.next_start };
        Some((at, number))
    }

    /// Once all are under way and nobody has answered for a while: a needless second connection is work for a server. Each
    /// address's lies between two SYNs of its first attempt, whenever the last one's began.
    fn next_second(&self) -> Option<(Instant, usize)> {
        let last_start = self.entrants.iter().filter_map(|entrant| entrant.first_start).max()?;
        let unanswered = self.entrants.iter().enumerate();
        unanswered
            .filter(|(_, entrant)| !entrant.has_second && !entrant.has_failed)
            .filter_map(|(number, entrant)| {
                let mut at = entrant.first_start? + SECOND_ATTEMPT;
                while at < last_start + SECOND_ATTEMPT {
                    at += SYN_INTERVAL;
                }
                Some((at, number))
            })
            .min()
    }
}
