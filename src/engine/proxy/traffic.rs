//! One connection: its two directions, what is read into them and what leaves them.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;

use super::end::End;
use super::{Course, Proxy};
use crate::engine::dial::Dial;
use crate::fault::flow::{Fault, Flow, Output, Passage, Way};
use crate::fault::nat::Nat;
use crate::fault::record::{Entry, What};
use crate::net::sys;

pub(super) const CHUNK: usize = 64 * 1024;
/// Bytes carried for one connection before the next has its turn.
pub(super) const FAIR_SHARE: usize = 1024 * 1024;

pub(super) struct Connection {
    /// For its alarm.
    pub(super) key: usize,
    pub(super) number: u64,
    pub(super) client_address: SocketAddr,
    pub(super) client: Option<End>,
    pub(super) server: Option<End>,
    pub(super) dial: Option<Arc<Dial>>,
    pub(super) flows: [Flow; 2],
    pub(super) nat: Option<(Nat, bool)>,
    /// And whether by RST.
    pub(super) expires: Option<(Instant, bool)>,
    /// And whether what comes is answered by RST.
    pub(super) forgotten: Option<bool>,
    pub(super) came: Instant,
    pub(super) last_traffic: Instant,
}

impl Proxy {
    /// Carries what can be carried; the connection goes back to the others, unless nothing is left of it.
    pub(super) fn run(&self, course: &mut Course, mut connection: Connection, now: Instant) {
        if let Some((nat, resets)) = &mut connection.nat {
            if now >= nat.poll_timeout() {
                nat.handle_look(now, segments(&connection.client, &connection.server));
            }
            if nat.has_forgotten(now) {
                let resets = *resets;
                self.forget(course, &mut connection, resets, now);
            }
        }
        // Nothing is heard of one that is forgotten.
        if connection.forgotten.is_none()
            && let Some((_, resets)) = connection.expires.take_if(|(at, _)| *at <= now)
        {
            if resets {
                self.reset(course, &mut connection, &Way::BOTH, now);
            } else {
                self.end_both(course, &mut connection, now);
            }
        }
        let mut is_tired = false;
        match connection.forgotten {
            None => {
                for way in Way::BOTH {
                    is_tired |= self.carry(course, &mut connection, way, now);
                }
            }
            Some(true) => self.answer_strangers(course, &mut connection, now),
            Some(false) => {}
        }
        connection.attend_to_filters();
        for way in Way::BOTH {
            if connection.end(way).as_ref().is_some_and(|end| end.has_ended && end.is_told) {
                self.close_end(course, &mut connection, way);
            }
        }
        if connection.client.is_none() && connection.server.is_none() {
            self.finish(course, connection, now);
            return;
        }
        if is_tired {
            self.engine.attend(connection.key);
        } else if let Some(at) = connection.poll_timeout(now) {
            self.engine.set_alarm(connection.key, at.into());
        }
        course.connections.insert(connection.number, connection);
    }

    /// One direction. True if there is more to do.
    fn carry(&self, course: &mut Course, connection: &mut Connection, way: Way, now: Instant) -> bool {
        let mut carried = 0;
        loop {
            let left = self.deliver(course, connection, way, now);
            let entered = self.take_in(course, connection, way, now);
            carried += left + entered;
            if entered == 0 {
                return false;
            }
            if carried >= FAIR_SHARE {
                return true;
            }
        }
    }

    /// What leaves the path, to who is at its end.
    fn deliver(&self, course: &mut Course, connection: &mut Connection, way: Way, now: Instant) -> usize {
        let number = Some(connection.number);
        let mut delivered = 0;
        if way == Way::ToServer && connection.dial.is_some() {
            return 0;
        }
        if let Some(sink) = connection.end(way) {
            sink.is_full = false;
        }
        loop {
            let Connection { client, server, flows, .. } = connection;
            let flow = &mut flows[way as usize];
            let sink = if way == Way::ToServer { server } else { client };
            match (flow.poll(now), sink) {
                (None, _) => break,
                (Some(Output::Bytes(bytes)), Some(sink)) => {
                    match sys::transmit(sink.socket.as_raw_fd(), bytes, sys::SEND_FLAGS) {
                        Ok(count) => {
                            flow.consume(count);
                            delivered += count;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            sink.is_full = true;
                            break;
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => {
                            self.on_gone(course, connection, way, now);
                            break;
                        }
                    }
                }
                (Some(Output::End), Some(sink)) => {
                    // It fails if the connection is over already, which reading tells.
                    let _ = sink.socket.shutdown(Shutdown::Write);
                    sink.is_told = true;
                    course.record.note(Entry::new(now, What::Ended, number, Some(way)));
                }
                (Some(Output::Reset), Some(_)) => {
                    course.record.note(Entry::new(now, What::Reset, number, Some(way)));
                    self.abort(course, connection, way);
                }
                // Nobody is there any more: the sender's segment is answered by RST.
                (Some(Output::Bytes(_) | Output::End), None) => {
                    if connection.end(way.back()).is_some() {
                        course.record.note(Entry::new(now, What::Reset, number, Some(way.back())));
                        self.abort(course, connection, way.back());
                    }
                    break;
                }
                (Some(Output::Reset), None) => {}
                (Some(Output::CutBoth), _) => {
                    connection.flows[way.back() as usize].handle_fault(now, Fault::Passage(Passage::Cut));
                }
            }
        }
        if delivered > 0 {
            let bytes = delivered as u64;
            course.record.note(Entry { bytes, ..Entry::new(now, What::Forwarded, number, Some(way)) });
        }
        delivered
    }

    /// What comes from who is at the path's beginning.
    fn take_in(&self, course: &mut Course, connection: &mut Connection, way: Way, now: Instant) -> usize {
        let number = Some(connection.number);
        let mut room = [MaybeUninit::uninit(); CHUNK];
        loop {
            let Connection { client, server, flows, nat, last_traffic, .. } = connection;
            let flow = &mut flows[way as usize];
            let most = flow.room(now).min(CHUNK);
            let Some(source) = (if way == Way::ToServer { client } else { server }) else { return 0 };
            if most == 0 {
                return 0;
            }
            if source.has_ended {
                // A reset may still come.
                if matches!(source.socket.take_error(), Ok(Some(_))) {
                    self.on_gone(course, connection, way.back(), now);
                }
                return 0;
            }
            match sys::receive_now(source.socket.as_fd(), &mut room[..most]) {
                Ok([]) => {
                    source.has_ended = true;
                    flow.handle_end(now);
                    // To be looked at once more: the end may leave at once.
                    self.deliver(course, connection, way, now);
                    return 0;
                }
                Ok(bytes) => {
                    let lost = flow.counts().lost;
                    flow.handle_bytes(now, bytes);
                    course.capture(connection.number, way, bytes);
                    let lost = flow.counts().lost - lost;
                    if lost > 0 {
                        course.record.note(Entry { bytes: lost, ..Entry::new(now, What::Lost, number, Some(way)) });
                    }
                    *last_traffic = now;
                    if let Some((nat, _)) = nat {
                        nat.handle_traffic(now);
                    }
                    return bytes.len();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.on_gone(course, connection, way.back(), now);
                    return 0;
                }
            }
        }
    }

    /// Who is at the end of `way` has reset the connection, or its kernel has given up: the other is told, over the path.
    fn on_gone(&self, course: &mut Course, connection: &mut Connection, way: Way, now: Instant) {
        self.close_end(course, connection, way);
        connection.flows[way.back() as usize].handle_reset(now);
        if way == Way::ToClient
            && let Some(dial) = connection.dial.take()
        {
            dial.cancel();
        }
        self.deliver(course, connection, way.back(), now);
    }

    /// A NAT that knows of no such connection, and says so.
    fn answer_strangers(&self, course: &mut Course, connection: &mut Connection, now: Instant) {
        let mut room = [MaybeUninit::uninit(); 1024];
        for way in Way::BOTH {
            let Some(end) = connection.end(way).as_mut().filter(|end| !end.has_ended) else { continue };
            let has_come = match sys::receive_now(end.socket.as_fd(), &mut room) {
                Ok(_) => true,
                Err(error) => error.kind() != io::ErrorKind::WouldBlock,
            };
            if has_come {
                course.record.note(Entry::new(now, What::Reset, Some(connection.number), Some(way)));
                self.abort(course, connection, way);
            }
        }
    }

    pub(super) fn finish(&self, course: &mut Course, connection: Connection, now: Instant) {
        if let Some(dial) = connection.dial {
            dial.cancel();
        }
        course.by_key.remove(&connection.key);
        self.engine.release(connection.key);
        course.record.note(Entry::new(now, What::Closed, Some(connection.number), None));
    }
}

impl Course {
    fn capture(&mut self, connection: u64, way: Way, bytes: &[u8]) {
        if self.captured_bytes > 0 {
            let said = &mut self.captured.entry(connection).or_default()[way as usize];
            let room = self.captured_bytes.saturating_sub(said.len());
            said.extend_from_slice(&bytes[..room.min(bytes.len())]);
        }
    }
}

impl Connection {
    /// Who is at the end of `way`.
    pub(super) fn end(&mut self, way: Way) -> &mut Option<End> {
        match way {
            Way::ToServer => &mut self.server,
            Way::ToClient => &mut self.client,
        }
    }

    /// Who sends into a path that is cut isn't heard by our kernel either, and who is at its end doesn't hear that.
    fn attend_to_filters(&mut self) {
        let is_forgotten = self.forgotten == Some(false);
        for way in Way::BOTH {
            let is_cut = is_forgotten || self.flows[way as usize].is_cut();
            if let Some(sender) = self.end(way.back()) {
                sender.set_deaf(is_cut);
            }
            if let Some(receiver) = self.end(way) {
                receiver.set_mute(is_cut);
            }
        }
    }

    fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        if self.forgotten.is_some() {
            return None;
        }
        let forgets = self.nat.as_ref().map(|(nat, _)| nat.poll_timeout());
        let mut earliest = self.expires.map(|(at, _)| at).into_iter().chain(forgets).min();
        for way in Way::BOTH {
            let waits =
                self.end(way).as_ref().is_some_and(|end| end.is_full) || (way == Way::ToServer && self.dial.is_some());
            let flow = &self.flows[way as usize];
            let leaves = if waits { None } else { flow.poll_timeout() };
            for at in [leaves, flow.poll_room_timeout(now)].into_iter().flatten() {
                earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
            }
        }
        earliest
    }
}

/// What both have sent, as the kernel counts.
fn segments(client: &Option<End>, server: &Option<End>) -> u64 {
    let of = |end: &Option<End>| {
        let info = end.as_ref().and_then(|end| sys::tcp_info(end.socket.as_raw_fd()).ok());
        info.map_or(0, |(info, _)| u64::from(info.segs_in))
    };
    of(client) + of(server)
}
