//! The kernel's keepalive of one socket: read, changed in part, put back.

use std::io;
use std::num::NonZeroU8;
use std::time::Duration;

use socket2::SockRef;

use crate::net::sys::{self, BorrowedSocket};
use crate::proto::verdict::Probing;

/// What to change; `None` leaves alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// `SO_KEEPALIVE`.
    pub enabled: Option<bool>,
    /// `TCP_KEEPIDLE` (`TCP_KEEPALIVE` on macOS): quiet time before the first probe, whole seconds.
    pub idle: Option<Duration>,
    /// `TCP_KEEPINTVL`, whole seconds.
    pub interval: Option<Duration>,
    /// `TCP_KEEPCNT`.
    pub count: Option<u32>,
    /// `TCP_USER_TIMEOUT` (RFC 5482), milliseconds; zero is the system's own. On macOS it is
    /// `TCP_RXT_CONNDROPTIME` and on Windows `TCP_MAXRT`, both in whole seconds.
    pub user_timeout: Option<Duration>,
}

impl Keepalive {
    /// What the socket has now.
    pub fn of(fd: BorrowedSocket<'_>) -> io::Result<Self> {
        let (idle, interval, count) = sys::probe_timings(fd)?;
        Ok(Self {
            enabled: Some(SockRef::from(&fd).keepalive()?),
            idle: Some(idle),
            interval: Some(interval),
            count: Some(count),
            user_timeout: sys::user_timeout(fd)?,
        })
    }

    /// The kernel's probes, if it sends any.
    #[must_use]
    pub fn probing_of(fd: BorrowedSocket<'_>) -> Option<Probing> {
        if !SockRef::from(&fd).keepalive().ok()? {
            return None;
        }
        let (idle, interval, count) = sys::probe_timings(fd).ok()?;
        Some(Probing {
            idle_seconds: u16::try_from(idle.as_secs()).ok()?,
            interval_seconds: u16::try_from(interval.as_secs()).ok()?,
            count: NonZeroU8::new(u8::try_from(count).ok()?)?,
        })
    }

    /// Sets what isn't `None`, at once, on a live connection too.
    pub fn apply(&self, fd: BorrowedSocket<'_>) -> io::Result<()> {
        let socket = SockRef::from(&fd);
        // The call for the timings switches keepalive on as well.
        if self.enabled == Some(true) {
            sys::set_probe_timings(fd, self.idle, self.interval, self.count)?;
        } else if self.idle.is_some() || self.interval.is_some() || self.count.is_some() {
            let enabled = match self.enabled {
                Some(enabled) => enabled,
                None => socket.keepalive()?,
            };
            sys::set_probe_timings(fd, self.idle, self.interval, self.count)?;
            socket.set_keepalive(enabled)?;
        } else if let Some(enabled) = self.enabled {
            socket.set_keepalive(enabled)?;
        }
        if let Some(timeout) = self.user_timeout {
            sys::set_user_timeout(fd, timeout)?;
        }
        Ok(())
    }

    /// From what is there now: back to `before` whatever still is as it was `wanted`.
    #[must_use]
    pub fn undoing(&self, wanted: Self, before: Self) -> Self {
        fn undo<T: PartialEq>(now: Option<T>, wanted: Option<T>, before: Option<T>) -> Option<T> {
            if wanted.is_some() && wanted == now { before } else { None }
        }
        Self {
            enabled: undo(self.enabled, wanted.enabled, before.enabled),
            idle: undo(self.idle, wanted.idle, before.idle),
            interval: undo(self.interval, wanted.interval, before.interval),
            count: undo(self.count, wanted.count, before.count),
            user_timeout: undo(self.user_timeout, wanted.user_timeout, before.user_timeout),
        }
    }
}
