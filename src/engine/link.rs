//! One link: its descriptor, its core, and the threads that wait for it.
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
//! whoever has the role.
//!
//! **Who writes.** Who sends, at once. Messages that come back to back are only appended, and written together: by who
//! has appended enough, who begins to wait, or the engine a moment later.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::num::NonZeroU32;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{self, AtomicI32, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use mio::Interest as Readiness;
use mio::event::Event as Ready;
use socket2::SockRef;

use crate::engine::budget::{Share, Wish};
use crate::engine::listener::{Listener, going_away};
use crate::engine::plain::{PathWatch, PlainPeers};
use crate::engine::reactor::{self, Engine};
use crate::engine::waiting::{Interest, WaitError, Waiters};
use crate::engine::{clock, fork, interpreter};
use crate::net::sys::{self, RawTcpInfo, Wakeup};
use crate::net::{tcp_info, tuning};
use crate::proto::cause::{Cause, Ending};
use crate::proto::close::{Close, CloseCode};
use crate::proto::codec::{EncodeError, Framing};
use crate::proto::connection::{
    Action, Config, Connection, Event, Introduction, IntroductionError, State, Stats, Transmit,
};
use crate::proto::core::Core;
use crate::proto::evidence::KernelView;
use crate::proto::frame::{HEADER_BYTES, MAX_PAYLOAD_BYTES};
use crate::proto::heartbeat::Ages;
use crate::proto::moment::Moment;
use crate::proto::placing::{HEADERS_BYTES, Placing};
use crate::proto::plain::{EndOfStream, Plain, PlainStats};
use crate::proto::session::{Framed, SendError};

/// What is read, or written, in one system call.
const CHUNK_BYTES: usize = 256 * 1024;
/// What one link reads or writes before others have their turn.
const TURN_BYTES: usize = 4 * CHUNK_BYTES;
/// Messages closer than this come back to back: some 20 us, and what writing the first takes.
const BURST_GAP: Duration = Duration::from_micros(30);
/// Who has appended so much writes it: some hundred small messages for one system call.
const BURST_BYTES: u32 = 64 * 1024;
/// How long callers keep the reader's role without reading.
const STICKY: Duration = Duration::from_millis(5);
/// Shorter waits are poll's, which is exact to the millisecond; recv(2) counts in ticks of the kernel, up to 10 ms.
const PRECISE: Duration = Duration::from_millis(100);
/// Occurrences that nobody has asked for yet; older ones are dropped.
const MAX_OCCURRENCES: usize = 64;
/// Chunks that are read of a connection that is over, where the program has fallen behind: more than any kernel keeps.
const LAST_CHUNKS: usize = 256;
/// How long a link that the engine closes by itself may take for its last words. Arbitrary.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Parts up to this together are copied and go by send(2): sendmsg(2) takes 0.3 us more, of a round trip of 16.
const JOINED_BYTES: usize = 512;
/// A message up to this may be sent by who holds the interpreter: it is copied and handed over in a few microseconds.
pub const INLINE_BYTES: usize = 16 * 1024;

/// A message from here up is copied before it is sent, without the lock; smaller ones take half a millisecond.
const LARGE_BYTES: usize = 4 * 1024 * 1024;
/// A message from here up is received into the memory of who waits for it, and not copied.
const PLACED_BYTES: usize = 64 * 1024;
/// What tells that such a message has begun: its first frame.
const FIRST_BYTES: usize = HEADER_BYTES + MAX_PAYLOAD_BYTES;
/// Who read so much at once will find more: dozens of small messages. Less is one side of a conversation.
const MUCH_BYTES: usize = 4 * 1024;

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
    /// A listener's close.
    #[error("the listener is closed")]
    Closed,
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
    pub at: Instant,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Opened,
    Suspect { silence: Duration },
    Alive,
    Ended(Arc<Ending>),
}

/// Told of each occurrence under the link's lock: posts, and doesn't wait.
pub type Observer = Arc<dyn Fn(&Occurrence) + Send + Sync>;

/// A question under way.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    number: u64,
    at: Instant,
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
    ends: Ends,
    /// Of a plain peer; `None` for who speaks our protocol.
    framing: Option<Framing>,
    /// The descriptor's number while it is ours to close; for a forked child, which can't take the lock.
    number: AtomicI32,
    /// In the listener's list of guests.
    guest_number: AtomicU32,
    /// What the engine has left to be done by who has the lock.
    errands: AtomicU8,
    /// Behind a pointer of its own, so that a forked child can leave it alone.
    inner: Arc<Mutex<Inner>>,
}

/// Both ends' addresses, of one family.
enum Ends {
    V4 { local: SocketAddrV4, peer: SocketAddrV4 },
    V6(Box<[SocketAddrV6; 2]>),
}

impl Ends {
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

/// What the engine wants of a link: a set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Errand(u8);

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

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The lock, held. Who gives it back does what the engine would have done meanwhile.
struct Guard<'l> {
    link: &'l Link,
    inner: Option<MutexGuard<'l, Inner>>,
}

impl Deref for Guard<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        self.inner.as_deref().expect("it is there until the guard is dropped")
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        self.inner.as_deref_mut().expect("it is there until the guard is dropped")
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        drop(self.inner.take());
        atomic::fence(Ordering::SeqCst);
        if self.link.errands.load(Ordering::SeqCst) != 0 {
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
    /// The first occurrence, for who asks; mostly nobody does, and nothing else happens for long.
    is_opening_untold: bool,
    ending: Option<Arc<Ending>>,
    share: Option<Box<Share>>,
    /// It stands in the listener's list of those that have messages.
    is_listed: bool,
    client_id: Box<str>,
    extras: Option<Box<Extras>>,
}

/// What most idle links don't have.
#[derive(Default)]
struct Extras {
    notification: Option<Notification>,
    /// All but the opening.
    occurrences: VecDeque<Occurrence>,
    observer: Option<Observer>,
    /// The newest ping that was answered.
    last_pong: Option<(u64, Option<Duration>)>,
    /// Why nothing can be written; it counts once everything is read.
    write_error: Option<io::Error>,
    /// Of a plain link; dropped before the descriptor is closed.
    path_watch: Option<PathWatch>,
}

const _: () = assert!(size_of::<Inner>() <= 656);

/// A descriptor that is readable while a message, or the end, could be received.
struct Notification {
    wakeup: Wakeup,
    is_set: bool,
}

// ---- making one -----------------------------------------------------------------------------------------------

impl Link {
    /// The side that connected; `socket` is a connected TCP socket. Says its preamble and HELLO at once.
    pub fn client(socket: OwnedFd, config: Arc<Config>, introduction: Introduction) -> Result<Arc<Self>, LinkError> {
        let now = clock::now();
        let client_id = introduction.client_id.as_str().into();
        let core = Core::Framed(Connection::client(now, config, new_seed()?, introduction)?);
        let link = Self::new(socket, core, now, None, client_id)?;
        link.begin(now)?;
        Ok(link)
    }

    /// A plain peer's, whoever connected; `socket` is a connected TCP socket.
    pub fn plain(socket: OwnedFd, peers: &PlainPeers) -> io::Result<Arc<Self>> {
        let now = clock::now();
        let link = Self::plain_of(socket, peers, now, None)?;
        link.begin(now)?;
        Ok(link)
    }

    /// The same, for a listener.
    pub(super) fn plain_of(
        socket: OwnedFd,
        peers: &PlainPeers,
        now: Instant,
        listener: Option<Weak<Listener>>,
    ) -> io::Result<Arc<Self>> {
        let plain = Plain::new(now, peers.config.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        let path_watch = PathWatch::begin(&socket, peers)?;
        let link = Self::new(socket, Core::Plain(Box::new(plain)), now, listener, Box::default())?;
        link.lock().extras().path_watch = path_watch;
        Ok(link)
    }

    /// The side that accepted.
    pub(super) fn server(socket: OwnedFd, config: Arc<Config>, listener: Weak<Listener>) -> io::Result<Arc<Self>> {
        let now = clock::now();
        let core = Core::Framed(Connection::server(now, config, new_seed()?));
        Self::new(socket, core, now, Some(listener), Box::default())
    }

    fn new(
        socket: OwnedFd,
        core: Core,
        now: Instant,
        listener: Option<Weak<Listener>>,
        client_id: Box<str>,
    ) -> io::Result<Arc<Self>> {
        let fd = socket.as_fd();
        let ends = Ends::of(fd)?;
        // Who waits for a message does so in recv(2); all other calls say MSG_DONTWAIT.
        SockRef::from(&fd).set_nonblocking(false)?;
        tuning::prepare(fd)?;
        let rto_max_ms = match &core {
            Core::Framed(_) => tuning::bound_retransmissions(fd, Duration::ZERO),
            // That is for its guard to do.
            Core::Plain(_) => None,
        };
        let acked_before =
            tcp_info::sample(fd.as_raw_fd()).map_or(0, |sample| u32::try_from(sample.bytes_acked).unwrap_or_default());
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
            is_opening_untold: false,
            ending: None,
            share: None,
            is_listed: false,
            client_id,
            extras: None,
            socket: None,
        };
        Ok(Arc::new_cyclic(|this| Self {
            key: engine.new_key(),
            engine,
            generation: fork::generation(),
            this: this.clone(),
            listener,
            ends,
            framing,
            number: AtomicI32::new(socket.as_raw_fd()),
            guest_number: AtomicU32::new(u32::MAX),
            errands: AtomicU8::new(0),
            inner: Arc::new(Mutex::new(Inner { socket: Some(Arc::new(socket)), ..inner })),
        }))
    }

    /// From here on the engine looks after it.
    pub(super) fn begin(self: &Arc<Self>, now: Instant) -> io::Result<()> {
        let mut inner = self.lock();
        let Some(socket) = inner.socket.clone() else { return Ok(()) };
        self.engine.adopt_link(self.key, self.clone());
        if let Err(error) = self.engine.watch(socket.as_fd(), self.key, BOTH) {
            self.engine.release(self.key);
            return Err(error);
        }
        inner.is_watched = true;
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
            mem::forget(self.inner.clone());
            self.close_in_child();
        }
    }
}

// ---- the turn -------------------------------------------------------------------------------------------------

impl Link {
    fn lock(&self) -> Guard<'_> {
        Guard { link: self, inner: Some(self.inner.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    fn try_lock(&self) -> Option<Guard<'_>> {
        let inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Guard { link: self, inner: Some(inner) })
    }

    /// After a fork the lock isn't to be touched.
    fn enter(&self) -> Result<Guard<'_>, LinkError> {
        self.check_process()?;
        Ok(self.lock())
    }

    fn try_enter(&self) -> Result<Option<Guard<'_>>, LinkError> {
        self.check_process()?;
        Ok(self.try_lock())
    }

    fn check_process(&self) -> Result<(), LinkError> {
        if self.generation == fork::generation() { Ok(()) } else { Err(LinkError::Forked) }
    }

    /// What the core's contract asks for after any input or verb.
    fn turn(&self, inner: &mut Inner, now: Instant) {
        inner.core.set_interpreter_ran(interpreter::last_ran());
        let mut news = Interest::NOTHING;
        let mut room = TURN_BYTES;
        loop {
            loop {
                self.transmit(inner, now, &mut room);
                match inner.core.poll_action() {
                    Some(Action::Look) => {
                        let view = inner.kernel_view();
                        inner.core.handle_kernel(now, view);
                    }
                    Some(Action::ShutdownWrite) => {
                        if let Some(socket) = &inner.socket {
                            // It fails when the connection is gone, which reading tells.
                            let _ = SockRef::from(socket).shutdown(Shutdown::Write);
                        }
                    }
                    Some(Action::Abort) => self.give_up(inner, true),
                    Some(Action::Close) => self.give_up(inner, false),
                    None => break,
                }
            }
            let Some(event) = inner.core.poll_event() else { break };
            news = news | self.on_event(inner, now, event);
        }
        self.ask_budget(inner, now, &mut room);
        self.set_alarm(inner);
        self.tell(inner, news);
    }

    fn transmit(&self, inner: &mut Inner, now: Instant, room: &mut usize) {
        while !inner.is_write_blocked && inner.core.is_urgent() {
            let Some(socket) = &inner.socket else { return };
            if *room == 0 {
                self.engine.attend(self.key);
                return;
            }
            let Transmit { first, control, data } = inner.core.poll_transmit(now);
            let data = &data[..data.len().min(CHUNK_BYTES)];
            let offered = first.len() + control.len() + data.len();
            let done = match (first, control, data) {
                ([], [], []) => return,
                (part, [], []) | ([], part, []) | ([], [], part) => {
                    sys::transmit(socket.as_raw_fd(), part, sys::SEND_FLAGS)
                }
                (first, control, data) if offered <= JOINED_BYTES => {
                    let mut room = [0; JOINED_BYTES];
                    let mut end = 0;
                    for part in [first, control, data] {
                        room[end..end + part.len()].copy_from_slice(part);
                        end += part.len();
                    }
                    sys::transmit(socket.as_raw_fd(), &room[..end], sys::SEND_FLAGS)
                }
                parts => sys::transmit_parts(socket.as_fd(), parts.into()),
            };
            let is_all = data.len() < CHUNK_BYTES;
            match done {
                Ok(length) => {
                    inner.core.transmitted(now, length);
                    inner.is_write_blocked = length < offered;
                    inner.burst_bytes = 0;
                    *room = room.saturating_sub(length);
                    if is_all && length == offered {
                        return;
                    }
                    self.watch_blocked(inner);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        inner.is_write_blocked = true;
                        self.watch_blocked(inner);
                    }
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        inner.is_write_blocked = true;
                        self.on_write_error(inner, now, error);
                        return;
                    }
                },
            }
        }
    }

    /// While callers read, the engine has the socket in its epoll only to be told that it can be written to again.
    fn watch_blocked(&self, inner: &mut Inner) {
        if inner.is_watched || !inner.is_write_blocked {
            return;
        }
        let Some(socket) = &inner.socket else { return };
        match self.engine.watch(socket.as_fd(), self.key, Readiness::WRITABLE) {
            Ok(()) => inner.is_watched = true,
            // Without memory for it now; another attempt at writing in a moment.
            Err(_) => {
                inner.is_write_blocked = false;
                self.engine.attend_soon(self.key);
            }
        }
    }

    /// What the peer said before, perhaps CLOSE, can still be read, and says more than the error; at the end of it the error
    /// counts.
    fn on_write_error(&self, inner: &mut Inner, now: Instant, error: io::Error) {
        inner.extras().write_error = Some(error);
        inner.read_to_the_end(now);
    }

    fn on_event(&self, inner: &mut Inner, now: Instant, event: Event) -> Interest {
        let listener = self.listener.as_ref().and_then(Weak::upgrade);
        match event {
            Event::Connected => {
                if let (Some(listener), Some(this)) = (&listener, self.this.upgrade())
                    && let Err(close) = listener.on_connected(&this)
                {
                    inner.core.close(now, close, now);
                    return Interest::NOTHING;
                }
                self.record(inner, now, What::Opened)
            }
            Event::Hello(hello) => {
                inner.client_id = hello.client_id.as_str().into();
                if let Core::Framed(core) = &mut inner.core {
                    match (listener, self.this.upgrade()) {
                        (Some(listener), Some(this)) => listener.on_hello(&this, hello, core),
                        _ => core.refuse(going_away()),
                    }
                }
                Interest::NOTHING
            }
            // Going on with a session is the next step of the project: until then nothing but the time is of use later.
            Event::Opened { .. } => {
                inner.opened_at = Some(now.into());
                if let (Some(socket), Some(stats)) = (&inner.socket, inner.core.stats(now)) {
                    tuning::set_patience(socket.as_fd(), stats.limit);
                }
                if let (Some(listener), Some(this)) = (&listener, self.this.upgrade()) {
                    listener.on_opened(&this);
                }
                self.record(inner, now, What::Opened)
            }
            Event::Suspect { silence } => self.record(inner, now, What::Suspect { silence }),
            Event::Alive => self.record(inner, now, What::Alive),
            Event::Pong { ping, round_trip } => {
                inner.extras().last_pong = Some((ping, round_trip));
                Interest::PONG
            }
            Event::Taken => Interest::TAKEN | Interest::ROOM,
            Event::Ended(ending) => {
                let ending = Arc::new(*ending);
                inner.ending = Some(ending.clone());
                inner.waiters.wake_everyone();
                self.record(inner, now, What::Ended(ending))
            }
        }
    }

    fn record(&self, inner: &mut Inner, at: Instant, what: What) -> Interest {
        let occurrence = Occurrence { at, what };
        self.log(&occurrence);
        if let Some(observer) = inner.extras.as_ref().and_then(|extras| extras.observer.as_ref()) {
            observer(&occurrence);
        }
        if let (Some(listener), Some(this)) = (self.listener.as_ref().and_then(Weak::upgrade), self.this.upgrade()) {
            listener.on_occurrence(&this, occurrence.clone());
        }
        inner.keep(occurrence);
        Interest::STATE | Interest::EVENT
    }

    fn log(&self, occurrence: &Occurrence) {
        match &occurrence.what {
            What::Opened => log::debug!(target: "longconn.link", "{}: open", self.ends.peer()),
            What::Suspect { silence } => {
                log::debug!(target: "longconn.link", "{}: suspect, nothing heard for {silence:.2?}", self.ends.peer());
            }
            What::Alive => log::debug!(target: "longconn.link", "{}: heard again", self.ends.peer()),
            What::Ended(ending) if matches!(ending.cause, Cause::Closed | Cause::Handshake | Cause::Protocol) => {
                log::debug!(target: "longconn.link", "{}: {ending}", self.ends.peer());
            }
            What::Ended(ending) => log::warn!(target: "longconn.link", "{}: {ending}", self.ends.peer()),
        }
    }

    /// Has somebody told of what has occurred, as far as nobody has asked for it, and of what will.
    pub fn observe(&self, observer: Observer) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        inner.opening().iter().for_each(|occurrence| observer(occurrence));
        let extras = inner.extras();
        extras.occurrences.iter().for_each(|occurrence| observer(occurrence));
        extras.observer = Some(observer);
        Ok(())
    }

    /// Memory beyond the window is the process's to grant.
    fn ask_budget(&self, inner: &mut Inner, now: Instant, room: &mut usize) {
        let is_over = inner.socket.is_none();
        let wish = match inner.core.budget_wanted() {
            0 => Wish::Nothing,
            _ if is_over => Wish::Nothing,
            bytes if inner.core.budget_is_for_message() => Wish::Message(bytes),
            bytes => Wish::Window(bytes),
        };
        if let Some(share) = &mut inner.share {
            let window = inner.core.budget_held_by_window();
            let message = inner.core.budget_held().saturating_sub(window);
            let (message, window) = if is_over { (0, 0) } else { (message, window) };
            share.settle(message, window, wish, &self.this);
        }
        if !matches!(wish, Wish::Nothing) && inner.share.get_or_insert_default().ask(wish, &self.this) {
            inner.core.grant_budget();
            self.transmit(inner, now, room);
        }
        if inner.share.as_ref().is_some_and(|share| share.is_empty()) {
            inner.share = None;
        }
    }

    /// The engine is woken only for an alarm that is earlier than what it has; it asks again when one rings.
    fn set_alarm(&self, inner: &mut Inner) {
        inner.deadline = if inner.socket.is_some() { inner.core.poll_timeout() } else { None };
        let return_of_role = (inner.reader == Reader::Callers && !inner.is_polled).then(|| inner.role_returns());
        let Some(next) = inner.deadline.into_iter().chain(return_of_role).min() else { return };
        if inner.alarm.is_none_or(|alarm| next < alarm) {
            inner.alarm = Some(next);
            self.engine.set_alarm(self.key, next);
        }
    }

    /// Wakes who waits for what has come.
    fn tell(&self, inner: &mut Inner, news: Interest) {
        let is_readable = inner.core.has_message() || inner.core.is_at_end();
        if let Some(notification) = inner.extras.as_mut().and_then(|extras| extras.notification.as_mut()) {
            notification.show(is_readable || inner.ending.is_some());
        }
        if is_readable
            && inner.core.has_news()
            && !inner.is_listed
            && let Some(listener) = self.listener.as_ref().and_then(Weak::upgrade)
            && listener.lists_messages()
            && let Some(this) = self.this.upgrade()
        {
            inner.is_listed = true;
            listener.on_readable(this);
        }
        if inner.waiters.is_empty() {
            return;
        }
        inner.waiters.wake_all(news);
        if is_readable {
            inner.waiters.wake_one(Interest::READABLE);
        }
    }

    /// The link is over: for the kernel with RST, or in order.
    fn give_up(&self, inner: &mut Inner, aborts: bool) {
        let Some(socket) = inner.socket.take() else { return };
        if let Some(extras) = &mut inner.extras {
            extras.path_watch = None;
        }
        if inner.is_watched {
            self.engine.unwatch(socket.as_fd());
        }
        if aborts && let Err(error) = sys::abort(socket.as_fd()) {
            log::debug!(target: "longconn.engine", "{}: the connection could not be reset: {error}", self.ends.peer());
        }
        if inner.is_receiving {
            // Who waits in recv(2) is to wake; it fails where that has woken already.
            let _ = SockRef::from(&socket).shutdown(Shutdown::Both);
        }
        self.number.store(-1, Ordering::Relaxed);
        self.engine.release(self.key);
        inner.core.give_back_memory();
        inner.waiters.wake_everyone();
    }
}

impl Inner {
    fn extras(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    /// When callers that have read, and don't wait, lose the reader's role.
    fn role_returns(&self) -> Moment {
        self.last_read + STICKY
    }

    /// The opening, if nobody has asked for it.
    fn opening(&self) -> Option<Occurrence> {
        let at = self.opened_at.filter(|_| self.is_opening_untold)?;
        Some(Occurrence { at: at.instant(), what: What::Opened })
    }

    /// For who will ask.
    fn keep(&mut self, occurrence: Occurrence) {
        if matches!(occurrence.what, What::Opened) {
            self.is_opening_untold = true;
            return;
        }
        let occurrences = &mut self.extras.get_or_insert_default().occurrences;
        if occurrences.len() == MAX_OCCURRENCES && !mem::take(&mut self.is_opening_untold) {
            occurrences.pop_front();
        }
        occurrences.push_back(occurrence);
    }

    fn next_occurrence(&mut self) -> Option<Occurrence> {
        if let Some(opening) = self.opening() {
            self.is_opening_untold = false;
            return Some(opening);
        }
        self.extras.as_mut()?.occurrences.pop_front()
    }

    /// Reads what is there, into the core, unless that wants nothing. True if something came.
    fn read(&mut self, now: Instant) -> bool {
        self.core.wants_input() && self.read_anyway(now)
    }

    fn read_anyway(&mut self, now: Instant) -> bool {
        if self.is_receiving {
            return false;
        }
        let Some(socket) = self.socket.clone() else { return false };
        ROOM.with_borrow_mut(|room| {
            let capacity = room.len();
            self.digest(now, sys::receive_now(socket.as_fd(), room), capacity)
        })
    }

    /// What reading gave. True if it was something.
    fn digest(&mut self, now: Instant, got: io::Result<&[u8]>, capacity: usize) -> bool {
        match got {
            Ok([]) => {
                match self.extras.as_mut().and_then(|extras| extras.write_error.take()) {
                    Some(error) => self.on_error(now, &error),
                    None if self.is_convicted(now) => {}
                    None => self.core.handle_end(now),
                }
                return false;
            }
            Ok(bytes) => {
                self.core.handle_input(now, bytes);
                self.is_unread = bytes.len() == capacity;
                self.is_flowing = bytes.len() >= MUCH_BYTES;
                self.is_judgement_put_off = false;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_unread = false;
                self.is_flowing = false;
                return false;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.on_error(now, &error),
        }
        true
    }

    /// How long recv(2) waits: whole milliseconds, rounded up; at most 49 days, after which the caller waits again. Who always
    /// waits equally long pays for it once.
    fn bound_receiving(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let whole =
            |timeout: Duration| NonZeroU32::MIN.saturating_add(timeout.as_millis().try_into().unwrap_or(u32::MAX));
        let wanted = timeout.map(whole);
        if wanted != self.receive_timeout
            && let Some(socket) = &self.socket
        {
            SockRef::from(socket).set_read_timeout(wanted.map(|ms| Duration::from_millis(ms.get().into())))?;
            self.receive_timeout = wanted;
        }
        Ok(())
    }

    /// Until there is nothing more; a peer that says more than a turn's worth is heard anyway.
    fn read_all(&mut self, now: Instant) {
        for _ in 0..TURN_BYTES / CHUNK_BYTES {
            if !self.read(now) {
                return;
            }
        }
    }

    /// The connection is over, whether the program has taken what it held or not: the rest, and the reason behind it.
    fn read_to_the_end(&mut self, now: Instant) {
        for _ in 0..LAST_CHUNKS {
            if self.core.state() == State::Closed || !self.read_anyway(now) {
                return;
            }
        }
    }

    /// Where the end of the stream was read, reading tells of nothing that comes behind it.
    fn hear_reset_behind_end(&mut self, now: Instant) {
        if self.core.state() != State::Closed
            && let Some(socket) = &self.socket
            && let Ok(Some(error)) = SockRef::from(socket).take_error()
        {
            self.on_error(now, &error);
        }
    }

    /// The guard has cut the connection, or the kernel has while the guard was about to.
    fn is_convicted(&mut self, now: Instant) -> bool {
        let Some(conviction) = self.extras.as_ref().and_then(|extras| extras.path_watch.as_ref()?.conviction()) else {
            return false;
        };
        self.core.handle_verdict(now, conviction.cause, conviction.silence, conviction.limit);
        true
    }

    fn on_error(&mut self, now: Instant, error: &io::Error) {
        // One of our own kind has said itself what it took.
        let view = self.kernel_view();
        if let (Core::Plain(plain), Some(view)) = (&mut self.core, view) {
            plain.note_arrived(view);
        }
        if self.is_convicted(now) {
            return;
        }
        match error.raw_os_error() {
            // An RST that came after the peer's FIN (tcp_reset in net/ipv4/tcp_input.c): its process had ended.
            Some(libc::EPIPE) => self.core.handle_reset_after_end(now),
            Some(libc::ECONNRESET | libc::ECONNABORTED | libc::ENOTCONN) => self.core.handle_reset(now),
            Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN) => {
                self.core.handle_failure(now, Cause::Unreachable, format!("the kernel gave it up: {error}"));
            }
            _ => self.core.handle_failure(now, Cause::Reset, error.to_string()),
        }
    }

    /// A path that turned out slower or quicker.
    fn follow_round_trip(&mut self, stats: &Stats) {
        if let (Some(socket), Some(bound), Some(smoothed)) = (&self.socket, self.rto_max_ms, stats.round_trip.smoothed)
            && !tuning::fits(bound.get(), smoothed)
        {
            self.rto_max_ms = tuning::bound_retransmissions(socket.as_fd(), smoothed).and_then(NonZeroU32::new);
        }
    }

    /// Others wait for memory that was granted to a message which doesn't come, or isn't taken.
    fn give_way(&mut self, now: Instant, stats: &Stats) {
        if self.share.as_mut().is_some_and(|share| share.is_hoarding(now, stats.inbox_bytes)) {
            let close = Close::new(CloseCode::TOO_SLOW, "memory was granted for a message that doesn't come");
            self.core.close(now, close.link_only(), now + PARTING);
        }
    }

    fn kernel_view(&self) -> Option<KernelView> {
        let sample = tcp_info::sample(self.socket.as_ref()?.as_raw_fd()).ok()?;
        Some(KernelView {
            written: self.core.bytes_sent(),
            bytes_acked: sample.bytes_acked.saturating_sub(self.acked_before.into()),
            unacked: sample.unacked,
            unsent: sample.unsent,
            probes: sample.probes,
            since_ack_received: sample.since_ack_received,
            send_window: sample.send_window,
        })
    }

    fn framed(&mut self) -> Result<&mut Connection, SendError> {
        match &mut self.core {
            Core::Framed(connection) => Ok(connection),
            Core::Plain(_) => Err(SendError::NotOpen),
        }
    }

    /// What the core said to a message.
    fn accepted(&self, attempt: Result<(), SendError>) -> Result<Attempt<()>, LinkError> {
        match attempt {
            Ok(()) => Ok(Attempt::Done(())),
            Err(SendError::Full { .. }) => Ok(Attempt::Later),
            Err(SendError::TooLarge { length, largest }) => Err(LinkError::TooLarge { length, largest }),
            Err(SendError::ShutDown) => Err(LinkError::ShutDown),
            Err(SendError::Framing(error)) => Err(error.into()),
            Err(SendError::NotOpen) => Err(self.over().unwrap_or_else(|| LinkError::NotOpen(self.core.state()))),
        }
    }

    /// Why nothing more will come.
    fn over(&self) -> Option<LinkError> {
        self.ending.clone().map(LinkError::Ended)
    }

    /// The same for who receives: the end of a plain peer's stream stays its end, whatever becomes of the link.
    fn dried_up(&mut self) -> Option<LinkError> {
        if self.core.is_at_end() {
            self.core.tell_end();
            return Some(LinkError::StreamEnded);
        }
        self.over()
    }
}

impl Inner {
    /// From here on nobody else reads, until the caller is back from recv(2).
    fn begin_receiving(&mut self) {
        self.is_polled = true;
        self.is_receiving = true;
        self.core.set_waiting(self.last_read.instant(), true);
    }

    /// Another that sleeps has to read now, or has something to take; and if none does, the engine has.
    fn hand_over(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        if !self.is_polled {
            self.waiters.wake_any();
        }
        if self.core.has_message() {
            self.waiters.wake_one(Interest::READABLE);
        }
    }
}

impl Notification {
    fn show(&mut self, should_be_set: bool) {
        match (self.is_set, should_be_set) {
            (false, true) => self.wakeup.set(),
            (true, false) => self.wakeup.clear(),
            _ => {}
        }
        self.is_set = should_be_set;
    }
}

// ---- what the engine does -------------------------------------------------------------------------------------

impl Link {
    pub(super) fn on_ready(&self, ready: &Ready) {
        let mut errand = Errand(0);
        let is_broken = ready.is_error() || ready.is_write_closed();
        for (is_so, what) in [
            (ready.is_writable(), Errand::WRITABLE),
            (ready.is_readable(), Errand::READABLE),
            (ready.is_read_closed() || is_broken, Errand::TO_THE_END),
            (is_broken, Errand::BROKEN),
        ] {
            if is_so {
                errand = Errand(errand.0 | what.0);
            }
        }
        self.run(errand);
    }

    /// Has the errand done: now, or, while somebody else has the lock, by who that is. So nobody who is slow with one link
    /// delays the others.
    pub(super) fn run(&self, errand: Errand) {
        let taken = self.try_lock().or_else(|| {
            self.errands.fetch_or(errand.0, Ordering::SeqCst);
            // Who gave the lock back before that can't have seen it.
            atomic::fence(Ordering::SeqCst);
            self.try_lock()
        });
        if let Some(mut inner) = taken {
            let left = Errand(self.errands.swap(0, Ordering::SeqCst));
            self.do_errand(&mut inner, Errand(errand.0 | left.0));
        }
    }

    fn do_errand(&self, inner: &mut Inner, errand: Errand) {
        let now = clock::now();
        if errand.has(Errand::WRITABLE) {
            inner.is_write_blocked = false;
        }
        if errand.has(Errand::ATTENTION) {
            inner.is_flush_coming = false;
        }
        let is_for_engine = errand.has(Errand::READABLE) || (errand.has(Errand::ATTENTION) && inner.is_unread);
        if errand.has(Errand::BROKEN) && self.framing.is_some() {
            // However much the program has to take yet: the end is told now.
            inner.read_to_the_end(now);
            inner.hear_reset_behind_end(now);
        } else if (is_for_engine && inner.reader == Reader::Engine) || errand.has(Errand::BROKEN) {
            self.read_for_engine(inner, now, errand.has(Errand::TO_THE_END) || inner.is_unread);
        }
        if errand.has(Errand::SUSPENSION) {
            inner.read_all(now);
            inner.core.handle_pause(now);
        }
        if errand.has(Errand::ALARM) {
            self.on_alarm(inner, now);
        }
        self.turn(inner, now);
        self.leave_unsent(inner, now);
    }

    /// Edge-triggered: until there is nothing more, or others are to have their turn. Less than what there was room for is
    /// all there was (epoll(7)), but for an end of stream, which is `to_the_end`.
    fn read_for_engine(&self, inner: &mut Inner, now: Instant, to_the_end: bool) {
        inner.is_unread = true;
        for _ in 0..TURN_BYTES / CHUNK_BYTES {
            if !inner.core.wants_input() {
                // Even if the last read was a short one: the end of the stream may lie behind it.
                inner.is_unread = true;
                inner.is_held_back = true;
                return;
            }
            if !inner.read(now) || (!inner.is_unread && !to_the_end) {
                inner.is_unread = false;
                return;
            }
        }
        inner.is_unread = true;
        self.engine.attend(self.key);
    }

    fn on_alarm(&self, inner: &mut Inner, now: Instant) {
        inner.alarm = None;
        if inner.reader == Reader::Callers && !inner.is_polled && Moment::from(now) >= inner.role_returns() {
            self.give_role_to_engine(inner, now);
        }
        let Some(deadline) = inner.deadline.map(Moment::instant).filter(|deadline| now >= *deadline) else { return };
        // What the kernel holds is heard before it is judged. What the engine reads itself was read just now, unless it is
        // late.
        let is_late = now > deadline + LATE;
        let is_judged = is_late || inner.core.state() != State::Open;
        if inner.is_receiving && is_judged && !mem::replace(&mut inner.is_judgement_put_off, true) {
            // A caller reads, and may have something that it hasn't handed over yet.
            let again = Moment::from(now) + LATE;
            inner.alarm = Some(again);
            self.engine.set_alarm(self.key, again);
            return;
        }
        inner.is_judgement_put_off = false;
        if inner.reader == Reader::Callers || inner.is_unread || is_judged {
            inner.read_all(now);
        }
        inner.core.handle_timeout(now);
        if let Some(stats) = inner.core.stats(now) {
            inner.follow_round_trip(&stats);
            inner.give_way(now, &stats);
        }
    }

    fn give_role_to_engine(&self, inner: &mut Inner, now: Instant) {
        let Some(socket) = &inner.socket else { return };
        let watched = if inner.is_watched {
            self.engine.rewatch(socket.as_fd(), self.key, BOTH)
        } else {
            self.engine.watch(socket.as_fd(), self.key, BOTH)
        };
        match watched {
            Ok(()) => (inner.reader, inner.is_watched) = (Reader::Engine, true),
            // Without memory for it now; again in a moment.
            Err(_) => inner.last_read = now.into(),
        }
    }

    /// A caller goes away, and what it has sent waits for the peer's acknowledgements: who is to read them if not the engine?
    fn leave_unsent(&self, inner: &mut Inner, now: Instant) {
        if inner.reader == Reader::Callers && !inner.is_polled && inner.core.has_unsent() {
            self.give_role_to_engine(inner, now);
        }
    }

    /// The socket leaves the engine's epoll, if it may: each packet would call on that, too, which is 0.6 us a message.
    fn take_role(&self, inner: &mut Inner) {
        let Some(socket) = &inner.socket else { return };
        if inner.is_watched && !inner.is_write_blocked {
            self.engine.unwatch(socket.as_fd());
            inner.is_watched = false;
        } else if inner.reader == Reader::Engine
            && self.engine.rewatch(socket.as_fd(), self.key, Readiness::WRITABLE).is_err()
        {
            return;
        }
        if inner.reader == Reader::Engine {
            inner.reader = Reader::Callers;
            inner.is_unread = false;
        }
    }

    /// The budget has something for it, perhaps.
    pub(super) fn ask_for_attention(&self) {
        self.engine.attend(self.key);
    }

    /// In a forked child: our copy of the descriptor goes, without a word.
    pub(super) fn close_in_child(&self) {
        let number = self.number.swap(-1, Ordering::Relaxed);
        if number >= 0 {
            sys::close_inherited(number);
        }
    }
}

/// How long who was told to give way may take to go. Arbitrary.
const PARTING: Duration = Duration::from_secs(1);
/// An alarm later than this is preceded by a read.
pub(super) const LATE: Duration = Duration::from_millis(10);

// ---- waiting --------------------------------------------------------------------------------------------------

impl Link {
    /// Until `ready` gives something; it is asked again whenever something of `interest` has come. The first who waits is
    /// the reader.
    fn wait<T>(
        &self,
        interest: Interest,
        deadline: Option<Instant>,
        mut ready: impl FnMut(&Self, &mut Inner, Instant) -> Option<Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        let mut inner = self.enter()?;
        inner.last_send = None;
        let mut now = clock::now();
        let mut has_slept = false;
        let result = loop {
            if let Some(result) = ready(self, &mut inner, now) {
                break result;
            }
            let reads = !inner.is_polled && inner.socket.is_some() && inner.core.wants_input();
            let has_time = deadline.is_none_or(|deadline| deadline > now + PRECISE);
            if reads && has_time && interest == Interest::READABLE {
                self.take_role(&mut inner);
                if inner.core.is_urgent() {
                    self.turn(&mut inner, now);
                }
                let received;
                (inner, now, received) = self.receive(inner, now, deadline);
                if let Err(error) = received {
                    break Err(error.into());
                }
                continue;
            }
            let has_read = reads && {
                self.take_role(&mut inner);
                inner.last_read = now.into();
                inner.read(now)
            };
            if reads || inner.core.is_urgent() {
                self.turn(&mut inner, now);
                has_slept = false;
                if let Some(result) = ready(self, &mut inner, now) {
                    break result;
                }
            }
            if has_read {
                // Others are to have a chance at the lock while a large message comes.
                drop(inner);
                inner = self.lock();
                now = clock::now();
                continue;
            }
            let slept;
            (inner, slept) = self.sleep(inner, interest, now, deadline);
            has_slept = true;
            now = clock::now();
            if inner.waiters.is_empty() {
                inner.core.set_waiting(now, false);
            }
            if let Err(error) = slept {
                break Err(error.into());
            }
        };
        if !inner.is_polled && has_slept {
            inner.last_read = now.into();
            self.set_alarm(&mut inner);
        }
        self.leave_unsent(&mut inner, now);
        inner.hand_over();
        result
    }

    /// The way of who waits for a message and for nothing else: it waits in recv(2) itself, which is one system call where
    /// reading, polling and reading again are three. Until it is back nobody else may read, or what it got would come too
    /// late; the end of the link ends it, as it does every call on the socket.
    fn receive<'l>(
        &'l self,
        mut inner: Guard<'l>,
        now: Instant,
        deadline: Option<Instant>,
    ) -> (Guard<'l>, Instant, Result<(), WaitError>) {
        let Some(socket) = inner.socket.clone() else { return (inner, now, Ok(())) };
        if let Err(error) = inner.bound_receiving(deadline.map(|deadline| deadline.saturating_duration_since(now))) {
            return (inner, now, Err(error.into()));
        }
        inner.begin_receiving();
        drop(inner);
        let (mut inner, now, result) = ROOM.with_borrow_mut(|room| self.receive_in(&socket, room, deadline));
        self.settle_received(&mut inner, now);
        (inner, now, result)
    }

    /// Whether the caller may be the one to read the message that has begun, into its own memory; how long it is.
    fn placeable(inner: &Inner, now: Instant, deadline: Option<Instant>) -> Option<usize> {
        // The other ways of waiting are exact, and a short message isn't worth it.
        let has_time = deadline.is_none_or(|deadline| deadline > now + PRECISE);
        let may_read = !inner.is_polled && inner.socket.is_some();
        inner.core.begun().filter(|length| has_time && may_read && *length >= PLACED_BYTES)
    }

    /// How long the message is that [`Link::recv_in_place`] could receive now.
    pub fn begun(&self, deadline: Option<Instant>) -> Option<usize> {
        let inner = self.try_enter().ok()??;
        Self::placeable(&inner, clock::now(), deadline)
    }

    /// Receives the message that has begun, without a copy; `room` is as long as that, and written to in whole.
    /// [`Attempt::Later`] means that it has to be received the usual way.
    pub fn recv_in_place(
        &self,
        room: &mut [MaybeUninit<u8>],
        deadline: Option<Instant>,
    ) -> Result<Attempt<()>, LinkError> {
        let mut inner = self.enter()?;
        let mut now = clock::now();
        if Self::placeable(&inner, now, deadline) != Some(room.len()) {
            return Ok(Attempt::Later);
        }
        let Some(socket) = inner.socket.clone() else { return Ok(Attempt::Later) };
        inner.last_send = None;
        inner.last_read = now.into();
        self.take_role(&mut inner);
        let mut placing = inner.core.place_begun(room);
        let mut filled = placing.as_ref().map_or(0, Placing::filled);
        let mut over = None;
        // While this is being read nobody else may.
        inner.begin_receiving();
        let result = loop {
            let Some(place) = placing.take().or_else(|| inner.core.place_begun(room)) else { break Ok(Attempt::Later) };
            if place.is_complete() {
                break Ok(Attempt::Done(()));
            }
            filled = place.filled();
            if deadline.is_some_and(|deadline| deadline <= now + PRECISE) {
                placing = Some(place);
                break Ok(Attempt::Later);
            }
            if let Err(error) = inner.bound_receiving(deadline.map(|deadline| deadline.saturating_duration_since(now)))
            {
                placing = Some(place);
                break Err(error.into());
            }
            drop(inner);
            let mut headers = [MaybeUninit::new(0); HEADERS_BYTES];
            let got = sys::receive_waiting_parts(socket.as_fd(), place.places(room, &mut headers));
            inner = self.lock();
            now = clock::now();
            inner.last_read = now.into();
            match got {
                Ok(bytes @ 1..) => {
                    let (of_headers, of_content) = place.shares(bytes);
                    filled += of_content;
                    // SAFETY: the headers' room was written to when it was made, and the front of `room` by what was received.
                    let (headers, room) =
                        unsafe { (headers[..of_headers].assume_init_ref(), room[..filled].assume_init_ref()) };
                    placing = inner.core.handle_placed(now, place, headers, room);
                    inner.is_judgement_put_off = false;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => placing = Some(place),
                nothing => {
                    placing = Some(place);
                    let is_interrupted = matches!(&nothing, Err(error) if error.kind() == io::ErrorKind::Interrupted);
                    over = Some(nothing.map(|_| &[][..]));
                    break if is_interrupted { Err(LinkError::Interrupted) } else { Ok(Attempt::Later) };
                }
            }
            self.turn(&mut inner, now);
        };
        inner.is_polled = false;
        inner.is_receiving = false;
        inner.is_flowing = false;
        if inner.waiters.is_empty() {
            inner.core.set_waiting(now, false);
        }
        if !matches!(result, Ok(Attempt::Done(()))) {
            // SAFETY: as above.
            let room = unsafe { room[..filled].assume_init_ref() };
            inner.core.take_back(now, placing, room);
        }
        if let Some(over) = over {
            inner.digest(now, over, 0);
        }
        self.turn(&mut inner, now);
        inner.hand_over();
        result
    }

    /// What [`Inner::begin_receiving`] has begun. Nothing follows from it before [`Link::settle_received`], which is to be
    /// called when `room` is nobody's any more: when nothing can be written, a turn reads what is left.
    fn receive_in(
        &self,
        socket: &OwnedFd,
        room: &mut [MaybeUninit<u8>],
        deadline: Option<Instant>,
    ) -> (Guard<'_>, Instant, Result<(), WaitError>) {
        let capacity = room.len();
        let got = sys::receive_waiting(socket.as_fd(), room);
        let mut inner = self.lock();
        let now = clock::now();
        inner.is_polled = false;
        inner.is_receiving = false;
        inner.last_read = now.into();
        if inner.waiters.is_empty() {
            inner.core.set_waiting(now, false);
        }
        let is_interrupted = matches!(&got, Err(error) if error.kind() == io::ErrorKind::Interrupted);
        let is_late = matches!(&got, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            && deadline.is_some_and(|deadline| now >= deadline);
        inner.digest(now, got, capacity);
        let result = match (is_interrupted, is_late) {
            (true, _) => Err(WaitError::Interrupted),
            (false, true) => Err(WaitError::TimedOut),
            (false, false) => Ok(()),
        };
        (inner, now, result)
    }

    /// Who takes the message at once ends with a turn, or with what is left of one.
    fn settle_received(&self, inner: &mut Inner, now: Instant) {
        if !(inner.core.has_message() && inner.core.is_quiet() && inner.waiters.is_empty()) {
            self.turn(inner, now);
        }
    }

    /// One sleep, with the lock given up meanwhile. Who finds nobody polling the socket does.
    fn sleep<'l>(
        &'l self,
        mut inner: Guard<'l>,
        interest: Interest,
        now: Instant,
        deadline: Option<Instant>,
    ) -> (Guard<'l>, Result<(), WaitError>) {
        let place = match inner.waiters.enter(interest) {
            Ok(place) => place,
            Err(error) => return (inner, Err(error.into())),
        };
        inner.core.set_waiting(now, true);
        let polled = if inner.is_polled || !inner.core.wants_input() { None } else { inner.socket.clone() };
        let events = if inner.is_write_blocked { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
        inner.is_polled |= polled.is_some();
        drop(inner);
        let slept = place.sleep(polled.as_ref().map(AsFd::as_fd), events, now, deadline);
        let mut inner = self.lock();
        inner.waiters.leave(place);
        if polled.is_some() {
            inner.is_polled = false;
            if matches!(slept, Ok(came) if came & libc::POLLOUT != 0) {
                inner.is_write_blocked = false;
            }
        }
        (inner, slept.map(drop))
    }

    /// Until a message, or the end, can be received by [`Link::try_recv`], unless another thread is quicker.
    pub fn wait_readable(&self, deadline: Option<Instant>) -> Result<(), LinkError> {
        self.wait(Interest::READABLE, deadline, |link, inner, _| {
            if inner.core.has_message() {
                link.set_alarm(inner);
                link.tell(inner, Interest::NOTHING);
                return Some(Ok(()));
            }
            (inner.core.is_at_end() || inner.ending.is_some()).then_some(Ok(()))
        })
    }

    /// Until the handshake is done.
    pub fn wait_open(&self, deadline: Option<Instant>) -> Result<(), LinkError> {
        self.wait(Interest::STATE, deadline, |_, inner, _| match inner.opened_at {
            Some(_) => Some(Ok(())),
            None => inner.over().map(Err),
        })
    }

    /// Until the state is `wanted`; the end is an error, unless it is what was wanted.
    pub fn wait_state(&self, wanted: State, deadline: Option<Instant>) -> Result<(), LinkError> {
        self.wait(Interest::STATE, deadline, |_, inner, _| match inner.core.state() {
            state if state == wanted => Some(Ok(())),
            _ => inner.over().map(Err),
        })
    }

    /// Until the link has ended, and why.
    pub fn wait_ended(&self, deadline: Option<Instant>) -> Result<Arc<Ending>, LinkError> {
        self.wait(Interest::STATE, deadline, |_, inner, _| inner.ending.clone().map(Ok))
    }

    /// The next occurrence; after the last one, the end is an error.
    pub fn next_occurrence(&self, deadline: Option<Instant>) -> Result<Occurrence, LinkError> {
        self.wait(Interest::EVENT, deadline, |_, inner, _| match inner.next_occurrence() {
            Some(occurrence) => Some(Ok(occurrence)),
            None => inner.over().map(Err),
        })
    }
}

// ---- messages -------------------------------------------------------------------------------------------------

impl Link {
    /// One attempt, for who holds the interpreter: [`Attempt::Later`] means to call [`Link::send`], detached.
    pub fn try_send(&self, message: &[u8]) -> Result<Attempt<()>, LinkError> {
        if message.len() > INLINE_BYTES {
            return Ok(Attempt::Later);
        }
        let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
        self.push(&mut inner, message)
    }

    /// Accepts the message, and waits for room where there is none.
    pub fn send(&self, message: &[u8], deadline: Option<Instant>) -> Result<(), LinkError> {
        self.check_process()?;
        if message.len() >= LARGE_BYTES && self.framing.is_none() {
            return self.send_large(message, deadline);
        }
        if let Attempt::Done(()) = self.push(&mut self.lock(), message)? {
            return Ok(());
        }
        self.wait(Interest::ROOM, deadline, |link, inner, _| match link.push(inner, message) {
            Ok(Attempt::Done(())) => Some(Ok(())),
            Ok(Attempt::Later) => None,
            Err(error) => Some(Err(error)),
        })
    }

    /// A hundred megabytes are copied in a tenth of a second, which isn't to be a beat's delay: so without the lock, once there is
    /// room for them.
    fn send_large(&self, message: &[u8], deadline: Option<Instant>) -> Result<(), LinkError> {
        let accepted = |inner: &mut Inner, attempt| match inner.accepted(attempt) {
            Ok(Attempt::Done(())) => Some(Ok(())),
            Ok(Attempt::Later) => None,
            Err(error) => Some(Err(error)),
        };
        self.wait(Interest::ROOM, deadline, |_, inner, _| {
            let attempt = inner.framed().and_then(|core| core.check_send(message.len()));
            accepted(inner, attempt)
        })?;
        let mut framed = Framed::new(message);
        self.wait(Interest::ROOM, deadline, |_, inner, _| {
            let attempt = inner.framed().and_then(|core| core.send_framed(&mut framed));
            accepted(inner, attempt)
        })?;
        let mut inner = self.lock();
        let now = clock::now();
        self.turn(&mut inner, now);
        self.leave_unsent(&mut inner, now);
        Ok(())
    }

    fn push(&self, inner: &mut Inner, message: &[u8]) -> Result<Attempt<()>, LinkError> {
        let attempt = inner.core.send(message);
        if inner.accepted(attempt)? == Attempt::Later {
            return Ok(Attempt::Later);
        }
        let now = clock::now();
        let is_burst = inner.last_send.is_some_and(|last| Moment::from(now) < last + BURST_GAP);
        inner.burst_bytes = inner.burst_bytes.saturating_add(u32::try_from(message.len()).unwrap_or(u32::MAX));
        inner.last_send = Some(now.into());
        if is_burst && inner.burst_bytes < BURST_BYTES {
            if !inner.is_flush_coming {
                inner.is_flush_coming = true;
                self.engine.attend_soon(self.key);
            }
            return Ok(Attempt::Done(()));
        }
        self.turn(inner, now);
        self.leave_unsent(inner, now);
        Ok(Attempt::Done(()))
    }

    /// Accepts the message if there is room; `None` where that isn't the reason.
    pub(super) fn send_if_room(&self, message: &[u8]) -> Result<(), Option<SendError>> {
        let mut inner = self.enter().map_err(|_| None)?;
        inner.core.send(message).map_err(Some)?;
        let now = clock::now();
        self.turn(&mut inner, now);
        self.leave_unsent(&mut inner, now);
        Ok(())
    }

    /// Takes one message, if one is there; `take` makes of it what the caller wants, under the lock. For who holds the
    /// interpreter: `take` must not run any of its code. The end is an error, once nothing more is there.
    pub fn try_recv<T>(&self, take: impl FnOnce(&[u8]) -> T) -> Result<Attempt<T>, LinkError> {
        let mut take = Some(take);
        let mut taken = None;
        match self.try_recv_many(1, |message| {
            if let Some(take) = take.take() {
                taken = Some(take(message));
            }
        })? {
            Attempt::Done(_) => Ok(taken.map_or(Attempt::Later, Attempt::Done)),
            Attempt::Later => Ok(Attempt::Later),
        }
    }

    /// Waits for one message and copies it to the front of `room`; says how long it is. [`Attempt::Later`] means that it
    /// is longer than that, and still there.
    pub fn recv_into(
        &self,
        room: &mut [MaybeUninit<u8>],
        deadline: Option<Instant>,
    ) -> Result<Attempt<usize>, LinkError> {
        self.wait(Interest::READABLE, deadline, |link, inner, now| link.take_into(inner, now, room, deadline))
    }

    fn take_into(
        &self,
        inner: &mut Inner,
        now: Instant,
        room: &mut [MaybeUninit<u8>],
        deadline: Option<Instant>,
    ) -> Option<Result<Attempt<usize>, LinkError>> {
        let Some(length) = inner.core.next_length() else {
            return inner.over().map(Err).or_else(|| Self::placeable(inner, now, deadline).map(|_| Ok(Attempt::Later)));
        };
        if length > room.len() {
            self.set_alarm(inner);
            self.tell(inner, Interest::NOTHING);
            return Some(Ok(Attempt::Later));
        }
        let count = inner.read_messages(1, |message| {
            room[..length].write_copy_of_slice(message);
        });
        self.take(inner, now, count);
        Some(Ok(Attempt::Done(length)))
    }

    /// As [`Link::try_recv`], and if there is nothing and the caller may be who waits in recv(2), it has begun to: it must
    /// detach and call [`Receiving::finish`].
    pub fn try_recv_or_begin<T>(
        &self,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<Attempt<Result<T, Receiving<'_>>>, LinkError> {
        {
            let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
            // What isn't so simple goes the long way, as does who reads much.
            if self.framing.is_none()
                && !inner.core.has_message()
                && inner.reader == Reader::Callers
                && !(inner.is_polled || inner.is_watched || inner.is_flowing)
                && inner.receive_timeout.is_none()
                && !inner.core.is_urgent()
                && let Some(socket) = inner.socket.clone()
            {
                inner.last_send = None;
                inner.begin_receiving();
                return Ok(Attempt::Done(Err(Receiving { link: self, socket })));
            }
        }
        Ok(self.try_recv(take)?.map(Ok))
    }

    /// The same for all that are there, `most` at the most; says how many it were.
    pub fn try_recv_many(&self, most: usize, take: impl FnMut(&[u8])) -> Result<Attempt<usize>, LinkError> {
        let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
        // While callers read anyway and there is much to read, this saves the way through a wait.
        let reads = inner.is_flowing && inner.reader == Reader::Callers && !inner.is_polled;
        if reads && !inner.core.has_message() && inner.core.begun().is_none() {
            let now = clock::now();
            inner.last_read = now.into();
            inner.read(now);
            self.turn(&mut inner, now);
        }
        let count = inner.read_messages(most, take);
        if count == 0 {
            return inner.dried_up().map_or(Ok(Attempt::Later), Err);
        }
        self.take(&mut inner, clock::now(), count);
        Ok(Attempt::Done(count))
    }

    /// The same for `most` bytes of a raw stream.
    pub fn try_recv_some<T>(&self, most: usize, take: impl FnOnce(&[u8]) -> T) -> Result<Attempt<T>, LinkError> {
        let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
        let Some(taken) = inner.core.read_at_most(most).map(take) else {
            return inner.dried_up().map_or(Ok(Attempt::Later), Err);
        };
        self.take(&mut inner, clock::now(), 1);
        Ok(Attempt::Done(taken))
    }

    /// Gives messages out that stay the peer's concern until [`Link::confirm`]: a crash in between loses none silently.
    pub fn try_peek_many(&self, most: usize, show: impl FnMut(&[u8])) -> Result<Attempt<usize>, LinkError> {
        let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
        let count = inner.read_messages(most, show);
        if count == 0 {
            return inner.dried_up().map_or(Ok(Attempt::Later), Err);
        }
        self.tell(&mut inner, Interest::NOTHING);
        Ok(Attempt::Done(count))
    }

    /// The oldest `count` of the messages shown are with the program now.
    pub fn confirm(&self, count: usize) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        self.take(&mut inner, clock::now(), count);
        Ok(())
    }

    /// The same for who holds the interpreter. False if it is too late: this side has closed the link, and told the peer
    /// that its program didn't take them.
    pub fn try_confirm(&self, count: usize) -> Result<Attempt<bool>, LinkError> {
        let Some(mut inner) = self.try_enter()? else { return Ok(Attempt::Later) };
        Ok(Attempt::Done(self.take(&mut inner, clock::now(), count)))
    }

    fn take(&self, inner: &mut Inner, now: Instant, count: usize) -> bool {
        let is_taken = inner.core.take(now, count);
        inner.last_send = None;
        if inner.is_held_back && inner.core.wants_input() {
            inner.is_held_back = false;
            self.engine.attend(self.key);
        }
        if inner.core.is_urgent() || inner.share.is_some() {
            self.turn(inner, now);
        } else {
            self.set_alarm(inner);
            self.tell(inner, Interest::NOTHING);
        }
        is_taken
    }

    /// Until the peer's application took everything that was accepted before this call; of a plain peer, until its kernel
    /// did.
    pub fn flush(&self, deadline: Option<Instant>) -> Result<(), LinkError> {
        let end = self.begin_flush()?;
        self.wait_taken(end, deadline)
    }

    /// The offset that [`Link::wait_taken`] is to wait for; the peer is asked not to be slow with its acknowledgement.
    pub fn begin_flush(&self) -> Result<u64, LinkError> {
        let mut inner = self.enter()?;
        let (accepted, taken) = inner.core.sent_offsets();
        if taken < accepted {
            let now = clock::now();
            inner.core.hurry(now);
            self.turn(&mut inner, now);
        }
        Ok(accepted)
    }

    /// Until the peer's application took everything up to this offset.
    pub fn wait_taken(&self, end: u64, deadline: Option<Instant>) -> Result<(), LinkError> {
        self.wait(Interest::TAKEN, deadline, |_, inner, _| {
            let (_, taken) = inner.core.sent_offsets();
            if taken >= end { Some(Ok(())) } else { inner.over().map(Err) }
        })
    }

    /// The round trip of a beat that the peer answers at once.
    pub fn ping(&self, deadline: Option<Instant>) -> Result<Duration, LinkError> {
        let ping = self.begin_ping()?;
        self.wait_pong(ping, deadline)
    }

    /// Asks; for [`Link::wait_pong`].
    pub fn begin_ping(&self) -> Result<Ping, LinkError> {
        let mut inner = self.enter()?;
        if let Some(error) = inner.over() {
            return Err(error);
        }
        let at = clock::now();
        let Some(number) = inner.core.ping(at) else { return Err(LinkError::NotOpen(inner.core.state())) };
        self.turn(&mut inner, at);
        Ok(Ping { number, at })
    }

    /// Until the peer has answered; the round trip.
    pub fn wait_pong(&self, ping: Ping, deadline: Option<Instant>) -> Result<Duration, LinkError> {
        self.wait(Interest::PONG, deadline, |_, inner, now| {
            match inner.extras.as_ref().and_then(|extras| extras.last_pong) {
                Some((answered, round_trip)) if answered >= ping.number => {
                    Some(Ok(round_trip.unwrap_or(now.saturating_duration_since(ping.at))))
                }
                _ => inner.over().map(Err),
            }
        })
    }

    /// Begins to say goodbye; [`Link::wait_ended`] tells when it is done, which is within `grace`.
    pub fn close(&self, close: Close, grace: Duration) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        let now = clock::now();
        inner.core.close(now, close, now + grace);
        self.turn(&mut inner, now);
        inner.waiters.wake_all(Interest::STATE | Interest::ROOM);
        Ok(())
    }

    /// Ends our stream to a plain peer, behind what was sent before; it is heard further.
    pub fn shut_down_sending(&self) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        inner.over().map_or(Ok(()), Err)?;
        inner.core.shut_down_sending();
        self.turn(&mut inner, clock::now());
        Ok(())
    }

    /// The program knows of the link no more. Its listener may, for long, so of a link that is over nothing is kept but
    /// what can be told of it.
    pub fn forget(&self) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        inner.core.forget_inbox();
        if let Some(extras) = &mut inner.extras {
            extras.notification = None;
        }
        Ok(())
    }

    /// The listener's, or the program's, word about a client that said HELLO.
    pub(super) fn decide(&self, decide: impl FnOnce(&mut Connection)) -> Result<(), LinkError> {
        let mut inner = self.enter()?;
        if let Core::Framed(core) = &mut inner.core {
            decide(core);
        }
        self.turn(&mut inner, clock::now());
        Ok(())
    }
}

/// A wait for a message that has begun, and isn't bounded.
#[must_use = "nobody else reads until it is finished"]
pub struct Receiving<'l> {
    link: &'l Link,
    socket: Arc<OwnedFd>,
}

impl Receiving<'_> {
    /// Waits, and takes one message as [`Link::recv_into`] does; [`Attempt::Later`] if that has to go on.
    pub fn finish(self, room: &mut [MaybeUninit<u8>]) -> Result<Attempt<usize>, LinkError> {
        let Self { link, socket } = self;
        let mut read = [MaybeUninit::uninit(); FIRST_BYTES];
        let (mut inner, now, received) = link.receive_in(&socket, &mut read, None);
        link.settle_received(&mut inner, now);
        let result = match received {
            Ok(()) => link.take_into(&mut inner, now, room, None).unwrap_or(Ok(Attempt::Later)),
            Err(error) => Err(error.into()),
        };
        inner.hand_over();
        result
    }
}

impl Inner {
    fn read_messages(&mut self, most: usize, mut show: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < most
            && let Some(message) = self.core.read()
        {
            show(message);
            count += 1;
        }
        count
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
        self.ends.local()
    }

    #[must_use]
    pub fn peer_address(&self) -> SocketAddr {
        self.ends.peer()
    }

    /// A number that no other link of this process has.
    #[must_use]
    pub fn key(&self) -> usize {
        self.key
    }

    pub fn state(&self) -> Result<State, LinkError> {
        Ok(self.enter()?.core.state())
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
