//! An event loop's share in the engine's work. The loop polls one descriptor, the hub's; behind it are the sockets that the
//! loop's own thread reads at the moment, and word from others that somebody has what he waits for.
//!
//! A link's socket is here while the callers of that loop have the reader's role (`link/mod.rs`): as if the loop were a
//! caller that never sleeps on it. Nothing else is ever registered with the loop, so a connection that changes its socket
//! leaves nothing stale behind, and any loop will do that can watch a descriptor.
//!
//! Locks: a link's or a listener's may be held where one of these is taken, never the other way round.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

use crate::engine::fork;
use crate::engine::link::Link;
use crate::engine::sync::{Mutex, lock};
use crate::net::sys::{self, Wakeup};

/// Links that are read in one go; the rest have their turn when the loop comes again, at once.
const EVENTS: usize = 256;
/// No link has so small a key.
const WAKEUP: usize = 0;

pub struct Hub {
    generation: u32,
    /// None once a forked child has closed its copies.
    means: Option<Means>,
    is_abandoned: AtomicBool,
    links: Mutex<BTreeMap<usize, Arc<Link>>>,
    ready: Mutex<Ready>,
}

struct Means {
    registry: Registry,
    wakeup: Wakeup,
    polling: Mutex<(Poll, Events)>,
}

#[derive(Default)]
struct Ready {
    tokens: Vec<usize>,
    /// The loop was woken, or is here, and hasn't taken the tokens yet.
    is_woken: bool,
}

fn alone(links: &BTreeMap<usize, Arc<Link>>) -> Option<Arc<Link>> {
    if links.len() == 1 { links.first_key_value().map(|(_, link)| link.clone()) } else { None }
}

impl Hub {
    pub fn new() -> io::Result<Arc<Self>> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let wakeup = Wakeup::new()?;
        registry.register(&mut SourceFd(&wakeup.as_fd().as_raw_fd()), Token(WAKEUP), Interest::READABLE)?;
        Ok(Arc::new(Self {
            generation: fork::generation(),
            means: Some(Means { registry, wakeup, polling: Mutex::new((poll, Events::with_capacity(EVENTS))) }),
            is_abandoned: AtomicBool::new(false),
            links: Mutex::default(),
            ready: Mutex::default(),
        }))
    }

    /// `None` in a forked child: what is polled is shared with the parent, which a change here would reach.
    fn means(&self) -> Option<&Means> {
        self.means.as_ref().filter(|_| self.generation == fork::generation())
    }

    /// What the loop is to watch: it is readable when [`Hub::run`] has something to do.
    #[must_use]
    pub fn descriptor(&self) -> Option<RawFd> {
        self.means().map(|means| means.registry.as_raw_fd())
    }

    /// The loop's thread reads what is there, and takes the tokens of those who have what they wait for, or may have: spurious
    /// ones happen. Waits for nothing.
    pub fn run(&self, tokens: &mut Vec<usize>) -> io::Result<()> {
        let Some(means) = self.means() else { return Ok(()) };
        // What comes from here on is taken below; nobody need wake the loop for it.
        lock(&self.ready).is_woken = true;
        let polled = self.read(means);
        let mut ready = lock(&self.ready);
        ready.is_woken = false;
        tokens.append(&mut ready.tokens);
        polled
    }

    fn read(&self, means: &Means) -> io::Result<()> {
        // Where one link alone is here, it is most likely it that has something, and asking costs a system call. What else has
        // come keeps the descriptor readable.
        let alone = alone(&lock(&self.links));
        if alone.is_some_and(|link| link.read_unasked()) {
            return Ok(());
        }
        let mut polling = lock(&means.polling);
        let (poll, events) = &mut *polling;
        match poll.poll(events, Some(Duration::ZERO)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &*events {
            match event.token().0 {
                WAKEUP => means.wakeup.clear(),
                key => {
                    let link = lock(&self.links).get(&key).cloned();
                    if let Some(link) = link {
                        link.on_ready(event);
                    }
                }
            }
        }
        Ok(())
    }

    /// From here on the loop's thread reads it; what is there already is reported, too.
    pub(super) fn watch(&self, fd: BorrowedFd<'_>, key: usize, link: Arc<Link>) -> io::Result<()> {
        let Some(means) = self.means() else { return Err(io::ErrorKind::NotConnected.into()) };
        lock(&self.links).insert(key, link);
        means.registry.register(&mut SourceFd(&fd.as_raw_fd()), Token(key), Interest::READABLE).inspect_err(|_| {
            lock(&self.links).remove(&key);
        })
    }

    pub(super) fn unwatch(&self, fd: BorrowedFd<'_>, key: usize) {
        let Some(means) = self.means() else { return };
        // It fails only for a descriptor that wasn't watched.
        let _ = means.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        lock(&self.links).remove(&key);
    }

    pub(super) fn signal(&self, token: usize) {
        let Some(means) = self.means() else { return };
        let mut ready = lock(&self.ready);
        ready.tokens.push(token);
        let wakes = !mem::replace(&mut ready.is_woken, true);
        drop(ready);
        if wakes {
            means.wakeup.set();
        }
    }

    /// In a forked child: our copies of the descriptors are closed, and nothing else is touched.
    pub fn close_in_child(&self) {
        if let Some(means) = &self.means
            && self.generation != fork::generation()
            && !self.is_abandoned.swap(true, Ordering::Relaxed)
        {
            let Means { registry, wakeup, polling } = means;
            let mut numbers = vec![registry.as_raw_fd(), wakeup.as_fd().as_raw_fd()];
            // Some thread of the parent may have been polling.
            numbers.extend(polling.try_lock().ok().map(|polling| polling.0.as_raw_fd()));
            numbers.into_iter().for_each(sys::close_inherited);
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            self.close_in_child();
            mem::forget(self.means.take());
        }
    }
}

/// A place at a hub: where to send word to somebody who doesn't sleep meanwhile.
pub struct Seat {
    pub(super) hub: Arc<Hub>,
    pub(super) token: usize,
    /// When its time is up, by the engine's clock; the loop has a timer by its own.
    pub deadline: Option<Instant>,
    /// It stands in a list of those who wait.
    pub(super) is_taken: bool,
}

impl Seat {
    #[must_use]
    pub fn new(hub: Arc<Hub>, token: usize) -> Self {
        Self { hub, token, deadline: None, is_taken: false }
    }

    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.is_taken
    }

    #[must_use]
    pub fn token(&self) -> usize {
        self.token
    }

    pub(super) fn is_at(&self, hub: &Arc<Hub>, token: usize) -> bool {
        self.token == token && Arc::ptr_eq(&self.hub, hub)
    }
}
