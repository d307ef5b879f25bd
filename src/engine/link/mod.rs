//! A connection as its program has it: the descriptor of the link that it has, if it has one, its core, and the threads that wait
//! for it. When the link is lost and the session goes on, another takes its place (`comeback.rs`).
//!
//! One lock, under which nothing waits: every system call is non-blocking. So who holds the interpreter may *try* it
//! (`try_*`, which say [`Attempt::Later`] when it is taken), and who doesn't may take it (all others, to be called
//! detached).
//!
//! The engine keeps a link until it has ended, whether the program still knows of it or not: to be rid of it, close it.
//!
//! **Who reads.** The engine, until somebody waits: that thread takes the reader's role and waits on the socket itself, for
//! a hop through another thread would double a round trip. The role stays with the callers for a moment after that, so
//! that a conversation doesn't wake the engine at all; then an alarm gives it back. Before any verdict the engine reads,
//! whoever has the role. Who awaits in an event loop takes the role, too, but sleeps on nothing: the socket is at the loop's
//! hub then, whose run reads it (`hub.rs`), until the loop hasn't for a moment, being idle or late.
//!
//! **Who writes.** Who sends, at once. Messages that come back to back are only appended, and written together: by who
//! has appended enough, who begins to wait, or the engine a moment later.

mod attend;
mod comeback;
mod messages;
mod secured;
mod turn;
mod wait;

use std::cell::RefCell;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::num::NonZeroU32;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use mio::Interest as Readiness;
use socket2::SockRef;

use crate::engine::budget::Share;
use crate::engine::errands::Errands;
use crate::engine::handshake::Secured;
use crate::engine::hub::Hub;
use crate::engine::listener::Listener;
use crate::engine::plain::{PathWatch, PlainPeers};
use crate::engine::reactor::{self, Engine, PANICKED};
use crate::engine::sync::{self, Mutex, MutexGuard, Wakeup};
use crate::engine::waiting::{Interest, WaitError, Waiters};
use crate::engine::{clock, fork};
use crate::net::sys::{self, RawTcpInfo};
use crate::net::tls::{Agreed, Tls};
use crate::net::tuning;
use crate::proto::adaptive::{Learnt, Network};
use crate::proto::cause::Ending;
use crate::proto::close::{Close, CloseCode};
use crate::proto::codec::{EncodeError, Framing};
use crate::proto::connection::{Config, Connection, Introduction, IntroductionError, State, Stats};
use crate::proto::core::Core;
use crate::proto::heartbeat::Ages;
use crate::proto::moment::Moment;
use crate::proto::plain::{EndOfStream, Plain, PlainStats};

use comeback::{Comeback, Equipped};

pub(super) use attend::LATE;
pub(super) use comeback::Arrived;
pub use comeback::Reconnect;
pub use messages::Receiving;

/// What is read, or written, in one system call.
const CHUNK_BYTES: usize = 256 * 1024;
/// What one link reads or writes before others have their turn.
const TURN_BYTES: usize = 4 * CHUNK_BYTES;
/// How long a link that the engine closes by itself may take for its last words. Arbitrary.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// A message up to this may be sent by who holds the interpreter: it is copied and handed over in a few microseconds.
pub const INLINE_BYTES: usize = 16 * 1024;

thread_local! {
    /// Where a thread receives; a link keeps no buffer.
    static ROOM: RefCell<Box<[MaybeUninit<u8>]>> = RefCell::new(Box::new_uninit_slice(CHUNK_BYTES));
}

/// Why something can't be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    #[error("the time is up")]
    TimedOut,
    /// By a signal: its handler is to run, then the call may be made again with the same deadline.
    #[error("interrupted by a signal")]
    Interrupted,
    #[error("the connection belongs to the process that forked this one")]
    Forked,
    #[error("{0}")]
    Ended(Arc<Ending>),
    #[error("the connection is {0:?}")]
    NotOpen(State),
    /// A listener's: nobody comes any more.
    #[error("{PANICKED}")]
    EngineLost,
    /// A listener's close.
    #[error("the listener is closed")]
    Closed,
    /// For who is seated: not yet, and the seat will be told when it is worth another try.
    #[error("nothing has come yet")]
    Pending,
    /// Likewise: somebody has the lock, for a moment ([`Link::wait_lock`]).
    #[error("somebody else is at it")]
    Busy,
    #[error("message of {length} bytes, the peer takes at most {largest}")]
    TooLarge { length: u64, largest: u64 },
    /// Everything that a plain peer has sent was read. It may still be sent to.
    #[error("the peer has ended its stream")]
    StreamEnded,
    /// The program has ended its own stream to a plain peer.
    #[error("the sending side is shut down, by this program")]
    ShutDown,
    #[error(transparent)]
    Framing(#[from] EncodeError),
    #[error(transparent)]
    Introduction(#[from] IntroductionError),
    #[error(transparent)]
    System(#[from] io::Error),
}

impl From<WaitError> for LinkError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::TimedOut,
            WaitError::Interrupted => Self::Interrupted,
            WaitError::System(error) => Self::System(error),
        }
    }
}

/// What an attempt that doesn't wait came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt<T> {
    Done(T),
    /// Not without waiting: for the lock, for room, for a message.
    Later,
}

impl<T> Attempt<T> {
    pub fn map<U>(self, function: impl FnOnce(T) -> U) -> Attempt<U> {
        match self {
            Self::Done(value) => Attempt::Done(function(value)),
            Self::Later => Attempt::Later,
        }
    }
}

/// Something happened to a link.
#[derive(Clone, Debug)]
pub struct Occurrence {
    pub at: Moment,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Opened,
    Suspect {
        silence: Duration,
    },
    Alive,
    /// The link is lost, the session isn't.
    Parted(Arc<Ending>),
    /// There is a link again, and so many messages went again.
    Resumed {
        replayed: u64,
    },
    /// There is a link again, and the server knew nothing of the session.
    Fresh,
    Ended(Arc<Ending>),
}

/// Is given what a client with an adaptive interval knows of the networks that it was in, under the link's lock: posts, and doesn't
/// wait.
pub type Keeper = Box<dyn Fn(Vec<(Network, Learnt)>) + Send>;
/// Told of each occurrence under the link's lock: posts, and doesn't wait.
pub type Observer = Arc<dyn Fn(&Occurrence) + Send + Sync>;

/// A question under way.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    number: u64,
    at: Instant,
    /// On which link it was asked.
    opening: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Engine,
    Callers,
}

pub struct Link {
    engine: Arc<Engine>,
    key: usize,
    generation: u32,
    this: Weak<Link>,
    listener: Option<Weak<Listener>>,
    /// Held for a few instructions, whatever other lock is.
    ends: Mutex<Ends>,
    /// Of a plain peer; `None` for who speaks our protocol.
    framing: Option<Framing>,
    /// The descriptor's number while it is ours to close; for a forked child, which can't take the lock.
    number: AtomicI32,
    /// In the listener's list of guests.
    guest_number: AtomicU32,
    /// What is left to be done by who has the lock.
    errands: Errands,
    /// `None` only while a forked child drops the rest: it leaves this alone.
    inner: Mutex<Option<Inner>>,
}

/// Both ends' addresses, of one family.
#[derive(Clone)]
enum Ends {
    V4 { local: SocketAddrV4, peer: SocketAddrV4 },
    V6(Box<[SocketAddrV6; 2]>),
}

impl Ends {
    const UNKNOWN: Self = {
        let nowhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        Self::V4 { local: nowhere, peer: nowhere }
    };

    fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let socket = SockRef::from(&socket);
        let [local, peer] = [socket.local_addr()?, socket.peer_addr()?];
        match (local.as_socket_ipv4(), peer.as_socket_ipv4(), local.as_socket_ipv6(), peer.as_socket_ipv6()) {
            (Some(local), Some(peer), ..) => Ok(Self::V4 { local, peer }),
            (.., Some(local), Some(peer)) => Ok(Self::V6(Box::new([local, peer]))),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn local(&self) -> SocketAddr {
        match self {
            Self::V4 { local, .. } => (*local).into(),
            Self::V6(ends) => ends[0].into(),
        }
    }

    fn peer(&self) -> SocketAddr {
        match self {
            Self::V4 { peer, .. } => (*peer).into(),
            Self::V6(ends) => ends[1].into(),
        }
    }
}

/// What the engine, or who ends another link, wants of a link: a set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Errand(u16);

impl Errand {
    const READABLE: Self = Self(1);
    /// The end of the stream, or an error, lies behind what can be read.
    const TO_THE_END: Self = Self(2);
    const WRITABLE: Self = Self(4);
    const BROKEN: Self = Self(8);
    pub(super) const ALARM: Self = Self(16);
    /// Write on, read on, ask the budget: whatever was left.
    pub(super) const ATTENTION: Self = Self(32);
    /// The machine was suspended.
    pub(super) const SUSPENSION: Self = Self(64);
    /// The engine has something for it.
    const DELIVERY: Self = Self(128);
    /// Too much is kept of connections that are over: what this one had to say of what wasn't delivered goes.
    pub(super) const FORGETTING: Self = Self(256);

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The lock, held. Who gives it back does what the engine would have done meanwhile.
struct Guard<'l> {
    link: &'l Link,
    inner: Option<MutexGuard<'l, Option<Inner>>>,
}

impl Deref for Guard<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        self.inner.as_deref().and_then(Option::as_ref).expect("it is there until the guard is dropped")
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        self.inner.as_deref_mut().and_then(Option::as_mut).expect("it is there until the guard is dropped")
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        drop(self.inner.take());
        // Who panics does no more; the errands are the next one's who has the lock.
        if !std::thread::panicking() && self.link.errands.are_left() {
            self.link.run(Errand(0));
        }
    }
}

/// There may be many thousands, and most are idle.
struct Inner {
    core: Core,
    /// Shared with those who poll it meanwhile; none once the link is over.
    socket: Option<Arc<OwnedFd>>,
    reader: Reader,
    /// The engine's epoll has the socket: always while the engine reads, else once a write was blocked.
    is_watched: bool,
    /// Somebody polls the socket.
    is_polled: bool,
    /// When a caller last read.
    last_read: Moment,
    /// The engine has something left to read.
    is_unread: bool,
    /// The same, but not until the program has taken something: only a closed window tells a plain peer to wait.
    is_held_back: bool,
    /// The last attempt to read found much.
    is_flowing: bool,
    /// A caller waits in recv(2): nobody else may read.
    is_receiving: bool,
    /// SO_RCVTIMEO, as it was set last, in milliseconds.
    receive_timeout: Option<NonZeroU32>,
    /// A verdict waits for what a caller may just have received.
    is_judgement_put_off: bool,
    /// The kernel took no more; until it says that it does again.
    is_write_blocked: bool,
    /// What `bytes_acked` was when nothing had been written: the SYN counts on some sides.
    acked_before: u32,
    rto_max_ms: Option<NonZeroU32>,
    /// When the core wants to be called, and when the engine is going to.
    deadline: Option<Moment>,
    alarm: Option<Moment>,
    last_send: Option<Moment>,
    burst_bytes: u32,
    /// The engine will write what a burst has left.
    is_flush_coming: bool,
    waiters: Waiters,
    opened_at: Option<Moment>,
    /// How many links have been open.
    openings: u32,
    /// The first occurrence, for who asks; mostly nobody does, and nothing else happens for long.
    is_opening_untold: bool,
    /// All others.
    untold: Option<Box<Untold>>,
    ending: Option<Arc<Ending>>,
    share: Option<Box<Share>>,
    /// It stands in the listener's list of those that have messages.
    is_listed: bool,
    client_id: Box<str>,
    extras: Option<Box<Extras>>,
}

/// Occurrences that nobody has asked for: a list, for thousands of links have none, and sessions without a link one.
struct Untold {
    occurrence: Occurrence,
    next: Option<Box<Untold>>,
}

/// What most idle links don't have.
#[derive(Default)]
struct Extras {
    notification: Option<Notification>,
    observer: Option<Observer>,
    keeper: Option<Keeper>,
    /// The newest ping that was answered.
    last_pong: Option<(u64, Option<Duration>)>,
    /// Why nothing can be written; it counts once everything is read.
    write_error: Option<io::Error>,
    /// Of a plain link; dropped before the descriptor is closed.
    path_watch: Option<PathWatch>,
    /// Of a client that comes back.
    comeback: Option<Box<Comeback>>,
    /// Where a loop's thread reads the socket; it has the reader's role then.
    hub: Option<Arc<Hub>>,
    /// Of the socket that it has.
    tls: Option<Box<Tls>>,
}

const _: () = assert!(size_of::<Inner>() <= 424);

/// A descriptor that is readable while a message, or the end, could be received.
pub(super) struct Notification {
    pub(super) wakeup: Wakeup,
    pub(super) is_set: bool,
}

// ---- making one -----------------------------------------------------------------------------------------------

impl Link {
    /// The side that connected; `socket` is a connected TCP socket. Says its preamble and HELLO at once.
    pub fn client(
        socket: OwnedFd,
        secured: Option<Secured>,
        config: Arc<Config>,
        introduction: Introduction,
    ) -> Result<Arc<Self>, LinkError> {
        let now = clock::now();
        let client_id = introduction.client_id.as_str().into();
        let core = Core::Framed(Connection::client(now, config, new_seed()?, introduction)?);
        let link = Self::new(socket, secured, core, now, None, client_id)?;
        link.lock().core.set_network(Network::of(link.local_address().ip()));
        link.begin(now)?;
        Ok(link)
    }

    /// A plain peer's, whoever connected; `socket` is a connected TCP socket.
    pub fn plain(socket: OwnedFd, secured: Option<Secured>, peers: &PlainPeers) -> io::Result<Arc<Self>> {
        tuning::unbound_retransmissions(socket.as_fd());
        let now = clock::now();
        let link = Self::plain_of(socket, secured, peers, now, None)?;
        link.begin(now)?;
        Ok(link)
    }

    /// The same, for a listener.
    pub(super) fn plain_of(
        socket: OwnedFd,
        secured: Option<Secured>,
        peers: &PlainPeers,
        now: Instant,
        listener: Option<Weak<Listener>>,
    ) -> io::Result<Arc<Self>> {
        let plain = Plain::new(now, peers.config.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        let path_watch = PathWatch::begin(&socket, peers)?;
        let link = Self::new(socket, secured, Core::Plain(Box::new(plain)), now, listener, Box::default())?;
        link.lock().extras().path_watch = path_watch;
        Ok(link)
    }

    /// The side that accepted, at `began`, from which on its client has its time.
    pub(super) fn server(
        socket: OwnedFd,
        secured: Option<Secured>,
        config: Arc<Config>,
        listener: Weak<Listener>,
        began: Instant,
    ) -> io::Result<Arc<Self>> {
        let core = Core::Framed(Connection::server(began, config, new_seed()?));
        Self::new(socket, secured, core, began, Some(listener), Box::default())
    }

    fn new(
        socket: OwnedFd,
        secured: Option<Secured>,
        core: Core,
        now: Instant,
        listener: Option<Weak<Listener>>,
        client_id: Box<str>,
    ) -> io::Result<Arc<Self>> {
        let is_framed = matches!(core, Core::Framed(_));
        let Equipped { socket, ends, acked_before, rto_max_ms, tls } =
            comeback::equip(socket, is_framed)?.secured_by(secured);
        let engine = reactor::engine()?;
        let framing = core.framing();
        let inner = Inner {
            core,
            reader: Reader::Engine,
            is_watched: false,
            is_polled: false,
            last_read: now.into(),
            is_unread: false,
            is_held_back: false,
            is_flowing: false,
            is_receiving: false,
            receive_timeout: None,
            is_judgement_put_off: false,
            is_write_blocked: false,
            acked_before,
            rto_max_ms: rto_max_ms.and_then(NonZeroU32::new),
            deadline: None,
            alarm: None,
            last_send: None,
            burst_bytes: 0,
            is_flush_coming: false,
            waiters: Waiters::default(),
            // A plain peer knows of no handshake.
            opened_at: framing.is_some().then_some(now.into()),
            openings: 0,
            is_opening_untold: false,
            untold: None,
            ending: None,
            share: None,
            is_listed: false,
            client_id,
            extras: tls.map(|tls| Box::new(Extras { tls: Some(tls), ..Extras::default() })),
            socket: None,
        };
        Ok(Arc::new_cyclic(|this| Self {
            key: engine.new_key(),
            engine,
            generation: fork::generation(),
            this: this.clone(),
            listener,
            ends: Mutex::new(ends),
            framing,
            number: AtomicI32::new(socket.as_raw_fd()),
            guest_number: AtomicU32::new(u32::MAX),
            errands: Errands::none(),
            inner: Mutex::new(Some(Inner { socket: Some(Arc::new(socket)), ..inner })),
        }))
    }

    /// From here on the engine looks after it.
    pub(super) fn begin(self: &Arc<Self>, now: Instant) -> io::Result<()> {
        let mut inner = self.lock();
        let Some(socket) = inner.socket.clone() else { return Ok(()) };
        self.engine.adopt_link(self.key, self.clone())?;
        if let Err(error) = self.engine.watch(socket.as_fd(), self.key, BOTH) {
            self.engine.release(self.key);
            return Err(error);
        }
        inner.is_watched = true;
        inner.hear_early(now);
        self.turn(&mut inner, now);
        Ok(())
    }
}

const BOTH: Readiness = Readiness::READABLE.add(Readiness::WRITABLE);

fn new_seed() -> io::Result<u64> {
    let mut seed = [0; 8];
    sys::fill_random(&mut seed)?;
    Ok(u64::from_ne_bytes(seed))
}

/// Over a fork the lock and what it guards are as some thread of the parent had them: they are left alone.
impl Drop for Link {
    fn drop(&mut self) {
        if self.check_process().is_err() {
            mem::forget(self.inner.get_mut().unwrap_or_else(PoisonError::into_inner).take());
            self.close_in_child();
        }
    }
}

// ---- the listener's lists -------------------------------------------------------------------------------------

impl Link {
    pub(super) fn guest_number(&self) -> usize {
        self.guest_number.load(Ordering::Relaxed) as usize
    }

    pub(super) fn set_guest_number(&self, number: usize) {
        // Each has a descriptor, which is an int.
        self.guest_number.store(u32::try_from(number).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// For the listener's list: gives messages out as [`Link::try_peek_many`] does, and says whether it has more.
    pub(super) fn peek_listed(&self, most: usize, mut show: impl FnMut(&[u8])) -> Option<(usize, bool)> {
        let mut inner = self.try_enter().ok()??;
        let mut count = inner.read_messages(most, &mut show);
        // Once the program comes for more: it has answered what came before, or may have.
        if count == 0 {
            match inner.core.take_end() {
                Some(EndOfStream::AsEmpty) => {
                    show(&[]);
                    count = 1;
                }
                // Nobody would be told to close it.
                Some(EndOfStream::Untold) => {
                    let now = clock::now();
                    inner.core.close(now, Close::new(CloseCode::NORMAL, ""), now + LAST_WORDS);
                    self.turn(&mut inner, now);
                }
                None => {}
            }
        }
        inner.is_listed = inner.core.has_news();
        Some((count, inner.is_listed))
    }

    /// Puts it on the list, if it has messages.
    pub(super) fn enlist(&self) {
        if let Ok(mut inner) = self.enter() {
            self.tell(&mut inner, Interest::NOTHING);
        }
    }
}

// ---- what is known --------------------------------------------------------------------------------------------

impl Link {
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.copy_of_ends().local()
    }

    #[must_use]
    pub fn peer_address(&self) -> SocketAddr {
        self.copy_of_ends().peer()
    }

    /// In a forked child the lock may be as some thread of the parent had it.
    fn copy_of_ends(&self) -> Ends {
        match self.ends.try_lock() {
            Ok(ends) => ends.clone(),
            Err(TryLockError::Poisoned(ends)) => ends.into_inner().clone(),
            Err(TryLockError::WouldBlock) if self.check_process().is_err() => Ends::UNKNOWN,
            Err(TryLockError::WouldBlock) => sync::lock(&self.ends).clone(),
        }
    }

    fn set_ends(&self, ends: Ends) {
        *sync::lock(&self.ends) = ends;
    }

    /// A number that no other link of this process has.
    #[must_use]
    pub fn key(&self) -> usize {
        self.key
    }

    pub fn state(&self) -> Result<State, LinkError> {
        Ok(self.enter()?.core.state())
    }

    /// How many connections have been open, one after another.
    pub fn openings(&self) -> Result<u32, LinkError> {
        Ok(self.enter()?.openings)
    }

    /// Messages that the peer's program isn't known to have taken.
    pub fn unacknowledged(&self) -> Result<u64, LinkError> {
        Ok(self.enter()?.core.untaken_messages())
    }

    pub fn ending(&self) -> Result<Option<Arc<Ending>>, LinkError> {
        Ok(self.enter()?.ending.clone())
    }

    /// `None` if it never was open.
    pub fn opened_at(&self) -> Result<Option<Instant>, LinkError> {
        Ok(self.enter()?.opened_at.map(Moment::instant))
    }

    /// What the client calls itself; empty before its HELLO.
    pub fn client_id(&self) -> Result<String, LinkError> {
        Ok(self.enter()?.client_id.to_string())
    }

    /// Of a plain peer.
    #[must_use]
    pub fn framing(&self) -> Option<Framing> {
        self.framing
    }

    /// Whether messages could ever be exchanged.
    pub fn was_open(&self) -> Result<bool, LinkError> {
        Ok(self.enter()?.opened_at.is_some())
    }

    /// The program has been told that a plain peer's stream has ended, and has sent nothing since.
    pub fn knows_end(&self) -> Result<bool, LinkError> {
        Ok(self.enter()?.core.knows_end())
    }

    /// What a plain link has counted.
    pub fn plain_stats(&self) -> Result<Option<PlainStats>, LinkError> {
        let mut inner = self.enter()?;
        let now = clock::now();
        if self.framing.is_some() && inner.socket.is_some() {
            let view = inner.kernel_view();
            inner.core.handle_kernel(now, view);
            self.turn(&mut inner, now);
        }
        Ok(inner.core.plain_stats(now))
    }

    /// `None` before the link is open.
    pub fn stats(&self) -> Result<Option<Stats>, LinkError> {
        Ok(self.enter()?.core.stats(clock::now()))
    }

    /// `None` once the link is over, or where the system can't tell.
    pub fn tcp_info(&self) -> Result<Option<RawTcpInfo>, LinkError> {
        let socket = self.enter()?.socket.clone();
        Ok(socket.and_then(|socket| sys::tcp_info(socket.as_raw_fd()).ok()).map(|(info, _)| info))
    }

    /// What TLS both sides agreed on; `None` without TLS, and while there is no connection.
    pub fn agreed(&self) -> Result<Option<Agreed>, LinkError> {
        let inner = self.enter()?;
        Ok(inner.extras.as_ref().and_then(|extras| extras.tls.as_ref()?.agreed()))
    }

    pub fn status(&self) -> Result<Vec<u8>, LinkError> {
        Ok(self.enter()?.core.status().to_vec())
    }

    pub fn peer_status(&self) -> Result<Vec<u8>, LinkError> {
        Ok(self.enter()?.core.peer_status().to_vec())
    }

    /// The ages that the peer told, and when.
    pub fn peer_ages(&self) -> Result<Option<(Instant, Ages)>, LinkError> {
        Ok(self.enter()?.core.peer_ages())
    }

    /// At most 1024 bytes, which the peer reads with our next beat. False if it is longer, and nothing was changed.
    pub fn set_status(&self, status: &[u8]) -> Result<bool, LinkError> {
        Ok(self.enter()?.core.set_status(status))
    }

    /// The program goes forward; from the first call on nothing else counts as that.
    pub fn progress(&self) -> Result<(), LinkError> {
        self.enter()?.core.progress(clock::now());
        Ok(())
    }

    /// Readable while [`Link::try_recv`] would give something; made at the first call, closed with the link object.
    pub fn notification(&self) -> Result<RawFd, LinkError> {
        let mut inner = self.enter()?;
        if inner.extras().notification.is_none() {
            inner.extras().notification = Some(Notification { wakeup: Wakeup::new()?, is_set: false });
            self.tell(&mut inner, Interest::NOTHING);
        }
        Ok(inner.extras().notification.as_ref().map_or(-1, |notification| notification.wakeup.as_fd().as_raw_fd()))
    }
}
