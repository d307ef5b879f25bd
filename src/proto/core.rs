//! What decides about a link: our own protocol, or a plain peer's framing. One set of names for the driver; what the one or
//! the other doesn't have is nothing there.

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use super::adaptive::Network;
use super::cause::{Cause, SessionEnd};
use super::close::Close;
use super::codec::Framing;
use super::connection::{Action, Connection, Event, State, Stats, Transmit};
use super::evidence::KernelView;
use super::heartbeat::Ages;
use super::moment::Moment;
use super::placing::Placing;
use super::plain::{EndOfStream, PIECE_BYTES, Plain, PlainStats};
use super::session::SendError;
use super::verdict;

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "thousands of links are framed, and one more pointer costs each of them")]
pub enum Core {
    Framed(Connection),
    Plain(Box<Plain>),
}

// ---- input ----------------------------------------------------------------------------------------------------

impl Core {
    pub fn handle_input(&mut self, now: Instant, input: &[u8]) {
        match self {
            Self::Framed(connection) => connection.handle_input(now, input),
            Self::Plain(plain) => plain.handle_input(now, input),
        }
    }

    /// One small message that came alone, taken at once; of framed links.
    pub fn handle_message<'i>(&mut self, now: Instant, input: &'i [u8]) -> Option<&'i [u8]> {
        match self {
            Self::Framed(connection) => connection.handle_message(now, input),
            Self::Plain(_) => None,
        }
    }

    /// How long a message is that is being received, and may be placed; of framed links.
    #[must_use]
    pub fn begun(&self) -> Option<usize> {
        match self {
            Self::Framed(connection) => connection.begun(),
            Self::Plain(_) => None,
        }
    }

    pub fn place_begun(&mut self, room: &mut [MaybeUninit<u8>]) -> Option<Placing> {
        match self {
            Self::Framed(connection) => connection.place_begun(room),
            Self::Plain(_) => None,
        }
    }

    pub fn handle_placed(&mut self, now: Instant, placing: Placing, headers: &[u8], room: &[u8]) -> Option<Placing> {
        match self {
            Self::Framed(connection) => connection.handle_placed(now, placing, headers, room),
            Self::Plain(_) => None,
        }
    }

    pub fn take_back(&mut self, now: Instant, placing: Option<Placing>, room: &[u8]) {
        if let Self::Framed(connection) = self {
            connection.take_back(now, placing, room);
        }
    }

    pub fn handle_end(&mut self, now: Instant) {
        match self {
            Self::Framed(connection) => connection.handle_end(now),
            Self::Plain(plain) => plain.handle_end(now),
        }
    }

    pub fn handle_reset(&mut self, now: Instant) {
        match self {
            Self::Framed(connection) => connection.handle_reset(now),
            Self::Plain(plain) => plain.handle_reset(now),
        }
    }

    /// A reset that came behind the peer's end of stream; on a framed link that was the end of everything.
    pub fn handle_reset_after_end(&mut self, now: Instant) {
        match self {
            Self::Framed(connection) => connection.handle_end(now),
            Self::Plain(plain) => plain.handle_reset_after_end(now),
        }
    }

    pub fn handle_failure(&mut self, now: Instant, cause: Cause, detail: String) {
        match self {
            Self::Framed(connection) => connection.handle_failure(now, cause, detail),
            Self::Plain(plain) => plain.handle_failure(now, cause, detail),
        }
    }

    /// The guard has convicted the path; framed links judge it themselves.
    pub fn handle_verdict(&mut self, now: Instant, cause: verdict::Cause, silence: Duration, limit: Duration) {
        if let Self::Plain(plain) = self {
            plain.handle_verdict(now, cause, silence, limit);
        }
    }

    pub fn handle_kernel(&mut self, now: Instant, view: Option<KernelView>) {
        match self {
            Self::Framed(connection) => connection.handle_kernel(now, view),
            Self::Plain(plain) => plain.handle_kernel(now, view),
        }
    }

    pub fn handle_pause(&mut self, now: Instant) {
        match self {
            Self::Framed(connection) => connection.handle_pause(now),
            Self::Plain(plain) => plain.handle_pause(now),
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Framed(connection) => connection.handle_timeout(now),
            Self::Plain(plain) => plain.handle_timeout(now),
        }
    }
}

// ---- verbs ----------------------------------------------------------------------------------------------------

impl Core {
    pub fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        match self {
            Self::Framed(connection) => connection.send(message),
            Self::Plain(plain) => plain.send(message),
        }
    }

    /// The next message; of a raw stream a piece of it.
    pub fn read(&mut self) -> Option<&[u8]> {
        self.read_at_most(PIECE_BYTES)
    }

    /// The same, where the caller says how much of a raw stream it wants.
    pub fn read_at_most(&mut self, bytes: usize) -> Option<&[u8]> {
        match self {
            Self::Framed(connection) => connection.read(),
            Self::Plain(plain) => plain.read(bytes),
        }
    }

    /// False if it was too late: the program has closed the link, and what it hadn't taken before it never takes.
    pub fn take(&mut self, now: Instant, messages: usize) -> bool {
        match self {
            Self::Framed(connection) => connection.take(now, messages),
            Self::Plain(plain) => plain.take(now),
        }
    }

    /// The link is over, and its driver has done what was to be done.
    pub fn give_back_memory(&mut self) {
        match self {
            Self::Framed(connection) => connection.give_back_memory(),
            Self::Plain(plain) => plain.give_back_memory(),
        }
    }

    /// The program is done with the link: what it hasn't taken of a link that is over it never will.
    pub fn forget_inbox(&mut self) {
        match self {
            Self::Framed(connection) => connection.forget_inbox(),
            Self::Plain(plain) => plain.forget_inbox(),
        }
    }

    pub fn hurry(&mut self, now: Instant) {
        match self {
            Self::Framed(connection) => connection.hurry(now),
            Self::Plain(plain) => plain.hurry(),
        }
    }

    pub fn ping(&mut self, now: Instant) -> Option<u64> {
        match self {
            Self::Framed(connection) => connection.ping(now),
            Self::Plain(_) => None,
        }
    }

    pub fn set_status(&mut self, status: &[u8]) -> bool {
        match self {
            Self::Framed(connection) => connection.set_status(status),
            Self::Plain(_) => false,
        }
    }

    pub fn progress(&mut self, now: Instant) {
        if let Self::Framed(connection) = self {
            connection.progress(now);
        }
    }

    pub fn set_waiting(&mut self, now: Instant, is_waiting: bool) {
        if let Self::Framed(connection) = self {
            connection.set_waiting(now, is_waiting);
        }
    }

    pub fn set_interpreter_ran(&mut self, at: Option<Moment>) {
        if let Self::Framed(connection) = self {
            connection.set_interpreter_ran(at);
        }
    }

    pub fn grant_budget(&mut self) {
        if let Self::Framed(connection) = self {
            connection.grant_budget();
        }
    }

    /// A plain peer is told nothing but the end of our stream.
    pub fn close(&mut self, now: Instant, close: Close, deadline: Instant) {
        match self {
            Self::Framed(connection) => connection.close(now, close, deadline),
            Self::Plain(plain) => plain.close(deadline),
        }
    }

    /// At the next frame boundary, whatever hasn't been taken.
    pub fn leave(&mut self, now: Instant, close: Close, deadline: Instant) {
        match self {
            Self::Framed(connection) => connection.leave(now, close, deadline),
            Self::Plain(plain) => plain.close(deadline),
        }
    }

    /// A client's session goes on over another connection.
    pub fn relink(&mut self, now: Instant, seed: u64) {
        if let Self::Framed(connection) = self {
            connection.relink(now, seed);
        }
    }

    /// A client's session has no link, and none can be made: one of both sides doesn't trust the other's certificate.
    pub fn distrust(&mut self, now: Instant) {
        if let Self::Framed(connection) = self {
            connection.distrust(now);
        }
    }

    /// As [`Connection::abandon`].
    pub fn abandon(&mut self, now: Instant, detail: String) {
        match self {
            Self::Framed(connection) => connection.abandon(now, detail),
            Self::Plain(plain) => plain.handle_failure(now, Cause::Reset, detail),
        }
    }

    /// Where a client is whose link opens next.
    pub fn set_network(&mut self, network: Network) {
        if let Self::Framed(connection) = self {
            connection.set_network(network);
        }
    }

    /// A server's session is over.
    pub fn lose(&mut self, now: Instant, how: SessionEnd) {
        if let Self::Framed(connection) = self {
            connection.lose(now, how);
        }
    }
}

// ---- output ---------------------------------------------------------------------------------------------------

impl Core {
    #[must_use]
    pub fn poll_transmit(&mut self, now: Instant) -> Transmit<'_> {
        match self {
            Self::Framed(connection) => connection.poll_transmit(now),
            Self::Plain(plain) => plain.poll_transmit(),
        }
    }

    pub fn transmitted(&mut self, now: Instant, bytes: usize) {
        match self {
            Self::Framed(connection) => connection.transmitted(now, bytes),
            Self::Plain(plain) => plain.transmitted(now, bytes),
        }
    }

    #[must_use]
    pub fn is_urgent(&mut self) -> bool {
        match self {
            Self::Framed(connection) => connection.is_urgent(),
            Self::Plain(plain) => plain.is_urgent(),
        }
    }

    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        match self {
            Self::Framed(connection) => connection.poll_action(),
            Self::Plain(plain) => plain.poll_action(),
        }
    }

    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        match self {
            Self::Framed(connection) => connection.poll_event(),
            Self::Plain(plain) => plain.poll_event(),
        }
    }

    #[must_use]
    pub fn poll_timeout(&mut self) -> Option<Moment> {
        match self {
            Self::Framed(connection) => connection.poll_timeout(),
            Self::Plain(plain) => plain.poll_timeout().map(Moment::from),
        }
    }

    /// What [`Core::poll_timeout`] gave last may stand for some milliseconds: what has come up since lies later.
    #[must_use]
    pub fn keeps_deadline(&self) -> bool {
        match self {
            Self::Framed(connection) => connection.keeps_deadline(),
            Self::Plain(_) => false,
        }
    }
}

// ---- what is known --------------------------------------------------------------------------------------------

impl Core {
    #[must_use]
    pub fn state(&self) -> State {
        match self {
            Self::Framed(connection) => connection.state(),
            Self::Plain(plain) => plain.state(),
        }
    }

    /// The peer, if it lives, is about to say something: a step of a handshake, an answer.
    #[must_use]
    pub fn is_owed(&self, now: Instant) -> bool {
        let is_waiting = matches!(self.state(), State::Connecting | State::Suspect | State::Closing);
        is_waiting || matches!(self, Self::Plain(plain) if plain.is_owed(now))
    }

    /// The session has no link, and waits for one.
    #[must_use]
    pub fn is_away(&self) -> bool {
        match self {
            Self::Framed(connection) => connection.is_away(),
            Self::Plain(_) => false,
        }
    }

    /// Of framed links.
    #[must_use]
    pub fn untaken_messages(&self) -> u64 {
        match self {
            Self::Framed(connection) => connection.untaken().1,
            Self::Plain(_) => 0,
        }
    }

    /// What a session without a link keeps.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        match self {
            Self::Framed(connection) => connection.kept_bytes(),
            Self::Plain(_) => 0,
        }
    }

    /// A plain peer's.
    #[must_use]
    pub fn framing(&self) -> Option<Framing> {
        match self {
            Self::Framed(_) => None,
            Self::Plain(plain) => Some(plain.framing()),
        }
    }

    /// The end of a plain peer's stream, if it is to be given out among messages.
    #[must_use]
    pub fn take_end(&mut self) -> Option<EndOfStream> {
        match self {
            Self::Framed(_) => None,
            Self::Plain(plain) => plain.take_end(),
        }
    }

    /// The program is told, as who receives, that nothing more comes of a plain peer.
    pub fn tell_end(&mut self) {
        if let Self::Plain(plain) = self {
            plain.tell_end();
        }
    }

    /// Ends our stream to a plain peer, behind what was accepted before.
    pub fn shut_down_sending(&mut self) {
        if let Self::Plain(plain) = self {
            plain.shut_down_sending();
        }
    }

    #[must_use]
    pub fn has_message(&self) -> bool {
        match self {
            Self::Framed(connection) => connection.has_message(),
            Self::Plain(plain) => plain.has_message(),
        }
    }

    /// Everything that the peer has sent was read, up to the end of its stream, and the link goes on.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        match self {
            Self::Framed(_) => false,
            Self::Plain(plain) => plain.is_at_end(),
        }
    }

    /// The program has been told of the end of a plain peer's stream, and has said nothing since.
    #[must_use]
    pub fn knows_end(&self) -> bool {
        match self {
            Self::Framed(_) => false,
            Self::Plain(plain) => plain.knows_end(),
        }
    }

    /// How long the message is that [`Core::read`] would give; of framed links.
    #[must_use]
    pub fn next_length(&self) -> Option<usize> {
        match self {
            Self::Framed(connection) => connection.next_length(),
            Self::Plain(_) => None,
        }
    }

    /// Nothing of a turn is left to be done but to write what is urgent, to tell that something was taken, and to ask for
    /// the next deadline.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        match self {
            Self::Framed(connection) => connection.is_quiet(),
            Self::Plain(_) => false,
        }
    }

    /// What was accepted goes on only when more is heard of the peer; a plain peer grants no credit.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        match self {
            Self::Framed(connection) => connection.has_unsent(),
            Self::Plain(_) => false,
        }
    }

    /// Something is to be given out among messages: one of them, or the end of a plain peer's stream.
    #[must_use]
    pub fn has_news(&self) -> bool {
        match self {
            Self::Framed(connection) => connection.has_message(),
            Self::Plain(plain) => plain.has_message() || plain.has_end_to_tell(),
        }
    }

    /// Whether the socket is to be read; a framed link's always is, for its window isn't TCP's.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        match self {
            Self::Framed(_) => true,
            Self::Plain(plain) => plain.wants_input(),
        }
    }

    /// Bytes of this link that the kernel took.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        match self {
            Self::Framed(connection) => connection.bytes_sent(),
            Self::Plain(plain) => plain.bytes_sent(),
        }
    }

    #[must_use]
    pub fn sent_offsets(&self) -> (u64, u64) {
        match self {
            Self::Framed(connection) => connection.sent_offsets(),
            Self::Plain(plain) => plain.sent_offsets(),
        }
    }

    #[must_use]
    pub fn status(&self) -> &[u8] {
        match self {
            Self::Framed(connection) => connection.status(),
            Self::Plain(_) => &[],
        }
    }

    #[must_use]
    pub fn peer_status(&self) -> &[u8] {
        match self {
            Self::Framed(connection) => connection.peer_status(),
            Self::Plain(_) => &[],
        }
    }

    #[must_use]
    pub fn peer_ages(&self) -> Option<(Instant, Ages)> {
        match self {
            Self::Framed(connection) => connection.peer_ages(),
            Self::Plain(_) => None,
        }
    }

    #[must_use]
    pub fn budget_wanted(&self) -> u64 {
        match self {
            Self::Framed(connection) => connection.budget_wanted(),
            Self::Plain(_) => 0,
        }
    }

    #[must_use]
    pub fn budget_is_for_message(&self) -> bool {
        match self {
            Self::Framed(connection) => connection.budget_is_for_message(),
            Self::Plain(_) => false,
        }
    }

    #[must_use]
    pub fn budget_held_by_window(&self) -> u64 {
        match self {
            Self::Framed(connection) => connection.budget_held_by_window(),
            Self::Plain(_) => 0,
        }
    }

    #[must_use]
    pub fn budget_held(&self) -> u64 {
        match self {
            Self::Framed(connection) => connection.budget_held(),
            Self::Plain(_) => 0,
        }
    }

    /// `None` before a framed link is open; a plain one has [`Core::plain_stats`].
    #[must_use]
    pub fn stats(&self, now: Instant) -> Option<Stats> {
        match self {
            Self::Framed(connection) => connection.stats(now),
            Self::Plain(_) => None,
        }
    }

    #[must_use]
    pub fn plain_stats(&self, now: Instant) -> Option<PlainStats> {
        match self {
            Self::Framed(_) => None,
            Self::Plain(plain) => Some(plain.stats(now)),
        }
    }
}
