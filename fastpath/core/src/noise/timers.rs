//! When a peer has something to do although nothing arrives.

use std::time::Duration;

/// What can come due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// An initiation was not answered: send another, or give up.
    Retransmit,
    /// Something was received and nothing was sent since: say that it arrived.
    Keepalive,
    /// Something was sent and nothing was received since: the session may be gone.
    Silence,
    /// No session was made for so long that keys must not stay in memory.
    Wipe,
    /// Whatever happens, say something now and then.
    Persistent,
}

impl Timer {
    pub(super) const ALL: [Self; 5] =
        [Self::Retransmit, Self::Keepalive, Self::Silence, Self::Wipe, Self::Persistent];
}

/// The timers of one peer.
#[derive(Debug, Default)]
pub struct Timers([Option<Duration>; Timer::ALL.len()]);

impl Timers {
    /// Lets `timer` come due at `at`, whenever it would have before.
    pub fn arm(&mut self, timer: Timer, at: Duration) {
        self.0[timer as usize] = Some(at);
    }

    /// Lets it not come due.
    pub fn cancel(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    /// Whether it is to come due.
    #[must_use]
    pub fn is_armed(&self, timer: Timer) -> bool {
        self.0[timer as usize].is_some()
    }

    /// When the first comes due.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.0.iter().flatten().min().copied()
    }

    /// Takes a timer that is due.
    pub fn expire(&mut self, now: Duration) -> Option<Timer> {
        let due = |timer: &Timer| self.0[*timer as usize].is_some_and(|at| at <= now);
        let timer = Timer::ALL.into_iter().find(due)?;
        self.cancel(timer);
        Some(timer)
    }
}
