//! Echoes that wait for their answers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overmesh_core::drops::DropReason;
use tokio::sync::oneshot;

/// An echo to send, and who wants to know of its answer.
#[derive(Debug)]
pub struct Probe {
    /// Id of the peer that has to answer.
    pub peer: String,
    /// Where the echo goes.
    pub endpoint: SocketAddr,
    /// Bytes after the Geneve header.
    pub size: usize,
    /// Random: only who got the echo can answer it.
    pub token: u64,
    /// Gets the round-trip time. Whoever waits gives up by dropping the other end.
    pub answered: oneshot::Sender<Duration>,
}

/// The echoes under way, by token.
#[derive(Debug, Default)]
pub(crate) struct Probes(HashMap<u64, (Probe, Instant)>);

impl Probes {
    /// Notes an echo that was sent at `now`, and forgets those that nobody waits for any more.
    pub(crate) fn begin(&mut self, probe: Probe, now: Instant) {
        self.0.retain(|_, (probe, _)| !probe.answered.is_closed());
        self.0.insert(probe.token, (probe, now));
    }

    /// Takes an answer that came at `now`; `is_from` tells whether the peer with an id sent it.
    ///
    /// # Errors
    /// `echo_unexpected`: nobody waits for it, or not from there.
    pub(crate) fn answered(
        &mut self,
        token: u64,
        now: Instant,
        is_from: impl FnOnce(&str) -> bool,
    ) -> Result<(), DropReason> {
        let entry = match self.0.entry(token) {
            Entry::Occupied(entry) if is_from(&entry.get().0.peer) => entry,
            _ => return Err(DropReason::EchoUnexpected),
        };
        let (probe, sent) = entry.remove();
        let _ = probe.answered.send(now.saturating_duration_since(sent));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn only_the_peer_that_was_asked_can_answer_and_only_once() {
        let (answered, mut answer) = oneshot::channel();
        let endpoint = "192.0.2.2:6081".parse().unwrap();
        let mut probes = Probes::default();
        let now = Instant::now();
        probes.begin(Probe { peer: "b".into(), endpoint, size: 0, token: 7, answered }, now);

        let rtt = Duration::from_millis(3);
        let mut from = |token, sender: &str| probes.answered(token, now + rtt, |peer| peer == sender);
        assert_eq!(from(7, "c"), Err(DropReason::EchoUnexpected));
        assert_eq!(from(8, "b"), Err(DropReason::EchoUnexpected));
        assert_eq!(from(7, "b"), Ok(()));
        assert_eq!(from(7, "b"), Err(DropReason::EchoUnexpected));
        assert_eq!(answer.try_recv(), Ok(rtt));
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten() {
        let endpoint = "192.0.2.2:6081".parse().unwrap();
        let mut probes = Probes::default();
        for token in 0..3 {
            let (answered, _dropped) = oneshot::channel();
            probes.begin(Probe { peer: "b".into(), endpoint, size: 0, token, answered }, Instant::now());
        }
        assert_eq!(probes.0.len(), 1);
    }
}
