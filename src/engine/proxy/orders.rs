//! What is to become of connections, at once or later, and how it is carried out.

use std::mem;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use mio::Interest;

use super::end::set_deaf;
use super::traffic::Connection;
use super::{BACKLOG, Course, Proxy};
use crate::engine::clock;
use crate::engine::link::LinkError;
use crate::fault::flow::{Fault, Flow, Way};
use crate::fault::nat::Nat;
use crate::fault::record::{Entry, What};

/// What is to become of connections.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// In these directions.
    Fault(&'static [Way], Fault),
    /// RST to the client, or to the server, or to both.
    Reset(&'static [Way]),
    /// As if both programs had ended: FIN to both, and RST for what they send from here on.
    End,
    /// A NAT loses its table now. What belongs to no connection that it knows is dropped, or answered by RST.
    Forget { resets: bool },
    /// The same, of each connection that has been silent for so long; `None`: never.
    ForgetAfter(Option<Duration>, bool),
    /// Nobody new gets in.
    Refuse(bool),
    /// Nor more than so many at once.
    LimitConnections(usize),
    /// All is well in these directions. What was forgotten stays forgotten.
    Restore(&'static [Way]),
}

/// What is to be done later.
pub(super) struct Planned {
    pub(super) order: Order,
    pub(super) connection: Option<u64>,
    pub(super) detail: String,
}

impl Proxy {
    /// For all connections, those that are still to come included, or for one.
    pub fn order(&self, order: &Order, connection: Option<u64>, detail: &str) -> Result<(), LinkError> {
        let mut course = self.enter_open()?;
        self.carry_out(&mut course, order, connection, detail, clock::now());
        Ok(())
    }

    /// The same, later, by the engine's thread; gives its number.
    pub fn plan(
        &self,
        delay: Duration,
        order: Order,
        connection: Option<u64>,
        detail: String,
    ) -> Result<u64, LinkError> {
        let mut course = self.enter_open()?;
        let serial = course.planned_so_far;
        course.planned_so_far += 1;
        let at = clock::now() + delay;
        course.planned.insert((at, serial), Planned { order, connection, detail });
        self.set_alarm(&course);
        Ok(serial)
    }

    /// What was planned doesn't happen: what has this number, or nothing at all.
    pub fn cancel(&self, plan: Option<u64>) -> Result<(), LinkError> {
        let planned = &mut self.enter()?.planned;
        planned.retain(|(_, serial), _| plan.is_some_and(|plan| *serial != plan));
        Ok(())
    }

    pub(super) fn carry_out(&self, course: &mut Course, order: &Order, only: Option<u64>, detail: &str, now: Instant) {
        let is_gone = only.is_some_and(|number| !course.connections.contains_key(&number));
        let detail =
            if is_gone { format!("{detail}: there is no such connection any more") } else { detail.to_owned() };
        course.record.note(Entry { detail, ..Entry::new(now, What::Fault, only, None) });
        if only.is_none() {
            self.order_for_newcomers(course, order, now);
        }
        let numbers: Vec<_> = match only {
            Some(number) => vec![number],
            None => course.connections.keys().copied().collect(),
        };
        for number in numbers {
            if let Some(mut connection) = course.connections.remove(&number) {
                self.order_for(course, &mut connection, order, now);
                self.run(course, connection, now);
            }
        }
    }

    fn order_for_newcomers(&self, course: &mut Course, order: &Order, now: Instant) {
        match order {
            Order::Fault(_, Fault::End) | Order::Reset(_) | Order::End | Order::Forget { .. } => {}
            Order::Fault(ways, fault) => {
                ways.iter().for_each(|way| course.flows[*way as usize].handle_fault(now, *fault));
            }
            Order::ForgetAfter(idle, resets) => course.forgets = idle.map(|idle| (idle, *resets)),
            Order::Refuse(refuses) => self.refuse(course, *refuses),
            Order::LimitConnections(most) => course.most_connections = *most,
            Order::Restore(ways) => {
                ways.iter().for_each(|way| course.flows[*way as usize].handle_fault(now, Fault::Restore));
                if ways.len() == Way::BOTH.len() {
                    course.forgets = None;
                    course.most_connections = usize::MAX;
                    self.refuse(course, false);
                }
            }
        }
        // A cable that is out carries neither SYN nor the answer.
        let deaf = course.flows.iter().any(Flow::is_cut);
        let Course { listener, is_deaf, .. } = course;
        if let Some(listener) = listener {
            set_deaf(listener, is_deaf, deaf);
        }
    }

    fn order_for(&self, course: &mut Course, connection: &mut Connection, order: &Order, now: Instant) {
        match order {
            Order::Fault(ways, fault) => {
                ways.iter().for_each(|way| connection.flows[*way as usize].handle_fault(now, *fault));
            }
            Order::Reset(ways) => {
                for way in ways.iter().copied() {
                    if connection.end(way).is_none() {
                        continue;
                    }
                    course.record.note(Entry::new(now, What::Reset, Some(connection.number), Some(way)));
                    self.abort(course, connection, way);
                }
            }
            Order::End => {
                for way in Way::BOTH {
                    if connection.end(way).is_none() {
                        continue;
                    }
                    course.record.note(Entry::new(now, What::Ended, Some(connection.number), Some(way)));
                    self.end(course, connection, way);
                }
            }
            Order::Forget { resets } => self.forget(course, connection, *resets, now),
            Order::ForgetAfter(idle, resets) => {
                connection.nat = idle.map(|idle| (Nat::new(idle, connection.last_traffic), *resets));
            }
            Order::Restore(ways) => {
                ways.iter().for_each(|way| connection.flows[*way as usize].handle_fault(now, Fault::Restore));
                if ways.len() == Way::BOTH.len() {
                    connection.nat = None;
                }
            }
            Order::Refuse(_) | Order::LimitConnections(_) => {}
        }
    }

    /// By the kernel, which answers SYN with RST while nobody listens; those who were in its queue are reset.
    fn refuse(&self, course: &mut Course, refuses: bool) {
        let Some(listener) = &course.listener else { return };
        if refuses == mem::replace(&mut course.is_refusing, refuses) {
            return;
        }
        if refuses {
            // Where a listener can't be shut down, who comes is accepted, and reset.
            let _ = listener.shutdown(Shutdown::Read);
            return;
        }
        // It fails if somebody else has begun to listen there, with SO_REUSEADDR.
        let watched = listener.listen(BACKLOG);
        if let Err(error) = watched.and_then(|()| self.engine.rewatch(listener.as_fd(), self.key, Interest::READABLE)) {
            log::error!(target: "longconn.engine", "{}: can't listen again: {error}", self.address);
        }
    }

    pub(super) fn forget(&self, course: &mut Course, connection: &mut Connection, resets: bool, now: Instant) {
        if connection.forgotten.is_none() {
            connection.forgotten = Some(resets);
            course.record.note(Entry::new(now, What::Forgotten, Some(connection.number), None));
        }
    }
}
