//! The engine's thread: waits until a descriptor is ready or an alarm rings, and has the link concerned do its turn.
//!
//! It starts with the first link or listener, blocks all signals and never attaches to Python. Nor does it wait for a link's
//! lock: who has that does the engine's errand when giving it back. Locks are taken in this order: a link's, a listener's,
//! a proxy's, a dial's, the budget's, the doorkeeper's, the engine's orders; the guard's is the last.

use std::cell::Cell;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

use crate::engine::accepting::Doorkeeper;
use crate::engine::clock;
use crate::engine::dial::Dial;
use crate::engine::handshake::{self, Newcomer};
use crate::engine::link::{Arrived, Errand, LATE, Link};
use crate::engine::listener::Listener;
use crate::engine::orders::Orders;
use crate::engine::proxy::Proxy;
use crate::engine::seats::{Keys, Seats, place_of};
use crate::engine::skipping::{Asked, Awaited, Skipping, Stir};
use crate::engine::sync::thread::{self, JoinHandle};
use crate::engine::sync::{self, Condvar, Mutex, MutexGuard, global};
use crate::engine::timers::Timers;
use crate::net::sys;
use crate::proto::moment::Moment;

/// Alarms that ring in one go, before descriptors are looked at again.
const BATCH: usize = 256;
const EVENTS: usize = 1024;
/// Growth of the suspended time that isn't the inexactness of its reading; as the core's own bound.
const SUSPENSION: Duration = Duration::from_millis(50);

/// What those are told whom an engine took with it.
pub(super) const PANICKED: &str =
    "the engine's thread has panicked, and all its connections are lost with it; please report it";

/// No member has keys as small as these.
const WAKEUP: usize = 0;
const SOON: usize = 1;

enum Order {
    Adopt(usize, Member),
    Release(usize),
    Alarm(usize, Moment),
    /// Whatever it wants to do: write on, read on.
    Attend(usize),
    /// That its clock be somewhere.
    Skip(Asked),
    /// With the lock of this link, if it is one.
    #[cfg(test)]
    Panic(usize),
}

/// There may be many thousands.
#[derive(Clone)]
enum Member {
    Link(Arc<Link>),
    Listener(Arc<Listener>),
    /// Once for itself, and once for each of its sockets with the number of that, negative when it is closed or handed over.
    Dial(Box<(Arc<Dial>, Option<Arc<AtomicI32>>)>),
    Newcomer(Arc<Newcomer>),
    /// Likewise.
    Proxy(Box<(Arc<Proxy>, Option<Arc<AtomicI32>>)>),
}

impl Member {
    /// Before time is skipped. A handshake and an attempt to connect are under way until they are over.
    fn stir(&self, key: usize) -> (Awaited, Stir) {
        let until_over = Stir { is_astir: true, next_deadline: None };
        let (who, stir) = match self {
            Self::Link(link) => (None, link.stir()),
            Self::Listener(listener) => (None, listener.stir()),
            Self::Dial(dial) => (Some(Awaited::Target(dial.0.target_number())), until_over),
            Self::Newcomer(_) => (None, until_over),
            Self::Proxy(_) => (None, Stir::default()),
        };
        (who.unwrap_or(Awaited::Member(key)), stir)
    }
}

/// Links, listeners, attempts to connect, and what belongs to proxies, that the engine looks after, as of its last turn.
static MEMBERS: AtomicUsize = AtomicUsize::new(0);

#[must_use]
pub fn members() -> usize {
    MEMBERS.load(Ordering::Relaxed)
}

/// What links, listeners and dials know of the engine.
pub struct Engine {
    registry: Registry,
    keys: Keys,
    orders: Orders<Order>,
    /// For links whose lock was taken, perhaps.
    deliveries: Mutex<Vec<(usize, Arrived)>>,
    pub(super) doorkeeper: Doorkeeper,
}

thread_local! {
    static IS_ENGINE: Cell<bool> = const { Cell::new(false) };
}

impl Engine {
    #[must_use]
    pub fn new_key(&self) -> usize {
        self.keys.new_key()
    }

    /// Who was to have the key is never adopted.
    pub fn give_back(&self, key: usize) {
        self.keys.give_back(key);
    }

    /// Where the thread is gone, whom it is about has heard of that, or will.
    fn order(&self, order: Order) {
        let _ = self.orders.give(order, IS_ENGINE.get());
    }

    fn adopt(&self, key: usize, member: Member) -> io::Result<()> {
        self.orders.give(Order::Adopt(key, member), IS_ENGINE.get()).map_err(|_| io::Error::other(PANICKED))
    }

    /// The engine keeps the link until it is released.
    pub fn adopt_link(&self, key: usize, link: Arc<Link>) -> io::Result<()> {
        self.adopt(key, Member::Link(link))
    }

    pub fn adopt_listener(&self, key: usize, listener: Arc<Listener>) -> io::Result<()> {
        self.adopt(key, Member::Listener(listener))
    }

    pub fn adopt_dial(&self, key: usize, dial: Arc<Dial>, socket: Option<Arc<AtomicI32>>) -> io::Result<()> {
        self.adopt(key, Member::Dial(Box::new((dial, socket))))
    }

    pub(super) fn adopt_newcomer(&self, key: usize, newcomer: Arc<Newcomer>) -> io::Result<()> {
        self.adopt(key, Member::Newcomer(newcomer))
    }

    pub fn adopt_proxy(&self, key: usize, proxy: Arc<Proxy>, socket: Option<Arc<AtomicI32>>) -> io::Result<()> {
        self.adopt(key, Member::Proxy(Box::new((proxy, socket))))
    }

    pub fn release(&self, key: usize) {
        self.order(Order::Release(key));
    }

    /// Replaces the alarm that it had.
    pub fn set_alarm(&self, key: usize, at: Moment) {
        self.order(Order::Alarm(key, at));
    }

    pub fn attend(&self, key: usize) {
        self.order(Order::Attend(key));
    }

    /// Leaves something for a link, to be told that it has.
    pub(super) fn deliver(&self, key: usize, arrived: Arrived) {
        sync::lock(&self.deliveries).push((key, arrived));
    }

    pub(super) fn take_deliveries(&self, key: usize) -> Vec<Arrived> {
        let mut deliveries = sync::lock(&self.deliveries);
        deliveries.extract_if(.., |(whose, _)| *whose == key).map(|(_, arrived)| arrived).collect()
    }

    pub(super) fn skip(&self, wish: Asked) -> io::Result<()> {
        self.orders.give(Order::Skip(wish), IS_ENGINE.get()).map_err(|_| io::Error::other(PANICKED))
    }

    /// Wakes the thread for this after a moment, so that more can come together meanwhile.
    pub fn attend_soon(&self, key: usize) {
        self.orders.give_soon(key);
    }

    pub fn watch(&self, fd: BorrowedFd<'_>, key: usize, interest: Interest) -> io::Result<()> {
        self.registry.register(&mut SourceFd(&fd.as_raw_fd()), Token(key), interest)
    }

    /// Edge-triggered: what is ready already is reported again.
    pub fn rewatch(&self, fd: BorrowedFd<'_>, key: usize, interest: Interest) -> io::Result<()> {
        self.registry.reregister(&mut SourceFd(&fd.as_raw_fd()), Token(key), interest)
    }

    pub fn unwatch(&self, fd: BorrowedFd<'_>) {
        // It fails only for a descriptor that wasn't watched.
        let _ = self.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
    }

    fn descriptors(&self) -> [RawFd; 3] {
        [self.registry.as_raw_fd(), self.orders.wakeup.as_fd().as_raw_fd(), self.orders.soon.as_fd().as_raw_fd()]
    }
}

/// What the thread owns.
struct Reactor {
    poll: Poll,
    engine: Arc<Engine>,
    members: Seats<Member>,
    timers: Timers,
    skipping: Skipping,
    suspended: Duration,
}

impl Reactor {
    fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let engine = Engine {
            registry: poll.registry().try_clone()?,
            keys: Keys::default(),
            orders: Orders::new()?,
            deliveries: Mutex::default(),
            doorkeeper: Doorkeeper::default(),
        };
        engine.watch(engine.orders.wakeup.as_fd(), WAKEUP, Interest::READABLE)?;
        engine.watch(engine.orders.soon.as_fd(), SOON, Interest::READABLE)?;
        Ok(Self {
            poll,
            engine: Arc::new(engine),
            members: Seats::default(),
            timers: Timers::default(),
            skipping: Skipping::new(),
            suspended: clock::suspended(),
        })
    }

    /// Until it is to stop; what it has is given back, for another thread to go on with. None if it has panicked.
    fn run(mut self) -> Option<Self> {
        sys::block_signals();
        IS_ENGINE.set(true);
        if catch_unwind(AssertUnwindSafe(|| self.look_after_members())).is_ok() {
            return Some(self);
        }
        self.end_all();
        None
    }

    /// Whatever was being done is half done: nobody is looked after any more, and each is told. Who comes from here on has
    /// another engine.
    fn end_all(mut self) {
        let mut running = lock();
        if running.is_engine(&self.engine) {
            running.engine = None;
            // Ours, which nobody has to wait for; or none, for somebody does.
            running.thread = None;
            MEMBERS.store(0, Ordering::Relaxed);
        }
        drop(running);
        log::error!(target: "longconn.engine", "{PANICKED}");
        let adopted = self.engine.orders.end().into_iter().filter_map(|order| match order {
            Order::Adopt(_, member) => Some(member),
            _ => None,
        });
        for member in mem::take(&mut self.members).into_members().chain(adopted) {
            // What it panicked about may be about this one. It is told all the same, or does what a poisoned lock allows.
            let told = catch_unwind(AssertUnwindSafe(|| match &member {
                Member::Link(link) => link.on_engine_lost(),
                Member::Listener(listener) => listener.on_engine_lost(),
                Member::Dial(dial) => dial.0.on_engine_lost(clock::now()),
                // Nobody waits for it; its socket is closed with it.
                Member::Newcomer(_) => {}
                Member::Proxy(proxy) => drop(proxy.0.close()),
            }));
            if let (Err(_), Member::Link(link)) = (told, &member) {
                link.end_without_core();
            }
        }
        let deliveries = mem::take(&mut *sync::lock(&self.engine.deliveries));
        deliveries.into_iter().for_each(|(_, arrived)| arrived.return_to_sender());
    }

    /// Until it is to stop.
    fn look_after_members(&mut self) {
        let mut events = Events::with_capacity(EVENTS);
        // While time is skipped; how long the next step may be waited for.
        let mut pause = Duration::ZERO;
        loop {
            handshake::allow_more();
            self.carry_out_orders(clock::now());
            if self.engine.orders.is_to_stop() {
                return;
            }
            let timeout = if self.engine.orders.may_sleep() {
                let next = self.timers.next_wake_up().map(|at| at.saturating_duration_since(clock::now()));
                if self.skipping.is_wanted() { Some(next.map_or(pause, |next| next.min(pause))) } else { next }
            } else {
                Some(Duration::ZERO)
            };
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                log::error!(target: "longconn.engine", "waiting for descriptors failed: {error}");
                thread::yield_now();
            }
            let now = clock::now();
            // Who is reported was adopted before it was watched.
            self.carry_out_orders(now);
            self.notice_suspension();
            let mut count = 0;
            for event in &events {
                count += 1;
                match event.token().0 {
                    WAKEUP => self.engine.orders.wakeup.clear(),
                    SOON => self.engine.orders.soon.clear(),
                    key => match self.members.get(key).cloned() {
                        Some(Member::Link(link)) => link.on_ready(event),
                        Some(Member::Listener(listener)) => listener.on_ready(now),
                        Some(Member::Dial(dial)) => dial.0.on_ready(key, now),
                        Some(Member::Newcomer(newcomer)) => newcomer.on_ready(now),
                        Some(Member::Proxy(proxy)) => proxy.0.on_ready(key, now),
                        None => {}
                    },
                }
            }
            // Verdicts come after everything that was heard, and a full batch may have left something; who is late reads by
            // itself.
            if count < EVENTS || self.timers.next_wake_up().is_some_and(|at| now > at + LATE) {
                self.ring_alarms(now);
            }
            if self.skipping.is_wanted() {
                pause = self.skip(count > 0);
            }
        }
    }

    /// One step through the time that is to be skipped, if nothing is left to be done before. How long to sleep at most.
    fn skip(&mut self, has_news: bool) -> Duration {
        let next_alarm = self.timers.next_wake_up();
        let is_busy = has_news || !self.engine.orders.are_none() || next_alarm.is_some_and(|at| at <= clock::now());
        let members = self.members.with_keys().map(|(key, member)| member.stir(key));
        self.skipping.step(is_busy, next_alarm, members)
    }

    fn carry_out_orders(&mut self, now: Instant) {
        let (urgent, soon) = self.engine.orders.take();
        for order in urgent {
            match order {
                Order::Adopt(key, member) => self.members.insert(key, member),
                Order::Release(key) => {
                    if self.members.remove(key).is_some() {
                        self.timers.clear(place_of(key));
                        self.engine.give_back(key);
                    }
                }
                Order::Alarm(key, at) => {
                    if self.members.get(key).is_some() {
                        self.timers.set(place_of(key), at);
                    }
                }
                Order::Attend(key) => self.attend(key, now),
                Order::Skip(wish) => self.skipping.add(wish),
                #[cfg(test)]
                Order::Panic(key) => match self.members.get(key) {
                    Some(Member::Link(link)) => link.panic_with_lock(),
                    _ => panic!("as the test wants it"),
                },
            }
        }
        MEMBERS.store(self.members.len(), Ordering::Relaxed);
        for key in soon {
            self.attend(key, now);
        }
    }

    fn attend(&mut self, key: usize, now: Instant) {
        match self.members.get(key) {
            Some(Member::Link(link)) => link.run(Errand::ATTENTION),
            Some(Member::Listener(listener)) => listener.on_ready(now),
            Some(Member::Dial(dial)) => dial.0.on_ready(key, now),
            Some(Member::Newcomer(newcomer)) => newcomer.on_ready(now),
            Some(Member::Proxy(proxy)) => proxy.0.on_ready(key, now),
            // It has gone; what was left for it isn't to stay.
            None => self.engine.take_deliveries(key).into_iter().for_each(Arrived::return_to_sender),
        }
    }

    fn ring_alarms(&mut self, now: Instant) {
        for _ in 0..BATCH {
            let Some(place) = self.timers.pop_due(now) else { return };
            match self.members.at(place) {
                Some((_, Member::Link(link))) => link.run(Errand::ALARM),
                Some((_, Member::Listener(listener))) => listener.on_ready(now),
                Some((key, Member::Dial(dial))) => dial.0.on_ready(*key, now),
                Some((_, Member::Newcomer(newcomer))) => newcomer.on_ready(now),
                Some((key, Member::Proxy(proxy))) => proxy.0.on_ready(*key, now),
                None => {}
            }
        }
    }

    /// The clock stands still while the machine sleeps, so no alarm tells of it.
    fn notice_suspension(&mut self) {
        let suspended = clock::suspended();
        if suspended > self.suspended + SUSPENSION {
            for member in self.members.iter() {
                if let Member::Link(link) = member {
                    link.run(Errand::SUSPENSION);
                }
            }
        }
        self.suspended = suspended;
    }
}

#[derive(Default)]
struct Running {
    engine: Option<Arc<Engine>>,
    thread: Option<JoinHandle<Option<Reactor>>>,
    /// Between two threads.
    resting: Option<Reactor>,
    paused: bool,
    /// No thread is started any more: the interpreter is on its way out.
    closed: bool,
}

global! {
    static RUNNING: Mutex<Running> =
        Mutex::new(Running { engine: None, thread: None, resting: None, paused: false, closed: false });
    static RESTS: Condvar = Condvar::new();
}

fn lock() -> MutexGuard<'static, Running> {
    sync::lock(&RUNNING)
}

/// The engine, which starts if it must.
pub fn engine() -> io::Result<Arc<Engine>> {
    let mut running = lock();
    if let Some(engine) = running.engine.clone() {
        // It has a thread already, unless there was no memory for one after a fork.
        running.start()?;
        return Ok(engine);
    }
    let reactor = Reactor::new()?;
    let engine = reactor.engine.clone();
    running.resting = Some(reactor);
    running.start()?;
    running.engine = Some(engine.clone());
    Ok(engine)
}

impl Running {
    fn is_engine(&self, engine: &Arc<Engine>) -> bool {
        self.engine.as_ref().is_some_and(|ours| Arc::ptr_eq(ours, engine))
    }

    fn start(&mut self) -> io::Result<()> {
        if self.paused || self.closed {
            return Ok(());
        }
        let Some(reactor) = self.resting.take() else { return Ok(()) };
        // Where no thread can be made, the reactor isn't lost with it.
        let handed_over = Arc::new(Mutex::new(Some(reactor)));
        let taken = handed_over.clone();
        let take = |from: &Mutex<Option<Reactor>>| sync::lock(from).take();
        let thread = thread::Builder::new().name("longconn-engine".into());
        match thread.spawn(move || take(&taken).and_then(Reactor::run)) {
            Ok(thread) => {
                self.thread = Some(thread);
                Ok(())
            }
            Err(error) => {
                self.resting = take(&handed_over);
                Err(error)
            }
        }
    }
}

/// Ends the thread and waits for it, which is soon, for it never waits for anybody. None begins until a fork is over.
pub fn pause() {
    let mut running = lock();
    running.paused = true;
    while let Some(engine) = running.engine.clone() {
        if running.resting.is_some() {
            return;
        }
        let Some(thread) = running.thread.take() else {
            // Another thread is joining it.
            running = RESTS.wait(running).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        engine.orders.stop();
        drop(running);
        let rested = thread.join();
        running = lock();
        match rested {
            Ok(reactor @ Some(_)) => running.resting = reactor,
            // It panicked, and has said so.
            Ok(None) | Err(_) if running.is_engine(&engine) => running.engine = None,
            Ok(None) | Err(_) => {}
        }
        RESTS.notify_all();
    }
}

/// No thread is started from here on.
pub fn close() {
    lock().closed = true;
}

/// The engine at rest, held over a fork.
pub struct Held(MutexGuard<'static, Running>);

/// `None` while somebody is about it.
#[must_use]
pub fn try_hold() -> Option<Held> {
    let running = match RUNNING.try_lock() {
        Ok(running) => running,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    // Another thread's fork may just have ended, and begun the thread anew.
    let is_at_rest = running.thread.is_none() && (running.engine.is_none() || running.resting.is_some());
    (running.paused && is_at_rest).then_some(Held(running))
}

impl Held {
    pub fn release_in_parent(mut self) {
        self.0.paused = false;
        if let Err(error) = self.0.start() {
            log::error!(target: "longconn.engine", "no thread after a fork: {error}");
        }
    }

    /// The links are the parent's: the descriptors are closed, and nothing else of them is touched, for their locks and
    /// what these guard are as some thread of the parent had them.
    pub fn release_in_child(mut self) {
        self.0.paused = false;
        MEMBERS.store(0, Ordering::Relaxed);
        let Some(engine) = self.0.engine.take() else { return };
        let close_socket = |number: Option<&Arc<AtomicI32>>| {
            let number = number.map_or(-1, |number| number.load(Ordering::Relaxed));
            if number >= 0 {
                sys::close_inherited(number);
            }
        };
        let forget = |member: Member| {
            match &member {
                Member::Link(link) => link.close_in_child(),
                Member::Listener(listener) => listener.close_in_child(),
                Member::Newcomer(newcomer) => newcomer.close_in_child(),
                Member::Dial(dial) => close_socket(dial.1.as_ref()),
                Member::Proxy(proxy) => match &proxy.1 {
                    None => proxy.0.close_in_child(),
                    socket => close_socket(socket.as_ref()),
                },
            }
            mem::forget(member);
        };
        if let Some(reactor) = self.0.resting.take() {
            reactor.members.into_members().for_each(forget);
        }
        // An order may be half given; what it is about is closed when the program drops it.
        for order in engine.orders.take_in_child() {
            if let Order::Adopt(_, member) = order {
                forget(member);
            }
        }
        if let Ok(mut deliveries) = engine.deliveries.try_lock() {
            // Our copies of sockets that were just connected are closed; all else is the parent's.
            for (_, arrived) in mem::take(&mut *deliveries) {
                if !matches!(arrived, Arrived::Dialled(Ok(_))) {
                    mem::forget(arrived);
                }
            }
        }
        engine.descriptors().into_iter().chain(engine.doorkeeper.descriptor()).for_each(sys::close_inherited);
        mem::forget(engine);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::{IS_ENGINE, Order, engine, members};
    use crate::engine::clock;
    use crate::engine::dial::{DialConfig, Dialling};
    use crate::engine::link::{Link, LinkError};
    use crate::engine::listener::{Listener, ListenerConfig};
    use crate::net::dial::{Place, Target};
    use crate::proto::connection::{Config, Introduction};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn listen() -> (Arc<Listener>, SocketAddr) {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        (Listener::new(OwnedFd::from(socket), ListenerConfig::default()).unwrap(), address)
    }

    fn dial(address: SocketAddr) -> Dialling {
        let place = Place { host: address.ip().to_string(), port: address.port() };
        Dialling::begin(Arc::new(Target { places: vec![place] }), DialConfig::default()).unwrap()
    }

    fn connect(address: SocketAddr) -> Arc<Link> {
        let socket = dial(address).wait(None).unwrap().unwrap().socket;
        let introduction = Introduction { will_resume: true, ..Introduction::default() };
        let link = Link::client(socket, None, Arc::new(Config::default()), introduction).unwrap();
        link.wait_open(Some(clock::now() + PATIENCE)).unwrap();
        link
    }

    #[test]
    fn an_engine_that_panics_ends_all_that_it_had_and_another_takes_its_place() {
        panics(|_| 0);
        panics(Link::key);
    }

    fn panics(about: fn(&Link) -> usize) {
        let deadline = Some(clock::now() + PATIENCE);
        let (listener, address) = listen();
        let client = connect(address);
        let server = listener.accept(deadline).unwrap();
        // Whose connection nobody accepts: the queue is full with the first.
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        silent.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        silent.listen(0).unwrap();
        let silent_address = silent.local_addr().unwrap().as_socket().unwrap();
        let _first = std::net::TcpStream::connect(silent_address).unwrap();
        let dialling = dial(silent_address);
        let [in_recv, in_state] = [0, 1].map(|which| {
            let link = [&client, &server][which].clone();
            thread::spawn(
                move || if which == 0 { link.wait_readable(deadline) } else { link.wait_ended(deadline).map(drop) },
            )
        });
        let in_accept = {
            let listener = listener.clone();
            thread::spawn(move || listener.accept(deadline).map(drop))
        };
        let before = engine().unwrap();
        before.order(Order::Panic(about(&client)));
        assert!(in_recv.join().unwrap().is_ok());
        assert!(in_state.join().unwrap().is_ok());
        assert!(matches!(in_accept.join().unwrap(), Err(LinkError::EngineLost)));
        let failed = dialling.wait(None).unwrap().unwrap_err();
        assert!(failed.to_string().contains("panicked"), "{failed}");
        for link in [&client, &server] {
            let ending = link.wait_ended(deadline).unwrap();
            assert!(ending.to_string().contains("panicked"), "{ending}");
            let sent = link.send(b"", deadline);
            assert!(matches!(sent, Err(LinkError::Ended(_))), "{sent:?} {:?} {ending:?}", link.state());
        }
        assert!(before.adopt_link(before.new_key(), client.clone()).is_err());
        assert!(!Arc::ptr_eq(&before, &engine().unwrap()));
        // Nobody waits for what has gone.
        super::pause();
        super::try_hold().unwrap().release_in_parent();
        let (again, address) = listen();
        let client = connect(address);
        let server = again.accept(deadline).unwrap();
        client.send(b"again", deadline).unwrap();
        server.wait_readable(deadline).unwrap();
        assert!(members() > 0 && !IS_ENGINE.get());
    }
}
