//! What happened at a proxy, in order, for who wants to understand a test that failed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::flow::Way;

/// Older entries go.
pub const MAX_ENTRIES: usize = 10_000;
/// Bytes of one direction that follow each other within this are one entry, unless something else happens in between. Arbitrary.
const TOGETHER: Duration = Duration::from_secs(1);
/// So far back an entry is looked for that bytes can be added to: other connections talk meanwhile.
const LOOK_BACK: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Accepted,
    /// For a fault, or a limit.
    Refused,
    /// With the server behind the proxy.
    Connected,
    /// The server can't be connected to.
    Failed,
    Forwarded,
    /// Bytes that nobody gets.
    Lost,
    /// By a program, or by a fault: FIN.
    Ended,
    Reset,
    Forgotten,
    /// Nothing of the connection is left.
    Closed,
    Fault,
}

impl What {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Connected => "connected",
            Self::Failed => "failed",
            Self::Forwarded => "forwarded",
            Self::Lost => "lost",
            Self::Ended => "ended",
            Self::Reset => "reset",
            Self::Forgotten => "forgotten",
            Self::Closed => "closed",
            Self::Fault => "fault",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub at: Instant,
    /// Later than `at` when several are one.
    pub until: Instant,
    pub connection: Option<u64>,
    pub way: Option<Way>,
    pub what: What,
    pub bytes: u64,
    pub detail: String,
}

impl Entry {
    #[must_use]
    pub fn new(at: Instant, what: What, connection: Option<u64>, way: Option<Way>) -> Self {
        Self { at, until: at, connection, way, what, bytes: 0, detail: String::new() }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Record {
    entries: VecDeque<Entry>,
    dropped: u64,
}

impl Record {
    pub fn note(&mut self, entry: Entry) {
        if entry.bytes > 0
            && let Some(before) = self.find(&entry)
        {
            before.bytes += entry.bytes;
            before.until = entry.at;
            return;
        }
        if self.entries.len() == MAX_ENTRIES {
            self.entries.pop_front();
            self.dropped += 1;
        }
        self.entries.push_back(entry);
    }

    /// The entry that these bytes belong to.
    fn find(&mut self, entry: &Entry) -> Option<&mut Entry> {
        for before in self.entries.iter_mut().rev().take(LOOK_BACK) {
            if before.connection == entry.connection && before.way == entry.way && before.what == entry.what {
                return (entry.at <= before.until + TOGETHER).then_some(before);
            }
            let concerns = before.connection.is_none() || before.connection == entry.connection;
            if concerns && before.bytes == 0 {
                return None;
            }
        }
        None
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Entries that were too many.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
