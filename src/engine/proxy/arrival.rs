//! From a knock to a connection on both sides: who is let in, and the way to the server behind.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use socket2::Socket;

use super::traffic::Connection;
use super::{Course, Proxy};
use crate::engine::accepting::{ACCEPT_BATCH, ACCEPT_PAUSE, Knock};
use crate::engine::clock;
use crate::engine::dial::{self, DialConfig, Outcome};
use crate::fault::flow::Way;
use crate::fault::nat::Nat;
use crate::fault::record::{Entry, What};
use crate::net::sys;

impl Proxy {
    pub(super) fn accept(self: &Arc<Self>, course: &mut Course, now: Instant) {
        for _ in 0..ACCEPT_BATCH {
            let Some(listener) = &course.listener else { return };
            match self.engine.doorkeeper.accept(listener, self.address, now) {
                Knock::Came(socket, address) => {
                    let Some(address) = address.as_socket() else { continue };
                    let is_full = course.connections.len() >= course.most_connections;
                    if course.is_refusing || is_full {
                        let detail = if is_full { "there are as many as may be" } else { "" }.to_owned();
                        course.record.note(Entry { detail, ..Entry::new(now, What::Refused, None, None) });
                        let _ = sys::abort(socket.as_fd());
                    } else if let Err(error) = self.receive(course, socket, address, now) {
                        log::debug!(target: "longconn.engine", "{}: a connection was gone at once: {error}", self.address);
                    }
                }
                Knock::Gone => {}
                Knock::TurnedAway => {
                    let detail = "there is no descriptor for it".to_owned();
                    course.record.note(Entry { detail, ..Entry::new(now, What::Refused, None, None) });
                }
                Knock::Nobody => return,
                Knock::Failed(_) => {
                    course.accept_again = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.engine.attend(self.key);
    }

    fn receive(
        self: &Arc<Self>,
        course: &mut Course,
        socket: Socket,
        address: SocketAddr,
        now: Instant,
    ) -> io::Result<()> {
        course.accepted += 1;
        let number = course.accepted;
        let client = self.adopt(course, number, socket)?;
        let seed = course.seed.wrapping_add(number.wrapping_mul(2));
        let key = self.engine.new_key();
        self.engine.adopt_proxy(key, self.clone(), None)?;
        course.by_key.insert(key, number);
        let mut connection = Connection {
            key,
            number,
            client_address: address,
            client: Some(client),
            server: None,
            dial: None,
            flows: [course.flows[0].another(seed), course.flows[1].another(seed + 1)],
            nat: course.forgets.map(|(idle, resets)| (Nat::new(idle, now), resets)),
            expires: course.expires.map(|(age, resets)| (now + age, resets)),
            forgotten: None,
            came: now,
            last_traffic: now,
        };
        self.order_for_some(course, &mut connection, now);
        let detail = format!("from {address}");
        course.record.note(Entry { detail, ..Entry::new(now, What::Accepted, Some(number), None) });
        let this = Arc::downgrade(self);
        let done = Box::new(move |outcome| {
            if let Some(proxy) = this.upgrade() {
                proxy.on_dialled(number, outcome);
            }
        });
        match dial::dial(course.upstream.clone(), DialConfig::default(), done) {
            Ok(dial) => connection.dial = Some(dial),
            Err(error) => self.fail(course, &mut connection, &error.to_string(), now),
        }
        self.run(course, connection, now);
        Ok(())
    }

    fn on_dialled(self: &Arc<Self>, number: u64, outcome: Outcome) {
        let mut course = self.lock();
        let Some(mut connection) = course.connections.remove(&number) else { return };
        let now = clock::now();
        connection.dial = None;
        let course = &mut *course;
        match outcome.map_err(|error| error.to_string()).and_then(|connected| {
            let peer = connected.peer;
            let adopted = self.adopt(course, number, Socket::from(connected.socket));
            adopted.map(|end| (end, peer)).map_err(|error| error.to_string())
        }) {
            Ok((end, peer)) => {
                connection.server = Some(end);
                let detail = format!("to {peer}");
                course.record.note(Entry { detail, ..Entry::new(now, What::Connected, Some(number), None) });
            }
            Err(error) => self.fail(course, &mut connection, &error, now),
        }
        self.run(course, connection, now);
    }

    /// The client hears of it as of all else that comes from there.
    fn fail(&self, course: &mut Course, connection: &mut Connection, why: &str, now: Instant) {
        let detail = why.to_owned();
        course.record.note(Entry { detail, ..Entry::new(now, What::Failed, Some(connection.number), None) });
        connection.flows[Way::ToClient as usize].handle_reset(now);
    }
}
