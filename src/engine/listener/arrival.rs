//! From a knock to an open connection: who is let in, who decides about it, and who waits to be accepted.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::Listener;
use super::hall::{Guest, Hall, Stage, Standing};
use crate::engine::accepting::{ACCEPT_BATCH, ACCEPT_PAUSE, Knock};
use crate::engine::clock;
use crate::engine::handshake::{Newcomer, Secured};
use crate::engine::link::{Arrived, Link, LinkError};
use crate::engine::sync;
use crate::engine::waiting::{Interest, Patience};
use crate::net::sys;
use crate::net::tls::{ServerTls, TlsError};
use crate::proto::close::{Close, CloseCode};
use crate::proto::connection::Connection;
use crate::proto::handshake::{Credentials, Hello};

/// A client that waits for a decision.
pub struct Client {
    link: Arc<Link>,
    listener: Weak<Listener>,
    pub hello: Box<Hello>,
}

/// What is said to who comes while we go.
pub(in crate::engine) fn going_away() -> Close {
    Close::new(CloseCode::GOING_AWAY, "the server is closing").link_only()
}

pub(super) fn stale() -> Close {
    Close::new(CloseCode::STALE, "this isn't the session's client, or it has said something newer since")
}

fn new_nonce() -> io::Result<u64> {
    let mut nonce = [0; 8];
    sys::fill_random(&mut nonce)?;
    Ok(u64::from_ne_bytes(nonce))
}

// ---- what the engine does

impl Listener {
    /// Somebody knocks.
    pub(in crate::engine) fn on_ready(&self, now: Instant) {
        for _ in 0..ACCEPT_BATCH {
            let Some(socket) = self.lock().socket.clone() else { return };
            match self.engine.doorkeeper.accept(&socket, self.address, now) {
                Knock::Came(socket, address) => {
                    let mut hall = self.lock();
                    hall.counts.accepted += 1;
                    let is_crowded = hall.handshakes >= self.config.max_handshakes;
                    if is_crowded {
                        hall.counts.crowded_out += 1;
                    } else {
                        hall.handshakes += 1;
                    }
                    drop(hall);
                    if is_crowded {
                        let _ = sys::abort(socket.as_fd());
                    } else {
                        let tls = self.tls();
                        self.began(match (tls, address.as_socket()) {
                            (Some(tls), Some(address)) => self.receive_newcomer(socket.into(), address, &tls, now),
                            _ => self.receive(socket.into(), None, now),
                        });
                    }
                }
                Knock::Gone => {}
                Knock::TurnedAway => self.lock().counts.starved += 1,
                Knock::Nobody => return,
                Knock::Failed(_) => {
                    self.lock().counts.starved += 1;
                    self.engine.set_alarm(self.key, (now + ACCEPT_PAUSE).into());
                    return;
                }
            }
        }
        self.engine.attend(self.key);
    }

    fn began(&self, received: io::Result<()>) {
        if let Err(error) = received {
            let mut hall = self.lock();
            hall.handshakes -= 1;
            hall.counts.failed += 1;
            drop(hall);
            log::debug!(target: "longconn.engine", "{}: a connection was gone at once: {error}", self.address);
        }
    }

    /// TLS comes first, and links know nothing of it.
    fn receive_newcomer(&self, socket: OwnedFd, peer: SocketAddr, tls: &ServerTls, now: Instant) -> io::Result<()> {
        socket2::SockRef::from(&socket).set_nonblocking(true)?;
        let timeout = self.config.link.handshake_timeout;
        let key = Newcomer::receive(&self.engine, self.this.clone(), socket, peer, tls, now, timeout)?;
        self.lock().newcomers.insert(key);
        Ok(())
    }

    /// A newcomer has finished its TLS handshake, which began at `began`.
    pub(in crate::engine) fn on_secured(&self, key: usize, socket: OwnedFd, secured: Secured, began: Instant) {
        self.lock().newcomers.remove(&key);
        self.began(self.receive(socket, Some(secured), began));
    }

    /// A newcomer hasn't, for a reason, or for we are closed.
    pub(in crate::engine) fn on_unsecured(&self, key: usize, peer: SocketAddr, error: Option<&io::Error>) {
        let mut hall = self.lock();
        hall.newcomers.remove(&key);
        hall.handshakes -= 1;
        hall.counts.failed += 1;
        let trouble = error.and_then(TlsError::within);
        hall.counts.failed_tls += u64::from(trouble.is_some());
        drop(hall);
        match (trouble, error) {
            (Some(trouble), _) => log::info!(target: "longconn.link", "{peer}: TLS failed: {trouble}"),
            (None, Some(error)) => {
                log::debug!(target: "longconn.link", "{peer}: it didn't finish its TLS handshake: {error}");
            }
            (None, None) => {}
        }
    }

    fn tls(&self) -> Option<ServerTls> {
        sync::lock(&self.tls).clone()
    }

    fn receive(&self, socket: OwnedFd, secured: Option<Secured>, began: Instant) -> io::Result<()> {
        let nonce = new_nonce()?;
        let link = match &self.config.plain {
            None => Link::server(socket, secured, self.config.link.clone(), self.this.clone(), began)?,
            Some(peers) => Link::plain_of(socket, secured, peers, began, Some(self.this.clone()))?,
        };
        let mut hall = self.lock();
        if hall.socket.is_none() {
            // Closed meanwhile; nobody would tell this one to go.
            self.engine.give_back(link.key());
            return Err(io::ErrorKind::NotConnected.into());
        }
        let guest = Guest { link: link.clone(), stage: Stage::Handshake, nonce, epoch: 0 };
        link.set_guest_number(hall.guests.insert(guest));
        drop(hall);
        link.begin(clock::now()).inspect_err(|_| {
            self.lock().strike_out(&link);
        })
    }

    /// A client said who it is; its link's lock is held.
    pub(in crate::engine) fn on_hello(&self, link: &Arc<Link>, hello: Box<Hello>, core: &mut Connection) {
        if self.config.asks {
            let mut hall = self.lock();
            // Nobody is asked about who claims what isn't its own.
            if let Some(Standing::Stale) = hello.session.map(|claim| hall.find(&claim)) {
                hall.refuse_stale(link);
                return core.refuse(clock::now(), stale());
            }
            // Bounded by the handshakes under way.
            hall.to_decide.push_back((link.clone(), hello));
            hall.waiters.wake_one(Interest::HELLO);
            // Of those who go undecided nobody is told, so the calls for them serve those who come next.
            let is_called = hall.calls >= hall.to_decide.len();
            let herald = hall.herald.clone().filter(|_| !is_called);
            hall.calls += usize::from(herald.is_some());
            drop(hall);
            if let Some(herald) = herald {
                herald();
            }
        } else {
            self.admit(link, core);
        }
    }

    /// Welcomes a client, if the limits allow it, or brings it to the session that it names.
    pub(in crate::engine) fn admit(&self, link: &Arc<Link>, core: &mut Connection) {
        let standing = core.claim().map(|claim| self.lock().find(&claim.resumption));
        match standing {
            None | Some(Standing::Unknown) => self.admit_new(link, core),
            Some(Standing::Known(session)) => {
                self.engine.deliver(session.key(), Arrived::Client(link.clone()));
                session.expect_delivery();
            }
            Some(Standing::Stale) => {
                self.lock().refuse_stale(link);
                core.refuse(clock::now(), stale());
            }
            Some(Standing::Ended(close)) => {
                self.lock().refuse(link);
                core.refuse(clock::now(), close);
            }
        }
    }

    pub(in crate::engine) fn admit_new(&self, link: &Arc<Link>, core: &mut Connection) {
        match self.count_in(link) {
            Ok(credentials) => core.accept(credentials, self.config.retention),
            Err(close) => core.refuse(clock::now(), close),
        }
    }

    fn count_in(&self, link: &Arc<Link>) -> Result<Credentials, Close> {
        let mut hall = self.lock();
        self.check_room(&mut hall, link)?;
        let Some(guest) = hall.guest(link) else { return Err(going_away()) };
        guest.stage = Stage::Admitted;
        let nonce = guest.nonce;
        hall.count(link);
        Ok(hall.credentials(link, nonce))
    }

    /// The limits hold, for one more.
    pub(super) fn check_room(&self, hall: &mut Hall, link: &Arc<Link>) -> Result<(), Close> {
        let address = link.peer_address().ip().to_canonical();
        if hall.socket.is_none() {
            return Err(going_away());
        }
        let of_address = hall.admitted_of.get(&address).copied().unwrap_or(0);
        if hall.to_accept.len() >= self.config.max_connections {
            hall.forget_who_left_unseen();
        }
        // Those that are over already, and whose messages nobody has taken, count too, lest they be without number.
        let present = hall.admitted.max(hall.to_accept.len()).max(hall.with_messages.len());
        let refusal = if present >= self.config.max_connections {
            format!("{present} connections are here, no more are taken")
        } else if of_address >= self.config.max_per_address {
            format!("{of_address} connections of {address} are open, no more are taken")
        } else {
            return Ok(());
        };
        hall.counts.too_many += 1;
        hall.refuse(link);
        Err(Close::new(CloseCode::TOO_MANY, &refusal).link_only())
    }

    /// A plain client has come; its link's lock is held. It is welcome, if the limits allow it.
    pub(in crate::engine) fn on_connected(&self, link: &Arc<Link>) -> Result<(), Close> {
        self.count_in(link)?;
        self.on_opened(link, true);
        Ok(())
    }

    /// For the first time, or again.
    pub(in crate::engine) fn on_opened(&self, link: &Arc<Link>, is_first: bool) {
        let mut hall = self.lock();
        if !is_first {
            hall.sessions.unpark(link);
            if let Some(guest) = hall.guest(link) {
                guest.stage = Stage::Open;
                hall.count(link);
                hall.counts.resumed += 1;
            }
            return;
        }
        hall.counts.opened += 1;
        hall.handshakes -= 1;
        if let Some(guest) = hall.guest(link) {
            guest.stage = Stage::Open;
        }
        if !self.lists_messages() {
            hall.to_accept.push_back(link.clone());
            hall.waiters.wake_one(Interest::ACCEPTABLE);
        }
    }
}

// ---- what the program does

impl Listener {
    /// The next connection that is open. Not together with [`Listener::wait_messages`].
    pub fn accept<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<Arc<Link>, LinkError> {
        self.wait(Interest::ACCEPTABLE, patience, |hall| {
            let link = hall.to_accept.pop_front()?;
            if !hall.to_accept.is_empty() {
                hall.waiters.wake_one(Interest::ACCEPTABLE);
            }
            Some(link)
        })
    }

    /// Has somebody told of each client to decide about, instead of a thread that waits for it.
    pub fn tell_of_clients(&self, herald: Arc<dyn Fn() + Send + Sync>) {
        let mut hall = self.lock();
        hall.herald = Some(herald.clone());
        // Those that came before.
        let waiting = hall.to_decide.len();
        hall.calls = waiting;
        drop(hall);
        (0..waiting).for_each(|_| herald());
    }

    /// The client to decide about for whom somebody was called, if it hasn't gone.
    pub fn answer_call(&self) -> Option<Client> {
        let mut hall = self.enter().ok()?;
        hall.calls = hall.calls.saturating_sub(1);
        let (link, hello) = hall.to_decide.pop_front()?;
        Some(Client { link, listener: self.this.clone(), hello })
    }

    /// The next client to decide about, where [`ListenerConfig::asks`].
    pub fn next_client<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<Client, LinkError> {
        let listener = self.this.clone();
        self.wait(Interest::HELLO, patience, |hall| {
            let (link, hello) = hall.to_decide.pop_front()?;
            if !hall.to_decide.is_empty() {
                hall.waiters.wake_one(Interest::HELLO);
            }
            Some(Client { link, listener: listener.clone(), hello })
        })
    }
}

impl Client {
    /// The connection whose session it goes on with, if it is accepted.
    #[must_use]
    pub fn session(&self) -> Option<Arc<Link>> {
        match self.listener.upgrade()?.enter().ok()?.find(&self.hello.session?) {
            Standing::Known(session) => Some(session),
            _ => None,
        }
    }

    #[must_use]
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Welcomes it, if the limits allow that.
    pub fn accept(self) -> Result<(), LinkError> {
        let Some(listener) = self.listener.upgrade() else { return Err(LinkError::Closed) };
        self.link.decide(|core| listener.admit(&self.link, core))
    }

    /// The program knows that it isn't the one whose session it names.
    pub fn refuse_stale(self) -> Result<(), LinkError> {
        if let Some(listener) = self.listener.upgrade() {
            listener.enter()?.refuse_stale(&self.link);
        }
        self.link.decide(|core| core.refuse(clock::now(), stale()))
    }

    pub fn refuse(self, close: Close) -> Result<(), LinkError> {
        if let Some(listener) = self.listener.upgrade() {
            let mut hall = listener.enter()?;
            hall.counts.refused += 1;
            hall.refuse(&self.link);
        }
        self.link.decide(|core| core.refuse(clock::now(), close))
    }
}
