//! One side's socket: how it is watched, how it is kept from its kernel's peer, and how it is let go.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use mio::Interest;
use socket2::Socket;

use super::traffic::{CHUNK, Connection, FAIR_SHARE};
use super::{Course, Proxy};
use crate::fault::flow::Way;
use crate::net::{sys, tuning};

/// What our kernel takes unsent: it is out of our hands, and goes on its way over a cut.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 16 * 1024;

/// One side's socket.
pub(super) struct End {
    key: usize,
    /// What a forked child closes.
    number: Arc<AtomicI32>,
    pub(super) socket: Socket,
    is_on_loopback: bool,
    is_deaf: bool,
    is_mute: bool,
    /// Its program has ended its stream.
    pub(super) has_ended: bool,
    /// We have told it the end of the other's.
    pub(super) is_told: bool,
    /// It takes nothing for now.
    pub(super) is_full: bool,
}

pub(super) fn set_deaf(socket: &Socket, is_deaf: &mut bool, deaf: bool) {
    if *is_deaf != deaf {
        // Where there are no filters, the kernel acknowledges until its buffer is full.
        let _ = sys::set_deaf(socket.as_fd(), deaf);
        *is_deaf = deaf;
    }
}

impl End {
    pub(super) fn set_deaf(&mut self, deaf: bool) {
        set_deaf(&self.socket, &mut self.is_deaf, deaf);
    }

    pub(super) fn set_mute(&mut self, mute: bool) {
        // What does it on loopback may do anything elsewhere.
        if self.is_mute != mute && self.is_on_loopback {
            // Without the right to it, the kernel acknowledges what comes the other way, and repeats what it has.
            let _ = sys::set_mute(self.socket.as_fd(), mute);
            self.is_mute = mute;
        }
    }
}

impl Proxy {
    pub(super) fn adopt(self: &Arc<Self>, course: &mut Course, number: u64, socket: Socket) -> io::Result<End> {
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        #[cfg(target_vendor = "apple")]
        socket.set_nosigpipe(true)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
        // What our kernel has to repeat after a cut comes soon.
        let _ = tuning::bound_retransmissions(socket.as_fd(), Duration::ZERO);
        let peer = socket.peer_addr()?.as_socket();
        let key = self.engine.new_key();
        let end = End {
            key,
            number: Arc::new(AtomicI32::new(socket.as_raw_fd())),
            is_on_loopback: peer
                .is_some_and(|peer| matches!(peer.ip().to_canonical(), IpAddr::V4(ip) if ip.is_loopback())),
            socket,
            is_deaf: false,
            is_mute: false,
            has_ended: false,
            is_told: false,
            is_full: false,
        };
        // First, so that whose socket is reported is known.
        self.engine.adopt_proxy(key, self.clone(), Some(end.number.clone()))?;
        if let Err(error) = self.engine.watch(end.socket.as_fd(), key, Interest::READABLE | Interest::WRITABLE) {
            self.engine.release(key);
            return Err(error);
        }
        course.by_key.insert(key, number);
        Ok(end)
    }

    /// RST to who is at the end of `way`.
    pub(super) fn abort(&self, course: &mut Course, connection: &mut Connection, way: Way) {
        if let Some(socket) = self.let_go(course, connection, way) {
            let _ = sys::abort(socket.as_fd());
        }
    }

    pub(super) fn close_end(&self, course: &mut Course, connection: &mut Connection, way: Way) {
        drop(self.let_go(course, connection, way));
    }

    /// FIN to who is at the end of `way`, whose program seems to have ended.
    pub(super) fn end(&self, course: &mut Course, connection: &mut Connection, way: Way) {
        let Some(socket) = self.let_go(course, connection, way) else { return };
        let socket = Socket::from(socket);
        let _ = socket.shutdown(Shutdown::Write);
        // Closed with bytes unread it would say RST (RFC 2525, section 2.17).
        let mut room = [MaybeUninit::uninit(); CHUNK];
        for _ in 0..FAIR_SHARE / CHUNK {
            if !matches!(sys::receive_now(socket.as_fd(), &mut room), Ok(bytes) if !bytes.is_empty()) {
                return;
            }
        }
    }

    /// Nobody watches the socket any more, nor closes it in a forked child.
    fn let_go(&self, course: &mut Course, connection: &mut Connection, way: Way) -> Option<OwnedFd> {
        if way == Way::ToServer
            && let Some(dial) = connection.dial.take()
        {
            dial.cancel();
        }
        let mut end = connection.end(way).take()?;
        // What an order says is heard, whatever path is cut, and so is who goes on after it.
        end.set_mute(false);
        end.set_deaf(false);
        let End { key, number, socket, .. } = end;
        course.by_key.remove(&key);
        self.engine.unwatch(socket.as_fd());
        self.engine.release(key);
        number.store(-1, Ordering::Relaxed);
        Some(socket.into())
    }
}
