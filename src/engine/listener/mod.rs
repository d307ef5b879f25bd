//! One listening socket: who may come (`arrival.rs`), who is here (`hall.rs`) or comes back (`comeback.rs`, `sessions.rs`), and what
//! all of them have to say (`messages.rs`, `occurrences.rs`).
//!
//! The engine accepts and refuses; a client that nobody has decided about, or that doesn't finish its handshake, costs a
//! bounded number of links and never a thread. The lock is taken while a link's is held, never the other way round, and for a
//! few instructions at a time, so that who holds the interpreter may take it too.

mod arrival;
mod comeback;
mod hall;
mod messages;
mod occurrences;
mod sessions;

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use socket2::Socket;

use crate::engine::hub::Seat;
use crate::engine::link::{Link, LinkError};
use crate::engine::plain::PlainPeers;
use crate::engine::reactor::{self, Engine};
use crate::engine::skipping::Stir;
use crate::engine::sync::{self, Mutex, MutexGuard};
use crate::engine::waiting::{Interest, Patience, WaitError};
use crate::engine::{clock, fork};
use crate::net::sys;
use crate::net::tls::ServerTls;
use crate::proto::close::Close;
use crate::proto::connection::Config;

use hall::{Hall, Stage};
use sessions::Sessions;

pub use arrival::Client;
pub(super) use arrival::going_away;
pub use messages::Broadcast;
pub use occurrences::{MAX_OCCURRENCES, Observer};

#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// All links share it.
    pub link: Arc<Config>,
    /// What new clients shake hands by, at first.
    pub tls: Option<ServerTls>,
    /// The clients don't speak our protocol.
    pub plain: Option<Arc<PlainPeers>>,
    /// Open connections, those being admitted included.
    pub max_connections: usize,
    /// The same of one address.
    pub max_per_address: usize,
    /// Connections that haven't finished their handshake; further ones are dropped without a word.
    pub max_handshakes: usize,
    /// Somebody decides about each client ([`Listener::next_client`]); else everyone is welcome.
    pub asks: bool,
    /// How long a session is kept that has lost its link; zero: it ends with it.
    pub retention: Duration,
    /// Sessions that wait for their clients, and what all of them together keep that was not taken; the oldest end before their time.
    pub max_waiting: usize,
    pub max_waiting_bytes: usize,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            link: Arc::default(),
            tls: None,
            plain: None,
            max_connections: 10_000,
            max_per_address: usize::MAX,
            max_handshakes: 1000,
            asks: false,
            retention: Duration::from_secs(60),
            max_waiting: 10_000,
            max_waiting_bytes: 256 * 1024 * 1024,
        }
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub accepted: u64,
    pub opened: u64,
    /// Refused for a limit, by CLOSE.
    pub too_many: u64,
    /// Dropped, for too many handshakes were under way.
    pub crowded_out: u64,
    /// Refused by the program.
    pub refused: u64,
    /// Refused, for they claimed a session that isn't theirs, or said an old HELLO.
    pub stale: u64,
    /// Sessions that went on over another connection.
    pub resumed: u64,
    /// Sessions that ended without their client having come back.
    pub expired: u64,
    /// Ended in the handshake otherwise: it broke the rules, took too long, went away.
    pub failed: u64,
    /// Of these, for TLS: one of both sides didn't trust the other, or it wasn't TLS.
    pub failed_tls: u64,
    /// Clients that were reset for want of a descriptor, and times that none could be accepted, for want of memory.
    pub starved: u64,
    pub occurrences_dropped: u64,
    /// As it is now.
    pub handshakes: usize,
    pub open: usize,
    pub waiting: usize,
    pub waiting_bytes: usize,
}

pub struct Listener {
    engine: Arc<Engine>,
    key: usize,
    generation: u32,
    this: Weak<Listener>,
    config: ListenerConfig,
    address: SocketAddr,
    number: AtomicI32,
    /// Messages are taken from all links in one loop.
    lists_messages: AtomicBool,
    tls: Mutex<Option<ServerTls>>,
    hall: Arc<Mutex<Hall>>,
}

impl Listener {
    /// Takes a socket that listens.
    pub fn new(socket: OwnedFd, config: ListenerConfig) -> io::Result<Arc<Self>> {
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let engine = reactor::engine()?;
        engine.doorkeeper.prepare();
        let hall = Hall::new(Sessions::new()?);
        let listener = Arc::new_cyclic(|this| Self {
            key: engine.new_key(),
            engine,
            generation: fork::generation(),
            this: this.clone(),
            tls: Mutex::new(config.tls.clone()),
            config,
            address,
            number: AtomicI32::new(socket.as_raw_fd()),
            lists_messages: AtomicBool::new(false),
            hall: Arc::new(Mutex::new(Hall { socket: Some(Arc::new(socket)), ..hall })),
        });
        listener.engine.adopt_listener(listener.key, listener.clone())?;
        let hall = listener.lock();
        if let Some(socket) = &hall.socket
            && let Err(error) = listener.engine.watch(socket.as_fd(), listener.key, mio::Interest::READABLE)
        {
            listener.engine.release(listener.key);
            return Err(error);
        }
        drop(hall);
        Ok(listener)
    }

    fn lock(&self) -> MutexGuard<'_, Hall> {
        sync::lock(&self.hall)
    }

    fn enter(&self) -> Result<MutexGuard<'_, Hall>, LinkError> {
        self.check_process()?;
        Ok(self.lock())
    }

    fn check_process(&self) -> Result<(), LinkError> {
        if self.generation == fork::generation() { Ok(()) } else { Err(LinkError::Forked) }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().socket.is_none()
    }

    /// Nobody looks after it any more; its links are told each for itself.
    pub(super) fn on_engine_lost(&self) {
        let mut hall = self.lock();
        hall.is_lost = hall.socket.is_some();
        if let Some(socket) = hall.socket.take() {
            self.engine.unwatch(socket.as_fd());
            self.number.store(-1, Ordering::Relaxed);
        }
        hall.to_decide.clear();
        hall.waiters.wake_everyone();
    }

    pub(super) fn close_in_child(&self) {
        let number = self.number.swap(-1, Ordering::Relaxed);
        if number >= 0 {
            sys::close_inherited(number);
        }
    }
}

/// Over a fork the lock and what it guards are as some thread of the parent had them: they are left alone.
impl Drop for Listener {
    fn drop(&mut self) {
        if self.check_process().is_err() {
            mem::forget(self.hall.clone());
            self.close_in_child();
        }
    }
}

// ---- what the program does

impl Listener {
    fn wait<'s, T>(
        &self,
        interest: Interest,
        patience: impl Into<Patience<'s>>,
        mut ready: impl FnMut(&mut Hall) -> Option<T>,
    ) -> Result<T, LinkError> {
        let mut hall = self.enter()?;
        let deadline = match patience.into() {
            Patience::Until(deadline) => deadline,
            Patience::Told(seat) => {
                hall.waiters.leave_seat(seat);
                return match ready(&mut hall) {
                    Some(result) => Ok(result),
                    None if hall.is_over_for(interest) => Err(LinkError::Closed),
                    None => {
                        hall.waiters.enter_seat(interest, seat);
                        Err(LinkError::Pending)
                    }
                };
            }
        };
        loop {
            if let Some(result) = ready(&mut hall) {
                return Ok(result);
            }
            if hall.is_over_for(interest) {
                return Err(if hall.is_lost { LinkError::EngineLost } else { LinkError::Closed });
            }
            let place = hall.waiters.enter(interest, deadline)?;
            drop(hall);
            let slept = place.sleep(None, 0, clock::now());
            hall = self.lock();
            hall.waiters.leave(place);
            if let Err(error) = slept {
                // Who was woken and doesn't take it leaves it to another.
                hall.waiters.wake_one(interest);
                return match error {
                    WaitError::TimedOut => ready(&mut hall).ok_or(LinkError::TimedOut),
                    error => Err(error.into()),
                };
            }
        }
    }

    /// Before time is skipped.
    pub(super) fn stir(&self) -> Stir {
        let Ok(mut hall) = self.hall.try_lock() else { return Stir { is_astir: true, next_deadline: None } };
        let (next_deadline, is_astir) = hall.waiters.wake_overdue(clock::now());
        Stir { is_astir, next_deadline }
    }

    /// Who is seated waits no longer. What it was told of, somebody else is.
    pub fn leave_seat(&self, interest: Interest, seat: &mut Seat) -> Result<(), LinkError> {
        let mut hall = self.enter()?;
        if hall.waiters.leave_seat(seat) {
            hall.waiters.wake_one(interest);
        }
        Ok(())
    }

    /// Who is here.
    pub fn connections(&self) -> Result<Vec<Arc<Link>>, LinkError> {
        let hall = self.enter()?;
        let open = hall.guests.iter().filter(|(_, guest)| matches!(guest.stage, Stage::Open | Stage::Away));
        Ok(open.map(|(_, guest)| guest.link.clone()).collect())
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn counts(&self) -> Result<Counts, LinkError> {
        let hall = self.enter()?;
        let open = hall.guests.iter().filter(|(_, guest)| guest.stage == Stage::Open).count();
        let (waiting, waiting_bytes) = hall.sessions.away();
        Ok(Counts { handshakes: hall.handshakes, open, waiting, waiting_bytes, ..hall.counts })
    }

    /// All clients come with TLS.
    #[must_use]
    pub fn is_secured(&self) -> bool {
        sync::lock(&self.tls).is_some()
    }

    /// From here on new clients shake hands by these settings; who is here stays.
    pub fn set_tls(&self, settings: ServerTls) -> Result<(), LinkError> {
        self.check_process()?;
        *sync::lock(&self.tls) = Some(settings);
        Ok(())
    }

    /// Takes nobody any more, and tells everyone why; [`Listener::wait_closed`] tells when they are gone, which is within
    /// `grace`.
    pub fn close(&self, close: &Close, grace: Duration) -> Result<(), LinkError> {
        let mut hall = self.enter()?;
        if let Some(socket) = hall.socket.take() {
            self.engine.unwatch(socket.as_fd());
            self.number.store(-1, Ordering::Relaxed);
            self.engine.release(self.key);
        }
        hall.to_decide.clear();
        hall.newcomers.iter().for_each(|key| self.engine.attend(*key));
        hall.waiters.wake_everyone();
        let links: Vec<_> =
            hall.guests.iter().map(|(_, guest)| (guest.link.clone(), guest.stage == Stage::Away)).collect();
        drop(hall);
        // Nobody can come back any more.
        links
            .iter()
            .try_for_each(|(link, is_away)| link.close(close.clone(), if *is_away { Duration::ZERO } else { grace }))
    }

    /// Until nobody is here any more.
    pub fn wait_closed<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<(), LinkError> {
        self.wait(Interest::STATE, patience, |hall| (hall.socket.is_none() && hall.guests.is_empty()).then_some(()))
    }
}
