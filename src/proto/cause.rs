//! Why a link ended, as a value and as one sentence.

use std::fmt;
use std::time::Duration;

use super::close::Close;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The peer said CLOSE, or we did.
    Closed,
    /// FIN without CLOSE: the process ended or was killed.
    Ended,
    /// RST: killed with unread data, rebooted, forgotten by something in between, or it gave us up.
    Reset,
    /// Silence, and something of ours stays unanswered: cable, power, NAT, firewall.
    Unreachable,
    /// Silence, but the peer's kernel answers.
    Frozen,
    /// Silence, and no evidence either way.
    Silent,
    /// What we send doesn't arrive, though we hear the peer.
    Deaf,
    /// Beats come, but interpreter or application made no progress for longer than allowed.
    Hung,
    /// No connection could be made.
    Refused,
    /// The peer refused, or didn't finish the handshake.
    Handshake,
    Tls,
    /// The peer broke the rules.
    Protocol,
}

impl Cause {
    pub const ALL: [Self; 12] = [
        Self::Closed,
        Self::Ended,
        Self::Reset,
        Self::Unreachable,
        Self::Frozen,
        Self::Silent,
        Self::Deaf,
        Self::Hung,
        Self::Refused,
        Self::Handshake,
        Self::Tls,
        Self::Protocol,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Ended => "ended",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::Frozen => "frozen",
            Self::Silent => "silent",
            Self::Deaf => "deaf",
            Self::Hung => "hung",
            Self::Refused => "refused",
            Self::Handshake => "handshake",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
        }
    }
}

/// Why the peer gave us up, if it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GivenUp {
    /// What we sent didn't arrive.
    Unheard,
    /// We were paused, and sent nothing.
    Paused,
}

impl GivenUp {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unheard => "unheard",
            Self::Paused => "paused",
        }
    }
}

/// Why a session ended without a goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionEnd {
    /// No other link came in time, or none can come.
    GivenUp,
    /// The peer knows nothing of it any more.
    Forgotten,
}

/// The three levels of being alive; the lowest that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    Path,
    Interpreter,
    Application,
}

impl Level {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Interpreter => "interpreter",
            Self::Application => "application",
        }
    }
}

/// The end of a link and all that is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub cause: Cause,
    /// How long nothing had been heard; in `deaf`, how long nothing of ours had arrived; in `hung`, the age.
    pub silence: Duration,
    /// What it was held against; `None` where no limit was involved.
    pub limit: Option<Duration>,
    /// Whether the peer's kernel still acknowledged; `None` where nobody knows.
    pub kernel_answers: Option<bool>,
    pub level: Option<Level>,
    pub given_up: Option<GivenUp>,
    /// The peer's CLOSE, or ours where we ended it.
    pub close: Option<Box<Close>>,
    /// The CLOSE came from the peer.
    pub by_peer: bool,
    /// Bytes of ours that the peer's application isn't known to have taken.
    pub untaken_bytes: u64,
    /// Messages that nobody will take: they came after our CLOSE, or our program hadn't taken them before.
    pub messages_after_close: u64,
    /// It was a session's end; else a link's, or a goodbye.
    pub session: Option<SessionEnd>,
    /// What the peer did, where it broke a rule or the handshake failed; where the session was given up, what came of the last
    /// attempt to go on with it.
    pub detail: Option<String>,
}

impl Ending {
    #[must_use]
    pub fn new(cause: Cause) -> Self {
        Self {
            cause,
            silence: Duration::ZERO,
            limit: None,
            kernel_answers: None,
            level: None,
            given_up: None,
            close: None,
            by_peer: false,
            untaken_bytes: 0,
            messages_after_close: 0,
            session: None,
            detail: None,
        }
    }
}

/// Seconds to the hundredth: what matters to people.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:.2} s", self.0.as_secs_f64())
    }
}

/// The peer's words, on one line of a log or a terminal: what would begin another or command it is escaped.
struct Harmless<'a>(&'a str);

impl fmt::Display for Harmless<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\'' | '"' => write!(out, "{character}")?,
                _ => write!(out, "{}", character.escape_debug())?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let silence = Seconds(self.silence);
        match self.cause {
            Cause::Closed => {
                out.write_str(if self.by_peer { "the peer closed" } else { "closed" })?;
            }
            // A plain peer knows no CLOSE.
            Cause::Ended if self.detail.is_some() && self.session.is_none() => {
                out.write_str("the peer has ended its stream")?
            }
            Cause::Ended => {
                out.write_str("the peer's process ended or was killed: its end of stream came without CLOSE")?
            }
            Cause::Reset => out.write_str("the connection was reset")?,
            Cause::Unreachable => write!(out, "nothing heard for {silence}, and the peer's kernel doesn't answer")?,
            Cause::Frozen => write!(out, "nothing heard for {silence}, though the peer's kernel answers")?,
            Cause::Silent => write!(out, "nothing heard for {silence}")?,
            Cause::Deaf if self.by_peer => out.write_str("the peer says that it didn't hear us")?,
            Cause::Deaf => write!(out, "nothing of ours has arrived for {silence}, though the peer is heard")?,
            Cause::Hung => {
                let who = self.level.map_or("program", Level::name);
                write!(out, "the peer's {who} has made no progress for {silence}, though its beats come")?;
            }
            Cause::Refused => out.write_str("no connection could be made")?,
            Cause::Handshake => out.write_str("the handshake failed")?,
            Cause::Tls => out.write_str("TLS failed")?,
            Cause::Protocol => out.write_str("the peer broke the protocol")?,
        }
        if let Some(limit) = self.limit {
            write!(out, " (limit {})", Seconds(limit))?;
        }
        match self.given_up {
            Some(GivenUp::Paused) => out.write_str(": it gave us up while we were paused")?,
            Some(GivenUp::Unheard) => out.write_str(": it gave us up, for it heard nothing of us")?,
            None => {}
        }
        if let Some(close) = &self.close
            && matches!(self.cause, Cause::Closed | Cause::Handshake)
        {
            match close.code.name() {
                Some(name) => write!(out, ": {name}")?,
                None => write!(out, ": code {}", close.code.0)?,
            }
            if !close.reason.is_empty() {
                write!(out, " ({})", Harmless(&close.reason))?;
            }
        }
        if self.session == Some(SessionEnd::GivenUp) {
            out.write_str("; the session was given up")?;
        }
        if let Some(detail) = &self.detail {
            write!(out, ": {detail}")?;
        }
        if self.session == Some(SessionEnd::Forgotten) {
            out.write_str("; the peer knows nothing of the session any more")?;
        }
        Ok(())
    }
}
