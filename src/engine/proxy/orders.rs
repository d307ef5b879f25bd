//! What is to become of connections, at once or later, and how it is carried out.

use std::mem::{self, discriminant};
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
    /// FIN, or RST, to both ends of each that has come so long ago; `None`: never.
    Expire(Option<Duration>, bool),
    /// Nobody new gets in.
    Refuse(bool),
    /// Nor more than so many at once.
    LimitConnections(usize),
    /// All is well in these directions. What was forgotten stays forgotten.
    Restore(&'static [Way]),
}

/// Whose connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Whom {
    /// Those that are still to come included.
    All,
    One(u64),
    /// Each with this probability, likewise.
    Share(f64),
}

/// What befalls each that comes with this probability.
pub(super) struct Shared {
    share: f64,
    order: Order,
}

/// What is to be done later.
pub(super) struct Planned {
    pub(super) order: Order,
    pub(super) whom: Whom,
    pub(super) detail: String,
}

impl Order {
    /// Whether it concerns who comes later, too.
    fn lasts(&self) -> bool {
        match self {
            Self::Fault(_, fault) => *fault != Fault::End,
            Self::ForgetAfter(..) | Self::Expire(..) => true,
            Self::Reset(_)
            | Self::End
            | Self::Forget { .. }
            | Self::Refuse(_)
            | Self::LimitConnections(_)
            | Self::Restore(_) => false,
        }
    }

    /// What the other order leaves of this one; false: nothing.
    fn outlives(&mut self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fault(ways, fault), Self::Fault(others, other)) if discriminant(fault) == discriminant(other) => {
                *ways = without(ways, others);
                !ways.is_empty()
            }
            (Self::Fault(ways, _), Self::Restore(others)) => {
                *ways = without(ways, others);
                !ways.is_empty()
            }
            (Self::ForgetAfter(..), Self::ForgetAfter(..)) | (Self::Expire(..), Self::Expire(..)) => false,
            (_, Self::Restore(others)) => others.len() < Way::BOTH.len(),
            _ => true,
        }
    }
}

fn without(ways: &[Way], others: &[Way]) -> &'static [Way] {
    let remains = |way| ways.contains(&way) && !others.contains(&way);
    Way::these(remains(Way::ToServer), remains(Way::ToClient))
}

impl Proxy {
    pub fn order(&self, order: &Order, whom: Whom, detail: &str) -> Result<(), LinkError> {
        let mut course = self.enter_open()?;
        self.carry_out(&mut course, order, whom, detail, clock::now());
        Ok(())
    }

    /// The same, later, by the engine's thread; gives its number.
    pub fn plan(&self, delay: Duration, order: Order, whom: Whom, detail: String) -> Result<u64, LinkError> {
        let mut course = self.enter_open()?;
        let serial = course.planned_so_far;
        course.planned_so_far += 1;
        let at = clock::now() + delay;
        course.planned.insert((at, serial), Planned { order, whom, detail });
        self.set_alarm(&course);
        Ok(serial)
    }

    /// What was planned doesn't happen: what has this number, or nothing at all.
    pub fn cancel(&self, plan: Option<u64>) -> Result<(), LinkError> {
        let planned = &mut self.enter()?.planned;
        planned.retain(|(_, serial), _| plan.is_some_and(|plan| *serial != plan));
        Ok(())
    }

    pub(super) fn carry_out(&self, course: &mut Course, order: &Order, whom: Whom, detail: &str, now: Instant) {
        let only = if let Whom::One(number) = whom { Some(number) } else { None };
        let is_gone = only.is_some_and(|number| !course.connections.contains_key(&number));
        let detail =
            if is_gone { format!("{detail}: there is no such connection any more") } else { detail.to_owned() };
        course.record.note(Entry { detail, ..Entry::new(now, What::Fault, only, None) });
        if whom == Whom::All || (only.is_none() && order.lasts()) {
            // What all have, or some others now, is no longer what some had.
            course.shares.retain_mut(|shared| shared.order.outlives(order));
        }
        let mut numbers: Vec<_> = course.connections.keys().copied().collect();
        match whom {
            Whom::All => self.order_for_newcomers(course, order, now),
            Whom::One(number) => numbers.retain(|each| *each == number),
            Whom::Share(share) => {
                numbers.retain(|_| course.dice.fraction() < share);
                if order.lasts() {
                    course.shares.push(Shared { share, order: order.clone() });
                }
            }
        }
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
            Order::Expire(age, resets) => course.expires = age.map(|age| (age, *resets)),
            Order::Refuse(refuses) => self.refuse(course, *refuses),
            Order::LimitConnections(most) => course.most_connections = *most,
            Order::Restore(ways) => {
                ways.iter().for_each(|way| course.flows[*way as usize].handle_fault(now, Fault::Restore));
                if ways.len() == Way::BOTH.len() {
                    (course.forgets, course.expires) = (None, None);
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

    /// Who comes may be among the some.
    pub(super) fn order_for_some(&self, course: &mut Course, connection: &mut Connection, now: Instant) {
        let shares = mem::take(&mut course.shares);
        for Shared { share, order } in &shares {
            if course.dice.fraction() < *share {
                self.order_for(course, connection, order, now);
            }
        }
        course.shares = shares;
    }

    fn order_for(&self, course: &mut Course, connection: &mut Connection, order: &Order, now: Instant) {
        match order {
            Order::Fault(ways, fault) => {
                ways.iter().for_each(|way| connection.flows[*way as usize].handle_fault(now, *fault));
            }
            Order::Reset(ways) => self.reset(course, connection, ways, now),
            Order::End => self.end_both(course, connection, now),
            Order::Forget { resets } => self.forget(course, connection, *resets, now),
            Order::ForgetAfter(idle, resets) => {
                connection.nat = idle.map(|idle| (Nat::new(idle, connection.last_traffic), *resets));
            }
            Order::Expire(age, resets) => connection.expires = age.map(|age| (connection.came + age, *resets)),
            Order::Restore(ways) => {
                ways.iter().for_each(|way| connection.flows[*way as usize].handle_fault(now, Fault::Restore));
                if ways.len() == Way::BOTH.len() {
                    (connection.nat, connection.expires) = (None, None);
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

    pub(super) fn reset(&self, course: &mut Course, connection: &mut Connection, ways: &[Way], now: Instant) {
        for way in ways.iter().copied() {
            if connection.end(way).is_some() {
                course.record.note(Entry::new(now, What::Reset, Some(connection.number), Some(way)));
                self.abort(course, connection, way);
            }
        }
    }

    pub(super) fn end_both(&self, course: &mut Course, connection: &mut Connection, now: Instant) {
        for way in Way::BOTH {
            if connection.end(way).is_some() {
                course.record.note(Entry::new(now, What::Ended, Some(connection.number), Some(way)));
                self.end(course, connection, way);
            }
        }
    }

    pub(super) fn forget(&self, course: &mut Course, connection: &mut Connection, resets: bool, now: Instant) {
        if connection.forgotten.is_none() {
            connection.forgotten = Some(resets);
            course.record.note(Entry::new(now, What::Forgotten, Some(connection.number), None));
        }
    }
}
