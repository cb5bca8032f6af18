//! Which counters were received: a sliding window, RFC 6479.
//!
//! A ring of words, each a bit per counter. A counter that moves the window forward clears the words
//! it skips and never shifts a bit.

const WORD_BITS: u64 = u64::BITS as u64;
const WORDS: usize = 129;
/// How far behind the newest counter one may be. A word less than the ring holds, because the newest
/// word is only partly filled.
pub const WINDOW: u64 = (WORDS as u64 - 1) * WORD_BITS;

/// The counters received in one session.
#[derive(Debug)]
pub struct Window {
    /// One more than the newest counter; 0 when there was none.
    next: u64,
    words: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 0, words: [0; WORDS] }
    }
}

impl Window {
    /// Whether a counter is new and not too old to tell.
    #[must_use]
    pub fn accepts(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        self.next - counter <= WINDOW && self.words[word(counter)] & bit(counter) == 0
    }

    /// Notes a counter that was accepted and proved authentic.
    pub fn insert(&mut self, counter: u64) {
        if counter >= self.next {
            self.clear_skipped(counter);
            self.next = counter.saturating_add(1);
        }
        self.words[word(counter)] |= bit(counter);
    }

    fn clear_skipped(&mut self, counter: u64) {
        let newest = self.next.saturating_sub(1) / WORD_BITS;
        let skipped = (counter / WORD_BITS - newest).min(WORDS as u64);
        for ahead in 1..=skipped {
            self.words[ring(newest.wrapping_add(ahead))] = 0;
        }
    }
}

fn word(counter: u64) -> usize {
    ring(counter / WORD_BITS)
}

#[allow(clippy::cast_possible_truncation)] // below WORDS
fn ring(word: u64) -> usize {
    (word % WORDS as u64) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % WORD_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn received(window: &mut Window, counter: u64) -> bool {
        let new = window.accepts(counter);
        if new {
            window.insert(counter);
        }
        new
    }

    #[test]
    fn the_window_is_at_least_8192_wide() {
        let mut window = Window::default();
        assert!(received(&mut window, WINDOW));
        assert!(received(&mut window, 1));
        assert!(!received(&mut window, 0), "just beyond the window");
        assert_eq!(WINDOW, 8192);
    }

    #[test]
    fn a_leap_forgets_everything_before() {
        let mut window = Window::default();
        for counter in [3, 10_000_000, u64::MAX - 1] {
            assert!(received(&mut window, counter));
            assert!(!received(&mut window, counter));
            assert!(received(&mut window, counter - 1));
        }
        assert!(!received(&mut window, 3));
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_set(
            start in prop_oneof![Just(0), 0..1_u64 << 40],
            steps in prop::collection::vec(
                prop_oneof![8 => -40..60_i64, 2 => -9000..9000_i64, 1 => 0..100_000_i64], 1..400),
        ) {
            let (mut window, mut seen, mut newest) = (Window::default(), HashSet::new(), None::<u64>);
            let mut at = start;
            for step in steps {
                at = at.saturating_add_signed(step);
                let old = newest.is_some_and(|newest| at < newest && newest + 1 - at > WINDOW);
                let expected = !old && !seen.contains(&at);
                prop_assert_eq!(received(&mut window, at), expected, "{}", at);
                seen.insert(at);
                newest = newest.max(Some(at));
            }
        }
    }
}
