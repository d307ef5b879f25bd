//! Where the engine's thread keeps whom it looks after. A key is a place and a serial number: the place is found without a
//! table of hashes, which costs each of many thousands twice as much, and whoever had the place before has another number,
//! so that what is still said of it reaches nobody.

use crate::engine::sync::{self, Mutex, MutexGuard};

/// Where a number has 32 bits: a million descriptors, whose links would fill such a process's memory.
const PLACE_BITS: u32 = if usize::BITS < 64 { 20 } else { 32 };

/// Where the one with this key sits.
#[must_use]
pub(super) fn place_of(key: usize) -> usize {
    key & ((1 << PLACE_BITS) - 1)
}

/// Given out by any thread, before the engine's has heard of it.
#[derive(Default)]
pub(super) struct Keys(Mutex<Places>);

#[derive(Default)]
struct Places {
    /// So many were ever taken at once.
    count: usize,
    free: Vec<u32>,
    /// Of the newest key.
    serial: usize,
}

impl Keys {
    fn lock(&self) -> MutexGuard<'_, Places> {
        sync::lock(&self.0)
    }

    /// Never a number under `1 << PLACE_BITS`.
    #[must_use]
    pub(super) fn new_key(&self) -> usize {
        let mut places = self.lock();
        let place = places.free.pop().map_or(places.count, |place| place as usize);
        places.count = places.count.max(place + 1);
        let serial = (places.serial + 1) & (usize::MAX >> PLACE_BITS);
        places.serial = serial.max(1);
        (places.serial << PLACE_BITS) | place
    }

    /// Nobody sits there, and nobody with this key is going to: its place is another's.
    pub(super) fn give_back(&self, key: usize) {
        // It came from there: as many as there are descriptors.
        self.lock().free.push(u32::try_from(place_of(key)).unwrap_or_default());
    }
}

/// Those who sit, each with its key.
pub(super) struct Seats<T> {
    seats: Vec<Option<(usize, T)>>,
    taken: usize,
}

impl<T> Default for Seats<T> {
    fn default() -> Self {
        Self { seats: Vec::new(), taken: 0 }
    }
}

impl<T> Seats<T> {
    pub(super) fn insert(&mut self, key: usize, member: T) {
        let place = place_of(key);
        if self.seats.len() <= place {
            self.seats.resize_with(place + 1, || None);
        }
        self.taken += usize::from(self.seats[place].replace((key, member)).is_none());
    }

    /// `None` where nobody sits, or another.
    #[must_use]
    pub(super) fn get(&self, key: usize) -> Option<&T> {
        self.seats.get(place_of(key))?.as_ref().filter(|(whose, _)| *whose == key).map(|(_, member)| member)
    }

    pub(super) fn at(&self, place: usize) -> Option<&(usize, T)> {
        self.seats.get(place)?.as_ref()
    }

    /// Who sat there; the place is free from here on, as [`Keys::give_back`] is to be told.
    pub(super) fn remove(&mut self, key: usize) -> Option<T> {
        let (_, member) = self.seats.get_mut(place_of(key))?.take_if(|(whose, _)| *whose == key)?;
        self.taken -= 1;
        Some(member)
    }

    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.taken
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.seats.iter().flatten().map(|(_, member)| member)
    }

    pub(super) fn with_keys(&self) -> impl Iterator<Item = (usize, &T)> {
        self.seats.iter().flatten().map(|(key, member)| (*key, member))
    }

    pub(super) fn into_members(self) -> impl Iterator<Item = T> {
        self.seats.into_iter().flatten().map(|(_, member)| member)
    }
}

#[cfg(test)]
mod tests {
    use super::{Keys, Seats, place_of};

    #[test]
    fn a_place_that_was_given_back_is_another_ones_and_the_key_of_before_finds_nobody() {
        let (keys, mut seats) = (Keys::default(), Seats::default());
        let [first, second] = [keys.new_key(), keys.new_key()];
        seats.insert(first, "first");
        seats.insert(second, "second");
        assert_eq!((seats.remove(first), seats.remove(first)), (Some("first"), None));
        keys.give_back(first);
        let third = keys.new_key();
        assert_eq!(place_of(third), place_of(first));
        assert_ne!(third, first);
        assert_eq!((seats.get(first), seats.get(third)), (None, None));
        seats.insert(third, "third");
        assert_eq!((seats.get(first).is_none(), seats.remove(first)), (true, None));
        assert_eq!((seats.get(second), seats.get(third), seats.len()), (Some(&"second"), Some(&"third"), 2));
        assert_eq!(place_of(keys.new_key()), 2);
    }
}
