//! `recv` and `send` of little as bare C functions: the case of the hot methods that nearly always comes.
//!
//! In a ping-pong each call finds the caches cold, and every instruction between the interpreter and the kernel
//! counts three times what a loop shows (`benches/bench.py`). Here is only what can go right; all else goes on in
//! `socket`, either from the start or, where the kernel has already told what it tells once, with that.
//!
//! The descriptors belong to KeepaliveSocket itself and not to the mixin: CPython's specialised calls (PEP 659) want
//! the exact class, and so it is they that check what `self` is.

use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use pyo3::exceptions::PySystemError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple, PyType};

use super::socket::{Base, HELD_SEND, Hint, SMALL, SocketMixin, TINY, check_class, ready_base, recv_told, send_told};
use crate::engine::{clock, guard};
use crate::net::sys;

/// What became of an attempt.
enum Outcome<Told> {
    /// A new reference, or null with an exception set.
    Done(Object),
    /// Nothing has happened yet.
    Unusual,
    Told(Told),
}

/// What the kernel has said to a `recv` already.
pub(super) enum RecvTold {
    /// The end of the stream, or a datagram without bytes.
    Nothing,
    Error(io::Error),
    /// Nothing came until a signal, or until the time was up; since when it has waited for readiness.
    Interrupted {
        since: Option<Instant>,
    },
}

pub(super) type Object = *mut ffi::PyObject;

/// CPython calls this and `send` as it calls METH_FASTCALL methods: attached, with a KeepaliveSocket, and `count`
/// borrowed references to arguments. That is what "called as a method" means below.
unsafe extern "C" fn recv(slf: Object, arguments: *mut Object, count: ffi::Py_ssize_t) -> Object {
    // SAFETY: called as a method.
    unsafe {
        let arguments = slice(arguments, count);
        match try_recv(slf, arguments) {
            Outcome::Done(result) => result,
            Outcome::Unusual => general(slf, |object| match *arguments {
                [size] if ffi::PyLong_CheckExact(size) != 0 => {
                    SocketMixin::recv(object, Bound::from_borrowed_ptr(object.py(), size).extract()?, 0)
                }
                _ => from_the_start(object, "recv", arguments),
            }),
            Outcome::Told(told) => general(slf, |object| {
                let size = arguments[0]; // which `try_recv` has read
                recv_told(object, Bound::from_borrowed_ptr(object.py(), size).extract()?, told)
            }),
        }
    }
}

unsafe extern "C" fn send(slf: Object, arguments: *mut Object, count: ffi::Py_ssize_t) -> Object {
    // SAFETY: called as a method.
    unsafe {
        let arguments = slice(arguments, count);
        match try_send(slf, arguments) {
            Outcome::Done(result) => result,
            Outcome::Unusual => general(slf, |object| match *arguments {
                [data] => SocketMixin::send(object, &Bound::from_borrowed_ptr(object.py(), data), 0),
                _ => from_the_start(object, "send", arguments),
            }),
            Outcome::Told(told) => general(slf, |object| {
                let data = Bound::from_borrowed_ptr(object.py(), arguments[0]); // which `try_send` has read
                send_told(object, data.cast_exact::<PyBytes>()?.as_bytes(), told)
            }),
        }
    }
}

pub(super) unsafe fn slice<'a>(arguments: *mut Object, count: ffi::Py_ssize_t) -> &'a [Object] {
    match usize::try_from(count) {
        // SAFETY: called as a method.
        Ok(count) if count > 0 => unsafe { std::slice::from_raw_parts(arguments, count) },
        _ => &[], // the pointer may be null
    }
}

/// The descriptor, and the timeout in seconds (negative: none); None if there is something to be said against either.
#[inline]
unsafe fn look(base: &Base, slf: Object) -> Option<(RawFd, f64)> {
    // SAFETY: called as a method; the two functions take any `socket.socket`, and NULL.
    unsafe {
        let fd = number(base, slf)?;
        let timeout = (base.gettimeout)(slf, std::ptr::null_mut());
        if timeout.is_null() {
            ffi::PyErr_Clear();
            return None;
        }
        let seconds = if timeout == ffi::Py_None() { -1.0 } else { ffi::PyFloat_AsDouble(timeout) };
        ffi::Py_DECREF(timeout);
        Some((fd, seconds))
    }
}

#[inline]
unsafe fn number(base: &Base, slf: Object) -> Option<RawFd> {
    // SAFETY: as above.
    unsafe {
        let number = (base.fileno)(slf, std::ptr::null_mut());
        if number.is_null() {
            ffi::PyErr_Clear();
            return None;
        }
        let fd = ffi::PyLong_AsLong(number);
        ffi::Py_DECREF(number);
        RawFd::try_from(fd).ok().filter(|&fd| fd >= 0)
    }
}

#[inline]
unsafe fn try_recv(slf: Object, arguments: &[Object]) -> Outcome<RecvTold> {
    // SAFETY: called as a method.
    unsafe {
        let &[size] = arguments else { return Outcome::Unusual };
        if ffi::PyLong_CheckExact(size) == 0 {
            return Outcome::Unusual;
        }
        let size = ffi::PyLong_AsSsize_t(size);
        match usize::try_from(size) {
            Ok(size) if (1..=TINY).contains(&size) => recv_by_stack::<TINY>(slf, size),
            Ok(size) if (1..=SMALL).contains(&size) => recv_by_stack::<SMALL>(slf, size),
            Ok(_) => Outcome::Unusual,
            Err(_) => {
                ffi::PyErr_Clear(); // too large for a ssize_t; the general path says so
                Outcome::Unusual
            }
        }
    }
}

#[inline(never)]
unsafe fn recv_by_stack<const N: usize>(slf: Object, size: usize) -> Outcome<RecvTold> {
    // SAFETY: called as a method.
    unsafe {
        let Some(base) = ready_base(Python::assume_attached()) else { return Outcome::Unusual };
        if guard::any_dormant() {
            return Outcome::Unusual;
        }
        let Some((fd, timeout)) = look(base, slf) else { return Outcome::Unusual };
        let mut room = [MaybeUninit::<u8>::uninit(); N];
        let room = &mut room[..size];
        let mut since = None;
        let got = if timeout < 0.0 {
            detached(|| sys::receive(fd, room, 0))
        } else {
            let hint = Hint::of(fd);
            if timeout > 0.0 && hint.polls_first() {
                let Ok(limit) = Duration::try_from_secs_f64(timeout) else { return Outcome::Unusual };
                since = Some(clock::real());
                match detached(|| sys::wait_ready(fd, libc::POLLIN, Some(limit))) {
                    Ok(true) => hint.polled(),
                    Ok(false) => return Outcome::Told(RecvTold::Interrupted { since }),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                        return Outcome::Told(RecvTold::Interrupted { since });
                    }
                    Err(error) => return Outcome::Told(RecvTold::Error(error)),
                }
                // While we waited somebody may have closed it, and somebody else may have got its number.
                if number(base, slf) != Some(fd) {
                    return Outcome::Told(RecvTold::Error(io::Error::from_raw_os_error(libc::EBADF)));
                }
            }
            sys::receive(fd, room, libc::MSG_DONTWAIT)
        };
        match got {
            Ok(0) => Outcome::Told(RecvTold::Nothing),
            Ok(got) => Outcome::Done(ffi::PyBytes_FromStringAndSize(room.as_ptr().cast(), got.cast_signed())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Outcome::Told(RecvTold::Interrupted { since }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && timeout > 0.0 => match since {
                None => Outcome::Unusual, // the general path waits, and remembers that it had to
                Some(_) => Outcome::Told(RecvTold::Interrupted { since }),
            },
            Err(error) => Outcome::Told(RecvTold::Error(error)),
        }
    }
}

#[inline]
unsafe fn try_send(slf: Object, arguments: &[Object]) -> Outcome<io::Result<usize>> {
    // SAFETY: called as a method.
    unsafe {
        let &[data] = arguments else { return Outcome::Unusual };
        if ffi::PyBytes_CheckExact(data) == 0 || guard::any_dormant() {
            return Outcome::Unusual;
        }
        let size = usize::try_from(ffi::PyBytes_Size(data)).unwrap_or(usize::MAX);
        if size > HELD_SEND {
            return Outcome::Unusual;
        }
        let Some(base) = ready_base(Python::assume_attached()) else { return Outcome::Unusual };
        let Some((fd, timeout)) = look(base, slf) else { return Outcome::Unusual };
        if timeout < 0.0 && !sys::HEEDS_DONTWAIT {
            return Outcome::Unusual;
        }
        let bytes = std::slice::from_raw_parts(ffi::PyBytes_AsString(data).cast::<u8>(), size);
        match sys::transmit(fd, bytes, libc::MSG_DONTWAIT) {
            // a blocking send sends all
            Ok(sent) if sent < size && timeout < 0.0 => Outcome::Told(Ok(sent)),
            Ok(sent) => Outcome::Done(ffi::PyLong_FromSize_t(sent)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && timeout != 0.0 => Outcome::Unusual,
            Err(error) => Outcome::Told(Err(error)),
        }
    }
}

/// `Python::detach`, without what it keeps for safe code.
#[inline]
pub(super) unsafe fn detached<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: called as a method, hence attached; `work` touches nothing of Python's and doesn't panic.
    unsafe {
        let state = ffi::PyEval_SaveThread();
        let result = work();
        ffi::PyEval_RestoreThread(state);
        result
    }
}

/// Goes on in safe code.
#[cold]
unsafe fn general(
    slf: Object,
    run: impl for<'a, 'py> FnOnce(&'a Bound<'py, SocketMixin>) -> PyResult<Bound<'py, PyAny>>,
) -> Object {
    Python::attach(|py| {
        // A panic must not cross into C.
        let result = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: called as a method.
            let object = unsafe { Bound::from_borrowed_ptr(py, slf) };
            run(object.cast()?)
        }));
        match result.unwrap_or_else(|_| Err(panicked())) {
            Ok(result) => result.into_ptr(),
            Err(error) => {
                error.restore(py);
                std::ptr::null_mut()
            }
        }
    })
}

pub(super) fn panicked() -> PyErr {
    PySystemError::new_err("longconn has panicked; please report it")
}

/// The mixin's method of that name, which knows all cases, and says what is wrong with arguments.
fn from_the_start<'py>(
    object: &Bound<'py, SocketMixin>,
    method: &str,
    arguments: &[Object],
) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    // SAFETY: borrowed references, from a caller that was called as a method.
    let arguments = arguments.iter().map(|&argument| unsafe { Bound::from_borrowed_ptr(py, argument) });
    let all: Vec<_> = std::iter::once(object.clone().into_any()).chain(arguments).collect();
    py.get_type::<SocketMixin>().getattr(method)?.call1(PyTuple::new(py, all)?)
}

/// CPython wants it at a fixed address, and only reads it.
pub(super) struct Definition(UnsafeCell<ffi::PyMethodDef>);

// SAFETY: nobody writes to it.
unsafe impl Sync for Definition {}

impl Definition {
    pub(super) const fn with_keywords(
        name: &'static CStr,
        function: ffi::PyCFunctionFastWithKeywords,
        doc: &'static CStr,
    ) -> Self {
        Self(UnsafeCell::new(ffi::PyMethodDef {
            ml_name: name.as_ptr(),
            ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: function },
            ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
            ml_doc: doc.as_ptr(),
        }))
    }

    /// Makes it a method of `class`.
    pub(super) fn add_to(&'static self, class: &Bound<'_, PyType>) -> PyResult<()> {
        // SAFETY: attached; the definition lives for ever. A new reference, or null with an exception set.
        let descriptor = unsafe {
            Bound::from_owned_ptr_or_err(class.py(), ffi::PyDescr_NewMethod(class.as_type_ptr(), self.0.get()))?
        };
        // SAFETY: the definition isn't written to, and its name is a C string.
        let name = unsafe { CStr::from_ptr((*self.0.get()).ml_name) };
        class.setattr(name.to_string_lossy(), descriptor)
    }
}

static RECV: Definition = Definition(UnsafeCell::new(ffi::PyMethodDef {
    ml_name: c"recv".as_ptr(),
    ml_meth: ffi::PyMethodDefPointer { PyCFunctionFast: recv },
    ml_flags: ffi::METH_FASTCALL,
    ml_doc: c"recv($self, bufsize, flags=0, /)\n--\n\nAs `socket.socket.recv`; a dead peer is PeerLost, once.".as_ptr(),
}));
static SEND: Definition = Definition(UnsafeCell::new(ffi::PyMethodDef {
    ml_name: c"send".as_ptr(),
    ml_meth: ffi::PyMethodDefPointer { PyCFunctionFast: send },
    ml_flags: ffi::METH_FASTCALL,
    ml_doc: c"send($self, data, flags=0, /)\n--\n\nAs `socket.socket.send`; a dead peer is PeerLost, once.".as_ptr(),
}));

/// Gives `class` these methods; a subclass of the mixin and of `socket.socket`, as KeepaliveSocket is.
#[pyfunction]
#[pyo3(signature = (class, /))]
pub(super) fn add_fast_methods(class: &Bound<'_, PyType>) -> PyResult<()> {
    check_class(class)?;
    [&RECV, &SEND].into_iter().try_for_each(|definition| definition.add_to(class))
}
