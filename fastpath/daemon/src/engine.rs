//! Makes what is asked for so: builds the table, has the lanes go by it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overmesh_core::noise::HostKeys;
use overmesh_core::peers::{PeerSpec, Table, TableError, check_lanes};
use overmesh_core::pmtu::Pace;
use overmesh_core::wire::control;
use overmesh_io::device::OpenError;
use thiserror::Error;
use tokio::sync::{broadcast, oneshot};
use tracing::info;

use crate::backend::Backend;
use crate::command::{Command, Event};
use crate::probe::Probe;
use crate::running::{Running, Site};

/// Events kept for a reader that lags behind; older ones are lost to it.
const EVENTS: usize = 4096;

/// The whole state asked for, by the agent or by a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Of the map that this comes from; repeated in answers.
    pub revision: u64,
    /// Name of the TUN interface.
    pub interface: String,
    /// MTU of the inner network in bytes.
    pub mtu: u32,
    /// VNI.
    pub network_number: u32,
    /// UDP port of the first lane, on every underlay address.
    pub port: u16,
    /// How many lanes; lane i has its own TUN queue, and listens i ports above the first. 0: one.
    pub lanes: u32,
    /// This host's keys: the network is sealed. `None`: it is plain.
    pub host_keys: Option<HostKeys>,
    /// All peers, or those that are not as the base has them.
    pub peers: Vec<PeerSpec>,
    /// What `peers` change.
    pub base: Option<Base>,
}

/// A table that is applied, as one who wants to change it names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Of the table.
    pub digest: Vec<u8>,
    /// Ids of peers that go.
    pub removed: Vec<String>,
}

impl Desired {
    /// The table of what is asked for, checked.
    pub fn table(&self) -> Result<Table, TableError> {
        self.table_after(&Table::default(), &[])
    }

    fn table_after(&self, base: &Table, removed: &[String]) -> Result<Table, TableError> {
        check_lanes("this host", self.lanes, [self.port])?;
        base.changed(self.network_number, self.mtu, self.host_keys.clone(), &self.peers, removed)
    }
}

/// What an apply came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Peers in the table.
    pub peers: usize,
    /// Of the table.
    pub digest: [u8; 32],
    /// False: all of it was already so.
    pub changed: bool,
}

/// Why something asked for was not done; what was there before goes on.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The state asked for contradicts itself.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A change to a table that is not the one applied.
    #[error("what is to be changed is not what is applied. apply the whole table")]
    OtherBase,
    /// A device could not be opened.
    #[error(transparent)]
    Device(#[from] OpenError),
    /// The kernel refused a thread, a descriptor or random bytes.
    #[error("the host refused a resource: {0}. check the limits of this process with `prlimit`")]
    Host(#[from] std::io::Error),
    /// A lane has ended, because a device was lost.
    #[error("a lane has stopped. restart the fastpath")]
    Stopped,
    /// The ports asked for are partly those in use.
    #[error(
        "{lanes} lanes from port {port} on would need ports that lanes from port {current} on still have. choose a port farther off, or restart the fastpath"
    )]
    PortsOverlap {
        /// Asked for.
        port: u16,
        /// Asked for.
        lanes: usize,
        /// The first of those in use.
        current: u16,
    },
    /// A probe before the first apply.
    #[error("nothing is applied yet. apply first")]
    NotApplied,
    /// A probe to whom the table does not know.
    #[error("peer {0} is not in the applied table. apply a table that has it")]
    UnknownPeer(String),
    /// A probe to a peer that cannot be reached.
    #[error("peer {0} has no endpoint. apply a table that has one")]
    NoEndpoint(String),
    /// A probe beyond what a datagram holds.
    #[error("a probe of {0} bytes fits no datagram. ask for at most {max}", max = control::MAX_SIZE)]
    ProbeTooBig(usize),
}

/// Holds what is applied.
pub struct Engine {
    backend: Box<dyn Backend>,
    /// Zero of the uptime and of the times at which peers are heard.
    clock: Instant,
    pace: Pace,
    events: broadcast::Sender<Event>,
    running: Running,
}

/// An echo on its way.
pub struct Echo {
    /// Where it went.
    pub endpoint: SocketAddr,
    /// Resolves to the round-trip time once it is answered.
    pub answer: oneshot::Receiver<Duration>,
}

impl Engine {
    /// An engine that has opened nothing yet.
    #[must_use]
    pub fn new(backend: Box<dyn Backend>) -> Self {
        Self {
            backend,
            clock: Instant::now(),
            pace: Pace::default(),
            events: broadcast::Sender::new(EVENTS),
            running: Running::default(),
        }
    }

    /// The same, trying settled paths again at this pace.
    #[must_use]
    pub fn with_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// Makes `desired` so. On an error, what was there before goes on as it was.
    pub async fn apply(&mut self, desired: &Desired) -> Result<Applied, EngineError> {
        let table = match &desired.base {
            None => desired.table()?,
            Some(base) => desired.table_after(self.table_of(base)?, &base.removed)?,
        };
        let (peers, digest) = (table.peers().len(), table.digest());
        let site = Site { backend: &*self.backend, clock: self.clock, pace: self.pace, events: &self.events };
        let changed = self.running.change(&site, desired, table).await?;
        if changed {
            info!(revision = desired.revision, peers, lanes = desired.lanes.max(1), "applied");
        }
        Ok(Applied { peers, digest, changed })
    }

    fn table_of(&self, base: &Base) -> Result<&Table, EngineError> {
        let running = self.running().filter(|running| running.digest == *base.digest);
        running.map(|running| &*running.first().table).ok_or(EngineError::OtherBase)
    }

    /// Sends an echo of `size` bytes (0: the smallest) to a peer.
    pub fn probe(&self, peer: &str, size: usize) -> Result<Echo, EngineError> {
        if size > control::MAX_SIZE {
            return Err(EngineError::ProbeTooBig(size));
        }
        let running = self.running().ok_or(EngineError::NotApplied)?;
        let tunnel = running.first();
        let index = tunnel.table.index_of(peer).ok_or_else(|| EngineError::UnknownPeer(peer.into()))?;
        let endpoint = tunnel.endpoint(index).ok_or_else(|| EngineError::NoEndpoint(peer.into()))?;
        let token = getrandom::u64().map_err(std::io::Error::from)?;
        let (answered, answer) = oneshot::channel();
        running.tell_first(Command::Probe(Probe { peer: peer.into(), endpoint, size, token, answered }));
        Ok(Echo { endpoint, answer })
    }

    /// Ends the lanes and closes their devices.
    pub fn stop(&mut self) {
        self.running = Running::default();
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Tells all readers of events that the end is near.
    pub fn announce_end(&self) {
        let _ = self.events.send(Event::Stopping);
    }

    /// Revision of what is applied, 0 before the first apply.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.running.revision
    }

    /// Time since the engine was made.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.clock.elapsed()
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(crate) fn running(&self) -> Option<&Running> {
        Some(&self.running).filter(|running| running.has_begun())
    }
}
