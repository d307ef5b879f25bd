//! TLS handshakes, before there is a link: a dial's, and those of who comes to a listener. On the engine's thread, so that who stops
//! in the middle of one costs a descriptor and no thread.
//!
//! A signature takes up to a millisecond, and a thousand clients may come at once: so between two looks at the alarms handshakes have
//! a few milliseconds together, and who finds these spent has its turn again after the others.

use std::cell::Cell;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mio::Interest;

use crate::engine::clock;
use crate::engine::listener::Listener;
use crate::engine::reactor::Engine;
use crate::engine::sync::{self, Mutex};
use crate::net::dial::CutInHandshake;
use crate::net::tls::{ServerTls, Tls, TlsError};
use crate::net::{sys, tcp_info};

/// What beats may be late for handshakes, but for the last step, which is a millisecond at most with keys that are in use.
const SHARE: Duration = Duration::from_millis(2);
/// Read in one go: more than a handshake's flight.
const FLIGHT_BYTES: usize = 32 * 1024;

thread_local! {
    /// By handshakes, since the thread looked at its alarms.
    static SPENT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The thread is about to look at its alarms.
pub(super) fn allow_more() {
    SPENT.set(Duration::ZERO);
}

/// Others are to have their turn first.
fn is_spent() -> bool {
    SPENT.get() >= SHARE
}

/// Has `work` count as a handshake's.
fn spend<T>(work: impl FnOnce() -> T) -> T {
    let began = clock::real();
    let result = work();
    SPENT.set(SPENT.get() + clock::real().saturating_duration_since(began));
    result
}

/// A connection with TLS, or what is to become one.
#[derive(Debug)]
pub struct Secured {
    pub tls: Box<Tls>,
    /// What the kernel called acknowledged when nothing had been sent.
    pub acked_before: u32,
}

pub(super) enum Progress {
    Waits,
    /// It is to be asked again, after others.
    Later,
    Done,
}

impl Secured {
    pub(super) fn begin(socket: &OwnedFd, make: impl FnOnce() -> Result<Tls, TlsError>) -> io::Result<Self> {
        let tls = Box::new(spend(make).map_err(TlsError::into_io)?);
        let acked_before = tcp_info::sample(socket.as_raw_fd())
            .map_or(0, |sample| u32::try_from(sample.bytes_acked).unwrap_or_default());
        Ok(Self { tls, acked_before })
    }

    /// Goes on as far as it can without waiting. What is left to be sent when it is done is the link's to send.
    pub(super) fn advance(&mut self, socket: &OwnedFd) -> io::Result<Progress> {
        let mut room = [MaybeUninit::uninit(); FLIGHT_BYTES];
        loop {
            self.flush(socket)?;
            if self.tls.is_established() {
                return Ok(Progress::Done);
            }
            if is_spent() {
                return Ok(Progress::Later);
            }
            match sys::receive_now(socket.as_fd(), &mut room) {
                Ok([]) => return Err(io::Error::new(io::ErrorKind::ConnectionReset, CutInHandshake)),
                Ok(bytes) => {
                    let handled = spend(|| self.tls.handle_input_early(bytes));
                    // With the alert that says why.
                    let flushed = self.flush(socket);
                    handled.map_err(TlsError::into_io)?;
                    flushed?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Waits),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionReset, CutInHandshake));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn flush(&mut self, socket: &OwnedFd) -> io::Result<()> {
        while !self.tls.outgoing().is_empty() {
            match sys::transmit(socket.as_raw_fd(), self.tls.outgoing(), sys::SEND_FLAGS) {
                Ok(length) => self.tls.on_sent(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Reading tells more.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Who has come to a listener, and hasn't finished its TLS handshake.
pub(super) struct Newcomer {
    engine: Arc<Engine>,
    key: usize,
    listener: Weak<Listener>,
    peer: SocketAddr,
    began: Instant,
    deadline: Instant,
    /// What a forked child closes.
    number: AtomicI32,
    /// The engine's alone; none once it is over.
    state: Mutex<Option<(OwnedFd, Secured)>>,
}

impl Newcomer {
    /// Begins; the listener is told once what came of it.
    pub(super) fn receive(
        engine: &Arc<Engine>,
        listener: Weak<Listener>,
        socket: OwnedFd,
        peer: SocketAddr,
        settings: &ServerTls,
        now: Instant,
        timeout: Duration,
    ) -> io::Result<usize> {
        let secured = Secured::begin(&socket, || Tls::server(settings))?;
        let key = engine.new_key();
        let newcomer = Arc::new(Self {
            engine: engine.clone(),
            key,
            listener,
            peer,
            began: now,
            deadline: now + timeout,
            number: AtomicI32::new(socket.as_raw_fd()),
            state: Mutex::new(None),
        });
        engine.adopt_newcomer(key, newcomer.clone())?;
        if let Err(error) = engine.watch(socket.as_fd(), key, Interest::READABLE | Interest::WRITABLE) {
            engine.release(key);
            return Err(error);
        }
        *sync::lock(&newcomer.state) = Some((socket, secured));
        engine.set_alarm(key, newcomer.deadline.into());
        Ok(key)
    }

    /// Its socket has news, its alarm rings, or it is its turn again.
    pub(super) fn on_ready(&self, now: Instant) {
        let mut state = sync::lock(&self.state);
        let Some((socket, secured)) = &mut *state else { return };
        let listener = self.listener.upgrade().filter(|listener| !listener.is_closed());
        let outcome = match &listener {
            None => Err(None),
            Some(_) if now >= self.deadline => Err(Some(io::Error::from(io::ErrorKind::TimedOut))),
            Some(_) => match secured.advance(socket) {
                Ok(Progress::Waits) => return,
                Ok(Progress::Later) => return self.engine.attend(self.key),
                Ok(Progress::Done) => Ok(()),
                Err(error) => Err(Some(error)),
            },
        };
        let Some((socket, secured)) = mem::take(&mut *state) else { return };
        drop(state);
        self.engine.unwatch(socket.as_fd());
        self.engine.release(self.key);
        self.number.store(-1, Ordering::Relaxed);
        let Some(listener) = self.listener.upgrade() else { return };
        match outcome {
            Ok(()) => listener.on_secured(self.key, socket, secured, self.began),
            Err(error) => {
                drop((socket, secured));
                listener.on_unsecured(self.key, self.peer, error.as_ref());
            }
        }
    }

    pub(super) fn close_in_child(&self) {
        let number = self.number.swap(-1, Ordering::Relaxed);
        if number >= 0 {
            sys::close_inherited(number);
        }
    }
}
