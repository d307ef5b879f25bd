//! The fault proxy: listens, connects each client to the server behind it, and carries bytes between them over paths that are
//! as bad as is wished ([`crate::fault`]).
//!
//! A cut is one for the kernels too: our socket on the sender's side is made deaf and the one on the receiver's side mute, so nothing
//! is acknowledged, no probe is answered, a RST is lost and a FIN is repeated, and what was sent meanwhile comes when the sender's
//! kernel sends it again.
//!
//! Whoever gives an order carries it out: when the call returns, the cable is out. The lock is never kept while anything waits.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use mio::Interest;
use socket2::{Domain, Protocol, Socket, Type};

use crate::engine::dial::{self, Dial, DialConfig, Outcome};
use crate::engine::link::LinkError;
use crate::engine::reactor::{self, Engine};
use crate::engine::sync::{self, Mutex, MutexGuard};
use crate::engine::{clock, fork};
use crate::fault::flow::{Counts, Fault, Flow, Output, Passage, Way};
use crate::fault::nat::Nat;
use crate::fault::record::{Entry, Record, What};
use crate::net::dial::Target;
use crate::net::{sys, tuning};

/// Accepted in one go.
const ACCEPT_BATCH: usize = 64;
/// Without descriptors accepting is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const CHUNK: usize = 64 * 1024;
/// Bytes carried for one connection before the next has its turn.
const FAIR_SHARE: usize = 1024 * 1024;
/// What our kernel takes unsent: it is out of our hands, and goes on its way over a cut.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 16 * 1024;
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

/// What is to become of connections.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// In these directions.
    Fault(&'static [Way], Fault),
    /// RST to the client, or to the server, or to both.
    Reset(&'static [Way]),
    /// As if both programs had ended: FIN to both, and RST for what they send from here on.
    End,
    /// A NAT loses its table now. What belongs to no connection that it knows is dropped, or answered by RST.
    Forget { resets: bool },
    /// The same, of each connection that has been silent for so long; `None`: never.
    ForgetAfter(Option<Duration>, bool),
    /// Nobody new gets in.
    Refuse(bool),
    /// Nor more than so many at once.
    LimitConnections(usize),
    /// All is well in these directions. What was forgotten stays forgotten.
    Restore(&'static [Way]),
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

/// Ordered by time, and then as they were given.
#[derive(Debug)]
struct Planned {
    at: Instant,
    serial: u64,
    order: Order,
    connection: Option<u64>,
    detail: String,
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
    connections: BTreeMap<u64, Connection>,
    by_key: HashMap<usize, u64>,
    planned: BinaryHeap<Reverse<Planned>>,
    planned_so_far: u64,
    record: Record,
}

/// One side's socket.
struct End {
    key: usize,
    /// What a forked child closes.
    number: Arc<AtomicI32>,
    socket: Socket,
    is_on_loopback: bool,
    is_deaf: bool,
    is_mute: bool,
    /// Its program has ended its stream.
    has_ended: bool,
    /// We have told it the end of the other's.
    is_told: bool,
    /// It takes nothing for now.
    is_full: bool,
}

struct Connection {
    /// For its alarm.
    key: usize,
    number: u64,
    client_address: SocketAddr,
    client: Option<End>,
    server: Option<End>,
    dial: Option<Arc<Dial>>,
    flows: [Flow; 2],
    nat: Option<(Nat, bool)>,
    /// And whether what comes is answered by RST.
    forgotten: Option<bool>,
    last_traffic: Instant,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
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

fn set_deaf(socket: &Socket, is_deaf: &mut bool, deaf: bool) {
    if *is_deaf != deaf {
        // Where there are no filters, the kernel acknowledges until its buffer is full.
        let _ = sys::set_deaf(socket.as_fd(), deaf);
        *is_deaf = deaf;
    }
}

impl End {
    fn set_deaf(&mut self, deaf: bool) {
        set_deaf(&self.socket, &mut self.is_deaf, deaf);
    }

    fn set_mute(&mut self, mute: bool) {
        // What does it on loopback may do anything elsewhere.
        if self.is_mute != mute && self.is_on_loopback {
            // Without the right to it, the kernel acknowledges what comes the other way, and repeats what it has.
            let _ = sys::set_mute(self.socket.as_fd(), mute);
            self.is_mute = mute;
        }
    }
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
            connections: BTreeMap::new(),
            by_key: HashMap::new(),
            planned: BinaryHeap::new(),
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
    /// For all connections, those that are still to come included, or for one.
    pub fn order(&self, order: &Order, connection: Option<u64>, detail: &str) -> Result<(), LinkError> {
        let mut course = self.enter_open()?;
        self.carry_out(&mut course, order, connection, detail, clock::now());
        Ok(())
    }

    /// The same, later, by the engine's thread; gives its number.
    pub fn plan(
        &self,
        delay: Duration,
        order: Order,
        connection: Option<u64>,
        detail: String,
    ) -> Result<u64, LinkError> {
        let mut course = self.enter_open()?;
        let serial = course.planned_so_far;
        course.planned_so_far += 1;
        let at = clock::now() + delay;
        course.planned.push(Reverse(Planned { at, serial, order, connection, detail }));
        self.set_alarm(&course);
        Ok(serial)
    }

    /// What was planned doesn't happen: what has this number, or nothing at all.
    pub fn cancel(&self, plan: Option<u64>) -> Result<(), LinkError> {
        let planned = &mut self.enter()?.planned;
        planned.retain(|Reverse(planned)| plan.is_some_and(|plan| planned.serial != plan));
        Ok(())
    }

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

// ---- orders

impl Proxy {
    fn carry_out(&self, course: &mut Course, order: &Order, only: Option<u64>, detail: &str, now: Instant) {
        let is_gone = only.is_some_and(|number| !course.connections.contains_key(&number));
        let detail =
            if is_gone { format!("{detail}: there is no such connection any more") } else { detail.to_owned() };
        course.record.note(Entry { detail, ..Entry::new(now, What::Fault, only, None) });
        if only.is_none() {
            self.order_for_newcomers(course, order, now);
        }
        let numbers: Vec<_> = match only {
            Some(number) => vec![number],
            None => course.connections.keys().copied().collect(),
        };
        for number in numbers {
            if let Some(mut connection) = course.connections.remove(&number) {
                self.order_for(course, &mut connection, order, now);
                self.run(course, connection, now);
            }
        }
    }

    fn order_for_newcomers(&self, course: &mut Course, order: &Order, now: Instant) {
        match order {
            Order::Fault(_, Fault::End) | Order::Reset(_) | Order::End | Order::Forget { .. } => {}
            Order::Fault(ways, fault) => {
                ways.iter().for_each(|way| course.flows[*way as usize].handle_fault(now, *fault));
            }
            Order::ForgetAfter(idle, resets) => course.forgets = idle.map(|idle| (idle, *resets)),
            Order::Refuse(refuses) => self.refuse(course, *refuses),
            Order::LimitConnections(most) => course.most_connections = *most,
            Order::Restore(ways) => {
                ways.iter().for_each(|way| course.flows[*way as usize].handle_fault(now, Fault::Restore));
                if ways.len() == Way::BOTH.len() {
                    course.forgets = None;
                    course.most_connections = usize::MAX;
                    self.refuse(course, false);
                }
            }
        }
        // A cable that is out carries neither SYN nor the answer.
        let deaf = course.flows.iter().any(Flow::is_cut);
        let Course { listener, is_deaf, .. } = course;
        if let Some(listener) = listener {
            set_deaf(listener, is_deaf, deaf);
        }
    }

    fn order_for(&self, course: &mut Course, connection: &mut Connection, order: &Order, now: Instant) {
        match order {
            Order::Fault(ways, fault) => {
                ways.iter().for_each(|way| connection.flows[*way as usize].handle_fault(now, *fault));
            }
            Order::Reset(ways) => {
                for way in ways.iter().copied() {
                    if connection.end(way).is_none() {
                        continue;
                    }
                    course.record.note(Entry::new(now, What::Reset, Some(connection.number), Some(way)));
                    self.abort(course, connection, way);
                }
            }
            Order::End => {
                for way in Way::BOTH {
                    if connection.end(way).is_none() {
                        continue;
                    }
                    course.record.note(Entry::new(now, What::Ended, Some(connection.number), Some(way)));
                    self.end(course, connection, way);
                }
            }
            Order::Forget { resets } => self.forget(course, connection, *resets, now),
            Order::ForgetAfter(idle, resets) => {
                connection.nat = idle.map(|idle| (Nat::new(idle, connection.last_traffic), *resets));
            }
            Order::Restore(ways) => {
                ways.iter().for_each(|way| connection.flows[*way as usize].handle_fault(now, Fault::Restore));
                if ways.len() == Way::BOTH.len() {
                    connection.nat = None;
                }
            }
            Order::Refuse(_) | Order::LimitConnections(_) => {}
        }
    }

    /// By the kernel, which answers SYN with RST while nobody listens; those who were in its queue are reset.
    fn refuse(&self, course: &mut Course, refuses: bool) {
        let Some(listener) = &course.listener else { return };
        if refuses == mem::replace(&mut course.is_refusing, refuses) {
            return;
        }
        if refuses {
            // Where a listener can't be shut down, who comes is accepted, and reset.
            let _ = listener.shutdown(Shutdown::Read);
            return;
        }
        // It fails if somebody else has begun to listen there, with SO_REUSEADDR.
        let watched = listener.listen(BACKLOG);
        if let Err(error) = watched.and_then(|()| self.engine.rewatch(listener.as_fd(), self.key, Interest::READABLE)) {
            log::error!(target: "longconn.engine", "{}: can't listen again: {error}", self.address);
        }
    }

    fn forget(&self, course: &mut Course, connection: &mut Connection, resets: bool, now: Instant) {
        if connection.forgotten.is_none() {
            connection.forgotten = Some(resets);
            course.record.note(Entry::new(now, What::Forgotten, Some(connection.number), None));
        }
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
        while course.planned.peek().is_some_and(|Reverse(planned)| planned.at <= now) {
            if let Some(Reverse(Planned { order, connection, detail, .. })) = course.planned.pop() {
                self.carry_out(&mut course, &order, connection, &detail, now);
            }
        }
        course.accept_again = None;
        self.accept(&mut course, now);
        self.set_alarm(&course);
    }

    fn set_alarm(&self, course: &Course) {
        let planned = course.planned.peek().map(|Reverse(planned)| planned.at);
        if let Some(at) = planned.into_iter().chain(course.accept_again).min() {
            self.engine.set_alarm(self.key, at.into());
        }
    }

    fn accept(self: &Arc<Self>, course: &mut Course, now: Instant) {
        for _ in 0..ACCEPT_BATCH {
            let Some(listener) = &course.listener else { return };
            match listener.accept() {
                Ok((socket, address)) => {
                    let Some(address) = address.as_socket() else { continue };
                    let is_full = course.connections.len() >= course.most_connections;
                    if course.is_refusing || is_full {
                        let detail = if is_full { "there are as many as may be" } else { "" }.to_owned();
                        course.record.note(Entry { detail, ..Entry::new(now, What::Refused, None, None) });
                        let _ = sys::abort(socket.as_fd());
                    } else if let Err(error) = self.receive(course, socket, address, now) {
                        log::debug!(target: "longconn.engine", "{}: a connection was gone at once: {error}", self.address);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It was gone before we came (accept(2)).
                Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO)) => {
                }
                // It doesn't listen for now.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
                Err(error) => {
                    log::warn!(target: "longconn.engine", "{}: can't accept now: {error}", self.address);
                    course.accept_again = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.engine.attend(self.key);
    }

    fn receive(
        self: &Arc<Self>,
        course: &mut Course,
        socket: Socket,
        address: SocketAddr,
        now: Instant,
    ) -> io::Result<()> {
        course.accepted += 1;
        let number = course.accepted;
        let client = self.adopt(course, number, socket)?;
        let seed = course.seed.wrapping_add(number.wrapping_mul(2));
        let key = self.engine.new_key();
        self.engine.adopt_proxy(key, self.clone(), None)?;
        course.by_key.insert(key, number);
        let mut connection = Connection {
            key,
            number,
            client_address: address,
            client: Some(client),
            server: None,
            dial: None,
            flows: [course.flows[0].another(seed), course.flows[1].another(seed + 1)],
            nat: course.forgets.map(|(idle, resets)| (Nat::new(idle, now), resets)),
            forgotten: None,
            last_traffic: now,
        };
        let detail = format!("from {address}");
        course.record.note(Entry { detail, ..Entry::new(now, What::Accepted, Some(number), None) });
        let this = Arc::downgrade(self);
        let done = Box::new(move |outcome| {
            if let Some(proxy) = this.upgrade() {
                proxy.on_dialled(number, outcome);
            }
        });
        match dial::dial(course.upstream.clone(), DialConfig::default(), done) {
            Ok(dial) => connection.dial = Some(dial),
            Err(error) => self.fail(course, &mut connection, &error.to_string(), now),
        }
        self.run(course, connection, now);
        Ok(())
    }

    fn adopt(self: &Arc<Self>, course: &mut Course, number: u64, socket: Socket) -> io::Result<End> {
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        #[cfg(target_vendor = "apple")]
        socket.set_nosigpipe(true)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
        // What our kernel has to repeat after a cut comes soon.
        let _ = tuning::bound_retransmissions(socket.as_fd(), Duration::ZERO);
        let peer = socket.peer_addr()?.as_socket();
        let key = self.engine.new_key();
        let end = End {
            key,
            number: Arc::new(AtomicI32::new(socket.as_raw_fd())),
            is_on_loopback: peer
                .is_some_and(|peer| matches!(peer.ip().to_canonical(), IpAddr::V4(ip) if ip.is_loopback())),
            socket,
            is_deaf: false,
            is_mute: false,
            has_ended: false,
            is_told: false,
            is_full: false,
        };
        // First, so that whose socket is reported is known.
        self.engine.adopt_proxy(key, self.clone(), Some(end.number.clone()))?;
        if let Err(error) = self.engine.watch(end.socket.as_fd(), key, Interest::READABLE | Interest::WRITABLE) {
            self.engine.release(key);
            return Err(error);
        }
        course.by_key.insert(key, number);
        Ok(end)
    }

    fn on_dialled(self: &Arc<Self>, number: u64, outcome: Outcome) {
        let mut course = self.lock();
        let Some(mut connection) = course.connections.remove(&number) else { return };
        let now = clock::now();
        connection.dial = None;
        let course = &mut *course;
        match outcome.map_err(|error| error.to_string()).and_then(|connected| {
            let peer = connected.peer;
            let adopted = self.adopt(course, number, Socket::from(connected.socket));
            adopted.map(|end| (end, peer)).map_err(|error| error.to_string())
        }) {
            Ok((end, peer)) => {
                connection.server = Some(end);
                let detail = format!("to {peer}");
                course.record.note(Entry { detail, ..Entry::new(now, What::Connected, Some(number), None) });
            }
            Err(error) => self.fail(course, &mut connection, &error, now),
        }
        self.run(course, connection, now);
    }

    /// The client hears of it as of all else that comes from there.
    fn fail(&self, course: &mut Course, connection: &mut Connection, why: &str, now: Instant) {
        let detail = why.to_owned();
        course.record.note(Entry { detail, ..Entry::new(now, What::Failed, Some(connection.number), None) });
        connection.flows[Way::ToClient as usize].handle_reset(now);
    }

    /// Carries what can be carried; the connection goes back to the others, unless nothing is left of it.
    fn run(&self, course: &mut Course, mut connection: Connection, now: Instant) {
        if let Some((nat, resets)) = &mut connection.nat {
            if now >= nat.poll_timeout() {
                nat.handle_look(now, segments(&connection.client, &connection.server));
            }
            if nat.has_forgotten(now) {
                let resets = *resets;
                self.forget(course, &mut connection, resets, now);
            }
        }
        let mut is_tired = false;
        match connection.forgotten {
            None => {
                for way in Way::BOTH {
                    is_tired |= self.carry(course, &mut connection, way, now);
                }
            }
            Some(true) => self.answer_strangers(course, &mut connection, now),
            Some(false) => {}
        }
        connection.attend_to_filters();
        for way in Way::BOTH {
            if connection.end(way).as_ref().is_some_and(|end| end.has_ended && end.is_told) {
                self.close_end(course, &mut connection, way);
            }
        }
        if connection.client.is_none() && connection.server.is_none() {
            self.finish(course, connection, now);
            return;
        }
        if is_tired {
            self.engine.attend(connection.key);
        } else if let Some(at) = connection.poll_timeout(now) {
            self.engine.set_alarm(connection.key, at.into());
        }
        course.connections.insert(connection.number, connection);
    }

    /// One direction. True if there is more to do.
    fn carry(&self, course: &mut Course, connection: &mut Connection, way: Way, now: Instant) -> bool {
        let mut carried = 0;
        loop {
            let left = self.deliver(course, connection, way, now);
            let entered = self.take_in(course, connection, way, now);
            carried += left + entered;
            if entered == 0 {
                return false;
            }
            if carried >= FAIR_SHARE {
                return true;
            }
        }
    }

    /// What leaves the path, to who is at its end.
    fn deliver(&self, course: &mut Course, connection: &mut Connection, way: Way, now: Instant) -> usize {
        let number = Some(connection.number);
        let mut delivered = 0;
        if way == Way::ToServer && connection.dial.is_some() {
            return 0;
        }
        if let Some(sink) = connection.end(way) {
            sink.is_full = false;
        }
        loop {
            let Connection { client, server, flows, .. } = connection;
            let flow = &mut flows[way as usize];
            let sink = if way == Way::ToServer { server } else { client };
            match (flow.poll(now), sink) {
                (None, _) => break,
                (Some(Output::Bytes(bytes)), Some(sink)) => {
                    match sys::transmit(sink.socket.as_raw_fd(), bytes, sys::SEND_FLAGS) {
                        Ok(count) => {
                            flow.consume(count);
                            delivered += count;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            sink.is_full = true;
                            break;
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => {
                            self.on_gone(course, connection, way, now);
                            break;
                        }
                    }
                }
                (Some(Output::End), Some(sink)) => {
                    // It fails if the connection is over already, which reading tells.
                    let _ = sink.socket.shutdown(Shutdown::Write);
                    sink.is_told = true;
                    course.record.note(Entry::new(now, What::Ended, number, Some(way)));
                }
                (Some(Output::Reset), Some(_)) => {
                    course.record.note(Entry::new(now, What::Reset, number, Some(way)));
                    self.abort(course, connection, way);
                }
                // Nobody is there any more: the sender's segment is answered by RST.
                (Some(Output::Bytes(_) | Output::End), None) => {
                    if connection.end(way.back()).is_some() {
                        course.record.note(Entry::new(now, What::Reset, number, Some(way.back())));
                        self.abort(course, connection, way.back());
                    }
                    break;
                }
                (Some(Output::Reset), None) => {}
                (Some(Output::CutBoth), _) => {
                    connection.flows[way.back() as usize].handle_fault(now, Fault::Passage(Passage::Cut));
                }
            }
        }
        if delivered > 0 {
            let bytes = delivered as u64;
            course.record.note(Entry { bytes, ..Entry::new(now, What::Forwarded, number, Some(way)) });
        }
        delivered
    }

    /// What comes from who is at the path's beginning.
    fn take_in(&self, course: &mut Course, connection: &mut Connection, way: Way, now: Instant) -> usize {
        let number = Some(connection.number);
        let mut room = [MaybeUninit::uninit(); CHUNK];
        loop {
            let Connection { client, server, flows, nat, last_traffic, .. } = connection;
            let flow = &mut flows[way as usize];
            let most = flow.room(now).min(CHUNK);
            let Some(source) = (if way == Way::ToServer { client } else { server }) else { return 0 };
            if most == 0 {
                return 0;
            }
            if source.has_ended {
                // A reset may still come.
                if matches!(source.socket.take_error(), Ok(Some(_))) {
                    self.on_gone(course, connection, way.back(), now);
                }
                return 0;
            }
            match sys::receive_now(source.socket.as_fd(), &mut room[..most]) {
                Ok([]) => {
                    source.has_ended = true;
                    flow.handle_end(now);
                    // To be looked at once more: the end may leave at once.
                    self.deliver(course, connection, way, now);
                    return 0;
                }
                Ok(bytes) => {
                    let lost = flow.counts().lost;
                    flow.handle_bytes(now, bytes);
                    course.capture(connection.number, way, bytes);
                    let lost = flow.counts().lost - lost;
                    if lost > 0 {
                        course.record.note(Entry { bytes: lost, ..Entry::new(now, What::Lost, number, Some(way)) });
                    }
                    *last_traffic = now;
                    if let Some((nat, _)) = nat {
                        nat.handle_traffic(now);
                    }
                    return bytes.len();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.on_gone(course, connection, way.back(), now);
                    return 0;
                }
            }
        }
    }

    /// Who is at the end of `way` has reset the connection, or its kernel has given up: the other is told, over the path.
    fn on_gone(&self, course: &mut Course, connection: &mut Connection, way: Way, now: Instant) {
        self.close_end(course, connection, way);
        connection.flows[way.back() as usize].handle_reset(now);
        if way == Way::ToClient
            && let Some(dial) = connection.dial.take()
        {
            dial.cancel();
        }
        self.deliver(course, connection, way.back(), now);
    }

    /// A NAT that knows of no such connection, and says so.
    fn answer_strangers(&self, course: &mut Course, connection: &mut Connection, now: Instant) {
        let mut room = [MaybeUninit::uninit(); 1024];
        for way in Way::BOTH {
            let Some(end) = connection.end(way).as_mut().filter(|end| !end.has_ended) else { continue };
            let has_come = match sys::receive_now(end.socket.as_fd(), &mut room) {
                Ok(_) => true,
                Err(error) => error.kind() != io::ErrorKind::WouldBlock,
            };
            if has_come {
                course.record.note(Entry::new(now, What::Reset, Some(connection.number), Some(way)));
                self.abort(course, connection, way);
            }
        }
    }

    /// RST to who is at the end of `way`.
    fn abort(&self, course: &mut Course, connection: &mut Connection, way: Way) {
        if let Some(socket) = self.let_go(course, connection, way) {
            let _ = sys::abort(socket.as_fd());
        }
    }

    fn close_end(&self, course: &mut Course, connection: &mut Connection, way: Way) {
        drop(self.let_go(course, connection, way));
    }

    /// FIN to who is at the end of `way`, whose program seems to have ended.
    fn end(&self, course: &mut Course, connection: &mut Connection, way: Way) {
        let Some(socket) = self.let_go(course, connection, way) else { return };
        let socket = Socket::from(socket);
        let _ = socket.shutdown(Shutdown::Write);
        // Closed with bytes unread it would say RST (RFC 2525, section 2.17).
        let mut room = [MaybeUninit::uninit(); CHUNK];
        for _ in 0..FAIR_SHARE / CHUNK {
            if !matches!(sys::receive_now(socket.as_fd(), &mut room), Ok(bytes) if !bytes.is_empty()) {
                return;
            }
        }
    }

    /// Nobody watches the socket any more, nor closes it in a forked child.
    fn let_go(&self, course: &mut Course, connection: &mut Connection, way: Way) -> Option<OwnedFd> {
        if way == Way::ToServer
            && let Some(dial) = connection.dial.take()
        {
            dial.cancel();
        }
        let mut end = connection.end(way).take()?;
        // What an order says is heard, whatever path is cut, and so is who goes on after it.
        end.set_mute(false);
        end.set_deaf(false);
        let End { key, number, socket, .. } = end;
        course.by_key.remove(&key);
        self.engine.unwatch(socket.as_fd());
        self.engine.release(key);
        number.store(-1, Ordering::Relaxed);
        Some(socket.into())
    }

    fn finish(&self, course: &mut Course, connection: Connection, now: Instant) {
        if let Some(dial) = connection.dial {
            dial.cancel();
        }
        course.by_key.remove(&connection.key);
        self.engine.release(connection.key);
        course.record.note(Entry::new(now, What::Closed, Some(connection.number), None));
    }
}

impl Course {
    fn capture(&mut self, connection: u64, way: Way, bytes: &[u8]) {
        if self.captured_bytes > 0 {
            let said = &mut self.captured.entry(connection).or_default()[way as usize];
            let room = self.captured_bytes.saturating_sub(said.len());
            said.extend_from_slice(&bytes[..room.min(bytes.len())]);
        }
    }
}

impl Connection {
    /// Who is at the end of `way`.
    fn end(&mut self, way: Way) -> &mut Option<End> {
        match way {
            Way::ToServer => &mut self.server,
            Way::ToClient => &mut self.client,
        }
    }

    /// Who sends into a path that is cut isn't heard by our kernel either, and who is at its end doesn't hear that.
    fn attend_to_filters(&mut self) {
        let is_forgotten = self.forgotten == Some(false);
        for way in Way::BOTH {
            let is_cut = is_forgotten || self.flows[way as usize].is_cut();
            if let Some(sender) = self.end(way.back()) {
                sender.set_deaf(is_cut);
            }
            if let Some(receiver) = self.end(way) {
                receiver.set_mute(is_cut);
            }
        }
    }

    fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        let mut earliest = self.nat.as_ref().filter(|_| self.forgotten.is_none()).map(|(nat, _)| nat.poll_timeout());
        if self.forgotten.is_some() {
            return earliest;
        }
        for way in Way::BOTH {
            let waits =
                self.end(way).as_ref().is_some_and(|end| end.is_full) || (way == Way::ToServer && self.dial.is_some());
            let flow = &self.flows[way as usize];
            let leaves = if waits { None } else { flow.poll_timeout() };
            for at in [leaves, flow.poll_room_timeout(now)].into_iter().flatten() {
                earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
            }
        }
        earliest
    }
}

/// What both have sent, as the kernel counts.
fn segments(client: &Option<End>, server: &Option<End>) -> u64 {
    let of = |end: &Option<End>| {
        let info = end.as_ref().and_then(|end| sys::tcp_info(end.socket.as_raw_fd()).ok());
        info.map_or(0, |(info, _)| u64::from(info.segs_in))
    };
    of(client) + of(server)
}
