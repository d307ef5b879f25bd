//! Skipping time, for tests: the engine's thread moves its clock on to the next alarm, lets that ring and what follows from it
//! happen, and so on, until the clock is where it was wished for.
//!
//! It never skips beyond an alarm, so nobody is late and no pause of ours is seen. Before each step it waits, really, until nothing
//! is under way any more; but not for long, for what is under way on a path that is cut never ends.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::engine::link::LinkError;
use crate::engine::sync::{self, Mutex};
use crate::engine::waiting::{Interest, Waiters};
use crate::engine::{clock, fork, reactor};

/// What a thread that waits needs to be woken, and to wait again. Arbitrary; where it takes longer, its next wait begins later.
const WAY_BACK: Duration = Duration::from_millis(1);
/// Between two looks at what no descriptor tells of.
const LOOKS: Duration = Duration::from_millis(1);

/// That the clock be somewhere, and who waits for that.
struct Wish {
    at: Instant,
    patience: Duration,
    generation: u32,
    is_withdrawn: AtomicBool,
    answer: Mutex<Answer>,
}

#[derive(Default)]
struct Answer {
    outcome: Option<Result<(), LinkError>>,
    waiters: Waiters,
}

impl Wish {
    fn new(by: Duration, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            at: clock::now() + by,
            patience,
            generation: fork::generation(),
            is_withdrawn: AtomicBool::new(false),
            answer: Mutex::default(),
        })
    }

    fn end(&self, outcome: Result<(), LinkError>) {
        let mut answer = sync::lock(&self.answer);
        answer.outcome.get_or_insert(outcome);
        answer.waiters.wake_everyone();
    }
}

/// As the engine's thread has it. However that ends, who waits is told.
pub(super) struct Asked(Arc<Wish>);

impl Drop for Asked {
    fn drop(&mut self) {
        // In a forked child nobody waits, and the lock is as some thread of the parent had it.
        if self.0.generation == fork::generation() {
            self.0.end(Err(LinkError::EngineLost));
        }
    }
}

/// Who may have the clock skip time. While there is one, calls wait only where they can be told of that.
pub struct Skipper(());

impl Skipper {
    #[must_use]
    #[allow(clippy::new_without_default, reason = "it is counted")]
    pub fn new() -> Self {
        clock::add_skipper();
        Self(())
    }

    /// Begins to skip so much time. At each step what is under way is waited for, really, `patience` at most.
    pub fn skip(&self, by: Duration, patience: Duration) -> io::Result<Skip> {
        if !clock::has_room_for(by) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no more than a hundred years can be skipped"));
        }
        let wish = Wish::new(by, patience);
        reactor::engine()?.skip(Asked(wish.clone()))?;
        Ok(Skip(wish))
    }
}

impl Drop for Skipper {
    fn drop(&mut self) {
        clock::remove_skipper();
    }
}

/// Time that is being skipped. Dropped, it goes no further; what was skipped stays so.
pub struct Skip(Arc<Wish>);

impl Skip {
    /// Until it is done, and what was due by then has happened.
    pub fn wait(&self) -> Result<(), LinkError> {
        let mut answer = sync::lock(&self.0.answer);
        loop {
            if let Some(outcome) = answer.outcome.take() {
                return outcome;
            }
            let place = answer.waiters.enter(Interest::STATE, None)?;
            drop(answer);
            let slept = place.sleep(None, 0, clock::real());
            answer = sync::lock(&self.0.answer);
            answer.waiters.leave(place);
            slept?;
        }
    }
}

impl Drop for Skip {
    fn drop(&mut self) {
        self.0.is_withdrawn.store(true, Ordering::Relaxed);
    }
}

/// Who is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Awaited {
    Member(usize),
    /// All attempts to connect there, of which there may be thousands in a night.
    Target(usize),
}

/// What a member says before time is skipped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stir {
    /// Something is under way that only real time brings: a thread that was woken, a byte that nobody has read yet, an answer.
    pub(super) is_astir: bool,
    /// When the next of those who wait there has no more time.
    pub(super) next_deadline: Option<Instant>,
}

/// The engine's part, kept by its thread.
pub(super) struct Skipping {
    wishes: Vec<Asked>,
    /// Who was waited for in vain: not again before it has come to rest, or, where that is no sign of life, before the next wish.
    tired_of: HashSet<Awaited>,
    /// When the last step was taken, really.
    stepped: Instant,
    /// Before the next one.
    settle: Duration,
}

impl Skipping {
    pub(super) fn new() -> Self {
        Self { wishes: Vec::new(), tired_of: HashSet::new(), stepped: clock::real(), settle: Duration::ZERO }
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.wishes.is_empty()
    }

    pub(super) fn add(&mut self, wish: Asked) {
        if self.wishes.is_empty() {
            // Whoever made the wish has done something before.
            (self.stepped, self.settle) = (clock::real(), WAY_BACK);
            self.tired_of.retain(|who| matches!(who, Awaited::Member(_)));
        }
        self.wishes.push(wish);
    }

    /// One step, if nothing is under way; `members` say what is. How long the thread may sleep before the next: it is
    /// woken by whatever descriptors tell.
    pub(super) fn step(
        &mut self,
        is_busy: bool,
        next_alarm: Option<Instant>,
        members: impl Iterator<Item = (Awaited, Stir)>,
    ) -> Duration {
        self.wishes.retain(|wish| !wish.0.is_withdrawn.load(Ordering::Relaxed));
        let Some(wanted) = self.wishes.iter().map(|wish| wish.0.at).min() else { return Duration::ZERO };
        let patience = self.wishes.iter().map(|wish| wish.0.patience).max().unwrap_or_default();
        let waited = clock::real().saturating_duration_since(self.stepped);
        let is_patient = waited < patience;
        if is_patient && is_busy {
            return Duration::ZERO;
        }
        let (mut next_deadline, mut astir) = (None, HashSet::new());
        for (who, stir) in members {
            next_deadline = [next_deadline, stir.next_deadline].into_iter().flatten().min();
            if stir.is_astir {
                astir.insert(who);
            }
        }
        self.tired_of.retain(|who| matches!(who, Awaited::Target(_)) || astir.contains(who));
        if is_patient && (waited < self.settle || !astir.is_subset(&self.tired_of)) {
            return LOOKS;
        }
        self.tired_of.extend(astir);
        let now = clock::now();
        if wanted <= now {
            for wish in self.wishes.extract_if(.., |wish| wish.0.at <= now) {
                wish.0.end(Ok(()));
            }
            return Duration::ZERO;
        }
        let stop = next_alarm.into_iter().chain(next_deadline).min().map_or(wanted, |at| at.min(wanted));
        // Whose time is up waits again, perhaps, as soon as it has been told.
        self.settle = if next_deadline.is_some_and(|at| at <= stop) { WAY_BACK } else { Duration::ZERO };
        self.stepped = clock::real();
        clock::skip(stop.saturating_duration_since(now));
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Asked, Awaited, Skip, Skipping, Stir, Wish};
    use crate::engine::clock;
    use crate::engine::link::LinkError;

    #[test]
    fn whoever_waits_is_told_when_the_engine_s_thread_is_gone() {
        let wish = Wish::new(Duration::from_secs(60), Duration::ZERO);
        let mut skipping = Skipping::new();
        skipping.add(Asked(wish.clone()));
        drop(skipping);
        assert!(matches!(Skip(wish).wait(), Err(LinkError::EngineLost)));
    }

    #[test]
    fn who_is_waited_for_in_vain_is_waited_for_once_until_it_has_come_to_rest() {
        const WHO: Awaited = Awaited::Member(7);
        const PATIENCE: Duration = Duration::from_secs(3600);
        let stir = |is_astir| Stir { is_astir, next_deadline: None };
        let mut skipping = Skipping::new();
        let wish = Wish::new(Duration::ZERO, PATIENCE);
        skipping.add(Asked(wish.clone()));
        skipping.settle = Duration::ZERO;
        let mut step = |is_patient: bool, is_astir| {
            skipping.stepped = clock::real();
            if !is_patient {
                skipping.stepped = skipping.stepped.checked_sub(PATIENCE).unwrap();
            }
            let is_waiting = !skipping.step(false, None, [(WHO, stir(is_astir))].into_iter()).is_zero();
            // What was wished for is come to at the first step.
            if !is_waiting {
                skipping.add(Asked(wish.clone()));
                skipping.settle = Duration::ZERO;
            }
            is_waiting
        };
        assert!(step(true, true));
        assert!(!step(false, true));
        assert!(!step(true, true));
        assert!(!step(true, false));
        assert!(step(true, true));
    }
}
