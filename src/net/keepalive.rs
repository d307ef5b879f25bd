//! The kernel's keepalive of one socket: read, changed in part, put back.

use std::io;
use std::num::NonZeroU8;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::net::sys;
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
    /// `TCP_USER_TIMEOUT` (RFC 5482), milliseconds; zero is the system's own. On macOS `TCP_RXT_CONNDROPTIME`, whole seconds.
    pub user_timeout: Option<Duration>,
}

impl Keepalive {
    /// What the socket has now.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let socket = SockRef::from(&fd);
        Ok(Self {
            enabled: Some(socket.keepalive()?),
            idle: Some(socket.tcp_keepalive_time()?),
            interval: Some(socket.tcp_keepalive_interval()?),
            count: Some(socket.tcp_keepalive_retries()?),
            user_timeout: sys::user_timeout(fd)?,
        })
    }

    /// The kernel's probes, if it sends any.
    #[must_use]
    pub fn probing_of(fd: BorrowedFd<'_>) -> Option<Probing> {
        let socket = SockRef::from(&fd);
        if !socket.keepalive().ok()? {
            return None;
        }
        Some(Probing {
            idle_seconds: u16::try_from(socket.tcp_keepalive_time().ok()?.as_secs()).ok()?,
            interval_seconds: u16::try_from(socket.tcp_keepalive_interval().ok()?.as_secs()).ok()?,
            count: NonZeroU8::new(u8::try_from(socket.tcp_keepalive_retries().ok()?).ok()?)?,
        })
    }

    /// Sets what isn't `None`, at once, on a live connection too.
    pub fn apply(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let socket = SockRef::from(&fd);
        let mut timings = TcpKeepalive::new();
        if let Some(idle) = self.idle {
            timings = timings.with_time(idle);
        }
        if let Some(interval) = self.interval {
            timings = timings.with_interval(interval);
        }
        if let Some(count) = self.count {
            timings = timings.with_retries(count);
        }
        // socket2's call for the timings switches keepalive on as well
        if self.enabled == Some(true) {
            socket.set_tcp_keepalive(&timings)?;
        } else if self.idle.is_some() || self.interval.is_some() || self.count.is_some() {
            let enabled = match self.enabled {
                Some(enabled) => enabled,
                None => socket.keepalive()?,
            };
            socket.set_tcp_keepalive(&timings)?;
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
