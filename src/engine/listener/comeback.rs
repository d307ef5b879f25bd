//! Sessions that lose their link and get another: which wait, who may go on with one, and what is said of those that have ended.

use std::sync::Arc;

use super::arrival::stale;
use super::hall::{Stage, Standing};
use super::{Listener, ListenerConfig};
use crate::engine::clock;
use crate::engine::link::{Arrived, Link};
use crate::proto::close::Close;
use crate::proto::handshake::Resumption;

impl Listener {
    /// The link of a session is lost, which keeps so much; its lock is held.
    pub(in crate::engine) fn on_parted(&self, link: &Arc<Link>, bytes: usize) {
        let mut hall = self.lock();
        let Some(guest) = hall.guest(link) else { return };
        let is_open = guest.stage == Stage::Open;
        if is_open {
            guest.stage = Stage::Away;
            hall.uncount(link);
        }
        let ListenerConfig { max_waiting, max_waiting_bytes, .. } = self.config;
        let evicted = hall.sessions.park(link.clone(), bytes, max_waiting, max_waiting_bytes);
        drop(hall);
        for link in evicted {
            self.engine.deliver(link.key(), Arrived::Eviction);
            link.expect_delivery();
        }
    }

    /// The client has the right to the session of `link`, whose lock is held, and it may come in.
    pub(in crate::engine) fn fence(
        &self,
        link: &Arc<Link>,
        newcomer: &Arc<Link>,
        claim: &Resumption,
    ) -> Result<(), Close> {
        let mut hall = self.lock();
        match hall.find(claim) {
            Standing::Known(session) if Arc::ptr_eq(&session, link) => {}
            _ => {
                hall.refuse_stale(newcomer);
                return Err(stale());
            }
        }
        let is_away = hall.guest(link).is_some_and(|guest| guest.stage == Stage::Away);
        if is_away { self.check_room(&mut hall, newcomer) } else { Ok(()) }
    }

    /// It has come in: what it came with is the session's, and it is nobody any more.
    pub(in crate::engine) fn on_moved(&self, link: &Arc<Link>, newcomer: &Arc<Link>, claim: &Resumption) {
        let mut hall = self.lock();
        if hall.strike_out(newcomer).is_some() {
            hall.handshakes -= 1;
        }
        let Some(guest) = hall.guest(link) else { return };
        guest.epoch = claim.epoch;
        let is_open = guest.stage == Stage::Open;
        if is_open {
            guest.stage = Stage::Away;
        }
        // Its address may be another from now on.
        match guest.stage {
            Stage::Admitted => {
                hall.uncount(link);
                hall.count(newcomer);
            }
            _ if is_open => hall.uncount(link),
            _ => {}
        }
    }

    /// The last word in a session that we have ended; its link's lock is held.
    pub(in crate::engine) fn on_last_word(&self, link: &Arc<Link>, close: Close) {
        let mut hall = self.lock();
        if let Some(guest) = hall.guest(link).filter(|guest| matches!(guest.stage, Stage::Open | Stage::Away)) {
            let nonce = guest.nonce;
            let credentials = hall.credentials(link, nonce);
            hall.sessions.remember(clock::now(), &credentials, close, self.config.retention);
        }
    }
}
