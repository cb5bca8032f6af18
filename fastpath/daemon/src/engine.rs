//! Makes what is asked for so: opens devices, builds the table, runs the lane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use overmesh_core::noise::PrivateKey;
use overmesh_core::peers::{PeerSpec, Table, TableError};
use overmesh_core::pmtu::Pace;
use overmesh_core::tunnel::Tunnel;
use overmesh_core::wire::control;
use overmesh_io::device::OpenError;
use thiserror::Error;
use tokio::sync::{broadcast, oneshot};
use tracing::info;

use crate::backend::Backend;
use crate::command::{Command, Devices, Event, Install, LaneHandle};
use crate::lane;
use crate::probe::Probe;

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
    /// UDP port on every underlay address.
    pub port: u16,
    /// This host's private key: the network is sealed. `None`: it is plain.
    pub private_key: Option<PrivateKey>,
    /// All peers.
    pub peers: Vec<PeerSpec>,
}

impl Desired {
    /// The table of what is asked for, checked.
    pub fn table(&self) -> Result<Table, TableError> {
        Table::new(self.network_number, self.mtu, self.private_key.clone(), &self.peers)
    }
}

/// What an apply came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Peers in the table.
    pub peers: usize,
    /// False: all of it was already so.
    pub changed: bool,
}

/// Why something asked for was not done; what was there before goes on.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The state asked for contradicts itself.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A device could not be opened.
    #[error(transparent)]
    Device(#[from] OpenError),
    /// The kernel refused a thread, a descriptor or random bytes.
    #[error("the host refused a resource: {0}. check the limits of this process with `prlimit`")]
    Host(#[from] std::io::Error),
    /// The lane has ended, because a device was lost.
    #[error("the lane has stopped. restart the fastpath")]
    Stopped,
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
    running: Option<Running>,
}

/// What is applied, and the lane that carries it out.
pub(crate) struct Running {
    pub(crate) revision: u64,
    pub(crate) interface: String,
    pub(crate) port: u16,
    pub(crate) listening: Vec<SocketAddr>,
    pub(crate) digest: [u8; 32],
    pub(crate) tunnel: Arc<Tunnel>,
    lane: LaneHandle,
    thread: JoinHandle<()>,
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
        let (clock, pace) = (Instant::now(), Pace::default());
        Self { backend, clock, pace, events: broadcast::Sender::new(EVENTS), running: None }
    }

    /// The same, trying settled paths again at this pace.
    #[must_use]
    pub fn with_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// Makes `desired` so. On an error, what was there before goes on as it was.
    pub async fn apply(&mut self, desired: &Desired) -> Result<Applied, EngineError> {
        let table = desired.table()?;
        let peers = table.peers().len();
        let changed = match &mut self.running {
            None => {
                self.running = Some(self.start(desired, table)?);
                true
            }
            Some(running) => running.change(&*self.backend, desired, table).await?,
        };
        if changed {
            info!(revision = desired.revision, peers, "applied");
        }
        Ok(Applied { peers, changed })
    }

    /// Sends an echo of `size` bytes (0: the smallest) to a peer.
    pub fn probe(&self, peer: &str, size: usize) -> Result<Echo, EngineError> {
        if size > control::MAX_SIZE {
            return Err(EngineError::ProbeTooBig(size));
        }
        let running = self.running.as_ref().ok_or(EngineError::NotApplied)?;
        let table = &running.tunnel.table;
        let index = table.index_of(peer).ok_or_else(|| EngineError::UnknownPeer(peer.into()))?;
        let endpoint = running.tunnel.endpoint(index).ok_or_else(|| EngineError::NoEndpoint(peer.into()))?;
        let token = getrandom::u64().map_err(std::io::Error::from)?;
        let (answered, answer) = oneshot::channel();
        running.lane.tell(Command::Probe(Probe { peer: peer.into(), endpoint, size, token, answered }));
        Ok(Echo { endpoint, answer })
    }

    /// Ends the lane and closes its devices.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.lane.tell(Command::Stop);
            // A lane that panicked has printed why; there is nothing left to stop.
            let _ = running.thread.join();
        }
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
        self.running.as_ref().map_or(0, |running| running.revision)
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
        self.running.as_ref()
    }

    fn start(&self, desired: &Desired, table: Table) -> Result<Running, EngineError> {
        let inner = self.backend.open_inner(&desired.interface)?;
        let (outer, listening) = self.backend.open_outer(desired.port)?;
        let digest = table.digest();
        let tunnel = Arc::new(Tunnel::new(Arc::new(table), None));
        let (lane, thread) =
            lane::spawn(inner, outer, tunnel.clone(), self.clock, self.pace, self.events.clone())?;
        Ok(Running {
            revision: desired.revision,
            interface: desired.interface.clone(),
            port: desired.port,
            listening,
            digest,
            tunnel,
            lane,
            thread,
        })
    }
}

impl Running {
    /// Makes `desired` so; false if all of it already was.
    async fn change(
        &mut self,
        backend: &dyn Backend,
        desired: &Desired,
        table: Table,
    ) -> Result<bool, EngineError> {
        let (digest, mut listening, mut devices) = (table.digest(), None, Devices::default());
        if desired.interface != self.interface {
            devices.inner = Some(backend.open_inner(&desired.interface)?);
        }
        if desired.port != self.port {
            let (outer, addresses) = backend.open_outer(desired.port)?;
            devices.outer = Some(outer);
            listening = Some(addresses);
        }
        let changed = digest != self.digest || devices.inner.is_some() || devices.outer.is_some();
        if changed {
            self.install(table, devices).await?;
        }
        self.revision = desired.revision;
        self.interface.clone_from(&desired.interface);
        self.port = desired.port;
        self.digest = digest;
        if let Some(addresses) = listening {
            self.listening = addresses;
        }
        Ok(changed)
    }

    /// Returns once the lane goes on with the new; the old is freed here, not on the lane.
    async fn install(&mut self, table: Table, devices: Devices) -> Result<(), EngineError> {
        let tunnel = Arc::new(Tunnel::new(Arc::new(table), Some(&self.tunnel)));
        let (done, replaced) = oneshot::channel();
        self.lane.tell(Command::Install(Install { tunnel: tunnel.clone(), devices, done }));
        replaced.await.map_err(|_| EngineError::Stopped)??;
        self.tunnel = tunnel;
        Ok(())
    }
}
