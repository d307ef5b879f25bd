//! How clients are accepted, and what becomes of those for whom there is no descriptor: they are reset at once.
//!
//! Left in the listener's queue they would take themselves for connected, as their kernels are, and wait until their own time is
//! up. So one descriptor is kept in reserve: it is closed, the client takes its place, is reset, and it is opened again (libev's
//! manual, "The special problem of accept()ing when you can't"; libuv's `uv__emfile_trick`).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::engine::sync::{self, Mutex};
use crate::net::sys;
use crate::proto::moment::Moment;

/// Accepted in one go.
pub(super) const ACCEPT_BATCH: usize = 64;
/// Where nobody can be accepted, and nobody be reset, it is tried again after this.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two warnings; a count tells the rest. Arbitrary.
const QUIET: Duration = Duration::from_secs(10);

/// What an attempt to accept came to.
pub(super) enum Knock {
    Came(Socket, SockAddr),
    /// It was gone before we came (accept(2)).
    Gone,
    /// There was no descriptor for it: it was reset.
    TurnedAway,
    Nobody,
    /// For want of descriptors or memory; whoever has come still waits.
    Failed(io::Error),
}

/// One for all listeners of an engine.
#[derive(Default)]
pub(super) struct Doorkeeper(Mutex<Reserve>);

#[derive(Default)]
struct Reserve {
    /// For nothing but its descriptor, and its place in the system's table of open files: a duplicate has none.
    spare: Option<Socket>,
    warned_at: Option<Moment>,
}

impl Doorkeeper {
    /// Before anybody comes, for then there may be no descriptor left.
    pub(super) fn prepare(&self) {
        sync::lock(&self.0).refill();
    }

    /// For who listens, without blocking, at this address.
    pub(super) fn accept(&self, listener: &Socket, address: SocketAddr, now: Instant) -> Knock {
        let mut reserve = sync::lock(&self.0);
        let knock = match attempt(listener) {
            Knock::Failed(error) if is_out_of_descriptors(&error) && reserve.spare.take().is_some() => {
                match attempt(listener) {
                    Knock::Came(socket, _) => {
                        let _ = sys::abort(socket.as_fd());
                        reserve.warn(address, now, &format_args!("clients are reset: {error}"));
                        Knock::TurnedAway
                    }
                    // Linux looks for a descriptor before it looks for a client; or another thread has taken ours.
                    knock => knock,
                }
            }
            knock => knock,
        };
        if let Knock::Failed(error) = &knock {
            reserve.warn(address, now, &format_args!("can't accept now: {error}"));
        }
        reserve.refill();
        knock
    }

    /// In a forked child: our copy of the descriptor, if no thread of the parent was about it.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.0.try_lock().ok()?.spare.as_ref().map(AsRawFd::as_raw_fd)
    }
}

impl Reserve {
    fn refill(&mut self) {
        if self.spare.is_none() {
            self.spare = Socket::new(Domain::UNIX, Type::DGRAM, None).ok();
        }
    }

    fn warn(&mut self, address: SocketAddr, now: Instant, what: &std::fmt::Arguments<'_>) {
        let now = Moment::from(now);
        if self.warned_at.is_none_or(|last| now >= last + QUIET) {
            self.warned_at = Some(now);
            log::warn!(target: "longconn.engine", "{address}: {what}");
        }
    }
}

fn attempt(listener: &Socket) -> Knock {
    match listener.accept() {
        Ok((socket, address)) => Knock::Came(socket, address),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Knock::Nobody,
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO) => Knock::Gone,
            // It doesn't listen, for now or for good.
            Some(libc::EINVAL) => Knock::Nobody,
            _ => Knock::Failed(error),
        },
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
