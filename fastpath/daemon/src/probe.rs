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
