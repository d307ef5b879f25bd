//! The Python module: converts, detaches, converts. Decisions are made further in.

/// The docstring that the stub has: of a class, or of `Class.member`. build.rs has taken it from there.
macro_rules! doc {
    ($name:literal) => {
        include_str!(concat!(env!("OUT_DIR"), "/docs/", $name))
    };
}

mod aio;
mod buffer;
mod callback;
mod connection;
mod dial;
mod errors;
mod events;
mod fast;
mod fast_messages;
mod fault;
mod fork;
mod free_threading;
mod guard;
mod hub;
mod keepalive;
mod notices;
mod plain;
mod pulse;
mod server;
mod skipping;
mod socket;
mod tcp_info;
mod timeout;
mod tls;
mod waiting;

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// What it relies on without a GIL is in `free_threading`.
#[pymodule(gil_used = false)]
mod _longconn {
    use pyo3::prelude::*;

    use crate::net::sys;

    #[pymodule_export]
    use super::aio::{AsyncEvents, AsyncMessages, Visitor};
    #[pymodule_export]
    use super::connection::{Connection, LongConnection, open_link};
    #[pymodule_export]
    use super::dial::{dial, dial_async};
    #[pymodule_export]
    use super::events::{Events, ended_links};
    #[pymodule_export]
    use super::fast::add_fast_methods;
    #[pymodule_export]
    use super::fault::Proxy;
    #[pymodule_export]
    use super::fork::{after_in_child, after_in_parent, before_fork, register_at_fork, shut_down};
    #[pymodule_export]
    use super::guard::{Watch, has_rto_max, pretend_no_rto_max, rto_max_for, watch};
    #[pymodule_export]
    use super::hub::{Hub, Ticket};
    #[pymodule_export]
    use super::keepalive::{apply_keepalive, keepalive_of, socket_kind};
    #[pymodule_export]
    use super::notices::{logging_imported, warn};
    #[pymodule_export]
    use super::plain::open_plain_link;
    #[pymodule_export]
    use super::server::{Messages, Server, listen};
    #[pymodule_export]
    use super::skipping::{Clock, skipped};
    #[pymodule_export]
    use super::socket::SocketMixin;
    #[pymodule_export]
    use super::tcp_info::{TcpInfo, copy_descriptor, tcp_info};
    #[pymodule_export]
    use super::tls::{ClientSettings, Handshaken, ServerSettings, client_tls, server_tls};
    #[pymodule_export]
    use super::waiting::Waiting;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::refuse_subinterpreters()?;
        super::free_threading::prepare(module.py())?;
        super::notices::collect();
        super::fast_messages::add_message_methods(module.py())?;
        // Its name is longconn.aio's.
        module.add("AsyncConnection", module.py().get_type::<super::aio::AsyncConnection>())?;
        module.add("PLATFORM", sys::PLATFORM)?;
        module.add("KEEPALIVE_SECONDS", sys::KEEPALIVE_SECONDS)?;
        module.add("KEEPALIVE_COUNT", sys::KEEPALIVE_COUNT)?;
        module.add("HAS_GUARD", sys::HAS_GUARD)
    }
}

/// The native threads, the hooks for fork and exit, and all that is kept of Python are the process's, and belong to one
/// interpreter. CPython refuses by itself only those that have a GIL of their own, and only since 3.12 (PEP 684).
fn refuse_subinterpreters() -> PyResult<()> {
    // SAFETY: attached, so there is an interpreter.
    let id = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    if id == 0 {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "longconn works in the main interpreter only, not in a subinterpreter: its threads belong to the process; \
         use it from a thread of the main interpreter, or from another process",
    ))
}
