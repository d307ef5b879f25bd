//! What the threads of the engine hand to each other, in every interleaving that loom finds: nothing is left undone, and
//! nobody who is to be woken sleeps on, which loom reports as a deadlock. `make loom` runs them.
//!
//! Each was seen to fail with the code broken as its comment says. What isn't here: the budget and the registry of the
//! guard do all they do under one lock, and wake by an order or by a condition variable under that lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::errands::Errands;
use super::link::Notification;
use super::orders::Orders;
use super::sync::{AtomicU16, Mutex, Wakeup, thread};
use super::waiting::{Interest, Waiters};

/// Three threads that are interrupted three times each way already take thousands of courses; loom's authors know of
/// hardly an error that needs more (loom's documentation, "Large models").
pub(super) fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

// ---- a lock and its errands -----------------------------------------------------------------------------------

/// As a link: who gives the lock back does what the engine has left. The lock is made of an atomic, as std's is, and with its
/// orderings: loom's own is stronger, and doesn't let others run between an attempt at it and what comes before.
struct Tended {
    errands: Errands,
    is_locked: AtomicU16,
    done: AtomicU16,
}

struct Guard<'t>(&'t Tended);

impl Tended {
    fn try_lock(&self) -> Option<Guard<'_>> {
        self.is_locked.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).ok().map(|_| Guard(self))
    }

    /// As `Link::run`.
    fn run(&self, errand: u16) {
        if let Some((_guard, all)) = self.errands.begin(errand, || self.try_lock()) {
            self.done.fetch_or(all, Ordering::Relaxed);
        }
    }
}

/// As the link's.
impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.is_locked.store(0, Ordering::Release);
        if self.0.errands.are_left() {
            self.0.run(0);
        }
    }
}

/// Fails without either fence, without the second attempt in `begin`, and when `are_left` is asked before the lock is
/// given back.
#[test]
fn no_errand_is_left_undone_when_the_lock_is_given_back() {
    explore(|| {
        let [is_locked, done] = [(); 2].map(|()| AtomicU16::new(0));
        let tended = Arc::new(Tended { errands: Errands::none(), is_locked, done });
        let caller = {
            let tended = tended.clone();
            thread::spawn(move || drop(tended.try_lock()))
        };
        // Who ends another link, and has its lock meanwhile.
        let other = {
            let tended = tended.clone();
            thread::spawn(move || {
                drop(tended.try_lock());
                tended.run(256);
            })
        };
        // The engine's thread, which waits for the lock as little as they do.
        tended.run(1);
        tended.run(2);
        for thread in [caller, other] {
            thread.join().expect("it doesn't panic");
        }
        assert_eq!(tended.done.load(Ordering::Relaxed), 256 | 3);
    });
}

// ---- the engine's orders --------------------------------------------------------------------------------------

/// As `Reactor::run`, until `is_over` says so of all that was taken.
fn carry_out(orders: &Orders<u8>, is_over: impl Fn(&[u8], &[usize]) -> bool) {
    let (mut urgent, mut soon) = (Vec::new(), Vec::new());
    let mut take = || {
        let (more, later) = orders.take();
        urgent.extend(more);
        soon.extend(later);
        is_over(&urgent, &soon)
    };
    while !take() {
        if orders.may_sleep() {
            orders.wakeup.wait_for_edge();
        }
        if take() {
            return;
        }
        orders.wakeup.clear();
    }
}

/// Fails when `take` leaves `is_woken` as it is, and when `give` wakes before the order is there.
#[test]
fn every_order_is_carried_out() {
    explore(|| {
        let orders = Arc::new(Orders::new().expect("there are descriptors"));
        let callers = [1, 2].map(|order| {
            let orders = orders.clone();
            thread::spawn(move || orders.give(order, false).expect("it isn't over"))
        });
        carry_out(&orders, |urgent, _| urgent.len() == 2);
        for caller in callers {
            caller.join().expect("it doesn't panic");
        }
    });
}

/// Fails when `may_sleep` says that it may always.
#[test]
fn the_threads_own_orders_are_carried_out_without_waking_it() {
    explore(|| {
        let orders = Arc::new(Orders::new().expect("there are descriptors"));
        let caller = {
            let orders = orders.clone();
            thread::spawn(move || orders.give(1, false).expect("it isn't over"))
        };
        carry_out(&orders, |urgent, _| {
            if urgent == [1] {
                orders.wakeup.clear();
                orders.give(2, true).expect("it isn't over");
            }
            urgent.contains(&2)
        });
        caller.join().expect("it doesn't panic");
    });
}

/// Fails when `give_soon` wakes for the second and not for the first, and when `stop` wakes before it has left word.
#[test]
fn what_can_wait_a_moment_and_the_request_to_stop_are_heard() {
    explore(|| {
        let orders = Arc::new(Orders::<u8>::new().expect("there are descriptors"));
        let callers = [1, 2].map(|key| {
            let orders = orders.clone();
            thread::spawn(move || orders.give_soon(key))
        });
        let mut soon = Vec::new();
        while soon.len() < 2 {
            soon.extend(orders.take().1);
            if soon.len() < 2 {
                orders.soon.wait_for_edge();
                soon.extend(orders.take().1);
                orders.soon.clear();
            }
        }
        for caller in callers {
            caller.join().expect("it doesn't panic");
        }
        let stopper = {
            let orders = orders.clone();
            thread::spawn(move || orders.stop())
        };
        while !orders.is_to_stop() {
            orders.wakeup.wait_for_edge();
            orders.wakeup.clear();
        }
        stopper.join().expect("it doesn't panic");
    });
}

// ---- who waits ------------------------------------------------------------------------------------------------

/// As a link: messages, who waits for them, and the end.
#[derive(Default)]
struct Inbox {
    messages: VecDeque<u8>,
    has_ended: bool,
    waiters: Waiters,
}

/// As `Link::wait`, and what it ends with.
fn receive(inbox: &Mutex<Inbox>) -> Option<u8> {
    let mut inner = inbox.lock().expect("nobody panics");
    loop {
        let message = inner.messages.pop_front();
        if message.is_some() || inner.has_ended {
            // `Inner::hand_over`
            if !inner.messages.is_empty() {
                inner.waiters.wake_one(Interest::READABLE);
            }
            return message;
        }
        let place = inner.waiters.enter(Interest::READABLE, None).expect("there are descriptors");
        drop(inner);
        place.sleep(None, 0, super::clock::now()).expect("there is no limit");
        inner = inbox.lock().expect("nobody panics");
        inner.waiters.leave(place);
    }
}

/// Fails when who takes one doesn't hand over, and when `leave` doesn't take who goes out of the list.
#[test]
fn each_message_is_received_by_somebody_who_waits() {
    explore(|| {
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let receivers = [(); 2].map(|()| {
            let inbox = inbox.clone();
            thread::spawn(move || receive(&inbox))
        });
        for message in [1, 2] {
            let mut inner = inbox.lock().expect("nobody panics");
            inner.messages.push_back(message);
            inner.waiters.wake_one(Interest::READABLE);
        }
        let mut received = receivers.map(|receiver| receiver.join().expect("it doesn't panic"));
        received.sort_unstable();
        assert_eq!(received, [Some(1), Some(2)]);
    });
}

/// Fails when the end wakes one only.
#[test]
fn the_end_is_told_to_everyone_who_waits() {
    explore(|| {
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let receivers = [(); 2].map(|()| {
            let inbox = inbox.clone();
            thread::spawn(move || receive(&inbox))
        });
        let mut inner = inbox.lock().expect("nobody panics");
        inner.has_ended = true;
        inner.waiters.wake_everyone();
        drop(inner);
        for receiver in receivers {
            assert_eq!(receiver.join().expect("it doesn't panic"), None);
        }
    });
}

// ---- the descriptor of an event loop ---------------------------------------------------------------------------

/// Fails when it is shown after the lock is given back, by either of them.
#[test]
fn the_notification_is_readable_while_there_is_a_message() {
    struct Shown {
        messages: u8,
        notification: Notification,
    }
    explore(|| {
        let wakeup = Wakeup::new().expect("there are descriptors");
        let number = wakeup.clone();
        let notification = Notification { wakeup, is_set: false };
        let inner = Arc::new(Mutex::new(Shown { messages: 0, notification }));
        let engine = {
            let inner = inner.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    let mut inner = inner.lock().expect("nobody panics");
                    inner.messages += 1;
                    inner.notification.show(true);
                }
            })
        };
        // As an event loop, which receives one message at a time.
        for _ in 0..2 {
            number.wait();
            let mut inner = inner.lock().expect("nobody panics");
            inner.messages -= 1;
            let has_more = inner.messages > 0;
            inner.notification.show(has_more);
        }
        engine.join().expect("it doesn't panic");
        assert!(!inner.lock().expect("nobody panics").notification.is_set);
    });
}
