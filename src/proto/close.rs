//! CLOSE: why a side goes, and what it knows then.

use std::time::Duration;

use super::frame::{Fields, Kind, put_frame};

/// Codes below this are the protocol's, the rest are the programs' own.
pub const FIRST_APPLICATION_CODE: u16 = 0x1000;
const MAX_TEXT_BYTES: usize = 1024;
const ENDS_SESSION: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CloseCode(pub u16);

impl CloseCode {
    pub const NORMAL: Self = Self(0);
    pub const GOING_AWAY: Self = Self(1);
    /// The verdict of a side that heard nothing, or whose own bytes didn't arrive.
    pub const NOT_HEARD: Self = Self(2);
    pub const HUNG: Self = Self(3);
    pub const PROTOCOL: Self = Self(4);
    pub const VERSION: Self = Self(5);
    pub const LIMIT: Self = Self(6);
    pub const UNAUTHORIZED: Self = Self(7);
    pub const TOO_MANY: Self = Self(8);
    pub const HANDSHAKE_TIMEOUT: Self = Self(9);
    pub const STALE: Self = Self(10);
    pub const TOO_SLOW: Self = Self(11);
    /// The program that served the session raised an error.
    pub const FAILED: Self = Self(12);

    /// The name that docs/SPEC.md gives it.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::NORMAL => "normal",
            Self::GOING_AWAY => "going away",
            Self::NOT_HEARD => "not heard",
            Self::HUNG => "hung",
            Self::PROTOCOL => "protocol",
            Self::VERSION => "version",
            Self::LIMIT => "limit",
            Self::UNAUTHORIZED => "unauthorized",
            Self::TOO_MANY => "too many",
            Self::HANDSHAKE_TIMEOUT => "handshake timeout",
            Self::STALE => "stale",
            Self::TOO_SLOW => "too slow",
            Self::FAILED => "failed",
            _ => return None,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    pub code: CloseCode,
    /// The session ends, not only this link.
    pub ends_session: bool,
    /// What the application of the side that goes took.
    pub taken: u64,
    /// Not to come back earlier; zero says nothing.
    pub retry_after: Duration,
    /// Where to come back; empty says nothing.
    pub address: String,
    pub reason: String,
}

impl Close {
    /// For a session or a link that ends; texts over 1024 bytes are cut at a character.
    #[must_use]
    pub fn new(code: CloseCode, reason: &str) -> Self {
        Self {
            code,
            ends_session: true,
            taken: 0,
            retry_after: Duration::ZERO,
            address: String::new(),
            reason: cut(reason).to_owned(),
        }
    }

    /// The same, for this link alone.
    #[must_use]
    pub fn link_only(mut self) -> Self {
        self.ends_session = false;
        self
    }

    #[must_use]
    pub fn coming_back(mut self, retry_after: Duration, address: &str) -> Self {
        self.retry_after = retry_after;
        cut(address).clone_into(&mut self.address);
        self
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, Kind::Close, |out| {
            out.extend_from_slice(&self.code.0.to_be_bytes());
            out.push(if self.ends_session { ENDS_SESSION } else { 0 });
            out.extend_from_slice(&self.taken.to_be_bytes());
            out.extend_from_slice(&u32::try_from(self.retry_after.as_millis()).unwrap_or(u32::MAX).to_be_bytes());
            for text in [cut(&self.address), cut(&self.reason)] {
                out.extend_from_slice(&u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        });
    }

    /// What comes after the reason belongs to later versions.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields(payload);
        let code = CloseCode(fields.u16()?);
        let ends_session = fields.u8()? & ENDS_SESSION != 0;
        let taken = fields.u64()?;
        let retry_after = Duration::from_millis(fields.u32()?.into());
        let mut text = || {
            let length = fields.u16()?;
            fields.text(length.into()).map(str::to_owned)
        };
        let (address, reason) = (text()?, text()?);
        Some(Self { code, ends_session, taken, retry_after, address, reason })
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}
