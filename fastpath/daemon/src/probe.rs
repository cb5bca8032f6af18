//! Echoes that wait for their answers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use overmesh_core::drops::DropReason;
use overmesh_core::peers::Table;
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

    /// Takes an answer that came from `underlay` at `now`.
    ///
    /// # Errors
    /// `echo_unexpected`: nobody waits for it, or not from there.
    pub(crate) fn answered(
        &mut self,
        token: u64,
        underlay: IpAddr,
        now: Instant,
        table: &Table,
    ) -> Result<(), DropReason> {
        let entry = match self.0.entry(token) {
            Entry::Occupied(entry) if is_from(&entry.get().0, underlay, table) => entry,
            _ => return Err(DropReason::EchoUnexpected),
        };
        let (probe, sent) = entry.remove();
        let _ = probe.answered.send(now.saturating_duration_since(sent));
        Ok(())
    }
}

fn is_from(probe: &Probe, underlay: IpAddr, table: &Table) -> bool {
    table.index_of(&probe.peer).is_some_and(|peer| table.peer(peer).is_at(underlay))
}

#[cfg(test)]
mod tests {
    use super::*;
    use overmesh_core::peers::PeerSpec;

    fn peer(id: &str, address: &str) -> PeerSpec {
        PeerSpec { id: id.into(), endpoints: vec![format!("{address}:6081")], ..PeerSpec::default() }
    }

    #[test]
    fn only_the_peer_that_was_asked_can_answer_and_only_once() {
        let table = Table::new(1, 1420, &[peer("b", "192.0.2.2"), peer("c", "192.0.2.3")]).unwrap();
        let (answered, mut answer) = oneshot::channel();
        let endpoint = "192.0.2.2:6081".parse().unwrap();
        let mut probes = Probes::default();
        let now = Instant::now();
        probes.begin(Probe { peer: "b".into(), endpoint, size: 0, token: 7, answered }, now);

        let mut from = |token, underlay: &str, after| {
            probes.answered(token, underlay.parse().unwrap(), now + after, &table)
        };
        let rtt = Duration::from_millis(3);
        assert_eq!(from(7, "192.0.2.3", rtt), Err(DropReason::EchoUnexpected));
        assert_eq!(from(8, "192.0.2.2", rtt), Err(DropReason::EchoUnexpected));
        assert_eq!(from(7, "192.0.2.2", rtt), Ok(()));
        assert_eq!(from(7, "192.0.2.2", rtt), Err(DropReason::EchoUnexpected));
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
