//! `send` and `recv` of LongConnection as bare C functions, as `fast` has them for sockets, and for the same reason: here is
//! what nearly always comes, one small message without a timeout of its own. All else goes on in `connection`.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use super::connection::{CARRIED_BYTES, Connection, LongConnection};
use super::fast::{Definition, Object, detached, panicked, slice};
use super::timeout::Timeout;
use crate::engine::link::{Attempt, LinkError};

/// The methods that know all cases, and say what is wrong with arguments.
static GENERAL: PyOnceLock<[Py<PyAny>; 2]> = PyOnceLock::new();
const SEND: usize = 0;
const RECV: usize = 1;

/// CPython calls this and `recv` as it calls METH_FASTCALL methods with keywords: attached, with a LongConnection, `count`
/// borrowed references to arguments, and behind them those of `names`, a tuple or null. That is what "called as a method"
/// means below.
unsafe extern "C" fn send(slf: Object, arguments: *const Object, count: ffi::Py_ssize_t, names: Object) -> Object {
    // SAFETY: called as a method.
    unsafe {
        if let &[data] = slice(arguments.cast_mut(), count)
            && names.is_null()
            && ffi::PyBytes_CheckExact(data) != 0
        {
            let size = usize::try_from(ffi::PyBytes_Size(data)).unwrap_or_default();
            let bytes = std::slice::from_raw_parts(ffi::PyBytes_AsString(data).cast::<u8>(), size);
            let link = &connection(&slf).link;
            if let Some(Ok(Attempt::Done(()))) = contained(|| link.try_send(bytes)) {
                return ffi::Py_NewRef(ffi::Py_None());
            }
        }
        general(slf, arguments, count, names, SEND, |this, arguments, timeout| match *arguments {
            [data] => {
                let py = this.py();
                let data = Bound::from_borrowed_ptr(py, data);
                Some(LongConnection::send(this, py, &data, timeout).map(|()| py.None().into_bound(py)))
            }
            _ => None,
        })
    }
}

unsafe extern "C" fn recv(slf: Object, arguments: *const Object, count: ffi::Py_ssize_t, names: Object) -> Object {
    // SAFETY: called as a method.
    unsafe {
        let mut was_interrupted = false;
        if count == 0
            && names.is_null()
            && let this = connection(&slf)
            && this.waits_for_ever()
        {
            let mut room = [MaybeUninit::<u8>::uninit(); CARRIED_BYTES];
            let take =
                |message: &[u8]| ffi::PyBytes_FromStringAndSize(message.as_ptr().cast(), message.len().cast_signed());
            match contained(|| this.link.try_recv_or_begin(take)) {
                Some(Ok(Attempt::Done(Ok(message)))) => return message,
                Some(Ok(Attempt::Done(Err(receiving)))) => {
                    match detached(|| contained(|| receiving.finish(&mut room))) {
                        Some(Ok(Attempt::Done(length))) => {
                            return ffi::PyBytes_FromStringAndSize(room.as_ptr().cast(), length.cast_signed());
                        }
                        outcome => was_interrupted = matches!(outcome, Some(Err(LinkError::Interrupted))),
                    }
                }
                _ => {}
            }
        }
        general(slf, arguments, count, names, RECV, |this, arguments, timeout| {
            let py = this.py();
            if was_interrupted && let Err(error) = py.check_signals() {
                return Some(Err(error));
            }
            arguments.is_empty().then(|| this.as_super().get().recv_one(py, timeout).map(Bound::into_any))
        })
    }
}

/// What `slf` is.
unsafe fn connection(slf: &Object) -> &Connection {
    // SAFETY: called as a method, hence attached; the caller's reference lasts as long as the call.
    unsafe { Borrowed::from_ptr(Python::assume_attached(), *slf).cast_unchecked::<Connection>().get() }
}

/// A panic must not cross into C: `None`, and the general way meets the same.
fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Goes on in safe code: `run` gets the positional arguments and the timeout, and gives nothing for arguments that it doesn't
/// take.
#[cold]
unsafe fn general(
    slf: Object,
    arguments: *const Object,
    count: ffi::Py_ssize_t,
    names: Object,
    method: usize,
    run: impl for<'a, 'py> FnOnce(&'a Bound<'py, LongConnection>, &[Object], Timeout) -> Option<PyResult<Bound<'py, PyAny>>>,
) -> Object {
    Python::attach(|py| {
        let result = contained(|| {
            // SAFETY: called as a method.
            unsafe {
                let this = Borrowed::from_ptr(py, slf).cast_unchecked::<LongConnection>().to_owned();
                let names =
                    Bound::from_borrowed_ptr_or_opt(py, names).map(|names| names.cast_into_unchecked::<PyTuple>());
                let named = names.as_ref().map_or(0, |names| names.len());
                let all = slice(arguments.cast_mut(), count + named.cast_signed());
                let positional = slice(arguments.cast_mut(), count);
                let timeout = match (&names, all) {
                    (None, _) => Some(Timeout::LeftOut),
                    (Some(names), [.., last]) if named == 1 && names.get_item(0)?.eq("timeout")? => {
                        Some(Bound::from_borrowed_ptr(py, *last).extract()?)
                    }
                    _ => None,
                };
                if let Some(timeout) = timeout
                    && let Some(result) = run(&this, positional, timeout)
                {
                    return result;
                }
                let arguments = all.iter().map(|&argument| Bound::from_borrowed_ptr(py, argument));
                let mut arguments: Vec<_> = std::iter::once(this.into_any()).chain(arguments).collect();
                let values = arguments.split_off(positional.len() + 1);
                let keywords = PyDict::new(py);
                for (name, value) in names.iter().flatten().zip(values) {
                    keywords.set_item(name, value)?;
                }
                let Some(methods) = GENERAL.get(py) else { return Err(panicked()) };
                methods[method].bind(py).call(PyTuple::new(py, arguments)?, Some(&keywords))
            }
        });
        match result.unwrap_or_else(|| Err(panicked())) {
            Ok(result) => result.into_ptr(),
            Err(error) => {
                error.restore(py);
                std::ptr::null_mut()
            }
        }
    })
}

const SEND_HELP: &CStr =
    terminated(concat!("send($self, data, *, timeout=...)\n--\n\n", doc!("LongConnection.send"), "\0"));
const RECV_HELP: &CStr =
    terminated(concat!("recv($self, /, *size, timeout=...)\n--\n\n", doc!("LongConnection.recv"), "\0"));

const fn terminated(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("one NUL, at the end"),
    }
}

static METHODS: [Definition; 2] =
    [Definition::with_keywords(c"send", send, SEND_HELP), Definition::with_keywords(c"recv", recv, RECV_HELP)];

/// Gives LongConnection these methods, in the place of those that know all cases.
pub(super) fn add_message_methods(py: Python<'_>) -> PyResult<()> {
    let class = py.get_type::<LongConnection>();
    let [send, recv] = [class.getattr("send")?, class.getattr("recv")?];
    if GENERAL.set(py, [send.unbind(), recv.unbind()]).is_err() {
        return Ok(());
    }
    METHODS.iter().try_for_each(|definition| definition.add_to(&class))
}
