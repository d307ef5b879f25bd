//! The fault proxy: listens, connects each client to the server behind it, and carries bytes between them over paths that are
//! as bad as is wished ([`crate::fault`]). Here are its life and the program's questions; what the program orders is in `orders.rs`, who
//! comes in `arrival.rs`, what goes to and fro in `traffic.rs`, and each side's socket in `end.rs`.
//!
//! A cut is one for the kernels too: our socket on the sender's side is made deaf and the one on the receiver's side mute, so nothing
//! is acknowledged, no probe is answered, a RST is lost and a FIN is repeated, and what was sent meanwhile comes when the sender's
//! kernel sends it again.
//!
//! Whoever gives an order carries it out: when the call returns, the cable is out. The lock is never kept while anything waits.

mod arrival;
mod end;
mod orders;
mod traffic;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use mio::Interest;
use socket2::{Domain, Protocol, Socket, Type};

use crate::engine::link::LinkError;
use crate::engine::reactor::{self, Engine};
use crate::engine::sync::{self, Mutex, MutexGuard};
use crate::engine::{clock, fork};
use crate::fault::flow::{Counts, Flow, Way};
use crate::fault::record::Record;
use crate::net::dial::Target;
use crate::net::sys;
use crate::proto::random::SplitMix;

use orders::{Planned, Shared};
use traffic::Connection;

pub use orders::{Order, Whom};

const BACKLOG: i32 = 1024;

#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// What each direction of a connection holds at most.
    pub room_bytes: usize,
    /// For everything that chance decides.
    pub seed: u64,
    /// What is kept of what each side says, from the beginning of a connection on.
    pub captured_bytes: usize,
}

/// One connection, as it is now.
#[derive(Clone, Debug)]
pub struct Glimpse {
    pub number: u64,
    pub client: SocketAddr,
    /// The server is connected to.
    pub is_connected: bool,
    pub is_forgotten: bool,
    /// To the server, to the client: what was counted, and how many bytes are on the way.
    pub flows: [(Counts, usize); 2],
}

pub struct Proxy {
    engine: Arc<Engine>,
    key: usize,
    generation: u32,
    address: SocketAddr,
    began: Instant,
    number: AtomicI32,
    course: Arc<Mutex<Course>>,
}

struct Course {
    listener: Option<Socket>,
    /// No segment reaches the listener.
    is_deaf: bool,
    is_refusing: bool,
    /// There were no descriptors.
    accept_again: Option<Instant>,
    most_connections: usize,
    upstream: Arc<Target>,
    seed: u64,
    captured_bytes: usize,
    captured: HashMap<u64, [Vec<u8>; 2]>,
    accepted: u64,
    /// What new connections begin with.
    flows: [Flow; 2],
    forgets: Option<(Duration, bool)>,
    expires: Option<(Duration, bool)>,
    /// What some of them begin with as well.
    shares: Vec<Shared>,
    /// Who is among the some.
    dice: SplitMix,
    connections: BTreeMap<u64, Connection>,
    by_key: HashMap<usize, u64>,
    /// By time, and then as they were given.
    planned: BTreeMap<(Instant, u64), Planned>,
    planned_so_far: u64,
    record: Record,
}

/// A socket that stays bound when it stops listening: Linux gives a port back that it has picked itself, and keeps one that was
/// asked for (`SOCK_BINDPORT_LOCK` in `tcp_disconnect`).
fn bind(address: SocketAddr) -> io::Result<Socket> {
    let bound = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Ports of past connections are as good as new ones.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(socket)
    };
    let first = bound(address)?;
    if address.port() != 0 {
        return Ok(first);
    }
    bound(local_address(&first)?)
}

fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

// ---- life

impl Proxy {
    pub fn new(address: SocketAddr, upstream: Arc<Target>, config: &ProxyConfig) -> io::Result<Arc<Self>> {
        let socket = bind(address)?;
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)?;
        let address = local_address(&socket)?;
        let number = AtomicI32::new(socket.as_raw_fd());
        let engine = reactor::engine()?;
        engine.doorkeeper.prepare();
        let healthy = Flow::new(config.room_bytes, config.seed);
        let course = Course {
            listener: Some(socket),
            is_deaf: false,
            is_refusing: false,
            accept_again: None,
            most_connections: usize::MAX,
            upstream,
            seed: config.seed,
            captured_bytes: config.captured_bytes,
            captured: HashMap::new(),
            accepted: 0,
            flows: [healthy.clone(), healthy],
            forgets: None,
            expires: None,
            shares: Vec::new(),
            dice: SplitMix(config.seed),
            connections: BTreeMap::new(),
            by_key: HashMap::new(),
            planned: BTreeMap::new(),
            planned_so_far: 0,
            record: Record::default(),
        };
        let proxy = Arc::new(Self {
            key: engine.new_key(),
            engine,
            generation: fork::generation(),
            address,
            began: clock::now(),
            number,
            course: Arc::new(Mutex::new(course)),
        });
        proxy.engine.adopt_proxy(proxy.key, proxy.clone(), None)?;
        let course = proxy.lock();
        if let Some(socket) = &course.listener
            && let Err(error) = proxy.engine.watch(socket.as_fd(), proxy.key, Interest::READABLE)
        {
            proxy.engine.release(proxy.key);
            return Err(error);
        }
        drop(course);
        Ok(proxy)
    }

    fn lock(&self) -> MutexGuard<'_, Course> {
        sync::lock(&self.course)
    }

    fn enter(&self) -> Result<MutexGuard<'_, Course>, LinkError> {
        if self.generation == fork::generation() { Ok(self.lock()) } else { Err(LinkError::Forked) }
    }

    fn enter_open(&self) -> Result<MutexGuard<'_, Course>, LinkError> {
        let course = self.enter()?;
        if course.listener.is_some() { Ok(course) } else { Err(LinkError::Closed) }
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients are connected to from now on.
    pub fn set_upstream(&self, upstream: Arc<Target>) -> Result<(), LinkError> {
        self.enter_open()?.upstream = upstream;
        Ok(())
    }

    /// Connections are reset, whoever is at their ends.
    pub fn close(&self) -> Result<(), LinkError> {
        let mut course = self.enter()?;
        let Some(listener) = course.listener.take() else { return Ok(()) };
        self.engine.unwatch(listener.as_fd());
        self.number.store(-1, Ordering::Relaxed);
        self.engine.release(self.key);
        course.planned.clear();
        let now = clock::now();
        while let Some((_, mut connection)) = course.connections.pop_first() {
            for way in Way::BOTH {
                self.abort(&mut course, &mut connection, way);
            }
            self.finish(&mut course, connection, now);
        }
        Ok(())
    }

    pub(super) fn close_in_child(&self) {
        let number = self.number.swap(-1, Ordering::Relaxed);
        if number >= 0 {
            sys::close_inherited(number);
        }
    }
}

/// Over a fork the lock and what it guards are as some thread of the parent had them: they are left alone.
impl Drop for Proxy {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            mem::forget(self.course.clone());
            self.close_in_child();
        }
    }
}

// ---- what the program does

impl Proxy {
    pub fn connections(&self) -> Result<Vec<Glimpse>, LinkError> {
        let course = self.enter()?;
        let glimpse = |connection: &Connection| Glimpse {
            number: connection.number,
            client: connection.client_address,
            is_connected: connection.server.is_some(),
            is_forgotten: connection.forgotten.is_some(),
            flows: [0, 1].map(|way| (connection.flows[way].counts(), connection.flows[way].held())),
        };
        Ok(course.connections.values().map(glimpse).collect())
    }

    /// How many clients have come, those that were refused not included.
    pub fn accepted(&self) -> Result<u64, LinkError> {
        Ok(self.enter()?.accepted)
    }

    /// What was said in one direction of a connection, which may be over; as much of it as is kept.
    pub fn captured(&self, connection: u64, way: Way) -> Result<Vec<u8>, LinkError> {
        Ok(self.enter()?.captured.get(&connection).map(|said| said[way as usize].clone()).unwrap_or_default())
    }

    pub fn record(&self) -> Result<Record, LinkError> {
        Ok(self.enter()?.record.clone())
    }

    #[must_use]
    pub fn since_began(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.began)
    }
}

// ---- what the engine does

impl Proxy {
    /// Somebody knocks, something that was planned is due, or a connection has news. On the engine's thread.
    pub(super) fn on_ready(self: &Arc<Self>, key: usize, now: Instant) {
        let mut course = self.lock();
        if key != self.key {
            if let Some(connection) = course.by_key.get(&key).copied().and_then(|it| course.connections.remove(&it)) {
                self.run(&mut course, connection, now);
            }
            return;
        }
        while let Some(due) = course.planned.first_entry().filter(|next| next.key().0 <= now) {
            let Planned { order, whom, detail } = due.remove();
            self.carry_out(&mut course, &order, whom, &detail, now);
        }
        course.accept_again = None;
        self.accept(&mut course, now);
        self.set_alarm(&course);
    }

    fn set_alarm(&self, course: &Course) {
        let planned = course.planned.keys().next().map(|(at, _)| *at);
        if let Some(at) = planned.into_iter().chain(course.accept_again).min() {
            self.engine.set_alarm(self.key, at.into());
        }
    }
}
