//! A listener for Python, and the one loop over the messages of all its connections.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyPermissionError, PyRuntimeError, PyStopIteration, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::aio::{AsyncEvents, AsyncMessages};
use super::buffer::Buffer;
use super::callback::call;
use super::connection::{Connection, Manner, Rhythm, close_frame, config, pair};
use super::errors::{listener_error, os_error, seconds};
use super::events::{Callback, Events, tell_of};
use super::hub::Hub;
use super::keepalive::take_over;
use super::plain::{Settings, plain_peers};
use super::pulse;
use super::timeout::Timeout;
use super::tls::{ServerSettings, identity};
use crate::engine::link::{Attempt, Link, LinkError};
use crate::engine::listener::{Client, Listener, ListenerConfig};
use crate::engine::notices;
use crate::engine::sync::lock;
use crate::proto::close::{Close, CloseCode};
use crate::proto::handshake::Hello;

/// Messages fetched in one go; of each link the engine gives its fair share.
const BATCH: usize = 256;
/// What belongs to connections that are over is looked for when there is twice as much as after the last time, and this.
const SPARE: usize = 64;

const UNDECIDED: u8 = 0;
const ACCEPTS: u8 = 1;
const LISTS_MESSAGES: u8 = 2;

/// Python's objects for links, by their keys; those of links that are over go now and then.
struct Kept<T> {
    by_key: HashMap<usize, (Weak<Link>, Py<T>)>,
    next_sweep: usize,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), next_sweep: SPARE }
    }
}

impl<T> Kept<T> {
    fn find(&self, py: Python<'_>, link: &Link) -> Option<Py<T>> {
        self.by_key.get(&link.key()).map(|(_, object)| object.clone_ref(py))
    }

    /// What it gives back is to be dropped once the lock is given up.
    #[must_use]
    fn keep(&mut self, link: &Arc<Link>, object: Py<T>) -> Vec<(Weak<Link>, Py<T>)> {
        let mut gone = Vec::new();
        if self.by_key.len() >= self.next_sweep {
            let is_over = |link: &Weak<Link>| link.upgrade().is_none_or(|link| !matches!(link.ending(), Ok(None)));
            let (over, kept) = mem::take(&mut self.by_key).into_iter().partition(|(_, (link, _))| is_over(link));
            self.by_key = kept;
            self.next_sweep = 2 * self.by_key.len() + SPARE;
            gone = HashMap::<_, _>::into_values(over).collect();
        }
        gone.extend(self.by_key.insert(link.key(), (Arc::downgrade(link), object)));
        gone
    }
}

/// Who is let in: the program's function, what it made of the clients, and Python's objects for those who are here.
#[derive(Default)]
pub(super) struct Door {
    authenticate: Mutex<Option<Py<PyAny>>>,
    /// Told of each event until the server is closed.
    pub(super) on_event: Callback,
    principals: Mutex<Kept<PyAny>>,
    mode: AtomicU8,
    raises_when_full: bool,
    /// Clients show certificates, and `authenticate` is told whose.
    identifies: bool,
    /// Connections that were shown, unless they are accepted: the same object each time.
    shown: Mutex<Kept<Connection>>,
    /// Of the event loop that the server belongs to, and its connections.
    pub(super) hub: Option<Py<Hub>>,
}

impl Door {
    fn principal(&self, py: Python<'_>, link: &Link) -> Option<Py<PyAny>> {
        lock(&self.principals).find(py, link)
    }

    /// None once the server is closed.
    fn authenticate(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        lock(&self.authenticate).as_ref().map(|function| function.clone_ref(py))
    }

    /// A new object for a link.
    pub(super) fn make(&self, py: Python<'_>, link: Arc<Link>, is_owner: bool) -> PyResult<Py<Connection>> {
        let manner = Manner {
            principal: self.principal(py, &link),
            raises_when_full: self.raises_when_full,
            hub: self.hub.as_ref().map(|hub| hub.clone_ref(py)),
        };
        Connection::make(py, link, is_owner, manner)
    }

    /// The object for a link that the server owns.
    pub(super) fn show(&self, py: Python<'_>, link: Arc<Link>) -> PyResult<Py<Connection>> {
        if let Some(connection) = lock(&self.shown).find(py, &link) {
            return Ok(connection);
        }
        let connection = self.make(py, link.clone(), false)?;
        if self.mode.load(Ordering::Relaxed) == LISTS_MESSAGES {
            let mut shown = lock(&self.shown);
            // Another thread may have been quicker.
            if let Some(earlier) = shown.find(py, &link) {
                drop(shown);
                return Ok(earlier);
            }
            let gone = shown.keep(&link, connection.clone_ref(py));
            drop(shown);
            drop(gone);
        }
        Ok(connection)
    }
}

type Message = (Arc<Link>, Py<PyBytes>);

#[derive(Default)]
struct Batch {
    waiting: VecDeque<Message>,
    /// Handed to the program while the link's lock was taken.
    unconfirmed: Vec<Arc<Link>>,
}

/// What `LongServer` stands on.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct Server {
    pub(super) listener: Arc<Listener>,
    pub(super) door: Arc<Door>,
    /// Shared by all iterators, so that none is lost with one.
    batch: Mutex<Batch>,
}

/// Waits on a listener with the same deadline, whatever signals come.
pub(super) fn wait_for_listener<T: Send>(
    py: Python<'_>,
    listener: &Listener,
    deadline: Option<Instant>,
    wait: impl Fn(&Listener, Option<Instant>) -> Result<T, LinkError> + Sync,
) -> PyResult<Result<T, LinkError>> {
    loop {
        match py.detach(|| wait(listener, deadline)) {
            Err(LinkError::Interrupted) => py.check_signals()?,
            other => return Ok(other),
        }
    }
}

impl Server {
    fn begin(&self, mode: u8) -> PyResult<()> {
        match self.door.mode.compare_exchange(UNDECIDED, mode, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(before) if before == mode => Ok(()),
            Err(ACCEPTS) => Err(PyRuntimeError::new_err(
                "messages(): this server's connections come by accept(); a server does either the one or the other",
            )),
            Err(_) => Err(PyRuntimeError::new_err(
                "accept(): this server's connections come with their messages(); a server does either the one or the other",
            )),
        }
    }

    /// Of the event loop that it belongs to.
    pub(super) fn hub(&self) -> PyResult<&Py<Hub>> {
        self.door.hub.as_ref().ok_or_else(|| PyRuntimeError::new_err("this server belongs to no event loop"))
    }

    /// It is closed. What may lead back to the server goes, for nobody is left to be told of.
    pub(super) fn let_go(&self) {
        let authenticate = lock(&self.door.authenticate).take();
        drop(authenticate);
        let on_event = lock(&self.door.on_event).take();
        drop(on_event);
        let shown = mem::take(&mut *lock(&self.door.shown));
        drop(shown);
    }

    /// The next message of the batch, which is filled anew if there is none. Nothing of Python's runs under the lock.
    pub(super) fn next_in_batch(&self, py: Python<'_>) -> Result<Option<Message>, LinkError> {
        let mut batch = lock(&self.batch);
        if batch.waiting.is_empty() {
            let waiting = &mut batch.waiting;
            let _ = self.listener.try_messages(BATCH, |link, message| {
                waiting.push_back((link.clone(), PyBytes::new(py, message).unbind()));
            })?;
        }
        while let Some((link, message)) = batch.waiting.pop_front() {
            // Now it is the program's, unless that has closed the connection.
            match link.try_confirm(1) {
                Ok(Attempt::Done(true)) => {}
                Ok(Attempt::Done(false)) => continue,
                _ => batch.unconfirmed.push(link.clone()),
            }
            return Ok(Some((link, message)));
        }
        Ok(None)
    }

    /// Before it waits, everything that was handed out is told.
    pub(super) fn confirm_rest(&self, py: Python<'_>) {
        let unconfirmed = mem::take(&mut lock(&self.batch).unconfirmed);
        if !unconfirmed.is_empty() {
            py.detach(|| {
                for link in unconfirmed {
                    // It may be over.
                    let _ = link.confirm(1);
                }
            });
        }
    }
}

#[pymethods]
impl Server {
    #[getter]
    fn address(&self) -> (String, u16) {
        pair(self.listener.address())
    }

    fn accept(&self, py: Python<'_>, timeout: Timeout) -> PyResult<Py<Connection>> {
        self.begin(ACCEPTS)?;
        let link = wait_for_listener(py, &self.listener, timeout.deadline(None), |listener, deadline| {
            listener.accept(deadline)
        })?
        .map_err(|error| listener_error(py, error))?;
        self.door.make(py, link, true)
    }

    fn messages(slf: Bound<'_, Self>, timeout: Timeout) -> PyResult<Messages> {
        let server = slf.get();
        server.begin(LISTS_MESSAGES)?;
        slf.py().detach(|| server.listener.list_messages()).map_err(|error| listener_error(slf.py(), error))?;
        Ok(Messages { server: slf.unbind(), timeout })
    }

    fn events(slf: Bound<'_, Self>) -> Events {
        Events::of_server(slf.unbind())
    }

    fn connections(&self, py: Python<'_>) -> PyResult<Vec<Py<Connection>>> {
        let links = py.detach(|| self.listener.connections()).map_err(|error| listener_error(py, error))?;
        links.into_iter().map(|link| self.door.show(py, link)).collect()
    }

    /// (sent, full, failed)
    fn broadcast(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        closes_the_slow: bool,
    ) -> PyResult<(usize, usize, usize)> {
        let data = Buffer::readable(data)?.bytes().to_vec();
        let outcome =
            py.detach(|| self.listener.broadcast(&data, closes_the_slow)).map_err(|error| listener_error(py, error))?;
        Ok((outcome.sent, outcome.full, outcome.failed))
    }

    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = py.detach(|| self.listener.counts()).map_err(|error| listener_error(py, error))?;
        let fields = PyDict::new(py);
        fields.set_item("open", counts.open)?;
        fields.set_item("handshakes", counts.handshakes)?;
        fields.set_item("accepted", counts.accepted)?;
        fields.set_item("opened", counts.opened)?;
        fields.set_item("refused_too_many", counts.too_many)?;
        fields.set_item("refused_unauthorized", counts.refused)?;
        fields.set_item("failed_handshakes", counts.failed)?;
        fields.set_item("failed_tls", counts.failed_tls)?;
        fields.set_item("crowded_out", counts.crowded_out)?;
        fields.set_item("out_of_resources", counts.starved)?;
        fields.set_item("events_dropped", counts.occurrences_dropped)?;
        fields.set_item("refused_stale", counts.stale)?;
        fields.set_item("resumed", counts.resumed)?;
        fields.set_item("expired", counts.expired)?;
        fields.set_item("waiting", counts.waiting)?;
        fields.set_item("waiting_bytes", counts.waiting_bytes)?;
        Ok(fields)
    }

    fn reload_tls(&self, py: Python<'_>, settings: Py<ServerSettings>) -> PyResult<()> {
        let settings = &settings.get().0;
        if !self.listener.is_secured() {
            return Err(PyValueError::new_err("reload_tls(): the server began without TLS"));
        }
        if settings.knows_clients != self.door.identifies {
            return Err(PyValueError::new_err(
                "client_ca: whether clients are asked for certificates stays as it was when the server began",
            ));
        }
        self.listener.set_tls(settings.clone()).map_err(|error| listener_error(py, error))
    }

    fn close(
        &self,
        py: Python<'_>,
        drain: f64,
        code: i64,
        reason: &str,
        retry_after: f64,
        come_back_to: &str,
    ) -> PyResult<()> {
        self.begin_close(py, drain, code, reason, retry_after, come_back_to)?;
        match wait_for_listener(py, &self.listener, None, |listener, deadline| listener.wait_closed(deadline))? {
            // In a forked child its descriptor is closed already.
            Ok(()) | Err(LinkError::Forked) => {}
            Err(error) => return Err(listener_error(py, error)),
        }
        self.let_go();
        Ok(())
    }

    // ---- in an event loop

    fn accept_async(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.get().begin(ACCEPTS)?;
        super::aio::accept(slf)
    }

    fn messages_async(slf: Bound<'_, Self>) -> PyResult<AsyncMessages> {
        let server = slf.get();
        server.begin(LISTS_MESSAGES)?;
        slf.py().detach(|| server.listener.list_messages()).map_err(|error| listener_error(slf.py(), error))?;
        Ok(super::aio::messages(slf))
    }

    fn events_async(slf: Bound<'_, Self>) -> AsyncEvents {
        super::aio::events(slf)
    }

    fn next_client(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        super::aio::next_client(slf)
    }

    fn begin_close(
        &self,
        py: Python<'_>,
        drain: f64,
        code: i64,
        reason: &str,
        retry_after: f64,
        come_back_to: &str,
    ) -> PyResult<()> {
        let close = close_frame(code, reason)?.coming_back(seconds(retry_after)?, come_back_to);
        let drain = seconds(drain)?;
        match py.detach(|| self.listener.close(&close, drain)) {
            // In a forked child its descriptor is closed already.
            Ok(()) | Err(LinkError::Forked) => Ok(()),
            Err(error) => Err(listener_error(py, error)),
        }
    }

    fn wait_closed(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        super::aio::wait_closed(slf)
    }

    /// Without waiting, for an object that goes.
    fn abandon(&self, py: Python<'_>) {
        let close = Close::new(CloseCode::GOING_AWAY, "the server is closing");
        let _ = py.detach(|| self.listener.close(&close, Duration::ZERO));
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.door.hub)
    }
}

/// Pairs of a connection and its message, of all connections of a server.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct Messages {
    server: Py<Server>,
    timeout: Timeout,
}

#[pymethods]
impl Messages {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<(Py<Connection>, Py<PyBytes>)> {
        let server = self.server.get();
        let mut deadline = None;
        loop {
            if let Some((link, message)) = server.next_in_batch(py).map_err(|error| listener_error(py, error))? {
                return Ok((server.door.show(py, link)?, message));
            }
            server.confirm_rest(py);
            let deadline = *deadline.get_or_insert_with(|| self.timeout.deadline(None));
            match wait_for_listener(py, &server.listener, deadline, |listener, deadline| {
                listener.wait_messages(deadline)
            })? {
                Ok(()) => {}
                Err(LinkError::Closed) => return Err(PyStopIteration::new_err(())),
                Err(error) => return Err(listener_error(py, error)),
            }
        }
    }
}

/// Takes over a socket that listens.
#[pyfunction]
#[pyo3(signature = (
    fd,
    *,
    heartbeat,
    plain,
    largest_message_bytes,
    handshake_timeout,
    max_connections,
    max_connections_per_address,
    max_handshakes,
    authenticate,
    on_event,
    retention,
    max_waiting,
    max_waiting_bytes,
    raises_when_full,
    tls,
    hub = None,
    decides_in_loop = false
))]
#[allow(clippy::too_many_arguments, reason = "one for each of LongServer's")]
pub(super) fn listen(
    py: Python<'_>,
    fd: RawFd,
    heartbeat: Rhythm,
    plain: Option<Settings>,
    largest_message_bytes: u64,
    handshake_timeout: f64,
    max_connections: usize,
    max_connections_per_address: usize,
    max_handshakes: usize,
    authenticate: Option<Py<PyAny>>,
    on_event: Option<Py<PyAny>>,
    retention: f64,
    max_waiting: usize,
    max_waiting_bytes: usize,
    raises_when_full: bool,
    tls: Option<Py<ServerSettings>>,
    hub: Option<Py<Hub>>,
    decides_in_loop: bool,
) -> PyResult<Server> {
    let socket = take_over(fd)?;
    let is_called = authenticate.is_some();
    let tls = tls.map(|settings| settings.get().0.clone());
    let identifies = tls.as_ref().is_some_and(|settings| settings.knows_clients);
    let config = ListenerConfig {
        tls,
        link: Arc::new(config(heartbeat, largest_message_bytes, seconds(handshake_timeout)?)?),
        plain: plain.map(plain_peers).transpose()?.map(Arc::new),
        max_connections,
        max_per_address: max_connections_per_address,
        max_handshakes,
        asks: is_called || decides_in_loop,
        retention: seconds(retention)?,
        max_waiting,
        max_waiting_bytes,
    };
    let is_told = on_event.is_some();
    let on_event = Mutex::new(on_event.map(Arc::new));
    let authenticate = Mutex::new(authenticate);
    let door = Arc::new(Door { authenticate, on_event, raises_when_full, identifies, hub, ..Door::default() });
    let keeper = door.clone();
    let listener = py
        .detach(|| {
            let listener = Listener::new(socket, config)?;
            if is_called {
                let this = Arc::downgrade(&listener);
                listener.tell_of_clients(Arc::new(move || {
                    let (this, keeper) = (this.clone(), keeper.clone());
                    notices::call(Box::new(move || receive_client(&this, &keeper)));
                }));
            }
            if is_told {
                let (door, waiting) = (Arc::downgrade(&door), Arc::default());
                listener.observe(Arc::new(move |link, occurrence| tell_of(&door, &waiting, link, occurrence)));
            }
            Ok(listener)
        })
        .map_err(|error: std::io::Error| os_error(&error))?;
    pulse::begin();
    Ok(Server { listener, door, batch: Mutex::default() })
}

/// On the thread of the notices: has the program decide about one client.
fn receive_client(listener: &Weak<Listener>, door: &Door) {
    let Some(listener) = listener.upgrade() else { return };
    // It may have gone meanwhile.
    let Some(client) = listener.answer_call() else { return };
    // None: the interpreter is going, and the client with it.
    let decision = Python::try_attach(|py| ask(py, &client, door));
    // It may have gone away while the program thought about it.
    if let Some(decision) = decision {
        carry_out(client, decision);
    }
}

/// It may have gone away while the program thought about it. Detached from Python.
pub(super) fn carry_out(client: Client, decision: Decision) {
    let _ = match decision {
        Ok(true) => client.accept(),
        Ok(false) => client.refuse_stale(),
        Err(reason) => client.refuse(Close::new(CloseCode::UNAUTHORIZED, &reason)),
    };
}

/// False: it may come in, and not to the session that it names, which is somebody else's. Or why it isn't to.
type Decision = Result<bool, String>;

/// What `authenticate` is called with.
pub(super) fn introduction<'py>(
    py: Python<'py>,
    link: &Link,
    hello: &Hello,
    door: &Door,
) -> PyResult<Bound<'py, PyTuple>> {
    let token = PyBytes::new(py, &hello.token);
    let (client_id, address) = (hello.client_id.as_str(), pair(link.peer_address()));
    if !door.identifies {
        return (client_id, token, address).into_pyobject(py);
    }
    // It may have gone meanwhile, and then nobody needs an answer.
    let certificate = link.agreed().ok().flatten().and_then(|agreed| agreed.certificate);
    let certificate = certificate.ok_or_else(|| PyPermissionError::new_err("it has shown no certificate"))?;
    (client_id, token, address, identity(py, &certificate)?).into_pyobject(py)
}

fn ask(py: Python<'_>, client: &Client, door: &Door) -> Decision {
    let Some(function) = door.authenticate(py) else { return Err("the server is closing".into()) };
    judge(
        py,
        client,
        door,
        introduction(py, client.link(), &client.hello, door).and_then(|told| call(function.bind(py), told)),
    )
}

/// What the program's answer means.
pub(super) fn judge(py: Python<'_>, client: &Client, door: &Door, answer: PyResult<Bound<'_, PyAny>>) -> Decision {
    let undecided = |error: PyErr| {
        error.write_unraisable(py, door.authenticate(py).as_ref().map(|function| function.bind(py)));
        String::from("the server could not decide")
    };
    let principal = match answer {
        Ok(principal) if principal.is_none() => return Err("not authorized".into()),
        Ok(principal) => match principal.cast::<PyBool>() {
            Ok(answer) if answer.is_true() => None,
            Ok(_) => return Err("not authorized".into()),
            Err(_) => Some(principal),
        },
        Err(error) if error.is_instance_of::<PyPermissionError>(py) => return Err(error.value(py).to_string()),
        Err(error) => return Err(undecided(error)),
    };
    let session = py.detach(|| client.session());
    let may_go_on = match (session.map(|session| door.principal(py, &session)), &principal) {
        (None, _) | (Some(None), None) => true,
        (Some(Some(before)), Some(now)) => before.bind(py).eq(now).map_err(undecided)?,
        (Some(_), _) => false,
    };
    if !may_go_on {
        return Ok(false);
    }
    if let Some(principal) = principal {
        let gone = lock(&door.principals).keep(client.link(), principal.unbind());
        drop(gone);
    }
    Ok(true)
}
