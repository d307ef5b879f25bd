//! The messages of all connections in one loop, and one message to all of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Listener;
use crate::engine::link::{Attempt, Link, LinkError};
use crate::engine::waiting::{Interest, Patience};
use crate::proto::close::{Close, CloseCode};
use crate::proto::session::SendError;

/// Messages of one link before the next has its turn.
const FAIR_SHARE: usize = 64;
/// How long who is closed for being slow may take to hear it. Arbitrary.
const GOODBYE: Duration = Duration::from_secs(1);

/// What [`Listener::broadcast`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Broadcast {
    pub sent: usize,
    /// Links whose buffer was full.
    pub full: usize,
    /// Links that were closing, or whose peer takes only smaller messages.
    pub failed: usize,
}

impl Listener {
    /// From here on messages of all connections come by [`Listener::try_messages`], and none by accept.
    pub fn list_messages(&self) -> Result<(), LinkError> {
        let mut hall = self.enter()?;
        if self.lists_messages.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        hall.to_accept.clear();
        let links: Vec<_> = hall.guests.iter().map(|(_, guest)| guest.link.clone()).collect();
        drop(hall);
        links.iter().for_each(|link| link.enlist());
        Ok(())
    }

    /// Until [`Listener::try_messages`] has something, unless another thread is quicker.
    pub fn wait_messages<'s>(&self, patience: impl Into<Patience<'s>>) -> Result<(), LinkError> {
        self.wait(Interest::READABLE, patience, |hall| (!hall.with_messages.is_empty()).then_some(()))
    }

    /// Gives out messages of all connections, `most` at the most, each link having its turn; they are the peers' concern
    /// until [`Link::confirm`]. For who holds the interpreter: `show` must not run any of its code.
    pub fn try_messages(
        &self,
        most: usize,
        mut show: impl FnMut(&Arc<Link>, &[u8]),
    ) -> Result<Attempt<usize>, LinkError> {
        self.check_process()?;
        let mut count = 0;
        let mut turns = self.lock().with_messages.len();
        while count < most && turns > 0 {
            turns -= 1;
            let Some(link) = self.lock().with_messages.pop_front() else { break };
            let share = FAIR_SHARE.min(most - count);
            match link.peek_listed(share, |message| show(&link, message)) {
                Some((shown, has_more)) => {
                    count += shown;
                    if has_more {
                        self.on_readable(link);
                    }
                }
                // Somebody is about it.
                None => self.on_readable(link),
            }
        }
        let mut hall = self.lock();
        if !hall.with_messages.is_empty() {
            hall.waiters.wake_one(Interest::READABLE);
        }
        Ok(if count == 0 { Attempt::Later } else { Attempt::Done(count) })
    }

    pub(in crate::engine) fn on_readable(&self, link: Arc<Link>) {
        let mut hall = self.lock();
        hall.with_messages.push_back(link);
        hall.waiters.wake_one(Interest::READABLE);
    }

    #[must_use]
    pub(in crate::engine) fn lists_messages(&self) -> bool {
        self.lists_messages.load(Ordering::Relaxed)
    }

    /// Sends to every open connection that has room; waits for none.
    pub fn broadcast(&self, message: &[u8], closes_the_slow: bool) -> Result<Broadcast, LinkError> {
        let mut outcome = Broadcast::default();
        for link in self.connections()? {
            match link.send_if_room(message) {
                Ok(()) => outcome.sent += 1,
                Err(Some(SendError::Full { .. })) => {
                    outcome.full += 1;
                    if closes_the_slow {
                        let close = Close::new(CloseCode::TOO_SLOW, "too far behind for what is sent to all");
                        link.leave(close, GOODBYE)?;
                    }
                }
                Err(_) => outcome.failed += 1,
            }
        }
        Ok(outcome)
    }
}
