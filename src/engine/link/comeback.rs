//! Going on over another connection: a client makes one, a server is brought one.

use std::mem;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::{BOTH, Ends, Errand, Inner, Link, LinkError, Reader, new_seed};
use crate::engine::clock;
use crate::engine::dial::{self, Connected, Dial, DialConfig};
use crate::engine::handshake::Secured;
use crate::net::dial::{DialError, Failure, Place, Target};
use crate::net::keepalive::Keepalive;
use crate::net::tls::{ClientTls, Tls};
use crate::net::{sys, tcp_info, tuning};
use crate::proto::adaptive::Network;
use crate::proto::backoff::{Backoff, BackoffConfig, Why};
use crate::proto::cause::{Cause, Ending, GivenUp, SessionEnd};
use crate::proto::close::{Close, CloseCode};
use crate::proto::connection::{ResumeError, State};
use crate::proto::core::Core;
use crate::proto::moment::Moment;

/// The winner of a race of addresses is asked first for so long (RFC 8305, section 8).
const PREFERRED_FOR: Duration = Duration::from_secs(600);
/// What every path carries: the least IPv4 datagram that all hosts take, less its headers (RFC 9293, section 3.7.1).
const SMALL_SEGMENT: u16 = 536;
/// The system refused something here, at once.
const LOCAL: Why = Why::Local { took: Duration::ZERO };
/// A new connection that dies before the handshake is done has no heartbeats yet. So that it isn't waited for as long as a server
/// that lives and is busy, the kernel gives it up once nothing was answered for so long; at least 8 round trips.
const UNANSWERED: Duration = Duration::from_secs(3);

/// How a client comes back.
#[derive(Clone, Debug)]
pub struct Reconnect {
    pub target: Arc<Target>,
    pub backoff: BackoffConfig,
    /// The server's word where to come back is followed.
    pub follows: bool,
    /// The kernel's probes beside our beats.
    pub keepalive: Option<Keepalive>,
    pub tls: Option<ClientTls>,
}

/// Something has come for a link while others may have its lock.
pub(in crate::engine) enum Arrived {
    Dialled(Result<Connected, DialError>),
    /// It has said HELLO for the session of the link that this is for.
    Client(Arc<Link>),
    /// The listener has no room for a session that nobody comes back for.
    Eviction,
}

impl Arrived {
    /// Nobody is there to take it.
    pub(in crate::engine) fn return_to_sender(self) {
        if let Self::Client(newcomer) = self {
            newcomer.ask_again();
        }
    }
}

/// A client's means of coming back.
pub(super) struct Comeback {
    how: Reconnect,
    /// As the program said it.
    home: Arc<Target>,
    backoff: Backoff,
    next: Option<Moment>,
    dial: Option<Arc<Dial>>,
    /// Where it was connected to, and until when.
    preferred: (SocketAddr, Moment),
    /// What the kernel's probes are to be once the handshake is done.
    keepalive: Option<Keepalive>,
    /// The last link was ended for a program that doesn't go on: its beats, which prove all others, prove nothing of this one.
    was_hung: bool,
    /// Full segments may have been what didn't get through.
    max_segment: Option<u16>,
    /// What came of the last attempt since the link was lost.
    last_attempt: Option<String>,
}

/// A socket that a link can use.
pub(super) struct Equipped {
    pub(super) socket: OwnedFd,
    pub(super) ends: Ends,
    pub(super) acked_before: u32,
    pub(super) rto_max_ms: Option<u32>,
    pub(super) tls: Option<Box<Tls>>,
}

impl Equipped {
    /// What was acknowledged before is as of before the handshake.
    pub(super) fn secured_by(self, secured: Option<Secured>) -> Self {
        match secured {
            Some(Secured { tls, acked_before }) => Self { tls: Some(tls), acked_before, ..self },
            None => self,
        }
    }
}

/// Has the kernel treat it as a link's.
pub(super) fn equip(socket: OwnedFd, is_framed: bool) -> std::io::Result<Equipped> {
    let fd = socket.as_fd();
    let ends = Ends::of(fd)?;
    // Who waits for a message does so in recv(2); all other calls say MSG_DONTWAIT.
    sys::set_link_mode(fd)?;
    tuning::prepare(fd)?;
    // A plain peer's is for its guard to bound.
    let rto_max_ms = if is_framed { tuning::bound_retransmissions(fd, Duration::ZERO) } else { None };
    let acked_before =
        tcp_info::sample(fd.as_raw_fd()).map_or(0, |sample| u32::try_from(sample.bytes_acked).unwrap_or_default());
    Ok(Equipped { socket, ends, acked_before, rto_max_ms, tls: None })
}

// ---- the client -----------------------------------------------------------------------------------------------

impl Link {
    /// From here on the link comes back by itself when it is lost.
    pub fn set_reconnect(&self, how: Reconnect) -> Result<(), LinkError> {
        let preferred = (self.peer_address(), Moment::from(clock::now()) + PREFERRED_FOR);
        let backoff = Backoff::new(how.backoff);
        let home = how.target.clone();
        let comeback = Comeback {
            how,
            home,
            backoff,
            next: None,
            dial: None,
            preferred,
            keepalive: None,
            was_hung: false,
            max_segment: None,
            last_attempt: None,
        };
        let mut inner = self.enter()?;
        inner.extras().comeback = Some(Box::new(comeback));
        if inner.core.is_away() {
            // It was lost before it was told how to come back.
            let now = clock::now();
            if let Some(comeback) = inner.comeback() {
                comeback.next = Some(now.into());
            }
            self.set_alarm(&mut inner, now);
        }
        Ok(())
    }

    /// When the next attempt is due after the end of a link, or of an attempt.
    pub(super) fn plan_comeback(&self, inner: &mut Inner, now: Instant, ending: &Ending, was_open: bool) {
        let Some(comeback) = inner.comeback() else { return };
        let retry_after = ending.close.as_ref().map(|close| close.retry_after).filter(|after| !after.is_zero());
        let why = match (retry_after, ending.cause) {
            (Some(after), _) => Why::RetryAfter(after),
            (None, Cause::Ended | Cause::Reset | Cause::Closed) => Why::LostWithOthers,
            (None, _) if was_open => Why::Lost,
            (None, _) => Why::Refused,
        };
        if was_open {
            comeback.last_attempt = None;
            comeback.was_hung = ending.cause == Cause::Hung;
            if comeback.suspects_large_segments(ending) {
                comeback.max_segment = Some(SMALL_SEGMENT);
                log::warn!(
                    target: "longconn.link",
                    "{}: large packets may not get through; the next connection sends none over {SMALL_SEGMENT} bytes",
                    self.peer_address()
                );
            } else {
                comeback.max_segment = None;
            }
        } else {
            comeback.last_attempt = Some(ending.to_string());
        }
        if let Some(close) = &ending.close
            && comeback.how.follows
            && let Ok(place) = close.address.parse::<Place>()
        {
            // And where it was before, in case nobody is there.
            let others = comeback.home.places.iter().filter(|other| **other != place).cloned();
            let places = std::iter::once(place.clone()).chain(others).collect();
            comeback.how.target = Arc::new(Target { places });
            // Where it was connected to is where it is sent away from.
            comeback.preferred.1 = now.into();
        }
        comeback.plan(now, why);
    }

    /// Begins an attempt, if one is due.
    pub(super) fn come_back(&self, inner: &mut Inner, now: Instant) {
        let is_away = inner.core.is_away();
        let Some(comeback) = inner.comeback() else { return };
        if !is_away || comeback.next.is_none_or(|next| Moment::from(now) < next) {
            return;
        }
        comeback.next = None;
        let config = DialConfig {
            timeout: None,
            max_segment: comeback.max_segment,
            preferred: Some(comeback.preferred.0).filter(|_| Moment::from(now) < comeback.preferred.1),
            tls: comeback.how.tls.clone(),
        };
        let (engine, key, this) = (self.engine.clone(), self.key, self.this.clone());
        let done = Box::new(move |outcome| {
            if let Some(link) = this.upgrade() {
                engine.deliver(key, Arrived::Dialled(outcome));
                link.expect_delivery();
            }
        });
        match dial::dial(comeback.how.target.clone(), config, done) {
            Ok(dial) => comeback.dial = Some(dial),
            Err(error) => {
                comeback.last_attempt = Some(error.to_string());
                comeback.plan(now, LOCAL);
            }
        }
    }

    fn on_dialled(&self, inner: &mut Inner, now: Instant, outcome: Result<Connected, DialError>) {
        let is_away = inner.core.is_away();
        let Some(comeback) = inner.comeback() else { return };
        comeback.dial = None;
        if !is_away {
            return;
        }
        let why = match outcome {
            Ok(connected) => {
                comeback.preferred = (connected.peer, Moment::from(now) + PREFERRED_FOR);
                if let Some(keepalive) = &comeback.how.keepalive
                    && let Err(error) = keepalive.apply(connected.socket.as_fd())
                {
                    log::debug!(target: "longconn.link", "{}: keepalive was refused: {error}", connected.peer);
                }
                comeback.keepalive = expect_answers(connected.socket.as_fd());
                let equipped = equip(connected.socket, true).map(|equipped| equipped.secured_by(connected.secured));
                match equipped.and_then(|equipped| self.attach(inner, equipped)) {
                    Ok(()) => {
                        inner.core.relink(now, new_seed().unwrap_or_default());
                        inner.core.set_network(Network::of(self.local_address().ip()));
                        inner.hear_early(now);
                        return;
                    }
                    Err(error) => {
                        let Some(comeback) = inner.comeback() else { return };
                        comeback.last_attempt = Some(error.to_string());
                        LOCAL
                    }
                }
            }
            Err(error) => {
                log::debug!(target: "longconn.link", "{error}");
                comeback.last_attempt = Some(error.to_string());
                if error.kind == Failure::Tls {
                    // Nobody is helped by another attempt.
                    inner.core.distrust(now);
                    return;
                }
                error.why()
            }
        };
        let Some(comeback) = inner.comeback() else { return };
        comeback.plan(now, why);
    }

    /// Each message that the peer's program isn't known to have taken, in order; after the end.
    pub fn undelivered(&self) -> Result<Vec<Vec<u8>>, LinkError> {
        match &self.enter()?.core {
            Core::Framed(core) => Ok(core.undelivered()),
            Core::Plain(_) => Ok(Vec::new()),
        }
    }
}

impl Comeback {
    /// When the next attempt begins, after what came of the last one.
    fn plan(&mut self, now: Instant, why: Why) {
        let delay = self.backoff.next(why, new_seed().unwrap_or_default());
        self.next = Some(Moment::from(now) + delay);
    }

    /// The handshake is small, and what comes behind it isn't: it may be that only large packets are lost, either way.
    fn suspects_large_segments(&self, ending: &Ending) -> bool {
        let is_lost_to_silence =
            matches!(ending.cause, Cause::Unreachable | Cause::Frozen | Cause::Silent | Cause::Deaf)
                || ending.given_up == Some(GivenUp::Unheard);
        if !self.backoff.is_proven() {
            // All of the link's life was silence. If small segments didn't help, it was something else.
            return is_lost_to_silence && self.max_segment.is_none();
        }
        // Small frames came and went until then.
        let is_one_way = is_lost_to_silence && !matches!(ending.cause, Cause::Unreachable | Cause::Silent);
        is_one_way && ending.untaken_bytes > u64::from(SMALL_SEGMENT)
    }
}

/// By the kernel, as [`UNANSWERED`] says; what it did before, if it does so.
fn expect_answers(fd: BorrowedFd<'_>) -> Option<Keepalive> {
    let before = Keepalive::of(fd).ok()?;
    let round_trip = sys::round_trip(fd.as_raw_fd()).ok()?;
    let second = Some(Duration::from_secs(1));
    let expectant = Keepalive {
        enabled: Some(true),
        idle: second,
        interval: second,
        count: Some(3),
        user_timeout: Some(UNANSWERED.max(8 * round_trip)),
    };
    expectant.apply(fd).ok().map(|()| before)
}

impl Inner {
    pub(super) fn comeback(&mut self) -> Option<&mut Comeback> {
        self.extras.as_mut()?.comeback.as_deref_mut()
    }

    pub(super) fn next_attempt(&self) -> Option<Moment> {
        self.extras.as_ref()?.comeback.as_ref()?.next
    }

    /// The handshake is done, and from here on it is for heartbeats to notice that the link is dead.
    pub(super) fn stop_expecting_answers(&mut self) {
        let keepalive = self.comeback().and_then(|comeback| comeback.keepalive.take());
        if let (Some(keepalive), Some(socket)) = (keepalive, &self.socket)
            && let Err(error) = keepalive.apply(socket.as_fd())
        {
            log::debug!(target: "longconn.link", "keepalive could not be put back: {error}");
        }
    }

    pub(super) fn on_proven(&mut self) {
        if let Some(comeback) = self.comeback()
            && !comeback.was_hung
        {
            comeback.backoff.on_proven();
        }
    }

    /// It is over: nobody comes back. What came of the last attempt.
    pub(super) fn stay_away(&mut self) -> Option<String> {
        let comeback = self.extras.as_mut()?.comeback.take()?;
        if let Some(dial) = comeback.dial {
            dial.cancel();
        }
        comeback.last_attempt
    }
}

// ---- both -----------------------------------------------------------------------------------------------------

impl Link {
    /// Something was left for it at the engine's.
    pub(in crate::engine) fn expect_delivery(&self) {
        self.errands.leave(Errand::DELIVERY.0);
        self.engine.attend(self.key);
    }

    pub(super) fn take_deliveries(&self, inner: &mut Inner, now: Instant) {
        for arrived in self.engine.take_deliveries(self.key) {
            match arrived {
                Arrived::Dialled(outcome) => self.on_dialled(inner, now, outcome),
                Arrived::Client(newcomer) => self.receive_client(inner, now, &newcomer),
                Arrived::Eviction => {
                    if inner.core.state() == State::Reconnecting {
                        inner.core.lose(now, SessionEnd::GivenUp);
                    }
                }
            }
        }
    }

    /// Another socket takes the place of the one before, if there is one still. Who waits on that one is woken by its end.
    pub(super) fn attach(&self, inner: &mut Inner, equipped: Equipped) -> std::io::Result<()> {
        let Equipped { socket, ends, acked_before, rto_max_ms, tls } = equipped;
        self.detach(inner, true);
        self.engine.watch(socket.as_fd(), self.key, BOTH)?;
        self.set_ends(ends);
        self.number.store(socket.as_raw_fd(), Ordering::Relaxed);
        inner.is_watched = true;
        inner.reader = Reader::Engine;
        inner.is_polled = inner.is_receiving;
        inner.is_unread = false;
        inner.is_held_back = false;
        inner.is_flowing = false;
        inner.is_write_blocked = false;
        inner.is_judgement_put_off = false;
        inner.receive_timeout = None;
        inner.acked_before = acked_before;
        inner.rto_max_ms = rto_max_ms.and_then(std::num::NonZeroU32::new);
        if tls.is_some() || inner.extras.is_some() {
            inner.extras().tls = tls;
        }
        inner.socket = Some(Arc::new(socket));
        Ok(())
    }

    /// The link lets go of its socket: for the kernel with RST, or in order.
    pub(super) fn detach(&self, inner: &mut Inner, aborts: bool) {
        let Some(socket) = inner.socket.take() else { return };
        // Its keys go with it.
        if let Some(extras) = &mut inner.extras {
            extras.tls = None;
        }
        if inner.is_watched {
            self.engine.unwatch(socket.as_fd());
            inner.is_watched = false;
        }
        self.leave_hub(inner, &socket);
        if aborts && let Err(error) = sys::abort(socket.as_fd()) {
            log::debug!(
                target: "longconn.engine",
                "{}: the connection could not be reset: {error}", self.peer_address()
            );
        }
        if inner.is_receiving {
            // Who waits in recv(2) is to wake; it fails where that has woken already.
            let _ = SockRef::from(&socket).shutdown(Shutdown::Both);
        }
        // Nobody reads, so nobody has a role to give back.
        inner.reader = Reader::Engine;
        self.number.store(-1, Ordering::Relaxed);
        inner.waiters.wake_everyone();
    }
}

// ---- the server -----------------------------------------------------------------------------------------------

impl Link {
    /// The session that `newcomer` has said HELLO for is this one's. Its lock is taken while ours is held; nobody does the
    /// reverse.
    fn receive_client(&self, inner: &mut Inner, now: Instant, newcomer: &Arc<Link>) {
        let (Some(listener), Some(this)) = (self.listener.as_ref().and_then(Weak::upgrade), self.this.upgrade()) else {
            return;
        };
        let mut coming = newcomer.lock();
        let (Core::Framed(ours), Core::Framed(theirs)) = (&mut inner.core, &mut coming.core) else { return };
        let Some(resumption) = theirs.claim().map(|claim| claim.resumption) else { return };
        if let Err(close) = listener.fence(&this, newcomer, &resumption) {
            theirs.refuse(now, close);
        } else {
            match ours.resume(now, theirs) {
                Ok(()) => {
                    listener.on_moved(&this, newcomer, &resumption);
                    self.move_in(inner, &mut coming, newcomer);
                    return;
                }
                Err(ResumeError::Forgotten) => {
                    ours.lose(now, SessionEnd::Forgotten);
                    listener.admit_new(newcomer, theirs);
                }
                Err(ResumeError::Over) => listener.admit_new(newcomer, theirs),
                Err(ResumeError::Session(error)) => {
                    theirs.refuse(now, Close::new(CloseCode::PROTOCOL, &error.to_string()));
                }
            }
        }
        newcomer.turn(&mut coming, now);
    }

    /// The session that it said HELLO for is over by now.
    pub(in crate::engine) fn ask_again(self: &Arc<Self>) {
        if let Some(listener) = self.listener.as_ref().and_then(Weak::upgrade) {
            // It may have gone meanwhile.
            let _ = self.decide(|core| listener.admit(self, core));
        }
    }

    /// Its socket is ours from here on, and it is nothing any more.
    fn move_in(&self, inner: &mut Inner, coming: &mut Inner, newcomer: &Link) {
        let Some(socket) = coming.socket.take() else { return };
        if mem::take(&mut coming.is_watched) {
            self.engine.unwatch(socket.as_fd());
        }
        newcomer.number.store(-1, Ordering::Relaxed);
        self.engine.release(newcomer.key);
        let tls = coming.extras.as_mut().and_then(|extras| extras.tls.take());
        // Nobody but the engine polls who hasn't been admitted.
        let Some(socket) = Arc::into_inner(socket) else { return };
        let equipped = Equipped {
            socket,
            ends: newcomer.copy_of_ends(),
            acked_before: coming.acked_before,
            rto_max_ms: coming.rto_max_ms.map(std::num::NonZeroU32::get),
            tls,
        };
        if let Err(error) = self.attach(inner, equipped) {
            inner.core.handle_failure(clock::now(), Cause::Reset, error.to_string());
        }
    }
}
