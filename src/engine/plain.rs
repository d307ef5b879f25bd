//! What a plain link has beside its core: who watches its path. Nothing of ours is answered by a plain peer's program, so
//! that is the guard, and the kernel's keepalive.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::guard::{self, Conviction, Plan, StartError, Watch};
use crate::net::keepalive::Keepalive;
use crate::proto::plain::PlainConfig;

/// Plain peers of one kind; all links of a server share it.
#[derive(Clone, Debug, Default)]
pub struct PlainPeers {
    pub config: Arc<PlainConfig>,
    /// Set on each socket.
    pub keepalive: Option<Keepalive>,
    /// The guard's limit; `None`: there is none.
    pub guard_limit: Option<Duration>,
}

/// The guard of one link's socket; it ends with it, and before the descriptor is closed.
#[derive(Debug)]
pub(super) struct PathWatch(Arc<Watch>);

impl PathWatch {
    /// Has the path watched as was wished.
    pub(super) fn begin(fd: impl AsFd, peers: &PlainPeers) -> io::Result<Option<Self>> {
        let fd = fd.as_fd();
        let Some(limit) = peers.guard_limit else {
            if let Some(keepalive) = peers.keepalive {
                keepalive.apply(fd)?;
            }
            return Ok(None);
        };
        let plan = Plan { keepalive: peers.keepalive, ..Plan::default() };
        match guard::start(fd, limit, plan) {
            Ok(watch) => Ok(Some(Self(watch))),
            // It is over already, which reading tells with its reason.
            Err(StartError::NotConnected(_)) => Ok(None),
            Err(StartError::NotTcp) => Err(io::ErrorKind::InvalidInput.into()),
            Err(StartError::System(error)) => Err(error),
        }
    }

    /// Why the connection has failed, if that was the path's fault; asked by who has just seen an error on it.
    pub(super) fn conviction(&self) -> Option<Conviction> {
        // The kernel may have given up since the last look.
        guard::look_now(&self.0);
        self.0.conviction()
    }
}

impl Drop for PathWatch {
    fn drop(&mut self) {
        guard::stop(&self.0, false);
    }
}
