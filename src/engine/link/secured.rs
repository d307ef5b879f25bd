//! TLS between the link's socket and its core. The core knows nothing of it: it is given plaintext, and what it has to send counts as
//! sent once it is encrypted, for then nothing can overtake it any more.

use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use socket2::SockRef;

use super::{Inner, Link};
use crate::net::sys;
use crate::net::tls::SEALED_BYTES;
use crate::proto::cause::Cause;
use crate::proto::connection::Transmit;
use crate::proto::core::Core;
use crate::proto::evidence::KernelView;

impl Link {
    /// Nothing is encrypted while ciphertext is left, so that beats wait for the rest of one batch, and for no more.
    pub(super) fn transmit_secured(&self, inner: &mut Inner, now: Instant, room: &mut usize) {
        while !inner.is_write_blocked {
            let Inner { core, extras, socket: Some(socket), burst_bytes, .. } = &mut *inner else { return };
            let socket: &OwnedFd = socket;
            let Some(tls) = extras.as_mut().and_then(|extras| extras.tls.as_mut()) else { return };
            let send = |bytes: &[u8]| sys::transmit(socket.as_raw_fd(), bytes, sys::SEND_FLAGS);
            let sent = if !tls.outgoing().is_empty() {
                let sent = send(tls.outgoing());
                sent.map(|length| {
                    tls.on_sent(length);
                    tls.outgoing().is_empty()
                })
            } else if tls.is_ending {
                // It fails when the connection is gone, which reading tells.
                let _ = SockRef::from(socket).shutdown(Shutdown::Write);
                tls.is_ending = false;
                return;
            } else if !core.is_urgent() {
                return;
            } else if *room == 0 {
                self.engine.attend(self.key);
                return;
            } else {
                let counts = matches!(core, Core::Plain(_));
                let Transmit { first, control, data } = core.poll_transmit(now);
                let offered = first.len() + control.len() + data.len();
                if offered == 0 {
                    return;
                }
                let (length, sent) = tls.seal([first, control, data], counts, send);
                core.transmitted(now, length);
                *burst_bytes = 0;
                *room = room.saturating_sub(length);
                if length == offered && tls.outgoing().is_empty() {
                    return;
                }
                if length == 0 {
                    return;
                }
                sent
            };
            match sent {
                Ok(true) => {}
                Ok(false) => {
                    inner.is_write_blocked = true;
                    self.watch_blocked(inner);
                }
                Err(error) => match error.kind() {
                    std::io::ErrorKind::WouldBlock => {
                        inner.is_write_blocked = true;
                        self.watch_blocked(inner);
                    }
                    std::io::ErrorKind::Interrupted => {}
                    _ => {
                        inner.is_write_blocked = true;
                        self.on_write_error(inner, now, error);
                        return;
                    }
                },
            }
        }
    }

    /// Our stream ends, with close_notify, behind what is encrypted already.
    pub(super) fn end_secured(&self, inner: &mut Inner, now: Instant, room: &mut usize) {
        if let Some(tls) = inner.extras.as_mut().and_then(|extras| extras.tls.as_mut()) {
            tls.end();
            tls.is_ending = true;
        }
        self.transmit_secured(inner, now, room);
    }
}

impl Inner {
    /// Of plain links, most have no extras at all.
    pub(super) fn is_secured(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.tls.is_some())
    }

    /// What came with the end of the TLS handshake.
    pub(super) fn hear_early(&mut self, now: Instant) {
        let Some(tls) = self.extras.as_mut().and_then(|extras| extras.tls.as_mut()) else { return };
        let early = tls.take_early();
        let has_ended = tls.has_peer_ended();
        if !early.is_empty() {
            self.core.handle_input(now, &early);
        }
        if has_ended {
            self.core.handle_end(now);
        }
    }

    pub(super) fn handle_secured_input(&mut self, now: Instant, bytes: &[u8]) {
        let Self { core, extras, .. } = self;
        let Some(tls) = extras.as_mut().and_then(|extras| extras.tls.as_mut()) else { return };
        let had_ended = tls.has_peer_ended();
        let handled = tls.handle_input(bytes, |plaintext| core.handle_input(now, plaintext));
        if tls.has_peer_ended() && !had_ended {
            core.handle_end(now);
        }
        if let Err(error) = handled {
            core.handle_failure(now, Cause::Tls, error.to_string());
        }
    }

    /// The end of the stream of the socket. On a framed link CLOSE is what tells a clean end from a cut; a plain peer has only
    /// close_notify (RFC 8446, section 6.1), which anybody on the way could keep back who can send a FIN.
    pub(super) fn handle_secured_end(&mut self, now: Instant) {
        let has_said_so = self.extras.as_ref().and_then(|extras| Some(extras.tls.as_ref()?.has_peer_ended()));
        match (&mut self.core, has_said_so) {
            (_, Some(true)) => {}
            (Core::Plain(plain), _) => plain.handle_failure(
                now,
                Cause::Ended,
                "without TLS's close_notify: it may be cut short, so what came last may not be all".into(),
            ),
            (core, _) => core.handle_end(now),
        }
    }

    /// close_notify, if the kernel takes it at once.
    pub(super) fn say_goodbye(&mut self) {
        let (Some(socket), Some(tls)) = (&self.socket, self.extras.as_mut().and_then(|extras| extras.tls.as_mut()))
        else {
            return;
        };
        tls.end();
        // The connection may be gone, and is over anyway.
        let _ = sys::transmit(socket.as_raw_fd(), tls.outgoing(), sys::SEND_FLAGS);
    }

    /// The kernel counts what is on the wire. A framed link compares such counts only with each other, so all of them are the wire's;
    /// a plain one tells which of its bytes have arrived.
    pub(super) fn cleared(&mut self, view: KernelView) -> KernelView {
        let Some(tls) = self.extras.as_mut().and_then(|extras| extras.tls.as_mut()) else { return view };
        let waiting = u32::try_from(tls.outgoing().len()).unwrap_or(u32::MAX);
        let unsent = view.unsent.saturating_add(waiting);
        match self.core {
            Core::Framed(_) => KernelView { written: tls.wire_bytes(), unsent, ..view },
            Core::Plain(_) => KernelView { bytes_acked: tls.arrived(view.bytes_acked), unsent, ..view },
        }
    }
}

const _: () = assert!(SEALED_BYTES <= super::TURN_BYTES);
