//! Connecting to a peer: looks its names up, has the race of its addresses run, and hands over the connection that wins.
//!
//! All of it happens on the engine's thread but the look-ups. Whoever begins or cancels only leaves word, so the sockets are always
//! that thread's; a thousand dials cost it a thousand descriptors and no thread.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use crate::engine::handshake::{Progress, Secured};
use crate::engine::hub::Seat;
use crate::engine::link::LinkError;
use crate::engine::reactor::{self, Engine, PANICKED};
use crate::engine::sync::{self, Mutex, MutexGuard};
use crate::engine::waiting::{Interest, Patience, Waiters};
use crate::engine::{clock, fork, resolver};
use crate::net::dial::{self, DialError, FailedAttempt, Place, Target};
use crate::net::resolve::{self, Addresses, LookUpError};
use crate::net::tls::{ClientTls, Tls};
use crate::proto::race::{ATTEMPT_TIMEOUT, Race};

#[derive(Clone, Debug, Default)]
pub struct DialConfig {
    /// For look-ups and attempts together; none: [`ATTEMPT_TIMEOUT`]. More than a day is a day.
    pub timeout: Option<Duration>,
    /// No larger segments, for a path that swallows them (`TCP_MAXSEG`).
    pub max_segment: Option<u16>,
    /// Who won last, not more than ten minutes ago (RFC 8305, section 8): goes first if it is still an address of the target, and
    /// stands in for a name that can't be looked up now.
    pub preferred: Option<SocketAddr>,
    /// Who is first to finish TCP and TLS wins.
    pub tls: Option<ClientTls>,
}

#[derive(Debug)]
pub struct Connected {
    /// Close-on-exec, and doesn't block; nothing was sent but a TLS handshake.
    pub socket: OwnedFd,
    pub peer: SocketAddr,
    pub secured: Option<Secured>,
}

pub type Outcome = Result<Connected, DialError>;
type Done = Box<dyn FnOnce(Outcome) + Send>;

pub struct Dial {
    engine: Arc<Engine>,
    /// For its alarm and for word that is left; each socket has another.
    key: usize,
    generation: u32,
    target: Arc<Target>,
    config: DialConfig,
    began: Instant,
    course: Mutex<Course>,
}

/// Where it has got to.
struct Course {
    /// None once it was called or cancelled, which ends everything.
    done: Option<Done>,
    race: Race,
    /// Found, and not handed on to the race yet.
    names: Vec<(usize, Result<Addresses, LookUpError>)>,
    /// Of each attempt of the race, while it is under way.
    sockets: Vec<Option<Connecting>>,
    failed: Vec<FailedAttempt>,
}

struct Connecting {
    key: usize,
    /// What a forked child closes.
    number: Arc<AtomicI32>,
    socket: OwnedFd,
    /// Once TCP stands, if there is to be TLS.
    secured: Option<Secured>,
}

/// Begins, and calls `done` once, on the engine's thread and without a lock, unless it is cancelled.
pub fn dial(target: Arc<Target>, config: DialConfig, done: Done) -> io::Result<Arc<Dial>> {
    let engine = reactor::engine()?;
    let now = clock::now();
    let timeout = config.timeout.unwrap_or(ATTEMPT_TIMEOUT);
    let dial = Arc::new(Dial {
        key: engine.new_key(),
        engine,
        generation: fork::generation(),
        course: Mutex::new(Course {
            done: Some(done),
            race: Race::new(target.places.len(), config.preferred, now, timeout),
            names: Vec::new(),
            sockets: Vec::new(),
            failed: Vec::new(),
        }),
        target,
        config,
        began: now,
    });
    dial.engine.adopt_dial(dial.key, dial.clone(), None)?;
    for (number, Place { host, .. }) in dial.target.places.iter().enumerate() {
        if let Some(address) = resolve::numeric(host) {
            dial.lock().names.push((number, Ok(vec![address])));
        } else if let Err(error) = resolver::look_up(host, Arc::downgrade(&dial), number) {
            dial.lock().names.push((number, Err(LookUpError { code: libc::EAI_SYSTEM, errno: error.raw_os_error() })));
        }
    }
    dial.engine.attend(dial.key);
    Ok(dial)
}

impl Dial {
    fn lock(&self) -> MutexGuard<'_, Course> {
        sync::lock(&self.course)
    }

    /// Its sockets are closed soon. False if `done` was called already, or is being called now; else it never is. It may be
    /// called with any lock held that what `done` holds on to doesn't take when it is dropped.
    pub fn cancel(&self) -> bool {
        if self.generation != fork::generation() {
            // The lock, and what it guards, are as some thread of the parent had them; `done` is the parent's to call.
            return true;
        }
        let done = self.lock().done.take();
        self.engine.attend(self.key);
        done.is_some()
    }

    /// Stays the same for as long as somebody wants to be connected there.
    pub(super) fn target_number(&self) -> usize {
        Arc::as_ptr(&self.target).addr()
    }

    /// Somebody waits for what was to be looked up.
    pub(super) fn wants_names(&self) -> bool {
        self.lock().done.is_some()
    }

    pub(super) fn on_names(&self, place: usize, found: Result<Addresses, LookUpError>) {
        self.lock().names.push((place, found));
        self.engine.attend(self.key);
    }

    /// Word was left, its alarm rings, or one of its sockets has news. On the engine's thread.
    pub(super) fn on_ready(self: &Arc<Self>, key: usize, now: Instant) {
        let mut course = self.lock();
        if course.done.is_some() {
            self.take_names(&mut course);
            if let Some(id) = course.sockets.iter().position(|socket| socket.as_ref().is_some_and(|it| it.key == key)) {
                self.look_at(&mut course, id, now);
            }
            self.start_attempts(&mut course, now);
            if !course.race.is_over(now) {
                if let Some(at) = course.race.poll_timeout() {
                    self.engine.set_alarm(self.key, at.into());
                }
                return;
            }
        }
        let outcome = self.finish(&mut course, now);
        let done = course.done.take();
        drop(course);
        if let Some(done) = done {
            done(outcome);
        }
    }

    /// Nobody looks after it any more.
    pub(super) fn on_engine_lost(&self, now: Instant) {
        let mut course = self.lock();
        self.note_failure(&mut course, 0, None, io::Error::other(PANICKED));
        let outcome = self.finish(&mut course, now);
        let done = course.done.take();
        drop(course);
        if let Some(done) = done {
            done(outcome);
        }
    }

    fn take_names(&self, course: &mut Course) {
        for (number, found) in mem::take(&mut course.names) {
            let port = self.target.places[number].port;
            match found {
                Ok(mut addresses) => {
                    addresses.iter_mut().for_each(|address| address.set_port(port));
                    course.race.handle_addresses(number, addresses);
                }
                Err(error) => {
                    let stands_in = self.config.preferred.filter(|it| error.is_temporary() && it.port() == port);
                    course.race.handle_addresses(number, stands_in);
                    self.note_failure(course, number, None, error.into());
                }
            }
        }
    }

    fn start_attempts(self: &Arc<Self>, course: &mut Course, now: Instant) {
        while let Some(attempt) = course.race.poll_start(now) {
            let begun = self.begin_attempt(attempt.address);
            // As many as there were attempts: the race counts them alike.
            course.sockets.push(None);
            match begun {
                Ok(socket) => course.sockets[attempt.id] = Some(socket),
                Err(error) => {
                    course.race.handle_failure(now, attempt.id);
                    self.note_failure(course, attempt.place, Some(attempt.address), error);
                }
            }
        }
    }

    fn begin_attempt(self: &Arc<Self>, address: SocketAddr) -> io::Result<Connecting> {
        let socket = dial::begin(address, self.config.max_segment)?;
        let key = self.engine.new_key();
        let number = Arc::new(AtomicI32::new(socket.as_raw_fd()));
        // First, so that whose socket is reported is known.
        self.engine.adopt_dial(key, self.clone(), Some(number.clone()))?;
        let connecting = Connecting { key, number, socket, secured: None };
        let interest = if self.config.tls.is_some() {
            mio::Interest::READABLE | mio::Interest::WRITABLE
        } else {
            mio::Interest::WRITABLE
        };
        match self.engine.watch(connecting.socket.as_fd(), key, interest) {
            Ok(()) => Ok(connecting),
            Err(error) => {
                self.let_go(connecting);
                Err(error)
            }
        }
    }

    /// An attempt may have come to something.
    fn look_at(&self, course: &mut Course, id: usize, now: Instant) {
        let Some(connecting) = &mut course.sockets[id] else { return };
        match self.advance(connecting, || course.race.handle_answered(id)) {
            Ok(Progress::Done) => course.race.handle_connected(id),
            Ok(Progress::Later) => self.engine.attend(connecting.key),
            Ok(Progress::Waits) => {}
            Err(error) => {
                course.sockets[id].take().map(|connecting| self.let_go(connecting));
                if let Some(attempt) = course.race.handle_failure(now, id) {
                    self.note_failure(course, attempt.place, Some(attempt.address), error);
                }
            }
        }
    }

    /// TCP, and then TLS.
    fn advance(&self, connecting: &mut Connecting, answered: impl FnOnce() -> Option<usize>) -> io::Result<Progress> {
        let Connecting { socket, secured, .. } = connecting;
        if secured.is_none() && !dial::is_connected(socket.as_fd())? {
            return Ok(Progress::Waits);
        }
        let Some(settings) = &self.config.tls else { return Ok(Progress::Done) };
        if secured.is_none() {
            let host = answered().map_or("", |place| self.target.places[place].host.as_str());
            *secured = Some(Secured::begin(socket, || Tls::client(settings, host))?);
        }
        secured.as_mut().map_or(Ok(Progress::Done), |secured| secured.advance(socket))
    }

    /// An address that was tried twice is named once.
    fn note_failure(&self, course: &mut Course, place: usize, address: Option<SocketAddr>, error: io::Error) {
        if address.is_none() || course.failed.iter().all(|failed| failed.address != address) {
            let place = self.target.places[place].to_string();
            course.failed.push(FailedAttempt { place, address, error });
        }
    }

    /// Nobody watches it any more, nor closes it in a forked child.
    fn let_go(&self, connecting: Connecting) -> (OwnedFd, Option<Secured>) {
        self.engine.unwatch(connecting.socket.as_fd());
        self.engine.release(connecting.key);
        connecting.number.store(-1, Ordering::Relaxed);
        (connecting.socket, connecting.secured)
    }

    /// What came of it; all that didn't win is closed.
    fn finish(&self, course: &mut Course, now: Instant) -> Outcome {
        self.engine.release(self.key);
        // The time may be up because this thread was late: who has connected meanwhile has won all the same.
        for id in 0..course.sockets.len() {
            if course.race.winner().is_none() && course.done.is_some() {
                self.look_at(course, id, now);
            }
        }
        let winner = course.race.winner();
        let mut won = None;
        for (id, connecting) in mem::take(&mut course.sockets).into_iter().enumerate() {
            let let_go = connecting.map(|connecting| self.let_go(connecting));
            if let Some(attempt) = winner.filter(|winner| winner.id == id) {
                won = let_go.map(|(socket, secured)| Connected { socket, peer: attempt.address, secured });
            }
        }
        won.ok_or_else(|| {
            let timed_out = |what| io::Error::new(io::ErrorKind::TimedOut, what);
            for place in course.race.places_unknown().collect::<Vec<_>>() {
                self.note_failure(course, place, None, timed_out("its name wasn't found in time"));
            }
            for (place, address, was_asked) in course.race.unanswered().collect::<Vec<_>>() {
                let what = if was_asked { "no answer in time" } else { "the time was up before its turn" };
                self.note_failure(course, place, Some(address), timed_out(what));
            }
            let took = now.saturating_duration_since(self.began);
            DialError::new(self.target.to_string(), mem::take(&mut course.failed), took)
        })
    }
}

/// A dial that somebody waits for.
pub struct Dialling {
    dial: Arc<Dial>,
    answer: Arc<Mutex<Answer>>,
}

#[derive(Default)]
struct Answer {
    outcome: Option<Outcome>,
    waiters: Waiters,
}

impl Dialling {
    pub fn begin(target: Arc<Target>, config: DialConfig) -> io::Result<Self> {
        let answer = Arc::<Mutex<Answer>>::default();
        let posted = answer.clone();
        let done = Box::new(move |outcome| {
            let mut answer = sync::lock(&posted);
            answer.outcome = Some(outcome);
            answer.waiters.wake_everyone();
        });
        Ok(Self { dial: dial(target, config, done)?, answer })
    }

    /// It is over at the latest when its own time is.
    pub fn wait<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<Outcome, LinkError> {
        let mut patience = patience.into();
        let mut answer = sync::lock(&self.answer);
        loop {
            if let Some(outcome) = answer.outcome.take() {
                return Ok(outcome);
            }
            match &mut patience {
                Patience::Until(deadline) => {
                    let place = answer.waiters.enter(Interest::STATE, *deadline)?;
                    drop(answer);
                    let slept = place.sleep(None, 0, clock::now());
                    answer = sync::lock(&self.answer);
                    answer.waiters.leave(place);
                    slept?;
                }
                Patience::Told(seat) => {
                    answer.waiters.leave_seat(seat);
                    answer.waiters.enter_seat(Interest::STATE, seat);
                    return Err(LinkError::Pending);
                }
            }
        }
    }
}

impl Dialling {
    /// Who is seated waits no longer.
    pub fn leave_seat(&self, seat: &mut Seat) {
        sync::lock(&self.answer).waiters.leave_seat(seat);
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.dial.cancel();
    }
}
