//! One listening socket: who may come, who has come, and what all of them have to say.
//!
//! The engine accepts and refuses; a client that nobody has decided about, or that doesn't finish its handshake, costs a
//! bounded number of links and never a thread. The lock is taken while a link's is held, never the other way round, and for a
//! few instructions at a time, so that who holds the interpreter may take it too.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use slab::Slab;
use socket2::Socket;

use crate::engine::handshake::{Newcomer, Secured};
use crate::engine::hub::Seat;
use crate::engine::link::{Arrived, Attempt, Link, LinkError, Occurrence, What};
use crate::engine::plain::PlainPeers;
use crate::engine::reactor::{self, Engine};
use crate::engine::sessions::Sessions;
use crate::engine::skipping::Stir;
use crate::engine::sync::{self, Mutex, MutexGuard};
use crate::engine::waiting::{Interest, Patience, WaitError, Waiters};
use crate::engine::{clock, fork};
use crate::net::sys;
use crate::net::tls::{ServerTls, TlsError};
use crate::proto::close::{Close, CloseCode};
use crate::proto::connection::{Config, Connection};
use crate::proto::handshake::{Credentials, Hello, Resumption};
use crate::proto::session::SendError;

/// How long who is closed for being slow may take to hear it. Arbitrary.
const GOODBYE: Duration = Duration::from_secs(1);
/// Accepted in one go.
const ACCEPT_BATCH: usize = 64;
/// Without descriptors or memory accepting is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Messages of one link before the next has its turn.
const FAIR_SHARE: usize = 64;
/// Occurrences that nobody has asked for, or been told of, yet; others are dropped and counted.
pub const MAX_OCCURRENCES: usize = 10_000;

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
    /// Times that no connection could be accepted, for want of descriptors or memory.
    pub starved: u64,
    pub occurrences_dropped: u64,
    /// As it is now.
    pub handshakes: usize,
    pub open: usize,
    pub waiting: usize,
    pub waiting_bytes: usize,
}

/// A client that waits for a decision.
pub struct Client {
    link: Arc<Link>,
    listener: Weak<Listener>,
    pub hello: Box<Hello>,
}

/// What [`Listener::broadcast`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Broadcast {
    pub sent: usize,
    /// Links whose buffer was full.
    pub full: usize,
    /// Links that were closing, or whose peer takes only smaller messages.
    pub failed: usize,
}

/// Told of each occurrence under locks: posts, and doesn't wait. False if it can't take more for now.
pub type Observer = Arc<dyn Fn(&Arc<Link>, &Occurrence) -> bool + Send + Sync>;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Handshake,
    /// Told to go, and counted as that.
    Refused,
    /// Welcome, and counted.
    Admitted,
    Open,
    /// Its session waits for it.
    Away,
}

struct Guest {
    link: Arc<Link>,
    stage: Stage,
    /// Tells its session from others that had the same place; and the newest HELLO of it.
    nonce: u64,
    epoch: u64,
}

struct Hall {
    sessions: Sessions,
    /// Shared with who accepts at the moment; none once the listener is closed.
    socket: Option<Arc<Socket>>,
    /// A link knows its own number in it.
    guests: Slab<Guest>,
    /// Who hasn't finished its TLS handshake, by their keys.
    newcomers: HashSet<usize>,
    admitted_of: HashMap<IpAddr, usize>,
    handshakes: usize,
    admitted: usize,
    to_decide: VecDeque<(Arc<Link>, Box<Hello>)>,
    to_accept: VecDeque<Arc<Link>>,
    with_messages: VecDeque<Arc<Link>>,
    /// Called for each client to decide about, under its link's lock: posts, and doesn't wait.
    herald: Option<Arc<dyn Fn() + Send + Sync>>,
    /// How often it was called and [`Listener::answer_call`] wasn't.
    calls: usize,
    /// Called for each occurrence, likewise.
    observer: Option<Observer>,
    occurrences: VecDeque<(Arc<Link>, Occurrence)>,
    counts: Counts,
    waiters: Waiters,
    /// The engine's thread has panicked.
    is_lost: bool,
}

impl Hall {
    fn new(sessions: Sessions) -> Self {
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
    fn guest(&mut self, link: &Arc<Link>) -> Option<&mut Guest> {
        self.guests.get_mut(link.guest_number()).filter(|guest| Arc::ptr_eq(&guest.link, link))
    }

    /// A program that accepts nobody, or not soon enough, is not to run out of places for those who are here: who went unseen
    /// leaves. Its peer knows that nothing was taken; a plain one has gone by a reset, or can't be reached.
    fn forget_who_left_unseen(&mut self) {
        let Self { to_accept, guests, .. } = self;
        to_accept.retain(|link| guests.get(link.guest_number()).is_some_and(|guest| Arc::ptr_eq(&guest.link, link)));
    }

    fn strike_out(&mut self, link: &Arc<Link>) -> Option<Guest> {
        self.guest(link)?;
        Some(self.guests.remove(link.guest_number()))
    }

    fn refuse_stale(&mut self, link: &Arc<Link>) {
        self.counts.stale += 1;
        self.refuse(link);
        log::warn!(
            target: "longconn.link",
            "{}: refused: it claims a session that isn't its own, or says an old HELLO again", link.peer_address()
        );
    }

    fn refuse(&mut self, link: &Arc<Link>) {
        if let Some(guest) = self.guest(link) {
            guest.stage = Stage::Refused;
        }
    }

    fn remove(&mut self, link: &Arc<Link>) -> Option<Stage> {
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

    fn count(&mut self, link: &Link) {
        self.admitted += 1;
        *self.admitted_of.entry(link.peer_address().ip().to_canonical()).or_insert(0) += 1;
    }

    fn uncount(&mut self, link: &Link) {
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
    fn find(&self, claim: &Resumption) -> Standing {
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

    fn credentials(&self, link: &Link, nonce: u64) -> Credentials {
        self.sessions.credentials(u32::try_from(link.guest_number()).unwrap_or(u32::MAX), nonce)
    }

    fn tell(&mut self, link: &Arc<Link>, occurrence: Occurrence) {
        if self.observer.as_ref().is_some_and(|observer| !observer(link, &occurrence)) {
            self.counts.occurrences_dropped += 1;
        }
        if self.occurrences.len() == MAX_OCCURRENCES {
            self.occurrences.pop_front();
            self.counts.occurrences_dropped += 1;
        }
        self.occurrences.push_back((link.clone(), occurrence));
        self.waiters.wake_one(Interest::EVENT);
    }

    /// Nothing that was waited for will come any more.
    fn is_over_for(&self, interest: Interest) -> bool {
        let has_more = interest.meets(Interest::STATE) || (interest.meets(Interest::EVENT) && !self.guests.is_empty());
        self.socket.is_none() && !has_more
    }
}

/// What a HELLO names.
enum Standing {
    Unknown,
    Stale,
    Known(Arc<Link>),
    Ended(Close),
}

/// What is said to who comes while we go.
pub(super) fn going_away() -> Close {
    Close::new(CloseCode::GOING_AWAY, "the server is closing").link_only()
}

fn stale() -> Close {
    Close::new(CloseCode::STALE, "this isn't the session's client, or it has said something newer since")
}

fn new_nonce() -> io::Result<u64> {
    let mut nonce = [0; 8];
    sys::fill_random(&mut nonce)?;
    Ok(u64::from_ne_bytes(nonce))
}

// ---- what the engine does -------------------------------------------------------------------------------------

impl Listener {
    /// Takes a socket that listens.
    pub fn new(socket: OwnedFd, config: ListenerConfig) -> io::Result<Arc<Self>> {
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let engine = reactor::engine()?;
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

    /// Somebody knocks.
    pub(super) fn on_ready(&self, now: Instant) {
        for _ in 0..ACCEPT_BATCH {
            let Some(socket) = self.lock().socket.clone() else { return };
            match socket.accept() {
                Ok((socket, address)) => {
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
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It was gone before we came (accept(2)).
                Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO)) => {
                }
                Err(error) => {
                    self.lock().counts.starved += 1;
                    log::warn!(target: "longconn.engine", "{}: can't accept now: {error}", self.address);
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
    pub(super) fn on_secured(&self, key: usize, socket: OwnedFd, secured: Secured, began: Instant) {
        self.lock().newcomers.remove(&key);
        self.began(self.receive(socket, Some(secured), began));
    }

    /// A newcomer hasn't, for a reason, or for we are closed.
    pub(super) fn on_unsecured(&self, key: usize, peer: SocketAddr, error: Option<&io::Error>) {
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

    pub(super) fn is_closed(&self) -> bool {
        self.lock().socket.is_none()
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
    pub(super) fn on_hello(&self, link: &Arc<Link>, hello: Box<Hello>, core: &mut Connection) {
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
    pub(super) fn admit(&self, link: &Arc<Link>, core: &mut Connection) {
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

    pub(super) fn admit_new(&self, link: &Arc<Link>, core: &mut Connection) {
        match self.count_in(link) {
            Ok(credentials) => core.accept(credentials, self.config.retention),
            Err(close) => core.refuse(clock::now(), close),
        }
    }

    /// The client has the right to the session of `link`, whose lock is held, and it may come in.
    pub(super) fn fence(&self, link: &Arc<Link>, newcomer: &Arc<Link>, claim: &Resumption) -> Result<(), Close> {
        let mut hall = self.lock();
        match hall.find(claim) {
            Standing::Known(session) if Arc::ptr_eq(&session, link) => {}
            _ => {
                hall.refuse_stale(newcomer);
                return Err(stale());
            }
        }
        let is_away = hall.guest(link).is_some_and(|guest| guest.stage == Stage::Away);
        if is_away { self.check_room(&mut hall, newcomer) } else { Ok(()) }
    }

    /// It has come in: what it came with is the session's, and it is nobody any more.
    pub(super) fn on_moved(&self, link: &Arc<Link>, newcomer: &Arc<Link>, claim: &Resumption) {
        let mut hall = self.lock();
        if hall.strike_out(newcomer).is_some() {
            hall.handshakes -= 1;
        }
        let Some(guest) = hall.guest(link) else { return };
        guest.epoch = claim.epoch;
        let is_open = guest.stage == Stage::Open;
        if is_open {
            guest.stage = Stage::Away;
        }
        // Its address may be another from now on.
        match guest.stage {
            Stage::Admitted => {
                hall.uncount(link);
                hall.count(newcomer);
            }
            _ if is_open => hall.uncount(link),
            _ => {}
        }
    }

    /// The link of a session is lost, which keeps so much; its lock is held.
    pub(super) fn on_parted(&self, link: &Arc<Link>, bytes: usize) {
        let mut hall = self.lock();
        let Some(guest) = hall.guest(link) else { return };
        let is_open = guest.stage == Stage::Open;
        if is_open {
            guest.stage = Stage::Away;
            hall.uncount(link);
        }
        let ListenerConfig { max_waiting, max_waiting_bytes, .. } = self.config;
        let evicted = hall.sessions.park(link.clone(), bytes, max_waiting, max_waiting_bytes);
        drop(hall);
        for link in evicted {
            self.engine.deliver(link.key(), Arrived::Eviction);
            link.expect_delivery();
        }
    }

    /// The last word in a session that we have ended; its link's lock is held.
    pub(super) fn on_last_word(&self, link: &Arc<Link>, close: Close) {
        let mut hall = self.lock();
        if let Some(guest) = hall.guest(link).filter(|guest| matches!(guest.stage, Stage::Open | Stage::Away)) {
            let nonce = guest.nonce;
            let credentials = hall.credentials(link, nonce);
            hall.sessions.remember(clock::now(), &credentials, close, self.config.retention);
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
    fn check_room(&self, hall: &mut Hall, link: &Arc<Link>) -> Result<(), Close> {
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
    pub(super) fn on_connected(&self, link: &Arc<Link>) -> Result<(), Close> {
        self.count_in(link)?;
        self.on_opened(link, true);
        Ok(())
    }

    /// For the first time, or again.
    pub(super) fn on_opened(&self, link: &Arc<Link>, is_first: bool) {
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

    /// Who never was open is counted, and not told of: a port scanner would drown the news of those who were.
    pub(super) fn on_occurrence(&self, link: &Arc<Link>, occurrence: Occurrence, kept_bytes: usize) {
        let mut hall = self.lock();
        let is_end = matches!(occurrence.what, What::Ended(_));
        let stage = if is_end { hall.remove(link) } else { hall.guest(link).map(|guest| guest.stage) };
        if matches!(stage, Some(Stage::Open | Stage::Away)) {
            hall.counts.expired += u64::from(stage == Some(Stage::Away) && is_end);
            hall.tell(link, occurrence);
        }
        // Events end when the last has gone.
        if is_end && hall.guests.is_empty() {
            hall.waiters.wake_all(Interest::STATE | Interest::EVENT);
        }
        let too_many = if is_end && kept_bytes > 0 {
            hall.sessions.leave_behind(link, kept_bytes, self.config.max_waiting_bytes)
        } else {
            Vec::new()
        };
        drop(hall);
        too_many.iter().for_each(|link| link.try_forget_undelivered());
    }

    pub(super) fn on_readable(&self, link: Arc<Link>) {
        let mut hall = self.lock();
        hall.with_messages.push_back(link);
        hall.waiters.wake_one(Interest::READABLE);
    }

    #[must_use]
    pub(super) fn lists_messages(&self) -> bool {
        self.lists_messages.load(Ordering::Relaxed)
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

// ---- what the program does ------------------------------------------------------------------------------------

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

    /// Has somebody told of what has occurred, as far as nobody has asked for it, and of what will.
    pub fn observe(&self, observer: Observer) {
        let mut hall = self.lock();
        for (link, occurrence) in &hall.occurrences {
            observer(link, occurrence);
        }
        hall.observer = Some(observer);
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

    pub fn next_occurrence<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<(Arc<Link>, Occurrence), LinkError> {
        self.wait(Interest::EVENT, patience, |hall| {
            let next = hall.occurrences.pop_front()?;
            if !hall.occurrences.is_empty() {
                hall.waiters.wake_one(Interest::EVENT);
            }
            Some(next)
        })
    }

    /// From here on messages of all connections come by [`Listener::try_messages`], and none by accept.
    pub fn list_messages(&self) -> Result<(), LinkError> {
        let mut hall = self.enter()?;
        if self.lists_messages.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        hall.to_accept.clear();
        let links: Vec<_> = hall.guests.iter().map(|(_, guest)| guest.link.clone()).collect();
        drop(hall);
        links.iter().for_each(|link| link.enlist());
        Ok(())
    }

    /// Until [`Listener::try_messages`] has something, unless another thread is quicker.
    pub fn wait_messages<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<(), LinkError> {
        self.wait(Interest::READABLE, patience, |hall| (!hall.with_messages.is_empty()).then_some(()))
    }

    /// Gives out messages of all connections, `most` at the most, each link having its turn; they are the peers' concern
    /// until [`Link::confirm`]. For who holds the interpreter: `show` must not run any of its code.
    pub fn try_messages(
        &self,
        most: usize,
        mut show: impl FnMut(&Arc<Link>, &[u8]),
    ) -> Result<Attempt<usize>, LinkError> {
        self.check_process()?;
        let mut count = 0;
        let mut turns = self.lock().with_messages.len();
        while count < most && turns > 0 {
            turns -= 1;
            let Some(link) = self.lock().with_messages.pop_front() else { break };
            let share = FAIR_SHARE.min(most - count);
            match link.peek_listed(share, |message| show(&link, message)) {
                Some((shown, has_more)) => {
                    count += shown;
                    if has_more {
                        self.on_readable(link);
                    }
                }
                // Somebody is about it.
                None => self.on_readable(link),
            }
        }
        let mut hall = self.lock();
        if !hall.with_messages.is_empty() {
            hall.waiters.wake_one(Interest::READABLE);
        }
        Ok(if count == 0 { Attempt::Later } else { Attempt::Done(count) })
    }

    /// Sends to every open connection that has room; waits for none.
    pub fn broadcast(&self, message: &[u8], closes_the_slow: bool) -> Result<Broadcast, LinkError> {
        let mut outcome = Broadcast::default();
        for link in self.connections()? {
            match link.send_if_room(message) {
                Ok(()) => outcome.sent += 1,
                Err(Some(SendError::Full { .. })) => {
                    outcome.full += 1;
                    if closes_the_slow {
                        let close = Close::new(CloseCode::TOO_SLOW, "too far behind for what is sent to all");
                        link.leave(close, GOODBYE)?;
                    }
                }
                Err(_) => outcome.failed += 1,
            }
        }
        Ok(outcome)
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
