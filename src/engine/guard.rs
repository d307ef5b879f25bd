//! The guard's thread: looks at all guarded sockets, and aborts the connections whose path is dead.
//!
//! One thread and one lock, held for a short batch of looks at a time. Nobody waits for Python while holding
//! it. Descriptors are the owners': the guard keeps a number and the socket's `SO_COOKIE`, reads from the number
//! (harmless, whoever has it by now), believes what it read if the cookie is still the same afterwards, and acts
//! only through a duplicate of its own whose cookie it has compared.
//!
//! The lock is std's, for the reason that `notices` gives.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use slab::Slab;
use socket2::SockRef;

use crate::engine::sync::thread::{self, JoinHandle};
use crate::engine::sync::{self, Condvar, Mutex, MutexGuard, global};
use crate::engine::{clock, notices};
use crate::net::keepalive::Keepalive;
use crate::net::{sys, tcp_info};
use crate::proto::moment::Moment;
use crate::proto::verdict::{Cause, Judge, Sample, TcpState, Verdict};

/// Looks in one go, before others get a chance at the lock: about 0.1 ms.
const BATCH: usize = 64;
/// What the kernel takes for `TCP_RTO_MAX_MS`.
const RTO_MAX_LEAST: Duration = Duration::from_secs(1);
const RTO_MAX_MOST: Duration = Duration::from_secs(120);
/// As `TCP_USER_TIMEOUT`: the kernel gives up at its next timer.
const AT_ONCE: Duration = Duration::from_millis(1);
/// A retransmission's or probe's longest way, where the limit is short, and something for the timer.
const EXPIRY_LEAST: Duration = Duration::from_millis(1200);

/// Who found out that the path is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// We did, and aborted the connection.
    ByGuard,
    /// The kernel's own keepalive or retransmission timer, while the guard was suspicious.
    ByKernel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conviction {
    pub cause: Cause,
    pub silence: Duration,
    pub limit: Duration,
    pub judged: Judged,
}

/// What to do for a socket besides looking at it.
#[derive(Default)]
pub struct Plan {
    /// Keepalive options to set, and to put back when the guard is stopped.
    pub keepalive: Option<Keepalive>,
    /// The descriptor is closed through us only (a KeepaliveSocket's), so after a fork the child goes on.
    pub is_owned: bool,
    /// Takes connections that aren't made yet, and waits for them.
    pub may_be_unconnected: bool,
    pub on_lost: Option<OnLost>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error("not a TCP socket")]
    NotTcp,
    #[error("not connected: its state is {}", .0.name())]
    NotConnected(TcpState),
    #[error("{0}")]
    System(#[from] io::Error),
}

/// One guarded socket, as its owner sees it.
#[derive(Debug)]
pub struct Watch {
    looks: AtomicU32,
    /// Rare, hence apart.
    conviction: OnceLock<Box<Conviction>>,
    /// Kept, for a dead socket no longer knows it.
    peer: OnceLock<(IpAddr, u16)>,
    id: AtomicU32,
    /// The bound of retransmissions that was set at the start, in milliseconds; 0 if none was.
    rto_max: u32,
    is_owned: AtomicBool,
    is_active: AtomicBool,
}

impl Watch {
    #[must_use]
    pub fn conviction(&self) -> Option<Conviction> {
        self.conviction.get().map(|conviction| **conviction)
    }

    /// Looks taken so far; a count that begins anew after four thousand million.
    #[must_use]
    pub fn looks(&self) -> u32 {
        self.looks.load(Ordering::Relaxed)
    }

    /// False once the guard was stopped, has convicted, or the connection is over.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn rto_max_ms(&self) -> Option<u32> {
        (self.rto_max != 0).then_some(self.rto_max)
    }

    #[must_use]
    pub fn peer(&self) -> Option<(IpAddr, u16)> {
        self.peer.get().copied()
    }

    fn note_peer(&self, fd: BorrowedFd<'_>) {
        if let Some(peer) = SockRef::from(&fd).peer_addr().ok().and_then(|peer| peer.as_socket()) {
            let _ = self.peer.set((peer.ip(), peer.port()));
        }
    }
}

/// `TCP_RTO_MAX_MS` of a socket, in milliseconds: small, for every guarded connection has one.
#[derive(Clone, Copy, Debug)]
enum RtoMax {
    /// The connection isn't made yet: it would cut the attempts to connect short.
    NotYet,
    Set {
        before: u32,
        now: u32,
    },
    /// The kernel has no such option, or the program has set a lower value itself.
    NotOurs,
}

struct Entry {
    fd: RawFd,
    cookie: u64,
    judge: Judge,
    watch: Arc<Watch>,
    /// When the next look is due; `None` after a fork, until the child uses the socket.
    due: Option<Moment>,
    /// It has been a connection.
    was_open: bool,
    is_suspect: bool,
    /// The log has been told of this suspicion.
    is_reported: bool,
    /// The peer has taken its window back over segments in flight, and may do so again.
    is_window_unsteady: bool,
    rto: RtoMax,
    extras: Option<Box<Extras>>,
}

/// What most guarded sockets don't have.
#[derive(Default)]
struct Extras {
    /// Keepalive options before and after our change.
    keepalive: Option<(Keepalive, Keepalive)>,
    on_lost: Option<OnLost>,
    expiry: Option<Expiry>,
}

/// A dead connection that the kernel is to end, for an abort would take away what has arrived and wasn't read.
#[derive(Clone, Copy)]
struct Expiry {
    conviction: Conviction,
    user_timeout_before: Option<Duration>,
    until: Instant,
}

const _: () = assert!(size_of::<Entry>() <= 112);

type OnLost = Box<dyn FnOnce(Conviction) + Send>;

struct Registry {
    entries: Slab<Entry>,
    /// Whose look is due when; a number whose own `due` is another by now, or that is gone, is passed over.
    due: BTreeMap<Moment, Vec<u32>>,
    thread: Option<JoinHandle<()>>,
    /// The thread ends, and no other begins: a fork is near.
    paused: bool,
    /// No thread is started any more: the interpreter is on its way out.
    closed: bool,
}

global! {
    static REGISTRY: Mutex<Registry> =
        Mutex::new(Registry { entries: Slab::new(), due: BTreeMap::new(), thread: None, paused: false, closed: false });
    static CHANGED: Condvar = Condvar::new();
}
/// Sockets that were inherited over a fork and not used since; zero nearly always, so that a look at it is all
/// that the hot paths pay.
static DORMANT: AtomicUsize = AtomicUsize::new(0);
/// Stands in for a kernel without `TCP_RTO_MAX_MS`, in tests.
static WITHOUT_RTO_MAX: AtomicBool = AtomicBool::new(false);

fn lock() -> MutexGuard<'static, Registry> {
    sync::lock(&REGISTRY)
}

/// How long the kernel may wait between retransmissions, so that a verdict within `limit` has something to go by.
///
/// The bound also shortens what `tcp_retries2` (15) amounts to: with a tenth of a limit over 200 s the kernel would
/// give up before us; with a seventh it does so from 924 s on, as it does without.
#[must_use]
pub fn rto_max_for(limit: Duration) -> Duration {
    let part = if limit > Duration::from_secs(200) { limit / 7 } else { limit / 10 };
    part.clamp(RTO_MAX_LEAST, RTO_MAX_MOST)
}

/// Behave as a kernel before 6.15 would have us.
pub fn pretend_no_rto_max(pretend: bool) {
    WITHOUT_RTO_MAX.store(pretend, Ordering::Relaxed);
}

fn rto_max(fd: RawFd) -> Option<u32> {
    if WITHOUT_RTO_MAX.load(Ordering::Relaxed) { None } else { sys::rto_max_ms(fd).ok() }
}

/// What the kernel makes of it, which counts in jiffies; `None` if it refuses.
fn set_rto_max(fd: BorrowedFd<'_>, ms: u32) -> Option<u32> {
    match sys::set_rto_max_ms(fd, ms).and_then(|()| sys::rto_max_ms(fd.as_raw_fd())) {
        Ok(now) => Some(now),
        Err(error) => {
            log::warn!(target: "longconn.guard", "TCP_RTO_MAX_MS {ms} was refused: {error}");
            None
        }
    }
}

/// True where the kernel has `TCP_RTO_MAX_MS`; asked of one socket, for kernels don't tell otherwise.
#[must_use]
pub fn has_rto_max(fd: RawFd) -> bool {
    rto_max(fd).is_some()
}

/// Begins to guard a socket; the caller vouches that `fd` stays open during this call.
pub fn start(fd: BorrowedFd<'_>, limit: Duration, plan: Plan) -> Result<Arc<Watch>, StartError> {
    let number = fd.as_raw_fd();
    if !sys::is_tcp(number)? {
        return Err(StartError::NotTcp);
    }
    let sample = tcp_info::sample(number)?;
    let is_open = sample.state.is_judged();
    if !is_open && (!plan.may_be_unconnected || sample.state == TcpState::Listen) {
        return Err(StartError::NotConnected(sample.state));
    }
    let cookie = sys::cookie(number)?;
    let mut probing = Keepalive::probing_of(fd);
    let keepalive = match plan.keepalive {
        Some(wanted) => {
            let before = Keepalive::of(fd)?;
            wanted.apply(fd)?;
            probing = Keepalive::probing_of(fd);
            // One probe more than is judged by, so that we come before the kernel: we can say why.
            let later = wanted.count.filter(|&count| count < sys::KEEPALIVE_COUNT.1).map(|count| count + 1);
            let wanted = Keepalive { count: later.or(wanted.count), ..wanted };
            wanted.apply(fd)?;
            Some((before, wanted))
        }
        None => None,
    };
    let rto = if is_open { bound_rto(fd, &sample, limit) } else { RtoMax::NotYet };
    let now = clock::real();
    let mut judge = Judge::new(limit);
    judge.set_probing(probing);
    judge.observe(now, &sample);
    let watch = Arc::new(Watch {
        id: AtomicU32::new(u32::MAX),
        is_owned: AtomicBool::new(plan.is_owned),
        looks: AtomicU32::new(0),
        is_active: AtomicBool::new(true),
        conviction: OnceLock::new(),
        rto_max: match rto {
            RtoMax::Set { now, .. } => now,
            RtoMax::NotYet | RtoMax::NotOurs => 0,
        },
        peer: OnceLock::new(),
    });
    if is_open {
        watch.note_peer(fd);
    }
    let entry = Entry {
        fd: number,
        cookie,
        judge,
        watch: watch.clone(),
        due: None,
        was_open: is_open,
        is_suspect: false,
        is_reported: false,
        is_window_unsteady: false,
        rto,
        extras: (keepalive.is_some() || plan.on_lost.is_some())
            .then(|| Box::new(Extras { keepalive, on_lost: plan.on_lost, expiry: None })),
    };
    let mut registry = lock();
    let id = registry.entries.insert(entry);
    watch.id.store(u32::try_from(id).unwrap_or(u32::MAX), Ordering::Relaxed);
    let due = registry.due_after(id, now);
    registry.schedule(id, due);
    registry.start_thread_if_needed();
    Ok(watch)
}

/// Bounds the retransmission timeout.
fn bound_rto(fd: BorrowedFd<'_>, sample: &Sample, limit: Duration) -> RtoMax {
    let Some(before) = rto_max(fd.as_raw_fd()) else { return RtoMax::NotOurs };
    let now = rto_wanted(sample, limit);
    let set = if before > now { set_rto_max(fd, now) } else { None };
    set.map_or(RtoMax::NotOurs, |now| RtoMax::Set { before, now })
}

/// Under the path's round trip every segment would be sent again for nothing; four are what a retransmission
/// timer allows for.
fn rto_wanted(sample: &Sample, limit: Duration) -> u32 {
    milliseconds(rto_max_for(limit).max(4 * sample.round_trip).min(RTO_MAX_MOST))
}

impl Entry {
    /// Over segments in flight with the window closed Linux gives up after twice the bound without an ACK
    /// (`tcp_rtx_probe0_timed_out`), which is to be later than our limit.
    fn rto_wanted(&self, sample: &Sample) -> u32 {
        let limit = self.judge.limit();
        let least = if self.is_window_unsteady { milliseconds((limit * 11 / 20).min(RTO_MAX_MOST)) } else { 0 };
        rto_wanted(sample, limit).max(least)
    }
}

/// Too small a bound does harm at once; one that is somewhat large, for the first round trip was slow, does not.
fn fits(now: u32, wanted: u32) -> bool {
    wanted <= now && now / 2 <= wanted
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Ends the guard of one socket. With `restore`, options that it set are put back, unless somebody has changed
/// them since, or another guard of the same socket lives by them: then that one puts them back.
pub fn stop(watch: &Arc<Watch>, restore: bool) {
    let mut registry = lock();
    let Some(id) = registry.find(watch) else { return };
    let mut entry = registry.remove(id);
    if !restore {
        return;
    }
    if let Some((_, heir)) = registry.entries.iter_mut().find(|(_, other)| other.cookie == entry.cookie) {
        entry.bequeath(heir);
    }
    drop(registry);
    if let Some(pinned) = pin(&entry) {
        entry.put_back(pinned.as_fd());
    }
}

/// Looks at one socket now, before the next look is due: somebody has just seen an error on it.
pub fn look_now(watch: &Arc<Watch>) {
    let mut registry = lock();
    if let Some(id) = registry.find(watch)
        && registry.entries[id].due.is_some()
    {
        registry.look(id);
    }
}

/// The socket's object no longer closes the descriptor: whoever has it now does.
pub fn disown(watch: &Arc<Watch>) {
    // whoever has it now doesn't call us
    wake(watch);
    watch.is_owned.store(false, Ordering::Relaxed);
}

/// The owner is gone, and the descriptor with it or soon: ends the guard at once if nobody has the lock, else at its
/// next look. Never waits, for the caller is attached to Python.
pub fn owner_dropped(watch: &Arc<Watch>) {
    if watch.is_owned.load(Ordering::Relaxed)
        && watch.is_active()
        && let Ok(mut registry) = REGISTRY.try_lock()
        && let Some(id) = registry.find(watch)
    {
        registry.remove(id);
    }
}

impl Entry {
    fn put_back(&self, fd: BorrowedFd<'_>) {
        if let Some((before, wanted)) = self.extras.as_ref().and_then(|extras| extras.keepalive) {
            let done = Keepalive::of(fd).and_then(|now| now.undoing(wanted, before).apply(fd));
            if let Err(error) = done {
                log::warn!(target: "longconn.guard", "keepalive options could not be put back: {error}");
            }
        }
        if let RtoMax::Set { before, now } = self.rto
            && rto_max(fd.as_raw_fd()) == Some(now)
        {
            set_rto_max(fd, before);
        }
        self.put_back_user_timeout(fd);
    }

    fn put_back_user_timeout(&self, fd: BorrowedFd<'_>) {
        if let Some(expiry) = self.extras.as_ref().and_then(|extras| extras.expiry)
            && let Err(error) = set_user_timeout(fd, expiry.user_timeout_before)
        {
            log::warn!(target: "longconn.guard", "TCP_USER_TIMEOUT could not be put back: {error}");
        }
    }

    /// It lives after all.
    fn call_off_expiry(&mut self) {
        if self.extras.as_ref().is_some_and(|extras| extras.expiry.is_some())
            && let Some(pinned) = pin(self)
        {
            self.put_back_user_timeout(pinned.as_fd());
            if let Some(extras) = &mut self.extras {
                extras.expiry = None;
            }
        }
    }

    /// What is to be put back is left to another guard of the same socket, which lives by it; but for what was set upon
    /// the other's own, which is put back now.
    fn bequeath(&mut self, heir: &mut Self) {
        if let RtoMax::Set { before, now } = self.rto {
            match heir.rto {
                RtoMax::Set { now: theirs, .. } if theirs == before => {}
                RtoMax::Set { now: theirs, .. } => {
                    heir.rto = RtoMax::Set { before, now: theirs };
                    self.rto = RtoMax::NotOurs;
                }
                RtoMax::NotYet | RtoMax::NotOurs => {
                    heir.rto = RtoMax::Set { before, now };
                    self.rto = RtoMax::NotOurs;
                }
            }
        }
        let Some(extras) = &mut self.extras else { return };
        let theirs = heir.extras.get_or_insert_default();
        if let Some((before, wanted)) = extras.keepalive {
            match theirs.keepalive {
                Some((_, standing)) if standing == before => {}
                standing => {
                    theirs.keepalive = Some((before, standing.map_or(wanted, |(_, standing)| standing)));
                    extras.keepalive = None;
                }
            }
        }
        theirs.expiry = extras.expiry.take().or(theirs.expiry);
    }

    /// Gives the kernel time to end a dead connection by itself: blocked calls fail, and what has arrived can still be
    /// read. False once that time is up, or where it can't be asked for.
    fn may_expire(&mut self, conviction: Conviction, fd: BorrowedFd<'_>, now: Instant) -> bool {
        let patience = EXPIRY_LEAST.max(self.judge.limit() / 4);
        let extras = self.extras.get_or_insert_default();
        if let Some(expiry) = extras.expiry {
            return now < expiry.until;
        }
        let Ok(before) = Keepalive::of(fd) else { return false };
        extras.expiry = Some(Expiry { conviction, user_timeout_before: before.user_timeout, until: now + patience });
        // Its clock runs since the first retransmission, or the last answer: at the next timer the time is up.
        set_user_timeout(fd, Some(AT_ONCE)).is_ok()
    }
}

fn set_user_timeout(fd: BorrowedFd<'_>, user_timeout: Option<Duration>) -> io::Result<()> {
    Keepalive { user_timeout, ..Keepalive::default() }.apply(fd)
}

/// A duplicate of the entry's own socket, or nothing if the number is another's by now.
fn pin(entry: &Entry) -> Option<OwnedFd> {
    let pinned = sys::pin(entry.fd).ok()?;
    (sys::cookie(pinned.as_raw_fd()).ok()? == entry.cookie).then_some(pinned)
}

impl Registry {
    fn find(&self, watch: &Arc<Watch>) -> Option<usize> {
        let id = watch.id.load(Ordering::Relaxed) as usize;
        self.entries.get(id).is_some_and(|entry| Arc::ptr_eq(&entry.watch, watch)).then_some(id)
    }

    fn remove(&mut self, id: usize) -> Entry {
        let entry = self.entries.remove(id);
        if entry.due.is_none() {
            DORMANT.fetch_sub(1, Ordering::Relaxed);
        }
        entry.watch.is_active.store(false, Ordering::Relaxed);
        entry
    }

    /// Looks at healthy connections fall on a grid of a quarter of their period, so that thousands of them cost
    /// a few wake-ups.
    fn due_after(&self, id: usize, now: Instant) -> Moment {
        let judge = &self.entries[id].judge;
        let due = Moment::from(judge.next_look(now));
        if self.entries[id].is_suspect { due } else { due.rounded_down(judge.period() / 4) }
    }

    fn schedule(&mut self, id: usize, due: Moment) {
        let is_first = self.due.first_key_value().is_none_or(|(&first, _)| due < first);
        self.entries[id].due = Some(due);
        // Descriptors are ints, so there are fewer sockets than a u32 counts.
        self.due.entry(due).or_default().push(u32::try_from(id).unwrap_or(u32::MAX));
        if is_first {
            CHANGED.notify_all();
        }
    }

    fn start_thread_if_needed(&mut self) {
        if self.thread.is_none() && !self.paused && !self.closed && !self.due.is_empty() {
            self.thread = thread::Builder::new().name("longconn-guard".into()).spawn(run).ok();
        }
    }

    /// Looks at those whose time has come; at most a batch of them.
    fn look_at_due(&mut self, now: Moment) {
        for _ in 0..BATCH {
            let Some(mut first) = self.due.first_entry() else { return };
            let due = *first.key();
            if due > now {
                return;
            }
            match first.get_mut().pop() {
                None => {
                    first.remove();
                }
                Some(id) => {
                    let id = id as usize;
                    if self.entries.get(id).is_some_and(|entry| entry.due == Some(due)) {
                        self.look(id);
                    }
                }
            }
        }
    }

    /// Looks at one socket.
    fn look(&mut self, id: usize) {
        let now = clock::real();
        let entry = &mut self.entries[id];
        let sample = tcp_info::sample(entry.fd);
        // Only now: had the number changed hands before, the cookie would be another's.
        let (Ok(sample), Ok(cookie)) = (sample, sys::cookie(entry.fd)) else {
            self.remove(id);
            return;
        };
        if cookie != entry.cookie {
            self.remove(id);
            return;
        }
        entry.watch.looks.fetch_add(1, Ordering::Relaxed);
        if sample.probes > 0
            && !entry.is_suspect
            && let Some(pinned) = pin(entry)
        {
            // The program may have changed them since.
            entry.judge.set_probing(Keepalive::probing_of(pinned.as_fd()));
        }
        entry.is_suspect = false;
        let suspected = if entry.judge.has_heard(&sample) { None } else { entry.judge.suspected() };
        match entry.judge.observe(now, &sample) {
            Verdict::Answered => {
                entry.was_open = true;
                entry.is_reported = false;
                entry.call_off_expiry();
            }
            Verdict::Unanswered(since) => {
                entry.was_open = true;
                entry.is_suspect = true;
                entry.call_off_expiry();
                let is_long = since >= entry.judge.limit() / 2;
                if is_long && !entry.is_reported {
                    log::debug!(
                        target: "longconn.guard",
                        "fd {}: nothing of ours answered for {:.1} s, limit {:.1} s",
                        entry.fd, since.as_secs_f64(), entry.judge.limit().as_secs_f64(),
                    );
                }
                entry.is_reported = is_long;
            }
            Verdict::Dead { cause, silence, limit } => {
                entry.is_suspect = true;
                if self.convict(id, Conviction { cause, silence, limit, judged: Judged::ByGuard }) {
                    return;
                }
            }
            Verdict::NotJudged => {
                if self.is_over(id, &sample, suspected) {
                    return;
                }
            }
        }
        let entry = &mut self.entries[id];
        entry.is_window_unsteady |= sample.window_is_taken_back();
        if entry.was_open {
            match entry.rto {
                RtoMax::NotYet => self.connection_made(id, &sample),
                RtoMax::Set { now, .. } if !fits(now, entry.rto_wanted(&sample)) => self.adjust_rto(id, &sample),
                RtoMax::Set { .. } | RtoMax::NotOurs => {}
            }
        }
        let due = self.due_after(id, now);
        // Somebody who asks again and again gets no further entries.
        if self.entries[id].due.is_none_or(|standing| standing <= now.into() || due < standing) {
            self.schedule(id, due);
        }
    }

    fn connection_made(&mut self, id: usize, sample: &Sample) {
        let entry = &mut self.entries[id];
        if let Some(pinned) = pin(entry) {
            entry.watch.note_peer(pinned.as_fd());
            entry.rto = bound_rto(pinned.as_fd(), sample, entry.judge.limit());
        }
    }

    /// The path has turned out slower or quicker than it looked.
    fn adjust_rto(&mut self, id: usize, sample: &Sample) {
        let entry = &mut self.entries[id];
        if let RtoMax::Set { before, .. } = entry.rto
            && let Some(pinned) = pin(entry)
        {
            let now = entry.rto_wanted(sample).min(before);
            entry.rto = set_rto_max(pinned.as_fd(), now).map_or(RtoMax::NotOurs, |now| RtoMax::Set { before, now });
        }
    }

    /// Not a connection (yet, or any more): true if the guard has ended.
    fn is_over(&mut self, id: usize, sample: &Sample, suspected: Option<(Cause, Duration)>) -> bool {
        let entry = &self.entries[id];
        if !entry.was_open && sample.state != TcpState::Listen {
            // a failed attempt to connect stays here too: the program may try again
            return false;
        }
        if let Some(expiry) = entry.extras.as_ref().and_then(|extras| extras.expiry) {
            self.pronounce(id, expiry.conviction);
            return true;
        }
        // The kernel gave up by itself while we were counting; a reset that arrived would have been counted in.
        match suspected {
            Some((cause, limit)) if sample.state == TcpState::Close => {
                let silence = sample.silence();
                self.pronounce(id, Conviction { cause, silence, limit, judged: Judged::ByKernel });
            }
            _ => {
                self.remove(id);
            }
        }
        true
    }

    /// Aborts a connection whose path is dead; false if it can't be done now, or turns out not to be needed.
    fn convict(&mut self, id: usize, conviction: Conviction) -> bool {
        let entry = &mut self.entries[id];
        let pinned = match sys::pin(entry.fd) {
            Ok(pinned) => pinned,
            Err(error) => {
                // Out of descriptors, perhaps because of dead connections. It is tried again at the next look.
                log::warn!(target: "longconn.guard", "fd {}: can't be aborted now: {error}", entry.fd);
                return false;
            }
        };
        if sys::cookie(pinned.as_raw_fd()).ok() != Some(entry.cookie) {
            self.remove(id);
            return true;
        }
        // An answer may have come since the look.
        let (Ok(sample), now) = (tcp_info::sample(pinned.as_raw_fd()), clock::real()) else { return false };
        if !matches!(entry.judge.observe(now, &sample), Verdict::Dead { .. }) {
            return false;
        }
        let is_unread = sys::bytes_readable(pinned.as_raw_fd()).is_ok_and(|bytes| bytes > 0);
        let is_owned = entry.watch.is_owned.load(Ordering::Relaxed);
        if is_unread && !is_owned && entry.may_expire(conviction, pinned.as_fd(), now) {
            return false;
        }
        // The verdict first, so that whoever is woken by the abort finds it.
        self.pronounce(id, conviction);
        // Our own sockets read what has arrived, and then the verdict in the end of the stream; an abort would take it.
        let ended = if is_unread && is_owned {
            // Else the kernel would try for long to bring over our end of the stream.
            set_user_timeout(pinned.as_fd(), Some(AT_ONCE)).and_then(|()| sys::cut(pinned.as_fd()))
        } else {
            sys::abort(pinned.as_fd())
        };
        if let Err(error) = ended {
            log::error!(target: "longconn.guard", "a dead connection could not be aborted: {error}");
        }
        true
    }

    /// Tells all who guard this socket, by whatever descriptor, and ends their guard.
    fn pronounce(&mut self, id: usize, conviction: Conviction) {
        let cookie = self.entries[id].cookie;
        let concerned: Vec<usize> =
            self.entries.iter().filter(|(_, entry)| entry.cookie == cookie).map(|(id, _)| id).collect();
        for id in concerned {
            let entry = self.remove(id);
            let _ = entry.watch.conviction.set(Box::new(conviction));
            log::warn!(
                target: "longconn.guard",
                "fd {}: peer lost ({:?}): nothing of ours answered for {:.1} s, limit {:.1} s",
                entry.fd, conviction.cause, conviction.silence.as_secs_f64(), conviction.limit.as_secs_f64(),
            );
            if let Some(on_lost) = entry.extras.and_then(|extras| extras.on_lost) {
                notices::call(Box::new(move || on_lost(conviction)));
            }
        }
    }
}

fn run() {
    sys::block_signals();
    let mut registry = lock();
    while !registry.paused {
        registry.look_at_due(clock::real().into());
        let next = registry.due.first_key_value();
        let wait = next.map(|(due, _)| due.instant().saturating_duration_since(clock::real()));
        registry = match wait {
            Some(Duration::ZERO) => {
                drop(registry);
                thread::yield_now();
                lock()
            }
            Some(wait) => CHANGED.wait_timeout(registry, wait).unwrap_or_else(PoisonError::into_inner).0,
            None => CHANGED.wait(registry).unwrap_or_else(PoisonError::into_inner),
        };
    }
}

/// Ends the thread and waits for it, which is soon, for it never waits for anybody. None begins until a fork is over.
pub fn pause() {
    let mut registry = lock();
    registry.paused = true;
    let thread = registry.thread.take();
    drop(registry);
    CHANGED.notify_all();
    if let Some(thread) = thread {
        let _ = thread.join();
    }
}

/// Keeps everybody from the registry over a fork; `None` while somebody is about it.
#[must_use]
pub fn try_hold() -> Option<Held> {
    let registry = match REGISTRY.try_lock() {
        Ok(registry) => registry,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    // another thread's fork may just have ended, and begun the thread anew
    (registry.paused && registry.thread.is_none()).then_some(Held(registry))
}

/// No thread is started from here on.
pub fn close() {
    lock().closed = true;
}

/// True in a forked child that has inherited guarded sockets and not used them all.
#[inline]
#[must_use]
pub fn any_dormant() -> bool {
    DORMANT.load(Ordering::Relaxed) != 0
}

/// The child uses this socket: its guard goes on.
pub fn wake(watch: &Arc<Watch>) {
    let mut registry = lock();
    if let Some(id) = registry.find(watch)
        && registry.entries[id].due.is_none()
    {
        DORMANT.fetch_sub(1, Ordering::Relaxed);
        // What was counted before the fork was counted by another process.
        registry.entries[id].judge.start_anew();
        registry.schedule(id, clock::real().into());
        registry.start_thread_if_needed();
    }
}

/// The registry, held over a fork.
pub struct Held(MutexGuard<'static, Registry>);

impl Held {
    pub fn release_in_parent(mut self) {
        self.0.paused = false;
        self.0.start_thread_if_needed();
    }

    /// Sockets of ours sleep until they are used; what somebody else's were guarded for is the parent's affair,
    /// and so are the options on them.
    pub fn release_in_child(mut self) {
        self.0.paused = false;
        self.0.due.clear();
        let mut sleeping = 0;
        self.0.entries.retain(|_, entry| {
            entry.due = None;
            std::mem::forget(entry.extras.take()); // a callback may hold objects of Python
            let is_owned = entry.watch.is_owned.load(Ordering::Relaxed);
            if is_owned {
                sleeping += 1;
            } else {
                entry.watch.is_active.store(false, Ordering::Relaxed);
            }
            is_owned
        });
        DORMANT.store(sleeping, Ordering::Relaxed);
    }
}
