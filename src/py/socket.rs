//! The hot methods of KeepaliveSocket, with the semantics of `Modules/socketmodule.c`.
//!
//! A mixin without fields, so that the class stays a true subclass of `socket.socket`. What makes it faster:
//! CPython polls first and then calls; with a timeout we call first and poll only when there is nothing. A call
//! that can't block isn't blocking I/O, so small ones don't give the GIL away: beside a busy Python thread that
//! saves the wait to get it back. Everything unusual (flags, odd sizes) is left to the stdlib's own method.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyTimeoutError, PyTypeError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyCFunction, PyDict, PyTuple, PyType};

use super::buffer::Buffer;
use super::errors::os_error;
use super::fast::RecvTold;
use super::guard::Watch;
use crate::engine::{clock, guard};
use crate::net::sys;

/// `recv` of up to so much goes by the stack; the tiny ones apart, for after a wait every page touched is a cold one.
pub(super) const TINY: usize = 1024;
pub(super) const SMALL: usize = 8 * 1024;
/// Larger requests of `recv` are the stdlib's; datagrams (at most 212,992 bytes by `net.core.wmem_max`) fit.
const LARGE: usize = 256 * 1024;
/// What is copied in while the GIL is held: the time of a few bytecodes' loop.
const HELD_RECV: usize = 64 * 1024;
pub(super) const HELD_SEND: usize = 16 * 1024;

/// The stdlib's class, and the C functions behind two of its methods. They are asked at each call, and calling them
/// as Python does (a tuple of arguments, a descriptor) costs 80 ns, against 15 ns so: of a round trip of 6 us on
/// loopback that is several per cent. `PyCFunction_GetFunction` is in the stable ABI; the fields behind are not.
pub(super) struct Base {
    class: Py<PyType>,
    pub(super) fileno: ffi::PyCFunction,
    pub(super) gettimeout: ffi::PyCFunction,
}

static BASE: PyOnceLock<Base> = PyOnceLock::new();

fn base(py: Python<'_>) -> PyResult<&'static Base> {
    BASE.get_or_try_init(py, || {
        let class = py.import("_socket")?.getattr("socket")?.cast_into::<PyType>()?;
        // A socket object without a socket: nothing is opened before __init__.
        let blank = class.call_method1("__new__", (&class,))?;
        Ok(Base {
            fileno: c_function(&blank.getattr("fileno")?)?,
            gettimeout: c_function(&blank.getattr("gettimeout")?)?,
            class: class.unbind(),
        })
    })
}

/// The same, once somebody has asked for it; no code of Python's runs for it.
#[inline]
pub(super) fn ready_base(py: Python<'_>) -> Option<&'static Base> {
    BASE.get(py)
}

/// A class whose objects `fast` may take for what it says they are.
pub(super) fn check_class(class: &Bound<'_, PyType>) -> PyResult<()> {
    let py = class.py();
    if class.is_subclass_of::<SocketMixin>()? && class.is_subclass(base(py)?.class.bind(py))? {
        Ok(())
    } else {
        Err(PyTypeError::new_err("not a subclass of SocketMixin and socket.socket"))
    }
}

/// The C function of a bound built-in method without arguments (METH_NOARGS, as both have been since Python 2.0).
fn c_function(method: &Bound<'_, PyAny>) -> PyResult<ffi::PyCFunction> {
    let method = method.cast::<PyCFunction>()?;
    // SAFETY: attached, and an object of the type that these two ask for.
    let (flags, function) =
        unsafe { (ffi::PyCFunction_GetFlags(method.as_ptr()), ffi::PyCFunction_GetFunction(method.as_ptr())) };
    function
        .filter(|_| flags == ffi::METH_NOARGS)
        .ok_or_else(|| PyTypeError::new_err("socket.fileno and gettimeout aren't built in as they were"))
}

impl Base {
    /// Calls one of the functions on `object`.
    fn ask<'py>(&self, function: ffi::PyCFunction, object: &Bound<'py, SocketMixin>) -> PyResult<Bound<'py, PyAny>> {
        let py = object.py();
        // SAFETY: attached; both pointers are of living types.
        let is_socket = unsafe { ffi::PyType_IsSubtype(ffi::Py_TYPE(object.as_ptr()), self.class.as_ptr().cast()) };
        if is_socket == 0 {
            return Err(PyTypeError::new_err("SocketMixin belongs in front of socket.socket"));
        }
        // SAFETY: the function takes an instance of the class, which was just checked, and NULL (METH_NOARGS); it
        // returns a new reference, or NULL with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(py, function(object.as_ptr(), std::ptr::null_mut())) }
    }

    fn fileno(&self, object: &Bound<'_, SocketMixin>) -> PyResult<RawFd> {
        self.ask(self.fileno, object)?.extract()
    }

    fn gettimeout(&self, object: &Bound<'_, SocketMixin>) -> PyResult<Option<f64>> {
        self.ask(self.gettimeout, object)?.extract()
    }
}

#[derive(Clone, Copy)]
enum Mode {
    Blocking,
    NonBlocking,
    Until(Duration),
}

/// When a call's time is up. Counted from the first wait: what comes before it can't block, and mostly nothing has to
/// wait, so that the clock needn't be read.
#[derive(Clone, Copy)]
enum Deadline {
    Never,
    After(Duration),
    At(Instant),
}

impl Deadline {
    /// What is left to wait for; `None` is for ever.
    fn left(&mut self) -> Option<Duration> {
        match *self {
            Self::Never => None,
            Self::After(timeout) => {
                *self = clock::real().checked_add(timeout).map_or(Self::Never, Self::At);
                Some(timeout)
            }
            Self::At(deadline) => Some(deadline.saturating_duration_since(clock::real())),
        }
    }
}

/// Why a call didn't succeed.
enum Trouble {
    System(io::Error),
    /// A signal handler raised, or the time was up.
    Python(PyErr),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<PyErr> for Trouble {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

/// One call of a method: the socket, and what counts for it.
struct Call<'a, 'py> {
    object: &'a Bound<'py, SocketMixin>,
    py: Python<'py>,
    fd: RawFd,
    mode: Mode,
}

/// Whether the last `recv` of a descriptor with a timeout had to wait, by the number's last bits. Only a hint: who has
/// just sent a question polls first, as CPython always does, and spares the call that finds nothing; who reads a
/// stream calls first. Numbers that share a place, or a race, cost a system call, nothing else.
#[derive(Clone, Copy)]
pub(super) struct Hint(&'static AtomicU8);

static WAITS: [AtomicU8; 1024] = [const { AtomicU8::new(0) }; 1024];
/// After so many waits the call is tried first again, to learn of a stream.
const TRY_AGAIN: u8 = 32;

impl Hint {
    #[inline]
    pub(super) fn of(fd: RawFd) -> Self {
        Self(&WAITS[fd as usize % WAITS.len()])
    }

    #[inline]
    pub(super) fn polls_first(self) -> bool {
        (1..TRY_AGAIN).contains(&self.0.load(Ordering::Relaxed))
    }

    /// It has polled first.
    #[inline]
    pub(super) fn polled(self) {
        self.0.store(self.0.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }

    /// It has called first, and had to wait or not.
    fn called(self, had_to_wait: bool) {
        self.0.store(u8::from(had_to_wait), Ordering::Relaxed);
    }
}

/// Which way a call wants to go.
#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

impl<'a, 'py> Call<'a, 'py> {
    fn new(object: &'a Bound<'py, SocketMixin>) -> PyResult<Self> {
        let py = object.py();
        let base = base(py)?;
        let fd = base.fileno(object)?;
        // poll(2) ignores -1, and would wait
        if fd < 0 {
            return Err(os_error(&io::Error::from_raw_os_error(libc::EBADF)));
        }
        let mode = match base.gettimeout(object)? {
            None => Mode::Blocking,
            Some(0.0) => Mode::NonBlocking,
            Some(seconds) => Mode::Until(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
        };
        if guard::any_dormant() {
            wake(object)?;
        }
        Ok(Self { object, py, fd, mode })
    }

    /// While we waited another thread, or a signal's handler, may have closed the socket, and somebody else may
    /// have got its number: CPython asks anew before each attempt (`sock_recv_impl`), and so do we.
    fn still_open(&self) -> Result<(), Trouble> {
        if base(self.py)?.fileno(self.object)? == self.fd {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EBADF).into())
        }
    }

    /// Runs the handlers of signals that have come.
    fn interrupted(&self) -> Result<(), Trouble> {
        self.py.check_signals()?;
        self.still_open()
    }

    /// Said with each call, and not left to the descriptor's own flag, which somebody who shares it may have changed:
    /// an attempt that keeps the GIL must never wait.
    fn flags(&self) -> i32 {
        if matches!(self.mode, Mode::Blocking) { 0 } else { libc::MSG_DONTWAIT }
    }

    fn deadline(&self) -> Deadline {
        match self.mode {
            Mode::Until(timeout) => Deadline::After(timeout),
            _ => Deadline::Never,
        }
    }

    /// Runs `attempt` until it doesn't say that it would block (`sock_call_ex`). `held`: an attempt is short, so
    /// where it can't block it keeps the GIL.
    fn until_done(
        &self,
        way: Way,
        deadline: &mut Deadline,
        held: bool,
        mut attempt: impl FnMut() -> io::Result<usize> + Send,
    ) -> Result<usize, Trouble> {
        let held = held && !matches!(self.mode, Mode::Blocking);
        loop {
            let result = if held { attempt() } else { self.py.detach(&mut attempt) };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.interrupted()?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && matches!(self.mode, Mode::Until(_)) => {
                    self.wait(way, deadline)?;
                }
                other => return Ok(other?),
            }
        }
    }

    /// Waits until the socket is ready, without the GIL, however often signals come.
    fn wait(&self, way: Way, deadline: &mut Deadline) -> Result<(), Trouble> {
        let events = match way {
            Way::In => libc::POLLIN,
            Way::Out => libc::POLLOUT,
        };
        loop {
            let left = deadline.left();
            let fd = self.fd;
            match self.py.detach(|| sys::wait_ready(fd, events, left)) {
                Ok(true) => return self.still_open(),
                // a poll can't last longer than 24 days
                Ok(false) if deadline.left() != Some(Duration::ZERO) => {}
                Ok(false) => return Err(PyTimeoutError::new_err("timed out").into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.interrupted()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read(&self, room: &mut [MaybeUninit<u8>]) -> PyResult<usize> {
        self.read_until(room, self.deadline())
    }

    fn read_until(&self, room: &mut [MaybeUninit<u8>], mut deadline: Deadline) -> PyResult<usize> {
        let held = room.len() <= HELD_RECV;
        let fd = self.fd;
        let flags = self.flags();
        let mut tries = 0;
        let mut recv = || {
            tries += 1;
            sys::receive(fd, room, flags)
        };
        let got = match self.mode {
            Mode::Until(_) => {
                let hint = Hint::of(fd);
                let polls_first = hint.polls_first();
                let ready = if polls_first { self.wait(Way::In, &mut deadline) } else { Ok(()) };
                let got = ready.and_then(|()| self.until_done(Way::In, &mut deadline, held, recv));
                if polls_first {
                    hint.polled()
                } else {
                    hint.called(tries > 1)
                }
                got
            }
            _ => self.until_done(Way::In, &mut deadline, held, &mut recv),
        };
        match got {
            Ok(0) if !room.is_empty() => explained(self.object, None, Way::In),
            Ok(got) => Ok(got),
            Err(trouble) => self.raised(trouble, Way::In),
        }
    }

    #[inline(never)]
    fn recv_by_stack<const N: usize>(&self, size: usize, deadline: Deadline) -> PyResult<Bound<'py, PyAny>> {
        let mut room = [MaybeUninit::<u8>::uninit(); N];
        let got = self.read_until(&mut room[..size], deadline)?;
        // SAFETY: `got` bytes were written.
        let filled = unsafe { std::slice::from_raw_parts(room.as_ptr().cast::<u8>(), got) };
        Ok(PyBytes::new(self.py, filled).into_any())
    }

    /// One `send`, of `data` as far as there is room; blocking, all of it.
    fn write(&self, data: &[u8], deadline: &mut Deadline) -> Result<usize, Trouble> {
        let fd = self.fd;
        let held = data.len() <= HELD_SEND;
        if !matches!(self.mode, Mode::Blocking) {
            let flags = self.flags();
            return self.until_done(Way::Out, deadline, held, || sys::transmit(fd, data, flags));
        }
        let mut sent = 0;
        if held && sys::HEEDS_DONTWAIT {
            match sys::transmit(fd, data, libc::MSG_DONTWAIT) {
                Ok(all) if all == data.len() => return Ok(all),
                Ok(some) => sent = some,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.write_rest(data, sent)
    }

    /// A blocking `send` of which so much has gone out.
    fn write_rest(&self, data: &[u8], sent: usize) -> Result<usize, Trouble> {
        let fd = self.fd;
        let rest = &data[sent..];
        // One that came while the data was made is handled only after the call, which may never return.
        self.py.check_signals()?;
        loop {
            match self.py.detach(|| sys::transmit(fd, rest, 0)) {
                Ok(more) => return Ok(sent + more),
                // as the kernel does for a send that a signal has cut short; the handler runs after us
                Err(_) if sent > 0 => return Ok(sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.interrupted()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn raised(&self, trouble: Trouble, way: Way) -> PyResult<usize> {
        match trouble {
            Trouble::Python(error) => Err(error),
            Trouble::System(error) => explained(self.object, Some(error), way),
        }
    }
}

/// Goes on with what `fast::recv` has been told; `size` is at most [`SMALL`].
pub(super) fn recv_told<'py>(
    object: &Bound<'py, SocketMixin>,
    size: usize,
    told: RecvTold,
) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    let error = match told {
        RecvTold::Nothing => None,
        RecvTold::Error(error) => Some(error),
        RecvTold::Interrupted { since } => {
            py.check_signals()?;
            let call = Call::new(object)?;
            let deadline = match (since, call.mode) {
                (Some(since), Mode::Until(timeout)) => since.checked_add(timeout).map_or(Deadline::Never, Deadline::At),
                _ => call.deadline(),
            };
            return call.recv_by_stack::<SMALL>(size, deadline);
        }
    };
    explained(object, error, Way::In)?;
    Ok(PyBytes::new(py, b"").into_any())
}

/// Goes on with what `fast::send` has been told: what a blocking send could not send at once, or why.
pub(super) fn send_told<'py>(
    object: &Bound<'py, SocketMixin>,
    data: &[u8],
    told: io::Result<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    let sent = match told {
        // what has gone out is said, whatever happens to the socket now
        Ok(sent) => Call::new(object)
            .map_or(Ok(sent), |call| call.write_rest(data, sent).or_else(|trouble| call.raised(trouble, Way::Out)))?,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            py.check_signals()?;
            let call = Call::new(object)?;
            call.write(data, &mut call.deadline()).or_else(|trouble| call.raised(trouble, Way::Out))?
        }
        Err(error) => explained(object, Some(error), Way::Out)?,
    };
    Ok(sent.into_pyobject(py)?.into_any())
}

/// A failure, or the end of the stream, as the class explains it: `PeerLost` once, the stdlib's way afterwards.
fn explained(object: &Bound<'_, SocketMixin>, error: Option<io::Error>, way: Way) -> PyResult<usize> {
    let code = match &error {
        None => 0,
        Some(error) => match error.raw_os_error() {
            Some(code) if may_be_loss(code) => code,
            _ => return Err(os_error(error)),
        },
    };
    match explain(object.as_any(), code, way)? {
        Explanation::Raise(raised) => Err(raised),
        Explanation::EndOfStream => Ok(0),
        Explanation::Nothing => error.map_or(Ok(0), |error| Err(os_error(&error))),
    }
}

/// Errors that a lost peer may be behind; all others are passed on without a look.
fn may_be_loss(code: i32) -> bool {
    matches!(
        code,
        libc::ECONNRESET | libc::EPIPE | libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENOTCONN
    )
}

enum Explanation {
    Raise(PyErr),
    EndOfStream,
    Nothing,
}

fn explain(object: &Bound<'_, PyAny>, code: i32, way: Way) -> PyResult<Explanation> {
    let py = object.py();
    let reading = matches!(way, Way::In);
    let told = object.call_method1(intern!(py, "_keepalive_explain"), (code, reading))?;
    Ok(if told.is_none() {
        Explanation::Nothing
    } else if told.is_instance_of::<PyOSError>() {
        Explanation::Raise(PyErr::from_value(told))
    } else {
        Explanation::EndOfStream
    })
}

#[cold]
fn wake(object: &Bound<'_, SocketMixin>) -> PyResult<()> {
    let py = object.py();
    if let Ok(watch) = object.getattr(intern!(py, "_keepalive_watch"))?.cast_into::<Watch>() {
        let inner = watch.get().inner.clone();
        py.detach(|| guard::wake(&inner));
    }
    Ok(())
}

thread_local! {
    /// Room for `recv` of more than [`SMALL`] when it isn't known how much will come; kept, never zeroed.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A `bytes` object of what `fill` has written, in room for `size` bytes of the object itself: no copy if it
/// fills them all.
pub(super) fn bytes_of<'py>(
    py: Python<'py>,
    size: usize,
    fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> PyResult<usize>,
) -> PyResult<Bound<'py, PyBytes>> {
    let length = ffi::Py_ssize_t::try_from(size)?;
    // SAFETY: attached; a new bytes object of `size` uninitialised bytes, or null with an exception set.
    let object = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(std::ptr::null(), length))? };
    // SAFETY: the object has `size` bytes there, and nobody else knows of it yet (documented use of
    // PyBytes_FromStringAndSize with NULL); they count as uninitialised until the kernel has written them.
    let room = unsafe {
        std::slice::from_raw_parts_mut(ffi::PyBytes_AsString(object.as_ptr()).cast::<MaybeUninit<u8>>(), size)
    };
    let got = fill(room)?;
    let filled = &room[..got];
    // SAFETY: `got` bytes were written.
    let filled = unsafe { std::slice::from_raw_parts(filled.as_ptr().cast::<u8>(), got) };
    if got < size { Ok(PyBytes::new(py, filled)) } else { Ok(object.cast_into()?) }
}

/// The mixin: `class KeepaliveSocket(SocketMixin, socket.socket)`.
#[pyclass(subclass, frozen, module = "longconn._longconn")]
pub(super) struct SocketMixin;

impl SocketMixin {
    /// The stdlib's own method, its errors explained.
    fn delegate<'py>(
        object: &Bound<'py, Self>,
        name: &Bound<'py, pyo3::types::PyString>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        way: Way,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = object.py();
        if guard::any_dormant() {
            wake(object)?;
        }
        let method = base(py)?.class.bind(py).getattr(name)?;
        let all: Vec<Bound<'py, PyAny>> = std::iter::once(object.clone().into_any()).chain(args.iter()).collect();
        let error = match method.call(PyTuple::new(py, all)?, kwargs) {
            Ok(result) if matches!(way, Way::In) && is_empty(&result)? => {
                return match explain(object.as_any(), 0, way)? {
                    Explanation::Raise(raised) => Err(raised),
                    _ => Ok(result),
                };
            }
            Ok(result) => return Ok(result),
            Err(error) if error.is_instance_of::<PyOSError>(py) => error,
            Err(error) => return Err(error),
        };
        let code: Option<i32> = error.value(py).getattr(intern!(py, "errno"))?.extract()?;
        match code {
            Some(code) if may_be_loss(code) => match explain(object.as_any(), code, way)? {
                Explanation::Raise(raised) => Err(raised),
                Explanation::EndOfStream => end_of_stream(py, name.to_cow()?.as_ref()),
                Explanation::Nothing => Err(error),
            },
            _ => Err(error),
        }
    }
}

/// Whether one of the stdlib's methods has received nothing: the bytes, or their number, come first.
fn is_empty(result: &Bound<'_, PyAny>) -> PyResult<bool> {
    let received = match result.cast::<PyTuple>() {
        Ok(all) => all.get_item(0)?,
        Err(_) => result.clone(),
    };
    Ok(!received.is_truthy()?)
}

/// What each of the stdlib's methods returns at the end of a stream.
fn end_of_stream<'py>(py: Python<'py>, method: &str) -> PyResult<Bound<'py, PyAny>> {
    use pyo3::IntoPyObjectExt;
    let empty = PyBytes::new(py, b"");
    let no_messages = pyo3::types::PyList::empty(py);
    match method {
        "recv" => empty.into_bound_py_any(py),
        "recvfrom" => (empty, py.None()).into_bound_py_any(py),
        "recvfrom_into" => (0, py.None()).into_bound_py_any(py),
        "recvmsg" => (empty, no_messages, 0, py.None()).into_bound_py_any(py),
        "recvmsg_into" => (0, no_messages, 0, py.None()).into_bound_py_any(py),
        _ => 0.into_bound_py_any(py),
    }
}

#[pymethods]
impl SocketMixin {
    /// As `socket.socket.recv`; a dead peer is PeerLost, once.
    #[pyo3(signature = (bufsize, flags = 0, /))]
    pub(super) fn recv<'py>(slf: &Bound<'py, Self>, bufsize: isize, flags: i32) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let size = match usize::try_from(bufsize) {
            Ok(size) if size > 0 && size <= LARGE && flags == 0 => size,
            _ => {
                let args = (bufsize, flags).into_pyobject(py)?;
                return Self::delegate(slf, intern!(py, "recv"), &args, None, Way::In);
            }
        };
        let call = Call::new(slf)?;
        if size <= TINY {
            return call.recv_by_stack::<TINY>(size, call.deadline());
        }
        if size <= SMALL {
            return call.recv_by_stack::<SMALL>(size, call.deadline());
        }
        // Straight into the object what is there. Not so for datagrams: the next may be larger than what FIONREAD told of
        // the one before it, which somebody else has taken meanwhile.
        let ready = sys::bytes_readable(call.fd).unwrap_or(0);
        if ready >= size || (ready > 0 && sys::is_stream(call.fd)) {
            return Ok(bytes_of(py, size.min(ready), |room| call.read(room))?.into_any());
        }
        // A signal handler may call recv while we wait, and then finds the place empty.
        let mut room = ROOM.take();
        room.clear();
        room.reserve(size);
        let got = call.read(&mut room.spare_capacity_mut()[..size]);
        let result = got.map(|got| {
            // SAFETY: `got` bytes were written.
            unsafe { room.set_len(got) };
            PyBytes::new(py, &room).into_any()
        });
        ROOM.set(room);
        result
    }

    /// As `socket.socket.recv_into`; a dead peer is PeerLost, once.
    #[pyo3(signature = (buffer, nbytes = 0, flags = 0))]
    fn recv_into<'py>(
        slf: &Bound<'py, Self>,
        buffer: &Bound<'py, PyAny>,
        nbytes: isize,
        flags: i32,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let mut view = Buffer::writable(buffer, "recv_into")?;
        let size = match usize::try_from(nbytes) {
            Ok(0) => view.len(),
            Ok(size) if size <= view.len() => size,
            _ => 0,
        };
        if size == 0 || flags != 0 {
            drop(view);
            let args = (buffer, nbytes, flags).into_pyobject(py)?;
            return Self::delegate(slf, intern!(py, "recv_into"), &args, None, Way::In);
        }
        let got = Call::new(slf)?.read(&mut view.room()[..size])?;
        Ok(got.into_pyobject(py)?.into_any())
    }

    /// As `socket.socket.send`; a dead peer is PeerLost, once.
    #[pyo3(signature = (data, flags = 0, /))]
    pub(super) fn send<'py>(
        slf: &Bound<'py, Self>,
        data: &Bound<'py, PyAny>,
        flags: i32,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if flags != 0 {
            let args = (data, flags).into_pyobject(py)?;
            return Self::delegate(slf, intern!(py, "send"), &args, None, Way::Out);
        }
        let view;
        let bytes = match data.cast_exact::<PyBytes>() {
            Ok(bytes) => bytes.as_bytes(),
            Err(_) => {
                view = Buffer::readable(data)?;
                view.bytes()
            }
        };
        let call = Call::new(slf)?;
        let sent = call.write(bytes, &mut call.deadline()).or_else(|trouble| call.raised(trouble, Way::Out))?;
        Ok(sent.into_pyobject(py)?.into_any())
    }

    /// As `socket.socket.sendall`; a dead peer is PeerLost, once.
    #[pyo3(signature = (data, flags = 0, /))]
    fn sendall<'py>(slf: &Bound<'py, Self>, data: &Bound<'py, PyAny>, flags: i32) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if flags != 0 {
            let args = (data, flags).into_pyobject(py)?;
            return Self::delegate(slf, intern!(py, "sendall"), &args, None, Way::Out);
        }
        let view = Buffer::readable(data)?;
        let mut rest = view.bytes();
        let call = Call::new(slf)?;
        // The whole has the timeout of one call, as the stdlib's since 3.5.
        let mut deadline = call.deadline();
        loop {
            let sent = call.write(rest, &mut deadline).or_else(|trouble| call.raised(trouble, Way::Out))?;
            rest = &rest[sent..];
            // A send that a signal cut short returns what went out, and not EINTR.
            py.check_signals()?;
            if rest.is_empty() {
                return Ok(py.None().into_bound(py));
            }
            call.still_open().or_else(|trouble| call.raised(trouble, Way::Out).map(drop))?;
        }
    }

    /// As `socket.socket.recvfrom`; a dead peer is PeerLost, once.
    #[pyo3(signature = (*args))]
    fn recvfrom<'py>(slf: &Bound<'py, Self>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        Self::delegate(slf, intern!(slf.py(), "recvfrom"), args, None, Way::In)
    }

    /// As `socket.socket.recvfrom_into`; a dead peer is PeerLost, once.
    #[pyo3(signature = (*args, **kwargs))]
    fn recvfrom_into<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::delegate(slf, intern!(slf.py(), "recvfrom_into"), args, kwargs, Way::In)
    }

    /// As `socket.socket.recvmsg`; a dead peer is PeerLost, once.
    #[pyo3(signature = (*args))]
    fn recvmsg<'py>(slf: &Bound<'py, Self>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        Self::delegate(slf, intern!(slf.py(), "recvmsg"), args, None, Way::In)
    }

    /// As `socket.socket.recvmsg_into`; a dead peer is PeerLost, once.
    #[pyo3(signature = (*args))]
    fn recvmsg_into<'py>(slf: &Bound<'py, Self>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        Self::delegate(slf, intern!(slf.py(), "recvmsg_into"), args, None, Way::In)
    }

    /// As `socket.socket.sendto`; a dead peer is PeerLost, once.
    #[pyo3(signature = (*args))]
    fn sendto<'py>(slf: &Bound<'py, Self>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        Self::delegate(slf, intern!(slf.py(), "sendto"), args, None, Way::Out)
    }

    /// As `socket.socket.sendmsg`; a dead peer is PeerLost, once.
    #[pyo3(signature = (*args))]
    fn sendmsg<'py>(slf: &Bound<'py, Self>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        Self::delegate(slf, intern!(slf.py(), "sendmsg"), args, None, Way::Out)
    }
}
